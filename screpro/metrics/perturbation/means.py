r"""Metrics of mean expression: are the average effects right?

Notation of this family: perturbation $\lambda$ of $M$, gene $g$ of $G$; $\bar x_{\lambda g}$ and
$\hat{\bar x}_{\lambda g}$ the means over the real and the generated cells, $\bar c_g$ the mean over the real control
cells, $\Delta_{\lambda g} = \bar x_{\lambda g} - \bar c_g$ and
$\hat\Delta_{\lambda g} = \hat{\bar x}_{\lambda g} - \bar c_g$ the real and the generated effect (equations 45 to 48).
"""

import numpy as np

from screpro.metrics.catalogue import metric
from screpro.metrics.perturbation.tables import Comparison

__all__ = [
    "effect_error_norm",
    "effect_error_squared_norm",
    "mae_of_means",
    "mse_of_means",
    "pd_corr",
    "r2_of_means",
    "row_pearson",
]


def row_pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M,) Pearson correlation of the rows of `a` and `b` (M, G), over the columns where both are numbers.

    NaN where a row is constant or has fewer than two such columns.
    """
    valid = ~(np.isnan(a) | np.isnan(b))
    n = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    a, b = (np.where(valid, part, 0.0) for part in (a, b))
    a, b = (np.where(valid, part - part.sum(axis=1, keepdims=True) / n, 0.0) for part in (a, b))
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (a * b).sum(axis=1) / scale, np.nan)


def _error(pair: Comparison) -> np.ndarray:
    """(M, G) generated less real mean."""
    return pair.generated.part("mean") - pair.real.part("mean")


@metric(title="R² of mean expression", family="perturbation", direction="higher")
def r2_of_means(pair: Comparison) -> float:
    r"""Share of the variance between genes that the generated mean expression explains: one number per data set.

    Formula
    -------
    $$ R^2 = 1 - \frac{\sum_g (\bar x_g - \hat{\bar x}_g)^2}{\sum_g (\bar x_g - \tfrac1G \sum_h \bar x_h)^2} $$

    with $\bar x_g$ and $\hat{\bar x}_g$ the means over ALL real and ALL generated perturbed cells.

    Estimator
    ---------
    Plain means, so perturbations count by their numbers of cells. Control cells are left out.

    Bias
    ----
    Nearly blind to perturbations: genes differ far more in their baseline than any perturbation moves them, and to
    predict the control cells gives about .99. Do not rank methods by it.

    Unit
    ----
    None; 1 is perfect, 0 is what the same value for every gene reaches, negative is worse.

    Used in
    -------
    PerturbDiff, Table 4, column R2, from the authors' own code; not part of Cell-Eval. Equation 49 does not say over
    what the sum runs.

    Parameters
    ----------
    pair
        Real and generated means.

    Returns
    -------
    float; NaN if all genes have the same real mean.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations of one cell each. The real means of the three genes are 1, 2 and 6, the generated ones 1, 3 and
    6: squared error 1, squared distance of the real ones from their mean 3 is 4 + 1 + 9 = 14.

    >>> from screpro.metrics.perturbation import Comparison, Side, r2_of_means
    >>> real = Side(mean=[[0, 2, 6], [1, 1, 6], [2, 3, 6]])
    >>> generated = Side(mean=[[0, 3, 6], [1, 3, 6], [2, 3, 6]])
    >>> round(r2_of_means(Comparison(real=real, generated=generated)), 4)  # 1 - 1/14
    0.9286
    """
    real, generated = pair.real.part("overall"), pair.generated.part("overall")
    spread = ((real - real.mean()) ** 2).sum()
    return float(1 - ((real - generated) ** 2).sum() / spread) if spread > 0 else float("nan")


@metric(title="PDCorr: Pearson correlation of effects", family="perturbation", direction="higher")
def pd_corr(pair: Comparison) -> np.ndarray:
    r"""Correlation over genes of the generated with the real effect of a perturbation.

    Formula
    -------
    $$ \mathrm{PDCorr}_\lambda = \mathrm{Pearson}_g\big(\hat\Delta_{\lambda g}, \Delta_{\lambda g}\big), \qquad
    \Delta_{\lambda g} = \bar x_{\lambda g} - \bar c_g $$

    Estimator
    ---------
    Pearson correlation over all G genes of differences of means; both sides subtract the same real control mean.

    Bias
    ----
    Upwards where effects are weak: the sampling error of the control mean is in both effects. With different halves
    of the control cells on the two sides, weak knock-outs of one screen fell from .2 to .06. Blind to the size
    of an effect.

    Unit
    ----
    None; -1 to 1.

    Used in
    -------
    PerturbDiff, Table 4, column PDCorr (equation 51); Cell-Eval's ``pearson_delta``. Cell-Eval's mean over
    perturbations is NaN as soon as one is undefined; ours is over those that are defined, and says how many.

    Parameters
    ----------
    pair
        Real and generated means and the control mean.

    Returns
    -------
    (M,) NaN where all genes have the same effect, for instance none because controls were predicted.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes, control mean 1. The first prediction is twice the real effect (correlation 1), the
    second its mirror image (-1); the third predicts the control and has no correlation.

    >>> from screpro.metrics.perturbation import Comparison, Side, pd_corr
    >>> real = Side(mean=[[3, 1, 1], [1, 2, 1], [1, 1, 2]])
    >>> generated = Side(mean=[[5, 1, 1], [1, 0, 1], [1, 1, 1]])
    >>> pd_corr(Comparison(real=real, generated=generated, control=[1, 1, 1])).round(6).tolist()
    [1.0, -1.0, nan]
    """
    return row_pearson(pair.generated_effect, pair.effect)


@metric(title="MSE of mean expression", family="perturbation", direction="lower")
def mse_of_means(pair: Comparison) -> np.ndarray:
    r"""Mean squared difference over genes of the generated and the real mean expression of a perturbation.

    Formula
    -------
    $$ \mathrm{MSE}_\lambda = \frac1G \sum_g (\hat{\bar x}_{\lambda g} - \bar x_{\lambda g})^2 $$

    Estimator
    ---------
    Plug-in. The control mean cancels: the error of the means is that of the effects.

    Bias
    ----
    Upwards by the sampling variance of both means, about $\sigma_g^2 (1/n + 1/\hat n)$ averaged over genes; compare
    with the split-half ceiling. Grows with the scale of the data: values are log1p, not divided by 10.

    Unit
    ----
    Squared log1p expression.

    Used in
    -------
    PerturbDiff, Table 4, column MSE; Cell-Eval's ``mse``. Equation 53 prints the squared norm, without the division by
    G (``effect_error_squared_norm``), and calls it MAE.

    Parameters
    ----------
    pair
        Real and generated means.

    Returns
    -------
    (M,)

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. Errors are (0, 0, 0), (3, 0, 0) and (1, 1, 2), their mean squares 0, 9/3 and 6/3.

    >>> from screpro.metrics.perturbation import Comparison, Side, mse_of_means
    >>> real = Side(mean=[[1, 1, 1], [1, 1, 1], [1, 1, 1]])
    >>> generated = Side(mean=[[1, 1, 1], [4, 1, 1], [2, 0, 3]])
    >>> mse_of_means(Comparison(real=real, generated=generated)).tolist()
    [0.0, 3.0, 2.0]
    """
    return (_error(pair) ** 2).mean(axis=1)


@metric(title="MAE of mean expression", family="perturbation", direction="lower")
def mae_of_means(pair: Comparison) -> np.ndarray:
    r"""Mean absolute difference over genes of the generated and the real mean expression of a perturbation.

    Formula
    -------
    $$ \mathrm{MAE}_\lambda = \frac1G \sum_g \big|\hat{\bar x}_{\lambda g} - \bar x_{\lambda g}\big| $$

    Estimator
    ---------
    Plug-in. The control mean cancels.

    Bias
    ----
    Upwards by the sampling error of both means, about $.8\,\sigma_g \sqrt{1/n + 1/\hat n}$ per gene for a perfect
    model.

    Unit
    ----
    log1p expression.

    Used in
    -------
    PerturbDiff, Table 4, column MAE; Cell-Eval's ``mae``. Equation 52 prints a norm of the whole effect instead
    (``effect_error_norm``).

    Parameters
    ----------
    pair
        Real and generated means.

    Returns
    -------
    (M,)

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. Errors are (0, 0, 0), (3, 0, 0) and (1, -1, 1), their mean sizes 0, 1 and 1.

    >>> from screpro.metrics.perturbation import Comparison, Side, mae_of_means
    >>> real = Side(mean=[[1, 1, 1], [1, 1, 1], [1, 1, 1]])
    >>> generated = Side(mean=[[1, 1, 1], [4, 1, 1], [2, 0, 2]])
    >>> mae_of_means(Comparison(real=real, generated=generated)).tolist()
    [0.0, 1.0, 1.0]
    """
    return np.abs(_error(pair)).mean(axis=1)


@metric(title="MAE as printed: norm of the effect error", family="perturbation", direction="lower")
def effect_error_norm(pair: Comparison) -> np.ndarray:
    r"""Length of the difference between the generated and the real effect: what PerturbDiff prints as MAE.

    Formula
    -------
    $$ \|\hat\Delta_\lambda - \Delta_\lambda\|_2 = \sqrt{\textstyle\sum_g (\hat\Delta_{\lambda g} -
    \Delta_{\lambda g})^2} $$

    Estimator
    ---------
    Plug-in. The norm of equation 52 bears no index; it is read as the Euclidean one, as equation 53 squares the
    Euclidean norm.

    Bias
    ----
    Upwards by the sampling error of both means, and it grows with the square root of the number of genes.

    Unit
    ----
    log1p expression.

    Used in
    -------
    PerturbDiff, equation 52, under the name MAE. No number in Table 4 is computed this way: those are
    ``mae_of_means``.

    Parameters
    ----------
    pair
        Real and generated means.

    Returns
    -------
    (M,)

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. Errors are (0, 0, 0), (3, 4, 0) and (1, 2, 2), their lengths 0, 5 and 3.

    >>> from screpro.metrics.perturbation import Comparison, Side, effect_error_norm
    >>> real = Side(mean=[[1, 1, 1], [1, 1, 1], [1, 1, 1]])
    >>> generated = Side(mean=[[1, 1, 1], [4, 5, 1], [2, 3, 3]])
    >>> effect_error_norm(Comparison(real=real, generated=generated)).tolist()
    [0.0, 5.0, 3.0]
    """
    return np.sqrt(effect_error_squared_norm(pair))


@metric(title="MSE as printed: squared norm of the effect error", family="perturbation", direction="lower")
def effect_error_squared_norm(pair: Comparison) -> np.ndarray:
    r"""Sum over genes of the squared error of the effect: what PerturbDiff prints as the definition of MSE.

    Formula
    -------
    $$ \|\hat\Delta_\lambda - \Delta_\lambda\|_2^2 = \sum_g (\hat\Delta_{\lambda g} - \Delta_{\lambda g})^2 $$

    Estimator
    ---------
    Plug-in; G times ``mse_of_means``.

    Bias
    ----
    That of ``mse_of_means`` times G: not comparable between gene sets.

    Unit
    ----
    Squared log1p expression.

    Used in
    -------
    PerturbDiff, equation 53 (labelled MAE there). No number in Table 4 is computed this way: with 2 000 genes the
    1.9e-4 of PBMC would read .38.

    Parameters
    ----------
    pair
        Real and generated means.

    Returns
    -------
    (M,)

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. Errors are (0, 0, 0), (3, 4, 0) and (1, 2, 2): sums of squares 0, 25 and 9.

    >>> from screpro.metrics.perturbation import Comparison, Side, effect_error_squared_norm
    >>> real = Side(mean=[[1, 1, 1], [1, 1, 1], [1, 1, 1]])
    >>> generated = Side(mean=[[1, 1, 1], [4, 5, 1], [2, 3, 3]])
    >>> effect_error_squared_norm(Comparison(real=real, generated=generated)).tolist()
    [0.0, 25.0, 9.0]
    """
    return (_error(pair) ** 2).sum(axis=1)
