"""Points of the embeddings page: scored cells on the first two principal components of an embedding."""

import numpy as np
import pandas as pd

from screpro.records import Run, keep_drawn
from screpro.tasks.embedding import EmbeddingCells

__all__ = ["CELLS", "CLASSES", "keep_components"]

CELLS, CLASSES = 1000, 24
"""Cells that are drawn at most, at random, and classes, the largest ones."""


def keep_components(run: Run, cells: EmbeddingCells, components: np.ndarray, *, dataset: str, method: str) -> None:
    """Keep where scored cells lie on the first two of their components (n, k), class by class.

    Parameters
    ----------
    run
        The run at hand.
    cells
        Their classes; points come in the order of these.
    components
        What ``principal_components`` made of all scored cells.
    dataset, method
        As in the result rows.
    """
    sizes = np.bincount(cells.target, minlength=len(cells.classes))
    largest = np.argsort(-sizes, kind="stable")[:CLASSES]
    rows = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(cells.target, largest)))[:CELLS]
    rows = rows[np.argsort(cells.target[rows], kind="stable")]
    second = components[rows, 1] if components.shape[1] > 1 else np.zeros(len(rows))
    names = np.array(cells.classes)[cells.target[rows]]
    points = pd.DataFrame({"class": names, "x": components[rows, 0], "y": second})
    keep_drawn(run, "components", points, dataset=dataset, method=method)
