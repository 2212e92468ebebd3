"""The papers' data sets that come as archives and tables, each on a tiny file of that format written here."""

import dataclasses
import gzip
import io
import runpy
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp

from screpro import data
from screpro.data import fetch, paper_sets
from screpro.errors import ScreproError

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_paper_sets.py"))))
CELLS, GENES = tiny.CELLS, tiny.GENES
cache, counts = tiny.cache, tiny.counts  # fixtures
an_adata, log1p, same_counts, supply = tiny.an_adata, tiny.log1p, tiny.same_counts, tiny.supply


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
