"""The metric atlas: the table of contents and the pages hold every metric of the catalogue, and nothing else."""

import importlib.util
import re

import pytest
import yaml

from screpro import book_atlas, paths
from screpro.book_atlas import metric_page, metrics_part, pages, sections
from screpro.metrics.catalogue import FAMILIES, Metric, catalogue

ROOT = paths.root()
METRICS = catalogue()
_spec = importlib.util.spec_from_file_location("screpro_book", ROOT / "book" / "_ext" / "screpro_book.py")
ext = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ext)

DOC = """Middle of the values; compare `other` and ``n``.

    Formula
    -------
    $$\\frac{1}{n} \\sum_i x_i$$

    Parameters
    ----------
    x, y : array
        (n,) values | numbers.

        More of `other`.
    seed
        Of the draw.

    Returns
    -------
    float
        The mean.

    Examples
    --------
    By hand 2.

    >>> middle([1, 2, 3])
    2.0

    And again:
    >>> 1
    1
    """


def test_table_of_contents_lists_every_metric_in_the_order_of_the_catalogue():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    (atlas,) = (chapter for chapter in chapters if chapter["file"] == "book/metric_atlas")
    assert [each["file"] for each in atlas["sections"]] == [f"book/generated/metrics/{name}" for name in METRICS]
    assert pages() == ["metrics.md", *(f"metrics/{name}.md" for name in METRICS)]


def test_a_page_is_the_docstring():
    def middle(x, y, *, seed=0):
        pass

    middle.__doc__, middle.__module__ = DOC, "screpro.metrics.middle"
    page = metric_page(Metric("middle", "Middle <1>", "denoising", "closer to 0.5", middle))
    assert page.startswith("# Middle \\<1\\>\n\nMiddle of the values; compare `other` and ``n``.\n")
    assert "closer to 0.5 is better" in page.lower() and "middle(x, y, *, seed=0)\n```" in page
    assert "## Formula\n\n$$\\frac{1}{n} \\sum_i x_i$$\n" in page
    assert "`x`, `y`\n: array. (n,) values | numbers.\n\n  More of `other`.\n\n`seed`\n: Of the draw.\n" in page
    assert "## Result\n\n`float`\n: The mean.\n" in page
    assert "By hand 2.\n\n```pycon\n>>> middle([1, 2, 3])\n2.0\n```\n" in page
    assert "And again:\n\n```pycon\n>>> 1\n1\n```\n" in page
    heads = re.findall("^## (.*)$", page, re.MULTILINE)
    assert heads == ["Formula", "Parameters", "Result", "Worked example"]


def test_sections_are_split_at_their_underlines():
    found = sections(DOC)
    assert list(found) == ["", "Formula", "Parameters", "Returns", "Examples"]
    assert (
        found[""] == "Middle of the values; compare `other` and ``n``." and found["Returns"] == "float\n    The mean."
    )


@pytest.mark.parametrize("name", METRICS)
def test_page_of_every_metric(name):
    page = metric_page(METRICS[name])
    heads = re.findall("^##? (.*)$", page, re.MULTILINE)
    assert len(set(heads)) == len(heads) and heads[1] == "Formula" and heads[-1] == "Worked example"
    # dollars come in pairs, or a formula swallows the text after it
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    assert len(re.findall(r"(?<!\\)\$", prose)) % 2 == 0
    for link in re.findall(r"\{doc\}`[^`<]*<([^>]*)>`", page):
        assert link in METRICS and link != name
    for source in re.findall(r"\{src\}`([^`]*)`", page):
        assert ext.locate(ROOT, source), source


def test_table_has_every_metric_once_under_its_family():
    parts = re.split("^## (.*)$", metrics_part(), flags=re.MULTILINE)
    for family, text in zip(parts[1::2], parts[2::2], strict=True):
        linked = re.findall(r"</book/generated/metrics/(\w+)>", text)
        assert linked == [name for name, metric in METRICS.items() if metric.family == family.lower()]
        for line in text.splitlines():
            if "{doc}" in line:
                cells = re.split(r"(?<!\\)\|", line)[1:-1]
                assert len(cells) == 4 and all(cell.strip() for cell in cells) and len(cells[3]) < 160
    assert [name.lower() for name in parts[1::2]] == list(FAMILIES)


def test_pages_are_written_where_the_contents_look_for_them(tmp_path, monkeypatch):
    (tmp_path / "_toc.yml").write_text((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    written = book_atlas.write_pages()
    assert written == [tmp_path / "book" / "generated" / page for page in pages()]
    assert all(path.is_file() for path in written)
