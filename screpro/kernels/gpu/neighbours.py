"""Nearest neighbours on the GPU.

k = 1 in Triton: one program per tile of rows and share of the columns keeps the smallest squared distance of each row,
where it was, and the second smallest; nothing of size n x m reaches memory. The shares give several candidates per
row. Larger k: chunks of products by cuBLAS, of which the k + 3 smallest are candidates. Distances of candidates are
taken again in float64. The list of a row stands if its k-th distance is no larger than what the smallest float32 value
of all others, less the bound on its rounding, leaves possible for them; other rows are compared with all points in
float64. So the result is that of the float64 reference, as on the CPU.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from screpro.kernels.gpu.points import Clouds, distances, rounding
from screpro.kernels.gpu.tiles import block, squares

__all__ = ["nearest_cuda"]

SHARES = 8  # of the columns: candidates per row, and programs enough for a small n
SPARE = 3
CHUNK = 2**24  # numbers of one product when k > 1, or of distances in float64


def nearest_cuda(a: Tensor, k: int, b: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices (n, k) as ``screpro.kernels.neighbours.nearest`` returns them, from tensors."""
    from screpro.kernels.neighbours import check_k

    clouds = Clouds.of(a, b)
    available = len(clouds.b) - clouds.same
    check_k(k, available)
    x, y = clouds.centred()
    if k == 1:
        listed, others = _candidates_of_one(x, y, clouds.same)
    else:
        listed, others = _candidates(x, y, min(k + SPARE, available), clouds.same)
    every = torch.arange(len(x), device=x.device)
    exact, index = _exact(clouds, every, listed, k)
    # whoever is below `others` has |y| <= |x| + its root, hence a rounding of at most this
    reach = 2 * x.double().square().sum(1).sqrt() + others.clamp(min=0).sqrt()
    bound = others - rounding(x.shape[1]) * reach.square() - x.shape[1] * torch.finfo(torch.float32).tiny
    # nothing is nearer than 0, so a k-th duplicate needs no bound; no others at all: an infinite one
    is_open = (exact[:, -1] > bound) & (exact[:, -1] > 0) & others.isfinite()
    for rows in every[is_open].split(max(1, CHUNK // len(y))):
        all_of_row = distances(clouds.a[rows], clouds.b)
        if clouds.same:
            all_of_row[torch.arange(len(rows), device=x.device), rows] = torch.inf
        listed = all_of_row.topk(k, largest=False).indices
        exact[rows], index[rows] = _exact(clouds, rows, listed, k)
    return (exact.sqrt() * clouds.unit).cpu().numpy(), index.cpu().numpy()


def _exact(clouds: Clouds, rows: Tensor, listed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest float64 squared distances of `rows` to points listed for them, ascending, and their indices."""
    a = clouds.a[rows].double()
    exact = torch.stack([(a - clouds.b[index].double()).square().sum(1) for index in listed.T], dim=1)
    exact, order = exact.sort(dim=1, stable=True)
    return exact[:, :k].contiguous(), listed.gather(1, order[:, :k])


def _candidates(x: Tensor, y: Tensor, width: int, same: bool) -> tuple[Tensor, Tensor]:
    """(n, width) indices of the smallest float32 squared distances, and (n,) float64 that no other's is below."""
    rows = max(1, CHUNK // len(y))
    norms = y.double().square().sum(1).float()
    found, others = [], []
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        tile = torch.addmm(norms, part, y.T, alpha=-2)
        if same:
            at = torch.arange(len(tile), device=x.device)
            tile[at, at + start] = torch.inf
        values, index = tile.topk(width, largest=False)
        found.append(index)
        others.append(values[:, -1].double() + part.double().square().sum(1))
    others = torch.cat(others)
    return torch.cat(found), torch.full_like(others, torch.inf) if width == len(y) - same else others


def _candidates_of_one(x: Tensor, y: Tensor, same: bool) -> tuple[Tensor, Tensor]:
    """(n, shares) indices: the nearest point of every row in each share of the columns; (n,) as `_candidates`."""
    (n, d), m = x.shape, len(y)
    tile = 64
    shares = max(1, min(SHARES, triton.cdiv(m, tile) - 1))
    per_share = triton.cdiv(triton.cdiv(m, shares), tile) * tile
    shares = triton.cdiv(m, per_share)
    index = torch.empty(n, shares, dtype=torch.int64, device=x.device)
    others = torch.empty(n, shares, device=x.device)
    _nearest_kernel[(triton.cdiv(n, tile), shares)](
        x, y, torch.zeros(d, device=x.device), index, others, n, m, d, per_share, shares, int(same),
        TILE=tile, STEP=block(d), TYPE=tl.float32, PRECISION="tf32x3",
    )  # fmt: skip
    # a share that holds nothing but the point itself lists nothing: take any other candidate of the row
    return torch.where(index < 0, index.amax(1, keepdim=True), index), others.amin(1).double()


@triton.jit
def _nearest_kernel(
    x, y, centre, index, others, n, m, d, per_share, shares, same,
    TILE: tl.constexpr, STEP: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Nearest of a share of the columns for a tile of rows, and the squared distance of the second nearest."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    first = tl.program_id(1) * per_share
    best = tl.full((TILE,), float("inf"), TYPE)
    second = best
    where = tl.full((TILE,), -1, tl.int32)
    for start in range(first, min(first + per_share, m), TILE):
        columns = start + tl.arange(0, TILE)
        square = squares(x, rows, n, y, columns, m, d, centre, same, STEP, TYPE, PRECISION)
        allowed = (columns < m)[None, :] & ((same == 0) | (rows[:, None] != columns[None, :]))
        square = tl.where(allowed, square, float("inf"))
        smallest = tl.min(square, 1)
        at = tl.argmin(square, 1)
        rest = tl.min(tl.where(tl.arange(0, TILE)[None, :] == at[:, None], float("inf"), square), 1)
        second = tl.minimum(tl.minimum(second, rest), tl.maximum(best, smallest))
        where = tl.where(smallest < best, start + at, where)
        best = tl.minimum(best, smallest)
    place = rows.to(tl.int64) * shares + tl.program_id(1)
    tl.store(index + place, where.to(tl.int64), mask=rows < n)
    tl.store(others + place, second, mask=rows < n)
