"""Molecular cross-validation: laws of thinning, agreement with the formula of OpenProblems, what the controls get."""

import anndata
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import scipy.special
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.metrics.denoising import controls, mcv_mse, mcv_poisson, split_counts


def counts(n: int = 60, n_genes: int = 30, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.5, 2.0, n_genes) * rng.gamma(2.0, 1.0, (n, 1)))


matrices = st.integers(1, 6).flatmap(
    lambda g: st.lists(st.lists(st.integers(0, 10**6), min_size=g, max_size=g), min_size=1, max_size=5)
)


@settings(max_examples=60, deadline=None)
@given(matrices, st.floats(0.01, 0.99), st.integers(0, 10), st.sampled_from([np.int32, np.int64, np.float64]))
def test_parts_add_up_to_the_whole(values, fraction, seed, dtype):
    whole = np.array(values, dtype=dtype)
    train, test = split_counts(whole, train_fraction=fraction, rng=np.random.default_rng(seed))
    assert (train + test == whole).all() and train.min() >= 0 and test.min() >= 0
    assert train.dtype == test.dtype == dtype
    sparse = split_counts(sp.csr_matrix(whole), train_fraction=fraction, rng=np.random.default_rng(seed))
    for part, expected in zip(sparse, (train, test), strict=True):
        assert part.format == "csr" and (part.data != 0).all() and (part.toarray() == expected).all()


def test_parts_follow_the_binomial_law_and_are_independent_for_poisson_counts():
    rng = np.random.default_rng(0)
    train, _ = split_counts(np.full((1, 4000), 20), rng=rng)
    observed = np.bincount(train.ravel(), minlength=21)[14:]
    expected = scipy.stats.binom.pmf(np.arange(14, 21), 20, 0.9)
    assert scipy.stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue > 1e-3
    assert train.mean() == pytest.approx(18, abs=5 * np.sqrt(20 * 0.09 / 4000))
    train, test = split_counts(rng.poisson(5, (200, 500)), train_fraction=0.5, rng=rng)
    assert abs(np.corrcoef(train.ravel(), test.ravel())[0, 1]) < 0.015
    assert test.var() == pytest.approx(test.mean(), rel=0.03)  # thinned Poisson counts are Poisson


def test_split_leaves_its_input_alone():
    whole = sp.csr_matrix(counts())
    before = whole.toarray()
    split_counts(whole, rng=np.random.default_rng(0))
    assert (whole.toarray() == before).all()


def test_squared_error_is_that_of_scanpy_and_scikit_learn():
    train, test = split_counts(counts(), rng=np.random.default_rng(0))
    train[:, 4] = 0  # this gene is left out
    test[7] = 0  # a cell without test counts
    denoised = np.random.default_rng(1).gamma(1.0, 2.0, train.shape)
    keep = train.sum(0) > 0
    assert not keep[4]
    sides = []
    for x in (denoised, test):
        data = anndata.AnnData(x[:, keep].astype(np.float64))
        sc.pp.normalize_total(data, target_sum=1e4)
        sc.pp.log1p(data)
        sides.append(data.X)
    expected = sklearn.metrics.mean_squared_error(*sides)
    assert mcv_mse(denoised, train=train, test=test) == pytest.approx(expected, rel=1e-12)
    assert mcv_mse(denoised[:, keep], train=train[:, keep], test=test[:, keep]) == pytest.approx(expected, rel=1e-12)
    sparse = [sp.csr_matrix(x) for x in (denoised, train, test)]
    assert mcv_mse(sparse[0], train=sparse[1], test=sparse[2]) == pytest.approx(expected, rel=1e-12)


def test_squared_error_ignores_the_depth_of_the_prediction_and_poisson_does_not():
    train, test = split_counts(counts(), rng=np.random.default_rng(0))
    denoised = train + 0.5
    assert mcv_mse(denoised / 9, train=train, test=test) == pytest.approx(mcv_mse(denoised, train=train, test=test))
    assert mcv_poisson(denoised / 9, train=train, test=test) > mcv_poisson(denoised, train=train, test=test)


def test_poisson_loss():
    train, test = split_counts(counts(), rng=np.random.default_rng(0))
    denoised = np.random.default_rng(1).gamma(1.0, 2.0, train.shape)
    keep = train.sum(0) > 0
    mu, held_out = (denoised * test.sum() / train.sum())[:, keep], test[:, keep]
    expected = (mu - held_out * np.log(mu + 1e-6)).mean()
    assert mcv_poisson(denoised, train=train, test=test) == pytest.approx(expected, rel=1e-12)
    # up to log y! it is the Poisson likelihood
    likelihood = -scipy.stats.poisson.logpmf(held_out, mu) - scipy.special.gammaln(held_out + 1)
    assert likelihood.mean() == pytest.approx(expected, abs=1e-5)


def test_truth_beats_noise_except_in_the_squared_error_of_shallow_cells():
    """What the page of `mcv_mse` warns of: with few counts the score prefers doing nothing to the true expression."""
    better, squared = {}, []
    for depth in (80, 10000):
        rng = np.random.default_rng(0)
        truth = rng.gamma(0.5, 4.0, 400) * rng.gamma(2.0, 1.0, (200, 1))
        truth *= depth / truth.sum(1).mean()
        train, test = split_counts(rng.poisson(truth), rng=rng)
        for score in (mcv_mse, mcv_poisson):
            better[score, depth] = score(0.9 * truth, train=train, test=test) < score(train, train=train, test=test)
        squared += [mcv_mse(x, train=train, test=test) for x in (truth, train)]
    np.testing.assert_allclose(squared, [8.67, 4.18, 1.783, 1.815], atol=0.005)
    assert better == {(mcv_mse, 80): False, (mcv_mse, 10000): True, (mcv_poisson, 80): True, (mcv_poisson, 10000): True}


def test_controls():
    train, test = split_counts(counts(), rng=np.random.default_rng(0))
    squared = controls(mcv_mse, train=train, test=test)
    assert squared["perfect"] == 0 < squared["no denoising"] == mcv_mse(train, train=train, test=test)
    # "perfect" is not what the Poisson loss likes best: it scales the test counts down once more
    poisson = controls(mcv_poisson, train=train, test=test)
    assert poisson["perfect"] > mcv_poisson(test * train.sum() / test.sum(), train=train, test=test)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fraction_outside(fraction):
    with pytest.raises(ScreproError, match="fraction of the molecules"):
        split_counts(counts(), train_fraction=fraction, rng=np.random.default_rng(0))


@pytest.mark.parametrize("value", [-1, 0.5, np.nan, np.inf])
def test_only_molecules_can_be_split(value):
    whole = counts().astype(float)
    whole[3, 3] = value
    with pytest.raises(ScreproError, match="Only molecules"):
        split_counts(whole, rng=np.random.default_rng(0))


@pytest.mark.parametrize("score", [mcv_mse, mcv_poisson])
def test_bad_input(score):
    train, test = split_counts(counts(), rng=np.random.default_rng(0))
    negative = train - 1.0
    cases = [
        (train[:, :5], train, test, "same cells and genes"),
        (train[:0], train[:0], test[:0], "same cells and genes"),
        (train, train * 0, test, "Some gene"),
        (negative, train, test, "Predictions are finite"),
        (train * np.nan, train, test, "Predictions are finite"),
        (train, train, test - 1, "Test counts are finite"),
    ]
    for denoised, x, y, message in cases:
        with pytest.raises(ScreproError, match=message):
            score(denoised, train=x, test=y)
