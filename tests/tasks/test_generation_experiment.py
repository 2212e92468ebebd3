"""The generation experiment: its rows, its resumption, and what samplers cost."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from screpro import records
from screpro.baselines.generation import Generated
from screpro.errors import ScreproError
from screpro.tasks import generation_experiment as experiment
from screpro.tasks import generation_variants as variants
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.flow import FlowSettings, sample_latents
from screpro.tasks.generation import generation_cells
from screpro.tasks.generation_training import train_scldm
from screpro.tasks.library_size import LibrarySizes, SizesOfLatents


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    types = np.repeat(["a", "b"], [60, 40])
    rate = np.exp(rng.normal(0, 1, 60)) * np.where(np.arange(60) % 2 == (types == "b")[:, None], 3, 1)
    obs = pd.DataFrame({"cell_type": types}, index=[f"cell {i}" for i in range(100)])
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)
    return generation_cells(adata, split=0, test=0.3)


@pytest.fixture(scope="module")
def protocol():
    return experiment.Protocol(
        "toy", 0, [3], AutoEncoderSettings(width=8, tokens=2, channels=4, layers=1, heads=2, cross_heads=2, epochs=2),
        FlowSettings(width=8, layers=1, heads=2, steps=4, batch_size=32), n_variable=None, steps=2,
        samplers=(("euler", 3), ("heun", 2), ("dopri5", 1)), sampler_cells=10, timed=(8, 12), passes_study=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(cells, protocol):
    run = records.start("scldm/generation", tier="ci")
    experiment.compare_methods(run, cells, protocol, ["scldm", "bootstrap", "independent_nb"])
    return run


def test_every_method_has_every_score(run):
    rows = run.frame()
    wide = rows[~rows["item"].isin(["A10", "X-22", "X-24", "X-25"])].pivot_table(
        index=["metric", "metric_variant"], columns="method", values="value"
    )
    for metric in ("w2_exact", "mmd2_rbf_sum5", "frechet_distance"):
        for variant in ("unconditional", "conditional", "unconditional, all genes", "conditional, all genes"):
            methods = ["scldm", "bootstrap", "independent_nb", experiment.CEILING, experiment.FIRST_STAGE]
            assert wide.loc[(metric, variant), methods].notna().all(), (metric, variant)
    assert wide.loc[("one_nn_accuracy", "unconditional"), "scldm"] >= 0
    assert wide.loc[("mmd2_rbf_sum5", "unconditional"), experiment.FLOOR] == pytest.approx(6 / 30)
    sizes = rows[rows["metric"] == "cells_of_class"]
    assert sizes["value"].sum() == 30
    drops = rows[rows["item"] == "A10"]
    assert set(drops["metric_variant"]) == {"unconditional, drop 0.8", "conditional, drop 0.8"}


def test_the_first_stage_with_other_passes(run, cells):
    """The network of the page is there as it was scored, the other one beside it, on the same cells and genes."""
    rows = run.frame()
    study = rows[rows["item"] == "X-22"].set_index(["metric", "metric_variant"])["value"]
    main = rows[(rows["method"] == experiment.FIRST_STAGE) & (rows["item"] == "Table 2")]
    main = main.set_index(["metric", "metric_variant"])["value"]
    for of in ("unconditional", "conditional"):
        assert study["w2_exact", f"{of}, 2 passes"] == main["w2_exact", of]
        assert study["w2_exact", f"{of}, 1 passes"] != main["w2_exact", of]
    for which in ("training", "test"):  # a second pass brings an untrained network nearer to its cells
        assert study["re_nb_nll", f"{which} cells, 2 passes"] < study["re_nb_nll", f"{which} cells, 1 passes"]
    sizes = rows[(rows["item"] == "X-22") & (rows["metric"] == "re_nb_nll")]
    assert set(sizes["n_real"]) == {len(cells.train_labels), len(cells.test_labels)}
    assert not list((run.folder / "checkpoints").glob("*"))


def test_sizes_are_read_off_the_latents_of_the_page(cells, protocol, monkeypatch):
    """Drawn without and with the labels, as the page draws them, and real ones: any training cell's, then by label."""
    asked, decoded, sized = [], [], []
    monkeypatch.setattr(SizesOfLatents, "draw", lambda law, z, rng: asked.append(z) or np.full(len(z), 7.0))
    whole = variants.decode_counts
    monkeypatch.setattr(
        variants, "decode_counts", lambda f, z, size, rng: decoded.append((z, size)) or whole(f, z, size, rng=rng)
    )
    by_label = LibrarySizes.draw
    monkeypatch.setattr(
        LibrarySizes,
        "draw",
        lambda law, labels, rng: sized.append(labels["cell_type"]) or by_label(law, labels, rng=rng),
    )
    run = records.start("scldm/generation", tier="ci")
    own = train_scldm(cells, protocol.autoencoder, protocol.flow, seed=3)
    experiment.compare_methods(run, cells, protocol, ["scldm"], trained={3: own})
    variant = [z for z, size in decoded if (np.asarray(size) == 7).all()]
    assert len(asked) == 5 and all(a is b for a, b in zip(asked, variant, strict=True))
    labels = {"cell_type": cells.test_labels}
    for z, weight in zip(asked, (0.0, 1.0), strict=False):
        how = {"n": 30, "shape": (2, 4), "weight": weight, "steps": 2, "seed": 3}
        assert torch.equal(z, sample_latents(own.generator.network, labels, **how))
    of_label = [own.latents[cells.train_labels == k] for k in cells.test_labels]
    assert all((z == same).all((1, 2)).any() for z, same in zip(asked[3], of_label, strict=True))
    rows = run.frame()
    assert set(rows.query("item == 'X-24'")["method"]) == {"scldm", experiment.FIRST_STAGE}
    # labels about as often as training cells have them, told to the flow and to the law of sizes
    (first,) = (given for given in sized if len(given) == 30 and not np.array_equal(given, cells.test_labels))
    assert torch.equal(asked[4], sample_latents(own.generator.network, {"cell_type": first}, **how))
    shares = [np.bincount(given, minlength=9) / len(given) for given in (first, cells.train_labels)]
    assert np.abs(shares[0] - shares[1]).max() < 0.25
    names = set(rows.query("item == 'X-25'")["metric_variant"])
    assert names == {f"unconditional, label drawn first{more}" for more in ("", ", sizes of latents")}


def test_a_kill_loses_no_auto_encoder(cells, protocol, monkeypatch):
    """The files of a seed stay until the comparison has ended: a run that goes on forgets its last unit's rows."""
    run = records.start("scldm/generation", tier="ci")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(experiment.baselines, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            experiment.compare_methods(run, cells, protocol, ["scldm", "bootstrap"])
    assert len(list((run.folder / "checkpoints").glob("*.safetensors"))) == 2  # with all passes, and with fewer
    experiment.compare_methods(run, cells, protocol, ["scldm", "bootstrap"])
    assert not list((run.folder / "checkpoints").glob("*"))


def test_samplers_cost_what_they_should(run):
    rows = run.frame()
    calls = rows[rows["metric"] == "network_calls"].set_index("metric_variant")["value"]
    assert calls["euler, 3 steps"] == 3 and calls["heun, 2 steps"] == 4 and calls["dopri5"] > 6
    assert (rows.loc[rows["item"] == "speed", "n_generated"] == 8).all()


def test_what_is_measured_is_not_measured_again(run, cells, protocol, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(experiment, "train_scldm", fail)
    monkeypatch.setattr(experiment.baselines, "run", fail)
    experiment.compare_methods(run, cells, protocol, ["scldm", "bootstrap"])


def test_samples_of_the_first_seed_are_kept(run, cells, protocol):
    kept = experiment.sample_of(run, protocol, "scldm", "conditional")
    assert kept.shape == cells.test.shape
    totals = np.asarray(kept.expm1().sum(1)).ravel()
    np.testing.assert_allclose(totals[totals > 0], 1e4, rtol=1e-3)
    assert experiment.sample_of(run, protocol, "scvi", "conditional") is None


def test_one_trained_model_draws_the_same_cells_again(cells, protocol):
    first, again = (
        train_scldm(cells, protocol.autoencoder, protocol.flow, seed=1).generator.draw(
            {"cell_type": cells.test_labels}, steps=2, seed=5
        )
        for _ in range(2)
    )
    assert (first != again).nnz == 0
    assert first.shape == cells.test.shape and torch.get_num_threads() >= 1


def test_unknown_methods_are_refused(run, cells, protocol):
    with pytest.raises(ScreproError, match="named by its key"):
        experiment.compare_methods(run, cells, protocol, ["scdiff"])


def test_tuning_takes_the_setting_whose_cells_are_nearest(cells, protocol, monkeypatch):
    asked = []

    def fake(name, counts, labels, *, wanted, n_types, seed, threads, options):
        asked.append(options)
        rows = np.random.default_rng(seed).integers(counts.shape[0], size=len(wanted))
        real = counts[rows]
        return Generated(real if options.get("good") else sp.csr_matrix(np.ones(real.shape)), None)

    monkeypatch.setattr(experiment.baselines, "run", fake)
    run = records.start("scldm/generation", tier="ci")
    tuned = protocol._replace(tune=True, grids={"cfgen_like": [{}, {"good": 1}]})
    experiment.compare_methods(run, cells, tuned, ["cfgen_like"])
    rows = run.frame()
    tried = rows[rows["item"] == "tuning"]
    assert asked == [{}, {"good": 1}, {"good": 1}] and len(tried) == 2
    assert set(tried["split"]) == {"0, validation"} and set(tried["n_real"]) == {14}
    assert set(tried["metric"]) == {"times_ceiling"}
    values = tried.set_index("metric_variant")["value"]
    assert values["{}"] > 2 * values['{"good": 1}']
    assert "conditional" not in set(rows.loc[rows["method"] == "cfgen_like", "metric_variant"])
