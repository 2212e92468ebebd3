"""The Gaussian diffusion of scDiff: equations 6, 9 and 15 to 18.

Symbols: beta_t noise added at step t, alpha_t = 1 - beta_t, alpha_bar_t their product, T steps numbered 0 to T - 1.

Where this differs from the paper (following the authors' code):
- "linear" schedule there is the scaled-linear one of latent diffusion.
- eq. 7 re-noises x_theta at level t, and the x_theta coefficient of eq. 16 is wrong; this is the standard DDPM
  posterior, the only one that eq. 17 agrees with.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from screpro.errors import ScreproError

__all__ = ["Posterior", "Schedule", "linear", "scaled_linear", "shifted"]


class Posterior(NamedTuple):
    """q(x_{t-1} | x_t, x_0), a Gaussian with diagonal covariance."""

    mean: Tensor  # (B, G)
    variance: Tensor  # (B, 1); zero at t = 0


class Schedule:
    """Noise schedule and everything that follows from it in closed form.

    Parameters
    ----------
    beta
        (T,) variances of the forward steps, each in (0, 1). Products are taken in float64, tables kept in float32.
    """

    def __init__(self, beta: Tensor):
        beta = beta.double()
        if beta.ndim != 1 or not len(beta) or not bool(((beta > 0) & (beta < 1)).all()):
            raise ScreproError(
                "A schedule is a vector of variances strictly between 0 and 1.",
                got=f"shape {tuple(beta.shape)}, range [{beta.min().item():.3g}, {beta.max().item():.3g}]",
                fix="use scaled_linear() or linear(), or give such a vector",
            )
        alpha_bar = (1 - beta).cumprod(0)
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])  # alpha_bar_{t-1}; no noise before step 0
        self.beta = beta.float()
        self.alpha_bar = alpha_bar.float()
        self.signal = alpha_bar.sqrt().float()  # factor of x_0 in x_t
        self.noise = (1 - alpha_bar).sqrt().float()  # factor of epsilon in x_t
        self.from_x0 = (beta * before.sqrt() / (1 - alpha_bar)).float()
        self.from_xt = ((1 - before) * (1 - beta).sqrt() / (1 - alpha_bar)).float()
        self.posterior_variance = (beta * (1 - before) / (1 - alpha_bar)).float()
        ratio = alpha_bar / (1 - alpha_bar)
        self.snr = ratio.float()
        self.kl_weight = (0.5 * (before / (1 - before) - ratio)).float()  # of eq. 17; infinite at t = 0

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.beta)

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule with its tables on `device`."""
        moved = object.__new__(Schedule)
        moved.__dict__ = {name: table.to(device) for name, table in self.__dict__.items()}
        return moved

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (eq. 6, all steps at once).

        `x0` and `noise` are (B, G), or (B, m, G) sets of cells with one t for a set; `t` is (B,).
        """
        t = t.reshape(-1, *[1] * (x0.ndim - 1))
        return self.signal[t] * x0 + self.noise[t] * noise

    def step(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """One forward step q(x_t | x_{t-1}) of eq. 6, from x_{t-1} (B, G)."""
        return (1 - self.beta[t, None]).sqrt() * x + self.beta[t, None].sqrt() * noise

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Posterior:
        """q(x_{t-1} | x_t, x_0): the reverse step once x_0 is predicted. `x0`, `x_t` (B, G); `t` (B,)."""
        mean = self.from_x0[t, None] * x0 + self.from_xt[t, None] * x_t
        return Posterior(mean, self.posterior_variance[t, None])

    def bins(self, count: int) -> Tensor:
        """Centres of `count` equal bins of the T steps: 100, 300, 500, 700, 900 for 5 (appendix D.1)."""
        if not 1 <= count <= self.steps:
            raise ScreproError(
                "The number of time steps must lie between 1 and the length of the schedule.",
                got=f"{count} of {self.steps}",
                fix="lower the number of time steps",
            )
        return (torch.arange(count, dtype=torch.float64) + 0.5).mul(self.steps / count).long()


def scaled_linear(steps: int = 1000, first: float = 1e-4, last: float = 2e-2) -> Schedule:
    """beta_t linear in its square root: what scDiff's code calls "linear". Ends at alpha_bar = 0.0007."""
    return Schedule(torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2)


def linear(steps: int = 1000, first: float = 1e-4, last: float = 2e-2) -> Schedule:
    """beta_t linear in t, the schedule of DDPM. Ends at alpha_bar = 0.00004."""
    return Schedule(torch.linspace(first, last, steps, dtype=torch.float64))


def shifted(schedule: Schedule, factor: float) -> Schedule:
    """The same schedule with noise / signal multiplied by `factor` at every step; below 1 for less noise.

    Noising x with it is noising x / factor with the original one, on another scale.
    """
    if not factor > 0:
        raise ScreproError("A factor on the noise is above 0.", got=str(factor), fix="1 changes nothing")
    ratio = (factor * schedule.noise.double() / schedule.signal.double()) ** 2
    alpha_bar = 1 / (1 + ratio)
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return Schedule(1 - alpha_bar / before)
