"""Floors, ceilings and the experiment of the reconstruction page."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from screpro import records
from screpro.data import simulate
from screpro.errors import ScreproError
from screpro.kernels.nb import nb_nll
from screpro.metrics.reconstruction import mse_nb_mean, pcc_nb_draw, pcc_nb_mean, re_nb_nll
from screpro.tasks import reconstruction_experiment as experiment
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.imputation_ceiling import synthetic_cells
from screpro.tasks.reconstruction import (
    class_law,
    copy_law,
    global_law,
    half_bounds,
    halves,
    likeliest_theta,
    neighbour_law,
    prepare,
    scores,
)

TINY = AutoEncoderSettings(width=8, tokens=2, channels=4, layers=1, heads=2, cross_heads=2, epochs=1)


@pytest.fixture(scope="module")
def adata():
    return simulate.cells(240, 60, 3, depth=200, separation=2.0, rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def parts(adata):
    return prepare(adata, split=0)


def test_likeliest_theta_is_a_maximum_and_finds_the_true_value():
    rng = np.random.default_rng(0)
    theta = np.array([0.3, 1.0, 5.0])
    mean = rng.uniform(2, 20, (4000, 3))
    counts = rng.poisson(rng.gamma(theta, mean / theta)).astype(float)
    counts[:, 2] += counts.sum(1) == 0
    # the search scales means to the totals of the cells; a large fourth gene makes that scale 1 but for noise
    counts = np.column_stack([counts, rng.poisson(5000, 4000)])
    mean = np.column_stack([mean, np.full(4000, 5000.0)])
    found = likeliest_theta(sp.csr_matrix(counts), mean)
    np.testing.assert_allclose(found[:3], theta, rtol=0.1)
    scaled = torch.from_numpy(mean * (counts.sum(1) / mean.sum(1))[:, None])

    def loss(value, g):
        one = (slice(None), slice(g, g + 1))
        return float(nb_nll(torch.from_numpy(counts)[one], scaled[one], torch.tensor([value])).sum())

    for g in range(3):
        assert loss(found[g], g) < min(loss(found[g] * 1.02, g), loss(found[g] / 1.02, g))


def test_a_gene_without_extra_variance_is_poisson():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.multinomial(50, np.full(5, 0.2), size=500).astype(float))
    assert (likeliest_theta(counts, np.ones(counts.shape)) > 1e3).all()


def test_copying_pays_one_nat_for_every_gene_seen_once():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix((rng.random((10, 4000)) < 0.02).astype(float))
    found = re_nb_nll(counts, *copy_law(counts)(counts))
    np.testing.assert_allclose(
        found, counts.nnz / 10, rtol=0.02
    )  # the tenth of a molecule for unseen genes costs little


def test_floors_stand_in_the_right_order(parts):
    laws = {
        "global": global_law(parts.train),
        "class": class_law(parts.train, parts.train_types, parts.test_types, n_types=parts.n_types),
        "neighbours": neighbour_law(parts.train),
    }
    found = {name: scores(parts.test, *law(parts.test), seed=0) for name, law in laws.items()}
    # neighbours are found by the counts that are scored, so they may pass the law of the types, which is the truth here
    assert max(found["class"]["re_nb_nll"], found["neighbours"]["re_nb_nll"]) < found["global"]["re_nb_nll"] - 3
    # the same for every cell: nothing to correlate with but the noise of the draw
    assert abs(found["global"]["pcc_nb_draw"]) < 0.1 < found["class"]["pcc_nb_draw"]
    mean, _ = laws["global"](parts.test)
    np.testing.assert_allclose(mean.sum(1), 1)
    with pytest.raises(ScreproError, match="whose types"):
        laws["class"](parts.test[:3])


def test_neighbours_leave_the_cell_itself_out():
    """With itself among its neighbours a training cell is predicted too well, and theta too large for other cells."""
    rng = np.random.default_rng(0)
    cells = sp.csr_matrix(rng.poisson(rng.gamma(1.0, 3.0, (600, 20))).astype(float) + 1)
    test = cells[300:]
    mean, theta = neighbour_law(cells[:300], neighbours=5)(test)
    error = re_nb_nll(test, mean, theta)
    assert error < re_nb_nll(test, mean, 2 * theta) and error < re_nb_nll(test, mean, theta / 2)


def test_halves_add_up_and_the_truth_is_beaten_by_copying_on_whole_cells_only():
    made = synthetic_cells(n_cells=300, n_genes=100, n_types=3, seed=0)
    first, second, rows = halves(made.counts, seed=1)
    assert (first + second != made.counts[rows]).nnz == 0
    assert (first.sum(1) > 0).all() and (second.sum(1) > 0).all()
    assert abs(first.sum() / made.counts.sum() - 0.5) < 0.01
    theta = np.full(made.counts.shape[1], 5.0)
    copy = copy_law(made.counts)
    whole = {"truth": (made.rate, theta), "copy": copy(made.counts)}
    other = {"truth": (made.rate[rows], theta), "copy": copy(first)}
    error = {name: re_nb_nll(made.counts, *law) for name, law in whole.items()}
    error_half = {name: re_nb_nll(second, *law) for name, law in other.items()}
    assert error["copy"] < error["truth"] and error_half["copy"] > error_half["truth"] + 10


def test_one_half_answers_for_the_other_as_the_truth_does():
    """Without a factor of their own (theta infinite), cells' halves bound draws and means of the true state exactly."""
    made = synthetic_cells(n_cells=2560, n_genes=60, n_types=4, seed=0, depth=2000)
    rng = np.random.default_rng(1)
    truth = made.rate / made.rate.sum(1, keepdims=True)
    first, second = (sp.csr_matrix(rng.poisson(1000 * truth).astype(np.float32)) for _ in range(2))
    bounds = half_bounds(first, second)
    drawn = sp.csr_matrix(rng.poisson(1000 * truth).astype(np.float32)).toarray()
    assert bounds["pcc_nb_draw"] == pytest.approx(pcc_nb_mean(second, drawn), abs=0.01)
    assert bounds["mse_nb_draw"] == pytest.approx(mse_nb_mean(second, drawn), rel=0.02)
    assert bounds["pcc_nb_draw"] < pcc_nb_mean(second, truth) <= bounds["pcc_nb_mean"]
    # the logarithm of the true share is not quite the mean of the logarithm
    assert bounds["mse_nb_mean"] == pytest.approx(mse_nb_mean(second, truth), rel=0.5)
    assert bounds["mse_nb_mean"] <= mse_nb_mean(second, truth)


def test_a_draw_from_the_truth_correlates_by_the_share_of_variance_that_is_not_noise():
    """Gaussian limit: large counts of two levels, theta the only noise that counts."""
    rng = np.random.default_rng(0)
    level = np.where(rng.random((1280, 1)) < 0.5, 90.0, 110.0)
    mean = np.hstack([level, np.full((1280, 1), 1e6)])  # the second gene fixes the total
    theta = np.array([100.0, 1e9])
    counts = rng.poisson(rng.gamma(theta, mean / theta)).astype(float)
    # variance of the level 100, of the noise about 100 + 100^2 / 100
    share = 100 / (100 + 100 + 100**2 / 100 + 100 / 100)
    gene = slice(0, 1)
    s = np.log1p(1e4 * counts[:, gene] / counts.sum(1, keepdims=True))
    again = rng.poisson(rng.gamma(theta, mean / theta)).astype(float)
    t = np.log1p(1e4 * again[:, gene] / again.sum(1, keepdims=True))
    np.testing.assert_allclose(np.corrcoef(s.T, t.T)[0, 1], share, atol=0.06)
    np.testing.assert_allclose(np.corrcoef(s.T, level.T)[0, 1], np.sqrt(share), atol=0.06)
    assert pcc_nb_mean(counts, mean) > pcc_nb_draw(counts, mean, theta, rng=rng)


def test_the_panel_is_chosen_on_training_cells(adata, parts):
    assert parts.train.shape[0] + parts.validation.shape[0] + parts.test.shape[0] == 240
    few = prepare(adata, split=0, n_genes=20, n_train=100)
    assert few.train.shape == (100, 20) and few.test.shape[0] == 48
    from screpro.data.splits import cell_split

    changed = adata.copy()
    held_out = cell_split(240, seed=0, test=0.2, validation=0.1).test
    dense = changed.X.toarray()
    dense[held_out] = np.random.default_rng(1).permutation(dense[held_out].T).T
    changed = AnnData(sp.csr_matrix(dense), obs=adata.obs, var=adata.var)
    assert prepare(changed, split=0, n_genes=20, n_train=100).genes == few.genes


def test_a_shipped_split_is_kept(adata):
    given = adata.copy()
    with pytest.raises(ScreproError, match="split"):
        prepare(given, split=0, shipped=True)
    given.obs["split"] = np.where(np.arange(240) < 200, "train", "test")
    found = prepare(given, split=0, shipped=True)
    assert [part.shape[0] for part in (found.train, found.validation, found.test)] == [180, 20, 40]
    order = np.random.RandomState(42).permutation(200)
    genes = [list(given.var_names).index(g) for g in found.genes]
    assert (found.validation != given.X[order[180:]][:, genes]).nnz == 0


def test_the_experiment_scores_resumes_and_tunes(parts, monkeypatch):
    run = records.start("scldm/reconstruction", tier="ci")
    slow, quick = {"hidden": (16,), "learning_rate": 1e-6}, {"hidden": (16,), "batch_size": 8}
    passes = {"scldm": (2, 3), "cfgen_like": (4,)}
    grids = {
        "scldm": [{}, {"epochs": 2}, {"epochs": 3}, {"learning_rate": 1e-6}],
        "cfgen_like": [slow, quick, {**slow, "epochs": 4}, {**quick, "epochs": 4}],
    }
    protocol = experiment.Protocol("toy", 0, [0, 1], TINY, True, grids=grids)
    methods = ["scldm", "cfgen_like", "global_mean", "class_mean", "neighbours", "copy"]
    experiment.compare_methods(run, parts, protocol, [*methods, "one_half"])
    rows = run.frame()
    bound = rows[(rows["method"] == "one_half") & (rows["metric"] != "fit")]
    assert set(bound["metric_variant"]) == {experiment.HALVES} and "re_nb_nll" not in set(bound["metric"])
    errors = rows[rows["metric"] == "re_nb_nll"]
    found = errors[~errors["item"].isin(["tuning", experiment.PASSES])]
    assert set(found["method"]) == set(methods)
    assert set(found["metric_variant"]) == {"", experiment.HALVES}
    assert (found[found["method"] == "scldm"].groupby("metric_variant")["seed"].nunique() == 2).all()
    tried = rows[rows["item"] == "tuning"]
    assert len(tried) == 4 + 4 and set(tried["split"]) == {"0, validation"}
    # what validation cells prefer among numbers of passes is what the scores were made with
    for method, more in passes.items():
        own = errors[(errors["item"] == experiment.PASSES) & (errors["method"] == method)]
        by_passes = own.set_index("metric_variant")["value"]
        assert list(by_passes.index) == [str(n) for n in (TINY.epochs, *more)] and set(own["seed"]) == {0}
        best = min(tried[tried["method"] == method].itertuples(), key=lambda row: row.value)
        main = found[(found["method"] == method) & (found["metric_variant"] == "") & (found["seed"] == 0)]
        chosen = json.loads(best.metric_variant).get("epochs", TINY.epochs)
        assert main["value"].item() == by_passes[str(chosen)]
    # the better setting on validation cells made the scores: a rate of 1e-6 learns nothing
    worst = tried.groupby("method")["value"].max()
    own = found[found["metric_variant"] == ""].groupby("method")["value"].mean()
    assert own["cfgen_like"] < worst["cfgen_like"]
    before = len(rows)
    monkeypatch.setattr(experiment, "train", None)  # nothing may be trained again
    experiment.compare_methods(run, parts, protocol, [*methods, "one_half"])
    assert len(run.frame()) == before
    assert not list((run.folder / "checkpoints").glob("*"))
    with pytest.raises(ScreproError, match="key"):
        experiment.compare_methods(run, parts, protocol, ["scgpt"])


@pytest.fixture
def by_epochs(monkeypatch):
    """Networks whose training takes no time: (method, seed, epochs) of each, and their error by method and epochs."""
    trained, theta = [], {("scldm", 1): 1e-3, ("scldm", 5): 1e-2, ("scvi", 1): 1e-2, ("scvi", 5): 1e-3}

    def train(method, counts, options, *, base, epochs, seed, threads, checkpoint):
        trained.append((method, seed, epochs))
        mean = global_law(counts)
        return experiment.Trained(lambda x: (mean(x)[0], np.full(x.shape[1], theta[method, epochs])), 0.0, None)

    monkeypatch.setattr(experiment, "train", train)
    return trained


def test_each_network_has_the_passes_that_its_validation_cells_prefer(parts, by_epochs):
    run = records.start("scldm/reconstruction", tier="ci")
    grids = {m: [{}, {"epochs": 5}] for m in ("scldm", "scvi")}
    protocol = experiment.Protocol("toy", 0, [0, 1], TINY, True, grids=grids)
    experiment.compare_methods(run, parts, protocol, ["scldm", "scvi"])
    # the second seed trains with what the first has chosen
    first, second = ([(m, e) for m, s, e in by_epochs if s == seed] for seed in (0, 1))
    assert first == [("scldm", 1), ("scldm", 5), ("scvi", 1), ("scvi", 5)]
    assert second == [("scldm", 5), ("scvi", 1)]
    rows = run.frame()
    study = rows[(rows["item"] == experiment.PASSES) & (rows["metric"] == "re_nb_nll")]
    assert list(study["metric_variant"]) == ["1", "5", "1", "5"]

    by_epochs.clear()
    run = records.start("scldm/reconstruction", tier="ci")
    experiment.compare_methods(run, parts, protocol._replace(tune=False), ["scldm"])
    assert {e for _, _, e in by_epochs} == {1} and not (run.frame()["item"] == experiment.PASSES).any()


def test_passes_and_settings_are_chosen_together(parts, monkeypatch):
    """The setting that is best at few passes is not the one that is best of all."""
    theta = {("a", 1): 1e-2, ("a", 5): 1e-3, ("b", 1): 2e-3, ("b", 5): 1.0}

    def train(method, counts, options, *, base, epochs, seed, threads, checkpoint):
        mean = global_law(counts)
        own = theta[options.get("name", "a"), epochs]
        return experiment.Trained(lambda x: (mean(x)[0], np.full(x.shape[1], own)), 0.0, options)

    monkeypatch.setattr(experiment, "train", train)
    run = records.start("scldm/reconstruction", tier="ci")
    grids = {"scvi": [{}, {"name": "b"}, {"epochs": 5}, {"name": "b", "epochs": 5}]}
    experiment.compare_methods(run, parts, experiment.Protocol("toy", 0, [0], TINY, True, grids=grids), ["scvi"])
    rows = run.frame()
    rows = rows[rows["metric"] == "re_nb_nll"].set_index(["item", "metric_variant"])["value"]
    assert rows["Table 1", ""] == rows[experiment.PASSES, "5"] < rows[experiment.PASSES, "1"]
    assert rows["tuning", "{}"] < rows["tuning", '{"name": "b"}']
    # a network that trains in seconds tries every setting at every number of passes
    for method in ("scvi", "cfgen_like"):
        own = [dict(options) for options in experiment.GRIDS[method]]
        assert own[0] == {}
        passes = [options.pop("epochs", None) for options in own]
        tried = {(repr(options), n) for options, n in zip(own, passes, strict=True)}
        assert len(tried) == len(own) and tried == {(s, n) for s, _ in tried for n in (None, 60, 150)}


def test_a_kill_while_passes_are_tried_loses_no_network(parts, monkeypatch):
    run = records.start("scldm/reconstruction", tier="ci")
    protocol = experiment.Protocol(
        "toy", 0, [0], TINY, True, grids={"scldm": [{}, {"learning_rate": 1e-6}, {"epochs": 2}]}
    )
    whole = experiment.train

    def killed(*args, epochs, **options):
        if epochs == 2:
            raise KeyboardInterrupt
        return whole(*args, epochs=epochs, **options)

    monkeypatch.setattr(experiment, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.compare_methods(run, parts, protocol, ["scldm"])
    assert len(list((run.folder / "checkpoints").glob("*.safetensors"))) == 2
    monkeypatch.setattr(experiment, "train", whole)
    experiment.compare_methods(run, parts, protocol, ["scldm"])
    assert not list((run.folder / "checkpoints").glob("*"))


@pytest.mark.parametrize("method", experiment.NETWORKS)
def test_theta_keeps_up_with_the_means(method, monkeypatch):
    """At the rate of the weights, a network that has found the types still calls their differences dispersion."""
    from screpro.tasks import autoencoder

    if method == "scvi":
        pytest.importorskip("scvi")
    made = synthetic_cells(n_cells=300, n_genes=40, n_types=4, seed=0, depth=1000)
    base = AutoEncoderSettings(
        width=16, tokens=4, channels=4, layers=1, heads=2, epochs=20, batch_size=16, learning_rate=3e-3
    )
    own = {"hidden": (32,), "latent": 4, "clip": None} if method == "cfgen_like" else {"learning_rate": 3e-3}
    options = {} if method == "scldm" else {"batch_size": 16, **own}

    def lost(rate):
        """Nats a cell that the likeliest theta for the same means would gain."""
        monkeypatch.setattr(autoencoder, "THETA_RATE_FACTOR", rate)
        trained = experiment.train(method, made.counts, options, base=base, epochs=20, seed=0, threads=1)
        mean, theta = trained.law(made.counts)
        best = likeliest_theta(made.counts, mean)
        return re_nb_nll(made.counts, mean, theta) - re_nb_nll(made.counts, mean, best)

    assert 0 <= lost(autoencoder.THETA_RATE_FACTOR) < 0.5 * lost(1.0)


@pytest.mark.parametrize("method", experiment.NETWORKS)
def test_a_misspelt_option_is_refused(parts, method):
    with pytest.raises(ScreproError, match="options"):
        experiment.train(method, parts.train, {"laers": 3}, base=TINY, epochs=1, seed=0, threads=1)


def test_a_network_that_is_there_is_not_trained_again_and_the_truth_has_rows(parts, monkeypatch):
    run = records.start("scldm/reconstruction", tier="ci")
    protocol = experiment.Protocol("toy", 0, [0], TINY, False)
    done = experiment.train("scldm", parts.train, {}, base=TINY, epochs=1, seed=0, threads=1)
    monkeypatch.setattr(experiment, "train", None)
    truth = np.ones(parts.test.shape), np.ones(parts.test.shape[1])
    experiment.compare_methods(run, parts, protocol, ["scldm"], trained={("scldm", 0): done}, truth=truth)
    rows = run.frame()
    assert set(rows["method"]) == {"scldm", "truth"}
    own = rows[(rows["method"] == "scldm") & (rows["metric"] == "re_nb_nll") & (rows["metric_variant"] == "")]
    np.testing.assert_allclose(own["value"], re_nb_nll(parts.test, *done.law(parts.test)))


def test_cells_without_types_have_no_class_law(adata):
    unlabelled = adata.copy()
    del unlabelled.obs["cell_type"]
    parts = prepare(unlabelled, split=0)
    assert parts.n_types == 0
    run = records.start("scldm/reconstruction", tier="ci")
    experiment.compare_methods(run, parts, experiment.Protocol("toy", 0, [0], TINY, False), ["class_mean", "copy"])
    assert set(run.frame()["method"]) == {"copy"}
