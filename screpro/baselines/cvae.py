"""CVAE: a variational autoencoder told type and state, decoded under another state (Sohn et al. 2015).

One of the baselines of scGen's paper, whose sizes and training it takes over: two layers of 800, latent code of 100.
Encoder and decoder are given the labels of the cell; a prediction encodes a control cell as what it is and decodes
its code as a stimulated one.

Where this differs: scGen's CVAE is told the state alone; here the type as well, as scDiff is. Predictions decode the
mean code, without drawing.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from screpro.baselines.perturbation_networks import Encoder, bound, drawn, one_hot, stack, tensors, train_network
from screpro.kernels.linear import Linear

if TYPE_CHECKING:
    from screpro.tasks.perturbation import StateCells

__all__ = ["ConditionalVae", "cvae"]


class ConditionalVae(nn.Module):
    """q(z | x, labels) and the mean of p(x | z, labels)."""

    def __init__(self, n_genes: int, n_labels: int, width: int, layers: int, latent: int, *, dropout: float):
        super().__init__()
        self.encoder = Encoder(n_genes + n_labels, width, layers, latent, dropout=dropout)
        self.decoder = nn.Sequential(stack(latent + n_labels, width, layers, dropout=dropout), Linear(width, n_genes))

    def encode(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(torch.cat([x, labels], 1))

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.decoder(torch.cat([z, labels], 1))

    def forward(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x, labels)
        return self.decode(drawn(mean, log_variance, generator), labels), mean, log_variance


def cvae(
    train: "StateCells",
    *,
    held_out: int,
    seed: int,
    threads: int = 1,
    width: int = 800,
    layers: int = 2,
    latent: int = 100,
    dropout: float = 0.2,
    kl_weight: float = 5e-5,
    epochs: int = 100,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
) -> np.ndarray:
    """Predicted stimulated cells of type `held_out`, (c, G); the defaults are scGen's."""
    x, cell_type, state, n_types = tensors(train)
    labels = torch.cat([one_hot(cell_type, n_types), one_hot(state, 2)], 1)

    def loss(model: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        decoded, mean, log_variance = model(x[rows], labels[rows], generator)
        return bound(x[rows], decoded, mean, log_variance, kl_weight=kl_weight)

    model, _ = train_network(
        lambda: ConditionalVae(x.shape[1], labels.shape[1], width, layers, latent, dropout=dropout),
        loss,
        len(x),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.0,
        seed=seed,
        threads=threads,
        title="CVAE",
    )
    rows = train.rows(state=0, cell_type=held_out)
    stimulated = labels[rows].clone()
    stimulated[:, -2:] = torch.tensor([0.0, 1.0])
    with torch.no_grad():
        mean, _ = model.encode(x[rows], labels[rows])
        return model.decode(mean, stimulated).numpy()
