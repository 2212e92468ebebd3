"""Definitions of cell types in words, for conditioners that read text (scDiff, section 4.2.1).

The paper takes them from the Cell Ontology. For the sets at hand, whose labels are not ontology terms, the package
carries its own (``definitions.toml``); `read_ontology` reads the ontology's files for sets that use its terms.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from screpro.errors import ScreproError

__all__ = ["NULL_TEXT", "Definitions", "define", "read_ontology"]

NULL_TEXT = "A cell"
"""Text of the null label (the authors')."""


class Definitions(NamedTuple):
    """One text for each of K types, in their order."""

    texts: list[str]
    missing: list[str]  # types without a definition; their text is their name


def define(types: Sequence[str], *, ontology: Mapping[str, str] | None = None) -> Definitions:
    """Texts of `types`: from `ontology` if given, else from the package; a type unknown there is its own text.

    Names are compared without regard to case and surrounding blanks.

    Raises
    ------
    ScreproError
        If two of the types have the same text: no conditioner could tell them apart.
    """
    known = _packaged() | {_key(name): text for name, text in (ontology or {}).items()}
    texts = [known.get(_key(name), name) for name in types]
    if len(set(texts)) < len(texts):
        double = [name for name, text in zip(types, texts, strict=True) if texts.count(text) > 1]
        raise ScreproError(
            "Every cell type has a text of its own.",
            got=f"one text for {', '.join(double)}",
            fix="merge the labels that mean the same type, or rename one",
        )
    return Definitions(texts, [name for name in types if _key(name) not in known])


def read_ontology(path: str | Path) -> dict[str, str]:
    """Definitions by name from a release of the Cell Ontology: ``cl.obo`` or ``cl-full.json`` (OBO graphs).

    The authors used release 2023-08-24. Obsolete terms and terms without a definition are left out.

    Raises
    ------
    ScreproError
        If the file is missing, is neither of the two, or holds no definition.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        found = _graph(json.loads(text)) if path.suffix == ".json" else _obo(text)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _not_ontology(path, str(error)) from None
    if not found:
        raise _not_ontology(path, "no term with a definition")
    return found


def _not_ontology(path: Path, what: str) -> ScreproError:
    return ScreproError(
        "An ontology is an .obo file, or a .json file of OBO graphs.", got=f"{path}: {what}", fix="give cl.obo"
    )


def _graph(content: dict) -> dict[str, str]:
    nodes = [node for graph in content["graphs"] for node in graph["nodes"]]
    metas = [(node["lbl"], node.get("meta", {})) for node in nodes if "lbl" in node]
    return {name: meta["definition"]["val"] for name, meta in metas if "definition" in meta and not _old(meta)}


def _old(meta: dict) -> bool:
    return bool(meta.get("deprecated"))


def _obo(text: str) -> dict[str, str]:
    found = {}
    for stanza in text.split("\n[")[1:]:  # the first part is the file's head
        lines = stanza.splitlines()
        fields = dict(line.partition(": ")[::2] for line in reversed(lines))  # of repeated fields the first counts
        if lines[0] == "Term]" and "name" in fields and "def" in fields and fields.get("is_obsolete") != "true":
            quoted = re.match(r'"((?:[^"\\]|\\.)*)"', fields["def"])  # "text with \" escaped" [sources]
            if quoted:
                found[fields["name"]] = quoted[1].replace('\\"', '"')
    return found


def _key(name: str) -> str:
    return name.strip().casefold()


@cache
def _packaged() -> dict[str, str]:
    """Definition by label."""
    content = tomllib.loads((Path(__file__).parent / "definitions.toml").read_text(encoding="utf-8"))
    found = {_key(name): text for name, text in content["definition"].items()}
    return found | {_key(label): found[_key(name)] for label, name in content["label"].items()}
