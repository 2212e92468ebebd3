"""Baselines of PerturbDiff's Table 4 behind one call: cells of a context under perturbations it was not seen with.

``run("linear", split.train, asked=split.test, controls=split.controls, seed=0)`` returns one log-normalised cell for
every cell asked for. A method is given labels alone, never the expression of what is asked. Control cells may be asked
for too (code 0): the null test, whether a method that is told "nothing happened" makes control cells.

Training cells hold control cells of every context. A method that starts from control cells starts from those of the
context and batch asked for, where there are none from those of the batch, then of the context.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from screpro.baselines.registry import Baseline, contained, entry_of, method_of
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from screpro.data.populations import Populations

__all__ = ["BASELINES", "Asked", "controls_for", "run"]

FIXED = ("train", "asked", "controls", "seed", "threads")


class Asked(NamedTuple):
    """Labels of the cells to make, (n,) codes each; all that a method is told."""

    perturbation: np.ndarray
    context: np.ndarray
    batch: np.ndarray


def run(
    name: str,
    train: "Populations",
    *,
    asked: "Populations",
    controls: "Populations",
    seed: int,
    threads: int = 1,
    options: dict[str, Any] | None = None,
) -> np.ndarray:
    """Fit baseline `name` on `train` and make cells.

    Parameters
    ----------
    name
        Key of `BASELINES`.
    train
        Training cells, control cells of every context among them.
    asked
        Cells whose labels are asked for; their expression is not read. Control cells may be among them.
    controls
        Control cells of the contexts asked for, which methods start from.
    seed
        Everything random in the method derives from it.
    threads
        Threads the method may use.
    options
        Options of the method, as in its grid; None takes the defaults.

    Returns
    -------
    (n, G) float32
        log1p-normalised expression with the labels of `asked`, in its order, at or above 0.

    Raises
    ------
    ScreproError
        Unknown method or option, parts on different genes or codes, no cell asked for, no perturbed cell to learn from,
        or a context and batch without control cells.
    """
    entry = entry_of(BASELINES, name)
    options = options or {}
    method = method_of(name, entry.where, options, fixed=FIXED)
    _check(train, asked, controls)
    labels = Asked(*(getattr(asked, code) for code in Asked._fields))
    controls.control_pools(labels.context, labels.batch)  # or an error before any work
    with contained(name, threads=threads):
        made = method(train, asked=labels, controls=controls, seed=seed, threads=threads, **options)
    return np.maximum(np.asarray(made, dtype=np.float32), 0)


def _check(train: "Populations", asked: "Populations", controls: "Populations") -> None:
    spaces = [(part.genes, part.perturbations, part.contexts, part.batches) for part in (train, asked, controls)]
    if spaces[1] != spaces[0] or spaces[2] != spaces[0]:
        raise ScreproError(
            "Cells to train on, asked for and started from share their genes and codes.",
            got=f"{', '.join(str(len(part.genes)) for part in (train, asked, controls))} genes, other names or order",
            fix="take all three from one Populations (screpro.tasks.responses.hold_out)",
        )
    if not len(asked) or train.is_control.all() or not train.is_control.any():
        raise ScreproError(
            "There are cells to ask for, and perturbed and control cells to learn from.",
            got=f"{len(asked)} asked, {(~train.is_control).sum()} perturbed and {train.is_control.sum()} control cells",
            fix="hold out fewer of the cells",
        )


def controls_for(controls: "Populations", asked: Asked, *, seed: int) -> np.ndarray:
    """Row numbers (n,) in `controls` of a control cell for each cell asked for.

    Within a perturbation, context and batch none comes twice before each came once.
    """
    pools, which = controls.control_pools(asked.context, asked.batch)
    rng, rows = np.random.default_rng(seed), np.empty(len(which), dtype=np.int64)
    groups, member = np.unique(np.stack([which, asked.perturbation]), axis=1, return_inverse=True)
    order = np.argsort(member.reshape(-1), kind="stable")
    for number, places in enumerate(np.split(order, np.cumsum(np.bincount(member.reshape(-1)))[:-1])):
        pool = pools[groups[0, number]]
        rounds = [rng.permutation(pool) for _ in range(-(-len(places) // len(pool)))]
        rows[places] = np.concatenate(rounds)[: len(places)]
    return rows


BASELINES: dict[str, Baseline] = {
    entry.name: entry
    for entry in (
        Baseline(
            "state_like",
            "STATE-like",
            "Adduri et al., bioRxiv 2025, 10.1101/2025.06.26.661135",
            "response_networks:state_like",
            [{}, {"width": 64}, {"learning_rate": 3e-4}],
        ),
        Baseline(
            "cpa",
            "CPA",
            "Lotfollahi et al., Molecular Systems Biology 2023, 10.15252/msb.202211517",
            "response_networks:cpa",
            [{}, {"latent": 16}, {"adversarial": 0.1}, {"keep_rest": False}],
        ),
        Baseline(
            "cellflow_like",
            "CellFlow-like",
            "Klein et al., bioRxiv 2025, 10.1101/2025.04.11.648220",
            "cellflow_like:cellflow_like",
            [{}, {"told_context": False}, {"components": 100}],
        ),
        Baseline(
            "squidiff_like",
            "Squidiff-like",
            "He et al., Nature Methods 2025",
            "squidiff_like:squidiff_like",
            [{}, {"told_context": False}, {"learning_rate": 3e-4}],
        ),
        Baseline(
            "arc_state",
            "STATE (arc-state)",
            "Adduri et al., bioRxiv 2025, 10.1101/2025.06.26.661135",
            "response_packages:arc_state",
            [{}, {"learning_rate": 3e-3}, {"learning_rate": 3e-4}],
            needs="arc-state",
        ),
        Baseline(
            "cellflow_tools",
            "CellFlow (cellflow-tools)",
            "Klein et al., bioRxiv 2025, 10.1101/2025.04.11.648220",
            "response_packages:cellflow_tools",
            [{}, {"keep_rest": False}, {"told_context": False}],
            needs="cellflow-tools",
        ),
        Baseline(
            "linear",
            "Linear",
            "Ahlmann-Eltze et al., Nature Methods 2025, 10.1038/s41592-025-02772-6",
            "response_linear:linear",
            [{}, {"components": 10}, {"context_part": False}, {"penalty": 100.0}],
        ),
        Baseline("mean", "Mean", "section 5.2 of the paper", "response_means:mean", [{}], random=False),
        Baseline(
            "mean_per_type",
            "Mean, per context",
            "appendix C.3 of the paper",
            "response_means:mean_per_type",
            [{}],
            "trivial",
            random=False,
        ),
        Baseline(
            "mean_per_batch",
            "Mean, per batch",
            "appendix C.3 of the paper",
            "response_means:mean_per_batch",
            [{}],
            "trivial",
            random=False,
        ),
        Baseline(
            "mean_overall",
            "Mean, overall",
            "appendix C.3 of the paper",
            "response_means:mean_overall",
            [{}],
            "trivial",
            random=False,
        ),
        Baseline(
            "control_own_effect",
            "Control cells + own mean effect",
            "no method",
            "response_means:control_own_effect",
            [{}],
        ),
        Baseline("control_cells", "Control cells", "no method", "response_means:control_cells", [{}], "trivial"),
    )
}
"""Every baseline; networks first. One that `needs` a package runs it in another environment (`response_packages`)."""
