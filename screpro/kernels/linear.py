"""Linear maps, x W^T + b: on a CPU through oneDNN instead of the BLAS that torch was built with.

torch multiplies float32 matrices with MKL. On processors that are not Intel's, MKL takes a path without AVX-512: on an
AMD EPYC (Zen 5) it reaches half of what oneDNN does, which torch brings as well, but uses for other types only. The
networks here are matrix products for the most part. On other processors the two were not compared.

The product, 2 m k n flops, and the two of its gradient,

    y = x W^T + b        dx = dy W        dW = dy^T x        db = sum of the rows of dy,

all of the form x W^T, are one function, so a gradient has gradients. What oneDNN has to transpose by copying is the
smaller of dy and x. Other types than float32, other devices, autocast, torch.func and small products (below `SMALL`,
where calling takes longer than multiplying) go to ``torch.nn.functional.linear``. The first product of a shape costs
about a millisecond, so tokens whose number changes from batch to batch stay with torch's as well.

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
from torch.autograd import forward_ad

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
    if not _suits(x, weight, bias):
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


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN gets this product. It reads memory without asking, so whatever is unusual is torch's."""
    if not (_state["on"] and x.dim() and weight.dim() == 2 and x.numel() * weight.shape[0] >= SMALL):  # m k n
        return False
    parts = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(p.device.type == "cpu" and p.dtype == torch.float32 and p.layout == torch.strided for p in parts)
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and not torch.is_autocast_enabled("cpu")
        # the operation has neither a forward derivative nor rules for torch.func
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and _works()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):  # slices, and the stride 0 of an expanded gradient
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, None if bias is None else bias.contiguous(), "none", [], "")


@cache
def _works() -> bool:
    """Whether the operation is there and multiplies: plain, transposed, with and without bias."""
    if not torch.backends.mkldnn.is_available():
        return False
    kind = {"dtype": torch.float32, "device": "cpu"}
    x, weight, bias = (torch.arange(n, **kind) - 2 for n in (6, 12, 4))
    x, weight = x.view(2, 3), weight.view(4, 3)
    try:
        plain, turned = _product(x, weight, bias), _product(weight.t(), weight.t(), None)
        return torch.allclose(plain, x @ weight.T + bias) and torch.allclose(turned, weight.T @ weight)
    except (AttributeError, RuntimeError, TypeError):
        return False


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        if weight is not None:
            dx = linear(dy, weight.t())
        flat = dy.reshape(math.prod(dy.shape[:-1]), dy.shape[-1])
        if x is not None:
            dw = _transposed_product(flat, x.reshape(len(flat), x.shape[-1]))
        if ctx.needs_input_grad[2]:
            db = flat.sum(0)
        return dx, dw, db


def _transposed_product(dy: Tensor, x: Tensor) -> Tensor:
    """dy^T x, (r, n) and (r, k) -> (n, k). The first factor of a product is copied to be transposed, so the smaller."""
    if dy.shape[1] <= x.shape[1]:
        return linear(dy.t(), x.t())
    return linear(x.t(), dy.t()).t()
