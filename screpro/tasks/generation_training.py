"""Training scLDM's two stages for generation, and the network that everything on the page is drawn from."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from screpro.tasks import autoencoder as stage_one
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.flow import FlowSettings, Generator, train_flow
from screpro.tasks.generation import GenerationCells
from screpro.tasks.library_size import LibrarySizes

__all__ = ["ScLdm", "second_stage", "train_scldm"]


class ScLdm(NamedTuple):
    """scLDM trained on the training cells, and the latents it was trained on."""

    generator: Generator
    latents: torch.Tensor  # (n, m, q)
    losses: tuple[list[float], list[float]]  # by epoch, of auto-encoder and velocity
    seconds: float


def train_scldm(
    cells: GenerationCells,
    autoencoder: AutoEncoderSettings,
    flow: FlowSettings,
    *,
    seed: int,
    threads: int = 1,
    checkpoint: Path | None = None,
) -> ScLdm:
    """Train both stages and the library sizes on the training cells; `checkpoint` is the auto-encoder's file."""
    first = stage_one.train(cells.train, autoencoder, seed=seed, threads=threads, checkpoint=checkpoint)
    started = time.monotonic() - first.fit.seconds  # what an interrupted run had trained counts as well
    latents = stage_one.encode(first.model, cells.train)
    return second_stage(cells, first.model, latents, flow, seed=seed, losses=first.fit.losses, started=started)


def second_stage(
    cells: GenerationCells,
    model: nn.Module,
    latents: torch.Tensor,
    flow: FlowSettings,
    *,
    seed: int,
    losses: list[float],
    started: float,
) -> ScLdm:
    """Train the velocity on the latents of an auto-encoder that stays as it is; the clock began at `started`."""
    labels = {"cell_type": cells.train_labels}
    trained = train_flow(latents, labels, flow, classes={"cell_type": len(cells.types)}, seed=seed)
    library = LibrarySizes.fit(np.asarray(cells.train.sum(1)).ravel(), labels)
    generator = Generator(model, trained.network, library)
    return ScLdm(generator, latents, (losses, trained.fit.losses), time.monotonic() - started)
