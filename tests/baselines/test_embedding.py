"""Embeddings made here keep what they should, and files of others are matched by name or refused in one error."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from screpro.baselines import embedding as baselines
from screpro.errors import ScreproError


@pytest.fixture(scope="module")
def counts():
    """Training and other cells of two types with different profiles over 30 genes, and the types of the latter."""
    rng = np.random.default_rng(0)
    types = np.arange(160) % 2
    rate = rng.gamma(2, 2, size=(2, 30))
    x = sp.csr_matrix(rng.poisson(rate[types]).astype(np.float32))
    return x[:100], x[100:], types[100:]


def test_pca_is_that_of_the_training_cells(counts):
    train, cells, _ = counts
    found = baselines.run("pca", train, cells, seed=0, options={"components": 5})
    x, y = (np.log1p(c.toarray() / c.toarray().sum(1, keepdims=True) * 1e4) for c in (train, cells))
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:5]
    expected = (y - x.mean(0)) @ axes.T
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["pca", "genes"])
def test_types_are_apart(counts, name):
    train, cells, types = counts
    z = baselines.run(name, train, cells, seed=0)
    z = z.toarray() if sp.issparse(z) else z
    axis = z[types == 1].mean(0) - z[types == 0].mean(0)
    on_axis = z @ axis
    assert on_axis[types == 1].min() > on_axis[types == 0].max()


def test_library_size_changes_depth_alone(counts):
    train, cells, _ = counts
    tripled = cells * 3
    for name in ("pca", "genes"):
        one, three = (baselines.run(name, train, c, seed=0) for c in (cells, tripled))
        np.testing.assert_allclose(abs(one - three).max(), 0, atol=1e-4)
    one, three = (baselines.run("depth", train, c, seed=0) for c in (cells, tripled))
    np.testing.assert_allclose(three - one, np.tile([np.log(3), 0], (len(one), 1)), atol=1e-6)


def test_noise_knows_nothing_but_its_seed(counts):
    train, cells, _ = counts
    first, again, other = (baselines.run("noise", train, cells, seed=seed) for seed in (1, 1, 2))
    assert first.shape == (60, 128) and (first == again).all() and (first != other).any()


def test_scvi_finds_the_types(counts):
    pytest.importorskip("scvi")
    train, cells, types = counts
    z = baselines.run("scvi", train, cells, seed=0, options={"epochs": 20, "batch_size": 20, "n_latent": 3})
    assert z.shape == (60, 3)
    axis = z[types == 1].mean(0) - z[types == 0].mean(0)
    on_axis = z @ axis
    assert np.mean((on_axis > np.median(on_axis)) == (types == 1)) > 0.9


def test_cells_that_cannot_be_embedded_are_refused(counts):
    train, cells, _ = counts
    with pytest.raises(ScreproError, match="named by its key"):
        baselines.run("umap", train, cells, seed=0)
    with pytest.raises(ScreproError, match="options of pca are components"):
        baselines.run("pca", train, cells, seed=0, options={"n": 3})
    with pytest.raises(ScreproError, match="1 of them empty"):
        baselines.run("pca", train, sp.vstack([cells, sp.csr_matrix((1, 30))]), seed=0)
    with pytest.raises(ScreproError, match="same genes"):
        baselines.run("pca", train, cells[:, :20], seed=0)


# --- embeddings made elsewhere ------------------------------------------------------------------------------

NAMES = [f"cell {number}" for number in range(6)]
VALUES = np.arange(12, dtype=np.float32).reshape(6, 2)


def npy(folder, values=VALUES, names=NAMES):
    np.save(folder / "own.npy", values)
    (folder / "own.cells.txt").write_text("\n".join(names) + "\n")
    return folder / "own.npy"


def h5ad(folder, obsm=None, x=None):
    adata = ad.AnnData(np.zeros((6, 1), np.float32) if x is None else x, obs=pd.DataFrame(index=NAMES))
    for key, values in (obsm or {}).items():
        adata.obsm[key] = values
    adata.write_h5ad(folder / "own.h5ad")
    return folder / "own.h5ad"


def test_rows_are_matched_by_name(tmp_path):
    wanted = ["cell 4", "cell 0", "cell 5"]
    for path in (npy(tmp_path), h5ad(tmp_path, {"X_scgpt": VALUES}), h5ad(tmp_path, x=sp.csr_matrix(VALUES))):
        found = baselines.external(path, cells=wanted)
        np.testing.assert_array_equal(found, VALUES[[4, 0, 5]])
        assert found.dtype == np.float64


@pytest.mark.parametrize(
    ("key", "width", "kind"),
    [
        pytest.param("X_scGPT", 512, np.float32, id="scGPT"),
        pytest.param("X_uce", 1280, np.float32, id="UCE"),
        pytest.param("embeddings", 2048, np.float32, id="TranscriptFormer"),
        pytest.param(None, 896, np.float32, id="Geneformer, its table of cells saved as .npy"),
        pytest.param(None, 640, np.float16, id="AIDO.Cell, half precision"),
    ],
)
def test_files_of_the_shape_that_pretrained_models_leave(tmp_path, key, width, kind):
    """Their widths and types, in obsm beside counts or as an array; rows in an order of their own."""
    values = np.random.default_rng(0).normal(size=(6, width)).astype(kind)
    if key:
        path = h5ad(tmp_path, {key: values, "X_umap": VALUES}, x=sp.csr_matrix(np.eye(6, dtype=np.float32)))
    else:
        path = npy(tmp_path, values)
    found = baselines.external(path, cells=NAMES[::-1], key=key)
    np.testing.assert_array_equal(found, values[::-1].astype(np.float64))


def test_index_and_key_may_be_named(tmp_path):
    path, other = npy(tmp_path, names=NAMES[::-1]), tmp_path / "names.txt"
    other.write_text("\n".join(NAMES))
    np.testing.assert_array_equal(baselines.external(path, cells=NAMES, index=other), VALUES)
    path = h5ad(tmp_path, {"a": VALUES, "b": -VALUES})
    np.testing.assert_array_equal(baselines.external(path, cells=NAMES, key="b"), -VALUES)
    with pytest.raises(ScreproError, match="say which one with key="):
        baselines.external(path, cells=NAMES)
    with pytest.raises(ScreproError, match="no 'c' in obsm"):
        baselines.external(path, cells=NAMES, key="c")


@pytest.mark.parametrize(
    ("values", "names", "cells", "message"),
    [
        (VALUES, NAMES, [*NAMES, "cell 9"], "1 of 7 cells are not in it, 'cell 9'"),
        (VALUES, [*NAMES[:5], "cell 0"], NAMES[:3], "1 names twice in the file"),
        (VALUES, NAMES, ["cell 1", "cell 1"], "1 names twice in the cells asked for"),
        (VALUES, NAMES[:5], NAMES[:3], "6 rows, 5 names"),
        (VALUES[:, 0], NAMES, NAMES, r"shape \(6,\)"),
        (VALUES.astype("U3"), NAMES, NAMES, "type <U3"),
        (np.where(VALUES == 6, np.nan, VALUES), NAMES, NAMES, "1 of 6 cells have values that are not finite"),
        (np.where(VALUES == 6, np.inf, VALUES), NAMES, NAMES, "not finite"),
        (VALUES.astype(object), NAMES, NAMES, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, values, names, cells, message):
    with pytest.raises(ScreproError, match=message):
        baselines.external(npy(tmp_path, values, names), cells=cells)


def test_values_of_cells_that_are_not_wanted_do_not_matter(tmp_path):
    path = npy(tmp_path, np.where(VALUES == 6, np.nan, VALUES))
    assert baselines.external(path, cells=NAMES[:3]).shape == (3, 2)


def test_files_that_are_missing_or_of_another_kind_are_refused(tmp_path):
    (tmp_path / "own.npy").write_bytes(b"not numpy")
    with pytest.raises(ScreproError, match=r"there is no file .*own\.cells\.txt"):
        baselines.external(tmp_path / "own.npy", cells=NAMES)
    (tmp_path / "own.cells.txt").write_text("\n".join(NAMES))
    with pytest.raises(ScreproError, match="cannot be read"):
        baselines.external(tmp_path / "own.npy", cells=NAMES)
    with pytest.raises(ScreproError, match=r"the ending \.pkl"):
        baselines.external(tmp_path / "own.pkl", cells=NAMES)
    with pytest.raises(ScreproError, match="there is no file"):
        baselines.external(tmp_path / "none.h5ad", cells=NAMES)
