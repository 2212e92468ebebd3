"""Samplers against laws: with the exact denoiser of a known distribution they sample that distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.processes.gaussian import scaled_linear, shifted
from screpro.samplers.ddim import ddim, quadratic, split_noise, strided
from screpro.samplers.ddpm import ancestral

SCHEDULE = scaled_linear()
MEAN, SD = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.7, 1.5, 0.2])


def exact(x, t):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, SD^2): the best possible denoiser."""
    a, s = SCHEDULE.signal[t, None], SCHEDULE.noise[t, None]
    return MEAN + a * SD**2 * (x - a * MEAN) / (a**2 * SD**2 + s**2)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_ancestral_sampling_with_the_exact_denoiser_gives_the_distribution():
    x = ancestral(exact, (4000, 3), schedule=SCHEDULE, generator=rng())
    assert torch.allclose(x.mean(0), MEAN, atol=0.08)
    assert torch.allclose(x.std(0), SD, rtol=0.05)


@pytest.mark.parametrize(("steps", "tolerance"), [(1000, 0.05), (100, 0.08)])
def test_ddim_with_the_exact_denoiser_gives_the_distribution(steps, tolerance):
    x = ddim(exact, (4000, 3), schedule=SCHEDULE, generator=rng(), steps=steps)
    assert torch.allclose(x.mean(0), MEAN, atol=0.08)
    assert torch.allclose(x.std(0), SD, rtol=tolerance)


def test_ddim_with_noise_in_quadratic_steps_gives_the_distribution():
    x = ddim(exact, (4000, 3), schedule=SCHEDULE, generator=rng(), steps=100, times=quadratic, eta=1.0)
    assert torch.allclose(x.mean(0), MEAN, atol=0.08)
    assert torch.allclose(x.std(0), SD, rtol=0.08)


def test_ddim_of_all_steps_with_all_the_noise_is_ancestral_sampling():
    shared = {"schedule": SCHEDULE, "nonnegative": True}
    noisy = ddim(exact, (50, 3), **shared, generator=rng(), steps=SCHEDULE.steps, eta=1.0)
    assert torch.allclose(noisy, ancestral(exact, (50, 3), **shared, generator=rng()), atol=1e-4)
    for schedule in (SCHEDULE, shifted(SCHEDULE, 0.1)):  # next to no noise: nothing may cancel
        fresh = [split_noise(schedule, t, t - 1, 1.0)[1] ** 2 for t in range(1, 1000)]
        np.testing.assert_allclose(fresh, schedule.posterior_variance[1:], rtol=1e-4)
    with pytest.raises(ScreproError, match="fresh noise"):
        split_noise(SCHEDULE, 2, 1, 1.5)


@given(length=st.integers(1, 1000), share=st.floats(0, 1))
def test_quadratic_steps_are_different_and_closest_where_there_is_little_noise(length, share):
    schedule = scaled_linear(length)
    times = quadratic(schedule, steps := 1 + round(share * (length - 1)))
    gaps = -np.diff(times)
    assert len(times) == steps and times[0] == length - 1 and (steps == 1 or times[-1] == 0)
    assert (gaps >= 1).all() and (np.diff(gaps) <= 1).all()  # they shrink on the way down, up to whole numbers


def test_a_denoiser_that_knows_the_cell_returns_it():
    cell = torch.randn(5, 3, generator=rng(1))
    for sample in (ancestral, ddim):
        x = sample(lambda x, t: cell, (5, 3), schedule=SCHEDULE, generator=rng())
        assert torch.allclose(x, cell, atol=1e-5)


def test_all_randomness_of_ddim_is_in_the_start_and_the_seed_decides():
    once, again, other = (ddim(exact, (7, 3), schedule=SCHEDULE, generator=rng(seed), steps=20) for seed in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_cells_are_sampled_independently_of_their_neighbours():
    """One batch of many cells is the same as sampling with a denoiser that looks at each cell alone."""
    calls = []

    def cellwise(x, t):
        calls.append(len(x))
        return torch.cat([exact(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])

    together = ddim(exact, (6, 3), schedule=SCHEDULE, generator=rng(), steps=10)
    assert torch.allclose(together, ddim(cellwise, (6, 3), schedule=SCHEDULE, generator=rng(), steps=10), atol=1e-6)
    assert calls == [6] * 10  # one call per step, whatever the number of cells


def test_nonnegative_cells_and_the_hook_of_inpainting():
    x = ancestral(exact, (50, 3), schedule=SCHEDULE, generator=rng(), nonnegative=True)
    assert x.min() >= 0
    seen = []

    def visible(x, t):
        seen.append(t)
        x = x.clone()
        x[:, 0] = 9.0
        return x

    ancestral(exact, (2, 3), schedule=SCHEDULE, generator=rng(), after_step=visible)
    assert seen == list(range(999, 0, -1))  # every step but the last


@given(st.integers(1, 1000))
def test_strided_steps_are_distinct_and_reach_both_ends(steps):
    times = strided(SCHEDULE, steps)
    assert len(set(times)) == steps and times == sorted(times, reverse=True) and times[0] == 999
    assert steps == 1 or times[-1] == 0


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_and_empty_shapes(steps):
    with pytest.raises(ScreproError, match="at least one step"):
        strided(SCHEDULE, steps)
    with pytest.raises(ScreproError, match="one cell and one gene"):
        ancestral(exact, (0, 3), schedule=SCHEDULE, generator=rng())
