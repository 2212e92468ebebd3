"""Triton kernels of the energy distance; what it is stands in ``screpro/kernels/energy.py``.

Training. Sets of up to 128 points, the usual case: one program per set, cloud and 64 points of it. It goes over the
d coordinates once for the products of its points with their own cloud and with the other, two tiles that stay in
registers; turns them into distances, summed, and into weights; and goes over the coordinates again, now in the
second-level cache, for the gradient. One launch does the loss and its gradient, nothing of size n x m reaches memory,
backward is one multiplication. Larger sets: one program per tile of pairs writes weights, a library product makes
the gradient, in turns, so that the weights of at most `WORKSPACE` pairs exist at a time.

Evaluation. One program per tile of rows and share of the columns; sums leave the chip as one float64 per program
and are added in a fixed order.

Products of float32 points are three TF32 products on the tensor cores, as exact as float32 to a few units. Centring
happens on loading. A point with itself is left out by index, near pairs are taken again from differences.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from screpro.kernels.gpu.points import Clouds
from screpro.kernels.gpu.tiles import NEAR, block, exact_squares, load_points, squares

__all__ = ["energy_loss", "mean_distance"]

ON_CHIP = 128  # points of a set whose tiles stay in registers
TILE = 64
WORKSPACE = 2**26  # pairs


@triton.jit
def _centred(own, other, rows, index, n_own, n_other, k, d, STEP: tl.constexpr, TYPE: tl.constexpr):
    """Coordinates `k` of `rows` of the own cloud, of all its points, of all of the other, minus its own mean."""
    zero = tl.zeros((STEP,), TYPE)
    points = load_points(own, index, n_own, k, d, zero, TYPE)
    centre = tl.sum(points, 0) / n_own  # all points are there: their mean costs no pass of its own
    points = tl.where((index < n_own)[:, None], points - centre[None, :], 0)
    return (
        load_points(own, rows, n_own, k, d, centre, TYPE),
        points,
        load_points(other, index, n_other, k, d, centre, TYPE),
    )


@triton.jit
def _distances(product, norm_rows, norms, rows, n_rows, columns, n, apart, own, other, d):
    """Distances (R, C) from products of centred points; 0 for what is not there and, unless `apart`, for i = j."""
    pairs = (rows < n_rows)[:, None] & (columns < n)[None, :] & (apart | (rows[:, None] != columns[None, :]))
    norms = norm_rows[:, None] + norms[None, :]
    square = norms - 2 * product
    near = (pairs & (square < norms * NEAR)).to(tl.int32)
    return tl.where(pairs, tl.sqrt(exact_squares(square, near, own, rows, n_rows, other, columns, n, d)), 0)


@triton.jit
def _set_kernel(
    x, y, lengths_x, lengths_y, values, grad_x, grad_y, n, m, d,
    GRAD_X: tl.constexpr, GRAD_Y: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, STEP: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Share of ROWS points (axis 2) of one cloud (axis 1: x, y) of one set (axis 0) in the loss, and their gradient."""
    s = tl.program_id(0).to(tl.int64)
    cloud = tl.program_id(1)
    first_x, first_y = x + s * n * d, y + s * m * d
    n_x, n_y = tl.load(lengths_x + s), tl.load(lengths_y + s)
    if cloud == 0:
        own, other, n_own, n_other = first_x, first_y, n_x, n_y
    else:
        own, other, n_own, n_other = first_y, first_x, n_y, n_x
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    index = tl.arange(0, SIZE)
    within = tl.zeros((ROWS, SIZE), TYPE)
    between = tl.zeros((ROWS, SIZE), TYPE)
    norm_rows = tl.zeros((ROWS,), TYPE)
    norm_own = tl.zeros((SIZE,), TYPE)
    norm_other = tl.zeros((SIZE,), TYPE)
    for start in range(0, d, STEP):
        k = start + tl.arange(0, STEP)
        r, p, q = _centred(own, other, rows, index, n_own, n_other, k, d, STEP, TYPE)
        within = tl.dot(r, tl.trans(p), within, input_precision=PRECISION, out_dtype=TYPE)
        between = tl.dot(r, tl.trans(q), between, input_precision=PRECISION, out_dtype=TYPE)
        norm_rows += tl.sum(r * r, 1)
        norm_own += tl.sum(p * p, 1)
        norm_other += tl.sum(q * q, 1)
    within = _distances(within, norm_rows, norm_own, rows, n_own, index, n_own, False, own, own, d)
    between = _distances(between, norm_rows, norm_other, rows, n_own, index, n_other, True, own, other, d)
    share = 1.0 / (n_own.to(TYPE) * n_own.to(TYPE))
    cross = 1.0 / (n_own.to(TYPE) * n_other.to(TYPE))
    value = -0.5 * share * tl.sum(within)
    if cloud == 0:  # distances between x and y are counted once, with x
        value += cross * tl.sum(between)
    tl.store(values + (s * 2 + cloud) * tl.num_programs(2) + tl.program_id(2), value)
    if GRAD_X or GRAD_Y:
        within = tl.where(within > 0, -share / tl.where(within > 0, within, 1), 0)
        between = tl.where(between > 0, cross / tl.where(between > 0, between, 1), 0)
        total = tl.sum(within, 1) + tl.sum(between, 1)
        size = tl.where(cloud == 0, n, m)
        if cloud == 0:
            grad = grad_x + s * n * d
        else:
            grad = grad_y + s * m * d
        if (GRAD_X and cloud == 0) or (GRAD_Y and cloud == 1):
            for start in range(0, d, STEP):
                k = start + tl.arange(0, STEP)
                r, p, q = _centred(own, other, rows, index, n_own, n_other, k, d, STEP, TYPE)
                pull = tl.dot(within, p, input_precision=PRECISION, out_dtype=TYPE)
                pull = tl.dot(between, q, pull, input_precision=PRECISION, out_dtype=TYPE)
                there = (rows < size)[:, None] & (k < d)[None, :]
                tl.store(grad + rows[:, None] * d + k[None, :], total[:, None] * r - pull, mask=there)


@triton.jit
def _weights_kernel(
    z, centre, lengths_x, lengths_y, weights, values, n, size, d, first, rows_here, columns_first,
    TILE: tl.constexpr, STEP: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tile (axes 1, 2) of one set's (axis 0) weights, rows from `first`, columns from `columns_first`; and its share
    of the loss. z (B, size, d) holds x in rows 0 to n, y from row n."""
    s = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * TILE + tl.arange(0, TILE)
    rows = first + row
    columns = columns_first + tl.program_id(2) * TILE + tl.arange(0, TILE)
    n_x, n_y = tl.load(lengths_x + s), tl.load(lengths_y + s)
    z += s * size * d
    square = squares(z, rows, size, z, columns, size, d, centre + s * d, 1, STEP, TYPE, PRECISION)
    row_x, column_x = rows[:, None] < n, columns[None, :] < n
    row_real = (row < rows_here) & tl.where(rows < n, rows < n_x, rows < n + n_y)
    column_real = tl.where(columns < n, columns < n_x, columns < n + n_y)
    pairs = row_real[:, None] & column_real[None, :] & (rows[:, None] != columns[None, :])
    distance = tl.where(pairs, tl.sqrt(square), 0)
    n_row = tl.where(rows < n, n_x, n_y).to(TYPE)
    n_column = tl.where(columns < n, n_x, n_y).to(TYPE)
    share = tl.where(row_x == column_x, -1.0, 1.0) / (n_row[:, None] * n_column[None, :])
    counted = tl.where(row_x == column_x, 0.5, tl.where(row_x, 1.0, 0.0))
    tile = (s * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
    tl.store(values + tile, tl.sum(share * counted * distance))
    weight = tl.where(distance > 0, -share / tl.where(distance > 0, distance, 1), 0)
    there = (row < rows_here)[:, None] & (columns < size)[None, :]
    at = (s * rows_here + row.to(tl.int64))[:, None] * size + columns[None, :]
    tl.store(weights + at, weight, mask=there)


@triton.jit
def _roots_kernel(
    a, b, centre, sums, n, m, d, same, per_program,
    TILE: tl.constexpr, STEP: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum of distances of a tile of rows (axis 0) to `per_program` tiles of columns (axis 1); above the diagonal
    only where the clouds are the `same`."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    total = tl.zeros((), tl.float64)
    first = tl.program_id(1) * per_program
    last = tl.minimum(first + per_program, tl.cdiv(m, TILE))
    if same:
        first = tl.maximum(first, tl.program_id(0))
    for tile in range(first, last):
        columns = tile * TILE + tl.arange(0, TILE)
        square = squares(a, rows, n, b, columns, m, d, centre, same, STEP, TYPE, PRECISION)
        pairs = (rows < n)[:, None] & (columns < m)[None, :]
        pairs = pairs & ((same == 0) | (columns[None, :] > rows[:, None]))
        total += tl.sum(tl.where(pairs, tl.sqrt(square), 0)).to(tl.float64)
    tl.store(sums + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), total)


def types(points: Tensor) -> dict:
    """Type in which a kernel counts, and precision of its products."""
    if points.dtype == torch.float64:
        return {"TYPE": tl.float64, "PRECISION": "ieee"}
    return {"TYPE": tl.float32, "PRECISION": "tf32x3"}


def mean_distance(a: Tensor, b: Tensor | None = None) -> float:
    """See ``screpro.kernels.energy.mean_distance``."""
    clouds = Clouds.of(a, b)
    (n, d), m = clouds.a.shape, len(clouds.b)
    grid, per_program = shares(n, m)
    sums = torch.empty(grid, dtype=torch.float64, device=a.device)
    _roots_kernel[grid](
        clouds.a, clouds.b, clouds.centre, sums, n, m, d, int(clouds.same), per_program,
        TILE=TILE, STEP=block(d), num_warps=8, **types(clouds.a),
    )  # fmt: skip
    return float(sums.sum()) * clouds.unit * (2 if clouds.same else 1) / (n * m)


def shares(n: int, m: int) -> tuple[tuple[int, int], int]:
    """Grid (tiles of rows, shares of columns) and tiles of columns per share: at least a thousand programs."""
    rows, columns = triton.cdiv(n, TILE), triton.cdiv(m, TILE)
    per_program = max(1, min(columns, rows * columns // 1024))
    return (rows, triton.cdiv(columns, per_program)), per_program


def energy_loss(x: Tensor, y: Tensor, *, lengths_x: Tensor | None = None, lengths_y: Tensor | None = None) -> Tensor:
    """See ``screpro.kernels.energy.energy_loss``; lengths are not checked, which would wait for the device."""
    lengths = []
    for cloud, given in ((x, lengths_x), (y, lengths_y)):
        if given is None:
            given = torch.full((len(cloud),), cloud.shape[1], dtype=torch.int32, device=x.device)
        lengths.append(torch.as_tensor(given, dtype=torch.int32, device=x.device))
    gradients = tuple(torch.is_grad_enabled() and p.requires_grad for p in (x, y))
    return _EnergyLoss.apply(x, y, *lengths, gradients)


class _EnergyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, lengths_x: Tensor, lengths_y: Tensor, gradients: tuple[bool, bool]):
        x, y = x.contiguous(), y.contiguous()
        small = max(x.shape[1], y.shape[1]) <= ON_CHIP
        value, grads = (_small_sets if small else _large_sets)(x, y, lengths_x, lengths_y, gradients)
        ctx.grads, ctx.dtype = grads, x.dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        scaled = [None if g is None else (g * grad[:, None, None]).to(ctx.dtype) for g in ctx.grads]
        return *scaled, None, None, None


def _small_sets(x: Tensor, y: Tensor, lengths_x: Tensor, lengths_y: Tensor, gradients: tuple[bool, bool]):
    (sets, n, d), m = x.shape, y.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    grads = [torch.empty_like(p, dtype=dtype) if wanted else None for p, wanted in zip((x, y), gradients, strict=True)]
    size = max(16, triton.next_power_of_2(max(n, m)))
    rows = min(size, TILE)
    values = torch.empty(sets, 2, size // rows, dtype=dtype, device=x.device)
    _set_kernel[tuple(values.shape)](
        x, y, lengths_x, lengths_y, values, *(values if grad is None else grad for grad in grads), n, m, d,
        GRAD_X=gradients[0], GRAD_Y=gradients[1], ROWS=rows, SIZE=size, STEP=16, num_warps=8, **types(x),
    )  # fmt: skip
    return values.sum(dim=(1, 2)), grads


def _large_sets(x: Tensor, y: Tensor, lengths_x: Tensor, lengths_y: Tensor, gradients: tuple[bool, bool]):
    (sets, n, d), m = x.shape, y.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    here = torch.arange(n, device=x.device)[None] < lengths_x[:, None]
    centre = torch.where(here[:, :, None], x, 0).sum(1, dtype=dtype) / lengths_x[:, None]
    z = torch.cat([x, y], dim=1).to(dtype) - centre[:, None]
    real = torch.cat([here, torch.arange(m, device=x.device)[None] < lengths_y[:, None]], dim=1)
    z = torch.where(real[:, :, None], z, 0)  # what lies beyond the lengths may be NaN and meets a weight of 0
    none = torch.zeros_like(centre)
    grads = [torch.empty_like(p, dtype=dtype) if wanted else None for p, wanted in zip((x, y), gradients, strict=True)]
    value = torch.zeros(sets, dtype=dtype, device=x.device)
    size = n + m
    step = max(TILE, WORKSPACE // size)
    for (first, count), grad in zip(((0, n), (n, m)), grads, strict=True):
        skip = n if first and grad is None else 0  # distances of y to x are known from x
        for i in range(first, first + count, step):
            rows = min(step, first + count - i)
            chunk = max(1, WORKSPACE // (rows * size))
            for s in range(0, sets, chunk):
                part = slice(s, min(s + chunk, sets))
                grid = (part.stop - s, triton.cdiv(rows, TILE), triton.cdiv(size - skip, TILE))
                weights = torch.empty(grid[0], rows, size, dtype=dtype, device=x.device)
                sums = torch.empty(grid, dtype=dtype, device=x.device)
                _weights_kernel[grid](
                    z[part], none, lengths_x[part], lengths_y[part], weights, sums, n, size, d, i, rows, skip,
                    TILE=TILE, STEP=block(d), num_warps=8, **types(x),
                )  # fmt: skip
                value[part] += sums.sum(dim=(1, 2))
                if grad is not None:
                    torch.diagonal(weights, offset=i, dim1=1, dim2=2).copy_(-weights.sum(dim=2))
                    torch.bmm(weights, z[part], out=grad[part, i - first : i - first + rows])
    return value, grads
