"""Drawing cells from a network: the same as calling the samplers with the network itself."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.errors import ScreproError
from screpro.processes.gaussian import scaled_linear
from screpro.samplers.ddim import ddim, quadratic
from screpro.samplers.ddpm import ancestral
from screpro.samplers.projected import Projection
from screpro.tasks.denoiser import SAMPLERS, DenoiserSettings, build, generate

SMALL = DenoiserSettings(width=8, depth=2, heads=2)


@pytest.fixture
def model():
    return build(11, SMALL, classes={"cell_type": 3, "state": 2}, n_batches=3, seed=1).eval()


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    context = sp.csr_matrix(rng.poisson(0.7, (7, 11)).astype(np.float32))
    return context, {"cell_type": rng.integers(0, 3, 7), "state": rng.integers(0, 2, 7)}, rng.integers(0, 3, 7)


@torch.no_grad()
@pytest.mark.parametrize(
    ("sampler", "nonnegative"),
    [("ddim", False), ("ddim", True), ("ddim quadratic", True), ("ancestral", True)],
)
def test_cells_are_those_of_the_chain_on_genes(model, given, monkeypatch, sampler, nonnegative):
    """With the noise drawn gene by gene, the same cells as the plain samplers called with the network itself."""
    context, labels, batch = given
    visible = torch.as_tensor(context.toarray())
    tensors = {name: torch.as_tensor(v) for name, v in labels.items()}

    def denoise(x, t):
        return model(x, t, context=visible, conditions=tensors, batch=torch.as_tensor(batch))

    shared = {"schedule": scaled_linear(), "generator": torch.Generator().manual_seed(5), "nonnegative": nonnegative}
    if sampler != "ancestral":
        how = {"times": quadratic, "eta": 1.0} if sampler == "ddim quadratic" else {}
        expected = ddim(denoise, (7, 11), **shared, steps=9, **how)
    else:
        expected = ancestral(denoise, (7, 11), **shared)

    def on_genes(projection, n, generator):
        return torch.randn(n, 11, generator=generator) @ projection.table

    monkeypatch.setattr(Projection, "noise", on_genes)
    ours = generate(
        model, context, conditions=labels, batch=batch, sampler=sampler, steps=9, nonnegative=nonnegative, seed=5
    )
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-3 if sampler == "ancestral" else 1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_decides_and_zero_is_the_floor(model, given, sampler):
    context, labels, batch = given
    run = [
        generate(model, context, conditions=labels, batch=batch, sampler=sampler, nonnegative=True, seed=s)
        for s in (0, 0, 1)
    ]
    assert run[0].shape == (7, 11) and run[0].min() >= 0
    assert (run[0] == run[1]).all() and (run[0] != run[2]).any()


def test_weights_follow_from_the_seed_alone():
    state = torch.get_rng_state()
    one, two, other = (build(5, SMALL, seed=seed).head.weight for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_wrong_requests_are_refused(model, given):
    context, labels, batch = given
    with pytest.raises(ScreproError, match="sampler"):
        generate(model, context, conditions=labels, batch=batch, sampler="euler", seed=0)
    with pytest.raises(ScreproError, match="ends at one of its time steps"):
        generate(model, context, conditions=labels, batch=batch, sampler="ddim", end=1000, seed=0)
    with pytest.raises(ScreproError, match="one label per row"):
        generate(model, context, conditions=labels, batch=batch[:3], seed=0)
