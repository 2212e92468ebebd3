"""Blocks that several networks share, against formulas written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.models.blocks import SelfAttention, SwiGLU, check_heads, hidden_width, split_heads, time_embedding


@pytest.mark.parametrize(("width", "hidden"), [(32, 88), (64, 172), (128, 344), (256, 684)])
def test_hidden_width_is_the_authors(width, hidden):
    assert hidden_width(width) == hidden
    assert SwiGLU(width).hidden(torch.zeros(1, width)).shape == (1, hidden)


@given(width=st.integers(1, 2000), multiple=st.integers(1, 64))
def test_hidden_width_is_the_next_multiple(width, multiple):
    hidden = hidden_width(width, multiple)
    assert hidden % multiple == 0 and int(8 * width / 3) <= hidden < int(8 * width / 3) + multiple


def test_swiglu():
    torch.manual_seed(0)
    mlp, x = SwiGLU(6).double(), torch.randn(5, 6).double()
    gate, value = x @ mlp.gate.weight.T, x @ mlp.value.weight.T
    torch.testing.assert_close(mlp(x), (gate / (1 + (-gate).exp()) * value) @ mlp.contract.weight.T)


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention(bias):
    torch.manual_seed(0)
    layer, x = SelfAttention(6, 3, bias=bias).double(), torch.randn(2, 4, 6).double()
    rows = layer.qkv(x)
    q, k, v = rows[..., :6], rows[..., 6:12], rows[..., 12:]
    heads = []
    for h in range(3):
        own = slice(2 * h, 2 * h + 2)  # heads are contiguous slices
        heads.append(torch.softmax(q[..., own] @ k[..., own].mT / math.sqrt(2), -1) @ v[..., own])
    torch.testing.assert_close(layer(x), layer.project(torch.cat(heads, -1)))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
    assert (layer.qkv.bias is not None) == (layer.project.bias is not None) == bias


def test_heads():
    x = torch.arange(12.0).reshape(2, 6)
    assert split_heads(x, 3)[1].tolist() == [[2, 3], [8, 9]]
    for heads in (0, 4, -1):
        with pytest.raises(ScreproError, match="divide"):
            check_heads(6, heads)


@given(t=st.floats(0, 1000, width=32), half=st.integers(1, 40))
def test_time_embedding(t, half):
    wave = time_embedding(torch.tensor([t]), 2 * half)[0].double()
    angle = t * torch.exp(-math.log(1e4) * torch.arange(half).double() / half)
    torch.testing.assert_close(wave, torch.cat([angle.cos(), angle.sin()]), rtol=0, atol=2e-4)
    assert time_embedding(torch.tensor([t]), 2 * half + 1)[0, -1] == 0
