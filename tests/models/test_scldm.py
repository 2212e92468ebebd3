"""scLDM's auto-encoder: Properties 1 to 4, what counts do to a latent, the decoder's laws, likelihoods, errors."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.kernels.gene_decoder import CHUNK_TOKENS
from screpro.kernels.nb import reference as nb_reference
from screpro.kernels.set_attention import PackedCells
from screpro.models.scldm import CENSUS, AutoEncoder, AutoEncoderConfig, gaussian_nll, pack_all

GENES = 23


def small(seed=0, **changes) -> AutoEncoder:
    torch.manual_seed(seed)
    config = {"n_genes": GENES, "width": 12, "tokens": 3, "layers": 2, "channels": 5, "heads": 2, "cross_heads": 3}
    return AutoEncoder(AutoEncoderConfig(**(config | changes))).double().eval()


def some_counts(n=4, seed=0, mean=0.8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.full((n, GENES), mean), generator=generator).double()
    counts[:, 0] += 1  # every cell expresses something
    return counts


def packed(counts: torch.Tensor) -> PackedCells:
    cells = PackedCells.from_scipy(sp.csr_matrix(counts.numpy()))
    return cells._replace(counts=cells.counts.double())


def padded(counts: torch.Tensor, extra: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Gene numbers from 1 and counts, each cell in an order of its own, with `extra` more places than the longest."""
    length = int((counts > 0).sum(1).max()) + extra
    ids, values = torch.zeros(len(counts), length, dtype=torch.long), torch.zeros(len(counts), length).double()
    for b, row in enumerate(counts):
        own = row.nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)]
        ids[b, : len(own)], values[b, : len(own)] = own + 1, row[own]
    return ids, values


# ---- encoder


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), mean=st.floats(0.05, 5.0))
@torch.no_grad()
def test_encoder_is_invariant_to_the_order_of_genes(seed, mean):
    """Properties 1 and 3."""
    model, cells = small(), packed(some_counts(3, seed, mean))
    generator = torch.Generator().manual_seed(seed)
    spans = zip(cells.offsets[:-1].tolist(), cells.offsets[1:].tolist(), strict=True)
    order = torch.cat([start + torch.randperm(stop - start, generator=generator) for start, stop in spans])
    shuffled = PackedCells(cells.genes[order], cells.counts[order], cells.offsets)
    torch.testing.assert_close(model.encode(shuffled), model.encode(cells))


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), extra=st.integers(0, 30))
@torch.no_grad()
def test_packed_is_padded_and_masked(seed, extra):
    model, counts = small(), some_counts(3, seed)
    ids, values = padded(counts, extra, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(model.encode_padded(ids, values, mask_padding=True), model.encode(packed(counts)))


@torch.no_grad()
def test_unmasked_padding_changes_the_latent_with_its_amount():
    model, counts = small(), some_counts()
    latents = [model.encode_padded(*padded(counts, extra, torch.Generator().manual_seed(0))) for extra in (0, 5, 50)]
    assert (latents[0] - latents[1]).abs().max() > 1e-3
    assert (latents[1] - latents[2]).abs().max() > 1e-3


@torch.no_grad()
def test_a_cell_does_not_depend_on_its_batch():
    model, counts = small(), some_counts(5)
    together = model.encode(packed(counts))
    for b in range(5):
        torch.testing.assert_close(model.encode(packed(counts[b : b + 1])), together[b : b + 1])


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), factor=st.sampled_from([2.0, 7.0, 100.0]))
@torch.no_grad()
def test_what_counts_do_to_a_latent(seed, factor):
    """With "log1p" the LayerNorm that follows erases counts; with "projconcat" more counts of some genes are seen."""
    counts = some_counts(2, seed)
    half = torch.where(torch.arange(GENES) % 2 == 0, factor, 1.0).double()
    seen, blind = small(mixing="projconcat"), small(mixing="log1p")
    for more in (half, factor * torch.ones(GENES).double()):
        before, after = packed(counts), packed(counts * more)
        assert (seen.encode(after) - seen.encode(before)).abs().max() > 1e-3
        # 1e-8 in the norm is all that is left of the count
        torch.testing.assert_close(blind.encode(after), blind.encode(before), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_latents_have_zero_mean_and_unit_variance_in_every_token():
    z = small().encode(packed(some_counts(6)))
    torch.testing.assert_close(z.mean(-1), torch.zeros(6, 3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(z.var(-1, unbiased=False), torch.ones(6, 3).double(), atol=1e-4, rtol=0)


@torch.no_grad()
def test_all_genes_as_input():
    """Zero counts become tokens: another latent, the same in any order, and the same as padding without padding."""
    model, counts = small(inputs="all"), some_counts()
    cells = pack_all(counts)
    assert cells.offsets.tolist() == [GENES * b for b in range(5)]
    assert cells.genes[:GENES].tolist() == list(range(GENES))
    z = model.encode(cells._replace(counts=cells.counts.double()))
    ids = torch.arange(1, GENES + 1).expand(4, -1)
    torch.testing.assert_close(model.encode_padded(ids, counts), z, rtol=1e-6, atol=1e-6)
    assert (z - model.encode(packed(counts))).abs().max() > 1e-3


@torch.no_grad()
def test_mixing_is_a_linear_map_of_embedding_and_repeated_count():
    """Eq. 6 with log1p counts behind the embedding."""
    genes = small().genes
    ids, counts = torch.tensor([[3, 0, 5]]), torch.tensor([[2.0, 0.0, 9.0]]).double()
    repeated = torch.log1p(counts)[..., None].expand(-1, -1, 12)
    expected = F.linear(torch.cat([genes.table[ids], repeated], -1), genes.mix.weight, genes.mix.bias)
    torch.testing.assert_close(genes(ids, counts), expected)


# ---- decoder


@settings(max_examples=10)
@given(genes=st.lists(st.integers(0, GENES - 1), min_size=1, max_size=GENES, unique=True), seed=st.integers(0, 99))
@torch.no_grad()
def test_decoder_is_equivariant_and_answers_each_gene_by_itself(genes, seed):
    """Properties 2 and 4: any subset of genes in any order gets the logits of the whole panel."""
    z = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(seed)).double()
    asked = torch.tensor(genes)
    for dispersion in ("gene", "cell_gene"):
        model = small(dispersion=dispersion)
        whole, some = model.logits(z), model.logits(z, asked)
        torch.testing.assert_close(some, whole[:, asked])
        mean, theta = model.decode(z, torch.full((3,), 50.0).double(), asked)
        torch.testing.assert_close(mean.sum(1), torch.full((3,), 50.0).double())  # the subset shares the library
        all_theta = model.decode(z, torch.ones(3).double())[1]
        torch.testing.assert_close(theta, all_theta[..., asked])


@torch.no_grad()
def test_scale_and_shift_of_a_latent_do_not_matter():
    model = small()
    z, library = model.encode(packed(some_counts())), torch.arange(10.0, 14.0).double()
    moved, plain = model.decode(1.5 * z + 0.3, library), model.decode(z, library)
    torch.testing.assert_close(moved[0], plain[0], rtol=1e-5, atol=1e-8)
    # but a token that points elsewhere does
    assert not torch.allclose(model.decode(z.flip(-1), library)[0], plain[0], rtol=1e-2)


@pytest.mark.parametrize("dispersion", ["gene", "cell_gene"])
def test_contracted_head_is_two_linear_maps(dispersion):
    model, z = small(dispersion=dispersion), torch.randn(2, 3, 5).double()
    with torch.no_grad():
        h = model.from_latent(F.layer_norm(z, (5,), eps=1e-8))
        for block in model.decoder:
            h = block(h)
        unpool, raw = model.unpool, model.genes.genes()
        q = unpool.queries(raw).unflatten(-1, (3, 4)).transpose(0, 1)
        k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in unpool.keys_values(h))
        shares = torch.softmax(q @ k.mT / 2, -1)
        plain = model.head(unpool.after(raw, (shares @ v).transpose(1, 2).flatten(2)))
        torch.testing.assert_close(model.logits(z), plain if dispersion == "cell_gene" else plain[..., 0])


def test_chunks_change_neither_values_nor_gradients(monkeypatch):
    model, counts = small(), some_counts()
    results = {}
    for chunk in (1, 5, GENES):
        monkeypatch.setitem(CHUNK_TOKENS, "cpu", chunk * len(counts))
        model.zero_grad()
        loss = model.nll(packed(counts), counts)
        loss.mean().backward()
        results[chunk] = [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    for chunk in (1, 5):
        torch.testing.assert_close(results[chunk], results[GENES])
    z = torch.randn(2, 3, 5).double()
    with torch.no_grad():
        torch.testing.assert_close(model.logits(z, chunk=4), model.logits(z, chunk=GENES))


# ---- likelihoods


@pytest.mark.parametrize("dispersion", ["gene", "cell_gene"])
def test_loss_is_the_likelihood_of_what_is_decoded(dispersion):
    model, counts = small(dispersion=dispersion), some_counts()
    with torch.no_grad():
        cells = packed(counts)
        mean, theta = model.decode(model.encode(cells), counts.sum(1))
        law = torch.distributions.NegativeBinomial(theta, logits=(mean / theta).log(), validate_args=False)
        torch.testing.assert_close(model.nll(cells, counts), -law.log_prob(counts).sum(1))
        logits, log_theta = model.split(model.logits(model.encode(cells)))
        torch.testing.assert_close(model.nll(cells, counts), nb_reference(counts, logits, counts.sum(1), log_theta))


def test_gaussian_likelihood():
    model, counts = small(likelihood="gaussian"), some_counts()
    with torch.no_grad():
        out, log_precision = model.split(model.logits(model.encode(packed(counts))))
        values = torch.log1p(counts / counts.sum(1, keepdim=True) * 1e4)
        law = torch.distributions.Normal(out, (-0.5 * log_precision).exp())
        torch.testing.assert_close(model.nll(packed(counts), counts), -law.log_prob(values).sum(1))
        torch.testing.assert_close(gaussian_nll(counts, out, log_precision), -law.log_prob(values).sum(1))


def test_posterior_adds_its_divergence():
    """KL(N(mean, s^2) || N(0, I)), against torch's; without weight it is noise in the latent and no more."""
    model, counts = small(posterior=True), some_counts()
    cells = packed(counts)
    with torch.no_grad():
        nll = [
            model.nll(cells, counts, kl_weight=w, generator=torch.Generator().manual_seed(3)) for w in (0.0, 1.0, 0.5)
        ]
        z, spread = model._latent(model.pool(model.genes(cells.genes + 1, cells.counts), cells.offsets))
        posterior = torch.distributions.Normal(z, (0.5 * spread).exp())
        prior = torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
        kl = torch.distributions.kl_divergence(posterior, prior).sum((1, 2))
    torch.testing.assert_close(nll[1] - nll[0], kl)
    torch.testing.assert_close(nll[2] - nll[0], kl / 2)
    again = model.nll(cells, counts, generator=torch.Generator().manual_seed(4))
    assert not torch.allclose(again, nll[0])


@pytest.mark.parametrize("options", [{}, {"dispersion": "cell_gene"}, {"likelihood": "gaussian"}, {"posterior": True}])
def test_every_weight_gets_a_gradient(options):
    model, counts = small(**options), some_counts()
    loss = model.nll(packed(counts), counts, kl_weight=0.1, generator=torch.Generator().manual_seed(0))
    loss.mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_dispersion_starts_where_it_is_told():
    model = small()
    model.start_dispersion(torch.linspace(0.1, 3, GENES))
    assert model.decode(torch.randn(1, 3, 5).double(), torch.ones(1))[1].tolist() == pytest.approx(
        np.linspace(0.1, 3, GENES).tolist()
    )


def test_sizes_of_the_census_models():
    """Section 4.3 names 20M, 70M and 270M, its gene table included; counted on the meta device."""
    for name, expected in (("20M", 23.7), ("70M", 75.9), ("270M", 269.9)):
        with torch.device("meta"):
            model = AutoEncoder(AutoEncoderConfig(n_genes=36_130, **CENSUS[name]))
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(expected, abs=0.06)


def test_wrong_settings_are_explained():
    for changes in ({"mixing": "sum"}, {"likelihood": "zinb"}, {"pooling": "mean"}, {"tokens": 0}, {"n_genes": 0}):
        with pytest.raises(ScreproError, match="options have the values"):
            small(**changes)
    for changes in ({"heads": 5}, {"cross_heads": 7}):
        with pytest.raises(ScreproError, match="divide"):
            small(**changes)
