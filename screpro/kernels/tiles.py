"""Squared Euclidean distances between two clouds of points, one tile at a time, over all pairs.

With the points centred and each carrying its squared norm,

    |x - y|^2 = [-2 x, |x|^2, 1] . [y, 1, |y|^2],

a tile of squared distances is one matrix product, nothing to be added afterwards. A tile of ROWS x COLUMNS float32
stays in the second-level cache of its core: the product writes it there and the visitor (a compiled loop over the
tile) reads it there. A matrix of n x m in memory would cost more in page faults alone than the product.

Cost: 2 (d + 2) n m flops, O((n + m) d) bytes. Row blocks are shared out over threads, each of which calls
single-threaded products.

The product rounds: a squared distance is wrong by about 1e-7 (|x|^2 + |y|^2), which is nothing for most pairs and
everything for two points that nearly coincide. Visitors therefore take pairs with a squared distance below
``NEAR (|x|^2 + |y|^2)`` again from the points themselves, `squared_distance`; such pairs are few.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import frexp

import numba
import numpy as np
import torch

from screpro.errors import ScreproError
from screpro.kernels.threads import each

__all__ = ["FAST", "LARGEST", "NEAR", "Pairs", "placed", "plain", "points", "squared_distance", "walk"]

ROWS, COLUMNS = 256, 1024  # 1 MiB of float32, about a second-level cache
NEAR = 2.0**-10  # at this share of the norms the product still has 3 to 4 digits of the squared distance
LARGEST = 1e150  # coordinate whose square, summed over dimensions, is finite in float64
FAST = {"reassoc", "contract", "arcp", "nsz"}  # sums may be reordered into vectors; NaN stays NaN


def plain(values) -> np.ndarray:
    """The numbers of an array, list or tensor on any device as an array; a tensor's without gradient, half as float32.

    Types of numpy stay as they are, but for float16, so that counts stay integers.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    return np.asarray(values)


def placed(like: tuple, *arrays: np.ndarray) -> tuple:
    """`arrays` as tensors on the GPU if all of `like` are tensors there, so that its kernels take them; else as given.

    A metric reads what it was given with `points`, prepares it in numpy (O(n d)), and hands it on with this.
    """
    if all(isinstance(values, torch.Tensor) and values.is_cuda for values in like):
        return tuple(torch.from_numpy(array).to(like[0].device) for array in arrays)
    return arrays


def points(name: str, values) -> np.ndarray:
    """Check (n, d) points and return them as a C-contiguous float32 or float64 array on the CPU.

    Raises
    ------
    ScreproError
        If there is no point, no dimension, another shape than (n, d), or a value that is NaN, infinite or above
        `LARGEST`.
    """
    is_tensor, values = isinstance(values, torch.Tensor), plain(values)
    if values.dtype != np.float32:
        single = is_tensor and values.dtype != np.float64
        values = values.astype(np.float32 if single else np.float64, copy=False)
    if values.ndim != 2 or not values.size:
        raise ScreproError(
            f"`{name}` holds at least one point, as an array (points, dimensions).",
            got=f"shape {values.shape}",
            fix="pass a two-dimensional array with one row per cell",
        )
    largest = max(float(values.max()), -float(values.min()))  # NaN if there is one
    if not largest <= LARGEST:
        bad = int((~np.isfinite(values)).sum())
        raise ScreproError(
            f"`{name}` holds finite numbers, at most {LARGEST:g}: squares of distances are sums in float64.",
            got=f"{bad} values that are NaN or infinite" if bad else f"{largest:g}",
            fix="find out where NaN comes from; do not fill it with zeros" if bad else "measure in a larger unit",
        )
    return np.ascontiguousarray(values)


@dataclass(frozen=True)
class Pairs:
    """All pairs of two clouds, ready for `walk`; `a` and `b` as they came, the rest centred and in units of `unit`."""

    a: np.ndarray  # (n, d) float32 or float64, both the same
    b: np.ndarray  # (m, d)
    left: torch.Tensor  # (n, d + 2) float32: [-2 x, |x|^2, 1]
    right: torch.Tensor  # (d + 2, m) float32: [y, 1, |y|^2], a transposed view of rows
    norms_a: np.ndarray  # (n,) float32, squared
    norms_b: np.ndarray  # (m,)
    unit: float  # a power of two: squared distances of the tiles times unit^2 are those of the points
    same: bool  # b is a

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray | None = None) -> "Pairs":
        """Pairs of `a` (n, d) with `b` (m, d), or of `a` with itself; both as `points` returns them."""
        same = b is None
        b = a if same else b
        if a.shape[1] != b.shape[1]:
            raise ScreproError(
                "Both clouds have the same dimensions.",
                got=f"{a.shape[1]} and {b.shape[1]}",
                fix="project both onto the same components, or subset both to the same genes",
            )
        dtype = np.promote_types(a.dtype, b.dtype)
        a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
        centre = _mean(a)
        span = max(_span(cloud, centre) for cloud in ((a,) if same else (a, b)))
        unit = 2.0 ** frexp(span)[1] if span else 1.0  # squares neither overflow nor vanish in float32
        norms_a, norms_b = np.empty(len(a), np.float32), np.empty(len(b), np.float32)
        left, right = (np.empty((len(cloud), a.shape[1] + 2), np.float32) for cloud in (a, b))
        _augment(a, centre, unit, norms_a, left, 0)
        _augment(b, centre, unit, norms_b, right, 1)
        return cls(a, b, torch.from_numpy(left), torch.from_numpy(right).T, norms_a, norms_b, unit, same)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _mean(cloud):
    total = np.zeros(cloud.shape[1])
    for i in range(len(cloud)):
        row = cloud[i]
        for k in range(len(row)):
            total[k] += row[k]
    return total / len(cloud)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _span(cloud, centre):
    """Largest absolute coordinate from the centre."""
    largest = 0.0
    for i in range(len(cloud)):
        row = cloud[i]
        for k in range(len(row)):
            largest = max(largest, abs(row[k] - centre[k]))
    return largest


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _augment(cloud, centre, unit, norms, rows, side):
    """Write rows [-2 x, |x|^2, 1] (`side` 0) or [x, 1, |x|^2] (`side` 1) of the points from the centre."""
    d, scale = cloud.shape[1], np.float32(1 if side else -2)
    for i in range(len(cloud)):
        point, row = cloud[i], rows[i]
        norm = 0.0  # of the coordinates as rounded, or norms and products would not belong to the same point
        for k in range(d):
            value = np.float32((point[k] - centre[k]) / unit)
            norm += np.float64(value) * np.float64(value)
            row[k] = scale * value
        norms[i] = norm
        row[d], row[d + 1] = (1, norm) if side else (norm, 1)


def walk(pairs: Pairs, visit: Callable[[np.ndarray, int, int], float | np.ndarray]) -> float | np.ndarray:
    """Sum of ``visit(tile, i, j)`` over all tiles: tile[p, q] = |a_(i+p) - b_(j+q)|^2 / unit^2, float32, may be < 0.

    The visitor may overwrite the tile. A cloud with itself is walked in tiles that touch or lie above the diagonal
    (j + q > i + p somewhere): the visitor leaves out what is on or below it. The sum is taken in the same order for
    any number of threads.
    """
    n, m = len(pairs.left), pairs.right.shape[1]
    sums = [None] * -(-n // ROWS)

    def worker():
        buffer = torch.empty(ROWS * COLUMNS)

        def block(index: int):
            i = index * ROWS
            rows = pairs.left[i : i + ROWS]
            total = 0.0
            for j in range(i if pairs.same else 0, m, COLUMNS):
                columns = pairs.right[:, j : j + COLUMNS]
                tile = buffer[: len(rows) * columns.shape[1]].view(len(rows), -1)
                torch.mm(rows, columns, out=tile)
                total = total + visit(tile.numpy(), i, j)
            sums[index] = total

        return block

    each(worker, len(sums))
    return sum(sums[1:], start=sums[0])


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def squared_distance(a, b):
    """Squared distance of two points (d,) from their differences, float64."""
    total = 0.0
    for k in range(len(a)):
        difference = np.float64(a[k]) - np.float64(b[k])
        total += difference * difference
    return total
