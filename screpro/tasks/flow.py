"""Latent flow matching: train a velocity on latents, draw latents, decode them to counts (protocol 2.2 and 3)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.models.scldm import AutoEncoder
from screpro.models.scldm_velocity import VelocityConfig, VelocityNetwork
from screpro.processes.interpolant import STRATEGIES, VelocityLoss
from screpro.samplers import guidance
from screpro.samplers.ode import integrate
from screpro.tasks.library_size import LibrarySizes
from screpro.training import Fit, TrainConfig, fit

__all__ = ["FlowSettings", "Generator", "TrainedFlow", "decode_counts", "nb_counts", "sample_latents", "train_flow"]


@dataclass(frozen=True)
class FlowSettings:
    """Size and training of the velocity network; the paper's is 8 blocks, 256 wide."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 5e-4
    warmup: float = 0.1
    drop: float = 0.2  # probability of the null labels; the authors' configuration says 0.8
    strategy: str = "joint"


class TrainedFlow(NamedTuple):
    """A trained velocity network and what training it took."""

    network: nn.Module
    fit: Fit


def train_flow(
    latents: Tensor,
    labels: Mapping[str, np.ndarray],
    settings: FlowSettings,
    *,
    classes: Mapping[str, int],
    seed: int,
    checkpoint: Path | None = None,
    title: str = "flow",
) -> TrainedFlow:
    """Train a velocity network on latents (n, m, q).

    Parameters
    ----------
    latents
        Of the training cells, from a frozen auto-encoder.
    labels
        Attribute -> (n,) labels from 0.
    classes
        Attribute -> number of labels, those without training cells included.
    """
    if set(labels) != set(classes):
        raise ScreproError(
            "Every attribute needs its labels and their number.",
            got=f"labels of {', '.join(labels) or 'nothing'}, numbers of {', '.join(classes) or 'nothing'}",
            fix="pass the same attributes in both",
        )
    n, tokens, channels = latents.shape
    config = VelocityConfig(tokens, channels, settings.width, settings.layers, settings.heads, dict(classes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # modules draw their initial weights from the global generator
        network = VelocityNetwork(config)
    given = {name: torch.as_tensor(np.asarray(label), dtype=torch.long) for name, label in labels.items()}
    loss = VelocityLoss(latents, given, drop=settings.drop, strategy=settings.strategy)
    how = TrainConfig(
        epochs=max(1, round(settings.steps / math.ceil(n / settings.batch_size))),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        seed=seed,
    )
    return TrainedFlow(network, fit(network, loss, n, how, checkpoint=checkpoint, title=title))


def sample_latents(
    network: nn.Module,
    labels: Mapping[str, np.ndarray],
    *,
    n: int,
    shape: tuple[int, ...],
    weight: float = 1.0,
    strategy: str = "joint",
    method: str = "heun",
    steps: int = 20,
    seed: int,
    batch: int = 1024,
    title: str | None = None,
) -> Tensor:
    """Draw `n` latents of `shape`, (n, m, q), with the given labels (n,) by attribute.

    `weight` 0 is unconditional, 1 conditional, above 1 guided; `strategy` picks the guidance formula. The noise of a
    cell does not depend on `batch`, except for method "sde".
    """
    if strategy not in STRATEGIES:
        raise ScreproError("A strategy has a name.", got=repr(strategy), fix=f"choose {' or '.join(STRATEGIES)}")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((n, *shape), generator=generator)
    given = {name: torch.as_tensor(np.asarray(label), dtype=torch.long) for name, label in labels.items()}
    device = next(network.parameters()).device
    parts = []
    for first in range(0, n, batch):
        own = {name: label[first : first + batch].to(device) for name, label in given.items()}
        if strategy == "joint":
            velocity = guidance.joint(network, own, weight=weight)
        else:
            velocity = guidance.additive(network, own, weights=weight)
        z0 = noise[first : first + batch].to(device)
        fresh = torch.Generator(device=device).manual_seed(seed + 1 + first)
        parts.append(integrate(velocity, z0, method=method, steps=steps, generator=fresh, title=title).cpu())
    return torch.cat(parts) if parts else noise


def nb_counts(mean: np.ndarray, theta: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """One negative-binomial draw per entry, int32: mean (n, G), inverse dispersion theta (G,) or (n, G)."""
    theta = np.broadcast_to(np.asarray(theta, dtype=np.float32), mean.shape)
    rate = rng.standard_gamma(theta, dtype=np.float32) * (mean / theta)
    return rng.poisson(rate).astype(np.int32)


def decode_counts(
    decode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    latents: Tensor,
    library: np.ndarray,
    *,
    rng: np.random.Generator,
    batch: int = 256,
) -> sp.csr_matrix:
    """Counts (n, G) int32 drawn for latents, at library sizes (n,).

    `decode` is ``AutoEncoder.decode`` or that of a baseline: latents and library sizes to means and theta.
    """
    sizes = torch.from_numpy(np.asarray(library, dtype=np.float32))
    parts = []
    with torch.no_grad():
        for first in range(0, len(latents), batch):
            mean, theta = decode(latents[first : first + batch], sizes[first : first + batch])
            parts.append(sp.csr_matrix(nb_counts(mean.cpu().numpy(), theta.cpu().numpy(), rng=rng)))
    return sp.vstack(parts, format="csr")


@dataclass(frozen=True)
class Generator:
    """Everything that draws cells: auto-encoder, velocity network and library sizes."""

    autoencoder: AutoEncoder
    network: nn.Module
    library: LibrarySizes

    def draw(
        self,
        labels: Mapping[str, np.ndarray],
        *,
        weight: float = 1.0,
        strategy: str = "joint",
        method: str = "heun",
        steps: int = 20,
        seed: int,
        title: str | None = None,
    ) -> sp.csr_matrix:
        """Counts (n, G) of new cells with these labels, one draw each.

        With ``weight=0`` latents are label-free, and so are the library sizes: their pooled law, since a library size
        chosen by a label would not belong to the latent. (The authors keep the label's.)
        """
        c = self.autoencoder.config
        n = len(next(iter(labels.values())))
        latents = sample_latents(
            self.network, labels, n=n, shape=(c.tokens, c.channels), weight=weight, strategy=strategy,
            method=method, steps=steps, seed=seed, title=title,
        )  # fmt: skip
        rng = np.random.default_rng(seed)
        sizes = self.library.draw_pooled(n, rng=rng) if weight == 0 else self.library.draw(labels, rng=rng)
        device = self.autoencoder.head.weight.device
        return decode_counts(lambda z, s: self.autoencoder.decode(z.to(device), s.to(device)), latents, sizes, rng=rng)
