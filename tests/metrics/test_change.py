"""Scores of a change against scanpy, scipy and laws."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.metrics import change, imputation


@pytest.fixture(scope="module")
def sides():
    rng = np.random.default_rng(0)
    rate = rng.gamma(1, 1, 300)
    effect = np.exp(rng.normal(0, 0.7, 300) * (rng.random(300) < 0.3))
    control = np.log1p(rng.poisson(rate, (60, 300)).astype(float))
    perturbed = np.log1p(rng.poisson(rate * effect, (50, 300)).astype(float))
    predicted = np.log1p(rng.poisson(rate * np.sqrt(effect), (55, 300)).astype(float))
    return predicted, perturbed, control


def ranked_by_scanpy(perturbed, control, **options):
    import pandas as pd
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(np.vstack([perturbed, control]))
    adata.obs["side"] = pd.Categorical(["p"] * len(perturbed) + ["c"] * len(control))
    sc.tl.rank_genes_groups(adata, "side", groups=["p"], reference="c", n_genes=adata.n_vars, **options)
    found = adata.uns["rank_genes_groups"]
    return np.array([int(name) for name in found["names"]["p"]]), found["scores"]["p"]


@pytest.mark.parametrize(
    ("top", "options"),
    [
        (change.top_by_wilcoxon, {"method": "wilcoxon"}),
        (change.top_by_t_test, {"method": "t-test", "rankby_abs": True}),
    ],
)
def test_genes_are_scanpys(sides, top, options):
    _, perturbed, control = sides
    order, score = ranked_by_scanpy(perturbed, control, **options)
    ours = top(perturbed, control, 300)
    # genes of equal score may stand in any order: compare the scores along both orders
    by_gene = dict(zip(order, score, strict=True))
    assert np.allclose([by_gene[g] for g in ours], score, atol=1e-5)


def test_r2_is_the_squared_r_of_a_regression_on_the_top_genes(sides):
    from scipy.stats import linregress

    predicted, perturbed, control = sides
    genes = change.top_by_wilcoxon(perturbed, control)
    assert len(genes) == 100
    guess, truth = (x.mean(0) - control.mean(0) for x in (predicted, perturbed))
    expected = linregress(guess[genes], truth[genes]).rvalue ** 2
    assert change.r2_change_top100(*sides) == pytest.approx(expected, rel=1e-9)
    assert change.delta_pearson(*sides) == pytest.approx(np.corrcoef(guess, truth)[0, 1], rel=1e-9)
    first = change.top_by_t_test(perturbed, control)
    assert change.mse_top20_de(*sides) == pytest.approx(np.mean((guess - truth)[first] ** 2), rel=1e-9)


@given(st.floats(0.05, 3))
def test_r2_is_blind_to_the_size_of_a_change_and_the_ratio_measures_it(sides, factor):
    _, perturbed, control = sides
    scaled = control.mean(0) + factor * (perturbed.mean(0) - control.mean(0))
    assert change.r2_change_top100(scaled[None], perturbed, control) == pytest.approx(1)
    assert change.change_size_ratio(scaled[None], perturbed, control) == pytest.approx(factor)


def test_no_change_and_the_perfect_prediction(sides):
    _, perturbed, control = sides
    assert change.change_size_ratio(control, perturbed, control) == 0
    assert np.isnan(change.delta_pearson(control, perturbed, control))
    assert change.mse_top20_de(perturbed, perturbed, control) == 0
    assert np.isnan(change.change_size_ratio(perturbed, control, control))


def test_sparse_and_dense_agree(sides):
    packed = [sp.csr_matrix(side) for side in sides]
    for score in (change.r2_change_top100, change.change_size_ratio, change.delta_pearson, change.mse_top20_de):
        assert score(*packed) == pytest.approx(score(*sides), rel=1e-9)


def test_imputation_pooled_and_per_cell():
    rng = np.random.default_rng(1)
    true, imputed, hidden = rng.normal(size=(9, 30)), rng.normal(size=(9, 30)), rng.random((9, 30)) < 0.4
    imputed += true
    hidden[0] = False  # no hidden entry
    hidden[1] = False
    hidden[1, 3] = True  # one is not enough for a correlation
    true[2] = 7.0  # constant
    pooled = np.corrcoef(true[hidden], imputed[hidden])[0, 1]
    assert imputation.imputation_pearson_pooled(true, imputed, hidden) == pytest.approx(pooled)
    each = [np.corrcoef(true[i, hidden[i]], imputed[i, hidden[i]])[0, 1] for i in range(3, 9)]
    assert imputation.imputation_pearson_per_cell(true, imputed, hidden) == pytest.approx(np.mean(each))
    assert imputation.imputation_pearson_per_cell(sp.csr_matrix(true), imputed, sp.csr_matrix(hidden)) == pytest.approx(
        np.mean(each)
    )
    # what is not hidden does not count
    assert imputation.imputation_pearson_pooled(np.where(hidden, true, 99), imputed, hidden) == pytest.approx(pooled)


def test_bad_input_is_one_clear_error():
    good = np.ones((3, 4))
    with pytest.raises(ScreproError, match="same genes"):
        change.delta_pearson(good, good[:, :3], good)
    with pytest.raises(ScreproError, match="at least one cell"):
        change.delta_pearson(good[:0], good, good)
    with pytest.raises(ScreproError, match="finite"):
        change.delta_pearson(good * np.nan, good, good)
    with pytest.raises(ScreproError, match="two cells"):
        change.mse_top20_de(good, good[:1], good)
    with pytest.raises(ScreproError, match="one shape"):
        imputation.imputation_pearson_pooled(good, good[:2], good > 0)
    with pytest.raises(ScreproError, match="hidden"):
        imputation.imputation_pearson_pooled(good, good, good < 0)
    with pytest.raises(ScreproError, match="finite"):
        imputation.imputation_pearson_pooled(good, good * np.nan, good > 0)


def test_constant_genes_have_documented_values():
    flat = np.ones((4, 5))
    assert np.isnan(change.r2_change_top100(flat, flat, flat))
    assert list(change.top_by_t_test(flat, flat, 3)) == [0, 1, 2]
