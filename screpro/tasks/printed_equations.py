"""Equations 7, 16 and 19 of scDiff exactly as printed, to show what they would do. Nothing else uses them.

Symbols as in ``processes.gaussian``. A reverse step is linear, x_{t-1} = from_x0 x_0 + from_xt x_t + spread eps, so
for Gaussian cells, where the best x_0 is known, a whole chain has a known mean and variance at every step.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.processes.gaussian import Schedule

__all__ = ["FORMS", "ChainMoments", "ReverseStep", "chain_moments", "printed_time_embedding", "reverse_step"]

FORMS = ("posterior", "equation 7", "equation 16")


class ReverseStep(NamedTuple):
    """Coefficients (T,) float64 of x_{t-1} = from_x0 x_0 + from_xt x_t + spread eps, eps standard normal."""

    from_x0: np.ndarray
    from_xt: np.ndarray
    spread: np.ndarray


def reverse_step(schedule: Schedule, form: str) -> ReverseStep:
    """Coefficients of one reverse step in one of `FORMS`.

    ``"posterior"`` is DDPM's. ``"equation 7"`` re-noises x_0 at level t, its own, and adds sigma_t on top;
    ``"equation 16"`` is a posterior mean whose factor of x_0 has
    sqrt(alpha_bar_t) (1 - alpha_{t-1} / alpha_bar_{t-1}) in place of sqrt(alpha_bar_{t-1}) (1 - alpha_bar_t /
    alpha_bar_{t-1}). All use sigma_t² = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t); no noise is added at t = 0.
    """
    if form not in FORMS:
        raise ScreproError("A reverse step is one of three.", got=repr(form), fix=f"choose one of {', '.join(FORMS)}")
    beta = schedule.beta.double().numpy()
    alpha, bar = 1 - beta, np.cumprod(1 - beta)
    before = np.concatenate([[1.0], bar[:-1]])
    alpha_before = np.concatenate([[1.0], alpha[:-1]])
    variance = beta * (1 - before) / (1 - bar)
    from_xt = np.sqrt(bar) * (1 - before) / (np.sqrt(before) * (1 - bar))
    if form == "posterior":
        return ReverseStep(np.sqrt(before) * (1 - bar / before) / (1 - bar), from_xt, np.sqrt(variance))
    if form == "equation 16":
        printed = np.sqrt(bar) * (1 - alpha_before / before) / (1 - bar)
        return ReverseStep(printed, from_xt, np.sqrt(variance))
    again = np.where(np.arange(len(beta)) > 0, 1 - bar + variance, 1 - bar)
    return ReverseStep(np.sqrt(bar), np.zeros_like(bar), np.sqrt(again))


class ChainMoments(NamedTuple):
    """Mean and variance of x_{t-1} for t = T-1, ..., 0, after each reverse step: (T,) in the order of the chain."""

    mean: np.ndarray
    variance: np.ndarray


def chain_moments(schedule: Schedule, form: str, *, mean: float, variance: float) -> ChainMoments:
    """Moments of a reverse chain from N(0, 1) when cells are N(`mean`, `variance`) and x_theta is the best possible.

    The best prediction is E[x_0 | x_t] = mean + a v / (a² v + s²) (x_t - a mean), a² = alpha_bar_t, s² = 1 - a². A
    correct chain ends at the moments of the cells.
    """
    if not variance > 0:
        raise ScreproError("Cells vary.", got=f"variance {variance}", fix="give a positive variance")
    step = reverse_step(schedule, form)
    bar = np.cumprod(1 - schedule.beta.double().numpy())
    signal = np.sqrt(bar)
    gain = signal * variance / (bar * variance + 1 - bar)
    m, v = 0.0, 1.0
    means, variances = [], []
    with np.errstate(over="ignore", invalid="ignore"):  # a wrong chain may leave the range of floats
        for t in range(schedule.steps - 1, -1, -1):
            factor = step.from_x0[t] * gain[t] + step.from_xt[t]
            m = step.from_x0[t] * mean * (1 - gain[t] * signal[t]) + factor * m
            v = factor**2 * v + step.spread[t] ** 2
            means.append(m)
            variances.append(v)
    return ChainMoments(np.array(means), np.array(variances))


def printed_time_embedding(t: Tensor, width: int, *, steps: int = 1000) -> Tensor:
    """Equation 19 as printed, (B,) -> (B, D): sin((t / T)^(2 i / D)) for i up to D / 2, cos of the same above."""
    i = torch.arange(1, width + 1, dtype=torch.float64)
    power = (t.double()[..., None] / steps) ** (2 * i / width)
    return torch.where(i <= width // 2, power.sin(), power.cos())
