"""What sampling from scLDM costs, and what a cheaper sampler loses."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from screpro.data.preprocess import log_cp10k
from screpro.metrics.transport import w2_exact
from screpro.records import Run
from screpro.tasks.autoencoder import AutoEncoderSettings, build
from screpro.tasks.flow import FlowSettings, Generator, train_flow
from screpro.tasks.generation import GenerationCells, Reference
from screpro.tasks.library_size import LibrarySizes

__all__ = ["generation_seconds", "study_samplers", "time_generation"]


class _Counted(nn.Module):
    """A velocity network that counts for how many cells it was called."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.cells = network, 0

    def forward(self, z, t, labels=None):
        self.cells += len(z)
        return self.network(z, t, labels)


def study_samplers(
    run: Run,
    cells: GenerationCells,
    generator: Generator,
    reference: Reference,
    *,
    samplers: Sequence[tuple[str, int]],
    most: int,
    seed: int,
    unit: Mapping[str, Any],
) -> None:
    """W2, network calls per cell and seconds of every sampler from the same noise, without condition.

    The library sizes and the draws of counts are the same for all, so that samplers differ in the latents alone.

    Parameters
    ----------
    run, unit
        Where the rows go, and their ``dataset, split, method, seed``.
    cells, generator, reference
        Test cells, trained networks, and what is scored.
    samplers
        Methods of ``samplers.ode.integrate`` and their steps.
    most
        Cells that are sampled, at most; the adaptive solver takes many calls.
    seed
        Of noise, library sizes and counts.
    """
    n = min(most, len(cells.test_labels))
    chosen = np.random.default_rng(seed).permutation(len(cells.test_labels))[:n]
    labels = {"cell_type": cells.test_labels[chosen]}
    for method, steps in samplers:
        counted = _Counted(generator.network)
        own = Generator(generator.autoencoder, counted, generator.library)
        started = time.monotonic()
        made = own.draw(labels, weight=0.0, method=method, steps=steps, seed=seed)
        seconds = time.monotonic() - started
        points = reference.points(log_cp10k(made))
        values = {
            "w2_exact": (w2_exact(reference.fitted.scores[chosen], points), "distance"),
            "network_calls": (counted.cells / n, "calls a cell"),
            "sampling": (seconds, "s"),
        }
        sizes = {"n_real": n, "n_generated": n, "n_genes": len(reference.genes)}
        name = method if method == "dopri5" else f"{method}, {steps} steps"
        for metric, (value, of) in values.items():
            row = {"item": "samplers", "metric": metric, "metric_variant": name, "value": value, "unit": of}
            run.add(**unit, **sizes, **row, direction="lower")


def generation_seconds(
    autoencoder: AutoEncoderSettings, flow: FlowSettings, *, cells: int, genes: int, steps: int
) -> float:
    """Seconds to generate `cells` x `genes` with untrained networks of these sizes and Heun's sampler.

    Seconds do not depend on the weights; noise, velocity, decoding and the draw of sparse counts are all in them.
    """
    toy = sp.csr_matrix(np.ones((2, genes), dtype=np.float32))
    model = build(toy, autoencoder, seed=0)
    shape, labels = (model.config.tokens, model.config.channels), {"cell_type": np.zeros(2, dtype=np.int64)}
    untrained = train_flow(torch.randn(2, *shape), labels, replace(flow, steps=1), classes={"cell_type": 1}, seed=0)
    library = LibrarySizes.fit(np.array([1000.0, 1500.0]), labels)
    wanted = {"cell_type": np.zeros(cells, dtype=np.int64)}
    started = time.monotonic()
    Generator(model, untrained.network, library).draw(wanted, weight=1.0, steps=steps, seed=0)
    return time.monotonic() - started


def time_generation(
    run: Run,
    autoencoder: AutoEncoderSettings,
    flow: FlowSettings,
    *,
    cells: int,
    genes: int,
    steps: int,
    unit: Mapping[str, Any],
) -> None:
    """Add `generation_seconds` to `run`."""
    seconds = generation_seconds(autoencoder, flow, cells=cells, genes=genes, steps=steps)
    row = {"item": "speed", "metric": "generate", "metric_variant": f"heun, {steps} steps", "unit": "s"}
    run.add(**unit, **row, n_generated=cells, n_genes=genes, value=seconds, direction="lower")
