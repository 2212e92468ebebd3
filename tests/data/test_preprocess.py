"""Preprocessing of the protocol: what is kept, the scale, and that it happens once."""

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from screpro.data.preprocess import log_cp10k, log_normalise, variable_panel
from screpro.errors import ScreproError

COUNTS = hnp.arrays(
    np.int64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8), elements=st.integers(0, 9)
)


@given(COUNTS)
def test_every_kept_cell_has_the_target_total_and_its_own_proportions(counts):
    adata = AnnData(sp.csr_matrix(counts, dtype=np.float32))
    if not counts.any():
        with pytest.raises(ScreproError, match="at least one count"):
            log_normalise(adata)
        return
    done = log_normalise(adata)
    kept = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    assert done.shape == kept.shape
    np.testing.assert_array_equal(done.layers["counts"].toarray(), kept)
    scaled = np.expm1(done.X.toarray().astype(np.float64))
    np.testing.assert_allclose(scaled, 1e4 * kept / kept.sum(axis=1, keepdims=True), rtol=1e-5)


def test_the_input_is_left_alone_and_equal_gene_names_are_told_apart():
    adata = AnnData(np.array([[1.0, 2.0], [0.0, 0.0]], dtype=np.float32))
    adata.var_names = ["A", "A"]
    done = log_normalise(adata)
    assert done.var_names.is_unique and done.n_obs == 1
    np.testing.assert_array_equal(adata.X, [[1, 2], [0, 0]])


def test_log_values_are_not_normalised_again():
    adata = AnnData(np.array([[1.5, 0.3]], dtype=np.float32), uns={"values": "log1p"})
    with pytest.raises(ScreproError, match="normalised once"):
        log_normalise(adata)


@given(COUNTS)
def test_log_counts_are_those_of_the_preprocessing(counts):
    """The same numbers as `log_normalise` gives, but every cell and gene is kept, and empty cells stay zero."""
    x = log_cp10k(sp.csr_matrix(counts, dtype=np.float32)).toarray()
    assert x.shape == counts.shape and not x[~counts.any(axis=1)].any()
    if counts.any():
        kept = log_normalise(AnnData(sp.csr_matrix(counts, dtype=np.float32)))
        np.testing.assert_allclose(x[counts.any(axis=1)][:, counts.any(axis=0)], kept.X.toarray(), rtol=1e-6)


def test_a_panel_is_the_genes_that_vary_beyond_their_mean():
    rng = np.random.default_rng(0)
    rate = rng.uniform(0.5, 8, 60)
    counts = rng.poisson(np.tile(rate, (200, 1)))
    planted = [3, 20, 41]
    counts[:100, planted] = rng.poisson(0.2 * rate[planted], (100, 3))
    counts[100:, planted] = rng.poisson(5 * rate[planted], (100, 3))
    counts[:, 7] = 0
    x = sp.csr_matrix(counts.astype(np.float32))
    assert variable_panel(x, 3).tolist() == planted
    of_logs = variable_panel(x.log1p(), 20).tolist()  # within bins of few genes
    assert set(planted) <= set(of_logs) and len(of_logs) == 20
    assert 7 not in variable_panel(x, None) and len(variable_panel(x, None)) == len(variable_panel(x, 99)) == 59


def test_few_cells_get_a_panel_where_the_usual_fit_has_no_solution():
    """Most genes of a few cells have the same mean of one or two counts; the gene that varies is found all the same."""
    import scanpy as sc

    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 0.04, 400), (300, 400))
    counts[:, :20] = rng.poisson(rng.uniform(1, 8, 20), (300, 20))
    counts[:, 5] = rng.permutation(np.repeat([0, 8], 150))
    counts[0, counts.sum(0) == 0] = 1
    x = sp.csr_matrix(counts.astype(np.float32))
    with pytest.raises(ValueError, match=r"condition number|singularit"):
        sc.pp.highly_variable_genes(AnnData(x), n_top_genes=20, flavor="seurat_v3", inplace=False)
    panel = variable_panel(x, 20)
    assert len(panel) == 20 and 5 in panel
