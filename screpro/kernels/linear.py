"""Linear maps, x W^T + b: on a CPU through oneDNN instead of the BLAS that torch was built with.

torch multiplies float32 matrices with MKL. On processors that are not Intel's, MKL takes a path without AVX-512: on an
AMD EPYC (Zen 5) it reaches half of what oneDNN does, which torch brings as well, but uses for other types only. The
networks here are matrix products for the most part, so their training is up to twice as fast.

The product, 2 m k n flops, and the two of its gradient,

    y = x W^T + b        dx = dy W        dW = dy^T x        db = sum of the rows of dy,

all of the form x W^T, are one function, so a gradient has gradients. What oneDNN has to transpose by copying is the
smaller of dy and x. Other types than float32, other devices, autocast and small products (below `SMALL`, where calling
takes longer than multiplying) go to ``torch.nn.functional.linear``. A first product of
some shape costs about a millisecond, so tokens whose number changes from batch to batch stay with torch's as well.

The operation of torch that is called has a leading underscore: it is meant for ``torch.compile``. So it is tried once
in a process, and where it is missing or answers something else, torch's own product takes its place.
"""

import contextlib
import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "linear", "reference", "without_onednn"]

SMALL = 2**22
"""Fewer multiply-adds than this are torch's: both take about as long there."""

_state = {"on": True}


def reference(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """The definition: (..., k), (n, k) and (n,) -> (..., n), float64."""
    y = np.einsum("...k,nk->...n", np.asarray(x, np.float64), np.asarray(weight, np.float64))
    return y if bias is None else y + bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., k), (n, k) and (n,) -> (..., n), as ``torch.nn.functional.linear``, to rounding."""
    if not _suits(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """``torch.nn.Linear`` through `linear`: the same weights, names and start."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., k) -> (..., n)."""
        return linear(x, self.weight, self.bias)


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """Inside, every product is torch's own: what the benchmarks compare with."""
    before, _state["on"] = _state["on"], False
    try:
        yield
    finally:
        _state["on"] = before


def _suits(x: Tensor, weight: Tensor) -> bool:
    # .numel() * rows = m k n; types of autocast are decided by torch's own function
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALL
        and _state["on"]
        and not torch.is_autocast_enabled("cpu")
        and _works()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):  # slices, and the stride 0 of an expanded gradient
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _works() -> bool:
    """Whether the operation is there and multiplies: plain, transposed, with and without bias."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3) - 5, torch.arange(4.0)
    try:
        plain, turned = _product(x, weight, bias), _product(weight.t(), x.new_ones(2, 4), None)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(plain, x @ weight.T + bias) and torch.allclose(turned, weight.T @ x.new_ones(4, 2))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight = ctx.saved_tensors
        dx = linear(dy, weight.t()) if ctx.needs_input_grad[0] else None
        dw = db = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            rows = math.prod(dy.shape[:-1])
            flat = dy.reshape(rows, -1)
            if ctx.needs_input_grad[1]:
                dw = _transposed_product(flat, x.reshape(rows, -1))
            if ctx.needs_input_grad[2]:
                db = flat.sum(0)
        return dx, dw, db


def _transposed_product(dy: Tensor, x: Tensor) -> Tensor:
    """dy^T x, (r, n) and (r, k) -> (n, k). The first factor of a product is copied to be transposed, so the smaller."""
    if dy.shape[1] <= x.shape[1]:
        return linear(dy.t(), x.t())
    return linear(x.t(), dy.t()).t()
