r"""Optimal transport between real and generated cells: how far cells have to move to become the others.

Distances are Euclidean, usually on principal components of the real cells. Cells come as arrays or as tensors; where
both sides are tensors on an NVIDIA GPU, the Sinkhorn divergence is computed there. The exact distance runs on the CPU.
"""

import numpy as np

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric

__all__ = ["LIMIT", "sinkhorn_divergence", "w2_exact"]

LIMIT = 5000
"""Cells a side above which both sides are cut to this number: the cost of an exact plan grows with its square."""


@metric(title="Wasserstein-2 distance, exact", family="distribution", direction="lower")
def w2_exact(real, generated, *, seed: int = 0) -> float:
    r"""Root of the smallest mean squared distance over which cells can be paired.

    Formula
    -------
    $$ W_2 = \sqrt{\min_{P \ge 0} \sum_{ij} P_{ij} \lvert x_i - y_j\rvert^2}, \qquad
    \sum_j P_{ij} = \tfrac1n,\quad \sum_i P_{ij} = \tfrac1m $$

    Estimator
    ---------
    The exact optimum between the two samples, with a certificate: dual values give a lower bound of the cost, and a
    plan that is not proven to a millionth is refused. Above 5 000 cells a side, both sides are cut to 5 000 by a
    seeded draw. It runs on the CPU, wherever the cells are. Equal numbers of cells take memory for the cells alone,
    O(n d). Different numbers, or many copies of the same cells, go to the network simplex of POT, which works on
    the float64 matrix of all costs: about 40 n m bytes in all, a gigabyte at 5 000 cells a side.

    Bias
    ----
    Upward, and slowly vanishing: two samples of one distribution in d dimensions are about $n^{-1/d}$ apart. In 30
    dimensions the distance between two halves of the real cells is most of the value. Compare equal n only.

    Unit
    ----
    That of the points (here log-expression, in principal components).

    Used in
    -------
    scLDM, Tables 2, 3, 13 and 15: the square ROOT of the cost, uniform weights.

    Parameters
    ----------
    real, generated
        (n, d) and (m, d) points, arrays or tensors.
    seed
        Of the draw that cuts large samples.

    Returns
    -------
    float

    Raises
    ------
    ScreproError
        No cells, other dimensions, values that are not finite or above 1e150, whose squares are not.

    Examples
    --------
    Real cells at 0, 1 and 2 on a line, generated ones at 2, 3 and 4. In order, each moves by 2: the cost is 4, its
    root 2.

    >>> from screpro.metrics.transport import w2_exact
    >>> round(w2_exact([[0], [1], [2]], [[2], [3], [4]]), 6)
    2.0
    """
    from screpro.kernels.transport import exact_w2

    return exact_w2(*_cut(real, generated, seed)).value


@metric(title="Sinkhorn divergence", family="distribution", direction="lower")
def sinkhorn_divergence(real, generated, *, blur: float | None = None, seed: int = 0) -> float:
    r"""Optimal transport with an entropy that blurs plans, less what the blur does to each side alone.

    Formula
    -------
    $$ S = \mathrm{OT}_\varepsilon(x, y) - \tfrac12 \mathrm{OT}_\varepsilon(x, x)
    - \tfrac12 \mathrm{OT}_\varepsilon(y, y), \qquad
    \mathrm{OT}_\varepsilon = \min_P \sum_{ij} P_{ij} \lvert x_i - y_j\rvert^2
    + \varepsilon\, \mathrm{KL}\big(P \,\Vert\, \tfrac1n \otimes \tfrac1m\big), \quad \varepsilon = 2\,\text{blur}^2 $$

    Estimator
    ---------
    Alternating updates of the dual values in the log domain until the plan's column sums are right to 1e-4; both sides
    cut to 5 000 cells as for `w2_exact`. Memory for the cells alone. The value has no gradient.

    Bias
    ----
    Not negative, 0 for equal samples. Between $W_2^2$ (small blur) and the squared distance of the means (large blur);
    the larger the blur, the smaller the bias from finitely many cells and the less is seen of details below its size.

    Unit
    ----
    Squared unit of the points.

    Used in
    -------
    No table. scLDM's repository logs an entropic transport cost (regularisation .05, not debiased) while training.
    Source: Feydy et al. 2019, arXiv 1810.08278.

    Parameters
    ----------
    real, generated
        (n, d) and (m, d) points, arrays or tensors.
    blur
        Length in units of the points below which differences are blurred. None: a tenth of the root mean squared
        distance of the real cells from their mean, which depends on the real cells alone.
    seed
        Of the draw that cuts large samples.

    Returns
    -------
    float

    Raises
    ------
    ScreproError
        No cells, other dimensions, values that are not finite, a blur that is not positive, or real cells that are
        all equal and no blur given.

    Examples
    --------
    Three equal real cells at 0 and three equal generated ones at 2: there is one plan, so the entropy does nothing and
    the divergence is the squared distance.

    >>> from screpro.metrics.transport import sinkhorn_divergence
    >>> round(sinkhorn_divergence([[0], [0], [0]], [[2], [2], [2]], blur=.5), 4)
    4.0
    """
    import torch

    from screpro.kernels.sinkhorn import divergence
    from screpro.kernels.tiles import placed

    given = real, generated
    real, generated = _cut(real, generated, seed)
    if blur is None:
        blur = 0.1 * float(np.sqrt(np.square(real - real.mean(axis=0)).sum(axis=1).mean()))
        if not blur > 0:
            raise ScreproError(
                "The default blur is a tenth of the spread of the real cells.",
                got="real cells that are all equal",
                fix="pass blur=",
            )
    x, y = (torch.as_tensor(cells)[None] for cells in placed(given, real, generated))
    value = divergence(x, y, blur=blur)
    return max(0.0, float(value[0]))  # below zero by rounding only


def _cut(real, generated, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as float64 points in main memory, the larger ones cut to LIMIT."""
    from screpro.kernels.tiles import plain, points

    real, generated = plain(real), plain(generated)
    if (
        real.ndim != 2
        or generated.ndim != 2
        or real.shape[1] != generated.shape[1]
        or not len(real)
        or not len(generated)
    ):
        raise ScreproError(
            "Real and generated cells are points in the same space, (cells, dimensions), at least one of each.",
            got=f"shapes {real.shape} and {generated.shape}",
            fix="project both on the components of the real cells",
        )
    real, generated = (points(name, x).astype(np.float64) for name, x in (("real", real), ("generated", generated)))
    if max(len(real), len(generated)) > LIMIT:
        rng = np.random.default_rng(seed)
        real, generated = (
            x if len(x) <= LIMIT else x[np.sort(rng.choice(len(x), LIMIT, replace=False))] for x in (real, generated)
        )
    return real, generated
