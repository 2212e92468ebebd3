"""The scDiff denoiser x_theta(x_t, c, t): section 2.3, equations 10 to 14 and 20 to 22, Figures 1 and 4.

Letters in shape comments: B cells, G genes, D width, L blocks, H heads, S condition tokens, R rows of a table.

Where this differs from the paper (following the authors' code, with which it agrees to 1e-5):
- eq. 10: after the gene table come GELU and LayerNorm, and the context has a gene table of its own.
- eq. 11: class conditioners are one lookup table per block, without an MLP. Row 0 of cell type and batch is the
  null label.
- eq. 19: the printed embedding has no frequency ladder; this is the usual sinusoid of the integer step, laid out
  [cos | sin], added after the embedder's LayerNorm.
- eq. 20: context outputs are consumed deepest first, and so is every conditioner's list of tables.
- eq. 21 and 22: scaled attention with a pre-LayerNorm on the query only, biases, residual connections, and a
  gated feed-forward (value x GELU(gate)) four widths wide.
- eq. 13: LayerNorm comes before the batch embedding is added; the sum is not normalised again.
Where this differs from the code: names (``scdiff_authors.from_authors`` translates theirs), an unused third
LayerNorm per block is dropped, value and gate of the feed-forward are two layers, and keys and values are computed
once per distinct condition instead of once per cell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.linear import Linear
from screpro.models.blocks import time_embedding

__all__ = ["ClassConditioner", "ScDiff", "ScDiffConfig", "Tokens"]


@dataclass(frozen=True)
class ScDiffConfig:
    """Sizes of the network; the defaults are the paper's (appendix E.1)."""

    n_genes: int
    width: int = 512
    depth: int = 6
    heads: int = 8
    head_width: int | None = None  # None: width / heads
    classes: Mapping[str, int] = field(default_factory=dict)  # rows of each class table, the null row included
    n_batches: int = 0  # rows of the batch table, the null row included; 0: no batch embedding

    def __post_init__(self):
        if self.head_width is None and self.width % self.heads:
            raise ScreproError(
                "The width of the network is a multiple of its heads.",
                got=f"width {self.width}, {self.heads} heads",
                fix=f"width {max(1, round(self.width / self.heads)) * self.heads}",
            )


class Tokens(NamedTuple):
    """One condition token per cell for one block: cell i has token ``rows[index[i]]``.

    `rows` is (R, D), or anything that broadcasts against the cells when `index` is None.
    """

    rows: Tensor
    index: Tensor | None = None


class GeneEmbedder(nn.Module):
    """Expression (B, G) -> (B, D): gene table, GELU, LayerNorm (eq. 10)."""

    def __init__(self, n_genes: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(n_genes, width) * 0.005)  # (G, D)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_table(x @ self.table)

    def after_table(self, projected: Tensor) -> Tensor:
        """What follows the gene table; the classifier enters here, having projected already."""
        return self.norm(F.gelu(projected))


class ContextConditioner(nn.Module):
    """Visible expression -> one token per block, all from one MLP, deepest output first (eq. 20, Fig. 4)."""

    def __init__(self, n_genes: int, width: int, depth: int):
        super().__init__()
        self.embedder = GeneEmbedder(n_genes, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"linear": Linear(width, width), "norm": nn.LayerNorm(width)}) for _ in range(depth)
        )

    def forward(self, visible: Tensor) -> list[Tokens]:
        return self.tokens(self.embedder(visible))

    def tokens(self, h: Tensor) -> list[Tokens]:
        """What follows the embedder, (B, D)."""
        outputs = []
        for layer in self.layers:
            h = layer["norm"](F.gelu(layer["linear"](h)))
            outputs.append(Tokens(h))
        return outputs[::-1]


class ClassConditioner(nn.Module):
    """Class label -> one token per block, from one lookup table per block (eq. 11)."""

    def __init__(self, rows: int, width: int, depth: int):
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(torch.randn(rows, width)) for _ in range(depth))

    def forward(self, label: Tensor) -> list[Tokens]:
        return [Tokens(table, label) for table in reversed(self.tables)]


class CrossAttention(nn.Module):
    """One query per cell over its S condition tokens (eq. 21, scaled and with biases)."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.heads, self.scale = heads, head_width**-0.5
        inner = heads * head_width
        self.to_q = Linear(width, inner)
        self.to_k = Linear(width, inner)
        self.to_v = Linear(width, inner)
        self.to_out = Linear(inner, width)

    def project(self, tokens: list[Tokens]) -> tuple[Tensor, Tensor]:
        """Keys and values (..., S, H * head width); the rows of all tokens go through one product each."""
        rows, sizes = torch.cat([token.rows for token in tokens]), [len(token.rows) for token in tokens]
        return self._per_cell(self.to_k(rows).split(sizes), tokens), self._per_cell(
            self.to_v(rows).split(sizes), tokens
        )

    @staticmethod
    def _per_cell(parts: Sequence[Tensor], tokens: list[Tokens]) -> Tensor:
        parts = [
            part if token.index is None else F.embedding(token.index, part)
            for part, token in zip(parts, tokens, strict=True)
        ]
        return torch.stack(torch.broadcast_tensors(*parts), dim=-2)

    def forward(self, h: Tensor, tokens: list[Tokens]) -> Tensor:
        keys, values = self.project(tokens)
        query = (self.to_q(h) * self.scale).unsqueeze(-2)  # (..., 1, H * head width)
        # S is 1 to 4: products and sums are cheaper than one tiny matrix product per cell and head
        scores = (query * keys).unflatten(-1, (self.heads, -1)).sum(-1)  # (..., S, H)
        weights = scores.softmax(dim=-2)
        mixed = (weights.unsqueeze(-1) * values.unflatten(-1, (self.heads, -1))).sum(dim=-3)  # (..., H, head width)
        return self.to_out(mixed.flatten(-2))

    def folded(self, tokens: list[Tokens]) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices that attend for many queries with the same tokens, without a query or output projection.

        With q = W_q n + b and keys k, the scores q.k are n (W_q' k) + b.k; with values v and weights w, the output
        W_o sum(w v) is sum(w (W_o v)). Both brackets depend on the tokens alone.

        Returns
        -------
        (R, D, S * H), (R, 1, S * H), (R, S * H, D)
            Score matrix, score offset and value matrix for each of R sets of tokens; ``attend_folded`` uses them.
        """
        keys, values = self.project(tokens)  # (R, S, H * head width)
        keys = keys.unflatten(-1, (self.heads, -1)) * self.scale  # (R, S, H, head width)
        values = values.unflatten(-1, (self.heads, -1))
        to_q = self.to_q.weight.unflatten(0, (self.heads, -1))  # (H, head width, D)
        to_out = self.to_out.weight.unflatten(1, (self.heads, -1))  # (D, H, head width)
        score = torch.einsum("rshe,hed->rdsh", keys, to_q).flatten(-2)
        offset = torch.einsum("rshe,he->rsh", keys, self.to_q.bias.unflatten(0, (self.heads, -1))).flatten(-2)
        value = torch.einsum("rshe,dhe->rshd", values, to_out).flatten(1, 2)
        return score, offset.unsqueeze(1), value

    def attend_folded(self, h: Tensor, folded: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The same as ``forward`` for queries (R, n, D) that share R sets of tokens."""
        score, offset, value = folded
        weights = torch.baddbmm(offset, h, score).unflatten(-1, (-1, self.heads)).softmax(dim=-2)
        return torch.baddbmm(self.to_out.bias, weights.flatten(-2), value)


class GatedFeedForward(nn.Module):
    """Two Linears D -> 4D, value * GELU(gate), Linear 4D -> D (the code's form of eq. 22).

    The authors keep value and gate in one Linear D -> 8D. Two give each a matrix of its own, which spares a copy in
    each direction; they are initialised as halves of the one.
    """

    def __init__(self, width: int):
        super().__init__()
        self.value = Linear(width, 4 * width)
        self.gate = Linear(width, 4 * width)
        self.contract = Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.contract(self.value(h) * F.gelu(self.gate(h)))


class Block(nn.Module):
    """Cross-attention and feed-forward, each with its pre-LayerNorm and residual (eq. 12)."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.norm_query = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, head_width)
        self.norm_feed_forward = nn.LayerNorm(width)
        self.feed_forward = GatedFeedForward(width)

    def forward(self, h: Tensor, tokens: list[Tokens]) -> Tensor:
        h = h + self.attention(self.norm_query(h), tokens)
        return h + self.feed_forward(self.norm_feed_forward(h))


class ScDiff(nn.Module):
    """Predicts the clean expression x_0 of a cell from its noised expression x_t and conditions (eq. 14).

    Parameters
    ----------
    config
        Sizes.
    conditioners
        Further conditioners by name (text, graph, ...): modules that turn their input into a list of L
        ``Tokens``, the first for the first block. Those of ``config.classes`` are made here.
    """

    def __init__(self, config: ScDiffConfig, conditioners: Mapping[str, nn.Module] | None = None):
        super().__init__()
        self.config = config
        width, depth = config.width, config.depth
        head_width = config.head_width or width // config.heads
        self.embedder = GeneEmbedder(config.n_genes, width)
        self.context = ContextConditioner(config.n_genes, width, depth)
        self.conditioners = nn.ModuleDict(
            {name: ClassConditioner(rows, width, depth) for name, rows in config.classes.items()}
        )
        self.conditioners.update(conditioners or {})
        self.blocks = nn.ModuleList(Block(width, config.heads, head_width) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.batch_table = nn.Parameter(torch.randn(config.n_batches, width)) if config.n_batches else None
        self.head = Linear(width, config.n_genes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            both = torch.empty(8 * width, width)
            nn.init.xavier_uniform_(both)  # its bound depends on the shape, which is the joint one
            with torch.no_grad():
                block.feed_forward.value.weight.copy_(both[: 4 * width])
                block.feed_forward.gate.weight.copy_(both[4 * width :])

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        context: Tensor,
        hidden: Tensor | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Predict x_0.

        Parameters
        ----------
        x_t
            (B, G) noised log-normalised expression; never masked.
        t
            (B,) integer time steps, 0 to T - 1.
        context
            (B, G) clean expression that may be looked at.
        hidden
            (B, G) bool, true where the context is hidden; None shows all of it.
        conditions
            Input of each conditioner by name, e.g. ``{"cell_type": labels (B,)}`` with 0 for null.
        batch
            (B,) rows of the batch table; needed exactly if the network has one.

        Returns
        -------
        Tensor
            (B, G) predicted x_0, without an output activation.
        """
        visible = context if hidden is None else context.masked_fill(hidden, 0.0)
        h = self.embedder(x_t) + time_embedding(t, self.config.width)
        return self.decode(self.encode(h, self.condition_tokens(visible, conditions or {})), batch)

    def condition_tokens(self, visible: Tensor, conditions: Mapping[str, Tensor]) -> list[list[Tokens]]:
        """Tokens of every block: the context's first, then one per conditioner. Their order has no effect."""
        if set(conditions) != set(self.conditioners):
            raise ScreproError(
                "The network needs the input of each of its conditioners.",
                got=f"inputs {sorted(conditions)}, conditioners {sorted(self.conditioners)}",
                fix="pass `conditions` with exactly those names (label 0 is the null cell type)",
            )
        lists = [self.context(visible)]
        lists += [self.conditioners[name](conditions[name]) for name in self.conditioners]
        return [list(block) for block in zip(*lists, strict=True)]

    def encode(self, h: Tensor, tokens: list[list[Tokens]]) -> Tensor:
        """Run the blocks and the last LayerNorm: (..., D) -> (..., D)."""
        for block, own in zip(self.blocks, tokens, strict=True):
            h = block(h, own)
        return self.norm_out(h)

    def decode(self, h: Tensor, batch: Tensor | None) -> Tensor:
        """Add the batch embedding and project to genes (eq. 13): (B, D) -> (B, G)."""
        return self.head(self.with_batch(h, batch))

    def with_batch(self, h: Tensor, batch: Tensor | None) -> Tensor:
        """Add the batch embedding to the encoder's output (B, D)."""
        if (batch is None) != (self.batch_table is None):
            raise ScreproError(
                "A batch label is needed exactly if the network was built with batches.",
                got=f"batch {'missing' if batch is None else 'given'}, n_batches={self.config.n_batches}",
                fix="pass `batch` (0 is the null batch), or build the network with n_batches=0",
            )
        return h if batch is None else h + F.embedding(batch, self.batch_table)

    forward_methods = ("denoising_error",)
    """Methods that a training wrapper (precision, several devices) must treat like a call of the network."""

    def denoising_error(self, *args, **kwargs) -> Tensor:
        """``losses.denoising_error`` of this network: squared error per cell without forming the prediction."""
        from screpro.losses import denoising_error

        return denoising_error(self, *args, **kwargs)
