"""The scores of generated cells that `screpro.metrics.report` shows, and what each is compared with.

Every score is computed five times:

==================  ==================================================================================================
`value`             all generated cells against all real cells: the number of a table
`value_equal_n`     h generated cells against h real cells, the reference half
`ceiling`           h other real cells against the reference half: what a perfect generator gets
`floor_shuffled`    those other real cells, every gene shuffled over the cells by itself: marginals kept, relations gone
`floor_mean`        h copies of the mean of those other real cells: the right mean, no variation
==================  ==================================================================================================

h is half the number of real cells, or the number of generated cells if that is smaller. Most distances shrink when
there are more cells, also between samples of one distribution, so only the last four compare with each other. `value`
compares with a paper, at the paper's number of cells.

The last four measure distances on principal components of the reference half, not of all real cells. Components follow
the noise of the cells they are fitted to, so these cells spread wider along them than any others do, and with few cells
much wider. Were both halves part of the fit, the ceiling would lack that penalty, which every generated cell pays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from screpro.errors import ScreproError
from screpro.kernels.pca import Components, pca
from screpro.kernels.transport import exact_w2
from screpro.metrics.catalogue import catalogue
from screpro.metrics.genes import GeneStatistics, gene_statistics

__all__ = ["COLUMNS", "MOST", "SCORES", "Score", "Scored", "Setup", "score_group", "setup_of"]

COLUMNS = ("value", "value_equal_n", "ceiling", "floor_shuffled", "floor_mean")

MOST = 5000
"""Cells on a side for exact transport, whose time grows faster than their square."""

MOST_SINKHORN = 2000
"""Cells on a side for the Sinkhorn divergence."""

BLUR = 0.3
"""Of the Sinkhorn divergence, as a share of the spread of the real cells (root mean squared distance from their mean).
A third of it takes about a hundred iterations, a tenth takes a thousand and often does not converge for few cells."""

UNDEFINED = "Its page of the metric atlas says when."
"""Why a score is NaN that raised no error."""


class Cells(NamedTuple):
    """The same cells twice."""

    genes: sparse.csr_matrix | GeneStatistics  # (n, G) log-normalised expression, or what is left to know of it
    points: np.ndarray  # (n, d) coordinates on principal components


class Setup(NamedTuple):
    """Real and generated cells on the components of all real cells, and on those of the reference half."""

    all: tuple[Cells, Cells]
    half: tuple[Cells, Cells]
    fitted: Components  # to the reference half
    reference: np.ndarray  # (n,) bool: real cells of the reference half


@dataclass(frozen=True)
class Score:
    """One metric of the catalogue as it is used here."""

    name: str
    on: str  # "points" or "genes"
    unit: str
    variant: str = ""
    most: int | None = None  # cells on a side; more are cut to that many, drawn at random
    equal: bool = False  # the larger side is cut to the size of the smaller, drawn at random

    def sizes(self, n: int, m: int) -> tuple[int, int]:
        """Numbers of cells of n real and m generated ones that the score looks at."""
        n, m = (min(side, self.most or side) for side in (n, m))
        return (min(n, m), min(n, m)) if self.equal else (n, m)


SCORES = (
    Score("w2_exact", "points", "distance", most=MOST),
    Score("mmd2_rbf_sum5", "points", "sum of five squared MMD", equal=True),
    Score("mmd2_rbf_median", "points", "squared MMD"),
    Score("frechet_distance", "points", "squared distance"),
    Score("energy_distance_v", "points", "distance"),
    Score("energy_distance_u", "points", "distance"),
    Score("energy_distance_half", "points", "distance"),
    Score("sinkhorn_divergence", "points", "squared distance", f"blur {BLUR:g} spread", most=MOST_SINKHORN),
    Score("one_nn_accuracy", "points", "share of cells", equal=True),
    Score("knn_precision", "points", "share of cells"),
    Score("knn_recall", "points", "share of cells"),
    Score("gene_mean_pearson", "genes", "correlation"),
    Score("gene_variance_pearson", "genes", "correlation"),
    Score("gene_variance_log2_ratio", "genes", "log2 ratio"),
    Score("gene_zero_fraction_pearson", "genes", "correlation"),
    Score("gene_zero_fraction_gap", "genes", "share of cells"),
)


class Scored(NamedTuple):
    """One score in all five comparisons."""

    score: Score
    values: dict[str, float]  # a number for each of COLUMNS; NaN where the score is not defined
    n: tuple[int, int, int]  # real and generated cells behind `value`, cells on either side behind the others
    gap: float  # exact W2 only, else 0: largest share of its cost by which a plan could be above the optimum
    why: dict[str, str]  # for each of COLUMNS where the score is not defined: why


def setup_of(
    real: sparse.csr_matrix,
    generated: sparse.csr_matrix,
    *,
    labels: np.ndarray | None,
    n_components: int,
    rng: np.random.Generator,
) -> Setup:
    """Split the real cells into halves and fit the components.

    Parameters
    ----------
    real, generated
        (n, G) and (m, G) log-normalised expression, at least four real cells.
    labels
        (n,) classes of the real cells; each is split into halves. None: one class.
    n_components
        d; lowered to one less than the reference half has cells, and to one less than there are genes.
    rng
        Draws the halves.
    """
    n, g = real.shape
    order = rng.permutation(n)
    _, codes = np.unique(np.zeros(n, dtype=int) if labels is None else labels, return_inverse=True)
    codes = codes[order]
    first = np.argsort(codes, kind="stable")
    rank = np.empty(n, dtype=int)  # of a cell within its class, in random order
    rank[first] = np.arange(n) - np.searchsorted(codes[first], codes[first])
    reference = np.zeros(n, dtype=bool)
    reference[order[rank % 2 == 0]] = True
    d = max(1, min(n_components, reference.sum() - 1, g - 1))

    def placed(fitted: Components) -> tuple[Cells, Cells]:
        return tuple(Cells(genes, _project(genes, fitted)) for genes in (real, generated))

    whole, half = pca(real, d), pca(real[reference], d)
    return Setup(placed(whole), placed(half), half, reference)


def score_group(setup: Setup, real: np.ndarray, generated: np.ndarray, *, rng: np.random.Generator) -> Iterator[Scored]:
    """Every score of `SCORES` for some of the cells, one after the other.

    Parameters
    ----------
    setup
        All cells.
    real, generated
        Indices of the cells to score, at least two of either.
    rng
        Draws the subsamples and the shuffling.
    """
    pairs = _comparisons(setup, real, generated, rng=rng)
    genes = {name: [gene_statistics(side.genes) for side in pair] for name, pair in pairs.items()}
    points = {name: [side.points for side in pair] for name, pair in pairs.items()}
    h = len(points["ceiling"][0])
    for score in SCORES:
        given = genes if score.on == "genes" else points
        found = {name: _compute(score, *pair, rng=rng) for name, pair in given.items()}
        yield Scored(
            score,
            values={name: each[0] for name, each in found.items()},
            n=(*score.sizes(len(real), len(generated)), score.sizes(h, h)[0]),
            gap=max(each[1] for each in found.values()),
            why={name: each[2] for name, each in found.items() if each[2]},
        )


def _compute(score: Score, a, b, *, rng: np.random.Generator) -> tuple[float, float, str]:
    """Value, gap, and why there is no value: too few cells for this score, or cells that leave it undefined."""
    try:
        if score.most:
            a, b = (side[np.sort(rng.permutation(len(side))[: score.most])] for side in (a, b))
        if score.name == "w2_exact":
            plan = exact_w2(a, b)
            return plan.value, plan.gap, ""
        options = {}
        if score.name == "sinkhorn_divergence":
            options["blur"] = BLUR * float(np.sqrt(a.var(axis=0).sum()))
        value = float(catalogue()[score.name].function(a, b, **options))
        return value, 0.0, UNDEFINED if np.isnan(value) else ""
    except ScreproError as error:
        return float("nan"), 0.0, error.rule


def _comparisons(
    setup: Setup, real: np.ndarray, generated: np.ndarray, *, rng: np.random.Generator
) -> dict[str, tuple]:
    """The two samples of each of `COLUMNS`."""
    in_reference = setup.reference[real]
    parts = [rng.permutation(part) for part in (real[in_reference], real[~in_reference], generated)]
    h = min(map(len, parts))
    which = setup.half[0], setup.half[0], setup.half[1]
    reference, other, made = (_take(cells, part[:h]) for cells, part in zip(which, parts, strict=True))
    return {
        "value": (_take(setup.all[0], real), _take(setup.all[1], generated)),
        "value_equal_n": (reference, made),
        "ceiling": (reference, other),
        "floor_shuffled": (reference, _shuffled(other, fitted=setup.fitted, rng=rng)),
        "floor_mean": (reference, _mean(other)),
    }


def _project(genes: sparse.csr_matrix, fitted: Components) -> np.ndarray:
    """Coordinates (n, d) on the components, centred by the mean of the cells they were fitted to."""
    return genes @ fitted.axes - fitted.mean @ fitted.axes


def _take(cells: Cells, which: np.ndarray) -> Cells:
    """Some of the cells."""
    return Cells(cells.genes[which], cells.points[which])


def _shuffled(cells: Cells, *, fitted: Components, rng: np.random.Generator) -> Cells:
    """Every gene's values moved to cells drawn at random, gene by gene; stays sparse."""
    columns = sparse.csc_matrix(cells.genes)
    n, g = columns.shape
    rows = np.empty_like(columns.indices)
    for gene in range(g):
        stored = slice(columns.indptr[gene], columns.indptr[gene + 1])
        rows[stored] = rng.permutation(n)[: stored.stop - stored.start]
    genes = sparse.csc_matrix((columns.data, rows, columns.indptr), shape=(n, g)).tocsr()
    return Cells(genes, _project(genes, fitted))


def _mean(cells: Cells) -> Cells:
    """The mean cell, as often as there are cells."""
    mean = gene_statistics(cells.genes).mean
    same = np.zeros_like(mean) if len(cells.points) > 1 else np.full_like(mean, np.nan)
    genes = GeneStatistics(mean, variance=same, zero_fraction=(mean == 0).astype(float))
    return Cells(genes, np.repeat(cells.points.mean(axis=0, keepdims=True), len(cells.points), axis=0))
