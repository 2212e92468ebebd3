r"""Molecular cross-validation: is the true expression recovered from noisy counts? (scDiff Table 12)

The truth is never observed. But the molecules of a cell can be dealt out at random into two cells: a gene with $x$
counts gives $\mathrm{Binomial}(x, 0.9)$ of them to the training cell and the rest to the test cell. Where counting is
Poisson, the two are independent given the cell's true expression, so whoever predicts the test cell from the training
cell has found expression and not noise (Batson, Royer and Webber 2019, doi 10.1101/786269). The scores here are those
of the OpenProblems denoising task, which scDiff's Table 12 reports without the leaderboard's rescaling.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric
from screpro.metrics.count_batches import normalised

__all__ = ["Split", "controls", "mcv_mse", "mcv_poisson", "split_counts"]

ROWS = 1024
"""Cells that are dense at a time."""

Matrix = np.ndarray | sp.csr_matrix


class Split(NamedTuple):
    """Two parts of the same molecules; they add up to the whole."""

    train: Matrix  # (n, G)
    test: Matrix  # (n, G)


def split_counts(counts: Matrix, *, train_fraction: float = 0.9, rng: np.random.Generator) -> Split:
    """Deal the molecules of every cell out into a training and a test part, each molecule independently.

    Parameters
    ----------
    counts
        (n, G) integer counts, dense or sparse; any dtype whose values are whole numbers.
    train_fraction
        Probability of a molecule to go to the training part, above 0 and below 1.
    rng
        Source of randomness. The same generator gives the same split for dense and sparse counts.

    Returns
    -------
    Training and test part, (n, G), as dense or sparse as `counts` and of its dtype; their sum is `counts`.

    Raises
    ------
    ScreproError
        Counts are not whole numbers from 0, or the fraction is not between 0 and 1.

    Notes
    -----
    OpenProblems: fraction .9, no overlap. Source: molecular cross-validation, Batson et al. 2019.
    """
    if not 0 < train_fraction < 1:
        raise ScreproError(
            "The training part gets a fraction of the molecules between 0 and 1.",
            got=f"train_fraction={train_fraction}",
            fix="use 0.9, as OpenProblems does",
        )
    whole = sp.csr_matrix(counts, copy=True)
    whole.sum_duplicates()
    if not ((whole.data >= 0) & (whole.data == np.floor(whole.data)) & (whole.data < 2**53)).all():
        raise ScreproError(
            "Only molecules can be dealt out: counts are whole numbers from 0.",
            got="negative, fractional or not finite values",
            fix="pass raw counts, not normalised ones",
        )
    train, test = whole.copy(), whole
    train.data = rng.binomial(whole.data.astype(np.int64), train_fraction).astype(whole.dtype)
    test.data = whole.data - train.data
    for part in (train, test):
        part.eliminate_zeros()
    return Split(train, test) if sp.issparse(counts) else Split(train.toarray(), test.toarray())


@metric(title="Molecular cross-validation, squared error", family="denoising", direction="lower")
def mcv_mse(denoised: Matrix, *, train: Matrix, test: Matrix) -> float:
    r"""Squared difference between denoised training counts and held-out test counts, after normalisation.

    Formula
    -------
    $$\frac{1}{n\,|\mathcal G|} \sum_c \sum_{g \in \mathcal G} \big(s(\hat y)_{cg} - s(y)_{cg}\big)^2, \quad
    s(y)_{cg} = \log\Big(1 + 10^4 \frac{y_{cg}}{\sum_{h \in \mathcal G} y_{ch}}\Big), \quad
    \mathcal G = \Big\{g : \sum_c x_{cg} > 0\Big\}$$

    with $x$ the training counts, $\hat y$ what was predicted from them, and $y$ the test counts of the same cells.

    Estimator
    ---------
    Mean over all cells and all genes that have a training count in some cell. Each side is normalised by its own total,
    so it does not matter whether the prediction is of training depth (nine times as deep) or was scaled to test depth.

    Bias
    ----
    The test part is a tenth of the molecules, so most of the value is its counting noise: a perfect prediction of the
    true expression is far from 0, and only differences between methods on the same split mean something. Nor is the
    true expression the best prediction: the mean of the logarithm is far below the logarithm of the mean where counts
    are few, so zeros are rewarded. For simulated cells of 400 genes the truth gets 8.67 and doing nothing 4.18 at 80
    counts per cell, 1.783 and 1.815 at 10 000. `mcv_poisson` has no such preference.

    Unit
    ----
    Squared log(1 + counts per 10 000).

    Used in
    -------
    scDiff Table 12, unscaled. The OpenProblems leaderboard shows the same score rescaled, 0 for "no denoising" and 1
    for "perfect" (see `controls`). An early version normalised to the median depth of the test cells, later ones to
    10 000, as here; the paper does not say which it used.

    Parameters
    ----------
    denoised
        (n, G) predicted expression >= 0, not its logarithm, of any depth.
    train
        (n, G) training counts, from `split_counts`; decides which genes are scored.
    test
        (n, G) test counts of the same split.

    Returns
    -------
    float
        At least 0. A cell without counts on one side has expression 0 there.

    Raises
    ------
    ScreproError
        Shapes differ, there is no cell, no gene has a training count, or values are negative or not finite.

    Examples
    --------
    Three cells, two genes. The prediction puts all of the first cell's molecules on gene 0, and there they are in the
    test part too: no error. The second cell is predicted half and half, log(5 001) = 8.5174 each, but has only gene 1,
    log(10 001) = 9.2104: errors 8.5174 and .6930, squared 72.547 and .480. The third cell is right. Over six entries:

    >>> train = np.array([[9, 0], [1, 8], [0, 9]])
    >>> test = np.array([[1, 0], [0, 1], [0, 1]])
    >>> round(mcv_mse(np.array([[9, 0], [4.5, 4.5], [0, 9]]), train=train, test=test), 3)
    12.171
    """
    total, n_entries = 0.0, 0
    for predicted, _, held_out in _rows(denoised, train, test):
        total += np.square(normalised(predicted) - normalised(held_out)).sum()
        n_entries += held_out.size
    return float(total / n_entries)


@metric(title="Molecular cross-validation, Poisson loss", family="denoising", direction="lower")
def mcv_poisson(denoised: Matrix, *, train: Matrix, test: Matrix) -> float:
    r"""Poisson loss of the held-out test counts under the denoised training counts.

    Formula
    -------
    $$\frac{1}{n\,|\mathcal G|} \sum_c \sum_{g \in \mathcal G} \hat\mu_{cg} - y_{cg} \log(\hat\mu_{cg} + 10^{-6}), \quad
    \hat\mu_{cg} = \hat y_{cg}\, \frac{\sum_{cg} y_{cg}}{\sum_{cg} x_{cg}}, \quad
    \mathcal G = \Big\{g : \sum_c x_{cg} > 0\Big\}$$

    with $x$ the training counts, $\hat y$ what was predicted from them, and $y$ the test counts of the same cells.

    Estimator
    ---------
    Mean over all cells and all genes that have a training count in some cell. One factor for all cells brings the
    prediction from training to test depth; the prediction has to be of training depth.

    Bias
    ----
    The negative logarithm of the Poisson probability up to $\log y!$, which depends on no method; so it can be
    negative. Minimal in expectation at the true expression, unlike `mcv_mse`. A prediction of 0 where a molecule was
    held out costs $\log 10^6 = 13.8$ per molecule, so methods that leave exact zeros lose much. The control "perfect"
    is *not* the best possible value here: it predicts the test counts, which are then scaled from training to test
    depth like any prediction, to a ninth of themselves.

    Unit
    ----
    Nats per entry.

    Used in
    -------
    The second score of the OpenProblems denoising task; no table of the papers. An early version had the
    two arguments the wrong way round, which later ones put right, as here.

    Parameters
    ----------
    denoised
        (n, G) predicted expression >= 0 at the depth of the training counts.
    train
        (n, G) training counts, from `split_counts`; decides the depth and which genes are scored.
    test
        (n, G) test counts of the same split.

    Returns
    -------
    float
        Any sign.

    Raises
    ------
    ScreproError
        Shapes differ, there is no cell, no gene has a training count, or values are negative or not finite.

    Examples
    --------
    Three cells, two genes; 27 training and 3 test molecules, so predictions are divided by 9. Predicting the training
    counts themselves means 1 expected molecule where 1 was held out in the first and the last cell, 1 - 1 * log 1 = 1
    each. The second cell expects 1/9 and 8/9: 1/9 for the gene that has none, 8/9 - log(8/9) = 1.0067 for the other.
    In all 3.1178, over six entries:

    >>> train = np.array([[9, 0], [1, 8], [0, 9]])
    >>> test = np.array([[1, 0], [0, 1], [0, 1]])
    >>> round(mcv_poisson(train, train=train, test=test), 4)
    0.5196
    """
    scale = test.sum() / max(train.sum(), 1)
    total, n_entries = 0.0, 0
    for predicted, _, held_out in _rows(denoised, train, test):
        mu = predicted * scale
        total += (mu - held_out * np.log(mu + 1e-6)).sum()
        n_entries += held_out.size
    return float(total / n_entries)


def controls(score: Callable[..., float], *, train: Matrix, test: Matrix) -> dict[str, float]:
    """What the two controls of OpenProblems get: a score's values between which methods are placed.

    "no denoising" hands in the training counts, "perfect" the test counts. The leaderboard shows
    (no denoising - value) / (no denoising - perfect): 0 for doing nothing, 1 for what nobody can reach.

    Parameters
    ----------
    score
        `mcv_mse` or `mcv_poisson`.
    train, test
        (n, G) the two parts of the counts.

    Returns
    -------
    Value of the score by name of the control.
    """
    return {name: score(x, train=train, test=test) for name, x in (("no denoising", train), ("perfect", test))}


def _rows(denoised: Matrix, train: Matrix, test: Matrix) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Prediction, training and test part of the genes that are scored, dense float64, some cells at a time."""
    parts = [part.tocsr() if sp.issparse(part) else np.asarray(part) for part in (denoised, train, test)]
    shapes = [part.shape for part in parts]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or not shapes[0][0]:
        raise ScreproError(
            "Prediction, training and test part are of the same cells and genes, at least one cell.",
            got="shapes " + ", ".join(map(str, shapes)),
            fix="put all three into the same order; genes without training counts are left out here, not before",
        )
    genes = np.asarray(parts[1].sum(0)).ravel() > 0
    if not genes.any():
        raise ScreproError(
            "Some gene has a training count.", got="only zeros", fix="pass the training part of split_counts"
        )
    for start in range(0, shapes[0][0], ROWS):
        rows = [part[start : start + ROWS] for part in parts]
        dense = [np.asarray(r.toarray() if sp.issparse(r) else r, dtype=np.float64)[:, genes] for r in rows]
        for name, values in zip(("Predictions", "Training counts", "Test counts"), dense, strict=True):
            if not (values.min() >= 0 and values.max() < np.inf):
                raise ScreproError(
                    f"{name} are finite numbers from 0.",
                    got=f"values from {values.min()} to {values.max()}",
                    fix="pass expression itself, not its logarithm; set small negative predictions to 0",
                )
        yield tuple(dense)
