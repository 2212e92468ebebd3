"""Are hidden values put back? The scores of scDiff's Table 2a, on the entries that were hidden on purpose."""

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric
from screpro.metrics.change import pearson

__all__ = ["imputation_pearson_per_cell", "imputation_pearson_pooled"]


@metric(title="Imputation Pearson, pooled", family="denoising", direction="higher")
def imputation_pearson_pooled(true, imputed, hidden) -> float:
    r"""Correlation of imputed and true values over all hidden entries of all cells together.

    Formula
    -------
    $$ \mathrm{cor}_{(i, g) \in H}\big(\hat x_{ig}, x_{ig}\big), \qquad H \text{ the hidden entries} $$

    Estimator
    ---------
    One Pearson correlation over all hidden entries.

    Bias
    ----
    Genes differ more than cells: the mean of each gene already correlates well (about .6 on sparse counts). Compare
    with the gene mean, not with 0.

    Unit
    ----
    None; -1 to 1.

    Used in
    -------
    scDiff, Tables 2a and 9: their code logs this and the one per cell; only this one fits the printed values.

    Parameters
    ----------
    true, imputed
        (n, G) log-normalised values, dense or sparse.
    hidden
        (n, G) bool, dense or sparse: the entries that were hidden.

    Returns
    -------
    float
        NaN if either side is constant.

    Raises
    ------
    ScreproError
        Other shapes on either side, no hidden entry, or hidden entries that are not finite.

    Examples
    --------
    Three cells, two genes; hidden are the first gene of the first two cells and the second gene of the third. True
    values there 1, 2, 3, imputed 1, 2, 2: correlation .866.

    >>> from screpro.metrics.imputation import imputation_pearson_pooled
    >>> true, imputed = [[1, 9], [2, 9], [9, 3]], [[1, 0], [2, 0], [0, 2]]
    >>> hidden = [[True, False], [True, False], [False, True]]
    >>> round(imputation_pearson_pooled(true, imputed, hidden), 3)
    0.866
    """
    _, guess, truth = _hidden(true, imputed, hidden)
    return pearson(guess, truth)


@metric(title="Imputation Pearson, per cell", family="denoising", direction="higher")
def imputation_pearson_per_cell(true, imputed, hidden) -> float:
    r"""Correlation of imputed and true values over the hidden entries of one cell, averaged over cells.

    Formula
    -------
    $$ \frac{1}{|C|} \sum_{i \in C} \mathrm{cor}_{g \in H_i}\big(\hat x_{ig}, x_{ig}\big), \qquad
    C \text{ the cells where it is defined} $$

    Estimator
    ---------
    Unweighted mean over cells; cells with fewer than two hidden entries, or without variation among them, are left
    out.

    Bias
    ----
    Correlations of a handful of entries are noisy, and a cell with two hidden entries counts as much as one with a
    hundred.

    Unit
    ----
    None; -1 to 1.

    Used in
    -------
    Logged by scDiff's code beside the pooled one; in no table.

    Parameters
    ----------
    true, imputed, hidden
        As in `imputation_pearson_pooled`.

    Returns
    -------
    float
        NaN if it is defined for no cell.

    Raises
    ------
    ScreproError
        Other shapes on either side, no hidden entry, or hidden entries that are not finite.

    Examples
    --------
    Three cells with both genes hidden. The first is imputed in the right order (1), the second in the wrong one (-1),
    the third is constant and left out: the mean is 0.

    >>> from screpro.metrics.imputation import imputation_pearson_per_cell
    >>> true, imputed = [[1, 2], [1, 2], [5, 5]], [[1, 3], [2, 1], [1, 2]]
    >>> imputation_pearson_per_cell(true, imputed, [[True, True]] * 3)
    0.0
    """
    cell, guess, truth = _hidden(true, imputed, hidden)
    n = np.bincount(cell)
    with np.errstate(divide="ignore", invalid="ignore"):
        guess = guess - (np.bincount(cell, guess) / n)[cell]
        truth = truth - (np.bincount(cell, truth) / n)[cell]
        squares = np.bincount(cell, guess**2) * np.bincount(cell, truth**2)
        each = np.bincount(cell, guess * truth) / np.sqrt(squares)
    # rounding leaves a trace of variation in constant cells
    defined = (n >= 2) & (np.sqrt(squares) > 1e-12 * np.maximum(1, n))
    return float(each[defined].mean()) if defined.any() else float("nan")


def _hidden(true, imputed, hidden) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell, imputed and true value of every hidden entry."""
    shapes = [np.shape(part) for part in (true, imputed, hidden)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ScreproError(
            "True values, imputed values and the hidden entries are matrices of one shape.",
            got=", ".join(map(str, shapes)),
            fix="pass cells x genes for all three",
        )
    cell, gene = sp.coo_matrix(hidden).nonzero()
    if not len(cell):
        raise ScreproError("Imputation is judged on hidden entries.", got="none", fix="hide some entries")
    values = []
    for name, matrix in (("imputed", imputed), ("true", true)):
        found = matrix.tocsr()[cell, gene] if sp.issparse(matrix) else np.asarray(matrix, np.float64)[cell, gene]
        values.append(np.asarray(found, np.float64).ravel())
        if not np.isfinite(values[-1]).all():
            raise ScreproError(
                "Hidden entries have finite values on both sides.",
                got=f"NaN or infinite {name} values",
                fix="impute every hidden entry",
            )
    return cell, *values
