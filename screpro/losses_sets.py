"""PerturbDiff's training loss: a set of cells has to be right as a distribution and cell by cell (eq. 7, 8, 30 to 33).

    paper:  energy distance(X, X_hat) + sum over genes of the squared error, mean over cells
    code:   energy distance / 2       + MEAN over genes of the squared error, mean over cells

With 2 000 genes the two weigh the squared error a thousand times differently against the energy distance. The code's
is followed; `SCALES` holds both. "MMD" in the paper's text is the energy distance, no other kernel is used in training.

A set has one time step. With probability 1/2 a batch is shown its own first prediction (self-conditioning, without a
gradient), and with probability `drop` a whole batch loses its covariates while the control cells stay; both of them
per mini-batch, as in the code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.kernels.energy import energy_loss
from screpro.models.perturbdiff import PerturbDiff
from screpro.processes.gaussian import Schedule

__all__ = ["SCALES", "Batch", "HybridLoss", "set_loss"]

SCALES = ("code", "paper", "squares only", "energy only")
"""Which terms, and how they are weighed; "squares only" is the paper's ablation "w/o MMD"."""


@dataclass(frozen=True)
class Batch:
    """What one training step sees."""

    x0: Tensor  # (B, m, G) perturbed cells
    control: Tensor | None  # (B, m, G) matched controls; None in pre-training
    labels: dict[str, Tensor] | None  # attribute -> (B,)
    source: int = 0


def set_loss(predicted: Tensor, x0: Tensor, scale: str = "code") -> Tensor:
    """Loss of every set, (B, m, G) and (B, m, G) -> (B,).

    Raises
    ------
    ScreproError
        `scale` is none of `SCALES`.
    """
    if scale not in SCALES:
        raise ScreproError("A loss has a scale.", got=repr(scale), fix=f"choose one of {', '.join(SCALES)}")
    if scale == "energy only":
        return energy_loss(predicted, x0)
    if scale == "squares only":
        return (predicted - x0).square().mean((1, 2))
    if scale == "code":
        return energy_loss(predicted, x0, squares=1)  # half of the energy distance, and the squares
    return 2 * energy_loss(predicted, x0, squares=x0.shape[-1] / 2)


class HybridLoss:
    """Mean loss of a mini-batch of sets, for ``screpro.training.fit``, which passes numbers of items.

    Parameters
    ----------
    draw
        (item numbers (B,), generator) -> `Batch` on the generator's device.
    schedule
        Of the noise, on that device.
    scale
        See `SCALES`.
    drop
        Probability that a mini-batch has no covariates.
    self_condition
        Probability that it sees its own prediction.
    """

    def __init__(
        self,
        draw: Callable[[Tensor, torch.Generator], Batch],
        schedule: Schedule,
        *,
        scale: str = "code",
        drop: float = 0.5,
        self_condition: float = 0.5,
    ):
        if not (0 <= drop <= 1 and 0 <= self_condition <= 1):
            raise ScreproError(
                "Probabilities are within 0..1.", got=f"{drop=}, {self_condition=}", fix="choose values within"
            )
        self.draw, self.schedule, self.scale = draw, schedule, scale
        self.drop, self.self_condition = drop, self_condition

    def __call__(self, model: PerturbDiff, items: Tensor, generator: torch.Generator) -> Tensor:
        batch = self.draw(items, generator)
        x0, device = batch.x0, batch.x0.device
        t = torch.randint(self.schedule.steps, (len(x0),), generator=generator, device=device)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        dropped, shown = (torch.rand(2, generator=generator, device=device) < torch.tensor(
            [self.drop, self.self_condition], device=device)).tolist()  # fmt: skip
        x_t = self.schedule.diffuse(x0, t, noise)
        given = {"control": batch.control, "labels": None if dropped else batch.labels, "source": batch.source}
        previous = None
        if shown:
            with torch.no_grad():  # the same covariates as the step itself; the code does not say
                previous = model(x_t, t, **given)
        return set_loss(model(x_t, t, **given, previous=previous), x0, self.scale).mean()
