"""Held-out pairs of type and perturbation: what is held out, what is generated, how it is scored."""

import numpy as np
import pytest
import scipy.sparse as sp

from screpro import records
from screpro.baselines import scvi_counts
from screpro.data import simulate
from screpro.errors import ScreproError
from screpro.records.results import Run
from screpro.tasks import autoencoder
from screpro.tasks import perturbed_cells_experiment as experiment
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.flow import FlowSettings
from screpro.tasks.perturbed_cells import (
    default_pairs,
    hold_out_pairs,
    normalised,
    pair_cells,
    put_in_effects,
    train_cell_model,
)
from screpro.tasks.perturbed_cells_scores import DISTANCES, EFFECTS, PairScorer, told_from_control
from screpro.tasks.small_values import ZEROED

AE = AutoEncoderSettings(width=16, tokens=4, channels=4, layers=1, heads=2, cross_heads=2, epochs=2)
FLOW = FlowSettings(width=16, layers=1, heads=2, steps=40, batch_size=64)


@pytest.fixture(scope="module")
def adata():
    made = simulate.cells(540, 50, 3, depth=500, rng=np.random.default_rng(0))
    return put_in_effects(made, rng=np.random.default_rng(1), n_targets=10, effect=2.0)


@pytest.fixture(scope="module")
def cells(adata):
    return pair_cells(adata)


@pytest.fixture(scope="module")
def held(cells):
    return hold_out_pairs(cells, default_pairs(cells))


@pytest.fixture(scope="module")
def scorer(held):
    return PairScorer(held, n_components=10)


def test_codes(adata, cells):
    assert cells.perturbations[0] == "control" and cells.perturbations[1:] == sorted(cells.perturbations[1:])
    given = np.array(cells.perturbations)[cells.perturbation]
    assert (given == adata.obs["perturbation"].astype(str)).all()
    assert (np.array(cells.types)[cells.cell_type] == adata.obs["cell_type"]).all()
    assert cells.classes == {"cell_type": 3, "perturbation": 4}


def test_only_published_types_and_at_most_so_many_cells(adata):
    own = adata.copy()
    own.obs["label_source"] = np.where(np.arange(own.n_obs) % 2, "published", "inferred")
    capped = pair_cells(own, max_control=20, max_cells=5)
    sizes = np.zeros((3, 4), int)
    np.add.at(sizes, (capped.cell_type, capped.perturbation), 1)
    assert (sizes[:, 0] == 20).all() and (sizes[:, 1:] == 5).all()
    again = pair_cells(own, max_control=20, max_cells=5)
    assert (again.counts != capped.counts).nnz == 0


def test_the_control_has_to_be_known(adata):
    own = adata.copy()
    own.obs["perturbation"] = own.obs["perturbation"].astype(str).replace("control", "nothing")
    with pytest.raises(ScreproError, match="one control condition"):
        pair_cells(own)
    assert pair_cells(own, control="nothing").perturbations[0] == "nothing"


def test_held_out_pairs_are_in_no_training_cell(cells, held):
    assert len(held.pairs) == 2 and len({k for k, _ in held.pairs}) == 1  # half of three, in the largest type
    for k, p in held.pairs:
        assert not len(held.train.rows(k, p)) and len(held.test.rows(k, p)) == len(cells.rows(k, p))
    assert len(held.train.cell_type) + len(held.test.cell_type) == len(cells.cell_type)


def test_a_single_perturbation_is_held_out_in_two_types(cells):
    kept = cells.take(np.flatnonzero(cells.perturbation <= 1))._replace(perturbations=cells.perturbations[:2])
    assert [p for _, p in default_pairs(kept)] == [cells.perturbations[1]] * 2


def test_the_panel_does_not_depend_on_the_held_out_cells(cells, held):
    pairs = default_pairs(cells)
    dense = cells.counts.toarray()
    for k, p in held.pairs:  # genes 0 to 4 vary wildly in the held-out cells
        rows = cells.rows(k, p)
        dense[rows, :5] = np.random.default_rng(0).poisson(500, (len(rows), 5))
    loud = cells._replace(counts=sp.csr_matrix(dense))
    a, b = (hold_out_pairs(each, pairs, n_genes=20) for each in (cells, loud))
    assert a.train.genes == b.train.genes and len(a.train.genes) == 20
    assert (a.train.counts != b.train.counts).nnz == 0


def test_what_cannot_be_held_out(cells):
    with pytest.raises(ScreproError, match="not the control"):
        hold_out_pairs(cells, [(cells.types[0], "control")])
    everywhere = [(kind, cells.perturbations[1]) for kind in cells.types]
    with pytest.raises(ScreproError, match="given to another type"):
        hold_out_pairs(cells, everywhere)


def test_normalised_totals():
    x = normalised(sp.csr_matrix([[3.0, 1.0], [0.0, 0.0]])).toarray()
    assert np.expm1(x[0]) == pytest.approx([7500, 2500], rel=1e-5) and (x[1] == 0).all()


def test_the_real_cells_are_the_best_answer(held, scorer):
    """Distances of the real cells to themselves are 0, the unbiased one is below it; effects are without error."""
    perfect = {name: value for name, value in scorer.distances(scorer.real).items()}
    assert set(perfect) == set(DISTANCES) and (perfect.pop("mmd2_rbf_median") < 0).all()
    for name, value in perfect.items():
        assert value == pytest.approx(np.zeros(2), abs=1e-4), name
    effects = scorer.effects(scorer.real)
    assert effects["mae"] == pytest.approx(np.zeros(2), abs=1e-6)
    assert effects["discrimination_l1"] == pytest.approx(np.ones(2))
    assert effects["de_overlap"] == pytest.approx(np.ones(2))
    assert set(effects) == set(EFFECTS)


def test_scores_are_of_each_pair_by_itself(held, scorer):
    """What replaces the cells of one pair leaves the scores of the other."""
    own, other = held.test.rows(*held.pairs[0]), held.test.rows(*held.pairs[1])
    made = scorer.real.toarray()
    made[own] = made[own][:, ::-1]
    found = scorer.distances(made)
    before = scorer.distances(scorer.real)
    assert all(found[name][0] > before[name][0] + 0.1 for name in DISTANCES)
    assert all(found[name][1] == pytest.approx(before[name][1], abs=1e-4) for name in DISTANCES)
    assert len(other) > 1


def test_halves_share_no_cell_and_the_ceiling_is_not_zero(scorer):
    for first, second in scorer.halves:
        assert len(first) == len(second) and not set(first) & set(second)
    ceiling = scorer.ceiling()
    assert abs(ceiling.pop("mmd2_rbf_median")).max() < 0.1  # unbiased: 0 on average
    assert all((value > 0).all() for value in ceiling.values())


def test_scores_need_one_cell_for_each_test_cell(scorer):
    with pytest.raises(ScreproError, match="as many as the held-out"):
        scorer.distances(scorer.real[:-1])
    with pytest.raises(ScreproError, match="finite"):
        scorer.effects(np.full(scorer.real.shape, np.nan))


def test_one_perturbation_has_no_discrimination(cells):
    single = hold_out_pairs(cells, default_pairs(cells)[:1])
    found = PairScorer(single).effects(normalised(single.test.counts))
    assert np.isnan(found["discrimination_l1"]).all() and np.isfinite(found["mae"]).all()


def test_library_sizes_of_a_pair_without_cells(held):
    trained = autoencoder.train(held.train.counts, AE, seed=0)
    model = train_cell_model(held.train, trained, FLOW, seed=0)
    assert model.generator.library.unseen(held.test.labels).all()
    drawn = np.asarray(model.draw(held.test.labels, steps=3, seed=0).sum(1)).ravel()
    true = np.asarray(held.test.counts.sum(1)).ravel()
    assert np.median(drawn) == pytest.approx(np.median(true), rel=0.3)
    single = np.asarray(model.draw(held.test.labels, steps=3, one_count=True, seed=0).sum(1)).ravel()
    assert single.mean() == pytest.approx(1, abs=0.4)
    again = model.draw(held.test.labels, steps=3, seed=0)
    assert (again != model.draw(held.test.labels, steps=3, seed=0)).nnz == 0


@pytest.mark.usefixtures("no_records")
def test_the_experiment_writes_rows_once(held, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = records.start("scldm/perturbation", tier="ci")
    protocol = experiment.Protocol(
        "simulated",
        seeds=[0],
        autoencoder=AE,
        flow=FLOW,
        options={"scvi": {"epochs": 1}},
        weights=(1, 5),
        sampler_steps=2,
    )
    methods = ["scldm", "mean_shift", "control_of_type", "perturbation_mean"]
    experiment.compare_methods(run, held, protocol, methods)
    rows = run.frame()
    variants = rows.groupby("metric_variant")["method"].agg(set)
    assert variants["guidance 1"] >= {*methods, experiment.CEILING}
    assert variants["guidance"] == {"guidance_1", "guidance_5"}
    assert variants["conditioning"] == {"joint", "additive"}
    assert variants["library"] == {"main_effects", "one_count"}
    assert variants[ZEROED] == set(methods)
    effects = rows[rows["item"] == "Figure 13"].set_index(["method", "metric", "metric_variant"])["value"]
    for metric in effects["control_of_type"].index.get_level_values("metric").unique():  # cells as they were measured
        assert effects["control_of_type", metric, ZEROED] == effects["control_of_type", metric, "guidance 1"]
    assert variants["held-out pairs"] == {"scldm", "global_mean"}
    sizes = rows[rows["metric"] == "cells_of_pair"].set_index("metric_variant")["value"]
    assert dict(sizes) == {held.name(pair): len(held.test.rows(*pair)) for pair in held.pairs}
    assert variants["told from control"] == {"library", "counts", "latents"}
    assert variants["halves"] == {*methods, experiment.CEILING, experiment.BOUND}
    same = rows[rows["metric"] == "w2_exact"].set_index(["method", "metric_variant"])["value"]
    assert same["scldm", "guidance 1"] == same["guidance_1", "guidance"] == same["joint", "conditioning"]
    assert set(rows.loc[rows["metric_variant"] == "guidance 1", "metric"]) >= {*DISTANCES, *EFFECTS}
    experiment.compare_methods(run, held, protocol, methods)
    assert len(run.frame()) == len(rows)

    on_map = records.drawn_points(run, "pairs")
    assert set(on_map["method"]) == {"scldm", "control_cells", "real_cells"}
    n = len(held.test.rows(*held.pairs[0]))
    of_pair = on_map[on_map["pair"] == held.name(held.pairs[0])].groupby("method").size()
    assert (of_pair[["scldm", "real_cells"]] == min(200, n)).all()
    changes = records.drawn_points(run, "changes")
    assert set(changes["method"]) == {"scldm", "mean_shift"} and set(changes["gene"]) == set(held.train.genes)


@pytest.mark.usefixtures("no_records")
def test_scvi_of_table_14_is_chosen_on_training_cells(held, tmp_path, monkeypatch):
    """Of the passes and with or without KL term the best on cells held back, then trained on all training cells."""
    fits, n = [], held.train.counts.shape[0]

    class Fake:
        def __init__(self, epochs, kl):
            self.shift = abs(epochs - 4) + (0 if kl == scvi_counts.NO_KL else 0.5)

        def reconstruct(self, counts):
            return counts.toarray() + 0.1 + self.shift, np.ones(counts.shape[1], dtype=np.float32)

    def fit(counts, *, seed, threads, epochs, warmup_epochs):
        fits.append((counts.shape[0], seed, epochs, warmup_epochs))
        return Fake(epochs, warmup_epochs)

    monkeypatch.setattr(scvi_counts, "fit", fit)
    monkeypatch.setattr(experiment.baselines, "run", lambda *args, **kwargs: normalised(held.test.counts))
    run = Run("scldm/perturbation", tier="ci", folder=tmp_path, run_id="test")
    options = {"scvi": {"epochs": 16}}
    protocol = experiment.Protocol("simulated", [3, 4], AE, FLOW, options=options, tune=True)
    experiment.compare_methods(run, held, protocol, ["scvi"])
    tried = [(n - n // 10, 3, passes, kl) for passes in (1, 2, 4, 8) for kl in (scvi_counts.NO_KL, None)]
    assert fits == [*tried, (n, 3, 4, scvi_counts.NO_KL), (n, 4, 4, scvi_counts.NO_KL)]
    rows = run.frame()
    assert set(rows.loc[rows["metric_variant"] == "held-out pairs", "method"]) == {"scvi", "global_mean"}


@pytest.mark.usefixtures("no_records")
def test_figures_show_the_first_seed(held, tmp_path):
    kept = []
    for number, seeds in enumerate(([1], [1, 0], [0])):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = Run("scldm/perturbation", tier="ci", folder=folder, run_id="test")
        protocol = experiment.Protocol(
            "simulated", seeds, AE, FLOW, options={"scvi": {"epochs": 1}}, weights=(1,), sampler_steps=2
        )
        experiment.compare_methods(run, held, protocol, ["scldm"])
        kept.append(records.drawn_points(run, "changes")["generated"].tolist())
    assert kept[0] == kept[1] != kept[2]


def test_told_from_control(held):
    """Counts with a mark of the perturbation tell the cells of a pair; noise and a mark of the type do not."""
    cells = {"train": held.train, "test": held.test}

    def told(mark):
        rng = np.random.default_rng(0)
        noise = {part: rng.poisson(5, (len(c.cell_type), 4)) for part, c in cells.items()}
        marked = {part: np.column_stack([noise[part], mark(c)]).astype(np.float32) for part, c in cells.items()}
        own = held._replace(**{p: c._replace(counts=sp.csr_matrix(marked[p])) for p, c in cells.items()})
        return told_from_control(own, lambda counts: counts.toarray())

    assert told(lambda c: 20 * c.perturbation) == pytest.approx(1)
    for mark in (lambda c: 0 * c.perturbation, lambda c: 20 * c.cell_type):
        found = told(mark)
        assert found.shape == (len(held.pairs),)
        assert np.abs(found - 0.5).max() < 0.25
    assert (told_from_control(held, lambda counts: np.ones((counts.shape[0], 3))) == 0.5).all()
    few = held._replace(test=held.test.take(np.flatnonzero(held.test.perturbation >= 0)[:1]))
    assert np.isnan(told_from_control(few, lambda counts: counts.toarray())).all()
