"""What training costs: seconds per epoch, peak memory and size of scDiff and four others (appendix E.7, Table 10).

Seconds of an epoch are the difference of a longer and a shorter training, divided by the epochs between them: whatever
happens once (loading, building graphs, first calls) cancels. Methods take turns, so that a machine that slows down for
a while slows all of them down. Seconds belong to a machine; their ratios less so, and the multiply-adds per cell, which
are counted as well, not at all.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from screpro.errors import ScreproError
from screpro.losses import DenoisingLoss
from screpro.models.scdiff import ScDiff
from screpro.processes.gaussian import scaled_linear
from screpro.records import Run
from screpro.tasks import denoiser
from screpro.tasks.cells import Cells
from screpro.tasks.denoiser import DenoiserSettings

__all__ = [
    "METHODS",
    "Method",
    "compare_costs",
    "cost_per_cell",
    "multiply_adds",
    "peak_memory",
    "seconds_per_epoch",
    "timing_cells",
]

PERTURBATIONS = 100
"""Perturbations dealt out to the cells for the methods that need them: Adamson's set has 87, Norman's 284."""


class Method(NamedTuple):
    """How one method is trained for a number of epochs, on cells that everybody gets."""

    title: str
    batch_size: int  # cells per step, the method's own
    train: Callable[..., Any]  # (cells, *, epochs, seed, threads, settings) -> None
    parameters: Callable[..., int]  # (cells, settings) -> trainable numbers


# --- methods: every import waits for its turn, so that a missing package stops one method only ---------------------


def _scdiff(cells: Cells, *, epochs: int, seed: int, threads: int, settings: DenoiserSettings) -> None:
    labels = {"cell_type": cells.cell_type + 1}
    loss = DenoisingLoss(cells.x, schedule=scaled_linear(), conditions=labels, drop={"cell_type": settings.drop})
    denoiser.train(_network(cells, settings, seed), loss, replace(settings, epochs=epochs), seed=seed, threads=threads)


def _network(cells: Cells, settings: DenoiserSettings, seed: int = 0) -> ScDiff:
    classes = {"cell_type": int(cells.cell_type.max()) + 2}
    return denoiser.build(cells.x.shape[1], settings, classes=classes, seed=seed)


def _scanvi(cells: Cells, *, epochs: int, seed: int, threads: int, settings: DenoiserSettings) -> None:
    from screpro.baselines.scanvi import fit_predict

    n_types = int(cells.cell_type.max()) + 1
    some = cells.take(np.arange(2))
    fit_predict(cells, some, n_types=n_types, seed=seed, threads=threads, epochs=1, scanvi_epochs=epochs)


def _scanvi_parameters(cells: Cells, settings: DenoiserSettings) -> int:
    import scvi
    from anndata import AnnData

    from screpro.baselines.common import quiet

    with quiet():
        adata = AnnData(sp.csr_matrix(cells.counts[:, np.flatnonzero(cells.counts.getnnz(axis=0))], dtype=np.float32))
        adata.obs["label"] = cells.cell_type.astype(str)
        scvi.model.SCANVI.setup_anndata(adata, labels_key="label", unlabeled_category="unlabelled")
        return _size(scvi.model.SCANVI(adata).module)


def _dca(cells: Cells, *, epochs: int, seed: int, threads: int, settings: DenoiserSettings) -> None:
    from screpro.baselines.common import contained_torch
    from screpro.baselines.dca import train

    size = np.asarray(cells.counts.sum(axis=1), dtype=np.float64).ravel()
    with contained_torch(seed=seed, threads=threads):
        train(cells.counts, size=size, seed=seed, epochs=epochs)


def _dca_parameters(cells: Cells, settings: DenoiserSettings) -> int:
    from screpro.baselines.dca import CountAutoencoder

    n_genes, generator = cells.x.shape[1], torch.Generator()
    return _size(CountAutoencoder(n_genes, hidden=(64, 32, 64), zero_inflated=True, generator=generator))


def _states(cells: Cells):
    from screpro.tasks.perturbation import StateCells

    state = np.arange(len(cells.cell_type)) % 2
    return StateCells(cells.x, cells.cell_type, state, cells.batch, cells.genes)


def _scgen(cells: Cells, *, epochs: int, seed: int, threads: int, settings: DenoiserSettings) -> None:
    from screpro.baselines.scgen import fit_scgen

    fit_scgen(_states(cells), seed=seed, threads=threads, epochs=epochs)


def _scgen_parameters(cells: Cells, settings: DenoiserSettings) -> int:
    from screpro.baselines.scgen import Vae

    return _size(Vae(cells.x.shape[1], 800, 2, 100, dropout=0.2))


def _perturbed(cells: Cells):
    """The cells, a random one of `PERTURBATIONS` single genes or control dealt out to each, and a random graph."""
    from screpro.data.gene_graph import GeneGraph
    from screpro.tasks.gene_perturbation import PerturbedCells

    rng = np.random.default_rng(0)
    genes = tuple(cells.genes)
    nodes = genes[: min(PERTURBATIONS, len(genes))]
    label = rng.integers(0, len(nodes) + 1, size=len(cells.cell_type))
    label[: len(nodes) + 1] = np.arange(len(nodes) + 1)[: len(label)]  # everyone occurs
    edges = sp.random(len(nodes), len(nodes), density=min(1.0, 20 / len(nodes)), format="csr", random_state=0)
    return PerturbedCells(cells.x, label, ("control", *nodes), genes, GeneGraph(nodes, edges, "random"))


def _gears(cells: Cells, *, epochs: int, seed: int, threads: int, settings: DenoiserSettings) -> None:
    from screpro.baselines.gears import gears

    gears(_perturbed(cells), predict=np.array([1, 2]), seed=seed, threads=threads, epochs=epochs)


def _gears_parameters(cells: Cells, settings: DenoiserSettings) -> int:
    from screpro.baselines.gears import Gears

    own, empty = _perturbed(cells), sp.csr_matrix((cells.x.shape[1],) * 2)
    return _size(Gears(empty, own.graph.weights, own.incidence))


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


METHODS: dict[str, Method] = {
    "scdiff": Method("scDiff", 0, _scdiff, lambda cells, settings: _size(_network(cells, settings))),
    "scanvi": Method("scANVI", 128, _scanvi, _scanvi_parameters),
    "dca": Method("DCA", 32, _dca, _dca_parameters),
    "scgen": Method("scGen", 32, _scgen, _scgen_parameters),
    "gears": Method("GEARS", 32, _gears, _gears_parameters),
}
"""By the name in result rows. scDiff's batch size is that of its settings."""


# --- time ---------------------------------------------------------------------------------------------------------


def seconds_per_epoch(
    train: Callable[[int], Any], *, extra: int, short: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one epoch: (a training of `short` + `extra` epochs minus one of `short`) / `extra`.

    Parameters
    ----------
    train
        Trains for the number of epochs it is given.
    extra
        Epochs between the two, at least one.
    clock
        Seconds since some moment.
    """
    if extra < 1 or short < 1:
        raise ScreproError("Epochs are whole numbers from 1.", got=f"short={short}, extra={extra}", fix="raise them")
    moments = [clock()]
    for epochs in (short, short + extra):
        train(epochs)
        moments.append(clock())
    first, second, third = moments
    return ((third - second) - (second - first)) / extra


def compare_costs(
    run: Run,
    cells: Cells,
    *,
    dataset: str,
    methods: Sequence[str],
    settings: dict[str, DenoiserSettings],
    seeds: Sequence[int],
    seconds: float,
    most: int,
    threads: int,
) -> None:
    """Time an epoch of every method, taking turns, once per seed; rows of Table 10 go to `run`.

    Parameters
    ----------
    settings
        scDiff's networks by the variant under which their rows are recorded; ``""`` is the one that decides.
    seconds
        How long a timed training may take beyond the first epoch; decides the number of epochs, 1 to `most`.
    """
    turns = [(name, variant) for name in methods for variant in (settings if name == "scdiff" else [""])]
    extra = {}
    for seed in seeds:
        for name, variant in turns:
            unit = {"dataset": dataset, "split": "all", "method": name, "seed": seed, "metric_variant": variant}
            if run.done(**unit, metric="seconds_per_epoch"):
                continue
            own = settings[variant]

            def train(epochs, name=name, own=own, seed=seed):
                METHODS[name].train(cells, epochs=epochs, seed=seed, threads=threads, settings=own)

            if (name, variant) not in extra:  # also the warm-up
                started = time.perf_counter()
                train(1)
                extra[name, variant] = int(np.clip(seconds / (time.perf_counter() - started), 1, most))
            value = seconds_per_epoch(train, extra=extra[name, variant])
            if value <= 0:  # a short epoch on a busy machine: longer is the only remedy
                value = seconds_per_epoch(train, extra=4 * extra[name, variant])
            n, n_genes = cells.x.shape
            row = {"item": "Table 10", "direction": "lower", "n_real": n, "n_genes": n_genes, **unit}
            run.add(**row, metric="seconds_per_epoch", value=value, unit="s")
            run.add(**row, metric="seconds_per_1000_cells", value=1000 * value / n, unit="s")
            if seed == seeds[0]:
                run.add(**row, metric="parameters", value=METHODS[name].parameters(cells, own))
                run.add(**row, metric="batch_size", value=METHODS[name].batch_size or own.batch_size, unit="cells")
                run.add(**row, metric="epochs_timed", value=extra[name, variant])
                count = multiply_adds(lambda: train(1)) / n
                run.add(**row, metric="multiply_adds", value=count, unit="per cell and epoch")


def multiply_adds(work: Callable[[], Any]) -> float:
    """Multiply-adds of all dense matrix products of `work`, in torch, forward and backward.

    Sums over stored entries (``embedding_bag``, sparse products) and elementwise operations are not counted.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def cost_per_cell(
    n_genes: int, n_cells: int, settings: DenoiserSettings, *, share: float = 0.1, steps: int = 3, seed: int = 0
) -> float:
    """Median seconds per cell of a pass of scDiff over `n_cells` random cells, in batches, optimiser included.

    Parameters
    ----------
    share
        Of the entries that are not zero.
    steps
        Timed passes, after one that is not.
    """
    rng = np.random.default_rng(seed)
    x = sp.random(n_cells, n_genes, density=share, format="csr", dtype=np.float32, random_state=rng)
    loss = DenoisingLoss(x, schedule=scaled_linear(), conditions={})
    model = denoiser.build(n_genes, settings, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    generator, rows = torch.Generator().manual_seed(seed), torch.arange(n_cells)
    taken = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        for part in rows.split(settings.batch_size):
            loss(model, part, generator).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[1:])) / n_cells


# --- memory of a process -------------------------------------------------------------------------------------------


def peak_memory(
    method: str, dataset: str, settings: DenoiserSettings, *, n_cells: int | None = None, threads: int = 1
) -> float | None:
    """Resident MiB that one epoch of `method` adds to a process that already holds the cells and the packages.

    Measured in a fresh process, after a warm-up on 64 cells; None where the system does not let a process reset its own
    high-water mark (anything but Linux).

    Parameters
    ----------
    dataset
        Registry name or path, loaded again in the new process.
    n_cells
        As for `timing_cells`.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    job = json.dumps([method, dataset, asdict(settings), n_cells, threads])
    done = subprocess.run([sys.executable, "-m", __name__, job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ScreproError(
            f"One epoch of {method} runs in a process of its own.", got=done.stderr[-300:], fix="run it in this one"
        )
    return json.loads(done.stdout.splitlines()[-1])


def timing_cells(labelled: Cells, n_cells: int | None = None) -> Cells:
    """Cells for timing: `n_cells` random ones (None: all), genes that they express, one batch.

    scANVI leaves out what nobody expresses; so everybody does.
    """
    rows = np.arange(len(labelled.cell_type))
    if n_cells is not None and n_cells < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, n_cells, replace=False))
    own = labelled.take(rows)
    seen = np.flatnonzero(own.counts.getnnz(axis=0) > 0)
    return Cells(
        own.counts[:, seen],
        own.x[:, seen],
        own.cell_type,
        np.zeros_like(own.cell_type),
        [own.genes[i] for i in seen],
    )


def _status(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def _measure(job: str) -> None:
    from screpro import data
    from screpro.data.preprocess import log_normalise
    from screpro.tasks.annotation import annotation_cells

    method, dataset, settings, n_cells, threads = json.loads(job)
    torch.set_num_threads(threads)
    cells = timing_cells(annotation_cells(log_normalise(data.load(dataset))).cells, n_cells)
    how = {"epochs": 1, "seed": 0, "threads": threads, "settings": DenoiserSettings(**settings)}
    METHODS[method].train(cells.take(np.arange(min(64, len(cells.cell_type)))), **how)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark starts again
    METHODS[method].train(cells, **how)
    print(json.dumps(max(0.0, _status("VmHWM") - before)))


if __name__ == "__main__":
    _measure(sys.argv[1])
