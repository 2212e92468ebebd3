"""Baselines that predict stimulated cells of a type of which only control cells are known, behind one call.

``run("scgen", train, held_out=code, seed=0)`` returns one predicted stimulated cell for each control cell of the
held-out type in `train`, in their order. `train` holds no stimulated cell of that type. The first setting of a grid
is the published default (``{}``); which one is used is decided on another held-out type, by the same rule for every
method (``screpro.tasks.perturbation_experiment``).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from screpro.baselines.registry import contained, entry_of, method_of
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from screpro.tasks.perturbation import StateCells

__all__ = ["BASELINES", "Baseline", "run"]


class Baseline(NamedTuple):
    """One published or trivial method."""

    name: str  # key in BASELINES and in result rows
    title: str  # as a table prints it
    source: str  # whom to cite
    where: str  # module:function of screpro.baselines
    grid: list[dict[str, Any]]  # options to try on the validation type; first = published default
    kind: str = "baseline"  # or "trivial", where nothing of the held-out type's response is modelled
    random: bool = False  # whether the seed matters


def run(
    name: str,
    train: "StateCells",
    *,
    held_out: int,
    seed: int,
    threads: int = 1,
    options: dict[str, Any] | None = None,
) -> np.ndarray:
    """Fit baseline `name` on `train` and predict the stimulated cells of type `held_out`.

    Parameters
    ----------
    name
        Key of `BASELINES`.
    train
        Training cells in two states: control cells of every type, stimulated ones of every type but `held_out`.
    held_out
        Type code.
    seed
        Everything random in the method derives from it.
    threads
        Threads the method may use.
    options
        Options of the method, as in its grid; None takes the published default.

    Returns
    -------
    (c, G) float32
        One cell for each of the c control cells of the type, log-normalised; networks and shifts may go below 0.

    Raises
    ------
    ScreproError
        Unknown method or option, stimulated cells of the type among the training cells, no control cells of it, or
        no other type with cells in both states.
    """
    options = options or {}
    method = method_of(name, entry_of(BASELINES, name).where, options, fixed=("train", "held_out", "seed", "threads"))
    _check_cells(train, held_out)
    with contained(name, threads=threads):
        predicted = method(train, held_out=held_out, seed=seed, threads=threads, **options)
    return np.asarray(predicted, dtype=np.float32)


def _check_cells(train: "StateCells", held_out: int) -> None:
    own = train.cell_type == held_out
    if (own & (train.state == 1)).any():
        raise ScreproError(
            "The stimulated cells of the held-out type are not among the training cells.",
            got=f"{int((own & (train.state == 1)).sum())} of them",
            fix="take them out first (screpro.tasks.perturbation.hold_out)",
        )
    if not own.any():
        raise ScreproError(
            "A prediction starts from control cells of the held-out type.",
            got=f"none of type {held_out}",
            fix="add them to the training cells",
        )
    if not set(train.cell_type[train.state == 1]) & set(train.cell_type[train.state == 0]):
        raise ScreproError(
            "What the stimulation does is learned from types with control and stimulated cells.",
            got="no such type",
            fix="use cells of more types, in both conditions",
        )


SCGEN = "Lotfollahi et al., Nature Methods 2019, 10.1038/s41592-019-0494-8"

BASELINES: dict[str, Baseline] = {
    entry.name: entry
    for entry in (
        Baseline("no_change", "Control cells unchanged", "no method", "arithmetic:no_change", [{}], "trivial"),
        Baseline("control_mean", "Mean of the control cells", "no method", "arithmetic:control_mean", [{}], "trivial"),
        Baseline(
            "stimulated_mean",
            "Mean of all stimulated cells",
            "no method",
            "arithmetic:stimulated_mean",
            [{}],
            "trivial",
        ),
        Baseline("vec_pooled", "Vec", SCGEN, "arithmetic:vec_pooled", [{}]),
        Baseline("vec_per_type", "Vec, averaged over types", SCGEN, "arithmetic:vec_per_type", [{}]),
        Baseline(
            "pca_vec_pooled",
            "PCA-Vec",
            SCGEN,
            "arithmetic:pca_vec_pooled",
            [{}, {"n_components": 20}, {"n_components": 50}],
        ),
        Baseline(
            "pca_vec_per_type",
            "PCA-Vec, averaged over types",
            SCGEN,
            "arithmetic:pca_vec_per_type",
            [{}, {"n_components": 20}, {"n_components": 50}],
        ),
        Baseline(
            "cvae",
            "CVAE",
            f"Sohn et al., NeurIPS 2015; as in {SCGEN}",
            "cvae:cvae",
            [{}, {"width": 256, "latent": 32, "epochs": 50, "batch_size": 128}],
            random=True,
        ),
        Baseline(
            "scgen",
            "scGen",
            SCGEN,
            "scgen:scgen",
            [{}, {"width": 256, "latent": 32, "epochs": 50, "batch_size": 128}],
            random=True,
        ),
        Baseline(
            "cpa",
            "CPA",
            "Lotfollahi et al., Molecular Systems Biology 2023, 10.15252/msb.202211517",
            "cpa:cpa",
            [{}, {"width": 256, "latent": 32, "epochs": 50}],
            random=True,
        ),
    )
}
"""Every baseline; what is trivial first."""
