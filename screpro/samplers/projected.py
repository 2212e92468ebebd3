"""Reverse chains in the few dimensions that scDiff's network looks at: exact, and independent of the number of genes.

Every sampler here is linear in the cell: x_s = a x_0 + b x_t + c eps. The network reads x_t only through its gene
table E, as y_t = E' x_t, and its head is linear too, x_0 = W h + w. So

    y_s = a (E'W h + E'w) + b y_t + c E'eps,        E'eps ~ N(0, E'E)

is the same chain in D instead of G dimensions: the noise is drawn in D dimensions from its own covariance, and genes
are formed once, from the last h. It is the same distribution, not an approximation; a step costs D^2 instead of 2 G D
multiplications and D instead of G random numbers per cell. Where predicted cells are kept non-negative, x_0 has to be
formed in every step, x_0 = max(W h + w, 0); the noise still never is.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from screpro.processes.gaussian import Schedule
from screpro.samplers.ddim import split_noise, strided
from screpro.samplers.ddpm import progress

__all__ = ["Projection", "Step", "ancestral_steps", "ddim_steps", "projected"]


class Step(NamedTuple):
    """x_s = x0 * x_0 + xt * x_t + noise * eps, from time step t."""

    t: int
    x0: float
    xt: float
    noise: float


def ancestral_steps(schedule: Schedule) -> list[Step]:
    """All T steps of ``ddpm.ancestral``, the last of which answers with x_0."""
    spread = schedule.posterior_variance.sqrt()
    tables = (schedule.from_x0, schedule.from_xt, spread)
    return [Step(t, *(table[t].item() for table in tables)) for t in range(schedule.steps - 1, -1, -1)]


def ddim_steps(
    schedule: Schedule, steps: int, *, times: Callable[[Schedule, int], list[int]] = strided, eta: float = 0.0
) -> list[Step]:
    """The steps of ``ddim.ddim``; parameters and errors as there."""
    found = []
    for here, there in pairwise(down := times(schedule, steps)):
        kept, sigma = split_noise(schedule, here, there, eta)
        shrink = kept / schedule.noise[here].item()
        found.append(Step(here, schedule.signal[there].item() - shrink * schedule.signal[here].item(), shrink, sigma))
    return [*found, Step(down[-1], 1.0, 0.0, 0.0)]


class Projection:
    """What the chain needs of the gene table E (G, D) and the head x_0 = W h + w, clamped at 0 if `nonnegative`.

    Attributes
    ----------
    root
        (r, D) with root' root = E'E, r = min(G, D), so that z root is E'eps for standard normal z (r,).
    """

    def __init__(self, table: Tensor, head: nn.Linear, *, nonnegative: bool = False):
        self.table, self.head, self.nonnegative = table, head, nonnegative
        self.root = torch.linalg.qr(table.double(), mode="r").R.float()
        self._through = head.weight.T @ table  # (D, D), h @ through = E'W h
        self._offset = head.bias @ table  # (D,), E'w

    def cells(self, h: Tensor) -> Tensor:
        """x_0 (n, G) of h (n, D)."""
        x0 = self.head(h)
        return x0.clamp(min=0) if self.nonnegative else x0

    def back(self, h: Tensor) -> Tensor:
        """E'x_0 (n, D) of h (n, D); without a clamp no cell is formed."""
        return self.cells(h) @ self.table if self.nonnegative else h @ self._through + self._offset

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """E'eps of n cells, (n, D)."""
        return torch.randn(n, len(self.root), generator=generator, device=generator.device) @ self.root


@torch.no_grad()
def projected(
    answer: Callable[[Tensor, Tensor], Tensor],
    projection: Projection,
    steps: Sequence[Step],
    *,
    n: int,
    noise: Callable[[], Tensor],
    title: str = "sampling",
) -> Tensor:
    """The network's h (n, D) at the end of the chain; ``projection.cells`` turns it into cells.

    Parameters
    ----------
    answer
        (y_t (n, D), t (n,)) -> h (n, D), the network between gene table and head.
    projection
        Of that table and head.
    steps
        From `ancestral_steps` or `ddim_steps`.
    n
        Number of cells.
    noise
        Draws E'eps (n, D); called for y_T and in every step that adds noise.
    title
        Of the progress bar.
    """
    y = noise()
    for step in progress(steps, title):
        h = answer(y, torch.full((n,), step.t, device=y.device))
        if step is steps[-1]:
            break
        y = step.x0 * projection.back(h) + step.xt * y
        if step.noise:
            y += step.noise * noise()
    return h
