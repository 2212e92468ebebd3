"""scDiff as an imputer, its experiment and the ceiling of simulated cells."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro import records
from screpro.baselines.imputation import IMPUTERS
from screpro.data.masks import hide, mar_mask
from screpro.errors import ScreproError
from screpro.metrics.imputation import imputation_pearson_pooled
from screpro.processes.gaussian import scaled_linear
from screpro.samplers.ddpm import ancestral
from screpro.samplers.inpainting import inpaint
from screpro.tasks.denoiser import DenoiserSettings, build
from screpro.tasks.imputation import PRESETS, Imputer, imputer_grid, one_step, train_imputer
from screpro.tasks.imputation_ceiling import ORACLE, ceiling, gene_type_oracle, synthetic_cells, true_rate
from screpro.tasks.imputation_experiment import Protocol, compare_methods, draw_mask, validation_mask

SMALL = DenoiserSettings(width=8, depth=2, heads=2, epochs=2, batch_size=64)


@pytest.fixture(scope="module")
def synthetic():
    return synthetic_cells(n_cells=120, n_genes=60, n_types=3, seed=0, depth=200.0)


@pytest.fixture(scope="module")
def mask(synthetic):
    return draw_mask(synthetic.counts, 0)


@pytest.fixture(scope="module")
def model(mask):
    return build(mask.x.shape[1], SMALL, seed=1).eval()


def correlation(mask, values):
    return imputation_pearson_pooled(mask.matrix(mask.truth), mask.matrix(values), mask.hidden)


@torch.no_grad()
def test_one_step_is_the_network_called_once(model, mask):
    visible = torch.as_tensor(mask.x.toarray())
    schedule, n = scaled_linear(), len(visible)
    noise = torch.randn(visible.shape, generator=torch.Generator().manual_seed(3))
    noisy = schedule.signal[1] * visible + schedule.noise[1] * noise
    assert schedule.noise[1].item() == pytest.approx(0.0142, abs=1e-4)
    expected = model(noisy, torch.zeros(n, dtype=torch.int64), context=visible, conditions={})
    found = one_step(model, mask.x, mask.hidden, seed=3)
    np.testing.assert_allclose(found, expected.numpy()[mask.hidden.toarray()], atol=1e-5)


def test_one_step_does_not_see_the_hidden_values(model, synthetic, mask):
    changed = synthetic.counts.copy()
    changed.data[synthetic.counts.multiply(mask.hidden).toarray()[synthetic.counts.nonzero()] > 0] += 3
    other = hide(changed, mask.hidden, size=mask.size)
    assert not np.allclose(other.truth, mask.truth)
    seen, before = (one_step(model, each.x, each.hidden, seed=0) for each in (other, mask))
    np.testing.assert_allclose(seen, before, atol=1e-5)


def test_late_answers_are_averaged_over_noise(model, mask):
    imputer = Imputer(model, SMALL, 0.0, [])
    at_end = {"level": 999, "t": 999}
    calls = [one_step(model, mask.x, mask.hidden, seed=seed, **at_end) for seed in (5, 5 + 1_000_003)]
    np.testing.assert_array_equal(imputer.late(mask, calls=1, seed=5), calls[0])
    np.testing.assert_allclose(imputer.late(mask, calls=2, seed=5), np.mean(calls, axis=0), atol=1e-6)
    # no noise is left out: two calls with different noise differ
    assert (calls[0] != calls[1]).any()


def test_the_grid_starts_with_its_base_and_is_no_longer_than_the_baselines():
    for base in PRESETS.values():
        grid = imputer_grid(base)
        assert grid[0] == base and len(set(grid)) == len(grid)
        assert len(grid) <= max(len(entry.grid) for entry in IMPUTERS.values())


def test_a_network_is_trained_anew_only_for_other_settings(synthetic, monkeypatch):
    from screpro.tasks import imputation_experiment as experiment

    made = []

    def train(x, settings, **_):
        made.append(settings)
        return Imputer(build(x.shape[1], settings, seed=0).eval(), settings, 0.0, [])

    monkeypatch.setattr(experiment, "train_imputer", train)
    chosen, ready = replace(SMALL, epochs=3), draw_mask(synthetic.counts, 0)
    for given, expected in ((chosen, 0), (SMALL, 1)):
        made.clear()
        grids = {"scdiff": [asdict(chosen)]}
        name = f"toy, {expected} trained"  # rows of the other round must not count as done
        protocol = Protocol(dataset=name, splits=[0], seeds=[0], base=SMALL, tune=True, grids=grids)
        trained = {(0, 0): train(ready.x, given)}
        made.clear()
        run = records.start("scdiff/imputation", tier="ci")
        compare_methods(run, synthetic.counts, protocol, ["scdiff"], trained=trained)
        assert len(made) == expected and all(settings == chosen for settings in made)


def test_part_by_part_is_all_at_once_up_to_the_noise(model, mask):
    parts = one_step(model, mask.x, mask.hidden, seed=0, chunk=50)
    np.testing.assert_allclose(parts, one_step(model, mask.x, mask.hidden, seed=0), atol=0.05)


@torch.no_grad()
def test_inpainting_has_the_distribution_of_overwriting_genes_in_every_step(mask):
    """The straightforward loop: all genes carried along, the visible ones overwritten after every step."""
    # an untrained network answers almost the same everywhere: give its table and head some size
    model = build(mask.x.shape[1], SMALL, seed=2).eval()
    model.embedder.table.mul_(40)
    row = int(np.argmax(np.diff(mask.hidden.indptr)))
    copies = np.full(1500, row)
    visible, hidden = mask.x[copies], mask.hidden[copies]
    dense, out = torch.as_tensor(visible.toarray()), torch.as_tensor(hidden.toarray())
    schedule, generator = scaled_linear(50), torch.Generator().manual_seed(0)

    def overwrite(x, t):
        noise = torch.randn(x.shape, generator=generator)
        return torch.where(out, x, schedule.signal[t] * dense + schedule.noise[t] * noise)

    def denoise(x, t):
        return model(x, t, context=dense, conditions={})

    import screpro.samplers.inpainting as module

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "scaled_linear", lambda: scaled_linear(50))
    found = inpaint(model, visible, hidden, conditions={}, seed=1).reshape(1500, -1)
    patch.undo()
    slow = ancestral(denoise, tuple(dense.shape), schedule=schedule, generator=generator, after_step=overwrite)
    slow = slow.numpy()[hidden.toarray()].reshape(1500, -1)
    error = slow.std(axis=0) * np.sqrt(2 / 1500)
    assert (np.abs(found.mean(axis=0) - slow.mean(axis=0)) < 5 * error).all()
    np.testing.assert_allclose(found.std(axis=0), slow.std(axis=0), rtol=0.12)


def test_training_learns_more_than_the_mean_of_genes():
    """Two types whose genes have nothing in common: the mean over cells mixes them, the context tells them apart."""
    rng = np.random.default_rng(0)
    rate = 4 * np.exp(1.2 * rng.standard_normal((2, 30)))
    mask = draw_mask(sp.csr_matrix(rng.poisson(np.repeat(rate, 100, axis=0)).astype(np.float32)), 0)
    settings = DenoiserSettings(width=32, depth=1, epochs=60, batch_size=50, learning_rate=1e-3)
    imputer = train_imputer(mask.x, settings, seed=0)
    mean = np.asarray(mask.x.mean(axis=0)).ravel()[mask.hidden.indices]
    assert imputer.losses[-1] < 0.5 * imputer.losses[0]
    assert correlation(mask, imputer.one_step(mask, seed=0)) > correlation(mask, mean) + 0.1


def test_a_seed_decides_the_answer(mask):
    one, two = (train_imputer(mask.x, SMALL, seed=0).one_step(mask, seed=0) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (train_imputer(mask.x, SMALL, seed=1).one_step(mask, seed=0) != one).any()


def test_validation_entries_are_visible_ones(mask):
    inner = validation_mask(mask, 0)
    assert not inner.hidden.multiply(mask.hidden).nnz
    assert inner.hidden.nnz == int(0.1 * mask.counts.nnz)
    np.testing.assert_array_equal(inner.size, mask.size)


def test_the_oracle_is_the_best_constant_per_gene_and_type(synthetic, mask):
    found = gene_type_oracle(mask, synthetic.types)
    cells, genes = mask.hidden.nonzero()
    for _ in range(3):
        one = np.random.default_rng(_).integers(len(genes))
        same = (genes == genes[one]) & (synthetic.types[cells] == synthetic.types[cells[one]])
        assert found[one] == pytest.approx(mask.truth[same].mean(), rel=1e-5)
    rng = np.random.default_rng(0)
    group = synthetic.types[cells] * mask.hidden.shape[1] + genes
    other = found + 0.2 * rng.standard_normal(group.max() + 1)[group]
    assert correlation(mask, other) < correlation(mask, found)


def test_ceiling_is_the_mean_of_what_was_hidden():
    """Cells of one gene rate: the mean of the hidden values of that gene, by drawing."""
    rng, mu = np.random.default_rng(0), np.array([0.3, 2.0, 9.0, 60.0])
    n = 40000
    counts = sp.csr_matrix(rng.poisson(rng.gamma(5.0, mu / 5.0, (n, 4))).astype(np.float32))
    mask = hide(counts, mar_mask(counts, share=0.02, rng=rng), size=np.full(n, 100.0))
    expected = ceiling(mask, np.broadcast_to(mu, counts.shape), dispersion=0.2)
    for gene in range(4):
        at = mask.hidden.indices == gene
        error = mask.truth[at].std() / np.sqrt(at.sum())
        assert mask.truth[at].mean() == pytest.approx(expected[at][0], abs=4 * error)
    poisson = ceiling(mask, np.broadcast_to(mu, counts.shape), dispersion=0.0)
    assert poisson[0] != expected[0]


def test_nothing_that_is_constant_beats_the_ceiling(synthetic, mask):
    best = correlation(mask, ceiling(mask, synthetic.rate, dispersion=0.2))
    assert correlation(mask, true_rate(mask, synthetic.rate)) < best + 0.01
    mean = np.asarray(mask.x.mean(axis=0)).ravel()[mask.hidden.indices]
    assert correlation(mask, mean) < best


def test_the_experiment_records_each_measurement_once(synthetic, monkeypatch):
    from screpro.baselines import imputation as baselines
    from screpro.tasks import imputation_experiment as experiment

    calls = []

    def mean(name, counts, *, size, seed, threads, options):
        calls.append((name, options))
        x = counts.toarray() / size[:, None] * 1e4
        return np.broadcast_to(np.log1p(x.mean(axis=0)) * options.get("factor", 1.0), x.shape)

    monkeypatch.setattr(baselines, "run", mean)
    monkeypatch.setattr(experiment, "imputer_grid", lambda base: [base])
    grids = {"magic": [{}, {"factor": 0.0}], "dca": [{}]}
    protocol = Protocol(
        dataset="toy", splits=[0, 1], seeds=[0, 1], base=SMALL, tune=True, grids=grids, clean=["scdiff", "magic"]
    )
    run, methods = records.start("scdiff/imputation", tier="ci"), ["scdiff", "magic", "dca"]
    compare_methods(run, synthetic.counts, protocol, methods, types=synthetic.types)
    rows, n = run.frame(), len(calls)
    compare_methods(run, synthetic.counts, protocol, methods, types=synthetic.types)
    assert len(run.frame()) == len(rows) and len(calls) == n  # nothing is measured twice
    main = rows[(rows["metric_variant"] == "") & (rows["metric"] == "imputation_pearson_pooled")]
    assert main.groupby("method").size().to_dict() == {"scdiff": 3, "magic": 2, "dca": 3, ORACLE: 2}
    assert main.loc[main["method"] == "magic", "seed"].isna().all()
    tuning = rows[rows["item"] == "tuning"]
    assert len(tuning) == 2 and tuning["value"].iloc[0] > tuning["value"].iloc[1] == 0  # a constant counts as nothing
    assert calls[-5][1] == {} and set(rows.loc[rows["metric_variant"] == "clean", "method"]) == {"scdiff", "magic"}
    mask = draw_mask(synthetic.counts, 1)
    expected = correlation(mask, mask.at_hidden(mean("", mask.counts, size=mask.size, seed=0, threads=1, options={})))
    assert main.loc[(main["method"] == "magic") & (main["split"] == "1"), "value"].item() == pytest.approx(expected)
    with pytest.raises(ScreproError, match="named by its key"):
        compare_methods(run, synthetic.counts, protocol, ["sdciff"])
