"""Sets of cells: every cell once, one group a set, controls of their own context and batch."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.data.populations import Populations, gather, log_median, populations
from screpro.data.preprocess import variable_panel
from screpro.errors import ScreproError
from screpro.tasks.set_pretraining_data import columns, real_split, unify, unperturbed


def cells(n=90, genes=12, contexts=2, batches=3, perturbations=4, seed=0) -> Populations:
    adata = screen(n, genes, contexts, batches, perturbations, seed)
    return populations(adata, context_key="type", batch_key="donor", n_genes=None)


def screen(n=90, genes=12, contexts=2, batches=3, perturbations=4, seed=0) -> AnnData:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({
        "perturbation": np.array(["control", "b", "a", "c"])[rng.integers(perturbations, size=n)],
        "type": [f"t{k}" for k in rng.integers(contexts, size=n)],
        "donor": [f"d{k}" for k in rng.integers(batches, size=n)],
    }, index=[f"cell {i}" for i in range(n)])  # fmt: skip
    counts = sp.csr_matrix(rng.poisson(1.0, (n, genes)) + np.eye(n, genes), dtype=np.float32)
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(genes)]))


def test_codes_name_the_labels():
    made = cells()
    assert made.perturbations == ("control", "a", "b", "c") and made.contexts == ("t0", "t1")
    again = cells()
    assert (made.group() == again.group()).all()
    assert (made.is_control == (np.array(made.perturbations)[made.perturbation] == "control")).all()


@given(st.integers(1, 40), st.integers(60, 130), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_cell_is_in_one_set_of_its_group(size, n, seed):
    made = cells(n, seed=seed)
    sets = made.sets(size, rng=np.random.default_rng(seed))
    own = sets.rows[~sets.padding]
    assert sorted(own.tolist()) == list(range(n))
    codes = sets.labels
    for name in codes:
        assert (getattr(made, name)[sets.rows] == codes[name][:, None]).all()
    controls = sets.controls
    assert made.is_control[controls].all()
    assert (made.batch[controls] == sets.batch[:, None]).all() or (
        made.context[controls] == sets.context[:, None]
    ).any()
    full = np.bincount(made.group())
    assert len(sets.rows) == sum(-(-count // size) for count in full if count)


def test_controls_are_matched_then_of_the_batch_then_of_the_context():
    made = cells(400)
    keep = ~(made.is_control & (made.context == 0) & (made.batch == 1))
    keep &= ~(made.is_control & (made.batch == 2))
    known = made.take(np.flatnonzero(keep))
    rows = known.matched(np.array([0, 0, 0]), np.array([0, 1, 2]), 200, rng=np.random.default_rng(0))
    assert known.is_control[rows].all()
    assert (known.context[rows[0]] == 0).all() and (known.batch[rows[0]] == 0).all()
    assert (known.context[rows[1]] == 1).all() and (known.batch[rows[1]] == 1).all()  # another type of the batch
    assert (known.context[rows[2]] == 0).all() and (known.batch[rows[2]] != 2).all()  # another batch of the type
    pool = np.flatnonzero(known.is_control & (known.context == 0) & (known.batch == 0))
    assert set(rows[0]) == set(pool)  # all of them get their turn


def test_without_any_control_there_is_one_clear_error():
    made = cells()
    with pytest.raises(ScreproError, match="control cell"):
        made.take(np.flatnonzero(~made.is_control)).sets(4, rng=np.random.default_rng(0))


def test_values_and_gather():
    made = cells()
    import scanpy as sc

    reference = AnnData(made.counts.copy())
    sc.pp.normalize_total(reference)
    sc.pp.log1p(reference)
    np.testing.assert_allclose(log_median(made.counts).toarray(), reference.X.toarray(), rtol=1e-5, atol=1e-6)
    rows = np.array([[3, 3, 0], [7, 1, 2]])
    divisor = np.arange(1, 13, dtype=np.float32)
    np.testing.assert_allclose(gather(made.x, rows, divisor), made.x.toarray()[rows] / divisor, rtol=1e-6)
    np.testing.assert_allclose(gather(made.x, np.arange(90)), made.x.toarray(), rtol=1e-6)


@pytest.mark.parametrize("change", ["no control", "negative", "half", "empty cell", "no column", "missing label"])
def test_bad_cells_get_one_error(change):
    rng = np.random.default_rng(0)
    x = rng.poisson(2.0, (20, 5)).astype(np.float32) + 1
    obs = pd.DataFrame({"perturbation": ["control", "a"] * 10, "cell_type": "t"}, index=map(str, range(20)))
    if change == "no control":
        obs["perturbation"] = ["b", "a"] * 10
    elif change == "negative":
        x[3, 2] = -1
    elif change == "half":
        x[3, 2] = 0.5
    elif change == "empty cell":
        x[4] = 0
    elif change == "no column":
        del obs["cell_type"]
    else:
        obs.loc["3", "perturbation"] = None
    with pytest.raises(ScreproError):
        populations(AnnData(sp.csr_matrix(x), obs=obs), n_genes=None)


def logged(adata: AnnData) -> AnnData:
    """As a set that is published without its counts."""
    made = adata.copy()
    made.X, made.uns["values"] = log_median(adata.X), "log1p"
    return made


def test_log_values_that_are_published_alone_are_taken_as_they_are():
    adata = screen()
    given, made = (populations(a, context_key="type", n_genes=None) for a in (adata, logged(adata)))
    assert (made.x != given.x).nnz == (made.counts != given.x).nnz == 0
    assert (made.group() == given.group()).all() and made.genes == given.genes
    few = populations(logged(adata), context_key="type", n_genes=5)
    assert few.x.shape[1] == 5 and set(few.genes) < set(made.genes)
    del (plain := logged(adata)).uns["values"]
    with pytest.raises(ScreproError, match="must hold counts"):
        populations(plain, context_key="type")
    for value in (-1.0, np.nan, 30.0):
        (wrong := logged(adata)).X.data[3] = value
        with pytest.raises(ScreproError, match="log1p values are finite"):
            populations(wrong, context_key="type")


def test_a_source_of_log_values_is_held_out_and_merged_like_any_other():
    adata = screen(400)
    split = real_split(logged(adata), "no such set", keys={"context_key": "type", "batch_key": "donor"})
    assert split.test.contexts[split.test.context[0]] == "t1" and len(split.train) > len(split.test) > 0
    panel = [split.train.genes[g] for g in variable_panel(split.train.counts, 6)]
    assert columns(split.train, panel).genes == tuple(panel)
    plain = unperturbed(logged(adata[:, :8].copy()), name="plain", context_key="type")
    space = unify({"screen": split.train, "plain": plain}, n_genes=7)
    assert set(space.vocabulary.selected) == {"screen", "plain"}
    assert all(len(genes) == 7 for genes in space.vocabulary.selected.values())
    assert space.place(plain).x.shape == (400, len(space.vocabulary.genes))
