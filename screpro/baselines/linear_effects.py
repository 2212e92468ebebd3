"""Changes of mean expression without a deep network: none, the mean one, and a linear model.

The linear model is that of Ahlmann-Eltze et al. (Nature Methods 2025): changes of G genes under P perturbations
factor into an embedding of genes, one of perturbations, and a small matrix between them, fitted by ridge regression.
Theirs takes principal components of the training data for both sides; a perturbed gene that is not measured has no
such component, so here the embedding of a perturbed gene is its place in the gene graph. With two genes at once the
effects of single genes are added, those seen as they were measured.
"""

from typing import TYPE_CHECKING

import numpy as np

from screpro.data.gene_graph import GeneGraph, normalised
from screpro.data.perturbation_splits import genes_of

if TYPE_CHECKING:
    from screpro.tasks.gene_perturbation import PerturbedCells

__all__ = ["graph_embedding", "linear", "mean_effect", "no_change"]


def no_change(train: "PerturbedCells", *, predict: np.ndarray, seed: int, threads: int = 1) -> np.ndarray:
    """The mean of the control cells for every perturbation, (k, G)."""
    return np.repeat(train.means()[:1], len(predict), axis=0)


def mean_effect(train: "PerturbedCells", *, predict: np.ndarray, seed: int, threads: int = 1) -> np.ndarray:
    """Control mean plus the mean change over all training perturbations, the same for every perturbation, (k, G).

    Each perturbation counts once, whatever its number of cells.
    """
    means = train.means()
    return np.repeat(np.nanmean(means[1:], axis=0, keepdims=True), len(predict), axis=0)


def graph_embedding(graph: GeneGraph, dimension: int) -> np.ndarray:
    """Place of every gene in the graph: leading eigenvectors of the convolution operator, times the eigenvalue.

    Parameters
    ----------
    graph
        N genes; edges count in both directions.
    dimension
        Columns at most.

    Returns
    -------
    (N, min(dimension, N)) array; genes without neighbours are far from all others.
    """
    operator = normalised(GeneGraph(graph.genes, graph.weights.maximum(graph.weights.T), graph.source))
    values, vectors = np.linalg.eigh(operator.toarray().astype(np.float64))
    leading = np.argsort(-np.abs(values), kind="stable")[:dimension]
    return vectors[:, leading] * values[leading]


def linear(
    train: "PerturbedCells",
    *,
    predict: np.ndarray,
    seed: int,
    threads: int = 1,
    dimension: int = 10,
    penalty: float = 0.1,
) -> np.ndarray:
    """Bilinear ridge model of single effects on the gene graph, added for two genes; (k, G) mean profiles.

    Parameters
    ----------
    train
        Control cells and cells of the training perturbations.
    predict
        (k,) numbers of the perturbations to predict.
    dimension
        Of the embeddings of genes and of perturbations, at most what the data allow.
    penalty
        Of the ridge regression, on both sides.
    """
    means = train.means()
    change = means - means[0]
    trained = np.flatnonzero(np.isfinite(change[:, 0]))
    trained = trained[trained > 0]
    embedding = train.incidence @ graph_embedding(train.graph, dimension)  # (P, d)
    y, z = change[trained], embedding[trained]
    offset, middle = y.mean(axis=0), z.mean(axis=0)
    genes = np.linalg.svd(y - offset, full_matrices=False)[2][:dimension].T  # (G, d') principal axes of the changes
    left = np.linalg.solve(genes.T @ genes + penalty * np.eye(genes.shape[1]), genes.T @ (y - offset).T)
    gram = (z - middle).T @ (z - middle) + penalty * np.eye(z.shape[1])
    weights = np.linalg.solve(gram, (z - middle).T @ left.T)  # (d, d')

    def from_graph(rows: np.ndarray) -> np.ndarray:
        return offset + (rows - middle) @ weights @ genes.T

    seen = {train.names[p]: change[p] for p in trained if len(genes_of(train.names[p])) == 1}
    node = graph_embedding(train.graph, dimension)
    number = {gene: i for i, gene in enumerate(train.graph.genes)}
    answers = []
    for p in predict:  # a handful of perturbations
        parts = [seen[gene] if gene in seen else from_graph(node[number[gene]]) for gene in genes_of(train.names[p])]
        answers.append(means[0] + np.sum(parts, axis=0))
    return np.array(answers)
