"""Transport scores against POT and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.metrics import transport
from screpro.metrics.transport import sinkhorn_divergence, w2_exact


def cloud(n, shift=0.0, seed=0, d=5):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


@pytest.mark.parametrize(("n", "m"), [(40, 40), (30, 45), (1, 7), (1, 1)])
def test_w2_is_the_root_of_pots_cost(n, m):
    import ot

    real, made = cloud(n), cloud(m, 0.5, seed=1)
    cost = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), ot.dist(real, made))
    assert w2_exact(real, made) == pytest.approx(np.sqrt(cost), rel=1e-9)


@given(st.floats(-5, 5), st.integers(0, 50))
def test_w2_of_a_shifted_cloud_is_the_shift(shift, seed):
    real = cloud(20, seed=seed)
    moved = real[np.random.default_rng(seed).permutation(20)] + shift
    assert w2_exact(real, moved) == pytest.approx(abs(shift) * np.sqrt(5), abs=1e-6)


def test_on_a_line_cells_are_paired_in_order():
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(50, 1)), rng.gamma(2, 1, size=(50, 1))
    expected = np.sqrt(np.mean((np.sort(real[:, 0]) - np.sort(made[:, 0])) ** 2))
    assert w2_exact(real, made) == pytest.approx(expected)


def test_large_samples_are_cut_by_the_seed(monkeypatch):
    monkeypatch.setattr(transport, "LIMIT", 30)
    real, made = cloud(200), cloud(60, 0.3, seed=1)
    assert w2_exact(real, made, seed=1) == w2_exact(real, made, seed=1) != w2_exact(real, made, seed=2)


def test_sinkhorn_divergence_is_pots():
    import ot

    real, made = cloud(30), cloud(25, 0.6, seed=1)
    blur = 0.8

    def entropic(x, y):
        a, b = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
        costs, eps = ot.dist(x, y), 2 * blur**2
        plan = ot.sinkhorn(a, b, costs, eps, method="sinkhorn_log", numItermax=1000, stopThr=1e-9, warn=False)
        return (plan * costs).sum() + eps * (plan * np.log(plan / np.outer(a, b))).sum()

    expected = entropic(real, made) - (entropic(real, real) + entropic(made, made)) / 2
    assert sinkhorn_divergence(real, made, blur=blur) == pytest.approx(expected, rel=1e-3)


def test_sinkhorn_lies_between_the_means_and_w2_and_is_zero_for_equal_samples():
    real, made = cloud(40), cloud(40, 1.0, seed=1)
    assert sinkhorn_divergence(real, real) == pytest.approx(0, abs=1e-6)
    wide = sinkhorn_divergence(real, made, blur=100.0)
    assert wide == pytest.approx(np.square(real.mean(0) - made.mean(0)).sum(), rel=0.02)
    # the default blur depends on the real cells alone
    spread = np.sqrt(np.square(real - real.mean(0)).sum(1).mean())
    assert sinkhorn_divergence(real, made) == sinkhorn_divergence(real, made, blur=0.1 * spread)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("score", [w2_exact, sinkhorn_divergence])
def test_tensors_of_any_precision_are_points_as_they_are(score):
    real, made = (torch.from_numpy(x).bfloat16() for x in (cloud(20), cloud(20, 0.5, seed=1)))
    expected = score(real.double().numpy(), made.double().numpy())
    assert score(real.requires_grad_(), made) == expected
    for both in (False, True):
        on_gpu = [x.detach().as_subclass(OnGpu) if own else x for x, own in ((real, both), (made, True))]
        assert score(*on_gpu) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("score", [w2_exact, sinkhorn_divergence])
def test_on_a_gpu(score):
    real, made = cloud(300), cloud(300, 0.5, seed=1)
    on_gpu = score(torch.from_numpy(real).cuda(), torch.from_numpy(made).cuda())
    assert on_gpu == pytest.approx(score(real, made), rel=1e-3)


@pytest.mark.parametrize("score", [w2_exact, sinkhorn_divergence])
def test_bad_input_is_one_clear_error(score):
    good = cloud(5)
    with pytest.raises(ScreproError, match="same space"):
        score(good, good[:, :2])
    with pytest.raises(ScreproError, match="same space"):
        score(good[:0], good)
    with pytest.raises(ScreproError, match="finite"):
        score(good * 1e160, good)
    with pytest.raises(ScreproError, match="finite"):
        score(np.where(good > 1, np.nan, good) if (good > 1).any() else good * np.nan, good)


def test_blur_has_to_be_positive_and_defined():
    with pytest.raises(ScreproError, match="positive"):
        sinkhorn_divergence(cloud(4), cloud(4), blur=0.0)
    with pytest.raises(ScreproError, match="default blur"):
        sinkhorn_divergence(np.ones((4, 2)), cloud(4, d=2))
