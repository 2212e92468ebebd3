import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import rbf_kernel

from screpro.errors import ScreproError
from screpro.kernels import mmd
from screpro.kernels.mmd import rbf_mmd2, reference, streamed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GAMMAS = 1 / (2 * np.array([0.01, 0.1, 1.0, 10.0, 100.0]) ** 2)


def cloud(n: int, d: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(3, 1, d) + shift


def by_sklearn(a: np.ndarray, b: np.ndarray, gamma: float, unbiased: bool) -> float:
    aa, bb, ab = rbf_kernel(a, a, gamma), rbf_kernel(b, b, gamma), rbf_kernel(a, b, gamma)
    if unbiased:
        within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (aa, bb))
    else:
        within = aa.mean() + bb.mean()
    return within - 2 * ab.mean()


@pytest.mark.parametrize("unbiased", [False, True])
def test_reference_is_what_scikit_learn_says(unbiased):
    a, b = cloud(40, 3), cloud(33, 3, 1, 0.5)
    expected = [by_sklearn(a, b, gamma, unbiased) for gamma in GAMMAS]
    np.testing.assert_allclose(reference(a, b, gammas=GAMMAS, unbiased=unbiased), expected, atol=1e-13)


@pytest.mark.parametrize(("n", "m", "d"), [(2, 3, 1), (17, 127, 30), (1023, 260, 5), (300, 1031, 2), (60, 40, 257)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("unbiased", [False, True])
def test_tiles_agree_with_float64(n, m, d, dtype, unbiased):
    a, b = cloud(n, d, shift=4).astype(dtype), cloud(m, d, 1, 4.1).astype(dtype)
    b[: m // 5] = a[0]  # duplicates, for which the narrowest kernel is 1
    exact = reference(a, b, gammas=GAMMAS, unbiased=unbiased)
    tiles = streamed(a, b, gammas=GAMMAS, unbiased=unbiased)
    # what plain float32 does: squared distances by products, exponentials, means in float64
    x, y = torch.from_numpy(a - a.mean(0)).float(), torch.from_numpy(b - a.mean(0)).float()

    def mean(p, q, gamma, own):
        squares = (p * p).sum(1)[:, None] + (q * q).sum(1) - 2 * p @ q.T
        kernel = torch.exp(-gamma * squares.clamp_min(0)).double()
        return float(kernel.sum() - kernel.trace()) / (len(p) * (len(p) - 1)) if own else float(kernel.mean())

    for k, gamma in enumerate(GAMMAS):
        plain = mean(x, x, gamma, unbiased) + mean(y, y, gamma, unbiased) - 2 * mean(x, y, gamma, False)
        assert abs(tiles[k] - exact[k]) <= 2 * abs(plain - exact[k]) + 2e-8
    np.testing.assert_allclose(rbf_mmd2(a, b, gammas=GAMMAS, unbiased=unbiased), exact, atol=1e-7)


def test_wide_kernels_keep_their_digits():
    a, b = cloud(700, 10), cloud(800, 10, 1, 0.2)
    gammas = [1e-3, 1e-6, 1e-9]
    np.testing.assert_allclose(streamed(a, b, gammas=np.array(gammas)), reference(a, b, gammas=gammas), rtol=2e-6)
    # to first order in gamma, MMD^2 is 2 gamma times the squared distance of the means
    limit = 2e-9 * np.sum((a.mean(0) - b.mean(0)) ** 2)
    assert streamed(a, b, gammas=np.array([1e-9]))[0] == pytest.approx(limit, rel=1e-4)


def test_closed_forms():
    a, b = np.zeros((3, 2)), np.full((4, 2), 30.0)
    expected = 2 * -np.expm1(-GAMMAS * 1800)
    for function in (reference, streamed, rbf_mmd2):
        np.testing.assert_allclose(function(a, b, gammas=GAMMAS), expected, rtol=1e-6)
        np.testing.assert_allclose(function(a, a, gammas=GAMMAS), 0, atol=1e-12)
    far = np.arange(600.0)[:, None] * 100  # nothing is near anything: 1/n + 1/m for every narrow kernel
    np.testing.assert_allclose(streamed(far, far[:300] + 50, gammas=GAMMAS[:3]), 1 / 600 + 1 / 300)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 5), st.floats(1e-3, 10), st.integers(0, 2**32 - 1))
def test_invariances(n, m, d, gamma, seed):
    a, b = cloud(n, d, seed), cloud(m, d, seed + 1, 0.5)
    value = streamed(a, b, gammas=np.array([gamma]))[0]
    assert -1e-6 < value <= 2
    assert streamed(b, a, gammas=np.array([gamma]))[0] == pytest.approx(value, abs=1e-6)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    assert streamed(a @ turn + 9, b @ turn + 9, gammas=np.array([gamma]))[0] == pytest.approx(value, abs=2e-6)
    assert streamed(7 * a, 7 * b, gammas=np.array([gamma / 49]))[0] == pytest.approx(value, abs=1e-6)


def test_any_unit_and_any_width():
    a, b = cloud(300, 4), cloud(280, 4, 1, 0.3)
    expected = reference(a, b, gammas=[0.1])[0]
    for factor in (1e-20, 1e20):
        assert streamed(a * factor, b * factor, gammas=np.array([0.1 / factor**2]))[0] == pytest.approx(
            expected, rel=1e-5
        )
    np.testing.assert_allclose(streamed(a, b, gammas=np.array([1e300, 1e-300])), [1 / 300 + 1 / 280, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros((1, 2)), np.zeros((3, 2))), {"gammas": [1.0], "unbiased": True}, "at least two points"),
        ((np.zeros((0, 2)), np.zeros((3, 2))), {"gammas": [1.0]}, "at least one point"),
        ((np.zeros((3, 2)), np.zeros((3, 1))), {"gammas": [1.0]}, "same dimensions"),
        ((np.full((3, 2), np.nan), np.zeros((3, 2))), {"gammas": [1.0]}, "finite"),
        ((np.zeros((3, 2)), np.zeros((3, 2))), {"gammas": [0.0]}, "positive"),
        ((np.zeros((3, 2)), np.zeros((3, 2))), {"gammas": 1.0}, "positive"),
        ((np.zeros((3, 2)), np.zeros((3, 2))), {"gammas": []}, "positive"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, options, message):
    with pytest.raises(ScreproError, match=message):
        rbf_mmd2(*arguments, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [2.0**-83, 1, 2.0**83])  # 1e-25 and 1e25, but exact in every type
def test_triton(monkeypatch, dtype, factor):
    from screpro.kernels.gpu import energy as tiles
    from screpro.kernels.gpu import mmd as gpu

    for module in (tiles, gpu):
        monkeypatch.setattr(module, "TILE", 16)
    a, b = (torch.from_numpy(cloud(n, 4, n, 3)).to(DEVICE, dtype) * factor for n in (21, 18))
    b[:4] = a[:4]
    gammas = GAMMAS[1:] / factor**2
    sums = gpu.kernel_sums(a, b, gammas)
    a, b = (p.double().cpu().numpy() for p in (a, b))
    exact = [mmd._expm1_sums(*pair, gammas) for pair in ((a, a), (b, b), (a, b))]
    np.testing.assert_allclose(sums, exact, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [30, 700])  # float64 throughout, and tiles
def test_half_precision_points_are_taken_as_they_are(dtype, n):
    a, b = (torch.from_numpy(cloud(n, 5, seed)).to(dtype).requires_grad_() for seed in (0, 1))
    exact = reference(*(p.detach().double().numpy() for p in (a, b)), gammas=GAMMAS)
    np.testing.assert_allclose(rbf_mmd2(a, b, gammas=GAMMAS), exact, atol=1e-7)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_on_a_gpu():
    a, b = cloud(3000, 30).astype(np.float32), cloud(2500, 30, 1, 0.2).astype(np.float32)
    on_gpu = rbf_mmd2(torch.from_numpy(a).cuda(), torch.from_numpy(b).cuda(), gammas=GAMMAS)
    np.testing.assert_allclose(on_gpu, streamed(a, b, gammas=GAMMAS), rtol=1e-5, atol=1e-9)
