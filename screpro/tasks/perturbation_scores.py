"""What is measured of predicted cells: the score of scDiff's Table 2b, and what it does not see."""

import numpy as np

from screpro.kernels.pca import pca
from screpro.metrics.change import change_size_ratio, r2_change_top100
from screpro.metrics.distances import energy_distance_u
from screpro.metrics.genes import gene_variance_log2_ratio, gene_zero_fraction_gap
from screpro.tasks.perturbation import HeldOut

__all__ = ["METRICS", "half_against_half", "score_cells"]

METRICS = {  # item of the paper, unit, direction
    "r2_change_top100": ("Table 2b", "", "higher"),
    "change_size_ratio": ("X-6", "", "closer to 1"),
    "gene_variance_log2_ratio": ("X-6", "doublings", "lower"),
    "gene_zero_fraction_gap": ("X-6", "fraction", "lower"),
    "energy_distance_u": ("X-6", "log-expression", "lower"),
}
"""What is measured of every prediction: the score of the paper, and what it does not see."""


def score_cells(predicted, stimulated, control) -> dict[str, float]:
    """All `METRICS` of predicted cells; those that have no finite value are left out.

    Parameters
    ----------
    predicted, stimulated, control
        (k, G), (s, G) and (c, G) log-normalised cells: generated, real, and those the predictions started from.

    Notes
    -----
    The first two are of means and take predictions as they are. Of single cells, values below 0 count as 0: no cell
    has them. The energy distance is taken on 20 principal components of the real cells of both states. A prediction
    without any change has no correlation with the true one; its R² counts as 0.
    """
    cells = np.maximum(predicted.toarray() if hasattr(predicted, "toarray") else np.asarray(predicted), 0)
    real = stimulated.toarray()
    scores = {
        "r2_change_top100": r2_change_top100(predicted, stimulated, control),
        "change_size_ratio": change_size_ratio(predicted, stimulated, control),
        "gene_variance_log2_ratio": gene_variance_log2_ratio(real, cells),
        "gene_zero_fraction_gap": gene_zero_fraction_gap(real, cells),
    }
    change = np.asarray(predicted.mean(axis=0)).ravel() - np.asarray(control.mean(axis=0)).ravel()
    if np.isnan(scores["r2_change_top100"]) or np.abs(change).max() < 1e-5:  # nothing but rounding
        scores["r2_change_top100"] = 0.0
    both = np.vstack([real, control.toarray()])
    found = pca(both, min(20, min(both.shape) - 1))
    place = [(part.astype(np.float64) - found.mean) @ found.axes for part in (real, cells)]
    scores["energy_distance_u"] = energy_distance_u(*place)
    return {name: value for name, value in scores.items() if np.isfinite(value)}


def half_against_half(held: HeldOut, *, halves: int, seed: int) -> dict[str, float]:
    """The ceiling: one half of the real stimulated cells as the prediction of the other, mean over `halves` draws."""
    rng = np.random.default_rng(seed)
    n = held.stimulated.shape[0]
    drawn = []
    for _ in range(halves):
        order = rng.permutation(n)
        first, second = held.stimulated[order[: n // 2]], held.stimulated[order[n // 2 :]]
        drawn.append(score_cells(first, second, held.control))
    return {name: float(np.mean([each[name] for each in drawn])) for name in drawn[0]}
