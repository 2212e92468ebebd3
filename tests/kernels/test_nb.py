"""The fused negative-binomial loss: against scipy, against the textbook formula in float64, on bad input, on Triton."""

import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.kernels.nb import nb_nll, nb_softmax_nll, reference
from screpro.kernels.nb_loops import _gamma_terms


def problem(n_cells: int, n_genes: int, *, per_cell: bool = False, seed: int = 0) -> list[torch.Tensor]:
    """Counts, logits, library, log theta: nine zeros in ten, a few counts far above 16, theta over three decades."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, n_genes) + rng.normal(0, 0.5, (n_cells, n_genes))
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    library = rng.lognormal(np.log(0.3 * n_genes + 5), 0.4, n_cells)
    log_theta = rng.normal(0, 1.5, (n_cells, n_genes) if per_cell else n_genes)
    theta = np.exp(log_theta)
    counts = rng.poisson(rng.gamma(theta, library[:, None] * share / theta))
    return [torch.tensor(a, dtype=torch.float32) for a in (counts, logits, library, log_theta)]


def with_gradients(function, counts, logits, library, log_theta, weight=None):
    logits, log_theta = logits.detach().requires_grad_(), log_theta.detach().requires_grad_()
    loss = function(counts, logits, library, log_theta)
    (loss.mean() if weight is None else (loss * weight).sum()).backward()
    return loss.detach(), logits.grad, log_theta.grad


def plain(counts, logits, library, log_theta):
    """The formula as it is usually written, five log-gammas and logs over (B, G) each."""
    theta, mu = log_theta.exp(), library[:, None] * torch.softmax(logits, -1)
    total = torch.log(theta + mu + 1e-8)
    value = theta * (torch.log(theta + 1e-8) - total) + counts * (torch.log(mu + 1e-8) - total)
    return -(value + torch.lgamma(counts + theta) - torch.lgamma(theta) - torch.lgamma(counts + 1)).sum(-1)


def assert_close(ours, plain_float32, exact, floor):
    """At most twice the error of the plain formula in the same dtype, plus `floor` of the largest value."""
    for a, b, c in zip(ours, plain_float32, exact, strict=True):
        allowed = 2 * (b.double() - c).abs().max() + floor * c.abs().max()
        assert (a.double() - c).abs().max() <= allowed


def test_reference_is_scipys_negative_binomial():
    counts, logits, library, log_theta = (t.double() for t in problem(7, 23, per_cell=True))
    mu, theta = library[:, None] * torch.softmax(logits, -1), log_theta.exp()
    expected = -scipy.stats.nbinom.logpmf(counts.numpy(), theta.numpy(), (theta / (theta + mu)).numpy()).sum(1)
    np.testing.assert_allclose(reference(counts, logits, library, log_theta).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(nb_nll(counts, mu, theta).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(nb_softmax_nll(counts, logits, library, log_theta).numpy(), expected, rtol=1e-10)


def test_reference_gradients():
    counts, logits, library, log_theta = (t.double() for t in problem(3, 11))
    logits.requires_grad_(), log_theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, t: nb_softmax_nll(counts, z, library, t), (logits, log_theta))


@pytest.mark.parametrize(
    ("shape", "per_cell"),
    [((1, 1), False), ((1, 17), True), ((17, 127), False), ((70, 256), False), ((5, 1023), True), ((3, 5001), False)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_fused_against_float64(shape, per_cell, weighted):
    arrays = problem(*shape, per_cell=per_cell, seed=shape[1])
    weight = torch.linspace(-1, 2, shape[0]) if weighted else None
    exact = with_gradients(reference, *(t.double() for t in arrays), weight=weight)
    float32 = with_gradients(plain, *arrays, weight=weight)
    assert_close(with_gradients(nb_softmax_nll, *arrays, weight=weight), float32, exact, 3e-7)


def test_loss_is_exact_to_rounding():
    """The plain formula's error grows with the total count; this one's is that of storing the result."""
    arrays = problem(20, 4000)
    exact = reference(*(t.double() for t in arrays))
    assert ((nb_softmax_nll(*arrays) - exact).abs() / exact).max() < 1.5e-7


def test_many_counts():
    """Every gene counted: rounding of what all genes share would be multiplied by the total count."""
    rng = np.random.default_rng(0)
    counts = torch.tensor(rng.poisson(5, (10, 3000)), dtype=torch.float32)
    logits, log_theta = torch.tensor(rng.normal(40, 0.5, (10, 3000)), dtype=torch.float32), torch.zeros(3000)
    exact = reference(counts, logits.double(), counts.sum(1), log_theta)
    assert ((nb_softmax_nll(counts, logits, counts.sum(1), log_theta) - exact).abs() / exact).max() < 1.5e-7


def test_products_of_products_stay_in_range():
    """Counts of 16 at theta = e^-12: each gene alone brings a factor of 1e77."""
    counts, log_theta = torch.full((2, 200), 16.0), torch.full((200,), -12.0)
    exact = with_gradients(reference, counts, torch.zeros(2, 200).double(), counts.sum(1), log_theta.double())
    ours = with_gradients(nb_softmax_nll, counts, torch.zeros(2, 200), counts.sum(1), log_theta)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("theta", [1e-6, 0.3, 7.99, 8.0, 50.0, 1e4])
@pytest.mark.parametrize("count", [0.25, 2.0, 17.0, 1234.5])
def test_differences_of_gamma_functions(count, theta):
    with mpmath.workdps(40):
        x, t = mpmath.mpf(count), mpmath.mpf(theta)
        rise = mpmath.loggamma(x + t) - mpmath.loggamma(t) - mpmath.loggamma(x + 1) - x * mpmath.log(t)
        rate = t * (mpmath.digamma(x + t) - mpmath.digamma(t))
    np.testing.assert_allclose(_gamma_terms(count, theta), [float(rise), float(rate)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    counts, logits, library, log_theta = problem(6, 300)
    logits = logits.to(dtype)
    exact = with_gradients(reference, counts.double(), logits.double(), library.double(), log_theta.double())
    loss, grad, _ = with_gradients(nb_softmax_nll, counts, logits, library, log_theta)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert ((loss - exact[0]).abs() / exact[0]).max() < 1e-6
    assert (grad.double() - exact[1]).abs().max() <= torch.finfo(dtype).eps * exact[1].abs().max()


def test_threads_and_integer_counts_change_nothing():
    arrays = problem(9, 300)
    one = with_gradients(nb_softmax_nll, *arrays)
    torch.set_num_threads(2)
    try:
        two = with_gradients(nb_softmax_nll, arrays[0].to(torch.int64), *arrays[1:])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    torch.testing.assert_close(one[2], two[2], rtol=1e-5, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.floats(0, 1e5) | st.integers(0, 40), min_size=4, max_size=4),
    log_theta=st.floats(-18, 30),
    library=st.floats(1, 1e6),
)
def test_any_count_and_dispersion(counts, log_theta, library):
    """Fractions, huge counts, theta from almost 0 to almost Poisson."""
    x = torch.tensor([counts], dtype=torch.float32)
    logits, size = torch.tensor([[0.3, -1.0, 2.0, -4.0]]), torch.tensor([library], dtype=torch.float32)
    t = torch.full((4,), log_theta)
    loss, grad, theta_grad = with_gradients(nb_softmax_nll, x, logits, size, t)
    mu = library * torch.softmax(logits.double(), -1)
    scale = float((x + mu).sum() + x.sum() * abs(log_theta) + 1)
    want = with_gradients(reference, x.double(), logits.double(), size.double(), t.double())
    assert abs(float(loss - want[0])) < 2e-6 * scale
    assert (grad - want[1]).abs().max() < 2e-6 * scale
    if log_theta < 15:  # beyond, float64 log-gammas themselves have no digits left for the derivative
        assert (theta_grad - want[2]).abs().max() < 4e-6 * scale


def test_poisson_limit():
    """theta = e^40: mu - x log mu + log x!, which differences of log-gammas would miss by whole nats."""
    counts, logits, library, _ = problem(4, 50)
    loss = nb_softmax_nll(counts, logits, library, torch.full((50,), 40.0))
    mu = library[:, None].double() * torch.softmax(logits.double(), -1)
    expected = -scipy.stats.poisson.logpmf(counts.numpy(), mu.numpy()).sum(1)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6)


def test_moving_all_logits_changes_nothing():
    counts, logits, library, log_theta = problem(4, 60)
    base, moved = (
        nb_softmax_nll(counts, logits, library, log_theta),
        nb_softmax_nll(counts, logits + 64, library, log_theta),
    )
    torch.testing.assert_close(base, moved, rtol=1e-5, atol=0)
    grad = with_gradients(nb_softmax_nll, counts, logits, library, log_theta)[1]
    assert grad.sum(1).abs().max() < 1e-5  # so the gradient has no component along it


def test_empty_cells_no_cells_and_masked_genes():
    counts, logits, library, log_theta = problem(4, 60)
    counts[1], library[1] = 0, 0
    loss, grad, _ = with_gradients(nb_softmax_nll, counts, logits, library, log_theta)
    assert loss[1] == 0 and (grad[1] == 0).all() and torch.isfinite(grad).all()
    assert nb_softmax_nll(counts[:0], logits[:0], library[:0], log_theta).shape == (0,)
    logits[:, 7], counts[:, 7] = -torch.inf, 0
    keep = torch.arange(60) != 7
    torch.testing.assert_close(
        nb_softmax_nll(counts, logits, library, log_theta),
        nb_softmax_nll(counts[:, keep], logits[:, keep], library, log_theta[keep]),
    )
    for count in (1, 20):
        counts[0, 7] = count
        assert nb_softmax_nll(counts, logits, library, log_theta)[0] == torch.inf
    logits[2, 3] = torch.nan
    assert torch.isnan(nb_softmax_nll(counts, logits, library, log_theta)[2])
    assert torch.isnan(nb_softmax_nll(counts, logits, library, log_theta * torch.nan)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_wrong_counts_and_libraries(dtype, value):
    counts, logits, library, log_theta = (t.to(dtype) for t in problem(3, 8))
    bad = counts.clone()
    bad[1, 2] = value
    with pytest.raises(ScreproError, match="Counts are finite"):
        nb_softmax_nll(bad, logits, library, log_theta)
    library[0] = value
    with pytest.raises(ScreproError, match="library size"):
        nb_softmax_nll(counts, logits, library, log_theta)


def test_wrong_shapes():
    counts, logits, library, log_theta = problem(3, 8)
    for arrays in (
        (counts[:, :7], logits, library, log_theta),
        (counts, logits, library[:2], log_theta),
        (counts, logits, library, log_theta[:3]),
        (counts[:, :0], logits[:, :0], library, log_theta[:0]),
    ):
        with pytest.raises(ScreproError, match=r"\(B, G\)"):
            nb_softmax_nll(*arrays)
    library[0], counts[0, 0] = 0, 1
    with pytest.raises(ScreproError, match="library size"):
        nb_softmax_nll(counts, logits, library, log_theta)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize(("n_genes", "per_cell"), [(70, False), (33, True)])
def test_triton(n_genes, per_cell):
    pytest.importorskip("triton")
    from screpro.kernels.gpu.nb import launch

    arrays = problem(3, n_genes, per_cell=per_cell)
    arrays[0][0, 0], arrays[0][1, 1] = 0.5, 300.25
    weight = torch.tensor([0.5, -1.0, 2.0])
    exact = with_gradients(reference, *(t.double() for t in arrays), weight=weight)
    float32 = with_gradients(plain, *arrays, weight=weight)
    assert_close(launch(*arrays, weight, want=True, block=32, programs=2), float32, exact, 2e-6)
    only_loss, *_ = launch(*arrays, weight, want=False, block=32, programs=2)
    torch.testing.assert_close(only_loss.double(), exact[0], rtol=5e-6, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
def test_triton_many_counts():
    pytest.importorskip("triton")
    from screpro.kernels.gpu.nb import launch

    rng = np.random.default_rng(0)
    counts = torch.tensor(rng.integers(1, 17, (4, 60)), dtype=torch.float32)
    logits, log_theta = torch.tensor(rng.normal(40, 0.5, (4, 60)), dtype=torch.float32), torch.zeros(60)
    exact = reference(counts, logits.double(), counts.sum(1), log_theta)
    loss, *_ = launch(counts, logits, counts.sum(1), log_theta, torch.ones(4), want=False, block=64)
    assert ((loss - exact).abs() / exact).max() < 1e-6


@pytest.mark.slow
def test_triton_kernel_compiles_for_hopper():
    """Code generation needs no GPU."""
    pytest.importorskip("triton")
    script = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from screpro.kernels.gpu import nb
names = nb._cells.arg_names
constants = {"SHARED": True, "WANT": True, "BLOCK": nb.BLOCK}
numbers = {"n_cells": "i32", "n_genes": "i32", **dict.fromkeys(constants, "constexpr")}
source = ASTSource(
    fn=nb._cells,
    signature={name: numbers.get(name, "*fp32") for name in names},
    constexprs={(names.index(name),): value for name, value in constants.items()},
)
triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "maxnreg": 128})
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("shape", "per_cell"), [((300, 2000), False), ((7, 20001), True)])
def test_gpu(shape, per_cell):
    arrays = problem(*shape, per_cell=per_cell)
    weight = torch.linspace(-1, 2, shape[0])
    exact = with_gradients(reference, *(t.double() for t in arrays), weight=weight)
    float32 = with_gradients(plain, *arrays, weight=weight)
    ours = with_gradients(nb_softmax_nll, *(t.cuda() for t in arrays), weight=weight.cuda())
    assert_close([t.cpu() for t in ours], float32, exact, 1e-6)
