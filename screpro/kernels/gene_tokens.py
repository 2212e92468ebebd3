r"""Keys and values of the expressed genes of many cells, at the price of the genes instead of the tokens.

The token of gene g with count c in a cell is a row of a table plus the count along one direction (scLDM, eq. 6),
$x = a_g + d\,u$ with $a_g = W_g E_g + b$, $d = \log(1 + c)$ and $u = W_c \mathbf 1$. It passes a LayerNorm and one
linear map W, the keys and values of the attention. Centring is linear and the division by $\sigma$ commutes with a
product:

$$W n = \frac{A_g + d\,q}{\sigma} + W \beta, \qquad
A = (a - \bar a)\,(W \gamma)^\top, \quad q = W\,\big(\gamma \odot (u - \bar u)\big),$$

$$\sigma^2 = \mathrm{var}(a_g) + 2 d\,\mathrm{cov}(a_g, u) + d^2\,\mathrm{var}(u) + \epsilon .$$

So the products, $3 D^2$ multiplications a token, run over the U different genes that the batch expresses and not over
its T tokens; what is left for a token is one sweep over its 2 D numbers. 32 cells that express 15 % of 2 000 genes have
T = 9 300 tokens of U = 1 700 genes, and a larger batch gains more.

The sweep is compiled for the CPU and float32. On a GPU, in float64 and under autocast the same formula runs as torch's
own operations, over all genes of the table or over all tokens, whichever are fewer.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from screpro.kernels.set_attention import PackedCells
from screpro.kernels.threads import in_parts

__all__ = ["TokenWeights", "keys_values", "reference"]


class TokenWeights(NamedTuple):
    """How a count enters the embedding of its gene, and what the attention reads of it."""

    of_gene: Tensor  # (D, D) W_g
    of_count: Tensor  # (D, D) W_c
    bias: Tensor  # (D,) b
    gamma: Tensor  # (D,) of the LayerNorm
    beta: Tensor  # (D,)
    epsilon: float
    to_kv: Tensor  # (2 D, D) W


def reference(table: Tensor, cells: PackedCells, weights: TokenWeights) -> tuple[Tensor, Tensor]:
    """`keys_values` token by token, as the formulas of the block read."""
    w, depth = weights, torch.log1p(cells.counts).to(table.dtype)[:, None]
    tokens = F.linear(table[cells.genes], w.of_gene, w.bias) + F.linear(depth.expand(-1, table.shape[1]), w.of_count)
    return F.linear(F.layer_norm(tokens, tokens.shape[-1:], w.gamma, w.beta, w.epsilon), w.to_kv).chunk(2, -1)


def keys_values(table: Tensor, cells: PackedCells, weights: TokenWeights) -> tuple[Tensor, Tensor]:
    """Keys and values of every expressed gene of every cell.

    Parameters
    ----------
    table
        (G, D) embeddings of the genes.
    cells
        T expressed genes of B cells; only `genes` and `counts` are read.
    weights
        Of the tokens, the LayerNorm and the projection.

    Returns
    -------
    Keys (T, D) and values (T, D) in the order of the tokens; autograd for the table, the weights, and counts that ask
    for it.
    """
    w, counts = weights, cells.counts
    compiled = not (table.is_cuda or counts.requires_grad or torch.is_autocast_enabled(table.device.type))
    compiled = compiled and all(t.dtype == torch.float32 for t in (table, counts, w.of_gene, w.to_kv))
    if compiled:
        from screpro.kernels.gene_tokens_loops import by_gene

        present, *places = by_gene(cells.genes.numpy(), len(table))
        rows = F.embedding(torch.from_numpy(present), table)
    elif len(cells.genes) < len(table):  # to look for equal genes would make a GPU wait
        rows, of_token = F.embedding(cells.genes, table), slice(None)
    else:
        rows, of_token = table, cells.genes
    genes = F.linear(rows, w.of_gene, w.bias)  # a, (U, D)
    genes = genes - genes.mean(-1, keepdim=True)
    count = w.of_count.sum(1)  # u: a count repeated D times, times a matrix, is the count times the matrix' row sums
    count = count - count.mean()
    scaled = w.to_kv * w.gamma
    parts = (
        genes @ scaled.T,  # A, (U, 2 D)
        scaled @ count,  # q, (2 D,)
        w.to_kv @ w.beta,  # (2 D,)
        genes.square().mean(-1),  # var(a), (U,)
        genes @ count / len(count),  # cov(a, u), (U,)
        count.square().mean(),  # var(u)
    )
    depth = torch.log1p(counts)
    if compiled:
        return _Sweep.apply(*parts, depth, places, w.epsilon)
    of_gene, of_count, constant, variance, covariance, spread = parts
    depth = depth.to(of_gene.dtype)
    square = variance[of_token] + depth * (2 * covariance[of_token] + depth * spread)
    inverse = (square.clamp(min=0) + w.epsilon).rsqrt()
    return ((of_gene[of_token] + depth[:, None] * of_count) * inverse[:, None] + constant).chunk(2, -1)


class _Sweep(torch.autograd.Function):
    """(A_g + d q) / sigma + W beta of every token, gene by gene: a row of A stays in the first-level cache.

    Keys and values are two tensors: halves of one would have their gradients copied side by side first.
    """

    @staticmethod
    def forward(ctx, of_gene, of_count, constant, variance, covariance, spread, depth, places, epsilon):
        from screpro.kernels.gene_tokens_loops import forward

        ctx.save_for_backward(of_gene, of_count, variance, covariance, depth)
        ctx.rest = *places, float(spread), epsilon
        arrays = [t.detach().numpy() for t in (of_gene, of_count, constant, variance, covariance, depth)]
        keys, values = (torch.empty(len(depth), of_gene.shape[1] // 2) for _ in range(2))
        in_parts(lambda a, b, _: forward(a, b, *arrays, *ctx.rest, keys.numpy(), values.numpy()), len(of_gene))
        return keys, values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_keys: Tensor, of_values: Tensor):
        from screpro.kernels.gene_tokens_loops import backward

        of_gene, of_count, variance, covariance, depth = ctx.saved_tensors
        arrays = [t.numpy() for t in (of_gene, of_count, variance, covariance, depth)]
        given, width = [t.contiguous().numpy() for t in (of_keys, of_values)], of_gene.shape[1]
        slopes = [torch.empty_like(t) for t in (of_gene, variance, covariance)]
        written = [t.numpy() for t in slopes]
        sums = np.zeros((torch.get_num_threads(), 2 * width + 1))  # for q, W beta and var(u)
        in_parts(lambda a, b, t: backward(a, b, *arrays, *ctx.rest, *given, *written, sums[t]), len(of_gene))
        total = torch.tensor(sums.sum(0), dtype=torch.float32)
        return slopes[0], total[:width], total[width:-1], *slopes[1:], total[-1], None, None, None
