"""Noise on cells: closed forms against draws, and the powers that theory gives."""

import numpy as np
import pytest

from screpro.errors import ScreproError
from screpro.tasks import functional_diffusion as fd
from screpro.tasks import functional_diffusion_noise as noise


@pytest.fixture
def cells():
    return np.random.default_rng(0).standard_normal((12, 5))


def test_closed_forms_agree_with_draws(cells):
    rng = np.random.default_rng(1)
    for size in (0.05, 0.5, 2.0):
        closed = noise.moved(cells, [size], width=2.0)
        drawn = noise.moved_sampled(cells, size, width=2.0, draws=1500, rng=rng)
        for part in ("whole", "gaussian", "remainder"):
            assert getattr(drawn, part) == pytest.approx(getattr(closed, part), rel=0.1), (size, part)
        assert closed.gaussian[0] == pytest.approx((size / 2.0) ** 2 * 5 / 12)


def test_the_drift_is_the_distance_to_the_smeared_population(cells):
    # many noised copies of the set are a large set: its embedding is the expected one
    rng = np.random.default_rng(2)
    many = np.concatenate([cells + 0.7 * rng.standard_normal(cells.shape) for _ in range(250)])
    kernel = fd.gaussian(2.0)
    squared = kernel(many, many).mean() - 2 * kernel(many, cells).mean() + kernel(cells, cells).mean()
    assert noise.moved(cells, [0.7], width=2.0).drift[0] == pytest.approx(squared, rel=0.1)


def test_error_grows_with_noise_and_with_the_root_of_the_set_size(cells):
    sizes = np.array([1e-4, 1e-3])
    assert noise.log_slope(sizes, noise.moved(cells, sizes, width=2.0).error) == pytest.approx(1, abs=1e-3)
    # a set and its copies have one embedding and one drift; only the Gaussian part falls
    one, copies = (noise.moved(np.tile(cells, (k, 1)), [0.1], width=2.0) for k in (1, 100))
    assert copies.drift == pytest.approx(one.drift) and copies.gaussian[0] == pytest.approx(one.gaussian[0] / 100)
    assert copies.error[0] == pytest.approx(np.sqrt(one.drift / copies.gaussian)[0], rel=0.02)
    assert copies.error[0] > 5 * one.error[0]


def test_tiny_noise_does_not_lose_the_remainder_to_rounding(cells):
    found = noise.moved(cells, [1e-3, 1e-2], width=2.0)
    assert (found.remainder > 0).all() and found.remainder[1] / found.remainder[0] == pytest.approx(1e4, rel=0.01)
    with pytest.raises(ScreproError, match="above 0"):
        noise.moved(cells, [0.0], width=2.0)


def test_energy_kernel_moves_with_the_root_of_the_noise(cells):
    sizes = np.array([1e-4, 1e-3])
    squared = noise.moved_energy(cells, sizes, draws=20, rng=np.random.default_rng(3))
    assert squared[1] / squared[0] == pytest.approx(10, rel=0.2)
    # E|e| / m for each cell and its own former place
    assert squared[0] == pytest.approx(1e-4 * 2.128 / 12, rel=0.1)
    direction = np.eye(5)[0]
    steps = np.array([1e-4, 1e-2])
    assert noise.difference_quotient(fd.energy(np.ones(5)), cells[0], direction, steps) == pytest.approx(steps**-0.5)
    assert noise.difference_quotient(fd.gaussian(2.0), cells[0], direction, steps) == pytest.approx(0.5, rel=1e-4)


def test_products_with_a_function_are_normal_while_noise_is_small(cells):
    rng = np.random.default_rng(4)
    at, weights = rng.standard_normal((6, 5)), rng.standard_normal(6)
    small, large = (
        noise.projected(cells, size, width=1.0, at=at, weights=weights, draws=4000, rng=rng) for size in (1e-3, 2.0)
    )
    assert small.variance.gap < 0.1 and abs(small.mean) < 0.1 and abs(small.excess_kurtosis) < 0.3
    assert large.variance.gap > 0.5


def test_noised_cells_are_not_the_process_of_equation_4(cells):
    alpha = np.array([1 - 1e-6, 1e-4])
    found = noise.cell_process(cells, alpha, width=2.0)
    assert found.misplaced[0] < 1e-5
    assert found.variance[0] == pytest.approx(found.printed_variance[0], rel=1e-4)
    # at the end: one population of pure noise, that does not shrink
    smeared = (1 + 2 / 4) ** -2.5
    assert found.mean[1] == pytest.approx(smeared, rel=1e-3)
    assert found.variance[1] == pytest.approx((1 - smeared) / 12, rel=1e-3)
    drawn = []
    rng = np.random.default_rng(5)
    for _ in range(400):
        new = np.sqrt(0.5) * cells + np.sqrt(0.5) * rng.standard_normal(cells.shape)
        drawn.append(fd.gaussian(2.0)(new, new).mean())
    half = noise.cell_process(cells, [0.5], width=2.0)
    assert (half.mean + half.variance)[0] == pytest.approx(np.mean(drawn), rel=0.02)
