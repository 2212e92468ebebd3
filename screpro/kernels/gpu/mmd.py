"""Triton kernel of the maximum mean discrepancy; what it is stands in ``screpro/kernels/mmd.py``.

One program per tile of rows and share of the columns, as in ``energy.py``: a tile of squared distances stays in
registers while every kernel is evaluated on it, so K widths cost one product. ``exp(-gamma s) - 1`` is taken as
``2^i (2^f - 1) + (2^i - 1)`` with |f| <= 1/2 and a polynomial for the bracket: a wide kernel, 1 minus little at every
pair, keeps all its digits. Sums per program are float64.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from screpro.kernels.gpu.energy import TILE, shares, types
from screpro.kernels.gpu.points import Clouds
from screpro.kernels.gpu.tiles import block, squares

__all__ = ["kernel_sums"]


@triton.jit
def _kernels_kernel(
    a, b, centre, rates, sums, n, m, d, same, per_program,
    K: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums (K,) of ``2^(-rate square) - 1`` over a tile of rows (axis 0) and `per_program` tiles of columns (axis 1);
    above the diagonal only where the clouds are the `same`."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    first = tl.program_id(1) * per_program
    last = tl.minimum(first + per_program, tl.cdiv(m, TILE))
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    if same:
        first = tl.maximum(first, tl.program_id(0))
    widths = tl.arange(0, K)
    total = tl.zeros((K,), tl.float64)
    for tile in range(first, last):
        columns = tile * TILE + tl.arange(0, TILE)
        square = squares(a, rows, n, b, columns, m, d, centre, same, STEP, TYPE, PRECISION).to(tl.float32)
        pairs = (rows < n)[:, None] & (columns < m)[None, :]
        pairs = pairs & ((same == 0) | (columns[None, :] > rows[:, None]))
        for k in range(K):
            exponent = tl.maximum(-tl.load(rates + k) * square, -126.0)
            whole = tl.floor(exponent + 0.5)
            f = exponent - whole
            rest = f * 1.5252734e-5 + 1.5403530e-4
            rest = rest * f + 1.3333558e-3
            rest = rest * f + 9.6181291e-3
            rest = rest * f + 5.5504109e-2
            rest = rest * f + 2.4022651e-1
            rest = (rest * f + 6.9314718e-1) * f
            power = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
            kernel = tl.where(pairs, power * rest + (power - 1), 0)
            total += tl.where(widths == k, tl.sum(kernel).to(tl.float64), 0)
    tl.store(sums + program * K + widths, total)


def kernel_sums(a: Tensor, b: Tensor, gammas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums (K,) float64 of ``exp(-gamma |x - y|^2) - 1`` over all ordered pairs within a, within b, between them."""
    return tuple(_sums(*pair, gammas) for pair in ((a, None), (b, None), (a, b)))


def _sums(a: Tensor, b: Tensor | None, gammas: np.ndarray) -> np.ndarray:
    clouds = Clouds.of(a, b)
    (n, d), m = clouds.a.shape, len(clouds.b)
    grid, per_program = shares(n, m)
    count = triton.next_power_of_2(len(gammas))
    rates = np.zeros(count)  # a width of 0 fills up: its sum is 0
    rates[: len(gammas)] = np.minimum(gammas * np.log2(np.e) * clouds.unit**2, 1e30)
    rates = torch.tensor(rates, dtype=torch.float32, device=a.device)
    sums = torch.empty(*grid, count, dtype=torch.float64, device=a.device)
    _kernels_kernel[grid](
        clouds.a, clouds.b, clouds.centre, rates, sums, n, m, d, int(clouds.same), per_program,
        K=count, TILE=TILE, STEP=block(d), num_warps=8, **types(clouds.a),
    )  # fmt: skip
    return sums.sum(dim=(0, 1)).cpu().numpy()[: len(gammas)] * (2 if clouds.same else 1)
