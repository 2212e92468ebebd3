"""The experiment behind the perturbation page: scDiff and every baseline under one protocol (section 4.1.3).

One type at a time is held out; its name is the split of a result row. Hyper-parameters are chosen on a further type
that is never scored: its stimulated cells are held out together with those of the first scored type, and the setting
with the highest R² of the change wins, for every method alike. Then each method is trained on everything but the
held-out stimulated cells, once per seed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from screpro.baselines import perturbation as baselines
from screpro.records import Run
from screpro.tasks.perturbation import (
    SAMPLING,
    HeldOut,
    Perturbed,
    Predictor,
    ScDiffSettings,
    hold_out,
    scdiff_grid,
    train_predictor,
    validation_type,
)
from screpro.tasks.perturbation_scores import METRICS, half_against_half, score_cells
from screpro.tasks.tuning import best_setting, checkpoint_file, progress

__all__ = [
    "METHODS",
    "Protocol",
    "compare_methods",
    "options_of",
    "study_batch",
    "study_throughput",
]

METHODS = [*SAMPLING, *baselines.BASELINES, "oracle"]
"""Every method of the page; scDiff and the ways to draw from it first, the ceiling last."""


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    held_out: Sequence[str]  # types, one at a time
    seeds: Sequence[int]
    base: ScDiffSettings  # scDiff's starting point
    tune: bool  # choose settings on a validation type; otherwise published defaults and `base`
    n_genes: int | None = 2000
    threads: int = 1
    grids: Mapping[str, list[dict[str, Any]]] = MappingProxyType({})  # settings to try instead of a baseline's grid
    halves: int = 10  # random halvings of the real cells behind the ceiling
    ends: Sequence[int] = ()  # time steps at which a chain of the first held-out type is answered early


def compare_methods(
    run: Run,
    perturbed: Perturbed,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[tuple[str, int], Predictor] = MappingProxyType({}),
) -> None:
    """Run every method on every (held-out type, seed) and add its rows to `run`.

    What an interrupted run has already measured is not measured again. Besides `METRICS`, each unit records the
    seconds of fitting and predicting. scDiff is trained once for all its ways of drawing.

    Parameters
    ----------
    run
        Where the rows go.
    perturbed, protocol, methods
        Cells, how they are held out and what is run on them.
    trained
        scDiff predictors that are there already, by (type, seed); used where nothing is tuned.
    """
    ways = [method for method in methods if method in SAMPLING]
    groups = [ways] * bool(ways) + [[method] for method in methods if method not in SAMPLING]
    units = [
        (group, name, seed)
        for group in groups
        for name in protocol.held_out
        for seed in (protocol.seeds if _random(group[0]) else [None])
    ]
    for group, name, seed in progress(units, protocol.dataset):
        unit = {"dataset": protocol.dataset, "split": name, "seed": seed}
        # all its scores are there once the last of its rows is
        left = [each for each in group if not run.done(**unit, method=each, metric="fit_predict", metric_variant="")]
        if not left:
            continue
        options = _chosen(run, perturbed, protocol, "scdiff" if group is ways else group[0])
        held = hold_out(perturbed, name, n_genes=protocol.n_genes)
        if group is ways:
            predictor = None if protocol.tune else trained.get((name, seed))
            predictor = predictor or _train_scdiff(run, perturbed, protocol, options, seed, held)
            if name == protocol.held_out[0]:
                _study_ends(run, predictor, held, protocol, seed)
        for method in left:
            started = time.monotonic()
            if method == "oracle":
                scores, n = half_against_half(held, halves=protocol.halves, seed=0), held.stimulated.shape[0] // 2
            elif group is ways:
                cells = predictor.predict(sampler=SAMPLING[method], seed=seed)
            else:
                cells = baselines.run(
                    method,
                    held.train,
                    held_out=held.code,
                    seed=seed or 0,
                    threads=protocol.threads,
                    options=options,
                )
            predicting = time.monotonic() - started
            if method != "oracle":
                scores, n = score_cells(cells, held.stimulated, held.control), len(cells)
            sizes = {"n_real": held.stimulated.shape[0], "n_generated": n, "n_genes": len(held.train.genes)}
            add_scores(run, scores, **unit, **sizes, method=method)
            if group is ways:
                _add_speed(run, n / predicting, "all cells at once", **unit, **sizes, method=method)
            run.add(
                **unit,
                **sizes,
                method=method,
                item="Table 10",
                metric="fit_predict",
                value=predicting + (predictor.seconds if group is ways else 0),
                unit="s",
                direction="lower",
            )
        if group is ways:
            _checkpoint(run, protocol, options, seed, held).unlink(missing_ok=True)


def _study_ends(run: Run, predictor: Predictor, held: HeldOut, protocol: Protocol, seed: int) -> None:
    """Scores of the network's answer on the way down the full chain (item X-21): what its last steps do.

    Beside them those of 50 even steps without noise, of which one alone falls among those last steps.
    """
    unit = {"dataset": protocol.dataset, "split": held.name, "seed": seed, "method": "scdiff"}
    sizes = {"n_real": held.stimulated.shape[0], "n_generated": held.control.shape[0]}
    ways = {f"answer at t = {end}": {"end": end} for end in protocol.ends}
    ways |= {"50 even steps": {"sampler": "ddim"}} if ways else {}
    for variant, how in ways.items():
        if not run.done(**unit, metric_variant=variant):
            scores = score_cells(predictor.predict(seed=seed, **how), held.stimulated, held.control)
            add_scores(run, scores, item="X-21", variant=variant, n_genes=len(held.train.genes), **unit, **sizes)


def add_scores(run: Run, scores: Mapping[str, float], *, item: str | None = None, variant: str = "", **unit) -> None:
    """Add one row for each score of `METRICS`."""
    for metric, value in scores.items():
        own, measured_in, direction = METRICS[metric]
        run.add(
            **unit,
            item=item or own,
            metric=metric,
            metric_variant=variant,
            value=value,
            unit=measured_in,
            direction=direction,
        )


def study_batch(run: Run, perturbed: Perturbed, protocol: Protocol) -> None:
    """Does the batch help? scDiff with and without it on the first held-out type, 50 steps (item X-7).

    Nothing happens where cells come from one batch. The two networks differ in the batch alone; the one that
    `compare_methods` has run is not trained again.
    """
    if len(perturbed.batches) < 2:
        return
    name, method = protocol.held_out[0], "scdiff_ddim50"
    options = _chosen(run, perturbed, protocol, "scdiff")
    for seed in protocol.seeds:
        unit = {"dataset": protocol.dataset, "split": name, "seed": seed, "method": method}
        for variant, used in (("batch given", True), ("batch not given", False)):
            if run.done(**unit, metric_variant=variant):
                continue
            held = hold_out(perturbed, name, n_genes=protocol.n_genes)
            scores = _measured(run, unit) if used == options["use_batch"] else {}
            if not scores:
                own = asdict(replace(ScDiffSettings(**options), use_batch=used))
                predictor = _train_scdiff(run, perturbed, protocol, own, seed, held)
                cells = predictor.predict(sampler=SAMPLING[method], seed=seed)
                scores = score_cells(cells, held.stimulated, held.control)
                _checkpoint(run, protocol, own, seed, held).unlink(missing_ok=True)
            sizes = {
                "n_real": held.stimulated.shape[0],
                "n_generated": held.control.shape[0],
                "n_genes": len(held.train.genes),
            }
            add_scores(run, scores, item="X-7", variant=variant, **unit, **sizes)


def _measured(run: Run, unit: Mapping[str, Any]) -> dict[str, float]:
    """Scores of a unit that is there already."""
    rows = run.frame()
    for column, value in unit.items():
        rows = rows[rows[column] == value]
    rows = rows[(rows["metric_variant"] == "") & rows["metric"].isin(METRICS)]
    return dict(zip(rows["metric"], rows["value"], strict=True))


def study_throughput(run: Run, predictor: Predictor, protocol: Protocol, *, name: str, alone: int = 1) -> float:
    """Cells per second of full ancestral sampling, one cell after the other (item X-8).

    `compare_methods` records the same for all cells at once.

    Parameters
    ----------
    predictor, name
        scDiff trained with this type held out.
    alone
        Number of cells to draw.
    """
    seed = protocol.seeds[0]
    started = time.monotonic()
    for row in range(alone):
        predictor.predict(seed=seed, rows=np.array([row]))
    speed = alone / (time.monotonic() - started)
    sizes = {"n_generated": alone, "n_genes": predictor.control.shape[1]}
    unit = {"dataset": protocol.dataset, "split": name, "seed": seed, "method": "scdiff"}
    _add_speed(run, speed, "one cell after the other", **unit, **sizes)
    return speed


def _add_speed(run: Run, value: float, variant: str, **unit: Any) -> None:
    run.add(
        **unit,
        item="X-8",
        metric="cells_per_second",
        metric_variant=variant,
        value=value,
        unit="1/s",
        direction="higher",
    )


def _random(method: str) -> bool:
    return method in SAMPLING or (method in baselines.BASELINES and baselines.BASELINES[method].random)


def _chosen(run: Run, perturbed: Perturbed, protocol: Protocol, method: str) -> dict[str, Any]:
    """Best options on the validation type; each tried setting leaves a row."""
    grid = _grid(method, protocol)
    validation = validation_type(perturbed, list(protocol.held_out))
    if len(grid) == 1 or validation is None:
        return grid[0]
    seed = protocol.seeds[0]
    work = {"dataset": protocol.dataset, "split": f"{validation}, validation", "method": method, "seed": seed}
    held = hold_out(perturbed, validation, n_genes=protocol.n_genes, also=protocol.held_out[0])

    def score(options: dict[str, Any]) -> float:
        if method == "scdiff":
            # few steps: settings are only compared with each other
            predictor = _train_scdiff(run, perturbed, protocol, options, seed, held)
            cells = predictor.predict(sampler=SAMPLING["scdiff_ddim50"], seed=seed)
            _checkpoint(run, protocol, options, seed, held).unlink(missing_ok=True)
        else:
            cells = baselines.run(
                method, held.train, held_out=held.code, seed=seed, threads=protocol.threads, options=options
            )
        return score_cells(cells, held.stimulated, held.control)["r2_change_top100"]

    sizes = {"n_real": held.stimulated.shape[0], "n_genes": len(held.train.genes)}
    return best_setting(run, grid, score, work=work, metric="r2_change_top100", **sizes)


def options_of(protocol: Protocol, method: str) -> dict[str, Any]:
    """The first setting of a method: what it runs with where nothing is tuned."""
    return _grid(method, protocol)[0]


def _grid(method: str, protocol: Protocol) -> list[dict[str, Any]]:
    if method == "oracle":
        return [{}]
    if method == "scdiff":
        settings = scdiff_grid(protocol.base) if protocol.tune else [protocol.base]
        return [asdict(setting) for setting in settings]
    grid = list(protocol.grids.get(method, baselines.BASELINES[method].grid))
    return grid if protocol.tune else grid[:1]


def _checkpoint(run: Run, protocol: Protocol, options: dict, seed: int, held: HeldOut) -> Path:
    return checkpoint_file(run, protocol.dataset, held.name, seed, *held.train.x.shape, options)


def _train_scdiff(
    run: Run, perturbed: Perturbed, protocol: Protocol, options: dict, seed: int, held: HeldOut
) -> Predictor:
    return train_predictor(
        held,
        n_types=len(perturbed.types),
        n_batches=len(perturbed.batches),
        settings=ScDiffSettings(**options),
        seed=seed,
        threads=protocol.threads,
        checkpoint=_checkpoint(run, protocol, options, seed, held),
        title=f"scDiff on {protocol.dataset}",
    )
