"""Points of Figures 4, 5, 15 and 16: what a method scores on each perturbation, how significant its genes are."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from screpro.metrics.perturbation import Comparison
from screpro.records import Run, keep_drawn
from screpro.tasks.responses import Scores

__all__ = ["keep_perturbations", "keep_significance"]

THRESHOLDS = np.linspace(0, 10, 101)
"""Of -log10 of the adjusted p-value."""


def keep_perturbations(run: Run, scores: Scores, names: Sequence[str], *, dataset: str, method: str) -> None:
    """Keep what a method scored on each of the perturbations `names`, a column per score."""
    points = pd.DataFrame(scores.each).assign(perturbation=list(names))
    keep_drawn(run, "perturbations", points, dataset=dataset, method=method)


def keep_significance(run: Run, pair: Comparison, *, dataset: str, method: str) -> None:
    """Keep which share of the truly changed and of the unchanged genes is at least as significant as a threshold.

    All perturbations together. Without a gene that is changed, or unchanged, there is no such column.
    """
    points = {"significance": THRESHOLDS}
    for name, changed in (("changed", True), ("unchanged", False)):
        p = pair.generated.fdr[pair.real.significant == changed]
        if len(p):
            ordered = np.sort(-np.log10(np.maximum(p, 1e-300)))
            points[name] = 1 - np.searchsorted(ordered, THRESHOLDS) / len(p)
    keep_drawn(run, "significance", pd.DataFrame(points), dataset=dataset, method=method)
