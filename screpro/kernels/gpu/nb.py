"""Negative-binomial loss of softmax means on a GPU: one program per cell, loss and gradients in one launch.

A program sweeps its cell three times in blocks of genes: maximum and sum of exponentials (both at once, rescaling as
the maximum grows); loss and the part of the gradient that needs no other gene; subtraction of the softmax term. The
second and third sweep find the row in the cache (20 000 genes are 80 KB per array). The formulas are those of
``screpro.kernels.nb``.

Traffic per entry is 12 bytes from and to memory: counts and logits in, gradient out. The gradient of a shared theta is
summed over cells without atomics, so that two runs give the same bits: there are at most `PROGRAMS` programs, each
works through every `PROGRAMS`-th cell and adds to a (G,) row of its own; the rows are added in the end. Counts above 1
take Stirling's series of a difference of log-gammas with four steps of the recurrence in front (`_gamma_terms`), since
lanes of a program cannot leave early anyway.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["launch"]

PROGRAMS = 264  # two for each of the 132 multiprocessors of an H200
BLOCK = 1024


@triton.jit
def _log1p(r):
    """log(1 + r), exact to rounding for small r too: 2 atanh(r / (2 + r)) as a series there."""
    s = r / (2.0 + r)
    w = s * s
    series = 2.0 * s * (1.0 + w * (1.0 / 3 + w * (1.0 / 5 + w * (1.0 / 7 + w * (1.0 / 9)))))
    return tl.where(r < 0.5, series, tl.log(1.0 + r))


@triton.jit
def _tail(z):
    """log Gamma(z) without the leading terms of Stirling's series, z >= 4."""
    v = 1.0 / z
    w = v * v
    return v * (1.0 / 12 - w * (1.0 / 360 - w * (1.0 / 1260 - w * (1.0 / 1680))))


@triton.jit
def _psi_tail(z):
    """log z - 1/(2 z) - psi(z), z >= 4."""
    w = 1.0 / (z * z)
    return w * (1.0 / 12 - w * (1.0 / 120 - w * (1.0 / 252 - w * (1.0 / 240))))


@triton.jit
def _gamma_terms(x, theta):
    """log Gamma(x + theta) / (Gamma(theta) Gamma(x + 1) theta^x) and theta (psi(x + theta) - psi(theta)), x > 0."""
    z = theta + 4.0
    ratio = (x + 1.0) * theta / (theta + x)  # theta / (theta + x) and so on are small, (x + 1) ... large: in turn
    ratio = ratio * (x + 2.0) * (theta + 1.0) / (theta + 1.0 + x)
    ratio = ratio * (x + 3.0) * (theta + 2.0) / (theta + 2.0 + x)
    ratio = ratio * (x + 4.0) * (theta + 3.0) / (theta + 3.0 + x)
    rate = x / (theta + x)  # theta times the steps of psi
    rate += theta / (theta + 1.0) * (x / (theta + 1.0 + x))
    rate += theta / (theta + 2.0) * (x / (theta + 2.0 + x))
    rate += theta / (theta + 3.0) * (x / (theta + 3.0 + x))
    grown = _log1p(x / z)
    y = x + 5.0
    rise = (z + x - 0.5) * grown - x + _tail(z + x) - _tail(z)
    rise -= (y - 0.5) * tl.log(y) - y + 0.918938533204673 + _tail(y)
    rise += tl.log(ratio) + x * _log1p(4.0 / theta)
    rate += theta * (grown + 0.5 * x / (z * (z + x)) - _psi_tail(z + x) + _psi_tail(z))
    return rise, rate


@triton.jit
def _cells(
    counts, logits, library, log_theta, weight, loss, grad, theta_grad, n_cells, n_genes,
    SHARED: tl.constexpr, WANT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)  # 64 bits: cells times genes may pass 2^31
    lanes = tl.arange(0, BLOCK)
    for cell in range(program, n_cells, tl.num_programs(0)):
        row = cell * n_genes
        m = -float("inf")
        total = 0.0
        for start in range(0, n_genes, BLOCK):
            inside = start + lanes < n_genes
            z = tl.load(logits + row + start + lanes, mask=inside, other=-float("inf")).to(tl.float32)
            new = tl.maximum(m, tl.max(z, 0))
            total = total * tl.exp(m - new) + tl.sum(tl.exp(z - new), 0)
            m = new
        size = tl.load(library + cell)
        w = tl.load(weight + cell)
        to_mean = size / total
        # log mu = z + to_log, of the rounded factor that mu itself uses; the rounding of to_log is made good at the end
        exact = tl.log(to_mean.to(tl.float64)) - m
        to_log = tl.where(size > 0, exact.to(tl.float32), 0.0)
        value = 0.0
        pull = 0.0
        sum_x = 0.0
        for start in range(0, n_genes, BLOCK):
            inside = start + lanes < n_genes
            g = start + lanes
            z = tl.load(logits + row + g, mask=inside, other=-float("inf")).to(tl.float32)
            x = tl.load(counts + row + g, mask=inside, other=0.0).to(tl.float32)
            theta_row = 0 if SHARED else row
            theta = tl.exp(tl.load(log_theta + theta_row + g, mask=inside, other=0.0))
            mu = tl.exp(z - m) * to_mean
            r = mu / theta
            log_u = _log1p(r)
            a = (mu - x) / (1.0 + r)
            t = theta * log_u
            rate = x  # of counts 0 and 1
            term = t - x * (tl.where(x > 0, z, 0.0) + to_log - log_u)
            some = (x > 0) & (x != 1.0)
            if tl.max(some.to(tl.int32), 0) > 0:
                rise, slope = _gamma_terms(tl.where(some, x, 1.0), theta)
                # rounding of log mu times a large count would show: take the logarithm of mu as used above
                large = x > 16.0
                rise += tl.where(large, x, 0.0) * (tl.log(tl.where(large, mu, 1.0)) - tl.where(large, z, 0.0) - to_log)
                term -= tl.where(some, rise, 0.0)
                rate = tl.where(some, slope, rate)
            value += tl.sum(tl.where(inside, term, 0.0), 0)
            a = tl.where(inside, a, 0.0)
            pull += tl.sum(a, 0)
            sum_x += tl.sum(tl.where(x > 16.0, 0.0, x), 0)
            if WANT:
                tl.store(grad + row + g, a, mask=inside)
                slope_theta = w * (t - rate - a)
                if SHARED:
                    mine = theta_grad + program * n_genes + g
                    tl.store(mine, tl.load(mine, mask=inside, other=0.0) + slope_theta, mask=inside)
                else:
                    tl.store(theta_grad + row + g, slope_theta, mask=inside)
        lost = tl.where(size > 0, exact - to_log, 0.0).to(tl.float32)
        tl.store(loss + cell, value - lost * sum_x)
        if WANT:
            tl.debug_barrier()  # the third sweep reads what the second has written
            share = pull / total
            for start in range(0, n_genes, BLOCK):
                g = start + lanes
                inside = g < n_genes
                z = tl.load(logits + row + g, mask=inside, other=-float("inf")).to(tl.float32)
                a = tl.load(grad + row + g, mask=inside, other=0.0)
                tl.store(grad + row + g, w * (a - tl.exp(z - m) * share), mask=inside)
            tl.debug_barrier()  # and the next cell adds to the same row of theta_grad


def launch(
    counts: Tensor, logits: Tensor, library: Tensor, log_theta: Tensor, weight: Tensor, *, want: bool,
    block: int = BLOCK, programs: int = PROGRAMS,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss (B,) and, if `want`, the gradients of sum(weight * loss) for logits (B, G) and log theta (its shape).

    All tensors contiguous; counts (B, G), logits (B, G), library (B,), log_theta (G,) or (B, G), weight (B,).
    """
    n_cells, n_genes = logits.shape
    shared = log_theta.dim() == 1
    programs = max(1, min(programs, n_cells))
    block = min(block, triton.next_power_of_2(n_genes))

    def empty(rows: int) -> Tensor:
        return torch.zeros(rows, n_genes, device=logits.device) if want else logits.new_empty(0, dtype=torch.float32)

    loss = torch.zeros(n_cells, device=logits.device)
    grad = torch.empty(n_cells, n_genes, device=logits.device) if want else empty(0)
    theta_grad = empty(programs if shared else n_cells)
    if n_cells:
        _cells[(programs,)](
            counts, logits, library, log_theta, weight, loss, grad, theta_grad, n_cells, n_genes,
            SHARED=shared, WANT=want, BLOCK=block, num_warps=max(1, min(8, block // 128)), maxnreg=128,
        )  # fmt: skip
    return loss, grad, theta_grad.sum(0) if want and shared else theta_grad
