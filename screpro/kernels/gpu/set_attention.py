"""Packed cross-attention on a GPU, forward and backward, for any float dtype.

Few queries (64 to 256 latent tokens) meet many keys (the expressed genes of a cell), so one program per cell, head and
block of queries would leave most of the chip idle for small batches. The keys of a cell are therefore also split:
program (cell, head, query block; s) takes the s-th part of the keys and writes its own output and logsumexp, and the
parts are merged by their logsumexps. In the backward pass program (cell, head; s) owns its part of the keys: it
computes their gradients completely and adds up the queries' gradient in a buffer of its own, so nothing is atomic and
two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["attention"]

PROGRAMS = 264  # two for each of the 132 multiprocessors of an H200
MOST_SPLITS = 8


@triton.jit
def _range(offsets, cell, part, SPLITS: tl.constexpr, KEYS: tl.constexpr):
    """First token of the part and the one after its last: the tokens of a cell in SPLITS runs of whole blocks."""
    first = tl.load(offsets + cell)
    last = tl.load(offsets + cell + 1)
    size = tl.cdiv(tl.cdiv(last - first, KEYS), SPLITS) * KEYS
    start = first + part * size
    return start, tl.minimum(start + size, last)


@triton.jit
def _forward(
    queries, keys, values, offsets, out, lse, per_cell, n_cells, n_queries, scale,
    HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    SPLITS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    cell, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    part = tl.program_id(2)
    rows = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    channels = tl.arange(0, DP)
    width: tl.constexpr = HEADS * D
    inside = (rows < n_queries)[:, None] & (channels < D)[None, :]
    own = rows[:, None] * width + head * D + channels[None, :]
    q = tl.load(queries + cell * per_cell + own, mask=inside, other=0.0)
    start, stop = _range(offsets, cell, part, SPLITS, KEYS)
    m = tl.full((QUERIES,), -float("inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, DP), tl.float32)
    for t in range(start, stop, KEYS):
        tokens = t + tl.arange(0, KEYS)
        there = (tokens < stop)[:, None] & (channels < D)[None, :]
        at = tokens.to(tl.int64)[:, None] * width + head * D + channels[None, :]
        k = tl.load(keys + at, mask=there, other=0.0)
        v = tl.load(values + at, mask=there, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        s = tl.where((tokens < stop)[None, :], s, -float("inf"))
        new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp(s - new[:, None])
        shrink = tl.exp(m - new)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        m = new
    seen = total > 0
    acc = acc / tl.where(seen, total, 1.0)[:, None]
    line = (part * n_cells + cell).to(tl.int64)
    tl.store(out + line * n_queries * width + own, acc, mask=inside)
    value = tl.where(seen, m + tl.log(tl.where(seen, total, 1.0)), -float("inf"))
    tl.store(lse + (line * HEADS + head) * n_queries + rows, value, mask=rows < n_queries)


@triton.jit
def _backward(
    queries, keys, values, offsets, grad_out, lse, delta, grad_q, grad_k, grad_v, per_cell, n_cells, n_queries, scale,
    HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    SPLITS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    cell, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    part = tl.program_id(1)
    channels = tl.arange(0, DP)
    width: tl.constexpr = HEADS * D
    line = (part * n_cells + cell).to(tl.int64)
    start, stop = _range(offsets, cell, part, SPLITS, KEYS)
    for t in range(start, stop, KEYS):
        tokens = t + tl.arange(0, KEYS)
        there = (tokens < stop)[:, None] & (channels < D)[None, :]
        at = tokens.to(tl.int64)[:, None] * width + head * D + channels[None, :]
        k = tl.load(keys + at, mask=there, other=0.0)
        v = tl.load(values + at, mask=there, other=0.0)
        dk = tl.zeros((KEYS, DP), tl.float32)
        dv = tl.zeros((KEYS, DP), tl.float32)
        for first in range(0, n_queries, QUERIES):
            rows = first + tl.arange(0, QUERIES)
            inside = (rows < n_queries)[:, None] & (channels < D)[None, :]
            own = rows[:, None] * width + head * D + channels[None, :]
            q = tl.load(queries + cell * per_cell + own, mask=inside, other=0.0)
            do = tl.load(grad_out + cell.to(tl.int64) * n_queries * width + own, mask=inside, other=0.0)
            row = (cell * HEADS + head) * n_queries + rows
            # a row outside has logsumexp +inf: its weights are 0
            z = tl.load(lse + row, mask=rows < n_queries, other=float("inf"))
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            p = tl.where((tokens < stop)[None, :], tl.exp(s - z[:, None]), 0.0)
            dv += tl.dot(tl.trans(p).to(do.dtype), do, input_precision=PRECISION)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            ds = p * (dp - tl.load(delta + row, mask=rows < n_queries, other=0.0)[:, None]) * scale
            dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision=PRECISION)
            mine = grad_q + line * n_queries * width + own
            dq = tl.load(mine, mask=inside, other=0.0) + tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
            tl.store(mine, dq, mask=inside)
            tl.debug_barrier()  # the next block of keys adds to the same place
        tl.store(grad_k + at, dk, mask=there)
        tl.store(grad_v + at, dv, mask=there)


def attention(queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, n_heads: int) -> Tensor:
    """``packed_cross_attention`` of ``screpro.kernels.set_attention``; offsets int32 on the device."""
    if keys.dtype == torch.bfloat16 and not keys.is_cuda:  # Triton's interpreter multiplies the bits of bfloat16
        return _Attention.apply(queries.float(), keys.float(), values.float(), offsets, n_heads).to(keys.dtype)
    return _Attention.apply(queries, keys, values, offsets, n_heads)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, n_heads: int) -> Tensor:
        queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
        n_cells, (n_queries, width) = len(offsets) - 1, queries.shape[-2:]
        if not n_cells:
            return queries.new_zeros(0, n_queries, width)
        block = _blocks(n_queries, width // n_heads, keys.dtype)
        n_blocks = triton.cdiv(n_queries, block["QUERIES"])
        splits = max(1, min(MOST_SPLITS, PROGRAMS // (n_cells * n_heads * n_blocks)))
        out = torch.empty(splits, n_cells, n_queries, width, device=keys.device)
        lse = torch.empty(splits, n_cells, n_heads, n_queries, device=keys.device)
        ctx.sizes = (queries.stride(0) if queries.dim() == 3 else 0, n_cells, n_queries, (width // n_heads) ** -0.5)
        ctx.options = {"HEADS": n_heads, **block}
        _forward[(n_cells * n_heads, n_blocks, splits)](
            queries, keys, values, offsets, out, lse, *ctx.sizes, SPLITS=splits, **ctx.options
        )
        if splits > 1:
            whole = torch.logsumexp(lse, 0)  # (B, H, L)
            share = torch.exp(lse - whole.masked_fill(whole.isneginf(), 0.0))
            out = (out.unflatten(-1, (n_heads, -1)) * share.transpose(2, 3).unsqueeze(-1)).sum(0).flatten(2)
            lse = whole
        else:
            out, lse = out[0], lse[0]
        out = out.to(keys.dtype)
        ctx.save_for_backward(queries, keys, values, offsets, out, lse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        queries, keys, values, offsets, out, lse = ctx.saved_tensors
        n_cells, n_heads, n_queries = lse.shape
        grad = grad.contiguous()
        delta = (grad.float() * out.float()).unflatten(-1, (n_heads, -1)).sum(-1).transpose(1, 2).contiguous()
        splits = max(1, min(MOST_SPLITS, PROGRAMS // (n_cells * n_heads)))
        grad_q = torch.zeros(splits, n_cells, n_queries, keys.shape[1], device=keys.device)
        grad_k, grad_v = torch.empty_like(keys), torch.empty_like(values)
        _backward[(n_cells * n_heads, splits)](
            queries, keys, values, offsets, grad, lse, delta, grad_q, grad_k, grad_v, *ctx.sizes,
            SPLITS=splits, **ctx.options,
        )  # fmt: skip
        grad_q = grad_q.sum(0) if queries.dim() == 3 else grad_q.sum((0, 1))
        return grad_q.to(queries.dtype), grad_k, grad_v, None, None


def _blocks(n_queries: int, width: int, dtype: torch.dtype) -> dict[str, int | str]:
    """Tile sizes and precision.

    Channels are filled up to a power of two, at least 16 in every direction as matrix units want. float32 products are
    as precise as torch's: three tf32 products each (in small tiles, or the accumulators do not fit into registers), or
    one if torch was told that tf32 will do.
    """
    padded = max(16, triton.next_power_of_2(width))
    precise = dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    tile = 32 if precise or padded > 64 else 64
    rows = max(16, min(tile, triton.next_power_of_2(n_queries)))
    precision = "tf32x3" if precise else "tf32"
    return {"D": width, "DP": padded, "QUERIES": rows, "KEYS": tile, "PRECISION": precision}
