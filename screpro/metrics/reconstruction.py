r"""How well an auto-encoder gives back the counts it was given (scLDM Tables 1, 12, 14 and 16).

All of them compare the observed counts $x_{cg}$ of n cells and G genes with the model's mean for the same cells, scaled
to the observed library size of each cell,

$$\mu_{cg} = l_c\, \frac{m_{cg}}{\sum_h m_{ch}}, \qquad l_c = \sum_g x_{cg} ,$$

so it does not matter in which unit the model states its mean $m$: shares, counts per 10 000 and means per cell give the
same. Counts are taken as a dense array or a scipy sparse matrix; work is done on one batch of cells at a time.

What the paper calls PCC and MSE compares the observed counts with a *random draw* from the model, so both carry the
noise of counting twice and reach neither 1 nor 0 for the true model. The versions of the mean are given beside them.
"""

import numpy as np

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric
from screpro.metrics.count_batches import BATCH, Counts, batches, check_theta, draw, normalised

__all__ = ["mse_nb_draw", "mse_nb_mean", "pcc_nb_draw", "pcc_nb_mean", "re_nb_nll"]


@metric(title="Reconstruction error (negative-binomial likelihood)", family="reconstruction", direction="lower")
def re_nb_nll(counts: Counts, mean: np.ndarray, theta: np.ndarray) -> float:
    r"""Surprise of the model at the counts it was to reconstruct: negative log-likelihood of a cell.

    Formula
    -------
    $$\mathrm{RE} = -\frac{1}{n} \sum_c \sum_g \log \mathrm{NB}(x_{cg};\, \mu_{cg}, \theta_g), \qquad
    \mathrm{NB}(x; \mu, \theta) = \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}
    \Big(\frac{\theta}{\theta + \mu}\Big)^{\theta} \Big(\frac{\mu}{\theta + \mu}\Big)^{x}$$

    with $x$ the counts, $\mu$ the model's mean scaled to the cell's own total count, and $\theta$ the inverse
    dispersion: the variance is $\mu + \mu^2/\theta$.

    Estimator
    ---------
    Summed over the genes of the panel, mean over cells. The gamma functions are included, although they only partly
    depend on the model.

    Bias
    ----
    Unbiased for cells drawn at random. Not comparable between panels: more genes or deeper sequencing make it larger.
    The value of the true distribution, its entropy, is above 0, so only differences between models on the same cells
    mean something.

    Unit
    ----
    Nats per cell. Divide by ln 2 for bits.

    Used in
    -------
    scLDM Tables 1, 12, 14 and 16 as "RE". The authors use the observed library size, as here; their theta is called the
    inverse dispersion in the code and its reciprocal appears in the paper. The text says that scLDM has the lowest RE
    on all data sets; on Dentate Gyrus the table has scVI lower (5193.2 against 5232.9).

    Parameters
    ----------
    counts
        (n, G) observed counts, dense or sparse.
    mean
        (n, G) the model's mean >= 0 in any unit; each row is scaled to the total count of its cell.
    theta
        (G,) or (n, G) inverse dispersion > 0.

    Returns
    -------
    float
        Nats. A cell without counts adds 0. Infinite if a gene was counted where the model's mean is 0.

    Raises
    ------
    ScreproError
        Shapes differ, there is no cell or gene, counts or means are negative or not finite, a cell with counts has a
        mean of only zeros, or theta is not finite and above 0.

    Examples
    --------
    Three cells, two genes, each cell with two counts. With theta = 1 the law is geometric: the chance of x is
    1/2 * (1/2)^x at mean 1. For a model that expects (1, 1) everywhere, every cell's surprise is
    (2 + 2) log 2 = 2.7726: it does not matter here how the two counts fall.

    >>> counts = np.array([[1, 1], [2, 0], [0, 2]])
    >>> round(re_nb_nll(counts, np.ones((3, 2)), np.ones(2)), 4)
    2.7726
    """
    import torch

    from screpro.kernels.nb import nb_nll

    theta = check_theta(theta, counts.shape)
    total = 0.0
    for cells, x, mu in batches(counts, mean):
        arrays = (torch.from_numpy(a) for a in (x, mu, theta if theta.ndim == 1 else theta[cells]))
        total += float(nb_nll(*arrays).sum())
    return total / counts.shape[0]


@metric(title="Correlation of genes with a draw from the model", family="reconstruction", direction="higher")
def pcc_nb_draw(counts: Counts, mean: np.ndarray, theta: np.ndarray, *, rng: np.random.Generator) -> float:
    r"""Correlation across cells between a gene's observed expression and one random draw from the model.

    Formula
    -------
    $$\mathrm{PCC} = \frac{1}{|\mathcal B|} \sum_{b \in \mathcal B} \frac{1}{|\mathcal G_b|} \sum_{g \in \mathcal G_b}
    \operatorname{corr}_{c \in b}\big(s(x)_{cg},\, s(\tilde x)_{cg}\big), \quad
    \tilde x_{cg} \sim \mathrm{NB}(\mu_{cg}, \theta_g), \quad
    s(x)_{cg} = \log\Big(1 + 10^4 \frac{x_{cg}}{\sum_h x_{ch}}\Big)$$

    over the batches $\mathcal B$ of 128 cells; $\mathcal G_b$ are the genes for which neither side is constant within
    the batch, and $\mu$ is the model's mean scaled to the cell's own total count.

    Estimator
    ---------
    One draw per entry. Each side is normalised by its own total, a drawn cell by the total that was drawn. Pearson's
    correlation per gene within one batch of consecutive cells, mean over its genes, mean over batches. The last,
    incomplete batch is left out unless it is the only one: in a batch of five cells few genes vary, and those that do
    correlate by chance.

    Bias
    ----
    Both sides carry the noise of counting, so that not even the true model reaches 1; with sparse counts .1 to .4 is a
    ceiling of the data, not a failure of the model. The value depends on the batch size (stated above) and, through
    which genes are constant, on the number of cells; shuffle cells that are sorted by type, or correlation within the
    type is measured. Compare with `pcc_nb_mean`.

    Unit
    ----
    Correlation, -1 to 1.

    Used in
    -------
    scLDM Tables 1, 12, 14 and 16 as "PCC". That the prediction is a draw and the correlation is taken per gene within
    evaluation batches stands in the code only; genes without variance are skipped there, as here.

    Parameters
    ----------
    counts
        (n, G) observed counts, dense or sparse.
    mean
        (n, G) the model's mean >= 0 in any unit; each row is scaled to the total count of its cell.
    theta
        (G,) or (n, G) inverse dispersion > 0.
    rng
        Source of the draw.

    Returns
    -------
    float
        Between -1 and 1. Cells without counts, observed or drawn, have expression 0.

    Raises
    ------
    ScreproError
        As `re_nb_nll`; and if there is no batch in which a gene varies on both sides, for instance with one cell.

    Examples
    --------
    Three cells, two genes. With an enormous theta the law is Poisson, and means of 100 and more leave little to
    chance: the draw is almost the mean, here the counts themselves, and both genes correlate almost perfectly.

    >>> counts = np.array([[100, 900], [500, 500], [900, 100]])
    >>> rng = np.random.default_rng(0)
    >>> round(pcc_nb_draw(counts, counts, np.full(2, 1e8), rng=rng), 2)
    1.0

    A model that gives every cell the same mean has nothing to correlate with but its own noise. Three cells correlate
    with noise by any amount, here by

    >>> round(pcc_nb_draw(counts, np.ones((3, 2)), np.full(2, 1e8), rng=rng), 2)
    -0.66
    """
    theta = check_theta(theta, counts.shape)
    return _correlation(counts, mean, lambda cells, mu: draw(mu, theta if theta.ndim == 1 else theta[cells], rng))


@metric(title="Squared error of a draw from the model", family="reconstruction", direction="lower")
def mse_nb_draw(counts: Counts, mean: np.ndarray, theta: np.ndarray, *, rng: np.random.Generator) -> float:
    r"""Squared difference between observed expression and one random draw from the model.

    Formula
    -------
    $$\mathrm{MSE} = \frac{1}{n G} \sum_{c,g} \big(s(x)_{cg} - s(\tilde x)_{cg}\big)^2, \quad
    \tilde x_{cg} \sim \mathrm{NB}(\mu_{cg}, \theta_g), \quad
    s(x)_{cg} = \log\Big(1 + 10^4 \frac{x_{cg}}{\sum_h x_{ch}}\Big)$$

    with $\mu$ the model's mean scaled to the cell's own total count.

    Estimator
    ---------
    One draw per entry; each side is normalised by its own total. Mean over all entries, all cells included.

    Bias
    ----
    The draw adds its own variance: the true model gets about twice the variance of an entry around its expectation,
    and a model that draws less noise than there is gets a better value than the true one. Compare with `mse_nb_mean`.

    Unit
    ----
    Squared log(1 + counts per 10 000).

    Used in
    -------
    scLDM Tables 1, 12, 14 and 16 as "MSE"; that the prediction is a draw stands in the code only.

    Parameters
    ----------
    counts
        (n, G) observed counts, dense or sparse.
    mean
        (n, G) the model's mean >= 0 in any unit; each row is scaled to the total count of its cell.
    theta
        (G,) or (n, G) inverse dispersion > 0.
    rng
        Source of the draw.

    Returns
    -------
    float
        At least 0. Cells without counts, observed or drawn, have expression 0.

    Raises
    ------
    ScreproError
        As `re_nb_nll`.

    Examples
    --------
    Three cells, two genes, the second never expressed and known to the model as such. Whatever is drawn for the first
    gene is the whole of its cell, 10 000 per 10 000, as in the observed cells: no error.

    >>> counts = np.array([[40, 0], [50, 0], [60, 0]])
    >>> mse_nb_draw(counts, counts, np.ones(2) * 50, rng=np.random.default_rng(0))
    0.0

    A model that has the genes the wrong way round draws a cell of the other gene: both entries are off by
    log(10 001) = 9.2104, squared 84.83.

    >>> round(mse_nb_draw(counts, counts[:, ::-1], np.ones(2) * 50, rng=np.random.default_rng(0)), 2)
    84.83
    """
    theta = check_theta(theta, counts.shape)
    return _squared_error(counts, mean, lambda cells, mu: draw(mu, theta if theta.ndim == 1 else theta[cells], rng))


@metric(title="Correlation of genes with the mean of the model", family="reconstruction", direction="higher")
def pcc_nb_mean(counts: Counts, mean: np.ndarray) -> float:
    r"""Correlation across cells between a gene's observed expression and the model's mean for the cell.

    Formula
    -------
    $$\frac{1}{|\mathcal B|} \sum_{b \in \mathcal B} \frac{1}{|\mathcal G_b|} \sum_{g \in \mathcal G_b}
    \operatorname{corr}_{c \in b}\big(s(x)_{cg},\, s(m)_{cg}\big), \quad
    s(x)_{cg} = \log\Big(1 + 10^4 \frac{x_{cg}}{\sum_h x_{ch}}\Big)$$

    over the batches $\mathcal B$ of 128 cells; $\mathcal G_b$ are the genes for which neither side is constant within
    the batch, and $m$ is the model's mean.

    Estimator
    ---------
    As `pcc_nb_draw` without the draw: Pearson's correlation per gene within one batch of consecutive cells, mean over
    its genes, mean over complete batches.

    Bias
    ----
    Only the observed side carries noise, so it is higher than `pcc_nb_draw` for the same model, but below 1 for the
    true one.

    Unit
    ----
    Correlation, -1 to 1.

    Used in
    -------
    No table. Given beside `pcc_nb_draw`, which is what scLDM's PCC is, to tell the model's failure from noise.

    Parameters
    ----------
    counts
        (n, G) observed counts, dense or sparse.
    mean
        (n, G) the model's mean >= 0 in any unit.

    Returns
    -------
    float
        Between -1 and 1. A cell without counts has expression 0.

    Raises
    ------
    ScreproError
        Shapes differ, there is no cell or gene, counts or means are negative or not finite, a cell with counts has a
        mean of only zeros, or no gene varies on both sides in any batch.

    Examples
    --------
    Three cells, two genes. A model whose shares are the observed ones correlates perfectly, also if it states them per
    cell.

    >>> counts = np.array([[1, 9], [5, 5], [9, 1]])
    >>> round(pcc_nb_mean(counts, counts / 10), 6)
    1.0

    With the genes the wrong way round, the first gene is 9.11, 8.52, 6.91 in the model where the cells have 6.91, 8.52,
    9.11 (the logarithms of 1 + 1000, 5000 and 9000). The deviations from the mean 8.18 are .93, .34, -1.27 and -1.27,
    .34, .93: twice -1.27 * .93 and .34 squared, over 1.27 squared + .34 squared + .93 squared, is -2.25 / 2.59.

    >>> round(pcc_nb_mean(counts, counts[:, ::-1]), 2)
    -0.87
    """
    return _correlation(counts, mean, lambda cells, mu: mu)


@metric(title="Squared error of the mean of the model", family="reconstruction", direction="lower")
def mse_nb_mean(counts: Counts, mean: np.ndarray) -> float:
    r"""Squared difference between observed expression and the model's mean for the cell.

    Formula
    -------
    $$\frac{1}{n G} \sum_{c,g} \big(s(x)_{cg} - s(m)_{cg}\big)^2, \quad
    s(x)_{cg} = \log\Big(1 + 10^4 \frac{x_{cg}}{\sum_h x_{ch}}\Big)$$

    with $m$ the model's mean.

    Estimator
    ---------
    Mean over all entries, all cells included; each side is normalised by its own total.

    Bias
    ----
    Carries the noise of the observed counts. On top, the logarithm of a mean is above the mean of logarithms, mostly
    so for genes with few counts, so the true model is not the best one here either.

    Unit
    ----
    Squared log(1 + counts per 10 000).

    Used in
    -------
    No table. Given beside `mse_nb_draw`, which is what scLDM's MSE is, to tell the model's failure from noise.

    Parameters
    ----------
    counts
        (n, G) observed counts, dense or sparse.
    mean
        (n, G) the model's mean >= 0 in any unit.

    Returns
    -------
    float
        At least 0. A cell without counts has expression 0.

    Raises
    ------
    ScreproError
        Shapes differ, there is no cell or gene, counts or means are negative or not finite, or a cell with counts has
        a mean of only zeros.

    Examples
    --------
    Three cells, two genes. The model has two cells right and the third the wrong way round: there both entries are off
    by log(10 001) = 9.2104, squared 84.83, and the mean over six entries is a third of it.

    >>> counts = np.array([[1, 0], [2, 0], [3, 0]])
    >>> round(mse_nb_mean(counts, np.array([[1.0, 0], [1, 0], [0, 1]])), 2)
    28.28
    """
    return _squared_error(counts, mean, lambda cells, mu: mu)


def _correlation(counts: Counts, mean: np.ndarray, predict) -> float:
    values, n_cells = [], counts.shape[0]
    for cells, x, mu in batches(counts, mean):
        if len(x) < BATCH <= n_cells:
            continue
        a, b = normalised(x), normalised(predict(cells, mu))
        varies = (np.ptp(a, axis=0) > 0) & (np.ptp(b, axis=0) > 0)
        if varies.any():
            a, b = a[:, varies] - a[:, varies].mean(0), b[:, varies] - b[:, varies].mean(0)
            values.append(((a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))).mean())
    if not values:
        raise ScreproError(
            "Some gene varies across the cells of a batch, on both sides.",
            got=f"{n_cells} cells in which every gene is constant, observed or predicted",
            fix="pass at least two cells, from more than one kind",
        )
    return float(np.mean(values))


def _squared_error(counts: Counts, mean: np.ndarray, predict) -> float:
    total = 0.0
    for cells, x, mu in batches(counts, mean):
        total += np.square(normalised(x) - normalised(predict(cells, mu))).sum()
    return float(total / np.prod(counts.shape))
