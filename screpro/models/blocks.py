"""Parts that networks of more than one paper are built from: time embedding, self-attention, gated MLP.

Letters in shape comments: B cells, N tokens, D width, F hidden width of the MLP, H heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.linear import Linear

__all__ = ["EPSILON", "SelfAttention", "SwiGLU", "hidden_width", "split_heads", "time_embedding"]

EPSILON = 1e-8
"""Of every LayerNorm of scLDM, those without weights included."""


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoid of the time, (B,) -> (B, D): [cos | sin] over a ladder of periods up to 10 000.

    scDiff passes the integer step, scLDM the raw t in [0, 1].
    """
    half = width // 2
    exponent = -math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half
    # vectorised float32 exp is off by a few units in the last place, which t = 999 turns into 1e-5
    angle = t.float()[..., None] * exponent.double().exp().float()
    wave = torch.cat([angle.cos(), angle.sin()], dim=-1)
    return F.pad(wave, (0, width - 2 * half))  # an odd width ends in a zero


def hidden_width(width: int, multiple_of: int = 4) -> int:
    """Hidden width F of a gated MLP: 8 D / 3, rounded up to a multiple of `multiple_of`."""
    return -(-int(8 * width / 3) // multiple_of) * multiple_of


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., N, D) -> (..., H, N, D / H); heads are contiguous slices of the channels."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


class SwiGLU(nn.Module):
    """Gated MLP without bias: (..., D) -> (..., D), contract(silu(gate x) * value x)."""

    def __init__(self, width: int):
        super().__init__()
        hidden = hidden_width(width)
        self.gate = Linear(width, hidden, bias=False)
        self.value = Linear(width, hidden, bias=False)
        self.contract = Linear(hidden, width, bias=False)

    def hidden(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., F), before the last linear map."""
        return F.silu(self.gate(x)) * self.value(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.hidden(x))


class SelfAttention(nn.Module):
    """Multi-head attention of the N tokens of a cell to each other, (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int, *, bias: bool):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.project = Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, D / H)
        return self.project(attended.transpose(1, 2).flatten(2))


def check_heads(width: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the width."""
    if heads < 1 or width % heads:
        raise ScreproError(
            "The number of heads must divide the width.",
            got=f"width {width} and {heads} heads",
            fix="choose heads among the divisors of the width",
        )
