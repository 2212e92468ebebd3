"""Baselines for pairs never seen together: closed forms, symmetries, a known effect, and scGPT where it is missing."""

import json
import sys
import types

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.baselines import perturbed_counts as baselines
from screpro.baselines import scgpt_adapter
from screpro.baselines.state_like import StateLike
from screpro.data import simulate
from screpro.errors import ScreproError
from screpro.tasks.perturbed_cells import PairCells, hold_out_pairs, normalised, pair_cells, put_in_effects

SMALL = {
    "scvi": {"epochs": 40, "warmup_epochs": None, "batch_size": 64, "learning_rate": 4e-3},
    "cpa": {"width": 64, "latent": 16, "epochs": 25, "batch_size": 32, "learning_rate": 3e-3},
    "state_like": {"width": 32, "heads": 2, "layers": 1, "set_size": 16, "steps": 250, "learning_rate": 3e-3},
}


@pytest.fixture(scope="module")
def held():
    made = simulate.cells(600, 40, 3, depth=800, dispersion=0.1, rng=np.random.default_rng(0))
    strong = put_in_effects(made, rng=np.random.default_rng(1), n_perturbations=2, n_targets=15, effect=3.0)
    cells = pair_cells(strong)
    return hold_out_pairs(cells, [(cells.types[0], cells.perturbations[1])])


def made_by(name, held, **options):
    return baselines.run(name, held.train, **held.test.labels, seed=0, options=options or SMALL.get(name))


def test_control_cells_of_the_type_are_control_cells_of_the_type(held):
    rows = baselines.controls_of(held.train, **held.test.labels, seed=0)
    assert (held.train.perturbation[rows] == 0).all()
    assert (held.train.cell_type[rows] == held.test.cell_type).all()
    assert len(set(rows)) == min(len(rows), len(held.train.rows(0, 0)))  # none twice before each came once
    assert made_by("control_of_type", held) == pytest.approx(normalised(held.train.counts[rows]).toarray())


@pytest.fixture(scope="module")
def additive():
    """Constant cells, log expression a type's plus a perturbation's part (up to a common total, kept by gene 2)."""
    log = np.zeros((3, 2, 3))
    log[..., 0] = np.array([1.0, 2.0, 3.0])[:, None]
    log[..., 1] = 0.5 + np.array([0.0, 1.5])
    share = np.expm1(log)
    share[..., 2] = 1e4 - share.sum(-1)
    counts = np.repeat(share.reshape(6, 3), 12, axis=0)
    kind, given = np.repeat(np.arange(6) // 2, 12), np.repeat(np.arange(6) % 2, 12)
    cells = PairCells(sp.csr_matrix(counts), kind, given, list("abc"), ["k", "l", "m"], ["control", "p"])
    return hold_out_pairs(cells, [("m", "p")])


@pytest.mark.parametrize("name", ["mean_shift", "perturbation_mean"])
def test_a_shift_is_exact_where_effects_are_additive(additive, name):
    made, true = made_by(name, additive), normalised(additive.test.counts).toarray()
    assert made[:, :2] == pytest.approx(true[:, :2], abs=1e-5)
    assert made[:, 2] == pytest.approx(true[:, 2], abs=1e-2)  # what fills the total is not additive


def test_the_mean_of_a_type_takes_other_perturbations(held, additive):
    rows = np.flatnonzero((held.train.cell_type == 0) & (held.train.perturbation != 0))
    expected = normalised(held.train.counts[rows]).toarray().mean(0)
    assert made_by("context_mean", held)[0] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ScreproError, match="has none"):
        made_by("context_mean", additive)


@pytest.mark.parametrize("name", ["scvi", "cpa", "state_like"])
def test_networks_recover_a_known_effect(held, name):
    """The change points where the true one does, and the cells are nearer to the real ones than control cells are."""
    made = made_by(name, held)
    assert made.shape == held.test.counts.shape and np.isfinite(made).all()
    before = normalised(held.train.counts[held.train.rows(0, 0)]).toarray().mean(0)
    true = normalised(held.test.counts).toarray().mean(0) - before
    change = made.mean(0) - before
    assert np.corrcoef(change, true)[0, 1] > 0.7
    assert np.abs(change - true).mean() < np.abs(true).mean()


@pytest.mark.parametrize("name", ["cpa", "state_like"])
def test_the_same_seed_gives_the_same_cells(held, name):
    options = {"epochs": 1} if name == "cpa" else {"steps": 3}
    assert np.array_equal(made_by(name, held, **options), made_by(name, held, **options))


def test_the_set_transformer_knows_no_order():
    torch.manual_seed(0)
    model = StateLike(10, 3, width=16, layers=2, heads=2, dropout=0.1).eval()
    torch.nn.init.normal_(model.decode[-1].weight)  # its start, no change at all, would have no order either
    x, order = torch.rand(2, 7, 10), torch.randperm(7)
    perturbation = torch.tensor([1, 2])
    out = model(x, perturbation)
    torch.testing.assert_close(model(x[:, order], perturbation), out[:, order], rtol=1e-4, atol=1e-5)
    assert (out >= 0).all()
    # cells of a set see each other
    other = x.clone()
    other[:, 0] += 1
    assert not torch.allclose(model(other, perturbation)[:, 1:], out[:, 1:])


def test_the_set_transformer_starts_at_no_change():
    x = torch.rand(1, 5, 8)
    model = StateLike(8, 2, width=8, layers=1, heads=2, dropout=0.0)
    torch.testing.assert_close(model(x, torch.tensor([1])), x)


def test_bad_input_is_refused(held):
    with pytest.raises(ScreproError, match="not among the training cells"):
        baselines.run("mean_shift", held.train, cell_type=np.array([1]), perturbation=np.array([1]), seed=0)
    with pytest.raises(ScreproError, match="options of state_like"):
        made_by("state_like", held, depth=3)
    with pytest.raises(ScreproError, match="multiple of the heads"):
        made_by("state_like", held, width=30, heads=4)


def test_scgpt_says_what_is_missing(held, monkeypatch, tmp_path):
    monkeypatch.delenv(scgpt_adapter.FOLDER, raising=False)
    with pytest.raises(ScreproError, match="is not set"):
        made_by("scgpt", held)
    monkeypatch.setenv(scgpt_adapter.FOLDER, str(tmp_path))
    with pytest.raises(ScreproError, match=r"no vocab\.json, args\.json, best_model\.pt"):
        made_by("scgpt", held)


class Tiny(torch.nn.Module):
    """Has the interface of the package's network and answers with the value it read plus one where it is flagged."""

    def __init__(self, ntoken, d_model, nhead, d_hid, nlayers, **options):
        super().__init__()
        self.encoder = torch.nn.Embedding(ntoken, d_model)
        self.value_encoder = torch.nn.Linear(1, d_model)
        self.transformer_encoder = torch.nn.Linear(d_model, d_model)
        self.shift = torch.nn.Parameter(torch.zeros(()))
        assert options["vocab"]["<pad>"] == 0 and options["pert_pad_id"] == 2

    def forward(self, tokens, values, flags, *, src_key_padding_mask, do_sample):
        assert tokens.shape == values.shape == flags.shape == src_key_padding_mask.shape
        return {"mlm_output": values + flags + 0 * self.shift}


def checkpoint(folder, held, *, without=()):
    """Files of a checkpoint; every gene but the last of the panel is in the vocabulary."""
    names = ["<pad>", *held.train.genes[:-1], *held.train.perturbations[1:]]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(n for n in names if n not in without))}
    sizes = {"embsize": 4, "nheads": 1, "d_hid": 4, "nlayers": 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "args.json").write_text(json.dumps(sizes))
    weights = Tiny(len(vocabulary), 4, 1, 4, 1, vocab=vocabulary, pert_pad_id=2).state_dict()
    torch.save(weights, folder / "best_model.pt")


def test_scgpt_reads_cells_and_flags_the_perturbed_gene(held, monkeypatch, tmp_path):
    """The sequence is right: a network that copies and adds the flag changes the perturbed gene alone."""
    package = types.ModuleType("scgpt")
    package.model = types.ModuleType("scgpt.model")
    package.model.TransformerGenerator = Tiny
    monkeypatch.setitem(sys.modules, "scgpt", package)
    monkeypatch.setitem(sys.modules, "scgpt.model", package.model)
    monkeypatch.setenv(scgpt_adapter.FOLDER, str(tmp_path))
    checkpoint(tmp_path, held)
    made = made_by("scgpt", held, epochs=1)
    change = made - made_by("control_of_type", held)
    target = held.train.genes.index(held.train.perturbations[held.pairs[0][1]])
    assert change[:, target] == pytest.approx(np.ones(len(change)), abs=1e-5)
    assert np.delete(change, target, axis=1) == pytest.approx(0, abs=1e-5)
    checkpoint(tmp_path, held, without=held.train.perturbations[1:])
    with pytest.raises(ScreproError, match="as a gene of its vocabulary"):
        made_by("scgpt", held)


def test_scgpt_without_its_package(held, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scgpt.model", None)
    monkeypatch.setenv(scgpt_adapter.FOLDER, str(tmp_path))
    checkpoint(tmp_path, held)
    with pytest.raises(ScreproError, match="in its own package"):
        made_by("scgpt", held)
