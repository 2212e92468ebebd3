"""The local Sphinx extension, without Sphinx."""

import importlib.util
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from screpro import paths
from screpro.records.claims import WORDS

ROOT = paths.root()
_spec = importlib.util.spec_from_file_location("screpro_book", ROOT / "book" / "_ext" / "screpro_book.py")
ext = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ext)

PIECES = st.sampled_from(["text", "<table><tr><td>", "</td></tr></table>", "<p>", "</p>", '<div class="x">', "</div>"])
TABLE = "<table><tr><td>1</td></tr></table>"


def test_every_verdict_and_state_has_a_badge():
    assert {*WORDS, "done", "not yet", "drawing"} == set(ext.BADGES)


def test_badges_differ_by_shape_where_they_differ_by_colour():
    of_kind = {}
    for kind, shape in ext.BADGES.values():
        of_kind.setdefault(shape, set()).add(kind)
    assert all(len(kinds) == 1 for kinds in of_kind.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_boxing_only_adds_boxes_and_does_it_once(html):
    boxed = ext.box_tables(html)
    without = boxed.replace(ext._BOX, "")
    assert re.sub("</div>", "", without) == re.sub("</div>", "", html)
    assert ext.box_tables(boxed) == boxed


def test_outermost_tables_get_a_box_unless_they_have_one():
    assert ext.box_tables(TABLE) == f"{ext._BOX}{TABLE}</div>"
    nested = f"<table><tr><td>{TABLE}</td></tr></table>"
    assert ext.box_tables(nested) == f"{ext._BOX}{nested}</div>"
    own = f'<div class="screpro-table" tabindex="0">{TABLE}</div>'
    assert ext.box_tables(own) == own


def test_names_are_found_by_reading():
    path, first, last = ext.locate(ROOT, "screpro.errors.ScreproError")
    lines = (ROOT / path).read_text().splitlines()
    assert lines[first - 1].startswith("class ScreproError")
    assert first < last <= len(lines)
    path, first, _ = ext.locate(ROOT, "screpro.errors.ScreproError.__init__")
    assert "def __init__" in (ROOT / path).read_text().splitlines()[first - 1]
    assert ext.locate(ROOT, "screpro.errors")[1:] == (0, 0)


def test_names_that_are_gone_are_not_found():
    assert ext.locate(ROOT, "screpro.errors.NoSuchThing") is None
    assert ext.locate(ROOT, "screpro.no_such_module") is None
