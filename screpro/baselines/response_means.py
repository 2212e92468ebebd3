"""Means of training cells, and control cells of the context as they are or moved by a mean effect.

Appendix C.3 of the paper has four means: of a perturbation ("Mean" in its tables), of a cell type, of a batch, and of
everything. Each answers with the same profile for every cell, so that the rank test for differential expression
compares a constant with cells: called genes of these four say little (protocol section 8). Means are over perturbed
training cells. Where a mean has no cells it falls back: a perturbation, context or batch without perturbed training
cells gets the overall mean. The means of context, batch and everything do not hear the perturbation, the control
included; the mean of the control is that of the training control cells.

`control_own_effect` needs no model either: control cells of the context, moved by what the perturbation did elsewhere.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines.response_cells import moved, pool_means
from screpro.baselines.responses import Asked, controls_for
from screpro.data.populations import gather

if TYPE_CHECKING:
    from screpro.data.populations import Populations

__all__ = [
    "Changes",
    "changes",
    "control_cells",
    "control_own_effect",
    "mean",
    "mean_overall",
    "mean_per_batch",
    "mean_per_type",
    "own_effect",
]


class Changes(NamedTuple):
    """Mean change of expression in M groups of perturbed cells."""

    mean: np.ndarray  # (M, G) mean of the cells minus the mean of control cells of their contexts and batches
    cells: np.ndarray  # (M,) number of cells
    perturbation: np.ndarray  # (M,) codes
    context: np.ndarray  # (M,)


def _sums(x: sp.csr_matrix, group: np.ndarray, n_groups: int) -> np.ndarray:
    """(n_groups, G) sums of the rows of each group, float64."""
    member = sp.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), shape=(n_groups, len(group)))
    return (member @ x).toarray()


def changes(train: "Populations") -> Changes:
    """What each perturbation did in each context; control cells are compared within the batch."""
    cells = train.take(np.flatnonzero(~train.is_control))
    code = cells.perturbation * len(cells.contexts) + cells.context
    groups, member, count = np.unique(code, return_inverse=True, return_counts=True)
    pools, which = train.control_pools(cells.context, cells.batch)
    paired = sp.csr_matrix((np.ones(len(cells)), (member, which)), shape=(len(groups), len(pools)))
    change = (_sums(cells.x, member, len(groups)) - paired @ pool_means(train, pools)) / count[:, None]
    return Changes(change, count, groups // len(cells.contexts), groups % len(cells.contexts))


def own_effect(train: "Populations") -> np.ndarray:
    """Mean change (P, G) of every perturbation over its training cells; 0 for the control.

    A perturbation without training cells gets the mean change of all perturbed cells.
    """
    found = changes(train)
    weight = np.zeros((len(train.perturbations), len(found.cells)))
    weight[found.perturbation, np.arange(len(found.cells))] = found.cells
    weight[weight.sum(1) == 0] = found.cells
    effect = weight @ found.mean / weight.sum(1, keepdims=True)
    effect[0] = 0
    return effect


def control_cells(
    train: "Populations", *, asked: Asked, controls: "Populations", seed: int, threads: int = 1
) -> np.ndarray:
    """Control cells of the context and batch as they are: the answer that nothing happens, with real cells."""
    return gather(controls.x, controls_for(controls, asked, seed=seed))


def control_own_effect(
    train: "Populations", *, asked: Asked, controls: "Populations", seed: int, threads: int = 1
) -> np.ndarray:
    """Control cells moved (``response_cells.moved``) by the mean effect of their perturbation (`own_effect`)."""
    return moved(controls, asked, own_effect(train), asked.perturbation, seed=seed)


def _group_means(train: "Populations", codes: np.ndarray, n_codes: int) -> np.ndarray:
    """(n_codes, G) means of perturbed training cells by code, the overall mean where there are none."""
    rows = np.flatnonzero(~train.is_control)
    count = np.bincount(codes[rows], minlength=n_codes)
    total = _sums(train.x[rows], codes[rows], n_codes)
    return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], total.sum(0) / count.sum())


def mean(train: "Populations", *, asked: Asked, controls: "Populations", seed: int, threads: int = 1) -> np.ndarray:
    """The mean of all training cells of the perturbation, whatever their context; the paper's "Mean"."""
    profile = _group_means(train, train.perturbation, len(train.perturbations))
    profile[0] = np.asarray(train.x[np.flatnonzero(train.is_control)].mean(0, dtype=np.float64)).ravel()
    return profile.astype(np.float32)[asked.perturbation]


def mean_per_type(
    train: "Populations", *, asked: Asked, controls: "Populations", seed: int, threads: int = 1
) -> np.ndarray:
    """The mean of all perturbed training cells of the context."""
    return _group_means(train, train.context, len(train.contexts)).astype(np.float32)[asked.context]


def mean_per_batch(
    train: "Populations", *, asked: Asked, controls: "Populations", seed: int, threads: int = 1
) -> np.ndarray:
    """The mean of all perturbed training cells of the batch."""
    return _group_means(train, train.batch, len(train.batches)).astype(np.float32)[asked.batch]


def mean_overall(
    train: "Populations", *, asked: Asked, controls: "Populations", seed: int, threads: int = 1
) -> np.ndarray:
    """The mean of all perturbed training cells."""
    profile = _group_means(train, np.zeros(len(train), dtype=np.int64), 1).astype(np.float32)
    return np.repeat(profile, len(asked.perturbation), axis=0)
