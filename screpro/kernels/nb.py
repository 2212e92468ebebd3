r"""Negative-binomial log-likelihood fused with the softmax over genes and the library size.

For one cell with counts $x_g$, logits $z_g$, library size $l$ and inverse dispersion $\theta_g$ (variance
$\mu + \mu^2/\theta$):

$$\mu_g = l\, \mathrm{softmax}(z)_g, \qquad
-\log p = \sum_g (\theta_g + x_g) \log\Big(1 + \frac{\mu_g}{\theta_g}\Big) - x_g \log \mu_g
    - \log \frac{\Gamma(x_g + \theta_g)}{\Gamma(\theta_g)\, \Gamma(x_g + 1)\, \theta_g^{x_g}} .$$

Why it is fast. Written with tensor operations, the loss and its gradients are some 55 passes over (B, G), three of
them log-gamma and two digamma. Here a cell is read once into the cache and swept there:

* the last term is 0 for $x = 0$ and $x = 1$ alike, which is 95 of 100 entries of single-cell counts. For an integer up
  to 16 it is the logarithm of $\prod_{k<x} (1 + k/\theta)/(k + 1)$, and the logarithms of many genes are taken at once,
  of the product of their products; beyond 16, and for counts that are not integers, Stirling's series of the
  *difference* of two log-gammas is used, which also stays exact where $\theta$ is huge (log-gammas themselves cancel
  there);
* $\log \mu_g = z_g + \log l - \mathrm{logsumexp}(z)$ costs no logarithm, so one exp and one log per entry remain, both
  own polynomials that the compiler vectorises (no vector maths library needed);
* with $a_g = (\mu_g - x_g) / (1 + \mu_g/\theta_g)$ and p the softmax, the gradients
  $\partial z_g = a_g - p_g \sum_h a_h$ and
  $\partial \log\theta_g = \theta_g \log(1 + \mu_g/\theta_g) - \theta_g(\psi(x_g + \theta_g) - \psi(\theta_g)) - a_g$
  use what the loss has computed. They are taken in the forward sweep, scaled for the mean over cells, and only
  rescaled in the backward pass if the loss was not the mean.

Cost: 12 bytes of memory traffic per entry (counts and logits in, gradient out) and nothing else of size (B, G).
"""

import math

import numpy as np
import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.kernels.nb_loops import run
from screpro.kernels.threads import in_parts

__all__ = ["nb_nll", "nb_softmax_nll", "reference"]

LOG_THETA_LIMIT = 60.0
"""Beyond exp(60) a negative binomial is a Poisson law to any float32; log theta is cut there."""


def nb_nll(counts: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Negative-binomial negative log-likelihood from means, plain tensor operations with autograd.

    Parameters
    ----------
    counts
        (B, G) observed counts.
    mu
        (B, G) means; 0 is allowed where the count is 0.
    theta
        (G,) or (B, G) inverse dispersion, variance = mu + mu^2 / theta.

    Returns
    -------
    (B,) nats, summed over genes, gamma functions included.
    """
    counts, theta = counts.to(mu.dtype), theta.to(mu.dtype)
    positive = counts > 0
    log_mu = torch.log(torch.where(positive, mu, torch.ones_like(mu)))
    return _terms(counts, positive, mu, log_mu, theta).sum(-1)


def reference(counts: Tensor, logits: Tensor, library: Tensor, log_theta: Tensor) -> Tensor:
    """The same value as `nb_softmax_nll` by the textbook formula, in the dtype of `logits` (float64 for tests)."""
    counts, library, log_theta = (t.to(logits.dtype) for t in (counts, library, log_theta))
    positive = counts > 0
    log_library = torch.where(library > 0, library, torch.ones_like(library)).log()
    share = torch.log_softmax(logits, -1)
    log_mu = torch.where(positive, share + log_library[:, None], torch.zeros_like(share))
    return _terms(counts, positive, library[:, None] * share.exp(), log_mu, log_theta.exp()).sum(-1)


def _terms(x: Tensor, positive: Tensor, mu: Tensor, log_mu: Tensor, theta: Tensor) -> Tensor:
    gamma = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    seen = torch.where(positive, x * (log_mu - theta.log()) + gamma, torch.zeros_like(mu))
    return (theta + x) * torch.log1p(mu / theta) - seen


def nb_softmax_nll(counts: Tensor, logits: Tensor, library: Tensor, log_theta: Tensor) -> Tensor:
    """Negative-binomial negative log-likelihood of cells whose mean is library * softmax(logits).

    Parameters
    ----------
    counts
        (B, G) counts >= 0, any dtype. Need not be integers. Neither counts nor library get a gradient.
    logits
        (B, G) float32, bfloat16, float16 or float64; autograd. Minus infinity switches a gene off (infinite loss if it
        was counted).
    library
        (B,) total count of each cell >= 0. With 0 (an empty cell) every mean, the loss and its gradients are 0.
    log_theta
        (G,) or (B, G) logarithm of the inverse dispersion; autograd. Cut at +-60.

    Returns
    -------
    (B,) nats, summed over genes, gamma functions included; float32, or float64 for float64 logits.

    Raises
    ------
    ScreproError
        Shapes do not fit; on the CPU also if a count is negative or not finite, if a library size is negative or not
        finite, or if it is 0 for a cell with counts. On a GPU the last three are not looked for, since that would stop
        the device.

    Notes
    -----
    On the CPU: compiled loops, one cell at a time, cells shared among threads. On a GPU: Triton; `backward` looks at
    the incoming gradient once, which waits for the device. float64 is for checking and takes the textbook formula,
    the only one that can be differentiated twice. Source: the likelihood of scVI (Lopez et al. 2018) and scLDM.
    """
    _check_shapes(counts, logits, library, log_theta)
    counts, library = counts.detach(), library.detach()
    log_theta = log_theta.clamp(-LOG_THETA_LIMIT, LOG_THETA_LIMIT)
    if logits.device.type == "cpu":
        _check_library(counts, library)
    if logits.dtype == torch.float64:
        if logits.device.type == "cpu" and counts.numel() and not (counts.min() >= 0 and counts.max() < math.inf):
            raise _wrong_count()
        return reference(counts, logits, library, log_theta)
    return _Fused.apply(counts, logits, library, log_theta)


class _Fused(torch.autograd.Function):
    """Loss and both gradients in one sweep; `backward` rescales what `forward` has stored."""

    @staticmethod
    def forward(ctx, counts: Tensor, logits: Tensor, library: Tensor, log_theta: Tensor) -> Tensor:
        arrays = [t.detach().to(torch.float32).contiguous() for t in (counts, logits, library, log_theta)]
        ctx.kinds = logits.dtype, log_theta.dtype
        ctx.expected = 1.0 / max(len(logits), 1)  # what `.mean().backward()` will send
        weight = torch.full((len(logits),), ctx.expected, device=logits.device)
        loss, grad, theta_grad = _launch(*arrays, weight, want=any(ctx.needs_input_grad))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*arrays, grad, theta_grad)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, out: Tensor):
        *arrays, grad, theta_grad = ctx.saved_tensors
        scale = out.to(torch.float32) / ctx.expected  # (B,)
        if not len(scale):
            return None, grad.to(ctx.kinds[0]), None, theta_grad.to(ctx.kinds[1])
        if not bool((scale == scale[0]).all()):
            if ctx.needs_input_grad[3] and theta_grad.dim() == 1:  # summed over cells: sum again with these weights
                theta_grad = _launch(*arrays, out.to(torch.float32), want=True)[2]
            elif ctx.needs_input_grad[3]:
                theta_grad = theta_grad * scale[:, None]
            grad = grad * scale[:, None]
        elif float(scale[0]) != 1.0:
            grad, theta_grad = grad * scale[0], theta_grad * scale[0]
        return None, grad.to(ctx.kinds[0]), None, theta_grad.to(ctx.kinds[1])


def _launch(counts, logits, library, log_theta, weight, *, want: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (B,), gradient of the weighted sum of losses for the logits (B, G) and for log theta (its shape)."""
    if logits.is_cuda:
        from screpro.kernels.gpu.nb import launch

        return launch(counts, logits, library, log_theta, weight, want=want)
    n_cells, n_genes = logits.shape
    shared = log_theta.dim() == 1
    totals = np.zeros((torch.get_num_threads(), n_genes))
    results = torch.empty(n_cells), torch.empty(n_cells if want else 0, n_genes)
    results += (torch.zeros(n_cells if want and not shared else 0, n_genes),)
    written = [t.numpy() for t in results]
    arrays = [t.numpy() for t in (counts, logits, library, log_theta[None] if shared else log_theta, weight)]
    wrong = []

    def some(first: int, last: int, part: int) -> None:
        if run(first, last, *arrays, *written, totals[part]):
            wrong.append(part)

    in_parts(some, n_cells)
    if wrong:
        raise _wrong_count()
    loss, grad, of_theta = results
    return loss, grad, torch.tensor(totals.sum(0), dtype=torch.float32) if shared else of_theta


def _check_shapes(counts: Tensor, logits: Tensor, library: Tensor, log_theta: Tensor) -> None:
    shape = tuple(logits.shape)
    fits = len(shape) == 2 and shape[1] > 0 and tuple(counts.shape) == shape and tuple(library.shape) == shape[:1]
    if not fits or tuple(log_theta.shape) not in (shape, shape[1:]):
        raise ScreproError(
            "Counts and logits are (B, G), the library size (B,), log theta (G,) or (B, G), with G > 0.",
            got=f"counts {tuple(counts.shape)}, logits {shape}, library {tuple(library.shape)}, "
            f"log theta {tuple(log_theta.shape)}",
            fix="pass one row per cell and one column per gene, in the same order everywhere",
        )


def _wrong_count() -> ScreproError:
    return ScreproError(
        "Counts are finite numbers from 0.",
        got="a negative or not finite count",
        fix="pass raw counts, not scaled or centred values",
    )


def _check_library(counts: Tensor, library: Tensor) -> None:
    if not len(library) or (float(library.min()) > 0 and math.isfinite(float(library.max()))):
        return
    empty = library == 0
    if bool((~torch.isfinite(library) | (library < 0)).any()) or bool((counts[empty] > 0).any()):
        raise ScreproError(
            "A library size is a finite number above 0; 0 only for a cell without counts.",
            got=f"library sizes from {float(library.min())} to {float(library.max())}",
            fix="pass the total count of each cell, for instance counts.sum(1)",
        )
