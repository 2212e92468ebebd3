"""The page with every number a paper prints, table by table, to the last digit as printed."""

import csv
from collections.abc import Callable, Iterable
from typing import Any

from screpro.book_myst import escape, pipe_table

__all__ = ["DOCUMENTS", "values_page"]

#: document of the inventory -> the book's paper it belongs to and how a reader knows it
DOCUMENTS = {
    "scdiff": ("scdiff", "scDiff"),
    "scldm": ("scldm", "scLDM"),
    "scldm-icml-notes": ("scldm", "scLDM, later version (from a published reading note)"),
    "perturbdiff": ("perturbdiff", "PerturbDiff"),
}
_ARROW = {"higher": "↑", "lower": "↓"}

Row = dict[str, str]


def values_page(paper: str) -> str:
    """MyST page with all tables of `paper`, and the values behind its figures where they are published."""
    from screpro.records import paper as printed

    name = DOCUMENTS[paper][1]
    titles = {(r["paper"], r["id"]): r["title"] for r in printed.inventory().to_dict("records")}
    out = [
        f"# {escape(name)}: the paper's numbers\n",
        "Every number of the paper's result tables, as printed there. The files are "
        "`data/paper/values.csv` and `figures.csv`; `records.paper_values()` reads them. An arrow says which "
        "direction is better; ± is the spread the paper prints, whatever it was taken over.\n",
    ]
    values, points = _rows("values.csv"), _rows("figures.csv")
    for document, (belongs, label) in DOCUMENTS.items():
        if belongs != paper:
            continue
        prefix = f"{label}, " if document != paper else ""
        for item, table in _groups((r for r in values if r["paper"] == document), "table"):
            out.append(f"## {escape(_title(prefix + item, titles.get((document, item))))}\n")
            out += _value_tables(table)
    for figure, block in _groups((p for p in points if p["paper"] == paper), "figure"):
        out.append(f"## {escape(_title(figure, titles.get((paper, figure))))}\n")
        out.append(_points_table(block))
    return "\n".join(out)


def _rows(name: str) -> list[Row]:
    # read as text: "0.000" is what the paper prints, 0.0 is not
    from screpro.records import paper as printed

    with (printed.paper_dir() / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _groups(rows: Iterable[Row], column: str) -> list[tuple[str, list[Row]]]:
    """Rows by the value of `column`, in the order of first appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return list(found.items())


def _title(item: str, said: str | None) -> str:
    return f"{item}: {said}" if said else item


def _distinct(rows: list[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def _metric(row: Row) -> str:
    return f"{escape(row['metric'])} {_ARROW.get(row['direction'], '')}".strip()


def _value_tables(rows: list[Row]) -> list[str]:
    """One table per setting where there is one metric; one per setting and data set where there are more."""
    out = []
    for setting, part in _groups(rows, "setting"):
        if len(_distinct(part, "metric")) == 1:
            out.append(f"{escape(setting)}; {_metric(part[0])}\n")
            out.append(_pivot(part, "dataset", lambda row: escape(row["dataset"])))
            continue
        for dataset, block in _groups(part, "dataset"):
            out.append(f"{escape(setting)}; **{escape(dataset)}**\n")
            out.append(_pivot(block, "metric", _metric))
    return out


def _pivot(rows: list[Row], across: str, head: Callable[[Row], str]) -> str:
    heads = {row[across]: head(row) for row in rows}
    cells = {(row["method"], row[across]): _number(row["mean"], row["spread"]) for row in rows}
    body = [[escape(m), *(cells.get((m, c), "") for c in heads)] for m in _distinct(rows, "method")]
    return pipe_table(["Method", *heads.values()], body, right=1)


def _number(mean: str, spread: str) -> str:
    text = f"{escape(mean)} ± {escape(spread)}" if spread else escape(mean)
    # a minus sign, not a hyphen that may break off at the end of a line
    return text.replace("\\-", "\u2212")


def _points_table(rows: list[Row]) -> str:
    """Values behind a figure: a row per place on its axes, a column per method."""
    names = {"dataset": "Data set", "n_shot": "Shots", "n_cell_types": "Types", "metric": "Metric"}
    where = [column for column in names if len(_distinct(rows, column)) > 1]
    methods = _distinct(rows, "method")
    body = []
    for _, block in _groups(({**r, "at": "\0".join(r[c] for c in where)} for r in rows), "at"):
        cells: dict[str, list[str]] = {}
        for row in block:
            cells.setdefault(row["method"], []).append(_number(row["mean"], row["sd"]))
        body.append([escape(block[0][c]) for c in where] + ["; ".join(cells.get(m, [])) for m in methods])
    said = "" if "metric" in where else f"{_metric(rows[0])}. "
    said += "± is the standard deviation over the authors' runs, where there is one.\n\n"
    heads: list[Any] = [names[c] for c in where] + [escape(m) for m in methods]
    return said + pipe_table(heads, body, right=len(where))
