import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.kernels.frechet import frechet, frechet_of_points, reference


def moments(a):
    return a.mean(0), np.atleast_2d(np.cov(a.T))


def samples(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)) @ mix, rng.normal(size=(m, d)) * rng.gamma(2, 1, d) + 0.5


def test_closed_forms():
    one = np.ones(1)
    # in one dimension: squared difference of the means, and of the standard deviations
    assert frechet(0 * one, [[4.0]], 3 * one, [[25.0]]) == pytest.approx(9 + 9)
    # covariances that commute: dimension by dimension
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    a, b = np.array([1.0, 2, 3, 4, 0]), np.array([4.0, 0, 1, 9, 0])
    found = frechet(np.zeros(5), (q * a) @ q.T, np.zeros(5), (q * b) @ q.T)
    assert found == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-7)
    # a single point in place of either distribution: mean squared distance to it
    assert frechet(np.zeros(5), np.zeros((5, 5)), np.ones(5), np.diag(b)) == pytest.approx(5 + b.sum())
    assert frechet(np.ones(5), np.diag(b), np.zeros(5), np.zeros((5, 5))) == pytest.approx(5 + b.sum())


@pytest.mark.parametrize("d", [1, 2, 17, 127])
def test_it_is_the_printed_formula(d):
    a, b = samples(3 * d + 5, 4 * d + 3, d)
    wanted = reference(*moments(a), *moments(b))
    assert frechet(*moments(a), *moments(b)) == pytest.approx(wanted, rel=1e-9)
    assert frechet_of_points(a, b) == pytest.approx(wanted, rel=1e-9)


SIZES = [(2, 2, 5), (2, 40, 5), (5, 3, 9), (9, 9, 9), (10, 9, 9), (40, 2, 30), (3, 3, 1)]


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
def test_few_points_have_singular_covariances_and_exact_distances(n, m, d):
    a, b = samples(n, m, d)
    # singular values of A B' need no root of a matrix at all
    u, v = (a - a.mean(0)) / np.sqrt(n - 1), (b - b.mean(0)) / np.sqrt(m - 1)
    root = np.linalg.svd(u @ v.T, compute_uv=False).sum()
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + (u**2).sum() + (v**2).sum() - 2 * root
    for found in (frechet_of_points(a, b), frechet(*moments(a), *moments(b))):
        assert found == pytest.approx(wanted, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 25), st.integers(2, 25), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_laws(n, m, d, seed):
    rng = np.random.default_rng(seed)
    a, b = samples(n, m, d, seed)
    found = frechet_of_points(a, b)
    scale = 1e-7 * ((a**2).sum() + (b**2).sum() + 1)
    assert found >= 0
    assert frechet_of_points(a, a) == pytest.approx(0, abs=scale)
    assert frechet_of_points(b, a) == pytest.approx(found, abs=scale)
    assert frechet_of_points(a[rng.permutation(n)] * 2 + 1, b * 2 + 1) == pytest.approx(4 * found, abs=10 * scale)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    assert frechet_of_points(a @ turn, b @ turn) == pytest.approx(found, abs=scale)
    # never less than the means are apart; equal to it for a shifted copy
    assert found >= ((a.mean(0) - b.mean(0)) ** 2).sum() - scale
    assert frechet_of_points(a, a + 3) == pytest.approx(9 * d, abs=10 * scale)


def test_points_that_do_not_vary():
    a = np.full((7, 4), 0.1)
    b = np.random.default_rng(0).normal(size=(50, 4))
    assert frechet_of_points(a, a) == 0
    assert frechet_of_points(a, b) == pytest.approx(((b.mean(0) - 0.1) ** 2).sum() + b.var(0, ddof=1).sum())
    assert frechet_of_points(b, a) == pytest.approx(frechet_of_points(a, b))
    # one dimension without variation beside others
    flat = b * [1, 1, 1, 0]
    assert frechet_of_points(flat, 2 * flat) == pytest.approx(
        reference(*moments(flat[:, :3]), *moments(2 * flat[:, :3]))
    )


def test_tensors_float32_and_arrays_that_cannot_be_written():
    a, b = samples(40, 30, 6)
    wanted = frechet_of_points(a, b)
    assert frechet_of_points(torch.from_numpy(a).requires_grad_(), torch.from_numpy(b)) == pytest.approx(wanted)
    assert frechet_of_points(a.astype(np.float32), b.tolist()) == pytest.approx(wanted, rel=1e-5)
    a.flags.writeable = False
    assert frechet_of_points(a[::-1], np.asfortranarray(b)) == pytest.approx(wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_points_are_taken_as_they_are(dtype):
    a, b = (torch.from_numpy(x).to(dtype) for x in samples(40, 30, 6))
    rounded = [x.double().numpy() for x in (a, b)]
    assert frechet_of_points(a, b) == pytest.approx(frechet_of_points(*rounded), rel=1e-12)
    of = [torch.from_numpy(m).to(dtype) for x in rounded for m in moments(x)]
    assert frechet(*of) == pytest.approx(frechet(*(m.double().numpy() for m in of)), rel=1e-12)


def test_errors():
    a, b = samples(6, 7, 3)
    with pytest.raises(ScreproError, match="two points"):
        frechet_of_points(a[:1], b)
    with pytest.raises(ScreproError, match="dimensions"):
        frechet_of_points(a, b[:, :2])
    with pytest.raises(ScreproError, match="two points"):
        frechet_of_points(a[:, 0], b[:, 0])
    with pytest.raises(ScreproError, match=r"\(3,\), \(3, 3\), \(3,\), \(2, 2\)"):
        frechet(*moments(a), b.mean(0), np.eye(2))
    a[2, 1] = np.nan
    with pytest.raises(ScreproError, match="1 values"):
        frechet_of_points(a, b)
    with pytest.raises(ScreproError, match="finite"):
        frechet(*moments(b), *moments(a))
