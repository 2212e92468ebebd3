"""Pages and parts of pages that are written from the records, so that nobody types a number.

Each function returns MyST text; `write_pages` puts them under ``book/generated``. Text from a record goes
through `escape`, so whatever a title or a method is called, it is shown and not interpreted.
"""

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screpro import paths
from screpro.book_myst import escape, pipe_table
from screpro.book_values import DOCUMENTS, values_page
from screpro.errors import ScreproError

if TYPE_CHECKING:
    import pandas as pd

    from screpro.records import Claim, Verdict

__all__ = ["PAGES", "PAPERS", "states", "write_pages"]

PAPERS = ("scdiff", "scldm", "perturbdiff")

#: files under ``book/generated``: whole pages (in ``_toc.yml``) and parts that pages include
PAGES = (
    *(f"{paper}_items.md" for paper in PAPERS),
    *(f"{paper}_values.md" for paper in PAPERS),
    "summary.md",
    "claims.md",
    "data.md",
    "status.md",
)

KINDS = {
    "table": "Tables",
    "figure": "Figures",
    "ablation": "Ablations",
    "claim": "Claims",
    "equation": "Equations",
}


# --- the index of a paper ----------------------------------------------------------------------------------


def states() -> dict[tuple[str, str], dict[str, str]]:
    """How far every item of the papers is, by (document, id): ``data/paper/state.toml``.

    Returns
    -------
    dict
        ``{"state": "done" | "not yet" | "drawing", "page": ..., "anchor": ...}``; the page where done, the
        anchor where the page has a target for this item.

    Raises
    ------
    ScreproError
        A state is none of the three.
    """
    raw = tomllib.loads((paths.root() / "data" / "paper" / "state.toml").read_text(encoding="utf-8"))
    found = {}
    for document, items in raw.items():
        if document == "schema":
            continue
        for item, state in items.items():
            if isinstance(state, dict) and "page" in state and set(state) <= {"page", "anchor"}:
                found[document, item] = {"state": "done", **state}
            elif state in ("not yet", "drawing"):
                found[document, item] = {"state": state}
            else:
                raise ScreproError(
                    "An item of state.toml is done (a page, perhaps an anchor), not yet, or a drawing.",
                    got=f"{document}, {item}: {state!r}",
                    fix='write "not yet", "drawing" or { page = "...", anchor = "..." }',
                )
    return found


def items_part(paper: str) -> str:
    """Every table, figure, ablation, claim and equation of one paper with its state."""
    from screpro.records import inventory

    every, state = inventory(), states()
    verdicts = {claim.id: decided.word for claim, decided in _claims(paper)}
    out = []
    for document, (belongs, name) in DOCUMENTS.items():
        if belongs != paper:
            continue
        level = "###" if document == paper else "####"
        if document != paper:
            out.append(f"### {escape(name)}\n")
        for kind, title in KINDS.items():
            rows = every[(every["paper"] == document) & (every["kind"] == kind)].to_dict("records")
            if not rows:
                continue
            own = {row["id"]: state[document, row["id"]] for row in rows}
            marks = [each["state"] for each in own.values()]
            open_ = len(marks) - marks.count("drawing")
            out.append(f"{level} {title}: {marks.count('done')} of {open_} done\n")
            out.append(_items_table(kind, rows, own, verdicts))
    return "\n".join(out)


def _items_table(kind: str, rows: list[dict], state: dict[str, dict], verdicts: dict[str, str]) -> str:
    third = {"claim": "From", "equation": "How it is used here"}.get(kind, "Data sets in the paper")
    column = {"equation": "smallest-honest-reproduction"}.get(kind, "datasets")
    cells = []
    for row in rows:
        name, other = row["id"], row[column]
        label = f"{{ref}}`{name} <claim-{name.lower()}>`" if name in verdicts else f"**{escape(name)}**"
        line = [label, escape(row["title"]), "" if other == "-" else escape(other), _state(state[name])]
        if kind == "claim":
            line.append(f"{{verdict}}`{verdicts[name]}`" if name in verdicts else "")
        cells.append(line)
    return pipe_table(["Item", "What it is", third, "State"] + ["Verdict"] * (kind == "claim"), cells)


def _state(state: dict[str, str]) -> str:
    badge = f"{{state}}`{state['state']}`"
    if "anchor" in state:
        return f"{badge} {{ref}}`see <{state['anchor']}>`"
    return f"{badge} {{doc}}`see </{state['page']}>`" if "page" in state else badge


# --- claims ------------------------------------------------------------------------------------------------


def _claims(paper: str | None = None) -> list[tuple["Claim", "Verdict"]]:
    from screpro.records import load_claims, load_results, verdict

    @cache  # many claims are decided on the rows of one page
    def rows(of: str, page: str) -> "pd.DataFrame":
        return load_results(of, page)

    def decided(claim: "Claim") -> "Verdict":
        page = claim.test.get("page")
        return verdict(claim, rows(claim.paper.split("-")[0], page) if page else None)

    return [(claim, decided(claim)) for claim in load_claims(paper)]


def claims_part() -> str:
    """The ledger: every claim, how it is decided, and what came out."""
    decided, out = _claims(), []
    for document, (_, name) in DOCUMENTS.items():
        own = [(claim, result) for claim, result in decided if claim.paper == document]
        if own:
            out.append(f"## {escape(name)}\n")
        for claim, result in own:
            facts = {
                "From": claim.item,
                "Decided by": claim.rule,
                "Smallest experiment": claim.experiment,
                "What came out": result.evidence,
            }
            out.append(f"(claim-{claim.id.lower()})=")
            title = f"{{verdict}}`{result.word}` **{escape(claim.id)}** {escape(claim.statement)}"
            out.append(f":::{{dropdown}} {title}\n{_facts(facts)}:::\n")
    return "\n".join(out)


def _facts(facts: dict[str, str]) -> str:
    return "".join(f"{term}\n: {escape(text)}\n\n" for term, text in facts.items() if text)


def summary_part() -> str:
    """Counts for the front page: items by state, claims by verdict."""
    from screpro.records import inventory
    from screpro.records.claims import WORDS

    every, state, decided = inventory().to_dict("records"), states(), _claims()
    done, words = [], []
    for paper in PAPERS:
        marks = [
            state[item["paper"], item["id"]]["state"]
            for item in every
            if DOCUMENTS[item["paper"]][0] == paper and item["kind"] in ("table", "figure", "ablation")
        ]
        done.append(f"{marks.count('done')} of {len(marks) - marks.count('drawing')}")
        words.append([result.word for claim, result in decided if DOCUMENTS[claim.paper][0] == paper])
    head = ["", *(f"{{doc}}`{DOCUMENTS[paper][1]} </book/{paper}/index>`" for paper in PAPERS)]
    rows = [["Tables, figures and ablations done", *done]]
    rows += [[f"Claims {{verdict}}`{word}`", *(str(own.count(word)) for own in words)] for word in WORDS]
    return pipe_table(head, rows, right=1)


# --- data and status ---------------------------------------------------------------------------------------


def data_page() -> str:
    """Every data set of the registry: what it is, where it comes from, what to mind."""
    from screpro.data import registry

    kinds = {
        "embedded": "Ships with an installed package",
        "repository": "Small real sets, downloaded from a pinned commit",
        "paper": "Data sets of the papers",
        "prepared": "Small real sets without a public recipe",
    }
    out = [
        "# Data\n",
        "Every data set that the papers use, and those that stand in for them here. `screpro data list` prints "
        "this table, `screpro data get NAME` brings a set and checks its sha256. No cells are stored in this "
        "repository. A number counts as a reproduction only on the data set that the paper measured it on; on "
        "any other, the page says *stand-in*.\n",
    ]
    for kind, title in kinds.items():
        own = [entry for entry in registry.entries().values() if entry.kind == kind]
        if own:
            out.append(f"## {title}\n")
            rows = [[f"`{e.name}`", escape(e.title), _uses(e), _count(e.cells), _count(e.genes)] for e in own]
            out.append(pipe_table(["Name", "What it is", "Used for", "Cells", "Genes"], rows, right=3))
            out += [_data_details(entry) for entry in own]
    return "\n".join(out)


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f") if number else "not stated"


def _uses(entry: Any) -> str:
    said = [f"{DOCUMENTS[u.paper][1]}: {u.dataset} ({', '.join(u.items)})" for u in entry.used_in]
    said += [f"stand-in for {name}" for name in entry.stands_in_for]
    return escape("; ".join(said))


def _data_details(entry: Any) -> str:
    """A folded box with everything else the registry knows about one data set."""
    labels = ", ".join(f"{ours} (column {theirs})" for ours, theirs in entry.labels.items())
    facts = {
        "Source": entry.source,
        "Accession": entry.accession,
        "Licence": entry.licence,
        "Citation": entry.citation,
        "DOI": entry.doi,
        "Labels": labels,
        "Split": entry.split,
        "Preprocessing": entry.preprocessing,
        "How to get it": entry.obtain,
        "Mind": "; ".join(entry.cautions),
    }
    return f":::{{dropdown}} {escape(entry.name)}\n{_facts(facts)}:::\n"


def status_part() -> str:
    """What was run to make this copy of the book: one row per notebook page, from its manifest."""
    from screpro import book

    rows = []
    for notebook in book.notebooks():
        manifest = _manifest(notebook)
        facts = [
            manifest["tier"],
            manifest["started"],
            f"{manifest['wall_seconds']:.0f}",
            f"{manifest['peak_memory_mib']:.0f}",
            f"{manifest['device']} ({manifest['device_name']})",
            manifest["threads"],
            (manifest["commit"] or "none")[:10] + (", with local changes" if manifest["dirty"] else ""),
        ]
        rows.append([f"{{doc}}`/notebooks/{notebook}`", *map(escape, facts)])
    head = ["Page", "Tier", "Started (UTC)", "Seconds", "Peak MiB", "Device", "Threads", "Commit"]
    return pipe_table(head, rows)


def _manifest(notebook: str) -> dict[str, Any]:
    """Manifest of the run that the page of ``paper/name`` shows."""
    from screpro import book
    from screpro.records import manifest

    executed = json.loads(book.executed_path(notebook).read_bytes())
    return manifest.read(paths.runs_dir() / executed["metadata"]["screpro"]["run_id"])


def write_pages() -> list[Path]:
    """Write everything under ``book/generated`` and return the paths."""
    texts = {f"{paper}_items.md": items_part(paper) for paper in PAPERS}
    texts |= {f"{paper}_values.md": values_page(paper) for paper in PAPERS}
    texts |= {
        "summary.md": summary_part(),
        "claims.md": claims_part(),
        "data.md": data_page(),
        "status.md": status_part(),
    }
    folder = paths.root() / "book" / "generated"
    for name in PAGES:
        with paths.atomic_path(folder / name) as aside:
            aside.write_text(texts[name], encoding="utf-8")
    return [folder / name for name in PAGES]
