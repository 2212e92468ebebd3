"""Statistics of perturbed cells that PerturbDiff's appendix A.4 shows: sparsity, imbalance, MMD within and between.

Distances are squared maximum mean discrepancies with one kernel for all comparisons of a data set, and unbiased: a
cell is never compared with itself, so two samples of one distribution are at 0 on average, however few cells they have.
All groups have the same number of cells, because the spread of the estimate depends on it, and with a biased estimator
its mean as well.

Every distance between groups is a mean over a block of one matrix of kernel values, which is computed once.

Where this differs: the paper says neither which kernel nor which estimator its Figures 13 and 14 show, nor how many
cells a set has. It shows no permutation, so it cannot say how many perturbations do anything; `distinguishable` does.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.data.populations import Populations
from screpro.errors import ScreproError
from screpro.kernels.fdr import benjamini_hochberg

__all__ = [
    "Imbalance",
    "Tested",
    "WithinBetween",
    "distinguishable",
    "draw_halves",
    "draw_sets",
    "group_sizes",
    "imbalance",
    "kernel_matrix",
    "matched_with_control",
    "mmd2_between",
    "non_zero_genes",
    "permutation_p",
    "within_between",
]


# --- counts ---------------------------------------------------------------------------------------------------


def non_zero_genes(x: sp.spmatrix) -> np.ndarray:
    """(n,) genes of every cell that are not zero: Figure 10."""
    own = sp.csr_matrix(x, copy=True)
    own.eliminate_zeros()
    return own.getnnz(axis=1)


class Imbalance(NamedTuple):
    """How unequal groups are."""

    groups: int  # that have a cell
    mean: float  # cells of a group
    ratio: float  # 90th over 10th percentile of the sizes
    effective: float  # groups of equal size among which two cells fall together as often as here


def imbalance(sizes: np.ndarray) -> Imbalance:
    """Numbers for Figures 11 and 12 from the sizes of groups; empty groups do not count.

    The effective number is ``(sum n)^2 / sum n^2``, the inverse Simpson index: between 1 and the number of groups,
    which it equals if all are of one size. The ratio is that of the 90th to the 10th percentile.
    """
    own = np.asarray(sizes, dtype=float)
    own = own[own > 0]
    if not len(own):
        raise ScreproError("Sizes of groups need a group with a cell.", got="none", fix="pass groups with cells")
    low, high = np.quantile(own, [0.1, 0.9])
    return Imbalance(len(own), float(own.mean()), float(high / low), float(own.sum() ** 2 / np.square(own).sum()))


def group_sizes(cells: Populations) -> dict[str, np.ndarray]:
    """Cells per perturbation (control left out) and per combination of perturbation, context and batch."""
    given = ~cells.is_control
    return {
        "perturbation": np.bincount(cells.perturbation[given], minlength=len(cells.perturbations))[1:],
        "combination": np.unique(cells.group()[given], return_counts=True)[1],
    }


# --- kernels and distances ------------------------------------------------------------------------------------


def kernel_matrix(points: np.ndarray, *, width: float | None = None, kernel: str = "gauss") -> np.ndarray:
    """Kernel values of all pairs of cells.

    Parameters
    ----------
    points
        (n, d) cells.
    width
        Of the Gaussian kernel ``exp(-|x - y|^2 / (2 width^2))``; by default the median distance of these cells, so
        that one width serves all groups of a data set.
    kernel
        ``"gauss"``, or ``"energy"``: ``-|x - y|``, with which the squared MMD is the energy distance, PerturbDiff's
        training loss but for a factor (eq. 32).

    Returns
    -------
    (n, n) float64.

    Raises
    ------
    ScreproError
        An unknown kernel, or cells that are all alike.
    """
    from screpro.metrics.distances import median_distance

    if kernel not in ("gauss", "energy"):
        raise ScreproError("A kernel is 'gauss' or 'energy'.", got=repr(kernel), fix="choose one of them")
    points = np.asarray(points, dtype=np.float64)
    points = points - points.mean(0)  # distances are differences of squared norms: keep these small
    norms = np.square(points).sum(1)
    square = np.maximum(norms[:, None] + norms - 2 * (points @ points.T), 0)
    np.fill_diagonal(square, 0)
    if kernel == "energy":
        return -np.sqrt(square)
    width = median_distance(points) if width is None else width
    if not width > 0:
        raise ScreproError("A Gaussian kernel has a width above 0.", got=f"{width}", fix="pass cells that differ")
    return np.exp(square / (-2 * width**2))


def mmd2_between(gram: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Unbiased squared MMD between every group on the left and every group on the right.

    Parameters
    ----------
    gram
        (n, n) kernel values.
    left, right
        (K, m) and (K', m') row numbers of the cells of each group, no cell in both of two groups that are compared.

    Returns
    -------
    (K, K') float64, of either sign: mean kernel value within left and within right, a cell with itself left out, minus
    twice the mean between them (Gretton et al. 2012, lemma 6).
    """
    cross = np.stack([gram[rows][:, right].mean((0, 2)) for rows in left])
    return _within(gram, left)[:, None] + _within(gram, right) - 2 * cross


def _within(gram: np.ndarray, groups: np.ndarray) -> np.ndarray:
    size = groups.shape[1]
    blocks = gram[groups[:, :, None], groups[:, None, :]]  # (K, m, m)
    return (blocks.sum((1, 2)) - np.trace(blocks, axis1=1, axis2=2)) / (size * (size - 1))


class WithinBetween(NamedTuple):
    """Squared MMD of C conditions: Figure 13."""

    within: np.ndarray  # (C,) between two disjoint sets of cells of one condition
    between: np.ndarray  # (C, C) between sets of two conditions; NaN on the diagonal

    @property
    def mean_between(self) -> np.ndarray:
        """(C,) of every condition, the mean over all others."""
        return np.nanmean(self.between, axis=1)

    @property
    def share_below(self) -> float:
        """Share of the conditions whose within is below their mean between; equal counts as half.

        Where nothing differs this is somewhat above one half: the estimate is 0 on average but skewed to the right, so
        that its median is below 0, and the mean over many conditions is not skewed.
        """
        gap = self.mean_between - self.within
        return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def within_between(gram: np.ndarray, first: np.ndarray, second: np.ndarray) -> WithinBetween:
    """Distances within and between conditions from two disjoint sets of cells of each, rows (C, m) of `gram`.

    Within compares ``first[c]`` with ``second[c]``, between ``first[c]`` with ``first[d]``: both are between two sets
    of m cells.
    """
    within = np.diagonal(mmd2_between(gram, first, second)).copy()
    between = mmd2_between(gram, first, first)
    np.fill_diagonal(between, np.nan)
    return WithinBetween(within, between)


def draw_sets(label: np.ndarray, size: int, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A set of `size` random cells of every label (n,) that has as many; cells with a negative code are left out.

    Returns codes (C,) of the labels, ascending, and row numbers (C, size). Both may be empty.
    """
    order = rng.permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    order = order[label[order] >= 0]
    codes, start, count = np.unique(label[order], return_index=True, return_counts=True)
    enough = count >= size
    return codes[enough], order[start[enough, None] + np.arange(size)]


def draw_halves(label: np.ndarray, size: int, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two disjoint sets of `size` random cells of every label that has enough.

    Returns
    -------
    Codes (C,) of the labels with at least twice `size` cells, and row numbers (C, size) of their two sets.

    Raises
    ------
    ScreproError
        Sets of fewer than two cells, or fewer than two labels with enough.
    """
    codes, rows = draw_sets(label, 2 * size, rng=rng)
    if size < 2 or len(codes) < 2:
        raise ScreproError(
            "Distances within and between take two conditions with two sets of at least two cells each.",
            got=f"sets of {size} cells, and {len(codes)} conditions with {2 * size} cells",
            fix="take smaller sets, or more cells",
        )
    return codes, rows[:, :size], rows[:, size:]


# --- which perturbations do anything --------------------------------------------------------------------------


def matched_with_control(
    cells: Populations, perturbation: int, *, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cells of a perturbation and as many control cells, equally many of both in every context and batch.

    Without that a perturbation whose cells come from other batches than the control cells would be told from them.

    Returns
    -------
    Row numbers (n,) of cells of the perturbation and of control cells (n,): place by place of one context and batch, at
    most `most`, and stratum by stratum the smaller of the two numbers. Both may be empty.
    """
    stratum = cells.context * len(cells.batches) + cells.batch
    sides = [rng.permutation(np.flatnonzero(cells.perturbation == code)) for code in (perturbation, 0)]
    sides = [side[np.argsort(stratum[side], kind="stable")] for side in sides]  # stratum by stratum, at random within
    counts = [np.bincount(stratum[side], minlength=stratum.max() + 1) for side in sides]
    common = np.minimum(*counts)
    given, control = (
        side[np.arange(len(side)) - np.repeat(np.cumsum(count) - count, count) < np.repeat(common, count)]
        for side, count in zip(sides, counts, strict=True)
    )
    kept = np.sort(rng.choice(len(given), min(most, len(given)), replace=False))
    return given[kept], control[kept]


def permutation_p(
    gram: np.ndarray, *, stratum: np.ndarray, permutations: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Squared MMD of two samples, and how often it is at least as large when labels are exchanged.

    Parameters
    ----------
    gram
        (2n, 2n) kernel values, the n cells of one sample first.
    stratum
        (n,) of the cells of either sample, place by place the same: labels are exchanged within strata only.
    permutations
        How many. The least p-value is 1 / (permutations + 1).

    Returns
    -------
    The distance, and p: the share of labellings, the true one counted, whose distance reaches it.
    """
    n = len(stratum)
    both = np.concatenate([stratum, stratum])
    true = np.repeat([True, False], n)
    key = rng.random((permutations, 2 * n))
    order = np.argsort(np.concatenate([both[None] + 0 * key[:1], both + key]), axis=1, kind="stable")
    # the sorted cells of a stratum take the labels that stand at its places in the true order
    places = np.argsort(both, kind="stable")
    labels = np.zeros((permutations + 1, 2 * n), dtype=np.float64)
    np.put_along_axis(labels, order, np.broadcast_to(true[places].astype(float), order.shape), axis=1)
    # with equal sizes the sum over a sample follows from the total and the sum between: one product
    off = gram - np.diag(np.diag(gram))
    of_all, of_one = off.sum(), off.sum(1)
    inside = np.einsum("bi,bi->b", labels @ off, labels)
    across = labels @ of_one - inside
    values = (of_all - 2 * across) / (n * (n - 1)) - 2 * across / n**2
    return float(values[0]), float(np.mean(values >= values[0] - 1e-12 * np.abs(values).max()))


class Tested(NamedTuple):
    """One permutation test for every perturbation that could be tested."""

    perturbation: np.ndarray  # (P,) codes
    cells: np.ndarray  # (P,) of the perturbation, and as many control cells
    mmd2: np.ndarray  # (P,)
    p: np.ndarray  # (P,)

    @property
    def adjusted(self) -> np.ndarray:
        """(P,) false discovery rates over the perturbations (Benjamini and Hochberg)."""
        return benjamini_hochberg(self.p)

    @property
    def share(self) -> float:
        """Share of the tested perturbations that are told from control at a false discovery rate of 5 %."""
        return float(np.mean(self.adjusted < 0.05))


def distinguishable(
    cells: Populations,
    *,
    least: int = 10,
    most: int = 200,
    permutations: int = 999,
    width: float | None = None,
    rng: np.random.Generator,
) -> Tested:
    """Test every perturbation against control cells of its own contexts and batches.

    Parameters
    ----------
    least, most
        A perturbation with fewer matched cells is not tested; of more, so many are drawn.
    permutations
        Of every test; enough that 1 / (permutations + 1) is at most 5 % over the number of perturbations.
    width
        Of the Gaussian kernel; by default the median distance of the cells of each test.

    Raises
    ------
    ScreproError
        No perturbation has enough cells, or there are too few permutations for any to pass the correction.
    """
    if (permutations + 1) * 0.05 < len(cells.perturbations) - 1:
        raise ScreproError(
            "With too few permutations no p-value is small enough for the number of perturbations.",
            got=f"{permutations} permutations, {len(cells.perturbations) - 1} perturbations",
            fix=f"take at least {20 * (len(cells.perturbations) - 1)}",
        )
    stratum = cells.context * len(cells.batches) + cells.batch
    found = []
    for code in range(1, len(cells.perturbations)):
        given, control = matched_with_control(cells, code, most=most, rng=rng)
        if len(given) < least:
            continue
        gram = kernel_matrix(cells.x[np.concatenate([given, control])].toarray(), width=width)
        value, p = permutation_p(gram, stratum=stratum[given], permutations=permutations, rng=rng)
        found.append((code, len(given), value, p))
    if not found:
        raise ScreproError(
            "A perturbation is tested when enough of its cells have control cells of their context and batch.",
            got=f"none has {least}",
            fix="lower `least`, or merge batches",
        )
    return Tested(*map(np.array, zip(*found, strict=True)))
