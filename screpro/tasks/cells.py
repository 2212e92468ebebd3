"""What an annotation method is given: counts, log-normalised expression and integer labels of the same cells."""

from typing import NamedTuple

import numpy as np
from scipy import sparse

__all__ = ["Cells"]


class Cells(NamedTuple):
    """Labelled cells in the form every annotation model and baseline takes."""

    counts: sparse.csr_matrix  # (n, G) raw integer counts, float32
    x: sparse.csr_matrix  # (n, G) log1p of counts scaled to 10 000 per cell, float32
    cell_type: np.ndarray  # (n,) int64 codes 0..K-1
    batch: np.ndarray  # (n,) int64 codes from 0
    genes: list[str]  # (G,) gene names, columns of both matrices

    def take(self, indices: np.ndarray) -> "Cells":
        """The cells at `indices` (n',) in that order; genes and code spaces stay as they are."""
        return Cells(
            counts=self.counts[indices],
            x=self.x[indices],
            cell_type=self.cell_type[indices],
            batch=self.batch[indices],
            genes=self.genes,
        )

    def joined(self, other: "Cells") -> "Cells":
        """These cells, then those of `other`, which has the same genes and code spaces."""
        return Cells(
            counts=sparse.vstack([self.counts, other.counts], format="csr"),
            x=sparse.vstack([self.x, other.x], format="csr"),
            cell_type=np.concatenate([self.cell_type, other.cell_type]),
            batch=np.concatenate([self.batch, other.batch]),
            genes=self.genes,
        )
