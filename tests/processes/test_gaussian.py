"""The Gaussian diffusion against its closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.processes.gaussian import Schedule, linear, scaled_linear


def test_check_values():
    """Protocol 2.2: alpha-bar of the schedule the authors call linear."""
    table = scaled_linear().alpha_bar
    for t, value, digits in [(100, 0.971, 3), (300, 0.737, 3), (500, 0.331, 3), (700, 0.067, 3), (900, 0.0045, 4)]:
        assert round(table[t].item(), digits) == value
    assert round(table[999].item(), 4) == 0.0007
    assert linear().alpha_bar[-1].item() == pytest.approx(4.04e-5, rel=1e-2)


def test_bins_are_the_papers():
    assert scaled_linear().bins(5).tolist() == [100, 300, 500, 700, 900]
    assert scaled_linear().bins(50)[[0, 1, -1]].tolist() == [10, 30, 990]
    assert scaled_linear().bins(1000).tolist() == list(range(1000))
    with pytest.raises(ScreproError, match="between 1"):
        scaled_linear().bins(1001)


@pytest.mark.parametrize("beta", [[], [0.1, 0.0], [0.1, 1.0], [[0.1]], [float("nan")]])
def test_bad_schedules(beta):
    with pytest.raises((ScreproError, RuntimeError)):
        Schedule(torch.tensor(beta))


@given(
    beta=st.lists(st.floats(1e-4, 0.5), min_size=2, max_size=12),
    x0=st.floats(-3, 3),
    noise=st.lists(st.floats(-3, 3), min_size=2, max_size=2),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_posterior_is_bayes(beta, x0, noise, data):
    """q(x_{t-1} | x_t, x_0) is the product of two Gaussians: q(x_t | x_{t-1}) as a function of x_{t-1}, and
    q(x_{t-1} | x_0)."""
    schedule = Schedule(torch.tensor(beta, dtype=torch.float64))
    t = data.draw(st.integers(1, len(beta) - 1))
    step, index = torch.tensor([t]), torch.tensor([[x0]])
    x_t = schedule.diffuse(index, step, torch.tensor([[noise[0]]]))
    before = 1.0
    for value in beta[:t]:
        before *= 1 - value
    precision = (1 - beta[t]) / beta[t] + 1 / (1 - before)
    mean = (math.sqrt(1 - beta[t]) / beta[t] * x_t.item() + math.sqrt(before) * x0 / (1 - before)) / precision
    posterior = schedule.posterior(index, x_t, step)
    assert posterior.variance.item() == pytest.approx(1 / precision, rel=1e-4, abs=1e-7)
    assert posterior.mean.item() == pytest.approx(mean, rel=1e-3, abs=1e-5)


def test_last_step_is_certain():
    schedule = scaled_linear()
    x0, x_t, t = torch.randn(3, 4), torch.randn(3, 4), torch.zeros(3, dtype=torch.long)
    posterior = schedule.posterior(x0, x_t, t)
    torch.testing.assert_close(posterior.mean, x0)
    assert posterior.variance.abs().max() == 0


def test_steps_compose_to_the_jump():
    """T single steps have the mean and the variance of one jump (eq. 6), followed exactly."""
    schedule = scaled_linear(40, 1e-2, 0.3)
    mean, variance = 2.0, 0.0
    for t in range(40):
        step = torch.tensor([t])
        mean = schedule.step(torch.tensor([[mean]]), step, torch.zeros(1, 1)).item()
        factor = schedule.step(torch.ones(1, 1), step, torch.zeros(1, 1)).item()
        spread = schedule.step(torch.zeros(1, 1), step, torch.ones(1, 1)).item()
        variance = factor**2 * variance + spread**2
        assert mean == pytest.approx(2 * schedule.signal[t].item(), rel=1e-5)
        assert variance == pytest.approx(schedule.noise[t].item() ** 2, rel=1e-5)


def test_terminal_signal_to_noise():
    """Enough noise is left at the end that a cell is gone: SNR below 0.001, and it falls all the way."""
    snr = scaled_linear().snr
    assert snr[-1] == pytest.approx(0.0007, rel=0.05)
    assert (snr.diff() < 0).all()


def test_kl_weight_is_the_posteriors():
    """Eq. 17: the KL between two posteriors with different x_0 is weight x squared difference."""
    schedule = scaled_linear()
    t = torch.tensor([1, 10, 500, 999])
    coefficient = schedule.from_x0[t] ** 2 / (2 * schedule.posterior_variance[t])
    torch.testing.assert_close(schedule.kl_weight[t], coefficient, rtol=2e-3, atol=0)


def test_printed_coefficient_of_equation_16_is_wrong():
    """Its x_theta coefficient does not even return x_0 when x_t carries no noise; the standard one does."""
    schedule = scaled_linear()
    t = 500
    bar, before = schedule.alpha_bar[t].double(), schedule.alpha_bar[t - 1].double()
    alpha_before = 1 - schedule.beta[t - 1].double()
    printed = bar.sqrt() * (1 - alpha_before / before) / (1 - bar)
    clean = schedule.from_xt[t] * bar.sqrt() + schedule.from_x0[t]
    assert clean.item() == pytest.approx(before.sqrt().item(), rel=1e-4)
    assert (schedule.from_xt[t] * bar.sqrt() + printed).item() != pytest.approx(before.sqrt().item(), rel=1e-1)


def test_moving_to_a_device_keeps_everything():
    schedule = scaled_linear()
    moved = schedule.to("cpu")
    assert moved.__dict__.keys() == schedule.__dict__.keys()
    assert moved.steps == 1000
