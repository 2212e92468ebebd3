"""Costs against what is known without measuring: a given clock, products of known size, tensors counted one by one."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro import records
from screpro.errors import ScreproError
from screpro.models.scdiff import ScDiff, ScDiffConfig
from screpro.tasks.cells import Cells
from screpro.tasks.denoiser import DenoiserSettings
from screpro.tasks.efficiency import (
    METHODS,
    compare_costs,
    cost_per_cell,
    multiply_adds,
    seconds_per_epoch,
    timing_cells,
)
from screpro.tasks.training_memory import cuda_peak, plain_step, saved_bytes, training_memory

SMALL = DenoiserSettings(width=8, depth=2, heads=2, batch_size=16)


def test_seconds_are_those_of_the_epochs_between():
    """A clock that only training moves: 7 s once, 3 s an epoch."""
    now = 0.0

    def train(epochs):
        nonlocal now
        now += 7 + 3 * epochs

    assert seconds_per_epoch(train, extra=4, clock=lambda: now) == pytest.approx(3)
    with pytest.raises(ScreproError, match="whole numbers"):
        seconds_per_epoch(train, extra=0)


def test_multiply_adds_of_a_product_and_its_gradient():
    a, b = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    assert multiply_adds(lambda: a @ b) == 3 * 5 * 7
    assert multiply_adds(lambda: (a @ b).sum().backward()) == 3 * 3 * 5 * 7


def test_saved_bytes_counts_storages_once_and_no_parameter():
    weight = torch.ones(5, 7, requires_grad=True)
    x = torch.ones(3, 5)
    assert saved_bytes(lambda: x @ weight, [weight]) == 3 * 5 * 4
    assert saved_bytes(lambda: (x @ weight) * (x[:, :1] @ weight[:1]), [weight]) == (15 + 21 + 21) * 4


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("n_genes", "cells", "width", "depth", "heads", "classes", "n_batches"),
    [(30, 7, 8, 1, 2, [], 0), (50, 9, 16, 3, 4, [5], 0), (41, 5, 24, 2, 3, [5, 3], 4), (300, 64, 32, 4, 8, [12], 6)],
)
def test_memory_formula_is_what_is_kept(n_genes, cells, width, depth, heads, classes, n_batches, device):
    with torch.device(device):
        names = {str(i): rows for i, rows in enumerate(classes)}
        model = ScDiff(ScDiffConfig(n_genes, width, depth, heads, classes=names, n_batches=n_batches))
    memory = training_memory(
        n_genes, cells, width=width, depth=depth, heads=heads, classes=classes, n_batches=n_batches
    )
    assert memory.activations == saved_bytes(plain_step(model, cells, device), list(model.parameters()))
    assert memory.parameters == sum(p.numel() * p.element_size() for p in model.parameters())


def test_memory_of_optimiser_and_gradients_is_what_they_hold():
    model = ScDiff(ScDiffConfig(30, 8, 1, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    plain_step(model, 7)().backward()
    optimizer.step()
    memory = training_memory(30, 7, width=8, depth=1, heads=2)
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters())
    moments = sum(
        value.nbytes for state in optimizer.state.values() for key, value in state.items() if key.startswith("exp_avg")
    )
    assert memory.moments == moments
    assert memory.total == sum(memory)


def test_paper_network_has_the_size_it_is_said_to_have():
    """About 26.81 M numbers and 1 537 per gene, condition tables aside."""
    memory = training_memory(28_024, 2_048, width=512, depth=6, heads=8)
    assert memory.parameters / 4 == pytest.approx(26.81e6 + 1537 * 28_024, rel=1e-3)


def cells_of(rng, n=60, genes=40) -> Cells:
    counts = sp.csr_matrix((rng.poisson(1.0, size=(n, genes)) * (np.arange(genes) != 3)).astype(np.float32))
    kind = np.arange(n, dtype=np.int64) % 3
    names = [f"g{i}" for i in range(genes)]
    return Cells(counts, counts.log1p(), kind, np.arange(n, dtype=np.int64) % 2, names)


def test_timing_cells_have_expressed_genes_and_one_batch(rng):
    cells = timing_cells(cells_of(rng))
    assert cells.x.shape == (60, 39) and "g3" not in cells.genes and not cells.batch.any()
    few = timing_cells(cells_of(rng), 10)
    assert few.x.shape[0] == 10 and few.counts.getnnz(axis=0).min() > 0


@pytest.mark.parametrize("name", ["scdiff", "dca", "scgen", "gears"])
def test_every_method_trains_and_has_a_size(name, rng):
    cells = timing_cells(cells_of(rng))
    METHODS[name].train(cells, epochs=1, seed=0, threads=1, settings=SMALL)
    assert METHODS[name].parameters(cells, SMALL) > 0


def test_comparison_leaves_a_row_of_each_cost(rng, tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "a-run")
    run = records.start("scdiff/efficiency", tier="ci")
    cells = timing_cells(cells_of(rng))
    how = {"dataset": "toy", "methods": ["scdiff"], "seeds": [0, 1], "seconds": 0.1, "most": 2, "threads": 1}
    compare_costs(run, cells, settings={"": SMALL, "wide": SMALL}, **how)
    rows = run.frame()
    assert len(rows[rows["metric"] == "seconds_per_epoch"]) == 4
    assert set(rows["metric_variant"]) == {"", "wide"}
    assert (rows["value"] > 0).all()
    compare_costs(run, cells, settings={"": SMALL, "wide": SMALL}, **how)
    assert len(run.frame()) == len(rows)


def test_cost_per_cell_is_a_time():
    assert 0 < cost_per_cell(50, 20, SMALL, steps=1) < 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_gpu_memory_needs_a_gpu():
    with pytest.raises(ScreproError, match="measured on a GPU"):
        cuda_peak(SMALL, 20)
