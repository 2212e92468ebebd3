"""Marginal pre-training, what it is shown, and what fine-tuning takes over."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.errors import ScreproError
from screpro.tasks import set_finetuning as finetuning
from screpro.tasks import set_pretraining as pretraining
from screpro.tasks.set_diffusion import SamplerSettings, SetDiffusionSettings, train
from screpro.tasks.set_pretraining_data import check_unseen, laboratories, prepare, subsample
from screpro.tasks.set_pretraining_experiment import better_by, dips, mean_gain
from screpro.tasks.set_snapshots import geometric_steps

TINY = SetDiffusionSettings(width=16, layers=1, heads=4, set_size=8, sets=3, steps=30, warmup_steps=5)
SAMPLER = SamplerSettings(steps=5)


@pytest.fixture(scope="module")
def splits():
    return laboratories(n_perturbations=8, cells=12, n_genes=70)[0]


@pytest.fixture(scope="module")
def study(splits):
    return prepare(splits, genes=40)


@pytest.fixture(scope="module")
def network(study):
    return pretraining.pretrain(study.sources, study.space, TINY, seed=0, checkpoints=3)


def _draw(network, target, source, **options):
    placed = target.placed
    given = {"step": None, "sampler": SAMPLER, "seed": 0, "title": None, "controls": placed.controls} | options
    return pretraining.zero_shot(network, options.pop("asked", placed.test), source=source, **{
        k: v for k, v in given.items() if k != "asked"})  # fmt: skip


def test_a_batch_is_of_one_source_without_controls_and_told_the_context(study):
    draw = pretraining.MixedDrawer(study.sources, TINY, np.full(len(study.space.vocabulary.genes), 10.0))
    generator = torch.Generator().manual_seed(0)
    own = [set(np.flatnonzero(np.bincount(cells.context))) for cells in study.sources.values()]
    sets = [0, 0]
    for item in range(len(draw)):
        batch = draw(torch.tensor([item]), generator)
        assert batch.control is None
        assert set(batch.labels) == {"context"}
        assert set(batch.labels["context"].tolist()) <= own[batch.source]
        sets[batch.source] += len(batch.x0)
    # sources take turns in proportion to their sets
    assert [-(-len(drawer) // TINY.sets) for drawer in draw.drawers] == [-(-n // TINY.sets) for n in sets]


def test_no_cell_that_is_asked_for_is_a_source(study):
    def prints(cells):
        return {tuple(row) for row in np.round(cells.counts.toarray()).astype(int).tolist()}

    for name, target in study.targets.items():
        assert not prints(study.sources[name]) & prints(target.placed.test)
        check_unseen(study.sources[name], target.placed.test)
        both = study.sources[name]
        seen = replace(both, perturbation=np.full(len(both), target.placed.test.perturbation[0]))
        with pytest.raises(ScreproError, match="may enter pre-training"):
            check_unseen(seen, target.placed.test)


def test_vocabulary_and_sources_do_not_depend_on_held_out_cells(splits, study):
    rng = np.random.default_rng(0)

    def other(cells):
        counts = sp.csr_matrix(rng.poisson(3.0, cells.counts.shape).astype(np.float32))
        return replace(cells, counts=counts, x=counts.log1p())

    changed = {name: split._replace(test=other(split.test)) for name, split in splits.items()}
    again = prepare(changed, genes=40)
    assert again.space.vocabulary.genes == study.space.vocabulary.genes
    for name, cells in study.sources.items():
        assert (again.sources[name].x != cells.x).nnz == 0


def test_contexts_of_a_source_keep_their_names(study, splits):
    for name, split in splits.items():
        placed, cells = study.sources[name], split.train
        names = np.array(placed.contexts)[placed.context]
        assert (names == np.array(cells.contexts)[cells.context]).all()


def test_zero_shot_knows_the_context_alone(network, study):
    target = study.targets["simulated_atlas"]
    asked, controls = target.placed.test, target.placed.controls
    first = _draw(network, target, "simulated_atlas")
    empty = sp.csr_matrix(asked.x.shape, dtype=np.float32)
    blind = replace(asked, x=empty, counts=empty)
    none = sp.csr_matrix(controls.x.shape, dtype=np.float32)
    hidden = replace(controls, x=none, counts=none)
    assert np.array_equal(first, _draw(network, target, "simulated_atlas", asked=blind, controls=hidden))
    # codes of perturbations in another order that sorts the same: nothing but the grouping sees them
    known = np.unique(asked.perturbation)
    renamed = replace(asked, perturbation=known[0] + np.searchsorted(known, asked.perturbation))
    assert np.array_equal(first, _draw(network, target, "simulated_atlas", asked=renamed))
    # another entrance is another answer
    assert not np.allclose(first, _draw(network, target, "simulated_atlas_b"))


def test_pretraining_learns_more_than_it_started_with(study):
    settings = replace(TINY, width=32, steps=100, warmup_steps=10)
    network = pretraining.pretrain(study.sources, study.space, settings, seed=0, checkpoints=2)
    target = study.targets["simulated_atlas"]
    scores = {}
    for step in (0, max(network.snapshots)):
        made = _draw(network, target, "simulated_atlas", step=step)
        scores[step] = target.scorer.score(target.on_panel(made)).values["r2_of_means"]
    assert 1 - scores[max(scores)] < 0.1 * (1 - scores[0])  # of the variance left unexplained


@pytest.mark.parametrize("strategy", finetuning.STARTS)
def test_what_fine_tuning_takes_over(network, study, strategy):
    target = study.targets["simulated_atlas_b"]
    cells = (target.panel if strategy == "new_panel" else target.placed).train
    model = finetuning.start(strategy, network, cells, source="simulated_atlas_b", seed=5)
    old, new = network.model.state_dict(), model.state_dict()
    fresh = train(cells, replace(TINY, steps=1), seed=5).model.config
    assert model.config == fresh  # ready for training on these cells
    kept = ("blocks.", "time.", "shared", "no_condition")
    for name, tensor in new.items():
        if name.startswith(kept):
            assert torch.equal(tensor, old[name]), name
        if name in ("leave.weight", "covariates.mix.weight"):
            assert tensor.shape != old[name].shape or not torch.equal(tensor, old[name])
    assert not new["leave_modulation.weight"].any()  # as at the start of any training
    if strategy != "new_panel":
        assert torch.equal(new["condition.weight"], old["condition.weight"])
        same = torch.equal(new["enter.0.weight"], old["enter.1.weight"])  # its own entrance is the second
        assert same == (strategy == "inputs_kept")


def test_vocabularies_that_do_not_fit_are_refused(network, study):
    target = study.targets["simulated_atlas"]
    for strategy in ("inputs_kept", "inputs_new"):
        with pytest.raises(ScreproError, match="genes of its vocabulary"):
            finetuning.start(strategy, network, target.panel.train, source="simulated_atlas", seed=0)
    with pytest.raises(ScreproError, match="another list of genes"):
        finetuning.start("new_panel", network, target.placed.train, source="simulated_atlas", seed=0)
    with pytest.raises(ScreproError, match="entrance"):
        finetuning.start("inputs_kept", network, target.placed.train, source="elsewhere", seed=0)
    with pytest.raises(ScreproError, match="one vocabulary"):
        pretraining.pretrain({"a": target.panel.train}, study.space, TINY, seed=0)
    with pytest.raises(ScreproError, match="steps were kept"):
        network.at(1)


def test_the_end_of_a_course_is_the_end_of_training(study):
    cells = study.targets["simulated_atlas"].panel.train
    course = finetuning.train_course(cells, TINY, seed=3, checkpoints=3)
    plain = train(cells, TINY, seed=3).model.state_dict()
    last = max(course.snapshots)
    for name, tensor in course.trained.model.state_dict().items():
        assert torch.equal(tensor, plain[name]), name
        assert torch.equal(tensor, course.snapshots[last][name])
    assert course.trained.fit.steps == last
    assert not torch.equal(course.at(0).model.leave.weight, course.trained.model.leave.weight)


def test_a_subsample_keeps_every_perturbation_and_all_controls(study):
    panel, placed = study.targets["simulated_atlas"].panel.train, study.targets["simulated_atlas"].placed.train
    few, few_placed = subsample(panel, 0.05, seed=1), subsample(placed, 0.05, seed=1)
    count = np.bincount(panel.perturbation)
    assert (np.bincount(few.perturbation)[1:] == np.maximum(1, np.round(0.05 * count))[1:]).all()
    assert few.is_control.sum() == panel.is_control.sum()
    assert np.array_equal(few.batch, few_placed.batch)  # the same cells on either list of genes
    assert np.array_equal(few.context[few.perturbation > 0], few.context[~few.is_control])
    assert subsample(panel, 1.0, seed=1) is panel


def test_a_dip_is_measured_below_the_lower_end():
    curve = {0: {"pd_corr": 9.0}, 1: {"pd_corr": 0.5}, 2: {"pd_corr": 0.1}, 4: {"pd_corr": 0.3}, 8: {"pd_corr": 0.4}}
    assert dips(curve)["pd_corr"] == pytest.approx(0.4 - 0.2)
    rising = {step: {"pd_corr": float(step)} for step in (1, 2, 4)}
    assert dips(rising)["pd_corr"] == pytest.approx(-1)


def test_gains_are_positive_where_the_new_one_is_better():
    gain = better_by({"mae_of_means": 0.1, "pd_corr": 0.2}, {"mae_of_means": 0.3, "pd_corr": 0.5, "pds_l1": 1.0})
    assert gain == pytest.approx({"mae_of_means": 0.2, "pd_corr": -0.3})


def test_no_score_outweighs_the_others_in_the_mean_gain():
    new, old = {"mae_of_means": 0.1, "pd_corr": 0.6}, {"mae_of_means": 0.3, "pd_corr": 0.2}
    assert mean_gain(new, old) == pytest.approx((0.2 / 0.4 + 0.4 / 0.8) / 2)
    assert mean_gain(old, new) == pytest.approx(-mean_gain(new, old))
    assert np.isnan(mean_gain({"pd_corr": 0.0}, {"pd_corr": 0.0}))


def test_steps_are_spread_geometrically():
    assert geometric_steps(10, 1000, 3) == [10, 100, 1000]
    assert geometric_steps(3, 3, 4) == [3]
    assert geometric_steps(5, 100, 1) == [100]
    with pytest.raises(ScreproError, match="within training"):
        geometric_steps(5, 3, 2)
