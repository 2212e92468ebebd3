"""Training scDiff and drawing cells from it: what every task on it shares (protocol 2.2, 2.3 and 3)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.losses import DenoisingLoss
from screpro.models.blocks import time_embedding
from screpro.models.scdiff import ScDiff, ScDiffConfig
from screpro.processes.gaussian import scaled_linear
from screpro.samplers.ddim import quadratic
from screpro.samplers.projected import Projection, Step, ancestral_steps, ddim_steps, projected
from screpro.training import Fit, TrainConfig, fit

__all__ = ["SAMPLERS", "DenoiserSettings", "Trained", "build", "generate", "train"]

SAMPLERS = ("ancestral", "ddim", "ddim quadratic", "one call")
"""All T steps; DDIM in few, even ones without noise or late ones with it; the answer to pure noise at t = T - 1."""


@dataclass(frozen=True)
class DenoiserSettings:
    """Size and training of the network; what is not the paper's is small enough for two cores."""

    width: int = 128
    depth: int = 3
    heads: int = 4
    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    drop: float = 0.1  # probability of the null label, and of the null batch
    empty_context: float = 0.25  # probability that a cell is trained with nothing visible


class Trained(NamedTuple):
    """A trained network and what training it took."""

    model: nn.Module
    fit: Fit


def build(
    n_genes: int,
    settings: DenoiserSettings,
    *,
    classes: Mapping[str, int] | None = None,
    n_batches: int = 0,
    conditioners: Mapping[str, nn.Module] | None = None,
    seed: int,
) -> ScDiff:
    """A network with weights that follow from `seed`; row counts include the null row where there is one."""
    config = ScDiffConfig(
        n_genes=n_genes,
        width=settings.width,
        depth=settings.depth,
        heads=settings.heads,
        classes=dict(classes or {}),
        n_batches=n_batches,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # modules draw their initial weights from the global generator
        return ScDiff(config, conditioners)


def train(
    model: nn.Module,
    loss: DenoisingLoss,
    settings: DenoiserSettings,
    *,
    seed: int,
    threads: int | None = None,
    checkpoint: Path | None = None,
    title: str = "scDiff",
) -> Trained:
    """Train `model` on the cells of `loss`, in place. `threads` limits torch for the whole process."""
    if threads:
        torch.set_num_threads(threads)
    how = TrainConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        seed=seed,
    )
    return Trained(model, fit(model, loss, loss.x.shape[0], how, checkpoint=checkpoint, title=title))


@torch.no_grad()
def generate(
    model: ScDiff,
    context: sp.csr_matrix,
    *,
    conditions: Mapping[str, np.ndarray],
    batch: np.ndarray | None = None,
    sampler: str = "ddim",
    steps: int = 50,
    end: int = 0,
    nonnegative: bool = False,
    seed: int,
    chunk: int = 2048,
) -> np.ndarray:
    """Draw one cell for each row of `context`, (n, G) log-normalised expression.

    All cells of a chunk take each step together, condition tokens are computed once for all steps, and the chain runs
    in the dimensions that the network sees, with the same distribution (``samplers.projected``).

    Parameters
    ----------
    context
        (n, G) CSR, what the network may look at; all zeros for nothing.
    conditions, batch
        Labels (n,) of each conditioner by name, and rows of the batch table.
    sampler
        One of `SAMPLERS`; `steps` belongs to ``"ddim"``, even steps without noise, and to ``"ddim quadratic"``, steps
        that are closer together where there is little noise, each adding the noise of ancestral sampling.
    end
        Time step at which the chain stops: the cell is the network's answer there. 0 for all of the chain.
    nonnegative
        Clamp the predicted cell at zero in every step (the authors' choice for perturbations).
    seed
        Of the noise.
    chunk
        Cells that are dense at a time.

    Raises
    ------
    ScreproError
        Unknown sampler, no time step at `end` or above, or labels of another length than `context`.
    """
    if sampler not in SAMPLERS:
        raise ScreproError("A sampler has a name.", got=repr(sampler), fix=f"choose one of {', '.join(SAMPLERS)}")
    n, n_genes = context.shape
    labels = dict(conditions) | ({} if batch is None else {"batch": batch})
    if wrong := {name: len(values) for name, values in labels.items() if len(values) != n}:
        raise ScreproError(
            "There is one label per row of the context.", got=f"{n} rows, {wrong} labels", fix="give n labels each"
        )
    device = model.head.weight.device
    schedule = scaled_linear().to(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    projection = Projection(model.embedder.table, model.head, nonnegative=nonnegative)
    path = {
        "one call": [Step(schedule.steps - 1, 1.0, 0.0, 0.0)],
        "ddim": ddim_steps(schedule, steps),
        "ddim quadratic": ddim_steps(schedule, steps, times=quadratic, eta=1.0),
        "ancestral": ancestral_steps(schedule),
    }[sampler]
    if not (path := [step for step in path if step.t >= end]):
        raise ScreproError(
            "A chain ends at one of its time steps.", got=f"end {end} of {schedule.steps} steps", fix="lower `end`"
        )
    out = np.empty((n, n_genes), dtype=np.float32)
    for first in range(0, n, chunk):
        rows = slice(first, min(first + chunk, n))
        visible = torch.as_tensor(context[rows].toarray(), dtype=torch.float32, device=device)
        own = {name: torch.as_tensor(values[rows], device=device).long() for name, values in labels.items()}
        own_batch = own.pop("batch", None)
        answer = _answer(model, model.condition_tokens(visible, own), own_batch)
        draw = partial(projection.noise, len(visible), generator)
        h = projected(answer, projection, path, n=len(visible), noise=draw)
        out[rows] = projection.cells(h).cpu().numpy()
    return out


def _answer(model: ScDiff, tokens: list, batch: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The network between gene table and head, its condition tokens computed once: no step changes them."""

    def answer(y: Tensor, t: Tensor) -> Tensor:
        h = model.embedder.after_table(y) + time_embedding(t, model.config.width)
        return model.with_batch(model.encode(h, tokens), batch)

    return answer
