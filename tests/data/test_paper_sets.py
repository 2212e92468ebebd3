"""Every format the papers' data sets come in, on a tiny file of that format written here."""

import dataclasses
import gzip
import io
import tarfile
import zipfile

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from screpro import data
from screpro.data import fetch, paper_sets, registry
from screpro.errors import ScreproError

CELLS, GENES = 24, 9


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SCREPRO_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def counts():
    rng = np.random.default_rng(3)
    matrix = rng.poisson(1.5, (CELLS, GENES)).astype(np.float32)
    matrix[:, 0] = 1  # no cell and no gene is empty
    matrix[0] = 1
    return matrix


def log1p(matrix):
    return np.log1p(matrix / matrix.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)


def an_adata(x, obs=None, var=None, **parts):
    cells, genes = x.shape
    obs = pd.DataFrame(obs or {}, index=[f"cell{i}" for i in range(cells)])
    var = pd.DataFrame(var or {}, index=[f"ENSG{i:03d}" for i in range(genes)])
    return anndata.AnnData(X=sp.csr_matrix(x), obs=obs, var=var, **parts)


def supply(name, cache, **contents):
    """Put files where the cache expects those of `name`; contents are bytes or AnnData, by position or name."""
    for file, content in zip(data.get(name).files, contents.values(), strict=True):
        target = cache / file.place
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            content.write_h5ad(target)


def same_counts(adata, expected):
    assert adata.X.format == "csr" and adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), expected)
    assert adata.var_names.is_unique and adata.obs_names.is_unique
    assert len(adata.uns["data_hash"]) == 64 and isinstance(adata.uns["source"], str)


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


def tenx_archive(counts, suffix="", genes_file="genes.tsv", folder="filtered_matrices_mex/hg19") -> bytes:
    def packed(raw: bytes) -> bytes:
        return gzip.compress(raw) if suffix else raw

    matrix = io.BytesIO()
    scipy.io.mmwrite(matrix, sp.coo_matrix(counts.T.astype(int)))
    genes = "".join(f"ENSG{i:03d}\tG{i}\n" for i in range(counts.shape[1]))
    barcodes = "".join(f"ACGT{i}-1\n" for i in range(counts.shape[0]))
    files = {"matrix.mtx": matrix.getvalue(), genes_file: genes.encode(), "barcodes.tsv": barcodes.encode()}
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, raw in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}{suffix}")
            info.size = len(packed(raw))
            archive.addfile(info, io.BytesIO(packed(raw)))
    return whole.getvalue()


@pytest.mark.parametrize(("suffix", "genes_file"), [("", "genes.tsv"), (".gz", "features.tsv")])
def test_tenx_archive(cache, counts, suffix, genes_file):
    supply("scdiff_jurkat", cache, one=tenx_archive(counts, suffix, genes_file))
    adata = data.load("scdiff_jurkat")
    same_counts(adata, counts)
    assert list(adata.var_names[:2]) == ["G0", "G1"] and list(adata.obs_names[:1]) == ["ACGT0-1"]
    assert set(adata.obs["cell_type"]) == {"Jurkat"}


def test_tenx_h5(tmp_path, counts):
    path = tmp_path / "filtered_feature_bc_matrix.h5"
    matrix = sp.csr_matrix(counts.astype(np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = np.array([GENES, CELLS])
        group["barcodes"] = np.array([f"ACGT{i}-1" for i in range(CELLS)], dtype="S")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:03d}" for i in range(GENES)], dtype="S")
        features["name"] = np.array([f"G{i}" for i in range(GENES)], dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * GENES, dtype="S")
        features["genome"] = np.array(["GRCh38"] * GENES, dtype="S")
    adata = paper_sets.READERS["tenx_archive"](data.get("scdiff_jurkat"), {path.name: path})
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert list(adata.var_names[:2]) == ["G0", "G1"] and adata.var["gene_id"].iloc[0] == "ENSG000"


@pytest.mark.parametrize("spoil", [lambda raw: raw[: len(raw) // 2], lambda raw: b"<html>", lambda raw: b""])
def test_damaged_archive_is_one_clear_error(cache, counts, spoil):
    supply("scdiff_jurkat", cache, one=spoil(tenx_archive(counts)))
    with pytest.raises(ScreproError, match="scdiff_jurkat"):
        data.load("scdiff_jurkat")


def kang_files(counts, *, order=1):
    """Half control, half stimulated; the first barcode occurs in both samples, as barcodes do."""
    half = CELLS // 2
    barcodes = [[f"AAAC{i:02d}-1" for i in range(half)], [f"AAAC{i * 2:02d}-1" for i in range(half)]]
    seen = set(barcodes[0])
    names = barcodes[0] + [each + "1" if each in seen else each for each in barcodes[1]][::order]
    lines = ["tsne1\ttsne2\tind\tstim\tcluster\tcell\tmultiplets"]
    for i, name in enumerate(names):
        stim = "ctrl" if i < half else "stim"
        kind = "NA" if i == 5 else ["CD4 T cells", "B cells"][i % 2]
        lines.append(f"{name}\t0.1\t0.2\t{[101, 107][i % 2]}\t{stim}\t3\t{kind}\tsinglet")
    files = []
    for block, own in zip((counts[:half], counts[half:]), barcodes, strict=True):
        matrix = io.BytesIO()
        scipy.io.mmwrite(matrix, sp.coo_matrix(block.T.astype(int)))
        files += [gzip.compress(matrix.getvalue()), gzip.compress("".join(f"{b}\n" for b in own).encode())]
    genes = "".join(f"ENSG{i:03d}\tG{i}\n" for i in range(GENES))
    files += [gzip.compress(genes.encode()), gzip.compress(("\n".join(lines) + "\n").encode())]
    return {f"file{i}": raw for i, raw in enumerate(files)}


def without_filters(name):
    """The entry, less the cut-offs that no tiny file could pass."""
    entry = data.get(name)
    kept = {key: value for key, value in entry.options.items() if not key.startswith("min_")}
    return dataclasses.replace(entry, options=kept)


def test_kang_from_geo(cache, counts):
    supply("scdiff_pbmc_kang", cache, **kang_files(counts))
    adata = paper_sets.read(without_filters("scdiff_pbmc_kang"))
    same_counts(adata, counts)
    assert list(adata.obs["condition"]) == ["ctrl"] * 12 + ["stim"] * 12
    assert set(adata.obs["donor"]) == {"101", "107"} and set(adata.obs["batch"]) == {"singlet"}
    assert adata.obs["cell_type"].iloc[5] == "unassigned"
    hashes = {file.name: fetch.known_hash(file) for file in data.get("scdiff_pbmc_kang").files}
    assert adata.uns["data_hash"] == fetch.combined_hash(hashes)


def test_kang_filters_are_the_protocols(cache):
    rng = np.random.default_rng(0)
    wide = (rng.random((CELLS, 700)) < 0.9).astype(np.float32)
    wide[:, -1] = 0
    wide[:4, -1] = 1  # seen in 4 cells: dropped
    wide[3] = 0
    wide[3, :499] = 1  # 499 genes: dropped
    files = kang_files(wide)
    files["file4"] = gzip.compress("".join(f"ENSG{i:03d}\tG{i}\n" for i in range(700)).encode())
    supply("scdiff_pbmc_kang", cache, **files)
    adata = data.load("scdiff_pbmc_kang")
    assert adata.shape == (CELLS - 1, 699)


def test_kang_cells_in_another_order_are_refused(cache, counts):
    supply("scdiff_pbmc_kang", cache, **kang_files(counts, order=-1))
    with pytest.raises(ScreproError, match="order"):
        data.load("scdiff_pbmc_kang")


@pytest.mark.parametrize("corner", [True, False])
def test_umi_table_reads_labels_from_the_cell_names(cache, counts, corner):
    conditions = ["Control", "Salmonella", "Hpoly.Day10", "Hpoly.Day3"]
    cells = [
        f"B{i % 3}_ACGT{i:02d}_{conditions[i % 4]}_{['TA.Early', 'Goblet', 'Enterocyte_x'][i % 3]}"
        for i in range(CELLS)
    ]
    lines = ["\t".join(([""] if corner else []) + cells)]
    lines += [f"Gene{g}\t" + "\t".join(str(int(v)) for v in counts[:, g]) for g in range(GENES)]
    table = gzip.compress(("\n".join(lines) + "\n").encode())
    supply("scdiff_hpoly", cache, one=table)
    adata = data.load("scdiff_hpoly")
    kept = [i for i in range(CELLS) if i % 4 in (0, 2)]
    same_counts(adata, counts[kept])
    assert list(adata.obs_names) == [cells[i] for i in kept]
    assert set(adata.obs["condition"]) == {"Control", "Hpoly.Day10"}
    assert set(adata.obs["cell_type"]) == {"TA.Early", "Goblet", "Enterocyte_x"}
    assert list(adata.var_names[:2]) == ["Gene0", "Gene1"]
    same_counts(data.load("scdiff_salmonella"), counts[[i for i in range(CELLS) if i % 4 in (0, 1)]])


def gears_zip(counts, *, with_counts=True, member="norman/perturb_processed.h5ad") -> bytes:
    path = io.BytesIO()
    obs = {
        "condition": ["ctrl", "KLF1+ctrl", "ctrl+KLF1", "KLF1+MAP2K6"] * 6,
        "cell_type": ["K562"] * CELLS,
        "control": [1, 0, 0, 0] * 6,
    }
    content = an_adata(log1p(counts), obs, {"gene_name": [f"G{i}" for i in range(GENES)]})
    if with_counts:
        content.layers["counts"] = sp.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        anndata.io.write_elem(file, "/", content)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, path.getvalue())
        archive.writestr("norman/data_pyg/cell_graphs.pkl", b"never opened")
        archive.writestr("__MACOSX/norman/perturb_processed.h5ad", b"resource fork")
    return whole.getvalue()


def test_gears_conditions_become_perturbations(cache, counts):
    supply("scdiff_norman", cache, one=gears_zip(counts))
    adata = data.load("scdiff_norman")
    same_counts(adata, counts)
    assert list(adata.obs["perturbation"][:4]) == ["control", "KLF1", "KLF1", "KLF1+MAP2K6"]
    assert list(adata.obs["condition"][:4]) == ["control", "perturbed", "perturbed", "perturbed"]
    assert list(adata.obs["condition_published"][:2]) == ["ctrl", "KLF1+ctrl"]
    assert list(adata.var_names[:2]) == ["G0", "G1"]
    np.testing.assert_array_equal(adata.layers["log_published"].toarray(), log1p(counts))
    place = cache / data.get("scdiff_norman").files[0].place
    assert {each.name for each in place.parent.iterdir()} == {"norman.zip", "norman.zip.lock.json"}


def test_gears_archive_without_counts_or_without_the_file(cache, counts):
    supply("scdiff_norman", cache, one=gears_zip(counts, with_counts=False))
    with pytest.raises(ScreproError, match="layers/counts"):
        data.load("scdiff_norman")
    supply("scdiff_dixit", cache, one=gears_zip(counts, member="dixit/other.h5ad"))
    with pytest.raises(ScreproError, match="perturb_processed"):
        data.load("scdiff_dixit")


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
        if entry.loader != "h5ad" or entry.name in met:
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
