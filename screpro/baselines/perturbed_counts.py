"""Baselines that make cells of a type under a perturbation never seen together, behind one call.

``run("state_like", train, cell_type=codes, perturbation=codes, seed=0)`` returns one log-normalised cell for each
pair of codes. No training cell has such a pair; every type has control cells, and every perturbation cells of another
type. All but the last two methods start from control cells of the type, drawn without replacement where there are
enough.

Three are the paper's own references (appendix H): `perturbation_mean` adds the mean effect of the perturbation to the
mean control cell, `context_mean` is the mean of all perturbed cells of the type, and `mean_shift` is what the first
becomes when every control cell is shifted instead of their mean.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from screpro.baselines.registry import Baseline, contained, entry_of, method_of
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from screpro.tasks.perturbed_cells import PairCells

__all__ = [
    "BASELINES",
    "context_mean",
    "control_of_type",
    "controls_of",
    "mean_effect",
    "mean_shift",
    "perturbation_mean",
    "run",
]

FIXED = ("train", "cell_type", "perturbation", "seed", "threads")


def run(
    name: str,
    train: "PairCells",
    *,
    cell_type: np.ndarray,
    perturbation: np.ndarray,
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
        Training cells.
    cell_type, perturbation
        Codes (n,) of the cells to make; no training cell has one of these pairs.
    seed
        Everything random in the method derives from it.
    threads
        Threads the method may use.
    options
        Options of the method, as in its grid; None takes the defaults.

    Returns
    -------
    (n, G) float32
        log1p expression per 10 000; shifts and networks may go below 0.

    Raises
    ------
    ScreproError
        Unknown method or option, a pair that is among the training cells, a type without control cells, a perturbation
        without cells of a type that has them, or a package that is not installed.
    """
    entry = entry_of(BASELINES, name)
    options = options or {}
    method = method_of(name, entry.where, options, fixed=FIXED)
    for k, p, _ in _pairs(cell_type, perturbation):
        _check_pair(train, k, p)
    with contained(name, threads=threads, needs=entry.needs):
        made = method(train, cell_type=cell_type, perturbation=perturbation, seed=seed, threads=threads, **options)
    return np.asarray(made, dtype=np.float32)


def _check_pair(train: "PairCells", k: int, p: int) -> None:
    known = len(train.rows(k, p))
    elsewhere = set(train.cell_type[train.perturbation == p]) & set(train.cell_type[train.perturbation == 0])
    if known or not len(train.rows(k, 0)) or not elsewhere:
        raise ScreproError(
            "A pair to be made is not among the training cells; its type has control cells, and its perturbation was "
            "given to another type that has them.",
            got=f"{train.types[k]}, {train.perturbations[p]}: {known} training cells, {len(train.rows(k, 0))} control "
            f"cells, {len(elsewhere)} other types",
            fix="hold the pair out first (screpro.tasks.perturbed_cells.hold_out_pairs)",
        )


def _pairs(cell_type: np.ndarray, perturbation: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Type, perturbation and the places of their cells."""
    for k, p in np.unique(np.stack([cell_type, perturbation], 1), axis=0).tolist():
        yield k, p, np.flatnonzero((cell_type == k) & (perturbation == p))


def controls_of(train: "PairCells", *, cell_type: np.ndarray, perturbation: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers (n,) in `train` of a control cell of the type for each cell to be made.

    Within a pair none comes twice before each came once.
    """
    rng, rows = np.random.default_rng(seed), np.empty(len(cell_type), dtype=np.int64)
    for k, _, places in _pairs(cell_type, perturbation):
        own = train.rows(k, 0)
        rounds = [rng.permutation(own) for _ in range(-(-len(places) // len(own)))]
        rows[places] = np.concatenate(rounds)[: len(places)]
    return rows


def mean_effect(train: "PairCells", p: int) -> np.ndarray:
    """Change (G,) of mean log expression under perturbation `p`: the mean over types, each with the same weight.

    Equations 22 and 23 of the paper.
    """
    from screpro.tasks.perturbed_cells import normalised

    changes = []
    for k in np.unique(train.cell_type[train.perturbation == p]):
        rows = train.rows(k, p), train.rows(k, 0)
        if len(rows[1]):
            after, before = (np.asarray(normalised(train.counts[each]).mean(0)).ravel() for each in rows)
            changes.append(after - before)
    return np.mean(changes, axis=0)


def control_of_type(
    train: "PairCells", *, cell_type: np.ndarray, perturbation: np.ndarray, seed: int, threads: int = 1
) -> np.ndarray:
    """Control cells of the type as they are: the answer "nothing happens", with the right type and real cells."""
    from screpro.tasks.perturbed_cells import normalised

    rows = controls_of(train, cell_type=cell_type, perturbation=perturbation, seed=seed)
    return normalised(train.counts[rows]).toarray()


def mean_shift(
    train: "PairCells", *, cell_type: np.ndarray, perturbation: np.ndarray, seed: int, threads: int = 1
) -> np.ndarray:
    """Control cells of the type, each moved by the mean effect of the perturbation in the other types.

    Expression that would fall below 0 stays at 0.
    """
    made = control_of_type(train, cell_type=cell_type, perturbation=perturbation, seed=seed)
    for _, p, places in _pairs(cell_type, perturbation):
        made[places] += mean_effect(train, p)
    return np.maximum(made, 0)


def perturbation_mean(
    train: "PairCells", *, cell_type: np.ndarray, perturbation: np.ndarray, seed: int, threads: int = 1
) -> np.ndarray:
    """The mean control cell of the type plus the mean effect, for every cell the same (equation 24)."""
    from screpro.tasks.perturbed_cells import normalised

    made = np.empty((len(cell_type), len(train.genes)), dtype=np.float32)
    for k, p, places in _pairs(cell_type, perturbation):
        before = np.asarray(normalised(train.counts[train.rows(k, 0)]).mean(0)).ravel()
        made[places] = np.maximum(before + mean_effect(train, p), 0)
    return made


def context_mean(
    train: "PairCells", *, cell_type: np.ndarray, perturbation: np.ndarray, seed: int, threads: int = 1
) -> np.ndarray:
    """The mean of all perturbed training cells of the type, whatever the perturbation (equations 25 and 26).

    Raises
    ------
    ScreproError
        The type has no perturbed training cells, as where there is one perturbation only.
    """
    from screpro.tasks.perturbed_cells import normalised

    made = np.empty((len(cell_type), len(train.genes)), dtype=np.float32)
    for k, _, places in _pairs(cell_type, perturbation):
        rows = np.flatnonzero((train.cell_type == k) & (train.perturbation != 0))
        if not len(rows):
            raise ScreproError(
                "The mean of a type is over its training cells under other perturbations.",
                got=f"{train.types[k]} has none",
                fix="leave this method out where there is a single perturbation",
            )
        made[places] = np.asarray(normalised(train.counts[rows]).mean(0)).ravel()
    return made


BASELINES: dict[str, Baseline] = {
    entry.name: entry
    for entry in (
        Baseline(
            "scvi",
            "scVI",
            "Lopez et al., Nature Methods 2018, 10.1038/s41592-018-0229-2",
            "perturbed_networks:scvi",
            [{}],
            needs="baselines",
        ),
        Baseline(
            "cpa",
            "CPA",
            "Lotfollahi et al., Molecular Systems Biology 2023, 10.15252/msb.202211517",
            "perturbed_networks:cpa",
            [{}],
        ),
        Baseline(
            "state_like",
            "STATE-like",
            "Adduri et al., bioRxiv 2025, 10.1101/2025.06.26.661135",
            "state_like:state_like",
            [{}],
        ),
        Baseline(
            "scgpt",
            "scGPT",
            "Cui et al., Nature Methods 2024, 10.1038/s41592-024-02201-0",
            "scgpt_adapter:scgpt",
            [{}],
        ),
        Baseline("mean_shift", "Control cells + mean effect", "no method", "perturbed_counts:mean_shift", [{}]),
        Baseline(
            "control_of_type",
            "Control cells of the type",
            "no method",
            "perturbed_counts:control_of_type",
            [{}],
            "trivial",
        ),
        Baseline(
            "perturbation_mean",
            "Perturb mean",
            "appendix H of the paper",
            "perturbed_counts:perturbation_mean",
            [{}],
            random=False,
        ),
        Baseline(
            "context_mean",
            "Context mean",
            "appendix H of the paper",
            "perturbed_counts:context_mean",
            [{}],
            "trivial",
            random=False,
        ),
    )
}
"""Every baseline; networks first. scGPT takes a package and a checkpoint that do not come with this project."""
