"""Points of PerturbDiff's Figures 10 to 14, and which perturbations are told from control cells.

Of cells that come by the thousand the figures show a summary, which is what is kept: quantiles of the share of non-zero
genes, and how many groups have which size.
"""

import numpy as np
import pandas as pd

from screpro.data.populations import Populations
from screpro.records import Run, keep_drawn
from screpro.tasks import perturbation_statistics as statistics
from screpro.tasks.perturbation_statistics import Tested
from screpro.tasks.perturbation_statistics_experiment import Drawn

__all__ = ["PAIRS", "QUANTILES", "REAL", "keep_contexts", "keep_counts", "keep_distances", "keep_tested"]

REAL = "real_cells"
"""The only method of this page: nothing is generated."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the share of a cell's genes that are not zero."""

PAIRS = 1000
"""Distances of a kind that are kept, at most."""


def keep_counts(run: Run, cells: Populations, *, dataset: str) -> None:
    """Keep what Figures 10 to 12 draw: quantiles of the share of non-zero genes, and how many groups have which size.

    Figure ``sparsity`` has columns ``quantile, share, genes``, figure ``sizes`` has ``kind, cells, groups``, kinds as
    in `screpro.tasks.perturbation_statistics.group_sizes`.
    """
    share = np.quantile(statistics.non_zero_genes(cells.x), QUANTILES) / len(cells.genes)
    points = pd.DataFrame({"quantile": QUANTILES, "share": share, "genes": len(cells.genes)})
    keep_drawn(run, "sparsity", points, dataset=dataset, method=REAL)
    parts = []
    for kind, sizes in statistics.group_sizes(cells).items():
        size, groups = np.unique(sizes, return_counts=True)
        parts.append(pd.DataFrame({"kind": kind, "cells": size, "groups": groups}))
    keep_drawn(run, "sizes", pd.concat(parts), dataset=dataset, method=REAL)


def keep_distances(run: Run, drawn: Drawn, *, dataset: str) -> None:
    """Keep what Figure 13 draws: squared MMD within conditions, between pairs of them, and where labels mean less.

    Figure ``distances`` has columns ``kind, mmd2``: "within" and "between" conditions, "shuffled" (between, labels
    shuffled) and "repeats" (within, across two repeats). Of a kind with more than `PAIRS` distances so many are kept,
    drawn at random, always the same ones. Figure ``distance_means`` has ``kind, mmd2, number``: mean and number of all.
    """
    own = drawn.distances["cells"]
    found = {"within": own.within, "between": _pairs(own), "shuffled": _pairs(drawn.distances["shuffled"])}
    if "cells, across repeats" in drawn.distances:
        found["repeats"] = drawn.distances["cells, across repeats"].within
    means = [{"kind": kind, "mmd2": values.mean(), "number": len(values)} for kind, values in found.items()]
    keep_drawn(run, "distance_means", pd.DataFrame(means), dataset=dataset, method=REAL)
    parts = []
    for kind, values in found.items():
        some = np.sort(np.random.default_rng(0).permutation(len(values))[:PAIRS])
        parts.append(pd.DataFrame({"kind": kind, "mmd2": values[some]}))
    keep_drawn(run, "distances", pd.concat(parts), dataset=dataset, method=REAL)


def _pairs(distances: statistics.WithinBetween) -> np.ndarray:
    """Every pair of conditions once."""
    return distances.between[np.triu_indices(len(distances.within), 1)]


def keep_tested(run: Run, cells: Populations, tested: Tested, *, dataset: str) -> None:
    """Keep the distance of every tested perturbation to matched control cells, and its false discovery rate.

    Figure ``told`` has columns ``perturbation, cells, mmd2, adjusted``.
    """
    names = [cells.perturbations[code] for code in tested.perturbation]
    points = {"perturbation": names, "cells": tested.cells, "mmd2": tested.mmd2, "adjusted": tested.adjusted}
    keep_drawn(run, "told", pd.DataFrame(points), dataset=dataset, method=REAL)


def keep_contexts(run: Run, drawn: Drawn, *, dataset: str) -> None:
    """Keep what Figure 14 draws, where a context has two conditions: its cells, and the mean squared MMD between them.

    Figure ``contexts`` has columns ``context, cells, mmd2``.
    """
    if drawn.contexts:
        points = [{"context": name, "cells": n, "mmd2": value} for name, (n, value) in drawn.contexts.items()]
        keep_drawn(run, "contexts", pd.DataFrame(points), dataset=dataset, method=REAL)
