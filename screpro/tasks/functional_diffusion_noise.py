r"""Noise on every cell as noise on a population: PerturbDiff's Lemma B.13 and Proposition B.14, and their reach.

A set of m cells x_j has the mean embedding mu = mean_j k(x_j, .). Noise e_j ~ N(0, s² I) on every cell moves it to mu'.
The paper replaces mu' - mu by its first-order part D = mean_j grad k(x_j, .) . e_j, a Gaussian random element. Here for
the Gaussian kernel of width l, with r = (s/l)² and d_jk the distance of two cells, all expectations are closed:

    E k(x_j + e, x_k)       = (1 + r)^(-G/2) exp(-d² / (2 l² (1 + r)))         one cell noised; 2 r for both
    E |D|²                  = r G / m
    |E mu' - mu|²           does not fall with m: cells are noised apart, but smeared alike
    E |mu' - mu - D|²       = |E mu' - mu|² + (1 - (1 + 2 r)^(-G/2) - 2 r G (1 + r)^(-G/2 - 1) + r G) / m

So the error relative to D rises with s, and for a fixed s with the root of m.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from screpro.errors import ScreproError
from screpro.tasks.functional_diffusion import Check, Kernel

__all__ = [
    "CellProcess",
    "Moved",
    "Projection",
    "cell_process",
    "difference_quotient",
    "log_slope",
    "moved",
    "moved_energy",
    "moved_sampled",
    "projected",
]


class Moved(NamedTuple):
    """Expected squared lengths in the function space, (k,) for k sizes of noise."""

    whole: np.ndarray  # of mu' - mu
    gaussian: np.ndarray  # of its first-order part, the Gaussian random element
    drift: np.ndarray  # of the expected mu' - mu: the same for every draw, so no noise at all
    remainder: np.ndarray  # of what the first order leaves out

    @property
    def error(self) -> np.ndarray:
        """Length of what is left out, relative to the Gaussian element."""
        return np.sqrt(self.remainder / self.gaussian)


def moved(cells: np.ndarray, noise: np.ndarray, *, width: float) -> Moved:
    """How far noise of these standard deviations (k,) moves the embedding of cells (m, G), Gaussian kernel."""
    noise = np.asarray(noise, float)
    if not (noise > 0).all() or not width > 0:
        raise ScreproError(
            "Noise and width are above 0.", got=f"noise {noise.min()}, width {width}", fix="leave out the clean state"
        )
    m, n_genes = cells.shape
    squares = cdist(cells, cells, "sqeuclidean") / (2 * width**2)
    gram = np.exp(-squares)
    r = (noise / width) ** 2

    def change(c: float, rate: float) -> float:
        # by expm1: for small noise the three terms of the drift cancel to the fourth order
        return float((gram * np.expm1(-n_genes / 2 * np.log1p(c * rate) + squares * c * rate / (1 + c * rate))).mean())

    drift = np.array([change(2, rate) - 2 * change(1, rate) for rate in r])
    own = -np.expm1(-n_genes / 2 * np.log1p(2 * r)) / m  # a cell is as close to itself as before
    first = r * n_genes / m
    cross = first * np.exp(-(n_genes / 2 + 1) * np.log1p(r))
    return Moved(drift + own, first, drift, drift + own - 2 * cross + first)


def moved_sampled(cells: np.ndarray, noise: float, *, width: float, draws: int, rng: np.random.Generator) -> Moved:
    """The same by drawing noise: means over `draws`; the drift is left to the closed form (NaN)."""
    found = []
    for _ in range(draws):
        e = noise * rng.standard_normal(cells.shape)
        new = cells + e
        old_old, new_old, new_new = (
            np.exp(-cdist(a, b, "sqeuclidean") / (2 * width**2)) for a, b in ((cells, cells), (new, cells), (new, new))
        )
        whole = (new_new - 2 * new_old + old_old).mean()
        # <D, k(y, .)> = mean_k k(x_k, y) (y - x_k) . e_k / l²
        own = (cells * e).sum(1)
        at_new = (new_old * (new @ e.T - own)).mean() / width**2
        at_old = (old_old * (cells @ e.T - own)).mean() / width**2
        # <D, D>: the mixed second derivative of k, (I - (x - y)(x - y)' / l²) k / l²
        along = cells @ e.T - own  # (j, k): (x_j - x_k) . e_k
        gaussian = (old_old * (e @ e.T + along * along.T / width**2)).mean() / width**2
        found.append((whole, gaussian, whole - 2 * (at_new - at_old) + gaussian))
    whole, gaussian, remainder = np.mean(found, axis=0)
    return Moved(np.array([whole]), np.array([gaussian]), np.array([np.nan]), np.array([remainder]))


def moved_energy(cells: np.ndarray, noise: np.ndarray, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Mean squared length (k,) of mu' - mu with the kernel of the energy distance: half the energy distance."""
    from screpro.metrics.distances import energy_distance_half

    return np.array([
        np.mean([energy_distance_half(cells, cells + s * rng.standard_normal(cells.shape)) for _ in range(draws)])
        for s in noise
    ])  # fmt: skip


class Projection(NamedTuple):
    """What noise does to the product <mu' - mu, h> with one function h."""

    variance: Check  # over draws; and as Proposition B.14 has it
    mean: float  # 0 for the Gaussian element, in standard deviations of the draws
    excess_kurtosis: float  # 0 for the Gaussian element


def projected(
    cells: np.ndarray, noise: float, *, width: float, at: np.ndarray, weights: np.ndarray, draws: int,
    rng: np.random.Generator,
) -> Projection:  # fmt: skip
    """Lemma B.13 and Proposition B.14 on h = sum_i weights_i k(at_i, .), Gaussian kernel.

    B.14's <C h, h> is the mean over cells of |grad h(x_j)|² / m, times the variance of the noise. `cells` (m, G), `at`
    (a, G), `weights` (a,).
    """

    def values(x: np.ndarray) -> np.ndarray:
        return np.exp(-cdist(x, at, "sqeuclidean") / (2 * width**2)) @ weights

    m = len(cells)
    before = values(cells).mean()
    step = max(1, int(4e6 / cells.size))
    found = []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        drawn = cells + noise * rng.standard_normal((count, *cells.shape))
        found.append(values(drawn.reshape(count * m, -1)).reshape(count, m).mean(1) - before)
    change = np.concatenate(found)
    pull = np.exp(-cdist(cells, at, "sqeuclidean") / (2 * width**2)) * weights
    gradient = (pull @ at - pull.sum(1, keepdims=True) * cells) / width**2
    centred = change - change.mean()
    spread = centred.std()
    return Projection(
        Check(spread**2, noise**2 * np.square(gradient).sum() / m**2),
        float(change.mean() / spread),
        float((centred**4).mean() / spread**4 - 3),
    )


def difference_quotient(kernel: Kernel, cell: np.ndarray, direction: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Length of (k(x + h v, .) - k(x, .)) / h for steps h (k,): bounded where k(x, .) is differentiable in x.

    `cell` and `direction` are (G,), the latter of length 1.
    """
    steps = np.asarray(steps, float)
    moved_to = cell + steps[:, None] * direction
    own, there, between = kernel(cell[None], cell[None])[0, 0], kernel(moved_to, moved_to), kernel(moved_to, cell[None])
    return np.sqrt(np.maximum(np.diag(there) + own - 2 * between[:, 0], 0)) / steps


def log_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of log y on log x by least squares: the power that y is of x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# ---- the forward process of cells, seen as one of populations


class CellProcess(NamedTuple):
    """Noised cells against equation 4, (k,) for k steps; squared lengths in the function space of the Gaussian kernel.

    Equation 4 has the mean sqrt(alpha) mu_0 and the total variance (1 - alpha) tr C; C is that of Proposition B.14.
    """

    start: float  # |mu_0|²
    mean: np.ndarray  # |E mu_t|² of the noised cells
    misplaced: np.ndarray  # |E mu_t - sqrt(alpha) mu_0|²
    variance: np.ndarray  # E |mu_t - E mu_t|² over draws of the noise
    printed_variance: np.ndarray  # (1 - alpha) tr C


def cell_process(cells: np.ndarray, alpha: np.ndarray, *, width: float) -> CellProcess:
    """What sqrt(alpha) x + sqrt(1 - alpha) e (eq. 27) on cells (m, G) does to their embedding, and what eq. 4 says.

    Closed forms: the expected kernel of Gaussian clouds. `alpha` (k,) is strictly between 0 and 1.
    """
    alpha = np.asarray(alpha, float)
    m, n_genes = cells.shape
    squares, products = cdist(cells, cells, "sqeuclidean"), cells @ cells.T
    norms = np.diag(products)
    start = float(np.exp(-squares / (2 * width**2)).mean())
    mean, misplaced, variance = [], [], []
    for each in alpha:
        r = (1 - each) / width**2
        to_clean = each * norms[:, None] + norms - 2 * np.sqrt(each) * products  # |sqrt(alpha) x_j - x_k|²
        own = np.exp(-n_genes / 2 * np.log1p(2 * r) - each * squares / (2 * width**2 * (1 + 2 * r))).mean()
        clean = np.exp(-n_genes / 2 * np.log1p(r) - to_clean / (2 * width**2 * (1 + r))).mean()
        mean.append(own)
        misplaced.append(own - 2 * np.sqrt(each) * clean + each * start)
        variance.append(-np.expm1(-n_genes / 2 * np.log1p(2 * r)) / m)
    trace = n_genes / width**2 / m
    return CellProcess(start, np.array(mean), np.array(misplaced), np.array(variance), (1 - alpha) * trace)
