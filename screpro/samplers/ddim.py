"""DDIM: deterministic sampling in few steps (Song et al. 2021, arXiv 2010.02502, equation 12 with sigma = 0).

From x_t and the predicted x_0 follows the noise that would lead from one to the other; the same noise leads from x_0
to any earlier level:

    epsilon = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t)
    x_s     = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s) epsilon        for s < t

The steps are spread evenly from T - 1 down ("strided"). The scDiff paper samples with all T steps only.
"""

import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.processes.gaussian import Schedule
from screpro.samplers.ddpm import Denoiser, progress, start_noise

__all__ = ["ddim", "strided"]


def strided(schedule: Schedule, steps: int) -> list[int]:
    """`steps` time steps from T - 1 down to 0, as evenly as whole numbers allow.

    Raises
    ------
    ScreproError
        `steps` is not between 1 and T.
    """
    if not 1 <= steps <= schedule.steps:
        raise ScreproError(
            "DDIM takes at least one step and at most as many as the schedule has.",
            got=f"{steps} of {schedule.steps}",
            fix="lower the number of steps",
        )
    return torch.linspace(schedule.steps - 1, 0, steps, dtype=torch.float64).round().long().tolist()


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    shape: tuple[int, int],
    *,
    schedule: Schedule,
    generator: torch.Generator,
    steps: int = 50,
    nonnegative: bool = False,
    title: str = "sampling",
) -> Tensor:
    """Samples (B, G) after `steps` network calls; all randomness is in x_T. Parameters as in ``ddpm.ancestral``."""
    times = strided(schedule, steps)
    x = start_noise(shape, generator=generator)
    for here, there in progress(list(zip(times, [*times[1:], None], strict=True)), title):
        t = torch.full((shape[0],), here, device=x.device)
        x0 = denoise(x, t)
        if nonnegative:
            x0 = x0.clamp(min=0)
        if there is None:
            break
        epsilon = (x - schedule.signal[here] * x0) / schedule.noise[here]
        x = schedule.signal[there] * x0 + schedule.noise[there] * epsilon
    return x0
