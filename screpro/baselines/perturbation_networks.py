"""What CVAE, scGen and CPA share: stacks of layers, the evidence bound of a VAE, and training through one loop."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.linear import Linear
from screpro.training import Fit, TrainConfig, fit

if TYPE_CHECKING:
    from screpro.tasks.perturbation import StateCells

__all__ = ["Encoder", "bound", "one_hot", "stack", "tensors", "train_network"]


def stack(n_in: int, width: int, layers: int, *, dropout: float) -> nn.Sequential:
    """`layers` blocks of linear, batch norm, leaky ReLU and dropout, (B, n_in) -> (B, width)."""
    if layers < 1 or width < 1:
        raise ScreproError(
            "A network has at least one layer of at least one unit.",
            got=f"{layers} layers of {width}",
            fix="raise them",
        )
    blocks: list[nn.Module] = []
    for size in [n_in, *[width] * (layers - 1)]:
        blocks += [Linear(size, width), nn.BatchNorm1d(width), nn.LeakyReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*blocks)


class Encoder(nn.Module):
    """Mean and log-variance of a latent code, (B, n_in) -> two of (B, latent)."""

    def __init__(self, n_in: int, width: int, layers: int, latent: int, *, dropout: float):
        super().__init__()
        self.body = stack(n_in, width, layers, dropout=dropout)
        self.mean = Linear(width, latent)
        self.log_variance = Linear(width, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mean(h), self.log_variance(h).clamp(-10, 10)


def bound(x: Tensor, decoded: Tensor, mean: Tensor, log_variance: Tensor, *, kl_weight: float) -> Tensor:
    """Half the squared error, summed over genes, plus the weighted divergence from N(0, I); mean over cells."""
    error = F.mse_loss(decoded, x, reduction="none").sum(1)
    divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2
    return (error / 2 + kl_weight * divergence).mean()


def drawn(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
    """A latent code from N(mean, variance)."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return mean + (log_variance / 2).exp() * noise


def one_hot(codes: np.ndarray | Tensor, size: int) -> Tensor:
    """(n,) codes -> (n, size) float."""
    return F.one_hot(torch.as_tensor(codes, dtype=torch.int64), size).float()


def tensors(train: "StateCells") -> tuple[Tensor, Tensor, Tensor, int]:
    """Dense expression (n, G), type and state codes (n,), and the number of types."""
    x = torch.as_tensor(train.x.toarray(), dtype=torch.float32)
    n_types = int(train.cell_type.max()) + 1
    return x, torch.as_tensor(train.cell_type), torch.as_tensor(train.state), n_types


def train_network(
    make: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    n_cells: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    threads: int,
    title: str,
) -> tuple[nn.Module, Fit]:
    """Build a network whose weights follow from `seed` and train it on the CPU; torch's threads are put back.

    Dropout draws from the global generator, which is put back as well. `loss` never gets a single row: batch norm
    has no variance of one cell, so a last batch of one cell is doubled.
    """
    from lightning.fabric import Fabric

    def guarded(model: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        return loss(model, rows.repeat(2) if len(rows) == 1 else rows, generator)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = make()
            how = TrainConfig(
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                schedule="constant",
                weight_decay=weight_decay,
                seed=seed,
            )
            done = fit(model, guarded, n_cells, how, fabric=Fabric(accelerator="cpu", devices=1), title=title)
    finally:
        torch.set_num_threads(before)
    return model, done
