"""What the pages on all three papers promise stands on them, read from their sources."""

import re
from pathlib import Path

import jupytext
import pytest

PAGES = Path(__file__).resolve().parents[2] / "notebooks" / "together"
NUMBERS = {"Four": 4, "Five": 5, "Six": 6}


def _sections(page: str) -> dict[str, str]:
    """Text and code of every section of a page by its title."""
    cells = jupytext.read(PAGES / f"{page}.py").cells
    parts = re.split(r"^## (.*)$", "\n\n".join(cell.source for cell in cells), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


KERNELS = {title: text for title, text in _sections("kernels").items() if re.match(r"\d", title)}


@pytest.mark.parametrize("title", KERNELS)
def test_every_kernel_is_shown_counted_checked_and_said_where_it_runs(title):
    text = KERNELS[title]
    shown = text.count('show("Naive"')
    assert shown == text.count("agree(") == text.count("counted(")
    assert "measured(" in text
    prose = "\n".join(line for line in text.splitlines() if "show(" not in line)
    assert "On a GPU" in prose or "Triton" in prose
    if 'show("Triton' not in text:
        assert "no Triton kernel" in prose


def test_as_many_names_are_listed_as_the_heading_says():
    (title,) = (title for title in _sections("metric_names") if title.endswith("names"))
    listed = re.findall(r"^\*\*[^*]+\*\*", _sections("metric_names")[title], re.MULTILINE)
    assert len(listed) == NUMBERS[title.split()[0]]
