import numpy as np
import pytest
from scipy import integrate, sparse, stats
from scipy.special import gammaln

from screpro.baselines import poisson_lasso, saver


def regression(seed=0, n=120, p=30, n_targets=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(p, n))
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    y = rng.poisson(np.exp(0.5 + 0.6 * x[:n_targets] - 0.4 * x[n_targets : 2 * n_targets])).astype(float)
    return x, y


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_lasso_meets_the_optimality_conditions(share):
    x, y = regression()
    own = np.array([0, -1, 2, 3])
    largest = np.abs((y - y.mean(axis=1, keepdims=True)) @ x.T) / x.shape[1]
    largest[[0, 2, 3], [0, 2, 3]] = 0
    penalty = share * largest.max(axis=1)
    found = poisson_lasso.fit(x, y, penalty, own=own)
    mu = poisson_lasso.predict(found, x)
    np.testing.assert_allclose(mu.mean(axis=1), y.mean(axis=1), rtol=1e-3)  # the intercept is not penalised
    gradient = (y - mu) @ x.T / x.shape[1]
    for t in range(len(y)):
        b = np.zeros(len(x))
        b[found.index[t, : found.number[t]]] = found.value[t, : found.number[t]]
        used = b != 0
        assert used.any() and (own[t] < 0 or not used[own[t]])
        np.testing.assert_allclose(gradient[t, used], penalty[t] * np.sign(b[used]), atol=0.02 * penalty[t])
        free = ~used
        if own[t] >= 0:
            free[own[t]] = False
        assert (np.abs(gradient[t, free]) <= 1.02 * penalty[t]).all()


def test_lasso_above_the_largest_penalty_is_the_mean_and_warm_starts_end_alike():
    x, y = regression()
    own = np.full(len(y), -1)
    largest = (np.abs((y - y.mean(axis=1, keepdims=True)) @ x.T) / x.shape[1]).max(axis=1)
    nothing = poisson_lasso.fit(x, y, 1.001 * largest, own=own)
    np.testing.assert_allclose(poisson_lasso.predict(nothing, x), np.repeat(y.mean(1)[:, None], x.shape[1], 1))
    middle = poisson_lasso.fit(x, y, 0.4 * largest, own=own)
    warm = poisson_lasso.fit(x, y, 0.1 * largest, own=own, start=middle)
    cold = poisson_lasso.fit(x, y, 0.1 * largest, own=own)
    np.testing.assert_allclose(poisson_lasso.predict(warm, x), poisson_lasso.predict(cold, x), rtol=0.02)
    wide = poisson_lasso.fit(x, 7 * y, 7 * 0.1 * largest, own=own)
    np.testing.assert_allclose(poisson_lasso.predict(wide, x), 7 * poisson_lasso.predict(cold, x), rtol=1e-6)


@pytest.mark.parametrize("kind", [saver.CV, saver.FANO, saver.VARIANCE])
def test_marginal_likelihood_is_the_integral_over_the_gamma_prior(kind):
    y, mu, factor = np.array([0.0, 2.0, 5.0]), np.array([0.5, 1.5, 2.0]), np.array([0.7, 1.0, 1.6])
    parameter = 0.8
    alpha = {saver.CV: 1 / parameter + 0 * mu, saver.FANO: mu / parameter, saver.VARIANCE: mu**2 / parameter}[kind]
    expected = 0.0
    for a, m, s, count in zip(alpha, mu, factor, y, strict=True):
        density = stats.gamma(a, scale=m / a)
        value, _ = integrate.quad(
            lambda r, s=s, c=count, d=density: stats.poisson.pmf(c, s * r) * d.pdf(r),
            0,
            60,
            points=[0.01, 1],
            limit=200,
        )
        expected += np.log(value) + gammaln(count + 1)
    found = saver.log_likelihood(kind, parameter, y, mu, factor)
    assert found == pytest.approx(expected, abs=1e-4)


def test_posterior_means_are_gamma_poisson():
    rng = np.random.default_rng(0)
    factor, mu = rng.gamma(10, 0.1, 400), rng.gamma(2, 1, (3, 400))
    y = rng.poisson(factor * rng.gamma(2.0, mu / 2.0)).astype(float)
    found = saver.shrink(y, mu, factor)
    for t in range(3):
        p = found.parameter[t]
        alpha = [1 / p + 0 * mu[t], mu[t] / p, mu[t] ** 2 / p][found.model[t]]
        expected = (alpha + y[t]) / (alpha / mu[t] + factor)
        np.testing.assert_allclose(found.mean[t], expected)
    low, high = np.minimum(mu, y / factor), np.maximum(mu, y / factor)
    assert ((found.mean >= low - 1e-9) & (found.mean <= high + 1e-9)).all()  # between prior mean and own count


@pytest.mark.parametrize("kind", [saver.CV, saver.FANO, saver.VARIANCE])
def test_the_true_variance_model_and_its_parameter_are_found(kind):
    rng = np.random.default_rng(1)
    factor, mu = np.full(4000, 1.0), np.exp(rng.normal(1.5, 1.0, (1, 4000)))
    true = {saver.CV: 0.5, saver.FANO: 3.0, saver.VARIANCE: 4.0}[kind]
    alpha = [1 / true + 0 * mu, mu / true, mu**2 / true][kind]
    y = rng.poisson(rng.gamma(alpha, mu / alpha)).astype(float)
    found = saver.shrink(y, mu, factor)
    assert found.model[0] == kind
    assert found.parameter[0] == pytest.approx(true, rel=0.25)


def test_poisson_counts_are_pulled_to_the_prior_and_equal_priors_take_the_fano_model():
    rng = np.random.default_rng(2)
    mu = np.full((1, 500), 3.0)
    y = rng.poisson(mu).astype(float)
    found = saver.shrink(y, mu, np.ones(500))
    assert found.model[0] == saver.FANO
    assert np.abs(found.mean - 3).mean() < 0.3 * np.abs(y - 3).mean()


def test_regression_is_kept_for_genes_that_others_tell_about():
    rng = np.random.default_rng(3)
    state = rng.normal(size=200)
    rate = np.exp(np.outer(state, np.r_[np.ones(10), np.zeros(30)]) + 1)
    genes = sparse.csc_matrix(rng.poisson(rate).astype(float))
    factor = np.ones(200)
    prior = saver.prior_mean(genes, factor, seed=0)
    told = [np.corrcoef(np.log(prior[g]), state)[0, 1] for g in range(10)]
    assert min(told) > 0.8
    np.testing.assert_allclose(prior.mean(axis=1), np.asarray(genes.mean(axis=0)).ravel(), rtol=0.02)
    few = saver.prior_mean(genes, factor, seed=0, min_mean=1e3)  # no predictors: means
    np.testing.assert_allclose(few, np.repeat(np.asarray(genes.mean(axis=0)).T, 200, axis=1))
