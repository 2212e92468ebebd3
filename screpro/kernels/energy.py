"""Energy distance: mean Euclidean distances between and within two clouds of points.

    loss(x, y) = E|x - y| - E|x - x'| / 2 - E|y - y'| / 2        (half of the usual energy distance)

over all pairs, a point with itself included (V-statistic). It is the "energy" loss of geomloss, which PerturbDiff and
STATE train with. Source: Székely & Rizzo, J. Stat. Plan. Inference 2013, 10.1016/j.jspi.2013.03.018.

Training, `energy_loss`: sets of 64 to 512 cells in 2000 genes, with gradient. Per set 2 d (n m + n^2/2 + m^2/2) flops
for the distances and 2 d n (n + m) for the gradient (see ``energy_sets.py``). A point has no distance to itself, by
index, and none to a duplicate, by value: there the weight of the pair is 0 and the gradient finite.

Evaluation, `mean_distance`: 2 (d + 2) n m flops and n m square roots in tiles (see ``tiles.py``), half of that for a
cloud with itself; O((n + m) d) bytes. The energy distance is a small difference of these means, often a hundredth
of them, so products are of centred points, rounding is random over pairs, and sums are float64.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.kernels.tiles import FAST, NEAR, Pairs, points, squared_distance, walk

__all__ = ["energy_loss", "mean_distance", "reference", "reference_loss"]

EXACT = 2**22  # up to so many n m d, float64 differences: milliseconds, and no rounding to explain


def reference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of (n, d) and (m, d), float64, a few rows at a time."""
    from scipy.spatial.distance import cdist

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    step = max(1, EXACT // len(b))
    return sum(float(cdist(a[i : i + step], b).sum()) for i in range(0, len(a), step)) / (len(a) * len(b))


def reference_loss(x: Tensor, y: Tensor, *, lengths_x=None, lengths_y=None) -> Tensor:
    """`energy_loss` written down, float64, for autograd; the gradient of a distance 0 is 0."""
    losses = []
    for s in range(len(x)):
        p = x[s, : x.shape[1] if lengths_x is None else int(lengths_x[s])].double()
        q = y[s, : y.shape[1] if lengths_y is None else int(lengths_y[s])].double()
        pq, pp, qq = (torch.linalg.vector_norm(u[:, None] - v[None], dim=-1) for u, v in ((p, q), (p, p), (q, q)))
        losses.append(pq.mean() - pp.mean() / 2 - qq.mean() / 2)
    return torch.stack(losses)


def mean_distance(a: np.ndarray | Tensor, b: np.ndarray | Tensor | None = None) -> float:
    """Mean Euclidean distance over all pairs of two clouds, or of a cloud with itself.

    Parameters
    ----------
    a, b
        (n, d) and (m, d) numpy arrays or tensors. `b` None: all n^2 pairs within `a`, each point with itself
        (distance 0) included.

    Returns
    -------
    float, in the unit of the points. Up to n m d = 4 million from float64 differences; beyond, float32 tiles with
    float64 sums (relative error about 1e-8 for thousands of points), on a GPU if both are tensors there.

    Raises
    ------
    ScreproError
        Empty clouds, other shapes, dimensions that differ, values that are not finite.
    """
    if isinstance(a, Tensor) and a.is_cuda and (b is None or (isinstance(b, Tensor) and b.is_cuda)):
        from screpro.kernels.gpu import energy as gpu

        return gpu.mean_distance(a, b)
    a = points("a", a)
    b = None if b is None else points("b", b)
    if len(a) * (a if b is None else b).size <= EXACT and (b is None or a.shape[1] == b.shape[1]):
        return reference(a, a if b is None else b)
    return streamed(a, b)


def streamed(a: np.ndarray, b: np.ndarray | None = None) -> float:
    """`mean_distance` by tiles, for any size."""
    pairs = Pairs.of(a, b)

    def visit(tile: np.ndarray, i: int, j: int) -> float:
        return _sum_roots(tile, i, j, pairs.norms_a, pairs.norms_b, pairs.a, pairs.b, pairs.unit, pairs.same)

    total = float(walk(pairs, visit)) * pairs.unit
    return (2 * total if pairs.same else total) / (len(pairs.a) * len(pairs.b))


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _sum_roots(tile, i, j, norms_a, norms_b, a, b, unit, same):
    """Sum of square roots of a tile that starts at pair (i, j); of `same` clouds only pairs above the diagonal."""
    total = 0.0
    for p in range(tile.shape[0]):
        first = max(0, i + p + 1 - j) if same else 0
        squares, norms, norm = tile[p][first:], norms_b[j + first :], norms_a[i + p]  # slices from 0 vectorise
        row, near = np.float32(0), np.float32(0)  # a counter of the values' own width
        for q in range(len(squares)):  # one pass: its square roots hide everything else
            value = squares[q]
            near += np.float32(value < np.float32(NEAR) * (norm + norms[q]))
            row += np.sqrt(np.float32(0) if value < 0 else value)
        total += row
        if near:
            for q in range(len(squares)):
                value = squares[q]
                if value < np.float32(NEAR) * (norm + norms[q]):
                    exact = np.sqrt(squared_distance(a[i + p], b[j + first + q])) / unit
                    total += exact - np.sqrt(np.float32(0) if value < 0 else value)
    return total


def energy_loss(
    x: Tensor,
    y: Tensor,
    *,
    lengths_x: Tensor | None = None,
    lengths_y: Tensor | None = None,
    squares: float = 0.0,
) -> Tensor:
    """Energy distance between two sets of points, halved as geomloss does, for a batch of pairs of sets.

    Parameters
    ----------
    x, y
        (B, n, d) and (B, m, d), float32, float64, bfloat16 or float16, on one device. Squares of their distances are
        taken in float32 (float64 points: in float64) and have to be within its range: from about 1e-18 to 1e18.
    lengths_x, lengths_y
        (B,) integers: only the first so many points of a set count; None: all.
    squares
        Adds this many times the squared error of the points of x against those of y, in their order, mean over points
        and dimensions (PerturbDiff's other term): in one sweep it costs little. Sets of one length, all points count.

    Returns
    -------
    (B,) one loss per set, in the unit of the points; float64 for float64 points, else float32. Never negative but
    for rounding. Gradients for `x`, and for `y` if it asks for them, in their own type; 0 beyond the lengths. The
    gradient of a distance between duplicates is 0. Not differentiable twice.

    Raises
    ------
    ScreproError
        Shapes, types or devices that do not fit; on the CPU also lengths out of range.
    """
    _check(x, y, lengths_x, lengths_y)
    if squares and not (x.shape == y.shape and lengths_x is lengths_y is None):
        raise ScreproError(
            "A squared error is between sets of one size, of which all points count.",
            got=f"x {tuple(x.shape)}, y {tuple(y.shape)}, {'no ' if lengths_x is lengths_y is None else ''}lengths",
            fix="leave out squares, or cut the sets to one length",
        )
    if x.is_cuda:
        from screpro.kernels.gpu import energy as gpu

        value = gpu.energy_loss(x, y, lengths_x=lengths_x, lengths_y=lengths_y)
        return value + squares * (x.to(value.dtype) - y.to(value.dtype)).square().mean((1, 2)) if squares else value
    if x.device.type != "cpu":
        raise ScreproError(
            "The energy loss runs on the CPU or on a CUDA device.", got=str(x.device), fix="move x and y to the CPU"
        )
    from screpro.kernels.energy_sets import EnergyLoss

    n, m = (_lengths(name, p, given) for name, p, given in (("x", x, lengths_x), ("y", y, lengths_y)))
    return EnergyLoss.apply(x, y, n, m, tuple(torch.is_grad_enabled() and p.requires_grad for p in (x, y)), squares)


def _lengths(name: str, cloud: Tensor, lengths: Tensor | None) -> np.ndarray:
    if lengths is None:
        return np.full(len(cloud), cloud.shape[1])
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.min() < 1 or lengths.max() > cloud.shape[1]:
        raise ScreproError(
            "Every set holds at least one point and no more than there are.",
            got=f"lengths_{name} from {lengths.min()} to {lengths.max()} where {name} has {cloud.shape[1]} points",
            fix="leave empty sets out of the batch",
        )
    return lengths


def _check(x: Tensor, y: Tensor, lengths_x: Tensor | None, lengths_y: Tensor | None) -> None:
    fits = x.ndim == y.ndim == 3 and len(x) == len(y) and x.shape[2] == y.shape[2]
    fits = fits and x.numel() and y.numel() and x.dtype == y.dtype and x.is_floating_point() and x.device == y.device
    if not fits:
        raise ScreproError(
            "x (B, n, d) and y (B, m, d) are as many sets of points of one dimension, type and device.",
            got=f"x {tuple(x.shape)} {x.dtype} on {x.device}, y {tuple(y.shape)} {y.dtype} on {y.device}",
            fix="add the batch dimension with x[None], or cast one to the type of the other",
        )
    for name, lengths in (("lengths_x", lengths_x), ("lengths_y", lengths_y)):
        if lengths is not None and len(lengths) != len(x):
            raise ScreproError(f"`{name}` has one entry per set.", got=f"{len(lengths)}", fix=f"pass {len(x)}")
