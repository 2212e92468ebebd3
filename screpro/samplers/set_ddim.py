"""Sampling of sets of cells: DDIM with a network that predicts x_0 and is shown its previous answer.

PerturbDiff, section B.2, equations 29, 33 and 34. At every step

    x_0 = predict(x_t, t, previous x_0), guided; values below a threshold set to 0

and the next x_s follows as in ``ddim``: deterministic with eta = 0, and with eta = 1 over all T steps the ancestral
sampler of DDPM.

Where this differs: the paper takes K = 100 steps down from T; the authors' default starts a standard normal at step 99
of 1 000, where the network expects almost clean cells. Both are lists of times here: ``ddim.strided`` and `last`.
The threshold cuts after guidance, so that what is fed back is what would be the answer.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.processes.gaussian import Schedule
from screpro.samplers.ddim import split_noise
from screpro.samplers.ddpm import progress

__all__ = ["SetDenoiser", "guided", "last", "sample_sets"]

SetDenoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t (B, m, G), t (B,), previous x_0 or None) -> predicted x_0 (B, m, G)."""


def last(steps: int) -> list[int]:
    """The authors' default: times steps - 1, ..., 0, however long the schedule is."""
    if steps < 1:
        raise ScreproError("Sampling takes at least one step.", got=str(steps), fix="ask for more steps")
    return list(range(steps - 1, -1, -1))


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """(1 + w) x_c - w x_u (eq. 35). The same formula on the implied noise gives the same x_0, both being linear."""
    return conditional + weight * (conditional - unconditional)


@torch.no_grad()
def sample_sets(
    predict: SetDenoiser,
    shape: tuple[int, int, int],
    *,
    schedule: Schedule,
    times: Sequence[int],
    generator: torch.Generator,
    eta: float = 0.0,
    threshold: float = 1e-4,
    title: str | None = "sampling",
) -> Tensor:
    """Sets (B, m, G): the prediction at the last of `times`.

    Parameters
    ----------
    predict
        Holds controls, labels and guidance.
    shape
        (sets, cells, genes).
    schedule
        The one of training, on the generator's device.
    times
        Decreasing time steps, ``ddim.strided(schedule, 100)`` for the paper's sampler.
    generator
        Of the starting noise, and of the noise of each step if eta > 0.
    eta
        0: deterministic after the start; 1: as much fresh noise as DDPM.
    threshold
        Predicted values below it become 0; in the unit the network works in.
    title
        Of the progress bar; None shows none.

    Raises
    ------
    ScreproError
        Times are empty, not decreasing or outside the schedule.
    """
    times = list(times)
    if not times or any(a <= b for a, b in pairwise(times)) or times[-1] < 0 or times[0] >= schedule.steps:
        raise ScreproError(
            "Sampling times decrease and lie within the schedule.",
            got=f"{len(times)} times, {times[:3]} ... {times[-3:]}, {schedule.steps} steps",
            fix="use ddim.strided(schedule, steps)",
        )
    x = torch.randn(shape, generator=generator, device=generator.device)
    previous = None
    pairs = list(zip(times, [*times[1:], None], strict=True))
    for here, there in pairs if title is None else progress(pairs, title):
        x0 = predict(x, torch.full((shape[0],), here, device=x.device), previous)
        previous = x0 = torch.where(x0 < threshold, 0, x0)
        if there is None:
            break
        kept, sigma = split_noise(schedule, here, there, eta)
        epsilon = (x - schedule.signal[here] * x0) / schedule.noise[here]
        x = schedule.signal[there] * x0 + kept * epsilon
        if sigma:
            x += sigma * torch.randn(shape, generator=generator, device=x.device)
    return x0
