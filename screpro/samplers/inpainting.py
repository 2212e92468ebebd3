"""Inpainting: ancestral sampling that holds the visible entries of a cell to their values (scDiff, section 4.1.2).

After the step from t to t - 1 the visible entries of x are overwritten by a fresh forward sample of the data; nothing
is overwritten after the last step. The hidden entries are the answer.

Where this differs from the paper: it does not say at which level the visible entries are noised; the authors' code
takes t, not t - 1, and so does this.

A cell has about a hundred hidden entries and thousands of visible ones, and the visible ones matter only through
y = E' x (see ``samplers.projected``). Their noise is N(0, E'E - E_H'E_H), E_H the table's rows of the hidden genes:
one Cholesky factor per cell, once. So the chain carries the hidden entries themselves and D numbers for all others. It
is the same distribution as overwriting thousands of genes in every step.
"""

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from screpro.errors import ScreproError
from screpro.models.blocks import time_embedding
from screpro.models.scdiff import ScDiff
from screpro.processes.gaussian import Schedule, scaled_linear
from screpro.samplers.ddpm import progress
from screpro.samplers.projected import Projection, ancestral_steps

__all__ = ["inpaint"]

KEPT = 2**26
"""Numbers kept per part of the cells, their factors and table rows (256 MiB): decides how many run together."""


@torch.no_grad()
def inpaint(
    model: ScDiff,
    visible: sp.csr_matrix,
    hidden: sp.csr_matrix,
    *,
    conditions: Mapping[str, np.ndarray],
    batch: np.ndarray | None = None,
    seed: int,
    title: str = "inpainting",
) -> np.ndarray:
    """One sample of the hidden entries, (hidden.nnz,) in the order of the CSR matrix `hidden`.

    Parameters
    ----------
    model
        Trained network; its context is what is visible.
    visible
        (n, G) CSR, log-normalised expression with zeros at the hidden entries.
    hidden
        (n, G) CSR whose stored entries are the hidden ones.
    conditions, batch
        Labels (n,) of each conditioner by name, and rows of the batch table.
    seed
        Of the noise.
    title
        Of the progress bar.

    Raises
    ------
    ScreproError
        The shapes differ, or a hidden entry is visible.
    """
    hidden = sp.csr_matrix(hidden, dtype=np.float32)
    hidden.sort_indices()
    if visible.shape != hidden.shape:
        raise ScreproError(
            "Visible and hidden entries are of the same cells and genes.",
            got=f"shapes {visible.shape} and {hidden.shape}",
            fix="give two matrices of one shape",
        )
    ones = sp.csr_matrix((np.ones_like(hidden.data), hidden.indices, hidden.indptr), shape=hidden.shape)
    if shown := int((abs(visible).multiply(ones)).count_nonzero()):
        raise ScreproError(
            "Hidden entries are zero in what is visible.", got=f"{shown} that are not", fix="set them to zero first"
        )
    device = model.head.weight.device
    schedule = scaled_linear().to(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    projection = Projection(model.embedder.table, model.head)
    width, longest = model.config.width, int(np.diff(hidden.indptr).max(initial=0))
    cells = max(1, KEPT // (width * (width + longest)))
    out = np.empty(hidden.nnz, dtype=np.float32)
    for first in range(0, visible.shape[0], cells):
        rows = slice(first, min(first + cells, visible.shape[0]))
        own = {name: torch.as_tensor(values[rows], device=device).long() for name, values in conditions.items()}
        own_batch = None if batch is None else torch.as_tensor(batch[rows], device=device).long()
        shown = torch.as_tensor(visible[rows].toarray(), dtype=torch.float32, device=device)
        part = _Part(model, projection, shown, hidden[rows], own, own_batch, generator)
        out[hidden.indptr[rows.start] : hidden.indptr[rows.stop]] = part.run(schedule, title).cpu().numpy()
    return out


class _Part:
    """The chain of one part of the cells; the draws are methods so that a test can replace them."""

    def __init__(
        self,
        model: ScDiff,
        projection: Projection,
        visible: Tensor,  # (B, G)
        hidden: sp.csr_matrix,  # (B, G)
        conditions: Mapping[str, Tensor],
        batch: Tensor | None,
        generator: torch.Generator,
    ):
        device = visible.device
        self.model, self.projection, self.batch, self.generator = model, projection, batch, generator
        self.tokens = model.condition_tokens(visible, conditions)
        self.seen = visible @ model.embedder.table  # (B, D), E' of the visible entries
        self.genes = torch.as_tensor(hidden.indices, dtype=torch.int64, device=device)
        self.starts = torch.as_tensor(hidden.indptr, dtype=torch.int64, device=device)
        lengths = self.starts.diff()
        self.cells = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
        self.place = torch.arange(len(self.genes), device=device) - self.starts[self.cells]
        self.longest = int(lengths.max())
        self.factor = self._factor()

    def _factor(self) -> Tensor:
        """(B, D, D) lower Cholesky factors of E'E - E_H'E_H, in float64 because the difference may be singular."""
        table, (n, width) = self.model.embedder.table.double(), self.seen.shape
        whole = table.T @ table
        tiny = 1e-9 * whole.diagonal().mean() * torch.eye(width, dtype=torch.float64, device=whole.device)
        factors = torch.empty(n, width, width, device=whole.device)
        for first in range(0, n, 64):  # float64 and padded: a few cells at a time
            own = (self.cells >= first) & (self.cells < first + 64)
            count = min(64, n - first)
            rows = table.new_zeros(count, self.longest, width)
            rows[self.cells[own] - first, self.place[own]] = table[self.genes[own]]
            factors[first : first + count] = torch.linalg.cholesky(whole + tiny - rows.mT @ rows).float()
        return factors

    def visible_noise(self) -> Tensor:
        """E_V'eps_V, (B, D)."""
        z = torch.randn(*self.seen.shape, generator=self.generator, device=self.seen.device)
        return torch.bmm(self.factor, z.unsqueeze(-1)).squeeze(-1)

    def hidden_noise(self) -> Tensor:
        """eps_H, (nnz,)."""
        return torch.randn(len(self.genes), generator=self.generator, device=self.seen.device)

    def project_hidden(self, x: Tensor) -> Tensor:
        """E_H'x_H, (nnz,) -> (B, D)."""
        return F.embedding_bag(
            self.genes,
            self.model.embedder.table,
            self.starts,
            mode="sum",
            per_sample_weights=x,
            include_last_offset=True,
        )

    def run(self, schedule: Schedule, title: str) -> Tensor:
        """Hidden entries (nnz,) at the end of the chain."""
        model, n = self.model, len(self.seen)
        # one product per cell with its own rows of the head, padded: four times faster than a sum per entry
        weight = torch.zeros(n, self.longest, model.config.width, device=self.seen.device)
        weight[self.cells, self.place] = model.head.weight[self.genes]
        bias = model.head.bias[self.genes]  # (nnz,)
        x = self.hidden_noise()
        y = self.visible_noise() + self.project_hidden(x)
        for step in progress(ancestral_steps(schedule), title):
            t = torch.full((n,), step.t, device=y.device)
            h = model.embedder.after_table(y) + time_embedding(t, model.config.width)
            h = model.with_batch(model.encode(h, self.tokens), self.batch)
            x0 = torch.bmm(weight, h.unsqueeze(-1))[self.cells, self.place, 0] + bias
            if step.t == 0:
                return x0
            x = step.x0 * x0 + step.xt * x + step.noise * self.hidden_noise()
            overwritten = schedule.signal[step.t] * self.seen + schedule.noise[step.t] * self.visible_noise()
            y = overwritten + self.project_hidden(x)
        raise AssertionError("a schedule has at least one step")
