"""Gram matrix of the rows of a matrix, in float64: the hot sum of principal components.

Sparse rows. A row with q non-zeros touches q (q + 1) / 2 entries of the upper triangle, so all of it costs
``sum_r q_r^2 / 2`` multiply-adds instead of the ``n g^2 / 2`` of a dense product. What decides the speed is where the
sums lie: scattered over the whole g x g matrix every one of them misses the cache. `sparse_gram` therefore takes one
line of the result at a time. For gene i it walks through the cells that express i and adds ``a_ri a_rj`` for the genes
``j >= i`` of each into a line of 8 g bytes, which stays in the first-level cache; the cells come in chunks that stay in
the second, sorted by gene once (a counting sort). Products and sums are float64.

Every line is summed by one thread in one order: the result does not depend on the number of threads.

`dense_gram` is for dense rows, or sparse ones too full for that: chunks of rows are made dense, centred, and multiplied
by ``syrk``, which does half the work of a general product; sums over chunks are float64.
"""

from collections.abc import Callable

import numba
import numpy as np
import scipy.sparse as sp
from numba import njit, uint64

from screpro.kernels.groups import in_threads

__all__ = ["column_sums", "csr_parts", "dense_gram", "is_sparse_enough", "sparse_gram", "sparse_times_dense"]

ENTRIES_PER_CHUNK = 80_000
"""Non-zeros of a chunk of rows in `sparse_gram`, 8 bytes each: more leave the second-level cache, fewer fetch lines too
often."""

RANGES = 3
"""Ranges of lines per thread: one that is done early takes another, and fewer lines stay closer between two chunks."""

FETCH = 24
"""Multiply-adds that take as long as going to a row, measured: without them ranges of short tails take longest."""

SPARSE_SHARE = 0.011
"""Largest mean of ``q^2 / g^2`` at which `sparse_gram` is the faster one: a scattered multiply-add takes 1.7 ns on one
core, one in a matrix product 0.02 ns."""


def csr_parts(a: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts (n + 1,) uint64, columns (nnz,) uint32 and values (nnz,) of a matrix whose columns are sorted in each row.

    Unsigned, because an index that could be negative costs the inner loops more than their arithmetic.
    """
    return a.indptr.astype(np.uint64), a.indices.astype(np.int32, copy=False).view(np.uint32), a.data


def is_sparse_enough(starts: np.ndarray, width: int) -> bool:
    """Whether the rows are so empty that `sparse_gram` beats the dense product: up to about 10 % non-zeros."""
    per_row = np.diff(starts).astype(np.float64)  # q
    # not a dot product: BLAS would start its threads, which spin beside ours for a while after it
    return bool(np.square(per_row).sum() <= SPARSE_SHARE * len(per_row) * width**2)


def sparse_gram(starts: np.ndarray, columns: np.ndarray, values: np.ndarray, width: int) -> np.ndarray:
    """Upper triangle of ``sum_r a_r a_r'`` (width, width) float64, zeros below; arguments from `csr_parts`."""
    out = np.zeros((width, width))
    if len(values) == 0:
        return out
    rows = max(1, ENTRIES_PER_CHUNK * (len(starts) - 1) // len(values))
    ranges = RANGES * numba.get_num_threads()
    # ranges of equal work: the first lines have the longest tails
    work = _work(starts, columns, width).cumsum()
    cuts = np.r_[0, np.searchsorted(work, work[-1] * np.arange(1, ranges) / ranges), width]
    in_threads(lambda t: _lines(starts, columns, values, out, cuts[t], cuts[t + 1], rows), range(ranges))
    return out


def dense_gram(
    block: Callable[[int, int, np.ndarray], None], n: int, width: int, dtype: type = np.float32
) -> np.ndarray:
    """Upper triangle of ``sum_r a_r a_r'`` (width, width) float64, zeros below; the rows come in chunks.

    Parameters
    ----------
    block
        ``block(start, stop, out)`` writes rows start to stop into `out` (stop - start, width).
    n, width
        Shape of the matrix.
    dtype
        Precision of the products: float32 or float64. Sums over chunks are float64.
    """
    rows = min(n, max(2 * width, 4096))  # the sum over chunks, width^2 numbers, is then small beside the product
    buffer, total = np.empty((rows, width), dtype), np.zeros((width, width))
    for start in range(0, n, rows):
        some = buffer[: min(rows, n - start)]
        block(start, start + len(some), some)
        _add_product(some, total)
    return total


def _add_product(rows: np.ndarray, total: np.ndarray) -> None:
    """Add the upper triangle of ``rows' rows``."""
    from scipy.linalg.blas import dsyrk, ssyrk

    # a C-ordered matrix is its transpose in Fortran order, of which BLAS takes the lower triangle: our upper one
    total += (ssyrk if rows.dtype == np.float32 else dsyrk)(1.0, rows.T, lower=1).T


def column_sums(columns: np.ndarray, values: np.ndarray, width: int) -> np.ndarray:
    """Sum of each column (width,) float64."""
    return _add_up(columns, values, np.zeros(width))


def sparse_times_dense(starts: np.ndarray, columns: np.ndarray, values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Product (n, k) float64 of sparse rows and a table (width, k), rows in threads; as precise as the values."""
    out = np.empty((len(starts) - 1, table.shape[1]))
    cuts = np.linspace(0, len(out), numba.get_num_threads() + 1).astype(np.int64)
    table = np.ascontiguousarray(table, values.dtype)
    in_threads(lambda t: _rows_times(starts, columns, values, table, out, cuts[t], cuts[t + 1]), range(len(cuts) - 1))
    return out


@njit(cache=True, nogil=True)
def _add_up(columns, values, out):
    for p in range(uint64(len(values))):
        out[columns[p]] += values[p]
    return out


@njit(cache=True, nogil=True)
def _work(starts, columns, width):
    """Work of every line of the upper triangle in multiply-adds, from some ten thousand rows: for sharing them out."""
    out = np.zeros(width)
    for r in range(uint64(0), uint64(len(starts) - 1), uint64(max(1, len(starts) // 10_000))):
        for p in range(starts[r], starts[r + uint64(1)]):
            out[columns[p]] += FETCH + (starts[r + uint64(1)] - p)
    return out


@njit(cache=True, nogil=True, fastmath={"contract"})
def _lines(starts, columns, values, out, first, last, rows):
    """Lines `first` to `last` of the upper triangle, chunk of rows by chunk of rows."""
    n, width = len(starts) - 1, last - first
    begin, end = np.empty(rows, np.uint32), np.empty(rows, np.uint32)
    place = np.empty(width + 1, np.int64)
    entry, stop = np.empty(0, np.uint32), np.empty(0, np.uint32)
    for chunk in range(0, n, rows):
        size = min(rows, n - chunk)
        base = starts[chunk]
        own_columns, own_values = columns[base : starts[chunk + size]], values[base : starts[chunk + size]]
        # own entries of the chunk, sorted by column: `entry` where they are, `stop` where their row ends
        place[:] = 0
        for r in range(size):
            p, row_end = starts[chunk + r] - base, starts[chunk + r + 1] - base
            while p < row_end and own_columns[p] < first:
                p += uint64(1)
            begin[r] = p
            while p < row_end and own_columns[p] < last:
                place[own_columns[p] - first + 1] += 1
                p += uint64(1)
            end[r] = p
        for i in range(width):
            place[i + 1] += place[i]
        if place[width] > len(entry):
            entry, stop = np.empty(place[width], np.uint32), np.empty(place[width], np.uint32)
        for r in range(size):
            row_end = starts[chunk + r + 1] - base
            for p in range(uint64(begin[r]), uint64(end[r])):
                i = own_columns[p] - first
                entry[place[i]] = p
                stop[place[i]] = row_end
                place[i] += 1
        # place[i] is now where the entries of column first + i end
        q = 0
        for i in range(width):
            line = out[first + i]
            while q < place[i]:
                value = np.float64(own_values[entry[q]])  # products in float64 cost no more and cancel exactly
                for p in range(uint64(entry[q]), uint64(stop[q])):
                    line[own_columns[p]] += value * own_values[p]
                q += 1


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _rows_times(starts, columns, values, table, out, first, last):
    total = np.empty(table.shape[1], table.dtype)
    for r in range(first, last):
        total[:] = 0
        for p in range(starts[r], starts[r + 1]):
            value, other = values[p], table[columns[p]]
            for c in range(len(total)):
                total[c] += value * other[c]
        out[r] = total
