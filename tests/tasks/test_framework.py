"""Targets, wiring and printed equations of the framework page."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from screpro.errors import ScreproError
from screpro.losses_noise import clean_from_noise, predict_clean
from screpro.models.blocks import time_embedding
from screpro.processes.gaussian import scaled_linear
from screpro.samplers.ddpm import ancestral
from screpro.sparse import SparseCells
from screpro.tasks import framework as fw
from screpro.tasks.annotation import Labelled
from screpro.tasks.cells import Cells
from screpro.tasks.denoiser import DenoiserSettings
from screpro.tasks.diffusion_classifier import classifier_errors
from screpro.tasks.framework_experiment import Protocol, candidates_of, compare_annotation, compare_imputation
from screpro.tasks.printed_equations import FORMS, chain_moments, printed_time_embedding, reverse_step

SMALL = DenoiserSettings(width=8, depth=2, heads=2, epochs=1, batch_size=32)


def cells(n=40, genes=12, types=3, seed=0):
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % types
    counts = rng.poisson(np.linspace(0.3, 3, types * genes).reshape(types, genes)[kind])
    counts[:, 0] += 1
    counts = sp.csr_matrix(counts.astype(np.float32))
    x = counts.copy()
    x.data = np.log1p(x.data * np.repeat(1e4 / np.asarray(counts.sum(1)).ravel(), np.diff(counts.indptr)) / 100)
    return Cells(
        counts, x.astype(np.float32), kind.astype(np.int64), np.arange(n) // 2 % 2, [f"g{i}" for i in range(genes)]
    )


# --- networks -------------------------------------------------------------------------------------------------


def test_every_network_starts_from_the_same_weights():
    states = [fw.network(m, 12, SMALL, n_types=3, n_batches=2, seed=5).state_dict() for m in fw.METHODS]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[k], states[0][k]) for k in state)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for method in fw.METHODS:
        fw.network(method, 12, SMALL, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_parallel_heads_are_the_chain_with_one_layer_and_differ_with_two():
    visible = torch.rand(3, 12)
    for depth in (1, 3):
        settings = DenoiserSettings(width=8, depth=depth, heads=2)
        chain, heads = (fw.network(m, 12, settings, seed=2).context(visible) for m in ("scdiff", "parallel_heads"))
        # the last block of the chain reads the first layer, which both compute alike
        assert torch.equal(chain[-1].rows, heads[-1].rows)
        assert all(not torch.allclose(a.rows, b.rows) for a, b in zip(chain[:-1], heads[:-1], strict=True))


def test_parallel_head_does_not_see_the_others():
    model = fw.network("parallel_heads", 12, SMALL, seed=2)
    visible = torch.rand(3, 12)
    before = model.context(visible)
    with torch.no_grad():
        model.context.layers[0]["linear"].weight.mul_(-1.0)
    after = model.context(visible)
    assert torch.equal(before[0].rows, after[0].rows)
    assert not torch.allclose(before[1].rows, after[1].rows)


def test_unknown_network():
    with pytest.raises(ScreproError, match="choose one of"):
        fw.network("scdif", 12, SMALL, seed=0)


# --- the noise target -----------------------------------------------------------------------------------------


def noised(seed=0):
    schedule, own = scaled_linear(), cells()
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.as_tensor(own.x.toarray())
    t = torch.randint(1000, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    return schedule, own, x0, t, noise, schedule.diffuse(x0, t, noise)


def test_clean_from_noise_inverts_the_forward_process():
    schedule, _, x0, t, noise, x_t = noised()
    early = t < 900  # later float32 cannot: the signal is a hundredth of the noise
    torch.testing.assert_close(clean_from_noise(x_t, noise, t, schedule=schedule)[early], x0[early], atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["scdiff_epsilon", "scdiff_epsilon_skip"])
def test_error_in_the_noise_is_that_of_the_predicted_clean_cell(method):
    schedule, own, x0, t, noise, x_t = noised()
    t = t.clamp(10, 700)
    x_t = schedule.diffuse(x0, t, noise)
    model = fw.network(method, 12, SMALL, n_types=3, seed=3)
    sparse = SparseCells.from_scipy(own.x)
    labels = {"cell_type": torch.as_tensor(own.cell_type + 1)}
    error = model.denoising_error(
        sparse, t, noise, schedule=schedule, context=sparse.matrix(), conditions=labels, batch=None
    )
    tokens = model.condition_tokens(x0, labels)
    clean = predict_clean(model, x_t, t, tokens=tokens, batch=None, schedule=schedule)
    direct = schedule.snr[t] * (clean - x0).square().mean(1)
    torch.testing.assert_close(error, direct, rtol=2e-3, atol=1e-4)


def test_no_network_predicts_more_noise_than_its_width():
    rng = np.random.default_rng(0)
    weight = np.linalg.qr(rng.normal(size=(60, 15)))[0]
    noise = rng.normal(size=(4000, 60))
    best = noise @ weight @ weight.T  # no answer in those 15 dimensions is closer
    assert np.square(noise - best).mean() == pytest.approx(fw.unpredictable_share(15, 60), abs=0.01)
    assert fw.unpredictable_share(60, 60) == fw.unpredictable_share(99, 60) == 0


def test_linear_errors_against_reduced_rank_regression():
    schedule, own = scaled_linear(), cells(n=200)
    times, width = np.array([200, 600]), 4
    found = fw.linear_errors(own.x, width=width, times=times, schedule=schedule)
    centred = own.x.toarray().astype(np.float64)
    centred -= centred.mean(0)
    covariance = centred.T @ centred / len(centred)
    for k, t in enumerate(times):
        bar = float(schedule.alpha_bar[t])
        total = bar * covariance + (1 - bar) * np.eye(12)
        root = np.linalg.inv(np.linalg.cholesky(total))
        # variance explained by the best map of rank r: the largest squared singular values of Cov(target, whitened x_t)
        clean = np.linalg.svd(np.sqrt(bar) * covariance @ root.T, compute_uv=False) ** 2
        noise = np.linalg.svd(np.sqrt(1 - bar) * root.T, compute_uv=False) ** 2
        assert found.clean[k] == pytest.approx((np.trace(covariance) - clean[:width].sum()) / 12, rel=1e-5)
        assert found.noise[k] == pytest.approx((12 - noise[:width].sum()) / 12 * (1 - bar) / bar, rel=1e-5)


def test_linear_targets_agree_without_a_bottleneck():
    both = fw.linear_errors(cells().x, width=None, times=np.array([10, 500, 990]), schedule=scaled_linear())
    np.testing.assert_allclose(both.clean, both.noise, rtol=1e-5)


# --- reading the networks -------------------------------------------------------------------------------------


def test_candidate_errors_of_the_clean_target_are_those_of_the_fast_classifier():
    own = cells()
    model = fw.network("scdiff", 12, SMALL, n_types=3, n_batches=2, seed=4)
    candidates = candidates_of(model, own)
    assert len(candidates) == 6
    found = fw.candidate_errors(model, own, candidates, seed=7, n_times=3, draws=2)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        drawn = [torch.randn(40, 12, generator=generator) @ model.embedder.table for _ in range(6)]
    embedded = torch.stack(drawn).view(3, 2, 40, 8).permute(2, 0, 1, 3)[:, :, :, None]  # (n, times, draws, 1, D)
    fast = classifier_errors(
        model, own.x, candidates, schedule=scaled_linear(), generator=generator, n_times=3, draws=2, noise=embedded
    )
    np.testing.assert_allclose(found.error, fast.error, rtol=1e-4)


def test_reconstruction_error_is_the_candidate_error_when_everything_is_hidden():
    own = cells()
    for method in fw.TARGETS:
        model = fw.network(method, 12, SMALL, n_types=3, seed=4)
        # with one time step and one draw both take the same numbers from the generator first
        table = fw.reconstruction_error(model, own, seed=3, hidden_shares=[0.0, 1.0], n_times=1)
        assert table.shape == (2, 1)
        errors = fw.candidate_errors(model, own, candidates_of(model, own), seed=3, n_times=1, draws=1)
        true = errors.error[np.arange(40), own.cell_type].mean(0)
        true = true * fw.clean_factor(model, errors.times, schedule=scaled_linear())
        np.testing.assert_allclose(table[1], true, rtol=1e-3)


def test_imputed_values_come_in_the_order_of_the_mask():
    model = fw.network("scdiff", 12, SMALL, seed=0)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(12.0))
    own = cells()
    hidden = sp.csr_matrix(np.random.default_rng(0).random((40, 12)) < 0.2)
    values = fw.impute_once(model, own.x, hidden, t=0, seed=0, chunk=7)
    np.testing.assert_array_equal(values, hidden.indices)


class Rows:
    """What the experiment needs of a run."""

    def __init__(self):
        self.rows = {}

    def add(self, **row):
        row.setdefault("metric_variant", "")
        assert np.isfinite(row["value"])
        key = tuple(row[c] for c in ("dataset", "split", "method", "seed", "metric", "metric_variant"))
        self.rows[key] = row

    def done(self, **unit):
        return any(all(row.get(k) == v for k, v in unit.items()) for row in self.rows.values())

    def frame(self):
        return pd.DataFrame(list(self.rows.values()))


def test_the_experiment_leaves_the_rows_that_the_claims_read():
    labelled = Labelled(cells(n=60), ["a", "b", "c"], ["p", "q"])
    protocol = Protocol("toy", seeds=[3], base=SMALL, rates=[1e-3, 1e-2], draws=1)
    run = Rows()
    compare_annotation(run, labelled, protocol, ["scdiff", "scdiff_epsilon", "parallel_heads"])
    compare_imputation(run, labelled, protocol, ["scdiff", "scdiff_epsilon"])
    rows = run.frame()
    main = rows[(rows["metric_variant"] == "") & ~rows["split"].str.contains("validation")]
    for metric, methods in {
        "macro_f1": ("scdiff", "scdiff_epsilon"),
        "imputation_pearson_pooled": ("scdiff", "scdiff_epsilon"),
        "reconstruction_error": ("scdiff", "parallel_heads"),
    }.items():
        for method in methods:
            assert set(main[(main["metric"] == metric) & (main["method"] == method)]["seed"]) == {3}
    tuned = rows[rows["item"] == "tuning"]
    assert len(tuned) == 8  # two rates of two targets for two tasks; parallel heads take scDiff's
    # a noise target is read where it is best, the clean one at t = 0
    own = rows[(rows["metric"] == "imputation_pearson_pooled") & (rows["split"] == "mask 3")]
    values = own.set_index(["method", "metric_variant"])["value"]
    assert values["scdiff", ""] == values["scdiff", "t = 0"]
    assert values["scdiff_epsilon", ""] == values["scdiff_epsilon"].max()
    # a finished run trains nothing more
    before = dict(run.rows)
    compare_annotation(run, labelled, protocol, ["scdiff", "scdiff_epsilon", "parallel_heads"])
    assert run.rows == before


# --- equations as printed -------------------------------------------------------------------------------------


def test_posterior_step_is_the_schedules():
    schedule = scaled_linear()
    step = reverse_step(schedule, "posterior")
    np.testing.assert_allclose(step.from_x0, schedule.from_x0, rtol=1e-5)
    np.testing.assert_allclose(step.from_xt, schedule.from_xt, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(step.spread**2, schedule.posterior_variance, rtol=1e-5, atol=1e-12)


def test_equation_16_is_right_in_x_t_and_never_positive_in_x_0():
    schedule = scaled_linear()
    printed, right = reverse_step(schedule, "equation 16"), reverse_step(schedule, "posterior")
    np.testing.assert_allclose(printed.from_xt, right.from_xt)
    assert (printed.from_x0 <= 1e-12).all() and (right.from_x0 > 0).all()
    bar = np.cumprod(1 - schedule.beta.double().numpy())
    # the factor by which it is wrong: sqrt(alpha_t) (1 - 1 / abar_{t-2}) / beta_t
    beta = schedule.beta.double().numpy()
    np.testing.assert_allclose(
        printed.from_x0[2:] / right.from_x0[2:], np.sqrt(1 - beta[2:]) * (1 - 1 / bar[:-2]) / beta[2:], rtol=1e-6
    )


def test_equation_17_agrees_with_the_posterior_alone():
    schedule = scaled_linear()
    weight = schedule.kl_weight[1:].double().numpy()
    for form, agrees in (("posterior", True), ("equation 16", False), ("equation 7", False)):
        step = reverse_step(schedule, form)
        implied = step.from_x0[1:] ** 2 / (2 * schedule.posterior_variance[1:].double().numpy())
        assert np.allclose(implied, weight, rtol=1e-4) == agrees


def test_chain_moments_follow_the_sampler():
    schedule = scaled_linear(60, first=1e-3, last=0.3)
    mean, variance = 2.0, 0.5
    bar = schedule.alpha_bar

    def best(x, t):
        a = bar[t, None].sqrt()
        return mean + a * variance / (a**2 * variance + 1 - a**2) * (x - a * mean)

    drawn = ancestral(best, (20_000, 1), schedule=schedule, generator=torch.Generator().manual_seed(0))
    found = chain_moments(schedule, "posterior", mean=mean, variance=variance)
    assert float(drawn.mean()) == pytest.approx(found.mean[-1], abs=0.02)
    assert float(drawn.var()) == pytest.approx(found.variance[-1], rel=0.04)


def test_only_the_posterior_ends_at_the_cells():
    schedule = scaled_linear()
    ends = {form: chain_moments(schedule, form, mean=1.0, variance=0.5) for form in FORMS}
    assert ends["posterior"].variance[-1] == pytest.approx(0.5, rel=0.01)
    assert ends["posterior"].mean[-1] == pytest.approx(1.0, abs=1e-3)
    assert ends["equation 7"].variance[-1] < 0.3
    assert ends["equation 16"].variance[-1] == 0 and ends["equation 16"].mean[-1] == 0
    for wrong in ({"form": "equation 8", "variance": 1.0}, {"form": "posterior", "variance": 0.0}):
        with pytest.raises(ScreproError):
            chain_moments(schedule, wrong["form"], mean=0.0, variance=wrong["variance"])


def test_the_printed_time_embedding_has_few_directions():
    t = torch.arange(1000)
    printed, usual = printed_time_embedding(t, 64), time_embedding(t, 64).double()
    assert printed.min() >= 0 and printed.max() <= 1
    assert printed[500, 31] == pytest.approx(np.sin(0.5), abs=1e-12)  # i = 32 = D / 2: power one
    assert printed[500, 63] == pytest.approx(np.cos(0.25), abs=1e-12)  # i = D: power two

    def directions(embedding):
        strength = torch.linalg.svdvals(embedding - embedding.mean(0))
        return int((strength > 0.01 * strength[0]).sum())

    assert directions(printed) < 10 < directions(usual)
