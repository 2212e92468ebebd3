"""One change at a time to scDiff's network: the ablations of appendix E.6 (Tables 8 and 9).

The paper names the changes in one line each, so every class states how it was read. "Code" is what the authors' public
code offers as an option; the U-Net links and the network without diffusion are not in it.

Every variant starts from the same weights as the default of the same seed wherever the two share a layer, is called in
the same way and is trained by the same loss. The last layer stays a Linear in all of them, so no predicted cell has to
be formed to know its error.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.linear import Linear
from screpro.losses import linear_squared_error
from screpro.models.blocks import time_embedding
from screpro.models.scdiff import GeneEmbedder, ScDiff, ScDiffConfig, Tokens
from screpro.processes.gaussian import Schedule
from screpro.sparse import CellMatrix, SparseCells, matmul

__all__ = ["VARIANTS", "Added", "DeepDecoder", "DeepEmbedder", "Staged", "UNet", "Variant", "WithoutNoise", "make"]

NOISED, CLEAN, CONTEXT = "noised cell", "clean cell", "context"
"""What the main branch of a network reads: x_t, x_0, or only what the context shows."""


class Staged(ScDiff):
    """scDiff itself, with the stages that the variants replace as methods of their own."""

    reads = NOISED

    def before_head(self, h: Tensor, batch: Tensor | None) -> Tensor:
        """Output of the blocks (B, D) -> what the last Linear is given (B, D)."""
        return self.with_batch(h, batch)

    def decode(self, h: Tensor, batch: Tensor | None) -> Tensor:
        """Output of the blocks (B, D) -> predicted x_0 (B, G)."""
        return self.head(self.before_head(h, batch))

    def start(self, projected: Tensor, t: Tensor) -> Tensor:
        """Product with the gene table (..., D) and steps -> state before the first block."""
        h = self.embedder.after_table(projected)
        return h + time_embedding(t, self.config.width) if self.reads == NOISED else h

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
        """Predict x_0 (B, G); arguments as for ``ScDiff.forward``."""
        visible = context if hidden is None else context.masked_fill(hidden, 0.0)
        read = visible if self.reads == CONTEXT else x_t
        h = self.start(read @ self.embedder.table, t)
        return self.decode(self.encode(h, self.condition_tokens(visible, conditions or {})), batch)

    def denoising_error(
        self,
        cells: SparseCells,
        t: Tensor,
        noise: Tensor,
        *,
        schedule: Schedule,
        context: CellMatrix,
        conditions: Mapping[str, Tensor],
        batch: Tensor | None,
    ) -> Tensor:
        """Squared error per cell (B,), mean over all genes; arguments as for ``losses.denoising_error``."""
        x, table = cells.matrix(), self.embedder.table
        if self.reads == CONTEXT:
            projected = matmul(context, table)
        elif self.reads == CLEAN:
            projected = matmul(x, table)
        elif x.is_dense:
            projected = schedule.diffuse(x.dense, t, noise) @ table
        else:
            projected = schedule.signal[t, None] * matmul(x, table) + schedule.noise[t, None] * (noise @ table)
        seen = self.context.embedder.after_table(matmul(context, self.context.embedder.table))
        lists = [self.context.tokens(seen)]
        lists += [self.conditioners[name](conditions[name]) for name in self.conditioners]
        h = self.encode(self.start(projected, t), [list(block) for block in zip(*lists, strict=True)])
        error = linear_squared_error(self.before_head(h, batch), self.head.weight, self.head.bias, x)
        return error / cells.shape[1]


def _layers(n: int, width: int) -> nn.Sequential:
    """`n` x [Linear, GELU, LayerNorm], the layer that the context branch is made of."""
    layers = nn.Sequential(*(nn.Sequential(Linear(width, width), nn.GELU(), nn.LayerNorm(width)) for _ in range(n)))
    return _initialised(layers)


def _initialised(module: nn.Module) -> nn.Module:
    """Weights as in the rest of the network: Xavier-uniform, no bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return module


class DeepDecoder(Staged):
    """`layers` decoder layers: [Linear, GELU, LayerNorm] of the network's width, then the Linear to genes.

    Reading: that of the code, where the batch embedding is added before the first of them.
    """

    def __init__(self, config: ScDiffConfig, *, layers: int):
        super().__init__(config)
        self.decoder = _layers(layers - 1, config.width)

    def before_head(self, h: Tensor, batch: Tensor | None) -> Tensor:
        return self.decoder(self.with_batch(h, batch))


class LayeredEmbedder(GeneEmbedder):
    """A gene table followed by further layers."""

    def __init__(self, first: GeneEmbedder, layers: int):
        super().__init__(*first.table.shape)
        self.table, self.norm = first.table, first.norm
        self.layers = _layers(layers - 1, first.table.shape[1])

    def after_table(self, projected: Tensor) -> Tensor:
        return self.layers(super().after_table(projected))


class DeepEmbedder(Staged):
    """`layers` embedder layers: the gene table with its GELU and LayerNorm, then [Linear, GELU, LayerNorm].

    Reading: the paper speaks of one embedder; the network has two, one for x_t and one for the context. Both deepen.
    """

    def __init__(self, config: ScDiffConfig, *, layers: int):
        super().__init__(config)
        self.embedder = LayeredEmbedder(self.embedder, layers)
        self.context.embedder = LayeredEmbedder(self.context.embedder, layers)


class UNet(Staged):
    """The input of a block in the second half has the input of its mirror image in the first half added to it.

    Reading: links as in a U-Net, from the outside in (of six blocks the last gets the input of the first), and added
    rather than concatenated, since the paper calls them residual. An odd number of blocks has a middle without a link.
    """

    def __init__(self, config: ScDiffConfig):
        super().__init__(config)
        self.links = {late: config.depth - 1 - late for late in range((config.depth + 1) // 2, config.depth)}

    def encode(self, h: Tensor, tokens: list[list[Tokens]]) -> Tensor:
        inputs = []
        for number, (block, own) in enumerate(zip(self.blocks, tokens, strict=True)):
            if number in self.links:
                h = h + inputs[self.links[number]]
            inputs.append(h)
            h = block(h, own)
        return self.norm_out(h)


class AddedBlock(nn.Module):
    """The state plus the sum of the condition tokens, through one feed-forward module."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = _initialised(module)

    def forward(self, h: Tensor, tokens: list[Tokens]) -> Tensor:
        for token in tokens:
            h = h + (token.rows if token.index is None else F.embedding(token.index, token.rows))
        return self.module(h)


class Added(Staged):
    """Without cross-attention: condition tokens are added to the state, and a feed-forward layer follows.

    Reading: the two conditioning options of the code besides cross-attention. ``"ffn"`` is its "stackffn", Linear
    D -> 4D, GELU, Linear 4D -> D; ``"mlp"`` is Linear, GELU, LayerNorm. Neither has a residual connection.
    """

    def __init__(self, config: ScDiffConfig, *, kind: str):
        super().__init__(config)
        width = config.width

        def ffn() -> nn.Module:
            return nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))

        make_one = {"ffn": ffn, "mlp": lambda: _layers(1, width)}[kind]
        self.blocks = nn.ModuleList(AddedBlock(make_one()) for _ in range(config.depth))


class WithoutNoise(Staged):
    """Without diffusion: no noise and no time; the blocks, conditions and context are those of the default.

    Two readings of what takes the place of x_t. ``"context"``: what the context shows, which is nothing when a cell is
    classified. A label's error is then the distance to what the network expects of that label, so the labels are
    identifiable. ``"clean cell"``: the cell itself. It can be copied whatever the label says, so nothing makes the
    network use the label.
    """

    def __init__(self, config: ScDiffConfig, *, reads: str):
        super().__init__(config)
        self.reads = reads


class Variant(NamedTuple):
    """One row of Table 8 or 9."""

    title: str  # as this book prints it
    printed: str | None  # as the paper's tables print it; None for what the paper did not run
    make: Callable[[ScDiffConfig], Staged]


def _deep(kind: type[Staged], layers: int) -> Callable[[ScDiffConfig], Staged]:
    return lambda config: kind(config, layers=layers)


VARIANTS: dict[str, Variant] = {
    "scdiff": Variant("scDiff", "scDiff: Default", Staged),
    **{
        f"decoder_{n}": Variant(f"Decoder of {n} layers", f"scDiff: Decoder {n}-layer", _deep(DeepDecoder, n))
        for n in (2, 3, 4)
    },
    **{
        f"embedder_{n}": Variant(f"Embedders of {n} layers", f"scDiff: Embedder {n}-layer", _deep(DeepEmbedder, n))
        for n in (2, 3, 4)
    },
    "unet": Variant("U-Net residual", "scDiff: General U-Net residual", UNet),
    "no_cross_attention": Variant(
        "No cross-attention", "scDiff: General No cross attention", lambda config: Added(config, kind="ffn")
    ),
    "no_cross_attention_mlp": Variant(
        "No cross-attention, other reading", None, lambda config: Added(config, kind="mlp")
    ),
    "no_diffusion": Variant(
        "No diffusion", "scDiff: General Remove diffusion", lambda config: WithoutNoise(config, reads=CONTEXT)
    ),
    "clean_input": Variant("No diffusion, other reading", None, lambda config: WithoutNoise(config, reads=CLEAN)),
}
"""By the name in result rows."""


def make(name: str, config: ScDiffConfig, *, seed: int) -> Staged:
    """The variant called `name`, with weights that follow from `seed`.

    Raises
    ------
    ScreproError
        There is no such variant.
    """
    if name not in VARIANTS:
        raise ScreproError("A variant has a name.", got=repr(name), fix=f"choose one of {', '.join(VARIANTS)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # modules draw their initial weights from the global generator
        return VARIANTS[name].make(config)
