"""The straight path: its ends, what velocity says about noise and score, and the loss with dropped labels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.processes.interpolant import VelocityLoss, expected_noise, interpolate


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_velocity(z, t, mean, sd):
    """E[Z_1 - Z_0 | Z_t = z] for data N(mean, sd^2): the regression of the difference on the point."""
    variance = (t * sd) ** 2 + (1 - t) ** 2
    return mean + (t * sd**2 - (1 - t)) / variance * (z - t * mean)


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 999))
def test_ends_and_slope_of_the_path(shape, seed):
    z0, z1 = torch.randn(5, *shape, generator=rng(seed)), torch.randn(5, *shape, generator=rng(seed + 1))
    start, velocity = interpolate(z0, z1, torch.zeros(5))
    end, _ = interpolate(z0, z1, torch.ones(5))
    torch.testing.assert_close((start, end, velocity), (z0, z1, z1 - z0))
    t = torch.rand(5, generator=rng(seed))
    torch.testing.assert_close(interpolate(z0, z1, t)[0] + interpolate(z1, z0, t)[0], z0 + z1, rtol=1e-4, atol=1e-5)
    for b in range(5):  # each cell at its own time
        torch.testing.assert_close(interpolate(z0, z1, t)[0][b], z0[b] + t[b] * velocity[b])


@given(t=st.floats(0.01, 0.99), mean=st.floats(-3, 3), sd=st.floats(0.1, 4), z=st.floats(-5, 5))
def test_expected_noise_and_score_of_a_gaussian(t, mean, sd, z):
    """E[Z_0 | Z_t] by the regression of Z_0 on Z_t; the score is that of N(t mean, t^2 sd^2 + (1 - t)^2)."""
    variance = (t * sd) ** 2 + (1 - t) ** 2
    noise = expected_noise(torch.tensor(z).double(), gaussian_velocity(z, t, mean, sd), t)
    assert noise.item() == pytest.approx((1 - t) / variance * (z - t * mean), rel=1e-5, abs=1e-5)
    score = -(z - t * mean) / variance
    assert -noise.item() / (1 - t) == pytest.approx(score, rel=1e-5, abs=1e-6 / (1 - t))  # rounding is divided as well


def test_the_loss_is_smallest_at_the_conditional_mean():
    """No other affine velocity does better, and the value is what is left of the variance of Z_1 - Z_0."""
    mean, sd, n = 1.5, 0.6, 200_000
    latents = mean + sd * torch.randn(n, 1, generator=rng(1)).double()
    loss = VelocityLoss(
        latents, {}, network=lambda scale, z, t, labels: scale * gaussian_velocity(z, t[:, None], mean, sd)
    )
    values = {scale: float(loss(scale, torch.arange(n), rng())) for scale in (0.9, 1.0, 1.1)}
    assert values[1.0] < values[0.9] and values[1.0] < values[1.1]
    # var(Z_1 - Z_0 | Z_t) = sd^2 / (t^2 sd^2 + (1 - t)^2), averaged over t
    t = torch.linspace(0, 1, 20_001).double()
    left = torch.trapezoid(sd**2 / ((t * sd) ** 2 + (1 - t) ** 2), t)
    assert values[1.0] == pytest.approx(float(left), rel=0.02)


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_joint_labels_are_dropped_together(drop):
    n = 20_000
    labels = {"cell": torch.arange(n) % 7, "dose": torch.arange(n) % 3}
    loss = VelocityLoss(torch.zeros(n, 2), labels, drop=drop)
    shown = loss.given(torch.arange(n).flip(0), rng())
    assert set(shown) == {"cell", "dose"}
    assert torch.equal(shown["cell"] < 0, shown["dose"] < 0)
    assert float((shown["cell"] < 0).float().mean()) == pytest.approx(drop, abs=0.01)
    kept = shown["cell"] >= 0
    assert torch.equal(shown["dose"][kept], labels["dose"].flip(0)[kept])


def test_additive_labels_come_one_at_a_time():
    labels = {"cell": torch.zeros(40, dtype=torch.long), "dose": torch.ones(40, dtype=torch.long)}
    loss, generator = VelocityLoss(torch.zeros(40, 2), labels, drop=0.0, strategy="additive"), rng()
    seen = [tuple(loss.given(torch.arange(40), generator)) for _ in range(400)]
    assert set(seen) == {("cell",), ("dose",)}
    assert seen.count(("cell",)) == pytest.approx(200, abs=50)
    alone = VelocityLoss(torch.zeros(40, 2), {"cell": labels["cell"]}, drop=0.0, strategy="additive")
    assert tuple(alone.given(torch.arange(40), generator)) == ("cell",)


def test_the_seed_decides_the_loss():
    latents = torch.randn(30, 2, generator=rng())
    loss = VelocityLoss(latents, {"cell": torch.arange(30) % 4})
    network = torch.nn.Identity()

    def value(seed):
        loss.network = lambda model, z, t, labels: z * t[:, None] + labels["cell"][:, None]
        return loss(network, torch.arange(30), rng(seed))

    assert value(0) == value(0) and value(0) != value(1)


def test_wrong_input_is_explained():
    latents, labels = torch.zeros(5, 2), {"cell": torch.zeros(5, dtype=torch.long)}
    for options in ({"drop": -0.1}, {"drop": 1.1}, {"strategy": "both"}):
        with pytest.raises(ScreproError, match="dropped with a probability"):
            VelocityLoss(latents, labels, **options)
    with pytest.raises(ScreproError, match="5 cells, 4 labels of cell"):
        VelocityLoss(latents, {"cell": torch.zeros(4, dtype=torch.long)})
