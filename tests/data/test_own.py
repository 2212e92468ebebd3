"""A file that nobody prepared: the counts are found, and whatever is wrong is one error."""

import hashlib
import os
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.data.own import check_h5ad, read_h5ad
from screpro.errors import ScreproError

N, M = 12, 8


def make(seed: int = 0) -> AnnData:
    """A good file in memory: counts, labels, batches, and things that screpro does not need."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3.0, size=(N, M)).astype(np.float32)
    obs = pd.DataFrame(
        {"kind": ["b", "a", "c"] * 4, "lane": [1, 2] * 6, "n_counts": counts.sum(1)},
        index=[f"cell {i}" for i in range(N)],
    )
    return AnnData(
        sp.csr_matrix(counts),
        obs=obs,
        var=pd.DataFrame({"length": 1.0}, index=[f"GENE{g}" for g in range(M)]),
        obsm={"X_pca": rng.standard_normal((N, 2))},
    )


def written(adata: AnnData, folder: Path, name: str = "mine.h5ad") -> Path:
    adata.write_h5ad(folder / name)
    return folder / name


@pytest.fixture(scope="module")
def good_file(tmp_path_factory) -> Path:
    return written(make(), tmp_path_factory.mktemp("good"))


def test_a_good_file_gets_the_shape_of_a_registry_set(good_file):
    adata = read_h5ad(good_file, label_key="kind", batch_key="lane")
    assert sp.issparse(adata.X) and adata.X.format == "csr" and adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), make().X.toarray())
    assert list(adata.obs["cell_type"].cat.categories) == ["a", "b", "c"]
    assert list(adata.obs["cell_type"][:3]) == ["b", "a", "c"]
    assert list(adata.obs["batch"].cat.categories) == ["1", "2"]
    assert adata.uns["data_hash"] == hashlib.sha256(good_file.read_bytes()).hexdigest()
    assert adata.uns["source"].endswith("mine.h5ad (counts from X)")
    assert "n_counts" in adata.obs and "length" in adata.var
    read_h5ad(str(good_file), label_key=None)


def norm(matrix):
    return sp.csr_matrix(np.log1p(matrix.toarray() / 3))


def arrange(where: str) -> AnnData:
    """The same counts in different places; whatever is beside them is normalised, or other counts."""
    adata = make()
    counts = adata.X.copy()
    if where == "layers['counts']":
        adata.layers["counts"] = counts
        adata.X = counts * 2  # counts, too, but the named layer goes first
    elif where == "X":
        adata.layers["counts"] = norm(counts)
    elif where == "raw.X":
        adata.raw = adata.copy()
        adata = adata[:, :3].copy()
        adata.X = norm(adata.X)
    return adata


@pytest.mark.parametrize("where", ["layers['counts']", "X", "raw.X"])
def test_the_first_place_with_counts_is_used(tmp_path, where):
    adata = read_h5ad(written(arrange(where), tmp_path), label_key="kind")
    assert adata.uns["source"].endswith(f"(counts from {where})")
    np.testing.assert_array_equal(adata.X.toarray(), make().X.toarray())
    assert list(adata.var_names) == list(make().var_names)


@pytest.mark.parametrize("convert", [sp.csc_matrix, lambda x: x.toarray(), lambda x: x.toarray().astype(int)])
def test_every_layout_reads_the_same(tmp_path, convert):
    adata = make()
    adata.X = convert(adata.X)
    again = read_h5ad(written(adata, tmp_path), label_key="kind")
    np.testing.assert_array_equal(again.X.toarray(), make().X.toarray())


def test_no_x_at_all(tmp_path):
    adata = make()
    adata.layers["counts"] = adata.X
    adata.X = None
    assert "layers['counts']" in read_h5ad(written(adata, tmp_path), label_key="kind").uns["source"]


def test_no_counts_anywhere_names_every_place_and_a_layer_that_has_them(tmp_path):
    adata = make()
    adata.layers["counts"], adata.layers["umi"] = norm(adata.X), adata.X
    adata.X = norm(adata.X)
    with pytest.raises(ScreproError) as error:
        read_h5ad(written(adata, tmp_path), label_key="kind")
    assert "X: value at" in error.value.got and "layers['counts']: value at" in error.value.got
    assert "adata.layers['umi']" in error.value.fix


def test_a_file_in_the_layout_of_older_versions(tmp_path):
    """Before anndata 0.7, tables were compound data sets and sparse matrices had other attributes."""
    path = tmp_path / "old.h5ad"
    counts = make().X
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", counts.shape
        group["data"], group["indices"], group["indptr"] = counts.data, counts.indices, counts.indptr
        cells = [(f"c{i}".encode(), b"ab"[i % 2 : i % 2 + 1]) for i in range(N)]
        file["obs"] = np.array(cells, dtype=[("index", "S5"), ("kind", "S5")])
        file["var"] = np.array([(f"G{g}".encode(),) for g in range(M)], dtype=[("index", "S5")])
    with _silence():
        adata = read_h5ad(path, label_key="kind")
    np.testing.assert_array_equal(adata.X.toarray(), counts.toarray())
    assert set(adata.obs["cell_type"]) == {"a", "b"}


def _silence():
    import warnings

    return warnings.catch_warnings(action="ignore")


def test_an_incomplete_batch_column_that_nobody_asked_for_is_left_out(tmp_path):
    adata = make()
    adata.obs["batch"] = ["x", None] * 6
    path = written(adata, tmp_path)
    with pytest.warns(UserWarning, match="'batch'"):
        assert "batch" not in read_h5ad(path, label_key="kind").obs
    with pytest.raises(ScreproError, match="'batch'"):
        read_h5ad(path, label_key="kind", batch_key="batch")


# ---- one error each ------------------------------------------------------------------------------------


def set_value(value: float):
    def corrupt(adata: AnnData, rng: np.random.Generator) -> None:
        matrix = adata.X.toarray()
        matrix[rng.integers(N), rng.integers(M)] = value
        adata.X = rng.choice([sp.csr_matrix, sp.csc_matrix, np.asarray])(matrix)

    return corrupt


def drop_column(adata: AnnData, rng: np.random.Generator) -> None:
    del adata.obs["kind"]


def double_gene(adata: AnnData, rng: np.random.Generator) -> None:
    a, b = rng.choice(M, size=2, replace=False)
    names = list(adata.var_names)
    names[a] = names[b]
    adata.var_names = names


def blank_label(adata: AnnData, rng: np.random.Generator) -> None:
    kind = adata.obs["kind"].astype(object)
    kind.iloc[rng.integers(N)] = rng.choice([None, "", " "])
    adata.obs["kind"] = kind


def lone_cell(adata: AnnData, rng: np.random.Generator) -> None:
    kind = adata.obs["kind"].astype(object)
    kind.iloc[rng.integers(N)] = "alone"
    adata.obs["kind"] = kind


def one_class(adata: AnnData, rng: np.random.Generator) -> None:
    adata.obs["kind"] = "all"


CORRUPTIONS = {
    "NaN": (set_value(np.nan), "must hold counts"),
    "infinite": (set_value(np.inf), "must hold counts"),
    "negative": (set_value(-2.0), "must hold counts"),
    "fractional": (set_value(1.5), "must hold counts"),
    "missing column": (drop_column, "must have a column 'kind'"),
    "duplicate gene": (double_gene, "gene name must occur once"),
    "blank label": (blank_label, "must have a value in column 'kind'"),
    "class of one cell": (lone_cell, "must have 2 cells or more"),
    "one class": (one_class, "at least 2 classes"),
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.parametrize("name", CORRUPTIONS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_a_corrupted_file_is_one_error(scratch, name, seed):
    corrupt, rule = CORRUPTIONS[name]
    adata = make(seed)
    with _silence():
        corrupt(adata, np.random.default_rng(seed))
        path = written(adata, scratch)
    with pytest.raises(ScreproError, match=rule):
        read_h5ad(path, label_key="kind")


@given(part=st.floats(0, 1, exclude_max=True))
@settings(max_examples=25, deadline=None)
def test_a_file_cut_off_anywhere_is_one_error(scratch, good_file, part):
    whole = good_file.read_bytes()
    path = scratch / "cut.h5ad"
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ScreproError, match=r"complete \.h5ad"):
        read_h5ad(path, label_key="kind")


@given(
    part=st.sampled_from(["data", "indices", "indptr"]),
    where=st.floats(0, 1, exclude_max=True),
    value=st.sampled_from([-5, -1, 0, 3, M, N * M, 2**31 - 1]),
)
@settings(max_examples=40, deadline=None)
def test_a_damaged_matrix_is_one_error_or_still_counts(scratch, good_file, part, where, value):
    path = scratch / "damaged.h5ad"
    shutil.copy(good_file, path)
    with h5py.File(path, "a") as file:
        stored = file["X"][part]
        stored[int(where * len(stored))] = value
    try:
        adata = read_h5ad(path, label_key="kind")
    except ScreproError:
        return
    adata.X.check_format(full_check=True)
    assert adata.shape == (N, M) and (adata.X.data > 0).all()


@pytest.mark.parametrize("missing", ["obs", "var", "X/indptr", "obs/_index", "X/data"])
def test_a_missing_part_is_one_error(tmp_path, good_file, missing):
    path = tmp_path / "part.h5ad"
    shutil.copy(good_file, path)
    with h5py.File(path, "a") as file:
        del file[missing]
    with pytest.raises(ScreproError):
        read_h5ad(path, label_key="kind")


def test_matrix_and_tables_of_different_size(tmp_path, good_file):
    path = tmp_path / "sizes.h5ad"
    shutil.copy(good_file, path)
    with h5py.File(path, "a") as file:
        file["X"].attrs["shape"] = (N, M + 1)
    with pytest.raises(ScreproError, match="12 x 9 for 12 cells and 8 genes"):
        read_h5ad(path, label_key="kind")


def test_what_is_no_h5ad(tmp_path, good_file):
    def message(path: Path) -> str:
        with pytest.raises(ScreproError) as error:
            read_h5ad(path)
        return str(error.value)

    assert "is a folder" in message(tmp_path)
    assert "there is no file" in message(tmp_path / "nothing.h5ad")
    assert "did you mean" in message(good_file.with_name("mne.h5ad"))
    (tmp_path / "empty.h5ad").touch()
    assert "is empty" in message(tmp_path / "empty.h5ad")
    (tmp_path / "table.h5ad").write_text("gene,cell\n1,2\n")
    assert "is not HDF5" in message(tmp_path / "table.h5ad")
    (tmp_path / "packed.h5ad").write_bytes(b"\x1f\x8b\x08rest")
    assert "gunzip" in message(tmp_path / "packed.h5ad")
    with h5py.File(tmp_path / "tenx.h5", "w") as file:
        file.create_group("matrix")
    assert "read_10x_h5" in message(tmp_path / "tenx.h5")


def test_a_file_that_may_not_be_read(tmp_path, good_file, monkeypatch):
    path = tmp_path / "locked.h5ad"
    shutil.copy(good_file, path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # a superuser reads everything

        def refuse(self, *args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ScreproError, match="may not be read: Permission denied"):
        read_h5ad(path)


def test_nothing_but_the_counts_and_tables_is_read(good_file):
    assert not read_h5ad(good_file, label_key="kind").obsm
    assert anndata.read_h5ad(good_file).obsm


def test_what_a_page_needs_is_checked_before_anything_starts_and_names_its_parameter(good_file, tmp_path):
    check_h5ad(good_file, columns={"label_key": "kind", "batch_key": "lane"})
    one = make()
    one.obs["only"] = "one lane"
    file = written(one, tmp_path)
    check_h5ad(file, columns={"batch_key": "only"})  # one batch will do, one class will not
    with pytest.raises(ScreproError, match="at least 2 classes"):
        check_h5ad(file, columns={"label_key": "only"})
    with pytest.raises(ScreproError, match="-p context_key kind"):
        check_h5ad(good_file, columns={"context_key": "kinds"})
    one.X.data[3] = np.nan
    with pytest.raises(ScreproError, match="is not a number"):
        check_h5ad(written(one, tmp_path, "nan.h5ad"), columns={})
    two = make()
    two.var_names = ["twice", "twice", *two.var_names[2:]]
    with pytest.raises(ScreproError, match="must occur once"):
        check_h5ad(written(two, tmp_path, "twice.h5ad"), columns={})
    whole = good_file.read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScreproError, match=r"complete \.h5ad"):
        check_h5ad(tmp_path / "cut.h5ad", columns={})
    with pytest.raises(ScreproError, match="named so"):
        check_h5ad(shutil.copy(good_file, tmp_path / "cells.h5"), columns={})
