"""Guidance: what weights 0 and 1 mean, what both forms share, and how many calls of the network they cost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.models.scldm_velocity import VelocityConfig, VelocityNetwork
from screpro.samplers.guidance import additive, joint


def close(a, b, *weights):
    """Equal up to rounding, which large weights magnify."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * (1 + sum(map(abs, weights))))


def network(seed=0):
    torch.manual_seed(seed)
    model = VelocityNetwork(VelocityConfig(3, 4, 12, 1, 2, {"cell": 5, "dose": 3})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape))
    return model.requires_grad_(False)


NETWORK = network()
LABELS = {"cell": torch.tensor([0, 4, 2]), "dose": torch.tensor([2, 0, 1])}
POINT = (
    torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0.1, 0.5, 0.9]),
)
NONE, BOTH = NETWORK(*POINT), NETWORK(*POINT, LABELS)
EACH = {name: NETWORK(*POINT, {name: label}) for name, label in LABELS.items()}


@settings(max_examples=20)
@given(weight=st.floats(-2, 10))
def test_joint_guidance_is_its_formula(weight):
    close(joint(NETWORK, LABELS, weight=weight)(*POINT), NONE + weight * (BOTH - NONE), weight)


@settings(max_examples=20)
@given(cell=st.floats(-2, 10), dose=st.floats(-2, 10))
def test_additive_guidance_is_its_formula(cell, dose):
    guided = additive(NETWORK, LABELS, weights={"cell": cell, "dose": dose})(*POINT)
    close(guided, NONE + cell * (EACH["cell"] - NONE) + dose * (EACH["dose"] - NONE), cell, dose)


def test_weights_zero_and_one():
    for form, name in ((joint, "weight"), (additive, "weights")):
        close(form(NETWORK, LABELS, **{name: 0.0})(*POINT), NONE)
    close(joint(NETWORK, LABELS, weight=1.0)(*POINT), BOTH)
    # attributes interact in the network, so their effects do not simply add
    assert (additive(NETWORK, LABELS)(*POINT) - BOTH).abs().max() > 1e-3


@settings(max_examples=20)
@given(weight=st.floats(0, 10))
def test_with_one_attribute_both_forms_are_the_same(weight):
    one = {"cell": LABELS["cell"]}
    guided = [joint(NETWORK, one, weight=weight)(*POINT), additive(NETWORK, one, weights=weight)(*POINT)]
    close(*guided, weight)


def test_without_labels_there_is_nothing_to_guide():
    close(joint(NETWORK, {}, weight=5.0)(*POINT), NONE)
    close(additive(NETWORK, {}, weights=5.0)(*POINT), NONE)
    null = {name: torch.full((3,), -1) for name in LABELS}
    close(joint(NETWORK, null, weight=7.0)(*POINT), NONE)


@pytest.mark.parametrize(("build", "rows"), [
    (lambda call: joint(call, LABELS), 3), (lambda call: joint(call, LABELS, weight=0), 3),
    (lambda call: joint(call, LABELS, weight=2), 6), (lambda call: additive(call, LABELS, weights=2), 9),
])  # fmt: skip
def test_one_call_of_the_network_a_velocity(build, rows):
    calls = []

    def counted(z, t, labels):
        calls.append(len(z))
        assert len(t) == len(z) and all(len(label) == len(z) for label in labels.values())
        return NETWORK(z, t, labels)

    build(counted)(*POINT)
    assert calls == [rows]


def test_wrong_weights_are_explained():
    with pytest.raises(ScreproError, match="one weight per attribute"):
        additive(NETWORK, LABELS, weights={"cell": 1.0})
