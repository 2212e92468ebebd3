"""Counts and model means, one batch of cells at a time, for the scores of reconstruction and denoising."""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError

__all__ = ["BATCH", "Counts", "batches", "check_theta", "draw", "normalised"]

BATCH = 128
"""Cells in one evaluation batch, over which the correlation of a gene is taken (scLDM's batch size)."""
TARGET = 1e4
"""Counts per cell after normalisation."""

Counts = np.ndarray | sp.spmatrix | sp.sparray


def draw(mu: np.ndarray, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Negative-binomial counts: a Poisson draw around a gamma draw of mean mu and shape theta."""
    return rng.poisson(rng.gamma(np.broadcast_to(theta, mu.shape), mu / theta)).astype(np.float64)


def normalised(x: np.ndarray) -> np.ndarray:
    """log(1 + counts per 10 000 of the cell); a cell without counts stays 0."""
    total = x.sum(1, keepdims=True)
    return np.log1p(x * (TARGET / np.where(total > 0, total, 1)))


def batches(counts: Counts, mean: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """One batch after another: its cells, their counts and the model's mean scaled to their totals, (b, G) float64."""
    mean = np.asarray(mean)
    if sp.issparse(counts):
        counts = counts.tocsr()
    else:
        counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape != mean.shape or 0 in counts.shape:
        raise ScreproError(
            "Counts and means are of the same cells and genes, at least one of each.",
            got=f"counts {counts.shape}, means {mean.shape}",
            fix="put both into the same order of cells and genes",
        )
    for start in range(0, counts.shape[0], BATCH):
        cells = slice(start, min(start + BATCH, counts.shape[0]))
        x = counts[cells]
        x = np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float64)
        mu = np.asarray(mean[cells], dtype=np.float64)
        for name, values in (("Counts", x), ("Means", mu)):
            if not (values.min() >= 0 and values.max() < np.inf):
                raise ScreproError(
                    f"{name} are finite numbers from 0.",
                    got=f"values from {values.min()} to {values.max()}",
                    fix="pass raw counts and means on the scale of counts, not of their logarithm",
                )
        total, own = x.sum(1, keepdims=True), mu.sum(1, keepdims=True)
        if ((own == 0) & (total > 0)).any():
            raise ScreproError(
                "The mean of a cell with counts is above 0 for some gene.",
                got=f"only zeros for cell {start + int(np.argmax((own == 0) & (total > 0)))}",
                fix="pass the model's mean of every cell",
            )
        yield cells, x, mu * (total / np.where(own > 0, own, 1))


def check_theta(theta: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Inverse dispersion as float64, (G,) or (n, G) for counts of that shape."""
    theta = np.asarray(theta, dtype=np.float64)
    if theta.shape not in (tuple(shape), tuple(shape[1:])) or not (
        theta.size and (theta > 0).all() and (theta < np.inf).all()
    ):
        raise ScreproError(
            "theta is (G,) or (n, G), finite and above 0.",
            got=f"shape {theta.shape} for counts {tuple(shape)}, "
            f"smallest value {theta.min() if theta.size else 'none'}",
            fix="pass the inverse dispersion itself, not its logarithm",
        )
    return theta
