r"""Wilcoxon rank-sum (Mann-Whitney) tests of every group against one set of controls, or against all other cells.

For a group p of n_p cells and n_c control cells, in one gene::

    U_p = sum over cells i of p of  #(controls below x_i) + #(controls equal to x_i) / 2
    T_p = sum over the values v in p or control of  t^3 - t      with t = number of these cells that have value v
    s_p^2 = n_p n_c / 12 * (n + 1 - T_p / (n (n - 1)))           with n = n_p + n_c
    p = erfc(z / sqrt 2),  z = (max(U_p, n_p n_c - U_p) - n_p n_c / 2 - 1/2) / s_p, at most 1

No pooled ranking per pair is needed. Each gene's non-zeros are sorted once for all groups, as one 64-bit key per
entry: the bits of the value, turned so that they order like the value, above the group. One sweep over the sorted keys
carries the number of controls passed so far; that number is what an entry adds to the U of its own group, and a
run of equal values adds ``(c + p)^3 - (c + p) - (c^3 - c)`` to T_p for its c controls and p cells of the group, above
the sum over runs of ``c^3 - c`` that all groups share. Zeros are one run, between the negative and the positive
values, in closed form. With all cells in the role of the controls the same sweep gives one versus rest: a group
against itself counts ``n_p^2 / 2``, and T is shared.

Cost: O(nnz log(nnz per gene)) comparisons, whatever the number of groups times controls. Per non-zero, in nanoseconds
of one core at 2.5 GHz: 10 to turn rows into columns of keys (bound by the address translation of as many write
streams as genes), 7 to sort, 5 to sweep; and 40 per p-value. Memory beside the input: 8 bytes per non-zero, at most
1.3 GB at a time, and 16 P G for the results. Why it is fast: programs that merge each group with the controls read all
controls once per group; numpy sorts 64-bit integers in AVX-512 or AVX2; the sweep does not branch on the data
(`ranksum_sweep.py`); and all of it runs in threads over genes, without the interpreter lock.

On a GPU (`gpu/ranksum.py`) the gene sits above the value in the key, so that one radix sort orders all genes of a
block; then each entry finds its place among the controls by bisection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from screpro.kernels.fdr import benjamini_hochberg, fold_change
from screpro.kernels.groups import array_of, checked_codes, in_threads, not_finite, plain_values
from screpro.kernels.ranksum_keys import keys_of_columns, keys_of_ranks, keys_of_rows
from screpro.kernels.ranksum_sweep import p_value, sweep

__all__ = ["RankSum", "benjamini_hochberg", "fold_change", "rank_sum", "rank_sum_reference"]

GPU_FROM = 20_000_000
"""Non-zeros from which arrays in main memory are worth sending to a GPU."""

KEYS_PER_BLOCK = 50_000
"""Keys that one task packs, sorts and sweeps: 400 KB, which stay in a core's L2 cache."""


@dataclass(frozen=True)
class RankSum:
    """Test statistics of P groups in G genes."""

    u: np.ndarray  # (P, G) Mann-Whitney U of the group, a multiple of 1/2; NaN where there is nothing to compare
    p: np.ndarray  # (P, G) two-sided p-value, NaN in the same places
    n: np.ndarray  # (P,) cells of each group


def rank_sum(
    x: np.ndarray | sp.spmatrix | sp.sparray,
    codes: np.ndarray,
    *,
    n_groups: int,
    reference: int | None = None,
    exact_to: int = 0,
) -> RankSum:
    r"""Mann-Whitney U and two-sided p-value of every group in every gene.

    Parameters
    ----------
    x
        (cells, G) values of any sign and scale, CSR, CSC, dense or a dense tensor; a CUDA tensor is tested on its GPU.
        float64 is compared as float64, float32 and integers up to 2^24 as float32, which changes nothing.
    codes
        (cells,) integer group of each cell, 0 to `n_groups` - 1; -1 leaves the cell out.
    n_groups
        P. A group without cells gets NaN.
    reference
        Code of the controls: every group against them (the row of the controls themselves is NaN). None: every group
        against all cells of the other groups.
    exact_to
        If the smaller side has at most this many cells and the pair has no ties, p comes from the exact distribution
        of U under exchangeability. 0 is the normal approximation throughout; 8 is the rule of
        ``scipy.stats.mannwhitneyu(method="auto")``, and so of pdex 0.1 and Cell-Eval 0.6.

    Returns
    -------
    `u`, `p` and `n`. The approximation corrects for ties and continuity. If all cells of both sides have one value
    (an unexpressed gene), U is ``n_p n_c / 2`` and p is 1. p is accurate in relative terms down to the smallest
    positive float64 and 0 below (z above 38).

    Raises
    ------
    ScreproError
        If sizes do not fit, a code is out of range, the reference has no cells, or a value is NaN or infinite.

    Source: Mann and Whitney 1947; tie-corrected normal approximation as in scipy's ``mannwhitneyu``.
    """
    codes, sizes = checked_codes(codes, n_groups=n_groups, n_cells=x.shape[0], reference=reference)
    every = reference is None
    if _to_gpu(x):
        from screpro.kernels.gpu.ranksum import sums
    else:
        sums = _sums
    u, p = sums(x, codes, sizes, -1 if every else reference, exact_to)
    other = sizes.sum() - sizes if every else np.full(n_groups, sizes[reference])
    empty = (sizes == 0) | (other == 0)
    if not every:
        empty[reference] = True
    u[empty] = p[empty] = np.nan
    for group in np.flatnonzero(~empty & (np.minimum(sizes, other) <= exact_to)):
        without_ties = p[group] < 0  # the sweep marks them
        p[group, without_ties] = _exact(int(sizes[group]), int(other[group]))[u[group, without_ties].astype(np.int64)]
    return RankSum(u, p, sizes)


def rank_sum_reference(x: np.ndarray, codes: np.ndarray, *, n_groups: int, reference: int | None = None) -> RankSum:
    """The definition, pair by pair, in float64: for tests and for reading. Dense `x` (cells, G)."""
    x, codes = np.asarray(x, np.float64), np.asarray(codes)
    u, p = np.full((2, n_groups, x.shape[1]), np.nan)
    for group in range(n_groups):
        own, other = codes == group, (codes >= 0) & (codes != group) if reference is None else codes == reference
        if group == reference or not own.any() or not other.any():
            continue
        n1, n2 = own.sum(), other.sum()
        for gene in range(x.shape[1]):
            a, b = x[own, gene, None], x[None, other, gene]
            u[group, gene] = (a > b).sum() + (a == b).sum() / 2
            t = np.unique(x[own | other, gene], return_counts=True)[1].astype(np.float64)
            p[group, gene] = p_value.py_func(u[group, gene], n1, n2, (t**3 - t).sum())
    return RankSum(u, p, np.bincount(codes[codes >= 0], minlength=n_groups))


def _sums(x, codes: np.ndarray, sizes: np.ndarray, reference: int, exact_to: int) -> tuple[np.ndarray, np.ndarray]:
    """U and p (P, G) on the CPU; p is -1 where the exact distribution is asked for. `reference` -1: all cells."""
    u, p = np.empty((2, len(sizes), x.shape[1]))
    turn = max(reference, 0)  # the controls get group 0 in the keys, where they sort first among equal values
    codes = np.where(codes < 0, -1, (codes - turn) % len(sizes)).astype(np.int32)
    test = partial(sweep, sizes=np.roll(sizes, -turn), reference=reference, exact_to=exact_to)
    x = _plain(array_of(x))
    if sp.issparse(x) and x.format == "csc":
        test_columns = partial(_test_columns, x.indptr.astype(np.int64), x.indices.astype(np.int32), x.data, codes)
        finite = all(in_threads(lambda genes: test_columns(genes, test, u, p), _blocks(x.indptr)))
    else:
        finite = True
        for first, bounds, keys, all_finite in keys_of_rows(x, codes):

            def test_keys(genes, first=first, bounds=bounds, keys=keys) -> None:
                own = bounds[genes[0] : genes[1] + 1]
                at = slice(first + genes[0], first + genes[1])
                _sort(keys, own)
                test(keys, own, u=u[:, at], p=p[:, at])

            in_threads(test_keys, _blocks(bounds))
            finite &= all_finite
    if not finite:
        raise not_finite()
    return u, p


def _test_columns(starts, cells, values, codes, genes: tuple[int, int], test: Callable, u, p) -> bool:
    """Keys, sort and sweep for some columns of a CSC matrix; whether all their values are finite."""
    low, high = genes
    bounds = np.zeros(high - low + 1, np.int64)
    keys = np.empty(int(starts[high] - starts[low]), np.uint64)
    if values.dtype == np.float32:
        finite = keys_of_columns(starts, cells, values, codes, low, high, keys, bounds)
    else:
        finite = bool(np.isfinite(values[starts[low] : starts[high]]).all())
        for gene in range(low, high):
            own, at = slice(starts[gene], starts[gene + 1]), bounds[gene - low]
            order = np.argsort(values[own])
            bounds[gene - low + 1] = at + keys_of_ranks(order, cells[own], values[own], codes, keys[at:])
    _sort(keys, bounds)
    test(keys, bounds, u=u[:, low:high], p=p[:, low:high])
    return finite


def _sort(keys: np.ndarray, bounds: np.ndarray) -> None:
    """Sort the keys of each gene; numpy does it in AVX-512 or AVX2 and without the interpreter lock."""
    for a, b in pairwise(bounds.tolist()):
        keys[a:b].sort()


def _blocks(bounds: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of up to 64 genes with some `KEYS_PER_BLOCK` keys together."""
    last = len(bounds) - 1
    cuts = np.searchsorted(bounds, np.arange(0, bounds[-1], KEYS_PER_BLOCK))
    return list(pairwise(np.unique(np.r_[np.minimum(cuts, last), np.arange(0, last, 64), last]).tolist()))


def _plain(x) -> sp.csr_matrix | sp.csc_matrix | np.ndarray:
    """CSC, or float32 CSR or C-contiguous array; without duplicate entries, which would count as two cells."""
    if not sp.issparse(x):
        x = plain_values(np.ascontiguousarray(x))
        return x if x.dtype == np.float32 else sp.csc_matrix(x)
    if x.format != "csc":
        x = x.tocsr()
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    values = plain_values(x.data)
    if values is not x.data:
        x = type(x)((values, x.indices, x.indptr), shape=x.shape)
    return x if values.dtype == np.float32 else x.tocsc()


def _to_gpu(x) -> bool:
    if type(x).__module__.partition(".")[0] == "torch":
        return x.is_cuda
    if (x.nnz if sp.issparse(x) else x.size) < GPU_FROM:
        return False
    import torch

    return torch.cuda.is_available()


@lru_cache(maxsize=64)
def _exact(n1: int, n2: int) -> np.ndarray:
    """Two-sided p-value of each integer U of two groups without ties, (n1 n2 + 1,).

    The number of arrangements with U = k is the coefficient of q^k in the Gaussian binomial of n1 + n2 over n1, the
    product of (1 - q^(n2 + i)) / (1 - q^i). In Python's integers, as it exceeds 64 bits.
    """
    n1, n2 = min(n1, n2), max(n1, n2)
    ways = np.zeros(n1 * n2 + 1, object)
    ways[0] = 1
    for i in range(1, n1 + 1):
        ways[n2 + i :] = ways[n2 + i :] - ways[: -n2 - i].copy() if n2 + i < len(ways) else ways[n2 + i :]
        for k in range(i, len(ways)):
            ways[k] += ways[k - i]
    at_least = np.cumsum(ways[::-1])[::-1]
    total = at_least[0]
    tail = np.array([int(a) / int(total) for a in at_least])  # P(U >= k)
    k = np.arange(len(ways))
    return np.minimum(1.0, 2 * tail[np.maximum(k, len(ways) - 1 - k)])
