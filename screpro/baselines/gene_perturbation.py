"""Baselines for unseen gene perturbations behind one call, with the settings that are tuned for each.

``run("gears", train, predict=numbers, seed=0)`` fits on `train` and answers with a mean profile for each perturbation.
The first setting of a grid is the published default (``{}``).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from screpro.baselines.registry import contained, entry_of, method_of
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from screpro.tasks.gene_perturbation import PerturbedCells

__all__ = ["BASELINES", "Baseline", "run"]


class Baseline(NamedTuple):
    """One published or trivial method."""

    title: str  # as a table prints it
    source: str  # whom to cite
    where: str  # module:function
    grid: list[dict[str, Any]]  # options to try on the validation perturbations; first = published default
    trivial: bool  # True where no perturbation is told from another
    deterministic: bool  # True where seeds change nothing


BASELINES: dict[str, Baseline] = {
    "gears": Baseline(
        "GEARS",
        "Roohani, Huang & Leskovec, Nature Biotechnology 2023, 10.1038/s41587-023-01905-6",
        "gears:gears",
        [{}, {"epochs": 5}, {"batch_size": 128}, {"learning_rate": 3e-4}],
        trivial=False,
        deterministic=False,
    ),
    "linear": Baseline(
        "linear model on the gene graph",
        "after Ahlmann-Eltze, Huber & Anders, Nature Methods 2025, 10.1038/s41592-025-02772-6",
        "linear_effects:linear",
        [{}, {"penalty": 1.0}, {"penalty": 0.01}, {"dimension": 3}, {"dimension": 20}],
        trivial=False,
        deterministic=True,
    ),
    "mean_effect": Baseline(
        "mean effect of all training perturbations",
        "no method",
        "linear_effects:mean_effect",
        [{}],
        trivial=True,
        deterministic=True,
    ),
    "no_change": Baseline("control cells", "no method", "linear_effects:no_change", [{}], True, True),
}


def run(
    name: str,
    train: "PerturbedCells",
    *,
    predict: Sequence[int],
    seed: int,
    threads: int = 1,
    options: dict[str, Any] | None = None,
) -> np.ndarray:
    """Fit baseline `name` on `train` and predict the mean profile of each perturbation, (k, G) log-normalised.

    Parameters
    ----------
    name
        Key of `BASELINES`.
    train
        Control cells and cells of the training perturbations.
    predict
        (k,) numbers of perturbations, as in ``train.names``, that are not among the training cells.
    seed
        Everything random in the method derives from it.
    threads
        Threads the method may use.
    options
        Options of the method, as in its grid; None takes the published default.

    Raises
    ------
    ScreproError
        Unknown method, option or perturbation, no control or no perturbed cells, or a perturbation to predict that
        is among the training cells.
    """
    options = options or {}
    method = method_of(name, entry_of(BASELINES, name).where, options, fixed=("train", "predict", "seed", "threads"))
    predict = np.asarray(predict, dtype=np.int64)
    _check(train, predict)
    with contained(name, threads=threads):
        return method(train, predict=predict, seed=seed, threads=threads, **options)


def _check(train: "PerturbedCells", predict: np.ndarray) -> None:
    present = set(np.unique(train.label).tolist())
    if 0 not in present or len(present) < 2:
        raise ScreproError(
            "Training needs control cells and at least one perturbation.",
            got=f"cells of {len(present)} state{'s' * (len(present) != 1)}",
            fix="keep cells with label 0 and of the training perturbations",
        )
    if len(predict) == 0 or predict.min() < 1 or predict.max() >= len(train.names):
        raise ScreproError(
            f"Perturbations are numbers from 1 to {len(train.names) - 1}.",
            got=f"{predict.tolist()}",
            fix="take them from PerturbedCells.numbers",
        )
    if leaked := sorted(set(predict.tolist()) & present):
        raise ScreproError(
            "What is predicted has no training cells.",
            got=", ".join(train.names[p] for p in leaked),
            fix="take its cells out of the training cells",
        )
