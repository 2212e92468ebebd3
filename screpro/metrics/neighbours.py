r"""Nearest-neighbour scores: can real and generated cells be told apart, and do they cover each other?

All use Euclidean distances, usually on principal components of the real cells. None needs a bandwidth or a density.
Cells come as arrays or as tensors; where both sides are tensors on an NVIDIA GPU, neighbours are searched there.
"""

import numpy as np

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric

__all__ = ["TIES", "knn_precision", "knn_recall", "one_nn_accuracy"]

TIES = 4
"""Different places at exactly the smallest distance whose cells share the vote of the 1-NN test."""


@metric(title="1-NN two-sample accuracy", family="distribution", direction="closer to 0.5")
def one_nn_accuracy(real, generated, *, seed: int = 0) -> float:
    r"""Share of cells whose nearest other cell, among real and generated together, is of their own kind.

    Formula
    -------
    $$ \frac{1}{2n} \sum_{i=1}^{2n} \mathbf 1\big[\text{kind of } i = \text{kind of } j(i)\big], \qquad
    j(i) = \arg\min_{j \ne i} \lvert z_i - z_j\rvert $$

    Estimator
    ---------
    Leave-one-out over the pooled sample of n real and n generated cells; the larger side is cut to the size of the
    smaller by a seeded draw. Nearest cells at exactly the same distance (duplicates, counts) share the vote: the cell
    scores the share of them that is of its own kind. Of several different places at that distance, `TIES` count.

    Bias
    ----
    .5 for two samples of one distribution, with standard deviation about $.5 / \sqrt{2n}$ or a little more. 1: told
    apart perfectly. BELOW .5: generated cells sit on top of real ones; exact copies of the real cells give 0. If all
    cells are equal the score is $(n - 1) / (2n - 1)$.

    Unit
    ----
    Share of cells, 0 to 1.

    Used in
    -------
    The later version of scLDM, Table 2, which calls it 1-NN accuracy; balanced there too.

    Parameters
    ----------
    real, generated
        (n, d) and (m, d) points, arrays or tensors.
    seed
        Of the draw that makes the sides equal; without effect where they are.

    Returns
    -------
    float

    Raises
    ------
    ScreproError
        Fewer than two cells on a side, other dimensions, or values that are not finite.

    Examples
    --------
    Real cells at 0, 1 and 10 on a line, generated ones at 11.2, 12 and 1.5. The nearest other cell of 0 is 1 (own
    kind), of 1 it is 1.5 (other), of 10 it is 11.2 (other), of 11.2 it is 12 (own), of 12 it is 11.2 (own), of 1.5 it
    is 1 (other): three of six.

    >>> from screpro.metrics.neighbours import one_nn_accuracy
    >>> one_nn_accuracy([[0], [1], [10]], [[11.2], [12], [1.5]])
    0.5
    """
    from screpro.kernels.neighbours import nearest
    from screpro.kernels.tiles import placed

    given = real, generated
    real, generated = _sides(real, generated)
    n = min(len(real), len(generated))
    if n < 2:
        raise ScreproError(
            "The 1-NN test needs at least two cells on each side.",
            got=f"{len(real)} real, {len(generated)} generated",
            fix="compare larger samples",
        )
    rng = np.random.default_rng(seed)
    real, generated = (
        x if len(x) == n else x[np.sort(rng.choice(len(x), n, replace=False))] for x in (real, generated)
    )
    kind = np.repeat([0, 1], n)
    places, at = np.unique(np.concatenate([real, generated]), axis=0, return_inverse=True)
    cells = np.zeros((len(places), 2))  # real and generated ones at every place
    np.add.at(cells, (at, kind), 1)
    near = cells[at]  # (2n, 2) cells of either kind among the nearest: those at the same place, without the cell itself
    near[np.arange(2 * n), kind] -= 1
    alone = near.sum(axis=1) == 0
    if alone.any():
        distance, index = nearest(*placed(given, places), min(TIES, len(places) - 1))
        tied = distance == distance[:, :1]
        near[alone] = (cells[index] * tied[..., None]).sum(axis=1)[at[alone]]
    return float(np.mean(near[np.arange(2 * n), kind] / near.sum(axis=1)))


@metric(title="k-NN precision", family="distribution", direction="higher")
def knn_precision(real, generated, *, k: int = 5) -> float:
    r"""Share of generated cells that lie where real cells are.

    Formula
    -------
    $$ \frac{1}{m} \sum_{j=1}^{m} \mathbf 1\Big[\exists\, i:\ \lvert y_j - x_i\rvert \le r_k(x_i)\Big] $$

    with $r_k(x_i)$ the distance of a real cell $x_i$ to its k-th nearest other real cell.

    Estimator
    ---------
    The real cells' neighbourhoods stand for the support of their distribution.

    Bias
    ----
    Below 1 for a perfect generator, and the more so the fewer cells and the more dimensions there are: read it beside
    its ceiling. One outlier among the real cells has a huge neighbourhood. Blind to what is missing: copies of a
    single real cell score 1.

    Unit
    ----
    Share of generated cells, 0 to 1.

    Used in
    -------
    The later version of scLDM, Table 2; the number of neighbours is not stated there. k = 5 here.
    Source: Kynkäänniemi et al. 2019, arXiv 1904.06991.

    Parameters
    ----------
    real, generated
        (n, d) and (m, d) points, arrays or tensors; at least k + 1 real cells.
    k
        Neighbours that define the radius.

    Returns
    -------
    float

    Raises
    ------
    ScreproError
        As many real cells as neighbours or fewer, other dimensions, or values that are not finite.

    Examples
    --------
    Real cells at 0, 1 and 3 and k = 1: their radii are 1, 1 and 2, so they cover -1 to 5. Of the generated cells at
    -1, 4 and 9 two lie within.

    >>> from screpro.metrics.neighbours import knn_precision
    >>> round(knn_precision([[0], [1], [3]], [[-1], [4], [9]], k=1), 3)
    0.667
    """
    from screpro.kernels.neighbours import nearest, radius_cover
    from screpro.kernels.tiles import placed

    real, generated = placed((real, generated), *_sides(real, generated))
    return float(radius_cover(real, nearest(real, k)[0][:, -1], generated).mean())


@metric(title="k-NN recall", family="distribution", direction="higher")
def knn_recall(real, generated, *, k: int = 5) -> float:
    r"""Share of real cells that lie where generated cells are: precision with the sides exchanged.

    Formula
    -------
    $$ \frac{1}{n} \sum_{i=1}^{n} \mathbf 1\Big[\exists\, j:\ \lvert x_i - y_j\rvert \le r_k(y_j)\Big] $$

    with $r_k(y_j)$ the distance of a generated cell to its k-th nearest other generated cell.

    Estimator
    ---------
    The generated cells' neighbourhoods stand for the support of their distribution.

    Bias
    ----
    As for `knn_precision`. A generator that scatters cells widely has large neighbourhoods and a high recall: read
    both.

    Unit
    ----
    Share of real cells, 0 to 1.

    Used in
    -------
    The later version of scLDM, Table 2 (k not stated there, 5 here).
    Source: Kynkäänniemi et al. 2019, arXiv 1904.06991.

    Parameters
    ----------
    real, generated
        (n, d) and (m, d) points, arrays or tensors; at least k + 1 generated cells.
    k
        Neighbours that define the radius.

    Returns
    -------
    float

    Raises
    ------
    ScreproError
        As many generated cells as neighbours or fewer, other dimensions, or values that are not finite.

    Examples
    --------
    Three generated cells at 0, 0 and 0 have radius 0 with k = 1: of the real cells at 0, 1 and 2 they cover one.

    >>> from screpro.metrics.neighbours import knn_recall
    >>> round(knn_recall([[0], [1], [2]], [[0], [0], [0]], k=1), 3)
    0.333
    """
    return knn_precision(generated, real, k=k)


def _sides(real, generated) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as float64 points in main memory."""
    from screpro.kernels.tiles import plain, points

    real, generated = plain(real), plain(generated)
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ScreproError(
            "Real and generated cells are points in the same space, (cells, dimensions).",
            got=f"shapes {real.shape} and {generated.shape}",
            fix="project both on the components of the real cells",
        )
    return points("real", real).astype(np.float64), points("generated", generated).astype(np.float64)
