"""Ancestral sampling: the reverse process one step at a time (scDiff, equations 15 to 17).

``x_{t-1} ~ q(x_{t-1} | x_t, x_0)`` with x_0 replaced by the prediction, for t = T-1, ..., 0; no noise at t = 0. The
cost is one network call per step for all cells together.

Where this differs from the paper (following the authors' code): the posterior is DDPM's, not equation 7 or 16 (see
``processes.gaussian``); a predicted cell can be kept non-negative, which the code does for perturbations.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.processes.gaussian import Schedule

__all__ = ["Denoiser", "ancestral", "progress", "start_noise"]

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, G), t (B,)) -> predicted x_0 (B, G)."""


def start_noise(shape: tuple[int, int], *, generator: torch.Generator) -> Tensor:
    """x_T, standard normal (B, G).

    Raises
    ------
    ScreproError
        There is no cell or no gene.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise ScreproError(
            "Sampling needs at least one cell and one gene.", got=f"shape {tuple(shape)}", fix="ask for (cells, genes)"
        )
    return torch.randn(shape, generator=generator, device=generator.device)


@torch.no_grad()
def ancestral(
    denoise: Denoiser,
    shape: tuple[int, int],
    *,
    schedule: Schedule,
    generator: torch.Generator,
    nonnegative: bool = False,
    after_step: Callable[[Tensor, int], Tensor] | None = None,
    title: str = "sampling",
) -> Tensor:
    """Samples (B, G) after all T steps of the schedule.

    Parameters
    ----------
    denoise
        Predicts x_0; it holds the conditions.
    shape
        (cells, genes).
    schedule
        The one the denoiser was trained with, on the generator's device.
    generator
        Draws x_T and the noise of every step.
    nonnegative
        Clamp the predicted cell at zero in every step, as log-expression has to be.
    after_step
        ``(x_{t-1}, t) -> x_{t-1}`` after every step but the last: inpainting writes the visible entries here.
    title
        Of the progress bar.
    """
    x = start_noise(shape, generator=generator)
    for step in progress(range(schedule.steps - 1, -1, -1), title):
        t = torch.full((shape[0],), step, device=x.device)
        x0 = denoise(x, t)
        if nonnegative:
            x0 = x0.clamp(min=0)
        mean, variance = schedule.posterior(x0, x, t)
        if step == 0:
            return mean
        noise = torch.randn(shape, generator=generator, device=x.device)
        x = mean + variance.sqrt() * noise
        if after_step is not None:
            x = after_step(x, step)
    raise AssertionError("a schedule has at least one step")


def progress(steps: range, title: str):
    """The steps with a bar on a terminal, silent elsewhere."""
    from tqdm import tqdm

    return tqdm(steps, desc=title, unit="step", disable=None, leave=False)
