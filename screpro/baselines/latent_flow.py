"""A latent flow on an MLP auto-encoder of counts, after CFGen (Palma et al., ICLR 2025, arXiv:2407.11734).

First stage: one vector per cell, negative-binomial likelihood (``count_autoencoder``). Second stage: flow matching
along the same straight path as scLDM's, with the label dropped for a share of the cells, by a residual MLP that is told
time, label and library size (standardised log total). Library sizes of new cells are drawn from the log-normal law of
their class, or of all cells where no label is given; the velocity hears the size that the decoder is going to use.

Differences: latents are standardised, which their code does not need for latents near unit scale; one modality and one
attribute, so none of CFGen's steering of several; the null label is dropped in with scLDM's probability.
"""

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from screpro.baselines.count_autoencoder import fit as fit_autoencoder
from screpro.baselines.generation import Generated
from screpro.kernels.linear import Linear
from screpro.models.blocks import time_embedding
from screpro.processes.interpolant import VelocityLoss, interpolate
from screpro.samplers import guidance
from screpro.samplers.ode import integrate
from screpro.tasks.flow import decode_counts
from screpro.tasks.library_size import LibrarySizes
from screpro.training import TrainConfig
from screpro.training import fit as fit_network

__all__ = ["ConditionedMlp", "generate"]

TIME_WIDTH = 128


class ConditionedMlp(nn.Module):
    """Residual MLP on latent vectors, told the time, a label (-1: none) and, with `library`, the library size."""

    def __init__(self, latent: int, n_labels: int, *, width: int, layers: int, library: bool):
        super().__init__()
        self.enter = Linear(latent, width)
        self.time = nn.Sequential(Linear(TIME_WIDTH, width), nn.SiLU(), Linear(width, width))
        self.labels = nn.Embedding(n_labels + 1, width)  # the last row is no label
        self.library = nn.Sequential(Linear(1, width), nn.SiLU(), Linear(width, width)) if library else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.SiLU(), Linear(width, width))
            for _ in range(layers)
        )
        self.leave = Linear(width, latent)

    def forward(self, z: Tensor, t: Tensor, label: Tensor, library: Tensor | None = None) -> Tensor:
        """Latents (B, k), times (B,), labels (B,), standardised library sizes (B,) -> (B, k)."""
        # a label of -1 counts from the end: the last row
        told = self.time(time_embedding(t, TIME_WIDTH)) + self.labels(label % self.labels.num_embeddings)
        if self.library is not None:
            told = told + self.library(library[:, None])
        h = self.enter(z)
        for block in self.blocks:
            h = h + block(h + told)
        return self.leave(h)


class LibraryLoss(VelocityLoss):
    """The flow-matching loss with library sizes (n,) beside the labels; labels are dropped, sizes are not."""

    def __init__(self, latents: Tensor, labels: Tensor, library: Tensor, *, drop: float):
        super().__init__(latents, {"label": labels}, drop=drop)
        self.library = library

    def __call__(self, model: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        device = generator.device
        z1 = self.latents[rows.cpu()].to(device)
        z0 = torch.randn(z1.shape, generator=generator, device=device)
        t = torch.rand(len(z1), generator=generator, device=device)
        z_t, target = interpolate(z0, z1, t)
        given = self.given(rows, generator)["label"]
        library = self.library[rows.cpu()].to(device)
        return (model(z_t, 1000 * t, given, library) - target).square().mean()


def generate(
    counts: sp.csr_matrix,
    labels: np.ndarray,
    *,
    wanted: np.ndarray,
    n_types: int,
    seed: int,
    threads: int = 1,
    epochs: int = 100,
    batch_size: int = 128,
    flow_epochs: int = 300,
    hidden: tuple[int, ...] = (512, 256),
    latent: int = 50,
    width: int = 256,
    layers: int = 3,
    learning_rate: float = 1e-3,
    drop: float = 0.2,
    steps: int = 20,
) -> Generated:
    """Counts drawn without and with the labels `wanted`.

    Parameters
    ----------
    epochs, flow_epochs
        Passes of the auto-encoder and of the flow over the cells.
    batch_size, hidden, latent
        Of the auto-encoder.
    width, layers, learning_rate
        Of the velocity network.
    drop
        Probability that a cell is trained without its label.
    steps
        Steps of Heun's sampler.
    """
    model = fit_autoencoder(
        counts, seed=seed, threads=threads, epochs=epochs, batch_size=batch_size, hidden=hidden, latent=latent
    )
    codes = model.encode(counts)
    mean, scale = codes.mean(0), codes.std(0).clamp(min=1e-6)
    totals = np.asarray(counts.sum(1)).ravel()
    sizes = LibrarySizes.fit(totals, {"label": labels})

    def standard(library: np.ndarray) -> Tensor:
        centred = (np.log(library) - sizes.overall[0]) / max(sizes.overall[1], 1e-6)
        return torch.from_numpy(np.asarray(centred, dtype=np.float32))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ConditionedMlp(latent, n_types, width=width, layers=layers, library=True)
    loss = LibraryLoss((codes - mean) / scale, torch.as_tensor(labels), standard(totals), drop=drop)
    how = TrainConfig(epochs=flow_epochs, learning_rate=learning_rate, warmup=0.05, clip=1.0, seed=seed)
    fit_network(network, loss, len(codes), how, title="latent flow")

    def draw(weight: float) -> sp.csr_matrix:
        rng, n = np.random.default_rng(seed), len(wanted)
        library = sizes.draw_pooled(n, rng=rng) if weight == 0 else sizes.draw({"label": wanted}, rng=rng)
        told = standard(library)
        velocity = guidance.joint(
            lambda z, t, given: network(z, 1000 * t, given["label"], told), {"label": torch.as_tensor(wanted)},
            weight=weight,
        )  # fmt: skip
        noise = torch.randn((n, latent), generator=torch.Generator().manual_seed(seed))
        return decode_counts(model.decode, integrate(velocity, noise, steps=steps) * scale + mean, library, rng=rng)

    return Generated(draw(0.0), draw(1.0))
