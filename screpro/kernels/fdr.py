r"""Fold changes of group means, and false discovery rates: what stands beside a p-value in a table of DE genes.

Fold change of group p in one gene, with m the mean of the log1p values and M = expm1(m)::

    M_p / M_reference;   1 if both are 0, `clip` if only M_reference is 0, 1 / `clip` if only M_p is 0

This is what pdex 0.1.28, and with it Cell-Eval 0.6.6, computes: the exponential is taken of the mean of the logs
(a geometric mean of x + 1), not averaged over cells, and `clip` replaces infinite and zero ratios but does not bound
the others.

Benjamini-Hochberg: with the finite p-values in ascending order, ``q_(i) = min over j >= i of p_(j) m / j``, at most 1.

Cost: one pass over the non-zeros for the sums of every group (8 bytes each, O(P G) float64 sums that threads share out
by group), one sort of the p-values.
"""

from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from numba import njit

from screpro.errors import ScreproError
from screpro.kernels.groups import array_of, checked_codes, in_threads, not_finite, plain_values

__all__ = ["benjamini_hochberg", "fold_change", "group_means"]


def fold_change(
    x: np.ndarray | sp.spmatrix | sp.sparray,
    codes: np.ndarray,
    *,
    n_groups: int,
    reference: int | None = None,
    clip: float = 20.0,
    log1p: bool = True,
) -> np.ndarray:
    """Ratio (not its logarithm) of the mean expression of every group to that of the reference.

    Parameters
    ----------
    x
        (cells, G) log1p-normalised values, CSR, CSC, dense or a dense tensor.
    codes, n_groups, reference
        As for `rank_sum`: group of each cell, -1 leaves out; reference None compares with all other cells.
    clip
        Value of a ratio whose denominator is 0; its inverse where the numerator is 0. Other ratios are kept, however
        large.
    log1p
        Whether means are taken of log values and brought back by expm1; False: plain means of `x`.

    Returns
    -------
    (P, G) float64; NaN for groups without cells, without a counterpart, and for the reference itself.

    Raises
    ------
    ScreproError
        As `rank_sum`, for codes that do not fit and values that are NaN or infinite.

    Source: pdex 0.1.28, ``parallel_differential_expression`` with its defaults (see the head of this file).
    """
    means, others, compared = group_means(x, codes, n_groups=n_groups, reference=reference)
    if log1p:
        means, others = np.expm1(means), np.expm1(others)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = means / others
    ratio = np.where(others == 0, clip, ratio)
    ratio = np.where(means == 0, np.where(others == 0, 1.0, 1 / clip), ratio)
    ratio[~compared] = np.nan
    return ratio


def group_means(
    x: np.ndarray | sp.spmatrix | sp.sparray, codes: np.ndarray, *, n_groups: int, reference: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of `x` in every group (P, G), in its counterpart (P or 1, G), and which groups are compared (P,) bool."""
    codes, sizes = checked_codes(codes, n_groups=n_groups, n_cells=x.shape[0], reference=reference)
    sums = _group_sums(array_of(x), codes, sizes)
    if not np.isfinite(sums).all():
        raise not_finite()
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums / sizes[:, None]
        if reference is None:
            rest = sizes.sum() - sizes
            return means, (sums.sum(0) - sums) / rest[:, None], (sizes > 0) & (rest > 0)
    return means, means[[reference]], (sizes > 0) & (np.arange(n_groups) != reference)


def benjamini_hochberg(p: np.ndarray, axis: int | None = None) -> np.ndarray:
    """False discovery rate at which each test would be called.

    Parameters
    ----------
    p
        p-values of any shape; NaN entries stay NaN and do not count as tests.
    axis
        None: all entries are one family, as pdex and Cell-Eval do over all perturbation x gene pairs. 1: each row of
        a (P, G) array is a family of its own, as scanpy does.

    Returns
    -------
    Adjusted p-values of the shape of `p`, float64, from 0 to 1.

    Raises
    ------
    ScreproError
        If a p-value lies outside 0 to 1, or `axis` is neither None nor 1.

    Source: Benjamini and Hochberg 1995; equal to ``scipy.stats.false_discovery_control`` on each family.
    """
    p = np.asarray(p, np.float64)
    tests = np.isfinite(p)
    if np.isinf(p).any() or (p[tests] < 0).any() or (p[tests] > 1).any():
        raise ScreproError("p-values lie between 0 and 1.", got="values outside", fix="pass p-values, not statistics")
    if axis == 1 and p.ndim == 2:
        return np.stack([benjamini_hochberg(row) for row in p]) if len(p) else p.copy()
    if axis is not None:
        raise ScreproError(
            "One family is the whole array or, with axis=1, a row of a matrix.",
            got=f"axis {axis} of an array with {p.ndim} dimensions",
            fix="pass axis=None or axis=1",
        )
    family = p[tests]
    order = np.argsort(family)
    m = len(family)
    scaled = family[order] * (m / np.arange(1, m + 1))
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    q = np.full(p.shape, np.nan)
    q[tests] = adjusted
    return q


def _group_sums(x, codes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(P, G) float64."""
    sums = np.zeros((len(sizes), x.shape[1]))
    if sp.issparse(x) and x.format == "csc":
        blocks = np.unique(np.linspace(0, x.shape[1], 33).astype(int))
        values, cells, starts = plain_values(x.data), x.indices.astype(np.int32, copy=False), x.indptr.astype(np.int64)
        in_threads(
            lambda genes: _sum_columns(starts, cells, values, codes, genes[0], genes[1], sums),
            list(pairwise(blocks.tolist())),
        )
        return sums
    by_group = np.argsort(codes, kind="stable")  # cells that are left out come first
    ends = len(codes) - sizes.sum() + np.cumsum(sizes)
    if not sp.issparse(x):
        x = np.asarray(x)

        def add(group: int) -> None:
            cells = by_group[ends[group] - sizes[group] : ends[group]]
            for some in np.array_split(cells, 1 + len(cells) // 1000):  # bounds the copy of the selected rows
                sums[group] += x[some].sum(axis=0, dtype=np.float64)
    else:
        x = x.tocsr()
        values, genes, starts = plain_values(x.data), x.indices.astype(np.int32, copy=False), x.indptr.astype(np.int64)

        def add(group: int) -> None:
            _sum_rows(starts, genes, values, by_group[ends[group] - sizes[group] : ends[group]], sums[group])

    in_threads(add, list(range(len(sizes))))
    return sums


@njit(cache=True, nogil=True)
def _sum_rows(starts, genes, values, cells, total):
    for cell in cells:
        for i in range(starts[cell], starts[cell + 1]):
            total[genes[i]] += values[i]


@njit(cache=True, nogil=True)
def _sum_columns(starts, cells, values, codes, low, high, sums):
    for gene in range(low, high):
        for i in range(starts[gene], starts[gene + 1]):
            if codes[cells[i]] >= 0:
                sums[codes[cells[i]], gene] += values[i]
