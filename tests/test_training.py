"""The training loop: resuming exactly, averages, rates, and refusing what cannot work."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from screpro.errors import ScreproError
from screpro.training import TrainConfig, fit, learning_rate_factor

CONFIG = TrainConfig(
    epochs=4, batch_size=5, learning_rate=0.05, ema=0.99, warmup=0.1, clip=1.0, rate_factors={"0.bias": 10.0}, seed=3
)
N = 13  # the last batch of an epoch is smaller


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


class Problem:
    """A noisy regression that remembers which rows it saw, and can be made to stop."""

    def __init__(self, stop_after: int | None = None):
        generator = torch.Generator().manual_seed(9)
        self.x = torch.randn(N, 3, generator=generator)
        self.y = self.x.sum(1, keepdim=True).sin()
        self.seen: list[list[int]] = []
        self.stop_after = stop_after

    def __call__(self, model, rows, generator):
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(rows.tolist())
        noise = 0.1 * torch.randn(len(rows), 1, generator=generator)
        return ((model(self.x[rows]) - self.y[rows] + noise) ** 2).mean()


@pytest.mark.parametrize("stop_after", [1, 3, 7, 11])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, stop_after):
    """Bit for bit, also when killed in the middle of an epoch."""
    whole, file = network(), tmp_path / "state.safetensors"
    reference = fit(whole, Problem(), N, CONFIG)
    part = network()
    always = replace(CONFIG, checkpoint_seconds=-1.0)  # after every step
    with pytest.raises(KeyboardInterrupt):
        fit(part, Problem(stop_after), N, always, checkpoint=file)
    again, rest = network(), Problem()
    nn.init.zeros_(again[0].weight)  # what the process started from must not matter
    done = fit(again, rest, N, CONFIG, checkpoint=file)
    assert len(rest.seen) == 12 - stop_after
    assert done.losses == reference.losses
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
        assert torch.equal(done.average[name], reference.average[name]), name
    finished = Problem()
    fit(network(), finished, N, CONFIG, checkpoint=file)
    assert finished.seen == []  # a finished run has nothing left to do


def test_every_epoch_visits_every_cell_once():
    problem = Problem()
    fit(network(), problem, N, CONFIG)
    epochs = [[row for rows in problem.seen[3 * e : 3 * e + 3] for row in rows] for e in range(4)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [len(rows) for rows in problem.seen[:3]] == [5, 5, 3]


def test_seed_decides_everything():
    runs = []
    for seed in (3, 3, 4):
        model = network()
        fit(model, Problem(), N, replace(CONFIG, seed=seed))
        runs.append(model[0].weight.detach().clone())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_global_generators_are_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state().clone()
    fit(network_without_seeding(), Problem(), N, CONFIG)
    assert torch.equal(torch.get_rng_state(), before)


def network_without_seeding() -> nn.Module:
    with torch.random.fork_rng():
        return network()


def test_average_is_the_stated_recursion(tmp_path):
    """Weights after every step, averaged by hand with decay min(d, (1 + k) / (10 + k))."""
    trail = []

    class Spy(Problem):
        def __call__(self, model, rows, generator):
            trail.append(parameters(model))
            return super().__call__(model, rows, generator)

    model = network()
    done = fit(model, Spy(), N, CONFIG)
    trail.append(parameters(model))
    average = trail[0]
    for k, value in enumerate(trail[1:], start=1):
        decay = min(0.99, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * value
    ours = torch.cat([value.flatten() for value in done.average.values()])
    torch.testing.assert_close(ours, average)
    assert fit(network(), Problem(), N, replace(CONFIG, ema=None)).average is None


def parameters(model) -> torch.Tensor:
    return torch.cat([value.detach().flatten().clone() for value in model.state_dict().values()])


def test_learning_rate():
    def rate(step, **how):
        return learning_rate_factor(step, 100, **({"schedule": "cosine", "warmup": 0.0} | how))

    assert rate(0) == 1 and rate(50) == pytest.approx(0.5) and rate(99) < 1e-3
    assert {rate(step, schedule="constant") for step in range(100)} == {1.0}
    ramp = [rate(step, warmup=0.1) for step in range(11)]
    assert all(np.diff(ramp) > 0) and ramp[10] == 1
    assert math.isclose(rate(55, warmup=0.1), 0.5)
    flat = [rate(step, schedule="flat cosine", warmup=0.1) for step in range(100)]
    assert flat[10:21] == [1.0] * 11 and all(np.diff(flat[20:]) < 0) and flat[-1] == pytest.approx(0.1, abs=0.01)


def test_biases_do_not_decay():
    """Without a gradient only the decay moves weights, and it leaves vectors alone."""

    def nothing(model, rows, generator):
        return 0.0 * sum(p.sum() for p in model.parameters())

    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, nothing, N, TrainConfig(epochs=3, batch_size=5, learning_rate=0.1, weight_decay=0.1))
    for name, after in model.named_parameters():
        assert torch.equal(after, before[name]) == (after.ndim == 1), name


def test_a_parameter_may_have_a_rate_of_its_own():
    """The first step of Adam has the length of the rate, whatever the gradient."""
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    own = next(name for name, p in model.named_parameters() if p.ndim == 1)
    config = TrainConfig(epochs=1, batch_size=N, learning_rate=1e-3, schedule="constant", rate_factors={own: 10.0})
    fit(model, lambda net, rows, generator: sum(p.sum() for p in net.parameters()), N, config)
    for name, after in model.named_parameters():
        step = 1e-2 if name == own else 1e-3
        assert torch.allclose(before[name] - after, torch.full_like(after, step), rtol=1e-3), name
    with pytest.raises(ScreproError, match="bias_of_nothing"):
        fit(network(), Problem(), N, replace(CONFIG, rate_factors={"bias_of_nothing": 2.0}))


def test_it_learns():
    model, problem = network(), Problem()
    losses = fit(model, problem, N, TrainConfig(epochs=150, batch_size=5, learning_rate=0.02)).losses
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": -1.0},
        {"schedule": "step"},
        {"warmup": 1.0},
        {"rate_factors": {"x": 0.0}},
    ],
)
def test_configurations_that_cannot_work(change):
    with pytest.raises(ScreproError, match=next(iter(change))):
        fit(network(), Problem(), N, replace(CONFIG, **change))
    with pytest.raises(ScreproError, match="0 cells"):
        fit(network(), Problem(), 0, CONFIG)


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(ScreproError, match="finite"):
        fit(network(), lambda model, rows, generator: model(torch.ones(1, 3)).sum() * float("nan"), N, CONFIG)


def test_checkpoints_that_do_not_fit(tmp_path):
    file = tmp_path / "state.safetensors"
    fit(network(), Problem(), N, CONFIG, checkpoint=file)
    with pytest.raises(ScreproError, match="learning_rate changed"):
        fit(network(), Problem(), N, replace(CONFIG, learning_rate=0.1), checkpoint=file)
    with pytest.raises(ScreproError, match="network it was started with"):
        fit(nn.Sequential(nn.Linear(3, 1)), Problem(), N, CONFIG, checkpoint=file)
    content = file.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"\x80\x04pickle"):
        file.write_bytes(broken)
        with pytest.raises(ScreproError, match="complete file"):
            fit(network(), Problem(), N, CONFIG, checkpoint=file)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]  # nothing half-written is left


def test_time_of_interrupted_calls_counts(tmp_path):
    file = tmp_path / "state.safetensors"
    first = fit(network(), Problem(), N, CONFIG, checkpoint=file)
    again = fit(network(), Problem(), N, CONFIG, checkpoint=file)  # nothing is left to train
    assert again.steps == first.steps and again.seconds >= first.seconds > 0
