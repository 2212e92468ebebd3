"""Reference mapping after Seurat (Stuart et al., Cell 2019, 10.1016/j.cell.2019.05.031): labels move along anchors.

Two sets of cells, measured apart, are laid into one space; where a reference and a query cell are each among the
other's nearest, the pair is an anchor: the same state seen twice. A query cell takes its label from the anchors near
it, by a weighted vote. Steps and defaults of the published method:

1. 2 000 variable genes; shared space of 50 dimensions (PCA of the reference, query projected; or CCA), every cell
   scaled to length 1;
2. anchors: mutual nearest neighbours, 5 on each side;
3. filter: an anchor stays if the query cell is among the 200 nearest of the reference cell in the genes themselves,
   200 of them with the largest loadings;
4. score: the overlap of the two cells' neighbourhoods (30 reference and 30 query cells each), scaled so that its 1st
   percentile is 0 and its 90th is 1;
5. vote: 50 nearest anchors, D = (1 - distance / distance of the 50th) * score, weight 1 - exp(-D / 4), sum 1.

Differences: genes are chosen and expressed by analytic Pearson residuals of the reference (Lause et al. 2021,
10.1186/s13059-021-02451-7), a closed form near the SCTransform that OpenProblems runs; neighbours are exact; a filter
that would leave no anchor is not applied (Seurat stops), and anchors that all weigh nothing vote equally.
Current Seurat switches step 3 off by default: ``k_filter=None``.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines.common import Prediction, from_scores
from screpro.errors import ScreproError
from screpro.kernels.neighbours import nearest
from screpro.kernels.pca import pca
from screpro.tasks.cells import Cells

__all__ = ["SPACES", "Anchors", "fit_predict", "mutual_neighbours", "score_anchors", "shared_space", "vote_weights"]

SPACES = ("pca", "cca")
THETA = 100.0  # inverse overdispersion of the residuals, the value of Lause et al.
GENES_AT_ONCE = 512


class Anchors(NamedTuple):
    """Pairs of mutual neighbours."""

    reference: np.ndarray  # (a,) rows of the reference
    query: np.ndarray  # (a,) rows of the query


class Space(NamedTuple):
    """Both sets in one space."""

    reference: np.ndarray  # (n, d), rows of length 1
    query: np.ndarray  # (m, d), rows of length 1
    weighing: np.ndarray  # (m, d') where distances from query cells to anchors are taken
    loading: np.ndarray  # (G',) largest loading of every gene, in size


def fit_predict(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    space: str = "pca",
    n_genes: int = 2000,
    n_components: int = 50,
    k_anchor: int = 5,
    k_filter: int | None = 200,
    k_score: int = 30,
    k_weight: int = 50,
) -> Prediction:
    """Find anchors between `train` (reference) and `test` (query) and let them vote. Scores are sums of weights.

    All query cells are mapped together, so the answer for one depends on the others.

    Parameters
    ----------
    space
        ``"pca"`` or ``"cca"``, see `shared_space`.
    n_genes, n_components
        Variable genes of the reference and dimensions of the space; lowered where there are fewer.
    k_anchor, k_filter, k_score, k_weight
        Neighbours of steps 2 to 5 of the module; lowered where there are fewer. No filter with None.

    Raises
    ------
    ScreproError
        Unknown space.
    """
    reference, query = residuals(train.counts, test.counts, n_genes)
    both = shared_space(reference, query, space=space, n_components=n_components, seed=seed)
    anchors = mutual_neighbours(both.reference, both.query, k_anchor)
    if k_filter is not None:
        top = np.argsort(-both.loading, kind="stable")[:200]
        anchors = _filtered(anchors, _unit(reference[:, top]), _unit(query[:, top]), k_filter)
    score = score_anchors(both.reference, both.query, anchors, k_score)
    index, weight = vote_weights(both.weighing, anchors, score, k_weight)
    types, target = np.unique(train.cell_type, return_inverse=True)
    votes = np.zeros((len(query), len(types)))
    np.add.at(votes, (np.arange(len(query))[:, None], target[anchors.reference[index]]), weight)
    return from_scores(votes, types, n_types=n_types)


def residuals(reference: sp.csr_matrix, query: sp.csr_matrix, n_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pearson residuals of the genes that vary most in the reference: (n, G') and (m, G') float64.

    With size N_i of cell i and share p_g of gene g among the molecules of the reference, mu = N_i p_g and
    z = (y - mu) / sqrt(mu + mu^2 / theta), cut at +- sqrt(n). Both sets use the shares and the cut of the reference.
    """
    share = np.asarray(reference.sum(0), dtype=np.float64).ravel() / max(float(reference.sum()), 1.0)
    cut = np.sqrt(reference.shape[0])
    columns = [counts.tocsc() for counts in (reference, query)]
    sizes = [np.asarray(counts.sum(1), dtype=np.float64).ravel() for counts in (reference, query)]

    def of(which: int, genes: np.ndarray) -> np.ndarray:
        mean = sizes[which][:, None] * share[genes]
        deviation = np.sqrt(mean + mean**2 / THETA)
        deviation[deviation == 0] = 1.0  # an empty cell or gene has no deviation to speak of
        return ((columns[which][:, genes].toarray() - mean) / deviation).clip(-cut, cut)

    every = np.arange(reference.shape[1])
    blocks = [every[i : i + GENES_AT_ONCE] for i in range(0, len(every), GENES_AT_ONCE)]
    variance = np.concatenate([of(0, block).var(axis=0) for block in blocks])
    genes = np.sort(np.argsort(-variance, kind="stable")[:n_genes])
    return of(0, genes), of(1, genes)


def shared_space(
    reference: np.ndarray, query: np.ndarray, *, space: str = "pca", n_components: int = 50, seed: int = 0
) -> Space:
    """Lay both sets into one space.

    Parameters
    ----------
    reference, query
        (n, G) and (m, G) expression of the same genes.
    space
        ``"pca"``: axes of the reference, the query projected onto them with the reference's mean. ``"cca"``: genes
        standardised within each set, then the leading singular vectors of the n x m product, so that what differs
        between the sets in every cell alike is gone.
    n_components
        d; lowered where cells or genes are too few.
    seed
        Of the start vector of the iterations for CCA.

    Raises
    ------
    ScreproError
        Unknown space.
    """
    if space not in SPACES:
        raise ScreproError("A shared space has a name.", got=repr(space), fix=f"choose one of {', '.join(SPACES)}")
    n, m = len(reference), len(query)
    if space == "pca" or min(n, m) < 3:
        found = pca(reference, min(n_components, n - 1, reference.shape[1]))
        own, other = found.scores, (query - found.mean) @ found.axes
        return Space(_unit(own), _unit(other), other, np.abs(found.axes).max(axis=1))
    left, right = _standardised(reference), _standardised(query)
    own, other = _cca(left, right, min(n_components, n - 1, m - 1, reference.shape[1] - 1), seed)
    weighing = pca(query, min(n_components, m - 1, query.shape[1])).scores
    loading = np.abs(left.T @ own + right.T @ other).max(axis=1)
    return Space(_unit(own), _unit(other), weighing, loading)


def mutual_neighbours(reference: np.ndarray, query: np.ndarray, k: int) -> Anchors:
    """Pairs that are among each other's `k` nearest, sorted by reference row. Never empty: the closest pair is one."""
    n, m = len(reference), len(query)
    forward = _graph(nearest(reference, min(k, m), query)[1], m)
    backward = _graph(nearest(query, min(k, n), reference)[1], n)
    pairs = forward.multiply(backward.T).tocoo()
    order = np.lexsort((pairs.col, pairs.row))
    return Anchors(pairs.row[order].astype(np.int64), pairs.col[order].astype(np.int64))


def score_anchors(reference: np.ndarray, query: np.ndarray, anchors: Anchors, k: int) -> np.ndarray:
    """(a,) scores from 0 to 1: do the neighbourhoods of both ends, in both sets, hold the same cells?"""

    def around(points: np.ndarray) -> sp.csr_matrix:
        """Who is near each point, itself included: (len(points), n + m)."""
        near = [nearest(points, min(k, len(others)), others)[1] for others in (reference, query)]
        graphs = [_graph(index, len(others)) for index, others in zip(near, (reference, query), strict=True)]
        return sp.hstack(graphs, format="csr")

    shared = around(reference)[anchors.reference].multiply(around(query)[anchors.query]).sum(axis=1)
    shared = np.asarray(shared, dtype=np.float64).ravel()
    low, high = np.quantile(shared, [0.01, 0.9])
    return ((shared - low) / (high - low)).clip(0, 1) if high > low else np.ones(len(shared))


def vote_weights(
    query: np.ndarray, anchors: Anchors, score: np.ndarray, k: int, *, bandwidth: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Which anchors each query cell asks, and with what weight.

    Returns
    -------
    index, weight
        (m, k) rows of `anchors`, nearest first, and their weights, which sum to 1 in every row.
    """
    k = min(k, len(anchors.query))
    distance, index = nearest(query, k, query[anchors.query])
    last = distance[:, -1:]
    near = 1 - np.divide(distance, last, out=np.zeros_like(distance), where=last > 0)
    weight = 1 - np.exp(-near * score[index] * (bandwidth / 2) ** 2)
    total = weight.sum(axis=1, keepdims=True)
    return index, np.divide(weight, total, out=np.full_like(weight, 1 / k), where=total > 0)


def _filtered(anchors: Anchors, reference: np.ndarray, query: np.ndarray, k: int) -> Anchors:
    if k >= len(query):
        return anchors
    cells, row = np.unique(anchors.reference, return_inverse=True)
    near = nearest(reference[cells], k, query)[1]
    keep = (near[row] == anchors.query[:, None]).any(axis=1)
    return Anchors(anchors.reference[keep], anchors.query[keep]) if keep.any() else anchors


def _cca(left: np.ndarray, right: np.ndarray, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading singular vectors (n, d), (m, d) of left right' without forming it, largest first."""
    from scipy.sparse.linalg import LinearOperator, svds

    product = LinearOperator(
        (len(left), len(right)),
        matvec=lambda v: left @ (right.T @ v),
        rmatvec=lambda u: right @ (left.T @ u),
        dtype=np.float64,
    )
    start = np.random.default_rng(seed).standard_normal(min(product.shape))
    u, s, v = svds(product, k=d, v0=start)
    order = np.argsort(-s)
    return u[:, order], v[order].T


def _graph(index: np.ndarray, n_others: int) -> sp.csr_matrix:
    """Neighbour lists (p, k) as a matrix of ones (p, n_others)."""
    p, k = index.shape
    return sp.csr_matrix((np.ones(p * k), index.ravel(), np.arange(0, p * k + 1, k)), shape=(p, n_others))


def _unit(points: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(length > 0, length, 1.0)


def _standardised(x: np.ndarray) -> np.ndarray:
    deviation = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
