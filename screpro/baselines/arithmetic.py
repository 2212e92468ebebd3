"""Vector arithmetic: add the mean change of other types to the control cells of a new one.

In the space of genes ("Vec") or of principal components ("PCA-Vec"). Which mean is meant is not said in the papers and
moves the score by several points, so both are here and named:

- pooled over cells: mean of all stimulated minus mean of all control cells. Where the two groups hold types in
  different shares, the difference between the types is taken for a change.
- averaged over types: the change of each type with cells in both states, every type with the same weight.
"""

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError

if TYPE_CHECKING:
    from screpro.tasks.perturbation import StateCells

__all__ = [
    "control_mean",
    "mean_change",
    "no_change",
    "pca_vec_per_type",
    "pca_vec_pooled",
    "stimulated_mean",
    "vec_per_type",
    "vec_pooled",
]


def no_change(train: "StateCells", *, held_out: int, seed: int, threads: int = 1) -> np.ndarray:
    """The control cells themselves, (c, G): what a perturbation without an effect would leave."""
    return _control(train, held_out).toarray()


def control_mean(train: "StateCells", *, held_out: int, seed: int, threads: int = 1) -> np.ndarray:
    """The mean control cell of the type, once for each control cell: neither change nor variety, (c, G)."""
    control = _control(train, held_out)
    return np.tile(_mean(control), (control.shape[0], 1))


def stimulated_mean(train: "StateCells", *, held_out: int, seed: int, threads: int = 1) -> np.ndarray:
    """The mean stimulated cell of the other types, once for each control cell of this one, (c, G)."""
    mean = _mean(train.x[train.rows(state=1)])
    return np.tile(mean, (len(train.rows(state=0, cell_type=held_out)), 1))


def vec_pooled(train: "StateCells", *, held_out: int, seed: int, threads: int = 1) -> np.ndarray:
    """Control cells plus the change of the mean over all cells, (c, G)."""
    return _control(train, held_out).toarray() + mean_change(train, per_type=False)


def vec_per_type(train: "StateCells", *, held_out: int, seed: int, threads: int = 1) -> np.ndarray:
    """Control cells plus the mean over types of their changes, (c, G)."""
    return _control(train, held_out).toarray() + mean_change(train, per_type=True)


def pca_vec_pooled(
    train: "StateCells", *, held_out: int, seed: int, threads: int = 1, n_components: int = 100
) -> np.ndarray:
    """`vec_pooled` between the first `n_components` principal components of the training cells, (c, G)."""
    return _pca_vec(train, held_out, n_components, per_type=False)


def pca_vec_per_type(
    train: "StateCells", *, held_out: int, seed: int, threads: int = 1, n_components: int = 100
) -> np.ndarray:
    """`vec_per_type` between the first `n_components` principal components of the training cells, (c, G)."""
    return _pca_vec(train, held_out, n_components, per_type=True)


def mean_change(train: "StateCells", *, per_type: bool, x: np.ndarray | None = None) -> np.ndarray:
    """Mean of stimulated minus mean of control cells, (G,) float64.

    Parameters
    ----------
    train
        Cells in two states.
    per_type
        Average the change over the types that have both states; otherwise pool the cells of all types.
    x
        (n, d) coordinates of the cells to take means of, instead of their expression.
    """
    x = train.x if x is None else x
    if not per_type:
        return _mean(x[train.rows(state=1)]) - _mean(x[train.rows(state=0)])
    changes = [
        _mean(x[train.rows(state=1, cell_type=code)]) - _mean(x[train.rows(state=0, cell_type=code)])
        for code in sorted(set(train.cell_type[train.state == 1]) & set(train.cell_type[train.state == 0]))
    ]
    return np.mean(changes, axis=0)


def _pca_vec(train: "StateCells", held_out: int, n_components: int, *, per_type: bool) -> np.ndarray:
    from screpro.kernels.pca import pca

    if n_components < 1:
        raise ScreproError("PCA-Vec needs a component.", got=f"n_components={n_components}", fix="raise it")
    n, m = train.x.shape
    found = pca(train.x, min(n_components, n - 1, m))
    moved = found.scores[train.rows(state=0, cell_type=held_out)] + mean_change(
        train, per_type=per_type, x=found.scores
    )
    return moved @ found.axes.T + found.mean


def _control(train: "StateCells", held_out: int) -> sp.csr_matrix:
    return train.x[train.rows(state=0, cell_type=held_out)]


def _mean(x) -> np.ndarray:
    return np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
