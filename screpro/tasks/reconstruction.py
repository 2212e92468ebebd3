"""Reconstruction of counts: cells and panel, what bounds the scores from below and above, the five scores.

A reconstruction is a mean per cell and gene and an inverse dispersion theta; every method is a function from counts
to the two. Besides the networks there are four without training, and each answers one question:

- `global_law`: one profile for all cells. What is known without looking at the cell?
- `class_law`: one profile per cell type, given the true type. What is known from the type?
- `neighbour_law`: the pooled profile of the nearest training cells. What does looking things up give?
- `copy_law`: the cell's own counts as its mean. Nothing is learned, and no honest score should like it.

The last is why a reconstruction error has to be read with care: the cell that is scored is the cell that was encoded,
so whoever passes more of its noise through the bottleneck gets a better score, beyond that of the true mean. `halves`
takes that advantage away: one half of the molecules is encoded, the other scored.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.data.preprocess import log_cp10k, variable_panel
from screpro.data.simulate import thin
from screpro.data.splits import Split, cell_split
from screpro.errors import ScreproError
from screpro.metrics.reconstruction import mse_nb_draw, mse_nb_mean, pcc_nb_draw, pcc_nb_mean, re_nb_nll

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "DIRECTIONS",
    "Law",
    "Parts",
    "class_law",
    "copy_law",
    "global_law",
    "half_bounds",
    "halves",
    "likeliest_theta",
    "neighbour_law",
    "prepare",
    "scores",
]

Law = Callable[[sp.csr_matrix], tuple[np.ndarray, np.ndarray]]
"""Counts (n, G) of cells -> mean (n, G) in any unit per cell, and theta, (G,) or (n, G)."""

DIRECTIONS = {
    "re_nb_nll": "lower",
    "pcc_nb_draw": "higher",
    "mse_nb_draw": "lower",
    "pcc_nb_mean": "higher",
    "mse_nb_mean": "lower",
}
"""The scores and which value of each is better."""

THETA_RANGE = (1e-2, 1e6)


class Parts(NamedTuple):
    """Cells of one panel of genes: raw counts (n, G) CSR, and codes of the types where they are known."""

    train: sp.csr_matrix
    validation: sp.csr_matrix
    test: sp.csr_matrix
    train_types: np.ndarray | None  # (n,) codes from 0
    test_types: np.ndarray | None
    genes: list[str]

    @property
    def n_types(self) -> int:
        """Number of types, those without training cells included; 0 where types are unknown."""
        if self.train_types is None:
            return 0
        return int(max(self.train_types.max(), self.test_types.max())) + 1


def prepare(
    adata: "AnnData",
    *,
    split: int,
    n_genes: int | None = None,
    n_train: int | None = None,
    test: float = 0.2,
    validation: float = 0.1,
    shipped: bool = False,
) -> Parts:
    """Split the cells and choose the panel on the training cells.

    Parameters
    ----------
    adata
        Raw counts in ``X``; ``obs["cell_type"]`` is used if there.
    split
        Seed of the split.
    n_genes
        Genes of the panel: the most variable ones of the training cells (seurat_v3, on counts). None, or more than
        there are: all genes that some training cell has.
    n_train
        At most this many training cells, and at most half as many test cells, taken from the front of the random
        order.
    test, validation
        Shares of the cells.
    shipped
        Take the split that comes with the data instead (``obs["split"]``, "train" and "test"); validation cells are
        the last tenth of a permutation of the training cells by ``RandomState(42)``, as in the authors' code.

    Returns
    -------
    Parts
        Cells in random order, without those that have no count in the panel.

    Raises
    ------
    ScreproError
        No split comes with the data, or fractions that leave a part empty.
    """
    counts = sp.csr_matrix(adata.X, dtype=np.float32)
    types = adata.obs["cell_type"].astype("category").cat.codes.to_numpy() if "cell_type" in adata.obs else None
    if shipped:
        rows = _shipped_split(adata, seed=split)
    else:
        rows = cell_split(counts.shape[0], seed=split, test=test, validation=validation)
    train, inner, held_out = rows.train[:n_train], rows.validation, rows.test
    if n_train is not None:
        inner, held_out = inner[: max(128, n_train // 4)], held_out[: max(128, n_train // 2)]
    panel = variable_panel(counts[train], n_genes)
    counts = counts[:, panel]
    alive = np.asarray(counts.sum(1)).ravel() > 0
    train, inner, held_out = (part[alive[part]] for part in (train, inner, held_out))
    known = types is not None and (types >= 0).all()
    return Parts(
        train=counts[train],
        validation=counts[inner],
        test=counts[held_out],
        train_types=types[train].astype(np.int64) if known else None,
        test_types=types[held_out].astype(np.int64) if known else None,
        genes=[str(adata.var_names[g]) for g in panel],
    )


def _shipped_split(adata: "AnnData", *, seed: int) -> Split:
    where = adata.obs["split"].astype(str).to_numpy() if "split" in adata.obs else np.array([], dtype=str)
    train, test = np.flatnonzero(where == "train"), np.flatnonzero(where == "test")
    if not len(train) or not len(test):
        raise ScreproError(
            'A split that comes with the data is a column "split" of cells "train" and "test".',
            got=", ".join(sorted(set(where))) or "no such column",
            fix="use a random split",
        )
    train = train[np.random.RandomState(42).permutation(len(train))]
    cut = len(train) - len(train) // 10
    # evaluation batches are of consecutive cells: files are sorted by type, which a batch must not be
    return Split(train[:cut], train[cut:], np.random.default_rng(seed).permutation(test))


def scores(counts: sp.csr_matrix, mean: np.ndarray, theta: np.ndarray, *, seed: int) -> dict[str, float]:
    """The scores of `DIRECTIONS` of a reconstruction; `seed` is that of the drawn counts."""
    return {
        "re_nb_nll": re_nb_nll(counts, mean, theta),
        "pcc_nb_draw": pcc_nb_draw(counts, mean, theta, rng=np.random.default_rng(seed)),
        "mse_nb_draw": mse_nb_draw(counts, mean, theta, rng=np.random.default_rng(seed)),
        "pcc_nb_mean": pcc_nb_mean(counts, mean),
        "mse_nb_mean": mse_nb_mean(counts, mean),
    }


def halves(counts: sp.csr_matrix, *, seed: int) -> tuple[sp.csr_matrix, sp.csr_matrix, np.ndarray]:
    """Every molecule into one of two halves by a fair coin.

    Returns
    -------
    tuple
        The halves (n', G), and the row numbers (n',) of the cells they belong to: those with no empty half.
    """
    kept, rest = thin(counts, 0.5, np.random.default_rng(seed))
    rows = np.flatnonzero((np.asarray(kept.sum(1)).ravel() > 0) & (np.asarray(rest.sum(1)).ravel() > 0))
    return kept[rows], rest[rows], rows


def half_bounds(encoded: sp.csr_matrix, scored: sp.csr_matrix) -> dict[str, float]:
    """What the scores of correlation and squared error can be at best when one half (n, G) of the molecules is scored.

    Given the state of a cell, its two halves are two independent draws of one law. So one half scores as the answer
    to the other as a draw from the true state does, and the correlation of the true mean is the root of that, its
    squared error half. "True state" includes what theta stands for, which no network can know: the bounds are
    generous. The root is taken of the mean over genes, which is no smaller than the mean of the roots.
    """
    answer = encoded.toarray()
    correlation, error = pcc_nb_mean(scored, answer), mse_nb_mean(scored, answer)
    return {
        "pcc_nb_draw": correlation,
        "mse_nb_draw": error,
        "pcc_nb_mean": float(np.sqrt(max(correlation, 0))),
        "mse_nb_mean": error / 2,
    }


# --- laws without training --------------------------------------------------------------------------------


def global_law(train: sp.csr_matrix) -> Law:
    """Every cell has the pooled profile of the training cells; theta per gene is the likeliest."""
    profile = _profile(train)
    theta = likeliest_theta(train, np.broadcast_to(profile, train.shape))
    return lambda counts: (np.tile(profile, (counts.shape[0], 1)), theta)


def class_law(train: sp.csr_matrix, train_types: np.ndarray, test_types: np.ndarray, *, n_types: int) -> Law:
    """Every cell has the pooled profile of the training cells of its type, and one cell of the global profile.

    The types of the cells that are asked for are given beforehand: `test_types` belong to them, in their order.
    """
    overall = _profile(train)
    depth = float(np.asarray(train.sum(1)).mean())
    membership = sp.csr_matrix(
        (np.ones(len(train_types)), (train_types, np.arange(len(train_types)))), shape=(n_types, len(train_types))
    )
    profiles = (membership @ train).toarray() + depth * overall
    profiles /= profiles.sum(1, keepdims=True)
    theta = likeliest_theta(train, profiles[train_types])

    def law(counts: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        if counts.shape[0] != len(test_types):
            raise ScreproError(
                "The law of the classes answers for the cells whose types it was given.",
                got=f"{counts.shape[0]} cells, {len(test_types)} types",
                fix="pass the same cells in the same order",
            )
        return profiles[test_types], theta

    return law


def neighbour_law(train: sp.csr_matrix, *, neighbours: int = 15, components: int = 30) -> Law:
    """Every cell has the pooled profile of its nearest training cells, and one cell of the global profile.

    Nearest in principal components of log1p of counts per 10 000. theta is the likeliest for the training cells, each
    predicted from its neighbours without itself.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.neighbors import NearestNeighbors

    components = min(components, min(train.shape) - 1)
    svd = TruncatedSVD(components, random_state=0).fit(log_cp10k(train))
    codes = svd.transform(log_cp10k(train))
    index = NearestNeighbors(n_neighbors=neighbours + 1).fit(codes)
    shared = float(np.asarray(train.sum(1)).mean()) * _profile(train)

    def pooled(found: np.ndarray) -> np.ndarray:
        n = len(found)
        which = sp.csr_matrix(
            (np.ones(found.size), (np.repeat(np.arange(n), found.shape[1]), found.ravel())), shape=(n, train.shape[0])
        )
        mean = (which @ train).toarray() + shared
        return mean / mean.sum(1, keepdims=True)

    own = index.kneighbors(codes, return_distance=False)
    others = own != np.arange(len(own))[:, None]
    others[others.all(1), -1] = False  # among exact copies a cell may miss itself: drop the farthest
    theta = likeliest_theta(train, pooled(own[others].reshape(len(own), neighbours)))

    def law(counts: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        found = index.kneighbors(svd.transform(log_cp10k(counts)), neighbours, return_distance=False)
        return pooled(found), theta

    return law


def copy_law(train: sp.csr_matrix) -> Law:
    """The mean of a cell is the cell. theta is so large that the law is Poisson.

    A tenth of a molecule of the global profile keeps the mean of unseen genes above 0, so that other molecules of the
    same cell have a likelihood.
    """
    profile = _profile(train)
    theta = np.full(train.shape[1], THETA_RANGE[1])
    return lambda counts: (counts.toarray().astype(np.float64) + 0.1 * profile, theta)


def likeliest_theta(counts: sp.csr_matrix, mean: np.ndarray, *, steps: int = 24) -> np.ndarray:
    """Maximum-likelihood inverse dispersion per gene (G,), in [0.01, 1e6], for given means.

    Golden-section search of every gene at once on the logarithm; the likelihood of a gene has one peak there in
    practice, at the upper end for a gene that varies no more than a Poisson count.

    Parameters
    ----------
    counts
        (n, G) counts.
    mean
        (n, G) means in any unit per cell; scaled to the total of the cell.
    """
    totals = np.asarray(counts.sum(1), dtype=np.float64).ravel()
    mu = np.asarray(mean, dtype=np.float64)
    mu = mu * (totals / mu.sum(1))[:, None]
    entries = sp.coo_matrix(counts)
    gene, y = entries.col, entries.data.astype(np.float64)
    ratio = (np.sqrt(5) - 1) / 2
    low, high = (np.full(mu.shape[1], np.log(edge)) for edge in THETA_RANGE)

    def loss(log_theta: np.ndarray) -> np.ndarray:
        from scipy.special import gammaln

        theta = np.exp(log_theta)
        # terms that depend on theta: all entries pay (theta + y) log(1 + mu / theta), counted ones the gamma functions
        cost = theta * np.log1p(mu / theta).sum(0)
        t, m = theta[gene], mu[entries.row, gene]
        seen = y * (np.log1p(m / t) + log_theta[gene]) - gammaln(y + t) + gammaln(t)
        return cost + np.bincount(gene, seen, minlength=len(theta))

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(steps):
        better = at_left < at_right
        low, high = np.where(better, low, left), np.where(better, right, high)
        new = np.where(better, high - ratio * (high - low), low + ratio * (high - low))
        at_new = loss(new)
        left, right = np.where(better, new, right), np.where(better, left, new)
        at_left, at_right = np.where(better, at_new, at_right), np.where(better, at_left, at_new)
    return np.exp((low + high) / 2)


def _profile(counts: sp.csr_matrix) -> np.ndarray:
    """Share of every gene (G,) of the pooled counts; half a molecule more for each, so that none has 0."""
    pooled = np.asarray(counts.sum(0), dtype=np.float64).ravel() + 0.5
    return pooled / pooled.sum()
