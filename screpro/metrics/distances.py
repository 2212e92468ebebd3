"""Distances between the distributions of real and generated cells that need no model of either: energy and MMD.

Both compare distances between the two sets with distances within each. They are 0 in the limit of many cells only if
the two distributions are equal, which no statistic of means and covariances can say. The sums over all pairs are
taken by ``screpro.kernels.energy`` and ``screpro.kernels.mmd``, in memory for the cells alone.
"""

import numpy as np

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric

__all__ = [
    "SIGMAS",
    "energy_distance_half",
    "energy_distance_u",
    "energy_distance_v",
    "median_distance",
    "mmd2_rbf_median",
    "mmd2_rbf_sum5",
]

SIGMAS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Widths of the five kernels behind the MMD of scLDM's tables, in the unit of the points."""

POOLED = 2000
"""Points that the median of distances is taken over, at most."""


def _points(real: np.ndarray, generated: np.ndarray, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    from screpro.kernels.tiles import placed, points

    given = real, generated
    real, generated = points("real", real), points("generated", generated)
    if real.shape[1] != generated.shape[1]:
        raise ScreproError(
            "Real and generated cells have the same dimensions.",
            got=f"{real.shape[1]} and {generated.shape[1]}",
            fix="project both onto the same components, or subset both to the same genes",
        )
    if min(len(real), len(generated)) < least:
        raise ScreproError(
            f"This estimator takes at least {least} real and {least} generated cells.",
            got=f"{len(real)} real, {len(generated)} generated",
            fix="score larger groups, or take the V-statistic",
        )
    return placed(given, real, generated)


@metric(title="Energy distance, V-statistic", family="distribution", direction="lower")
def energy_distance_v(real: np.ndarray, generated: np.ndarray) -> float:
    r"""How much farther real and generated cells are from each other than among themselves.

    Formula
    -------
    $$D_V = \frac{2}{nm} \sum_{i,j} |x_i - y_j| - \frac{1}{n^2} \sum_{i,i'} |x_i - x_{i'}|
      - \frac{1}{m^2} \sum_{j,j'} |y_j - y_{j'}|$$

    over real cells $x_1 \dots x_n$ and generated cells $y_1 \dots y_m$, with $|\cdot|$ the Euclidean distance. It is
    not a square root.

    Estimator
    ---------
    V-statistic: the last two means run over all pairs, a cell with itself (distance 0) included. It is the energy
    distance of the two samples taken as distributions, hence never negative, and 0 if and only if the samples are
    equal. Up to about 4 million pairs times dimensions all distances are float64; beyond, they are float32 of centred
    points with float64 sums, which leaves about 1e-6 of the value; what falls below 0 by rounding is cut off.

    Bias
    ----
    Upwards: for two samples of one distribution it is $(1/n + 1/m)\, E|x - x'|$ on average and not 0. Compare values of
    equal numbers of cells only; `energy_distance_u` has no bias.

    Unit
    ----
    That of the points: a distance between cells. It depends on how expression was scaled and on the components.

    Used in
    -------
    None of the papers' tables. PerturbDiff prints it as its distribution loss (eq. 32, there called MMD); the authors'
    code trains with half of it, `energy_distance_half`. It has no bandwidth to choose, so we report it beside the MMD.

    Parameters
    ----------
    real, generated
        (n, d) and (m, d) points: coordinates of cells on components fitted to real cells, or expression.

    Returns
    -------
    float
        0 or more.

    Raises
    ------
    ScreproError
        No cells on a side, other dimensions, or values that are not finite.

    Examples
    --------
    Real cells at 0, 1 and 2, generated ones at 1, 2 and 3. The nine distances between them sum to 6 + 3 + 2 = 11, those
    within each set to 8: 2 · 11/9 - 8/9 - 8/9 = 6/9.

    >>> round(energy_distance_v(np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [2.0], [3.0]])), 6)
    0.666667
    """
    between, of_real, of_generated = _mean_distances(*_points(real, generated))
    return max(0.0, 2 * between - of_real - of_generated)


@metric(title="Energy distance, U-statistic", family="distribution", direction="lower")
def energy_distance_u(real: np.ndarray, generated: np.ndarray) -> float:
    r"""The energy distance without its bias: 0 on average for cells of one distribution, however few there are.

    Formula
    -------
    $$D_U = \frac{2}{nm} \sum_{i,j} |x_i - y_j| - \frac{1}{n(n-1)} \sum_{i \ne i'} |x_i - x_{i'}|
      - \frac{1}{m(m-1)} \sum_{j \ne j'} |y_j - y_{j'}|$$

    over real cells $x_1 \dots x_n$ and generated cells $y_1 \dots y_m$.

    Estimator
    ---------
    U-statistic: the last two means leave out the pairs of a cell with itself. Distances as in `energy_distance_v`.

    Bias
    ----
    None. The price is that the value can be negative: read a negative one as "closer than two samples of this size
    usually are". Its spread still falls with the number of cells.

    Unit
    ----
    That of the points: a distance between cells.

    Used in
    -------
    None of the papers. It is what we use where groups of different sizes stand side by side, as in means over classes.

    Parameters
    ----------
    real, generated
        (n, d) and (m, d) points, at least two of each.

    Returns
    -------
    float
        Of either sign.

    Raises
    ------
    ScreproError
        Fewer than two cells on a side, other dimensions, or values that are not finite.

    Examples
    --------
    Real cells at 0, 1 and 2, generated ones at 1, 2 and 3. The nine distances between them sum to 11, the six within
    each set, a cell with itself left out, to 8: 2 · 11/9 - 8/6 - 8/6 = -2/9, so three cells are too few to see the
    shift.

    >>> round(energy_distance_u(np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [2.0], [3.0]])), 6)
    -0.222222
    """
    real, generated = _points(real, generated, least=2)
    between, *within = _mean_distances(real, generated)
    return 2 * between - sum(mean * n / (n - 1) for mean, n in zip(within, (len(real), len(generated)), strict=True))


@metric(title="Energy distance, half", family="distribution", direction="lower")
def energy_distance_half(real: np.ndarray, generated: np.ndarray) -> float:
    r"""The energy distance as PerturbDiff and STATE train with it: half of the V-statistic.

    Formula
    -------
    $$L = \frac{1}{nm} \sum_{i,j} |x_i - y_j| - \frac{1}{2 n^2} \sum_{i,i'} |x_i - x_{i'}|
      - \frac{1}{2 m^2} \sum_{j,j'} |y_j - y_{j'}|$$

    over real cells $x_1 \dots x_n$ and generated cells $y_1 \dots y_m$.

    Estimator
    ---------
    V-statistic, `energy_distance_v` divided by 2. The same quantity with gradients, for batches of sets, is
    `screpro.kernels.energy.energy_loss`.

    Bias
    ----
    Upwards: $(1/n + 1/m)\, E|x - x'| / 2$ on average for two samples of one distribution.

    Unit
    ----
    That of the points: a distance between cells. PerturbDiff measures it on log-normalised expression divided by 10.

    Used in
    -------
    The training loss of PerturbDiff, there called MMD, as its code computes it: geomloss, loss "energy", a name under
    which that package returns half of the distance that the paper prints (eq. 32). Added to a squared error, the
    factor 2 is a weight of the two terms. geomloss also counts a cell as 0.0001 away from itself; we count 0.

    Parameters
    ----------
    real, generated
        (n, d) and (m, d) points: expression of cells, or coordinates on components.

    Returns
    -------
    float
        0 or more.

    Raises
    ------
    ScreproError
        No cells on a side, other dimensions, or values that are not finite.

    Examples
    --------
    Real cells at 0, 1 and 2, generated ones at 1, 2 and 3. The nine distances between them sum to 11, those within
    each set to 8: 11/9 - 8/18 - 8/18 = 3/9.

    >>> round(energy_distance_half(np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [2.0], [3.0]])), 6)
    0.333333
    """
    return energy_distance_v(real, generated) / 2


def _mean_distances(real: np.ndarray, generated: np.ndarray) -> tuple[float, float, float]:
    from screpro.kernels.energy import mean_distance

    return mean_distance(real, generated), mean_distance(real), mean_distance(generated)


@metric(title="MMD², sum of five widths", family="distribution", direction="lower")
def mmd2_rbf_sum5(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> float:
    r"""How differently real and generated cells are distributed, seen at five resolutions at once.

    A Gaussian kernel of width $\sigma$ calls two cells alike if they are closer than about $\sigma$. The MMD² is how
    much more alike cells of one set are among themselves than to cells of the other.

    Formula
    -------
    $$\sum_{\sigma \in \{0.01,\, 0.1,\, 1,\, 10,\, 100\}} \left[
      \frac{1}{n^2} \sum_{i,i'} k_\sigma(x_i, x_{i'}) + \frac{1}{n^2} \sum_{j,j'} k_\sigma(y_j, y_{j'})
      - \frac{2}{n^2} \sum_{i,j} k_\sigma(x_i, y_j) \right],
      \qquad k_\sigma(x, y) = e^{-|x - y|^2 / (2 \sigma^2)}$$

    over as many real cells $x_i$ as generated cells $y_j$.

    Estimator
    ---------
    Biased V-statistic: all pairs, a cell with itself (kernel 1) included, so each of the five terms is 0 or more. The
    larger of the two sets is cut to the size of the smaller one by a seeded draw without replacement. Terms are added,
    not averaged. Rounding below 0 is cut off.

    Bias
    ----
    Upwards. Where a kernel is so narrow that no cell is alike any other, its term is $2/n$ whatever the model: on 30
    components that holds for the widths 0.01, 0.1 and mostly 1, so with n = 389 cells of one distribution the value is
    about $3 \cdot 2/n = 0.015$ already. In small classes this is most of the value. Compare equal numbers of cells
    only, and look at the ceiling.

    Unit
    ----
    None; 0 to 10, at most 2 per kernel. It depends on the scale of the points, because the widths are fixed.

    Used in
    -------
    scLDM Tables 2, 3, 13 and 15, "MMD² RBF", on 30 components fitted to real cells. The paper prints another estimator:
    a single kernel, unbiased (appendix J.1). Its own numbers rule that out. As $0 < k \le 1$, one kernel gives at most
    1 + 1 - 0 = 2, biased or not; Table 3 has 2.203 and 3.087 for scGPT. They must be sums. The script behind the tables
    is not in the authors' repository; the five widths, the biased estimator and the equal sizes are those of CFGen's
    evaluation, which the paper compares with. Conditional values are unweighted means over the classes.

    Parameters
    ----------
    real, generated
        (n, d) and (m, d) points: coordinates of cells on components fitted to real cells.
    seed
        Of the draw that makes both sets equally large.

    Returns
    -------
    float
        0 to 10.

    Raises
    ------
    ScreproError
        No cells on a side, other dimensions, or values that are not finite.

    Examples
    --------
    Three real cells in one place, three generated ones in another, 30 apart. Within a set every kernel is 1. Between
    the sets it is 0 for the widths 0.01, 0.1 and 1, each of which contributes 1 + 1 - 0 = 2; for 10 it is
    exp(-4.5) = 0.0111, contribution 1.9778; for 100 it is exp(-0.045) = 0.9560, contribution 0.0880.

    >>> round(mmd2_rbf_sum5(np.array([[0.0], [0.0], [0.0]]), np.array([[30.0], [30.0], [30.0]])), 4)
    8.0658
    """
    from screpro.kernels.mmd import rbf_mmd2

    real, generated = _points(real, generated)
    n = min(len(real), len(generated))
    rng = np.random.default_rng(seed)
    real, generated = (x if len(x) == n else x[rng.choice(len(x), n, replace=False)] for x in (real, generated))
    gammas = [1 / (2 * sigma**2) for sigma in SIGMAS]
    return float(np.maximum(rbf_mmd2(real, generated, gammas=gammas), 0).sum())


@metric(title="MMD², one width, unbiased", family="distribution", direction="lower")
def mmd2_rbf_median(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> float:
    r"""How differently real and generated cells are distributed, at the resolution of a typical distance of cells.

    Formula
    -------
    $$\frac{1}{n(n-1)} \sum_{i \ne i'} k(x_i, x_{i'}) + \frac{1}{m(m-1)} \sum_{j \ne j'} k(y_j, y_{j'})
      - \frac{2}{nm} \sum_{i,j} k(x_i, y_j), \qquad k(x, y) = e^{-|x - y|^2 / (2 \sigma^2)},
      \qquad \sigma = \operatorname{median}_{l < l'} |z_l - z_{l'}|$$

    over real cells $x_1 \dots x_n$ and generated cells $y_1 \dots y_m$; $z$ are the cells of both together.

    Estimator
    ---------
    U-statistic: no cell with itself. The width $\sigma$ is the median Euclidean distance (not its square) over all
    pairs of different cells among real and generated ones together, of an even number of pairs the mean of the
    middle two; of more than 2000 cells, over a seeded draw of 2000 without replacement. So $\sigma$ is fitted to each
    comparison: values of different comparisons stand on slightly different kernels.

    Bias
    ----
    None for a fixed width: 0 on average for two samples of one distribution, so it may be negative.

    Unit
    ----
    None; at most 2. It does not depend on the scale of the points.

    Used in
    -------
    The estimator that scLDM prints (appendix J.1), without a width there. Its tables have another quantity,
    `mmd2_rbf_sum5`.

    Parameters
    ----------
    real, generated
        (n, d) and (m, d) points, at least two of each.
    seed
        Of the draw for the median.

    Returns
    -------
    float
        Of either sign; NaN if more than half of the pairs coincide, which leaves no width.

    Raises
    ------
    ScreproError
        Fewer than two cells on a side, other dimensions, or values that are not finite.

    Examples
    --------
    Real and generated cells both at -1, 0 and 1. Of the 15 distances among all six, three are 0, eight are 1 and four
    are 2: the median is 1. With exp(-0.5) = 0.6065 and exp(-2) = 0.1353 the mean within a set is
    (2 · 0.6065 + 0.1353) / 3 = 0.4495, that between the sets (3 · 1 + 4 · 0.6065 + 2 · 0.1353) / 9 = 0.6330:
    2 · 0.4495 - 2 · 0.6330. It is negative because copies are closer than independent samples are.

    >>> cells = np.array([[-1.0], [0.0], [1.0]])
    >>> round(mmd2_rbf_median(cells, cells), 4)
    -0.367
    """
    from screpro.kernels.mmd import rbf_mmd2
    from screpro.kernels.tiles import plain

    real, generated = _points(real, generated, least=2)
    sigma = median_distance(np.concatenate([plain(real), plain(generated)]), seed=seed)
    if sigma == 0:
        return float("nan")
    # dividing the points, not 1 / (2 sigma^2), keeps very large and very small units in range
    real, generated = real / sigma, generated / sigma
    return float(rbf_mmd2(real, generated, gammas=[0.5], unbiased=True)[0])


def median_distance(points: np.ndarray, *, seed: int = 0) -> float:
    """Median Euclidean distance over pairs of different points, of at most `POOLED` of them drawn with `seed`."""
    from scipy.spatial.distance import pdist

    if len(points) > POOLED:
        points = points[np.random.default_rng(seed).choice(len(points), POOLED, replace=False)]
    return float(np.median(pdist(points.astype(np.float64))))
