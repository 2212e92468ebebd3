import numpy as np
import pytest
import scipy.sparse as sp
import torch

pytest.importorskip("scvi")

from screpro.baselines import scvi_counts
from screpro.errors import ScreproError
from screpro.kernels.nb import nb_nll
from screpro.metrics.reconstruction import re_nb_nll


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(25, 0.5), size=2)
    kind = np.arange(193) % 2
    counts = rng.poisson(rng.integers(150, 400, 193)[:, None] * shares[kind])
    return sp.csr_matrix(counts.astype(np.float32)), kind


@pytest.fixture(scope="module")
def model(cells):
    # 129 cells in batches of 32 leave one over
    return scvi_counts.fit(
        cells[0][:129], seed=0, epochs=25, batch_size=32, learning_rate=5e-3, n_latent=3, n_hidden=32
    )


def test_its_likelihood_is_the_packages_own(cells, model):
    counts = cells[0][129:]
    mean, theta = model.reconstruct(counts)
    z = torch.from_numpy(model.encode(counts))
    totals = torch.from_numpy(np.asarray(counts.sum(1), dtype=np.float32).ravel())
    x = torch.from_numpy(counts.toarray())
    with torch.no_grad():
        law = model.module.generative(z, totals.log()[:, None], torch.zeros(len(z), 1))["px"]
        theirs = -law.log_prob(x).sum(1)
    ours = nb_nll(x.double(), torch.from_numpy(mean).double(), torch.from_numpy(theta).double())
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(mean.sum(1), totals, rtol=1e-4)


def test_it_learns_what_tells_the_types_apart(cells, model):
    counts, kind = cells
    profiles = np.stack([np.asarray(counts[:129][kind[:129] == k].mean(0)).ravel() for k in (0, 1)])
    profiles /= profiles.sum(1, keepdims=True)
    mean, theta = model.reconstruct(counts[129:])
    share = mean / mean.sum(1, keepdims=True)
    distance = np.abs(share[:, None] - profiles).sum(2)
    assert (distance.argmin(1) == kind[129:]).mean() > 0.9
    one_profile = np.tile(np.asarray(counts[:129].mean(0)), (64, 1))
    assert re_nb_nll(counts[129:], mean, theta) < re_nb_nll(counts[129:], one_profile + 1e-3, theta)


def test_new_cells_come_from_the_prior(model):
    library = np.full(400, 300.0, dtype=np.float32)
    drawn = model.draw(library, seed=3, batch=128)
    assert drawn.shape == (400, 25) and drawn.dtype == np.int32
    assert (drawn != model.draw(library, seed=3, batch=128)).nnz == 0
    assert (drawn != model.draw(library, seed=4, batch=128)).nnz > 0
    assert abs(drawn.sum(1).mean() / 300 - 1) < 0.05
    z = torch.randn((20000, 3), generator=torch.Generator().manual_seed(0))
    expected = model.decode(z, torch.full((20000,), 300.0))[0].mean(0).numpy()
    spread = np.asarray(drawn.multiply(drawn).mean(0)).ravel() - np.asarray(drawn.mean(0)).ravel() ** 2
    error = np.sqrt(spread / 400) + 0.02
    assert (np.abs(np.asarray(drawn.mean(0)).ravel() - expected) < 5 * error).all()


def test_labels_reach_the_decoder_and_are_checked(cells):
    counts, kind = cells
    model = scvi_counts.fit(
        counts[:128], labels=kind[:128], n_labels=3, seed=0, epochs=40, batch_size=32, n_latent=2, n_hidden=32
    )
    library = np.full(200, 300.0, dtype=np.float32)
    drawn = [model.draw(library, labels=np.full(200, label), seed=0).mean(0) for label in (0, 1)]
    for label in (0, 1):
        own = np.asarray(counts[kind == label].mean(0)).ravel()
        own = own / own.sum()
        shares = [np.asarray(mean).ravel() / mean.sum() for mean in drawn]
        assert np.abs(shares[label] - own).sum() < np.abs(shares[1 - label] - own).sum()
    for wrong in (None, np.full(200, 3), np.zeros(3, dtype=int)):
        with pytest.raises(ScreproError, match="labels"):
            model.draw(library, labels=wrong, seed=0)


def test_bad_input_is_refused_before_training(cells):
    with pytest.raises(ScreproError, match="at least one count"):
        scvi_counts.fit(sp.csr_matrix((3, 4)), seed=0)
    with pytest.raises(ScreproError, match="one label per cell"):
        scvi_counts.fit(cells[0], labels=np.zeros(2, dtype=int), seed=0)
