"""Exchangeability: what must not change does not, what must change does, and the measures can tell."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import Ridge, RidgeCV

from screpro import records
from screpro.errors import ScreproError
from screpro.models.scldm import AutoEncoder, AutoEncoderConfig
from screpro.tasks import exchangeability as exch
from screpro.tasks.autoencoder import AutoEncoderSettings, batch_of
from screpro.tasks.exchangeability_experiment import MIXINGS, Protocol, changes, compare, read_out, ridge, split_counts

SIZES = {"width": 16, "tokens": 4, "layers": 1, "channels": 4, "heads": 4, "cross_heads": 2}


def toy(n=40, genes=30, seed=0):
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.7, 2.0, (n, genes))
    counts = rng.poisson(rate)
    counts[:, 0] += 1  # no cell is empty
    return sp.csr_matrix(counts.astype(np.float32))


def network(mixing="projconcat", genes=30, dispersion="gene", seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoEncoder(AutoEncoderConfig(genes, mixing=mixing, dispersion=dispersion, **SIZES)).eval()


@pytest.fixture
def cells():
    return batch_of(toy(), "expressed", "cpu")[0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_digits_have_a_closed_form():
    expected = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert exch.digits_of_agreement(expected, expected + torch.tensor([0.0, 2e-3])) == pytest.approx(3, abs=1e-4)
    assert exch.digits_of_agreement(expected, expected.clone()) == 16
    assert exch.digits_of_agreement(expected, 11 * expected) == pytest.approx(-1)
    with pytest.raises(ScreproError, match="entry by entry"):
        exch.digits_of_agreement(expected, expected[:1])


def test_permuting_keeps_every_cell(cells):
    other = exch.permute_genes(cells, generator=generator())
    assert torch.equal(other.offsets, cells.offsets)
    assert not torch.equal(other.genes, cells.genes)
    for start, stop in zip(cells.offsets[:-1].tolist(), cells.offsets[1:].tolist(), strict=True):
        pairs = [
            sorted(zip(c.genes[start:stop].tolist(), c.counts[start:stop].tolist(), strict=True))
            for c in (cells, other)
        ]
        assert pairs[0] == pairs[1]


def test_padding_is_where_it_should_be(cells):
    ids, counts = exch.padded_cells(cells, extra=3)
    lengths = cells.offsets.diff()
    assert ids.shape == (len(lengths), int(lengths.max()) + 3)
    assert torch.equal((ids > 0).sum(1), lengths) and torch.equal(ids > 0, counts > 0)
    assert torch.equal(ids[ids > 0] - 1, cells.genes) and torch.equal(counts[ids > 0], cells.counts)
    assert (ids[:, -3:] == 0).all()
    with pytest.raises(ScreproError, match="context holds"):
        exch.padded_cells(cells, length=2)


@pytest.mark.parametrize("mixing", ["projconcat", "log1p"])
@pytest.mark.parametrize("dispersion", ["gene", "cell_gene"])
def test_properties_hold_to_rounding(cells, mixing, dispersion):
    model = network(mixing, dispersion=dispersion)
    for dtype, least in ((torch.float32, 4.5), (torch.float64, 12)):
        model = model.to(dtype)
        z = model.encode(exch.as_dtype(model, cells)).detach()
        library = torch.full((len(z),), 50.0, dtype=dtype)
        assert exch.encoder_digits(model, cells, generator=generator()) > least
        assert exch.decoder_digits(model, z, library, generator=generator()) > least
        assert exch.entrance_digits(model, z, library) > min(least, 7)  # the epsilon of the LayerNorm is 1e-8
        assert exch.padding_digits(model, cells, extra=9, mask=True) > least
        found = exch.attention_digits(model, cells, generator=generator())
        assert set(found) == set("1234") and min(found.values()) > least
        part = exch.subset_digits(model, z, library, generator=generator())
        assert min(part["logits"], part["shares"]) > least
        assert part["means"] < 1


def test_the_measures_can_fail(cells):
    model = network()
    assert exch.positions_digits(model, cells, generator=generator()) < 1.5
    assert exch.padding_digits(model, cells, extra=9, mask=False) < 3
    assert exch.padding_digits(model, cells, extra=0, mask=False) == 16


def test_layer_norm_erases_the_counts_of_one_mixing(cells):
    erased, kept = (changes(network(mixing), cells, seed=0) for mixing in ("log1p", "projconcat"))
    assert max(erased.values()) < 1e-4 < 0.02 < min(kept.values())
    # what is expressed still matters
    model, counts = network("log1p"), toy()
    fewer = counts.toarray()
    fewer[:, 5] = 0
    packed = [batch_of(each, "expressed", "cpu")[0] for each in (counts, sp.csr_matrix(fewer))]
    assert exch.digits_of_agreement(*(model.encode(each).detach() for each in packed)) < 2


def test_tokens_say_gene_or_count():
    counts = np.array([1.0, 10.0, 1e6])
    erased = exch.token_similarity(network("log1p"), counts, n_genes=20, generator=generator())
    assert erased["counts"] == pytest.approx(np.ones(3), abs=1e-5)
    assert np.ptp(erased["genes"]) < 1e-5
    raw = exch.token_similarity(network(), counts, n_genes=20, logarithm=False, generator=generator())
    log = exch.token_similarity(network(), counts, n_genes=20, generator=generator())
    assert raw["genes"][-1] > 0.999 > log["genes"][-1]
    assert raw["counts"][0] == pytest.approx(1, abs=1e-5) and raw["counts"][-1] < 0.99
    # count 1 enters as 1 without the logarithm, as log 2 with it
    assert raw["genes"][0] > log["genes"][0]


def test_tokens_of_the_layer_itself():
    model, g = network(), generator()
    genes = 1 + torch.randperm(30, generator=generator())[:20]
    with torch.no_grad():
        own = torch.nn.functional.layer_norm(model.genes(genes, torch.full((20,), 7.0)), (16,))
    own = torch.nn.functional.normalize(own, dim=-1)
    off = (own @ own.T).sum() - 20
    found = exch.token_similarity(model, np.array([7.0]), n_genes=20, generator=g)
    assert found["genes"][0] == pytest.approx(float(off) / 380, abs=1e-4)


def test_input_cost_counts_tokens():
    counts = toy()
    n = exch.expressed_genes(counts)
    assert n.sum() == (counts.toarray() > 0).sum()
    stored = sp.csr_matrix((np.array([0.0, 2.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 3))
    assert exch.expressed_genes(stored).tolist() == [1]
    cost = exch.input_cost(network(), counts, context=int(n.max()), repeats=1)
    assert {way: each.tokens for way, each in cost.items()} == {
        "expressed": n.sum(), "padded": len(n) * n.max(), "all": 40 * 30
    }  # fmt: skip
    assert all(each.seconds > 0 for each in cost.values())


def test_ridge_is_scikit_learns():
    rng = np.random.default_rng(0)
    x, x_new = rng.normal(size=(80, 12)) * np.arange(1, 13), rng.normal(size=(50, 12)) * np.arange(1, 13)
    y = x[:, :3] @ [1.0, -2.0, 0.5] + 3 * rng.normal(size=80) + 7
    penalties = np.logspace(-1, 4, 11)
    scaled = [(each - x.mean(0)) / x.std(0) for each in (x, x_new)]
    every = np.array([Ridge(alpha=each).fit(scaled[0], y).predict(scaled[1]) for each in penalties])
    distance = np.abs(every - ridge(x, y, x_new)).max(1)
    chosen = RidgeCV(penalties).fit(scaled[0], y).alpha_  # by leaving one out, nearly the same criterion
    assert distance.min() < 1e-8
    assert abs(int(distance.argmin()) - int(np.flatnonzero(np.isclose(penalties, chosen))[0])) <= 1
    constant = ridge(np.ones((20, 2)), np.arange(20.0), np.ones((3, 2)))
    assert constant == pytest.approx(np.full(3, 9.5))


def test_read_out_finds_what_is_there_and_nothing_else():
    train, test = toy(200, seed=1), toy(150, seed=2)
    logs = [np.log(np.asarray(part.sum(1))) for part in (train, test)]
    noise = [np.random.default_rng(k).normal(size=(len(each), 3)) for k, each in enumerate(logs)]
    good = read_out(*(np.hstack(pair) for pair in zip(logs, noise, strict=True)), train, test)
    assert good["total counts"] > 0.999
    assert max(read_out(*noise, train, test).values()) < 0.05
    everything = read_out(*(np.log1p(part.toarray()) for part in (train, test)), train, test)
    pattern = read_out(*((part.toarray() > 0).astype(float) for part in (train, test)), train, test)
    assert everything["graded expression"] > pattern["graded expression"] + 0.2
    with pytest.raises(ScreproError, match="many cells express"):
        read_out(noise[0][:20], noise[1], train[:20], test)


def test_path_errors_of_gaussian_latents():
    """For latents N(0, s²) the best velocity has error s² / (t² s² + (1 - t)²)."""
    spread, times = 0.5, np.array([0.0, 0.3, 0.8])
    latents = spread * torch.randn(60_000, 2, 2, generator=generator())
    train, test = latents[:30_000], latents[30_000:]
    closed = spread**2 / (times**2 * spread**2 + (1 - times) ** 2)

    def best(z, t):
        t = t[:, None, None]
        data = t * spread**2 / (t**2 * spread**2 + (1 - t) ** 2) * z
        return (data - z) / (1 - t)

    found = exch.path_errors(best, train, test, times, generator=generator(1))
    assert found["linear"] == pytest.approx(found["network"], rel=2e-3)
    assert found["network"] == pytest.approx(closed, rel=0.02)
    assert found["mean"] == pytest.approx(np.full(3, 1 + spread**2), rel=0.02)
    assert set(exch.path_errors(None, train, test, times, generator=generator(1))) == {"linear", "mean"}


def test_split_keeps_a_panel_of_training_genes():
    protocol = Protocol("toy", [0], AutoEncoderSettings(), cells=20)
    parts = split_counts(toy(), protocol, seed=0)
    assert parts.train.shape[0] + parts.test.shape[0] == 20
    assert parts.train.shape[1] == parts.test.shape[1]
    assert (parts.train.getnnz(axis=0) > 0).all()


def test_compare_adds_every_row_once():
    protocol = Protocol("toy", [0], AutoEncoderSettings(**SIZES), trials=1)
    trained = {(method, 0): network(mixing) for method, mixing in MIXINGS.items()}
    run = records.start("scldm/exchangeability", tier="ci")
    compare(run, toy(100), protocol, trained=trained)
    rows = run.frame()
    digits = rows[rows["metric"] == "digits_of_agreement"].set_index(["method", "metric_variant"])["value"]
    parts = digits["scldm"][["encoder", "decoder"]]
    assert digits["scldm", ""] == parts.min() > 4.5
    assert digits["scldm_positions", ""] < 2
    assert digits["scldm", "encoder, float64"] > 12
    assert next(trained["scldm", 0].parameters()).dtype == torch.float32  # as it was
    assert set(rows.loc[rows["metric"] == "read_out_r2", "method"]) == {*MIXINGS, "binary_pca", "log_counts_pca"}
    ways = {"expressed_tokens", "padded_tokens", "all_tokens"}
    assert set(rows.loc[rows["metric"] == "input_tokens", "method"]) == ways
    before = len(rows)
    compare(run, toy(100), protocol, trained=trained)
    assert len(run.frame()) == before
