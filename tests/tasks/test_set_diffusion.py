"""Training on populations and drawing from it: order, padding, labels, exact repetition."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.data.populations import populations
from screpro.data.simulate_atlas import atlas
from screpro.errors import ScreproError
from screpro.tasks.responses import Scorer, hold_out
from screpro.tasks.set_diffusion import (
    SamplerSettings,
    SetDiffusionSettings,
    SetDrawer,
    TrainedSets,
    divisor_of,
    gene_vectors,
    generate,
    train,
)

SIZES = {"n_contexts": 2, "n_perturbations": 5, "n_donors": 2, "cells": 21, "control_cells": 40, "n_genes": 24}
SMALL = SetDiffusionSettings(width=24, layers=1, heads=2, set_size=8, steps=260, learning_rate=4e-3, warmup_steps=20)
FAST = SamplerSettings(steps=8, weight=0)


@pytest.fixture(scope="module")
def split():
    made = atlas(**SIZES, effect=1.2, depth=300.0, rng=np.random.default_rng(0))
    return hold_out(populations(made, context_key="context", batch_key="donor", n_genes=None))


@pytest.fixture(scope="module")
def trained(split) -> TrainedSets:
    return train(split.train, SMALL, seed=0)


def test_it_learns_and_beats_unchanged_cells(split, trained):
    assert trained.fit.losses[-1] < 0.8 * trained.fit.losses[0]
    scorer = Scorer(split.test, split.controls)
    made = generate(trained, split.test, controls=split.controls, sampler=FAST, seed=0, title=None)
    unchanged = scorer.score(scorer.unconditional(rng=np.random.default_rng(0))).values
    assert made.shape == split.test.x.shape and made.min() >= 0
    assert scorer.score(made).values["pd_corr"] > unchanged["pd_corr"] + 0.1


def test_cells_come_back_in_the_order_they_were_asked_in(split, trained):
    """A network that answers the code of the perturbation: every cell has to get its own, padding or not."""

    class Says(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.leave = torch.nn.Linear(1, 1)

        def forward(self, x, t, *, control, labels, previous, dropped=None):
            return (labels["perturbation"] * 100 + labels["context"] * 10 + labels["batch"])[:, None, None] + 0 * x

    order = np.random.default_rng(1).permutation(len(split.test))
    asked = split.test.take(order)
    says = replace(trained, model=Says())
    made = generate(says, asked, controls=split.controls, sampler=FAST, seed=0, title=None) / trained.divisor
    wanted = asked.perturbation * 100 + asked.context * 10 + asked.batch
    np.testing.assert_allclose(made, np.repeat(wanted[:, None], 24, 1), rtol=1e-6)


def test_the_same_seed_gives_the_same_cells(split, trained):
    first, again, other = (
        generate(trained, split.test, controls=split.controls, sampler=FAST, seed=s, title=None) for s in (3, 3, 4)
    )
    assert (first == again).all() and (first != other).any()
    short = replace(SMALL, steps=4)
    a, b = (train(split.train, short, seed=1).model.leave.weight for _ in range(2))
    assert torch.equal(a, b)


def test_guidance_of_zero_is_the_conditional_answer(split, trained):
    part = split.test.take(np.arange(30))
    plain, guided = (
        generate(trained, part, controls=split.controls, sampler=replace(FAST, weight=w), seed=0, title=None)
        for w in (0.0, 1e-7)
    )
    np.testing.assert_allclose(plain, guided, atol=2e-3)


def test_drawn_sets_are_of_one_group_with_matched_controls(split):
    cells = split.train
    draw = SetDrawer(cells, SMALL, divisor_of(cells.x, "tenth"), ("perturbation", "context", "batch"))
    counts = np.bincount(cells.group())
    assert len(draw) == sum(-(-n // 8) for n in counts if n)
    dense = {tuple(np.round(row, 4)): i for i, row in enumerate(cells.x.toarray() / 10)}
    batch = draw(torch.tensor([0, 3, len(draw) - 1]), torch.Generator().manual_seed(0))
    for s in range(3):
        own = [dense[tuple(np.round(row, 4))] for row in batch.x0[s].numpy()]
        controls = [dense[tuple(np.round(row, 4))] for row in batch.control[s].numpy()]
        assert len(set(own)) == 8  # no cell twice where there are enough
        for name in ("perturbation", "context", "batch"):
            assert (getattr(cells, name)[own] == int(batch.labels[name][s])).all()
        assert cells.is_control[controls].all()
        assert (cells.context[controls] == int(batch.labels["context"][s])).all()
        assert (cells.batch[controls] == int(batch.labels["batch"][s])).all()


def test_scales_of_the_input(split):
    x = split.train.x
    assert (divisor_of(x, "tenth") == 10).all()
    unit = divisor_of(x, "unit")
    sd = x.toarray().std(0)
    np.testing.assert_allclose(unit[sd > 0.05], sd[sd > 0.05], rtol=1e-3)
    with pytest.raises(ScreproError):
        divisor_of(x, "log")


@pytest.mark.parametrize("controls", ["shuffled", "none"])
def test_other_kinds_of_controls(split, controls):
    settings = replace(SMALL, steps=2, controls=controls)
    draw = SetDrawer(split.train, settings, divisor_of(split.train.x, "tenth"), ())
    batch = draw(torch.arange(3), torch.Generator().manual_seed(0))
    assert (batch.control is None) == (controls == "none")
    train(split.train, settings, seed=0)
    with pytest.raises(ScreproError):
        SetDrawer(split.train, replace(SMALL, controls="some"), divisor_of(split.train.x, "tenth"), ())


def test_a_group_without_controls_is_refused_before_training(split):
    from dataclasses import replace as changed

    lonely = split.train.take(np.flatnonzero(~split.train.is_control))
    with pytest.raises(ScreproError, match="control"):
        train(changed(lonely), SMALL, seed=0)


def test_trained_with_frozen_vectors(split):
    """Vectors take the place of a learned table, stay as they are in training, and are told apart by name."""
    names = split.train.perturbations
    vectors = {name: np.eye(len(names))[k] for k, name in enumerate(names) if k}
    short = replace(SMALL, steps=20)
    trained = train(split.train, short, seed=0, semantic={"perturbation": vectors})
    assert "perturbation" not in trained.model.config.labels and set(trained.labels) == {
        "perturbation",
        "context",
        "batch",
    }
    table = trained.model.covariates.frozen["perturbation"]
    assert np.allclose(table[1:], np.eye(len(names))[1:]) and np.allclose(table[0], table[1:].mean(0))
    assert np.isfinite(generate(trained, split.test, controls=split.controls, sampler=FAST, seed=0, title=None)).all()
    with pytest.raises(ScreproError, match="without a vector"):
        train(split.train, short, seed=0, semantic={"perturbation": {names[1]: [1.0]}})
    with pytest.raises(ScreproError, match="several labels"):
        train(split.train, short, seed=0, semantic={"dose": vectors})


def test_vectors_of_genes_say_which_vary_together():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(300, 2))
    x = np.column_stack([factors[:, [0]] * [1, 2, -1], factors[:, [1]] * [1, 3, 1]])
    x = np.column_stack([x + 1e-3 * rng.normal(size=x.shape), np.full(300, 0.7)]).astype(np.float32)
    vectors = gene_vectors(sp.csr_matrix(x), 2)
    alike = vectors @ vectors.T
    expected = np.kron(np.eye(2), np.ones((3, 3))) * np.outer([1, 1, -1, 1, 1, 1], [1, 1, -1, 1, 1, 1])
    np.testing.assert_allclose(alike[:6, :6], expected, atol=0.2)
    np.testing.assert_array_equal(vectors[6], 0)


def test_few_cells_have_few_components():
    x = np.random.default_rng(0).poisson(0.4, (9, 30)).astype(np.float32)
    x[:, :4] = 0
    vectors = gene_vectors(sp.csr_matrix(x), 32)
    assert vectors.shape == (30, 32) and not vectors[:4].any() and not vectors[:, 8:].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[x.any(0)], axis=1), 1, rtol=1e-5)


def test_a_network_with_vectors_of_genes_trains_and_draws(split):
    own = train(split.train, replace(SMALL, steps=3, gene_vectors=4), seed=0)
    np.testing.assert_array_equal(own.model.genes.numpy(), gene_vectors(split.train.x, 4))
    made = generate(own, split.test, controls=split.controls, sampler=FAST, seed=0, title=None)
    assert np.isfinite(made).all()
