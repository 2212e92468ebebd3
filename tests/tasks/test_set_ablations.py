"""Variants of PerturbDiff: equal compute, rows for each, and an interrupted run that goes on."""

from dataclasses import fields

import numpy as np
import pytest

from screpro import records
from screpro.data.populations import populations
from screpro.data.simulate_atlas import atlas
from screpro.errors import ScreproError
from screpro.tasks import set_ablations
from screpro.tasks.responses import hold_out
from screpro.tasks.set_ablations import SAMPLINGS, TRAININGS, Protocol, compare_variants, paired_change, settings_of
from screpro.tasks.set_diffusion import SamplerSettings, SetDiffusionSettings, train

SIZES = {"n_contexts": 2, "n_perturbations": 5, "n_donors": 1, "cells": 12, "control_cells": 20, "n_genes": 20}


def test_variants_have_as_many_cells_in_a_mini_batch():
    base = SetDiffusionSettings(set_size=32, sets=4)
    for name in TRAININGS:
        made = settings_of(base, name)
        assert made.set_size * made.sets == 128, name
        changed = {f.name for f in fields(base) if getattr(made, f.name) != getattr(base, f.name)} - {"sets"}
        assert changed == set(TRAININGS[name].changes), name
    with pytest.raises(ScreproError, match="variant"):
        settings_of(base, "nothing")
    known = {f.name for f in fields(SamplerSettings)}
    assert all(set(own.changes) <= known and own.changes for own in SAMPLINGS.values())


def test_what_permuting_controls_moves():
    """Nothing where cells and controls are tokens of their own; something where their features are joined."""
    cells = populations(
        atlas(**SIZES, rng=np.random.default_rng(0)), context_key="context", batch_key="donor", n_genes=None
    )
    split = hold_out(cells)
    moved = {}
    for attention in ("features", "tokens"):
        settings = SetDiffusionSettings(
            width=16, layers=2, heads=2, set_size=4, sets=4, steps=30, warmup_steps=5, attention=attention
        )
        trained = train(split.train, settings, seed=0)
        moved[attention] = paired_change(trained, split, SamplerSettings(steps=3, shuffle_controls=True), seed=0)
    assert moved["tokens"] < 1e-4 < moved["features"]


def test_every_variant_gets_rows_and_nothing_is_done_twice(monkeypatch):
    cells = populations(
        atlas(**SIZES, rng=np.random.default_rng(0)), context_key="context", batch_key="donor", n_genes=None
    )
    split = hold_out(cells)
    training = SetDiffusionSettings(width=8, layers=1, heads=2, set_size=4, sets=2, steps=4, warmup_steps=1)
    protocol = Protocol("simulated_atlas", "test", [0], training, SamplerSettings(steps=3))
    run = records.start("perturbdiff/ablation", tier="ci")
    chosen = {"trainings": ["squares_only", "set_size_1"], "samplings": ["last_start", "controls_permuted"]}
    compare_variants(run, split, protocol, **chosen)
    table = run.frame()
    methods = {"perturbdiff", "squares_only", "set_size_1", "last_start", "controls_permuted"}
    assert set(table["method"]) == methods | {"split_half", "control_cells"}
    assert set(table.loc[table["metric"] == "paired_change", "method"]) == {"controls_permuted"}
    assert (table[table["metric"] == "null_calls"].groupby("method").size() == 1).all()

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(set_ablations, "train", never)
    compare_variants(run, split, protocol, **chosen)
