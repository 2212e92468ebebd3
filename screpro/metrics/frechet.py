"""Fréchet distance between real and generated cells."""

import numpy as np

from screpro.metrics.catalogue import metric

__all__ = ["frechet_distance"]


@metric(title="Fréchet distance", family="distribution", direction="lower")
def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    r"""How far apart the means and the covariances of two clouds of cells are.

    It takes each cloud for one normal distribution, so it notices a shifted mean, a missing spread and a lost
    correlation, and nothing else: two clusters are at distance 0 from one broad cluster of their mean and covariance.

    Formula
    -------
    $$\mathrm{FD} = |\mu_r - \mu_g|^2
      + \operatorname{tr}\left(\Sigma_r + \Sigma_g - 2 (\Sigma_r \Sigma_g)^{1/2}\right)$$

    with mean $\mu_r$ and covariance $\Sigma_r$ of the real points, $\mu_g$ and $\Sigma_g$ of the generated ones. It is
    the squared Wasserstein-2 distance between the two normal distributions with these moments.

    Estimator
    ---------
    Sample means and sample covariances with n - 1 in the denominator. The trace of the root is the sum of the roots of
    the eigenvalues of $L^\top \Sigma_g L$ with $\Sigma_r = L L^\top$, in float64; singular covariances are exact as
    well. Rounding below zero is cut off at 0.

    Bias
    ----
    Upwards, more with fewer cells and more components: $n$ and $m$ cells of one distribution are on average
    $\operatorname{tr} \Sigma\, (1/n + 1/m)$ apart by their means, and for equal variances in $k$ components another
    $(k + 1) / 4$ times that by their covariances. With fewer cells than components the covariances have no full rank
    and the bias is larger than that estimate. Compare values of equal numbers of cells only, and look at the ceiling.

    Unit
    ----
    Square of the unit of the points; 0 or more. It depends on the components and on how expression was scaled.

    Used in
    -------
    scLDM Tables 2, 3, 13 and 15, "FD", on 30 components. The appendix fits them to the combined cells in one place
    (J.3.1) and to the real cells in another (J.5); we fit them to real cells only. Conditional values are unweighted
    means over the classes; a class of fewer than 30 cells has a singular covariance there.

    Parameters
    ----------
    real, generated
        (n, k) and (m, k) points: coordinates of cells on components fitted to real cells.

    Returns
    -------
    float
        0 or more.

    Raises
    ------
    ScreproError
        Fewer than two points on a side, other dimensions, or values that are not finite.

    Examples
    --------
    Three real cells at 0, 1 and 2 on one component: mean 1, variance 1. Three generated cells at 2, 4 and 6: mean 4,
    variance 4. The means contribute (1 - 4)² = 9, the variances 1 + 4 - 2 √(1 · 4) = 1.

    >>> round(frechet_distance(np.array([[0.0], [1.0], [2.0]]), np.array([[2.0], [4.0], [6.0]])), 6)
    10.0
    """
    from screpro.kernels.frechet import frechet_of_points

    return frechet_of_points(real, generated)
