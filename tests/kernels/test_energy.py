import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.kernels import energy, tiles
from screpro.kernels.energy import energy_loss, mean_distance, reference, reference_loss, streamed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-6}


def cloud(n: int, d: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(3, 1, d) + shift


# --- evaluation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 1), (1, 17, 3), (17, 127, 30), (127, 1, 2), (1023, 1031, 5), (300, 40, 257)]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_tiles_agree_with_float64(n, m, d, dtype):
    a, b = cloud(n, d).astype(dtype), cloud(m, d, 1, 0.1).astype(dtype)
    b[: n // 3] = a[: min(n // 3, m)]  # duplicates
    tensors = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    for clouds, pair in (((a, b), tensors), ((a,), (tensors[0], tensors[0]))):
        exact = reference(clouds[0], clouds[-1])
        plain = abs(float(torch.cdist(*pair).double().mean()) - exact)
        assert abs(streamed(*clouds) - exact) <= 2 * plain + 2e-7 * exact
        assert mean_distance(*clouds) == pytest.approx(exact, rel=2e-7)


def test_rounding_does_not_show_in_the_small_difference_of_large_means():
    a, b = cloud(1500, 30, shift=50), cloud(1400, 30, 1, 50.1)
    of = [2 * f(a, b) - f(a, a) - f(b, b) for f in (lambda p, q: streamed(p, None if p is q else q), reference)]
    assert of[1] < reference(a, b) / 100
    assert of[0] == pytest.approx(of[1], rel=1e-5)


@pytest.mark.parametrize("factor", [1e-25, 1e25])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_neither_unit_nor_origin_matters(factor, shift):
    a, b = cloud(300, 4), cloud(290, 4, 1)
    assert streamed((a + shift) * factor, (b + shift) * factor) == pytest.approx(factor * reference(a, b), rel=1e-6)


@pytest.mark.parametrize("kinds", [1, 3])
def test_copies_of_few_points(kinds):
    a, b = (np.repeat(cloud(kinds, 6) + 7, 200, axis=0) for _ in "ab")
    b[-1] += 1e-3
    assert streamed(a, b) == pytest.approx(reference(a, b), rel=1e-6)
    assert streamed(a) == pytest.approx(reference(a, a), rel=1e-6, abs=1e-12)


def test_the_number_of_threads_does_not_change_a_bit():
    a, b = cloud(1100, 3), cloud(1200, 3, 1)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append((streamed(a, b), streamed(a)))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert results[0] == results[1]


@pytest.mark.parametrize("same", [True, False])
def test_tiles_cover_every_pair_once_and_stay_small(same):
    a, b = cloud(600, 2), cloud(1500, 2, 1)
    pairs = tiles.Pairs.of(a, None if same else b)
    seen = np.zeros((600, 600 if same else 1500), int)

    def visit(tile, i, j):
        assert tile.size <= tiles.ROWS * tiles.COLUMNS and tile.dtype == np.float32
        part = seen[i : i + tile.shape[0], j : j + tile.shape[1]]
        assert part.shape == tile.shape
        part += 1
        return np.array([tile.size, 1])

    assert tiles.walk(pairs, visit)[0] == seen.sum()
    assert (seen[np.triu_indices(600, 1)] == 1).all() if same else (seen == 1).all()


def test_a_failing_visitor_is_heard():
    def visit(tile, i, j):
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        tiles.walk(tiles.Pairs.of(cloud(5, 2)), visit)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_it_is_symmetric_and_obeys_the_energy_inequality(n, m, d, seed):
    a, b = cloud(n, d, seed), cloud(m, d, seed + 1, 0.3)
    assert streamed(a, b) == pytest.approx(streamed(b, a), rel=1e-6)
    assert 2 * streamed(a, b) - streamed(a) - streamed(b) > -1e-6
    order = np.random.default_rng(seed).permutation(n)
    assert streamed(a[order]) == pytest.approx(streamed(a), rel=1e-6)


def test_tensors_and_integers_are_points_too():
    a = cloud(20, 3).astype(np.float32)
    assert mean_distance(torch.from_numpy(a)) == mean_distance(a)
    half = torch.from_numpy(a).bfloat16()
    assert mean_distance(half) == pytest.approx(reference(half.float().numpy(), half.float().numpy()))
    assert mean_distance(np.array([[0], [3]]), np.array([[0], [1]])) == 1.5


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((0, 3)), None, "at least one point"),
        (np.zeros(3), None, "at least one point"),
        (np.array([[np.nan, 1]]), None, "finite"),
        (np.zeros((2, 2)), np.array([[np.inf, 1]]), "finite"),
        (np.zeros((2, 2)), np.zeros((2, 3)), "same dimensions"),
    ],
)
def test_what_are_no_points_is_refused(a, b, message):
    with pytest.raises(ScreproError, match=message):
        mean_distance(a, b)


# --- training loss ---------------------------------------------------------------------------------------------


def sets(b: int, n: int, m: int, d: int, dtype: torch.dtype, shift: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(b, k, d, generator=generator, dtype=torch.float64) + shift for k in (n, m))
    y[:, : min(n, m) // 4] = x[:, : min(n, m) // 4]  # duplicates across the sets
    x[:, -(n // 5) :] = x[:, :1]  # and within one
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The usual formula in the type of the points, products and clamp."""

    def mean(p, q):
        squares = (p * p).sum(-1)[:, :, None] + (q * q).sum(-1)[:, None] - 2 * p @ q.mT
        return squares.clamp_min(1e-8).sqrt().mean((1, 2))

    return mean(x, y) - mean(x, x) / 2 - mean(y, y) / 2


def errors(loss, x, y, **lengths) -> list[float]:
    """Error of values, gradient of x and of y against the float64 reference."""
    weight = torch.linspace(0.5, 2, len(x), dtype=torch.float64, device=x.device)
    results = []
    for function in (loss, reference_loss):
        values = function(x, y, **lengths)
        results.append([values.detach(), *torch.autograd.grad((values.double() * weight).sum(), (x, y))])
    return [float((mine.double() - exact.double()).abs().max()) for mine, exact in zip(*results, strict=True)]


SHAPES = [(1, 1, 1, 1), (3, 17, 5, 7), (2, 64, 63, 300), (1, 127, 1, 131), (1, 290, 257, 17), (1, 20, 1023, 3)]


@pytest.mark.parametrize(("b", "n", "m", "d"), SHAPES)
@pytest.mark.parametrize("dtype", FLOOR)
def test_loss_and_gradients_agree_with_float64(b, n, m, d, dtype):
    x, y = sets(b, n, m, d, dtype)
    mine, usual = errors(energy_loss, x, y), errors(plain, x, y)
    scale = (float(reference_loss(x, y).detach().abs().max()) + d**0.5, 2 / n, 2 / m)
    for kind, (error, other) in enumerate(zip(mine, usual, strict=True)):
        rounded = 2**-8 if dtype == torch.bfloat16 and kind else 0  # a gradient is returned in the points' own type
        allowed = 2 * other if np.isfinite(other) else 0
        assert error <= allowed + (FLOOR[dtype] + rounded) * scale[kind], kind
    assert energy_loss(x, y).dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("d", [5, 140])
def test_ragged_sets_never_see_what_lies_beyond_their_lengths(d):
    x, y = sets(3, 9, 6, d, torch.float32)
    lengths = {"lengths_x": torch.tensor([9, 1, 4]), "lengths_y": torch.tensor([2, 6, 1])}
    with torch.no_grad():
        for s in range(3):
            x[s, lengths["lengths_x"][s] :] = torch.nan
            y[s, lengths["lengths_y"][s] :] = torch.inf
    assert max(errors(energy_loss, x, y, **lengths)) < 1e-5
    (gradient,) = torch.autograd.grad(energy_loss(x, y, **lengths).sum(), x)
    assert (gradient[1, 1:] == 0).all() and (gradient[1, 0] != 0).all()


def test_gradcheck():
    x, y = (torch.randn(1, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (4, 3))
    x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(energy_loss, (x, y))
    assert torch.autograd.gradcheck(lambda p: energy_loss(p, y.detach()), (x,))


@pytest.mark.parametrize("d", [3, 200])
def test_equal_sets_are_at_the_minimum(d):
    x, _ = sets(2, 20, 20, d, torch.float32)
    value = energy_loss(x, x.detach().clone())
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.abs().max() < 1e-6 * d and gradient.abs().max() < 1e-6
    same = torch.ones(1, 8, d, requires_grad=True)  # all points one and the same
    (gradient,) = torch.autograd.grad(energy_loss(same, same.detach()).sum(), same)
    assert (gradient == 0).all()


def test_it_is_the_loss_of_geomloss():
    geomloss = pytest.importorskip("geomloss")
    x, y = (torch.randn(4, 33, 50, generator=torch.Generator().manual_seed(k)).double() for k in (1, 2))
    x.requires_grad_()
    value, other = energy_loss(x, y), geomloss.SamplesLoss("energy", backend="tensorized")(x, y)
    torch.testing.assert_close(value, other, atol=1e-4 / 33 + 1e-9, rtol=0)  # a point is 1e-4 from itself there
    gradient, slope = (torch.autograd.grad(v.mean(), x)[0] for v in (value, other))
    torch.testing.assert_close(gradient, slope, atol=1e-12, rtol=1e-9)


def test_gradients_cost_nothing_where_none_is_wanted():
    x, y = sets(2, 6, 6, 4, torch.float32)
    with torch.no_grad():
        assert energy_loss(x, y).grad_fn is None
    values = energy_loss(x, y.detach())
    assert values.grad_fn.grads[0] is not None and values.grad_fn.grads[1] is None
    twice = torch.autograd.grad(values.sum(), x, retain_graph=True)[0]
    assert torch.equal(-4 * twice, torch.autograd.grad(-4 * values.sum(), x, retain_graph=True)[0])
    assert torch.equal(twice, torch.autograd.grad(values.sum(), x)[0])
    (slope,) = torch.autograd.grad(energy_loss(x, y).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_points_that_do_not_lie_in_order_and_threads():
    x, y = sets(8, 12, 10, 150, torch.float32)
    expected = energy_loss(x, y)
    turned = x.detach().mT.contiguous().mT
    assert not turned.is_contiguous() and torch.equal(energy_loss(turned, y), expected)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.equal(energy_loss(x, y), expected)
    torch.set_num_threads(before)


def test_a_nan_is_not_hidden():
    x, y = sets(2, 6, 6, 4, torch.float32)
    with torch.no_grad():
        x[1, 2, 3] = torch.nan
    value = energy_loss(x, y)
    assert value[0].isfinite() and value[1].isnan()


@pytest.mark.parametrize(
    ("x", "y", "lengths", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 2), {}, "as many sets"),
        (torch.zeros(1, 3, 2), torch.zeros(2, 3, 2), {}, "as many sets"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 3, 3), {}, "as many sets"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 3, 2).double(), {}, "as many sets"),
        (torch.zeros(1, 0, 2), torch.zeros(1, 3, 2), {}, "as many sets"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), {"lengths_x": torch.tensor([0])}, "at least one point"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), {"lengths_y": torch.tensor([4])}, "no more than there are"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), {"lengths_y": torch.tensor([3, 3])}, "one entry per set"),
        (torch.zeros(1, 3, 2, device="meta"), torch.zeros(1, 3, 2, device="meta"), {}, "CUDA"),
    ],
)
def test_sets_that_do_not_fit_are_refused(x, y, lengths, message):
    with pytest.raises(ScreproError, match=message):
        energy_loss(x, y, **lengths)


# --- Triton ----------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    from screpro.kernels.gpu import energy as gpu

    monkeypatch.setattr(gpu, "TILE", 16)  # small tiles: the interpreter works through one after the other
    return gpu


@pytest.mark.parametrize("dtype", FLOOR)
def test_triton_sets_on_chip(gpu, dtype):
    x, y = (p.detach().to(DEVICE).requires_grad_() for p in sets(1, 17, 9, 20, dtype))
    floor = 2**-8 if dtype == torch.bfloat16 else 10 * FLOOR[dtype]
    assert max(errors(gpu.energy_loss, x, y)) <= floor


def test_triton_ragged_sets_and_gradient_of_x_alone(gpu):
    x, y = (p.detach().to(DEVICE).requires_grad_() for p in sets(2, 7, 9, 4, torch.float32))
    lengths = {"lengths_x": torch.tensor([7, 1]), "lengths_y": torch.tensor([2, 9])}
    with torch.no_grad():
        x[1, 1:], y[0, 2:] = torch.nan, torch.inf
    assert max(errors(gpu.energy_loss, x, y, **lengths)) < 1e-5
    values = gpu.energy_loss(x, y.detach(), **lengths)
    both = torch.autograd.grad(gpu.energy_loss(x, y, **lengths).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(values.sum(), x)[0], both)


@pytest.mark.parametrize("of_y", [True, False])
def test_triton_sets_too_large_for_a_chip(gpu, monkeypatch, of_y):
    monkeypatch.setattr(gpu, "ON_CHIP", 8)
    monkeypatch.setattr(gpu, "WORKSPACE", 16 * 30)  # rows in turns
    x, y = (p.detach().to(DEVICE).requires_grad_() for p in sets(1, 20, 10, 3, torch.float32))
    lengths = {"lengths_x": torch.tensor([19]), "lengths_y": torch.tensor([9])}
    with torch.no_grad():
        x[0, 19:], y[0, 9:] = torch.nan, torch.nan
    if of_y:
        assert max(errors(gpu.energy_loss, x, y, **lengths)) < 1e-5
    else:
        value, exact = (f(x, y.detach(), **lengths) for f in (gpu.energy_loss, reference_loss))
        torch.testing.assert_close(value.double(), exact)
        gradient, slope = (torch.autograd.grad(v.sum(), x)[0] for v in (value, exact))
        torch.testing.assert_close(gradient, slope, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize("factor", [2.0**-83, 1, 2.0**83])  # 1e-25 and 1e25, but exact in every type
def test_triton_mean_distance(gpu, dtype, factor):
    a, b = (torch.from_numpy(cloud(n, 5, n, 3)).to(DEVICE, dtype) * factor for n in (33, 18))
    b[:4] = a[:4]
    for clouds in ((a, b), (a,)):
        exact = reference(*(clouds[k].double().cpu().numpy() for k in (0, -1)))
        assert gpu.mean_distance(*clouds) == pytest.approx(exact, rel=1e-6)
    with pytest.raises(ScreproError, match="finite"):
        gpu.mean_distance(a * torch.nan)
    with pytest.raises(ScreproError, match="same dimensions"):
        gpu.mean_distance(a, b[:, :2])


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize(("b", "n", "m", "d"), [(16, 64, 64, 2000), (2, 128, 100, 300), (2, 512, 300, 2000)])
def test_on_a_gpu(b, n, m, d):
    x, y = (p.detach().to(DEVICE).requires_grad_() for p in sets(b, n, m, d, torch.float32))
    assert max(errors(energy_loss, x, y)) < 1e-4
    assert mean_distance(x[0], y[0]) == pytest.approx(
        streamed(x[0].detach().cpu().numpy(), y[0].detach().cpu().numpy()), rel=1e-6
    )


def test_small_problems_take_float64(monkeypatch):
    monkeypatch.setattr(energy, "streamed", None)
    a = cloud(100, 3)
    assert mean_distance(a, a) == reference(a, a)


@pytest.mark.parametrize(("sets", "n", "d"), [(3, 5, 7), (5, 40, 200), (2, 300, 33)])
@pytest.mark.parametrize("asked", [(True, False), (True, True), (False, True), (False, False)])
def test_the_squared_error_in_the_same_sweep(sets, n, d, asked):
    generator = torch.Generator(DEVICE).manual_seed(0)
    clouds = [torch.rand(sets, n, d, generator=generator, device=DEVICE) for _ in "xy"]
    x, y = (p.clone().requires_grad_(own) for p, own in zip(clouds, asked, strict=True))
    a, b = (p.clone().requires_grad_(own) for p, own in zip(clouds, asked, strict=True))
    found, wanted = energy_loss(x, y, squares=3.0), energy_loss(a, b) + 3 * (a - b).square().mean((1, 2))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    if any(asked):
        weights = torch.arange(1.0, sets + 1, device=DEVICE)
        for value in (found, wanted):
            (value * weights).sum().backward()
    for p, q in ((x, a), (y, b)):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-8)


def test_squares_take_whole_sets_of_one_size():
    x, y = torch.rand(2, 4, 3), torch.rand(2, 5, 3)
    with pytest.raises(ScreproError, match="one size"):
        energy_loss(x, y, squares=1.0)
    with pytest.raises(ScreproError, match="one size"):
        energy_loss(x, x, lengths_x=torch.tensor([4, 3]), squares=1.0)


def test_large_sets_agree_with_the_reference():
    """Few sets and large products, which are multiplied one by one."""
    x = torch.rand(2, 300, 257, dtype=torch.float32, requires_grad=True)
    y = torch.rand(2, 420, 257)
    found, wanted = energy_loss(x, y), reference_loss(x, y)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    slopes = [torch.autograd.grad(value.sum(), x)[0] for value in (found, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-7)
