"""DDIM: sampling in few steps (Song et al. 2021, arXiv 2010.02502, equations 12 and 16).

From x_t and the predicted x_0 follows the noise that would lead from one to the other; the same noise, a part of it
drawn anew, leads from x_0 to any earlier level:

    epsilon = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t)
    x_s     = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s - sigma^2) epsilon + sigma z        for s < t, z ~ N(0, 1)
    sigma   = eta sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t)) sqrt(1 - alpha_bar_t / alpha_bar_s)

With eta = 0 all randomness is in x_T. With eta = 1 and all T steps it is ancestral sampling. Time steps are spread
evenly from T - 1 down (`strided`) or closer together where there is little noise (`quadratic`, appendix D.2 there). The
scDiff paper samples with all T steps only.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.processes.gaussian import Schedule
from screpro.samplers.ddpm import Denoiser, progress, start_noise

__all__ = ["ddim", "quadratic", "split_noise", "strided"]


def strided(schedule: Schedule, steps: int) -> list[int]:
    """`steps` time steps from T - 1 down to 0, as evenly as whole numbers allow.

    Raises
    ------
    ScreproError
        `steps` is not between 1 and T.
    """
    return _even(schedule, steps).round().long().tolist()


def quadratic(schedule: Schedule, steps: int) -> list[int]:
    """`steps` different time steps from T - 1 down to 0 that grow as squares, so that most have little noise.

    Raises
    ------
    ScreproError
        As `strided`.
    """
    squares = (_even(schedule, steps) ** 2 / max(1, schedule.steps - 1)).round().long()
    # the smallest squares are less than one apart: 0, 1, 2 ... in their place
    return torch.maximum(squares, torch.arange(steps).flip(0)).tolist()


def _even(schedule: Schedule, steps: int) -> Tensor:
    if not 1 <= steps <= schedule.steps:
        raise ScreproError(
            "DDIM takes at least one step and at most as many as the schedule has.",
            got=f"{steps} of {schedule.steps}",
            fix="lower the number of steps",
        )
    return torch.linspace(schedule.steps - 1, 0, steps, dtype=torch.float64)


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    shape: tuple[int, int],
    *,
    schedule: Schedule,
    generator: torch.Generator,
    steps: int = 50,
    times: Callable[[Schedule, int], list[int]] = strided,
    eta: float = 0.0,
    nonnegative: bool = False,
    title: str = "sampling",
) -> Tensor:
    """Samples (B, G) after `steps` network calls at `strided` or `quadratic` time steps, other parameters as in
    ``ddpm.ancestral``.

    `eta` is the share of an ancestral step's noise that every step adds: with 0 all randomness is in x_T.
    """
    steps_down = times(schedule, steps)
    x = start_noise(shape, generator=generator)
    for here, there in progress(list(zip(steps_down, [*steps_down[1:], None], strict=True)), title):
        t = torch.full((shape[0],), here, device=x.device)
        x0 = denoise(x, t)
        if nonnegative:
            x0 = x0.clamp(min=0)
        if there is None:
            break
        kept, sigma = split_noise(schedule, here, there, eta)
        epsilon = (x - schedule.signal[here] * x0) / schedule.noise[here]
        x = schedule.signal[there] * x0 + kept * epsilon
        if sigma:
            x += sigma * start_noise(shape, generator=generator)
    return x0


def split_noise(schedule: Schedule, here: int, there: int, eta: float) -> tuple[float, float]:
    """Factors of the old and of new noise at time step `there` < `here`; their squares add up to its variance.

    Raises
    ------
    ScreproError
        `eta` is not between 0 and 1.
    """
    if not 0 <= eta <= 1:
        raise ScreproError("The share of fresh noise is between 0 and 1.", got=f"eta {eta}", fix="1 is ancestral noise")
    level, before = schedule.noise[there].item(), schedule.noise[here].item()
    # 1 - alpha_bar_t / alpha_bar_s from the steps between: as a difference of two numbers near 1 it would be rounding
    between = -torch.expm1(torch.log1p(-schedule.beta[there + 1 : here + 1].double()).sum()).item()
    sigma = eta * level / before * between**0.5
    return max(0.0, level**2 - sigma**2) ** 0.5, sigma
