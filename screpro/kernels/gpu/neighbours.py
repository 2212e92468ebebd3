"""Nearest neighbours on the GPU.

k = 1 in Triton: one program per tile of rows and share of the columns keeps the smallest squared distance of each row
and where it was; nothing of size n x m reaches memory. The shares give several candidates per row, whose distances are
taken again in float64, and the smallest of them wins. Larger k: chunks of products by cuBLAS, the k + 3 smallest kept
and taken again in float64. Unlike the path for processors this one does not prove its lists: two points whose distances
agree to float32 rounding may change places.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from screpro.kernels.gpu.tiles import block, squares

__all__ = ["nearest_cuda"]

SHARES = 8  # of the columns: candidates per row, and programs enough for a small n
SPARE = 3
CHUNK = 2**28  # numbers of one product when k > 1


def nearest_cuda(a: Tensor, k: int, b: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices (n, k) as ``screpro.kernels.neighbours.nearest`` returns them, from tensors."""
    from screpro.errors import ScreproError
    from screpro.kernels.neighbours import check_k

    same = b is None
    b = a if same else b
    if (
        a.ndim != 2
        or b.ndim != 2
        or a.shape[1] != b.shape[1]
        or not (torch.isfinite(a).all() and torch.isfinite(b).all())
    ):
        raise ScreproError(
            "Points are finite (n, d) and (m, d) tensors.",
            got=f"shapes {tuple(a.shape)} and {tuple(b.shape)}, or values that are not finite",
            fix="give both clouds the same dimensions and find out where NaN comes from",
        )
    check_k(k, len(b) - same)
    centre = b.double().mean(0)
    x, y = ((points.double() - centre).float().contiguous() for points in (a, b))
    listed = _candidates_of_one(x, y, same) if k == 1 else _candidates(x, y, min(k + SPARE, len(b) - same), same)
    exact = torch.stack([(a.double() - b[index].double()).square().sum(1) for index in listed.T], dim=1)
    exact, order = exact.sort(dim=1, stable=True)
    index = listed.gather(1, order)
    return exact[:, :k].sqrt().cpu().numpy(), index[:, :k].cpu().numpy()


def _candidates(x: Tensor, y: Tensor, width: int, same: bool) -> Tensor:
    """(n, width) indices of the smallest float32 distances."""
    rows = max(1, CHUNK // len(y))
    norms = y.square().sum(1)
    found = []
    for start in range(0, len(x), rows):
        tile = torch.addmm(norms, x[start : start + rows], y.T, alpha=-2)
        if same:
            at = torch.arange(len(tile), device=x.device)
            tile[at, at + start] = torch.inf
        found.append(tile.topk(width, largest=False).indices)
    return torch.cat(found)


def _candidates_of_one(x: Tensor, y: Tensor, same: bool) -> Tensor:
    """(n, shares) indices: the nearest point of every row in each share of the columns."""
    (n, d), m = x.shape, len(y)
    tile = 64
    shares = max(1, min(SHARES, triton.cdiv(m, tile) - 1))
    per_share = triton.cdiv(triton.cdiv(m, shares), tile) * tile
    shares = triton.cdiv(m, per_share)
    index = torch.empty(n, shares, dtype=torch.int64, device=x.device)
    _nearest_kernel[(triton.cdiv(n, tile), shares)](
        x, y, torch.zeros(d, device=x.device), index, n, m, d, per_share, shares, int(same),
        TILE=tile, STEP=block(d), TYPE=tl.float32, PRECISION="tf32x3",
    )  # fmt: skip
    # a share that holds nothing but the point itself lists nothing: take any other candidate of the row
    return torch.where(index < 0, index.amax(1, keepdim=True), index)


@triton.jit
def _nearest_kernel(
    x, y, centre, index, n, m, d, per_share, shares, same,
    TILE: tl.constexpr, STEP: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Nearest of a share of the columns for a tile of rows."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    first = tl.program_id(1) * per_share
    best = tl.full((TILE,), float("inf"), TYPE)
    where = tl.full((TILE,), -1, tl.int32)
    for start in range(first, min(first + per_share, m), TILE):
        columns = start + tl.arange(0, TILE)
        square = squares(x, rows, n, y, columns, m, d, centre, same, STEP, TYPE, PRECISION)
        allowed = (columns < m)[None, :] & ((same == 0) | (rows[:, None] != columns[None, :]))
        square = tl.where(allowed, square, float("inf"))
        smallest = tl.min(square, 1)
        at = tl.argmin(square, 1)
        where = tl.where(smallest < best, start + at, where)
        best = tl.minimum(best, smallest)
    tl.store(index + rows.to(tl.int64) * shares + tl.program_id(1), where.to(tl.int64), mask=rows < n)
