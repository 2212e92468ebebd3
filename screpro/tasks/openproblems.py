"""OpenProblems' label projection task (scDiff E.8, Table 11): scDiff beside the leaderboard's methods.

Cells are split at random, 80 to 20, and types are projected from the training to the test cells. The leaderboard shows
plain accuracy; Table 11 calls the same numbers macro accuracy, so the macro scores are recorded too. Settings are
chosen as on the annotation page: by macro F1 on validation cells of the first split, by the same rule for every method.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from screpro.baselines import label_projection as baselines
from screpro.errors import ScreproError
from screpro.metrics.classification import classification_scores, macro_f1
from screpro.records import Run
from screpro.tasks.annotation import Annotator, Labelled, ScDiffSettings, scdiff_trainings, train_annotator, train_test
from screpro.tasks.cells import Cells
from screpro.tasks.tuning import best_setting

__all__ = ["DETERMINISTIC", "METHODS", "Protocol", "compare_methods"]

METHODS = ["scdiff", *baselines.BASELINES]
"""Every method of the task; scDiff first, then those of Table 11, then an extra, then the controls."""

DETERMINISTIC = {"logistic_regression", "seurat", "knn", "majority", "true_labels"}
"""Methods without randomness: one run per split, recorded without a seed."""


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    runs: Sequence[tuple[int, int]]  # (seed of the split, seed of weights and noise); settings are chosen in the first
    base: ScDiffSettings  # scDiff's starting point
    tune: bool  # choose settings on validation cells; otherwise OpenProblems' own and `base`
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    threads: int = 1
    grids: Mapping[str, list[dict[str, Any]]] = MappingProxyType({})  # settings to try instead of a baseline's grid


def compare_methods(
    run: Run,
    labelled: Labelled,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[tuple[int, int], Annotator] = MappingProxyType({}),
) -> None:
    """Run every method in every run of `protocol` and add its rows to `run`; what is there is not measured again.

    Parameters
    ----------
    run
        Where the rows go: the four scores and seconds.
    labelled, protocol, methods
        Cells, how they are split and what is run on them.
    trained
        scDiff annotators that are there already, by (split, seed); used where nothing is tuned.

    Raises
    ------
    ScreproError
        Unknown method, or whatever the split and a baseline refuse.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ScreproError(
            "A method is named by its key.", got=", ".join(unknown), fix=f"choose from {', '.join(METHODS)}"
        )
    from tqdm import tqdm

    once = dict.fromkeys((split, None) for split, _ in protocol.runs)
    units = [(method, *one) for method in methods for one in (once if method in DETERMINISTIC else protocol.runs)]
    for method, split, seed in tqdm(units, desc=f"{protocol.dataset}, label projection", unit="run", disable=None):
        unit = {"dataset": protocol.dataset, "split": str(split), "method": method, "seed": seed}
        if run.done(**unit, metric="accuracy"):
            continue
        options = _chosen(run, labelled, protocol, method)
        train, validation, test = _parts(labelled, protocol, split)
        train, number, seconds = train.joined(validation), seed or 0, 0.0
        annotator = None if protocol.tune or method != "scdiff" else trained.get((split, number))
        if annotator is not None:
            seconds = annotator.seconds
        started = time.monotonic()
        predicted = _predict(run, labelled, protocol, method, options, number, train, test, annotator)
        seconds += time.monotonic() - started
        sizes = {"n_real": len(test.cell_type), "n_genes": len(test.genes)}
        for metric, value in classification_scores(test.cell_type, predicted).items():
            shown = {"metric": metric, "value": value, "unit": "fraction", "direction": "higher"}
            run.add(**unit, **sizes, **shown, item="Table 11")
        run.add(**unit, **sizes, item="Table 10", metric="fit_predict", value=seconds, unit="s", direction="lower")


def _parts(labelled: Labelled, protocol: Protocol, split: int) -> tuple[Cells, Cells, Cells]:
    validation = protocol.validation_fraction if protocol.tune else 0.0
    return train_test(labelled, split, test=protocol.test_fraction, validation=validation)


def _chosen(run: Run, labelled: Labelled, protocol: Protocol, method: str) -> dict[str, Any]:
    """Best options on the validation cells of the first split; each tried setting leaves a row."""
    grid = _grid(method, protocol)
    if len(grid) == 1:
        return grid[0]
    split, seed = protocol.runs[0]
    train, validation, _ = _parts(labelled, protocol, split)
    work = {"dataset": protocol.dataset, "split": f"{split}, validation", "method": method, "seed": seed}

    def score(options: dict[str, Any]) -> float:
        predicted = _predict(run, labelled, protocol, method, options, seed, train, validation)
        return macro_f1(validation.cell_type, predicted)

    sizes = {"n_real": len(validation.cell_type), "n_genes": len(validation.genes)}
    return best_setting(run, grid, score, work=work, metric="macro_f1", unit="fraction", **sizes)


def _grid(method: str, protocol: Protocol) -> list[dict[str, Any]]:
    if method == "scdiff":
        settings = scdiff_trainings(protocol.base) if protocol.tune else [protocol.base]
        grid = [asdict(setting) for setting in settings]
    else:
        grid = baselines.BASELINES[method].grid
    grid = list(protocol.grids.get(method, grid))
    return grid if protocol.tune else grid[:1]


def _predict(
    run: Run,
    labelled: Labelled,
    protocol: Protocol,
    method: str,
    options: dict[str, Any],
    seed: int,
    train: Cells,
    test: Cells,
    annotator: Annotator | None = None,
) -> np.ndarray:
    """Type codes of `test`."""
    n_types = len(labelled.types)
    if method != "scdiff":
        found = baselines.run(
            method, train, test, n_types=n_types, seed=seed, threads=protocol.threads, options=options
        )
        return found.labels
    if annotator is not None:
        return annotator.label(annotator.errors(test, seed=seed), test)
    # one file per unit of work: a killed run finds exactly the training it was in the middle of
    unit = [protocol.dataset, seed, hashlib.sha256(train.x.data.tobytes()).hexdigest(), options]
    name = hashlib.sha256(json.dumps(unit, sort_keys=True).encode()).hexdigest()[:16]
    checkpoint: Path = run.folder / "checkpoints" / f"scdiff-labels-{name}.safetensors"
    annotator = train_annotator(
        train,
        n_types=n_types,
        n_batches=len(labelled.batches),
        settings=ScDiffSettings(**options),
        seed=seed,
        threads=protocol.threads,
        checkpoint=checkpoint,
        title=f"scDiff on {protocol.dataset}",
    )
    labels = annotator.label(annotator.errors(test, seed=seed), test)
    checkpoint.unlink(missing_ok=True)
    return labels
