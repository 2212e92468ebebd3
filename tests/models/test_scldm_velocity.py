"""scLDM's velocity network: adaLN-zero start, conditions, positions, and a plain re-derivation in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.models.scldm_velocity import NULL, VelocityConfig, VelocityNetwork, position_table


def small(*, random=True, seed=0, **changes) -> VelocityNetwork:
    """A network whose zero-initialised layers are random too, unless it is to be as at the start."""
    torch.manual_seed(seed)
    config = {"tokens": 3, "channels": 4, "width": 12, "layers": 2, "heads": 2, "classes": {"cell": 5, "dose": 3}}
    model = VelocityNetwork(VelocityConfig(**(config | changes))).eval()
    if random:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def inputs(n=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    z, t = torch.randn(n, 3, 4, generator=generator), torch.rand(n, generator=generator)
    return z, t, {"cell": torch.arange(n) % 5, "dose": torch.arange(n) % 3}


def test_velocity_is_zero_before_training():
    z, t, labels = inputs()
    assert (small(random=False)(z, t, labels) == 0).all()


@torch.no_grad()
def test_against_a_plain_derivation():
    """Cell by cell and head by head; the order of scale, shift and gate as in the authors' network."""
    model = small()
    z, t, labels = inputs(2)
    ours = model(z, t, labels).double().numpy()
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def silu(x):
        return x / (1 + np.exp(-x))

    def modulate(x, scale, shift):
        normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-8)
        return normed * (1 + scale) + shift

    for b in range(2):
        angle = float(t[b]) * np.exp(-math.log(1e4) * np.arange(128) / 128)
        c = linear(silu(linear(np.concatenate([np.cos(angle), np.sin(angle)]), "time.0")), "time.2")
        c = c + w["tables.cell"][labels["cell"][b]] + w["tables.dose"][labels["dose"][b]]
        frequency = 10_000.0 ** (-np.arange(6) / 6)
        place = np.arange(3)[:, None] * frequency
        x = linear(z[b].double().numpy(), "enter") + np.concatenate([np.sin(place), np.cos(place)], 1)
        for layer in range(2):
            name = f"blocks.{layer}."
            scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = np.split(linear(silu(c), f"{name}modulation"), 6)
            q, k, v = np.split(linear(modulate(x, scale, shift), f"{name}attention.qkv"), 3, axis=1)
            heads = []
            for own in (slice(0, 6), slice(6, 12)):
                share = np.exp(q[:, own] @ k[:, own].T / math.sqrt(6))
                heads.append(share / share.sum(1, keepdims=True) @ v[:, own])
            x = x + gate * linear(np.concatenate(heads, 1), f"{name}attention.project")
            h = modulate(x, scale_mlp, shift_mlp)
            h = silu(linear(h, f"{name}mlp.gate")) * linear(h, f"{name}mlp.value")
            x = x + gate_mlp * linear(h, f"{name}mlp.contract")
        shift, scale = np.split(linear(silu(c), "final_modulation"), 2)
        np.testing.assert_allclose(ours[b], linear(modulate(x, scale, shift), "leave"), rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(cell=st.integers(0, 4), dose=st.integers(0, 2))
@torch.no_grad()
def test_null_labels(cell, dose):
    """Minus one, a missing attribute and no labels at all are the null row; a real label is not."""
    model, (z, t, _) = small(), inputs()
    none = torch.full((4,), NULL)
    given_labels = {"cell": torch.full((4,), cell), "dose": torch.full((4,), dose)}
    empty = model(z, t)
    torch.testing.assert_close(model(z, t, {"cell": none, "dose": none}), empty)
    one = model(z, t, {"cell": given_labels["cell"]})
    torch.testing.assert_close(model(z, t, given_labels | {"dose": none}), one)
    assert (one - empty).abs().max() > 1e-4 and (model(z, t, given_labels) - one).abs().max() > 1e-4


@torch.no_grad()
def test_cells_are_independent_and_tokens_have_places():
    model, (z, t, labels) = small(), inputs()
    together = model(z, t, labels)
    order = torch.tensor([2, 0, 3, 1])
    moved = model(z[order], t[order], {name: label[order] for name, label in labels.items()})
    torch.testing.assert_close(moved, together[order])
    assert (model(z.flip(1), t, labels).flip(1) - together).abs().max() > 1e-4  # latent tokens are a sequence


@torch.no_grad()
def test_labels_add():
    model, (_, _, labels) = small(), inputs()
    zero = model.condition(None, 4)
    both = model.condition(labels, 4)
    apart = [model.condition({name: label}, 4) for name, label in labels.items()]
    torch.testing.assert_close(sum(apart) - zero, both)


def test_position_table():
    table = position_table(7, 9)[0].double()
    assert table.shape == (7, 9) and (table[:, -1] == 0).all()
    torch.testing.assert_close(table[5, 1], torch.tensor(5 / 10_000 ** (1 / 4)).double().sin(), atol=1e-6, rtol=0)
    torch.testing.assert_close(table[5, 4], torch.tensor(5.0).double().cos(), atol=1e-6, rtol=0)


def test_size_of_the_papers_network():
    """Eight blocks, 256 wide: 9.7 million parameters without conditions."""
    with torch.device("meta"):
        model = VelocityNetwork(VelocityConfig(tokens=256, channels=16))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(9.7e6, rel=0.02)


def test_unknown_attributes_are_named():
    z, t, _ = inputs()
    with pytest.raises(ScreproError, match="tissue"):
        small()(z, t, {"tissue": torch.zeros(4, dtype=torch.long)})
