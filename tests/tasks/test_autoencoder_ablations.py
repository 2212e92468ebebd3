"""The ablation experiment of scLDM: which rows it leaves, what it shares, and its scores against definitions."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro import records
from screpro.errors import ScreproError
from screpro.metrics.reconstruction import re_nb_nll
from screpro.tasks import autoencoder
from screpro.tasks import autoencoder_ablations as ablations
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.autoencoder_ablations import METHODS, QUESTIONS, Ablation, _units, best_rates, compare, draw_panel
from screpro.tasks.autoencoder_prior import DISTANCES, distances, generated_cells, shuffled_genes
from screpro.tasks.autoencoder_scores import (
    draw_gaussian,
    epoch_seconds,
    gaussian_law,
    latent_spread,
    padded_latents,
    reconstruction_scores,
    step_memory,
)
from screpro.tasks.flow import FlowSettings

SMALL = AutoEncoderSettings(
    width=8, tokens=2, channels=3, layers=1, heads=2, cross_heads=2, epochs=1, batch_size=16, learning_rate=3e-3
)
PROTOCOL = Ablation(
    "made_up", [0], [0], SMALL, FlowSettings(width=8, layers=1, heads=2, steps=4, batch_size=32), steps=2
)


@pytest.fixture(scope="module")
def counts() -> sp.csr_matrix:
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.5, 2.0, 14) * np.where((np.arange(60) % 2)[:, None] == np.arange(14) % 2, 2.0, 0.4)
    return sp.csr_matrix(rng.poisson(rate).astype(np.float32) + np.eye(60, 14, dtype=np.float32))


def test_experiment(counts, tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "a-run")
    run = records.start("scldm/ablations", tier="ci")
    names = ["scldm", "all_genes", "width_32", "gaussian", "layers_1", "set_transformer"]
    trained = []

    def train(*args, **kwargs):
        trained.append(args[1])
        return real(*args, **kwargs)

    real = autoencoder.train
    monkeypatch.setattr(autoencoder, "train", train)
    compare(run, counts, PROTOCOL, names)
    rows = run.frame()
    assert len(trained) == 5  # one layer is the default
    assert len(set(trained)) == 5
    scored = rows[rows["metric"] == "re_nb_nll"].groupby("metric_variant")["method"].agg(set).to_dict()
    assert scored == {
        "": {"scldm", "all_genes"},
        "width": {"width_32"},
        "layers": {"layers_1"},
        "likelihood": {"scldm"},  # a Gaussian's is in other units
        "pooling": {"scldm", "set_transformer"},
        "posterior": {"scldm"},
        "mixing": {"scldm"},
        "dispersion": {"scldm"},
        "padding": {"scldm", "padded"},
    }
    same = rows[(rows["metric"] == "re_nb_nll") & rows["method"].isin(["scldm", "layers_1"])]["value"]
    assert same.nunique() == 1
    draws = rows[(rows["metric"] == "pcc_nb_draw") & (rows["metric_variant"] == "likelihood")]
    assert set(draws["method"]) == {"scldm", "gaussian"}
    for metric in DISTANCES:
        own = rows[rows["metric"] == metric].groupby("metric_variant")["method"].agg(set).to_dict()
        prior = {"scldm", "normal_prior", "train_cells", "shuffled_genes"}
        assert own == {"likelihood": {"scldm", "gaussian"}, "prior": prior}
        value = rows[(rows["metric"] == metric) & (rows["method"] == "scldm")]["value"]
        assert value.nunique() == 1 and (value > 0).all()
    assert (rows[rows["metric"] == metric]["n_generated"] == 12).all()
    costs = rows[(rows["metric_variant"] == "")].set_index(["method", "metric"])["value"]
    assert costs["all_genes", "memory"] > costs["scldm", "memory"]
    assert costs["all_genes", "parameters"] == costs["scldm", "parameters"]
    compare(run, counts, PROTOCOL, names)  # all of it is there
    assert len(trained) == 5
    longer = replace(PROTOCOL, settings=replace(SMALL, epochs=2), variant="longer")
    compare(run, counts, longer, ["scldm", "all_genes", "layers_1", "layers_2"])
    rows = run.frame()
    side = rows[rows["item"] == "X-longer"]
    asked = side.groupby("metric_variant")["method"].agg(set).to_dict()
    assert asked == {"longer": {"scldm", "all_genes"}, "layers, longer": {"layers_1", "layers_2"}}
    assert len(trained) == 8 and (rows["metric"] == "w2_exact").sum() == 6
    with pytest.raises(ScreproError, match="has a name"):
        compare(run, counts, PROTOCOL, ["scldm", "wider"])


def test_a_killed_side_question_brings_back_the_rows_that_its_kill_cost(counts, tmp_path, monkeypatch):
    """What was last written is forgotten with every variant of it, also that of the main comparison."""
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "killed")
    names = ["scldm", "all_genes", "layers_1", "layers_4"]
    side = replace(PROTOCOL, settings=replace(SMALL, epochs=2), variant="longer")

    def everything(stop_after=None):
        real, count = autoencoder.train, []

        def train(*args, **kwargs):
            count.append(1)
            if stop_after is not None and len(count) > stop_after:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        run = records.start("scldm/ablations", tier="ci")
        with monkeypatch.context() as patch:
            patch.setattr(autoencoder, "train", train)
            for protocol in (PROTOCOL, side):
                compare(run, counts, protocol, names)
        return run.frame()

    with pytest.raises(KeyboardInterrupt):
        everything(stop_after=4)  # in the second network of the side question
    found = everything()
    for protocol, item in ((PROTOCOL, "Figure 4"), (side, "X-longer")):
        own = found[(found["item"] == item) & (found["metric"] == "re_nb_nll")]
        asked = own[own["metric_variant"].str.startswith("layers")]
        assert set(asked["method"]) == {"layers_1", "layers_4"}, protocol.variant


def test_widths_and_depths_take_their_own_rates(counts, tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "rates")
    run = records.start("scldm/ablations", tier="ci")
    protocol, trained = replace(PROTOCOL, rates=[1e-7]), []

    def train(*args, **kwargs):
        trained.append(args[1])
        return real(*args, **kwargs)

    real = autoencoder.train
    monkeypatch.setattr(autoencoder, "train", train)
    assert best_rates(run, counts, PROTOCOL, list(METHODS)) == {}
    rates = best_rates(run, counts, protocol, ["width_32", "layers_1", "all_genes", "gaussian"])
    assert set(rates) == {"width_32", "layers_1", "all_genes"} and set(rates.values()) <= {3e-3, 1e-7}
    assert len(trained) == 6  # three networks at two rates each
    rows = run.frame()
    tried = rows[rows["item"] == "tuning"]
    assert set(tried["split"]) == {"0 validation"} and len(tried) == 6
    for name, own in tried.groupby("method"):
        assert own.loc[own["value"].idxmin(), "metric_variant"] == f'{{"learning_rate": {rates[name]}}}'
    uses = _units(protocol, ["scldm", "width_32", "tokens_4"], {"width_32": 1e-7})
    chosen = {(question.variant, name): settings.learning_rate for *_, settings, own in uses for question, name in own}
    assert chosen["width", "width_32"] == 1e-7
    assert {rate for (variant, _), rate in chosen.items() if variant != "width"} == {3e-3}
    assert best_rates(run, counts, protocol, ["width_32"]) == {"width_32": rates["width_32"]}
    assert len(trained) == 6  # what was tried is not tried again


def test_the_default_at_a_rate_of_its_own_is_no_second_default(counts, tmp_path, monkeypatch):
    """Cells are generated and padding is shown by the default alone; what is trained already is taken for it alone."""
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "own-rate")
    run = records.start("scldm/ablations", tier="ci")
    monkeypatch.setattr(ablations, "best_rates", lambda *_: {"scldm": 1e-4})
    protocol = replace(PROTOCOL, dataset="own_rate")
    panel = draw_panel(counts, protocol, 0)
    before = autoencoder.train(panel.train, SMALL, seed=0).model
    compare(run, counts, protocol, ["scldm", "all_genes", "gaussian"], trained={(0, 0, "scldm"): before})
    rows = run.frame()
    errors = rows[(rows["method"] == "scldm") & (rows["metric"] == "re_nb_nll")].set_index("metric_variant")["value"]
    assert errors.index.is_unique and errors["likelihood"] == errors["padding"] != errors[""]
    assert errors["likelihood"] == reconstruction_scores(before, panel.test, seed=0)["re_nb_nll"][0]


def test_every_question_has_its_networks_and_its_claims():
    asked = {name for question in QUESTIONS for name in question.methods}
    assert asked == set(METHODS)
    for claim in ("L3", "L12", "L20"):
        test = next(c.test for c in records.load_claims("scldm") if c.id == claim)
        for part in test.get("parts", [test]):
            others = [part["against"]] if isinstance(part["against"], str) else part["against"]
            wanted = {part["method"], *others, *part.get("not_behind", [])}
            assert any(q.variant == part["metric_variant"] and wanted <= set(q.methods) for q in QUESTIONS), claim


def test_panel_is_chosen_on_training_cells():
    rng = np.random.default_rng(1)
    counts = sp.csr_matrix(rng.poisson(rng.gamma(0.3, 4.0, (1, 300)) * rng.gamma(2, 0.5, (120, 1))))
    protocol = replace(PROTOCOL, genes=100, cells=90)
    panel = draw_panel(counts, protocol, 3)
    assert panel.train.shape == (72, 100) and panel.test.shape == (18, 100)
    assert not set(panel.train_rows) & set(panel.test_rows)
    assert (panel.train != counts[panel.train_rows][:, panel.genes]).nnz == 0
    changed = counts.tolil()
    changed[panel.test_rows] = changed[panel.test_rows[::-1]] * 5
    assert np.array_equal(draw_panel(sp.csr_matrix(changed), protocol, 3).genes, panel.genes)
    assert not np.array_equal(draw_panel(counts, protocol, 4).train_rows, panel.train_rows)


def test_padding_to_their_own_length_is_no_padding(counts):
    """Cells that express equally many genes need no padding; with more of it the latent changes."""
    model = autoencoder.build(counts, SMALL, seed=0)
    n = np.bincount(counts.getnnz(axis=1)).argmax()
    equal = counts[counts.getnnz(axis=1) == n]
    own = autoencoder.encode(model, equal)
    torch.testing.assert_close(padded_latents(model, equal, int(n)), own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded_latents(model, equal, equal, batch=2), own, rtol=1e-4, atol=1e-5)
    assert (padded_latents(model, equal, 3 * int(n)) - own).abs().max() > 1e-3


def test_scores_are_the_metrics(counts):
    model = autoencoder.build(counts, SMALL, seed=0)
    scores = reconstruction_scores(model, counts, seed=0)
    assert scores["re_nb_nll"][0] == pytest.approx(re_nb_nll(counts, *autoencoder.reconstruct(model, counts)))
    latents = autoencoder.encode(model, counts)
    again = reconstruction_scores(model, counts, seed=0, z=latents)
    assert {k: v[0] for k, v in again.items()} == pytest.approx({k: v[0] for k, v in scores.items()}, rel=1e-5)
    other = reconstruction_scores(model, counts, seed=1)
    assert other["pcc_nb_draw"] != scores["pcc_nb_draw"] and other["pcc_nb_mean"] == scores["pcc_nb_mean"]


def test_draws_of_a_gaussian():
    rng = np.random.default_rng(0)
    mean = np.tile([3.0, 5.0, -20.0, 40.0], (20_000, 1))
    x = np.log1p(draw_gaussian(mean, np.array([4.0, 100.0, 1.0, 1.0]), rng=rng))
    np.testing.assert_allclose(x.mean(0), [3, 5, 0, np.log(10_001)], atol=0.02)
    np.testing.assert_allclose(x.std(0)[:2], [0.5, 0.1], rtol=0.03)
    assert x.min() >= 0 and x.max() <= np.log(10_001) + 1e-9


def test_gaussian_network_is_scored_by_its_draws(counts):
    model = autoencoder.build(counts, replace(SMALL, likelihood="gaussian"), seed=0)
    scores = reconstruction_scores(model, counts, seed=0)
    assert set(scores) == {"pcc_nb_draw", "mse_nb_draw", "pcc_nb_mean", "mse_nb_mean"}
    mean, precision = gaussian_law(model, autoencoder.encode(model, counts), batch=7)
    assert mean.shape == (60, 14) and precision.shape == (14,)
    np.testing.assert_allclose(precision, np.exp(1), rtol=1e-6)


def test_latent_spread(counts):
    """No spread between copies of one cell, one of a unit between cells whose latents are drawn apart."""
    model = autoencoder.build(counts, SMALL, seed=0)
    assert latent_spread(model, sp.vstack([counts[:1]] * 9, format="csr")) == pytest.approx(0, abs=1e-5)
    assert latent_spread(model, counts) > 1e-3


def test_costs(counts):
    every = replace(SMALL, inputs="all")
    models = {s.inputs: (autoencoder.build(counts, s, seed=0), s) for s in (SMALL, every)}
    before = [p.clone() for p in models["all"][0].parameters()]
    assert epoch_seconds(counts, *models["all"], threads=1) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, models["all"][0].parameters(), strict=True))
    assert all(p.grad is None for p in models["all"][0].parameters())
    assert step_memory(counts, *models["all"]) > step_memory(counts, *models["expressed"]) > 0


def test_generation_references(counts):
    rng = np.random.default_rng(0)
    shuffled = shuffled_genes(counts, rng=rng)
    np.testing.assert_array_equal(np.sort(shuffled.toarray(), 0), np.sort(counts.toarray(), 0))
    assert (shuffled != counts).nnz > 0
    same, apart = distances(counts, counts), distances(counts, shuffled)
    assert same["w2_exact"] == pytest.approx(0, abs=1e-4) and same["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert all(apart[name] > same[name] for name in DISTANCES)
    # scale does not matter: each side is normalised by its own total
    assert distances(counts, counts * 7)["w2_exact"] == pytest.approx(0, abs=1e-4)


def test_flow_and_noise_start_from_the_same_noise(counts):
    """A flow that has not learned moves nothing: its cells are those of N(0, I), draw for draw."""
    panel = draw_panel(counts, PROTOCOL, 0)
    model = autoencoder.build(panel.train, SMALL, seed=0)
    lazy = replace(PROTOCOL, flow=replace(PROTOCOL.flow, learning_rate=1e-12))
    sets = generated_cells(model, panel, lazy, seed=0)
    assert {name: x.shape for name, x in sets.items()} == {"flow": (12, 14), "normal": (12, 14)}
    assert (sets["flow"] != sets["normal"]).nnz == 0
    keen = replace(PROTOCOL, flow=replace(PROTOCOL.flow, learning_rate=0.03, steps=60))
    moved = generated_cells(model, panel, keen, seed=0)
    assert (moved["normal"] != sets["normal"]).nnz == 0
    assert (moved["flow"] != moved["normal"]).nnz > 0
