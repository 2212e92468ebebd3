"""Averaged weights at chosen steps of one training: the curves of Figures 6, 7 and 17 to 20.

``training.fit`` keeps the average of the weights at the end. Here the loss, which is called once a step, looks at the
weights before each step, averages them by the same rule and keeps copies.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.tasks.set_diffusion import TrainedSets
from screpro.training import Fit, Loss, TrainConfig, fit

__all__ = ["Course", "Watched", "fit_watched", "geometric_steps"]


class Course(NamedTuple):
    """A training and what it was on the way."""

    trained: TrainedSets
    snapshots: dict[int, dict[str, Tensor]]  # step -> averaged weights; 0 is the start

    def at(self, step: int) -> TrainedSets:
        """The network as it was after a step that was kept."""
        if step not in self.snapshots:
            kept = ", ".join(map(str, self.snapshots))
            raise ScreproError("Only some steps were kept.", got=str(step), fix=f"one of {kept}")
        model = copy.deepcopy(self.trained.model)
        model.load_state_dict(self.snapshots[step])
        return replace(self.trained, model=model.eval())


class Watched:
    """A loss that averages the weights of `model` as training goes and keeps copies at some steps.

    Parameters
    ----------
    model
        The network that is trained.
    loss
        What is minimised.
    decay
        Of the average; its warm-up is that of ``training.fit``.
    at
        Steps to keep; 0 is the weights before the first.
    """

    def __init__(self, model: nn.Module, loss: Loss, *, decay: float, at: Sequence[int]):
        self.model, self.loss, self.decay, self.at = model, loss, decay, set(at)
        self.step, self.average, self.snapshots = -1, {}, {}

    def __call__(self, model: nn.Module, items: Tensor, generator: torch.Generator) -> Tensor:
        self.look()
        return self.loss(model, items, generator)

    @torch.no_grad()
    def look(self) -> None:
        """Take the weights as they are after one more step into the average."""
        self.step += 1
        weights = self.model.state_dict()
        if self.step == 0:
            self.average = {name: value.detach().clone() for name, value in weights.items()}
        else:
            rate = 1 - min(self.decay, (1 + self.step) / (10 + self.step))
            for name, value in weights.items():
                self.average[name].lerp_(value.detach(), rate)
        if self.step in self.at:
            self.snapshots[self.step] = {name: value.clone() for name, value in self.average.items()}


def geometric_steps(first: int, total: int, n: int) -> list[int]:
    """At most `n` different steps from `first` to `total`, evenly spread on a logarithmic axis; the last is `total`."""
    if not 1 <= first <= total or n < 1:
        raise ScreproError(
            "Steps to keep are at least one, and lie within training.",
            got=f"{n} from {first} to {total}",
            fix="train longer, or begin earlier",
        )
    if n == 1:
        return [total]
    return sorted({round(step) for step in np.geomspace(first, total, n)} | {total})


def fit_watched(
    model: nn.Module,
    loss: Loss,
    n_items: int,
    config: TrainConfig,
    *,
    checkpoints: int,
    first: int | None = None,
    title: str,
) -> tuple[Fit, dict[int, dict[str, Tensor]]]:
    """Train `model`, load the averaged weights into it, and return those of steps on the way as well.

    Parameters
    ----------
    model, loss, n_items, config, title
        As for ``training.fit``; the configuration has a moving average.
    checkpoints, first
        As for `geometric_steps`; `first` is by default a tenth of all steps.

    Returns
    -------
    Fit, and step -> averaged weights, with the weights before the first step under 0.
    """
    total = config.epochs * math.ceil(n_items / config.batch_size)
    begin = min(total, max(1, total // 10) if first is None else first)
    watched = Watched(model, loss, decay=config.ema, at=[0, *geometric_steps(begin, total, checkpoints)])
    fitted = fit(model, watched, n_items, replace(config, ema=None), title=title)
    watched.look()  # the last step has no call after it
    model.load_state_dict(watched.average)
    return fitted, watched.snapshots
