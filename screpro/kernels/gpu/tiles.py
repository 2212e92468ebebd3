"""Squared Euclidean distances of a tile of pairs, on chip: what the other kernels of this folder start from."""

import triton
import triton.language as tl

__all__ = ["NEAR", "block", "exact_squares", "load_points", "squares"]

NEAR = tl.constexpr(2.0**-10)
"""Pairs with a squared distance below this share of their squared norms are taken again from differences."""


def block(d: int) -> int:
    """Coordinates per step of a product over d dimensions."""
    return max(16, min(32, triton.next_power_of_2(d)))


@triton.jit
def load_points(base, index, n, columns, d, centre, TYPE: tl.constexpr):
    """Points `index` (R,) of the (n, d) rows at `base`, at coordinates `columns` (K,), from `centre` (K,): (R, K)."""
    there = (index < n)[:, None] & (columns < d)[None, :]
    points = tl.load(base + index.to(tl.int64)[:, None] * d + columns[None, :], mask=there, other=0).to(TYPE)
    return tl.where(there, points - centre[None, :], 0)


@triton.jit
def exact_squares(square, near, a, rows, n, b, columns, m, d):
    """`square` (R, C) where `near` is 0; elsewhere the sum of squared differences of points as they are."""
    if tl.sum(near) > 0:
        exact = tl.zeros_like(square)
        for k in range(d):
            p = tl.load(a + rows.to(tl.int64) * d + k, mask=rows < n, other=0).to(square.dtype)
            q = tl.load(b + columns.to(tl.int64) * d + k, mask=columns < m, other=0).to(square.dtype)
            difference = p[:, None] - q[None, :]
            exact += difference * difference
        square = tl.where(near > 0, exact, square)
    return tl.maximum(square, 0)


@triton.jit
def squares(
    a, rows, n, b, columns, m, d, centre, same, STEP: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr
):
    """Squared distances (R, C) of points `rows` of a (n, d) and `columns` of b (m, d); `centre` (d,) points at a mean.

    Where the clouds are the `same`, points with themselves are left to the caller.
    """
    product = tl.zeros((rows.shape[0], columns.shape[0]), TYPE)
    norm_a = tl.zeros((rows.shape[0],), TYPE)
    norm_b = tl.zeros((columns.shape[0],), TYPE)
    for start in range(0, d, STEP):
        k = start + tl.arange(0, STEP)
        middle = tl.load(centre + k, mask=k < d, other=0).to(TYPE)
        p = load_points(a, rows, n, k, d, middle, TYPE)
        q = load_points(b, columns, m, k, d, middle, TYPE)
        product = tl.dot(p, tl.trans(q), product, input_precision=PRECISION, out_dtype=TYPE)
        norm_a += tl.sum(p * p, 1)
        norm_b += tl.sum(q * q, 1)
    norms = norm_a[:, None] + norm_b[None, :]
    square = norms - 2 * product
    pairs = (rows < n)[:, None] & (columns < m)[None, :]
    pairs = pairs & ((same == 0) | (rows[:, None] != columns[None, :]))
    near = (pairs & (square < norms * NEAR)).to(tl.int32)
    return exact_squares(square, near, a, rows, n, b, columns, m, d)
