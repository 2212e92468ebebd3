"""The energy loss of a batch of sets on the CPU, with its gradient; what it is stands in ``energy.py``.

The gradient of point i of x is ``sum_j w_ij (x_i - z_j)`` over the points z = [x; y], with ``w = +-1/distance``: one
product of a matrix W, whose diagonal holds the row sums, with z. A few sets at a time, as many as fit a
second-level cache, go from centring to gradient while they are there:

1. `_centre`   x and y minus the mean of x, into z
2. `_gram`     inner products of all points
3. `_weigh`    products -> squared distances -> distances, summed -> weights W, in place
4. W z         the gradient, by the matrix library
5. `_squares`, `_add_slope`   the squared error point by point and its gradient, where it is asked for

so x and y are read from memory once, nothing of size n x m outlives its set, and backward is one multiplication by
the incoming gradient. The distances within y cost their sum only, unless y asks for a gradient.
"""

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from screpro.kernels.linear import linear
from screpro.kernels.threads import each
from screpro.kernels.tiles import FAST, NEAR, squared_distance

__all__ = ["EnergyLoss"]

CACHE = 2**17  # numbers worked on at a time: half of a second-level cache in float32
SMALL = 512  # points of x and y together up to which `_gram` does the products
ROWS = 512  # rows of a larger set at a time
LARGE = 2**25  # multiply-adds from which `linear` is faster than the BLAS, the copy of its result included


class EnergyLoss(torch.autograd.Function):
    """``apply(x, y, lengths_x, lengths_y, gradients, squares)`` -> (B,) losses.

    x (B, n, d) and y (B, m, d); lengths (B,) int64 numpy arrays; `gradients` says whether x, and whether y, will be
    asked for one; `squares` is the weight of the mean squared error between x and y, with which n = m.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        y: Tensor,
        lengths_x: np.ndarray,
        lengths_y: np.ndarray,
        gradients: tuple[bool, bool],
        squares: float,
    ):
        ctx.rest = lengths_x, lengths_y, gradients, squares
        value, ctx.grads = _sweep(x, y, *ctx.rest)
        ctx.save_for_backward(x, y)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        # scaled where they lie: a copy of that size costs as much as a tenth of the sweep. A graph that was retained
        # and is walked again makes them anew
        grads, ctx.grads = ctx.grads or _sweep(*ctx.saved_tensors, *ctx.rest)[1], None
        dtype = ctx.saved_tensors[0].dtype
        return *(None if g is None else g.mul_(grad[:, None, None]).to(dtype) for g in grads), *[None] * 4


def _sweep(
    x: Tensor, y: Tensor, lengths_x: np.ndarray, lengths_y: np.ndarray, gradients: tuple[bool, bool], squares: float
) -> tuple[Tensor, list[Tensor | None]]:
    """Losses (B,) and the gradients of their sum, for x and y each where asked for; arguments of `EnergyLoss`."""
    (sets, n, d), m = x.shape, y.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    value = torch.empty(sets, dtype=dtype)
    grads = [torch.empty_like(p, dtype=dtype) if wanted else None for p, wanted in zip((x, y), gradients, strict=True)]
    size = _four(n) + _four(m)
    chunk = max(1, CACHE // (size * max(size, d)))

    def worker():
        space = {}  # one thread's buffers, reused

        def some(index: int):
            part = slice(index * chunk, (index + 1) * chunk)
            clouds = [p[part].to(dtype).contiguous() for p in (x, y)]
            lengths = lengths_x[part], lengths_y[part]
            into = [None if grad is None else grad[part] for grad in grads]
            value[part] = torch.from_numpy(_losses(*clouds, *lengths, into, space))
            if squares:
                value[part] += torch.from_numpy(_squared_error(*(p.numpy() for p in clouds), squares, into))

        return some

    each(worker, -(-sets // chunk))
    return value, grads


def _losses(
    x: Tensor, y: Tensor, lengths_x: np.ndarray, lengths_y: np.ndarray, grads: list[Tensor | None], space: dict
) -> np.ndarray:
    """Losses (C,) of C sets (C, n, d), (C, m, d); their gradients go into `grads`, shaped as x and y."""
    (sets, n, d), m = x.shape, y.shape[1]
    top = _four(n)  # x and y each start at a multiple of four
    size = top + _four(m)
    z = _buffer(space, "z", (sets, size, d), x.dtype)
    _centre(x.numpy(), y.numpy(), lengths_x, lengths_y, top, z.numpy())
    whole = size <= SMALL and d > 128
    if whole:
        gram = _buffer(space, "gram", (sets, size, size), x.dtype)
        _gram(z.numpy(), gram.numpy())
        norms = gram.diagonal(dim1=1, dim2=2).contiguous()
    else:
        norms = torch.linalg.vecdot(z, z)
    sums = np.zeros((2, sets, 2))  # of distances, from points of x or y, to points of x or y
    for own, (first, count, grad) in enumerate(((0, n, grads[0]), (top, m, grads[1]))):
        step = count if whole else ROWS
        for i in range(first, first + count, step):
            rows = slice(i, min(i + step, first + count))
            skip = top if own and grad is None and not whole else 0  # distances of y to x are known from x
            if whole:
                tile, shift = gram, 0
            else:
                tile, shift = _buffer(space, "tile", (sets, rows.stop - i, size - skip), x.dtype), i
                _multiply(z[:, rows], z[:, skip:].mT, tile)
            _weigh(tile.numpy(), i, rows.stop, shift, skip, z.numpy(), norms.numpy(), lengths_x, lengths_y, top, sums)
            if grad is not None:
                weights = tile[:, rows] if whole else tile
                _multiply(weights, z, grad[:, i - first : rows.stop - first])
    return (
        sums[0, :, 1] / (lengths_x * lengths_y)
        - sums[0, :, 0] / (2 * lengths_x**2)
        - sums[1, :, 1] / (2 * lengths_y**2)
    )


def _squared_error(x: np.ndarray, y: np.ndarray, weight: float, grads: list[Tensor | None]) -> np.ndarray:
    """`weight` times the mean squared error of C sets (C,), its gradients added to `grads`."""
    weight /= x[0].size
    for own, other, grad in ((x, y, grads[0]), (y, x, grads[1])):
        if grad is not None:
            _add_slope(own, other, x.dtype.type(2 * weight), grad.numpy())
    return weight * _squares(x, y)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _squares(x, y):
    """Sums of squared differences of (C, n, d) arrays, (C,)."""
    sums = np.zeros(len(x))
    for s in range(len(x)):
        for i in range(x.shape[1]):
            a, b = x[s][i], y[s][i]
            total = x.dtype.type(0)
            for k in range(len(a)):
                total += (a[k] - b[k]) ** 2
            sums[s] += total
    return sums


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _add_slope(x, y, weight, into):
    """``into += weight (x - y)`` for (C, n, d) arrays."""
    for s in range(len(x)):
        for i in range(x.shape[1]):
            a, b, out = x[s][i], y[s][i], into[s][i]
            for k in range(len(a)):
                out[k] += weight * (a[k] - b[k])


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Products of (C, r, k) and (C, k, c), large ones one by one."""
    if a[0].numel() * b.shape[2] < LARGE:
        torch.bmm(a, b, out=out)
        return
    for own, (left, right) in zip(out, zip(a, b, strict=True), strict=True):
        own.copy_(linear(left, right.mT))


def _four(n: int) -> int:
    return -(-n // 4) * 4


def _buffer(space: dict, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = int(np.prod(shape))
    if name not in space or space[name].numel() < size:
        space[name] = torch.empty(size, dtype=dtype)
    return space[name][:size].view(shape)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _centre(x, y, lengths_x, lengths_y, top, z):
    """Points minus the mean of their set's x into z: x from row 0, y from row `top`, zeros for padding."""
    d = x.shape[2]
    centre = np.empty(d, z.dtype)
    for s in range(len(x)):
        n, m = lengths_x[s], lengths_y[s]
        centre[:] = 0
        for i in range(n):
            row = x[s][i]
            for k in range(d):
                centre[k] += row[k]
        centre /= z.dtype.type(n)
        for i in range(z.shape[1]):
            into = z[s][i]
            if i < n or top <= i < top + m:
                row = x[s][i] if i < n else y[s][i - top]
                for k in range(d):
                    into[k] = row[k] - centre[k]
            else:
                into[:] = 0


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _gram(points, grams):
    """z z' of sets of (4k, d) points, (C, 4k, 4k): 4 x 4 blocks along d, those below the diagonal mirrored.

    Two sets of 64 points make a product too small and too long for a matrix library, which spends half of its time
    on rearranging the operands. Here sixteen vector sums live in registers over the length of d, read rows as they
    lie, and half of the blocks are never computed.
    """
    _, n, d = points.shape
    zero = points.dtype.type(0)
    length = max(256, CACHE // n // 64 * 64)
    for s in range(len(points)):
        z, out = points[s], grams[s]
        for start in range(0, d, length):
            stop = min(start + length, d)
            for i in range(0, n, 4):
                a0, a1, a2, a3 = z[i][start:stop], z[i + 1][start:stop], z[i + 2][start:stop], z[i + 3][start:stop]
                for j in range(i, n, 4):
                    b0, b1, b2, b3 = z[j][start:stop], z[j + 1][start:stop], z[j + 2][start:stop], z[j + 3][start:stop]
                    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
                    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
                    for k in range(stop - start):
                        x0, x1, x2, x3 = a0[k], a1[k], a2[k], a3[k]
                        y0, y1, y2, y3 = b0[k], b1[k], b2[k], b3[k]
                        s00 += x0 * y0
                        s01 += x0 * y1
                        s02 += x0 * y2
                        s03 += x0 * y3
                        s10 += x1 * y0
                        s11 += x1 * y1
                        s12 += x1 * y2
                        s13 += x1 * y3
                        s20 += x2 * y0
                        s21 += x2 * y1
                        s22 += x2 * y2
                        s23 += x2 * y3
                        s30 += x3 * y0
                        s31 += x3 * y1
                        s32 += x3 * y2
                        s33 += x3 * y3
                    block = ((s00, s01, s02, s03), (s10, s11, s12, s13), (s20, s21, s22, s23), (s30, s31, s32, s33))
                    for p in range(4):
                        for q in range(4):
                            out[i + p, j + q] = block[p][q] + (out[i + p, j + q] if start else zero)
        for i in range(n):
            for j in range(i):
                out[i, j] = out[j, i]


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")  # a division that cannot raise vectorises
def _weigh(tile, start, stop, shift, skip, z, norms, lengths_x, lengths_y, top, sums):
    """Turn products of points `start` to `stop` with all points into the weights of the gradient, in place.

    Row i - `shift` and column j - `skip` of a set's tile belong to points i and j. The entry becomes
    ``-c / distance``, with c the share of that pair in the loss, 0 for padding, for distance 0 and for a point with
    itself, whose entry holds minus the sum of the others in its row. The distances are added to `sums`.
    """
    kind = tile.dtype.type
    zero, two, near = kind(0), kind(2), kind(NEAR)
    own = 1 if start >= top else 0
    for s in range(len(tile)):
        n, m = lengths_x[s], lengths_y[s]
        others = norms[s][skip:]
        shares = (-1 / n**2, 1 / (n * m)) if own == 0 else (1 / (n * m), -1 / m**2)
        for i in range(start, stop):
            row, norm = tile[s][i - shift], norms[s, i]
            if i >= (top + m if own else n):
                row[:] = zero
                continue
            row[i - skip] = -norm  # makes the point look far from itself, so that it is not taken for a near pair
            close = zero  # counted in the type of the values: as many fit a vector
            for j in range(len(row)):
                square = norm + others[j] - two * row[j]
                close += kind(square < near * (norm + others[j]))
                row[j] = square
            if close:
                for j in range(len(row)):
                    if row[j] < near * (norm + others[j]):
                        row[j] = squared_distance(z[s][i], z[s][skip + j])
            row[i - skip] = zero
            weights = 0.0
            for to in range(1 if skip else 0, 2):
                first, last = (top, top + m) if to else (0, n)
                squares, share = row[first - skip : last - skip], kind(shares[to])
                total, inverse = zero, zero
                for j in range(len(squares)):
                    square = squares[j]
                    distance = np.sqrt(square)
                    weight = share / distance if square > 0 else zero
                    total += distance
                    inverse += weight
                    squares[j] = -weight
                sums[own, s, to] += total
                weights += inverse
            if skip == 0:
                row[n:top] = zero
            row[top + m - skip :] = zero
            row[i - skip] = weights
