"""Products of a batch of cells with a dense gene table, with gradients for the table.

Nine in ten entries of a whole-transcriptome count matrix are zero: multiplying only the others costs a tenth of the
dense product and keeps a batch of 20 000 genes small. A weighted sum of table rows per cell is what ``embedding_bag``
computes; it is 2 to 4 times faster here than torch's CSR product, which zero-fills and copies its result. On panels
of few, well expressed genes a dense product is faster, so the share of non-zeros decides.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CellMatrix", "SparseCells", "matmul"]

DENSE_FROM = 0.1
"""Share of non-zeros from which a dense product is faster (measured on two cores, 500 to 20 000 genes)."""


class SparseCells(NamedTuple):
    """Structure and values of B cells x G genes in compressed rows."""

    starts: Tensor  # (B + 1,)
    genes: Tensor  # (nnz,)
    values: Tensor  # (nnz,)
    cells: Tensor  # (nnz,) cell of each entry
    column_starts: Tensor  # (G + 1,)
    column_order: Tensor  # (nnz,) turns row order into column order
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
            cells=tensor(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))),
            column_starts=tensor(numbered.indptr),
            column_order=tensor(numbered.data),
            shape=matrix.shape,
        )

    def matrix(self, values: Tensor | None = None) -> "CellMatrix":
        """The matrix itself, or one of the same structure with other `values` (nnz,), e.g. masked ones."""
        return CellMatrix(self, self.values if values is None else values)


class CellMatrix:
    """A batch of cells that can be multiplied from both sides. Gradients do not flow into its values."""

    def __init__(self, cells: SparseCells, values: Tensor):
        self.cells, self.values = cells, values
        size = cells.shape[0] * cells.shape[1]
        self.is_dense = len(values) >= DENSE_FROM * size

    @cached_property
    def dense(self) -> Tensor:
        """(B, G)."""
        whole = self.values.new_zeros(self.cells.shape)
        whole[self.cells.cells, self.cells.genes] = self.values
        return whole

    def times(self, table: Tensor) -> Tensor:
        """This (B, G) times `table` (G, D) -> (B, D)."""
        if self.is_dense:
            return self.dense @ table
        return _weighted_sums(self.cells.genes, self.cells.starts, self.values, table)

    def transposed_times(self, other: Tensor) -> Tensor:
        """This transposed (G, B) times `other` (B, D) -> (G, D)."""
        if self.is_dense:
            return self.dense.T @ other
        rows, values = self._by_column
        return _weighted_sums(rows, self.cells.column_starts, values, other)

    @cached_property
    def _by_column(self) -> tuple[Tensor, Tensor]:
        order = self.cells.column_order
        return self.cells.cells[order], self.values[order]


def _weighted_sums(rows: Tensor, starts: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Sum over each stretch of `rows` of weight x row of `table`; an empty stretch gives zeros."""
    weights = weights.to(table.dtype)
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix: CellMatrix, table: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix.times(table)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return None, ctx.matrix.transposed_times(grad.contiguous())


def matmul(matrix: CellMatrix, table: Tensor) -> Tensor:
    """(B, G) cells @ (G, D) table -> (B, D), differentiable in `table`."""
    return _Matmul.apply(matrix, table)
