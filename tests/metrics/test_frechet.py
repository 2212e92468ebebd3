import numpy as np
import pytest
from scipy.linalg import sqrtm

from screpro.errors import ScreproError
from screpro.metrics.frechet import frechet_distance


def test_it_is_the_formula_on_sample_moments():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(45, 5)) + 0.3
    (m, c), (w, v) = ((x.mean(0), np.cov(x.T, ddof=1)) for x in (real, generated))
    wanted = ((m - w) ** 2).sum() + np.trace(c + v - 2 * sqrtm(c @ v).real)
    assert frechet_distance(real, generated) == pytest.approx(wanted)


def test_only_mean_and_covariance_count():
    rng = np.random.default_rng(0)
    two = np.r_[rng.normal(-5, 1, size=(500, 1)), rng.normal(5, 1, size=(500, 1))]
    one = two.mean() + two.std() * np.linspace(-1, 1, 1000)[:, None] / np.linspace(-1, 1, 1000).std()
    assert frechet_distance(two, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(two, one + 1) == pytest.approx(1)


def test_the_bias_is_as_large_as_said():
    rng = np.random.default_rng(0)
    n, m, k = 200, 300, 10
    draws = [frechet_distance(rng.normal(size=(n, k)), rng.normal(size=(m, k))) for _ in range(300)]
    of_means = k * (1 / n + 1 / m)
    error = 4 * np.std(draws) / np.sqrt(len(draws))
    assert np.mean(draws) == pytest.approx(of_means * (1 + (k + 1) / 4), abs=error + 0.03 * of_means)


def test_bad_input():
    points = np.random.default_rng(0).normal(size=(8, 3))
    with pytest.raises(ScreproError, match="two points"):
        frechet_distance(points, points[:1])
    with pytest.raises(ScreproError, match="dimensions"):
        frechet_distance(points, points[:, :2])
    with pytest.raises(ScreproError, match="finite"):
        frechet_distance(points, points * [1, np.inf, 1])
    assert frechet_distance(points[:2], points[:2]) == pytest.approx(0, abs=1e-12)
