"""Nearest neighbours in squared Euclidean distance, and coverage by neighbour radii: exact, streamed, symmetric.

For every point a_i the k smallest of |a_i - b_j|^2 - o_j, with offsets o_j = 0 unless transport asks for them (there
they are dual prices). Tiles of squared distances come from `screpro.kernels.tiles`, one float32 matrix product each,
and are read once, in cache: a branch-free comparison of 64 entries with the row's and the columns' worst listed
distance says whether a block holds anything new, which after the first tiles it hardly ever does (each point takes in
k log(n / k) entries in all). Neighbours within one cloud need only the tiles on and above the diagonal: an entry
serves its row and its column. Cost: 2 (d + 2) n m flops, half of that within one cloud; O((n + m) (d + k)) bytes.

The product decides only who is listed. SPARE entries more than asked for are kept, their distances are taken again
from the points in float64, and the list of a row stands if its k-th distance is no larger than what the row's worst
listed entry, less the bound on the rounding of the product, leaves possible for everyone not listed; the few rows
where that fails are compared with all points in float64. So the result is that of the float64 reference for any
scale, offset or duplication of the points; only the order of exactly equal distances is free.

On an NVIDIA GPU `gpu.neighbours` lists the candidates (k = 1 in Triton), and `gpu.cover` finds who is covered; both
prove their lists in the same way.
"""

from dataclasses import dataclass, replace
from threading import local

import numpy as np
import torch
from numba import njit

from screpro.errors import ScreproError
from screpro.kernels.threads import each
from screpro.kernels.tiles import Pairs, points, squared_distance, walk

__all__ = [
    "Shortlist",
    "nearest",
    "radius_cover",
    "reference",
    "rounding_share",
    "shortlist",
    "shortlist_distances",
    "take_in",
]

SPARE = 3  # entries listed beyond k: with them, rows whose list does not stand are one in many thousands
BLOCK = 64  # entries compared at once
UNIT_ROUNDOFF = 2.0**-24


def reference(a: np.ndarray, k: int, b: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What `nearest` computes, from the full float64 matrix of differences; lower index first among equals."""
    other = a if b is None else b
    squares = np.square(np.asarray(a, np.float64)[:, None] - np.asarray(other, np.float64)[None]).sum(axis=2)
    if b is None:
        np.fill_diagonal(squares, np.inf)
    index = np.argsort(squares, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squares, index, axis=1)), index


def nearest(a, k: int, b=None) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest points of `b` for every point of `a`; with `b` None, of `a` without the point itself.

    Parameters
    ----------
    a
        (n, d) points, array or tensor. Tensors on an NVIDIA GPU, `a` and `b` if given, are searched there.
    k
        How many, 1 to m (n - 1 within one cloud).
    b
        (m, d) points.

    Returns
    -------
    distances, indices
        (n, k) float64, Euclidean, ascending, exactly 0 for a duplicate; (n, k) int64 rows of `b` (or `a`). Which of
        several points at exactly the same distance come first is not specified, nor which of them make it into the k.

    Raises
    ------
    ScreproError
        Points are not finite, differ in dimension, or are fewer than `k` asks for.
    """
    if all(isinstance(cloud, torch.Tensor) and cloud.is_cuda for cloud in (a, a if b is None else b)):
        from screpro.kernels.gpu.neighbours import nearest_cuda

        return nearest_cuda(a, k, b)
    pairs = Pairs.of(points("a", a), None if b is None else points("b", b))
    check_k(k, len(pairs.b) - pairs.same)
    found = shortlist(pairs, min(k + SPARE, len(pairs.b) - pairs.same))
    squares = shortlist_distances(pairs, found)
    order = np.argsort(squares, axis=1, kind="stable")[:, :k]
    squares, index = np.take_along_axis(squares, order, axis=1), np.take_along_axis(found.index, order, axis=1)
    # nothing is nearer than 0, so a k-th duplicate needs no bound
    open_rows = np.flatnonzero((squares[:, -1] > found.bound) & (squares[:, -1] > 0))
    if len(open_rows):
        _compare_with_all(pairs, open_rows, squares, index)
    return np.sqrt(squares), index.astype(np.int64)


def radius_cover(a, r, b) -> np.ndarray:
    """Which points of `b` lie within the radius of any point of `a`: any_i |b_j - a_i| <= r_i.

    Parameters
    ----------
    a
        (n, d) points. Tensors on an NVIDIA GPU, both, are compared there.
    r
        (n,) radii, not negative.
    b
        (m, d) points.

    Returns
    -------
    (m,) bool, from distances in float64. Cost 2 (d + 2) n m flops, O((n + m) d) bytes.
    """
    on_gpu = all(isinstance(cloud, torch.Tensor) and cloud.is_cuda for cloud in (a, b))
    if not on_gpu:
        a, b = points("a", a), points("b", b)
    r = np.asarray(r, np.float64)
    if r.shape != (len(a),) or not (r >= 0).all():
        raise ScreproError(
            "`r` holds one radius, 0 or larger, for every point of `a`.",
            got=f"shape {r.shape} for {len(a)} points, smallest {r.min(initial=np.inf)}",
            fix="pass the k-th distances of nearest(a, k)",
        )
    if on_gpu:
        from screpro.kernels.gpu.cover import cover_cuda

        return cover_cuda(a, r, b)
    pairs = Pairs.of(b, a)  # a row is a point of b: it is done at its first hit
    # a pair within r has |b_j| <= |a_i| + r, hence a rounding of at most this
    limit = np.square(r / pairs.unit) + rounding_share(pairs) * np.square(2 * np.sqrt(pairs.norms_b) + r / pairs.unit)
    limit = np.nextafter(limit.astype(np.float32), np.float32(np.inf))
    covered = np.zeros(len(b), np.bool_)
    r = np.square(r) * (1 + 4 * np.finfo(np.float64).eps)  # a radius that is itself a distance covers its own point
    walk(pairs, lambda tile, i, j: _cover(tile, i, j, pairs.a, pairs.b, limit, r, covered))
    return covered


def check_k(k: int, available: int):
    """One message for a `k` that there are not enough points for."""
    if not 1 <= k <= available:
        raise ScreproError(
            "`k` lies between 1 and the number of other points.",
            got=f"k = {k}, {available} other points",
            fix="pass more points or a smaller k",
        )


@dataclass(frozen=True)
class Shortlist:
    """For every row the points that a float32 product puts nearest, and what the others cannot be below."""

    index: np.ndarray  # (n, width) int32
    bound: np.ndarray  # (n,) float64: any point not listed has |a_i - b_j|^2 - o_j >= bound_i; inf if all are listed


def shortlist(pairs: Pairs, width: int, *, offset: np.ndarray | None = None) -> Shortlist:
    """The `width` smallest |a_i - b_j|^2 - o_j of every row up to rounding, and a bound that rounding cannot break.

    Parameters
    ----------
    pairs
        Of two clouds, or of one with itself (then without offsets).
    width
        At most the number of other points.
    offset
        (m,) o_j, in units of the squared distance.
    """
    n, highest, scale = len(pairs.a), 0.0, 0.0
    if offset is not None:
        offset = offset / pairs.unit**2
        highest, scale = offset.max(), np.abs(offset).max()
        right = pairs.right.clone()
        right[-1] = torch.from_numpy((pairs.norms_b - offset).astype(np.float32))
        pairs = replace(pairs, right=right)
    mine, lists = local(), []
    # within one cloud a tile also updates the lists of its columns: threads keep their own, merged at the end
    shared = None if pairs.same else _empty_lists(n, width)

    def visit(tile: np.ndarray, i: int, j: int) -> int:
        if not hasattr(mine, "lists"):
            mine.lists = shared or _empty_lists(n, width)
            lists.append(mine.lists)
        take_in(tile, i, j, pairs.same, *mine.lists)
        return 0

    walk(pairs, visit)
    values, index, _ = lists[0]
    if pairs.same and len(lists) > 1:
        values, index = np.hstack([part[0] for part in lists]), np.hstack([part[1] for part in lists])
        order = np.argsort(values, axis=1, kind="stable")[:, :width]
        values, index = np.take_along_axis(values, order, axis=1), np.take_along_axis(index, order, axis=1)
    if width == len(pairs.b) - pairs.same:
        return Shortlist(index, np.full(n, np.inf))
    worst = values[:, -1].astype(np.float64)
    # whoever is below `worst` has a squared distance below worst + highest offset, so |b_j| <= |a_i| + its root
    reach = 2 * np.sqrt(pairs.norms_a) + np.sqrt(np.maximum(worst + highest, 0))
    rounding = rounding_share(pairs) * np.square(reach) + 2 * UNIT_ROUNDOFF * scale
    rounding += pairs.left.shape[1] * np.finfo(np.float32).tiny  # products that vanish
    return Shortlist(index, (worst - rounding) * pairs.unit**2)


def shortlist_distances(pairs: Pairs, found: Shortlist) -> np.ndarray:
    """(n, width) float64 squared distances of the listed points, from their differences."""
    squares = np.empty(found.index.shape)
    _distances(pairs.a, pairs.b, found.index, squares)
    return squares


def rounding_share(pairs: Pairs) -> float:
    """A tile entry differs from the squared distance by at most this share of (|a| + |b|)^2."""
    return (pairs.left.shape[1] + 8) * UNIT_ROUNDOFF  # d + 2 products and sums; points and norms rounded to float32


def _empty_lists(n: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Listed values, ascending; their indices; the last value of each list on its own, to be read as a vector."""
    return np.full((n, width), np.inf, np.float32), np.full((n, width), -1, np.int32), np.full(n, np.inf, np.float32)


@njit(cache=True, nogil=True)
def _insert(value, column, values, index, worst, row):
    last = values.shape[1] - 1
    while last > 0 and values[row, last - 1] > value:
        values[row, last] = values[row, last - 1]
        index[row, last] = index[row, last - 1]
        last -= 1
    values[row, last] = value
    index[row, last] = column
    worst[row] = values[row, values.shape[1] - 1]


@njit(cache=True, nogil=True)
def take_in(tile, i, j, same, values, index, worst):
    """Put the entries of a tile that beat a list into it: into the rows' lists, and within one cloud the columns'."""
    rows, columns = tile.shape
    for p in range(rows):
        row = i + p
        entries = tile[p]
        if same:
            for q in range(min(max(row - j + 1, 0), columns)):
                entries[q] = np.inf  # on or below the diagonal
        for first in range(0, columns, BLOCK):
            block = entries[first : first + BLOCK]
            others = worst[j + first : j + first + len(block)]
            limit = worst[row]
            news = False
            if same:
                for q in range(len(block)):
                    news |= (block[q] < limit) | (block[q] < others[q])
            else:
                for q in range(len(block)):
                    news |= block[q] < limit
            if news:
                for q in range(len(block)):
                    if block[q] < worst[row]:
                        _insert(block[q], j + first + q, values, index, worst, row)
                    if same and block[q] < others[q]:
                        _insert(block[q], row, values, index, worst, j + first + q)


@njit(cache=True, nogil=True)
def _cover(tile, i, j, b, a, limit, squared_radius, covered):
    """Mark the rows of a tile with an entry within its column's radius."""
    for p in range(tile.shape[0]):
        for first in range(0, tile.shape[1], BLOCK):
            if covered[i + p]:
                break
            block = tile[p, first : first + BLOCK]
            limits = limit[j + first : j + first + len(block)]
            maybe = False
            for q in range(len(block)):
                maybe |= block[q] <= limits[q]
            if maybe:
                for q in range(len(block)):
                    column = j + first + q
                    if block[q] <= limits[q] and squared_distance(b[i + p], a[column]) <= squared_radius[column]:
                        covered[i + p] = True
                        break
    return 0


@njit(cache=True, nogil=True)
def _distances(a, b, index, squares):
    for i in range(index.shape[0]):
        for t in range(index.shape[1]):
            squares[i, t] = squared_distance(a[i], b[index[i, t]])


def _compare_with_all(pairs: Pairs, rows: np.ndarray, squares: np.ndarray, index: np.ndarray):
    """Neighbours of a few rows from float64 distances to every point, into `squares` and `index`."""
    squares[rows], index[rows] = np.inf, -1

    def worker():
        return lambda t: _scan(pairs.a, pairs.b, pairs.same, rows[t], squares, index, np.empty(len(squares)))

    each(worker, len(rows))


@njit(cache=True, nogil=True)
def _scan(a, b, same, row, squares, index, worst):
    worst[row] = np.inf
    for j in range(len(b)):
        if not (same and j == row):
            square = squared_distance(a[row], b[j])
            if square < worst[row]:
                _insert(square, j, squares, index, worst, row)
