"""Sortable keys for the rank-sum tests: one 64-bit integer per non-zero entry, gene by gene.

The upper 32 bits hold the value, turned so that keys order like values (`ZERO` and above: positive), the lower 32 the
group of its cell. Zeros and the cells of code -1 are left out.

Rows (CSR, dense) are cut into chunks, one a thread: each counts its entries of every gene, and from these counts knows
where to write. This costs two reads and one write of 8 bytes per entry. Columns (CSC) need neither.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from numba import njit

from screpro.kernels.groups import in_threads, threads

__all__ = ["ZERO", "keys_of_columns", "keys_of_ranks", "keys_of_rows"]

ZERO = np.uint64(1 << 63)

ENTRIES_AT_ONCE = 160_000_000
"""Keys that are held at a time: bounds the memory beside the input to 1.3 GB."""

GROUP = np.uint64(0xFFFFFFFF)
SIGN = np.uint64(1 << 31)
INFINITE = np.uint64(0x7F800000)


def keys_of_rows(
    x: sp.csr_matrix | np.ndarray, codes: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray, bool]]:
    """Keys of float32 rows, for ranges of genes.

    Parameters
    ----------
    x
        CSR matrix with float32 values, or a C-contiguous float32 array; (cells, G).
    codes
        (cells,) int32.

    Yields
    ------
    First gene of the range; where the keys of its genes start (g + 1,); the keys, unsorted in each gene; whether all
    values are finite.
    """
    n_cells, n_genes = x.shape
    sparse = sp.issparse(x)
    entries = x.nnz if sparse else x.size
    chunks = threads(1 + entries // 200_000)
    starts = x.indptr.astype(np.int64, copy=False) if sparse else np.arange(n_cells + 1, dtype=np.int64) * n_genes
    rows = np.searchsorted(starts, np.linspace(0, entries, chunks + 1)[1:-1].astype(np.int64))
    rows = np.r_[0, rows, n_cells].astype(np.int64)
    values = x.data if sparse else x.ravel()
    genes = x.indices.astype(np.int32, copy=False) if sparse else np.arange(n_genes, dtype=np.int32)

    counts = np.zeros((chunks, n_genes), np.int64)
    in_threads(lambda c: _count(starts, genes, values, codes, rows[c], rows[c + 1], counts[c]), range(chunks))
    ends = np.r_[0, counts.sum(0).cumsum()]
    first = 0
    while first < n_genes:
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + ENTRIES_AT_ONCE, "right")) - 1)
        bounds = ends[first : last + 1] - ends[first]
        keys = np.empty(bounds[-1], np.uint64)
        # where each chunk of rows starts to write in each gene
        at = bounds[:-1] + np.r_[np.zeros((1, last - first), np.int64), counts[:-1, first:last].cumsum(0)]

        def write(c: int, first=first, last=last, at=at, keys=keys) -> bool:
            return _write(starts, genes, values, codes, rows[c], rows[c + 1], first, last, at[c], keys)

        yield first, bounds, keys, all(in_threads(write, range(chunks)))
        first = last


@njit(cache=True, nogil=True)
def _count(starts, genes, values, codes, row, last_row, counts):
    """Entries of each gene that get a key, in some rows. Dense rows: `genes` stands for every row."""
    dense = len(genes) != len(values)
    for cell in range(row, last_row):
        if codes[cell] >= 0:
            back = starts[cell] if dense else 0
            for i in range(starts[cell], starts[cell + 1]):
                counts[genes[i - back]] += values[i] != 0


@njit(cache=True, nogil=True)
def _write(starts, genes, values, codes, row, last_row, first, last, at, keys):
    """Keys of some rows for the genes `first` to `last`, from position `at` of each on; whether values are finite."""
    dense = len(genes) != len(values)
    bits = values.view(np.uint32)
    largest = np.uint64(0)
    for cell in range(row, last_row):
        group = np.uint64(codes[cell])
        low, high = starts[cell], starts[cell + 1]
        back = low if dense else 0
        if dense:
            low, high = low + first, low + last
        for i in range(low, high):
            gene = genes[i - back] - first
            b = np.uint64(bits[i])
            magnitude = b & (SIGN - np.uint64(1))
            largest = max(largest, magnitude)
            if magnitude != 0 and gene >= 0 and gene < last - first and codes[cell] >= 0:
                to = at[gene]
                at[gene] = to + 1
                keys[to] = (_turned(b) << np.uint64(32)) | group
    return largest < INFINITE


@njit(cache=True, nogil=True)
def keys_of_columns(starts, cells, values, codes, low, high, keys, bounds):
    """Keys of the float32 columns `low` to `high` of a CSC matrix, and their `bounds`; whether values are finite."""
    bits = values.view(np.uint32)
    largest = np.uint64(0)
    to = 0
    bounds[0] = 0
    for gene in range(low, high):
        for i in range(starts[gene], starts[gene + 1]):
            group = codes[cells[i]]
            b = np.uint64(bits[i])
            magnitude = b & (SIGN - np.uint64(1))
            largest = max(largest, magnitude)
            if magnitude != 0 and group >= 0:
                keys[to] = (_turned(b) << np.uint64(32)) | np.uint64(group)
                to += 1
        bounds[gene - low + 1] = to
    return largest < INFINITE


@njit(cache=True, nogil=True)
def keys_of_ranks(order, cells, values, codes, keys):
    """Keys of one column of float64 that `order` sorts; how many.

    64 bits leave no room for a group: the number of a value among the distinct ones of the gene stands for it.
    """
    negative = 0
    while negative < len(order) and values[order[negative]] < 0:
        negative += 1
    rank = np.uint64((1 << 31) - negative - 1)  # so far below ZERO that negative values stay there
    to = 0
    for i in range(len(order)):
        value, group = values[order[i]], codes[cells[order[i]]]
        if i == negative:
            rank = np.uint64(1 << 31)
        if i == 0 or value != values[order[i - 1]]:
            rank += np.uint64(1)
        if group >= 0 and value != 0:
            keys[to] = (rank << np.uint64(32)) | np.uint64(group)
            to += 1
    return to


@njit(inline="always")
def _turned(bits):
    """Floats order like integers in sign and magnitude: negative ones turn round, positive ones move above them."""
    return bits ^ GROUP if bits >> np.uint64(31) else bits | SIGN
