"""A diffusion of single cells under a perturbation, in the manner of Squidiff (He et al., Nature Methods 2025).

Squidiff is a DDPM of one cell at a time: an MLP on expression, told the time and a semantic code of 60 numbers that a
second MLP reads off a cell. A perturbation is asked for by another semantic code: a control cell's code moved along
the direction of the perturbation, or, where treatments are described, read off a control cell and the treatment. DDIM
makes the cells, from noise. Here it is the second way: the code is that of a control cell of the same context and
batch, to which a learned vector of the perturbation is added; vectors of context and batch besides.

    s        = see(control cell) + perturbation + context + batch + time
    x_t      = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise,   linear schedule, T = 1000
    network  -> v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0,   squared error

Expression is standardised gene by gene before, and put back on its scale after sampling; without that the answer has
the size of noise and not of expression, which is what the error of 2 on log expression in the paper's Table 4 looks
like. Values below 0 are removed so that means stay (``response_cells.nonnegative``).

Where this differs: v is predicted, not the noise, because a network narrower than its input cannot carry the noise of
every gene (the sampler is the same); the code has the width of the network; sizes.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from screpro.baselines.response_cells import nonnegative
from screpro.baselines.response_mlp import ToldMlp, train_told
from screpro.baselines.responses import Asked, controls_for
from screpro.data.populations import gather
from screpro.errors import ScreproError
from screpro.processes.gaussian import Schedule, linear
from screpro.samplers.ddim import ddim

if TYPE_CHECKING:
    from screpro.data.populations import Populations

__all__ = ["Standard", "squidiff_like", "standard_of"]

AT_ONCE = 4096
"""Cells that are sampled together."""


class Standard:
    """Expression with mean 0 and variance 1 of every gene over training cells, and back."""

    def __init__(self, mean: np.ndarray, deviation: np.ndarray):
        self.mean, self.deviation = mean.astype(np.float32), deviation.astype(np.float32)

    def __call__(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy((x - self.mean) / self.deviation)

    def back(self, z: Tensor) -> np.ndarray:
        return z.numpy() * self.deviation + self.mean


def standard_of(cells: "Populations") -> Standard:
    """Mean and deviation of every gene; a gene seen in a handful of cells is not blown up."""
    mean = np.asarray(cells.x.mean(0, dtype=np.float64)).ravel()
    square = np.asarray(cells.x.multiply(cells.x).mean(0, dtype=np.float64)).ravel()
    return Standard(mean, np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), 0.05))


def squidiff_like(
    train: "Populations",
    *,
    asked: Asked,
    controls: "Populations",
    seed: int,
    threads: int = 1,
    width: int = 256,
    layers: int = 3,
    told_context: bool = True,
    batch_size: int = 128,
    steps: int = 2500,
    learning_rate: float = 1e-3,
    sampling_steps: int = 50,
) -> np.ndarray:
    """Cells sampled one by one under their perturbation, each shown a control cell of its context and batch, (n, G).

    Parameters
    ----------
    train, asked, controls, seed, threads
        As of ``responses.run``.
    width, layers
        Of the network.
    told_context
        Whether it is told context and batch, besides being shown a control cell.
    batch_size, steps, learning_rate
        Cells in a step, steps, and the highest rate, after warm-up.
    sampling_steps
        Strided steps of DDIM.
    """
    if not 1 <= sampling_steps <= 1000:
        raise ScreproError("DDIM takes 1 to 1000 steps.", got=f"{sampling_steps=}", fix="for example sampling_steps=50")
    standard, schedule = standard_of(train), linear()
    sizes = train.labels if told_context else {"perturbation": len(train.perturbations)}
    n_genes = len(train.genes)
    train.matched(train.context, train.batch, 1, rng=np.random.default_rng(seed))  # or an error before training

    def loss(model: nn.Module, items: Tensor, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        rows = rng.integers(len(train), size=len(items))
        shown = train.matched(train.context[rows], train.batch[rows], 1, rng=rng)[:, 0]
        x0, control = standard(gather(train.x, np.stack([rows, shown])))
        t = torch.randint(schedule.steps, (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        signal, sigma = schedule.signal[t][:, None], schedule.noise[t][:, None]
        labels = {name: torch.from_numpy(getattr(train, name)[rows]) for name in sizes}
        v = model(signal * x0 + sigma * noise, t / schedule.steps, labels, control)
        return (v - (signal * noise - sigma * x0)).square().mean()

    model = train_told(
        lambda: ToldMlp(n_genes, sizes, shown=n_genes, width=width, layers=layers),
        loss,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        threads=threads,
        title="Squidiff-like",
    )
    rows = controls_for(controls, asked, seed=seed)
    made = np.empty((len(rows), n_genes), dtype=np.float32)
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, len(rows), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        labels = {name: torch.from_numpy(getattr(asked, name)[part]) for name in sizes}
        control = standard(gather(controls.x, rows[part]))
        denoise = _denoiser(model, schedule, labels, control)
        drawn = ddim(
            denoise, tuple(control.shape), schedule=schedule, generator=generator, steps=sampling_steps, title=None
        )
        made[part] = standard.back(drawn)
    return nonnegative(made, asked)


def _denoiser(model: nn.Module, schedule: Schedule, labels: dict[str, Tensor], control: Tensor):
    """(x_t, t) -> x_0 from the predicted v."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        v = model(x, t / schedule.steps, labels, control)
        return schedule.signal[t][:, None] * x - schedule.noise[t][:, None] * v

    return denoise
