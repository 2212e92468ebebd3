"""Per-gene agreement of real and generated cells: mean, variance and share of zeros of every gene by itself.

These look at one gene at a time. Shuffling every gene over the cells leaves them all at their best value, although no
cell is left: read them beside a distance between whole cells.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric

__all__ = [
    "GeneStatistics",
    "gene_mean_pearson",
    "gene_statistics",
    "gene_variance_log2_ratio",
    "gene_variance_pearson",
    "gene_zero_fraction_gap",
    "gene_zero_fraction_pearson",
]


class GeneStatistics(NamedTuple):
    """Statistics of every gene, (G,) float64 each."""

    mean: np.ndarray
    variance: np.ndarray  # n - 1 in the denominator; NaN for one cell
    zero_fraction: np.ndarray  # share of cells in which the gene is exactly 0


def gene_statistics(x: "np.ndarray | sp.spmatrix | GeneStatistics") -> GeneStatistics:
    """Mean, variance and share of zeros of every gene; the metrics take the result in place of the cells.

    Parameters
    ----------
    x
        (n, G) cells, dense or sparse; or the statistics themselves, which come back as they are.

    Raises
    ------
    ScreproError
        No cells, no genes, or values that are not finite.
    """
    if isinstance(x, GeneStatistics):
        return x
    x = sp.csr_matrix(x)  # dense cells as well: they are mostly zeros
    n, g = x.shape
    if n == 0 or g == 0:
        raise ScreproError(
            "Per-gene agreement needs at least one cell and one gene.",
            got=f"{n} cells x {g} genes",
            fix="pass cells x genes",
        )
    if not np.isfinite(x.data).all():
        raise ScreproError(
            "Per-gene agreement needs finite values.",
            got=f"{int((~np.isfinite(x.data)).sum())} values that are NaN or infinite",
            fix="find out where they come from; do not fill them with zeros",
        )
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    values = x.data.astype(np.float64)
    mean = np.bincount(x.indices, weights=values, minlength=g) / n
    stored = np.bincount(x.indices, minlength=g)
    # centred squares of the stored values, then those of the zeros: no difference of large squares
    centred = np.bincount(x.indices, weights=(values - mean[x.indices]) ** 2, minlength=g) + (n - stored) * mean**2
    centred[centred <= n * (1e-12 * mean) ** 2] = 0  # equal values differ from their mean by rounding
    variance = centred / (n - 1) if n > 1 else np.full(g, np.nan)
    expressed = np.bincount(x.indices, weights=values != 0, minlength=g)
    return GeneStatistics(mean, variance, 1 - expressed / n)


@metric(title="Gene means, correlation", family="distribution", direction="higher")
def gene_mean_pearson(real: np.ndarray, generated: np.ndarray) -> float:
    r"""Whether genes that are high on average in real cells are high in generated ones.

    Formula
    -------
    $$r = \operatorname{corr}_g(\mu_g, \hat\mu_g)$$

    the Pearson correlation over genes of the mean $\mu_g$ of gene $g$ over real cells and its mean $\hat\mu_g$ over
    generated ones.

    Estimator
    ---------
    Means of the values as given (log-normalised expression in the reports), every gene with the same weight.

    Bias
    ----
    Towards 0 by the noise of the means, which is little with hundreds of cells. A few highly expressed genes make most
    of the correlation, so it is close to 1 for almost any model, and blind to a common factor.

    Unit
    ----
    Correlation, -1 to 1.

    Used in
    -------
    None of the three papers; beside `gene_variance_pearson` it separates a wrong mean from a wrong spread.

    Parameters
    ----------
    real, generated
        (n, G) and (m, G) cells, dense or sparse, or their `gene_statistics`.

    Returns
    -------
    float
        -1 to 1; NaN where all genes have the same mean on either side.

    Raises
    ------
    ScreproError
        No cells, other numbers of genes, or values that are not finite.

    Examples
    --------
    Three cells and three genes each. The means are 1, 2 and 3 in the real cells and 1, 3 and 2 in the generated ones;
    deviations from 2 are (-1, 0, 1) and (-1, 1, 0), so r = 1 / √(2 · 2).

    >>> real = np.array([[0, 1, 3], [1, 2, 3], [2, 3, 3]])
    >>> generated = np.array([[1, 3, 0], [1, 3, 2], [1, 3, 4]])
    >>> round(gene_mean_pearson(real, generated), 4)
    0.5
    """
    a, b = _both(real, generated)
    return _pearson(a.mean, b.mean)


@metric(title="Gene variances, correlation", family="distribution", direction="higher")
def gene_variance_pearson(real: np.ndarray, generated: np.ndarray) -> float:
    r"""Whether genes that vary much between real cells vary much between generated ones.

    Formula
    -------
    $$r = \operatorname{corr}_g(s_g^2, \hat s_g^2), \qquad s_g^2 = \frac{1}{n - 1} \sum_i (x_{ig} - \mu_g)^2$$

    the Pearson correlation over genes of the variances $s_g^2$ over real and $\hat s_g^2$ over generated cells.

    Estimator
    ---------
    Unbiased variances of the values as given, every gene with the same weight.

    Bias
    ----
    Towards 0 by the noise of the variances. The few most variable genes decide, and a common factor goes unnoticed: a
    model with a tenth of the true variance in every gene scores 1. `gene_variance_log2_ratio` notices.

    Unit
    ----
    Correlation, -1 to 1.

    Used in
    -------
    scLDM Figures 5 to 7 plot these variances against each other and give no number; this is one.

    Parameters
    ----------
    real, generated
        (n, G) and (m, G) cells, dense or sparse, at least two each; or their `gene_statistics`.

    Returns
    -------
    float
        -1 to 1; NaN where all genes have the same variance on either side, for instance none.

    Raises
    ------
    ScreproError
        Fewer than two cells, other numbers of genes, or values that are not finite.

    Examples
    --------
    Three cells and three genes each. The variances are 1, 4 and 0 in the real cells and 0, 4 and 1 in the generated
    ones; deviations from 5/3 are (-2, 7, -5)/3 and (-5, 7, -2)/3, so r = (10 + 49 + 10) / (4 + 49 + 25).

    >>> real = np.array([[0, 1, 3], [1, 3, 3], [2, 5, 3]])
    >>> generated = np.array([[1, 1, 2], [1, 3, 3], [1, 5, 4]])
    >>> round(gene_variance_pearson(real, generated), 4)
    0.8846
    """
    a, b = _both(real, generated, cells=2)
    return _pearson(a.variance, b.variance)


@metric(title="Gene variances, log2 ratio", family="distribution", direction="lower")
def gene_variance_log2_ratio(real: np.ndarray, generated: np.ndarray) -> float:
    r"""By how many doublings the variance of a typical gene is off, in either direction.

    Formula
    -------
    $$\operatorname{median}_{g :\, s_g^2 > 0} \left| \log_2 \frac{\hat s_g^2}{s_g^2} \right|$$

    with the variances $s_g^2$ of gene $g$ over real and $\hat s_g^2$ over generated cells, n - 1 in the denominator.

    Estimator
    ---------
    The median over the genes that vary in the real cells; half of them are further off. A generated variance of 0 is
    infinitely far off.

    Bias
    ----
    Upwards: two halves of the real cells differ by the noise of their variances as well, most in rare genes. Compare
    with the ceiling at the same number of cells.

    Unit
    ----
    Doublings (log2 of a ratio of variances), 0 or more: 1 means twice or half the variance.

    Used in
    -------
    scLDM Figures 5 to 7 in a number: they show variances close to the true ones for scLDM and far below them for
    scDiffusion, which `gene_variance_pearson` may not see.

    Parameters
    ----------
    real, generated
        (n, G) and (m, G) cells, dense or sparse, at least two each; or their `gene_statistics`.

    Returns
    -------
    float
        0 or more; infinite where half of the genes do not vary in the generated cells, NaN where no gene varies in the
        real ones.

    Raises
    ------
    ScreproError
        Fewer than two cells, other numbers of genes, or values that are not finite.

    Examples
    --------
    Three cells and three genes each. The variances are 1, 4 and 0 in the real cells and 1, 1 and 9 in the generated
    ones. The third gene does not count; the others are off by 0 and 2 doublings, of which the median is 1.

    >>> real = np.array([[0, 1, 3], [1, 3, 3], [2, 5, 3]])
    >>> generated = np.array([[0, 2, 0], [1, 3, 3], [2, 4, 6]])
    >>> gene_variance_log2_ratio(real, generated)
    1.0
    """
    a, b = _both(real, generated, cells=2)
    varies = a.variance > 0
    if not varies.any():
        return float("nan")
    with np.errstate(divide="ignore"):
        return float(np.median(np.abs(np.log2(b.variance[varies] / a.variance[varies]))))


@metric(title="Shares of zeros, correlation", family="distribution", direction="higher")
def gene_zero_fraction_pearson(real: np.ndarray, generated: np.ndarray) -> float:
    r"""Whether genes that few real cells express are expressed by few generated cells.

    Formula
    -------
    $$r = \operatorname{corr}_g(z_g, \hat z_g), \qquad z_g = \frac{1}{n} \sum_i \mathbb 1[x_{ig} = 0]$$

    the Pearson correlation over genes of the shares of zeros $z_g$ among real and $\hat z_g$ among generated cells.

    Estimator
    ---------
    Values that are exactly 0; no threshold. A model that outputs small positive numbers has no zeros.

    Bias
    ----
    Towards 0 by the noise of the shares, which is at most $1 / (2 \sqrt n)$ each. A constant shift of all shares goes
    unnoticed; `gene_zero_fraction_gap` sees it.

    Unit
    ----
    Correlation, -1 to 1.

    Used in
    -------
    None of the three papers. It tells models of counts from models of continuous values.

    Parameters
    ----------
    real, generated
        (n, G) and (m, G) cells, dense or sparse, or their `gene_statistics`.

    Returns
    -------
    float
        -1 to 1; NaN where all genes have the same share of zeros on either side, for instance none.

    Raises
    ------
    ScreproError
        No cells, other numbers of genes, or values that are not finite.

    Examples
    --------
    Three cells and three genes each, with 0, 1 and 2 zeros of three in the real cells and 1, 2 and 3 in the generated
    ones: a constant shift, so r is 1.

    >>> real = np.array([[1, 0, 0], [1, 2, 0], [1, 2, 3]])
    >>> generated = np.array([[0, 0, 0], [1, 0, 0], [1, 2, 0]])
    >>> round(gene_zero_fraction_pearson(real, generated), 4)
    1.0
    """
    a, b = _both(real, generated)
    return _pearson(a.zero_fraction, b.zero_fraction)


@metric(title="Shares of zeros, mean gap", family="distribution", direction="lower")
def gene_zero_fraction_gap(real: np.ndarray, generated: np.ndarray) -> float:
    r"""How much the share of cells without a gene differs, on average over genes.

    Formula
    -------
    $$\frac{1}{G} \sum_g |z_g - \hat z_g|, \qquad z_g = \frac{1}{n} \sum_i \mathbb 1[x_{ig} = 0]$$

    with the shares of zeros $z_g$ of gene $g$ among real and $\hat z_g$ among generated cells.

    Estimator
    ---------
    Values that are exactly 0; no threshold. All genes count, also those that nobody expresses.

    Bias
    ----
    Upwards: shares of n and m cells differ by chance, by about
    $\sqrt{2 z_g (1 - z_g) (1/n + 1/m) / \pi}$ for one gene. With 1000 cells each that is at most 0.02.

    Unit
    ----
    Share of cells, 0 to 1.

    Used in
    -------
    None of the three papers. A model whose samples are close to conditional means has far too few zeros, which scDiff's
    R² of change does not see.

    Parameters
    ----------
    real, generated
        (n, G) and (m, G) cells, dense or sparse, or their `gene_statistics`.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ScreproError
        No cells, other numbers of genes, or values that are not finite.

    Examples
    --------
    Three cells and three genes each, with 0, 1 and 2 zeros of three in the real cells and 1, 2 and 3 in the generated
    ones: every gene is off by a third.

    >>> real = np.array([[1, 0, 0], [1, 2, 0], [1, 2, 3]])
    >>> generated = np.array([[0, 0, 0], [1, 0, 0], [1, 2, 0]])
    >>> round(gene_zero_fraction_gap(real, generated), 4)
    0.3333
    """
    a, b = _both(real, generated)
    return float(np.abs(a.zero_fraction - b.zero_fraction).mean())


def _both(real, generated, cells: int = 1) -> tuple[GeneStatistics, GeneStatistics]:
    a, b = gene_statistics(real), gene_statistics(generated)
    if len(a.mean) != len(b.mean):
        raise ScreproError(
            "Real and generated cells have the same genes, in the same order.",
            got=f"{len(a.mean)} genes of real and {len(b.mean)} of generated cells",
            fix="subset both to their common genes and say so beside the scores",
        )
    if cells > 1 and (np.isnan(a.variance).any() or np.isnan(b.variance).any()):
        raise ScreproError("A variance needs at least two cells.", got="one cell", fix="leave out classes of one cell")
    return a, b


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
