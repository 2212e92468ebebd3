"""Keys and values of gene tokens: against the block's formulas in float64, values and gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.kernels.gene_tokens import TokenWeights, keys_values, reference
from screpro.kernels.set_attention import PackedCells

NAMES = ("table", "of_gene", "of_count", "bias", "gamma", "beta", "to_kv")


def problem(genes=20, width=8, dtype=torch.float32, seed=0):
    """Random weights by name, all with gradients."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        "table": (genes, width), "of_gene": (width, width), "of_count": (width, width), "bias": (width,),
        "gamma": (width,), "beta": (width,), "to_kv": (2 * width, width),
    }  # fmt: skip
    drawn = {name: torch.randn(sizes[name], generator=generator, dtype=torch.float64) for name in NAMES}
    return {name: value.to(dtype).requires_grad_() for name, value in drawn.items()}


def packed(lengths, genes=20, seed=0, dtype=torch.float32) -> PackedCells:
    rng = np.random.default_rng(seed)
    ids = np.concatenate([rng.choice(genes, n, replace=False) for n in lengths] or [[]]).astype(np.int64)
    counts = torch.from_numpy(1.0 + rng.poisson(3, len(ids))).to(dtype)
    return PackedCells(torch.from_numpy(ids), counts, torch.from_numpy(np.cumsum([0, *lengths])))


def both(function, cells, tensors, weight):
    """Output, and gradients of a random projection of it."""
    t = tensors
    weights = TokenWeights(t["of_gene"], t["of_count"], t["bias"], t["gamma"], t["beta"], 1e-8, t["to_kv"])
    out = torch.cat(function(t["table"], cells, weights), -1)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), list(t.values()))]


def direction(tokens: int, width: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(tokens, 2 * width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def close(found, expected, share: float) -> None:
    for name, a, b in zip(("output", *NAMES), found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=share * float(b.abs().max().clamp(min=1e-30)), msg=name)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 20), max_size=6).filter(lambda lengths: sum(lengths) > 0),
    st.sampled_from([1, 2, 3, 8, 17, 65]),
    st.integers(0, 99),
)
def test_the_formula_in_both_precisions(lengths, width, seed):
    cells = packed(lengths, seed=seed, dtype=torch.float64)
    weight = direction(len(cells.genes), width)
    exact = both(reference, cells, problem(width=width, dtype=torch.float64, seed=seed), weight)
    double = both(keys_values, cells, problem(width=width, dtype=torch.float64, seed=seed), weight)
    if width > 2:  # two channels are always at one standard deviation from their mean: gradients are rounding
        close(double, exact, 1e-9)
        single = both(keys_values, packed(lengths, seed=seed), problem(width=width, seed=seed), weight.float())
        close(single, exact, 1e-3)
    else:
        torch.testing.assert_close(double[0], exact[0], rtol=1e-6, atol=1e-6)


def test_single_precision_is_as_good_as_the_formula_written_out():
    cells = packed([15, 20, 9, 20], dtype=torch.float64)
    weight = direction(64, 64)
    exact = both(reference, cells, problem(width=64, dtype=torch.float64), weight)
    single = packed([15, 20, 9, 20])
    close(both(keys_values, single, problem(width=64), weight.float()), exact, 3e-6)
    close(both(reference, single, problem(width=64), weight.float()), exact, 3e-6)


def test_threads_do_not_change_the_result():
    cells, tensors, weight = packed([20] * 9), problem(width=16), direction(180, 16, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = both(keys_values, cells, tensors, weight)
        torch.set_num_threads(4)
        four = both(keys_values, cells, tensors, weight)
    finally:
        torch.set_num_threads(before)
    close(four, [t.double() for t in one], 1e-5)


def test_the_order_of_the_tokens_and_other_tokens_do_not_matter():
    cells, tensors = packed([12, 7]), problem()
    weights = TokenWeights(*(tensors[n] for n in NAMES[1:6]), 1e-8, tensors["to_kv"])
    everything = torch.cat(keys_values(tensors["table"], cells, weights), -1)
    some = torch.tensor([17, 3, 8, 0])
    picked = cells._replace(genes=cells.genes[some], counts=cells.counts[some])
    torch.testing.assert_close(torch.cat(keys_values(tensors["table"], picked, weights), -1), everything[some])


def test_counts_that_ask_for_a_gradient_get_it():
    cells, tensors = packed([5, 6], dtype=torch.float64), problem(dtype=torch.float64)
    weights = TokenWeights(*(tensors[n] for n in NAMES[1:6]), 1e-8, tensors["to_kv"])
    counts = cells.counts.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda c: keys_values(tensors["table"].detach(), cells._replace(counts=c), weights), counts
    )


def test_no_tokens_are_no_rows():
    tensors = problem()
    out = both(keys_values, packed([0, 0]), tensors, torch.zeros(0, 16))
    assert out[0].shape == (0, 16) and all(not g.any() for g in out[1:])


def test_mean_and_variance_that_nearly_cancel_stay_finite():
    """A gene whose embedding lies along the direction of the count, turned round: sigma is almost 0."""
    tensors, cells = (
        problem(genes=1),
        PackedCells(torch.tensor([0]), torch.tensor([float(np.expm1(1))]), torch.arange(2)),
    )
    with torch.no_grad():
        tensors["of_gene"].copy_(torch.eye(8))
        tensors["bias"].zero_()
        tensors["table"].copy_(-tensors["of_count"].sum(1)[None])
    assert all(part.isfinite().all() for part in both(keys_values, cells, tensors, torch.ones(1, 16)))


@pytest.mark.parametrize("autocast", [False, True])
def test_paths_agree(autocast):
    cells, tensors = packed([12, 7]), problem()
    weights = TokenWeights(*(tensors[n] for n in NAMES[1:6]), 1e-8, tensors["to_kv"])
    expected = torch.cat(reference(tensors["table"], cells, weights), -1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = torch.cat(keys_values(tensors["table"], cells, weights), -1).float()
    apart = float((found - expected).norm() / expected.norm())
    assert apart < (3e-2 if autocast else 1e-5)
