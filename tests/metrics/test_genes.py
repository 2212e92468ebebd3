import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.metrics import genes
from screpro.metrics.genes import (
    gene_mean_pearson,
    gene_statistics,
    gene_variance_log2_ratio,
    gene_variance_pearson,
    gene_zero_fraction_gap,
    gene_zero_fraction_pearson,
)

PEARSONS = (gene_mean_pearson, gene_variance_pearson, gene_zero_fraction_pearson)
GAPS = (gene_variance_log2_ratio, gene_zero_fraction_gap)


def cells(n=60, g=25, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.poisson(np.random.default_rng(1).gamma(0.7, 2.0, g), size=(n, g)) * 0.5).astype(np.float32)


def test_statistics_are_those_of_numpy_in_every_form():
    x = cells()
    x[:, 3] = 0
    x[:, 4] = 0.1  # the same everywhere: rounding of its mean is no variance
    for form in (x, x.astype(np.float64), sp.csr_matrix(x), sp.csc_matrix(x), sp.coo_array(x)):
        found = gene_statistics(form)
        np.testing.assert_allclose(found.mean, x.mean(0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(found.variance, x.astype(float).var(0, ddof=1), rtol=1e-12, atol=1e-20)
        np.testing.assert_allclose(found.zero_fraction, (x == 0).mean(0), atol=1e-15)
        assert found.variance[3] == found.variance[4] == 0
    assert gene_statistics(found) is found
    stored = sp.csr_matrix(x)
    stored.data[:5] = 0  # a zero that is stored is a zero
    assert gene_statistics(stored).zero_fraction.sum() > found.zero_fraction.sum()
    assert np.isnan(gene_statistics(x[:1]).variance).all()


def test_variance_of_a_gene_far_from_zero():
    x = np.random.default_rng(0).normal(1e6, 1.0, size=(200, 3))
    np.testing.assert_allclose(gene_statistics(x).variance, x.var(0, ddof=1), rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_laws(n, m, seed):
    rng = np.random.default_rng(seed)
    a, b = cells(n, seed=seed), cells(m, seed=seed + 1)
    for f in (*PEARSONS, *GAPS):
        value = f(a, b)
        # neither the order of the cells nor of the genes matters, nor shuffling each gene over the cells
        order = rng.permutation(a.shape[1])
        np.testing.assert_allclose(
            f(rng.permuted(a, axis=0)[:, order], b[::-1][:, order]), value, rtol=1e-9, atol=1e-12
        )
        assert f(gene_statistics(a), b) == value or np.isnan(value)
    for f in PEARSONS:
        np.testing.assert_allclose(f(a, b), f(b, a), rtol=1e-9, atol=1e-12)
        assert np.isnan(f(a, a)) or f(a, a) == pytest.approx(1)
    assert [f(a, a) for f in GAPS] == [0, 0]
    assert 0 <= gene_zero_fraction_gap(a, b) <= 1


def test_a_factor_and_a_shift():
    x = cells()
    assert gene_mean_pearson(x, 4 * x) == pytest.approx(1)
    assert gene_variance_pearson(x, 4 * x) == pytest.approx(1)
    assert gene_variance_log2_ratio(x, 4 * x) == pytest.approx(4)
    assert gene_variance_log2_ratio(4 * x, x) == pytest.approx(4)
    assert gene_zero_fraction_gap(x, 4 * x) == 0
    assert gene_zero_fraction_gap(x, x + 1) == pytest.approx((x == 0).mean())
    assert gene_mean_pearson(x, -x) == pytest.approx(-1)


def test_variances_of_few_cells_are_right_on_average():
    x = np.random.default_rng(0).normal(size=(400, 3, 5))
    variances = [gene_statistics(three).variance.mean() for three in x]
    assert np.mean(variances) == pytest.approx(1, abs=4 * np.std(variances) / 20)


def test_values_where_nothing_varies():
    x = cells()
    flat = np.repeat(x.mean(0, keepdims=True), 40, axis=0)  # copies of the mean cell
    assert gene_mean_pearson(x, flat) == pytest.approx(1)
    assert np.isnan(gene_variance_pearson(x, flat))
    assert gene_variance_log2_ratio(x, flat) == np.inf
    assert np.isnan(gene_variance_log2_ratio(flat, x))
    assert np.isnan(gene_zero_fraction_pearson(x, x + 1))
    assert np.isnan(gene_mean_pearson(x, np.ones_like(x)))
    assert gene_zero_fraction_gap(np.zeros((1, 25)), x) == pytest.approx((x != 0).mean())


@pytest.mark.parametrize("f", [*PEARSONS, *GAPS])
def test_bad_input(f):
    x = cells()
    with pytest.raises(ScreproError, match="25 genes of real and 24"):
        f(x, x[:, 1:])
    bad = x.copy()
    bad[2, 3] = np.nan
    with pytest.raises(ScreproError, match="1 values"):
        f(x, bad)
    with pytest.raises(ScreproError, match="0 cells"):
        f(x[:0], x)
    if "variance" in f.__name__:
        with pytest.raises(ScreproError, match="two cells"):
            f(x, x[:1])
    else:
        assert np.isfinite(f(x, x[:1]))


def test_all_metrics_are_public():
    assert {f.__name__ for f in (*PEARSONS, *GAPS)} < set(genes.__all__)
