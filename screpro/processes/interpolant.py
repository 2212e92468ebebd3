r"""The straight path between noise and latents, and the loss of a velocity on it: scLDM section 3.2, without a number.

$$Z_t = t\,Z_1 + (1 - t)\,Z_0, \quad Z_0 \sim N(0, I), \; t \sim U(0, 1), \qquad
v^*(Z_t, t) = \mathbb{E}[Z_1 - Z_0 \mid Z_t] .$$

t = 0 is noise, t = 1 is data. The same velocity gives the expected noise and the score of every marginal, which is what
a stochastic sampler needs:

$$\mathbb{E}[Z_0 \mid Z_t] = Z_t - t\,v, \qquad \nabla \log p_t(Z_t) = -\frac{Z_t - t\,v}{1 - t} .$$

Where this differs from the paper (following the authors' code): the path has no added noise (Table 9 lists
sigma = 1e-4 and nu = 0, which nothing in the code reads).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from screpro.errors import ScreproError

__all__ = ["STRATEGIES", "VelocityLoss", "expected_noise", "interpolate"]

STRATEGIES = ("joint", "additive")


def interpolate(z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Point on the path and its velocity: noise and data (B, ...), times (B,) -> (B, ...), (B, ...)."""
    t = t.reshape(-1, *(1,) * (z1.dim() - 1))
    return t * z1 + (1 - t) * z0, z1 - z0


def expected_noise(z: Tensor, velocity: Tensor, t: Tensor | float) -> Tensor:
    """E[Z_0 | Z_t] = Z_t - t v."""
    return z - t * velocity


class VelocityLoss:
    """Flow-matching loss with condition drop, called by ``screpro.training.fit`` with row numbers.

    Parameters
    ----------
    latents
        (n, ...) data Z_1 of the training cells.
    labels
        Attribute -> (n,) labels from 0.
    drop
        Probability that a cell is trained without its labels (rho of section 3.3 is one minus this).
    strategy
        "joint": all attributes of a cell are given or all are null. "additive": one attribute is given per batch, drawn
        evenly, the others are null.
    network
        How the model is called: ``network(model, z_t, t, labels)``; by default ``model(z_t, t, labels)``.
    """

    def __init__(
        self,
        latents: Tensor,
        labels: Mapping[str, Tensor],
        *,
        drop: float = 0.2,
        strategy: str = "joint",
        network: Callable[..., Tensor] | None = None,
    ):
        if not 0 <= drop <= 1 or strategy not in STRATEGIES:
            raise ScreproError(
                "Labels are dropped with a probability between 0 and 1, and trained joint or additive.",
                got=f"drop={drop}, strategy={strategy!r}",
                fix="for example drop=0.2, strategy='joint'",
            )
        if wrong := [name for name, label in labels.items() if len(label) != len(latents)]:
            raise ScreproError(
                "Every training cell needs one label of each attribute.",
                got=f"{len(latents)} cells, {len(labels[wrong[0]])} labels of {wrong[0]}",
                fix="pass labels in the order of the cells",
            )
        self.latents, self.labels = latents, dict(labels)
        self.drop, self.strategy = drop, strategy
        self.network = network or (lambda model, z, t, given: model(z, t, given))

    def __call__(self, model: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity over cells, tokens and channels."""
        device = generator.device
        z1 = self.latents[rows.to(self.latents.device)].to(device)
        z0 = torch.randn(z1.shape, generator=generator, device=device)
        t = torch.rand(len(z1), generator=generator, device=device)
        z_t, target = interpolate(z0, z1, t)
        return (self.network(model, z_t, t, self.given(rows, generator)) - target).square().mean()

    def given(self, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Labels of a batch after the drop, -1 where there is none."""
        device = generator.device
        names = list(self.labels)
        hidden = torch.rand(len(rows), generator=generator, device=device) < self.drop
        if self.strategy == "additive" and len(names) > 1:
            chosen = int(torch.randint(len(names), (), generator=generator, device=device))
            names = [names[chosen]]
        batch = {name: self.labels[name][rows.to(self.labels[name].device)].to(device) for name in names}
        return {name: torch.where(hidden, -1, label) for name, label in batch.items()}
