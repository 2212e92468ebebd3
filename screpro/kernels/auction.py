"""Optimal assignment of two equal clouds for squared Euclidean cost: auction with candidate lists, no cost matrix.

Columns carry dual values v_j (minus their prices). A free row i takes the column with the smallest c_ij - v_j, u1,
lowers that column's v_j by u2 - u1 + eps, u2 being the second smallest, and sets its former owner free (Bertsekas).
With every row owning a column within eps of its best, the cost is within n eps of the optimum; eps shrinks from phase
to phase until that is a share `GAP` of the cost, at which point generic clouds have long had their optimal assignment.

What makes it fast without a matrix: v only ever falls, so c_ij - v_j only ever rises. A list of the WIDTH columns that
were smallest when it was made, with the bound on all others of that time, therefore stays a proof: while u1 does not
exceed the bound the best column is on the list, and a bid costs WIDTH operations. Otherwise the row is compared with
all columns again (n d operations, float32 with a rigorous bound on its rounding; listed costs are float64). Starting
values come from a quarter of the points, recursively: v_j = min_i c_ij - u_i over that quarter.

Costs, for two clouds of 5 000 points in 30 dimensions: about 10 000 comparisons with all columns, where Jonker and
Volgenant's algorithm scans its 200 MB matrix some hundred times, and far more often on clustered clouds. Memory
O(n (d + WIDTH)).
"""

import numpy as np
from numba import njit

from screpro.kernels.neighbours import UNIT_ROUNDOFF, rounding_share, shortlist, shortlist_distances, take_in
from screpro.kernels.tiles import FAST, Pairs, squared_distance

__all__ = ["GAP", "assign"]

WIDTH = 32  # candidates of a row: 16 refresh twice as often, 64 take longer to make and to read
GAP = 1e-9  # share of the cost that the duals may fall short by
FIRST, START = 0.25, 0.02  # first eps of the smallest level and of the others, as shares of the mean cost
STEP, CALM_STEP = 5.0, 50.0  # eps shrinks by this from phase to phase; by the second once the lists nearly suffice
SMALLEST = 400  # points from which on a level starts from a smaller one
PATIENCE = 3  # comparisons with all columns per row after which a level that has just begun takes a larger eps
BIDS = 60  # bids per row in one phase before it is given up: many equal costs, where another method serves better


def assign(x: np.ndarray, y: np.ndarray, *, final: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Match the points of `x` (n, d) and `y` (n, d), both float64, at the least sum of squared distances.

    Parameters
    ----------
    x, y
        Points; centre each cloud on its own mean, which changes no optimal assignment.
    final
        False stops at the eps that the next larger level starts from.

    Returns
    -------
    match, v
        (n,) int64, the column of every row, -1 where many equal costs kept the first phase from ending; (n,) float64,
        the dual values of the columns. How far the duals prove the assignment is for the caller to ask.
    """
    n = len(x)
    if n == 1:
        return np.zeros(1, np.int64), np.zeros(1)
    v, eps = np.zeros(n), FIRST
    if n > SMALLEST:
        rng = np.random.default_rng(n)
        x_few, y_few = (cloud[rng.choice(n, n // 4, replace=False)] for cloud in (x, y))
        match, v_few = assign(x_few, y_few, final=False)
        if match.min() >= 0:
            u_few = np.square(x_few - y_few[match]).sum(axis=1) - v_few[match]
            pairs = Pairs.of(y, x_few)
            best = shortlist(pairs, 1, offset=u_few)
            v, eps = (shortlist_distances(pairs, best) - u_few[best.index])[:, 0], START
    return _level(Pairs.of(x, y), v, eps, final)


def _level(pairs: Pairs, v: np.ndarray, eps: float, final: bool) -> tuple[np.ndarray, np.ndarray]:
    n, square = len(v), pairs.unit**2
    found = shortlist(pairs, min(WIDTH, n), offset=v)
    costs, bound, v = shortlist_distances(pairs, found) / square, found.bound / square, v / square
    left, right = pairs.left.numpy(), pairs.right.numpy().copy()
    mean_cost = float(pairs.norms_a.mean(dtype=np.float64) + pairs.norms_b.mean(dtype=np.float64))
    match, owner = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    falling = eps >= FIRST
    while True:
        before = match.copy(), v.copy()
        right[-1] = pairs.norms_b - v
        free, compared = _phase(
            pairs.a, pairs.b, 1 / square, left, right, pairs.norms_a, pairs.norms_b, rounding_share(pairs),
            found.index, costs, bound, v, match, owner, eps * mean_cost, BIDS * n, (BIDS if falling else PATIENCE) * n,
        )  # fmt: skip
        if free and falling:
            match, v = before
            break
        if free:
            eps *= STEP
            falling = eps >= FIRST
            continue
        falling = True
        enough = START / 2
        if final:
            enough = max(GAP * _owned_cost(pairs.a, pairs.b, match) / square / n / mean_cost, 1e-13)
        if eps <= enough:
            break
        eps /= CALM_STEP if compared < n // 20 else STEP
    return match, v * square


@njit(cache=True, nogil=True)
def _owned_cost(a, b, match):
    total = 0.0
    for i in range(len(match)):
        if match[i] >= 0:
            total += squared_distance(a[i], b[match[i]])
    return total


@njit(cache=True, nogil=True, fastmath=FAST)
def _row(left, right, i, out):
    """out_j = sum_k left[i, k] right[k, j]: c_ij - v_j in float32, a stretch of columns at a time, in cache."""
    terms, columns = right.shape
    for first in range(0, columns, 1024):
        part = out[0, first : first + 1024]
        for q in range(len(part)):
            part[q] = 0
        k = 0
        while k + 4 <= terms:
            l0, l1, l2, l3 = left[i, k], left[i, k + 1], left[i, k + 2], left[i, k + 3]
            r0, r1 = right[k, first : first + 1024], right[k + 1, first : first + 1024]
            r2, r3 = right[k + 2, first : first + 1024], right[k + 3, first : first + 1024]
            for q in range(len(part)):
                part[q] += (l0 * r0[q] + l1 * r1[q]) + (l2 * r2[q] + l3 * r3[q])
            k += 4
        while k < terms:
            l0, r0 = left[i, k], right[k, first : first + 1024]
            for q in range(len(part)):
                part[q] += l0 * r0[q]
            k += 1


@njit(cache=True, nogil=True)
def _two_smallest(index, costs, v, i):
    u1, u2, best = np.inf, np.inf, -1
    for t in range(index.shape[1]):
        reduced = costs[i, t] - v[index[i, t]]
        if reduced < u2:
            if reduced < u1:
                u1, u2, best = reduced, u1, index[i, t]
            else:
                u2 = reduced
    return u1, u2, best


@njit(cache=True, nogil=True)
def _phase(
    a, b, scale, left, right, norms_a, norms_b, share, index, costs, bound, v, match, owner, eps, budget, patience
):  # fmt: skip
    """Bid until every row owns a column within `eps` of its best; returns rows left without, and rows compared anew."""
    n, width = index.shape
    for i in range(n):  # what the former, larger eps allowed but this one does not is given up
        if match[i] >= 0:
            u1, _, _ = _two_smallest(index, costs, v, i)
            if scale * squared_distance(a[i], b[match[i]]) - v[match[i]] > min(u1, bound[i]) + eps:
                owner[match[i]] = -1
                match[i] = -1
    free = np.empty(n, np.int64)
    count = 0
    for i in range(n):
        if match[i] < 0:
            free[count] = i
            count += 1
    highest, lowest = v.max(), v.min()
    scores, values, worst = np.empty((1, n), np.float32), np.empty((1, width), np.float32), np.empty(1, np.float32)
    listed = np.empty((1, width), np.int32)
    bids = 0
    compared = 0
    while count and bids < budget and compared < patience:
        i = free[count - 1]
        u1, u2, best = _two_smallest(index, costs, v, i)
        if u1 > bound[i]:  # a column that is not listed may be better: list anew
            compared += 1
            _row(left, right, i, scores)
            values[:] = np.inf
            worst[:] = np.inf
            take_in(scores, 0, 0, False, values, listed, worst)
            reach = 2 * np.sqrt(norms_a[i]) + np.sqrt(max(np.float64(worst[0]) + highest, 0.0))
            bound[i] = worst[0] - share * reach * reach - 2 * UNIT_ROUNDOFF * max(highest, -lowest)
            for t in range(width):
                index[i, t] = listed[0, t]
                costs[i, t] = scale * squared_distance(a[i], b[listed[0, t]])
            u1, u2, best = _two_smallest(index, costs, v, i)
        v[best] -= max(min(u2, bound[i]) - u1, 0.0) + eps
        right[-1, best] = norms_b[best] - v[best]
        lowest = min(lowest, v[best])
        bids += 1
        former = owner[best]
        owner[best], match[i] = i, best
        if former >= 0:
            match[former] = -1
            free[count - 1] = former
        else:
            count -= 1
    return count, compared
