"""Values that no count gives: what they do to tests of called genes, and cells without them.

Log-normalised expression of a cell is 0 or at least that of one count. Networks, and changes added to control cells,
also give out values in between. The mean of many cells changes little by them. A rank test takes each of them to be
above all zeros of the control cells, and calls the gene. PerturbDiff sets values below a threshold to 0 in every step
of its sampler, at 1e-4 of a scaled value: far below one count.

Here everything a method answers is also scored with such values at 0. The bound of a gene is the smallest value that a
training cell has of it, so nothing is chosen, and every method can know it.
"""

import numpy as np
import scipy.sparse as sp

__all__ = ["SINCE", "ZEROED", "least_seen", "zeroed"]

SINCE = "2026-11-23T08:50"
"""Recorded runs of PerturbDiff's main results that started earlier (UTC) have no such rows, and fewer settings."""

ZEROED = "small values 0"
"""Variant of rows whose cells went through `zeroed`."""


def least_seen(train: sp.spmatrix) -> np.ndarray:
    """The smallest value above 0 of every gene (G,) among training cells (n, G), float32; infinite without one."""
    values = train.tocsc(copy=True)
    values.eliminate_zeros()
    out = np.full(values.shape[1], np.inf, dtype=np.float32)
    seen = np.flatnonzero(np.diff(values.indptr))  # reduceat takes no empty slices
    if len(seen):
        out[seen] = np.minimum.reduceat(values.data, values.indptr[seen])
    return out


def zeroed(cells: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Cells (n, G) with everything below `least` (G,) at 0."""
    return np.where(cells < least, np.float32(0), cells)
