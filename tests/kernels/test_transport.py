"""Exact and entropic transport against POT, scipy, closed forms and their own certificates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.kernels import sinkhorn
from screpro.kernels.transport import exact_w2, lower_bound, reference


def cloud(n, d=5, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


@pytest.mark.parametrize("n", [1, 2, 17, 127, 600])
@pytest.mark.parametrize(("d", "shift"), [(1, 0.0), (30, 0.3), (3, 50.0)])
def test_equal_sizes_are_scipys_assignment_and_certified(n, d, shift):
    a, b = cloud(n, d), cloud(n, d, shift, seed=1)
    plan = exact_w2(a, b)
    assert plan.value == pytest.approx(reference(a, b), rel=1e-9)
    assert plan.lower_bound <= plan.cost * (1 + 1e-12) and plan.gap < 1e-6
    if plan.match is not None:
        assert sorted(plan.match) == list(range(n))
        assert np.square(a - b[plan.match]).sum(1).mean() == pytest.approx(plan.cost)


def clusters(n, seed, distance=10.0, d=10):
    """Cell types far apart, each with as many cells as the draw happens to give it."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(6, d)) * distance
    return centres[rng.integers(6, size=n)] + rng.normal(size=(n, d))


def test_clusters_of_unequal_numbers_need_many_prices_to_move_far():
    a, b = clusters(900, 1), clusters(900, 2)
    plan = exact_w2(a, b)
    assert plan.value == pytest.approx(reference(a, b), rel=1e-9)
    assert plan.solver == "auction" and plan.gap < 1e-8


def test_equal_costs_everywhere_are_solved_too():
    corners = np.array(np.meshgrid(*[[0.0, 1.0]] * 9)).reshape(9, -1).T
    order = np.random.default_rng(0).permutation(512)
    a, b = corners[order[:300]], corners[order[200:500]]
    plan = exact_w2(a, b)
    assert plan.value == pytest.approx(reference(a, b), rel=1e-9) and plan.gap < 1e-6


@pytest.mark.parametrize(("n", "m"), [(1, 5), (30, 45), (64, 17)])
def test_other_sizes_are_pots(n, m):
    import ot

    a, b = cloud(n), cloud(m, shift=0.5, seed=1)
    plan = exact_w2(a, b)
    assert plan.cost == pytest.approx(ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), ot.dist(a, b)), rel=1e-9)
    assert plan.gap < 1e-6


def test_repeated_points_are_merged():
    a = np.repeat(cloud(8), 5, axis=0)
    b = np.repeat(cloud(10, shift=0.4, seed=1), 4, axis=0)
    plan = exact_w2(a, b)
    assert plan.value == pytest.approx(reference(a, b), rel=1e-9) and plan.gap < 1e-6
    assert exact_w2(a, a).cost == 0


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e4]))
def test_any_cloud_of_any_scale_is_solved(n, d, seed, scale):
    a, b = cloud(n, d, seed=seed) * scale, cloud(n, d, 0.2, seed + 1) * scale
    plan = exact_w2(a, b)
    assert plan.value == pytest.approx(reference(a, b), rel=1e-7)
    assert exact_w2(b, a).value == pytest.approx(plan.value, rel=1e-7)


@given(st.integers(2, 30), st.integers(0, 10**6))
def test_any_dual_values_bound_the_optimum_from_below(n, seed):
    a, b = cloud(n, 3, seed=seed), cloud(n, 3, 0.5, seed + 1)
    v = np.random.default_rng(seed).normal(size=n)
    assert lower_bound(a, b, v) <= reference(a, b) ** 2 * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 13)])
def test_tensors_are_points_as_they_are(dtype, n, m):
    import ot

    a, b = (torch.from_numpy(cloud(size, seed=size + s)).to(dtype).requires_grad_() for s, size in enumerate((n, m)))
    cost = ot.dist(*(p.detach().double().numpy() for p in (a, b)))
    expected = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), cost)
    assert exact_w2(a, b).cost == pytest.approx(expected, rel=1e-9)


def test_bad_input_is_one_clear_error():
    with pytest.raises(ScreproError, match="finite"):
        exact_w2(cloud(4) * 1e160, cloud(4))
    with pytest.raises(ScreproError, match="finite"):
        exact_w2(cloud(4) * np.nan, cloud(4))
    with pytest.raises(ScreproError, match="dimension"):
        exact_w2(cloud(4, 3), cloud(4, 2))


# --- Sinkhorn ---------------------------------------------------------------------------------------------------


def sets(count, n, d=4, shift=0.0, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.stack([cloud(n, d, shift, seed + s) for s in range(count)])).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 3e-4)])
@pytest.mark.parametrize(("n", "m", "blur"), [(17, 17, 1.0), (40, 23, 0.7), (1, 9, 1.0), (64, 64, 3.0)])
def test_every_set_of_a_batch_is_the_plain_iteration(n, m, blur, dtype, tolerance):
    x, y = sets(3, n, dtype=dtype), sets(3, m, shift=0.5, seed=9, dtype=dtype)
    found = sinkhorn.sinkhorn(x, y, blur=blur)
    for s in range(3):
        expected, *_ = sinkhorn.reference(x[s], y[s], blur=blur, iterations=500)
        assert float(found.cost[s]) == pytest.approx(float(expected), rel=tolerance)
    assert float(found.error.max()) <= 1e-4


def test_it_is_pots_at_equal_epsilon():
    import ot

    x, y = sets(1, 30), sets(1, 25, shift=0.6, seed=9)
    a, b, costs = np.full(30, 1 / 30), np.full(25, 1 / 25), ot.dist(x[0].numpy(), y[0].numpy())
    plan = ot.sinkhorn(a, b, costs, 2.0, method="sinkhorn_log", numItermax=5000, stopThr=1e-12)
    expected = (plan * costs).sum() + 2.0 * (plan * np.log(plan / np.outer(a, b))).sum()
    assert float(sinkhorn.sinkhorn(x, y, blur=1.0, tolerance=1e-7).cost[0]) == pytest.approx(expected, rel=1e-6)


def test_points_that_ask_for_a_gradient_get_none():
    x, y = sets(1, 8).requires_grad_(), sets(1, 9, seed=9)
    assert not sinkhorn.divergence(x, y, blur=1.0).requires_grad
    torch.testing.assert_close(sinkhorn.divergence(x, y, blur=1.0), sinkhorn.divergence(x.detach(), y, blur=1.0))


@pytest.mark.parametrize("factor", [2.0**-400, 2.0**400])
def test_the_unit_does_not_matter(factor):
    x, y = sets(1, 20), sets(1, 15, shift=0.4, seed=9)
    plain, other = sinkhorn.sinkhorn(x, y, blur=0.8), sinkhorn.sinkhorn(x * factor, y * factor, blur=0.8 * factor)
    torch.testing.assert_close(other.cost / factor**2, plain.cost, rtol=1e-12, atol=0)


def test_padding_changes_nothing():
    x, y = sets(2, 20), sets(2, 15, shift=0.4, seed=9)
    padded = torch.cat([x, torch.full((2, 6, 4), 7.0, dtype=x.dtype)], dim=1)
    plain = sinkhorn.divergence(x, y, blur=0.8, tolerance=1e-6)
    ragged = sinkhorn.divergence(padded, y, blur=0.8, lengths_x=[20, 20], tolerance=1e-6)
    torch.testing.assert_close(plain, ragged, rtol=1e-4, atol=1e-6)


def test_the_divergence_of_equal_sets_is_zero_and_small_blur_gives_w2():
    x, y = sets(1, 40), sets(1, 40, shift=1.0, seed=9)
    assert float(sinkhorn.divergence(x, x, blur=0.5, tolerance=1e-6)[0]) == pytest.approx(0, abs=1e-6)
    expected = exact_w2(x[0].numpy(), y[0].numpy()).cost
    assert float(sinkhorn.divergence(x, y, blur=0.1)[0]) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("blur", [0.3, 3.0])
def test_clusters_of_unequal_numbers_converge(blur):
    a, b = clusters(150, 1), clusters(150, 2)
    found = sinkhorn.sinkhorn(torch.from_numpy(a).float()[None], torch.from_numpy(b).float()[None], blur=blur)
    exact = exact_w2(a, b).cost
    # the entropy of a plan is between 0 and log n
    assert exact * (1 - 1e-3) <= float(found.cost[0]) <= exact + 2 * blur**2 * np.log(150)
    assert found.iterations < 1000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn.sinkhorn(sets(1, 5)[0], sets(1, 5)[0], blur=1.0), "sets, points, dimensions"),
        (lambda: sinkhorn.sinkhorn(sets(1, 5), sets(1, 5), blur=0.0), "positive"),
        (lambda: sinkhorn.sinkhorn(sets(1, 5) * np.nan, sets(1, 5), blur=1.0), "finite"),
        (lambda: sinkhorn.sinkhorn(sets(1, 5), sets(1, 5) * 1e160, blur=1.0), "finite"),
        (lambda: sinkhorn.sinkhorn(sets(1, 5), sets(1, 5).to("meta"), blur=1.0), "one device"),
        (lambda: sinkhorn.sinkhorn(sets(1, 5), sets(1, 5), blur=1.0, lengths_x=[0]), "Lengths"),
        (lambda: sinkhorn.sinkhorn(sets(1, 50), sets(1, 50, shift=9.0, seed=9), blur=1e-3, most=20), "converge"),
    ],
)
def test_bad_sets_are_one_clear_error(call, message):
    with pytest.raises(ScreproError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triton_is_the_log_sum_exp(dtype):
    pytest.importorskip("triton")
    from screpro.kernels.gpu.sinkhorn import softmin

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = sets(2, 35, dtype=dtype).to(device), sets(2, 71, shift=0.3, seed=9, dtype=dtype).to(device)
    g = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 71))).to(device)
    weights = torch.full((2, 71), 1 / 60, dtype=torch.float64, device=device)
    weights[:, 60:] = 0  # padding
    costs = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    expected = -0.7 * torch.logsumexp((g[:, None] - costs) / 0.7 + weights.log()[:, None], dim=2)
    found = softmin(x, y, g, weights, 0.7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-10)
