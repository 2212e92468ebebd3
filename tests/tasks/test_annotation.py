"""The annotation experiment on simulated cells whose types are easy."""

import json
from dataclasses import replace

import numpy as np
import pytest

from screpro import records
from screpro.data import simulate
from screpro.data.preprocess import log_normalise
from screpro.data.splits import cell_split
from screpro.errors import ScreproError
from screpro.tasks import annotation_experiment
from screpro.tasks.annotation import (
    PRESETS,
    ScDiffSettings,
    annotation_cells,
    scdiff_grid,
    starting_point,
    train_annotator,
    train_test,
)

SMALL = ScDiffSettings(width=16, depth=2, heads=2, epochs=25, batch_size=32, learning_rate=3e-3, draws=2)


@pytest.fixture(scope="module")
def adata():
    return simulate.cells(180, 60, 3, n_batches=2, separation=2.0, rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def labelled(adata):
    return annotation_cells(log_normalise(adata))


def test_codes_follow_the_sorted_names(adata, labelled):
    assert labelled.types == sorted(set(adata.obs["cell_type"].astype(str)))
    assert labelled.batches == sorted(set(adata.obs["batch"].astype(str)))
    names = np.array(labelled.types)[labelled.cells.cell_type]
    assert (names == adata.obs["cell_type"].astype(str).to_numpy()).all()


def test_a_batch_that_settles_the_type_is_not_used(adata):
    """Sorted cells have one run per type; with the batch as an input the answer would be given away."""
    sorted_cells = adata.copy()
    sorted_cells.obs["batch"] = "run of " + sorted_cells.obs["cell_type"].astype(str)
    found = annotation_cells(log_normalise(sorted_cells))
    assert found.batches == ["all"] and found.cells.batch.max() == 0


def test_cells_without_types_are_refused_at_once(adata):
    """Some registered sets carry no labels."""
    unlabelled = adata.copy()
    del unlabelled.obs["cell_type"]
    with pytest.raises(ScreproError, match="cell_type"):
        annotation_cells(log_normalise(unlabelled))


def test_types_too_small_for_a_test_cell_are_left_out(adata):
    few = adata.copy()
    names = few.obs["cell_type"].astype(str).to_numpy(copy=True)
    names[:4], names[4:9] = "four of them", "five of them"
    few.obs["cell_type"] = names
    found = annotation_cells(log_normalise(few))
    assert found.left_out == {"four of them": 4} and "five of them" in found.types
    assert len(found.cells.cell_type) == len(found.cells.batch) == adata.n_obs - 4
    assert not annotation_cells(log_normalise(adata)).left_out


def test_parts_are_the_split(labelled):
    n = len(labelled.cells.cell_type)
    parts = cell_split(n, seed=4, test=0.2, validation=0.1)
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert [len(part) for part in parts] == [126, 18, 36]
    train, validation, test = train_test(labelled, 4, test=0.2, validation=0.1)
    for cells, rows in zip((train, validation, test), parts, strict=True):
        assert (cells.cell_type == labelled.cells.cell_type[rows]).all()
        assert (cells.x != labelled.cells.x[rows]).nnz == 0
    with pytest.raises(ScreproError, match="at least one training cell"):
        cell_split(3, seed=0, test=0.9)
    with pytest.raises(ScreproError, match="two types"):
        train_test(
            labelled._replace(cells=labelled.cells._replace(cell_type=np.zeros(n, int))), 0, test=0.1, validation=0
        )


def test_types_absent_from_training_are_no_candidates(labelled):
    train, _, test = train_test(labelled, 0, test=0.2, validation=0.0)
    seen = train.take(np.flatnonzero(train.cell_type != 1))
    annotator = train_annotator(seen, n_types=3, n_batches=2, settings=replace(SMALL, epochs=1), seed=0)
    assert set(annotator.candidates[:, 1]) == {1, 3}  # rows: code + 1
    assert set(annotator.candidates[:, 0]) == {1, 2}
    assert set(annotator.label(annotator.errors(test, seed=0), test)) <= {0, 2}
    given = replace(SMALL, search_batch=False)
    errors = annotator.errors(test, seed=0)
    annotator.settings = given
    winners = annotator.label(errors, test)
    mean = errors.error.mean(2)
    for cell in range(len(winners)):
        own = np.flatnonzero(annotator.candidates[:, 0] == test.batch[cell] + 1)
        assert annotator.candidates[own[mean[cell, own].argmin()], 1] - 1 == winners[cell]


def test_the_grid_starts_from_the_base():
    grid = scdiff_grid(PRESETS["laptop"])
    assert grid[0] == PRESETS["laptop"] and len(set(grid)) == len(grid)
    paper = PRESETS["paper"]
    # appendix E.1 and Table 3: 1e-8 per cell of a batch of 2048
    assert paper.learning_rate == pytest.approx(1e-8 * 2048)
    assert (paper.width, paper.depth, paper.heads, paper.n_times, paper.shared_noise) == (512, 6, 8, 5, False)


def test_the_rate_of_the_paper_is_that_of_the_data_set():
    rates = {name: starting_point("paper", name).learning_rate for name in ("scdiff_immune_subset", "scdiff_brain")}
    assert rates == pytest.approx({"scdiff_immune_subset": 2.048e-4, "scdiff_brain": 2.048e-5})  # Table 3
    assert starting_point("laptop", "scdiff_immune_subset") == PRESETS["laptop"]


def test_later_steps_do_not_count_where_the_settings_say_so(labelled):
    train, _, test = train_test(labelled, 0, test=0.2, validation=0.0)
    annotator = train_annotator(train, n_types=3, n_batches=2, settings=replace(SMALL, epochs=1), seed=0, threads=1)
    errors = annotator.errors(test, seed=0)
    early = replace(annotator, settings=replace(annotator.settings, last_time=500))
    spoilt = errors._replace(error=np.where(errors.times > 500, np.inf, errors.error))
    assert (errors.times > 500).any()
    np.testing.assert_array_equal(early.label(spoilt, test), early.label(errors, test))
    np.testing.assert_array_equal(early.label(errors, test), annotator.label(errors, test, times=np.arange(3)))


def test_settings_that_differ_in_reading_only_share_a_training(labelled, protocol, monkeypatch):
    trained = []
    train = annotation_experiment._train_scdiff
    monkeypatch.setattr(annotation_experiment, "_train_scdiff", lambda *a: trained.append(a[3]["epochs"]) or train(*a))
    pair = [replace(SMALL, epochs=1), replace(SMALL, epochs=1, last_time=500), replace(SMALL, epochs=2)]
    monkeypatch.setattr(annotation_experiment, "scdiff_grid", lambda base: pair)
    run = records.start("scdiff/annotation", tier="ci")
    annotation_experiment._chosen(run, labelled, protocol, "scdiff")
    assert trained == [1, 2] and len(run.frame()) == 3


@pytest.fixture
def protocol():
    return annotation_experiment.Protocol(
        dataset="simulated",
        splits=[0, 1],
        seeds=[0, 1],
        base=SMALL,
        tune=True,
        grids={"knn": [{}, {"k": 5}]},
        study_draws=(1, 2),
    )


METHODS = ["scdiff", "majority", "knn"]


def test_experiment(labelled, protocol, monkeypatch, tmp_path):
    monkeypatch.setattr(annotation_experiment, "scdiff_grid", lambda base: [base, replace(base, epochs=2)])
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "a-run")
    run = records.start("scdiff/annotation", tier="ci")
    annotation_experiment.compare_methods(run, labelled, protocol, METHODS)
    rows = run.frame()
    scores = rows[(rows["metric_variant"] == "") & (rows["metric"] == "macro_f1")]
    # methods without randomness are run once per split
    assert scores.groupby("method").size().to_dict() == {"scdiff": 4, "majority": 2, "knn": 2}
    mean = scores.groupby("method")["value"].mean()
    assert mean["scdiff"] > 0.7 > 0.4 > mean["majority"]
    assert set(rows.loc[rows["method"] == "knn", "metric"]) == {
        "macro_recall",
        "macro_precision",
        "macro_f1",
        "accuracy",
        "fit_predict",
    }
    tried = rows[rows["item"] == "tuning"]
    assert set(tried["split"]) == {"0, validation"} and set(tried["n_real"]) == {18}
    assert tried.groupby("method").size().to_dict() == {"scdiff": 2, "knn": 2}
    epochs = {
        json.loads(v)["epochs"]: x for v, x in tried.loc[tried.method == "scdiff", ["metric_variant", "value"]].values
    }
    assert epochs[25] > epochs[2]
    study = rows[rows["item"] == "X-1"]
    assert "batch given" in set(study["metric_variant"]) and study.groupby("metric_variant").size().eq(4).all()
    assert not list(tmp_path.glob("checkpoints/*"))  # checkpoints are gone once their rows are there

    # started again with the same key, nothing is measured twice
    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    again = records.start("scdiff/annotation", tier="ci")
    assert len(again.frame()) < len(rows)  # the last unit is not trusted
    annotation_experiment.compare_methods(again, labelled, protocol, METHODS)
    assert len(again.frame()) == len(rows)
    done = records.start("scdiff/annotation", tier="ci")
    monkeypatch.setattr(annotation_experiment, "_train_scdiff", refuse)
    annotation_experiment.compare_methods(done, labelled, protocol, ["scdiff"])


@pytest.mark.parametrize(("right", "chosen"), [([3, 12, 9], 1), ([5, 9, 9], 1), ([9, 9, 9], 0)])
def test_tuning_takes_the_best_and_the_earlier_of_equals(labelled, protocol, monkeypatch, right, chosen):
    """Predictions with a given number of right answers on the 18 validation cells."""
    grid = [{"k": k} for k in (1, 2, 3)]

    def answer(protocol, labelled, method, options, seed, train, cells, annotator):
        wrong = (cells.cell_type + 1) % 3
        return np.where(np.arange(len(wrong)) < right[options["k"] - 1], cells.cell_type, wrong)

    monkeypatch.setattr(annotation_experiment, "_predict", answer)
    run = records.start("scdiff/annotation", tier="ci")
    tuned = protocol._replace(grids={"knn": grid})
    assert annotation_experiment._chosen(run, labelled, tuned, "knn") == grid[chosen]
    assert len(run.frame()) == 3
    assert annotation_experiment._chosen(run, labelled, tuned._replace(tune=False), "knn") == grid[0]


def test_joined_cells_are_the_cells_of_both(labelled):
    cells, n = labelled.cells, len(labelled.cells.cell_type)
    order = np.random.default_rng(0).permutation(n)
    for cut in (0, 40, n):  # either part may be empty
        again = cells.take(order[:cut]).joined(cells.take(order[cut:])).take(np.argsort(order))
        assert (again.counts != cells.counts).nnz == 0 and (again.x != cells.x).nnz == 0
        assert (again.cell_type == cells.cell_type).all() and (again.batch == cells.batch).all()
        assert again.genes == cells.genes
