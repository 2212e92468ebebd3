"""The alternative to scDiff's reversed context chain: one head per block, side by side (appendix C.2, claim S15).

The paper says that its context conditioner, one MLP whose deepest output feeds the first block (eq. 20), reconstructs
better during training than "the multihead MLP processing" of its other conditioners. Here that alternative is read as
the smallest change: every block has its own Linear, GELU and LayerNorm as in the chain, but each starts from the
embedded context instead of from the output of the layer before. Parameters, their shapes and even their names stay
the same, so two networks can start from the same weights and differ in nothing but the wiring.
"""

import torch.nn.functional as F
from torch import Tensor

from screpro.models.scdiff import ContextConditioner, ScDiff, Tokens

__all__ = ["ParallelContext", "with_parallel_context"]


class ParallelContext(ContextConditioner):
    """Visible expression -> one token per block, each from a head of its own."""

    def tokens(self, h: Tensor) -> list[Tokens]:
        """What follows the embedder, (B, D). The heads are interchangeable; the order is that of the chain."""
        return [Tokens(layer["norm"](F.gelu(layer["linear"](h)))) for layer in reversed(self.layers)]


def with_parallel_context(model: ScDiff) -> ScDiff:
    """The same network with parallel heads in place of the chain; every weight keeps its value. Changes `model`."""
    config = model.config
    heads = ParallelContext(config.n_genes, config.width, config.depth)
    heads.load_state_dict(model.context.state_dict())
    model.context = heads.to(model.head.weight.device)
    return model
