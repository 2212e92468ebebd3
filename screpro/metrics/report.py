"""A first set of scores of generated cells against real ones, each between its ceiling and its floor.

``compare(real, generated)`` answers with one row per score. Three marginal agreements per gene (mean, variance,
share of zeros) and one distance of the joint distribution: the energy distance in the space of the first principal
components of the real cells. Every value stands beside

- the **ceiling**: the same score of one random half of the real cells against the other half, what a perfect
  generator would get. Halves hold half the cells, so the ceiling is noisier than the value and a perfect generator
  can pass it; most so for the V-statistic, whose bias falls with the number of cells (the U-statistic has none);
- the **floor**: the same score of the real cells after every gene has been shuffled over the cells by itself. This
  keeps every marginal and destroys every relation between genes, so marginal scores of the floor are perfect:
  such scores alone say nothing about cells.

Counts are compared as log1p of counts scaled to 10 000 per cell; other values as they are.
"""

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from screpro.errors import ScreproError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["COLUMNS", "compare", "energy_distance"]

COLUMNS = [
    "metric",
    "variant",
    "by",
    "value",
    "ceiling",
    "floor",
    "n_real",
    "n_generated",
    "n_genes",
    "unit",
    "direction",
]
BLOCK = 2**22  # numbers in the largest temporary: 32 MiB of float64


def compare(
    real: "AnnData", generated: "AnnData", *, by: str | None = None, n_components: int = 30, seed: int = 0
) -> "pd.DataFrame":
    """Score generated cells against real ones.

    Parameters
    ----------
    real, generated
        AnnData with the same genes (any order) and `X` on the same scale: both integer counts, or both not.
    by
        Column of `obs` in both; adds the scores within each of its groups to those over all cells.
    n_components
        Principal components for the energy distance, fitted on all real cells; lowered where cells or genes are
        too few.
    seed
        Seeds the halves of the ceiling and the shuffling of the floor.

    Returns
    -------
    DataFrame with the columns `COLUMNS`. `metric`, `variant`: ``gene_mean`` and ``gene_variance`` as ``pearson``
    over genes and ``median_abs_log2_ratio`` over the genes where the real statistic is positive (infinite where
    the generated one is 0 for most); ``gene_zero_fraction`` as ``pearson`` and ``mean_abs_difference``;
    ``energy_distance`` as ``v_statistic_pc<d>`` and ``u_statistic_pc<d>`` in d components, see `energy_distance`.
    A Pearson correlation without variation is NaN. `by`: ``all`` or ``column=group``. `direction`: ``higher`` or
    ``lower`` is better.

    Raises
    ------
    ScreproError
        Other genes, duplicate genes, values that are not finite, counts against other values, fewer than four
        cells or two genes, a missing column, or groups that only one of the two has.
    """
    import pandas as pd

    x, y, space = _matrices(real, generated)
    rng = np.random.default_rng(seed)
    centre, axes = _components(x, n_components, seed)
    groups = _groups(real, generated, by)
    rows = []
    for name, in_x, in_y in groups:
        rows += _score(x[in_x], y[in_y], centre, axes, by=name, space=space, rng=rng)
    return pd.DataFrame(rows, columns=COLUMNS)


def energy_distance(a: np.ndarray, b: np.ndarray, *, unbiased: bool = False) -> float:
    """Energy distance of two samples, in the unit of the Euclidean distance; not a square root.

    ``2 mean_ij |a_i - b_j| - mean_ii' |a_i - a_i'| - mean_jj' |b_j - b_j'|``. V-statistic: the means run over all
    pairs, a point with itself included; never negative, 0 if the samples are equal, and about
    ``(1/n + 1/m) E|a - a'|`` for two samples of one distribution. U-statistic (`unbiased`): the last two means
    leave out the pairs of a point with itself; 0 on average for one distribution, so it may be negative.
    Source: Székely & Rizzo, Journal of Statistical Planning and Inference 2013, 10.1016/j.jspi.2013.03.018.

    Parameters
    ----------
    a, b
        (n, d) and (m, d) points; at least two of each for the U-statistic.
    """
    return _energy(_mean_distance(a, b), _within(a), _within(b), unbiased=unbiased)


def _within(a: np.ndarray) -> tuple[float, int]:
    return _mean_distance(a, a), len(a)


def _energy(between: float, of_a: tuple[float, int], of_b: tuple[float, int], *, unbiased: bool) -> float:
    if unbiased:
        of_a, of_b = ((mean * n / (n - 1), n) for mean, n in (of_a, of_b))
    distance = 2 * between - of_a[0] - of_b[0]
    return distance if unbiased else max(0.0, distance)  # below zero by rounding only


def _mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.spatial.distance import cdist

    step = max(1, BLOCK // max(len(b), 1))  # rows per block: at most BLOCK distances at a time
    return sum(cdist(a[i : i + step], b).sum() for i in range(0, len(a), step)) / (len(a) * len(b))


def _score(
    x: sparse.csr_matrix,
    y: sparse.csr_matrix,
    centre: np.ndarray,
    axes: np.ndarray,
    *,
    by: str,
    space: str,
    rng: np.random.Generator,
) -> list[tuple]:
    n, g = x.shape
    order = rng.permutation(n)
    halves = x[order[: n // 2]], x[order[n // 2 :]]
    real, made, first, second = (_gene_statistics(m) for m in (x, y, *halves))
    rows = []
    for statistic, values in real.items():
        # shuffling a gene over the cells leaves its statistics alone: the floor is real against real
        triple = (made[statistic], values), (first[statistic], second[statistic]), (values, values)
        gap, gap_name, unit = (
            (_mean_abs_difference, "mean_abs_difference", "share of cells")
            if statistic == "gene_zero_fraction"
            else (_median_abs_log2_ratio, "median_abs_log2_ratio", "log2 ratio")
        )
        rows.append((statistic, "pearson", by, *(_pearson(*pair) for pair in triple), "correlation", "higher"))
        rows.append((statistic, gap_name, by, *(gap(*pair) for pair in triple), unit, "lower"))
    points = _project(x, centre, axes)
    within = _within(points)
    pairs = []
    for other in (_project(y, centre, axes), _project_shuffled(x, centre, axes, rng)):
        pairs.append((_mean_distance(points, other), within, _within(other)))
    one, two = points[order[: n // 2]], points[order[n // 2 :]]
    pairs.insert(1, (_mean_distance(one, two), _within(one), _within(two)))
    for letter in "vu":
        value, ceiling, floor = (_energy(*pair, unbiased=letter == "u") for pair in pairs)
        variant = f"{letter}_statistic_pc{axes.shape[1]}"
        rows.append(("energy_distance", variant, by, value, ceiling, floor, f"distance of {space}", "lower"))
    return [(*row[:6], n, y.shape[0], g, *row[6:]) for row in rows]


def _gene_statistics(x: sparse.csr_matrix) -> dict[str, np.ndarray]:
    """Mean, population variance and share of zeros of each gene, (G,) float64."""
    n = x.shape[0]
    mean = np.asarray(x.sum(axis=0, dtype=np.float64)).ravel() / n
    # centred sum of squares over the stored values, plus the zeros' share: no cancellation of large squares
    stored = np.bincount(x.indices, minlength=x.shape[1])
    centred = np.bincount(x.indices, weights=(x.data - mean[x.indices]) ** 2, minlength=x.shape[1])
    variance = (centred + (n - stored) * mean**2) / n
    return {"gene_mean": mean, "gene_variance": variance, "gene_zero_fraction": 1 - x.getnnz(axis=0) / n}


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _median_abs_log2_ratio(a: np.ndarray, b: np.ndarray) -> float:
    positive = b > 0
    if not positive.any():
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.median(np.abs(np.log2(np.maximum(a[positive], 0) / b[positive]))))


def _mean_abs_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(np.abs(a - b)))


def _components(x: sparse.csr_matrix, n_components: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (G,) and leading principal axes (G, d) of the real cells."""
    from sklearn.decomposition import PCA

    d = min(n_components, x.shape[0] - 1, x.shape[1] - 1)
    pca = PCA(d, svd_solver="arpack", random_state=seed).fit(x.astype(np.float64))
    return pca.mean_, pca.components_.T


def _project(x: sparse.csr_matrix, centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return x @ axes - centre @ axes


def _project_shuffled(
    x: sparse.csr_matrix, centre: np.ndarray, axes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Coordinates (n, d) after shuffling every gene over the cells, a few genes at a time."""
    x = sparse.csc_matrix(x)
    n, g = x.shape
    step = max(1, BLOCK // n)
    points = np.tile(-(centre @ axes), (n, 1))
    for start in range(0, g, step):
        genes = slice(start, start + step)
        points += rng.permuted(x[:, genes].toarray(), axis=0) @ axes[genes]
    return points


def _matrices(real: "AnnData", generated: "AnnData") -> tuple[sparse.csr_matrix, sparse.csr_matrix, str]:
    """Both matrices with the real cells' gene order, on the scale of the comparison, and its name."""
    for which, cells in (("real", real), ("generated", generated)):
        if cells.n_obs < 4 or cells.n_vars < 2:
            raise ScreproError(
                f"The {which} cells are at least four, with at least two genes.",
                got=f"{cells.n_obs} cells x {cells.n_vars} genes",
                fix="compare larger samples",
            )
        if not cells.var_names.is_unique:
            raise ScreproError(
                f"Gene names of the {which} cells are unique.",
                got=f"{cells.var_names[cells.var_names.duplicated()][0]} more than once",
                fix="call var_names_make_unique() on both before writing them",
            )
    lacking = {
        "generated": real.var_names.difference(generated.var_names),
        "real": generated.var_names.difference(real.var_names),
    }
    for which, names in lacking.items():
        if len(names):
            raise ScreproError(
                "Real and generated cells have the same genes.",
                got=f"{len(names)} genes missing from the {which} cells: {', '.join(map(str, names[:5]))}"
                + (", ..." if len(names) > 5 else ""),
                fix="subset both to their common genes and say so beside the scores",
            )
    x = _checked("real", real.X)
    y = _checked("generated", generated.X)[:, generated.var_names.get_indexer(real.var_names)]
    counts = [bool((m.data >= 0).all() and (m.data == np.round(m.data)).all()) for m in (x, y)]
    if counts[0] != counts[1]:
        raise ScreproError(
            "Real and generated cells are on one scale: both counts, or both transformed alike.",
            got="integer counts in the real cells only" if counts[0] else "integer counts in the generated cells only",
            fix="bring both to the same scale, for instance log1p of counts scaled to 10 000 per cell",
        )
    if not counts[0]:
        return x, y, "values as given, principal components"
    return _log_normalised(x), _log_normalised(y), "log1p CP10k, principal components"


def _checked(which: str, matrix) -> sparse.csr_matrix:
    x = sparse.csr_matrix(matrix)
    x.eliminate_zeros()
    if not np.isfinite(x.data).all():
        raise ScreproError(
            f"Values of the {which} cells are finite.",
            got=f"{int((~np.isfinite(x.data)).sum())} values that are NaN or infinite",
            fix="find out where they come from; do not fill them with zeros",
        )
    return x


def _log_normalised(x: sparse.csr_matrix) -> sparse.csr_matrix:
    total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    scaled = x.astype(np.float64)
    scaled.data = np.log1p(scaled.data * np.repeat(1e4 / np.maximum(total, 1), np.diff(scaled.indptr)))
    return scaled


def _groups(real: "AnnData", generated: "AnnData", by: str | None) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name and cell indices (real, generated) of every set of cells to score, all cells first."""
    groups = [("all", np.arange(real.n_obs), np.arange(generated.n_obs))]
    if by is None:
        return groups
    for which, cells in (("real", real), ("generated", generated)):
        if by not in cells.obs:
            raise ScreproError(
                f"`by` names a column of obs in both files; the {which} cells lack it.",
                got=by,
                fix=f"choose one of {', '.join(map(str, cells.obs.columns)) or 'no columns'}",
            )
    a, b = real.obs[by].astype(str).to_numpy(), generated.obs[by].astype(str).to_numpy()
    alone = sorted(set(a) ^ set(b))
    if alone:
        raise ScreproError(
            f"Real and generated cells have the same groups of {by}.",
            got=f"only in one of them: {', '.join(alone[:5])}" + (", ..." if len(alone) > 5 else ""),
            fix="subset both to their common groups",
        )
    for group in sorted(set(a)):
        in_a, in_b = np.flatnonzero(a == group), np.flatnonzero(b == group)
        if min(len(in_a), len(in_b)) < 4:
            raise ScreproError(
                "Every group holds at least four real and four generated cells.",
                got=f"{by}={group}: {len(in_a)} real, {len(in_b)} generated",
                fix="drop the small groups from both files",
            )
        groups.append((f"{by}={group}", in_a, in_b))
    return groups
