"""The graph conditioner: dense formulas, renamed genes, two genes at once, and its place in the network."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from screpro.data.gene_graph import GeneGraph, normalised
from screpro.errors import ScreproError
from screpro.models.graph_conditioner import GraphConditioner, SimpleGraphConvolution, sparse_tensor
from screpro.models.scdiff import ScDiff, ScDiffConfig

WIDTH, DEPTH, N = 8, 3, 5


def graph(seed=0):
    rng = np.random.default_rng(seed)
    weights = (rng.random((N, N)) * (rng.random((N, N)) < 0.5)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return GeneGraph(tuple("abcde"), sp.csr_matrix(weights), "drawn")


def incidence():
    """Control, a, b, c, d, e, a+b, c+e."""
    rows = np.vstack([np.zeros((1, N)), np.eye(N), np.eye(N)[0] + np.eye(N)[1], np.eye(N)[2] + np.eye(N)[4]])
    return sp.csr_matrix(rows.astype(np.float32))


def conditioner(seed=0, **changes):
    torch.manual_seed(seed)
    own = {"operator": normalised(graph()), "incidence": incidence()} | changes
    return GraphConditioner(**own, width=WIDTH, depth=DEPTH).eval()


def test_convolution_is_the_dense_formula():
    weights = graph().weights.toarray()
    full = weights + np.eye(N)
    scale = 1 / np.sqrt(full.sum(1))
    dense = scale[:, None] * full * scale[None]
    step = SimpleGraphConvolution(WIDTH)
    h = torch.randn(N, WIDTH)
    expected = F.linear(torch.tensor(dense, dtype=torch.float32) @ h, step.linear.weight, step.linear.bias)
    torch.testing.assert_close(step(h, sparse_tensor(normalised(graph()))), expected)


def test_tokens_are_the_formula_consumed_in_reverse():
    made = conditioner()
    operator = torch.tensor(normalised(graph()).toarray())
    h = made.embedding[1:]
    for number, step in enumerate(made.steps):
        h = step.linear(operator @ h)
        h = h if number == DEPTH - 1 else h.relu()
    single = torch.cat([made.embedding[:1], h])
    perturbations = torch.tensor(np.hstack([[[1], *[[0]] * 7], incidence().toarray()]), dtype=torch.float32) @ single
    expected = [perturbations]
    for linear, norm in made.heads:  # fresh running statistics: mean 0, variance 1
        expected.append(linear(perturbations) / np.sqrt(1 + norm.eps))
    label = torch.tensor([0, 3, 6])
    tokens = made(label)
    assert len(tokens) == DEPTH
    for token, h in zip(tokens, reversed(expected), strict=True):
        torch.testing.assert_close(token.rows[token.index], F.layer_norm(h, (WIDTH,))[label])


def test_two_genes_are_the_sum_and_control_stays_outside_the_graph():
    made = conditioner()
    rows = made.perturbations()
    torch.testing.assert_close(rows[6], rows[1] + rows[2])
    torch.testing.assert_close(rows[7], rows[3] + rows[5])
    torch.testing.assert_close(rows[0], made.embedding[0])


def test_genes_in_another_order_give_the_same_tokens():
    made = conditioner()
    order = np.random.default_rng(1).permutation(N)
    moved = conditioner(operator=normalised(graph())[order][:, order], incidence=incidence()[:, order])
    moved.load_state_dict(made.state_dict())
    with torch.no_grad():
        moved.embedding[1:] = made.embedding[1:][torch.as_tensor(order)]
    label = torch.arange(8)
    for a, b in zip(made(label), moved(label), strict=True):
        torch.testing.assert_close(a.rows, b.rows)


def test_unseen_gene_learns_from_its_neighbour_only():
    # a <- b linked; c alone
    weights = np.zeros((3, 3), dtype=np.float32)
    weights[0, 1] = weights[1, 0] = 1
    small = GeneGraph(("a", "b", "c"), sp.csr_matrix(weights), "drawn")
    made = GraphConditioner(
        normalised(small), sp.csr_matrix(np.vstack([np.zeros(3), np.eye(3)])), width=WIDTH, depth=2
    ).eval()
    before = made.perturbations().detach()
    with torch.no_grad():
        made.embedding[2] += 1.0  # gene b
    moved = (made.perturbations() - before).abs().sum(1) > 0
    assert moved.tolist() == [False, True, True, False]


def test_batch_statistics_are_of_the_cells():
    made = conditioner().train()
    label = torch.tensor([1, 1, 1, 2])
    tokens = made(label)
    assert all(token.index is None and token.rows.shape == (4, WIDTH) for token in tokens)
    rows = made.perturbations()[label]
    linear = made.heads[0][0](rows)
    expected = (linear - linear.mean(0)) / (linear.var(0, unbiased=False) + made.heads[0][1].eps).sqrt()
    torch.testing.assert_close(tokens[-2].rows, F.layer_norm(expected, (WIDTH,)), atol=1e-4, rtol=1e-4)


def test_one_cell_in_the_last_batch_is_no_error():
    made = conditioner().train()
    assert all(torch.isfinite(token.rows).all() for token in made(torch.tensor([2])))


def test_the_network_accepts_it_and_it_is_trained():
    network = ScDiff(ScDiffConfig(n_genes=7, width=WIDTH, depth=DEPTH, heads=2), {"perturbation": conditioner()})
    x = torch.randn(4, 7)
    label = torch.tensor([0, 1, 6, 7])
    out = network.train()(x, torch.arange(4), context=x, conditions={"perturbation": label})
    out.square().sum().backward()
    own = network.conditioners["perturbation"]
    assert out.shape == x.shape
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in own.parameters())


def test_other_genes_are_refused():
    with pytest.raises(ScreproError, match="genes of the graph"):
        conditioner(incidence=incidence()[:, :4])
