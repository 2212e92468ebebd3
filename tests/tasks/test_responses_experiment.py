"""The comparison of responses: what is chosen, what is compared, and what an interrupted run keeps."""

from types import SimpleNamespace

import numpy as np
import pytest

from screpro.data.populations import populations
from screpro.data.simulate_atlas import atlas
from screpro.errors import ScreproError
from screpro.metrics.perturbation import control_cells, de_auprc, de_auroc, pds_l1, pds_l2
from screpro.records import drawn_points
from screpro.records.results import Run
from screpro.tasks import responses_experiment as experiment
from screpro.tasks.responses import Scorer, Scores, constants, hold_out, win_rates
from screpro.tasks.responses_drawn import keep_significance
from screpro.tasks.responses_experiment import AGAINST, FAITHFUL, REPAIRED
from screpro.tasks.set_diffusion import SamplerSettings, SetDiffusionSettings
from screpro.tasks.small_values import ZEROED


@pytest.fixture(scope="module")
def split():
    adata = atlas(
        n_contexts=2, n_perturbations=8, n_donors=2, cells=12, control_cells=20, n_genes=40, n_programs=4,
        effect=1.5, rng=np.random.default_rng(0),
    )  # fmt: skip
    return hold_out(populations(adata, context_key="context", batch_key="donor", n_genes=None))


@pytest.fixture
def protocol():
    return experiment.Protocol(
        "atlas",
        "context 1",
        [0],
        SetDiffusionSettings(width=16, layers=1, heads=2, set_size=8, sets=2, steps=8, warmup_steps=1),
        SamplerSettings(steps=2),
        grids={REPAIRED: [{"input_scale": "unit", "weight": 0.0}]},
        options={AGAINST: {"steps": 4, "width": 16, "set_size": 8}},
        conditions=2,
        draws=2,
    )


def new_run(folder) -> Run:
    folder.mkdir(exist_ok=True)
    return Run("perturbdiff/main_results", tier="ci", folder=folder, run_id="test")


def scored(**each) -> Scores:
    return Scores({}, {name: np.array(value, dtype=float) for name, value in each.items()}, None)


def test_win_rates_count_ties_both_ways_and_turn_errors_around():
    own = scored(de_auroc=[0.6, 0.5, np.nan, 0.1], mae_of_means=[0.1, 0.2, 0.3, 0.3], called_unchanged=[0, 0, 0, 0])
    other = scored(de_auroc=[0.5, 0.5, 0.4, 0.2], mae_of_means=[0.2, 0.2, 0.2, 0.2], called_unchanged=[1, 1, 1, 1])
    rates = win_rates(own, other)
    assert rates == {"de_auroc": (pytest.approx(2 / 3), pytest.approx(1 / 3)), "mae_of_means": (0.5, 0.25)}
    assert win_rates(own, own)["mae_of_means"] == (1.0, 0.0)
    single = scored(de_auroc=[0.6, np.nan], mae_of_means=[0.1, 0.2], called_unchanged=[0, 0])
    assert set(win_rates(single, single)) == {"mae_of_means"}  # the rate of one perturbation is no rate


def test_floors_are_what_calling_every_gene_and_one_answer_for_all_get(split):
    scorer = Scorer(split.test, split.controls)
    floors = constants(scorer)
    everything = scorer.score(np.full(split.test.x.shape, 9.0))  # far above every control value: all genes are called
    assert everything.pair.generated.significant.all()
    assert everything.values["de_precision"] == pytest.approx(floors["de_precision"])
    nothing = control_cells(everything.pair)  # the same answer for every perturbation and gene
    for function in (de_auprc, de_auroc, pds_l1, pds_l2):
        assert np.nanmean(function(nothing)) == pytest.approx(floors[function.__name__]), function.__name__


def test_settings_go_where_they_belong_and_unknown_ones_are_refused(protocol):
    training, sampler = experiment.settings_of(protocol, {"noise_shift": 0.5, "weight": 0.0, "steps": 5})
    assert (training.noise_shift, training.steps, sampler.weight, sampler.steps) == (0.5, 5, 0.0, 2)
    training, sampler = experiment.settings_of(protocol, {"sampler_steps": 1})
    assert (training, sampler.steps) == (protocol.training, 1)
    with pytest.raises(TypeError):
        experiment.settings_of(protocol, {"colour": 1})


def test_answers_do_not_depend_on_the_held_out_expression(split, protocol):
    wiped = split.test.__class__(**{**vars(split.test), "x": 0 * split.test.x})
    for method in (FAITHFUL, "linear"):
        first, second = (
            experiment.answer(method, given, protocol, seed=0, options={}).test
            for given in (split, split._replace(test=wiped))
        )
        np.testing.assert_array_equal(first, second)


@pytest.mark.usefixtures("no_records")
def test_a_run_is_complete_and_continues_where_it_stopped(split, protocol, tmp_path, monkeypatch):
    methods = [FAITHFUL, AGAINST, "mean", "control_cells"]
    run = new_run(tmp_path / "whole")
    experiment.compare_methods(run, split, protocol, methods)
    whole = run.frame().set_index(["method", "metric", "metric_variant"])["value"]
    assert {"de_auroc", "null_calls", "fit_predict"} <= set(whole[FAITHFUL].index.get_level_values(0))
    assert 0 <= whole[FAITHFUL, "win_rate", "de_auroc strictly"] <= whole[FAITHFUL, "win_rate", "de_auroc"] <= 1
    assert whole["real_cells", "sampling_variance_ratio", "batches"] > 1  # donors differ in the simulation
    assert (FAITHFUL, "sampling_variance_ratio", "seeds") in whole.index
    # control cells asked for as control cells: nothing is changed
    assert whole["control_cells", "null_calls", ""] < 0.1
    # every answer is scored without values that no count gives too; of real cells that is the same
    assert set(whole["control_cells", :, ZEROED].index) == set(whole["control_cells", :, ""].index) - {"fit_predict"}
    for metric, value in whole["control_cells", :, ZEROED].items():
        assert value == pytest.approx(whole["control_cells", metric, ""]), metric
    gaps = [whole[FAITHFUL, "gene_zero_fraction_gap", variant] for variant in ("", ZEROED)]
    assert gaps[0] != gaps[1]
    each = drawn_points(run, "perturbations")
    assert set(each["method"]) == {FAITHFUL, AGAINST}
    for metric in ("de_auroc", "pds_l1", "mae_of_means"):
        mean = each[each["method"] == FAITHFUL][metric].mean()
        assert mean == pytest.approx(whole[FAITHFUL, metric, ""], rel=1e-3), metric
    curves = drawn_points(run, "significance").set_index(["method", "significance"])
    assert set(curves.index.get_level_values(0)) == {FAITHFUL, AGAINST, experiment.CEILING}
    assert (curves.xs(0.0, level="significance")[["changed", "unchanged"]] == 1).all(axis=None)

    answer, fitted = experiment.answer, []

    def counted(method, *args, **options):
        fitted.append(method)
        if len(fitted) == 3:
            raise KeyboardInterrupt
        return answer(method, *args, **options)

    monkeypatch.setattr(experiment, "answer", counted)
    with pytest.raises(KeyboardInterrupt):
        experiment.compare_methods(new_run(tmp_path / "broken"), split, protocol, methods)
    assert fitted == ["mean", AGAINST, FAITHFUL]
    fitted.extend([""])  # past the interruption
    again = new_run(tmp_path / "broken")
    experiment.compare_methods(again, split, protocol, methods)
    assert "mean" not in fitted[4:]
    resumed = again.frame().set_index(["method", "metric", "metric_variant"])["value"]
    own = whole[whole.index.get_level_values("metric") != "fit_predict"]
    np.testing.assert_allclose(resumed[own.index], own, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("no_records")
def test_curves_are_shares_of_changed_and_of_unchanged_genes(tmp_path):
    run = new_run(tmp_path)
    fdr = np.array([[0.0, 1e-3, 1.0], [1e-5, 1.0, 0.1]])
    changed = np.array([[True, True, False], [True, False, False]])
    pair = SimpleNamespace(generated=SimpleNamespace(fdr=fdr), real=SimpleNamespace(significant=changed))
    keep_significance(run, pair, dataset="d", method="m")
    curve = drawn_points(run, "significance").set_index("significance")
    shares = [[1, 1], [1, 1 / 3], [2 / 3, 0], [1 / 3, 0]]
    np.testing.assert_allclose(curve.loc[[0, 1, 4, 10], ["changed", "unchanged"]], shares, atol=1e-4)
    unchanged = SimpleNamespace(generated=pair.generated, real=SimpleNamespace(significant=np.zeros((2, 3), bool)))
    keep_significance(run, unchanged, dataset="d", method="m")
    assert "changed" not in drawn_points(run, "significance")


def test_settings_are_chosen_on_validation_cells_and_their_answer_is_kept(split, protocol, tmp_path):
    grid = [{"penalty": 1e9}, {"penalty": 1.0}]  # the first predicts no change
    tuned = protocol._replace(grids={"linear": grid}, tune=True)
    run = new_run(tmp_path)
    chosen, made = experiment.choose(run, split, tuned, ["linear", "mean"])
    rows = run.frame()
    assert (rows["item"] == "tuning").all() and len(rows) == 2
    assert chosen.grids["linear"] == [grid[1]] and rows["value"].idxmin() == 1
    fresh = experiment.answer("linear", split, protocol, seed=0, options=grid[1])
    np.testing.assert_array_equal(made["linear", 0].test, fresh.test)
    untuned, made = experiment.choose(run, split, tuned._replace(tune=False), ["linear"])
    assert untuned.grids["linear"] == [grid[0]] and not made


def test_a_setting_may_replace_the_length_of_the_protocol(split, protocol, monkeypatch):
    fitted = []

    def run(method, train, *, asked, options, **_):
        fitted.append(options)
        return np.zeros((len(asked), len(asked.genes)), dtype=np.float32)

    monkeypatch.setattr(experiment.baselines, "run", run)
    for setting in ({}, {"width": 24}, {"steps": 2}):
        experiment.answer(AGAINST, split, protocol, seed=0, options=setting)
    length = protocol.options[AGAINST]
    assert fitted == [length, length | {"width": 24}, length | {"steps": 2}]


def test_an_unknown_method_is_one_clear_error(split, protocol):
    with pytest.raises(ScreproError, match="named by its key"):
        experiment.answer("magic", split, protocol, seed=0, options={})
