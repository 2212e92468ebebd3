"""scGen: vector arithmetic in the latent space of a variational autoencoder (Lotfollahi et al. 2019).

The autoencoder sees no labels. The difference between the mean codes of stimulated and control cells, both sampled so
that every type weighs the same, is added to the codes of the held-out type's control cells, which are then decoded.

Where this differs: no early stopping (the number of epochs is tuned like every other setting).
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from screpro.baselines.arithmetic import mean_change
from screpro.baselines.perturbation_networks import Encoder, bound, drawn, stack, tensors, train_network
from screpro.kernels.linear import Linear

if TYPE_CHECKING:
    from screpro.tasks.perturbation import StateCells

__all__ = ["Vae", "fit_scgen", "scgen"]


class Vae(nn.Module):
    """q(z | x) and the mean of p(x | z)."""

    def __init__(self, n_genes: int, width: int, layers: int, latent: int, *, dropout: float):
        super().__init__()
        self.encoder = Encoder(n_genes, width, layers, latent, dropout=dropout)
        self.decoder = nn.Sequential(stack(latent, width, layers, dropout=dropout), Linear(width, n_genes))

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x)
        return self.decoder(drawn(mean, log_variance, generator)), mean, log_variance


def fit_scgen(
    train: "StateCells",
    *,
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
) -> Vae:
    """The trained autoencoder; the defaults are the published ones."""
    x, *_ = tensors(train)

    def loss(model: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        return bound(x[rows], *model(x[rows], generator), kl_weight=kl_weight)

    return train_network(
        lambda: Vae(x.shape[1], width, layers, latent, dropout=dropout),
        loss,
        len(x),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.0,
        seed=seed,
        threads=threads,
        title="scGen",
    )[0]


def scgen(
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
    """Predicted stimulated cells of type `held_out`, (c, G).

    The change of the code is the mean over types of the types' changes: what sampling every type equally often, in
    both states, estimates.
    """
    sizes = {"width": width, "layers": layers, "latent": latent, "dropout": dropout, "kl_weight": kl_weight}
    how = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    model = fit_scgen(train, seed=seed, threads=threads, **sizes, **how)
    with torch.no_grad():
        code = model.encoder(torch.as_tensor(train.x.toarray(), dtype=torch.float32))[0].double().numpy()
        moved = code[train.rows(state=0, cell_type=held_out)] + mean_change(train, per_type=True, x=code)
        return model.decoder(torch.as_tensor(moved, dtype=torch.float32)).numpy()
