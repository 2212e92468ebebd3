r"""scLDM's decoder block on every gene of every cell, at the cost of its m latent tokens instead of its width D.

Gene g asks the tokens of cell b, $o_{bg} = \sum_t P_{bgt} V_{bt}$ with attention weights $P$ over the H m pairs of head
and token and values $V_b$ (H m, D) that have the output projection in them. Then come the residual on its embedding
$E_g$, a LayerNorm, a gated MLP and a linear head:

$$r_{bg} = E_g + o_{bg}, \qquad n = \gamma\,\frac{r - \bar r}{\sigma(r)} + \beta, \qquad
y_{bg} = w\,r + c\,\big(\mathrm{silu}(W_g n) \odot W_v n\big) .$$

Written like this, each of the B G genes pays $D^2 + 2 D F$ multiplications before the head. But r is a row of a table
plus a combination of few vectors, centring is linear, and the division by $\sigma$ commutes with a matrix product:

$$W n_{bg} = \frac{T_g + P_{bg} U_b}{\sigma_{bg}} + W \beta, \qquad
T = (E - \bar E)\,(W\gamma)^\top \;(G, 2F), \qquad U_b = (V_b - \bar V_b)\,(W\gamma)^\top \;(H m, 2F),$$

$$\sigma_{bg}^2 = \mathrm{var}(E_g) + P_{bg}\big(2\,V_b^c E_g^c + V_b^c V_b^{c\top} P_{bg}\big) / D + \epsilon .$$

T and U are computed once per batch; a gene pays $2 H m F$ instead, and the head $c$ = (head x last map of the MLP) is
formed once. With m = 16, D = 64 and one head that is a fifth of the multiplications, with m = 128 and D = 256 half.
What remains on (B, G, 2F) is one sweep forward (`_Sweep`), which keeps the B G sums, and one backward. Genes run in
chunks that are computed again when their gradient is due, so nothing of size (B, G, F) exists at any time.

`_Sweep` is compiled for the CPU and float32. On a GPU, in float64 and under autocast the same formula runs as
torch's own operations. There is no Triton kernel: the products are cuBLAS's there, and what a kernel could fuse are the
few passes over one chunk (B, g, 2F) behind them.
"""

from contextlib import nullcontext
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from screpro.errors import ScreproError
from screpro.kernels.threads import in_parts

__all__ = ["GeneDecoder", "decode_genes", "reference"]

CHUNK_TOKENS = {"cpu": 8192, "cuda": 131072}
"""Cells times genes in a chunk: its activations stay near the cache, or fill a GPU."""


class GeneDecoder(NamedTuple):
    """Weights of the block behind the attention, and of the head."""

    project: Tensor  # (D, D) output projection of the attention
    gamma: Tensor  # (D,) of the LayerNorm
    beta: Tensor  # (D,)
    epsilon: float
    gate: Tensor  # (F, D)
    value: Tensor  # (F, D)
    contract: Tensor  # (D, F) last map of the MLP
    head: Tensor  # (C, D)
    bias: Tensor  # (C,)
    heads: int


def reference(embedding: Tensor, queries: Tensor, keys: Tensor, values: Tensor, weights: GeneDecoder) -> Tensor:
    """`decode_genes` as the formulas of the block read, in the dtype of its input."""
    w = weights
    q, k, v = (t.unflatten(-1, (w.heads, -1)).transpose(-2, -3) for t in (queries, keys, values))
    attended = ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1) @ v  # (B, H, G, D / H)
    r = embedding + F.linear(attended.transpose(1, 2).flatten(2), w.project)
    n = F.layer_norm(r, r.shape[-1:], w.gamma, w.beta, w.epsilon)
    hidden = F.silu(F.linear(n, w.gate)) * F.linear(n, w.value)
    return F.linear(r + F.linear(hidden, w.contract), w.head, w.bias)


def decode_genes(
    embedding: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    weights: GeneDecoder,
    *,
    chunk: int | None = None,
) -> Tensor:
    """What the head says about every gene of every cell.

    Parameters
    ----------
    embedding
        (G, D), what the residual adds to: the genes' embeddings.
    queries
        (G, D), projected queries of the genes, the same for every cell.
    keys, values
        (B, m, D), projected latent tokens.
    weights
        Of the block; D is split into contiguous heads, scores are scaled by (D / H)^-1/2.
    chunk
        Genes at a time; None: so many that cells times genes is about `CHUNK_TOKENS`.

    Returns
    -------
    (B, G, C); autograd for all tensors. Half precision is computed in float32 and rounded, but for autocast.

    Raises
    ------
    ScreproError
        Shapes do not fit, or the chunk is empty.
    """
    w = weights
    _check(embedding, queries, keys, values, w, chunk)
    if keys.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(keys.device.type):
        # products of weights, folded into each other, would lose a digit more in half precision than the block itself
        single = GeneDecoder(*(part.float() if isinstance(part, Tensor) else part for part in w))
        inputs = (t.float() for t in (embedding, queries, keys, values))
        return decode_genes(*inputs, single, chunk=chunk).to(keys.dtype)
    if chunk is None:
        chunk = max(1, CHUNK_TOKENS.get(keys.device.type, CHUNK_TOKENS["cuda"]) // max(len(keys), 1))
    split = w.heads, queries.shape[1] // w.heads
    # values with the output projection in them, every head a block of tokens: (B, H m, D)
    folded = torch.einsum("bmhd,ehd->bhme", values.unflatten(-1, split), w.project.unflatten(-1, split)).flatten(1, 2)
    genes, tokens = embedding - embedding.mean(-1, keepdim=True), folded - folded.mean(-1, keepdim=True)
    both = torch.cat([w.gate, w.value])  # (2 F, D)
    scaled = both * w.gamma
    shared = _Shared(
        keys=(keys.unflatten(-1, split) * split[1] ** -0.5).transpose(1, 2).transpose(-1, -2),  # (B, H, D / H, m)
        tokens=tokens.transpose(1, 2) / tokens.shape[-1],  # (B, D, H m)
        gram=tokens @ tokens.transpose(1, 2) / tokens.shape[-1],  # (B, H m, H m)
        to_hidden=tokens @ scaled.T,  # (B, H m, 2 F)
        constant=both @ w.beta,  # (2 F,)
        to_head=folded @ w.head.T,  # (B, H m, C)
        head=w.head @ w.contract,  # (C, F)
        epsilon=w.epsilon,
    )
    own = (  # what belongs to a gene: (G, .)
        queries,
        genes,
        genes.square().mean(-1),
        genes @ scaled.T,
        F.linear(embedding, w.head, w.bias),
    )
    if chunk >= len(queries):  # nothing to save
        return _chunk(shared, *own)
    parts = [
        checkpoint(_chunk, shared, *part, use_reentrant=False, context_fn=_contexts)
        if torch.is_grad_enabled()
        else _chunk(shared, *part)
        for part in zip(*(t.split(chunk) for t in own), strict=True)
    ]
    return torch.cat(parts, 1)


class _Shared(NamedTuple):
    """What all chunks of genes need; shapes in `decode_genes`."""

    keys: Tensor
    tokens: Tensor
    gram: Tensor
    to_hidden: Tensor
    constant: Tensor
    to_head: Tensor
    head: Tensor
    epsilon: float


def _chunk(shared: _Shared, queries: Tensor, genes: Tensor, variance: Tensor, table: Tensor, residual: Tensor):
    """Genes g of all cells, (B, g, C)."""
    n_heads = shared.keys.shape[1]
    q = queries.unflatten(-1, (n_heads, -1)).transpose(0, 1)  # (H, g, D / H)
    attention = (q @ shared.keys).softmax(-1).transpose(1, 2).flatten(2)  # (B, g, H m)
    spread = attention * (2 * (genes @ shared.tokens) + attention @ shared.gram)
    inverse = ((variance + spread.sum(-1)).clamp(min=0) + shared.epsilon).rsqrt()  # (B, g)
    hidden = attention @ shared.to_hidden  # (B, g, 2 F)
    arrays = hidden, table, inverse, shared.constant, shared.head
    if hidden.is_cuda or any(t.dtype != torch.float32 for t in arrays) or torch.is_autocast_enabled(hidden.device.type):
        gate, value = ((hidden + table) * inverse[..., None] + shared.constant).chunk(2, -1)
        read = F.linear(F.silu(gate) * value, shared.head)
    else:
        read = _Sweep.apply(*arrays)
    return read + residual + attention @ shared.to_head


class _Sweep(torch.autograd.Function):
    """c (silu(gate) * value) with gate | value = (hidden + table) * inverse + constant, in one pass each way."""

    @staticmethod
    def forward(ctx, hidden: Tensor, table: Tensor, inverse: Tensor, constant: Tensor, head: Tensor) -> Tensor:
        from screpro.kernels.gene_decoder_loops import forward

        ctx.save_for_backward(hidden, table, inverse, constant, head)
        arrays = [t.detach().contiguous().numpy() for t in (hidden, table, inverse, constant, head)]
        out = torch.empty(*hidden.shape[:2], len(head))
        if _AGAIN.get():  # run once more for its gradient only, which asks for the input and not for this output
            return out
        in_parts(lambda first, last, _: forward(first, last, *arrays, out.numpy()), len(hidden))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, given: Tensor):
        from screpro.kernels.gene_decoder_loops import backward

        hidden, table, inverse, constant, head = ctx.saved_tensors
        arrays = [t.contiguous().numpy() for t in (hidden, table, inverse, constant, head, given)]
        slope, pull = torch.empty_like(hidden, memory_format=torch.contiguous_format), torch.empty_like(inverse)
        threads = torch.get_num_threads()
        tables = np.zeros((threads, *table.shape), np.float32)
        constants, heads = np.zeros((threads, *constant.shape)), np.zeros((threads, *head.shape))
        written = slope.numpy(), pull.numpy()
        in_parts(lambda a, b, t: backward(a, b, *arrays, *written, tables[t], constants[t], heads[t]), len(hidden))
        of_table, of_constant, of_head = (
            torch.tensor(s.sum(0), dtype=torch.float32) for s in (tables, constants, heads)
        )
        return slope, of_table, pull, of_constant, of_head


_AGAIN: ContextVar[bool] = ContextVar("a chunk is computed again", default=False)


class _Again:
    """Entered every time a chunk is computed again: more than once where a graph is kept for a second gradient."""

    def __enter__(self) -> None:
        self.token = _AGAIN.set(True)

    def __exit__(self, *_) -> None:
        _AGAIN.reset(self.token)


def _contexts():
    """Of the first time that a chunk is computed, and of every other."""
    return nullcontext(), _Again()


def _check(embedding: Tensor, queries: Tensor, keys: Tensor, values: Tensor, w: GeneDecoder, chunk: int | None) -> None:
    width = queries.shape[-1]
    fits = queries.dim() == 2 and embedding.shape == queries.shape and keys.dim() == 3 and keys.shape == values.shape
    fits = fits and keys.shape[-1] == width and w.gate.shape == w.value.shape and w.gate.shape[1:] == (width,)
    fits = fits and w.contract.shape == w.gate.T.shape and w.head.shape[1:] == (width,)
    if not fits or width % w.heads or (chunk is not None and chunk < 1):
        raise ScreproError(
            "Gene embeddings and queries are (G, D), latent keys and values (B, m, D), the weights of the same width D "
            "in whole heads, and a chunk has at least one gene.",
            got=f"{tuple(embedding.shape)}, {tuple(queries.shape)}, {tuple(keys.shape)}, {tuple(values.shape)}, gate "
            f"{tuple(w.gate.shape)}, head {tuple(w.head.shape)}, {w.heads} heads, chunk {chunk}",
            fix="pass projected tensors before they are split into heads, and chunk=None to have it chosen",
        )
