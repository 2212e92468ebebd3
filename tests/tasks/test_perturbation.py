"""Holding out a type's stimulated cells, scDiff as a perturbation method, and the experiment around both."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from screpro import records
from screpro.baselines.arithmetic import mean_change
from screpro.data import simulate
from screpro.errors import ScreproError
from screpro.tasks import perturbation_experiment as experiment
from screpro.tasks.perturbation import (
    PRESETS,
    ScDiffSettings,
    StateCells,
    hold_out,
    largest_types,
    perturbed_cells,
    scdiff_grid,
    train_predictor,
    validation_type,
)
from screpro.tasks.perturbation_scores import METRICS, half_against_half, score_cells
from screpro.tasks.perturbation_synthetic import TRUTH, known_truth, stimulate

SMALL = ScDiffSettings(width=16, depth=2, heads=2, epochs=40, batch_size=32, learning_rate=3e-3)


@pytest.fixture(scope="module")
def adata():
    made = simulate.cells(240, 60, 4, n_batches=2, separation=1.5, rng=np.random.default_rng(0))
    return stimulate(made, n_response=20, effect=2.0, rng=np.random.default_rng(1))


@pytest.fixture(scope="module")
def perturbed(adata):
    return perturbed_cells(adata)


@pytest.fixture(scope="module")
def held(perturbed):
    return hold_out(perturbed, "type 1")


def test_codes_and_states(adata, perturbed):
    cells = perturbed.cells
    assert perturbed.states == ("control", "stimulated")
    assert (np.array(perturbed.types)[cells.cell_type] == adata.obs["cell_type"].astype(str)).all()
    assert (cells.state == (adata.obs["condition"] == "stimulated")).all()
    assert set(np.bincount(2 * cells.cell_type + cells.state)) == {30}  # half of each type
    assert perturbed.batches == ["batch 0", "batch 1"]


def test_the_effect_put_in_is_the_one_that_is_stated():
    """Means of the two states differ by the stated factor in every type, and no molecule is new."""
    made = simulate.cells(4000, 40, 2, size_spread=0.0, rng=np.random.default_rng(0))
    out = stimulate(made, n_response=15, effect=1.0, rng=np.random.default_rng(1))
    assert (made.X - out.X).min() >= 0
    fold = out.varm["log2_fold"]
    assert (fold != 0).any(1).sum() == 15 and np.abs(fold).max() <= 4
    assert len(np.unique(fold[(fold != 0).any(1), 0] / fold[(fold != 0).any(1), 1])) > 1  # depends on the type
    for code, name in enumerate(["type 0", "type 1"]):
        own = out[out.obs["cell_type"] == name]
        is_stimulated = (own.obs["condition"] == "stimulated").to_numpy()
        counts = [np.asarray(own.X[chosen].sum(0)).ravel() for chosen in (is_stimulated, ~is_stimulated)]
        enough = np.minimum(*counts) > 2000
        assert (enough & (fold[:, code] != 0)).sum() > 3
        np.testing.assert_allclose(np.log2(counts[0] / counts[1])[enough], fold[enough, code], atol=0.15)
        answered = np.asarray(own.layers[TRUTH][~is_stimulated].sum(0)).ravel()  # the same cells, had they been asked
        np.testing.assert_allclose(np.log2(answered / counts[1])[enough], fold[enough, code], atol=0.15)
        assert (own.layers[TRUTH][is_stimulated] != own.X[is_stimulated]).nnz == 0
    assert (made.X - out.layers[TRUTH]).min() >= 0
    with pytest.raises(ScreproError, match="tenth of the cells"):
        stimulate(made, n_response=41, rng=np.random.default_rng(0))


def test_the_known_truth_is_the_answer_of_the_control_cells(adata, held):
    genes = [*held.train.genes[::-1], "no such gene"]
    truth = known_truth(adata, held.name, genes)
    assert truth.shape == (held.control.shape[0], len(genes)) and truth[:, -1].nnz == 0
    truth = truth[:, len(held.train.genes) - 1 :: -1]
    assert score_cells(truth, held.stimulated, held.control)["r2_change_top100"] > 0.9
    unchanged = score_cells(held.control, held.stimulated, held.control)
    assert score_cells(truth, held.stimulated, held.control)["energy_distance_u"] < 0.2 * unchanged["energy_distance_u"]


def test_only_published_labels_are_used_and_controls_can_be_capped(adata):
    some = adata.copy()
    some.obs["label_source"] = np.where(np.arange(adata.n_obs) % 3 == 0, "none", "published")
    assert perturbed_cells(some).cells.x.shape[0] == (np.arange(adata.n_obs) % 3 != 0).sum()
    capped = perturbed_cells(adata, max_control=7).cells
    sizes = np.bincount(2 * capped.cell_type + capped.state).reshape(-1, 2)
    assert (sizes[:, 0] == 7).all() and (sizes[:, 1] == 30).all()
    again = perturbed_cells(adata, max_control=7).cells
    assert (again.x != capped.x).nnz == 0


def test_conditions_that_are_no_perturbation_are_refused(adata):
    other = adata.copy()
    other.obs["condition"] = np.arange(other.n_obs) % 3
    with pytest.raises(ScreproError, match="two conditions"):
        perturbed_cells(other)
    other.obs["condition"] = np.where(np.arange(other.n_obs) % 2, "a", "b")
    with pytest.raises(ScreproError, match="one of them the control"):
        perturbed_cells(other)
    assert perturbed_cells(other, control="b").states == ("b", "a")
    with pytest.raises(ScreproError, match="condition"):
        perturbed_cells(other, condition_key="missing")


def test_what_is_held_out(perturbed, held):
    cells = perturbed.cells
    hidden = (cells.cell_type == 1) & (cells.state == 1)
    assert held.train.x.shape[0] == (~hidden).sum()
    assert not len(held.train.rows(state=1, cell_type=1))
    assert (held.stimulated != cells.x[hidden]).nnz == 0
    assert (held.control != cells.x[(cells.cell_type == 1) & (cells.state == 0)]).nnz == 0
    both = hold_out(perturbed, "type 1", also="type 2").train
    assert set(both.cell_type[both.state == 1]) == {0, 3}


def test_held_out_cells_are_never_looked_at(perturbed):
    """Genes, training cells, trained weights and predictions stay the same whatever the held-out cells are."""
    cells = perturbed.cells
    hidden = np.flatnonzero((cells.cell_type == 1) & (cells.state == 1))
    spoiled = cells.x.tolil()
    spoiled[hidden] = np.nan
    other = perturbed._replace(cells=cells._replace(x=spoiled.tocsr()))
    results = []
    for source in (perturbed, other):
        held = hold_out(source, "type 1", n_genes=25)
        short = replace(SMALL, epochs=1)
        predictor = train_predictor(held, n_types=4, n_batches=2, settings=short, seed=3)
        results.append((held.train.genes, predictor.predict(sampler="ddim", seed=1)))
    assert results[0][0] == results[1][0] and len(results[0][0]) == 25
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert np.isnan(held.stimulated.toarray()).all()


def test_types_that_cannot_be_held_out_are_refused(perturbed):
    with pytest.raises(ScreproError, match="one of the cells' types"):
        hold_out(perturbed, "type 9")
    cells = perturbed.cells
    few = cells.take(np.setdiff1d(np.arange(len(cells.state)), cells.rows(state=1, cell_type=1)[9:]))
    assert largest_types(perturbed._replace(cells=few), 4)[-1] == "type 1"
    with pytest.raises(ScreproError, match="at least 10 control and 10 stimulated"):
        hold_out(perturbed._replace(cells=few), "type 1")
    alone = cells.take(np.flatnonzero((cells.cell_type == 1) | (cells.state == 0)))
    with pytest.raises(ScreproError, match="types with control and stimulated"):
        hold_out(perturbed._replace(cells=alone), "type 1")


def test_settings_are_tuned_on_a_type_that_is_not_scored(perturbed):
    assert validation_type(perturbed, ["type 0", "type 3"]) in ("type 1", "type 2")
    assert validation_type(perturbed, perturbed.types) is None
    few = perturbed.cells.take(np.flatnonzero((perturbed.cells.state == 0) | (perturbed.cells.cell_type != 2)))
    assert validation_type(perturbed._replace(cells=few), ["type 0", "type 1", "type 3"]) is None


def test_scdiff_takes_the_change_from_the_other_types(perturbed, held):
    predictor = train_predictor(held, n_types=4, n_batches=2, settings=SMALL, seed=0)
    assert predictor.model.batch_table is None  # off unless asked for
    one = predictor.predict(sampler="ddim", seed=0)
    assert one.shape == held.control.shape and one.min() >= 0
    scores = score_cells(one, held.stimulated, held.control)
    ceiling = half_against_half(held, halves=3, seed=0)
    assert scores["r2_change_top100"] > 0.5 and 0.3 < scores["change_size_ratio"] < 1.3
    assert set(ceiling) == set(METRICS)
    with_batch = train_predictor(
        held, n_types=4, n_batches=2, settings=replace(SMALL, epochs=1, use_batch=True), seed=0
    )
    assert with_batch.model.config.n_batches == 3
    assert set(with_batch.batch) == {1, 2}
    some = predictor.predict(sampler="one call", seed=0, rows=np.array([3]))
    assert some.shape == (1, 60)


def test_scores_of_predictions_that_are_known(held):
    real = held.stimulated.toarray()
    perfect = score_cells(real, held.stimulated, held.control)
    assert perfect["r2_change_top100"] == pytest.approx(1) and perfect["change_size_ratio"] == pytest.approx(1)
    assert perfect["gene_variance_log2_ratio"] == perfect["gene_zero_fraction_gap"] == 0
    unchanged = score_cells(held.control, held.stimulated, held.control)
    assert unchanged["r2_change_top100"] == unchanged["change_size_ratio"] == 0
    mean = np.tile(held.control.mean(0), (30, 1)).astype(np.float32)
    constant = score_cells(mean, held.stimulated, held.control)
    assert constant["r2_change_top100"] == 0 and "gene_variance_log2_ratio" not in constant
    shift = score_cells(real - 100.0, held.stimulated, held.control)
    assert shift["gene_zero_fraction_gap"] == pytest.approx(np.mean(real > 0))  # below zero counts as zero


def test_presets():
    grid = scdiff_grid(PRESETS["laptop"])
    assert grid[0] == PRESETS["laptop"] and len(set(grid)) == len(grid)
    paper = PRESETS["paper"]
    assert paper.learning_rate == pytest.approx(5e-9 * 2048)  # appendix E.1
    assert (paper.width, paper.depth, paper.epochs, paper.use_batch) == (512, 6, 1000, True)


def test_experiment(perturbed, monkeypatch, tmp_path):
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "a-run")
    short = replace(SMALL, epochs=4)
    monkeypatch.setattr(experiment, "scdiff_grid", lambda base: [base, replace(base, epochs=1)])
    protocol = experiment.Protocol("simulated", ["type 1", "type 2"], [0, 1], short, tune=True, n_genes=40, halves=2)
    protocol = protocol._replace(ends=[999, 990])
    methods = ["scdiff_ddim50", "scdiff_one_call", "no_change", "vec_pooled", "pca_vec_pooled", "oracle"]
    run = records.start("scdiff/perturbation", tier="ci")
    experiment.compare_methods(run, perturbed, protocol, methods)
    rows = run.frame()
    main = rows[(rows["metric"] == "r2_change_top100") & (rows["item"] == "Table 2b")]
    assert main.groupby("method").size().to_dict() == {
        "scdiff_ddim50": 4,
        "scdiff_one_call": 4,
        "no_change": 2,
        "vec_pooled": 2,
        "pca_vec_pooled": 2,
        "oracle": 2,
    }
    assert set(main["split"]) == {"type 1", "type 2"} and set(main["n_genes"]) == {40}
    assert set(rows["metric"]) == {*METRICS, "fit_predict", "cells_per_second"}
    early = rows[rows["item"] == "X-21"].set_index(["metric_variant", "metric", "seed"])["value"]
    one_call = rows[(rows["method"] == "scdiff_one_call") & (rows["split"] == "type 1") & rows["metric"].isin(METRICS)]
    assert len(early) == 3 * 2 * len(METRICS)  # two ends and even steps, two seeds, the first type alone
    for row in one_call.itertuples():  # the first answer of the chain is the only one of one call
        assert early["answer at t = 999", row.metric, row.seed] == row.value
    tried = rows[rows["item"] == "tuning"]
    assert set(tried["split"]) == {f"{validation_type(perturbed, ['type 1', 'type 2'])}, validation"}
    assert tried.groupby("method").size().to_dict() == {"scdiff": 2, "pca_vec_pooled": 3}
    epochs = {json.loads(v)["epochs"] for v in tried.loc[tried["method"] == "scdiff", "metric_variant"]}
    assert epochs == {4, 1}
    assert not list(tmp_path.glob("checkpoints/*"))  # checkpoints are gone once their rows are there

    experiment.study_batch(run, perturbed, protocol)
    study = run.frame()
    study = study[study["item"] == "X-7"]
    # without the batch it is the network that was scored before
    own = study[(study["metric_variant"] == "batch not given") & (study["metric"] == "r2_change_top100")]
    before = main[(main["method"] == "scdiff_ddim50") & (main["split"] == "type 1")]
    assert own["value"].tolist() == before["value"].tolist()
    assert study.groupby("metric_variant").size().to_dict() == {"batch given": 10, "batch not given": 10}

    # started again with the same key, only the last unit, which is not trusted, is measured again
    again = records.start("scdiff/perturbation", tier="ci")
    experiment.compare_methods(again, perturbed, protocol, methods)
    experiment.study_batch(again, perturbed, protocol)
    assert len(again.frame()) == len(run.frame())

    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(experiment, "_train_scdiff", refuse)
    monkeypatch.setattr(experiment.baselines, "run", refuse)
    experiment.compare_methods(again, perturbed, protocol, methods)
    experiment.study_batch(again, perturbed, protocol)


def test_throughput_counts_cells(perturbed, held, monkeypatch, tmp_path):
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "a-run")
    calls = []

    class Drawn:
        control = sp.csr_matrix((30, 5))

        def predict(self, *, seed, rows=None):
            calls.append(30 if rows is None else len(rows))

    run = records.start("scdiff/perturbation", tier="ci")
    protocol = experiment.Protocol("simulated", ["type 1"], [0], SMALL, tune=False)
    experiment.study_throughput(run, Drawn(), protocol, name="type 1", alone=3)
    assert calls == [1, 1, 1]
    assert run.frame()["n_generated"].tolist() == [3]


def test_pooling_over_cells_mistakes_composition_for_change():
    """Nothing changes in any type; the two states hold types in different shares."""
    x = sp.csr_matrix(np.repeat([[2.0], [0.0], [2.0], [0.0]], [8, 2, 5, 5], axis=0))
    cells = StateCells(
        x, np.repeat([0, 1, 0, 1], [8, 2, 5, 5]), np.repeat([0, 1], 10), np.zeros(20, dtype=np.int64), ["g"]
    )
    assert mean_change(cells, per_type=False) == pytest.approx(-0.6)
    assert mean_change(cells, per_type=True) == 0
