r"""Another way to pool genes into latent tokens: the Set Transformer's (scLDM appendix E, eqs. 13, 14; ablation L20).

$$\mathrm{MAB}(X, Y) = f + \mathrm{relu}(f W), \quad f = X W_f + \mathrm{Att}(Q(X), K(Y), V(Y)), \qquad
\mathrm{ISAB}(X) = \mathrm{MAB}(X, \mathrm{MAB}(U, X)), \quad \mathrm{PMA}(X) = \mathrm{MAB}(S, \mathrm{rFF}(X)) .$$

A gene token first learns about the others through m inducing points U (ISAB), then m seeds S collect the tokens (PMA).
scLDM's MCAB does the second step alone, with a gated MLP behind it.

How it is made comparable:
- W_f is the query map Q, as in the Set Transformer's own code. With m inducing points the pooling then has
  13 D^2 + 2 m D weights and the norms, MCAB 12 D^2 + m D: about a tenth more on this side.
- queries and tokens pass a LayerNorm before they are projected and scores are scaled by the square root of the head's
  width, as in MCAB, so that the comparison is not one of normalisation. The printed block has no LayerNorm; the Set
  Transformer's own has it as an option.

Letters in shape comments: B cells, T tokens of all cells, n tokens of the longest cell, D width, m latent tokens.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.kernels.set_attention import packed_cross_attention
from screpro.models.blocks import EPSILON, check_heads, split_heads

if TYPE_CHECKING:
    from screpro.models.scldm import AutoEncoderConfig

__all__ = ["AttentionBlock", "SetTransformerPool"]


class AttentionBlock(nn.Module):
    """Multi-head attention block, MAB (eq. 13): queries look at tokens, then one linear map with relu."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.norm_query = nn.LayerNorm(width, eps=EPSILON)
        self.norm_tokens = nn.LayerNorm(width, eps=EPSILON)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.feed = nn.Linear(width, width, bias=False)

    def queries(self, x: Tensor) -> Tensor:
        """(..., D) -> projected queries (..., D); also what the residual adds."""
        return self.to_q(self.norm_query(x))

    def keys_values(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> projected keys and values, (..., D) each."""
        return self.to_kv(self.norm_tokens(y)).chunk(2, dim=-1)

    def after(self, queries: Tensor, attended: Tensor) -> Tensor:
        """f + relu(f W) with f = queries + attended; both (..., D)."""
        f = queries + attended
        return f + F.relu(self.feed(f))

    def packed(self, x: Tensor, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Queries (m, D), shared by all cells, and packed tokens (T, D) -> (B, m, D)."""
        queries = self.queries(x)
        attended = packed_cross_attention(queries, *self.keys_values(tokens), offsets, self.heads)
        return self.after(queries, attended)

    def dense(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, n, D) or (n, D), and (B, k, D) -> (B, n, D); `mask` (B, k) is True where a token of `y` counts."""
        queries = self.queries(x)
        keys, values = (split_heads(part, self.heads) for part in self.keys_values(y))
        if mask is not None:
            mask = mask[:, None, None, :]
        split = split_heads(queries, self.heads).expand(len(y), -1, -1, -1)
        attended = F.scaled_dot_product_attention(split, keys, values, mask)
        return self.after(queries, attended.transpose(1, 2).flatten(2))


class SetTransformerPool(nn.Module):
    """Any number of gene tokens -> m latent tokens by PMA(ISAB(X)); called as ``models.scldm.Pool``."""

    def __init__(self, config: "AutoEncoderConfig"):
        super().__init__()
        self.inducing = nn.Parameter(torch.randn(config.tokens, config.width))  # U, (m, D)
        self.pseudo_inputs = nn.Parameter(torch.randn(config.tokens, config.width))  # S, (m, D)
        self.collect = AttentionBlock(config.width, config.cross_heads)  # MAB(U, X)
        self.spread = AttentionBlock(config.width, config.cross_heads)  # MAB(X, .)
        self.row_wise = nn.Linear(config.width, config.width)  # rFF
        self.pool = AttentionBlock(config.width, config.cross_heads)  # MAB(S, .)

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Packed tokens (T, D) of the cells between `offsets` (B + 1,) -> (B, m, D)."""
        induced = self.collect.packed(self.inducing, tokens, offsets)  # (B, m, D)
        cell, place, longest = _places(offsets, tokens.device)
        padded = tokens.new_zeros(len(induced), longest, tokens.shape[1])
        padded = padded.index_put((cell, place), tokens)
        # padding asks here but is asked by nobody: its rows are left out again
        mixed = self.spread.dense(padded, induced)[cell, place]
        return self.pool.packed(self.pseudo_inputs, self.row_wise(mixed), offsets)

    def padded(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, n, D) -> (B, m, D); `mask` (B, n) is True where a token counts, None where all do."""
        mixed = self.spread.dense(tokens, self.collect.dense(self.inducing, tokens, mask))
        return self.pool.dense(self.pseudo_inputs, self.row_wise(mixed), mask)


def _places(offsets: Tensor, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Cell and place within it (T,) of every packed token, and the length of the longest cell, at least 1."""
    lengths = offsets.diff()
    cell = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    place = torch.arange(len(cell)) - offsets[:-1].repeat_interleave(lengths)
    return cell.to(device), place.to(device), max(1, int(lengths.max()) if len(lengths) else 1)
