r"""Is the change of expression right? The scores of scDiff's Tables 2b and 7.

$\delta = \bar x_{\text{perturbed}} - \bar x_{\text{control}}$ is the true change of the mean of every gene,
$\hat\delta = \bar x_{\text{predicted}} - \bar x_{\text{control}}$ the predicted one; both against the same control
cells. All of these look at mean profiles only: a predictor that answers every cell with the mean of the perturbed
cells is perfect, although it makes no cells.
"""

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric

__all__ = [
    "change_size_ratio",
    "delta_pearson",
    "mse_top20_de",
    "pearson",
    "r2_change_top100",
    "top_by_t_test",
    "top_by_wilcoxon",
]


def top_by_wilcoxon(perturbed, control, n_top: int = 100) -> np.ndarray:
    """The `n_top` genes with the largest signed Wilcoxon score of perturbed against control cells.

    The order of scanpy's ``rank_genes_groups(method="wilcoxon")`` without tie correction: its score is then an
    increasing function of the Mann-Whitney U, the same one for every gene. Genes that fall are never at the top.
    Equal scores go by the order of the genes.

    Parameters
    ----------
    perturbed, control
        (n, G) and (m, G) log-normalised cells, dense or CSR.

    Returns
    -------
    (min(n_top, G),) gene indices, best first.

    Raises
    ------
    ScreproError
        No cells on a side, other numbers of genes, or values that are not finite.
    """
    from screpro.kernels.ranksum import rank_sum

    perturbed, control = _checked(perturbed=perturbed, control=control)
    both = sp.vstack([perturbed, control], format="csr")
    codes = np.repeat([0, 1], [perturbed.shape[0], control.shape[0]])
    u = rank_sum(both, codes, n_groups=2, reference=1).u[0]
    return np.argsort(-u, kind="stable")[:n_top]


def top_by_t_test(perturbed, control, n_top: int = 20) -> np.ndarray:
    """The `n_top` genes with the largest absolute Welch t of perturbed against control cells, as GEARS ranks them.

    Parameters and return value as `top_by_wilcoxon`. A gene without variance on both sides has t = 0, as in scanpy.

    Raises
    ------
    ScreproError
        Also if either side has a single cell, which has no variance.
    """
    perturbed, control = _checked(perturbed=perturbed, control=control)
    sides = []
    for name, cells in (("perturbed", perturbed), ("control", control)):
        if cells.shape[0] < 2:
            raise ScreproError(
                "A t-test needs at least two cells on each side.", got=f"one {name} cell", fix="pass more cells"
            )
        mean = _mean(cells)
        square = np.asarray(cells.multiply(cells).mean(axis=0)).ravel()
        n = cells.shape[0]
        sides.append((mean, np.maximum(square - mean**2, 0) * n / (n - 1) / n))
    (mean_1, error_1), (mean_0, error_0) = sides
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean_1 - mean_0) / np.sqrt(error_1 + error_0)
    return np.argsort(-np.abs(np.nan_to_num(t, posinf=0, neginf=0)), kind="stable")[:n_top]


@metric(title="R² of the change on the top 100 genes", family="change", direction="higher")
def r2_change_top100(predicted, perturbed, control) -> float:
    r"""Squared correlation of predicted and true change on the 100 genes that rise most.

    Formula
    -------
    $$ R^2 = \mathrm{cor}\big(\hat\delta_g, \delta_g\big)^2, \qquad g \in \text{100 genes with the largest signed
    Wilcoxon score of perturbed against control cells} $$

    Estimator
    ---------
    Means over all cells of each side; the squared Pearson correlation, as of a regression line.

    Bias
    ----
    Blind to size and sign: a change that is right up to a factor, even a negative one, scores 1. Read it beside
    `change_size_ratio`. Strongly falling genes are never among the 100.

    Unit
    ----
    None; 0 to 1.

    Used in
    -------
    scDiff, Table 2b (and scGen, whose code it is). The paper says "R² of change" and 100 DE genes; the code squares the
    r value of a regression and takes the genes by signed score. Control: the control cells the model was given.

    Parameters
    ----------
    predicted, perturbed, control
        (k, G), (n, G) and (m, G) log-normalised cells, dense or CSR.

    Returns
    -------
    float
        NaN if either change is the same for all chosen genes.

    Raises
    ------
    ScreproError
        No cells on a side, other numbers of genes, or values that are not finite.

    Examples
    --------
    Three cells a side and three genes, so all of them count. The means are (0, 1, 1) in the control and (1, 3, 4) in
    the perturbed cells: the true change is (1, 2, 3). The means of the first prediction are (.5, 2, 2.5), its change
    (.5, 1, 1.5) is half of the true one: the correlation is 1. The means of the second are (2, 3, 1), its change of
    (2, 2, 0) has correlation -.866, squared .75.

    >>> from screpro.metrics.change import r2_change_top100
    >>> control = [[0, 0, 0], [0, 1, 1], [0, 2, 2]]
    >>> perturbed = [[0, 2, 3], [1, 3, 4], [2, 4, 5]]
    >>> round(r2_change_top100([[0, 1, 2], [.5, 2, 2.5], [1, 3, 3]], perturbed, control), 3)
    1.0
    >>> round(r2_change_top100([[1, 2, 0], [2, 3, 1], [3, 4, 2]], perturbed, control), 3)
    0.75
    """
    genes = top_by_wilcoxon(perturbed, control)
    guess, truth = _changes(predicted, perturbed, control)
    return pearson(guess[genes], truth[genes]) ** 2


@metric(title="Size of the predicted change", family="change", direction="closer to 1")
def change_size_ratio(predicted, perturbed, control) -> float:
    r"""How large the predicted change is, as a share of the true one, on the 100 genes that rise most.

    Formula
    -------
    $$ \frac{\sum_g \hat\delta_g \delta_g}{\sum_g \delta_g^2}, \qquad g \text{ as in } R^2 \text{ of the change} $$

    Estimator
    ---------
    Slope of a line through the origin, of predicted on true change.

    Bias
    ----
    The true change is estimated from finitely many cells, which makes the denominator too large and the ratio slightly
    too small.

    Unit
    ----
    None. 1: the right size; 0: no change; negative: the wrong direction.

    Used in
    -------
    No paper; stands here because R² is blind to it: scDiff predicts half to two thirds of the change on Kang's cells.

    Parameters
    ----------
    predicted, perturbed, control
        As in `r2_change_top100`.

    Returns
    -------
    float
        NaN if nothing changes.

    Raises
    ------
    ScreproError
        No cells on a side, other numbers of genes, or values that are not finite.

    Examples
    --------
    Three cells a side and three genes. The means are (0, 1, 1) in the control, (1, 3, 4) in the perturbed and
    (.5, 2, 2.5) in the predicted cells. The true change is (1, 2, 3), the predicted one half of it, (.5, 1, 1.5):
    (.5 + 2 + 4.5) / (1 + 4 + 9) = .5, where R² says 1.

    >>> from screpro.metrics.change import change_size_ratio
    >>> control = [[0, 0, 0], [0, 1, 1], [0, 2, 2]]
    >>> perturbed = [[0, 2, 3], [1, 3, 4], [2, 4, 5]]
    >>> round(change_size_ratio([[0, 1, 2], [.5, 2, 2.5], [1, 3, 3]], perturbed, control), 3)
    0.5
    """
    genes = top_by_wilcoxon(perturbed, control)
    guess, truth = (change[genes] for change in _changes(predicted, perturbed, control))
    return float(guess @ truth / (truth @ truth)) if truth.any() else float("nan")


@metric(title="Delta Pearson", family="change", direction="higher")
def delta_pearson(predicted, perturbed, control) -> float:
    r"""Correlation of predicted and true change over all genes.

    Formula
    -------
    $$ \mathrm{cor}_g\big(\hat\delta_g, \delta_g\big) $$

    Estimator
    ---------
    Means over all cells of each side, Pearson correlation over all genes, one value per perturbation.

    Bias
    ----
    The same control cells on both sides correlate the changes: with few control cells even a prediction of the
    perturbed mean of another gene scores above 0.

    Unit
    ----
    None; -1 to 1.

    Used in
    -------
    scDiff, Table 7 and Figure 3, averaged over the test perturbations (GEARS' code). PerturbDiff's PDCorr is the same
    sum with Cell-Eval's inputs (``pd_corr``).

    Parameters
    ----------
    predicted, perturbed, control
        As in `r2_change_top100`.

    Returns
    -------
    float
        NaN if either change is the same for all genes.

    Raises
    ------
    ScreproError
        No cells on a side, other numbers of genes, or values that are not finite.

    Examples
    --------
    Three cells a side and three genes. The means are (0, 1, 1) in the control, (1, 3, 4) in the perturbed and
    (3, 3, 2) in the predicted cells. The true change is (1, 2, 3), the predicted one (3, 2, 1): exactly the wrong way
    round.

    >>> from screpro.metrics.change import delta_pearson
    >>> control = [[0, 0, 0], [0, 1, 1], [0, 2, 2]]
    >>> perturbed = [[0, 2, 3], [1, 3, 4], [2, 4, 5]]
    >>> round(delta_pearson([[2, 2, 1], [3, 3, 2], [4, 4, 3]], perturbed, control), 3)
    -1.0
    """
    return pearson(*_changes(predicted, perturbed, control))


@metric(title="MSE of the top 20 DE genes", family="change", direction="lower")
def mse_top20_de(predicted, perturbed, control) -> float:
    r"""Squared error of the predicted mean on the 20 genes that change most clearly.

    Formula
    -------
    $$ \frac{1}{20} \sum_{g \in \text{top 20}} \big(\bar x_{\text{predicted},g} - \bar x_{\text{perturbed},g}\big)^2 $$

    Estimator
    ---------
    Means over all cells of each side. The genes are those with the largest absolute Welch t of perturbed against
    control cells.

    Bias
    ----
    Control cells cancel, but which genes are judged depends on them. The noise of both means adds to it.

    Unit
    ----
    Squared log-expression.

    Used in
    -------
    scDiff, Table 7 and Figure 3, averaged over the test perturbations (GEARS' code, which also logs the same without
    genes that drop out).

    Parameters
    ----------
    predicted, perturbed, control
        As in `r2_change_top100`; at least two perturbed and two control cells.

    Returns
    -------
    float

    Raises
    ------
    ScreproError
        A single perturbed or control cell, no cells on a side, other numbers of genes, or values that are not finite.

    Examples
    --------
    Three genes, so all of them count. The means of the perturbed cells are (1, 2, 3), of the predicted (1, 2, 6):
    (0 + 0 + 9) / 3.

    >>> from screpro.metrics.change import mse_top20_de
    >>> mse_top20_de([[1, 2, 6]], [[0, 2, 3], [2, 2, 3]], [[0, 0, 0], [0, 1, 0]])
    3.0
    """
    genes = top_by_t_test(perturbed, control)
    predicted, perturbed = _checked(predicted=predicted, perturbed=perturbed)
    return float(np.square(_mean(predicted)[genes] - _mean(perturbed)[genes]).mean())


def _checked(**sides) -> list[sp.csr_matrix]:
    """Finite CSR float64 matrices with the same genes and at least one cell each."""
    done = {
        name: sp.csr_matrix(np.atleast_2d(x) if not sp.issparse(x) else x, dtype=np.float64)
        for name, x in sides.items()
    }
    shapes = {name: x.shape for name, x in done.items()}
    if len({shape[1] for shape in shapes.values()}) > 1 or any(min(shape) < 1 for shape in shapes.values()):
        raise ScreproError(
            "Predicted, perturbed and control cells have the same genes, and at least one cell each.",
            got=", ".join(f"{name} {shape[0]} x {shape[1]}" for name, shape in shapes.items()),
            fix="bring them to the same genes in the same order",
        )
    for name, x in done.items():
        if not np.isfinite(x.data).all():
            raise ScreproError(
                "Expression values are finite numbers.",
                got=f"NaN or infinite values in the {name} cells",
                fix="find the step that made them",
            )
    return list(done.values())


def _mean(x: sp.csr_matrix) -> np.ndarray:
    return np.asarray(x.mean(axis=0)).ravel()


def _changes(predicted, perturbed, control) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true change (G,)."""
    predicted, perturbed, control = _checked(predicted=predicted, perturbed=perturbed, control=control)
    base = _mean(control)
    return _mean(predicted) - base, _mean(perturbed) - base


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two vectors; NaN where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip(a @ b / size, -1, 1)) if size > 0 else float("nan")
