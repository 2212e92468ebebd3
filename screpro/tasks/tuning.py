"""What the experiments share: choosing a setting on validation cells, files of unfinished trainings, progress."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from screpro.records import Run

__all__ = ["best_setting", "checkpoint_file", "progress"]


def best_setting(
    run: Run,
    grid: Sequence[dict[str, Any]],
    score: Callable[[dict[str, Any]], float],
    *,
    work: Mapping[str, Any],
    direction: str = "higher",
    **row: Any,
) -> dict[str, Any]:
    """The setting of `grid` with the best score; the first of equals, and a grid begins with the published default.

    Every tried setting leaves a row of the item "tuning" with the setting as its variant; one that an interrupted run
    has tried is not tried again.

    Parameters
    ----------
    run
        Where the rows go.
    grid
        Settings to try.
    score
        Value of a setting on validation cells.
    work
        ``dataset, split, method, seed`` of the rows; the split says that it is one of validation.
    direction
        "higher" or "lower" is better.
    row
        What else stands in the rows: ``metric, unit`` and sizes.
    """
    for options in grid:
        variant = json.dumps(options, sort_keys=True)
        if not run.done(**work, metric_variant=variant):
            value = score(options)
            run.add(**work, **row, item="tuning", metric_variant=variant, value=value, direction=direction)
    rows = run.frame()
    own = rows["item"] == "tuning"
    for column in ("dataset", "split", "method"):
        own &= rows[column] == str(work[column])
    scores = dict(zip(rows.loc[own, "metric_variant"], rows.loc[own, "value"], strict=True))
    best = {"higher": max, "lower": min}[direction]
    return best(grid, key=lambda options: scores[json.dumps(options, sort_keys=True)])


def checkpoint_file(run: Run, *identity: Any) -> Path:
    """One file per unit of work: a killed run finds exactly the training it was in the middle of.

    `identity` is plain values that tell this training from every other of the run.
    """
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return run.folder / "checkpoints" / f"{name}.safetensors"


def progress(units: Sequence[Any], title: str) -> Iterator[Any]:
    """The units with a bar on a terminal, silent elsewhere."""
    from tqdm import tqdm

    return tqdm(units, desc=title, unit="run", disable=None)
