"""Inputs of the kernel benchmarks: made up, from fixed seeds, of the size and shape that single-cell data have."""

import numpy as np
import scipy.sparse as sp

__all__ = ["clouds", "counts", "log_normalised", "perturbed_cells", "rates"]

SHAPE = 2.0
"""Shape of the gamma distribution that the Poisson rates are drawn from: inverse dispersion of every gene."""


def rates(groups: int, genes: int, *, share: float, seed: int = 0) -> np.ndarray:
    """Relative mean of every gene in every group of cells, (groups, genes).

    A log-normal level for every gene (standard deviation 1.2 of its logarithm) and, in every group but the first,
    another log-normal factor (standard deviation 1) for a share of the genes.
    """
    rng = np.random.default_rng(seed)
    level = rng.lognormal(0, 1.2, genes)
    factor = np.where(rng.random((groups, genes)) < share, rng.lognormal(0, 1, (groups, genes)), 1)
    factor[0] = 1
    return level * factor


def counts(group: np.ndarray, means: np.ndarray, *, density: float, seed: int = 0) -> sp.csr_matrix:
    """Gamma-Poisson counts (n, G) float32 of cells with means ``means[group]``, scaled to a share of non-zeros.

    Cells differ in depth by a log-normal factor (standard deviation 0.3). Drawn by the inverse of the distribution
    function, which leaves the zeros at one comparison each.
    """
    rng = np.random.default_rng(seed)
    depth = rng.lognormal(0, 0.3, len(group))
    low, high = 0.0, 1e6
    for _ in range(60):  # the scale at which the share of non-zeros is `density`, at depth 1
        scale = (low + high) / 2
        low, high = (scale, high) if np.mean(1 - (1 + scale * means / SHAPE) ** -SHAPE) < density else (low, scale)
    means = (scale / SHAPE * means).astype(np.float32)  # over the shape: odds of the negative binomial
    blocks = []
    for start in range(0, len(group), 4096):
        cells = slice(start, start + 4096)
        odds = means[group[cells]] * depth[cells, None].astype(np.float32)
        draw = rng.random(odds.shape, dtype=np.float32)
        rows, columns = np.nonzero(draw * (1 + odds) ** 2 > 1)  # more than the probability of a zero, for shape 2
        odds, draw = odds[rows, columns].astype(np.float64), draw[rows, columns]
        blocks.append(sp.csr_matrix((_inverse(draw, odds), (rows, columns)), shape=(len(depth[cells]), means.shape[1])))
    return sp.vstack(blocks, format="csr", dtype=np.float32)


def _inverse(draw: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """Smallest count with a distribution function above `draw`, at least 1 (float32)."""
    step = odds / (1 + odds)
    mass = (1 + odds) ** -SHAPE
    below, value = mass.copy(), np.zeros(len(draw), np.float32)
    left = np.arange(len(draw))
    for k in range(1, 1000):
        mass[left] *= step[left] * (k - 1 + SHAPE) / k
        below[left] += mass[left]
        value[left] = k
        left = left[draw[left] > below[left]]
        if not len(left):
            break
    return value


def log_normalised(x: sp.csr_matrix) -> sp.csr_matrix:
    """log1p of counts scaled to 10 000 per cell, float32."""
    total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    scaled = x.astype(np.float32)
    scaled.data = np.log1p(scaled.data * np.repeat(1e4 / np.maximum(total, 1), np.diff(x.indptr))).astype(np.float32)
    return scaled


def perturbed_cells(n: int, genes: int, perturbations: int, *, density: float) -> tuple[sp.csr_matrix, np.ndarray]:
    """Log-normalised cells and their codes: 0 for controls, a tenth of the cells; 1 to P for the perturbations.

    A perturbation changes 5 % of the genes.
    """
    rng = np.random.default_rng(1)
    codes = np.where(rng.random(n) < 0.1, 0, rng.integers(1, perturbations + 1, n))
    x = counts(codes, rates(perturbations + 1, genes, share=0.05), density=density)
    return log_normalised(x), codes


def clouds(n: int, d: int, m: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, d) and (m, d) float32 like coordinates on components: standard deviations from 5 to 1, shift 0.3."""
    rng = np.random.default_rng(0)
    scale = np.linspace(5, 1, d)
    x, y = rng.normal(size=(n, d)) * scale, rng.normal(size=(m or n, d)) * scale + 0.3
    return x.astype(np.float32), y.astype(np.float32)
