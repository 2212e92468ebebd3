"""What `describe` says is what reading and the checks do."""

import json
import shlex
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.data import describe as describe_module
from screpro.data.columns import gene_names, group_column
from screpro.data.describe import Description, describe
from screpro.data.own import read_h5ad
from screpro.errors import ScreproError

N, M = 24, 10


def make(**columns) -> AnnData:
    counts = np.random.default_rng(0).poisson(1.5, size=(N, M)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(columns, index=[f"cell {i}" for i in range(N)])
    return AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"GENE{g}" for g in range(M)]))


def uses(found: Description) -> dict[str, bool]:
    return {row["task"]: row["possible"] for row in found.to_rows()}


def full() -> AnnData:
    return make(
        celltype=["a", "b", "c"] * 8,
        treatment=(["ctrl"] * 3 + ["drug x"] * 3) * 4,
        donor_id=["d1"] * 12 + ["d2"] * 12,
        target_gene=["non-targeting", "GENE1", "GENE2", "GENE3"] * 6,
        n_counts=np.arange(N),
        score=np.linspace(0, 1, N),
    )


def test_a_file_that_can_do_everything(tmp_path):
    path = tmp_path / "my cells.h5ad"
    adata = full()
    adata.write_h5ad(path)
    found = describe(path)
    assert (found.n_cells, found.n_genes, found.counts_in, found.cells_checked) == (N, M, "X", N)
    dense = adata.X.toarray()
    assert found.counts_per_cell == np.median(dense.sum(1))
    assert found.genes_per_cell == np.median((dense > 0).sum(1))
    assert found.sparsity == pytest.approx((dense == 0).mean())
    roles = {column.name: (column.role, column.n_classes, column.control) for column in found.columns}
    assert roles == {
        "celltype": ("label", 3, None),
        "treatment": ("condition", 2, "ctrl"),
        "donor_id": ("batch", 2, None),
        "target_gene": ("perturbation", 4, "non-targeting"),
    }
    assert all(uses(found).values())
    command = f"screpro run scdiff/annotation -p dataset '{path}' -p label_key celltype"
    assert found.tasks[0].command == command
    text = str(found)
    assert command in text and f"{N} cells x {M} genes" in text
    given = {use.task: use.command for use in found.tasks}
    assert given["imputation"].startswith("screpro run scdiff/imputation")
    assert given["perturbation across cell types"] == (
        f"screpro run scldm/perturbation -p dataset '{path}' -p type_key celltype -p perturbation_key treatment "
        "-p control ctrl"
    )
    assert given["gene perturbation"].endswith("-p perturbation_key target_gene -p control non-targeting")
    assert given["several batches"] is None
    json.dumps(found.to_dict())
    assert not found.problems


def test_an_annotation_needs_a_label_column():
    found = describe(make(treatment=["x", "y"] * 12))
    assert uses(found) == {
        "annotation": False,
        "imputation": True,
        "generation": True,
        "perturbation across cell types": False,
        "gene perturbation": False,
        "several batches": False,
    }


def test_lines_stand_for_cell_types_where_there_are_none():
    found = describe(make(line=["k", "k", "r", "r"] * 6, guide=["NT", "GENE1", "GENE1", "NT"] * 6), dataset="mine")
    across = found.tasks[3]
    assert across.possible and across.reason == "'guide' against 'NT' in 2 classes of 'line'"
    assert across.command.endswith("-p type_key line -p perturbation_key guide -p control NT")


@pytest.mark.parametrize("task", sorted(describe_module.PAGES))
def test_commands_name_parameters_that_their_page_has(task):
    from screpro.records import parameters, sources

    sheet = parameters.read(sources.find(describe_module.PAGES[task]))
    command = next(use.command for use in describe(full(), dataset="mine").tasks if use.task == task)
    words = shlex.split(command)[3:]
    parameters.resolve(sheet, zip(words[1::3], words[2::3], strict=True))


def test_reasons_say_what_is_missing():
    def reason(task: str, **columns) -> str:
        return next(use.reason for use in describe(make(**columns)).tasks if use.task == task)

    assert "fewer: 'lone'" in reason("annotation", cell_type=["lone"] + ["a"] * 23)
    assert "1: 'a'" in reason("annotation", cell_type=["a"] * 24)
    across = "perturbation across cell types"
    assert "no column of conditions" in reason(across, cell_type=["a", "b"] * 12)
    assert "looks like a control" in reason(across, cell_type=["a", "b"] * 12, condition=["x", "y"] * 12)
    confounded = {"cell_type": ["a", "b"] * 12, "condition": ["ctrl", "y"] * 12}
    assert "fewer than two" in reason(across, **confounded)
    assert "looks like a control" in reason("gene perturbation", perturbation=["x", "y", "z"] * 8)
    assert "fewer than two" in reason("gene perturbation", perturbation=["x", "control"] * 12)


def test_gene_names_as_conditions_are_perturbations():
    found = describe(make(condition=["control", "GENE1", "GENE2+GENE3", "GENE4"] * 6))
    assert found.columns[0].role == "perturbation" and uses(found)["gene perturbation"]


def test_named_cell_types_go_before_numbered_clusters():
    found = describe(make(leiden=["0", "1"] * 12, bulk_labels=["T", "B"] * 12), dataset="pbmc")
    assert found.tasks[0].command == "screpro run scdiff/annotation -p dataset pbmc -p label_key bulk_labels"


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_large_files_are_sampled(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(describe_module, "AT_MOST", 1)
    real = describe_module.Stored.blocks
    monkeypatch.setattr(
        describe_module.Stored, "blocks", lambda self, at_most=None: real(self, at_most=at_most, size=15)
    )
    adata = full()
    adata.X = adata.X.toarray() if layout == "dense" else adata.X.asformat(layout)
    adata.write_h5ad(tmp_path / "large.h5ad")
    found = describe(tmp_path / "large.h5ad")
    assert found.counts_in == "X" and all(uses(found).values())
    if layout == "csc":
        assert found.counts_per_cell is None
    else:
        assert 0 < found.cells_checked < N and "looked at" in str(found)


def test_problems_are_reported_not_raised(tmp_path):
    adata = make(cell_type=["a", "b"] * 12)
    adata.X = adata.X / 3
    adata.var_names = ["GENE0"] * M
    with warnings.catch_warnings(action="ignore"):
        adata.write_h5ad(tmp_path / "bad.h5ad")
    found = describe(tmp_path / "bad.h5ad")
    assert found.counts_in is None and not any(uses(found).values())
    assert len(found.problems) == 2 and "not a whole number" in found.problems[0]
    assert "GENE0 (10 times)" in found.problems[1]
    assert "problems" in str(found)

    whole = (tmp_path / "bad.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    found = describe(tmp_path / "cut.h5ad")
    assert "cannot be read" in found.problems[0] and not any(uses(found).values())


def test_only_a_file_that_is_not_there_raises(tmp_path):
    for path in (tmp_path / "nothing.h5ad", tmp_path):
        with pytest.raises(ScreproError):
            describe(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@given(
    labels=st.lists(st.sampled_from(["a", "b", "", None]), min_size=N, max_size=N),
    scale=st.sampled_from([1.0, 1.0, 0.3, -1.0, np.nan]),
    twice=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_annotation_is_possible_exactly_where_reading_works(scratch, labels, scale, twice):
    path = scratch / "cells.h5ad"
    adata = make(cell_type=pd.Categorical(labels))
    adata.X = adata.X * scale
    adata.var_names = ["GENE1", *adata.var_names[1:]] if twice else adata.var_names
    with warnings.catch_warnings(action="ignore"):
        adata.write_h5ad(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            read_h5ad(path)
        readable = True
    except ScreproError:
        readable = False
    assert uses(describe(path))["annotation"] == readable


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["ENSG00000141510", "ENSG00000012048.5"], "Ensembl identifiers, human"),
        (["ENSMUSG00000059552"], "Ensembl identifiers, mouse"),
        (["ENSDARG00000035559"], "Ensembl identifiers, another species"),
        (["TP53", "HLA-DRA", "C1orf112"], "symbols, human"),
        (["Trp53", "Cd74", "0610005C13Rik"], "symbols, mouse"),
        (["0", "1", "2"], "numbers, not names"),
        (["hlh-16", "msa-1"], "names of no known kind"),
        ([], "none"),
    ],
)
def test_kind_of_gene_names(names, kind):
    assert gene_names(pd.Index(names, dtype=object)) == kind


@pytest.mark.parametrize(
    ("name", "values", "role"),
    [
        ("n_genes", list(range(40)), None),
        ("barcode", [f"b{i}" for i in range(400)], None),
        ("score", np.linspace(0, 1, 40), None),
        ("constant", ["x"] * 40, None),
        ("louvain", ["0", "1"] * 20, "label"),
        ("cluster_id", [0, 1, 2, 3] * 10, "label"),
        ("orig.ident", ["x", "y"] * 20, "batch"),
        ("disease", ["normal", "sick"] * 20, "condition"),
        ("state_of_cells", ["untreated", "heated"] * 20, "condition"),
        ("sex", ["f", "m"] * 20, "group"),
        ("sgRNA", ["NT", "x", "y", "z"] * 10, "perturbation"),
    ],
)
def test_role_of_a_column(name, values, role):
    column = group_column(name, pd.Series(values), set())
    assert (column and column.role) == role


def test_a_set_of_the_registry_says_its_licence_first():
    found = describe_module.describe_set("pbmc68k_reduced")
    assert (found.n_cells, found.n_genes) == (700, 765) and uses(found)["annotation"]
    assert found.registry["licence"].startswith("10x Genomics data: CC BY 4.0")
    assert {"title", "source", "citation", "split", "stands in for"} < set(found.registry)
    lines = str(found).splitlines()
    assert lines[1].startswith("  title: ") and "  licence: " in str(found).split("700 cells")[0]
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scdiff_jurkat", "`screpro data get scdiff_jurkat` downloads it"),
        ("scdiff_brain", "cellxgene.cziscience.com"),
        ("worm_embryo_neurons", "give the path of an .h5ad"),
    ],
)
def test_a_set_that_is_not_here_is_described_without_bringing_it(monkeypatch, tmp_path, name, said):
    from screpro.data import registry

    monkeypatch.setenv("SCREPRO_CACHE", str(tmp_path))
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path))
    monkeypatch.setattr(registry, "load", None)
    found = describe_module.describe_set(name)
    assert said in found.registry["not here"] and found.registry["licence"] and not found.tasks
    assert "can be used for" not in str(found) and said in str(found)


def test_a_name_that_the_registry_does_not_have_and_a_damaged_set(monkeypatch):
    from screpro.data import registry

    with pytest.raises(ScreproError, match="pbmc68k_reduced"):
        describe_module.describe_set("pbmc68k_reducd")

    def damaged(name):
        raise ScreproError("It has its hash.", got="another", fix="get it again")

    monkeypatch.setattr(registry, "load", damaged)
    found = describe_module.describe_set("pbmc68k_reduced")
    assert "It has its hash" in found.problems[0] and found.registry["licence"]


def test_a_column_of_an_unknown_name_is_offered_as_label_key():
    found = describe(make(ct=["x", "y"] * 12))
    assert not found.tasks[0].possible and found.tasks[0].reason.endswith("run with -p label_key ct")
