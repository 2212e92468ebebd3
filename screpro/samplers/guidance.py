r"""Classifier-free guidance of a velocity: scLDM equations 8 and 39 (joint) and 40 (additive, CFGen's).

$$\text{joint:}\quad v_\varnothing + \omega\,(v_{y_1 \ldots y_J} - v_\varnothing), \qquad
\text{additive:}\quad v_\varnothing + \textstyle\sum_j \omega_j\,(v_{y_j} - v_\varnothing) .$$

In the authors' code and here weight 1 is the conditional velocity and 0 the unconditional one; with one attribute both
forms are the same. All calls of the network that one velocity needs run as one batch.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from screpro.errors import ScreproError

__all__ = ["Velocity", "additive", "joint"]

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(z (B, ...), t (B,)) -> velocity (B, ...)."""


def joint(network: Callable[..., Tensor], labels: Mapping[str, Tensor], *, weight: float = 1.0) -> Velocity:
    """Velocity of cells with all their labels given at once.

    Parameters
    ----------
    network
        ``network(z, t, labels)``.
    labels
        Attribute -> (B,) labels, -1 for none.
    weight
        omega: 0 unconditional, 1 conditional, above 1 guided. 0 and 1 cost one call of the network a step, others two.
    """
    if weight == 1 or not labels:
        return lambda z, t: network(z, t, labels)
    null = {name: torch.full_like(label, -1) for name, label in labels.items()}
    if weight == 0:
        return lambda z, t: network(z, t, null)
    both = {name: torch.cat([null[name], label]) for name, label in labels.items()}

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        without, given = network(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
        return without + weight * (given - without)

    return velocity


def additive(
    network: Callable[..., Tensor], labels: Mapping[str, Tensor], *, weights: Mapping[str, float] | float = 1.0
) -> Velocity:
    """Velocity of cells whose attributes are given one at a time and their effects added.

    Parameters
    ----------
    network, labels
        As for `joint`.
    weights
        omega_j by attribute, or one number for all.
    """
    names = list(labels)
    if isinstance(weights, Mapping) and set(weights) != set(names):
        raise ScreproError(
            "Additive guidance needs one weight per attribute.",
            got=f"weights for {', '.join(weights) or 'nothing'}; attributes {', '.join(names) or 'none'}",
            fix="pass a weight for each attribute, or one number",
        )
    omega = [weights[name] if isinstance(weights, Mapping) else weights for name in names]
    stacked = {}
    for name, label in labels.items():
        null = torch.full_like(label, -1)
        stacked[name] = torch.cat([null] + [label if other == name else null for other in names])

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        copies = len(names) + 1
        without, *given = network(torch.cat([z] * copies), torch.cat([t] * copies), stacked).chunk(copies)
        return without + sum(w * (v - without) for w, v in zip(omega, given, strict=True))

    return velocity
