"""ACTINN (Ma & Pellegrini, Bioinformatics 2020, 10.1093/bioinformatics/btz592): a small multilayer perceptron.

From the authors' code: counts scaled to 10 000, log2(x + 1); genes between the 1st and 99th percentile of summed
expression, then between the 1st and 99th percentile of the coefficient of variation; layers of 100, 50 and 25
units with ReLU, softmax; Xavier-uniform weights, zero biases; loss = cross-entropy + 0.005 * 1/2 * sum of squared
weights; Adam, learning rate 1e-4 falling by 5 % every 1000 steps; batches of 128, 50 epochs, last weights.

Differences: the gene filter looks at training cells only (theirs pools training and test cells), and drops genes
that no training cell has first (their filter would divide by zero). Their fixed seed 3 becomes `seed`.

50 epochs at 1e-4 are 0.8 steps per training cell: enough for the tens of thousands of cells the authors trained
on, too few for a few thousand. The grid therefore holds a larger step and more epochs as well.
"""

from itertools import pairwise

import numpy as np
from scipy import sparse

from screpro.baselines.common import Prediction, contained_torch, from_scores
from screpro.tasks.cells import Cells

__all__ = ["fit_predict", "keep_genes"]

HIDDEN = (100, 50, 25)


def keep_genes(x: sparse.spmatrix) -> np.ndarray:
    """Indices of the genes that pass the two percentile filters.

    Parameters
    ----------
    x
        (n, G) log-normalised expression; the filter does not depend on the base of the logarithm.
    """
    x = sparse.csr_matrix(x, dtype=np.float64)
    total = np.asarray(x.sum(axis=0)).ravel()
    genes = np.flatnonzero(total > 0)
    if not len(genes):
        return np.arange(x.shape[1])
    genes = genes[_between(total[genes])]
    mean = total[genes] / x.shape[0]
    squares = np.asarray(x.multiply(x).sum(axis=0)).ravel()[genes] / x.shape[0]
    deviation = np.sqrt(np.maximum(squares - mean**2, 0.0))
    return genes[_between(deviation / mean)]


def fit_predict(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    learning_rate: float = 1e-4,
    epochs: int = 50,
    batch_size: int = 128,
    penalty: float = 0.005,
) -> Prediction:
    """Train the network on `train`, classify `test`. Scores are softmax probabilities.

    Parameters
    ----------
    learning_rate
        First step size of Adam.
    epochs
        Passes over the training cells.
    batch_size
        Cells per step; the last batch of an epoch may be smaller.
    penalty
        Factor of half the summed squares of all weights (not biases).
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    from screpro.kernels.linear import Linear

    genes = keep_genes(train.x)
    types, target = np.unique(train.cell_type, return_inverse=True)
    x, query = _log2(train.x, genes), _log2(test.x, genes)
    target = torch.from_numpy(target)
    with contained_torch(seed=seed, threads=threads):
        generator = torch.Generator().manual_seed(seed)
        widths = (len(genes), *HIDDEN, len(types))
        layers = [Linear(a, b) for a, b in pairwise(widths)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        network = nn.Sequential(*[m for layer in layers[:-1] for m in (layer, nn.ReLU())], layers[-1])
        optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, step_size=1000, gamma=0.95)
        for _ in range(epochs):
            order = torch.randperm(len(target), generator=generator)
            for rows in order.split(batch_size):
                batch = torch.from_numpy(x[rows.numpy()].toarray())  # (B, G)
                weights = sum(layer.weight.square().sum() for layer in layers)
                loss = F.cross_entropy(network(batch), target[rows]) + penalty * weights / 2
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        with torch.no_grad():
            blocks = range(0, query.shape[0], 1024)
            logits = [network(torch.from_numpy(query[i : i + 1024].toarray())) for i in blocks]
            probability = torch.cat(logits).softmax(dim=1).numpy()
    return from_scores(probability, types, n_types=n_types)


def _between(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [1, 99])
    return (values >= low) & (values <= high)


def _log2(x: sparse.spmatrix, genes: np.ndarray) -> sparse.csr_matrix:
    """Chosen columns of natural log1p values, in units of log2."""
    return sparse.csr_matrix(sparse.csr_matrix(x)[:, genes] / np.log(2), dtype=np.float32)
