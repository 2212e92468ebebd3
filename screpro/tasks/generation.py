"""Cells for a generator, and the scores of what it generates: scLDM section 4.1, Tables 2 and 13 (protocol 4.2).

Generated cells are compared with test cells on 30 principal components. The components are fitted to the test cells
alone, and on the same panel every method is scored on the same axes. Expression is log1p of counts per 10 000 of each
cell's own total over the panel.

A distance between two samples is not 0 where the distributions are equal: it shrinks with the number of cells. So every
method generates as many cells as there are test cells, with their labels, and two references stand beside it: training
cells with the same labels (the ceiling) and, for the MMD, what its three narrow kernels add whatever the cells
(`narrow_kernels`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from screpro.data.columns import is_unlabelled
from screpro.data.preprocess import log_cp10k
from screpro.data.splits import cell_split
from screpro.data.validate import check_labels
from screpro.errors import ScreproError
from screpro.kernels.pca import Components, pca
from screpro.metrics.distances import SIGMAS, mmd2_rbf_sum5
from screpro.metrics.frechet import frechet_distance
from screpro.metrics.genes import gene_statistics
from screpro.metrics.neighbours import knn_precision, knn_recall, one_nn_accuracy
from screpro.metrics.report_input import variable_genes
from screpro.metrics.transport import w2_exact

__all__ = [
    "DIRECTIONS",
    "GenerationCells",
    "Reference",
    "class_accuracy",
    "gene_variance_ratio",
    "generation_cells",
    "narrow_kernels",
    "reference_of",
    "same_labels",
    "score_all",
    "score_classes",
    "times_ceiling",
]

N_COMPONENTS = 30

DISTANCES = {"w2_exact": w2_exact, "mmd2_rbf_sum5": mmd2_rbf_sum5, "frechet_distance": frechet_distance}
"""Metrics of Tables 2 and 13."""

NEIGHBOURS = {"one_nn_accuracy": one_nn_accuracy, "knn_precision": knn_precision, "knn_recall": knn_recall}
"""Metrics that the later version adds."""

DIRECTIONS = dict.fromkeys(DISTANCES, "lower") | {
    "one_nn_accuracy": "closer to 0.5",
    "knn_precision": "higher",
    "knn_recall": "higher",
    "gene_variance_ratio": "closer to 1",
    "macro_recall": "higher",
}

LEAST = 2
"""Cells below which a class has no spread, and is skipped."""


class GenerationCells(NamedTuple):
    """Raw counts of the panel and labels of training and test cells."""

    train: sp.csr_matrix  # (n, G) float32 counts
    test: sp.csr_matrix  # (m, G)
    train_labels: np.ndarray  # (n,) int64 codes 0..K-1
    test_labels: np.ndarray  # (m,)
    types: list[str]  # name of each code
    genes: list[str]  # (G,)
    left_out: int  # cells without a type or a count in the panel, and test cells of a type without training cells


def generation_cells(
    adata: AnnData, *, split: int, test: float, panel: int | None = None, variable: float = 0.5
) -> GenerationCells:
    """Split cells at random and choose the genes to model on the training cells. Cells without a type are left out.

    Parameters
    ----------
    adata
        Counts in ``X``, types in ``obs["cell_type"]``.
    split
        Seed of the split and of the genes drawn.
    test
        Share of the cells held out.
    panel
        Genes to model; None takes every gene that a training cell expresses.
    variable
        Share of the panel that is the most variable genes (seurat_v3, training cells). The others are drawn at random
        among the remaining genes seen in at least 1 % of the training cells, so that scores on all genes can differ
        from scores on variable ones, as they do on whole transcriptomes.

    Raises
    ------
    ScreproError
        No labels, or a panel of fewer than two genes.
    """
    check_labels(adata.obs, "cell_type")
    n_cells, adata = adata.n_obs, adata[~is_unlabelled(adata.obs["cell_type"])]
    if panel is not None and panel < 2:
        raise ScreproError("A panel has at least two genes.", got=panel, fix="ask for more genes, or None for all")
    counts = sp.csr_matrix(adata.X, dtype=np.float32)
    column = adata.obs["cell_type"].astype(str).astype("category").cat
    labels = column.codes.to_numpy().astype(np.int64)
    parts = cell_split(adata.n_obs, seed=split, test=test)
    genes = _panel(counts[parts.train], panel, variable, seed=split)
    counts = counts[:, genes]
    kept = {}
    for name, rows in (("train", parts.train), ("test", parts.test)):
        kept[name] = rows[np.asarray(counts[rows].sum(1)).ravel() > 0]
    known = np.isin(labels[kept["test"]], labels[kept["train"]])
    kept["test"] = kept["test"][known]
    return GenerationCells(
        train=counts[kept["train"]],
        test=counts[kept["test"]],
        train_labels=labels[kept["train"]],
        test_labels=labels[kept["test"]],
        types=list(column.categories),
        genes=[str(adata.var_names[g]) for g in genes],
        left_out=n_cells - len(kept["train"]) - len(kept["test"]),
    )


def _panel(train: sp.csr_matrix, panel: int | None, variable: float, *, seed: int) -> np.ndarray:
    seen = np.flatnonzero(train.getnnz(axis=0) > 0)
    if panel is None or panel >= len(seen):
        return seen
    chosen = seen[variable_genes(train[:, seen], max(2, round(variable * panel)))]
    others = np.setdiff1d(np.flatnonzero(train.getnnz(axis=0) >= max(1, 0.01 * train.shape[0])), chosen)
    drawn = np.random.default_rng(seed).permutation(others)[: panel - len(chosen)]
    return np.sort(np.concatenate([chosen, drawn]))


def same_labels(labels: np.ndarray, wanted: np.ndarray, *, rng: np.random.Generator, replace: bool) -> np.ndarray:
    """Rows of cells with the labels `wanted`, in that order, drawn among cells with `labels` (n,).

    Without replacement as long as a class has enough cells; a class that has not is drawn with replacement.
    """
    rows = np.empty(len(wanted), dtype=np.int64)
    for label in np.unique(wanted):
        own, asked = np.flatnonzero(labels == label), np.flatnonzero(wanted == label)
        if not len(own):
            raise ScreproError(
                "Cells of a label are drawn among cells that have it.", got=f"label {label}", fix="leave it out"
            )
        rows[asked] = rng.choice(own, len(asked), replace=replace or len(asked) > len(own))
    return rows


class Reference(NamedTuple):
    """Test cells on the components that they alone define, and which genes these see."""

    x: sp.csr_matrix  # (m, g) log-normalised expression of the genes
    genes: np.ndarray  # (g,) columns of the panel
    labels: np.ndarray  # (m,)
    fitted: Components
    train_labels: np.ndarray  # (n,) of the training cells
    classifier: object  # tells classes apart on the components; trained on training cells

    def points(self, x: sp.csr_matrix) -> np.ndarray:
        """Coordinates (n, d) of log-normalised panel expression (n, G)."""
        return x[:, self.genes] @ self.fitted.axes - self.fitted.mean @ self.fitted.axes


def reference_of(cells: GenerationCells, *, n_variable: int | None = None) -> Reference:
    """What generated cells are compared with.

    Parameters
    ----------
    cells
        Training and test cells; training cells only train the classifier of `class_accuracy`.
    n_variable
        Number of genes, the most variable of the test counts (seurat_v3); None or the size of the panel: all genes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_genes = cells.test.shape[1]
    genes = np.arange(n_genes)
    if n_variable is not None and n_variable < n_genes:
        seen = np.flatnonzero(cells.test.getnnz(axis=0) > 0)
        genes = seen[variable_genes(cells.test[:, seen], min(n_variable, len(seen)))]
    x = log_cp10k(cells.test)[:, genes]
    fitted = pca(x, min(N_COMPONENTS, x.shape[0] - 1, x.shape[1]))
    found = Reference(x, genes, cells.test_labels, fitted, cells.train_labels, None)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    if len(np.unique(cells.train_labels)) > 1:
        classifier.fit(found.points(log_cp10k(cells.train)), cells.train_labels)
        found = found._replace(classifier=classifier)
    return found


def score_all(reference: Reference, x: sp.csr_matrix, *, seed: int = 0) -> dict[str, float]:
    """Scores of all generated cells against all test cells, whatever their labels.

    Parameters
    ----------
    reference
        The test cells.
    x
        (m, G) log-normalised expression of generated cells, as many as there are test cells, over the panel.
    seed
        Of the draw that cuts more than 5 000 cells for exact transport.
    """
    points, real = _checked(reference, x), reference.fitted.scores
    values = {name: metric(real, points) for name, metric in DISTANCES.items() if name != "w2_exact"}
    values = {"w2_exact": w2_exact(real, points, seed=seed)} | values
    for name, metric in NEIGHBOURS.items():
        if min(len(real), len(points)) > 5 or name == "one_nn_accuracy":
            values[name] = metric(real, points)
    values["gene_variance_ratio"] = gene_variance_ratio(reference.x, x[:, reference.genes])
    return values


def score_classes(reference: Reference, x: sp.csr_matrix, labels: np.ndarray) -> dict[str, float]:
    """Distances inside each class, and their unweighted mean over the classes with at least two cells on each side.

    Components are those of all test cells. `x` is as in `score_all`, with `labels` (m,) that were asked for.
    """
    points, real = _checked(reference, x), reference.fitted.scores
    pairs = [(real[reference.labels == k], points[labels == k]) for k in np.unique(reference.labels)]
    pairs = [pair for pair in pairs if min(map(len, pair)) >= LEAST]
    if not pairs:
        raise ScreproError(
            "At least one class has two real and two generated cells.",
            got=f"{len(real)} test cells of {len(np.unique(reference.labels))} classes",
            fix="hold out more cells",
        )
    return {name: float(np.mean([metric(a, b) for a, b in pairs])) for name, metric in DISTANCES.items()}


def times_ceiling(
    reference: Reference,
    labels: np.ndarray,
    unconditional: sp.csr_matrix,
    conditional: sp.csr_matrix | None,
    *,
    real: Sequence[sp.csr_matrix],
) -> float:
    """How many times as far as real cells a method's cells are: one number to choose a setting by, the smallest.

    The geometric mean, over W2, MMD² and Fréchet distance, of the distance over that of real cells, which gives the
    unit and does not change the order. W2 alone would choose wrongly: cells at the mean of their type are near by it.
    The Fréchet distance, a square and without a floor, moves the number most; the MMD² of small classes, most of which
    is its floor (`narrow_kernels`), least.

    Parameters
    ----------
    reference, labels
        The cells that are compared with, and their labels (m,).
    unconditional, conditional
        (m, G) log-normalised samples of the method, the second with `labels`; None if it has none.
    real
        Two such samples of real cells, in the same order.
    """
    pairs = [(score_all(reference, unconditional), score_all(reference, real[0]))]
    if conditional is not None:
        pairs.append((score_classes(reference, conditional, labels), score_classes(reference, real[1], labels)))
    # distances of real cells are not 0: even two samples of one law differ by their size
    return float(np.exp(np.mean([np.log(own[name] / there[name]) for own, there in pairs for name in DISTANCES])))


def class_accuracy(reference: Reference, x: sp.csr_matrix, labels: np.ndarray) -> float | None:
    """Mean over classes of the share of generated cells that a classifier of real cells gives the label asked for.

    Logistic regression on the components of `reference`, trained on the real training cells. None with one class.
    """
    from screpro.metrics.classification import macro_recall

    if reference.classifier is None:
        return None
    return macro_recall(labels, reference.classifier.predict(_checked(reference, x)))


def gene_variance_ratio(real: sp.csr_matrix, generated: sp.csr_matrix) -> float:
    r"""Median over genes of the generated variance over the real one: scLDM's Figures 5 to 7 in a number.

    $$\operatorname{median}_{g :\, s_g^2 > 0} \; \hat s_g^2 / s_g^2$$

    of log-normalised expression (n, G) and (m, G), n - 1 in the denominators. Below 1 the generated cells vary less.
    Genes that do not vary among the real cells are left out.
    """
    a, b = gene_statistics(real).variance, gene_statistics(generated).variance
    if not (a > 0).any():
        raise ScreproError("A ratio of variances needs a gene that varies.", got="none", fix="pass cells that differ")
    return float(np.median(b[a > 0] / a[a > 0]))


def narrow_kernels(n: int) -> float:
    """What the kernels too narrow to see anything add to the MMD² of two samples of n cells: three times 2 / n.

    Cells are much farther apart than widths of .01, .1 and 1, so that each cell sees itself only: the mean over pairs
    within a sample is 1 / n, between samples 0. No generator gets below this unless it copies real cells.
    """
    return 2 * sum(sigma <= 1 for sigma in SIGMAS) / n


def class_sizes(labels: np.ndarray, types: list[str]) -> Mapping[str, int]:
    """Number of cells by name of the class, classes without any left out."""
    return {types[k]: int(n) for k, n in enumerate(np.bincount(labels, minlength=len(types))) if n}


def _checked(reference: Reference, x: sp.csr_matrix) -> np.ndarray:
    if x.shape[0] != len(reference.labels) or not np.isfinite(x.data if sp.issparse(x) else x).all():
        raise ScreproError(
            "As many cells are generated as there are test cells, all their values finite.",
            got=f"{x.shape[0]} generated for {len(reference.labels)} test cells",
            fix="generate one cell for each test cell, with its label",
        )
    return reference.points(x)
