"""Training cells of other studies: who is drawn, what is refused, and that their rows stand apart."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from screpro import data, records
from screpro.errors import ScreproError
from screpro.records import keys
from screpro.tasks import embedding, embedding_experiment, embedding_pool, embedding_pool_tables
from screpro.tasks.autoencoder import AutoEncoderSettings

GENES = 150


def study(n, *, seed, genes=None, extra=10):
    """Cells of another study: the scored set's genes in another order, and some of its own."""
    rng = np.random.default_rng(seed)
    names = list(genes if genes is not None else rng.permutation([f"GENE{i}" for i in range(GENES)]))
    names += [f"OWN{seed}-{i}" for i in range(extra)]
    obs = pd.DataFrame(index=[f"{seed}-{i}" for i in range(n)])
    counts = rng.poisson(np.exp(rng.normal(0, 0.7, len(names))), (n, len(names)))
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=names))


@pytest.fixture(scope="module")
def scored():
    """Four donors of 60 cells, of whom c has one condition alone; a condition changes 20 genes."""
    rng = np.random.default_rng(0)
    donor = np.repeat(["a", "b", "c", "unknown"], 60)
    stimulated = (np.arange(240) % 2 == 0) & (donor != "c")
    rate = np.exp(rng.normal(0, 0.7, GENES)) * np.where(stimulated[:, None] & (np.arange(GENES) < 20), 2.5, 1)
    obs = pd.DataFrame({"donor": donor, "condition": np.where(stimulated, "on", "zero")})
    obs.index = [f"cell {number}" for number in range(240)]
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(GENES)])
    return ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="module")
def pool():
    return {"b": study(300, seed=1), "a": study(90, seed=2), "c": study(400, seed=3)}


def prepared(scored, pool, **how):
    how = {"group_key": "donor", "target_key": "condition", "positive": "on", "min_cells": 20} | how
    return embedding.prepare(scored, pool=pool, **how)


def rows_in(cells, adata, genes):
    """How many of the cells (n, G) are cells of a data set, by all counts."""
    known = {row.tobytes() for row in adata[:, genes].X.toarray()}
    return sum(row.tobytes() in known for row in cells.toarray())


# --- the draw -----------------------------------------------------------------------------------------------


def test_every_set_gives_as_many_as_the_small_ones_allow():
    assert embedding_pool.equal_shares([300, 90, 400], 240) == [80, 80, 80]
    assert embedding_pool.equal_shares([300, 90, 400], 500) == [205, 90, 205]
    assert embedding_pool.equal_shares([3, 3, 3], 8) == [2, 3, 3]
    assert embedding_pool.equal_shares([5, 1], 100) == [5, 1] == embedding_pool.equal_shares([5, 1], None)


def test_draws_are_balanced_seeded_and_blind_to_the_order_of_names(scored, pool):
    found = prepared(scored, pool, n_train=240)
    assert dict(found.pooled) == {"a": 72, "b": 84, "c": 84}  # a fifth of the 90 cells of a is held out
    assert found.train.shape == (240, GENES) and found.held_out.shape == (128, GENES) and found.shared == GENES
    turned = prepared(scored, dict(reversed(pool.items())), n_train=240)
    for one, other in ((found.train, turned.train), (found.held_out, turned.held_out), (found.scored, turned.scored)):
        np.testing.assert_array_equal(one.toarray(), other.toarray())
    assert found.genes == turned.genes and list(found.pooled.items()) == list(turned.pooled.items())
    again = prepared(scored, pool, n_train=240, split=1)
    assert dict(again.pooled) == dict(found.pooled) and (again.train != found.train).nnz
    # whom a set gives does not depend on which others are named
    alone = prepared(scored, {"c": pool["c"]}, n_train=84)
    assert rows_in(alone.train, pool["c"], alone.genes) == 84
    np.testing.assert_array_equal(alone.train.toarray(), found.train[156:].toarray())


def test_all_training_cells_are_of_the_pool_and_none_is_held_out_as_well(scored, pool):
    found = prepared(scored, pool, n_train=300, n_genes=120)
    assert len(found.genes) == 120 and set(found.genes) <= set(scored.var_names)
    of = {name: rows_in(found.train, own, found.genes) for name, own in pool.items()}
    assert of == dict(found.pooled) and sum(of.values()) == 300
    assert rows_in(found.train, scored, found.genes) == 0 == rows_in(found.held_out, scored, found.genes)
    trained, kept = ({row.tobytes() for row in part.toarray()} for part in (found.train, found.held_out))
    assert not trained & kept


def test_the_same_cells_are_scored_as_without_a_pool(scored, pool):
    for target in ("condition", "donor"):  # of the donors, in one group, half would train
        how = {"group_key": "donor" if target == "condition" else None, "target_key": target, "positive": None}
        own, other = prepared(scored, None, **how), prepared(scored, pool, **how)
        assert own.names == other.names and own.classes == other.classes and own.halved == other.halved
        np.testing.assert_array_equal(own.target, other.target)
        np.testing.assert_array_equal(other.scored.toarray(), scored[other.names, other.genes].X.toarray())
        assert not own.pooled and not own.shared


def test_only_genes_that_all_sets_share_are_seen(scored, pool):
    few = {**pool, "d": study(100, seed=4, genes=[f"GENE{i}" for i in range(20, 140)])}
    found = prepared(scored, few)
    assert found.shared == 120 and found.genes == [f"GENE{i}" for i in range(20, 140)]


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (["pbmc3kk"], "did you mean pbmc3k"),
        (["pbmc3k", "pbmc3k"], "stands twice"),
        (["kang_9k"], "of the same study"),
        (["pbmc3k", "kang_1k"], "kang_1k, which is of the same study"),
        (["scdiff_pbmc_kang"], "of the same study"),
    ],
)
def test_names_that_will_not_do_are_refused_before_anything_is_loaded(pool, said, monkeypatch):
    monkeypatch.setattr(data.registry, "load", None)
    with pytest.raises(ScreproError, match=said):
        embedding_pool.load_pool("kang_9k", pool)
    with pytest.raises(ScreproError, match=said):  # and before a run starts
        keys.data_hashes({"dataset": "kang_9k", "pool": pool})


def test_the_key_of_a_run_knows_the_cells_of_the_pool():
    found = keys.data_hashes({"dataset": "kang_9k", "pool": ["pbmc3k", "pbmc_facs_zheng"]})
    assert found == {name: data.registry.data_hash(name) for name in ("kang_9k", "pbmc3k", "pbmc_facs_zheng")}
    assert list(keys.data_hashes({"dataset": "kang_9k", "pool": None})) == ["kang_9k"]
    assert embedding_pool.load_pool("own cells.h5ad", []) == {}


def test_a_set_of_another_species_or_with_few_shared_genes_is_refused(scored, pool):
    mouse = study(50, seed=6, genes=[f"Gene{i}" for i in range(GENES)], extra=0)
    with pytest.raises(ScreproError, match="share 100 genes") as caught:
        prepared(scored, {**pool, "mouse": mouse})
    assert "mouse has 0 of its 150 genes (symbols, mouse)" in str(caught.value)
    few = study(50, seed=7, genes=[f"GENE{i}" for i in range(99)])
    with pytest.raises(ScreproError, match="share 100 genes"):
        prepared(scored, {"few": few})


def test_a_set_with_a_scored_cell_is_refused(scored, pool):
    twin = study(50, seed=8, genes=scored.var_names)
    counts = twin.X.toarray()
    counts[7, :GENES] = scored.X[3].toarray()
    twin.X = sp.csr_matrix(counts)
    with pytest.raises(ScreproError, match="No cell that trains is a cell of the scored data set") as caught:
        prepared(scored, {**pool, "twin": twin})
    assert "1 profiles of twin" in str(caught.value)


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(scored, pool):
    tiny = {"tokens": 2, "channels": 4, "heads": 2, "cross_heads": 1, "epochs": 1}
    sizes = {"small": AutoEncoderSettings(width=8, layers=1, **tiny)}
    protocol = embedding_experiment.Protocol("toy", 0, [0, 1], sizes, components=10)
    run = records.start("scldm/embeddings", tier="ci")
    for cells in (prepared(scored, None), prepared(scored, pool, n_train=100)):
        own = embedding_experiment.with_best_rates(run, cells, protocol, [1e-3], ["small"])
        embedding_experiment.compare_embeddings(run, cells, own, ["small", "pca", "genes"])
    return run


def test_rows_of_a_pool_stand_beside_those_of_the_study_itself(run):
    rows = run.frame()
    own, pooled = embedding_pool.apart(rows)
    assert len(own) + len(pooled) == len(rows)
    assert set(own["method"]) == {"small", "pca", "genes", "global_mean"}
    assert set(pooled["method"]) == {"small", "pca", "genes", "global_mean", "pool"}
    one, two = (part[part["metric"] == "macro_f1"].shape[0] for part in (own, pooled))
    assert one == two
    given = pooled[pooled["metric"] == "training_cells"].set_index("metric_variant")
    assert given["value"].to_dict() == {"a": 33, "b": 33, "c": 34} and set(given["n_genes"]) == {GENES}


def test_no_rule_of_a_claim_looks_at_a_pool(run):
    rows = run.frame().assign(tier="laptop")
    _, pooled = embedding_pool.apart(rows)
    for claim in records.load_claims("scldm"):
        if claim.id in ("L13", "L14", "L15"):
            pool_alone = rows.loc[pooled.index]
            assert records.verdict(claim, rows).evidence == records.verdict(claim, rows.drop(pooled.index)).evidence
            assert records.verdict(claim, pool_alone).word == records.verdict(claim, rows.iloc[:0]).word


def test_tables_show_both_and_what_the_pool_is(run):
    rows = run.frame()
    table = embedding_pool_tables.origins(rows)
    assert table.loc[("toy", "ci"), "pool"] == "33 of a, 33 of b, 34 of c"
    assert table.loc[("toy", "ci"), "training cells, other studies"] == "100"
    assert table.loc[("toy", "ci"), "training cells, study itself"] == "96"
    both = embedding_pool_tables.beside(rows, "macro_f1", {"": "plain"}, ["genes", "small", "pca"], {"pca": "PCA"})
    assert list(both.index) == [("toy", "ci", name) for name in ("genes", "small", "PCA")]
    value = rows[(rows["metric"] == "macro_f1") & (rows["metric_variant"] == "")].set_index("method")["value"]
    gap = value["pca_pooled"] - value["pca"]
    assert both.loc[("toy", "ci", "PCA"), ("plain", "difference")] == f"{gap:+.3f}"
    assert both.loc[("toy", "ci", "small"), ("plain", "difference")].endswith(")")  # two seeds: a word as well
    penalised = {embedding_experiment.PENALISED: "penalty"}  # of which genes have no variant of its own
    without = embedding_pool_tables.beside(rows, "macro_f1", penalised, ["genes"], {})
    assert set(without.loc[("toy", "ci", "genes")]) == {""}
    alone = rows[rows["method"].str.endswith(embedding_pool.POOLED)]
    assert embedding_pool_tables.origins(alone).loc[("toy", "ci"), "panel, study itself"] == "not run"
    one_sided = embedding_pool_tables.beside(alone, "macro_f1", {"": "plain"}, ["pca"], {})
    assert list(one_sided.loc[("toy", "ci", "pca")])[::2] == ["not run", "–"]
    own = rows.drop(alone.index)
    assert embedding_pool_tables.origins(own).empty
    assert embedding_pool_tables.beside(own, "macro_f1", {"": "plain"}, ["pca"], {}).empty
