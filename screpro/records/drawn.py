"""What figures draw: tables of points beside the rows of a run.

A result row is a number that stands in a table or decides a claim. The cells of a map and the genes under a curve are
no results one by one, but the figure of a recorded run needs them. A run keeps such points in its folder, as
``drawn/<figure>.<method>.<data>.json``, and a recorded run has them beside its ``results.json``.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from screpro import paths
from screpro.errors import ScreproError
from screpro.records import manifest, results
from screpro.records.results import TIERS, Run
from screpro.records.stored import read_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FILES", "FOLDER", "drawn_points", "keep_drawn"]

SCHEMA = "screpro.drawn/1"
FOLDER = "drawn"
FILES = "[!.]*.json"
"""Files of a folder of points; one that is being written has a dot in front."""

DIGITS = 4
"""Significant ones that are kept."""

#: what is added to the columns of a table when it is read back
_ADDED = ("dataset", "tier", "method", "run_id")


def keep_drawn(run: Run, figure: str, points: "pd.DataFrame", *, dataset: str, method: str) -> None:
    """Keep the points that a method has in a figure, to four significant digits, in the place of what was kept before.

    Parameters
    ----------
    run
        The run at hand.
    figure
        Its name, in letters, digits and underscores.
    points
        A row per point; columns of numbers and of texts. A number may be missing.
    dataset, method
        As in the result rows.

    Raises
    ------
    ScreproError
        A name would not do in that of a file, or a column is one that reading adds.
    """
    for name in (figure, method):
        if not name.isidentifier():
            raise ScreproError(
                "Figures and methods have plain names.", got=repr(name), fix='use one like "map" or "scldm"'
            )
    if taken := set(_ADDED) & set(points):
        raise ScreproError(
            "Points of a figure have no column that reading them adds.",
            got=", ".join(sorted(taken)),
            fix="leave it out, or give it another name",
        )
    columns = [f"{json.dumps(name)}: {json.dumps([_value(v) for v in points[name]])}" for name in points]
    text = f'{{"schema": {json.dumps(SCHEMA)},\n"columns": {{\n' + ",\n".join(columns) + "\n}}\n"
    with paths.atomic_path(run.folder / FOLDER / f"{figure}.{method}.{dataset}.json") as aside:
        aside.write_text(text, encoding="utf-8")


def _value(value: object) -> str | int | float | None:
    """A number to `DIGITS` digits, whole ones in full, None where it is not finite; text as it is."""
    if isinstance(value, str):
        return value
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) else float(f"{number:.{DIGITS}g}")


def _read(file: Path) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(read_json(file, SCHEMA, what="a file of points")["columns"])


def drawn_points(run: Run, figure: str, *, beside: str | None = None) -> "pd.DataFrame":
    """Points of a figure in the recorded runs of the page and in the run at hand, each data set at its heaviest tier.

    What several runs have of a method is taken from the last of them, and from the run at hand before recorded ones,
    as for rows.

    Parameters
    ----------
    run
        The run at hand.
    figure
        As in `keep_drawn`.
    beside
        Method that the others are drawn beside, such as the real cells that a map was fitted to: of each data set the
        last run with it counts, and methods of another run only where that one has the same points of it.

    Returns
    -------
    pandas.DataFrame
        The columns that were kept, and ``dataset``, ``tier``, ``method`` and ``run_id``; empty where nothing was kept.

    Raises
    ------
    ScreproError
        A file is not one of points.
    """
    import pandas as pd

    found = []
    for file in (results.results_dir() / run.notebook).glob("*/manifest.json"):
        content = manifest.read(file)
        found.append((content["started"], file.parent, content["tier"], content["run_id"]))
    folders = [each[1:] for each in sorted(found)] + [(run.folder, run.tier, run.run_id)]
    runs: dict[tuple[str, str], list[dict[str, pd.DataFrame]]] = {}  # (data set, tier) -> tables of each run, by method
    for folder, tier, run_id in folders:
        own: dict[str, dict[str, pd.DataFrame]] = {}
        for file in sorted((folder / FOLDER).glob(FILES)):
            name, method, dataset = file.name.removesuffix(".json").split(".", 2)
            if name == figure:
                place = {"dataset": dataset, "tier": tier, "method": method, "run_id": run_id}
                own.setdefault(dataset, {})[method] = _read(file).assign(**place)
        for dataset, tables in own.items():
            runs.setdefault((dataset, tier), []).append(tables)
    heaviest = {dataset: max(TIERS.index(t) for d, t in runs if d == dataset) for dataset, _ in runs}
    kept = []
    for (dataset, tier), tables in runs.items():
        if TIERS.index(tier) == heaviest[dataset]:
            kept += _last(tables, beside)
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=list(_ADDED))


def _last(runs: "list[dict[str, pd.DataFrame]]", beside: str | None) -> "list[pd.DataFrame]":
    """Of every method the last table; with `beside` of those runs alone that have the last one's points of it."""
    if beside is not None and (having := [tables for tables in runs if beside in tables]):
        points = [tables[beside].drop(columns=list(_ADDED)) for tables in having]
        runs = [tables for tables, own in zip(having, points, strict=True) if own.equals(points[-1])]
    last: dict[str, pd.DataFrame] = {}
    for tables in runs:
        last |= tables
    return list(last.values())
