"""Packed attention: against the formula in float64, values and gradients, on awkward sets."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from screpro.errors import ScreproError
from screpro.kernels.set_attention import PackedCells, packed_cross_attention, reference


def attended(function, queries, keys, values, offsets, n_heads, weight):
    """Output and gradients of a random projection of it."""
    inputs = [t.detach().requires_grad_() for t in (queries, keys, values)]
    out = function(*inputs, offsets, n_heads)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def tensors(shape, n_tokens, n_cells, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (shape, (n_tokens, shape[-1]), (n_tokens, shape[-1]), (n_cells, shape[-2], shape[-1]))
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("lengths", [[1], [17, 127, 1], [0, 40, 0, 1023], [5, 5, 5]])
@pytest.mark.parametrize("shape", [(1, 8), (17, 24), (64, 36)])
@pytest.mark.parametrize("own_queries", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_against_the_formula(lengths, shape, own_queries, dtype):
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    queries, keys, values, weight = tensors(
        (len(lengths), *shape) if own_queries else shape, sum(lengths), len(lengths), dtype
    )
    exact = attended(reference, *(t.double() for t in (queries, keys, values)), offsets, 4, weight.double())
    plain = attended(reference, queries, keys, values, offsets, 4, weight)
    ours = attended(packed_cross_attention, queries, keys, values, offsets, 4, weight)
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert a.dtype == dtype and a.shape == c.shape
        floor = 16 * torch.finfo(dtype).eps * max(1.0, float(c.abs().max()))
        assert (a.double() - c).abs().max() <= 2 * (b.double() - c).abs().max() + floor


def test_gradients_in_float64():
    offsets = torch.tensor([0, 3, 3, 8])
    queries, keys, values, _ = (t.double().requires_grad_() for t in tensors((2, 6), 8, 3))
    assert torch.autograd.gradcheck(lambda *t: packed_cross_attention(*t, offsets, 2), (queries, keys, values))


def test_same_as_masked_attention_over_all_genes():
    """What packing replaces: tokens of all genes, the unexpressed ones masked out."""
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(0.2, (5, 40)).astype(np.float32))
    table = torch.tensor(rng.normal(size=(40, 8)), dtype=torch.float32)
    cells = PackedCells.from_scipy(counts)
    queries, key, value, _ = tensors((3, 8), 8, 5)
    tokens = table[cells.genes] * torch.log1p(cells.counts)[:, None]
    packed = packed_cross_attention(queries, tokens @ key, tokens @ value, cells.offsets, 2)
    dense = torch.tensor(counts.toarray())
    full = table * torch.log1p(dense)[..., None]  # (B, G, E)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(-2, -3) for t in (queries.expand(5, 3, 8), full @ key, full @ value))
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=(dense > 0)[:, None, None])
    torch.testing.assert_close(packed, masked.transpose(1, 2).flatten(2))


def test_order_of_tokens_and_neighbouring_cells_do_not_matter():
    queries, keys, values, _ = tensors((5, 8), 30, 2)
    offsets = torch.tensor([0, 12, 30])
    base = packed_cross_attention(queries, keys, values, offsets, 2)
    order = torch.cat([torch.randperm(12), torch.arange(12, 30)])
    torch.testing.assert_close(base, packed_cross_attention(queries, keys[order], values[order], offsets, 2))
    keys[:12] = 100
    torch.testing.assert_close(base[1], packed_cross_attention(queries, keys, values, offsets, 2)[1])


def test_equal_keys_average_the_values():
    values = torch.tensor([[1.0, 10.0], [3.0, 20.0], [5.0, 60.0]])
    out = packed_cross_attention(torch.ones(1, 2), torch.ones(3, 2), values, torch.tensor([0, 2, 3]), 1)
    torch.testing.assert_close(out, torch.tensor([[[2.0, 15.0]], [[5.0, 60.0]]]))


def test_cells_without_tokens():
    queries, keys, values, weight = tensors((3, 8), 0, 2)
    out, grad_q, *_ = attended(packed_cross_attention, queries, keys, values, torch.tensor([0, 0, 0]), 2, weight)
    assert (out == 0).all() and (grad_q == 0).all()
    assert packed_cross_attention(queries, keys, values, torch.tensor([0]), 2).shape == (0, 3, 8)


def test_packed_cells():
    matrix = sp.csr_matrix(np.array([[0, 2, 0], [0, 0, 0], [7, 0, 1]], dtype=np.int32))
    matrix.data[2] = 0  # a stored zero is no expressed gene
    cells = PackedCells.from_scipy(matrix)
    assert cells.genes.tolist() == [1, 0] and cells.counts.tolist() == [2, 7] and cells.offsets.tolist() == [0, 1, 1, 2]
    assert matrix.nnz == 3
    with pytest.raises(ScreproError, match="compressed rows"):
        PackedCells.from_scipy(matrix.tocsc())


def test_wrong_input():
    queries, keys, values, _ = tensors((3, 8), 10, 2)
    offsets = torch.tensor([0, 4, 10])
    cases = [
        (queries[:, :4], keys, values, offsets, 2, "Queries are"),
        (queries, keys, values[:9], offsets, 2, "Queries are"),
        (queries, keys, values, offsets, 3, "multiple of the number"),
        (queries, keys, values, torch.tensor([0, 4, 9]), 2, "Offsets run"),
        (queries, keys, values, torch.tensor([0, 11, 10]), 2, "Offsets run"),
        (queries.expand(3, 3, 8), keys, values, offsets, 2, "as many as cells"),
    ]
    for *arguments, message in cases:
        with pytest.raises(ScreproError, match=message):
            packed_cross_attention(*arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize(("shape", "programs"), [((5, 20), 1), ((3, 18, 20), 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton(shape, programs, dtype, monkeypatch):
    pytest.importorskip("triton")
    from screpro.kernels.gpu import set_attention as gpu

    monkeypatch.setattr(gpu, "PROGRAMS", programs)  # one part of the keys, or two
    offsets = torch.tensor([0, 35, 35, 40])
    queries, keys, values, weight = tensors(shape, 40, 3, dtype)
    exact = attended(reference, *(t.double() for t in (queries, keys, values)), offsets, 2, weight.double())
    plain = attended(reference, queries, keys, values, offsets, 2, weight)
    ours = attended(lambda *t: gpu.attention(*t[:3], t[3].int(), t[4]), queries, keys, values, offsets, 2, weight)
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert a.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(a, c.float(), rtol=1e-5, atol=3e-6)
        else:
            floor = 4 * torch.finfo(dtype).eps * max(1.0, float(c.abs().max()))
            assert (a.double() - c).abs().max() <= 2 * (b.double() - c).abs().max() + floor


@pytest.mark.slow
def test_triton_kernels_compile_for_hopper():
    """Code generation needs no GPU: tiles fit into shared memory."""
    pytest.importorskip("triton")
    script = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from screpro.kernels.gpu import set_attention as gpu
numbers = {"per_cell": "i32", "n_cells": "i32", "n_queries": "i32", "scale": "fp32", "offsets": "*i32"}
constants = {"HEADS": 8, "SPLITS": 2, **gpu._blocks(64, 32, torch.float32)}
for kernel in (gpu._forward, gpu._backward):
    names = kernel.arg_names
    kinds = {name: "constexpr" if name in constants else numbers.get(name, "*fp32") for name in names}
    fixed = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=fixed)
    print(triton.compile(source, target=GPUTarget("cuda", 90, 32)).metadata.shared)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert max(int(line) for line in done.stdout.split()) < 227 * 1024


def test_half_precision_on_a_gpu_goes_through_varlen_attention(monkeypatch):
    """The call is checked on the CPU, with a stand-in of the same signature that attends sequence by sequence."""
    from torch.nn.attention import varlen

    from screpro.kernels import set_attention

    def stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and max_q == 5 and max_k == 20
        out = []
        for (a, b), (c, d) in zip(cu_seq_q.unfold(0, 2, 1).tolist(), cu_seq_k.unfold(0, 2, 1).tolist(), strict=True):
            q, k, v = (t.transpose(0, 1)[None] for t in (query[a:b], key[c:d], value[c:d]))
            out.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    offsets = torch.tensor([0, 20, 30])
    for shape in ((5, 32), (2, 5, 32)):
        queries, keys, values, _ = tensors(shape, 30, 2, torch.bfloat16)
        out = set_attention._on_gpu(queries, keys, values, offsets, [20, 10], 4)
        expected = packed_cross_attention(queries, keys, values, offsets, 4)
        torch.testing.assert_close(out, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [256, 36])
def test_gpu(dtype, width):
    lengths = [300, 0, 2500, 1, 64]
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    queries, keys, values, weight = tensors((64, width), sum(lengths), len(lengths), dtype)
    exact = attended(reference, *(t.double() for t in (queries, keys, values)), offsets, 4, weight.double())
    plain = attended(reference, queries, keys, values, offsets, 4, weight)
    cuda = [t.cuda() for t in (queries, keys, values)]
    for a, b, c in zip(attended(packed_cross_attention, *cuda, offsets, 4, weight.cuda()), plain, exact, strict=True):
        floor = 16 * torch.finfo(dtype).eps * max(1.0, float(c.abs().max()))
        assert (a.cpu().double() - c).abs().max() <= 2 * (b.double() - c).abs().max() + floor
