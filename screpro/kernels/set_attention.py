r"""Attention of a few latent tokens to the expressed genes of a cell, without padding.

L latent queries look at the $n_b$ tokens of the genes that cell b expresses,

$$o_{bl} = \sum_{t=1}^{n_b} \mathrm{softmax}_t\big(q_{bl} \cdot k_{bt} / \sqrt{D}\big)\, v_{bt} .$$

A cell expresses 300 of 2 000 genes, or 2 500 of 20 000. A mask over all genes hides the others but saves nothing: they
are still normalised, projected and multiplied. Here the tokens of all cells stand one after another (`PackedCells`),
so everything before the attention, which costs $4 T E^2$ operations and outweighs its $4 T L E$, also runs over the
$T = \sum_b n_b$ expressed genes only. On the CPU each cell is one call of torch's fused attention: sorting cells into
buckets padded to one length was measured and is slower at every size tried, for what it saves in calls it loses in
padding, gathering and masking. On a GPU the packed tokens go into one launch (``torch.nn.attention.varlen`` for half
precision, the Triton kernel of ``gpu/set_attention.py`` otherwise).

The decoder, where every gene of the panel is a query, is ``kernels.gene_decoder``.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from screpro.errors import ScreproError

__all__ = ["PackedCells", "packed_cross_attention", "reference"]


class PackedCells(NamedTuple):
    """The expressed genes of B cells, one after another: T entries in all, no padding."""

    genes: Tensor  # (T,) int64
    counts: Tensor  # (T,) float32
    offsets: Tensor  # (B + 1,) int64, on the CPU: cell b has entries offsets[b] to before offsets[b + 1]

    @classmethod
    def from_scipy(cls, matrix: sp.csr_matrix, device: torch.device | str = "cpu") -> "PackedCells":
        """From counts (B, G) in compressed rows; stored zeros are dropped."""
        if not sp.issparse(matrix) or matrix.format != "csr":
            raise ScreproError(
                "Cells are packed from a sparse matrix in compressed rows.",
                got=getattr(matrix, "format", type(matrix).__name__),
                fix="pass scipy.sparse.csr_matrix(counts)",
            )
        if (matrix.data == 0).any():
            matrix = matrix.copy()
            matrix.eliminate_zeros()
        # copied into memory of torch, as wherever numpy's would reach a product: that of numpy starts anywhere, and the
        # order of a sum in a matrix library may depend on where it starts, so two equal runs would differ by rounding
        return cls(
            genes=torch.as_tensor(matrix.indices.astype(np.int64), device=device),
            counts=torch.tensor(matrix.data, dtype=torch.float32, device=device),
            offsets=torch.as_tensor(matrix.indptr.astype(np.int64)),
        )


def packed_cross_attention(queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, n_heads: int) -> Tensor:
    """Attention of the queries of each cell to the packed tokens of that cell.

    Parameters
    ----------
    queries
        (L, E), the same for every cell, or (B, L, E). Projected, not yet split into heads.
    keys, values
        (T, E), projected tokens of all cells one after another.
    offsets
        (B + 1,) integers from 0 to T that do not decrease; best kept on the CPU, where reading them stops no device.
    n_heads
        H; heads are contiguous slices of E / H = D channels, scores are scaled by D^-1/2.

    Returns
    -------
    (B, L, E), heads side by side, before any output projection. A cell without tokens gets zeros. Autograd for
    queries, keys and values.

    Raises
    ------
    ScreproError
        Shapes do not fit.

    Notes
    -----
    Operations 4 T L E forward. Source: the pooling block of scLDM (eqs. 3-4) on expressed genes, F.1.
    """
    lengths = _check(queries, keys, values, offsets, n_heads)
    if keys.is_cuda and keys.dtype != torch.float64:
        return _on_gpu(queries, keys, values, offsets, lengths, n_heads)
    n_queries, width = queries.shape[-2:]
    heads = n_heads, width // n_heads
    q = queries.unflatten(-1, heads).transpose(-2, -3)  # ([B,] H, L, D)
    # split, not slices: the gradient of a slice is as large as the whole, once per cell
    tokens = zip(keys.unflatten(-1, heads).split(lengths), values.unflatten(-1, heads).split(lengths), strict=True)
    out = []
    for b, (k, v) in enumerate(tokens):  # (n_b, H, D)
        own = q if q.dim() == 3 else q[b]
        if not len(k):
            out.append(own * 0 + (k.sum() + v.sum()))  # zeros that still belong to the graph
            continue
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        out.append(F.scaled_dot_product_attention(own[None], k[None], v[None])[0])
    if not out:
        return queries.new_zeros(0, n_queries, width)
    return torch.stack(out).transpose(1, 2).flatten(2)


def reference(queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, n_heads: int) -> Tensor:
    """`packed_cross_attention` as the formula says, cell by cell and head by head."""
    width = queries.shape[-1] // n_heads
    cells = []
    for b, (start, stop) in enumerate(pairwise(offsets.tolist())):
        q, heads = queries if queries.dim() == 2 else queries[b], []
        for h in range(n_heads):
            own = slice(h * width, (h + 1) * width)
            share = torch.softmax(q[:, own] @ keys[start:stop, own].T * width**-0.5, -1)  # (L, n_b)
            heads.append(share @ values[start:stop, own])
        cells.append(torch.cat(heads, -1))
    return torch.stack(cells)


def _on_gpu(queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, lengths: list[int], n_heads: int) -> Tensor:
    """Flash attention over packed sequences for half precision, else the Triton kernel."""
    width = queries.shape[-1] // n_heads
    if keys.dtype in (torch.float16, torch.bfloat16) and width % 8 == 0 and width <= 256 and len(keys):
        from torch.nn.attention.varlen import varlen_attn

        n_cells, n_queries = len(lengths), queries.shape[-2]
        every = queries.expand(n_cells, -1, -1).reshape(n_cells * n_queries, n_heads, width)
        starts = torch.arange(n_cells + 1, dtype=torch.int32, device=keys.device) * n_queries
        k, v = keys.unflatten(-1, (n_heads, width)), values.unflatten(-1, (n_heads, width))
        ends = offsets.to(keys.device, torch.int32, non_blocking=True)
        out = varlen_attn(every, k, v, starts, ends, n_queries, max(lengths))
        return out.reshape(n_cells, n_queries, -1)
    from screpro.kernels.gpu.set_attention import attention

    return attention(queries, keys, values, offsets.to(keys.device, torch.int32), n_heads)


def _check(queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, n_heads: int) -> list[int]:
    """Tokens per cell."""
    width = queries.shape[-1] if queries.dim() in (2, 3) else -1
    if keys.dim() != 2 or keys.shape != values.shape or keys.shape[1] != width:
        raise ScreproError(
            "Queries are (L, E) or (B, L, E), keys and values (T, E).",
            got=f"{tuple(queries.shape)}, {tuple(keys.shape)} and {tuple(values.shape)}",
            fix="pass projected tensors before they are split into heads",
        )
    _check_heads(width, n_heads)
    bounds = offsets.tolist() if offsets.dim() == 1 else []
    lengths = [stop - start for start, stop in pairwise(bounds)]
    if not bounds or bounds[0] != 0 or bounds[-1] != len(keys) or min(lengths, default=0) < 0:
        raise ScreproError(
            "Offsets run from 0 to the number of tokens and do not decrease.",
            got=f"{bounds[:3]} ... {bounds[-2:]} for {len(keys)} tokens",
            fix="pass indptr of the compressed rows that the tokens were taken from",
        )
    if queries.dim() == 3 and len(queries) != len(lengths):
        raise ScreproError(
            "Queries of single cells are as many as cells.",
            got=f"queries of {len(queries)} cells, tokens of {len(lengths)}",
            fix="pass (L, E) for queries that all cells share",
        )
    return lengths


def _check_heads(width: int, n_heads: int) -> None:
    if n_heads < 1 or width % n_heads:
        raise ScreproError(
            "The width is a multiple of the number of heads.",
            got=f"{width} channels for {n_heads} heads",
            fix="choose a number of heads that divides the width",
        )
