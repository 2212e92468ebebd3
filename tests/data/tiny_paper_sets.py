"""Tiny files in the place of downloads: what the tests of the papers' data sets put into an empty cache."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from screpro import data

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
