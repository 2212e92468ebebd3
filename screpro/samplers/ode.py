r"""From noise to data along a learned velocity: Euler, Heun, adaptive Dormand-Prince, and a stochastic sampler.

dz/dt = v(z, t) from t = 0 (noise) to t = 1 (data). scLDM integrates with dopri5 at tolerances of 1e-5 (the number of
steps in its configuration only says how many points are stored). The stochastic sampler has the same marginals as the
ODE for any w(t) >= 0 (Ma et al. 2024, SiT, arXiv 2401.08740, equation 4):

$$dz = \Big[v + \tfrac{1}{2} w(t)\,\nabla \log p_t(z)\Big] dt + \sqrt{w(t)}\,dW, \qquad
w(t) = \text{noise}\cdot(1 - t),$$

where the score follows from the velocity (``processes.interpolant``); this w keeps its product with the score finite.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.processes.interpolant import expected_noise
from screpro.samplers.guidance import Velocity

__all__ = ["METHODS", "Solution", "dopri5", "integrate", "sde"]

METHODS = ("euler", "heun", "dopri5", "sde")

# Dormand and Prince 1980: nodes, stages, and the difference between the solutions of order 5 and 4
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class Solution(NamedTuple):
    """What an adaptive solver found and what it cost."""

    z: Tensor  # (B, ...) at t = 1
    calls: int  # of the velocity
    accepted: int
    rejected: int


@torch.no_grad()
def integrate(
    velocity: Velocity,
    z0: Tensor,
    *,
    method: str = "heun",
    steps: int = 20,
    tolerance: float = 1e-5,
    generator: torch.Generator | None = None,
    title: str | None = None,
) -> Tensor:
    """Data (B, ...) from noise (B, ...).

    Parameters
    ----------
    velocity
        Called with z (B, ...) and t (B,).
    z0
        Noise at t = 0.
    method
        "euler": one call a step. "heun": two calls a step, order 2. "dopri5": adaptive, order 5. "sde": stochastic.
    steps
        Equal steps of euler, heun and sde.
    tolerance
        Relative and absolute tolerance of dopri5.
    generator
        Noise of "sde".
    title
        Shown before the progress bar.

    Raises
    ------
    ScreproError
        Unknown method, no steps, or a velocity that is not finite.
    """
    if method not in METHODS or steps < 1:
        raise ScreproError(
            f"A sampler is one of {', '.join(METHODS)} and takes at least one step.",
            got=f"method={method!r}, steps={steps}",
            fix="for example method='heun', steps=20",
        )
    if method == "dopri5":
        return dopri5(velocity, z0, tolerance=tolerance).z
    if method == "sde":
        return sde(velocity, z0, steps=steps, generator=generator, title=title)
    z, h = z0, 1 / steps
    for i in _progress(steps, title):
        here = z.new_full((len(z),), i * h)
        slope = velocity(z, here)
        if method == "heun":
            ahead = velocity(z + h * slope, z.new_full((len(z),), (i + 1) * h))
            slope = (slope + ahead) / 2
        z = z + h * slope
    return _finite(z)


@torch.no_grad()
def dopri5(velocity: Velocity, z0: Tensor, *, tolerance: float = 1e-5, max_steps: int = 2000) -> Solution:
    """Adaptive Dormand-Prince 5(4); the step size is one for all cells, from their root mean square error.

    Raises
    ------
    ScreproError
        `tolerance` is not positive, or more than `max_steps` steps are needed.
    """
    if not tolerance > 0:
        raise ScreproError("The tolerance must be positive.", got=f"{tolerance}", fix="for example 1e-5")
    z, t, h = z0, 0.0, 0.05
    slopes = [velocity(z, z.new_zeros(len(z)))]
    calls, accepted, rejected = 1, 0, 0
    while t < 1:
        if accepted + rejected >= max_steps:
            raise ScreproError(
                f"The solver must reach t = 1 within {max_steps} steps.",
                got=f"t = {t:.4f}, step {h:.2e}",
                fix="raise the tolerance, or check that the velocity is smooth",
            )
        last = t + h >= 1 - 1e-9
        h = 1 - t if last else h
        for node, weights in zip(_NODES[1:], _STAGES, strict=True):
            point = z + h * sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
            slopes.append(velocity(point, z.new_full((len(z),), t + node * h)))
            calls += 1
        # the last stage is the new point itself, so its slope is the first of the next step
        error = h * sum(w * k for w, k in zip(_ERROR, slopes, strict=True) if w)
        scale = tolerance * (1 + torch.maximum(z.abs(), point.abs()))
        ratio = float((error / scale).square().mean().sqrt()) if z.numel() else 0.0
        if not ratio < float("inf"):
            _finite(error)
        if ratio <= 1:
            z, t, slopes, accepted = point, 1.0 if last else t + h, [slopes[-1]], accepted + 1
        else:
            slopes, rejected = slopes[:1], rejected + 1
        h *= min(10.0, max(0.2, 0.9 * max(ratio, 1e-10) ** -0.2))
    return Solution(_finite(z), calls, accepted, rejected)


@torch.no_grad()
def sde(
    velocity: Velocity,
    z0: Tensor,
    *,
    steps: int,
    generator: torch.Generator | None = None,
    noise: float = 1.0,
    title: str | None = None,
) -> Tensor:
    """Euler-Maruyama with w(t) = noise * (1 - t); without noise it is "euler". Parameters as in `integrate`."""
    z, h = z0, 1 / steps
    for i in _progress(steps, title):
        t = i * h
        v = velocity(z, z.new_full((len(z),), t))
        # half w times the score: -(z - t v) / (1 - t) times noise (1 - t) / 2
        z = z + h * (v - 0.5 * noise * expected_noise(z, v, t))
        if i < steps - 1:  # the last step ends without fresh noise
            fresh = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
            z = z + (noise * (1 - t) * h) ** 0.5 * fresh
    return _finite(z)


def _progress(steps: int, title: str | None):
    from tqdm import tqdm

    return tqdm(range(steps), desc=title, unit="step", disable=True if title is None else None, leave=False)


def _finite(z: Tensor) -> Tensor:
    if not torch.isfinite(z).all():
        raise ScreproError(
            "A velocity must stay finite along the path.",
            got=f"{int((~torch.isfinite(z)).sum())} entries that are not",
            fix="train longer or at a lower learning rate, or lower the guidance weight",
        )
    return z
