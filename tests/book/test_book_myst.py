"""Text from records is shown, never interpreted."""

import html
import re

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

from screpro import paths
from screpro.book_myst import escape, pipe_table

PARSE = yaml.safe_load((paths.root() / "_config.yml").read_text(encoding="utf-8"))["parse"]
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" |\\"))


def shown(markdown: str) -> str:
    """What a reader sees of a MyST text, with the extensions the book uses."""
    config = MdParserConfig(enable_extensions=set(PARSE["myst_enable_extensions"]))
    rendered = create_md_parser(config, RendererHTML).render(markdown)
    return html.unescape(re.sub(r"<[^>]*>", "", rendered))


@settings(max_examples=150, deadline=None)
@given(TEXT.filter(str.strip))
def test_escaped_text_is_shown_as_it_is(text):
    assert shown(escape(text)).strip() == " ".join(text.split())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(TEXT, min_size=3, max_size=3), min_size=1, max_size=4))
def test_no_cell_can_break_its_table(cells):
    table = pipe_table(["one", "two", "three"], [[escape(c) for c in row] for row in cells], right=1)
    lines = [line.strip() for line in shown(table).splitlines() if line.strip()]
    wanted = [" ".join(cell.split()) for row in cells for cell in row]
    assert lines == ["one", "two", "three", *filter(None, wanted)]
