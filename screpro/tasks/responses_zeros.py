"""Values that no count gives: what they do to tests of called genes, and cells without them.

Log-normalised expression of a cell is 0 or at least that of one count. Networks, and changes added to control cells,
give out values in between. For a mean they hardly matter; a rank test hears nothing else, as it takes every one of them
to be above all zeros of the control cells, and calls the gene. PerturbDiff sets values below a threshold to 0 in every
step of its sampler, at 1e-4 of a scaled value: far below one count.

Here everything a method answers is also scored with such values at 0. The bound of a gene is the smallest value that a
training cell has of it, so nothing is chosen, and every method can know it.
"""

import numpy as np

from screpro.data.populations import Populations

__all__ = ["ZEROED", "least_seen", "zeroed"]

ZEROED = "small values 0"
"""Variant of rows whose cells went through `zeroed`."""


def least_seen(train: Populations) -> np.ndarray:
    """The smallest value above 0 of every gene among training cells, (G,) float32; infinite where there is none."""
    values = train.x.tocsc()
    values.eliminate_zeros()
    out = np.full(values.shape[1], np.inf, dtype=np.float32)
    seen = np.flatnonzero(np.diff(values.indptr))  # reduceat takes no empty slices
    out[seen] = np.minimum.reduceat(values.data, values.indptr[seen]) if len(seen) else out[seen]
    return out


def zeroed(cells: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Cells (n, G) with everything below `least` (G,) at 0."""
    return np.where(cells < least, np.float32(0), cells)
