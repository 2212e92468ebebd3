"""Generation baselines against known laws: what comes out has the moments, labels and library sizes that went in."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.baselines import generation, latent_ddpm, latent_flow
from screpro.errors import ScreproError
from screpro.processes.gaussian import linear
from screpro.processes.interpolant import VelocityLoss


@pytest.fixture(scope="module")
def two_types():
    """(counts, labels), 240 cells x 40 genes: type 0 has mostly genes 0 to 19, type 1 the others at twice the depth."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [140, 100])
    share = np.where((np.arange(40) < 20) == (labels[:, None] == 0), 0.045, 0.005)
    depth = np.exp(rng.normal(np.log([200.0, 400.0])[labels], 0.1))
    return sp.csr_matrix(rng.poisson(depth[:, None] * share).astype(np.float32)), labels


WANTED = np.tile([1, 0, 0], 60)


def generate(name, two_types, **options):
    counts, labels = two_types
    return generation.run(name, counts, labels, wanted=WANTED, n_types=2, seed=0, options=options)


def blocks(x):
    """Share (n,) of each cell's molecules in genes 20 to 39: .1 in type 0, .9 in type 1."""
    x = np.asarray(x.toarray(), dtype=float)
    return x[:, 20:].sum(1) / x.sum(1)


def test_every_grid_starts_with_the_default():
    for name, entry in generation.GENERATORS.items():
        assert entry.name == name and entry.grid[0] == {}


@pytest.mark.parametrize(
    ("wanted", "name", "options", "word"),
    [
        ([0, 2], "bootstrap", {}, "labels that training cells have"),
        ([0, 1], "bootsrap", {}, "named by its key"),
        ([0, 1], "cfgen_like", {"epoch": 3}, "options of cfgen_like"),
    ],
)
def test_bad_input_is_refused_before_any_work(two_types, wanted, name, options, word):
    with pytest.raises(ScreproError, match=word):
        generation.run(name, *two_types, wanted=np.array(wanted), n_types=3, seed=0, options=options)


def test_bootstrap_gives_training_cells_of_the_label(two_types):
    counts, labels = two_types
    made = generate("bootstrap", two_types)
    rows = {tuple(row) for row in counts[labels == 1].toarray()}
    assert all(tuple(row) in rows for row in made.conditional[WANTED == 1].toarray())
    assert len({tuple(row) for row in made.unconditional.toarray()}) < len(WANTED)  # with replacement


def test_independent_genes_keep_the_means_of_their_class(two_types):
    counts, labels = two_types
    wanted = np.repeat([0, 1], 4000)
    made = generation.run("independent_nb", counts, labels, wanted=wanted, n_types=2, seed=1)
    for label in (0, 1):
        expected = np.asarray(counts[labels == label].mean(0)).ravel()
        found = np.asarray(made.conditional[wanted == label].mean(0)).ravel()
        np.testing.assert_allclose(found, expected, rtol=0.08, atol=0.15)
    # no relation between genes but the library size, while the two blocks of real cells exclude each other
    anyone = made.unconditional.toarray()
    real = counts.toarray()
    assert np.corrcoef(real[:, 0], real[:, 30])[0, 1] < -0.5
    assert np.corrcoef(anyone[:, 0], anyone[:, 30])[0, 1] > -0.1


def test_library_sizes_are_those_of_the_label(two_types):
    made = generate("independent_nb", two_types)
    total = np.asarray(made.conditional.sum(1)).ravel()
    assert np.median(total[WANTED == 1]) / np.median(total[WANTED == 0]) == pytest.approx(2, rel=0.1)


def test_the_null_label_is_a_row_of_its_own():
    network = latent_flow.ConditionedMlp(3, 2, width=8, layers=1, library=True)
    z, t, size, shift = torch.randn(2, 3), torch.rand(2), torch.zeros(2), torch.arange(8.0)
    null = network(z, t, torch.tensor([-1, -1]), size)
    with torch.no_grad():
        network.labels.weight[-1] += shift
    assert not torch.allclose(network(z, t, torch.tensor([-1, -1]), size), null)
    given = network(z, t, torch.tensor([0, 1]), size)
    with torch.no_grad():
        network.labels.weight[-1] -= shift
    torch.testing.assert_close(network(z, t, torch.tensor([0, 1]), size), given)


def test_flow_loss_with_library_is_the_shared_loss():
    z, labels, size = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0]), torch.randn(6)
    network = latent_flow.ConditionedMlp(3, 2, width=8, layers=1, library=True)
    rows = torch.tensor([4, 0, 2])
    own = latent_flow.LibraryLoss(z, labels, size, drop=0.5)(network, rows, torch.Generator().manual_seed(0))
    shared = VelocityLoss(
        z, {"label": labels}, drop=0.5, network=lambda m, z_t, t, given: m(z_t, 1000 * t, given["label"], size[rows])
    )
    torch.testing.assert_close(own, shared(network, rows, torch.Generator().manual_seed(0)))


def test_cfgen_like_generates_both_types(two_types):
    made = generate("cfgen_like", two_types, epochs=15, flow_epochs=60, hidden=(32,), latent=4, width=64, steps=10)
    share = blocks(made.conditional)
    assert np.median(share[WANTED == 1]) > 0.75 and np.median(share[WANTED == 0]) < 0.25
    anyone = blocks(made.unconditional)  # 100 of 240 training cells are of type 1
    assert 0.2 < np.mean(anyone > 0.5) < 0.65
    total = np.asarray(made.conditional.sum(1)).ravel()
    assert np.median(total[WANTED == 1]) / np.median(total[WANTED == 0]) == pytest.approx(2, rel=0.15)


def test_a_shortened_schedule_ends_at_the_same_noise():
    assert float(latent_ddpm.shortened(100).alpha_bar[-1]) < 1e-4
    torch.testing.assert_close(latent_ddpm.shortened(1000).alpha_bar, linear(1000).alpha_bar)


def test_guidance_moves_the_reverse_step_by_the_classifiers_gradient():
    schedule = latent_ddpm.shortened(50)

    class Logistic(torch.nn.Module):
        def forward(self, x, t):
            return x @ torch.tensor([[1.0, -1.0], [0.5, 0.0]])

    x, t, labels = torch.randn(4, 2), torch.tensor([3, 10, 30, 49]), torch.tensor([0, 1, 0, 1])
    leaning = latent_ddpm.guided(lambda x, t: 0.3 * x, Logistic(), labels, schedule=schedule, strength=1.7)
    p = torch.softmax(Logistic()(x, t), 1)
    weights = torch.tensor([[1.0, 0.5], [-1.0, 0.0]])  # by class
    gradient = weights[labels] - p @ weights
    moved = schedule.posterior(leaning(x, t), x, t).mean - schedule.posterior(0.3 * x, x, t).mean
    step = (schedule.beta / (1 - schedule.beta).sqrt())[t, None]
    torch.testing.assert_close(moved, 1.7 * step * gradient, rtol=1e-4, atol=1e-5)


def test_scdiffusion_like_generates_both_types(two_types):
    made = generate(
        "scdiffusion_like", two_types, epochs=20, diffusion_epochs=80, classifier_epochs=15, hidden=(32,), latent=4,
        width=64, steps=60,
    )  # fmt: skip
    assert made.expression and made.conditional.data.min() >= 0
    share = blocks(made.conditional.expm1())
    assert np.median(share[WANTED == 1]) > 0.75 and np.median(share[WANTED == 0]) < 0.25
    anyone = blocks(made.unconditional.expm1())
    assert 0.15 < np.mean(anyone > 0.5) < 0.7


def test_scvi_is_told_the_label_for_the_conditional_sample(two_types):
    pytest.importorskip("scvi")
    made = generate("scvi", two_types, epochs=25, n_latent=2)  # far from trained; but one of two has seen the label
    told, free = (blocks(x) for x in (made.conditional, made.unconditional))
    assert np.median(told[WANTED == 1]) - np.median(told[WANTED == 0]) > 0.15
    assert abs(np.median(free[WANTED == 1]) - np.median(free[WANTED == 0])) < 0.1
