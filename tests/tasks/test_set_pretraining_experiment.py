"""The experiments of the pre-training and the scaling page: which rows they leave, and that they resume."""

import pytest

from screpro import records
from screpro.tasks import set_pretraining_experiment as pretraining
from screpro.tasks import set_scaling_experiment as scaling
from screpro.tasks.set_diffusion import SamplerSettings, SetDiffusionSettings
from screpro.tasks.set_pretraining_data import laboratories, prepare
from screpro.tasks.set_scaling import step_flops

TINY = SetDiffusionSettings(width=16, layers=1, heads=4, set_size=8, sets=4, steps=6, warmup_steps=2)
SAMPLER = SamplerSettings(steps=2)


@pytest.fixture(scope="module")
def splits():
    return laboratories(n_perturbations=8, cells=10, n_genes=70)[0]


def _fail(*_, **__):
    raise AssertionError("trained again")


def test_rows_of_pretraining_and_resuming(splits, monkeypatch):
    study = prepare(splits, genes=30)
    protocol = pretraining.Protocol(
        pretraining=TINY,
        finetuning=TINY,
        seeds=[3],
        sampler=SAMPLER,
        ratios=(0.05, 1.0),
        low_data=["simulated_atlas"],
        all_starts=["simulated_atlas"],
        elsewhere=["simulated_atlas"],
        checkpoints=3,
    )
    run = records.start("perturbdiff/pretraining", tier="ci")
    pretraining.compare_starts(run, study, protocol)
    rows = run.frame()
    assert set(rows["dataset"]) == set(splits)
    found = {v: set(own["method"]) for v, own in rows.groupby("metric_variant")}
    assert {pretraining.RANDOM, pretraining.PRETRAINED, "pretrained_first_epoch"} <= found["zero-shot"]
    assert found["5 %"] == {pretraining.SCRATCH, pretraining.FINETUNED, pretraining.ELSEWHERE}
    assert found["100 %"] == {pretraining.SCRATCH, pretraining.FINETUNED}
    assert found["gain"] == {"gain_5", "gain_100"}
    assert found["step 0"] == {pretraining.RANDOM}
    assert len(found["initialisation"]) == 6
    # gains are differences of the rows they come from, turned so that larger is better
    value = rows.set_index(["dataset", "method", "metric_variant", "metric"])["value"].xs("simulated_atlas")
    for metric, sign in (("mae_of_means", -1), ("r2_of_means", 1)):
        both = [value[method, "5 %", metric] for method in (pretraining.FINETUNED, pretraining.SCRATCH)]
        assert value["gain_5", "gain", metric] == pytest.approx(sign * (both[0] - both[1]))
    monkeypatch.setattr(pretraining.pretraining, "pretrain", _fail)
    monkeypatch.setattr(pretraining.finetuning, "train_course", _fail)
    # a killed run loses the rows of its last method: differences come back from the rows they are of
    run._rows = {key: row for key, row in run._rows.items() if row["method"] != "gain_5"}
    pretraining.compare_starts(run, study, protocol)
    assert len(run.frame()) == len(rows)


def test_rows_of_scaling_and_resuming(splits, monkeypatch):
    split = splits["simulated_atlas"]
    protocol = scaling.Protocol("atlas", {"small": 8, "large": 16}, TINY, seeds=[0], checkpoints=2, sampler=SAMPLER)
    run = records.start("perturbdiff/scaling", tier="ci")
    scaling.compare_sizes(run, split, protocol)
    rows = run.frame()
    flops = rows[(rows["metric"] == "training_flops") & (rows["method"] == "large")]
    course = scaling.train_size(split, protocol, "large", seed=0)
    cost = step_flops(course.trained.model.config, sets=TINY.sets, set_size=TINY.set_size).total
    for _, row in flops.iterrows():
        assert row["value"] == pytest.approx(cost * int(row["metric_variant"].removeprefix("step ")))
    assert len(flops) == 2
    value = rows.set_index(["method", "metric_variant", "metric"])["value"]
    last = max(step for step in course.snapshots)
    first = min(step for step in course.snapshots if step)
    expected = value["large", f"step {last}", "mae_of_means"] - value["large", f"step {first}", "mae_of_means"]
    assert value["large", "fall", "mae_of_means"] == pytest.approx(expected)  # a larger error is a fall
    monkeypatch.setattr(scaling, "train_course", _fail)
    scaling.compare_sizes(run, split, protocol)
    assert len(run.frame()) == len(rows)
