"""A linear model of responses, in the manner of Ahlmann-Eltze et al. (Nature Methods 2025, 10.1038/s41592-025-02772-6).

Their model of G genes under perturbations is  Y = A W Z' + b  with A the leading principal axes of the training
responses, Z features of the perturbations, b the mean response, and W fitted by ridge regression. Here a response is
the change of mean expression of a perturbation in a context against control cells of the same context and batch, and
the features are the one-hot codes of perturbation and context: every perturbation that is asked for was seen elsewhere,
so nothing has to be borrowed from features of its gene. Groups weigh by their cells, so that the penalty counts cells:
an effect seen in n cells is shrunk by about n / (n + penalty).

The answer is cells: control cells of the context moved by the predicted change (``response_cells.moved``), which have
the spread of control cells. A perturbation never seen gets the mean response and its context's part; the control gets
no change.
"""

from typing import TYPE_CHECKING

import numpy as np

from screpro.baselines.response_cells import moved
from screpro.baselines.response_means import Changes, changes
from screpro.baselines.responses import Asked
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from screpro.data.populations import Populations

__all__ = ["linear", "predicted_changes"]


def predicted_changes(
    found: Changes,
    *,
    perturbation: np.ndarray,
    context: np.ndarray,
    components: int | None,
    penalty: float,
    context_part: bool = True,
) -> np.ndarray:
    """Changes (u, G) of mean expression for pairs of codes (u,), from those `found` in training.

    Raises
    ------
    ScreproError
        Fewer than one component, or a penalty that is not positive.
    """
    if not 0 < penalty < np.inf or (components is not None and components < 1):
        raise ScreproError(
            "A linear model has a positive penalty and at least one component, or None for all.",
            got=f"{penalty=}, {components=}",
            fix="for example penalty=10, components=10",
        )
    weight = found.cells[:, None]
    offset = (weight * found.mean).sum(0) / weight.sum()
    y = found.mean - offset
    if components is not None:
        axes = np.linalg.svd(np.sqrt(weight) * y, full_matrices=False)[2][:components]
        y = y @ axes.T

    sizes = int(max(found.perturbation.max(), perturbation.max())) + 1, int(max(found.context.max(), context.max())) + 1
    kept = sum(sizes) if context_part else sizes[0]
    z = _one_hot(found.perturbation, found.context, *sizes)[:, :kept]
    gram = z.T @ (weight * z) + penalty * np.eye(z.shape[1])
    answer = _one_hot(perturbation, context, *sizes)[:, :kept] @ np.linalg.solve(gram, z.T @ (weight * y))
    change = offset + (answer if components is None else answer @ axes)
    change[perturbation == 0] = 0
    return change


def _one_hot(perturbation: np.ndarray, context: np.ndarray, n_perturbations: int, n_contexts: int) -> np.ndarray:
    return np.concatenate([np.eye(n_perturbations)[perturbation], np.eye(n_contexts)[context]], axis=1)


def linear(
    train: "Populations",
    *,
    asked: Asked,
    controls: "Populations",
    seed: int,
    threads: int = 1,
    components: int | None = None,
    penalty: float = 10.0,
    context_part: bool = True,
) -> np.ndarray:
    """Control cells moved by the change that the ridge model predicts for their perturbation and context, (n, G).

    Parameters
    ----------
    train
        Training cells; those of the context asked for under other perturbations teach its part.
    asked, controls, seed
        As of ``responses.run``.
    components
        Principal axes of the training changes that are predicted; None: all genes by themselves.
    penalty
        Of the ridge regression, in cells.
    context_part
        Whether responses have a part that is the context's, whatever the perturbation.
    """
    pairs, which = np.unique(np.stack([asked.perturbation, asked.context]), axis=1, return_inverse=True)
    change = predicted_changes(
        changes(train),
        perturbation=pairs[0],
        context=pairs[1],
        components=components,
        penalty=penalty,
        context_part=context_part,
    )
    return moved(controls, asked, change, which.reshape(-1), seed=seed)
