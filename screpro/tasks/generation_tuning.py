"""Choosing the setting of a generator: a part of the training cells is set apart, and it is asked for as many cells."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from screpro.data.preprocess import log_cp10k
from screpro.data.splits import cell_split
from screpro.records import Run
from screpro.tasks import generation as scores
from screpro.tasks.generation import GenerationCells
from screpro.tasks.tuning import best_setting

if TYPE_CHECKING:
    from screpro.tasks.generation_experiment import Protocol

__all__ = ["Samples", "best_on_validation", "real_rows"]

Samples = list[sp.csr_matrix | None]
"""Log-normalised cells: without a label, and with the labels of the cells they are compared with (None: cannot)."""


def best_on_validation(
    run: Run,
    cells: GenerationCells,
    protocol: "Protocol",
    method: str,
    grid: Sequence[dict[str, Any]],
    draw: Callable[[GenerationCells, dict[str, Any]], Samples],
) -> dict[str, Any]:
    """The setting with the smallest `times_ceiling` on a fifth of the training cells; the first, if none is tuned.

    ``draw(inner, setting)`` trains on the rest, ``inner.train``, and answers for the cells set apart, ``inner.test``.
    """
    p = protocol
    if not p.tune or len(grid) == 1:
        return grid[0]
    inner = _inner(cells, seed=p.split)
    reference, labels = scores.reference_of(inner, n_variable=p.n_variable), inner.test_labels
    real = [log_cp10k(inner.train[rows]) for rows in real_rows(inner, rng=np.random.default_rng(p.split))]

    def score(options: dict[str, Any]) -> float:
        return scores.times_ceiling(reference, labels, *draw(inner, options), real=real)

    work = {"dataset": p.dataset, "split": f"{p.split}, validation", "method": method, "seed": p.seeds[0]}
    row = {"metric": "times_ceiling", "unit": "times what real cells score", "n_genes": len(reference.genes)}
    row |= {"n_real": len(labels), "n_generated": len(labels)}
    return best_setting(run, grid, score, work=work, direction="lower", **row)


def real_rows(cells: GenerationCells, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of training cells, as many as test cells: any of them, and ones with the test cells' labels."""
    n, wanted = cells.train.shape[0], len(cells.test_labels)
    anyone = rng.permutation(n)
    anyone = anyone[:wanted] if n >= wanted else rng.choice(anyone, wanted)
    return anyone, scores.same_labels(cells.train_labels, cells.test_labels, rng=rng, replace=False)


def _inner(cells: GenerationCells, *, seed: int) -> GenerationCells:
    """Training cells split again: four fifths to learn from, a fifth, of types among them, to score on."""
    parts = cell_split(cells.train.shape[0], seed=seed, test=0.2)
    held = parts.test[np.isin(cells.train_labels[parts.test], cells.train_labels[parts.train])]
    return cells._replace(
        train=cells.train[parts.train],
        test=cells.train[held],
        train_labels=cells.train_labels[parts.train],
        test_labels=cells.train_labels[held],
    )
