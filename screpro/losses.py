"""Training losses, written so that nothing of size cells x genes is formed that need not be."""

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from screpro.models.blocks import time_embedding
from screpro.models.scdiff import ScDiff
from screpro.processes.gaussian import Schedule
from screpro.sparse import CellMatrix, SparseCells, matmul

__all__ = ["DenoisingLoss", "denoising_error", "linear_squared_error"]


class _LinearSquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, bias: Tensor, x: CellMatrix) -> Tensor:
        h_gram = h @ (weight.T @ weight)  # (B, D) W'W h
        offset = weight.T @ bias - x.times(weight)  # (B, D) W'(b - x)
        norm = torch.zeros(len(h), dtype=h.dtype, device=h.device)
        # |x - b|^2 without |b|^2, summed over the entries of each cell
        norm.index_add_(0, x.cells.cells, x.values * (x.values - 2 * bias[x.cells.genes]))
        ctx.save_for_backward(h, weight, bias, h_gram + offset)
        ctx.x = x
        return norm + (h * (h_gram + 2 * offset)).sum(-1) + bias @ bias

    @staticmethod
    def backward(ctx, grad: Tensor):
        h, weight, bias, slope = ctx.saved_tensors
        weighted = 2 * grad[:, None] * h  # (B, D)
        total = weighted.sum(0)
        grad_weight = torch.addmm(torch.outer(bias, total), weight, h.T @ weighted)
        grad_weight -= ctx.x.transposed_times(weighted)
        grad_bias = weight @ total + bias * (2 * grad.sum())
        grad_bias -= ctx.x.transposed_times(2 * grad[:, None])[:, 0]
        return 2 * grad[:, None] * slope, grad_weight, grad_bias, None


def linear_squared_error(h: Tensor, weight: Tensor, bias: Tensor, x: CellMatrix) -> Tensor:
    """Sum over genes of (W h + b - x)^2 for every cell, (B, D) -> (B,), without forming W h.

    The square is expanded: h' (W'W) h - 2 h' W'(x - b) + |x - b|^2. With W'W of D x D and sparse x that is
    cheaper than the product W h as soon as a batch has more cells than the network is wide, and no (B, G) matrix
    of predictions and residuals is written or read.
    """
    return _LinearSquaredError.apply(h, weight, bias, x)


def denoising_error(
    model: ScDiff,
    cells: SparseCells,
    t: Tensor,
    noise: Tensor,
    *,
    schedule: Schedule,
    context: CellMatrix,
    conditions: Mapping[str, Tensor],
    batch: Tensor | None,
) -> Tensor:
    """Squared error of x_theta per cell, mean over all genes (eq. 9): (B,).

    Parameters
    ----------
    cells
        Clean expression x_0, (B, G).
    t
        (B,) time steps.
    noise
        (B, G) standard normal.
    context
        (B, G) clean expression that may be looked at; hidden entries are zero.
    conditions, batch
        As for ``ScDiff.forward``.
    """
    noisy, x = model.embedder, cells.matrix()
    if x.is_dense:
        projected = schedule.diffuse(x.dense, t, noise) @ noisy.table
    else:  # the clean part through its non-zeros, the noise alone through a dense product
        projected = schedule.signal[t, None] * matmul(x, noisy.table) + schedule.noise[t, None] * (noise @ noisy.table)
    h = noisy.after_table(projected) + time_embedding(t, model.config.width)
    seen = matmul(context, model.context.embedder.table)
    lists = [model.context.tokens(model.context.embedder.after_table(seen))]
    lists += [model.conditioners[name](conditions[name]) for name in model.conditioners]
    h = model.with_batch(model.encode(h, [list(block) for block in zip(*lists, strict=True)]), batch)
    return linear_squared_error(h, model.head.weight, model.head.bias, x) / cells.shape[1]


class DenoisingLoss:
    """scDiff's training loss on the rows of a matrix (protocol 2.2): give it to ``training.fit``.

    Per cell: one step t, uniform; Gaussian noise on the full x_0; every gene hidden from the context with
    probability r ~ U(0, 1) (the authors: a random subset of that share), all of them with probability
    `empty_context`; each label replaced by null (row 0) with probability
    `drop`, independently.

    Parameters
    ----------
    x
        (n, G) CSR, log-normalised.
    context
        (n, G) CSR, what the context shows of each cell; `x` itself by default. A control cell for a perturbed `x`.
    conditions
        Labels (n,) per conditioner, 0 reserved for null.
    batch
        Rows of the batch table (n,), or None.
    drop
        Probability of the null label, by condition name (``"batch"`` for the batch); names left out are never
        dropped.
    """

    def __init__(
        self,
        x: sp.csr_matrix,
        *,
        schedule: Schedule,
        conditions: Mapping[str, np.ndarray],
        context: sp.csr_matrix | None = None,
        batch: np.ndarray | None = None,
        drop: Mapping[str, float] | None = None,
        empty_context: float = 0.25,
    ):
        self.x = sp.csr_matrix(x, dtype=np.float32)
        self.context = None if context is None else sp.csr_matrix(context, dtype=np.float32)
        self.schedule = schedule
        labels = dict(conditions) | ({} if batch is None else {"batch": batch})
        self.labels = {name: torch.as_tensor(value, dtype=torch.int64) for name, value in labels.items()}
        self.drop = dict(drop or {})
        self.empty_context = empty_context
        self._noise: Tensor | None = None

    def __call__(self, model: ScDiff, rows: Tensor, generator: torch.Generator) -> Tensor:
        device = generator.device
        n, (_, n_genes) = len(rows), self.x.shape
        chosen = rows.cpu().numpy()
        cells = SparseCells.from_scipy(self.x[chosen], device)
        shown = cells if self.context is None else SparseCells.from_scipy(self.context[chosen], device)
        self.schedule = self.schedule.to(device)
        t = torch.randint(self.schedule.steps, (n,), generator=generator, device=device)
        hidden_share = torch.rand(n, generator=generator, device=device)
        always = torch.rand(n, generator=generator, device=device) < self.empty_context
        hidden_share = hidden_share.masked_fill(always, 1.0)
        # hiding a zero changes nothing, so only the entries that are stored need a draw
        draw = torch.rand(len(shown.values), generator=generator, device=device)
        context = shown.matrix(shown.values * (draw >= hidden_share[shown.cells]))
        if self._noise is None or self._noise.shape[0] < n or self._noise.device != device:
            self._noise = torch.empty(n, n_genes, device=device)  # a fresh one each step costs page faults
        noise = self._noise[:n].normal_(generator=generator)
        labels = {}
        for name, every in self.labels.items():
            label = every.to(device)[rows]
            if share := self.drop.get(name, 0.0):
                dropped = torch.rand(n, generator=generator, device=device) < share
                label = label.masked_fill(dropped, 0)
            labels[name] = label
        batch = labels.pop("batch", None)
        error = model.denoising_error(
            cells, t, noise, schedule=self.schedule, context=context, conditions=labels, batch=batch
        )
        return error.mean()
