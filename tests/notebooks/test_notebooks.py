"""Every notebook source, without executing it."""

import ast
import importlib.util
import re
from pathlib import Path

import jupytext
import pytest

from screpro.records import parameters

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "notebooks").rglob("*.py"))
HEADER = """\
# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,slideshow,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
"""

pytestmark = pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")


def test_header_and_title(source):
    text = source.read_text(encoding="utf-8")
    assert text.startswith(HEADER)
    first = jupytext.read(source).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")


def test_pages_are_linked_as_pages(source):
    """A link to a source file would be its download."""
    assert not re.findall(r"\]\([\w/.]+\.(?:py|ipynb)\)", source.read_text(encoding="utf-8"))


def test_parameters_have_a_meaning_and_a_valid_default(source):
    sheet = parameters.read(source)
    names = {p.name for p in sheet.parameters}
    assert "tier" in names and names & {"dataset", "datasets"}  # one page counts every set there is
    assert all(p.meaning for p in sheet.parameters)
    parameters.resolve(sheet, {p.name: p.default for p in sheet.parameters})


def test_every_name_linked_to_code_exists(source):
    """What the role {src} would warn of when the book is rendered, after all pages have been executed."""
    spec = importlib.util.spec_from_file_location("screpro_book", ROOT / "book" / "_ext" / "screpro_book.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    named = re.findall(r"\{src\}`([^`]+)`", source.read_text(encoding="utf-8"))
    assert [name for name in named if extension.locate(ROOT, name.strip()) is None] == []


def test_every_figure_has_alt_text(source):
    """A cell that makes a figure says in words what it shows."""
    for cell in jupytext.read(source).cells:
        if cell.cell_type == "code" and re.search(r"^figure\b.* = ", cell.source, re.MULTILINE):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) > 40, cell.source[:80]


def test_three_exercises_with_hidden_solutions(source):
    text = "\n".join(cell.source for cell in jupytext.read(source).cells if cell.cell_type == "markdown")
    exercises = re.findall(r"\{exercise(?:-start)?\}\s*\n:label: (\S+)", text)
    solutions = re.findall(r"\{solution(?:-start)?\} (\S+)\s*\n:class: dropdown", text)
    assert len(exercises) >= 3 and sorted(exercises) == sorted(solutions)


def test_code_is_code_and_draws_no_global_random_numbers(source):
    for cell in jupytext.read(source).cells:
        if cell.cell_type == "code":
            ast.parse(re.sub(r"^(\s*)%", r"\1# %", cell.source, flags=re.MULTILINE).replace("    # %pip", "    pass  #"))
            assert not re.search(r"np\.random\.(?!default_rng|Generator)\w+\(", cell.source)


def test_it_speaks_of_where_we_differ_and_of_stand_ins(source):
    text = source.read_text(encoding="utf-8")
    assert "## Where we differ" in text
    assert "stand-in" in text
