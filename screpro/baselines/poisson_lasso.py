r"""Poisson regression with an L1 penalty, of many targets on one set of predictors.

For every target y (not necessarily whole numbers, 0 or more) the coefficients b and intercept c minimise

$$\frac1n \sum_i \big(e^{\eta_i} - y_i \eta_i\big) + \lambda \lVert b \rVert_1, \qquad \eta = c + X b,$$

the objective of glmnet with family "poisson". Of thousands of predictors a target uses a few dozen. So each target
keeps a list of predictors in play. One matrix product for all targets finds who else violates the optimality
conditions $|x_j'(y - e^\eta)| / n \le \lambda$ where $b_j = 0$; the worst of them join. On the list, the problem is
solved by Newton steps, each a quadratic problem with the weighted Gram matrix of the list, solved by coordinate
descent, and shortened until the objective falls.

Targets are divided by their mean, and their penalty with them: that leaves b as it is and makes tolerances uniform.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

__all__ = ["Lasso", "fit", "predict"]

AT_MOST = 300
"""Predictors of one target, as SAVER limits them."""

JOIN = 16  # predictors that join a list at once
TOLERANCE = 1e-2
"""Optimality conditions hold up to this share of the penalty: far below what cross-validation can tell apart."""


class Lasso(NamedTuple):
    """Coefficients of T targets, as padded lists."""

    number: np.ndarray  # (T,) int64, length of each list
    index: np.ndarray  # (T, AT_MOST) int64 rows of the predictors
    value: np.ndarray  # (T, AT_MOST) float64; may be 0
    intercept: np.ndarray  # (T,) of y / mean(y)
    scale: np.ndarray  # (T,) mean(y)


def fit(
    x: np.ndarray, y: np.ndarray, penalty: np.ndarray, *, own: np.ndarray, start: Lasso | None = None, rounds: int = 40
) -> Lasso:
    """Coefficients of all targets, each with its own penalty.

    Parameters
    ----------
    x
        (P, n) float64 predictors, one a row; standardise them, since all are penalised alike.
    y
        (T, n) float64 targets, one a row, 0 or more, none of them zero throughout.
    penalty
        (T,) lambda above 0, on the scale of y.
    own
        (T,) row of x that must not be used for the target (the target itself), or -1.
    start
        A solution for a larger penalty to begin with.
    rounds
        At most so many times may predictors join.

    Returns
    -------
    Lasso
        Optimal up to `TOLERANCE`, unless a target asks for more than `AT_MOST` predictors.
    """
    n_targets, n = y.shape
    scale = y.mean(axis=1)
    y, penalty = y / scale[:, None], penalty / scale
    if start is None:
        number = np.zeros(n_targets, dtype=np.int64)
        index = np.zeros((n_targets, AT_MOST), dtype=np.int64)
        value, intercept = np.zeros((n_targets, AT_MOST)), np.zeros(n_targets)
    else:
        number, index, value, intercept = (part.copy() for part in start[:4])
        _drop_zeros(number, index, value)
    residual = np.empty((n_targets, n))
    open_targets = np.arange(n_targets)
    for _ in range(rounds):
        _solve(x, y, penalty, number, index, value, intercept, residual, open_targets)
        gradient = residual[open_targets] @ x.T  # (open, P)
        joined = _join(gradient / n, penalty, own, number, index, value, open_targets)
        open_targets = open_targets[joined]
        if not len(open_targets):
            break
    return Lasso(number, index, value, intercept, scale)


def predict(found: Lasso, x: np.ndarray) -> np.ndarray:
    """Expected values (T, n) of every target for predictors x (P, n)."""
    out = np.empty((len(found.number), x.shape[1]))
    _predict(x, found.number, found.index, found.value, found.intercept, out)
    return np.exp(out) * found.scale[:, None]


@njit(cache=True)
def _predict(x, number, index, value, intercept, out):
    for t in range(len(number)):
        out[t] = intercept[t]
        for a in range(number[t]):
            if value[t, a] != 0.0:
                out[t] += value[t, a] * x[index[t, a]]


@njit(cache=True)
def _drop_zeros(number, index, value):
    """Take predictors without a coefficient off the lists."""
    for t in range(len(number)):
        kept = 0
        for a in range(number[t]):
            if value[t, a] != 0.0:
                index[t, kept], value[t, kept] = index[t, a], value[t, a]
                kept += 1
        number[t] = kept


@njit(cache=True)
def _join(gradient, penalty, own, number, index, value, targets):
    """Append to each list the predictors that violate optimality most; which of the targets got any."""
    joined = np.zeros(len(targets), dtype=np.bool_)
    for row in range(len(targets)):
        t = targets[row]
        score = np.abs(gradient[row])
        if own[t] >= 0:
            score[own[t]] = 0.0
        for a in range(number[t]):
            score[index[t, a]] = 0.0
        limit = penalty[t] * (1 + TOLERANCE)
        candidates = np.flatnonzero(score > limit)
        if len(candidates) > JOIN:
            candidates = candidates[np.argsort(-score[candidates])[:JOIN]]
        for j in candidates:
            if number[t] < AT_MOST:
                index[t, number[t]], value[t, number[t]] = j, 0.0
                number[t] += 1
                joined[row] = True
    return joined


@njit(cache=True)
def _solve(x, y, penalty, number, index, value, intercept, residual, targets):
    """Newton's method on the list of every target; `residual` becomes y - exp(eta)."""
    n = x.shape[1]
    for t in targets:
        size = number[t] + 1
        lam = penalty[t]
        design = np.empty((size, n))  # the first row is the intercept
        design[0] = 1.0
        b = np.empty(size)
        b[0] = intercept[t]
        for a in range(size - 1):
            design[a + 1] = x[index[t, a]]
            b[a + 1] = value[t, a]
        eta = np.dot(b, design)
        mu = np.exp(eta)
        objective = _objective(y[t], eta, mu, b, lam)
        for _ in range(50):
            gradient = np.dot(design, y[t] - mu) / n
            hessian = np.dot(design * mu, design.T) / n
            step = _quadratic(hessian, gradient, b, lam)
            size_of_step = 0.0
            for a in range(size):
                size_of_step = max(size_of_step, abs(step[a]) * hessian[a, a])
            if size_of_step < 0.1 * TOLERANCE * lam:
                break
            change = np.dot(step, design)
            share = 1.0
            for _ in range(30):
                new_b, new_eta = b + share * step, eta + share * change
                new_mu = np.exp(np.minimum(new_eta, 50.0))
                new = _objective(y[t], new_eta, new_mu, new_b, lam)
                if new <= objective:
                    break
                share *= 0.5
            if not new <= objective:
                break  # rounding is all that is left
            b, eta, mu, objective = new_b, new_eta, new_mu, new
        intercept[t] = b[0]
        value[t, : size - 1] = b[1:]
        residual[t] = y[t] - mu


@njit(cache=True)
def _objective(y, eta, mu, b, lam):
    total = 0.0
    for i in range(len(y)):
        total += mu[i] - y[i] * eta[i]
    return total / len(y) + lam * np.abs(b[1:]).sum()


@njit(cache=True)
def _quadratic(hessian, gradient, b, lam):
    """Step d that minimises d'Hd/2 - g'd + lam |b + d|, the first coordinate unpenalised; coordinate descent."""
    size = len(b)
    step = np.zeros(size)
    left = gradient.copy()  # g - H d
    for _sweep in range(200):
        largest = 0.0
        for a in range(size):
            curvature = hessian[a, a]
            if curvature <= 0.0:
                continue
            old = b[a] + step[a]
            wanted = curvature * old + left[a]
            if a == 0:
                new = wanted / curvature
            else:
                new = np.sign(wanted) * max(abs(wanted) - lam, 0.0) / curvature
            if new != old:
                left -= (new - old) * hessian[a]
                step[a] = new - b[a]
                largest = max(largest, abs(new - old) * curvature)
        if largest < 0.02 * TOLERANCE * lam:
            break
    return step
