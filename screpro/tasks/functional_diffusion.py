r"""PerturbDiff's appendix B in finite dimension: embeddings of cell populations, their diffusion, its propositions.

Each function computes both sides of one statement from cells, and `Check` says how far apart they are. Everything is
float64 and goes through Gram matrices: on n cells, a function space of any dimension has n coordinates.

Kernels k(x, y) on cells are functions that return a Gram matrix:

    gaussian(l)   exp(-|x - y|² / 2 l²): smooth, and its derivatives have closed forms
    energy(z)     (|x - z| + |y - z| - |x - y|) / 2: the positive definite kernel behind the energy distance; the base
                  point z changes embeddings and their lengths, but no distance between embeddings

With the second, MMD² is *half* the energy distance, which is geomloss's loss; without the factor 1/2 in k it is the
energy distance of the paper's equation 32 (Sejdinovic et al., Ann. Stat. 2013, 10.1214/13-AOS1140). What noise on
cells does to embeddings (Lemma B.13, Proposition B.14) stands in ``functional_diffusion_noise``, score matching in
another norm (B.15) in ``functional_diffusion_score``.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from screpro.errors import ScreproError

__all__ = [
    "Bound",
    "Check",
    "Schedule",
    "cdf_bound",
    "embedding_variance",
    "energy",
    "features",
    "forward_chain",
    "forward_moments",
    "gaussian",
    "inner_product",
    "kl_shared",
    "mixing",
    "mmd",
    "reverse_conditional",
    "schedule_of",
    "variational_bound",
]

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Gram matrix (n, m) of cells (n, d) and (m, d)."""


class Check(NamedTuple):
    """The two sides of a statement, arrays of one shape."""

    left: np.ndarray
    right: np.ndarray

    @property
    def gap(self) -> float:
        """Largest difference, relative to the largest absolute value of the left side."""
        left, right = np.asarray(self.left, float), np.asarray(self.right, float)
        scale = np.abs(left).max()
        return float(np.abs(left - right).max() / (scale if scale > 0 else 1.0))

    @property
    def digits(self) -> float:
        """-log10 of the gap, at most 16."""
        return float(min(16.0, -np.log10(max(self.gap, 1e-16))))


class Bound(NamedTuple):
    """A statement left <= right, arrays of one shape."""

    left: np.ndarray
    right: np.ndarray

    @property
    def slack(self) -> float:
        """Smallest right - left; below 0 where the bound is broken."""
        return float((np.asarray(self.right) - np.asarray(self.left)).min())


# ---- kernels, and Lemma B.1


def gaussian(width: float) -> Kernel:
    """The Gaussian kernel of a width in the unit of the cells."""
    if not width > 0:
        raise ScreproError("A kernel's width is above 0.", got=f"{width}", fix="take the median distance between cells")
    return lambda x, y: np.exp(-cdist(x, y, "sqeuclidean") / (2 * width**2))


def energy(base: np.ndarray) -> Kernel:
    """The kernel of the energy distance, for a base point (d,)."""
    base = np.asarray(base, float)[None]
    return lambda x, y: (cdist(x, base) + cdist(y, base).T - cdist(x, y)) / 2


def features(kernel: Kernel, cells: np.ndarray) -> np.ndarray:
    """Coordinates (n, r) of the functions k(x, .) of cells (n, d): products of rows are the Gram matrix.

    An eigendecomposition; directions below 1e-13 of the largest eigenvalue are rounding and left out.
    """
    values, axes = np.linalg.eigh(kernel(cells, cells))
    kept = values > 1e-13 * values[-1]
    return axes[:, kept] * np.sqrt(values[kept])


def mixing(kernel: Kernel, x: np.ndarray, y: np.ndarray, at: np.ndarray, *, repeats: tuple[int, int] = (1, 3)) -> Check:
    """Lemma B.1 (1): the embedding of a mixture is the mixture of the embeddings, as functions at cells `at` (a, d).

    The mixture is a set of cells itself: `x` (n, d) and `y` (m, d) each taken so many times.
    """
    pooled = np.concatenate([np.tile(x, (repeats[0], 1)), np.tile(y, (repeats[1], 1))])
    share = repeats[0] * len(x) / len(pooled)
    right = share * kernel(at, x).mean(1) + (1 - share) * kernel(at, y).mean(1)
    return Check(kernel(at, pooled).mean(1), right)


def inner_product(kernel: Kernel, x: np.ndarray, y: np.ndarray) -> Check:
    """Lemma B.1 (2): the product of two mean embeddings, in coordinates, and the mean of the kernel over pairs."""
    both = features(kernel, np.concatenate([x, y]))
    return Check(both[: len(x)].mean(0) @ both[len(x) :].mean(0), kernel(x, y).mean())


def mmd(kernel: Kernel, x: np.ndarray, y: np.ndarray, *, rng: np.random.Generator, others: int = 200) -> Check:
    """Lemma B.1 (3): the distance of two mean embeddings, and the largest difference of means of a unit function.

    The right side is a maximum over `others` random functions of length 1 and the one that the theory says is best,
    the difference of the embeddings; all are evaluated at the cells by the kernel.
    """
    cells = np.concatenate([x, y])
    both = features(kernel, cells)
    left = np.linalg.norm(both[: len(x)].mean(0) - both[len(x) :].mean(0))
    best = np.concatenate([np.full(len(x), 1 / len(x)), np.full(len(y), -1 / len(y))])
    weights = np.column_stack([best, rng.standard_normal((len(cells), others))])
    gram = kernel(cells, cells)
    values = gram @ weights
    values /= np.sqrt(np.einsum("ik,ik->k", weights, values))
    gaps = values[: len(x)].mean(0) - values[len(x) :].mean(0)
    return Check(left, np.abs(gaps).max())


# ---- Proposition B.2: sets as samples of a population


def cdf_bound(
    population: np.ndarray, m: int, thresholds: np.ndarray, *, trials: int, rng: np.random.Generator
) -> Bound:
    """Proposition B.2: how often the distribution function of m cells is farther than t from the population's.

    Parameters
    ----------
    population
        (N, G) whole numbers from 0, the population itself, so that its distribution function is known. The grid has
        the product of the numbers of levels as entries: take few genes.
    thresholds
        (k,) values of t.

    Returns
    -------
    Bound of (k,): frequency among `trials` sets, and 2 G exp(-2 m t²).
    """
    levels = tuple(int(top) + 1 for top in population.max(0))
    if np.prod(levels) * trials > 2e7:
        raise ScreproError(
            "The distribution function is taken on a grid of all levels of all genes.",
            got=f"{levels} levels, {trials} sets",
            fix="take fewer genes, or cap their counts",
        )
    code = np.ravel_multi_index(tuple(population.T.astype(int)), levels)
    cells = int(np.prod(levels))
    drawn = code[rng.integers(len(code), size=(trials, m))] + cells * np.arange(trials)[:, None]
    below = np.bincount(drawn.ravel(), minlength=cells * trials).reshape(trials, *levels) / m
    true = np.bincount(code, minlength=cells).reshape(levels) / len(code)
    for axis in range(len(levels)):
        below, true = below.cumsum(axis + 1), true.cumsum(axis)
    farthest = np.abs(below - true).reshape(trials, -1).max(1)
    thresholds = np.asarray(thresholds, float)
    frequency = (farthest[:, None] > thresholds).mean(0)
    return Bound(frequency, 2 * len(levels) * np.exp(-2 * m * thresholds**2))


def embedding_variance(kernel: Kernel, cells: np.ndarray, m: int, *, trials: int, rng: np.random.Generator) -> Check:
    """What B.2 stands in for: the mean squared distance of the embedding of m cells from the population's.

    Left: over `trials` sets drawn with replacement from the cells (N, d). Right: (E k(X, X) - |mu|²) / m, exact for
    any kernel, population and set size, and free of the number of genes.
    """
    gram = kernel(cells, cells)
    drawn = rng.integers(len(cells), size=(trials, m)) + len(cells) * np.arange(trials)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=trials * len(cells)).reshape(trials, -1) / m - 1 / len(cells)
    left = np.einsum("ti,ij,tj->t", weights, gram, weights, optimize=True).mean()
    return Check(left, (np.trace(gram) / len(cells) - gram.mean()) / m)


# ---- diffusion of elements: equations 3 and 4, Propositions B.10 to B.12


class Schedule(NamedTuple):
    """Variances beta_t and products alpha_t of 1 - beta, (T + 1,) each; entry 0 is the clean state."""

    beta: np.ndarray
    alpha: np.ndarray


def schedule_of(beta: np.ndarray) -> Schedule:
    """The schedule of variances (T,) in float64, steps numbered from 1 as in the paper."""
    beta = np.concatenate([[0.0], np.asarray(beta, float)])
    return Schedule(beta, np.cumprod(1 - beta))


def forward_moments(schedule: Schedule) -> Check:
    """Equation 4 from equation 3, exactly: factor of mu_0 and of C after each step, step by step and in closed form."""
    mean, variance, left = 1.0, 0.0, []
    for beta in schedule.beta[1:]:
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        left.append((mean, variance))
    alpha = schedule.alpha[1:]
    return Check(np.array(left), np.column_stack([np.sqrt(alpha), 1 - alpha]))


def forward_chain(
    start: np.ndarray, spectrum: np.ndarray, schedule: Schedule, times: np.ndarray, *, chains: int,
    rng: np.random.Generator,
) -> tuple[Check, Check]:  # fmt: skip
    """Equation 4 from equation 3: mean and variance after t steps, of many chains and in closed form.

    Parameters
    ----------
    start
        (r,) coordinates of mu_0 along the eigenfunctions of C.
    spectrum
        (r,) eigenvalues of C, 0 or more.
    times
        Steps at which to compare.

    Returns
    -------
    Checks of the means (k, r) and of the variances summed over coordinates (k,).
    """
    state = np.tile(start, (chains, 1))
    means, variances = [], []
    for t in range(1, int(max(times)) + 1):
        noise = rng.standard_normal(state.shape) * np.sqrt(spectrum)
        state = np.sqrt(1 - schedule.beta[t]) * state + np.sqrt(schedule.beta[t]) * noise
        if t in times:
            means.append(state.mean(0))
            variances.append(state.var(0, ddof=1).sum())
    alpha = schedule.alpha[np.sort(np.asarray(times))]
    closed = np.sqrt(alpha)[:, None] * start
    return Check(np.array(means), closed), Check(np.array(variances), (1 - alpha) * spectrum.sum())


def reverse_conditional(schedule: Schedule, t: int, *, as_printed: bool = False) -> Check:
    """Proposition B.10: weights of mu_0 and mu_t in the mean of mu_(t-1), and the factor of C in its covariance.

    Left: from the joint Gaussian law of (mu_(t-1), mu_t) given mu_0 that equation 3 makes. Right: equations 18 and 19;
    the covariance factor is printed without beta_t, which `as_printed` keeps.
    """
    if not 2 <= t < len(schedule.beta):
        raise ScreproError("The proposition is about t = 2 ... T.", got=f"{t}", fix="take a later step")
    beta, now, before = schedule.beta[t], schedule.alpha[t], schedule.alpha[t - 1]
    gain = np.sqrt(1 - beta) * (1 - before) / (1 - now)  # covariance of the two over the variance of mu_t
    left = [np.sqrt(before) - gain * np.sqrt(now), gain, (1 - before) - gain * np.sqrt(1 - beta) * (1 - before)]
    variance = (1 - before) / (1 - now) * (1 if as_printed else beta)
    right = [np.sqrt(before) * beta / (1 - now), np.sqrt(1 - beta) * (1 - before) / (1 - now), variance]
    return Check(np.array(left), np.array(right))


def kl_shared(difference: np.ndarray, spectrum: np.ndarray, *, rng: np.random.Generator) -> Check:
    """Lemma B.11: KL of two Gaussians with one covariance, against half the squared length of C^(-1/2) (m1 - m2).

    Left: the general formula for full covariance matrices, after a random rotation. `difference` and `spectrum` are
    (r,), along the eigenfunctions.
    """
    turn = np.linalg.qr(rng.standard_normal((len(spectrum),) * 2))[0]
    covariance, shift = turn * spectrum @ turn.T, turn @ difference
    solved = np.linalg.solve(covariance, np.column_stack([covariance, shift]))
    left = 0.5 * (np.trace(solved[:, :-1]) - len(shift) + shift @ solved[:, -1])  # the log determinants cancel
    return Check(left, 0.5 * (difference**2 / spectrum).sum())


def variational_bound(
    variance: np.ndarray, spectrum: np.ndarray, schedule: Schedule, gains: np.ndarray | None = None
) -> Bound:
    """Proposition B.12 where both sides are known: Gaussian data, and a reverse process that is linear.

    Data mu_0 ~ N(0, variance) and noise with eigenvalues `spectrum`, (r,) each; the model predicts mu_0 as
    ``gains[t] * mu_t``, (T + 1, r), None for the best prediction. Reverse steps have the variance of Proposition B.10;
    the last, t = 1, has beta_1 C, as that of the proposition is 0 and its Kullback-Leibler divergence infinite.

    Returns
    -------
    Bound of scalars: -E log q(mu_0), by the law that the reverse process ends in, and the sum of equation 21 with its
    constant, E KL(P_T|0, Q_T), and -E log q(mu_0 | mu_1) in place of the term t = 1.
    """
    beta, alpha = schedule.beta[:, None], schedule.alpha[:, None]
    if gains is None:
        gains = np.sqrt(alpha) * variance / (alpha * variance + (1 - alpha) * spectrum)
    before = np.concatenate([alpha[:1], alpha[:-1]])
    left_over = np.maximum(1 - alpha, 1e-300)  # 0 at t = 0, which is not used
    to_data = np.sqrt(before) * beta / left_over
    to_state = np.sqrt(1 - beta) * (1 - before) / left_over
    step = (1 - before) / left_over * beta * spectrum
    step[1] = beta[1] * spectrum
    end = spectrum.copy()  # of the reverse process, from t = T down
    for t in range(len(beta) - 1, 0, -1):
        end = (to_data[t] * gains[t] + to_state[t]) ** 2 * end + step[t]
    left = 0.5 * (np.log(2 * np.pi * end) + variance / end).sum()
    error = variance * (1 - gains * np.sqrt(alpha)) ** 2 + gains**2 * (1 - alpha) * spectrum
    steps = 0.5 * (to_data[2:] ** 2 * error[2:] / step[2:]).sum()
    first = 0.5 * (np.log(2 * np.pi * step[1]) + error[1] / step[1]).sum()
    last = alpha[-1]
    prior = 0.5 * (last * variance / spectrum - last - np.log(1 - last)).sum()
    return Bound(left, steps + first + prior)
