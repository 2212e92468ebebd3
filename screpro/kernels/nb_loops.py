"""The compiled loops of the fused negative-binomial loss on the CPU (formulas: ``screpro.kernels.nb``).

A cell is swept in blocks of `BLOCK` genes that stay in the first-level cache. Sums are float32 inside a block and
float64 across blocks and cells. Errors of the factor from logit to mean would be multiplied by the total count of the
cell, so log mu is taken from the same rounded factor that mu uses, and what the rounding of its own logarithm loses is
added at the end.
"""

import math

import numpy as np
from numba import njit

__all__ = ["run"]

f32, i32 = np.float32, np.int32
PRODUCT_TO = 16
INVERSE_FACTORIAL = np.array([1 / math.factorial(n) for n in range(PRODUCT_TO + 1)])
BLOCK = 256  # genes summed in float32
ROWS_PER_FLUSH = 64  # cells whose theta gradients are added in float32 before they go into the float64 sum
SWEEP = {"fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy", "cache": True}
"""Loops over genes: sums may be regrouped into vector lanes, a division needs no branch for zero."""

# Polynomials: least largest relative error (Lawson's iteration), below 1e-9 before rounding.
# The helpers keep IEEE order ("contract" alone allows fused multiply-add): regrouping would undo their corrections.


@njit(fastmath={"contract"}, cache=True)
def _exp(x):
    """exp in float32 for x <= 87, 1 unit in the last place; not a number stays so."""
    x = f32(-87.0) if x < f32(-87.0) else x
    k = i32(i32(x * f32(1.44269504) + f32(128.5)) - i32(128))  # nearest integer of x / log 2
    f = x - f32(k) * f32(0.693359375)
    f = f + f32(k) * f32(2.12194440e-4)
    p = f32(1.9790313e-4)
    p = p * f + f32(1.3944689e-3)
    p = p * f + f32(8.3334973e-3)
    p = p * f + f32(4.1666295e-2)
    p = p * f + f32(1.6666666e-1)
    p = p * f + f32(5.0000001e-1)
    p = p * f * f + f + f32(1)
    return p * i32((k + i32(127)) << i32(23)).view(f32)


@njit(fastmath={"contract"}, cache=True)
def _log(x):
    """log in float32 for normal x > 0, 1 unit in the last place: exponent and mantissa apart, then a polynomial."""
    bits = i32(f32(x).view(i32) + i32(0x3F800000 - 0x3F3504F3))
    e = f32(i32(i32(bits >> i32(23)) - i32(127)))
    f = i32((bits & i32(0x7FFFFF)) + i32(0x3F3504F3)).view(f32) - f32(1)  # in [sqrt(1/2), sqrt(2)) - 1
    z = f * f
    p = f32(6.7466432e-2)
    p = p * f + f32(-1.1675657e-1)
    p = p * f + f32(1.1888164e-1)
    p = p * f + f32(-1.2405588e-1)
    p = p * f + f32(1.4219552e-1)
    p = p * f + f32(-1.6667996e-1)
    p = p * f + f32(2.0002119e-1)
    p = p * f + f32(-2.5000010e-1)
    p = p * f + f32(3.3333313e-1)
    p = p * f * z + e * f32(-2.12194440e-4) - f32(0.5) * z
    return f + p + e * f32(0.693359375)


@njit(fastmath={"contract"}, cache=True)
def _log1p(r, u, inverse_u):
    """log(1 + r) with u = 1 + r rounded: what the rounding of u lost comes back to first order."""
    d = u - f32(1)
    return _log(u) + (r - d) * inverse_u


@njit(error_model="numpy", cache=True)
def _tail(z):
    """log Gamma(z) - ((z - 1/2) log z - z + log(2 pi)/2), z >= 8."""
    w = 1.0 / (z * z)
    return (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w / 1680))) / z


@njit(error_model="numpy", cache=True)
def _psi_tail(z):
    """log z - 1/(2 z) - psi(z), z >= 8."""
    w = 1.0 / (z * z)
    return w * (1 / 12 - w * (1 / 120 - w * (1 / 252 - w / 240)))


@njit(error_model="numpy", cache=True)
def _gamma_terms(x, theta):
    """log Gamma(x + theta) / (Gamma(theta) Gamma(x + 1) theta^x) and theta (psi(x + theta) - psi(theta)), any x > 0."""
    ratio, rate, z = 1.0, 0.0, theta
    if theta < 8.0:  # Stirling's series wants large arguments: step up by eight
        for k in range(8):
            w = theta + k
            ratio *= w / (w + x)
            rate += x / (w * (w + x))
        z = theta + 8.0
    grown = math.log1p(x / z)
    rise = (z + x - 0.5) * grown - x + _tail(z + x) - _tail(z)
    rise += math.log(ratio) + x * math.log(z / theta) - math.lgamma(x + 1.0)
    rate += grown + 0.5 * x / (z * (z + x)) - _psi_tail(z + x) + _psi_tail(z)
    return rise, theta * rate


@njit(**SWEEP)
def _maximum(z):
    m0 = m1 = m2 = m3 = m4 = m5 = m6 = m7 = z[0]  # eight chains, for a comparison waits for the one before it
    even = z.size // 8 * 8
    for g in range(0, even, 8):
        m0, m1, m2, m3 = max(m0, z[g]), max(m1, z[g + 1]), max(m2, z[g + 2]), max(m3, z[g + 3])
        m4, m5, m6, m7 = max(m4, z[g + 4]), max(m5, z[g + 5]), max(m6, z[g + 6]), max(m7, z[g + 7])
    for g in range(even, z.size):
        m0 = max(m0, z[g])
    return max(max(max(m0, m1), max(m2, m3)), max(max(m4, m5), max(m6, m7)))


@njit(**SWEEP)
def _exponentials(z, m, e):
    total = f32(0)
    for g in range(z.size):
        v = _exp(z[g] - m)
        e[g] = v
        total += v
    return total


@njit(**SWEEP)
def _common(x, e, to_mean, inverse, log_u, a):
    """log(1 + mu/theta) and a = (mu - x) / (1 + mu/theta)."""
    for g in range(x.size):
        mu = e[g] * to_mean
        r = mu * inverse[g]
        u = f32(1) + r
        inverse_u = f32(1) / u
        log_u[g] = _log1p(r, u, inverse_u)
        a[g] = (mu - x[g]) * inverse_u


@njit(**SWEEP)
def _sums(x, z, to_log, theta, log_u, a, weight, theta_grad):
    """Loss without gamma terms and the x log mu of large counts; sum of a; sum of small counts.

    Adds the gradient of log theta as it is for counts 0 and 1.
    """
    loss, sum_a, sum_x = f32(0), f32(0), f32(0)
    for g in range(x.size):
        n, t = x[g], theta[g] * log_u[g]
        small = n if n <= f32(PRODUCT_TO) else f32(0)
        loss += t - (small * (z[g] + to_log - log_u[g]) if small > f32(0) else f32(0))
        sum_a += a[g]
        sum_x += small
        theta_grad[g] += weight * (t - a[g] - (n if n < f32(1) else f32(1)))
    return loss, sum_a, sum_x


@njit(**SWEEP)
def _finish(grad, e, share, weight):
    for g in range(grad.size):
        grad[g] = weight * (grad[g] - e[g] * share)


@njit(error_model="numpy", cache=True)
def _cell(x, z, library, theta, inverse, weight, grad, theta_grad, e, log_u, where):
    """One cell. Writes its logit gradient, adds to that of log theta; returns the loss and whether a count is wrong."""
    n_genes = x.size
    m, total = _maximum(z), 0.0
    for i in range(0, n_genes, BLOCK):  # float32 inside a block, float64 across blocks
        total += _exponentials(z[i : i + BLOCK], m, e[i : i + BLOCK])
    to_mean = f32(library / total)
    # log mu = z + to_log, of the rounded factor that mu itself uses: such an error then cancels where mu is near x
    exact = math.log(np.float64(to_mean)) - m if library > 0 else 0.0
    whole = math.log(library) - math.log(total) - m if library > 0 else 0.0
    to_log = f32(exact)  # what its rounding loses is added below, for all counts at once
    loss, pull, sum_x = 0.0, 0.0, 0.0
    for i in range(0, n_genes, BLOCK):
        j = i + BLOCK
        # two loops, each writing few arrays: the compiler vectorises only where it can check that none overlap
        _common(x[i:j], e[i:j], to_mean, inverse[i:j], log_u[i:j], grad[i:j])
        part, part_a, part_x = _sums(x[i:j], z[i:j], to_log, theta[i:j], log_u[i:j], grad[i:j], weight, theta_grad[i:j])
        loss, pull, sum_x = loss + part, pull + part_a, sum_x + part_x
    loss -= (exact - to_log) * sum_x
    found = 0
    for g in range(n_genes):
        where[found] = g
        found += (x[g] != f32(0)) & (x[g] != f32(1))
    gamma, product, wrong = 0.0, 1.0, False
    for i in range(found):
        g = where[i]
        n = x[g]
        if n <= f32(PRODUCT_TO) and n == np.floor(n) and n > f32(0) and inverse[g] < f32(1e8):
            q, p, d = np.float64(inverse[g]), 1.0, 0.0  # p: prod (1 + k q), d: its logarithmic derivative times p
            for k in range(1, int(n)):
                w = 1.0 + k * q
                d = d * w + p
                p *= w
            product *= p * INVERSE_FACTORIAL[int(n)]
            if not 1e-150 < product < 1e150:  # many logarithms at once: of the product, before it leaves the range
                gamma += math.log(product)
                product = 1.0
            theta_grad[g] -= weight * f32(d / p)
        elif n > f32(0) and n < f32(np.inf):
            rise, rate = _gamma_terms(np.float64(n), np.float64(theta[g]))
            gamma += rise
            if n > f32(PRODUCT_TO):  # rounding would show, multiplied by the count: float64 from the logit on
                log_mu = z[g] + whole
                gamma += n * (log_mu - math.log1p(math.exp(log_mu) / theta[g]))
            theta_grad[g] -= weight * f32(rate - min(n, f32(1)))
        else:
            wrong = True
    gamma += math.log(product)
    share = f32(pull / total)
    _finish(grad, e, share, weight)
    return loss - gamma, wrong


@njit(error_model="numpy", cache=True, nogil=True)
def run(first, last, x, z, library, log_theta, weight, loss, grad, theta_grad, total):
    """Cells from `first` to before `last`, in buffers that stay in the cache; adds the theta gradients to `total`."""
    n_genes = x.shape[1]
    shared, keep, keep_theta = len(log_theta) == 1, len(grad) == len(x), len(theta_grad) == len(x)
    theta, inverse = np.empty(n_genes, np.float32), np.empty(n_genes, np.float32)
    e, log_u, where = np.empty(n_genes, np.float32), np.empty(n_genes, np.float32), np.empty(n_genes + 1, np.int32)
    part, spare = np.zeros(n_genes, np.float32), np.empty(n_genes, np.float32)
    wrong = False
    for i in range(first, last):
        if i == first or not shared:
            row = log_theta[0 if shared else i]
            for g in range(n_genes):
                theta[g] = _exp(row[g])
                inverse[g] = f32(1) / theta[g]
        out, theta_out = grad[i] if keep else spare, theta_grad[i] if keep_theta else part
        loss[i], bad = _cell(x[i], z[i], library[i], theta, inverse, weight[i], out, theta_out, e, log_u, where)
        wrong |= bad
        if (i - first) % ROWS_PER_FLUSH == ROWS_PER_FLUSH - 1 or i == last - 1:
            for g in range(n_genes):
                total[g] += part[g]
                part[g] = f32(0)
    return wrong
