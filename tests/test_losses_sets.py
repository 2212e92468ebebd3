"""PerturbDiff's loss: both scales against the definition, and how often covariates and answers are hidden."""

import pytest
import torch

from screpro.errors import ScreproError
from screpro.kernels.energy import reference_loss
from screpro.losses_sets import Batch, HybridLoss, set_loss
from screpro.processes.gaussian import linear


def pair(seed=0, shape=(3, 6, 9)):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def test_scales():
    a, b = pair()
    half = reference_loss(a, b).float()
    squares = ((a - b) ** 2).mean((1, 2))
    torch.testing.assert_close(set_loss(a, b, "code"), half + squares, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(set_loss(a, b, "paper"), 2 * half + 9 * squares, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(set_loss(a, b, "squares only"), squares)
    torch.testing.assert_close(set_loss(a, b, "energy only"), half, rtol=1e-4, atol=1e-6)
    with pytest.raises(ScreproError, match="scale"):
        set_loss(a, b, "mmd")


def test_a_perfect_answer_costs_nothing_and_pulls_nowhere():
    a, _ = pair()
    x = a.clone().requires_grad_()
    set_loss(x, a, "code").sum().backward()
    assert x.grad.isfinite().all()
    assert float(set_loss(a, a, "code").abs().max()) < 1e-5
    shuffled = a[:, torch.randperm(6, generator=torch.Generator().manual_seed(1))]
    assert float(set_loss(shuffled, a, "energy only").abs().max()) < 1e-5  # as distributions they are the same
    assert float(set_loss(shuffled, a, "squares only").min()) > 0.01


class Spy(torch.nn.Module):
    """Answers the noised cells and writes down what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x_t, t, *, control, labels, source, previous=None):
        self.seen.append((t, labels, control, previous, torch.is_grad_enabled()))
        return x_t


def test_hiding_is_by_mini_batch_and_controls_stay():
    x0, control = pair()
    batch = Batch(x0, control, {"perturbation": torch.arange(3)})
    loss, spy = HybridLoss(lambda items, generator: batch, linear(), drop=0.3, self_condition=0.6), Spy()
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        loss(spy, torch.arange(3), generator)
    trained = [call for call in spy.seen if call[4]]
    assert len(trained) == 600 and all(call[2] is control for call in spy.seen)
    assert sum(call[1] is None for call in trained) / 600 == pytest.approx(0.3, abs=0.06)
    shown = [call[3] is not None for call in trained]
    assert sum(shown) / 600 == pytest.approx(0.6, abs=0.06) and len(spy.seen) == 600 + sum(shown)
    times = torch.cat([call[0] for call in trained])
    assert times.min() < 20 and times.max() > 980  # one time a set, over the whole schedule
    with pytest.raises(ScreproError):
        HybridLoss(lambda items, generator: batch, linear(), drop=1.5)
