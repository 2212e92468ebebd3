"""Notebook sources: finding them and splitting py:percent text into cells.

The split is done here, in a few lines, because checking parameters and printing lists must take a fraction
of a second; jupytext reads the same files when they are executed.
"""

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from screpro import paths
from screpro.errors import ScreproError

__all__ = ["Cell", "Source", "find", "merge", "names", "nearest", "read"]

_MARK = re.compile(r"^# %%(?P<rest>.*)$")
_TAGS = re.compile(r"tags=\[(?P<tags>[^\]]*)\]")


@dataclass(frozen=True)
class Cell:
    """One cell: ``kind`` is ``code`` or ``markdown``; ``line`` is where its text begins, counted from 1."""

    kind: str
    tags: tuple[str, ...]
    text: str
    line: int


@dataclass(frozen=True)
class Source:
    """A notebook source. ``name`` is ``<paper>/<stem>``; both come from the path."""

    path: Path
    text: str
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    @property
    def spelling(self) -> str:
        """What to call it on the command line: its name in the book, or its path."""
        return self.name if names().get(self.name) == self.path else str(self.path)

    @property
    def title(self) -> str:
        """Text of the first heading."""
        for cell in self.cells:
            if cell.kind == "markdown" and (found := re.search(r"^#\s*# (.+)$", cell.text, re.MULTILINE)):
                return found[1].strip()
        return self.name


def read(path: str | Path) -> Source:
    """Split a py:percent file into cells; what stands before the first ``# %%`` is its header."""
    path = Path(path).resolve()
    cells: list[Cell] = []
    kind, tags, first, lines = "", (), 0, []

    def close() -> None:
        if kind:
            cells.append(Cell(kind, tags, "\n".join(lines).strip("\n"), first))

    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if mark := _MARK.match(line):
            close()
            rest = mark["rest"]
            kind = "markdown" if "[markdown]" in rest or "[raw]" in rest else "code"
            found = _TAGS.search(rest)
            tags = tuple(re.findall(r"[\w-]+", found["tags"])) if found else ()
            first, lines = number + 1, []
        else:
            lines.append(line)
    close()
    return Source(path, text, tuple(cells))


def names() -> dict[str, Path]:
    """Every notebook of the book: ``<paper>/<name>`` -> path of its source."""
    folder = paths.root() / "notebooks"
    return {f"{p.parent.name}/{p.stem}": p for p in sorted(folder.glob("*/*.py"))}


def nearest(word: str, valid: Iterable[str]) -> str:
    """`` (did you mean X?)`` or nothing."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def find(notebook: str | Path) -> Path:
    """Path of a notebook given as ``scdiff/annotation`` or as a path to its ``.py``.

    Raises
    ------
    ScreproError
        There is no such notebook; names the nearest one.
    """
    known = names()
    text = str(notebook)
    if text in known:
        return known[text]
    path = Path(text).expanduser()
    if path.suffix == ".py" and path.is_file():
        return path.resolve()
    guess = re.sub(r"^(\./)?notebooks/|\.(py|ipynb)$", "", text)
    if guess in known:
        return known[guess]
    raise ScreproError(
        "NOTEBOOK is the name of a notebook, like scdiff/annotation, or a path to its .py",
        got=text + nearest(guess, known),
        fix="choose one that `screpro list` shows",
    )


def merge(text: str, values: Mapping[str, Any]) -> str:
    """The parameters cell with `values` in place of its literals; annotations and comments stay."""
    lines = text.splitlines()
    for statement in reversed(ast.parse(text).body):
        name = statement.target.id
        literal, start, end = statement.value, statement.value.lineno - 1, statement.value.end_lineno - 1
        if ast.literal_eval(literal) == values[name]:
            continue
        head = lines[start].encode()[: literal.col_offset].decode()
        tail = lines[end].encode()[literal.end_col_offset :].decode()
        lines[start : end + 1] = [head + repr(values[name]) + tail]
    return "\n".join(lines)
