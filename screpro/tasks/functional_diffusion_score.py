"""PerturbDiff's appendix B.4: squared MMD as a local squared norm, and denoising score matching in that norm (B.15)."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from screpro.tasks.functional_diffusion import Check, Kernel

__all__ = ["Minimisers", "local_growth", "minimisers", "score_matching"]


def local_growth(kernel: Kernel, cells: np.ndarray, steps: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Squared MMD (k,) between cells (m, G) and the same cells, each moved by h in a random direction of its own.

    Appendix B.4 expands it around h = 0 and keeps the second order, h². `steps` (k,) are the values of h.
    """
    directions = rng.standard_normal(cells.shape)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    own = kernel(cells, cells).mean()
    found = []
    for h in steps:
        new = cells + h * directions
        found.append(kernel(new, new).mean() - 2 * kernel(new, cells).mean() + own)
    return np.array(found)


def score_matching(covariance: np.ndarray, alpha: float, beta: float, norm: np.ndarray, maps: np.ndarray) -> Check:
    """Proposition B.15 in closed form: by how much one linear f is better than another, as judged by both losses.

    Data x ~ N(0, covariance), noised alpha x + beta e; f(x) = A x for the `maps` A (k, d, d); `norm` is H (d, d). Both
    losses have a factor 1/2, as in the proof. They differ by a constant, so differences to the first map are compared.
    """
    noised = alpha**2 * covariance + beta**2 * np.eye(len(covariance))
    score = np.linalg.inv(noised)
    losses = []
    for a in maps:
        own = score + a  # |-S^-1 x - A x|²_H
        # given x, the conditional score is -(noised - alpha x) / beta² = -e / beta
        joint = a @ noised @ a.T + 2 * a + np.eye(len(a)) / beta**2  # E of (A x~ + e / beta)(...)', up to transposition
        losses.append([0.5 * np.trace(norm @ own @ noised @ own.T), 0.5 * np.trace(norm @ joint)])
    losses = np.array(losses)
    return Check(losses[1:, 0] - losses[0, 0], losses[1:, 1] - losses[0, 1])


class Minimisers(NamedTuple):
    """At n' noised cells: the score of their law, and what minimises the denoising loss there; (n', d) each."""

    score: np.ndarray
    minimiser: np.ndarray

    @property
    def gap(self) -> float:
        """Root mean square of the difference over that of the score."""
        return float(np.sqrt(np.square(self.score - self.minimiser).mean() / np.square(self.score).mean()))


def minimisers(cells: np.ndarray, noised: np.ndarray, alpha: float, beta: float, norms: np.ndarray) -> Minimisers:
    """Proposition B.15 at real cells (n, d): the population is these cells, so every expectation is a finite sum.

    `norms` (n, d, d) is the norm H that the loss uses for each clean cell; the proposition has one for all.
    """
    squares = cdist(noised, alpha * cells, "sqeuclidean") / (2 * beta**2)
    weight = np.exp(squares.min(1, keepdims=True) - squares)
    weight /= weight.sum(1, keepdims=True)  # of each clean cell, given the noised one
    scores = (alpha * cells[None] - noised[:, None]) / beta**2
    mean_norm = np.einsum("ni,ide->nde", weight, norms, optimize=True)
    pulled = np.einsum("ni,ide,nie->nd", weight, norms, scores, optimize=True)
    minimiser = np.linalg.solve(mean_norm, pulled[..., None])[..., 0]
    return Minimisers(np.einsum("ni,nid->nd", weight, scores), minimiser)
