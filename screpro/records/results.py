"""Result rows: one measured number a row, with everything needed to know what it measured.

A notebook collects rows in a `Run`. Each row goes at once to an append-only journal, so a killed run
continues where it stopped; the runner turns the journal of a finished notebook into ``results.json``.
"""

import json
import math
import numbers
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screpro import paths
from screpro.errors import ScreproError
from screpro.records.stored import read_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COLUMNS",
    "DIRECTIONS",
    "SCHEMA",
    "UNIT",
    "Run",
    "check_row",
    "load_results",
    "read_journal",
    "read_results",
    "start",
    "to_frame",
    "write_results",
]

SCHEMA = "screpro.results/1"

#: column -> (type, may be missing)
COLUMNS: dict[str, tuple[type, bool]] = {
    "paper": (str, False),
    "item": (str, False),
    "dataset": (str, False),
    "split": (str, False),
    "method": (str, False),
    "metric": (str, False),
    "metric_variant": (str, False),
    "n_real": (int, True),
    "n_generated": (int, True),
    "n_genes": (int, True),
    "seed": (int, True),
    "tier": (str, False),
    "value": (float, False),
    "unit": (str, False),
    "direction": (str, False),
    "run_id": (str, False),
}

#: what one piece of work is; `Run.done` asks about it, and a resumed run repeats the last one
UNIT = ("dataset", "split", "method", "seed")

#: two rows equal in these are the same measurement; the later one counts
_IDENTITY = tuple(c for c in COLUMNS if c not in ("value", "unit", "direction", "run_id"))

TIERS = ("ci", "laptop", "paper")

DIRECTIONS = ("higher", "lower", "closer to 0.5", "closer to 1")
"""Which value of a metric is better."""


def check_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with plain Python values in the order of `COLUMNS`.

    Raises
    ------
    ScreproError
        A column is unknown, missing or of the wrong type, or the value is not a finite number.
    """
    if unknown := sorted(set(row) - set(COLUMNS)):
        raise ScreproError(
            "a result row has only the columns of the schema",
            got=", ".join(unknown),
            fix="use " + ", ".join(COLUMNS),
        )
    return {column: _cell(column, row.get(column)) for column in COLUMNS}


def _cell(column: str, value: Any) -> Any:
    kind, optional = COLUMNS[column]
    if value is None:
        if optional:
            return None
        raise ScreproError("a result row has every column", got=f"no {column}", fix=f"give {column}=...")
    if kind is str:
        value = str(value) if column == "split" else value
        if not isinstance(value, str):
            raise _wrong(column, "text", value)
        value = str(value)  # numpy.str_ becomes str
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _wrong(column, "a number", value)
    elif kind is int:
        if value != int(value):
            raise _wrong(column, "a whole number", value)
        value = int(value)
    else:
        value = float(value)
        if not math.isfinite(value):
            raise ScreproError(
                "the value of a result row is finite",
                got=f"{column} = {value}",
                fix="leave the row out, and say on the page why there is no number",
            )
    allowed = {"direction": DIRECTIONS, "tier": TIERS}.get(column)
    if allowed and value not in allowed:
        raise _wrong(column, " or ".join(allowed), value)
    return value


def _wrong(column: str, what: str, value: Any) -> ScreproError:
    return ScreproError(f"column {column} of a result row is {what}", got=repr(value), fix=f"pass {what} as {column}")


def to_frame(rows: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """Rows as a table with the columns of the schema; counts are nullable integers."""
    import pandas as pd

    frame = pd.DataFrame([dict(r) for r in rows], columns=list(COLUMNS))
    dtypes = {str: "object", int: "Int64", float: "float64"}
    return frame.astype({c: dtypes[kind] for c, (kind, _) in COLUMNS.items()})


# --- files ---------------------------------------------------------------------------------------------


def write_results(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as ``screpro.results/1``, one row a line, replacing `path` in one step."""
    lines = [json.dumps(list(check_row(r).values()), ensure_ascii=False) for r in rows]
    head = f'{{"schema": {json.dumps(SCHEMA)},\n"columns": {json.dumps(list(COLUMNS))},\n"rows": [\n'
    text = head + ",\n".join(lines) + "\n]}\n"
    with paths.atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a results file as dictionaries, checked against the schema."""
    path = Path(path)
    try:
        content = read_json(path, SCHEMA, what="a results file")
    except FileNotFoundError:
        raise ScreproError("a results file exists", got=str(path), fix="run the notebook first") from None
    columns = content["columns"]
    rows = []
    for row in content["rows"]:
        if len(row) != len(columns):
            raise ScreproError(
                "every row of a results file has one value per column",
                got=f"{len(row)} values for {len(columns)} columns in {path}",
                fix="record the run again",
            )
        rows.append(check_row(dict(zip(columns, row, strict=True))))
    return rows


def read_results(path: str | Path) -> "pd.DataFrame":
    """A results file as a table.

    Raises
    ------
    ScreproError
        The file is missing, of another schema version, or holds a row that breaks the schema.
    """
    return to_frame(read_rows(path))


def results_dir() -> Path:
    """Where recorded runs live: ``data/results/<paper>/<name>/<any>/{results,manifest}.json``."""
    return paths.root() / "data" / "results"


def load_results(paper: str, name: str | None = None) -> "pd.DataFrame":
    """All recorded rows of a paper, or of one of its notebooks; an empty table when none is recorded.

    Where two runs of a notebook have the same metric of a method on a split of a data set at the same tier, for the
    same item, the later run's rows stand alone, with its seeds and variants: a method that is recorded again takes the
    place of what it was.

    Parameters
    ----------
    paper
        ``scdiff``, ``scldm``, ``perturbdiff`` or ``together``.
    name
        Notebook within the paper, e.g. ``annotation``.
    """
    from screpro.records import manifest

    files = sorted((results_dir() / paper).glob(f"{name or '*'}/*/results.json"))
    # a folder counts only when its manifest, written last, is there
    started = {f: manifest.read(f.parent)["started"] for f in files if (f.parent / "manifest.json").is_file()}
    rows = {f: read_rows(f) for f in started}
    last: dict[tuple, Path] = {}
    for f in sorted(started, key=started.__getitem__):
        last |= dict.fromkeys((_measurement(f, row) for row in rows[f]), f)
    return to_frame(row for f, own in rows.items() for row in own if last[_measurement(f, row)] == f)


def _measurement(file: Path, row: Mapping[str, Any]) -> tuple:
    """What a run measured, as far as it takes the place of an earlier one.

    A method is tuned once, whatever it is tuned by: of two runs that chose by different scores the later one counts.
    """
    metric = "" if row["item"] == "tuning" else row["metric"]
    return file.parent.parent, *(row[c] for c in ("dataset", "split", "tier", "method", "item")), metric


# --- the journal ----------------------------------------------------------------------------------------


def read_journal(path: Path, *, drop_last_unit: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows and data hashes of a journal; a line cut off by a kill is ignored.

    With `drop_last_unit` the rows of the most recent (dataset, split, method, seed) are left out: an
    interrupted run may have written only some of its metrics.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    data: dict[str, str] = {}
    last: tuple | None = None
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines(keepends=True):
        try:
            entry = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            break  # nothing after a broken line can be trusted
        if "row" in entry:
            row = check_row(entry["row"])
            rows[tuple(row[c] for c in _IDENTITY)] = row
            last = tuple(row[c] for c in UNIT)
        elif "data" in entry:
            data.update(entry["data"])
    kept = [r for r in rows.values() if not drop_last_unit or tuple(r[c] for c in UNIT) != last]
    return kept, data


def write_journal(folder: Path) -> None:
    """Turn the results of a finished run back into the journal of one that can be continued."""
    from screpro.records import manifest

    entries = [{"data": manifest.read(folder)["data"]}]
    entries += [{"row": row} for row in read_rows(folder / "results.json")]
    with paths.atomic_path(folder / "journal.jsonl") as aside:
        aside.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")


class Run:
    """Collects the rows of one execution of a notebook; made by `start`.

    Add all rows of one (dataset, split, method, seed) one after the other: a run that is killed and
    started again keeps every such unit except the last.
    """

    def __init__(self, notebook: str, *, tier: str, folder: Path, run_id: str, owner: Any = None):
        self.notebook, self.tier, self.folder, self.run_id = notebook, tier, folder, run_id
        self._owner = owner  # keeps a temporary folder alive as long as the run
        self._journal = folder / "journal.jsonl"
        rows, self.data = read_journal(self._journal, drop_last_unit=True)
        self._rows = {tuple(r[c] for c in _IDENTITY): r for r in rows}
        with paths.atomic_path(self._journal) as aside:
            entries = [{"data": self.data}] if self.data else []
            entries += [{"row": r} for r in rows]
            aside.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")

    def _append(self, entry: dict[str, Any]) -> None:
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry) + "\n")

    def use_data(self, name: str, sha256: str) -> None:
        """Note which data were read: `name` and the hash of the bytes they came from."""
        if self.data.get(name) != sha256:
            self.data[name] = sha256
            self._append({"data": {name: sha256}})

    def add(
        self,
        *,
        item: str,
        dataset: str,
        split: str | int,
        method: str,
        metric: str,
        value: float,
        direction: str,
        metric_variant: str = "",
        n_real: int | None = None,
        n_generated: int | None = None,
        n_genes: int | None = None,
        seed: int | None = None,
        unit: str = "",
    ) -> None:
        """Record one number.

        Parameters
        ----------
        item
            Table or figure of the paper it belongs to, e.g. ``"Table 1"``.
        dataset, split, method, seed
            What was run on what.
        metric, metric_variant, unit, direction
            What was measured; `direction` is one of `DIRECTIONS`, whichever is better.
        n_real, n_generated, n_genes
            Sizes the number depends on: cells scored, cells generated, genes.
        value
            A finite number.

        Raises
        ------
        ScreproError
            A value does not fit the schema.
        """
        given = {k: v for k, v in locals().items() if k != "self"}
        row = check_row(given | {"paper": self.notebook.split("/")[0], "tier": self.tier, "run_id": self.run_id})
        self._rows[tuple(row[c] for c in _IDENTITY)] = row
        self._append({"row": row})

    def done(self, **unit: Any) -> bool:
        """Whether an earlier, interrupted run with the same key already has rows of this unit.

        Takes any of ``dataset, split, method, seed`` (and other columns, e.g. ``metric``).
        """
        wanted = {c: _cell(c, v) for c, v in unit.items()}
        return any(all(r[c] == v for c, v in wanted.items()) for r in self._rows.values())

    def frame(self) -> "pd.DataFrame":
        """All rows so far, kept ones included, as a table."""
        return to_frame(self._rows.values())

    def with_recorded(self) -> "pd.DataFrame":
        """Rows of this run, after every recorded row of its notebook.

        Where both have a metric of a method on a data set at the same tier, this run's rows stand alone: they are the
        same measurement, or the one that was asked for with other parameters, another split among them.
        """
        import pandas as pd

        live, recorded = self.frame(), load_results(*self.notebook.split("/"))

        def measured(rows: "pd.DataFrame") -> "list[tuple]":
            metric = rows["metric"].mask(rows["item"] == "tuning", "tuning")  # as in `_measurement`
            return list(zip(rows["dataset"], rows["tier"], rows["method"], metric, strict=True))

        known = set(measured(live))
        return pd.concat([recorded[[own not in known for own in measured(recorded)]], live], ignore_index=True)

    def __repr__(self) -> str:
        return f"Run({self.notebook}, tier={self.tier}, {len(self._rows)} rows)"


def start(notebook: str, *, tier: str) -> Run:
    """Begin collecting rows in a notebook.

    Parameters
    ----------
    notebook
        ``"<paper>/<name>"``, e.g. ``"scdiff/annotation"``.
    tier
        ``"ci"``, ``"laptop"`` or ``"paper"``.

    Returns
    -------
    Run
        Under ``screpro run`` its journal is in the run folder and an interrupted run continues; used
        interactively, it is in a temporary folder that goes away with the object.
    """
    if tier not in TIERS:
        raise _wrong("tier", " or ".join(TIERS), tier)
    if folder := os.environ.get("SCREPRO_RUN_DIR"):
        return Run(notebook, tier=tier, folder=Path(folder), run_id=os.environ["SCREPRO_RUN_ID"])
    holder = tempfile.TemporaryDirectory(prefix="screpro-")
    return Run(notebook, tier=tier, folder=Path(holder.name), run_id="interactive", owner=holder)
