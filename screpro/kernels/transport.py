"""Exact optimal transport between two clouds for squared Euclidean cost, with a proof of optimality.

    W2^2 = min over plans P >= 0 with row sums 1/n and column sums 1/m of sum_ij P_ij |a_i - b_j|^2

Two clouds of n points each: the optimum is an assignment, found by `screpro.kernels.auction` in O(n d) memory. Clouds
of different sizes, or of mostly repeated points (where an auction bids against equals), are solved by POT's network
simplex between their distinct points, with the dense float64 cost matrix that needs.

Whatever the solver, its word is not taken: its dual values v_j are completed to u_i = min_j |a_i - b_j|^2 - v_j by a
fresh streamed sweep over all pairs, so that u_i + v_j <= c_ij holds everywhere, and by duality

    sum_i u_i / n + sum_j v_j / m  <=  W2^2  <=  cost of the plan.

The sweep is one float32 product per tile (2 (d + 2) n m flops) with its rounding bounded, the values that matter in
float64. The gap is of the order of 1e-10 of the cost.

All of it runs on the CPU, and tensors on a GPU are fetched from there. There is no Triton kernel: bids of an auction
follow one another, each a few dozen operations on a list that the last bid may have changed, and POT has no CUDA code
for the exact problem. On a GPU, `screpro.kernels.sinkhorn` solves the entropic one.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numba import njit

from screpro.errors import ScreproError
from screpro.kernels.auction import assign
from screpro.kernels.neighbours import shortlist, shortlist_distances
from screpro.kernels.threads import each
from screpro.kernels.tiles import Pairs, points, squared_distance

__all__ = ["Plan", "exact_w2", "lower_bound", "reference"]

DISTINCT = 0.9  # share of distinct points below which repeats are merged
TOLERANCE = 1e-6  # relative gap above which a solver's answer is not called exact
LISTED = 16  # columns per row whose reduced cost is taken in float64


@dataclass(frozen=True)
class Plan:
    """An optimal plan's cost and the proof of it. Costs are squared distances, in squared units of the points."""

    cost: float  # W2^2: mean over the plan of the squared Euclidean distance
    lower_bound: float  # no plan costs less, from the dual values
    match: np.ndarray | None  # (n,) int64 column of every row; None where mass is split or repeats were merged
    solver: str  # "auction" or "network simplex"

    @property
    def value(self) -> float:
        """W2, the square root of the cost, in units of the points."""
        return sqrt(self.cost)

    @property
    def gap(self) -> float:
        """How far the cost may be above the optimum, as a share of the cost."""
        return max(self.cost - self.lower_bound, 0.0) / self.cost if self.cost else 0.0


def reference(a: np.ndarray, b: np.ndarray) -> float:
    """W2 of two clouds of equal size from the full cost matrix, by scipy's assignment."""
    from scipy.optimize import linear_sum_assignment

    costs = np.square(np.asarray(a, np.float64)[:, None] - np.asarray(b, np.float64)[None]).sum(axis=2)
    return sqrt(costs[linear_sum_assignment(costs)].mean())


def exact_w2(a, b) -> Plan:
    """Exact 2-Wasserstein distance of two clouds with uniform weights.

    Parameters
    ----------
    a, b
        (n, d) and (m, d) points, array or tensor.

    Returns
    -------
    Plan
        `value` is W2; `gap` is the certified relative distance from the optimum, at most 1e-6, usually 1e-10.
        Memory O(n d) where n = m and few points repeat; else about 40 n m bytes, which POT takes.

    Raises
    ------
    ScreproError
        Points are not finite, above 1e150 or differ in dimension; the solver stopped short of the optimum; POT is
        needed and not installed.
    """
    a, b = points("a", a).astype(np.float64), points("b", b).astype(np.float64)
    Pairs.of(a[:1], b[:1])  # checks the dimensions
    plan = None
    distinct_a, distinct_b = _distinct(a), _distinct(b)
    if len(a) == len(b) and min(len(distinct_a[0]), len(distinct_b[0])) >= DISTINCT * len(a):
        plan = _by_auction(a, b)
    if plan is None or plan.gap > TOLERANCE:
        plan = _by_network_simplex(distinct_a, distinct_b)
    if plan.gap > TOLERANCE:
        raise ScreproError(
            f"A plan is called exact if its cost is proven to a share of {TOLERANCE:g}.",
            got=f"cost {plan.cost:.9g}, lower bound {plan.lower_bound:.9g} from the {plan.solver}",
            fix="rescale the points (are some astronomically far away?) or pass fewer of them",
        )
    return plan


def lower_bound(a, b, v, *, weights_a=None, weights_b=None) -> float:
    """What no plan between `a` and `b` can cost less than, from any dual values of the columns.

    Parameters
    ----------
    a, b
        (n, d) and (m, d) float64 points.
    v
        (m,) dual values, from any solver; the nearer to the optimum, the tighter the bound.
    weights_a, weights_b
        (n,) and (m,), summing to 1; None is uniform.

    Returns
    -------
    float
        sum_i weights_i min_j (|a_i - b_j|^2 - v_j) + sum_j weights_j v_j, or 0 where that is larger. Valid up to
        rounding in float64.
    """
    pairs = Pairs.of(a, b)
    found = shortlist(pairs, min(LISTED, len(b)), offset=v)
    u = (shortlist_distances(pairs, found) - v[found.index]).min(axis=1)
    open_rows = np.flatnonzero(u > found.bound)  # many columns within rounding of the smallest
    each(lambda: lambda t: _smallest(a, b, v, open_rows[t], u), len(open_rows))
    return max(float(np.average(u, weights=weights_a) + np.average(v, weights=weights_b)), 0.0)


@njit(cache=True, nogil=True)
def _smallest(a, b, v, row, u):
    for j in range(len(b)):
        u[row] = min(u[row], squared_distance(a[row], b[j]) - v[j])


def _by_auction(a: np.ndarray, b: np.ndarray) -> Plan | None:
    shift = a.mean(axis=0) - b.mean(axis=0)
    x, y = a - a.mean(axis=0), b - b.mean(axis=0)
    match, v = assign(x, y)
    if match.min() < 0:
        return None
    v = v - 2 * y @ shift  # |a - b|^2 = |x - y|^2 + 2 shift (x - y) + |shift|^2
    cost = float(np.square(a - b[match]).sum(axis=1).mean())
    return Plan(cost, lower_bound(a, b, v), match, "auction")


def _by_network_simplex(distinct_a: tuple, distinct_b: tuple) -> Plan:
    try:
        import ot
    except ImportError as error:
        raise ScreproError(
            "Clouds of different sizes, or with many repeated points, are transported by POT.",
            got="POT is not installed",
            fix="pip install POT, or pass equal numbers of cells",
        ) from error
    (a, weights_a), (b, weights_b) = distinct_a, distinct_b
    costs = ot.dist(a, b, metric="sqeuclidean")
    flow, log = ot.emd(weights_a, weights_b, costs, numItermax=10**9, log=True)
    rows, columns = np.nonzero(flow)
    cost = float(flow[rows, columns] @ np.square(a[rows] - b[columns]).sum(axis=1))
    bound = lower_bound(a, b, np.asarray(log["v"]), weights_a=weights_a, weights_b=weights_b)
    return Plan(cost, bound, None, "network simplex")


def _distinct(cloud: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct points and their weights, summing to 1."""
    found, counts = np.unique(cloud, axis=0, return_counts=True)
    return np.ascontiguousarray(found), counts / len(cloud)
