"""Sinkhorn as it runs on a GPU: Triton's half steps in the whole iteration, in the precision that is enough.

Without a GPU the kernels run in Triton's interpreter, on the CPU.
"""

import numpy as np
import pytest
import torch

from screpro.kernels import sinkhorn

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def by_triton(monkeypatch):
    """Every sweep through Triton; the list of the precisions it was given."""
    seen, sweep = [], sinkhorn._sweep_cuda

    def recorded(x, *rest, **options):
        seen.append(x.dtype)
        return sweep(x, *rest, **options)

    for name in ("_sweep", "_sweep_cuda"):
        monkeypatch.setattr(sinkhorn, name, recorded)
    return seen


def sets(count: int, n: int, *, d: int = 4, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, n, d)) * np.linspace(2, 0.5, d) + shift
    return torch.from_numpy(points).float().to(DEVICE)


@pytest.mark.parametrize(("count", "n", "m"), [(2, 1, 17), (2, 17, 11), (1, 70, 127)])
def test_every_set_of_a_batch_is_the_plain_iteration(by_triton, count, n, m):
    x, y = sets(count, n), sets(count, m, shift=0.4, seed=9)
    found = sinkhorn.sinkhorn(x, y, blur=3.0)
    for s in range(count):
        expected, *_ = sinkhorn.reference(x[s], y[s], blur=3.0, iterations=300)
        assert float(found.cost[s]) == pytest.approx(float(expected), rel=3e-4)
    assert float(found.error.max()) <= 1e-4
    assert set(by_triton) == {torch.float32}


def test_float32_gives_what_float64_gives_and_is_left_where_it_would_not(by_triton, monkeypatch):
    x, y = sets(1, 20), sets(1, 18, shift=0.4, seed=9)
    single = sinkhorn.sinkhorn(x, y, blur=1.5)
    assert set(by_triton) == {torch.float32}
    by_triton.clear()
    tight = sinkhorn.sinkhorn(x, y, blur=1.5, tolerance=1e-7)
    assert set(by_triton) == {torch.float64}
    by_triton.clear()
    monkeypatch.setattr(sinkhorn, "ROUNDING", 1.0)
    double = sinkhorn.sinkhorn(x, y, blur=1.5)
    assert set(by_triton) == {torch.float64}
    assert single.iterations == double.iterations
    torch.testing.assert_close(single.f, double.f, rtol=0, atol=1e-5)
    torch.testing.assert_close(single.cost, double.cost, rtol=1e-6, atol=0)
    torch.testing.assert_close(single.cost, tight.cost, rtol=1e-4, atol=0)


def test_precision_follows_eps_down(by_triton):
    """Wide levels in float32, the last ones in float64."""
    x, y = sets(1, 12), sets(1, 12, shift=0.1, seed=9)
    sinkhorn.sinkhorn(x, y, blur=0.5, tolerance=3e-6)
    first = by_triton.index(torch.float64)
    assert first > 0 and set(by_triton[:first]) == {torch.float32} and set(by_triton[first:]) == {torch.float64}


def test_padding_changes_nothing_and_equal_sets_are_at_zero(by_triton):
    x, y = sets(1, 12), sets(1, 9, shift=0.4, seed=9)
    padded = torch.cat([x, torch.full((1, 4, 4), 7.0, device=DEVICE)], dim=1)
    plain = sinkhorn.sinkhorn(x, y, blur=2.0)
    ragged = sinkhorn.sinkhorn(padded, y, blur=2.0, lengths_x=[12])
    torch.testing.assert_close(plain.cost, ragged.cost, rtol=1e-5, atol=1e-6)
    assert ragged.f[0, 12:].abs().max() == 0
    assert sinkhorn.divergence(x, x, blur=2.0).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [2.0**-83, 1, 2.0**83])  # 1e-25 and 1e25, but exact in every type
def test_points_are_taken_as_they_are_in_their_own_precision_and_unit(by_triton, dtype, factor):
    x, y = (part.to(dtype) * factor for part in (sets(1, 33), sets(1, 29, shift=0.4, seed=9)))
    found = sinkhorn.sinkhorn(x, y, blur=1.0 * factor)
    expected, *_ = sinkhorn.reference(x[0], y[0], blur=1.0 * factor, iterations=300)
    assert float(found.cost[0]) == pytest.approx(float(expected), rel=3e-4)
