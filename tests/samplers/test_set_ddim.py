"""Sampling of sets: exact denoisers lead to the distribution they belong to."""

import pytest
import torch

from screpro.errors import ScreproError
from screpro.processes.gaussian import linear, shifted
from screpro.samplers.ddim import strided
from screpro.samplers.set_ddim import guided, last, sample_sets

SCHEDULE = linear()


def run(predict, *, sets=40, cells=20, genes=3, steps=100, **options):
    options = {"times": strided(SCHEDULE, steps), "threshold": -1e9} | options
    return sample_sets(
        predict, (sets, cells, genes), schedule=SCHEDULE, generator=torch.Generator().manual_seed(0), title=None,
        **options,
    )  # fmt: skip


def gaussian(mean, sd):
    """Exact E[x_0 | x_t] of cells that are normal with `mean` and `sd`."""

    def predict(x, t, previous):
        a, s = SCHEDULE.signal[t].reshape(-1, 1, 1), SCHEDULE.noise[t].reshape(-1, 1, 1)
        return mean + a * sd**2 * (x - a * mean) / (a**2 * sd**2 + s**2)

    return predict


def test_a_known_answer_is_returned():
    target = torch.rand(2, 4, 3)
    made = run(lambda x, t, previous: target, sets=2, cells=4)
    torch.testing.assert_close(made, target)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_exact_denoisers_give_their_gaussian(eta):
    mean, sd = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([0.3, 1.0, 2.0])
    times = strided(SCHEDULE, 1000 if eta else 200)
    made = run(gaussian(mean, sd), times=times, eta=eta, sets=200).reshape(-1, 3)
    torch.testing.assert_close(made.mean(0), mean, atol=0.15, rtol=0)
    # the last answer is E[x_0 | x_1], a hair narrower than x_0
    torch.testing.assert_close(made.std(0), sd, atol=0, rtol=0.1)


def test_the_previous_answer_is_shown():
    seen = []

    def predict(x, t, previous):
        seen.append(previous)
        return torch.full_like(x, float(len(seen)))

    run(predict, steps=4)
    assert seen[0] is None and [float(p[0, 0, 0]) for p in seen[1:]] == [1, 2, 3]


def test_small_values_become_zero_before_they_are_fed_back():
    values = torch.tensor([5e-5, 2e-4, -1.0]).expand(2, 2, 3)
    shown = []

    def predict(x, t, previous):
        shown.append(previous)
        return values

    made = run(predict, sets=2, cells=2, steps=3, threshold=1e-4)
    assert (made == torch.tensor([0, 2e-4, 0])).all() and (shown[-1] == made).all()


def test_guidance_on_cells_is_guidance_on_noise():
    generator = torch.Generator().manual_seed(0)
    x, c, u = (torch.randn(4, 3, generator=generator) for _ in range(3))
    signal, noise = SCHEDULE.signal[300], SCHEDULE.noise[300]
    eps_c, eps_u = ((x - signal * part) / noise for part in (c, u))
    implied = (x - noise * guided(eps_c, eps_u, 1.5)) / signal
    torch.testing.assert_close(guided(c, u, 1.5), implied, rtol=1e-4, atol=1e-4)
    assert (guided(c, u, 0) == c).all()


def test_times():
    assert last(100)[0] == 99 and last(100)[-1] == 0 and len(last(100)) == 100
    for times in ([], [3, 5], [1000, 0], [5, 5], [3, -1]):
        with pytest.raises(ScreproError):
            run(gaussian(0.0, 1.0), times=times)
    with pytest.raises(ScreproError):
        last(0)


def test_a_shifted_schedule_has_that_much_less_noise():
    less = shifted(SCHEDULE, 0.1)
    ratio = (less.noise / less.signal) / (SCHEDULE.noise / SCHEDULE.signal)
    torch.testing.assert_close(ratio, torch.full((1000,), 0.1), rtol=1e-3, atol=0)
    with pytest.raises(ScreproError):
        shifted(SCHEDULE, 0)
