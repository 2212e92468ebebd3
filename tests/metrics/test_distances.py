import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel

from screpro.errors import ScreproError
from screpro.kernels.mmd import rbf_mmd2
from screpro.metrics.distances import (
    POOLED,
    SIGMAS,
    energy_distance_half,
    energy_distance_u,
    energy_distance_v,
    median_distance,
    mmd2_rbf_median,
    mmd2_rbf_sum5,
)

ALL = [energy_distance_v, energy_distance_u, energy_distance_half, mmd2_rbf_sum5, mmd2_rbf_median]
PAIRED = [energy_distance_u, mmd2_rbf_median]
few = settings(max_examples=30, deadline=None)
samples = st.tuples(st.integers(2, 25), st.integers(2, 25), st.integers(1, 6), st.integers(0, 2**32 - 1))


def drawn(n: int, m: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * 2, rng.normal(size=(m, d)) + 0.5


def off_diagonal(k: np.ndarray) -> float:
    return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))


@few
@given(samples)
def test_energy_is_its_formula(sample):
    a, b = drawn(*sample)
    v = 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()
    u = 2 * cdist(a, b).mean() - off_diagonal(cdist(a, a)) - off_diagonal(cdist(b, b))
    assert energy_distance_v(a, b) == pytest.approx(v) and energy_distance_u(a, b) == pytest.approx(u)
    assert energy_distance_half(a, b) == energy_distance_v(a, b) / 2


@few
@given(samples)
def test_mmd_is_its_formula(sample):
    a, b = drawn(*sample)
    n = min(len(a), len(b))
    gammas = [1 / (2 * sigma**2) for sigma in SIGMAS]
    v = [rbf_kernel(a[:n], gamma=g).mean() + rbf_kernel(b[:n], gamma=g).mean() for g in gammas]
    v = np.array(v) - [2 * rbf_kernel(a[:n], b[:n], gamma=g).mean() for g in gammas]
    assert mmd2_rbf_sum5(a[:n], b[:n]) == pytest.approx(v.sum(), abs=1e-12)
    pooled = np.concatenate([a, b])
    sigma = np.median(cdist(pooled, pooled)[np.triu_indices(len(pooled), 1)])
    kernels = [rbf_kernel(*pair, gamma=1 / (2 * sigma**2)) for pair in ((a, a), (b, b), (a, b))]
    u = off_diagonal(kernels[0]) + off_diagonal(kernels[1]) - 2 * kernels[2].mean()
    assert mmd2_rbf_median(a, b) == pytest.approx(u, abs=1e-12)


@few
@given(samples)
def test_they_are_symmetric_and_do_not_depend_on_order_origin_or_rotation(sample):
    a, b = drawn(*sample)
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]  # no draw
    rng = np.random.default_rng(sample[-1])
    turn = np.linalg.qr(rng.normal(size=(a.shape[1], a.shape[1])))[0]
    for metric in ALL:
        value = metric(a, b)
        assert metric(b, a) == pytest.approx(value, abs=1e-9)
        assert metric(rng.permutation(a), rng.permutation(b)) == pytest.approx(value, abs=1e-9)
        assert metric(a @ turn - 3, b @ turn - 3) == pytest.approx(value, abs=1e-7)
    assert energy_distance_v(5 * a, 5 * b) == pytest.approx(5 * energy_distance_v(a, b))
    assert mmd2_rbf_median(5 * a, 5 * b) == pytest.approx(mmd2_rbf_median(a, b), abs=1e-9)


def test_u_statistics_are_zero_on_average_and_v_statistics_are_biased():
    rng = np.random.default_rng(1)
    drawn = [(rng.normal(size=(8, 2)), rng.normal(size=(12, 2))) for _ in range(400)]
    mean = {metric: np.mean([metric(a, b) for a, b in drawn]) for metric in ALL}
    error = {metric: np.std([metric(a, b) for a, b in drawn]) / 20 for metric in ALL}
    assert abs(mean[energy_distance_u]) < 4 * error[energy_distance_u]
    expected = (1 / 8 + 1 / 12) * np.sqrt(np.pi)  # E|x - x'| of two standard normals in the plane is sqrt(pi)
    assert abs(mean[energy_distance_v] - expected) < 4 * error[energy_distance_v]


def test_median_with_a_width_of_its_own_is_unbiased():
    rng = np.random.default_rng(2)
    values = []
    for _ in range(300):
        points = rng.normal(size=(20, 2))
        values.append(mmd2_rbf_median(points[:8], points[8:]))
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)


def test_narrow_kernels_see_the_number_of_cells_only():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 389, 30)) * 2
    narrow = rbf_mmd2(a, b, gammas=[1 / (2 * sigma**2) for sigma in SIGMAS[:3]])
    np.testing.assert_allclose(narrow, 2 / 389, rtol=1e-6)
    assert 6 / 389 < mmd2_rbf_sum5(a, b) < 8 / 389


def test_the_sum_passes_two_and_stays_below_ten():
    assert 2 < mmd2_rbf_sum5(np.zeros((5, 30)), np.full((5, 30), 3.0)) < 10
    assert mmd2_rbf_sum5(np.zeros((5, 2)), np.full((5, 2), 1e6)) == pytest.approx(10)


def test_the_larger_set_is_cut_by_a_seeded_draw():
    a, b = drawn(30, 7, 2, 0)
    rng = np.random.default_rng(5)
    assert mmd2_rbf_sum5(a, b, seed=5) == mmd2_rbf_sum5(a[rng.choice(30, 7, replace=False)], b)
    assert mmd2_rbf_sum5(a, b, seed=5) == mmd2_rbf_sum5(a, b, seed=5) != mmd2_rbf_sum5(a, b, seed=6)


def test_median_of_many_points_is_drawn():
    points = np.random.default_rng(0).normal(size=(POOLED + 500, 2))
    values = {median_distance(points, seed=seed) for seed in (0, 0, 1)}
    assert len(values) == 2
    assert max(values) == pytest.approx(min(values), rel=0.02)
    assert median_distance(np.array([[0.0], [1.0], [3.0]])) == 2


def test_large_samples_go_through_tiles_and_agree():
    a, b = drawn(900, 800, 8, 3)
    v = 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()
    assert energy_distance_v(a, b) == pytest.approx(v, rel=1e-5)
    assert energy_distance_v(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(v, rel=1e-5)
    n = len(b)
    expected = sum(
        rbf_kernel(a[:n], gamma=g).mean() + rbf_kernel(b, gamma=g).mean() - 2 * rbf_kernel(a[:n], b, gamma=g).mean()
        for g in (1 / (2 * sigma**2) for sigma in SIGMAS)
    )
    assert mmd2_rbf_sum5(a[:n], b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric", ALL)
def test_awkward_cells(metric):
    alike = np.zeros((3, 2))  # all-zero cells
    value = metric(alike, alike)
    assert np.isnan(value) if metric is mmd2_rbf_median else value == 0
    wide = np.random.default_rng(0).normal(size=(2, 500))  # more components than cells
    assert np.isfinite(metric(wide, wide + 1))
    constant = np.c_[np.arange(6.0), np.ones(6)]
    rest = np.c_[np.arange(6.0) + 0.5, np.ones(6)]
    assert metric(constant, rest) == pytest.approx(metric(constant[:, :1], rest[:, :1]))
    if metric in PAIRED:
        with pytest.raises(ScreproError, match="at least 2"):
            metric(alike[:1], alike)
    else:
        assert np.isfinite(metric(alike[:1], alike[:1] + 1))


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), "same dimensions"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "`generated` holds finite"),
        (np.zeros((0, 2)), np.zeros((3, 2)), "`real` holds at least one"),
        (np.zeros(3), np.zeros((3, 2)), "`real` holds at least one"),
    ],
)
def test_bad_input_is_refused(metric, real, generated, message):
    with pytest.raises(ScreproError, match=message):
        metric(real, generated)
