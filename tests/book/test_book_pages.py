"""Generated pages: nothing of the inventory, of the papers' tables or of the claims is missing."""

import csv
import re
from collections import Counter
from itertools import pairwise

import pytest
import yaml

from screpro import book_atlas, book_pages, book_values, paths
from screpro.book_myst import escape
from screpro.data import registry
from screpro.errors import ScreproError
from screpro.records import inventory, load_claims
from screpro.records.claims import WORDS

ROOT = paths.root()


def toc_files() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    parts = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *(c["file"] for c in parts), *(s["file"] for c in parts for s in c.get("sections", ()))]


def test_every_item_of_the_papers_has_a_state_and_no_other_has():
    items = [(row["paper"], row["id"]) for row in inventory().to_dict("records")]
    assert set(book_pages.states()) == set(items)
    assert len(items) == len(set(items))


def named_in(item: str, text: str) -> bool:
    """Whether a page names a table or figure, or every equation of an item such as "eq. 8, 39" or "eq. 12-14"."""
    one = r"\d+[a-z]?"
    run = rf"({one}(?:(?:, | and | to |-){one})*)"
    if not item.startswith("eq. "):
        kind, number = item.split()
        return any(number in spanned(found) for found in re.findall(rf"\b{kind}s? {run}\b", text))
    runs = re.findall(rf"\b(?:[Ee]quations?|[Ee]qs?\.)\s+{run}", text)
    runs += re.findall(rf"^# \| {run} \|", text, re.MULTILINE)  # the first cell of a row of a table of equations
    return spanned(item.removeprefix("eq. ")) <= {number for found in runs for number in spanned(found)}


def spanned(run: str) -> set[str]:
    """The single numbers of "2a, 8 and 31 to 33"."""
    found = set()
    for part in re.split(r", | and ", run):
        first, _, last = part.replace(" to ", "-").partition("-")
        found |= {str(n) for n in range(int(first), int(last) + 1)} if last else {first}
    return found


def test_how_a_page_names_an_item():
    text = "Figures 17 to 19, Table 2a and eqs. 8, 31 and 40 to 42\n# | 45 to 47 | means |\nequation 12"
    for item in ("Figure 17", "Figure 18", "Table 2a", "eq. 8, 31", "eq. 40-42", "eq. 45-47", "eq. 12"):
        assert named_in(item, text), item
    for item in ("Figure 1", "Figure 20", "Table 2b", "Table 2", "eq. 40-43", "eq. 44", "eq. 1"):
        assert not named_in(item, text), item


def test_every_finished_item_is_on_its_page():
    """At its anchor where it has one; a table, figure or equation without one is named in the text at least."""
    texts = {page: (ROOT / f"{page}.py").read_text(encoding="utf-8") for page in toc_files() if page.startswith("note")}
    lost = []
    for (paper, item), state in book_pages.states().items():
        if state["state"] != "done":
            continue
        text = texts[state["page"]]  # the page has to exist in any case
        if "anchor" in state:
            found = f"({state['anchor']})=" in text
        else:
            found = not item.startswith(("Table ", "Figure ", "eq. ")) or named_in(item, text)
        if not found:
            lost.append((paper, item, state["page"]))
    assert lost == []


def test_a_state_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    (tmp_path / "data" / "paper").mkdir(parents=True)
    (tmp_path / "data" / "paper" / "state.toml").write_text('[scdiff]\n"Table 1" = "almost"\n')
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    with pytest.raises(ScreproError, match="almost"):
        book_pages.states()


@pytest.mark.parametrize("paper", book_pages.PAPERS)
def test_index_lists_every_item_once(paper):
    text = book_pages.items_part(paper)
    for row in inventory().to_dict("records"):
        if book_values.DOCUMENTS[row["paper"]][0] == paper:
            assert f"| {escape(row['title'])} |" in text, row["id"]
    listed = [line for line in text.splitlines() if "{state}" in line]
    assert len(listed) == sum(book_values.DOCUMENTS[p][0] == paper for p in inventory()["paper"])


@pytest.mark.parametrize("paper", book_pages.PAPERS)
def test_values_page_shows_every_number_as_printed(paper):
    with (ROOT / "data" / "paper" / "values.csv").open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if book_values.DOCUMENTS[r["paper"]][0] == paper]
    page = book_values.values_page(paper).split("## Figure")[0]
    lines = page.splitlines()
    heads = [line for line, below in pairwise(lines) if below.startswith("| ---")]
    body = [line for line in lines if line.startswith("|") and line not in heads and "| ---" not in line]
    cells = [cell.strip() for line in body for cell in line.split("|")[2:-1]]
    assert Counter(filter(None, cells)) == Counter(book_values._number(r["mean"], r["spread"]) for r in rows)


def test_ledger_has_a_place_to_link_to_for_every_claim():
    text = book_pages.claims_part()
    assert re.findall(r"^\(claim-(.+)\)=$", text, re.MULTILINE) == [c.id.lower() for c in load_claims()]


def test_front_page_counts_every_claim():
    rows = [line.split("|")[1:-1] for line in book_pages.summary_part().splitlines() if "Claims" in line]
    assert [re.search("`(.*)`", row[0])[1] for row in rows] == list(WORDS)
    assert sum(int(cell) for row in rows for cell in row[1:]) == len(load_claims())


def test_data_page_names_every_data_set():
    text = book_pages.data_page()
    for name in registry.entries():
        assert f"| `{name}` |" in text


def test_pages_and_their_parts_exist_or_are_generated():
    generated = {f"book/generated/{name}" for name in (*book_pages.PAGES, *book_atlas.pages())}
    for name in toc_files():
        found = (ROOT / f"{name}.md").is_file() or (ROOT / f"{name}.py").is_file()
        assert found or f"{name}.md" in generated, name
    for page in (ROOT / "book").rglob("*.md"):
        for part in re.findall(r"\{include\} (\S+)", page.read_text(encoding="utf-8")):
            assert (page.parent / part).resolve().relative_to(ROOT).as_posix() in generated, (page, part)
