"""The Set Transformer's pooling: the printed formula, order, padding, and its size beside MCAB's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.kernels.set_attention import PackedCells
from screpro.models.scldm import AutoEncoder, AutoEncoderConfig, Pool
from screpro.models.scldm_variants import AttentionBlock, SetTransformerPool


def config(**changes) -> AutoEncoderConfig:
    sizes = {"n_genes": 19, "width": 12, "tokens": 3, "layers": 1, "channels": 4, "heads": 2, "cross_heads": 3}
    return AutoEncoderConfig(**(sizes | {"pooling": "set_transformer"} | changes))


def pool(seed=0) -> SetTransformerPool:
    torch.manual_seed(seed)
    return SetTransformerPool(config()).double().eval()


def cells(lengths, seed=0):
    """Tokens (T, 12) and offsets of cells with these numbers of genes."""
    tokens = torch.randn(sum(lengths), 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return tokens, torch.tensor([0, *torch.tensor(lengths).cumsum(0)])


@torch.no_grad()
def test_against_the_printed_equations():
    """PMA(ISAB(X)) of one cell, matrix by matrix and head by head."""
    model = pool()
    x, offsets = cells([7])

    def block(mab: AttentionBlock, a, b):
        norm = torch.nn.functional.layer_norm
        q = norm(a, (12,), mab.norm_query.weight, mab.norm_query.bias, 1e-8) @ mab.to_q.weight.T
        y = norm(b, (12,), mab.norm_tokens.weight, mab.norm_tokens.bias, 1e-8)
        k, v = y @ mab.to_kv.weight[:12].T, y @ mab.to_kv.weight[12:].T
        heads = [slice(4 * h, 4 * h + 4) for h in range(3)]
        attended = torch.cat([torch.softmax(q[:, h] @ k[:, h].T / 2, -1) @ v[:, h] for h in heads], -1)
        f = q + attended
        return f + torch.relu(f @ mab.feed.weight.T)

    isab = block(model.spread, x, block(model.collect, model.inducing, x))
    pma = block(model.pool, model.pseudo_inputs, isab @ model.row_wise.weight.T + model.row_wise.bias)
    torch.testing.assert_close(model(x, offsets)[0], pma)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), extra=st.integers(0, 5), seed=st.integers(0, 99))
@torch.no_grad()
def test_order_and_padding_do_not_matter(lengths, extra, seed):
    model, (tokens, offsets) = pool(), cells(lengths, seed)
    base = model(tokens, offsets)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [start + torch.randperm(n, generator=generator) for start, n in zip(offsets, lengths, strict=False)]
    )
    torch.testing.assert_close(model(tokens[order], offsets), base)
    padded = torch.full((len(lengths), max(lengths) + extra, 12), 7.0, dtype=torch.float64)
    mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
    for b, part in enumerate(tokens.split(lengths)):
        padded[b, : len(part)], mask[b, : len(part)] = part, True
    torch.testing.assert_close(model.padded(padded, mask), base)
    for b, part in enumerate(tokens.split(lengths)):  # neighbours in the batch do not matter either
        torch.testing.assert_close(model(part, torch.tensor([0, len(part)]))[0], base[b])


def test_every_weight_learns():
    model, (tokens, offsets) = pool(), cells([5, 1, 8])
    (model(tokens.requires_grad_(), offsets) ** 2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert (tokens.grad.abs().sum(1) > 0).all()


def test_a_cell_without_genes_has_a_latent():
    model, (tokens, offsets) = pool(), cells([0, 4, 0])
    out = model(tokens, offsets)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out[0], out[2])
    assert torch.isfinite(model(tokens[:0], torch.tensor([0, 0]))).all()


@pytest.mark.parametrize("width", [32, 64, 128])
def test_as_large_as_mcab(width):
    sizes = config(width=width, tokens=16, cross_heads=4)
    ours, theirs = (sum(p.numel() for p in cls(sizes).parameters()) for cls in (SetTransformerPool, Pool))
    assert 1 < ours / theirs < 1.12


def test_inside_the_auto_encoder():
    torch.manual_seed(0)
    model = AutoEncoder(config()).eval()
    counts = torch.poisson(torch.full((4, 19), 0.7), generator=torch.Generator().manual_seed(0)) + torch.eye(4, 19)
    from scipy.sparse import csr_matrix

    packed = PackedCells.from_scipy(csr_matrix(counts.numpy()))
    z = model.encode(packed)
    assert z.shape == (4, 3, 4)
    longest = int((counts > 0).sum(1).max()) + 2
    ids = torch.zeros(4, longest, dtype=torch.long)
    values = torch.zeros(4, longest)
    for b, row in enumerate(counts):
        own = row.nonzero()[:, 0]
        ids[b, : len(own)], values[b, : len(own)] = own + 1, row[own]
    torch.testing.assert_close(model.encode_padded(ids, values, mask_padding=True), z, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.encode_padded(ids, values), z, atol=1e-3)


def test_heads_divide_the_width():
    with pytest.raises(ScreproError, match="divide"):
        SetTransformerPool(config(cross_heads=5))
