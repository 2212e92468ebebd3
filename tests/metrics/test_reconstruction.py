"""Reconstruction scores: scipy's laws, invariances, what a perfect and a useless model get, bad input."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch

from screpro.errors import ScreproError
from screpro.kernels.nb import nb_softmax_nll
from screpro.metrics.reconstruction import mse_nb_draw, mse_nb_mean, pcc_nb_draw, pcc_nb_mean, re_nb_nll


def cells(n: int = 300, n_genes: int = 40, seed: int = 0):
    """Counts, their true means and theta: two kinds of cells with different profiles and library sizes."""
    rng = np.random.default_rng(seed)
    profile = rng.lognormal(0, 1.5, (2, n_genes))
    mean = profile[rng.integers(2, size=n)]
    mean *= rng.lognormal(4, 0.3, (n, 1)) / mean.sum(1, keepdims=True)
    theta = rng.lognormal(0.5, 0.5, n_genes)
    counts = rng.poisson(rng.gamma(theta, mean / theta))
    return counts, mean, theta


def scaled(counts, mean):
    return mean * (counts.sum(1) / mean.sum(1))[:, None]


def test_error_is_scipys_likelihood_at_the_observed_library():
    counts, mean, theta = cells()
    mu = scaled(counts, mean)
    for t in (theta, np.tile(theta, (300, 1)) * np.linspace(0.5, 2, 300)[:, None]):
        expected = -scipy.stats.nbinom.logpmf(counts, t, t / (t + mu)).sum(1).mean()
        assert re_nb_nll(counts, mean, t) == pytest.approx(expected, rel=1e-10)


def test_error_is_the_training_loss():
    counts, mean, theta = cells(20)
    arrays = [torch.tensor(a, dtype=torch.float32) for a in (counts, np.log(mean), counts.sum(1), np.log(theta))]
    assert re_nb_nll(counts, mean, theta) == pytest.approx(float(nb_softmax_nll(*arrays).mean()), rel=1e-6)


@pytest.mark.parametrize("score", [pcc_nb_draw, mse_nb_draw, pcc_nb_mean, mse_nb_mean, re_nb_nll])
def test_unit_of_the_mean_and_container_of_the_counts_do_not_matter(score):
    counts, mean, theta = cells()
    rows = np.random.default_rng(1).lognormal(0, 1, (300, 1))

    def value(x, m):
        random = {"rng": np.random.default_rng(5)} if score in (pcc_nb_draw, mse_nb_draw) else {}
        return score(x, m, *([] if score in (pcc_nb_mean, mse_nb_mean) else [theta]), **random)

    base = value(counts, mean)
    assert value(sp.csr_matrix(counts), mean) == base
    assert value(sp.csc_array(counts.astype(np.float32)), mean) == base
    assert value(counts, mean * rows) == pytest.approx(base, rel=1e-9)
    order = np.random.default_rng(2).permutation(40)  # genes
    if score in (pcc_nb_mean, mse_nb_mean):
        assert value(counts[:, order], mean[:, order]) == pytest.approx(base, rel=1e-9)


def test_correlation_is_scipys_gene_by_gene_and_batch_by_batch():
    counts, mean, _ = cells(300, 12)
    counts[:128, 3] = 0  # constant in the first batch only
    values = []
    for batch in (slice(0, 128), slice(128, 256)):  # 256 to 300 is incomplete and left out
        x, m = (np.log1p(a[batch] / a[batch].sum(1, keepdims=True) * 1e4) for a in (counts, mean))
        values.append(np.mean([scipy.stats.pearsonr(x[:, g], m[:, g])[0] for g in range(12) if np.ptp(x[:, g])]))
    assert pcc_nb_mean(counts, mean) == pytest.approx(np.mean(values), rel=1e-9)
    assert pcc_nb_mean(counts[:50], mean[:50]) != pcc_nb_mean(counts, mean)  # the only batch counts, though incomplete


def test_draws_of_the_true_model_are_below_its_mean_and_repeat_with_the_generator():
    counts, mean, theta = cells(1280)
    seeds = [np.random.default_rng(s) for s in (0, 0, 1)]
    drawn = [pcc_nb_draw(counts, mean, theta, rng=rng) for rng in seeds]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 0 < drawn[0] < pcc_nb_mean(counts, mean) < 1
    assert mse_nb_draw(counts, mean, theta, rng=seeds[0]) > mse_nb_mean(counts, mean)


def test_draws_have_the_moments_of_the_law():
    """E (s(x) - s(x~))^2 of two independent draws is twice the variance; s taken from many draws."""
    n = 20000
    mean, theta = np.tile([30.0, 60.0, 10.0], (n, 1)), np.array([2.0, 5.0, 0.5])
    counts = np.tile([30, 60, 10], (n, 1))
    rng = np.random.default_rng(3)
    x = rng.negative_binomial(theta, theta / (theta + mean))
    s = np.log1p(1e4 * x / np.maximum(x.sum(1, keepdims=True), 1))
    expected = np.mean((np.log1p(counts * 100.0) - s) ** 2)
    assert mse_nb_draw(counts, mean, theta, rng=rng) == pytest.approx(expected, rel=0.05)


def test_a_perfect_and_a_useless_model():
    counts, mean, theta = cells()
    counts[counts.sum(1) == 0, 0] = 1
    assert pcc_nb_mean(counts, counts.astype(float)) == pytest.approx(1)
    assert mse_nb_mean(counts, counts * 7.0) == pytest.approx(0, abs=1e-20)
    shuffled = mean[np.random.default_rng(0).permutation(300)]
    assert abs(pcc_nb_mean(counts, shuffled)) < 0.1
    assert re_nb_nll(counts, mean, theta) < re_nb_nll(counts, shuffled, theta)


def test_cells_without_counts():
    counts, mean, theta = cells(4)
    counts[1] = 0
    rest = [0, 2, 3]
    assert re_nb_nll(counts, mean, theta) == pytest.approx(0.75 * re_nb_nll(counts[rest], mean[rest], theta))
    empty = np.zeros((1, 40))
    assert mse_nb_draw(empty, mean[:1], theta, rng=np.random.default_rng(0)) == 0  # mean 0, so nothing is drawn
    mean[1] = 0
    assert np.isfinite(re_nb_nll(counts, mean, theta))


def test_a_count_where_the_model_expects_none():
    counts, mean, theta = cells(4)
    mean[:, 5], counts[2, 5] = 0, 1
    assert re_nb_nll(counts, mean, theta) == np.inf


def test_bad_input():
    counts, mean, theta = cells(5)
    nan, zero, rng = mean.copy(), mean.copy(), np.random.default_rng(0)
    nan[1, 1], zero[2] = np.nan, 0
    cases = [
        (lambda: re_nb_nll(counts, mean[:, :39], theta), "same cells and genes"),
        (lambda: re_nb_nll(counts[:0], mean[:0], theta), "same cells and genes"),
        (lambda: re_nb_nll(counts, mean, theta[:3]), "theta is"),
        (lambda: re_nb_nll(counts, mean, np.log(theta)), "theta is"),
        (lambda: mse_nb_draw(counts, mean, theta * np.inf, rng=rng), "theta is"),
        (lambda: mse_nb_mean(counts - 3, mean), "Counts are finite"),
        (lambda: mse_nb_mean(counts, nan), "Means are finite"),
        (lambda: mse_nb_mean(counts, np.log(mean)), "Means are finite"),
        (lambda: mse_nb_mean(counts, zero), "only zeros for cell 2"),
        (lambda: pcc_nb_mean(counts[:1], mean[:1]), "varies across the cells"),
        (lambda: pcc_nb_mean(np.ones_like(counts), mean), "varies across the cells"),
    ]
    for call, message in cases:
        with pytest.raises(ScreproError, match=message):
            call()
