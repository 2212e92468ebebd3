"""GEARS: change of expression under unseen gene perturbations (Roohani, Huang & Leskovec, Nature Biotechnology 2023).

Every measured gene has an embedding, smoothed over a co-expression graph; every perturbed gene one, smoothed over a
graph of gene function. The perturbed genes' sum, through an MLP, is added to all genes; a shared MLP, a linear head
per gene and a second one that also sees a summary of all genes give the change, which is added to a control cell.

Written from the paper and its description of the code, with two observations used:

- the network never looks at the control cell, which is only added at the end. All cells of one perturbation get the
  same change, so it is computed once per perturbation in a batch instead of once per cell. Batch statistics are then
  over distinct perturbations;
- the direction term of the loss compares signs, and the gradient of a sign is zero: it is part of the loss that is
  reported and trains nothing.

Other differences: cosine decay instead of halving the rate every epoch, clipping of the norm, weights of the last
epoch instead of the best on validation cells (the number of epochs is tuned instead).
"""

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from screpro.data.gene_graph import coexpression_graph, normalised
from screpro.kernels.linear import Linear
from screpro.models.graph_conditioner import SimpleGraphConvolution, sparse_tensor

if TYPE_CHECKING:
    from screpro.tasks.gene_perturbation import PerturbedCells

__all__ = ["Gears", "GearsLoss", "autofocus_direction_loss", "gears"]

GAMMA = 2  # the autofocus exponent beyond the square
DIRECTION = 0.1  # weight of the direction term


def _mlp(*sizes: int) -> nn.Sequential:
    """Linear and BatchNorm for each pair of sizes, ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Gears(nn.Module):
    """Perturbation numbers (U,) -> change of every gene (U, G).

    Parameters
    ----------
    expression
        (G, G) normalised co-expression graph of the measured genes.
    function
        (N, N) normalised graph of the genes that can be perturbed.
    incidence
        (P, N) genes of each perturbation; an empty row is the control.
    hidden
        H, width (published: 64).
    """

    def __init__(self, expression: sp.spmatrix, function: sp.spmatrix, incidence: sp.spmatrix, *, hidden: int = 64):
        super().__init__()
        n_genes, n_nodes = expression.shape[0], function.shape[0]
        self.register_buffer("expression", sparse_tensor(expression), persistent=False)
        self.register_buffer("function", sparse_tensor(function), persistent=False)
        involved = torch.as_tensor(np.asarray(incidence.todense()), dtype=torch.float32)
        self.register_buffer("incidence", involved, persistent=False)
        self.gene = nn.Embedding(n_genes, hidden, max_norm=1.0)
        self.position = nn.Embedding(n_genes, hidden, max_norm=1.0)
        self.perturbation = nn.Embedding(n_nodes, hidden, max_norm=1.0)
        self.norm_gene = nn.BatchNorm1d(hidden)
        self.over_expression = SimpleGraphConvolution(hidden)
        self.over_function = SimpleGraphConvolution(hidden)
        self.join = _mlp(hidden, hidden, hidden)
        self.fuse = _mlp(hidden, hidden, hidden)
        self.norm_both = nn.BatchNorm1d(hidden)
        self.recover = _mlp(hidden, 2 * hidden, hidden)
        self.first = nn.Parameter(torch.empty(n_genes, hidden))
        self.first_bias = nn.Parameter(torch.empty(n_genes, 1))
        self.across = _mlp(n_genes, hidden, hidden)
        self.second = nn.Parameter(torch.empty(n_genes, hidden + 1))
        self.second_bias = nn.Parameter(torch.empty(1, n_genes))
        for weight in (self.first, self.first_bias, self.second, self.second_bias):
            nn.init.xavier_normal_(weight)

    def forward(self, label: Tensor) -> Tensor:
        all_genes = torch.arange(len(self.first), device=label.device)
        genes = self.norm_gene(self.gene(all_genes)).relu()
        genes = genes + 0.2 * self.over_expression(self.position(all_genes), self.expression)
        genes = self.join(genes)  # (G, H)
        nodes = self.perturbation(torch.arange(self.function.shape[0], device=label.device))
        nodes = self.over_function(nodes, self.function)
        involved = self.incidence[label]  # (U, N)
        added = self.fuse(_at_least_two(involved @ nodes))[: len(label)]
        added = added * (involved.sum(1, keepdim=True) > 0)  # nothing is added to a control cell
        both = genes + added[:, None]  # (U, G, H)
        both = self.norm_both(both.flatten(0, 1)).relu()
        both = self.recover(both).view(len(label), len(genes), -1)
        single = (both * self.first).sum(-1) + self.first_bias[:, 0]  # (U, G)
        state = self.across(_at_least_two(single))[: len(label)]  # (U, H)
        return single * self.second[:, 0] + state @ self.second[:, 1:].T + self.second_bias


def _at_least_two(rows: Tensor) -> Tensor:
    """A single row twice: BatchNorm needs a spread."""
    return rows.repeat(2, 1) if len(rows) == 1 else rows


def autofocus_direction_loss(
    predicted: Tensor, y: Tensor, control: Tensor, label: Tensor, kept: Tensor, *, direction: float = DIRECTION
) -> Tensor:
    """Fourth power of the error plus the direction term, mean over genes and cells, then over perturbations.

    Parameters
    ----------
    predicted, y
        (B, G) predicted and perturbed cells.
    control
        (G,) mean control cell, against which a direction is up or down.
    label
        (B,) perturbations.
    kept
        (P, G) genes that count for a perturbation: those seen at all in its cells.
    direction
        Weight of the term of signs, whose gradient is zero.
    """
    error = (predicted - y) ** (2 + GAMMA)
    error = error + direction * (torch.sign(y - control) - torch.sign(predicted - control)) ** 2
    mask = kept[label]
    each = (error * mask).sum(1) / mask.sum(1).clamp(min=1)  # (B,)
    _, index, count = label.unique(return_inverse=True, return_counts=True)
    return (each / count[index]).sum() / len(count)


class GearsLoss:
    """Loss on rows of the training cells for ``training.fit``: perturbed cells paired with random control cells."""

    def __init__(self, cells: "PerturbedCells", *, seed: int):
        control = np.flatnonzero(cells.label == 0)
        partner = np.random.default_rng(seed).choice(control, size=len(cells.label))
        partner[control] = control  # a control cell is its own partner
        self.x, self.partner = cells.x, partner
        self.label = torch.as_tensor(cells.label)
        means = cells.means()
        self.control = torch.as_tensor(means[0], dtype=torch.float32)
        kept = np.nan_to_num(means) > 0
        kept[0] = True
        self.kept = torch.as_tensor(kept, dtype=torch.float32)

    def __call__(self, model: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        device = generator.device
        chosen = rows.cpu().numpy()
        y = torch.as_tensor(self.x[chosen].toarray(), device=device)
        start = torch.as_tensor(self.x[self.partner[chosen]].toarray(), device=device)
        label = self.label.to(device)[rows]
        distinct, index = label.unique(return_inverse=True)
        predicted = start + model(distinct)[index]
        return autofocus_direction_loss(predicted, y, self.control.to(device), label, self.kept.to(device))


def gears(
    train: "PerturbedCells",
    *,
    predict: np.ndarray,
    seed: int,
    threads: int = 1,
    epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    hidden: int = 64,
) -> np.ndarray:
    """Train GEARS on `train` and predict the mean profile of each perturbation in `predict`, (k, G).

    Parameters
    ----------
    train
        Control cells and cells of the training perturbations; the co-expression graph is made of these.
    predict
        (k,) numbers of the perturbations to predict.
    epochs, batch_size, learning_rate, hidden
        As published by default.
    """
    from screpro.training import TrainConfig, fit

    torch.set_num_threads(threads)
    expression = coexpression_graph(train.x, train.genes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Gears(normalised(expression), normalised(train.graph), train.incidence, hidden=hidden)
    how = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=5e-4,
        clip=1.0,
        seed=seed,
    )
    fit(model, GearsLoss(train, seed=seed), len(train.label), how, title="GEARS")
    model.eval()
    with torch.no_grad():
        change = model(torch.as_tensor(predict, device=model.first.device)).cpu().numpy()
    return train.means()[0] + change
