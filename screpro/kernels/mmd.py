"""Maximum mean discrepancy with Gaussian kernels of several widths, in one pass over the pairs.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),      k(x, y) = exp(-gamma |x - y|^2)

Source: Gretton et al., JMLR 13 (2012): the biased estimator (their eq. 5, all pairs) and the unbiased one (eq. 3, no
point with itself).

Cost: 2 (d + 2) (nm + n^2/2 + m^2/2) flops in tiles (``tiles.py``) and as many exponentials per kernel; O((n + m) d)
bytes. The squared distances of a row of a tile are used for all kernels while they are in the first-level cache, and
a kernel is left out of a row whose nearest pair is already too far for it: of the widths 0.01 to 100 of the scLDM
tables, the two narrow ones cost nothing on cells.

Precision: float32 tiles, float64 sums. A wide kernel is 1 minus little at every pair, so what is summed is
``expm1(-gamma |x - y|^2)``; the ones cancel in the MMD. The exponential is a polynomial (2^f for |f| <= 1/2, relative
error 1e-7), which a compiler can vectorise, unlike a call. Raising one kernel to powers instead of taking further
exponentials would pay for neighbouring widths only: from gamma to 100 gamma takes 8 products and multiplies the
relative error by 100.
"""

import numba
import numpy as np
from torch import Tensor

from screpro.errors import ScreproError
from screpro.kernels.tiles import FAST, NEAR, Pairs, points, squared_distance, walk

__all__ = ["rbf_mmd2", "reference"]

EXACT = 2**20  # up to so many pairs times dimensions: float64 throughout
BLOCK = 2**20  # pairs of the reference at a time


def reference(a: np.ndarray, b: np.ndarray, *, gammas: np.ndarray | list[float], unbiased: bool = False) -> np.ndarray:
    """`rbf_mmd2` written down, float64, a few rows at a time."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    gammas = np.asarray(gammas, np.float64)
    of_a, of_b, between = (_expm1_sums(*pair, gammas) for pair in ((a, a), (b, b), (a, b)))
    return _estimate(of_a, of_b, between, (len(a), len(b)), np.ones_like(gammas), unbiased)


def _expm1_sums(a: np.ndarray, b: np.ndarray, gammas: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    step = max(1, BLOCK // len(b))
    sums = np.zeros(len(gammas))
    for i in range(0, len(a), step):
        squares = cdist(a[i : i + step], b, "sqeuclidean")
        sums += [np.expm1(-gamma * squares).sum() for gamma in gammas]
    return sums


def _estimate(
    of_a: np.ndarray, of_b: np.ndarray, between: np.ndarray, sizes: tuple[int, int], base: np.ndarray, unbiased: bool
) -> np.ndarray:
    """MMD^2 from sums of k - base over all ordered pairs; pairs of a point with itself included, 1 - base each."""
    total = -2 * between / (sizes[0] * sizes[1])
    for sums, n in ((of_a, sizes[0]), (of_b, sizes[1])):
        total += (sums - n * (1 - base)) / (n * (n - 1)) if unbiased else sums / n**2
    return total


def rbf_mmd2(
    a: np.ndarray | Tensor, b: np.ndarray | Tensor, *, gammas: np.ndarray | list[float], unbiased: bool = False
) -> np.ndarray:
    """Squared maximum mean discrepancy of two clouds for several Gaussian kernels.

    Parameters
    ----------
    a, b
        (n, d) and (m, d) numpy arrays or tensors.
    gammas
        (K,) positive; the kernels are ``exp(-gamma |x - y|^2)``, so gamma = 1 / (2 sigma^2).
    unbiased
        Leave out pairs of a point with itself: 0 on average for samples of one distribution, so it may be negative.

    Returns
    -------
    (K,) float64, one per kernel, not summed. Small clouds in float64 throughout; larger ones from float32 tiles with
    float64 sums, on a GPU if both are tensors there.

    Raises
    ------
    ScreproError
        Empty clouds, other shapes, dimensions that differ, values that are not finite, gammas that are not positive,
        fewer than two points for the unbiased estimator.
    """
    gammas = np.asarray(gammas, np.float64)
    if gammas.ndim != 1 or not gammas.size or not (np.isfinite(gammas) & (gammas > 0)).all():
        raise ScreproError(
            "`gammas` is a list of positive numbers.",
            got=str(gammas),
            fix="pass 1 / (2 sigma^2) of every width, in a list",
        )
    on_gpu = all(isinstance(cloud, Tensor) and cloud.is_cuda for cloud in (a, b))
    if not on_gpu:
        a, b = points("a", a), points("b", b)
    n, m = len(a), len(b)
    if unbiased and min(n, m) < 2:
        raise ScreproError(
            "The unbiased estimator takes at least two points on each side.",
            got=f"{n} and {m}",
            fix="take the biased one, or more cells",
        )
    if on_gpu:
        from screpro.kernels.gpu import mmd as gpu

        return _estimate(*gpu.kernel_sums(a, b, gammas), (n, m), np.ones_like(gammas), unbiased)
    if n * m * a.shape[1] <= EXACT and a.shape[1] == b.shape[1]:
        return reference(a, b, gammas=gammas, unbiased=unbiased)
    return streamed(a, b, gammas=gammas, unbiased=unbiased)


def streamed(a: np.ndarray, b: np.ndarray, *, gammas: np.ndarray, unbiased: bool = False) -> np.ndarray:
    """`rbf_mmd2` by tiles, for any size."""
    between = Pairs.of(a, b)
    # a kernel near 1 is summed as k - 1, one near 0 as k; the mean squared distance says which it is
    typical = (between.norms_a.mean(dtype=np.float64) + between.norms_b.mean(dtype=np.float64)) * between.unit**2
    base = (gammas * typical < 0.7).astype(np.float64)
    sums = []
    for pairs in (Pairs.of(a), Pairs.of(b), between):
        total = _sums(pairs, gammas, base)
        sums.append(2 * total + len(pairs.a) * (1 - base) if pairs.same else total)
    return _estimate(*sums, (len(a), len(b)), base, unbiased)


def _sums(pairs: Pairs, gammas: np.ndarray, base: np.ndarray) -> np.ndarray:
    rates = np.minimum(gammas * np.log2(np.e) * pairs.unit**2, 1e30).astype(np.float32)
    base = base.astype(np.float32)

    def visit(tile: np.ndarray, i: int, j: int) -> np.ndarray:
        p = pairs
        return _sum_kernels(tile, i, j, p.norms_a, p.norms_b, p.a, p.b, p.unit, p.same, rates, base)

    return walk(pairs, visit)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _sum_kernels(tile, i, j, norms_a, norms_b, a, b, unit, same, rates, base):
    """Sums (K,) of ``2^(-rate square) - base`` over a tile; of `same` clouds only pairs above the diagonal."""
    sums = np.zeros(len(rates))
    zero, half = np.float32(0), np.float32(0.5)
    bits = tile.view(np.int32)  # numbers that are not negative are in the order of their bits
    for p in range(tile.shape[0]):
        first = min(max(0, i + p + 1 - j), tile.shape[1]) if same else 0
        squares, norms, norm = tile[p][first:], norms_b[j + first :], norms_a[i + p]
        near = zero
        for q in range(len(squares)):
            near += np.float32(squares[q] < np.float32(NEAR) * (norm + norms[q]))
        if near:
            for q in range(len(squares)):
                if squares[q] < np.float32(NEAR) * (norm + norms[q]):
                    squares[q] = squared_distance(a[i + p], b[j + first + q]) / unit / unit
        least, row_bits = np.int32(2**31 - 1), bits[p][first:]
        for q in range(len(row_bits)):
            least = min(least, row_bits[q])
        nearest = np.int32(least).view(np.float32)
        for k in range(len(rates)):
            rate, shift = rates[k], base[k]
            if shift == zero and rate * nearest > np.float32(126):
                continue  # every kernel of this row is below 2^-126
            fractions, powers = zero, zero  # apart, because 2^f - 1 must not be rounded to the precision of 1
            for q in range(len(squares)):
                exponent = max(-rate * squares[q], np.float32(-126))
                whole = np.floor(exponent + half)
                f = exponent - whole
                rest = np.float32(1.5252734e-5)  # 2^f - 1 = f (ln 2 + f (ln 2^2 / 2! + ...))
                rest = rest * f + np.float32(1.5403530e-4)
                rest = rest * f + np.float32(1.3333558e-3)
                rest = rest * f + np.float32(9.6181291e-3)
                rest = rest * f + np.float32(5.5504109e-2)
                rest = rest * f + np.float32(2.4022651e-1)
                rest = (rest * f + np.float32(6.9314718e-1)) * f
                power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
                fractions += power * rest
                powers += power - shift
            sums[k] += np.float64(fractions) + np.float64(powers)
    return sums
