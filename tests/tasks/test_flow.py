"""Latent flow: training on latents of a known law, sampling, counts of a known law, the whole generator."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.errors import ScreproError
from screpro.tasks.autoencoder import AutoEncoderSettings, build
from screpro.tasks.flow import FlowSettings, Generator, decode_counts, nb_counts, sample_latents, train_flow
from screpro.tasks.library_size import LibrarySizes

SMALL = FlowSettings(width=16, layers=1, heads=2, steps=300, batch_size=64, learning_rate=5e-3)


class Exact(torch.nn.Module):
    """The velocity of latents N(mean_label, 1); the null label has mean 0."""

    def __init__(self):
        super().__init__()
        self.means = torch.nn.Parameter(torch.tensor([3.0, -2.0, 0.0]))

    def forward(self, z, t, labels=None):
        label = (labels or {}).get("cell", torch.full((len(z),), -1))
        mean, t = self.means[label][:, None, None], t[:, None, None]
        return mean + (2 * t - 1) / (t**2 + (1 - t) ** 2) * (z - t * mean)


def test_training_learns_the_means_of_labels():
    rng = torch.Generator().manual_seed(0)
    label = torch.arange(400) % 2
    latents = torch.tensor([3.0, -2.0])[label][:, None, None] + 0.3 * torch.randn(400, 2, 3, generator=rng)
    flow = train_flow(latents, {"cell": label.numpy()}, SMALL, classes={"cell": 2}, seed=0)
    assert flow.fit.losses[-1] < flow.fit.losses[0] / 2
    drawn = sample_latents(flow.network, {"cell": np.array([0, 1] * 50)}, n=100, shape=(2, 3), seed=0)
    assert drawn[::2].mean().item() == pytest.approx(3, abs=0.5)
    assert drawn[1::2].mean().item() == pytest.approx(-2, abs=0.5)
    assert drawn[::2].std() < 0.8
    # without labels both kinds come
    free = sample_latents(flow.network, {"cell": np.zeros(200, int)}, n=200, shape=(2, 3), weight=0, seed=0).mean(
        (1, 2)
    )
    assert 0.25 < float((free > 0.5).float().mean()) < 0.75


def test_steps_are_epochs_of_the_cells():
    latents = torch.randn(100, 2, 3, generator=torch.Generator().manual_seed(0))
    settings = FlowSettings(width=8, layers=1, heads=2, steps=20, batch_size=50)
    assert train_flow(latents, {}, settings, classes={}, seed=0).fit.steps == 20
    networks = [train_flow(latents, {}, settings, classes={}, seed=seed).network.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert not torch.equal(networks[0]["enter.weight"], networks[2]["enter.weight"])


@pytest.mark.parametrize("strategy", ["joint", "additive"])
@pytest.mark.parametrize(("weight", "means"), [(0.0, (0, 0)), (1.0, (3, -2)), (2.0, (6, -4))])
def test_sampling_with_an_exact_velocity(strategy, weight, means):
    """All three laws have unit variance, so guidance moves the mean in proportion to the weight."""
    labels = {"cell": np.repeat([0, 1], 2000)}
    z = sample_latents(Exact(), labels, n=4000, shape=(1, 1), weight=weight, strategy=strategy, steps=60, seed=0)
    for k, mean in enumerate(means):
        own = z[k * 2000 : (k + 1) * 2000]
        assert own.mean().item() == pytest.approx(mean, abs=0.1) and own.std().item() == pytest.approx(1, abs=0.06)


def test_batches_do_not_change_a_sample():
    labels = {"cell": np.array([0, 1, 1, 0, 1])}
    parts = [sample_latents(Exact(), labels, n=5, shape=(2, 3), seed=0, batch=b) for b in (2, 5)]
    torch.testing.assert_close(parts[0], parts[1])
    other = sample_latents(Exact(), labels, n=5, shape=(2, 3), seed=1)
    assert not torch.allclose(other, parts[0])
    assert sample_latents(Exact(), {"cell": np.zeros(0, int)}, n=0, shape=(2, 3), seed=0).shape == (0, 2, 3)


def test_counts_have_the_moments_of_the_law():
    rng = np.random.default_rng(0)
    mean, theta = np.array([0.2, 2.0, 30.0]), np.array([0.5, 2.0, 5.0])
    x = nb_counts(np.tile(mean, (60_000, 1)), theta, rng=rng)
    assert x.dtype == np.int32
    np.testing.assert_allclose(x.mean(0), mean, rtol=0.04)
    np.testing.assert_allclose(x.var(0), mean + mean**2 / theta, rtol=0.06)
    np.testing.assert_allclose((x == 0).mean(0), (theta / (theta + mean)) ** theta, atol=0.01)
    per_cell = nb_counts(np.full((2, 60_000), 4.0), np.repeat([[0.5], [50.0]], 60_000, 1), rng=rng)
    np.testing.assert_allclose(per_cell.var(1), [4 + 16 / 0.5, 4 + 16 / 50], rtol=0.06)
    assert (nb_counts(np.zeros((3, 4)), np.ones(4), rng=rng) == 0).all()


def test_decoded_counts_are_in_order_and_reach_the_library():
    def decode(z, size):
        share = torch.softmax(z[:, 0], -1)
        return size[:, None] * share, torch.full((4,), 1e4)

    z = torch.zeros(50, 1, 4)
    z[:, 0, 2] = 3.0
    library = np.linspace(100, 5000, 50)
    x = decode_counts(decode, z, library, rng=np.random.default_rng(0), batch=7)
    assert sp.issparse(x) and x.shape == (50, 4)
    np.testing.assert_allclose(np.asarray(x.sum(1)).ravel(), library, rtol=0.4)
    assert np.corrcoef(np.asarray(x.sum(1)).ravel(), library)[0, 1] > 0.99
    assert np.asarray(x.mean(0)).argmax() == 2


def test_a_generator_draws_whole_cells():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(1.0, (60, 12)).astype(np.float32) + np.eye(60, 12, dtype=np.float32))
    settings = AutoEncoderSettings(width=8, tokens=2, channels=3, layers=1, heads=2, cross_heads=2)
    label = np.arange(60) % 2
    totals = np.asarray(counts.sum(1)).ravel() * np.where(label, 20, 1)
    library = LibrarySizes.fit(totals, {"cell": label})
    generator = Generator(build(counts, settings, seed=0), Exact(), library)
    asked = {"cell": np.repeat([0, 1], 30)}
    cells = generator.draw(asked, steps=4, seed=0)
    assert cells.shape == (60, 12) and cells.dtype == np.int32
    size = np.asarray(cells.sum(1)).ravel()
    assert size[30:].mean() > 8 * size[:30].mean()  # conditional: the label's own library size
    again, free = generator.draw(asked, steps=4, seed=0), generator.draw(asked, weight=0, steps=4, seed=0)
    assert (cells != again).nnz == 0
    size = np.asarray(free.sum(1)).ravel()
    assert 0.3 < size[30:].mean() / size[:30].mean() < 3  # unconditional: one pooled law


def test_wrong_input_is_explained():
    latents = torch.zeros(10, 2, 3)
    with pytest.raises(ScreproError, match="labels and their number"):
        train_flow(latents, {"cell": np.zeros(10, int)}, SMALL, classes={}, seed=0)
    with pytest.raises(ScreproError, match="strategy"):
        sample_latents(Exact(), {"cell": np.zeros(2, int)}, n=2, shape=(1, 1), strategy="both", seed=0)
