"""``screpro metrics``: files in, a readable table out, rows in a file."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screpro import paths
from screpro.cli_show import STDOUT, plain, show
from screpro.errors import ScreproError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from screpro.metrics.report import Report

__all__ = ["run"]

HEADS = {
    "value": "value",
    "value_equal_n": "at equal n",
    "ceiling": "ceiling",
    "floor_shuffled": "floor: shuffled",
    "floor_mean": "floor: mean",
    "floor_control": "floor: control",
}
"""Columns of numbers and what is printed above them; a floor of the other suite is left out."""

IN_CLASSES = ("w2_exact", "mmd2_rbf_sum5", "frechet_distance", "energy_distance_u", "one_nn_accuracy")
"""Scores printed for each class; all of them are in the rows."""

LEGEND = {
    "scldm": """\
value: all cells, the number of a table. The others: n cells a side, against the same n real cells.
At equal n: generated cells. Ceiling: other real cells. Floors: those with every gene shuffled over the cells; their
mean cell, n times. Read 'at equal n' between ceiling and floors: most scores depend on the number of cells.
""",
    "celleval": """\
value: all cells, the number of a table. At equal n: half of the cells of each perturbation on both sides; ceiling: the
other real half as prediction. Floors, of all cells as value is: one effect for all perturbations, the mean of the real
ones; no effect, the control cells. Read value against the floors, and 'at equal n' against the ceiling.
Control cells: the null test, as many of them at equal n as half of the real ones; its floor is real perturbed cells.
""",
}
"""What stands under the tables of a suite."""


def run(real: Path, generated: Path, *, json_file: Path | None, **options: Any) -> None:
    """Score two files, print tables, write the rows to `json_file`; with ``-`` print rows in place of tables.

    Raises
    ------
    ScreproError
        A file is missing or is not an .h5ad, the folder of `json_file` is missing, or as `report.compare`.
    """
    as_json = str(json_file) == STDOUT
    if json_file is not None and not as_json and (json_file.is_dir() or not json_file.resolve().parent.is_dir()):
        raise ScreproError(
            "--json names a file in a folder that is there.", got=str(json_file), fix="make the folder first"
        )
    cells = [_read(path) for path in (real, generated)]
    # some packages, where they are installed, greet on stdout when they are imported: the tables stand there alone
    with _progress() as progress, redirect_stdout(io.StringIO()):
        from screpro.metrics import report

        found = report.compare(*cells, **options, progress=progress)
    rows = found.rows.to_dict("records")
    if as_json:
        show(rows, as_json)
        print(*found.notes, sep="\n", file=sys.stderr)
        return
    if json_file is not None:
        with paths.atomic_path(json_file) as aside:
            aside.write_text(json.dumps(plain(rows), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(found)


def _read(path: Path) -> "AnnData":
    import anndata

    if not path.is_file():
        raise ScreproError("REAL and GENERATED are .h5ad files.", got=f"no file {path}", fix="check the path")
    try:
        return anndata.read_h5ad(path)
    except MemoryError:
        raise
    except Exception as error:  # what is damaged, or HDF5 of another kind, shows itself as almost any exception
        raise ScreproError(
            "REAL and GENERATED are .h5ad files.",
            got=f"{path}: {type(error).__name__}: {error}",
            fix="write the cells with anndata's write_h5ad",
        ) from None


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is done, from the second second on and on a terminal only."""
    from tqdm import tqdm

    with tqdm(bar_format="{desc} {elapsed}", delay=2, disable=not sys.stderr.isatty(), leave=False) as bar:
        bar.set_description_str("scoring", refresh=False)

        def done(what: str) -> None:
            bar.set_description_str(f"scored {what}", refresh=False)
            bar.update()

        yield done


def _print(found: "Report") -> None:
    """One table for all cells, one for the mean over classes, one of the values by class; then the notes."""
    for suite, rows in found.rows.groupby("suite", sort=False):
        whole = ~rows["by"].str.contains("=")
        for group, own in rows[whole].groupby("by", sort=False):
            sizes = f"{own['n_real'].max()} real and {own['n_generated'].max()} generated cells"
            print(f"{suite}, {group}: {sizes}, n = {own['n_equal'].max()}, {own['n_genes'].max()} genes\n")
            show([_line(row) for row in own.dropna(axis=1, how="all").to_dict("records")], as_json=False)
            print()
        if suite == "scldm" and not whole.all():
            print("value inside each class (the other scores: --json)\n")
            show(_by_class(rows[~whole]), as_json=False)
            print()
        print(LEGEND[suite])
    for note in found.notes:
        print(f"- {note}")


def _line(row: dict[str, Any]) -> dict[str, Any]:
    name = f"{row['metric']} ({row['variant']})" if row["variant"] else row["metric"]
    shown = {head: row[c] for c, head in HEADS.items() if c in row}
    # a constant floor has no correlation: not defined is not a number gone wrong
    shown = {head: "–" if isinstance(value, float) and isnan(value) else value for head, value in shown.items()}
    return {"score": name, "better": row["direction"]} | shown


def _by_class(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    """One row per class: its cells, and the scores of scLDM's tables."""
    table = []
    for group, own in rows.groupby("by", sort=False):
        row = {"class": group, "real": own["n_real"].max(), "generated": own["n_generated"].max()}
        values = own.set_index("metric")["value"]
        table.append(row | {name: values[name] for name in IN_CLASSES})
    return table
