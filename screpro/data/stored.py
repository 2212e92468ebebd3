"""A matrix seen block by block, wherever it lies: in memory or inside an ``.h5ad`` file.

Checks and descriptions must work on files larger than memory and must never make a sparse matrix dense.
Everything here therefore walks over the *stored* values, a few million at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

__all__ = ["BLOCK", "Block", "Stored", "stored"]

BLOCK = 1 << 22  # values looked at in one go: 32 MiB as float64


class Block(NamedTuple):
    """Consecutive rows (columns, where the layout is "csc") of a matrix."""

    start: int  # first row (column)
    stop: int  # one past the last
    values: np.ndarray  # (v,) stored values in storage order
    minor: np.ndarray | None  # (v,) column (row) of every value; None where the matrix is dense
    ends: np.ndarray  # (stop - start + 1,) offsets of the rows (columns) within `values`

    def position(self, k: int, layout: str) -> tuple[int, int]:
        """Row and column of the k-th value."""
        major = self.start + int(np.searchsorted(self.ends, k, side="right")) - 1
        minor = int(self.minor[k]) if self.minor is not None else k - int(self.ends[major - self.start])
        return (minor, major) if layout == "csc" else (major, minor)


@dataclass(frozen=True)
class Stored:
    """A read-only view of a matrix of n rows and m columns. Made by `stored`."""

    layout: str  # "csr", "csc" or "dense"
    shape: tuple[int, int]  # n, m
    data: Any  # (v,) values, or (n, m) where dense: NumPy array or HDF5 data set
    indices: Any  # (v,) or None
    indptr: np.ndarray  # (rows or columns + 1,) where each begins

    @property
    def dtype(self) -> np.dtype:
        """Type of the values as stored."""
        return np.dtype(self.data.dtype)

    @property
    def n_stored(self) -> int:
        """How many values are stored: n m for a dense matrix."""
        return int(self.indptr[-1])

    def blocks(self, *, at_most: int | None = None, size: int = BLOCK) -> Iterator[Block]:
        """Yield the matrix in blocks of about `size` values.

        Parameters
        ----------
        at_most
            Read only about this many values, in blocks spread evenly over the matrix. Default: all of it.
        size
            Values per block. A block always holds at least one whole row (column).
        """
        last = len(self.indptr) - 1
        cuts = [0]
        while cuts[-1] < last:
            reach = int(np.searchsorted(self.indptr, self.indptr[cuts[-1]] + size, side="right")) - 1
            cuts.append(min(max(reach, cuts[-1] + 1), last))
        spans = list(pairwise(cuts))
        if at_most is not None and (wanted := max(1, at_most // size)) < len(spans):
            spans = [spans[i] for i in np.unique(np.linspace(0, len(spans) - 1, wanted).astype(int))]
        for start, stop in spans:
            low, high = int(self.indptr[start]), int(self.indptr[stop])
            ends = self.indptr[start : stop + 1] - low
            if self.layout == "dense":
                yield Block(start, stop, np.asarray(self.data[start:stop]).reshape(-1), None, ends)
            else:
                minor = np.asarray(self.indices[low:high])
                yield Block(start, stop, np.asarray(self.data[low:high]), minor, ends)

    def to_csr(self, dtype: Any = np.float32) -> sp.csr_matrix:
        """Read everything into memory as CSR with sorted column indices and no stored zeros.

        Raises
        ------
        ValueError
            If an index points outside the matrix.
        """
        if self.layout == "dense":
            parts = []
            for block in self.blocks():
                rows = block.values.reshape(block.stop - block.start, self.shape[1])
                parts.append(sp.csr_matrix(rows.astype(dtype, copy=False)))
            return sp.vstack(parts, format="csr") if parts else sp.csr_matrix(self.shape, dtype=dtype)
        values = np.empty(self.n_stored, dtype=dtype)  # filled in parts: a float64 file never lies twice in memory
        for block in self.blocks():
            low = int(self.indptr[block.start])
            values[low : low + len(block.values)] = block.values
        make = sp.csc_matrix if self.layout == "csc" else sp.csr_matrix
        indices = self.indices[:]  # a new array where it comes from a file, a view where it is in memory
        indices = indices.copy() if isinstance(self.indices, np.ndarray) else indices
        matrix = make((values, indices, self.indptr.copy()), shape=self.shape)
        matrix.check_format(full_check=True)
        matrix = matrix.tocsr()
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return matrix


def stored(matrix: Any) -> Stored:
    """View a matrix block by block.

    Parameters
    ----------
    matrix
        NumPy array, SciPy sparse matrix, HDF5 data set, HDF5 group in the sparse layout of ``.h5ad``, or the
        on-disk matrix of an AnnData opened with ``backed="r"``.

    Raises
    ------
    ValueError
        If it is none of these, has not two dimensions, or its parts contradict each other.
    """
    if isinstance(matrix, Stored):
        return matrix
    if hasattr(matrix, "group") and hasattr(matrix, "to_memory"):  # sparse matrix of a backed AnnData
        matrix = matrix.group
    if sp.issparse(matrix):
        if matrix.format not in ("csr", "csc"):
            matrix = matrix.tocsr()
        return _sparse(matrix.format, matrix.shape, matrix.data, matrix.indices, matrix.indptr)
    if hasattr(matrix, "attrs") and hasattr(matrix, "keys"):  # HDF5 group
        # files written before anndata 0.7 call the two attributes h5sparse_*
        kind = str(matrix.attrs.get("encoding-type", matrix.attrs.get("h5sparse_format", "")))
        layout = kind.removesuffix("_matrix")
        shape = matrix.attrs.get("shape", matrix.attrs.get("h5sparse_shape"))
        if layout not in ("csr", "csc") or shape is None:
            raise ValueError(f"a matrix stored as {kind or 'an unknown layout'} is neither dense, CSR nor CSC")
        return _sparse(layout, shape, matrix["data"], matrix["indices"], matrix["indptr"])
    data = matrix if hasattr(matrix, "attrs") else np.asarray(matrix)
    if getattr(data, "ndim", None) != 2:
        raise ValueError(f"a matrix has two dimensions, this has {getattr(data, 'ndim', 'none')}")
    n, m = data.shape
    return Stored("dense", (n, m), data, None, np.arange(n + 1, dtype=np.int64) * m)


def _sparse(layout: str, shape: Any, data: Any, indices: Any, indptr: Any) -> Stored:
    n, m = (int(side) for side in shape)
    pointer = np.asarray(indptr[:]).astype(np.int64)
    length = (m if layout == "csc" else n) + 1
    if len(pointer) != length or pointer[0] != 0 or (np.diff(pointer) < 0).any():
        raise ValueError(f"the row pointer of the sparse {n} x {m} matrix is broken")
    # scipy allows spare room at the end of data and indices
    if min(len(data), len(indices)) < pointer[-1]:
        raise ValueError(f"the sparse matrix announces {pointer[-1]} values and stores {len(data)}")
    return Stored(layout, (n, m), data, indices, pointer)
