import importlib.util
import logging
import os
import random
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from screpro.baselines import actinn, scanvi, singlecellnet
from screpro.baselines.annotation import BASELINES, Baseline, run
from screpro.errors import ScreproError
from screpro.metrics.classification import macro_f1
from screpro.tasks.cells import Cells

# settings that make a fit last well under a second; what they leave out is not what these tests are about
FAST = {
    "majority": {},
    "logistic_regression": {},
    "knn": {},
    "celltypist": {},
    "singlecellnet": {"n_trees": 30},
    "actinn": {"learning_rate": 1e-2, "epochs": 25},
    "scanvi": {"epochs": 8, "scanvi_epochs": 6, "batch_size": 32},
}
LEARNERS = [name for name in BASELINES if not BASELINES[name].trivial]
RANDOM = ["singlecellnet", "actinn", "scanvi", "knn"]


def simulated(n=150, g=60, n_types=3, seed=0):
    """Easy cells: every type has ten genes of its own, two batches shared by all types."""
    rng = np.random.default_rng(seed)
    cell_type, batch = rng.integers(0, n_types, n), rng.integers(0, 2, n)
    rate = np.full((n_types, g), 0.5)
    for k in range(n_types):
        rate[k, 10 * k : 10 * k + 10] = 4.0
    counts = sparse.csr_matrix(rng.poisson(rate[cell_type]).astype(np.float32))
    total = np.asarray(counts.sum(axis=1)).ravel()
    x = sparse.csr_matrix(sparse.diags_array(1e4 / total) @ counts, dtype=np.float32)
    x.data = np.log1p(x.data)
    return Cells(counts, x, cell_type.astype(np.int64), batch.astype(np.int64), [f"g{i}" for i in range(g)])


def extra_or_skip(name):
    # looks without importing: the import itself is under test
    package = {"celltypist": "celltypist", "scanvi": "scvi"}.get(name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{name} needs {package}: pip install 'screpro[baselines]'")


def fit(name, train, test, n_types=3, seed=0, **options):
    extra_or_skip(name)
    return run(name, train, test, n_types=n_types, seed=seed, options=FAST[name] | options)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """CellTypist makes a folder in the cache when it is imported; not in the user's."""
    monkeypatch.setenv("SCREPRO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def split():
    cells = simulated()
    return cells.take(np.arange(110)), cells.take(np.arange(110, 150))


def test_registry_says_what_a_table_needs():
    assert list(BASELINES) == list(FAST)
    for name, entry in BASELINES.items():
        assert isinstance(entry, Baseline)
        assert entry.name == name
        assert entry.title
        assert entry.source
        assert entry.grid[0] == {}
        assert entry.needs in (None, "baselines")
    assert [name for name in BASELINES if BASELINES[name].trivial] == ["majority"]


@pytest.mark.parametrize("name", LEARNERS)
def test_easy_cells_are_annotated(name, split):
    train, test = split
    found = fit(name, train, test)
    assert found.labels.dtype == np.int64
    assert found.labels.shape == (40,)
    assert found.scores.shape == (40, 3)
    assert np.isfinite(found.scores).all()
    assert (found.scores >= 0).all()
    assert macro_f1(test.cell_type, found.labels) > 0.9
    np.testing.assert_array_equal(found.labels, found.scores.argmax(axis=1))


@pytest.mark.parametrize("name", LEARNERS)
def test_gaps_in_the_code_space(name):
    """Training lacks codes 0 and 3, the test cells contain 0: answers are among the trained types."""
    train, test = simulated(), simulated(n=30, seed=1)
    train = train._replace(cell_type=np.array([1, 2, 4])[train.cell_type])
    found = fit(name, train, test, n_types=5)
    assert set(found.labels) <= {1, 2, 4}
    assert (found.scores[:, [0, 3]] == 0).all()
    assert macro_f1(np.array([1, 2, 4])[test.cell_type], found.labels) > 0.8


@pytest.mark.parametrize("name", RANDOM)
def test_same_seed_same_answer(name, split):
    train, test = split
    short = {"epochs": 2, "scanvi_epochs": 1} if name == "scanvi" else {}
    first, second = (fit(name, train, test, seed=5, **short) for _ in range(2))
    np.testing.assert_array_equal(first.scores, second.scores)
    if name != "knn":
        assert not np.array_equal(first.scores, fit(name, train, test, seed=6, **short).scores)


@pytest.mark.parametrize("name", ["celltypist", "actinn", "scanvi"])
def test_nothing_is_left_behind(name, split, tmp_path, monkeypatch, capfd):
    train, test = split
    extra_or_skip(name)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SCREPRO_CACHE", str(tmp_path / "cache"))
    for module in [m for m in sys.modules if m.partition(".")[0] == "celltypist"]:
        monkeypatch.delitem(sys.modules, module)
    if name == "scanvi":  # importing it sets variables of the environment for good
        import_module("scvi")
    torch.manual_seed(1)
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    outside = dict(os.environ), torch.get_num_threads(), logging.root.level, logging.root.handlers[:]
    capfd.readouterr()
    fit(name, train, test, **({"epochs": 1, "n_top_genes": 40} if name == "scanvi" else {}))
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert random.getstate() == state[2]
    assert (dict(os.environ), torch.get_num_threads(), logging.root.level, logging.root.handlers[:]) == outside
    assert {path.name for path in Path(tmp_path).iterdir()} <= {"home", "cache"}
    assert not list(home.iterdir())


def test_majority():
    train = simulated()
    train = train._replace(cell_type=np.where(np.arange(150) < 100, 2, train.cell_type))
    found = fit("majority", train, simulated(n=7))
    assert (found.labels == 2).all()
    np.testing.assert_allclose(found.scores.sum(axis=1), 1)


@pytest.mark.parametrize("name", BASELINES)
def test_one_training_type_needs_no_model(name):
    train = simulated(n=20)
    train = train._replace(cell_type=np.full(20, 1))
    found = fit(name, train, simulated(n=5))
    assert (found.labels == 1).all()


@pytest.mark.parametrize("name", ["knn", "celltypist", "singlecellnet", "actinn", "scanvi"])
def test_hardly_any_cells(name):
    """Two types, one of them with a single cell; some genes never seen."""
    cells = simulated(n=12, n_types=2)
    cells = cells._replace(cell_type=np.array([0] * 11 + [1]))
    short = {"epochs": 2, "scanvi_epochs": 1} if name == "scanvi" else {}
    found = fit(name, cells, simulated(n=4), n_types=3, **short)
    assert set(found.labels) <= {0, 1}


def test_a_last_batch_of_one_cell():
    found = fit("scanvi", simulated(n=33), simulated(n=5, seed=1), epochs=1, scanvi_epochs=1)
    assert found.labels.shape == (5,)


def test_unseen_batch_and_batch_equal_to_type():
    batch, kind = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    assert not scanvi.usable_batches(batch, kind)
    assert not scanvi.usable_batches(np.zeros(4, int), kind)
    assert scanvi.usable_batches(np.array([0, 1, 0, 1]), kind)
    test = simulated(n=10, seed=2)
    found = fit("scanvi", simulated(), test._replace(batch=np.full(10, 9)), epochs=1)
    assert found.labels.shape == (10,)


def test_errors_are_named(split, monkeypatch):
    train, test = split
    how = {"n_types": 3, "seed": 0}
    with pytest.raises(ScreproError, match="choose one of majority"):
        run("scmap", train, test, **how)
    with pytest.raises(ScreproError, match="options of knn are k, n_components, weights"):
        run("knn", train, test, options={"neighbours": 3}, **how)
    with pytest.raises(ScreproError, match="same genes"):
        run("knn", train, test._replace(genes=test.genes[::-1]), **how)
    with pytest.raises(ScreproError, match="0 cells"):
        run("knn", train.take([]), test, **how)
    with pytest.raises(ScreproError, match="n_types - 1 = 1"):
        run("knn", train, test, n_types=2, seed=0)
    monkeypatch.setitem(sys.modules, "celltypist", None)
    with pytest.raises(ScreproError, match=r"screpro\[baselines\]"):
        run("celltypist", train, test, **how)


# SingleCellNet, step by step


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 9))
def test_top_pairs_are_what_a_walk_down_the_sorted_list_finds(seed, g):
    rng = np.random.default_rng(seed)
    counts, member = rng.poisson(2, (40, g)).astype(float), np.repeat([0, 1], [13, 27])
    pairs = [(i, j) for i in range(g) for j in range(i + 1, g)]
    r = [np.corrcoef(counts[:, i] > counts[:, j], member == 0)[0, 1] for i, j in pairs]
    used, walked = np.zeros(g, int), []
    for p in np.argsort(-np.array(r), kind="stable"):
        i, j = pairs[p]
        if len(walked) < 4 and used[i] < 3 and used[j] < 3:
            used[[i, j]] += 1
            walked.append(r[p])
    found = list(zip(*singlecellnet.top_pairs(counts, member, n_top=4), strict=True))
    assert len(set(found)) == len(found)
    # the pairs of class 0 come first; equal correlations may change places, so compare their values
    np.testing.assert_allclose([r[pairs.index(pair)] for pair in found[: len(walked)]], walked, atol=1e-5)


def test_classification_genes_hold_the_markers():
    cells = simulated(n=300)
    genes = singlecellnet.classification_genes(cells.counts, cells.cell_type, n_top=10)
    assert len(set(genes)) == len(genes)
    assert set(range(30)) <= set(genes)


def test_pairs_need_no_normalisation_and_random_profiles_keep_the_density():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2, (50, 20)).astype(float)
    first, second = np.triu_indices(20, k=1)
    bits = singlecellnet.pair_bits(counts, first, second)
    depth = rng.random((50, 1)) + 0.1
    np.testing.assert_array_equal(bits, singlecellnet.pair_bits(counts * depth, first, second))
    profiles = singlecellnet.random_profiles(bits, n=30, rng=rng)
    assert profiles.shape == (30, 190)
    assert profiles.mean() == pytest.approx(bits.mean(), abs=0.05)


def test_stratified_trees_find_a_rare_type():
    cells = simulated(n=400, seed=3)
    rare = np.flatnonzero(cells.cell_type == 2)[6:]
    train = cells.take(np.setdiff1d(np.arange(400), rare))
    found = fit("singlecellnet", train, cells.take(rare), stratify=True)
    assert np.mean(found.labels == 2) > 0.9


# ACTINN's gene filter


def test_actinn_keeps_the_middle_of_both_distributions():
    rng = np.random.default_rng(0)
    x = np.log1p(rng.poisson(rng.gamma(1.0, 2.0, 500), (80, 500))).astype(float)
    x[:, :20] = 0
    kept = actinn.keep_genes(sparse.csr_matrix(x))
    total = x.sum(axis=0)
    some = np.flatnonzero(total > 0)
    inside = some[(total[some] >= np.percentile(total[some], 1)) & (total[some] <= np.percentile(total[some], 99))]
    cv = x[:, inside].std(axis=0) / x[:, inside].mean(axis=0)
    expected = inside[(cv >= np.percentile(cv, 1)) & (cv <= np.percentile(cv, 99))]
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(kept, actinn.keep_genes(sparse.csr_matrix(x / np.log(2))))
