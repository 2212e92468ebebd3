"""Baselines for a type whose stimulated cells were never seen, on cells whose response is known."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.baselines.perturbation import BASELINES, run
from screpro.errors import ScreproError
from screpro.metrics.change import change_size_ratio, r2_change_top100
from screpro.tasks.perturbation import StateCells

# settings that make a training last about a second
SIZE = {"width": 48, "layers": 1, "latent": 8, "dropout": 0.0, "learning_rate": 1e-2, "batch_size": 32, "epochs": 40}
FAST = {
    "cvae": SIZE | {"kl_weight": 1.0},
    "scgen": SIZE | {"kl_weight": 1e-3},
    "cpa": SIZE,
}
NETWORKS = list(FAST)
ARITHMETIC = ["vec_pooled", "vec_per_type", "pca_vec_pooled", "pca_vec_per_type"]


def additive(n=60, g=40, types=4, noise=0.2, shares=(0.5, 0.5, 0.5, 0.5), seed=0):
    """Cells of `types` types; the stimulation adds the same to every cell. Training cells, the truth, the shift.

    `shares` of each type's cells are stimulated; without noise, means are exact.
    """
    rng = np.random.default_rng(seed)
    centre = 3 + rng.standard_normal((types, g))
    shift = np.where(np.arange(g) < g // 2, rng.uniform(0.5, 3, g), 0.0)
    cell_type = np.repeat(np.arange(types), n)
    state = np.concatenate([(np.arange(n) < round(share * n)).astype(int) for share in shares])
    x = centre[cell_type] + state[:, None] * shift
    factor = rng.standard_normal((len(x), 2)) @ rng.standard_normal((2, g))
    x = np.maximum(x + noise * (factor + rng.standard_normal(x.shape)), 0).astype(np.float32)
    cells = StateCells(
        sp.csr_matrix(x), cell_type, state, np.zeros(len(x), dtype=np.int64), [f"g{i}" for i in range(g)]
    )
    hidden = (cell_type == 1) & (state == 1)
    return cells.take(np.flatnonzero(~hidden)), x[hidden], shift


def test_registry_says_what_a_table_needs():
    assert {"control_mean", "no_change", *ARITHMETIC, *NETWORKS} <= set(BASELINES)
    for name, entry in BASELINES.items():
        assert entry.name == name and entry.title and entry.source
        assert entry.grid[0] == {}  # the published default comes first
        assert entry.kind in ("baseline", "trivial") and entry.random == (name in NETWORKS)


@pytest.mark.parametrize("name", ["vec_per_type", "pca_vec_per_type"])
def test_arithmetic_per_type_is_exact_where_the_effect_is_additive(name):
    train, _, shift = additive(noise=0.0, shares=(0.1, 0.5, 0.5, 0.9))  # whatever the composition
    control = train.x[train.rows(state=0, cell_type=1)].toarray()
    options = {"n_components": 6} if name.startswith("pca") else {}
    got = run(name, train, held_out=1, seed=0, options=options)
    np.testing.assert_allclose(got, control + shift, atol=1e-4)


def test_pooled_arithmetic_adds_the_difference_of_the_pooled_means():
    train, _, shift = additive(noise=0.0)
    control = train.x[train.rows(state=0, cell_type=1)].toarray()
    got = run("vec_pooled", train, held_out=1, seed=0) - control
    states = [np.asarray(train.x[train.rows(state=s)].mean(0)).ravel() for s in (0, 1)]
    np.testing.assert_allclose(got[0], states[1] - states[0], atol=1e-5)
    assert np.abs(got[0] - shift).max() > 0.1  # the held-out type is among the control cells alone
    all_components = run("pca_vec_pooled", train, held_out=1, seed=0, options={"n_components": 40})
    np.testing.assert_allclose(all_components, got + control, atol=1e-3)


def test_pooled_arithmetic_is_exact_where_types_have_equal_shares():
    """A type without control cells of its own to distort the mean: those of a type just like another."""
    train, _, shift = additive(noise=0.0)
    others = train.cell_type != 1
    x = train.x.toarray()
    mean = x[others & (train.state == 0)].mean(0)
    x[train.cell_type == 1] = mean  # the held-out type is the average type: pooling does no harm
    train = train._replace(x=sp.csr_matrix(x))
    for name in ("vec_pooled", "pca_vec_pooled"):
        got = run(name, train, held_out=1, seed=0, options={"n_components": 6} if name.startswith("pca") else {})
        np.testing.assert_allclose(got, mean + shift + np.zeros((30, 1)), atol=1e-4)


def test_floors():
    train, _, _ = additive()
    control = train.x[train.rows(state=0, cell_type=1)].toarray()
    np.testing.assert_array_equal(run("no_change", train, held_out=1, seed=0), control)
    np.testing.assert_allclose(
        run("control_mean", train, held_out=1, seed=0), np.tile(control.mean(0), (30, 1)), rtol=1e-5
    )
    stimulated = train.x[train.rows(state=1)].toarray().mean(0)
    np.testing.assert_allclose(run("stimulated_mean", train, held_out=1, seed=0)[7], stimulated, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_recover_a_known_shift(name):
    train, truth, _ = additive()
    control = train.x[train.rows(state=0, cell_type=1)]
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    got = run(name, train, held_out=1, seed=0, options=FAST[name])
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert got.shape == control.shape and got.dtype == np.float32
    assert r2_change_top100(got, truth, control) > 0.7
    assert 0.45 < change_size_ratio(got, truth, control) < 1.3
    # the cells stay those of their type
    assert np.corrcoef(got.mean(0), truth.mean(0))[0, 1] > 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_decides(name):
    train, _, _ = additive(n=20)
    short = FAST[name] | {"epochs": 2, "batch_size": 23}  # 70 cells: a last batch of one cell
    one, two, other = (run(name, train, held_out=1, seed=s, options=short) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(one).all() and (one != other).any()


def test_adversary_takes_the_state_out_of_the_basal_code():
    """Without the classifiers working against it the code keeps the state, and exchanging vectors changes less."""
    train, truth, _ = additive()
    control = train.x[train.rows(state=0, cell_type=1)]
    sizes = [
        change_size_ratio(
            run("cpa", train, held_out=1, seed=0, options=FAST["cpa"] | {"adversarial": weight}), truth, control
        )
        for weight in (0.0, 1.0)
    ]
    assert abs(sizes[1] - 1) < abs(sizes[0] - 1)


def test_wrong_requests_are_refused():
    train, _, _ = additive(n=12)
    with pytest.raises(ScreproError, match="named by its key"):
        run("scGAN", train, held_out=1, seed=0)
    with pytest.raises(ScreproError, match="options of vec_pooled are none"):
        run("vec_pooled", train, held_out=1, seed=0, options={"k": 1})
    with pytest.raises(ScreproError, match="options of scgen are width"):
        run("scgen", train, held_out=1, seed=0, options={"k": 1})
    with pytest.raises(ScreproError, match="not among the training cells"):
        run("vec_pooled", train, held_out=2, seed=0)
    with pytest.raises(ScreproError, match="control cells of the held-out type"):
        run("vec_pooled", train, held_out=7, seed=0)
    with pytest.raises(ScreproError, match="no such type"):
        run("vec_pooled", train.take(train.rows(state=0)), held_out=1, seed=0)
    with pytest.raises(ScreproError, match="component"):
        run("pca_vec_pooled", train, held_out=1, seed=0, options={"n_components": 0})
    with pytest.raises(ScreproError, match="at least one layer"):
        run("scgen", train, held_out=1, seed=0, options={"layers": 0})
