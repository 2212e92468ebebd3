"""Products of a batch of sparse cells with a dense gene table, with gradients for the table.

Nine in ten entries of a count matrix are zero: multiplying only the others costs a tenth of the dense product and
keeps a batch of 20 000 genes small. A weighted sum of table rows per cell is what ``embedding_bag`` computes; it
is 2 to 4 times faster here than torch's CSR product, which zero-fills and copies its result.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SparseCells", "sparse_matmul"]


class SparseCells(NamedTuple):
    """B cells x G genes in compressed rows, with the order that turns `values` into compressed columns."""

    starts: Tensor  # (B + 1,)
    genes: Tensor  # (nnz,)
    values: Tensor  # (nnz,)
    column_starts: Tensor  # (G + 1,)
    cells: Tensor  # (nnz,) cell of each entry, in column order
    column_order: Tensor  # (nnz,)
    shape: tuple[int, int]

    @classmethod
    def from_scipy(cls, matrix: sp.csr_matrix, device: torch.device | str = "cpu") -> "SparseCells":
        """From a CSR matrix (B, G)."""
        numbered = sp.csr_matrix((np.arange(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape).tocsc()

        def tensor(array: np.ndarray, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.as_tensor(array, dtype=dtype, device=device)

        return cls(
            starts=tensor(matrix.indptr),
            genes=tensor(matrix.indices),
            values=tensor(matrix.data, torch.float32),
            column_starts=tensor(numbered.indptr),
            cells=tensor(numbered.indices),
            column_order=tensor(numbered.data),
            shape=matrix.shape,
        )

    @property
    def cell_of_value(self) -> Tensor:
        """(nnz,) row of each entry, in row order."""
        lengths = self.starts.diff()
        return torch.repeat_interleave(torch.arange(self.shape[0], device=lengths.device), lengths)

    def rows_times(self, values: Tensor, dense: Tensor) -> Tensor:
        """Matrix with these `values` times `dense` (G, D) -> (B, D), without gradients."""
        return _weighted_sums(self.genes, self.starts, values, dense)

    def columns_times(self, values: Tensor, dense: Tensor) -> Tensor:
        """Transposed matrix with these `values` times `dense` (B, D) -> (G, D), without gradients."""
        return _weighted_sums(self.cells, self.column_starts, values[self.column_order], dense)


def _weighted_sums(rows: Tensor, starts: Tensor, weights: Tensor, dense: Tensor) -> Tensor:
    """Sum over each stretch of `rows` of weight x row of `dense`; an empty stretch gives zeros."""
    weights = weights.to(dense.dtype)
    return F.embedding_bag(rows, dense, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


class _SparseMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cells: SparseCells, values: Tensor, table: Tensor) -> Tensor:
        ctx.cells, ctx.values = cells, values
        return cells.rows_times(values, table)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return None, None, ctx.cells.columns_times(ctx.values, grad.contiguous())


def sparse_matmul(cells: SparseCells, values: Tensor, table: Tensor) -> Tensor:
    """(B, G) sparse @ (G, D) dense -> (B, D), differentiable in `table`.

    `values` (nnz,) take the place of ``cells.values``, so that a masked or scaled copy shares the structure.
    """
    return _SparseMatmul.apply(cells, values, table)
