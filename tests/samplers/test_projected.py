"""Chains in the network's own dimensions are the chains on genes, noise for noise."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.errors import ScreproError
from screpro.models.blocks import time_embedding
from screpro.models.scdiff import ScDiff, ScDiffConfig
from screpro.processes.gaussian import Schedule, scaled_linear
from screpro.samplers import inpainting
from screpro.samplers.ddim import ddim, quadratic
from screpro.samplers.ddpm import ancestral
from screpro.samplers.projected import Projection, ancestral_steps, ddim_steps, projected

B = 5


def network(n_genes, width=8):
    torch.manual_seed(n_genes)
    return ScDiff(ScDiffConfig(n_genes=n_genes, width=width, depth=2, heads=2, classes={"kind": 3}, n_batches=2)).eval()


def short(steps=12) -> Schedule:
    return scaled_linear(steps, first=1e-3, last=0.5)


@pytest.fixture(params=[5, 40], ids=["fewer genes than width", "more genes"])
def setup(request):
    model = network(request.param)
    context = (torch.rand(B, request.param) * (torch.rand(B, request.param) < 0.5)).float()
    labels, batch = {"kind": torch.randint(3, (B,))}, torch.randint(2, (B,))
    return model, context, labels, batch


def on_genes(model, context, labels, batch):
    return lambda x, t: model(x, t, context=context, conditions=labels, batch=batch)


def between(model, context, labels, batch):
    tokens = model.condition_tokens(context, labels)

    def answer(y, t):
        h = model.embedder.after_table(y) + time_embedding(t, model.config.width)
        return model.with_batch(model.encode(h, tokens), batch)

    return answer


@torch.no_grad()
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("kind", ["ancestral", "ddim", "ddim with noise"])
def test_the_same_noise_gives_the_same_cells(setup, kind, nonnegative):
    model, n_genes, schedule = setup[0], setup[1].shape[1], short()
    generator = torch.Generator().manual_seed(3)
    shared = {"schedule": schedule, "generator": generator, "nonnegative": nonnegative}
    dense = on_genes(*setup)
    how = {"times": quadratic, "eta": 0.7} if kind == "ddim with noise" else {}
    whole = (
        ancestral(dense, (B, n_genes), **shared)
        if kind == "ancestral"
        else ddim(dense, (B, n_genes), **shared, steps=6, **how)
    )
    generator.manual_seed(3)
    projection = Projection(model.embedder.table, model.head, nonnegative=nonnegative)
    steps = ancestral_steps(schedule) if kind == "ancestral" else ddim_steps(schedule, 6, **how)
    noise = lambda: torch.randn(B, n_genes, generator=generator) @ model.embedder.table  # noqa: E731
    h = projected(between(*setup), projection, steps, n=B, noise=noise)
    torch.testing.assert_close(projection.cells(h), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_noise_has_the_covariance_of_projected_noise(setup):
    model = setup[0]
    projection = Projection(model.embedder.table, model.head)
    wanted = model.embedder.table.T @ model.embedder.table
    torch.testing.assert_close(projection.root.T @ projection.root, wanted, rtol=1e-4, atol=1e-8)
    drawn = projection.noise(40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), wanted, rtol=0, atol=0.04 * float(wanted.diagonal().max()))


def masks(context):
    shown = torch.rand(context.shape) < 0.8
    shown[0] = True  # a cell with nothing hidden
    hidden = sp.csr_matrix((~shown).numpy())
    return context * shown, hidden


@torch.no_grad()
def test_inpainting_is_overwriting_the_visible_genes_in_every_step(setup, monkeypatch):
    model, context, labels, batch = setup
    visible, hidden = masks(context)
    mask, schedule = torch.as_tensor(hidden.toarray()), short()
    noises = [torch.randn(B, context.shape[1]) for _ in range(2 * schedule.steps)]

    # on genes: noise of the posterior step, then a forward sample at the level just left
    feed = iter(noises)
    x = next(feed)
    for t in range(schedule.steps - 1, -1, -1):
        times = torch.full((B,), t)
        mean, variance = schedule.posterior(on_genes(model, visible, labels, batch)(x, times), x, times)
        if t == 0:
            break
        eps = next(feed)
        x = torch.where(mask, mean + variance.sqrt() * eps, schedule.diffuse(visible, times, eps))
    expected = mean[mask]

    # the same noise, split into the visible part (projected) and the hidden one
    feed, current = iter(noises), {}

    def hidden_noise(self):
        current["eps"] = next(feed)
        return current["eps"][mask]

    def visible_noise(self):
        if "eps" not in current:
            current["eps"] = noises[0]
        return (current["eps"] * ~mask) @ model.embedder.table

    monkeypatch.setattr(inpainting._Part, "hidden_noise", hidden_noise)
    monkeypatch.setattr(inpainting._Part, "visible_noise", visible_noise)
    part = inpainting._Part(
        model, Projection(model.embedder.table, model.head), visible, hidden, labels, batch, torch.Generator()
    )
    torch.testing.assert_close(part.run(schedule, ""), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_noise_of_the_visible_genes_has_their_covariance():
    model, context = network(40), torch.rand(B, 40)
    visible, hidden = masks(context)
    part = inpainting._Part(
        model, Projection(model.embedder.table, model.head), visible, hidden, {"kind": torch.zeros(B).long()},
        torch.zeros(B).long(), torch.Generator(),
    )  # fmt: skip
    seen = torch.as_tensor(1 - hidden.toarray().astype(np.float32))
    wanted = torch.einsum("bg,gd,ge->bde", seen, model.embedder.table, model.embedder.table)
    torch.testing.assert_close(part.factor @ part.factor.mT, wanted, rtol=1e-3, atol=1e-7)


def test_answers_stand_in_the_order_of_the_mask_and_follow_from_the_seed(monkeypatch):
    model, context = network(40), torch.rand(B, 40)
    visible, hidden = masks(context)
    visible, zeros = sp.csr_matrix(visible.numpy()), np.zeros(B, dtype=int)
    monkeypatch.setattr(inpainting, "scaled_linear", short)
    run = [
        inpainting.inpaint(model, visible, hidden, conditions={"kind": zeros}, batch=zeros, seed=s) for s in (0, 0, 1)
    ]
    assert run[0].shape == (hidden.nnz,) and np.isfinite(run[0]).all()
    assert (run[0] == run[1]).all() and (run[0] != run[2]).any()
    monkeypatch.setattr(inpainting, "KEPT", 2 * 8 * 20)  # two cells at a time
    parts = inpainting.inpaint(model, visible, hidden, conditions={"kind": zeros}, batch=zeros, seed=0)
    assert parts.shape == run[0].shape and np.isfinite(parts).all()


def test_hidden_entries_may_not_be_visible():
    model, x = network(40), sp.csr_matrix(np.ones((B, 40), dtype=np.float32))
    zeros = np.zeros(B, dtype=int)
    with pytest.raises(ScreproError, match="zero in what is visible"):
        inpainting.inpaint(model, x, x, conditions={"kind": zeros}, batch=zeros, seed=0)
    with pytest.raises(ScreproError, match="one shape"):
        inpainting.inpaint(model, x, x[:2], conditions={"kind": zeros}, batch=zeros, seed=0)
