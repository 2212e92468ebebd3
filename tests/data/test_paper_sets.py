"""The papers' data sets that come as h5ad files, each on a tiny file with the columns it declares."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from screpro import data
from screpro.data import fetch, paper_sets, registry
from screpro.errors import ScreproError

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_paper_sets.py"))))
CELLS, GENES = tiny.CELLS, tiny.GENES
cache, counts = tiny.cache, tiny.counts  # fixtures
an_adata, log1p, same_counts, supply = tiny.an_adata, tiny.log1p, tiny.same_counts, tiny.supply


def test_scvi_pbmc_takes_gene_symbols(cache, counts):
    symbols = [f"GENE{i}" for i in range(GENES - 1)] + ["GENE0"]
    obs = {"str_labels": ["B cells", "NK cells"] * 12, "batch": [0, 1] * 12}
    supply("scdiff_pbmc12k", cache, one=an_adata(counts, obs, {"gene_symbols": symbols}))
    adata = data.load("scdiff_pbmc12k")
    same_counts(adata, counts)
    assert list(adata.var_names[:2]) == ["GENE0", "GENE1"] and adata.var_names[-1] == "GENE0-1"
    assert list(adata.var["gene_id"][:1]) == ["ENSG000"]
    assert set(adata.obs["cell_type"]) == {"B cells", "NK cells"} and set(adata.obs["batch"]) == {"0", "1"}
    assert adata.uns["data_hash"] == data.data_hash("scdiff_pbmc12k") != "unrecorded"


def test_openproblems_counts_are_a_layer_and_fractions_are_cut(cache, counts):
    obs = {"celltype": ["alpha", "beta"] * 12, "tech": ["inDrop1"] * 10 + ["celseq"] * 14}
    stored = counts.copy()
    stored[12:] += 0.004 * (counts[12:] > 0)  # some technologies publish corrected counts
    stored[12, 3] = 0.6
    content = an_adata(log1p(counts), obs, layers={"counts": sp.csr_matrix(stored)})
    supply("scdiff_pancreas", cache, one=content)
    expected = counts.copy()
    expected[12, 3] = 0
    adata = data.load("scdiff_pancreas")
    same_counts(adata, expected)
    assert list(adata.obs["batch"]) == obs["tech"]
    assert (adata.X.data > 0).all()  # what was cut to zero is not stored
    # the same download serves the leaderboard's sets
    same_counts(data.load("openproblems_pancreas"), expected)
    same_counts(data.load("openproblems_pancreas_indrop1"), expected[:10])


def test_openproblems_1k_pbmc_has_constant_labels(cache, counts):
    supply("scdiff_pbmc1k", cache, one=an_adata(counts))
    adata = data.load("scdiff_pbmc1k")
    same_counts(adata, counts)
    assert set(adata.obs["cell_type"]) == {"unknown"} and set(adata.obs["batch"]) == {"0"}


@pytest.mark.parametrize("symbols_in_raw", [True, False])
def test_cellxgene_counts_are_in_raw_and_rare_types_go(cache, counts, symbols_in_raw):
    symbols = {"feature_name": [f"S{i}" for i in range(GENES)]}
    obs = {"cell_type": ["common"] * 13 + ["rare"] * 11, "donor_id": ["d1", "d2"] * 12}
    content = an_adata(log1p(counts), obs, symbols)
    content.raw = an_adata(counts, obs, symbols if symbols_in_raw else None)
    supply("scdiff_liver", cache, one=content)
    adata = data.load("scdiff_liver")
    same_counts(adata, counts)  # 11 cells are enough
    assert list(adata.var_names) == symbols["feature_name"]
    assert (adata.obs["batch"] == adata.obs["donor"]).all()

    obs["cell_type"] = ["common"] * 14 + ["rare"] * 10
    content = an_adata(log1p(counts), obs, symbols)
    content.raw = an_adata(counts, obs, symbols)
    supply("scdiff_brain", cache, one=content)
    adata = data.load("scdiff_brain")
    same_counts(adata, counts[:14])  # at most 10 are dropped
    assert list(adata.obs["cell_type"].cat.categories) == ["common"]


def test_cellxgene_file_without_raw_counts_is_refused(cache, counts):
    obs = {"cell_type": ["a"] * CELLS, "donor_id": ["d"] * CELLS}
    supply("scdiff_liver", cache, one=an_adata(counts, obs, {"feature_name": list("abcdefghi")}))
    with pytest.raises(ScreproError, match="raw"):
        data.load("scdiff_liver")


def test_cfgen_train_and_test_become_a_split(cache, counts):
    def part(rows):
        content = an_adata(log1p(counts[rows]), {"tissue": ["lung"] * len(rows)})
        content.layers["X_counts"] = sp.csr_matrix(counts[rows])
        return content

    supply("scldm_tabula_muris", cache, train=part(range(16)), test=part(range(16, CELLS)))
    adata = data.load("scldm_tabula_muris")
    same_counts(adata, counts)
    assert list(adata.obs["split"]) == ["train"] * 16 + ["test"] * 8
    assert set(adata.obs["cell_type"]) == {"lung"}

    # the dentate gyrus has its counts in X
    halves = [an_adata(counts[rows], {"clusters": ["GC"] * 12}) for rows in (range(12), range(12, CELLS))]
    supply("scldm_dentate_gyrus", cache, train=halves[0], test=halves[1])
    same_counts(data.load("scldm_dentate_gyrus"), counts)


def test_parts_with_different_genes_are_refused(cache, counts):
    first, second = an_adata(counts, {"clusters": ["a"] * CELLS}), an_adata(counts, {"clusters": ["a"] * CELLS})
    second.var_names = second.var_names[::-1]
    supply("scldm_dentate_gyrus", cache, train=first, test=second)
    with pytest.raises(ScreproError, match="same genes"):
        data.load("scldm_dentate_gyrus")


def test_parse_and_replogle_controls(cache, counts):
    obs = {"cell_type": ["CD4 Naive", "NK"] * 12, "cytokine": ["PBS", "IL-2", "IL-7"] * 8}
    supply("scldm_parse1m", cache, one=an_adata(counts, obs))
    adata = data.load("scldm_parse1m")
    same_counts(adata, counts)
    assert set(adata.obs["perturbation"]) == {"control", "IL-2", "IL-7"}

    obs = {"cell_line": ["hepg2"] * CELLS, "gene": ["non-targeting", "AARS"] * 12, "gem_group": [1, 2] * 12}
    one = an_adata(counts, obs)
    supply("scldm_replogle", cache, train=one, test=one)
    adata = data.load("scldm_replogle")
    assert set(adata.obs["perturbation"]) == {"control", "AARS"} and set(adata.obs["batch"]) == {"1", "2"}
    assert (adata.obs["condition"] == "control").sum() == CELLS


def test_perturbdiff_files_hold_log_values_and_say_so(cache, counts):
    obs = {"cell_line": ["k562"] * CELLS, "gene": ["non-targeting", "AARS"] * 12, "gem_group": ["1", "2"] * 12}
    chosen = np.array([True, False, True] * 3)
    content = an_adata(log1p(counts), obs, {"highly_variable": chosen})
    content.obsm["X_hvg"] = log1p(counts)[:, chosen]
    supply("perturbdiff_replogle", cache, one=content)
    adata = data.load("perturbdiff_replogle")
    assert adata.uns["values"] == "log1p"
    np.testing.assert_array_equal(adata.X.toarray(), log1p(counts)[:, chosen])
    assert list(adata.var_names) == ["ENSG000", "ENSG002", "ENSG003", "ENSG005", "ENSG006", "ENSG008"]


def test_perturbdiff_panel_without_names_and_scaled_values(cache, counts):
    obs = {"cell_line": ["k562"] * CELLS, "gene": ["AARS"] * CELLS, "gem_group": ["1"] * CELLS}
    content = an_adata(log1p(counts), obs)
    content.obsm["X_hvg"] = log1p(counts)[:, :4]
    supply("perturbdiff_replogle", cache, one=content)
    assert list(data.load("perturbdiff_replogle").var_names) == ["panel_0", "panel_1", "panel_2", "panel_3"]

    obs = {"cell_type": ["NK"] * CELLS, "cytokine": ["PBS"] * CELLS, "donor": ["Donor1"] * CELLS}
    content = an_adata(log1p(counts), obs)
    content.obsm["X_hvg"] = log1p(counts)[:, :4] - 3
    supply("perturbdiff_pbmc", cache, one=content)
    with pytest.raises(ScreproError, match="log1p"):
        data.load("perturbdiff_pbmc")


def test_every_paper_set_is_readable(cache, counts, tmp_path):
    """The h5ad entries not met above, each from a file with exactly the columns it declares."""
    met = {"scdiff_pbmc12k", "scdiff_pancreas", "scdiff_pbmc1k", "scdiff_liver", "scdiff_brain", "scldm_parse1m"}
    met |= {"scldm_tabula_muris", "scldm_dentate_gyrus", "scldm_replogle", "perturbdiff_replogle"}
    for entry in data.entries().values():
        if entry.loader != "h5ad" or entry.kind == "prepared" or entry.name in met:  # a prepared file is one file
            continue
        obs = {theirs: ["x", "y"] * 12 for theirs in entry.labels.values()}
        obs |= {column: [values[0]] * CELLS for column, values in entry.options.get("keep", {}).items()}
        if entry.control:
            obs[entry.labels["perturbation"]] = [entry.control, "P1"] * 12
        var = {entry.options["genes"]: [f"S{i}" for i in range(GENES)]} if "genes" in entry.options else None
        content = an_adata(counts, obs, var)
        content.raw = content.copy()
        for place in entry.options["counts"]:
            if place.startswith("layers/"):
                content.layers[place.removeprefix("layers/")] = sp.csr_matrix(counts)
        path = tmp_path / "content.h5ad"
        content.write_h5ad(path)
        raw = path.read_bytes()
        for file in entry.files:
            fetch.lock_path(file).unlink(missing_ok=True)  # entries that share a file bring different contents here
        supply(entry.name, cache, **{file.name: raw for file in entry.files})
        adata = data.load(entry.name)
        assert adata.n_obs == CELLS * len(entry.files), entry.name
        same_counts(adata[:CELLS], counts) if len(entry.files) == 1 else None
        assert set(entry.labels) <= set(adata.obs), entry.name
        if entry.control:
            assert set(adata.obs["perturbation"]) == {"control", "P1"}, entry.name


def test_missing_label_column_names_the_nearest(cache, counts):
    supply("scdiff_pbmc1k", cache, one=an_adata(counts))
    obs = {"cell_types": ["a"] * CELLS, "experiment_code": ["b"] * CELLS}
    supply("openproblems_cengen", cache, one=an_adata(counts, obs))
    with pytest.raises(ScreproError, match="cell_types"):
        data.load("openproblems_cengen")


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan])
def test_what_is_not_counts_is_refused(cache, counts, value):
    counts[2, 2] = value
    supply("scdiff_pbmc1k", cache, one=an_adata(counts))
    with pytest.raises(ScreproError, match="scdiff_pbmc1k"):
        data.load("scdiff_pbmc1k")


def test_truncated_h5ad_is_one_clear_error(cache, counts, tmp_path):
    path = tmp_path / "whole.h5ad"
    an_adata(counts).write_h5ad(path)
    supply("scdiff_pbmc1k", cache, one=path.read_bytes()[:4000])
    with pytest.raises(ScreproError):
        data.load("scdiff_pbmc1k")


def test_labels_of_a_perturbation_column():
    plain = paper_sets._plain
    assert [plain(each, "ctrl") for each in ("ctrl", "A+ctrl", "ctrl+A", "A+B")] == ["control", "A", "A", "A+B"]
    assert plain("[('DMSO_TF', 0.0, 'uM')]", "[('DMSO_TF', 0.0, 'uM')]") == "control"
    assert registry.get("scdiff_norman").control == "ctrl"
