"""Attention per token and enrichment of markers: against the model itself, closed forms, planted truth and chance."""

import importlib.util
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.stats import hypergeom, kstest

from screpro import records
from screpro.errors import ScreproError
from screpro.kernels.fdr import benjamini_hochberg
from screpro.kernels.set_attention import PackedCells
from screpro.models.scldm import AutoEncoder, AutoEncoderConfig
from screpro.tasks.attention import ALL_CELLS, DECODER, ENCODER, OTHERS, decoder_weights, encoder_weights, measure
from screpro.tasks.attention_experiment import LIKE, METHODS, Protocol, compare, enriched, prepare
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.enrichment import (
    decoupler_scores,
    like_expression,
    permutation_p,
    permutations_for,
    slope_scores,
)
from screpro.tasks.marker_genes import blood_markers, markers
from screpro.tasks.token_match import match, matched

SIZES = {"width": 16, "tokens": 5, "layers": 1, "channels": 4, "heads": 4, "cross_heads": 2}


def toy(n=30, genes=24, seed=0):
    counts = np.random.default_rng(seed).poisson(0.8, (n, genes))
    counts[:, 0] += 1  # no cell is empty
    return sp.csr_matrix(counts.astype(np.float32))


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoEncoder(AutoEncoderConfig(24, **SIZES)).double().eval()


def packed(counts):
    cells = PackedCells.from_scipy(counts)
    return cells._replace(counts=cells.counts.double())


# ---- attention


def test_encoder_weights_are_the_dense_softmax(model):
    cells = packed(toy())
    weights = encoder_weights(model, cells)
    block, width = model.pool.block, 8
    with torch.no_grad():
        keys, _ = block.keys_values(model.genes(cells.genes + 1, cells.counts))
        queries = block.queries(model.pool.pseudo_inputs)
        for start, stop in pairwise(cells.offsets.tolist()):
            for head in range(2):
                own = slice(head * width, (head + 1) * width)
                dense = (keys[start:stop, own] @ queries[:, own].T * width**-0.5).softmax(0)
                torch.testing.assert_close(weights[start:stop, head], dense)


def test_encoder_weights_give_what_the_network_computes(model):
    cells = packed(toy())
    weights = encoder_weights(model, cells)  # (T, H, m)
    tokens = model.genes(cells.genes + 1, cells.counts)
    with torch.no_grad():
        values = model.pool.block.keys_values(tokens)[1].unflatten(-1, (2, 8))
        moved = torch.einsum("thl,thd->tlhd", weights, values).flatten(2)  # (T, m, D)
        cell = torch.repeat_interleave(torch.arange(30), cells.offsets.diff())
        attended = torch.zeros(30, 5, 16, dtype=torch.float64).index_add(0, cell, moved)
        own = model.pool.block.after(model.pool.pseudo_inputs, attended)
        torch.testing.assert_close(own, model.pool(tokens, cells.offsets))


def test_decoder_weights_give_the_networks_logits(model):
    z = torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = decoder_weights(model, z)
    assert weights.shape == (7, 2, 24, 5)
    with torch.no_grad():
        h = model.from_latent(torch.nn.functional.layer_norm(z, (4,), eps=1e-8))
        for block in model.decoder:
            h = block(h)
        values = model.unpool.keys_values(h)[1].unflatten(-1, (2, 8)).transpose(1, 2)  # (B, H, m, d)
        attended = (weights @ values).transpose(1, 2).flatten(2)
        logits = model.head(model.unpool.after(model.genes.genes(), attended)).squeeze(-1)
        torch.testing.assert_close(logits, model.logits(z))


def test_means_do_not_depend_on_the_batch_and_count_absent_genes_or_not(model):
    counts, network = toy(), model.float()
    counts = sp.csr_matrix(counts.toarray() * (np.arange(24) != 3).astype(np.float32))
    one, other = measure(network, counts, batch=4), measure(network, counts, batch=30)
    np.testing.assert_allclose(one.encoder, other.encoder, atol=1e-5)
    np.testing.assert_allclose(one.decoder, other.decoder, atol=1e-5)
    np.testing.assert_array_equal(one.expressing, counts.getnnz(axis=0))
    genes = one.usable(1)
    assert not genes[3] and one.encoder[:, 3].sum() == 0
    readings = one.readings(genes)
    assert readings[ALL_CELLS].sum(1) == pytest.approx(np.ones(5), abs=1e-5)  # over all genes each token spends 1
    np.testing.assert_allclose(readings[ENCODER] * one.expressing[genes] / 30, readings[ALL_CELLS])
    for name in (OTHERS, DECODER):
        assert readings[name].sum(0) == pytest.approx(np.ones(23), abs=1e-5)
    with pytest.raises(ScreproError, match="a cell that expresses it"):
        one.readings(np.arange(24))
    model.double()


def test_cells_without_counts_and_other_pools_are_refused(model):
    with pytest.raises(ScreproError, match="express something"):
        measure(model.float(), sp.csr_matrix((2, 24), dtype=np.float32))
    model.double()
    other = AutoEncoder(AutoEncoderConfig(24, pooling="set_transformer", **SIZES))
    with pytest.raises(ScreproError, match="pseudo-inputs"):
        encoder_weights(other, PackedCells.from_scipy(toy()))


# ---- enrichment


def test_permutation_p_of_zeros_and_ones_is_hypergeometric():
    rng = np.random.default_rng(0)
    profiles = np.zeros((2, 40))
    profiles[0, :12] = profiles[1, 20:25] = 1
    sets = [np.arange(6), np.r_[0:3, 30:35], np.r_[22:24]]
    p = permutation_p(profiles, sets, permutations=20_000, rng=rng)
    for row, marked in enumerate((12, 5)):
        for k, each in enumerate(sets):
            exact = hypergeom.sf(profiles[row, each].sum() - 1, 40, marked, len(each))
            assert p[row, k] == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_strata_make_it_hypergeometric_in_each():
    profiles = np.zeros((1, 40))
    profiles[0, :10] = 1  # half of stratum 0, nothing of stratum 1
    strata = np.r_[np.zeros(20, int), np.full(20, 7)]
    sets = [np.r_[0:4, 10:12, 25:30]]
    p = permutation_p(profiles, sets, permutations=20_000, rng=np.random.default_rng(1), strata=strata)
    assert p[0, 0] == pytest.approx(hypergeom.sf(3, 20, 10, 6), abs=0.015)
    # all of a set in a stratum of equal numbers: nothing to find, and no tie is lost to rounding
    assert permutation_p(0.1 * profiles, [np.arange(25, 31)], permutations=99, rng=np.random.default_rng(2)) == 1


def test_scores_are_a_regressions_and_grow_with_the_sum():
    rng = np.random.default_rng(3)
    profiles = rng.gamma(0.5, 1, (4, 60))
    sets = {"a": rng.choice(60, 8, replace=False), "b": rng.choice(60, 20, replace=False)}
    found = slope_scores(profiles, list(sets.values()))
    for row in range(4):
        for k, each in enumerate(sets.values()):
            x = np.isin(np.arange(60), each).astype(float)
            design = np.c_[np.ones(60), x]
            beta, left, *_ = np.linalg.lstsq(design, profiles[row], rcond=None)
            error = np.sqrt(left[0] / 58 * np.linalg.inv(design.T @ design)[1, 1])
            assert found[row, k] == pytest.approx(beta[1] / error)
    for constant in (1.0, 1 / 3, 0.1):  # the mean of thirds is not a third to the last digit
        assert (slope_scores(np.full((1, 60), constant), list(sets.values())) == 0).all()
    one = rng.gamma(0.5, 1, 60)
    drawn = [rng.choice(60, 9, replace=False) for _ in range(30)]
    sums = [one[each].sum() for each in drawn]
    assert np.array_equal(np.argsort(sums), np.argsort(slope_scores(one[None], drawn)[0]))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("decoupler") is None, reason="decoupler is an extra")
def test_scores_are_decouplers():
    rng = np.random.default_rng(4)
    profiles = rng.gamma(0.5, 1, (5, 80))
    sets = {"z": rng.choice(80, 10, replace=False), "a": rng.choice(80, 25, replace=False)}
    expected = decoupler_scores(profiles, sets)
    np.testing.assert_allclose(slope_scores(profiles, list(sets.values())), expected, rtol=1e-5)


def test_no_enrichment_by_chance_and_p_is_uniform():
    rng = np.random.default_rng(5)
    sets = [rng.choice(300, 20, replace=False) for _ in range(4)]
    p = permutation_p(rng.gamma(0.3, 1, (150, 300)), sets, permutations=400, rng=rng)
    assert kstest(p[:, 0], "uniform").pvalue > 1e-3
    assert abs((p <= 0.05).mean() - 0.05) < 0.02
    # family by family of one network's 8 tokens x 4 sets: any discovery in about 5 % of them
    families = p[:144].reshape(18, 8, 4)
    assert np.mean([(benjamini_hochberg(each) <= 0.05).any() for each in families]) < 0.25


def test_planted_markers_are_found_and_others_are_not():
    rng = np.random.default_rng(6)
    attention = rng.gamma(2, 1, (8, 400))
    sets = {f"type {k}": np.arange(20 * k, 20 * k + 20) for k in range(6)}
    for k in range(3):  # types 0 to 2 have a token each
        attention[k, sets[f"type {k}"]] *= 2
    found = enriched({"a": attention, "b": rng.gamma(2, 1, (8, 400))}, sets, seed=0)
    planted = np.zeros((8, 6), bool)
    planted[range(3), range(3)] = True
    assert found["a"].found[planted].all()
    assert found["a"].found[~planted].sum() <= 1
    assert found["a"].scores[planted].min() > 3
    assert found["b"].found.sum() <= 1


def test_expression_alone_is_no_enrichment_among_genes_of_like_expression():
    rng = np.random.default_rng(7)
    expressing = rng.integers(10, 1000, 400)
    profiles = {"a": expressing * rng.uniform(0.9, 1.1, (6, 400))}
    sets = {"often": np.argsort(-expressing)[rng.choice(80, 20, replace=False)]}
    assert enriched(profiles, sets, seed=0)["a"].found.all()
    strata = like_expression(expressing, bins=40)
    assert np.ptp(np.bincount(strata)) <= 1 and len(np.unique(strata)) == 40
    assert enriched(profiles, sets, seed=0, strata=strata)["a"].found.mean() < 0.5


def test_permutations_suffice_for_a_single_discovery():
    for tests in (10, 160, 4000):
        number = permutations_for(tests)
        assert number >= 1000 and tests / (number + 1) <= 0.05
    with pytest.raises(ScreproError, match="different genes"):
        permutation_p(np.ones((1, 5)), [np.array([1, 1])], permutations=9, rng=np.random.default_rng(0))
    with pytest.raises(ScreproError, match="finite"):
        permutation_p(np.full((1, 5), np.nan), [np.arange(2)], permutations=9, rng=np.random.default_rng(0))


# ---- markers and matching


def simulated(n=600, genes=200, seed=0):
    """Three types with 15 genes of their own each, and one type of three cells."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 3, n)
    types[:3] = 3
    rate = np.full((n, genes), 0.6)
    for k in range(3):
        rate[types == k, 15 * k : 15 * k + 15] = 3
    return rng.poisson(rate).astype(np.float32), types


def test_markers_are_the_genes_that_were_put_up():
    counts, types = simulated()
    found = markers(sp.csr_matrix(np.log1p(counts)), types, n_types=4, most=15)
    for k in range(3):
        assert set(found[k]) == set(range(15 * k, 15 * k + 15))
    assert len(found[3]) == 0  # too few cells
    mixed = np.random.default_rng(1).permutation(types)
    assert sum(map(len, markers(sp.csr_matrix(np.log1p(counts)), mixed, n_types=4))) <= 2


def test_known_markers():
    genes = ["ACTB", "CD79A", "CD19", "MS4A1", "CD79B", "BANK1", "LYZ"]
    assert {name: own.tolist() for name, own in blood_markers(genes).items()} == {"B cell": [5, 2, 1, 4, 3]}
    assert blood_markers([name.capitalize() for name in genes]) == {}
    with pytest.raises(ScreproError, match="unique"):
        blood_markers(["A", "A"])


def test_tokens_are_matched_whatever_their_order():
    rng = np.random.default_rng(8)
    profiles, order = rng.normal(size=(6, 100)), rng.permutation(6)
    score, partners = match(profiles, profiles[order])
    assert score == pytest.approx(1) and np.array_equal(order[partners], np.arange(6))
    found = matched(profiles, profiles[order] + 0.1 * rng.normal(size=(6, 100)), rng=rng)
    assert found[""] > 0.95 > found["tokens rotated"] > found["genes permuted"]
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0] @ (profiles - profiles.mean(0))
    same_space = matched(profiles, turned, rng=rng)
    assert abs(same_space[""] - same_space["tokens rotated"]) < 0.15


# ---- the whole experiment


def test_experiment_end_to_end_and_resumes(monkeypatch, tmp_path):
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "test")
    counts, types = simulated(n=240)
    adata = AnnData(sp.csr_matrix(counts))
    adata.obs["cell_type"] = [f"type {k}" for k in types]
    base = AutoEncoderSettings(width=16, tokens=4, channels=4, layers=1, epochs=1)
    protocol = Protocol("toy", [0, 1], base, least=5, cells=60)
    cells = prepare(adata, protocol)
    assert set(cells.sets) == {"type 0", "type 1", "type 2"} and cells.known == {}
    assert cells.shown.shape[0] == 60 and cells.train.shape[0] == 156
    assert (cells.expressing >= 5).all()
    run = records.start("scldm/interpretability", tier="ci")
    found = compare(run, cells, protocol)
    rows = run.frame()
    assert set(found) == {(method, seed) for method in METHODS for seed in (0, 1)}
    claim = rows[(rows["metric"] == "share_of_types_enriched") & (rows["metric_variant"] == "")]
    assert len(claim) == 4 and claim["value"].between(0, 1).all()
    assert rows["metric_variant"].str.endswith(LIKE).any()
    assert (rows["metric"] == "token_match").sum() == 4 * 6
    losses = rows[rows["metric"] == "re_nb_nll"].set_index(["method", "seed"])["value"]
    assert (losses["scldm"] < losses["untrained"]).all()
    again = records.start("scldm/interpretability", tier="ci")
    monkeypatch.setattr("screpro.tasks.attention_experiment.train", None)  # nothing is trained twice
    repeated = compare(again, cells, protocol)
    np.testing.assert_array_equal(repeated["scldm", 1].encoder, found["scldm", 1].encoder)
    assert len(again.frame()) == len(rows)
    with pytest.raises(ScreproError, match="cell types"):
        prepare(AnnData(sp.csr_matrix(counts)), protocol)
    with pytest.raises(ScreproError, match="key"):
        compare(run, cells, protocol, ["attention"])
