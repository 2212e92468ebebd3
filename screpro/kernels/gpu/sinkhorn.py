"""A half step of Sinkhorn in Triton: a streamed log-sum-exp over pairs, the sets in the grid.

One program per set and tile of points goes over the other set's points, keeps the running maximum and the running sum
of powers of two, and rescales the sum where the maximum grows. No matrix of costs is stored. Exponents are taken to
base 2, of squared distances in float32 (three TF32 products) or float64.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from screpro.kernels.gpu.tiles import block, squares

__all__ = ["softmin"]

NOTHING = -1e30  # exponent of a padded point


def softmin(x: Tensor, y: Tensor, g: Tensor, weights_y: Tensor, eps: float) -> Tensor:
    """f_i = -eps log sum_j b_j exp((g_j - |x_i - y_j|^2) / eps) of every set, (B, n) float64.

    Parameters
    ----------
    x, y
        (B, n, d) and (B, m, d) contiguous points around their common mean, float32 or float64.
    g, weights_y
        (B, m) float64 potentials and weights; a weight of 0 is padding.
    eps
        Strength of the entropy, in squared units of the points.
    """
    (sets, n, d), m = x.shape, y.shape[1]
    scale = 1 / (eps * math.log(2))
    # what does not depend on the row; its largest value is taken out so that float32 keeps the differences
    offset = g * scale + weights_y.log2().clamp(min=NOTHING)
    top = offset.amax(1, keepdim=True)
    offset = (offset - top).to(x.dtype).contiguous()
    out = torch.empty(sets, n, dtype=torch.float64, device=x.device)
    double = x.dtype == torch.float64
    tile = 32 if double else 64
    _softmin_kernel[(sets, triton.cdiv(n, tile))](
        x.contiguous(), y.contiguous(), torch.zeros(d, dtype=x.dtype, device=x.device), offset,
        torch.tensor([scale], dtype=x.dtype, device=x.device), out, n, m, d,
        TILE=tile, STEP=block(d), TYPE=tl.float64 if double else tl.float32,
        PRECISION="ieee" if double else "tf32x3",
    )  # fmt: skip
    return -(out + top) / scale


@triton.jit
def _softmin_kernel(
    x, y, centre, offset, scale, out, n, m, d,
    TILE: tl.constexpr, STEP: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """log2 of the sum over the other set's points, for a tile of points of one set."""
    one = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    x += one * n * d
    y += one * m * d
    per_square = tl.load(scale)  # from memory: as an argument it would be rounded to float32
    highest = tl.full((TILE,), -1.0e38, TYPE)
    total = tl.zeros((TILE,), TYPE)
    for start in range(0, m, TILE):
        columns = start + tl.arange(0, TILE)
        square = squares(x, rows, n, y, columns, m, d, centre, 0, STEP, TYPE, PRECISION)
        shift = tl.load(offset + one * m + columns, mask=columns < m, other=-1.0e38)
        exponent = shift[None, :] - square * per_square
        new = tl.maximum(highest, tl.max(exponent, 1))
        total = total * tl.exp2(highest - new) + tl.sum(tl.exp2(exponent - new[:, None]), 1)
        highest = new
    value = highest.to(tl.float64) + tl.log2(total).to(tl.float64)
    tl.store(out + one * n + rows, value, mask=rows < n)
