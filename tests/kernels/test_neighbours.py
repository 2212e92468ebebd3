"""Nearest neighbours against the full matrix, scikit-learn and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.kernels.neighbours import nearest, radius_cover, reference


def cloud(n, d=3, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (17, 9, 4), (127, 300, 1), (1023, 129, 7), (300, 700, 16)])
@pytest.mark.parametrize("d", [1, 30])
def test_between_clouds_it_is_the_full_matrix(n, m, k, d):
    a, b = cloud(n, d), cloud(m, d, seed=1)
    distances, index = nearest(a, k, b)
    expected, _ = reference(a, k, b)
    np.testing.assert_allclose(distances, expected, rtol=1e-12)
    own = np.linalg.norm(a.astype(float)[:, None] - b.astype(float)[index], axis=2)
    np.testing.assert_allclose(distances, own, rtol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (17, 16), (127, 1), (700, 5), (1100, 1)])
def test_within_a_cloud_the_point_itself_is_left_out(n, k):
    a = cloud(n, 30)
    distances, index = nearest(a, k)
    np.testing.assert_allclose(distances, reference(a, k)[0], rtol=1e-12)
    assert (index != np.arange(n)[:, None]).all()


@given(st.integers(2, 60), st.integers(1, 5), st.integers(0, 1000), st.floats(-1e6, 1e6))
def test_far_from_the_origin_and_with_duplicates_it_stays_exact(n, k, seed, shift):
    k = min(k, n - 1)
    a = np.round(cloud(n, 2, seed, np.float64), 1) + shift  # many ties and duplicates, norms far above distances
    distances, _ = nearest(a, k)
    np.testing.assert_allclose(distances, reference(a, k)[0], rtol=1e-9, atol=1e-9 * max(1, abs(shift)) * 1e-6)


def test_duplicates_are_at_distance_zero():
    a = np.repeat(cloud(20, 5) + 100, 3, axis=0)
    distances, index = nearest(a, 2)
    assert (distances == 0).all()
    assert (index // 3 == (np.arange(60) // 3)[:, None]).all()


def test_it_agrees_with_sklearn_and_with_itself_reordered():
    from sklearn.neighbors import NearestNeighbors

    a, b = cloud(400, 12), cloud(900, 12, seed=1)
    theirs = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(b).kneighbors(a.astype(np.float64))
    distances, index = nearest(a, 3, b)
    np.testing.assert_allclose(distances, theirs[0], rtol=1e-5)
    assert (index == theirs[1]).mean() > 0.999
    order = np.random.default_rng(2).permutation(900)
    np.testing.assert_array_equal(order[nearest(a, 3, b[order])[1]], index)


def test_tensors_of_half_precision_are_points_as_they_are():
    import torch

    tensor = torch.from_numpy(cloud(127, 5)).bfloat16()
    distances, index = nearest(tensor, 2)
    expected = reference(tensor.float().numpy(), 2)
    np.testing.assert_allclose(distances, expected[0], rtol=1e-12)
    assert (index == expected[1]).mean() > 0.9  # rounded points are often equally far


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cover_takes_points_of_half_precision_as_they_are(dtype):
    import torch

    a, b = (torch.from_numpy(cloud(n, seed=n)).to(getattr(torch, dtype)).requires_grad_() for n in (40, 35))
    r = np.linspace(0, 1, 40)
    x, y = (points.detach().double().numpy() for points in (a, b))
    expected = (np.linalg.norm(x[:, None] - y, axis=2) <= r[:, None]).any(axis=0)
    np.testing.assert_array_equal(radius_cover(a, r, b), expected)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_cover_is_its_definition(n, m, seed):
    from scipy.spatial.distance import cdist

    a, b = cloud(n, 3, seed), cloud(m, 3, seed + 1)
    r = np.random.default_rng(seed).uniform(0, 2, n)
    expected = (cdist(a.astype(float), b.astype(float)) <= r[:, None]).any(axis=0)
    np.testing.assert_array_equal(radius_cover(a, r, b), expected)


@pytest.mark.parametrize("chunk", [1, 60, 2**20])
@pytest.mark.parametrize("scale", [1.0, 1e25])
def test_cover_on_a_gpu_is_its_definition(monkeypatch, chunk, scale):
    import torch

    from screpro.kernels.gpu import cover

    monkeypatch.setattr(cover, "CHUNK", chunk)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = cloud(30, 3) * np.float32(scale), cloud(50, 3, seed=1) * np.float32(scale)
    r = np.random.default_rng(0).uniform(0, 1.5, 30) * scale
    on_device = [torch.from_numpy(points).to(device) for points in (a, b)]
    expected = radius_cover(a, r, b)
    assert 5 < expected.sum() < 45
    np.testing.assert_array_equal(cover.cover_cuda(on_device[0], r, on_device[1]), expected)
    # a radius that is the distance of a neighbour, where float32 alone cannot tell
    radius = nearest(b, 5)[0][:, -1]
    assert cover.cover_cuda(on_device[1], radius, on_device[1]).all()
    shorter = np.nextafter(nearest(a, 1, b[:1])[0][:1, 0], 0) * (1 - 1e-12)
    assert not cover.cover_cuda(on_device[0][:1], shorter, on_device[1][:1]).any()
    with pytest.raises(ScreproError, match="finite"):
        cover.cover_cuda(on_device[0] * float("nan"), r, on_device[1])


def test_a_radius_reaches_exactly_as_far_as_the_neighbour_that_defines_it():
    a = cloud(200, 30)
    radius = nearest(a, 5)[0][:, -1]
    assert radius_cover(a, radius, a).all()
    assert not radius_cover(a[:1], [0.0], a[1:]).any() and radius_cover(a[:1], [0.0], a[:1]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest(cloud(5), 5), "number of other points"),
        (lambda: nearest(cloud(5), 0), "number of other points"),
        (lambda: nearest(cloud(5), 1, cloud(5, 4)), "dimension"),
        (lambda: nearest(cloud(5) * np.nan, 1), "finite"),
        (lambda: radius_cover(cloud(5), -np.ones(5), cloud(5)), "radius"),
        (lambda: radius_cover(cloud(5), np.ones(4), cloud(5)), "radius"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ScreproError, match=message):
        call()


def on_device(points, dtype=None):
    import torch

    return torch.from_numpy(points).to("cuda" if torch.cuda.is_available() else "cpu", dtype)


@pytest.mark.parametrize(("n", "m", "k", "d"), [(1, 3, 1, 2), (70, 150, 1, 5), (67, None, 1, 17), (40, None, 3, 5)])
@pytest.mark.parametrize("factor", [1e-25, 1, 1e25])
def test_triton_is_the_full_matrix_in_any_unit(n, m, k, d, factor):
    pytest.importorskip("triton")
    from screpro.kernels.gpu.neighbours import nearest_cuda

    a, b = (points and cloud(points, d, seed=points) * np.float32(factor) for points in (n, m))
    distances, index = nearest_cuda(on_device(a), k, None if b is None else on_device(b))
    expected = reference(a, k, b)
    np.testing.assert_allclose(distances, expected[0], rtol=1e-12)
    np.testing.assert_array_equal(index, expected[1])


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("clusters", "apart", "spread"), [(2, 2000, 0.05), (6, 300, 0.1)])
@pytest.mark.parametrize("chunk", [500, 2**24])
def test_triton_finds_neighbours_in_clusters_far_from_each_other(monkeypatch, k, clusters, apart, spread, chunk):
    """A float32 product about the common mean does not see the distances within a cluster."""
    pytest.importorskip("triton")
    from screpro.kernels.gpu import neighbours

    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    where = apart * (np.arange(120) % clusters)[:, None]
    for dtype in (np.float32, np.float64):
        a = (cloud(120, 4) * spread + where).astype(dtype)
        for b in (None, a[::-1].copy()):
            distances, index = neighbours.nearest_cuda(on_device(a), k, None if b is None else on_device(b))
            expected = reference(a, k, b)
            np.testing.assert_allclose(distances, expected[0], rtol=1e-12)
            np.testing.assert_array_equal(index, expected[1])


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_triton_takes_points_of_any_precision_as_they_are(dtype):
    import torch

    from screpro.kernels.gpu.cover import cover_cuda
    from screpro.kernels.gpu.neighbours import nearest_cuda

    a, b = (on_device(cloud(n, 3, seed=n), getattr(torch, dtype)) for n in (40, 35))
    rounded = [points.double().cpu().numpy() for points in (a, b)]
    for k in (1, 2):
        expected = reference(rounded[0], k, rounded[1])[0]
        np.testing.assert_allclose(nearest_cuda(a, k, b)[0], expected, rtol=1e-12)
    radius = np.linspace(0, 1, 40)
    np.testing.assert_array_equal(cover_cuda(a, radius, b), radius_cover(rounded[0], radius, rounded[1]))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e200])
def test_triton_refuses_what_the_cpu_refuses(wrong):
    pytest.importorskip("triton")
    from screpro.kernels.gpu.neighbours import nearest_cuda

    a = cloud(9, dtype=np.float64)
    b = a.copy()
    b[3, 1] = wrong
    for search, points in ((nearest, (a, b)), (nearest_cuda, (on_device(a), on_device(b)))):
        with pytest.raises(ScreproError, match="finite"):
            search(points[0], 1, points[1])
