"""Both OpenProblems tasks on simulated cells: rules of the tasks, what the controls get, resumption."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro import records
from screpro.data import simulate
from screpro.data.preprocess import log_normalise
from screpro.errors import ScreproError
from screpro.metrics.denoising import controls, mcv_mse, mcv_poisson, split_counts
from screpro.processes.gaussian import scaled_linear
from screpro.tasks import openproblems, openproblems_denoising
from screpro.tasks.annotation import ScDiffSettings, annotation_cells
from screpro.tasks.denoiser import DenoiserSettings, build
from screpro.tasks.openproblems_denoising import LEADERBOARD, STEPS, Protocol, compare_denoisers
from screpro.tasks.openproblems_molecules import deal, denoise, denoised_counts, on_leaderboard_scale, shallow_cells

SMALL = DenoiserSettings(width=16, depth=2, heads=2, epochs=15, batch_size=32, learning_rate=3e-3)
QUICK = ["scdiff", "knn_smoothing", "gene_mean", "no_denoising", "zeros", "perfect"]


@pytest.fixture(scope="module")
def adata():
    return simulate.cells(120, 60, 3, separation=2.0, depth=600, rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def denoised(adata):
    run = records.start("scdiff/openproblems", tier="ci")
    protocol = Protocol("simulated", [(0, 0)], base=SMALL, tune=False)
    compare_denoisers(run, adata.X, protocol, QUICK)
    return run, protocol


def value(rows, method, metric="mcv_mse", variant=""):
    own = rows[(rows["method"] == method) & (rows["metric"] == metric) & (rows["metric_variant"] == variant)]
    return own["value"].item()


# --- denoising ---------------------------------------------------------------------------------------------


def test_dealing_drops_genes_and_cells_without_training_molecules():
    counts = np.random.default_rng(0).poisson(3.0, (20, 12))
    counts[4], counts[:, 7] = 0, 0
    counts[0, 7] = 1  # may go to either side; alone it does not make a gene that is scored unless it is shown
    parts = deal(sp.csr_matrix(counts), 0)
    train, test = split_counts(sp.csr_matrix(counts), rng=np.random.default_rng(0))
    genes, rows = train.toarray().sum(0) > 0, train.toarray().sum(1) > 0
    assert parts.train.shape == (rows.sum(), genes.sum()) and not rows[4]
    np.testing.assert_array_equal(parts.train.toarray(), train.toarray()[rows][:, genes])
    np.testing.assert_array_equal(parts.test.toarray(), test.toarray()[rows][:, genes])
    x = parts.train.toarray()
    np.testing.assert_allclose(parts.x.toarray(), np.log1p(1e4 * x / x.sum(1, keepdims=True)), rtol=1e-6)
    # the genes left out would not have been scored either
    assert mcv_mse(parts.train, train=parts.train, test=parts.test) == pytest.approx(
        mcv_mse(train[rows], train=train[rows], test=test[rows]), rel=1e-9
    )


def test_one_call_is_the_network_called():
    model = build(11, SMALL, seed=1).eval()
    x = sp.csr_matrix(np.random.default_rng(0).poisson(0.7, (7, 11)).astype(np.float32))
    dense, t = torch.as_tensor(x.toarray()), torch.full((7,), 300)
    noise = torch.randn(dense.shape, generator=torch.Generator().manual_seed(4))
    noisy = scaled_linear().diffuse(dense, t, noise)
    for context in (True, False):
        with torch.no_grad():
            expected = model(noisy, t, context=dense * context).numpy()
        np.testing.assert_allclose(denoise(model, x, t=300, context=context, seed=4), expected, atol=1e-5)
    halves = denoise(model, x, seed=0, draws=1), denoise(model, x, seed=0, draws=40)
    assert not np.array_equal(*halves) and np.allclose(*halves, atol=0.1)


def test_counts_come_back_from_their_logarithm():
    parts = deal(sp.csr_matrix(np.random.default_rng(0).poisson(3.0, (20, 12))), 0)
    np.testing.assert_allclose(denoised_counts(parts.x.toarray(), parts.train), parts.train.toarray(), atol=1e-4)
    assert (denoised_counts(parts.x.toarray() - 5, parts.train) >= 0).all()


def test_controls_of_the_denoising_task(adata, denoised):
    rows = denoised[0].frame()
    parts = deal(adata.X, 0)
    limits = controls(mcv_mse, train=parts.train, test=parts.test)
    assert value(rows, "perfect") == 0
    assert value(rows, "no_denoising") == limits["no denoising"]
    truth = parts.test.toarray().astype(float)
    truth = np.log1p(1e4 * truth / np.maximum(truth.sum(1, keepdims=True), 1))
    assert value(rows, "zeros") == pytest.approx(np.square(truth).mean())
    assert value(rows, "no_denoising") == pytest.approx(np.square(parts.x.toarray() - truth).mean(), rel=1e-5)
    for metric in ("mcv_mse", "mcv_poisson"):
        assert value(rows, "no_denoising", metric, LEADERBOARD) == 0
        assert value(rows, "perfect", metric, LEADERBOARD) == 1
    expected = (limits["no denoising"] - value(rows, "scdiff")) / limits["no denoising"]
    assert value(rows, "scdiff", variant=LEADERBOARD) == pytest.approx(expected)
    poisson = mcv_poisson(parts.train, train=parts.train, test=parts.test)
    assert value(rows, "no_denoising", "mcv_poisson") == poisson


def test_rows_of_the_denoising_task(denoised):
    run, _ = denoised
    rows = run.frame()
    assert set(rows["method"]) == set(QUICK) and np.isfinite(rows["value"]).all()
    assert rows.loc[rows["method"] == "gene_mean", "seed"].isna().all()
    assert set(rows.loc[rows["method"] == "scdiff", "seed"]) == {0}
    study = rows[rows["item"] == "X-20"].set_index("metric_variant")["value"]
    assert len(study) == 2 * len(STEPS) + 3
    assert study["t = 0, context"] == value(rows, "scdiff")  # the main row is one of the readings
    assert not any((run.folder / "checkpoints").glob("*")) if (run.folder / "checkpoints").exists() else True


def test_denoising_is_resumed_and_repeated(adata, denoised):
    run, protocol = denoised
    before = len(run.frame())
    compare_denoisers(run, adata.X, protocol, QUICK)
    assert len(run.frame()) == before
    again = records.start("scdiff/openproblems", tier="ci")
    compare_denoisers(again, adata.X, protocol, ["scdiff", "no_denoising"])
    assert value(again.frame(), "scdiff") == value(run.frame(), "scdiff")


def test_settings_are_chosen_on_a_second_dealing_of_the_training_part(adata):
    run = records.start("scdiff/openproblems", tier="ci")
    grid = [{}, {"k": 100}]
    protocol = Protocol("simulated", [(3, 0)], SMALL, True, grids={"knn_smoothing": grid})
    compare_denoisers(run, adata.X, protocol, ["knn_smoothing"])
    rows = run.frame()
    tried = rows[rows["item"] == "tuning"]
    assert list(tried["split"].unique()) == ["thinning 3, validation"]
    best = grid[tried["value"].argmin()]
    first = deal(adata.X, 3)
    second = deal(first.train, 1_000_003 + 3)
    assert second.train.sum() + second.test.sum() == first.train.sum()  # no molecule of the test part is touched
    from screpro.baselines import imputation

    for parts, options, row in ((second, {}, tried["value"].iloc[0]), (first, best, value(rows, "knn_smoothing"))):
        found = denoised_counts(imputation.run("knn_smoothing", parts.train, seed=0, options=options), parts.train)
        assert row == pytest.approx(mcv_mse(found, train=parts.train, test=parts.test))


def test_the_squared_error_prefers_zeros_to_the_truth_in_shallow_cells():
    found = shallow_cells([100, 30000], n_cells=100, n_genes=200, seed=0)
    assert found["mcv_mse", 100, "zeros"] < found["mcv_mse", 100, "no_denoising"] < found["mcv_mse", 100, "truth"]
    assert found["mcv_mse", 30000, "truth"] < found["mcv_mse", 30000, "no_denoising"]
    for depth in (100, 30000):
        others = [found["mcv_poisson", depth, who] for who in ("no_denoising", "gene_mean", "zeros")]
        assert found["mcv_poisson", depth, "truth"] < min(others)
    assert found == shallow_cells([100, 30000], n_cells=100, n_genes=200, seed=0)


def test_bad_denoising(adata):
    run = records.start("scdiff/openproblems", tier="ci")
    protocol = Protocol("simulated", [(0, 0)], SMALL, False)
    with pytest.raises(ScreproError, match="named by its key"):
        compare_denoisers(run, adata.X, protocol, ["scdiff", "nothing"])
    with pytest.raises(ScreproError, match="three cells"):
        deal(sp.csr_matrix(np.ones((2, 5))), 0)
    with pytest.raises(ScreproError, match="Only molecules"):
        deal(sp.csr_matrix(np.full((5, 5), 0.5)), 0)
    with pytest.raises(ScreproError, match="controls that differ"):
        on_leaderboard_scale(1.0, {"no denoising": 2.0, "perfect": 2.0})
    assert not len(run.frame())


# --- label projection --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(adata):
    return annotation_cells(log_normalise(adata))


def test_label_projection_rows(labelled):
    run = records.start("scdiff/openproblems", tier="ci")
    base = ScDiffSettings(**vars(replace(SMALL, epochs=40, batch_size=16, learning_rate=6e-3)), draws=2)
    grids = {"logistic_regression": [{"n_components": 10}, {"n_components": 10, "C": 1e-6}]}
    protocol = openproblems.Protocol("simulated", [(0, 0)], base, False, grids=grids)
    methods = ["scdiff", "logistic_regression", "seurat", "majority", "random_labels", "true_labels"]
    openproblems.compare_methods(run, labelled, protocol, methods)
    rows = run.frame()
    scores = rows[rows["metric"] == "accuracy"].set_index("method")["value"]
    assert scores["true_labels"] == 1 and scores["majority"] < 0.6
    assert scores["scdiff"] > 0.8 and min(scores["logistic_regression"], scores["seurat"]) > 0.9
    assert set(rows["metric"]) == {"accuracy", "macro_recall", "macro_precision", "macro_f1", "fit_predict"}
    assert set(rows.loc[rows["metric"] != "fit_predict", "item"]) == {"Table 11"}
    assert set(rows["n_real"]) == {24}  # 80 to 20
    openproblems.compare_methods(run, labelled, protocol, methods)
    assert len(run.frame()) == len(rows)


def test_label_projection_is_tuned_on_validation_cells(labelled):
    run = records.start("scdiff/openproblems", tier="ci")
    grid = [{"k": 1000}, {"k": 5, "n_components": 5}]  # the first can only answer with the largest class
    protocol = openproblems.Protocol("simulated", [(0, 0)], ScDiffSettings(), True, grids={"knn": grid})
    openproblems.compare_methods(run, labelled, protocol, ["knn"])
    rows = run.frame()
    tried = rows[rows["item"] == "tuning"].set_index("metric_variant")["value"]
    assert list(tried.index) == [json.dumps(options, sort_keys=True) for options in grid]
    assert tried.iloc[1] > tried.iloc[0]
    assert value(rows[rows["item"] == "Table 11"], "knn", "macro_f1") > 0.9


def test_unknown_method(labelled):
    protocol = openproblems.Protocol("simulated", [(0, 0)], ScDiffSettings(), False)
    with pytest.raises(ScreproError, match="named by its key"):
        openproblems.compare_methods(records.start("scdiff/openproblems", tier="ci"), labelled, protocol, ["magic"])


def test_methods_of_both_tasks_have_no_key_twice():
    common = set(openproblems.METHODS) & set(openproblems_denoising.METHODS)
    assert common == {"scdiff"}
