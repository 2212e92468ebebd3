"""Points of scLDM's Figure 3, cells of held-out pairs on a map of the real ones, and of changes gene by gene."""

import numpy as np
import pandas as pd
import scipy.sparse as sp

from screpro.records import Run, keep_drawn
from screpro.tasks.perturbed_cells import normalised
from screpro.tasks.perturbed_cells_scores import PairScorer

__all__ = ["CONTROL", "REAL", "keep_changes", "keep_pairs", "keep_real_pairs"]

CONTROL, REAL = "control_cells", "real_cells"
"""Names of what a generator's cells are drawn beside."""

PAIRS, CELLS = 2, 200
"""Held-out pairs on a map, the first ones, and cells of each at most."""


def keep_real_pairs(run: Run, scorer: PairScorer, *, dataset: str) -> None:
    """Keep the real cells of the first pairs, and the control cells of their types, on two principal components."""
    train = scorer.held.train
    before = [normalised(train.counts[_some(train.rows(k, 0))]) for k, _ in scorer.held.pairs[:PAIRS]]
    _keep(run, scorer, before, dataset=dataset, method=CONTROL)
    _keep(run, scorer, [scorer.real[_some(rows)] for rows in scorer.rows[:PAIRS]], dataset=dataset, method=REAL)


def keep_pairs(run: Run, scorer: PairScorer, made: sp.spmatrix, *, dataset: str, method: str) -> None:
    """Keep where the generated cells of the first pairs lie, from log-normalised cells (n, G) of all test labels."""
    made = sp.csr_matrix(made)
    _keep(run, scorer, [made[_some(rows)] for rows in scorer.rows[:PAIRS]], dataset=dataset, method=method)


def keep_changes(run: Run, scorer: PairScorer, made: sp.spmatrix, *, dataset: str, method: str) -> None:
    """Keep the true and the generated change of every gene's mean log expression in the first pair."""
    held, rows, made = scorer.held, scorer.rows[0], sp.csr_matrix(made)
    before = normalised(held.train.counts[held.train.rows(held.pairs[0][0], 0)])
    start, real, own = (np.asarray(x.mean(0)).ravel() for x in (before, scorer.real[rows], made[rows]))
    points = {
        "pair": held.name(held.pairs[0]),
        "gene": held.train.genes,
        "true": real - start,
        "generated": own - start,
    }
    keep_drawn(run, "changes", pd.DataFrame(points), dataset=dataset, method=method)


def _some(rows: np.ndarray) -> np.ndarray:
    """At most `CELLS` of them at random: the first ones of a file may be of one donor."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:CELLS])


def _keep(run: Run, scorer: PairScorer, cells: list[sp.csr_matrix], *, dataset: str, method: str) -> None:
    fitted, parts = scorer.whole, []
    for pair, x in zip(scorer.held.pairs, cells, strict=False):
        at = np.asarray(x @ fitted.axes - fitted.mean @ fitted.axes)
        second = at[:, 1] if at.shape[1] > 1 else np.zeros(len(at))
        parts.append(pd.DataFrame({"pair": scorer.held.name(pair), "x": at[:, 0], "y": second}))
    keep_drawn(run, "pairs", pd.concat(parts), dataset=dataset, method=method)
