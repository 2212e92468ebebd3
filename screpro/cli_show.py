"""Rows on a terminal: a table for people, JSON for programs."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["STDOUT", "plain", "show"]

STDOUT = "-"
"""Names standard output where a file may be named."""


def show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print rows as JSON, or as a table with the columns of the first row."""
    if as_json:
        print(json.dumps(plain(rows), indent=1, ensure_ascii=False))
        return
    if not rows:
        print("nothing to show")
        return
    columns = list(rows[0])
    text = [[_text(row.get(c)) for c in columns] for row in rows]
    if not sys.stdout.isatty():
        widths = [max(len(c), *(len(line[i]) for line in text)) for i, c in enumerate(columns)]
        for line in (columns, *text):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in text:
        table.add_row(*(Text(cell) for cell in line))
    Console().print(table)


def plain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with values that JSON has."""
    return [{str(k): _plain(v) for k, v in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    """A value JSON has: no numpy scalars; null where a number is missing, the text "inf" or "-inf" where it is that."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
