"""Two small pieces of MyST that every generated page is made of: literal text and a table."""

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["escape", "pipe_table"]

_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def escape(value: Any) -> str:
    """Text that MyST shows exactly as it is: every ASCII punctuation mark gets a backslash."""
    text = " ".join(str(value).split())
    return "".join(f"\\{mark}" if mark in _PUNCTUATION else mark for mark in text)


def pipe_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: int | None = None) -> str:
    """Markdown table from cells that are MyST already.

    Parameters
    ----------
    head
        Column titles.
    rows
        Cells, one sequence a row, as long as `head`.
    right
        Index of the first right-aligned (number) column; none by default.
    """
    align = ["---:" if right is not None and at >= right else "---" for at in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, align, *rows)) + "\n"
