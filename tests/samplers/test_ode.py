"""Samplers along a velocity, against laws: with the exact velocity of a Gaussian every answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from screpro.errors import ScreproError
from screpro.samplers.ode import METHODS, dopri5, integrate, sde

MEAN, SD = torch.tensor([2.0, -1.0, 0.5]).double(), torch.tensor([0.7, 1.6, 0.2]).double()


def exact(z, t):
    """E[Z_1 - Z_0 | Z_t] for data N(MEAN, SD^2)."""
    t = t[:, None]
    return MEAN + (t * SD**2 - (1 - t)) / ((t * SD) ** 2 + (1 - t) ** 2) * (z - t * MEAN)


def noise(n, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)).double()


def error(method, steps):
    """Largest distance from the solution of the ODE, which is MEAN + SD z_0."""
    z0 = noise(50)
    return float((integrate(exact, z0, method=method, steps=steps) - (MEAN + SD * z0)).abs().max())


@pytest.mark.parametrize(("method", "options"), [
    ("euler", {"steps": 200}), ("heun", {"steps": 40}), ("dopri5", {}), ("sde", {"steps": 200}),
])  # fmt: skip
def test_every_sampler_gives_the_distribution(method, options):
    z = integrate(exact, noise(10_000), method=method, generator=torch.Generator().manual_seed(1), **options)
    assert torch.allclose(z.mean(0), MEAN, atol=0.06)
    assert torch.allclose(z.std(0), SD, rtol=0.05)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(method, order):
    """Twice the steps: half the error, or a quarter."""
    errors = [error(method, steps) for steps in (80, 160, 320)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert rates == pytest.approx([order, order], abs=0.25)


@settings(max_examples=10)
@given(speed=st.floats(-3, 3))
def test_straight_lines_are_exact_in_one_step(speed):
    z0 = noise(4)
    for method in ("euler", "heun", "dopri5"):
        z = integrate(lambda z, t: torch.full_like(z, speed), z0, method=method, steps=1)
        torch.testing.assert_close(z, z0 + speed)


@pytest.mark.parametrize("tolerance", [1e-5, 1e-7, 1e-8])
def test_dopri5_keeps_its_tolerance_and_agrees_with_scipy(tolerance):
    def velocity(z, t):
        return torch.sin(3 * z) * torch.cos(8 * t[:, None]) + z.roll(1, -1) * t[:, None]

    z0 = noise(6)
    ours = dopri5(velocity, z0, tolerance=tolerance)

    def flat(t, y):
        return velocity(torch.from_numpy(y).reshape(6, 3), torch.full((6,), t, dtype=torch.float64)).numpy().ravel()

    fine = solve_ivp(flat, (0, 1), z0.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    theirs = solve_ivp(flat, (0, 1), z0.numpy().ravel(), method="RK45", rtol=tolerance, atol=tolerance)
    assert np.abs(ours.z.numpy().ravel() - fine).max() < 20 * tolerance
    assert np.abs(ours.z.numpy().ravel() - theirs.y[:, -1]).max() < 30 * tolerance
    # the same formula and error control: as many calls, but for the choice of the first step
    assert 0.6 < ours.calls / theirs.nfev < 1.6
    assert ours.calls == 1 + 6 * (ours.accepted + ours.rejected)


def test_dopri5_on_the_exact_velocity():
    z0 = noise(100)
    solution = dopri5(exact, z0, tolerance=1e-6)
    torch.testing.assert_close(solution.z, MEAN + SD * z0, rtol=1e-5, atol=1e-5)


def test_sde_without_noise_is_euler_and_with_noise_it_is_not():
    z0 = noise(20)
    generator = torch.Generator().manual_seed(0)
    plain = integrate(exact, z0, method="euler", steps=30)
    torch.testing.assert_close(sde(exact, z0, steps=30, noise=0.0, generator=generator), plain)
    assert (sde(exact, z0, steps=30, generator=generator) - plain).abs().max() > 0.05


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_sde_of_any_strength_has_the_same_law(strength):
    z = sde(exact, noise(8000), steps=200, noise=strength, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(z.mean(0), MEAN, atol=0.07) and torch.allclose(z.std(0), SD, rtol=0.07)


def test_times_and_shapes():
    """Every call gets one time per cell, between 0 and 1, and latents of any shape."""
    for method in METHODS:
        times = []

        def velocity(z, t, times=times):
            assert t.shape == (4,) and (t == t[0]).all()
            times.append(float(t[0]))
            return -z

        z = integrate(velocity, torch.ones(4, 2, 3), method=method, steps=5, generator=torch.Generator())
        assert z.shape == (4, 2, 3) and min(times) == 0 and max(times) <= 1 + 1e-6
        if method != "sde":
            torch.testing.assert_close(z, torch.full((4, 2, 3), np.exp(-1.0), dtype=torch.float32), rtol=0.15, atol=0)
    assert integrate(exact, noise(0), method="dopri5").shape == (0, 3)


def test_wrong_input_is_explained():
    for options in ({"method": "rk4"}, {"steps": 0}):
        with pytest.raises(ScreproError, match="at least one step"):
            integrate(exact, noise(2), **options)
    with pytest.raises(ScreproError, match="positive"):
        integrate(exact, noise(2), method="dopri5", tolerance=0)
    with pytest.raises(ScreproError, match="reach t = 1"):
        dopri5(lambda z, t: torch.sin(4e4 * t[:, None]) * 1e4 + 0 * z, noise(2), max_steps=20)
    for method in METHODS:
        with pytest.raises(ScreproError, match="finite"):
            integrate(lambda z, t: z * float("nan"), noise(2), method=method, steps=2)
