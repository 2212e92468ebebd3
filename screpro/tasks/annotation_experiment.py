"""The experiment behind the annotation page: scDiff and every baseline under one protocol (section 4.1.1).

Cells are split at random. Hyper-parameters are chosen by macro F1 on the validation cells of the first split, by the
same rule for every method; then each method is trained on the training and validation cells of each split and scored
on its test cells, once per seed. scDiff's own tables use one split for all runs and baselines at published defaults.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from screpro.baselines import annotation as baselines
from screpro.metrics.classification import classification_scores, macro_f1
from screpro.records import Run
from screpro.tasks.annotation import Annotator, Labelled, ScDiffSettings, scdiff_grid, train_annotator, train_test
from screpro.tasks.cells import Cells
from screpro.tasks.diffusion_classifier import predict
from screpro.tasks.tuning import best_setting, checkpoint_file, progress

__all__ = ["METHODS", "Protocol", "compare_methods", "study_classifier"]

METHODS = ["scdiff", *baselines.BASELINES]
"""Every method of the page; scDiff first."""

DETERMINISTIC = {"majority", "logistic_regression", "knn"}
"""Methods without randomness: one run per split, recorded without a seed."""

ITEMS = {"macro_recall": "Table 1", "macro_precision": "Table 1", "macro_f1": "Table 5", "accuracy": "Table 1"}
"""The paper's table each score belongs to."""


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    splits: Sequence[int]
    seeds: Sequence[int]
    base: ScDiffSettings  # scDiff's starting point
    tune: bool  # choose settings on validation cells; otherwise published defaults and `base`
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    threads: int = 1
    grids: Mapping[str, list[dict[str, Any]]] = MappingProxyType({})  # settings to try instead of a baseline's grid
    study_draws: Sequence[int] = (1, 5, 20)  # numbers of noise draws that scDiff's classifier is studied with


def compare_methods(
    run: Run,
    labelled: Labelled,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[tuple[int, int], Annotator] = MappingProxyType({}),
) -> None:
    """Run every method on every (split, seed) and add its rows to `run`.

    What an interrupted run has already measured is not measured again. Besides the four scores, each unit records
    the seconds of fitting and predicting, and each tried setting its validation score.

    Parameters
    ----------
    run
        Where the rows go.
    labelled, protocol, methods
        Cells, how they are split and what is run on them.
    trained
        scDiff annotators that are there already, by (split, seed); used where nothing is tuned.
    """
    units = [
        (method, split, seed)
        for method in methods
        for split in protocol.splits
        for seed in ([None] if method in DETERMINISTIC else protocol.seeds)
    ]
    for method, split, seed in progress(units, f"{protocol.dataset}"):
        unit = {"dataset": protocol.dataset, "split": str(split), "method": method, "seed": seed}
        if run.done(**unit, metric="macro_f1"):
            continue
        options = _chosen(run, labelled, protocol, method)
        train, validation, test = _parts(labelled, protocol, split)
        started, number = time.monotonic(), seed or 0
        train = train.joined(validation)
        annotator = None
        if method == "scdiff":
            annotator = None if protocol.tune else trained.get((split, number))
            annotator = annotator or _train_scdiff(run, labelled, protocol, options, number, train, split)
        predicted = _predict(protocol, labelled, method, options, number, train, test, annotator)
        seconds = time.monotonic() - started
        if annotator is not None and annotator in trained.values():
            seconds += annotator.seconds
        sizes = {"n_real": len(test.cell_type), "n_genes": len(test.genes)}
        for metric, value in classification_scores(test.cell_type, predicted).items():
            run.add(
                **unit, **sizes, item=ITEMS[metric], metric=metric, value=value, unit="fraction", direction="higher"
            )
        run.add(**unit, **sizes, item="Table 10", metric="fit_predict", value=seconds, unit="s", direction="lower")
        if annotator is not None:
            study_classifier(
                run,
                annotator,
                test,
                dataset=protocol.dataset,
                split=split,
                seed=number,
                draws=protocol.study_draws,
            )
            _checkpoint(run, protocol, options, number, train, split).unlink(missing_ok=True)


def study_classifier(
    run: Run, annotator: Annotator, test: Cells, *, dataset: str, split: int, seed: int, draws: Sequence[int]
) -> dict[str, float]:
    """Score one trained scDiff under other ways to classify: macro F1 by variant, also added to `run`.

    Variants: shared or independent noise, number of draws, 50 time steps, one time step alone, steps up to 500, batch
    searched or given. The last three use the second of `draws` with shared noise. Whatever `last_time` was chosen, all
    steps count in the others.
    """
    drawn = {
        f"{kind} noise, {number} draw{'s' if number > 1 else ''}": annotator.errors(
            test, seed=seed, shared_noise=kind == "shared", draws=number, n_times=5
        )
        for kind in ("independent", "shared")
        for number in draws
    }
    drawn["shared noise, 50 time steps"] = annotator.errors(test, seed=seed, shared_noise=True, draws=1, n_times=50)
    scores = {
        name: macro_f1(test.cell_type, annotator.label(errors, test, times=np.arange(len(errors.times))))
        for name, errors in drawn.items()
    }
    shared = drawn[f"shared noise, {draws[1]} draws"]
    for column, t in enumerate(shared.times):
        alone = annotator.label(shared, test, times=np.array([column]))
        scores[f"one step alone, t = {t}"] = macro_f1(test.cell_type, alone)
    early = annotator.label(shared, test, times=np.flatnonzero(shared.times <= 500))
    scores["steps up to 500"] = macro_f1(test.cell_type, early)
    if annotator.model.batch_table is not None:
        given = predict(shared, batch=test.batch + 1) - 1
        scores["batch given"] = macro_f1(test.cell_type, given)
        scores["batch searched"] = macro_f1(test.cell_type, predict(shared) - 1)
    for name, value in scores.items():
        run.add(
            item="X-1",
            dataset=dataset,
            split=split,
            method="scdiff",
            metric="macro_f1",
            metric_variant=name,
            n_real=len(test.cell_type),
            n_genes=len(test.genes),
            seed=seed,
            value=value,
            unit="fraction",
            direction="higher",
        )
    return scores


def _parts(labelled: Labelled, protocol: Protocol, split: int) -> tuple[Cells, Cells, Cells]:
    validation = protocol.validation_fraction if protocol.tune else 0.0
    return train_test(labelled, split, test=protocol.test_fraction, validation=validation)


def _chosen(run: Run, labelled: Labelled, protocol: Protocol, method: str) -> dict[str, Any]:
    """Best options on the validation cells of the first split; each tried setting leaves a row."""
    grid = _grid(method, protocol)
    if len(grid) == 1:
        return grid[0]
    split, seed = protocol.splits[0], protocol.seeds[0]
    train, validation, _ = _parts(labelled, protocol, split)
    work = {"dataset": protocol.dataset, "split": f"{split}, validation", "method": method, "seed": seed}
    last: dict[str, Annotator] = {}  # the training before, which the next setting may only read otherwise

    def score(options: dict[str, Any]) -> float:
        annotator = None
        if method == "scdiff":
            trained_with = str(_training(options))
            if trained_with not in last:
                last.clear()
                last[trained_with] = _train_scdiff(run, labelled, protocol, options, seed, train, split)
                _checkpoint(run, protocol, options, seed, train, split).unlink(missing_ok=True)
            annotator = replace(last[trained_with], settings=ScDiffSettings(**options))
        predicted = _predict(protocol, labelled, method, options, seed, train, validation, annotator)
        return macro_f1(validation.cell_type, predicted)

    return best_setting(
        run,
        grid,
        score,
        work=work,
        metric="macro_f1",
        unit="fraction",
        n_real=len(validation.cell_type),
        n_genes=len(validation.genes),
    )


def _grid(method: str, protocol: Protocol) -> list[dict[str, Any]]:
    if method == "scdiff":
        settings = scdiff_grid(protocol.base) if protocol.tune else [protocol.base]
        return [asdict(setting) for setting in settings]
    grid = list(protocol.grids.get(method, baselines.BASELINES[method].grid))
    return grid if protocol.tune else grid[:1]


def _training(options: dict[str, Any]) -> dict[str, Any]:
    """The options that training depends on."""
    return {name: value for name, value in options.items() if name != "last_time"}


def _checkpoint(run: Run, protocol: Protocol, options: dict, seed: int, train: Cells, split: int) -> Path:
    return checkpoint_file(run, protocol.dataset, split, seed, len(train.cell_type), _training(options))


def _train_scdiff(
    run: Run, labelled: Labelled, protocol: Protocol, options: dict, seed: int, train: Cells, split: int
) -> Annotator:
    return train_annotator(
        train,
        n_types=len(labelled.types),
        n_batches=len(labelled.batches),
        settings=ScDiffSettings(**options),
        seed=seed,
        threads=protocol.threads,
        checkpoint=_checkpoint(run, protocol, options, seed, train, split),
        title=f"scDiff on {protocol.dataset}",
    )


def _predict(
    protocol: Protocol,
    labelled: Labelled,
    method: str,
    options: dict,
    seed: int,
    train: Cells,
    test: Cells,
    annotator: Annotator | None,
) -> np.ndarray:
    """Type codes of `test`."""
    if annotator is not None:
        return annotator.label(annotator.errors(test, seed=seed), test)
    found = baselines.run(
        method,
        train,
        test,
        n_types=len(labelled.types),
        seed=seed,
        threads=protocol.threads,
        options=options,
    )
    return found.labels
