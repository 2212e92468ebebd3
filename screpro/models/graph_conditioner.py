"""scDiff's conditioner for perturbed genes: a gene graph makes a token for a gene never perturbed in training.

Section 2.2 (GEARS) and the authors' configuration, which the paper does not spell out. Letters: N genes of the graph,
P perturbations, B cells, D width, L blocks.

What the code does, and this follows: L simple graph convolutions with ReLU between them give every gene an embedding;
the genes of a perturbation are summed; the first token of the list is that sum itself, the others are L - 1 separate
Linear + BatchNorm of it; each is normalised. As with every conditioner the list is consumed in reverse, so the plain
sum goes to the last block. An unperturbed cell has an embedding of its own that does not go through the graph. The
embedding is created with a largest norm, but its weights are read directly and the limit never acts; it has no
limit here.
"""

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.linear import Linear
from screpro.models.scdiff import Tokens

__all__ = ["GraphConditioner", "SimpleGraphConvolution", "sparse_tensor"]


def sparse_tensor(matrix: sp.spmatrix) -> Tensor:
    """The same matrix as a sparse float tensor, for products with dense ones."""
    entries = sp.coo_matrix(matrix)
    place, values = np.stack([entries.row, entries.col]), entries.data.astype(np.float32)
    return torch.sparse_coo_tensor(place, values, entries.shape, is_coalesced=True, check_invariants=False)


class SimpleGraphConvolution(nn.Module):
    """One step: neighbours are averaged by the fixed operator S, then a Linear; (N, D) -> (N, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = Linear(width, width)

    def forward(self, h: Tensor, operator: Tensor) -> Tensor:
        return self.linear(torch.sparse.mm(operator, h))


class GraphConditioner(nn.Module):
    """Number of a perturbation -> one token per block, from a gene graph.

    Parameters
    ----------
    operator
        (N, N) ``screpro.data.gene_graph.normalised`` of the graph.
    incidence
        (P, N) 1 where a perturbation involves a gene. A row without genes is the unperturbed state.
    width, depth
        D and L of the network.
    """

    def __init__(self, operator: sp.csr_matrix, incidence: sp.csr_matrix, *, width: int, depth: int):
        super().__init__()
        n = operator.shape[0]
        if operator.shape != (n, n) or incidence.shape[1] != n:
            raise ScreproError(
                "The perturbations are over the genes of the graph.",
                got=f"operator {operator.shape}, incidence {incidence.shape}",
                fix="make both from one graph",
            )
        involved = torch.as_tensor(np.asarray(incidence.todense()), dtype=torch.float32)
        # the unperturbed embedding is one more column
        nothing = (involved.sum(1, keepdim=True) == 0).float()
        self.register_buffer("operator", sparse_tensor(operator), persistent=False)
        self.register_buffer("incidence", torch.cat([nothing, involved], dim=1), persistent=False)
        self.embedding = nn.Parameter(torch.randn(n + 1, width))  # row 0: unperturbed
        self.steps = nn.ModuleList(SimpleGraphConvolution(width) for _ in range(depth))
        self.heads = nn.ModuleList(nn.Sequential(Linear(width, width), _CellBatchNorm(width)) for _ in range(depth - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))

    def perturbations(self) -> Tensor:
        """Embedding of every perturbation before the heads, (P, D)."""
        h = self.embedding[1:]
        for number, step in enumerate(self.steps):
            h = step(h, self.operator)
            h = h if number == len(self.steps) - 1 else h.relu()
        return self.incidence @ torch.cat([self.embedding[:1], h])

    def forward(self, label: Tensor) -> list[Tokens]:
        rows = self.perturbations()
        outputs = [rows, *(head[0](rows) for head in self.heads)]
        tokens = []
        for number, (h, norm) in enumerate(zip(outputs, self.norms, strict=True)):
            if self.training:  # batch statistics are of the cells of the batch, not of the list of perturbations
                h = F.embedding(label, h)
                tokens.append(Tokens(norm(self.heads[number - 1][1](h) if number else h)))
            else:
                tokens.append(Tokens(norm(self.heads[number - 1][1](h) if number else h), label))
        return tokens[::-1]


class _CellBatchNorm(nn.BatchNorm1d):
    """BatchNorm that takes the running statistics where a batch is a single cell, which has no spread."""

    def forward(self, h: Tensor) -> Tensor:
        if self.training and len(h) > 1:
            return super().forward(h)
        return F.batch_norm(h, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
