"""Baselines for unseen perturbations: exact where effects add up, GEARS on a planted effect."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.baselines.gears import Gears, GearsLoss, autofocus_direction_loss, gears
from screpro.baselines.gene_perturbation import BASELINES, run
from screpro.baselines.linear_effects import graph_embedding
from screpro.data.gene_graph import GeneGraph, normalised
from screpro.errors import ScreproError
from screpro.tasks.gene_perturbation import PerturbedCells

GENES = tuple("abcdef")
NAMES = ("control", *GENES, "a+b", "a+e")
G = 12


def graph():
    """Two modules of three genes."""
    same = np.kron(np.eye(2), np.ones((3, 3))) - np.eye(6)
    return GeneGraph(GENES, sp.csr_matrix(same.astype(np.float32)), "two modules")


def effects(seed=0, *, by_module=True):
    """(P, G) additive effects: genes of a module act alike."""
    rng = np.random.default_rng(seed)
    single = np.repeat(rng.normal(size=(2, G)), 3, axis=0) if by_module else rng.normal(size=(6, G))
    pairs = [single[0] + single[1], single[0] + single[4]]
    return np.vstack([np.zeros(G), single, *pairs])


def cells(effect, present, *, n=20, noise=0.0, seed=1):
    rng = np.random.default_rng(seed)
    label = np.repeat(present, n)
    x = 5 + effect[label] + noise * rng.normal(size=(len(label), G))
    return PerturbedCells(
        sp.csr_matrix(x.astype(np.float32)), label.astype(np.int64), NAMES, tuple(f"m{g}" for g in range(G)), graph()
    )


def test_no_change_and_mean_effect_are_what_they_say():
    effect = effects()
    train = cells(effect, [0, 1, 2, 4])
    np.testing.assert_allclose(run("no_change", train, predict=[3, 5], seed=0), np.full((2, G), 5.0), rtol=1e-6)
    mean = 5 + effect[[1, 2, 4]].mean(axis=0)
    np.testing.assert_allclose(run("mean_effect", train, predict=[3, 5], seed=0), np.stack([mean] * 2), atol=1e-5)


def test_mean_effect_counts_perturbations_not_cells():
    effect = effects()
    train = cells(effect, [0, 1, 4])
    more = train.take(np.concatenate([np.arange(len(train.label)), np.flatnonzero(train.label == 1)]))
    one, other = (run("mean_effect", part, predict=[3], seed=0) for part in (train, more))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_linear_adds_the_effects_of_seen_genes():
    effect = effects(by_module=False)
    train = cells(effect, [0, 1, 2, 3, 4, 5, 6])
    np.testing.assert_allclose(run("linear", train, predict=[7, 8], seed=0), 5 + effect[[7, 8]], atol=1e-4)


def test_linear_finds_effects_that_follow_the_graph():
    effect = effects()
    train = cells(effect, [0, 1, 2, 4, 5])
    predicted = run("linear", train, predict=[3, 6], seed=0, options={"penalty": 1e-8, "dimension": 2})
    np.testing.assert_allclose(predicted, 5 + effect[[3, 6]], atol=1e-3)


def test_graph_embedding_puts_a_module_in_one_place():
    place = graph_embedding(graph(), 2)
    np.testing.assert_allclose(place[0], place[1], atol=1e-6)
    assert np.linalg.norm(place[0] - place[3]) > 0.5


def test_gears_learns_a_planted_effect():
    effect = effects(3)
    train = cells(effect, [0, 1, 2, 4, 5], n=40, noise=0.2)
    predicted = gears(train, predict=np.array([3, 6]), seed=0, epochs=40, batch_size=100, hidden=16, learning_rate=1e-2)
    for row, p in zip(predicted - 5, (3, 6), strict=True):
        assert np.corrcoef(row, effect[p])[0, 1] > 0.8
        assert np.corrcoef(row, effect[p])[0, 1] > np.corrcoef(row, effect[9 - p])[0, 1]


def test_gears_is_a_function_of_its_seed():
    train = cells(effects(), [0, 1, 4], noise=0.1)
    one, same, other = (gears(train, predict=np.array([3]), seed=s, epochs=1, hidden=4) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0


def test_gears_gives_neighbours_alike_and_two_genes_their_sum():
    torch.manual_seed(0)
    train = cells(effects(), [0, 1])
    operator = sp.identity(G, format="csr")
    model = Gears(operator, normalised(graph()), train.incidence, hidden=8).eval()
    with torch.no_grad():
        a, b, d = model(torch.tensor([1, 2, 4]))
        # in two fully linked modules neighbours receive the same mean
        torch.testing.assert_close(a, b)
        assert (a - d).abs().max() > 1e-4


def test_autofocus_loss_by_hand():
    predicted = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 5.0]], requires_grad=True)
    y = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    kept = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    label = torch.tensor([0, 0, 1])
    loss = autofocus_direction_loss(predicted, y, torch.full((2,), -1.0), label, kept, direction=0.1)
    # label 0: (1 + 0) / 2 and (0 + 16) / 2, mean 4.25; label 1: 16 on the gene that counts; no direction differs
    assert loss.item() == pytest.approx((4.25 + 16) / 2)


def test_direction_term_has_no_gradient():
    predicted = torch.tensor([[1.0, -1.0]], requires_grad=True)
    given = (predicted, torch.tensor([[-1.0, 2.0]]), torch.zeros(2), torch.tensor([0]), torch.ones(1, 2))
    with_it, without = (autofocus_direction_loss(*given, direction=d) for d in (0.1, 0.0))
    assert with_it.item() == pytest.approx(without.item() + 0.4)
    gradients = [torch.autograd.grad(loss, predicted)[0] for loss in (with_it, without)]
    torch.testing.assert_close(*gradients)


def test_loss_pairs_with_control_cells():
    train = cells(effects(), [0, 1, 4], noise=0.1)
    loss = GearsLoss(train, seed=0)
    assert (train.label[loss.partner] == 0).all()
    control = np.flatnonzero(train.label == 0)
    np.testing.assert_array_equal(loss.partner[control], control)


@pytest.mark.parametrize("name", BASELINES)
def test_every_setting_of_every_grid_is_known(name):
    train = cells(effects(), [0, 1, 2, 4, 5])
    for options in BASELINES[name].grid:
        short = {"epochs": 1, "hidden": 4} if name == "gears" else {}
        assert run(name, train, predict=[3], seed=0, options=options | short).shape == (1, G)


def test_bad_requests_are_refused():
    train = cells(effects(), [0, 1, 2])
    for name, given, message in [
        ("nothing", {"predict": [3]}, "named by its key"),
        ("linear", {"predict": [3], "options": {"k": 3}}, "options of linear"),
        ("linear", {"predict": [0]}, "numbers from 1"),
        ("linear", {"predict": [99]}, "numbers from 1"),
        ("linear", {"predict": [1]}, "no training cells"),
    ]:
        with pytest.raises(ScreproError, match=message):
            run(name, train, seed=0, **given)
    with pytest.raises(ScreproError, match="control cells"):
        run("linear", cells(effects(), [1, 2]), predict=[3], seed=0)
