"""Definitions of cell types: there is one for every type of the registered sets, and none is shared."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from screpro import data
from screpro.data import definitions
from screpro.data.definitions import NULL_TEXT, define, read_ontology
from screpro.errors import ScreproError

# labels of the registered sets, whose files are not always at hand
LABELS = {
    "mca_gut": """B cell|Chief cell|Dendritic cell|Endocrine cell|Endothelial cell|Enterocyte|Enteroendocrine cell|
        Epithelial cell|Erythroid cell|Fibroblast|Goblet cell|Macrophage|Mast cell|Paneth cell|Parietal cell|Pit cell|
        Plasmacytoid dendritic cell|Proliferating epithelial cell|Smooth muscle cell|Squamous epithelium|T cell|
        Tuft cell""",
    "haber_sie_1k": """Stem|Enterocyte.Progenitor.Early|TA.Early|Enterocyte.Mature.Proximal|Goblet|TA.G2|TA.G1|
        Enterocyte.Immature.Distal|Enterocyte.Progenitor.Late|Enterocyte.Progenitor|Endocrine|Paneth|Tuft|
        Enterocyte.Immature.Proximal|Enterocyte.Mature.Distal""",
    "worm_embryo_neurons": "ADL|AWC|AWA|AWB|ASG|ADL_parent|Neuroblast_ASG_AWA|ASG_AWA|AWC_ON",
    "pbmc_10x_3tech": "T_CD4|Mono_CD14|T_CD8|B|NK|Mono_CD16|DC|MK|HSC",
    "pbmc_facs_zheng": """CD19+ B|CD34+|CD56+ NK|CD8+ Cytotoxic T|CD4+ T Helper2|CD4+/CD45RO+ Memory|CD4+/CD25 T Reg|
        CD8+/CD45RA+ Naive Cytotoxic|CD4+/CD45RA+/CD25- Naive T|CD14+ Monocyte""",
    "pbmc3k": """CD4 T cells|CD14+ Monocytes|B cells|CD8 T cells|NK cells|FCGR3A+ Monocytes|Dendritic cells|
        Megakaryocytes""",
    "pancreas_endocrinogenesis": """Ductal|Ngn3 high EP|Beta|Pre-endocrine|Alpha|Ngn3 low EP|Epsilon|Delta""",
}


@pytest.fixture(scope="module")
def content():
    path = Path(definitions.__file__).parent / "definitions.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_no_text_is_empty_or_shared(content):
    texts = list(content["definition"].values())
    assert len(set(texts)) == len(texts) and NULL_TEXT not in texts
    assert all(8 <= len(text.split()) <= 45 and text.endswith(".") for text in texts)


def test_labels_lead_to_definitions(content):
    known = [name.casefold() for name in content["definition"]]
    assert len(set(known)) == len(known)
    assert {name.casefold() for name in content["label"].values()} <= set(known)
    # a label that is also a definition's name would hide it; one differing in case only is that name
    clashes = [label for label, name in content["label"].items() if label.casefold() in known]
    assert not clashes


def test_the_embedded_set_is_complete():
    types = sorted(set(data.load("pbmc68k_reduced").obs["cell_type"].astype(str)))
    assert not define(types).missing


@pytest.mark.parametrize("name", LABELS)
def test_every_registered_set_is_complete(name):
    types = [label.strip() for label in LABELS[name].split("|")]
    assert not define(types).missing


@pytest.mark.original
@pytest.mark.slow
@pytest.mark.parametrize("name", ["haber_sie_1k", "pbmc_10x_3tech"])
def test_the_labels_above_are_those_of_the_files(name):
    if not os.environ.get("SCREPRO_DATA"):
        pytest.skip("needs SCREPRO_DATA")
    found = set(data.load(name).obs["cell_type"].astype(str))
    assert found == {label.strip() for label in LABELS[name].split("|")}


def test_names_ignore_case_and_an_unknown_type_is_its_own_text():
    found = define([" goblet CELL ", "Zymogenic oddity"])
    assert found.texts == [define(["Goblet"]).texts[0], "Zymogenic oddity"]
    assert found.missing == ["Zymogenic oddity"]


def test_two_labels_of_one_type_are_refused():
    with pytest.raises(ScreproError, match="Goblet, Goblet cell"):
        define(["Goblet", "Goblet cell", "Tuft"])


OBO = """format-version: 1.2

[Term]
id: CL:0000236
name: B cell
def: "A lymphocyte of \\"B\\" lineage." [CL:CVS, "a source"]
def: "A second one." []

[Term]
id: CL:0000001
name: old cell
def: "Gone." []
is_obsolete: true

[Term]
id: CL:0000002
name: bare cell

[Typedef]
id: part_of
name: part of
def: "Not a cell." []
"""


def graph(nodes):
    return json.dumps({"graphs": [{"nodes": nodes}]})


def node(name, text, **meta):
    return {"id": "x", "lbl": name, "meta": {"definition": {"val": text}, **meta}}


def test_both_files_of_an_ontology_are_read(tmp_path):
    (tmp_path / "cl.obo").write_text(OBO)
    assert read_ontology(tmp_path / "cl.obo") == {"B cell": 'A lymphocyte of "B" lineage.'}
    nodes = [node("B cell", "A lymphocyte."), node("old", "Gone.", deprecated=True), {"id": "y"}, {"lbl": "bare"}]
    (tmp_path / "cl.json").write_text(graph(nodes))
    found = read_ontology(tmp_path / "cl.json")
    assert found == {"B cell": "A lymphocyte."}
    assert define(["b cell", "T cell"], ontology=found).texts == ["A lymphocyte.", define(["T cell"]).texts[0]]


@pytest.mark.parametrize("text", ["", "[]", '{"graphs": 3}', graph([])], ids=["empty", "list", "number", "no terms"])
def test_what_is_no_ontology_is_refused(tmp_path, text):
    for name in ("cl.json", "cl.obo"):
        (tmp_path / name).write_text(text)
        with pytest.raises(ScreproError, match="ontology"):
            read_ontology(tmp_path / name)
    with pytest.raises(ScreproError, match="ontology"):
        read_ontology(tmp_path / "absent.obo")
