"""Training scLDM's auto-encoder and reading it: moments, seeds, batches, both inputs, errors."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.errors import ScreproError
from screpro.metrics.reconstruction import re_nb_nll
from screpro.tasks.autoencoder import (
    AutoEncoderSettings,
    ReconstructionLoss,
    batch_of,
    build,
    encode,
    moments_theta,
    nll,
    reconstruct,
    start_theta,
    train,
)

SMALL = AutoEncoderSettings(
    width=8, tokens=2, channels=4, layers=1, heads=2, cross_heads=2, epochs=45, batch_size=8, learning_rate=4e-3
)


def two_kinds(n=40, genes=17, seed=0) -> sp.csr_matrix:
    """Cells of two kinds that express different halves of the genes."""
    rng = np.random.default_rng(seed)
    rate = np.where((np.arange(genes) < genes // 2) == (np.arange(n)[:, None] % 2 == 0), 3.0, 0.1)
    return sp.csr_matrix(rng.poisson(rate).astype(np.float32) + np.eye(n, genes, dtype=np.float32))


@pytest.mark.parametrize("changes", [{}, {"inputs": "all"}])
def test_training_tells_two_kinds_apart(changes):
    """Better than the best constant answer, the mean cell, on cells it has not seen."""
    counts, new = two_kinds(), two_kinds(seed=1)
    trained = train(counts, replace(SMALL, **changes), seed=0)
    mean, theta = reconstruct(trained.model, new)
    np.testing.assert_allclose(mean.sum(1), np.asarray(new.sum(1)).ravel(), rtol=1e-4)
    constant = np.tile(np.asarray(counts.mean(0)), (40, 1))
    assert re_nb_nll(new, mean, theta) < re_nb_nll(new, constant, moments_theta(counts)) - 3
    assert trained.fit.losses[-1] < trained.fit.losses[0] - 3
    even = mean[::2, :8].sum() / mean[::2].sum()
    odd = mean[1::2, :8].sum() / mean[1::2].sum()
    assert even > 0.8 and odd < 0.3


def test_moments_of_a_known_law():
    """Negative binomial at one library size: the estimate is theta; Poisson genes reach the upper end."""
    rng = np.random.default_rng(0)
    theta, mean = np.array([0.3, 1.0, 4.0]), np.array([5.0, 3.0, 8.0])
    x = rng.poisson(rng.gamma(theta, mean / theta, (20_000, 3)))
    filler = 3000 - x.sum(1, keepdims=True)  # every cell has the same total
    poisson = rng.poisson(0.02, (20_000, 1))
    counts = sp.csr_matrix(np.hstack([x, poisson, filler - poisson]).astype(np.float32))
    found = moments_theta(counts)
    np.testing.assert_allclose(found[:3], theta, rtol=0.1)
    assert found.dtype == np.float32 and found.min() >= 0.05 and found.max() <= 100


def test_moments_see_through_the_sizes_of_cells():
    """The same law in cells of very different totals: the spread of their sizes is no dispersion."""
    rng = np.random.default_rng(1)
    theta, share = np.array([0.5, 2.0, 5.0]), np.array([0.02, 0.01, 0.03])
    sizes = np.exp(rng.normal(6.0, 1.0, (40_000, 1)))
    x = rng.poisson(rng.gamma(theta, sizes * share / theta))
    poisson = rng.poisson(sizes * 0.01)
    filler = np.maximum(np.round(sizes) - x.sum(1, keepdims=True) - poisson, 0)
    counts = sp.csr_matrix(np.hstack([x, poisson, filler]).astype(np.float32))
    found = moments_theta(counts)
    np.testing.assert_allclose(found[:3], theta, rtol=0.2)
    assert found[3] > 20


def test_theta_starts_from_moments_but_not_above_one():
    counts = sp.hstack([two_kinds(), np.ones((40, 1), np.float32)], format="csr")  # the last gene has no spread at all
    moments = moments_theta(counts)
    assert moments.min() < 1 < moments[-1]
    np.testing.assert_array_equal(start_theta(counts), np.minimum(moments, 1))
    model = build(counts, SMALL, seed=0)
    np.testing.assert_allclose(model.log_theta[1:].detach().exp(), start_theta(counts), rtol=1e-5)
    model = build(counts, AutoEncoderSettings(**(SMALL.__dict__ | {"likelihood": "gaussian"})), seed=0)
    assert (model.log_theta == 1).all()


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    counts = two_kinds()
    few = AutoEncoderSettings(**(SMALL.__dict__ | {"epochs": 2}))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    weights = [train(counts, few, seed=seed).model.state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    for name in weights[0]:
        # to rounding: now and then two equal trainings differ in the last bit. The head's bias is a shift that softmax
        # does not see: its gradient is rounding alone, which Adam makes steps of
        if name != "head.bias":
            torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(weights[0]["genes.table"], weights[2]["genes.table"])


@pytest.mark.parametrize("inputs", ["expressed", "all"])
def test_batches_do_not_matter(inputs):
    counts = two_kinds(n=11)
    model = build(counts, AutoEncoderSettings(**(SMALL.__dict__ | {"inputs": inputs})), seed=0)
    torch.testing.assert_close(encode(model, counts, batch=3), encode(model, counts))
    for a, b in zip(reconstruct(model, counts, batch=2), reconstruct(model, counts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    np.testing.assert_allclose(nll(model, counts, batch=4), nll(model, counts), rtol=1e-5)
    assert encode(model, counts[:0]).shape == (0, 2, 4)
    cells, dense = batch_of(counts, inputs, "cpu")
    assert len(cells.genes) == (counts.nnz if inputs == "expressed" else 11 * 17)
    assert torch.equal(dense, torch.from_numpy(counts.toarray()))


def test_error_is_the_metric():
    """`nll` and the catalogue's metric of `reconstruct` are one number."""
    counts = two_kinds()
    for dispersion in ("gene", "cell_gene"):
        model = build(counts, AutoEncoderSettings(**(SMALL.__dict__ | {"dispersion": dispersion})), seed=0)
        assert nll(model, counts).mean() == pytest.approx(re_nb_nll(counts, *reconstruct(model, counts)), rel=1e-5)


def test_training_loss_is_the_mean_over_the_batch():
    counts = two_kinds()
    model = build(counts, SMALL, seed=0)
    rows = torch.tensor([3, 0, 7])
    with torch.no_grad():
        loss = ReconstructionLoss(counts, SMALL)(model, rows, torch.Generator())
    assert float(loss) == pytest.approx(nll(model, counts[rows.numpy()]).mean(), rel=1e-5)


def test_posterior_settings():
    counts = two_kinds()
    settings = AutoEncoderSettings(**(SMALL.__dict__ | {"kl_weight": 1e-5, "epochs": 1}))
    trained = train(counts, settings, seed=0)
    assert trained.model.config.posterior and np.isfinite(trained.fit.losses).all()
    # scored with the same noise each time
    np.testing.assert_array_equal(nll(trained.model, counts), nll(trained.model, counts))


def test_cells_without_counts_are_refused():
    counts = two_kinds().tolil()
    counts[3] = 0
    with pytest.raises(ScreproError, match="1 of 40 cells"):
        train(sp.csr_matrix(counts), SMALL, seed=0)
