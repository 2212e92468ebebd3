"""What is held out, and scores at their known ends."""

import numpy as np
import pytest

from screpro.data.populations import populations
from screpro.data.simulate_atlas import atlas
from screpro.errors import ScreproError
from screpro.tasks.responses import DIRECTIONS, DISCRIMINATION, Scorer, constants, hold_out

SIZES = {"n_contexts": 3, "n_perturbations": 9, "n_donors": 2, "cells": 30, "control_cells": 60, "n_genes": 40}


@pytest.fixture(scope="module")
def cells():
    made = atlas(**SIZES, effect=1.0, depth=400.0, rng=np.random.default_rng(0))
    return populations(made, context_key="context", batch_key="donor", n_genes=None)


def test_parts_do_not_overlap_and_controls_are_known(cells):
    split = hold_out(cells, context="context 1", kept=1 / 3)
    assert len(split.train) + len(split.validation) + len(split.test) == len(cells)
    asked = {(p, 1) for part in (split.validation, split.test) for p in set(part.perturbation)}
    known = set(zip(split.train.perturbation.tolist(), split.train.context.tolist(), strict=True))
    assert not asked & known and len(asked) == 6 and {(0, k) for k in range(3)} <= known
    assert set(split.validation.perturbation).isdisjoint(split.test.perturbation)
    assert (split.controls.context == 1).all() and split.controls.is_control.all()
    same, other = hold_out(cells, context="context 1", seed=0), hold_out(cells, context="context 1", seed=1)
    assert set(same.test.perturbation) != set(other.test.perturbation)


def test_roles_decide_where_they_are_given(cells):
    role = np.where(cells.context == 2, "test", "train")
    split = hold_out(cells, role)
    assert set(split.test.context) == {2} and not split.test.is_control.any() and not len(split.validation)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_perturbation_that_no_training_cell_has_is_not_asked_for(cells, part):
    role = np.where(cells.perturbation == 3, part, np.where(cells.context == 2, "test", "train"))
    with pytest.warns(UserWarning, match=f"1 perturbations .* {cells.perturbations[3]}$"):
        split = hold_out(cells, role)
    asked = set(split.test.perturbation) | set(split.validation.perturbation)
    assert asked == set(cells.perturbation[~cells.is_control]) - {3}
    alone = cells.take(np.flatnonzero(cells.context == 2))  # one context: what is held out was never seen
    with pytest.warns(UserWarning), pytest.raises(ScreproError, match="training cells elsewhere"):
        hold_out(alone, context="context 2")


def test_real_cells_as_an_answer_are_perfect(cells):
    split = hold_out(cells)
    scorer = Scorer(split.test, split.controls)
    scores = scorer.score(split.test.x, null=split.controls.x).values
    for name in ("pd_corr", "de_overlap", "direction_agreement", "de_auroc", "pds_l1", "effect_size_spearman"):
        assert scores[name] == pytest.approx(1), name
    for name in ("mse_of_means", "called_unchanged", "null_calls", "gene_correlation_gap", "gene_zero_fraction_gap"):
        assert scores[name] == pytest.approx(0, abs=1e-9), name
    assert scores["called_ratio"] == 1 and set(scores) == set(DIRECTIONS)


def test_a_single_perturbation_is_told_from_nothing(cells):
    split = hold_out(cells)
    alone = split.test.take(np.flatnonzero(split.test.perturbation == split.test.perturbation[0]))
    scorer = Scorer(alone, split.controls)
    scored = scorer.score(alone.x)
    assert len(scorer.names) == 1 and not {*scored.values, *scored.each, *constants(scorer)} & set(DISCRIMINATION)
    assert scored.values["pd_corr"] == pytest.approx(1)
    assert set(DISCRIMINATION) <= set(constants(Scorer(split.test, split.controls)))


def test_control_cells_and_the_ceiling_bound_what_can_be_had(cells):
    split = hold_out(cells)
    scorer = Scorer(split.test, split.controls)
    nothing = scorer.score(scorer.unconditional(rng=np.random.default_rng(0))).values
    assert abs(nothing["pd_corr"]) < 0.5 < scorer.ceiling.values["pd_corr"]
    assert nothing["called_unchanged"] < 0.1 and scorer.ceiling.values["null_calls"] < 0.1
    best = scorer.ceiling.values  # halves are smaller, so that their gaps are not zero
    assert 0 < best["gene_correlation_gap"] < 0.3 and 0 < best["gene_zero_fraction_gap"] < 0.2
    assert abs(best["gene_variance_log2_ratio"]) < 0.5


def test_a_shift_of_constant_cells_is_seen_by_size_where_ranks_are_degenerate(cells):
    """Means as cells: the rank test calls nearly every gene, the size of the shift still tells them apart."""
    split = hold_out(cells)
    scorer = Scorer(split.test, split.controls)
    made = np.zeros(split.test.x.shape, dtype=np.float32)
    for code in scorer.codes:
        rows = split.test.perturbation == code
        made[rows] = split.test.x[rows].mean(0)
    scores = scorer.score(made).values
    assert scores["called_unchanged"] > 0.3 and scores["de_auroc_of_shift"] > scores["de_auroc"]


@pytest.mark.parametrize("bad", ["shape", "nan"])
def test_bad_answers_are_refused(cells, bad):
    split = hold_out(cells)
    made = split.test.x.toarray()
    if bad == "nan":
        made[0, 0] = np.nan
    with pytest.raises(ScreproError):
        Scorer(split.test, split.controls).score(made[:-1] if bad == "shape" else made)


def test_splits_that_cannot_be(cells):
    with pytest.raises(ScreproError, match="context"):
        hold_out(cells, context="nowhere")
    with pytest.raises(ScreproError):
        hold_out(cells, np.full(len(cells), "train"))
