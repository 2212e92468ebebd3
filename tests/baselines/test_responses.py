"""Baselines of responses: closed forms without noise, labels and order, known effects, seeds, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.baselines import responses
from screpro.baselines.cellflow_like import components_of, paired
from screpro.baselines.response_cells import moved, nonnegative
from screpro.baselines.response_linear import predicted_changes
from screpro.baselines.response_means import changes, own_effect
from screpro.baselines.responses import Asked, controls_for, run
from screpro.data.populations import Populations, populations
from screpro.data.simulate_atlas import atlas
from screpro.errors import ScreproError
from screpro.metrics.perturbation import pd_corr
from screpro.tasks.responses import Scorer, hold_out

NETWORKS = {
    "state_like": {"width": 32, "heads": 2, "layers": 1, "set_size": 16, "steps": 150, "learning_rate": 3e-3},
    "cpa": {"width": 64, "latent": 16, "epochs": 14, "batch_size": 64, "learning_rate": 3e-3},
    "cellflow_like": {"width": 64, "layers": 2, "components": 15, "steps": 150, "learning_rate": 3e-3},
    "squidiff_like": {"width": 64, "layers": 2, "steps": 300, "sampling_steps": 20, "learning_rate": 3e-3},
}
FEW = {
    "state_like": {"width": 8, "heads": 1, "layers": 1, "set_size": 4, "steps": 2},
    "cpa": {"width": 8, "latent": 4, "epochs": 1},
    "cellflow_like": {"width": 8, "layers": 1, "components": 5, "steps": 2, "sampling_steps": 2},
    "squidiff_like": {"width": 8, "layers": 1, "steps": 2, "sampling_steps": 2},
}


def answer(name, split, asked=None, seed=0, **options):
    return run(
        name,
        split.train,
        asked=split.test if asked is None else asked,
        controls=split.controls,
        seed=seed,
        options=options,
    )


@pytest.fixture(scope="module")
def split():
    """An atlas with clear effects in which programs answer alike everywhere."""
    drawn = atlas(
        n_contexts=3, n_perturbations=8, n_donors=2, cells=20, control_cells=40, n_genes=40, n_programs=5,
        effect=1.5, latent=0.0, depth=1500.0, dispersion=0.0, rng=np.random.default_rng(0),
    )  # fmt: skip
    return hold_out(populations(drawn, context_key="context", batch_key="donor", n_genes=None), seed=0)


@pytest.fixture(scope="module")
def additive():
    """Constant cells of 3 contexts, 2 batches, 3 perturbations: base of context and batch plus effect; gene 2 is 0."""
    rng = np.random.default_rng(0)
    base, effect = 2 + rng.random((3, 2, 4)), rng.uniform(-1, 1, (4, 4))
    effect[0] = 0
    p, k, b = (a.ravel() for a in np.meshgrid(np.arange(4), np.arange(3), np.arange(2), indexing="ij"))
    repeats = rng.integers(10, 15, len(p))
    x = base[k, b] + effect[p]
    x[:, 2] = 0
    p, k, b = (np.repeat(codes, repeats) for codes in (p, k, b))
    x = sp.csr_matrix(np.repeat(x, repeats, axis=0), dtype=np.float32)
    names = ("control", "p", "q", "r")
    cells = Populations(x, x, p, k, b, tuple("abcd"), names, ("u", "v", "w"), ("d", "e"))
    return hold_out(cells, context="w", kept=0.4, seed=0), effect


def test_without_noise_the_own_effect_is_exact(additive):
    split, effect = additive
    effect = effect * [1, 1, 0, 1]
    assert own_effect(split.train) == pytest.approx(effect, abs=1e-6)
    assert answer("control_own_effect", split) == pytest.approx(split.test.x.toarray(), abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"components": 3}, {"context_part": False}])
def test_without_noise_the_linear_model_is_exact(additive, options):
    made = answer("linear", additive[0], penalty=1e-8, **options)
    assert made == pytest.approx(additive[0].test.x.toarray(), abs=1e-4)


def test_the_linear_model_is_weighted_ridge(split):
    """Against scikit-learn, with its own penalty and weights on all one-hot features."""
    from sklearn.linear_model import Ridge

    found = changes(split.train)
    z = np.concatenate([np.eye(9)[found.perturbation], np.eye(3)[found.context]], axis=1)
    offset = np.average(found.mean, axis=0, weights=found.cells)
    ridge = Ridge(alpha=7.0, fit_intercept=False).fit(z, found.mean - offset, sample_weight=found.cells)
    mine = predicted_changes(
        found, perturbation=found.perturbation, context=found.context, components=None, penalty=7.0
    )
    assert mine == pytest.approx(ridge.predict(z) + offset, abs=1e-8)


def test_means_are_those_of_training_cells(split):
    train, test = split.train, split.test
    x, perturbed = train.x.toarray().astype(float), ~train.is_control
    for name, code in [("mean", "perturbation"), ("mean_per_type", "context"), ("mean_per_batch", "batch")]:
        mine, own, asked = answer(name, split), getattr(train, code), getattr(test, code)
        for value in np.unique(asked):
            expected = x[perturbed & (own == value)].mean(0)
            assert mine[asked == value] == pytest.approx(np.tile(expected, ((asked == value).sum(), 1)), abs=1e-5)
    assert answer("mean_overall", split)[3] == pytest.approx(x[perturbed].mean(0), abs=1e-5)
    null = answer("mean", split, split.controls)
    assert null[0] == pytest.approx(x[~perturbed].mean(0), abs=1e-5)


def test_what_was_never_seen_falls_back(split):
    """A perturbation without training cells gets the overall mean, or the mean change."""
    p = split.test.perturbation[0]
    seen = split.train.take(np.flatnonzero(split.train.perturbation != p))
    less = split._replace(train=seen)
    asked = split.test.take(np.flatnonzero(split.test.perturbation == p))
    perturbed = seen.x[np.flatnonzero(~seen.is_control)].toarray()
    assert answer("mean", less, asked)[0] == pytest.approx(perturbed.mean(0), abs=1e-5)
    found = changes(seen)
    assert own_effect(seen)[p] == pytest.approx(np.average(found.mean, axis=0, weights=found.cells), abs=1e-8)
    for name, options in FEW.items():
        assert np.isfinite(answer(name, less, asked, **options)).all()


def test_moved_cells_have_the_mean_and_the_zeros(split):
    controls = split.controls.take(np.flatnonzero(split.controls.batch == 0))
    labels = Asked(controls.perturbation, controls.context, controls.batch)  # every control cell once
    before = controls.x.toarray().astype(float)
    change = np.linspace(-2, 2, 40)[None] * before.mean(0)
    made = moved(controls, labels, change, np.zeros(len(controls), dtype=int), seed=0)
    assert made.mean(0) == pytest.approx(np.maximum(before.mean(0) + change[0], 0), abs=1e-4)
    assert made.min() >= 0
    mild = change[0] <= before.mean(0)
    own = before[controls_for(controls, labels, seed=0)]
    assert ((made == 0) >= (own == 0))[:, mild].all()


def test_cells_without_negative_values_keep_their_mean():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 6)).astype(np.float32) + np.array([3.0, 1.0, 0.2, 0.0, 0.05, -1.0])
    labels = Asked(np.repeat([0, 1], 100), np.zeros(200, int), np.zeros(200, int))
    out = nonnegative(x, labels)
    for rows in (slice(100), slice(100, 200)):
        assert out[rows].mean(0) == pytest.approx(np.maximum(x[rows].mean(0), 0), abs=1e-5)
    assert out.min() == 0 and (out[:, 5] == 0).all()
    # a projection: what is feasible stays, and order within a gene is kept
    assert nonnegative(out, labels) == pytest.approx(out, abs=1e-6)
    rising = np.argsort(x[:100, 1])
    assert (np.diff(out[:100, 1][rising]) >= 0).all()


def test_controls_come_from_context_and_batch_once_each(split):
    asked = split.test
    rows = controls_for(split.controls, Asked(asked.perturbation, asked.context, asked.batch), seed=0)
    assert (split.controls.context[rows] == asked.context).all()
    assert (split.controls.batch[rows] == asked.batch).all()
    one = asked.group() == asked.group()[0]
    assert len(set(rows[one])) == one.sum()
    lone = split.controls.take(np.flatnonzero(split.controls.batch == 0))  # no controls of the other batch
    rows = controls_for(lone, Asked(asked.perturbation, asked.context, asked.batch), seed=0)
    assert (lone.context[rows] == asked.context).all()
    made = answer("control_cells", split, split.controls)
    for each in (0, 1):
        own = split.controls.batch == each
        assert np.sort(made[own], 0) == pytest.approx(np.sort(split.controls.x[np.flatnonzero(own)].toarray(), 0))


@pytest.mark.parametrize("name", [*NETWORKS, "linear", "control_own_effect", "mean"])
def test_known_effects_are_recovered(split, name):
    """Better than control cells on the direction of effects, in a context in which they were never seen."""
    scorer = Scorer(split.test, split.controls)
    made = answer(name, split, **NETWORKS.get(name, {}))
    assert made.shape == split.test.x.shape and made.dtype == np.float32 and made.min() >= 0
    mine = np.nanmean(pd_corr(scorer.score(made).pair))
    floor = np.nanmean(pd_corr(scorer.score(answer("control_cells", split)).pair))
    assert mine > max(0.6, floor + 0.3), (mine, floor)


@pytest.mark.parametrize("name", list(FEW))
def test_networks_answer_labels_alone_with_a_seed(split, name):
    """The same labels give the same cells, whatever the expression; another seed others; the null test is answered."""
    asked = split.test.take(np.arange(30))
    made = answer(name, split, asked, **FEW[name])
    blank = replace(asked, x=sp.csr_matrix(asked.x.shape, dtype=np.float32))
    assert np.array_equal(made, answer(name, split, blank, **FEW[name]))
    assert not np.array_equal(made, answer(name, split, asked, seed=1, **FEW[name]))
    state = torch.get_rng_state()
    null = answer(name, split, split.controls, **FEW[name])
    assert null.shape == split.controls.x.shape and np.isfinite(null).all()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [n for n, entry in responses.BASELINES.items() if n not in FEW and not entry.needs])
def test_answers_are_in_the_order_asked(split, name):
    """Means over cells of one set of labels do not depend on where these stand."""
    order = np.random.default_rng(0).permutation(len(split.test))
    there, here = answer(name, split), answer(name, split, split.test.take(order))
    for p in np.unique(split.test.perturbation):
        own = split.test.perturbation == p
        assert there[own].mean(0) == pytest.approx(here[own[order]].mean(0), abs=0.35)
    if not responses.BASELINES[name].random:
        assert np.array_equal(there[order], here)


def test_cpa_keeps_what_it_does_not_change(split):
    """Asked for the control it answers with the control cells; its decoded means vary less than its cells do."""
    cells, means = (answer("cpa", split, **NETWORKS["cpa"], keep_rest=keep) for keep in (True, False))
    assert answer("cpa", split, split.controls, **FEW["cpa"]) == pytest.approx(
        answer("control_cells", split, split.controls), abs=1e-4
    )
    real, kept, decoded = (np.median(x.var(0)) for x in (split.test.x.toarray(), cells, means))
    assert decoded < real and abs(np.log(kept / real)) < abs(np.log(decoded / real)), (real, kept, decoded)


def test_pairs_are_of_least_cost():
    z0 = torch.rand(2, 6, 3)
    order = torch.randperm(6)
    assert torch.equal(paired(z0, z0[:, order] + 1e-3), z0 + 1e-3)


def test_components_are_principal_ones(split):
    from sklearn.decomposition import PCA

    x = split.train.x.toarray().astype(float)
    reference = PCA(5).fit(x)
    mine = components_of(split.train.x, 5)
    assert np.abs(mine.axes @ reference.components_.T) == pytest.approx(np.eye(5), abs=1e-3)
    z = mine(split.train.x)
    assert float(z.square().mean()) == pytest.approx(1, abs=1e-3)
    back = mine.change(z) + mine.mean
    assert back == pytest.approx(reference.inverse_transform(reference.transform(x)), abs=1e-3)


def test_every_grid_names_options_of_its_method():
    from screpro.baselines.registry import method_of

    for name, entry in responses.BASELINES.items():
        assert entry.grid[0] == {}
        for options in entry.grid:
            method_of(name, entry.where, options, fixed=responses.FIXED)


def test_bad_input_is_refused(split):
    with pytest.raises(ScreproError, match="named by its key"):
        answer("gears", split)
    with pytest.raises(ScreproError, match="options of linear"):
        answer("linear", split, depth=3)
    with pytest.raises(ScreproError, match="positive penalty"):
        answer("linear", split, penalty=0.0)
    with pytest.raises(ScreproError, match="share their genes"):
        answer("mean", split, replace(split.test, genes=split.test.genes[::-1]))
    with pytest.raises(ScreproError, match="perturbed and control cells"):
        answer("mean", split._replace(train=split.controls))
    with pytest.raises(ScreproError, match="has control cells"):
        answer("mean", split._replace(controls=split.test))
    for name, options in [("cellflow_like", {"components": 0}), ("squidiff_like", {"sampling_steps": 0})]:
        with pytest.raises(ScreproError):
            answer(name, split, **options)
    for name in ("cellflow_like", "squidiff_like"):
        with pytest.raises(ScreproError, match="at least one"):
            answer(name, split, steps=0)
