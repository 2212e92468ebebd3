"""The velocity network of scLDM: section 3.2 (no equation), Table 9 and appendix K. A transformer (DiT).

Letters in shape comments: B cells, m latent tokens, q channels of one, D width.

Where this differs from the paper (following the authors' code, with which it agrees to 1e-5):
- appendix K gives every combination of attributes a token of its own, which cannot work for combinations never seen;
  here the embeddings of the attributes are added. "joint" and "additive" then differ in training (all attributes
  of a cell at once, or one of them at a time) and in the guidance formula (``samplers.guidance``).
- time is the raw t in [0, 1] in a sinusoid built for integers; frequencies above 1 hardly move over [0, 1].
Where this differs from the code: names (``scldm_authors`` translates theirs).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.linear import Linear
from screpro.models.blocks import EPSILON, SelfAttention, SwiGLU, time_embedding

__all__ = ["NULL", "VelocityConfig", "VelocityNetwork"]

NULL = -1
"""Label of a cell whose attribute is not given; stands for the last row of the attribute's table."""

TIME_WIDTH = 256


@dataclass(frozen=True)
class VelocityConfig:
    """Sizes of the velocity network; the defaults are the paper's."""

    tokens: int  # m
    channels: int  # q
    width: int = 256
    layers: int = 8
    heads: int = 8
    classes: Mapping[str, int] = field(default_factory=dict)  # attribute -> number of labels


def position_table(tokens: int, width: int) -> Tensor:
    """Fixed sine-cosine table (1, m, D) of the token's number: [sin | cos], periods up to 10 000."""
    half = width // 2
    frequency = 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, width - 2 * half)).float()[None]


class VelocityBlock(nn.Module):
    """Attention and MLP whose scale, shift and gate come from the condition; the identity at the start (adaLN-zero)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = SelfAttention(width, heads, bias=True)
        self.mlp = SwiGLU(width)
        self.modulation = Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, m, D) and the condition (B, D) -> (B, m, D)."""
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = self.modulation(F.silu(condition))[:, None].chunk(6, -1)
        x = x + gate * self.attention(_modulate(x, scale, shift))
        return x + gate_mlp * self.mlp(_modulate(x, scale_mlp, shift_mlp))


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


class VelocityNetwork(nn.Module):
    """v(z_t, t, labels): latents (B, m, q) and times (B,) in [0, 1] -> velocities (B, m, q)."""

    def __init__(self, config: VelocityConfig):
        super().__init__()
        self.config = c = config
        self.enter = Linear(c.channels, c.width)
        self.register_buffer("positions", position_table(c.tokens, c.width))
        self.time = nn.Sequential(Linear(TIME_WIDTH, c.width), nn.SiLU(), Linear(c.width, c.width))
        for layer in (self.time[0], self.time[2]):
            nn.init.normal_(layer.weight, std=0.02)
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(n + 1, c.width)) for name, n in c.classes.items()}
        )
        self.blocks = nn.ModuleList(VelocityBlock(c.width, c.heads) for _ in range(c.layers))
        self.final_modulation = Linear(c.width, 2 * c.width)
        self.leave = Linear(c.width, c.channels)
        for layer in (self.final_modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, t: Tensor, labels: Mapping[str, Tensor] | None = None) -> Tensor:
        """Velocity of the latents at time t.

        Parameters
        ----------
        z
            (B, m, q).
        t
            (B,), 0 is noise and 1 is data.
        labels
            Attribute -> (B,) labels from 0 to n - 1, or `NULL` (-1) for a cell without it. An attribute missing from
            the mapping is null for all cells; None: every attribute is.
        """
        condition = self.time(time_embedding(t, TIME_WIDTH)) + self.condition(labels, len(z))
        x = self.enter(z) + self.positions
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.final_modulation(F.silu(condition))[:, None].chunk(2, -1)  # the other way round here
        return self.leave(_modulate(x, scale, shift))

    def condition(self, labels: Mapping[str, Tensor] | None, n: int) -> Tensor:
        """Sum of the embeddings of the labels, (n, D)."""
        labels = labels or {}
        if unknown := set(labels) - set(self.tables):
            raise ScreproError(
                "Labels must be of attributes the network was built with.",
                got=", ".join(sorted(unknown)),
                fix=f"known attributes: {', '.join(self.tables) or 'none'}",
            )
        total = self.positions.new_zeros(n, self.config.width)
        for name, table in self.tables.items():
            if name in labels:
                total = total + F.embedding(torch.where(labels[name] < 0, len(table) - 1, labels[name]), table)
            else:
                total = total + table[-1]
        return total
