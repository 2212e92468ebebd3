"""The fast classifier against the loop that defines it."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.errors import ScreproError
from screpro.models.scdiff import ScDiff, ScDiffConfig
from screpro.processes.gaussian import scaled_linear
from screpro.tasks.diffusion_classifier import ClassifierErrors, classifier_errors, embedded_noise, noise_root, predict

SCHEDULE = scaled_linear()
CANDIDATES = np.array([[1, 1], [1, 2], [2, 2], [2, 3]])


def network(n_batches=3) -> ScDiff:
    torch.manual_seed(0)
    model = ScDiff(ScDiffConfig(n_genes=31, width=8, depth=2, heads=2, classes={"cell_type": 4}, n_batches=n_batches))
    for parameter in model.parameters():  # a fresh head is too tame to tell candidates apart
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def gene_noise(model: ScDiff, embedded: torch.Tensor) -> torch.Tensor:
    """Noise in gene space that the network sees as `embedded`."""
    table = model.embedder.table.detach().double()
    return (embedded.double() @ torch.linalg.pinv(table)).float()


def loop(model, x, candidates, noise, times):
    """The definition: one call of the network per candidate, time step and draw."""
    x = torch.as_tensor(x.toarray())
    errors = np.zeros((len(x), len(candidates), len(times)))
    everything = torch.ones_like(x, dtype=torch.bool)
    for c, (batch, label) in enumerate(candidates):
        for k, time in enumerate(times):
            for draw in range(noise.shape[2]):
                column = c if noise.shape[3] > 1 else 0
                epsilon = gene_noise(model, noise[:, k, draw, column])
                t = torch.full((len(x),), int(time))
                with torch.no_grad():
                    predicted = model(
                        SCHEDULE.diffuse(x, t, epsilon),
                        t,
                        context=x,
                        hidden=everything,
                        conditions={"cell_type": torch.full((len(x),), int(label))},
                        batch=None if model.batch_table is None else torch.full((len(x),), int(batch)),
                    )
                errors[:, c, k] += ((predicted - x) ** 2).mean(1).numpy() / noise.shape[2]
    return errors


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n_batches", [3, 0])
def test_equals_the_loop(sparse_cells, shared, n_batches):
    model = network(n_batches)
    noise = torch.randn(23, 5, 2, 1 if shared else 4, 8, generator=torch.Generator().manual_seed(1))
    fast = classifier_errors(
        model,
        sparse_cells,
        CANDIDATES,
        schedule=SCHEDULE,
        generator=torch.Generator(),
        draws=2,
        shared_noise=shared,
        noise=noise,
        memory_mib=0,  # one cell at a time
    )
    slow = loop(model, sparse_cells, CANDIDATES, noise, fast.times)
    np.testing.assert_allclose(fast.error, slow, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(predict(fast), CANDIDATES[slow.mean(2).argmin(1), 1])
    assert fast.times.tolist() == [100, 300, 500, 700, 900]
    assert len(set(predict(fast))) > 1  # the comparison would mean little if one label always won


def test_embedded_noise_has_the_law_of_projected_noise():
    """W'e of standard normal e is N(0, W'W): mean, covariance and fourth moment of a fixed direction."""
    model, n = network(), 200_000
    drawn = embedded_noise(noise_root(model), (n,), torch.Generator().manual_seed(0)).double()
    gram = (model.embedder.table.T @ model.embedder.table).detach().double()
    scale = gram.diagonal().sqrt()
    assert (drawn.mean(0) / scale).abs().max() < 5 / n**0.5
    covariance = drawn.T @ drawn / n
    assert ((covariance - gram) / torch.outer(scale, scale)).abs().max() < 8 / n**0.5
    along = drawn @ torch.ones(8, dtype=torch.float64)
    assert (along**4).mean() / (along**2).mean() ** 2 == pytest.approx(3, abs=0.1)


def test_more_genes_than_width_is_not_needed():
    torch.manual_seed(0)
    model = ScDiff(ScDiffConfig(n_genes=3, width=8, depth=1, heads=2, classes={"cell_type": 3})).eval()
    drawn = embedded_noise(noise_root(model), (50,), torch.Generator().manual_seed(0))
    assert torch.linalg.matrix_rank(drawn, rtol=1e-4) == 3


def test_chunks_do_not_matter(sparse_cells):
    model = network()
    noise = torch.randn(23, 5, 1, 1, 8)
    chunked, whole = (
        classifier_errors(
            model, sparse_cells, CANDIDATES, schedule=SCHEDULE, generator=torch.Generator(), noise=noise, memory_mib=m
        ).error
        for m in (0, 500)
    )
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-6)


def test_each_draw_is_new_and_seeded(sparse_cells):
    def errors(seed, **how):
        return classifier_errors(
            network(),
            sparse_cells,
            CANDIDATES,
            schedule=SCHEDULE,
            generator=torch.Generator().manual_seed(seed),
            **how,
        ).error

    np.testing.assert_array_equal(errors(0), errors(0))
    assert np.abs(errors(0) - errors(1)).max() > 0
    # identical candidates differ by their noise alone, which shared noise takes away
    twice = np.array([[1, 2], [1, 2]])
    for shared in (True, False):
        error = classifier_errors(
            network(), sparse_cells, twice, schedule=SCHEDULE, generator=torch.Generator(), shared_noise=shared
        ).error
        assert (np.abs(error[:, 0] - error[:, 1]).max() > 0) is not shared
    # the mean of 16 draws varies a quarter as much between seeds as one draw
    spread = [np.std([errors(seed, draws=draws) for seed in range(12)], axis=0).mean() for draws in (1, 16)]
    assert spread[1] / spread[0] == pytest.approx(1 / 4, rel=0.2)


def test_winning_pair_ties_and_known_batch():
    error = np.array(
        [
            [[0.3, 0.1], [0.2, 0.2], [0.1, 0.1], [0.5, 0.5]],
            [[0.1, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1]],
            [[0.3, 0.3], [0.4, 0.4], [0.1, 0.1], [0.2, 0.2]],
        ]
    )
    errors = ClassifierErrors(error, CANDIDATES, np.array([300, 700]))
    assert predict(errors).tolist() == [2, 1, 2]  # the tie goes to the first candidate
    assert predict(errors, times=np.array([1])).tolist() == [1, 1, 2]
    # batch 1 only has labels 1 and 2; batch 9 was never seen, so everything competes
    assert predict(errors, batch=np.array([1, 2, 9])).tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": np.zeros((0, 2), dtype=int)}, "At least one candidate"),
        ({"candidates": np.array([1, 2])}, "At least one candidate"),
        ({"candidates": np.array([[0, 4]])}, "label"),
        ({"candidates": np.array([[3, 1]])}, "batch"),
        ({"draws": 0}, "draw"),
        ({"n_times": 0}, "time steps"),
        ({"condition": "state"}, "state"),
        ({"x": sp.csr_matrix((2, 30), dtype=np.float32)}, "30 genes"),
    ],
)
def test_wrong_inputs_are_explained(sparse_cells, change, message):
    given = {"x": sparse_cells, "candidates": CANDIDATES, "schedule": SCHEDULE, "generator": torch.Generator()}
    with pytest.raises(ScreproError, match=message):
        classifier_errors(network(), **(given | change))
