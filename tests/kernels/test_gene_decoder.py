"""The decoder at the cost of its tokens: against the formulas of the block in float64, values and gradients."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from screpro.errors import ScreproError
from screpro.kernels.gene_decoder import GeneDecoder, decode_genes, reference
from screpro.kernels.nb import nb_softmax_nll
from screpro.kernels.nb import reference as nb_reference

NAMES = (
    "embedding",
    "queries",
    "keys",
    "values",
    "project",
    "gamma",
    "beta",
    "gate",
    "value",
    "contract",
    "head",
    "bias",
)


def problem(cells=3, genes=23, tokens=5, width=8, hidden=12, channels=1, dtype=torch.float32, seed=0):
    """Random tensors by name, all with gradients."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        "embedding": (genes, width), "queries": (genes, width), "keys": (cells, tokens, width),
        "values": (cells, tokens, width), "project": (width, width), "gamma": (width,), "beta": (width,),
        "gate": (hidden, width), "value": (hidden, width), "contract": (width, hidden), "head": (channels, width),
        "bias": (channels,),
    }  # fmt: skip
    drawn = {name: torch.randn(sizes[name], generator=generator, dtype=torch.float64) for name in NAMES}
    return {name: value.to(dtype).requires_grad_() for name, value in drawn.items()}


def run(function, tensors, heads, **options):
    t = tensors
    weights = GeneDecoder(
        t["project"], t["gamma"], t["beta"], 1e-8, t["gate"], t["value"], t["contract"], t["head"], t["bias"], heads
    )
    return function(t["embedding"], t["queries"], t["keys"], t["values"], weights, **options)


def both(function, tensors, heads, weight, **options):
    """Output, and gradients of a random projection of it."""
    out = run(function, tensors, heads, **options)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), list(tensors.values()))]


@pytest.mark.parametrize("chunk", [1, 7, 23, None])
@pytest.mark.parametrize(("channels", "heads"), [(1, 1), (2, 4)])
def test_the_formula_in_float64(chunk, channels, heads):
    tensors = problem(channels=channels, dtype=torch.float64)
    weight = torch.randn(3, 23, channels, dtype=torch.float64)
    for ours, exact in zip(both(decode_genes, tensors, heads, weight, chunk=chunk),
                           both(reference, tensors, heads, weight), strict=True):  # fmt: skip
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 4, 4), (2, 127, 3, 12, 20), (17, 65, 16, 16, 44), (3, 1023, 2, 8, 24)])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_compiled_sweep(sizes, channels):
    """Error against float64 at most twice that of the plain formula in float32, plus a floor."""
    tensors = problem(*sizes, channels=channels)
    exact = {name: value.detach().double().requires_grad_() for name, value in tensors.items()}
    weight = torch.randn(sizes[0], sizes[1], channels)
    plain = both(reference, tensors, 1, weight)
    for ours, theirs, right in zip(both(decode_genes, tensors, 1, weight, chunk=50), plain,
                                   both(reference, exact, 1, weight.double()), strict=True):  # fmt: skip
        limit = 2 * (theirs - right).abs().max() + 2e-6 * right.abs().max()
        assert (ours - right).abs().max() <= limit


@pytest.mark.parametrize("chunk", [7, None])
def test_bfloat16_is_as_exact_as_the_formulas_in_it(chunk):
    tensors = problem(dtype=torch.bfloat16)
    weight = torch.randn(3, 23, 1, generator=torch.Generator().manual_seed(1))
    exact = both(reference, {name: t.detach().double().requires_grad_() for name, t in tensors.items()}, 2, weight)
    ours = both(decode_genes, tensors, 2, weight, chunk=chunk)
    plain = both(reference, tensors, 2, weight)
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert a.dtype == torch.bfloat16
        floor = 2**-6 * max(1.0, float(c.abs().max()))
        assert (a.double() - c).abs().max() <= 2 * (b.double() - c).abs().max() + floor


def test_threads_do_not_change_the_result():
    tensors, weight = problem(cells=9, genes=40), torch.randn(9, 40, 1, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = both(decode_genes, tensors, 2, weight)
        torch.set_num_threads(4)
        four = both(decode_genes, tensors, 2, weight)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, four, strict=True):  # sums in another order: an entry near 0 is as wrong as the largest one
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))


def test_a_gene_does_not_depend_on_the_others():
    """Equivariance: asking for some genes, in another order, gives their answers in that order."""
    tensors, picked = problem(genes=30), torch.randperm(30)[:11]
    everything = run(decode_genes, tensors, 2)
    some = run(decode_genes, tensors | {name: tensors[name][picked] for name in ("embedding", "queries")}, 2)
    torch.testing.assert_close(some, everything[:, picked], rtol=1e-5, atol=1e-4)


def test_the_order_of_the_tokens_does_not_matter():
    tensors, order = problem(tokens=6), torch.randperm(6)
    shuffled = tensors | {name: tensors[name][:, order] for name in ("keys", "values")}
    torch.testing.assert_close(run(decode_genes, tensors, 1), run(decode_genes, shuffled, 1), rtol=1e-5, atol=1e-4)


def test_under_the_negative_binomial_loss():
    tensors = problem(dtype=torch.float64)
    counts = torch.poisson(torch.full((3, 23), 0.6))
    library, theta = counts.sum(1) + 1, torch.linspace(-1, 2, 23, dtype=torch.float64)
    loss = nb_softmax_nll(counts, run(decode_genes, tensors, 1, chunk=4)[..., 0], library, theta).mean()
    exact = nb_reference(counts, run(reference, tensors, 1)[..., 0], library, theta).mean()
    torch.testing.assert_close(loss, exact)
    inputs = list(tensors.values())
    for a, b in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(exact, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_nothing_of_all_genes_is_kept():
    """What autograd keeps between forward and backward stays far below one (B, G, 2F) tensor."""
    tensors = problem(cells=4, genes=400, hidden=64)
    kept: dict[int, int] = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        run(decode_genes, tensors, 1, chunk=8)
        chunked = sum(kept.values())
        kept.clear()
        run(reference, tensors, 1)
    one = 4 * 400 * 128 * 4
    assert chunked < one / 2 < sum(kept.values()) / 3


def test_a_kept_graph_gives_its_gradient_again():
    tensors = problem()
    total = run(decode_genes, tensors, 1, chunk=4).sum()
    first, second = (torch.autograd.grad(total, list(tensors.values()), retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_wrong_shapes():
    tensors = problem()
    with pytest.raises(ScreproError, match="at least one gene"):
        run(decode_genes, tensors, 1, chunk=0)
    with pytest.raises(ScreproError, match="whole heads"):
        run(decode_genes, tensors, 3)
    with pytest.raises(ScreproError, match="latent keys and values"):
        run(decode_genes, tensors | {"keys": tensors["keys"][..., :4]}, 1)
