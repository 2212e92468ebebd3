import importlib.util

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from screpro.baselines import alra, dca, smoothing
from screpro.baselines.imputation import IMPUTERS, run
from screpro.errors import ScreproError

# settings that make a fit last about a second; what they leave out is not what these tests are about
FAST = {"dca": {"epochs": 30, "batch_size": 16}, "scvi": {"epochs": 40, "batch_size": 32, "n_samples": 3}}
DETERMINISTIC = ["gene_mean", "knn_smoothing", "alra"]


def simulated(n=160, g=90, rank=3, seed=0):
    """Counts around a known low-rank matrix of rates: CSR counts, (n, g) true rates per 10 000."""
    rng = np.random.default_rng(seed)
    share = np.exp(rng.normal(0, 0.8, (n, rank)) @ rng.normal(0, 0.8, (rank, g)) + rng.normal(0, 1, g))
    share /= share.sum(axis=1, keepdims=True)
    size = 500 * np.exp(0.3 * rng.standard_normal(n))
    counts = sparse.csr_matrix(rng.poisson(size[:, None] * share).astype(np.float32))
    return counts, 1e4 * share


@pytest.fixture(scope="module")
def cells():
    return simulated()


def available(name):
    package = {"magic": "magic", "scvi": "scvi"}.get(name)
    return package is None or importlib.util.find_spec(package) is not None


def call(name, counts, **more):
    if not available(name):
        pytest.skip(f"the package of {name} is not installed")
    return run(name, counts, seed=0, options=FAST.get(name), **more)


# every method


@pytest.mark.parametrize("name", [name for name in IMPUTERS if name != "gene_mean"])
def test_beats_the_gene_mean_at_the_true_rates(name, cells):
    counts, truth = cells
    truth = np.log1p(truth)
    floor, found = run("gene_mean", counts, seed=0), call(name, counts)
    assert found.shape == counts.shape and found.dtype == np.float32
    assert np.isfinite(found).all() and found.min() >= 0
    # within genes: the floor knows the means of genes, so only differences between cells count
    assert np.corrcoef((found - found.mean(0)).ravel(), (truth - truth.mean(0)).ravel())[0, 1] > 0.5
    assert np.mean((found - truth) ** 2) < np.mean((floor - truth) ** 2)


@pytest.mark.parametrize("name", list(IMPUTERS))
def test_grids_start_with_the_published_default_and_name_real_options(name):
    imputer = IMPUTERS[name]
    assert imputer.grid[0] == {} and imputer.name == name
    counts = sparse.csr_matrix(np.ones((4, 3)))
    with pytest.raises(ScreproError, match="options of"):
        run(name, counts, seed=0, options={"no such": 1})
    import inspect
    from importlib import import_module

    module, _, function = imputer.where.partition(":")
    known = inspect.signature(getattr(import_module(f"screpro.baselines.{module}"), function)).parameters
    assert all(option in known for setting in imputer.grid for option in setting)


@pytest.mark.parametrize("name", ["magic", "dca", "scvi", "saver"])
def test_a_seed_fixes_the_answer_and_leaves_global_generators_alone(name):
    counts, _ = simulated(n=60, g=40)
    if not available(name):
        pytest.skip(f"the package of {name} is not installed")
    options = {"dca": {"epochs": 3}, "scvi": {"epochs": 2, "n_samples": 1}}.get(name)
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (run(name, counts, seed=4, options=options) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    if name in ("dca", "scvi"):
        assert not np.array_equal(first, run(name, counts, seed=5, options=options))


@pytest.mark.parametrize("name", [*DETERMINISTIC, "saver"])
def test_the_order_of_genes_is_of_no_matter(name):
    counts, _ = simulated(n=60, g=40)
    order = np.random.default_rng(1).permutation(counts.shape[1])
    found, other = run(name, counts, seed=0), run(name, counts[:, order], seed=0)
    np.testing.assert_allclose(found[:, order], other, atol=0.1 if name == "saver" else 1e-4)


@pytest.mark.parametrize("name", [*DETERMINISTIC, "saver"])
def test_size_decides_the_scale(name):
    """Rates per 10 000 of twice the size are half as large, where nothing but the size knows the depth."""
    counts, _ = simulated(n=60, g=40)
    size = np.full(counts.shape[0], 500.0)
    rate, half = (np.expm1(run(name, counts, size=s, seed=0)) for s in (size, 2 * size))
    if name in ("gene_mean", "alra"):  # linear on the log scale, so only the direction is certain
        assert (half.mean(axis=0) < rate.mean(axis=0)).all()
    elif name == "saver":
        np.testing.assert_allclose(half, rate / 2, rtol=1e-4)
    else:
        assert abs(half.mean() / rate.mean() - 0.5) < 0.02  # a few cells get other neighbours


def test_genes_without_counts_are_answered_with_zero(cells):
    counts, _ = cells
    wide = sparse.hstack([counts, sparse.csr_matrix((counts.shape[0], 2))], format="csr")
    found = run("alra", wide, seed=0)
    assert not found[:, -2:].any()
    np.testing.assert_allclose(found[:, :-2], run("alra", counts, seed=0), atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "other"}, "named by its key"),
        ({"counts": sparse.csr_matrix([[0.5, 1.0], [1.0, 2.0], [1.0, 1.0]])}, "whole numbers"),
        ({"counts": sparse.csr_matrix([[0.0, 0.0], [1.0, 2.0], [1.0, 1.0]])}, "every cell has a count"),
        ({"counts": sparse.csr_matrix([[1.0, 2.0], [1.0, 1.0]])}, "at least three cells"),
        ({"size": np.ones(3)}, "one finite number above 0"),
        ({"size": np.zeros(4)}, "one finite number above 0"),
    ],
)
def test_wrong_input_is_named(change, message):
    given = {"name": "gene_mean", "counts": sparse.csr_matrix(np.ones((4, 3))), "seed": 0} | change
    with pytest.raises(ScreproError, match=message):
        run(given.pop("name"), given.pop("counts"), **given)


@pytest.mark.parametrize(
    "name, options",
    [
        ("knn_smoothing", {"k": 0}),
        ("alra", {"quantile": 1.0}),
        ("alra", {"rank": 50}),
        ("dca", {"likelihood": "poisson"}),
        ("dca", {"batch_size": 1}),
        ("saver", {"max_predictors": 1}),
    ],
)
def test_wrong_options_are_named(name, options):
    with pytest.raises(ScreproError):
        run(name, sparse.csr_matrix(np.ones((6, 5))), seed=0, options=options)


# smoothing


def test_gene_mean_is_the_mean_of_the_log_normalised_values(cells):
    counts, _ = cells
    dense = counts.toarray().astype(np.float64)
    expected = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(run("gene_mean", counts, seed=0), np.tile(expected, (len(dense), 1)), rtol=1e-5)


def test_knn_smoothing_is_the_brute_force_mean(cells):
    counts, _ = cells
    dense = counts.toarray().astype(np.float64)
    rate = 1e4 * dense / dense.sum(axis=1, keepdims=True)
    centred = np.log1p(rate) - np.log1p(rate).mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    scores = u[:, :20] * s[:20]
    distance = np.square(scores[:, None] - scores[None]).sum(axis=2)
    nearest = np.argsort(distance, axis=1)[:, :7]
    assert (nearest[:, 0] == np.arange(len(dense))).all()
    found = run("knn_smoothing", counts, seed=0, options={"k": 7, "n_components": 20})
    np.testing.assert_allclose(found, np.log1p(rate[nearest].mean(axis=1)), rtol=1e-4, atol=1e-5)
    alone = run("knn_smoothing", counts, seed=0, options={"k": 1})
    np.testing.assert_allclose(alone, np.log1p(rate), rtol=1e-5)


# MAGIC


def test_magic_is_the_package_on_square_roots(cells):
    magic = pytest.importorskip("magic")
    counts, _ = cells
    dense = counts.toarray().astype(np.float64)
    root = np.sqrt(1e4 * dense / dense.sum(axis=1, keepdims=True))
    expected = magic.MAGIC(knn=15, t=2, n_pca=None, random_state=0, verbose=0).fit_transform(root)
    found = run("magic", counts, seed=0, options={"knn": 15, "t": 2})
    np.testing.assert_allclose(found, np.log1p(expected**2), rtol=1e-4, atol=1e-5)


# ALRA


def test_alra_follows_the_steps_gene_by_gene(cells):
    counts, _ = cells
    observed = smoothing.log_rates(counts, np.asarray(counts.sum(axis=1)).ravel()).toarray()
    u, s, v = np.linalg.svd(observed, full_matrices=False)
    k = alra.choose_rank(s[: min(100, min(observed.shape) - 1)])
    low = (u[:, :k] * s[:k]) @ v[:k]
    expected = np.zeros_like(low)
    for g in range(low.shape[1]):
        column = low[:, g].copy()
        column[column <= abs(np.quantile(column, 0.001))] = 0
        found, seen = column[column != 0], observed[observed[:, g] != 0, g]
        if len(found) > 1 and len(seen) > 1:
            moved = (column - found.mean()) / found.std(ddof=1) * seen.std(ddof=1) + seen.mean()
            column = np.where(column != 0, moved, 0)
        column[column < 0] = 0
        zeroed = (observed[:, g] > 0) & (column == 0)
        column[zeroed] = observed[zeroed, g]
        expected[:, g] = column
    np.testing.assert_allclose(run("alra", counts, seed=0), expected, atol=1e-4)


@pytest.mark.parametrize("rank", [2, 5, 9])
def test_alra_finds_the_rank_of_a_noisy_low_rank_matrix(rank):
    """The true spacing towers over all others. Six deviations, the authors' limit, are also exceeded at the edge of
    Gaussian noise, whose largest singular values lie further apart than those the rule looks at: a rank above the true
    one is the rule's, not an error here."""
    rng = np.random.default_rng(rank)
    x = rng.normal(size=(500, rank)) @ rng.normal(size=(rank, 400)) + 0.3 * rng.normal(size=(500, 400))
    s = np.linalg.svd(x, compute_uv=False)[:100]
    assert alra.choose_rank(s, deviations=100) == rank
    assert rank <= alra.choose_rank(s) <= 40


def test_alra_takes_the_last_outstanding_spacing():
    tail = 10 - np.cumsum(0.05 + 0.01 * np.random.default_rng(0).random(96))
    assert alra.choose_rank(np.concatenate([[50.0, 40.0, 20.0, 19.0], tail])) == 4
    assert alra.choose_rank(np.concatenate([[50.0, 40.0, 20.0, 10.0], tail])) == 3
    assert alra.choose_rank(np.concatenate([[10.0], tail])) == 1  # nothing stands out
    assert alra.choose_rank(np.array([3.0, 1.0])) == 1


# DCA


def test_zinb_is_scipys_mixture():
    rng = np.random.default_rng(0)
    y = rng.poisson(2.0, (6, 7)).astype(float)
    mu, theta = rng.gamma(2, 2, (6, 7)), rng.gamma(2, 1, (6, 7))
    logit = rng.normal(size=(6, 7))
    pi = 1 / (1 + np.exp(-logit))
    nb = stats.nbinom.pmf(y, theta, theta / (theta + mu))
    given = [torch.tensor(a) for a in (y, mu, theta)]
    expected = -np.log(pi * (y == 0) + (1 - pi) * nb).sum()
    assert dca.zinb_nll(*given, torch.tensor(logit)).item() == pytest.approx(expected, rel=1e-10)
    assert dca.zinb_nll(*given, None).item() == pytest.approx(-np.log(nb).sum(), rel=1e-10)


def test_zinb_is_finite_with_its_gradient_at_the_ends_of_all_ranges():
    y = torch.tensor([[0.0, 5.0, 0.0, 3.0]])
    for mean in dca.MEAN_RANGE:
        for spread in dca.DISPERSION_RANGE:
            for logit in (-80.0, 80.0):
                given = [torch.full((1, 4), v, requires_grad=True) for v in (mean, spread, logit)]
                value = dca.zinb_nll(y, *given)
                value.backward()
                assert torch.isfinite(value) and all(torch.isfinite(p.grad).all() for p in given)


def test_dca_stops_early_times_its_epochs_and_has_no_scale_in_its_normalisation():
    counts, _ = simulated(n=80, g=30)
    size = np.asarray(counts.sum(axis=1)).ravel().astype(float)
    trained = dca.train(counts, size=size, seed=0, epochs=300, learning_rate=0.03)
    n = len(trained.losses)
    best = int(np.argmin(trained.validation))
    assert n == 300 or n == best + 16
    assert len(trained.epoch_seconds) == len(trained.validation) == n
    norms = [m for m in trained.network.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert [m.num_features for m in norms] == [64, 32, 64] and all((m.weight == 1).all() for m in norms)
    assert dca.seconds_per_epoch(counts, seed=0, epochs=2, likelihood="nb") > 0
