"""The fused losses against the definition, values and gradients."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.losses import DenoisingLoss, linear_squared_error
from screpro.models.scdiff import ScDiff, ScDiffConfig
from screpro.processes.gaussian import scaled_linear
from screpro.sparse import SparseCells, matmul


@given(st.integers(1, 9), st.integers(1, 33), st.integers(1, 7), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_sparse_products(n, genes, width, density, seed):
    rng = np.random.default_rng(seed)
    dense = (rng.random((n, genes)) < density) * rng.normal(size=(n, genes))
    cells = SparseCells.from_scipy(sp.csr_matrix(dense, dtype=np.float32))
    table = torch.randn(genes, width, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    weights = torch.randn(n, width, generator=torch.Generator().manual_seed(seed + 1))
    reference = torch.as_tensor(dense, dtype=torch.float32) @ table
    (expected,) = torch.autograd.grad((reference * weights).sum(), table)
    product = matmul(cells.matrix(), table)
    (ours,) = torch.autograd.grad((product * weights).sum(), table)
    torch.testing.assert_close(product, reference, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cells.cells, torch.as_tensor(np.nonzero(dense)[0]))


@pytest.mark.parametrize("n", [1, 23])
def test_linear_squared_error(sparse_cells, n):
    generator = torch.Generator().manual_seed(0)
    x = sparse_cells[:n]
    h, weight = torch.randn(n, 5, generator=generator), torch.randn(31, 5, generator=generator)
    bias, pull = torch.randn(31, generator=generator), torch.randn(n, generator=generator)
    given_ = [a.clone().requires_grad_() for a in (h, weight, bias)]
    error = linear_squared_error(*given_, SparseCells.from_scipy(x).matrix())
    ours = torch.autograd.grad((error * pull).sum(), given_)
    plain = [a.clone().double().requires_grad_() for a in (h, weight, bias)]
    residual = plain[0] @ plain[1].T + plain[2] - torch.as_tensor(x.toarray()).double()
    reference = (residual**2).sum(1)
    expected = torch.autograd.grad((reference * pull.double()).sum(), plain)
    torch.testing.assert_close(error.double(), reference, rtol=1e-5, atol=1e-4)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-3)


def test_denoising_error_is_the_networks(sparse_cells):
    """Value and every gradient equal those of calling the network and squaring the residual (eq. 9)."""
    n = sparse_cells.shape[0]
    torch.manual_seed(3)
    model = ScDiff(ScDiffConfig(n_genes=31, width=8, depth=2, heads=2, classes={"cell_type": 4}, n_batches=3))
    schedule, cells = scaled_linear(), SparseCells.from_scipy(sparse_cells)
    t, noise = torch.randint(1000, (n,)), torch.randn(n, 31)
    labels, batch = torch.randint(4, (n,)), torch.randint(3, (n,))
    x0 = torch.as_tensor(sparse_cells.toarray())
    hidden = torch.rand(n, 31) < 0.5
    context = cells.matrix(cells.values * ~hidden[cells.cells, cells.genes])

    shared = {"conditions": {"cell_type": labels}, "batch": batch}
    ours = model.denoising_error(cells, t, noise, schedule=schedule, context=context, **shared)
    predicted = model(schedule.diffuse(x0, t, noise), t, context=x0, hidden=hidden, **shared)
    reference = ((predicted - x0) ** 2).mean(1)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    for one, other, name in zip(
        torch.autograd.grad(ours.mean(), model.parameters()),
        torch.autograd.grad(reference.mean(), model.parameters()),
        [name for name, _ in model.named_parameters()],
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


class Recorder:
    """Stands in for the network and keeps what the loss asks of it."""

    def __init__(self):
        self.calls = []

    def denoising_error(self, cells, t, noise, **given_):
        self.calls.append((cells, t, noise.clone(), given_))
        return torch.zeros(cells.shape[0])


def test_what_training_draws():
    """Protocol 2.2: uniform steps, standard normal noise, a quarter of contexts empty, a tenth of labels null."""
    n, genes = 4000, 6
    x = sp.csr_matrix(np.ones((n, genes)), dtype=np.float32)
    loss = DenoisingLoss(
        x,
        schedule=scaled_linear(),
        conditions={"cell_type": np.ones(n, dtype=int), "state": np.ones(n, dtype=int)},
        batch=np.full(n, 2),
        drop={"cell_type": 0.1, "batch": 0.1},
    )
    model = Recorder()
    loss(model, torch.arange(n), torch.Generator().manual_seed(0))
    _, t, noise, given_ = model.calls[0]
    assert t.min() >= 0 and t.max() <= 999
    assert t.double().mean().item() == pytest.approx(499.5, abs=5 * 289 / n**0.5)
    assert noise.mean().item() == pytest.approx(0, abs=5 / (n * genes) ** 0.5)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    seen = given_["context"].values.view(n, genes).mean(1)
    # hidden share r uniform: a cell shows on average (1 - 1/4) * 1/2; empty for sure in a quarter, else (1 - r)^G
    assert seen.mean().item() == pytest.approx(0.375, abs=0.02)
    assert (seen == 0).double().mean().item() == pytest.approx(0.25 + 0.75 / (genes + 1), abs=0.03)
    for label, null in ((given_["conditions"]["cell_type"], 0.1), (given_["conditions"]["state"], 0.0)):
        assert (label == 0).double().mean().item() == pytest.approx(null, abs=0.02)
    assert (given_["batch"] == 0).double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert set(given_["batch"].tolist()) == {0, 2}


def test_another_cell_as_context():
    """A perturbed cell is learned from a control cell: what is visible comes from the control, the target does not."""
    target = sp.csr_matrix(np.full((50, 4), 2.0), dtype=np.float32)
    control = sp.csr_matrix(np.tile([0.0, 7.0, 0.0, 7.0], (50, 1)), dtype=np.float32)
    loss = DenoisingLoss(target, context=control, schedule=scaled_linear(), conditions={}, empty_context=0.0)
    model = Recorder()
    loss(model, torch.arange(50), torch.Generator().manual_seed(0))
    cells, _, _, given_ = model.calls[0]
    assert (cells.matrix().dense == 2).all()
    context = given_["context"].dense
    assert set(context.unique().tolist()) == {0.0, 7.0}
    assert (context[:, [0, 2]] == 0).all() and 0.3 < (context[:, [1, 3]] == 7).float().mean() < 0.7
