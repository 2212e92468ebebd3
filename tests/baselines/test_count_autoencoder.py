import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.baselines import count_autoencoder
from screpro.errors import ScreproError
from screpro.kernels.nb import nb_nll
from screpro.metrics.reconstruction import re_nb_nll

SMALL = {"hidden": (32,), "latent": 4, "epochs": 30, "batch_size": 32, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def two_types():
    """Cells of two types with profiles far apart, and the true mean of each."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(30, 0.5), size=2)
    kind = np.arange(161) % 2
    mean = rng.integers(150, 400, 161)[:, None] * shares[kind]
    return sp.csr_matrix(rng.poisson(mean).astype(np.float32)), mean


@pytest.fixture(scope="module")
def model(two_types):
    # 129 cells in batches of 32: the last batch has one cell, which batch normalisation cannot take alone
    return count_autoencoder.fit(two_types[0][:129], seed=0, **SMALL)


def test_it_learns_what_tells_the_types_apart(two_types, model):
    counts, true_mean = two_types
    test = counts[129:]
    mean, theta = model.reconstruct(test)
    one_profile = np.tile(np.asarray(counts[:129].mean(0)), (test.shape[0], 1))
    found, floor = re_nb_nll(test, mean, theta), re_nb_nll(test, one_profile + 1e-3, np.full(30, 5.0))
    best = re_nb_nll(test, true_mean[129:], np.full(30, 1e6))
    assert best - 3 < found < best + 0.3 * (floor - best)
    assert model.history.losses[-1] < model.history.losses[0] and not model.training


def test_mean_is_a_share_of_the_library(two_types, model):
    z = model.encode(two_types[0][:5])
    assert z.shape == (5, 4)
    with torch.no_grad():
        mean, theta = model.decode(z, torch.tensor([1.0, 10, 100, 1000, 0]))
    torch.testing.assert_close(mean.sum(1), torch.tensor([1.0, 10, 100, 1000, 0]))
    assert theta.shape == (30,) and (theta > 0).all()


def test_the_loss_is_the_textbook_likelihood_of_the_decoded_mean(two_types, model):
    x = torch.from_numpy(two_types[0][:7].toarray())
    with torch.no_grad():
        mean, theta = model.decode(model(x), x.sum(1))
        torch.testing.assert_close(model.nll(x), nb_nll(x.double(), mean.double(), theta).float(), rtol=1e-4, atol=1e-3)


def test_encoding_depends_neither_on_batches_nor_on_storage(two_types, model):
    counts = two_types[0][:20]
    whole = model.encode(counts)
    for same in (
        model.encode(counts, batch=3),
        model.encode(counts.toarray()),
        model.encode(torch.tensor(counts.toarray())),
    ):
        torch.testing.assert_close(whole, same)


def test_a_seed_fixes_the_weights(two_types):
    short = SMALL | {"epochs": 1}
    first, again, other = (count_autoencoder.fit(two_types[0][:64], seed=seed, **short) for seed in (1, 1, 2))
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)
    assert not torch.equal(first.encoder[0].weight, other.encoder[0].weight)


def test_gaussian_form_answers_log_expression(two_types):
    counts = two_types[0]
    model = count_autoencoder.fit(counts[:128], seed=0, **SMALL, likelihood="gaussian")
    x = torch.from_numpy(counts[128:].toarray())
    truth = torch.log1p(x * (1e4 / x.sum(1, keepdim=True)))
    with torch.no_grad():
        z = model.encode(counts[128:])
        raw, answer = model.decoder(z), model.expression(z)
        torch.testing.assert_close(model.nll(x), 0.5 * (raw - truth).square().sum(1), rtol=1e-4, atol=1e-3)
    assert (answer >= 0).all()
    floor = (truth - truth.mean(0)).square().mean()
    assert (answer - truth).square().mean() < 0.5 * floor
    with pytest.raises(ScreproError, match="negative-binomial"):
        model.decode(z, x.sum(1))
    nb = count_autoencoder.fit(counts[:64], seed=0, **(SMALL | {"epochs": 1}))
    with torch.no_grad():  # of the other form: the logarithm of its mean per 10 000
        z = nb.encode(counts[:3])
        torch.testing.assert_close(nb.expression(z), torch.log1p(nb.decode(z, torch.full((3,), 1e4))[0]))


def test_published_sizes_are_the_defaults():
    shapes = [tuple(p.shape) for p in count_autoencoder.CountAutoEncoder(
        40, hidden=(512, 256), latent=50, likelihood="nb").parameters() if p.ndim == 2]  # fmt: skip
    assert shapes == [(512, 40), (256, 512), (50, 256), (256, 50), (512, 256), (40, 512)]
    defaults = count_autoencoder.fit.__kwdefaults__
    assert (defaults["hidden"], defaults["latent"]) == ((512, 256), 50)


@pytest.mark.parametrize(
    "counts, options, message",
    [
        (np.array([[1, 0], [0, 0]]), {}, "at least one count"),
        (np.array([[1, 0]]), {}, "two cells"),
        (np.ones((4, 2)), {"likelihood": "poisson"}, "gaussian"),
        (np.ones((4, 2)), {"latent": 0}, "at least one unit"),
    ],
)
def test_bad_input_is_refused(counts, options, message):
    with pytest.raises(ScreproError, match=message):
        count_autoencoder.fit(sp.csr_matrix(counts), seed=0, **options)
