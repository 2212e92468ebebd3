"""Linear maps through oneDNN: torch's own are the reference."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from screpro.kernels import linear as kernel
from screpro.kernels.linear import Linear, linear, without_onednn

available = pytest.mark.skipif(not kernel._works(), reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    """Small products as well, which are quick to test."""
    monkeypatch.setattr(kernel, "SMALL", 1)


def close(found, wanted):
    """Equal to rounding of a sum of as many products as a row has."""
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5 * float(wanted.detach().abs().max() + 1e-6))


@available
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    lead=st.sampled_from([(), (1,), (3,), (2, 2)]),
    bias=st.booleans(),
    layout=st.sampled_from(["plain", "turned", "slice"]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_torch(sizes, lead, bias, layout, seed):
    m, k, n = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    shape, seen_as = {
        "plain": ((n, k), lambda w: w),
        "turned": ((k, n), lambda w: w.t()),
        "slice": ((n, 2 * k), lambda w: w[:, :k]),
    }[layout]
    leaves, dy = [draw(*lead, m, k), draw(*shape), *([draw(n)] if bias else [])], draw(*lead, m, n)
    outcomes = []
    for function in (linear, F.linear):
        x, w, *b = own = [leaf.clone().requires_grad_() for leaf in leaves]
        y = function(x, seen_as(w), *b)
        outcomes.append([y, *torch.autograd.grad(y, own, dy)])
    for found, wanted in zip(*outcomes, strict=True):
        assert found.shape == wanted.shape
        close(found, wanted)


@available
def test_an_expanded_gradient_and_a_second_derivative():
    x, weight = torch.randn(5, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)
    for function in (lambda y: y.sum(), lambda y: y.pow(3).mean()):  # the first sends back a gradient of stride 0
        found, wanted = (torch.autograd.grad(function(f(x, weight)), weight)[0] for f in (linear, F.linear))
        close(found, wanted)
    twice = []
    for f in (linear, F.linear):
        (slope,) = torch.autograd.grad(f(x, weight).pow(3).sum(), x, create_graph=True)
        twice.append(torch.autograd.grad(slope.square().sum(), (x, weight)))
    for found, wanted in zip(*twice, strict=True):
        close(found, wanted)


@available
def test_only_what_is_asked_for_gets_a_gradient():
    x, weight, bias = torch.randn(4, 6), torch.randn(2, 6), torch.randn(2, requires_grad=True)
    linear(x, weight, bias).sum().backward()
    assert bias.grad.tolist() == [4, 4] and x.grad is None and weight.grad is None
    with torch.no_grad():
        assert not linear(x, weight, bias).requires_grad


def test_other_types_and_autocast_are_torchs():
    x, weight = torch.randn(4, 6), torch.randn(2, 6)
    assert linear(x.double(), weight.double()).dtype == torch.float64
    assert torch.autograd.gradcheck(linear, (x.double().requires_grad_(), weight.double().requires_grad_()))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    with without_onednn():
        assert not kernel._suits(x, weight, None)
        assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_a_layer_starts_and_saves_as_torchs():
    layers = []
    for kind in (Linear, nn.Linear):
        torch.manual_seed(0)
        layers.append(kind(5, 3))
    assert isinstance(layers[0], nn.Linear)
    assert layers[0].state_dict().keys() == layers[1].state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(*(layer.parameters() for layer in layers), strict=True))
    x = torch.randn(2, 4, 5)
    close(layers[0](x), layers[1](x))


def test_where_the_operation_is_missing_torch_multiplies(monkeypatch):
    def missing(*_):
        raise AttributeError("no such operation")

    monkeypatch.setattr(kernel, "_product", missing)
    kernel._works.cache_clear()
    try:
        assert not kernel._works()
        x, weight = torch.randn(4, 6), torch.randn(2, 6)
        assert torch.equal(linear(x, weight), F.linear(x, weight))
    finally:
        kernel._works.cache_clear()


def test_what_onednn_would_read_wrongly_is_torchs():
    """It takes memory as it lies: biases of another stride or shape, other devices, sparse matrices."""
    x, weight = torch.randn(4, 6), torch.randn(3, 6)
    for bias in (torch.randn(1).expand(3), torch.randn(6)[::2], torch.randn(3)):
        close(linear(x, weight, bias), F.linear(x, weight, bias))
    odd = [(x, weight, torch.randn(1)), (x, weight, torch.randn(())), (x, torch.randn(6), None), (x[0], weight, None)]
    for given_ in odd:
        close(linear(*given_), F.linear(*given_))
    assert linear(x[:0], weight).shape == (0, 3)
    assert not kernel._suits(x, weight.to("meta"), None)
    assert not kernel._suits(x.to_sparse(), weight, None)
    with pytest.raises(RuntimeError):
        linear(x, torch.randn(3, 5))


def test_torch_func_and_forward_derivatives():
    x, weight, dx = torch.randn(4, 6), torch.randn(3, 6), torch.randn(4, 6)
    value, slope = torch.func.jvp(lambda v: linear(v, weight), (x,), (dx,))
    close(value, x @ weight.T)
    close(slope, dx @ weight.T)
    close(torch.func.grad(lambda w: linear(x, w).sum())(weight), x.sum(0).expand(3, -1))


@available
def test_inputs_may_change_where_no_gradient_needs_them():
    x, weight, bias = torch.randn(4, 6), torch.randn(3, 6), torch.randn(3, requires_grad=True)
    y = linear(x, weight, bias)
    x.add_(1)
    weight.add_(1)  # neither is needed for the gradient of the bias
    y.sum().backward()
    assert bias.grad.tolist() == [4, 4, 4]
