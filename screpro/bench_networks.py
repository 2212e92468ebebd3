"""Losses and blocks that networks are trained with, forward and backward, beside the ways they are written now."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np

from screpro.bench_data import counts, rates
from screpro.bench_measure import MISSING, Rows, cuda, relative, row, turns

__all__ = ["encoder_block", "energy_loss", "linear_map", "nb_loss"]

LINEAR = ((2048, 2000, 128), (2048, 256, 768), (128, 2000, 128))
"""Rows, inputs and outputs: PerturbDiff's entrance and attention at the sets of PBMC; its entrance at tier laptop."""


def energy_loss() -> Rows:
    """Loss and gradient of 16 pairs of sets of 64 cells in 2000 genes, as PerturbDiff and STATE train."""
    import torch

    from screpro.kernels import energy

    device = "cuda" if cuda() else "cpu"
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.gamma(1, 0.5, (16, 64, 2000)).astype(np.float32)).to(device) for _ in range(2))
    x.requires_grad_()

    def step(loss: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        values = loss(x, y)
        (gradient,) = torch.autograd.grad(values.mean(), x)
        return values.detach(), gradient

    ours = partial(step, energy.energy_loss)
    line = partial(row, "energy loss, forward + backward", "16 sets x 64 x 2000", peer="geomloss, tensorized")
    line = partial(line, target="at least 20 times" if cuda() else "at least 2.5 times")
    if not find_spec("geomloss"):
        return [line(ours_ms=turns(ours)[0], agreement=MISSING)]
    from geomloss import SamplesLoss

    theirs = partial(step, SamplesLoss("energy", backend="tensorized"))
    (value, gradient), (other, slope) = ours(), theirs()
    agreement = f"loss {relative(value, other):.0e}, gradient {relative(gradient, slope):.0e} apart"
    agreement += " (theirs puts every point 1e-4 away from itself)"
    ours_ms, peer_ms = turns(ours, theirs)
    return [line(ours_ms=ours_ms, peer_ms=peer_ms, agreement=agreement)]


def nb_loss() -> Rows:
    """Negative-binomial loss of 2048 cells x 2000 genes with gradients for the logits and the dispersions."""
    import torch

    from screpro.kernels.nb import nb_softmax_nll

    device = "cuda" if cuda() else "cpu"
    genes = 20_000 if cuda() else 2000
    group = np.random.default_rng(0).integers(0, 20, 2048)
    means = rates(20, genes, share=0.1)
    x = torch.from_numpy(counts(group, means, density=0.1).toarray()).to(device)
    generator = torch.Generator().manual_seed(0)
    logits = torch.log(torch.from_numpy(means[group])).float() + 0.3 * torch.randn(x.shape, generator=generator)
    logits, log_theta = logits.to(device).requires_grad_(), torch.zeros(genes, device=device, requires_grad=True)
    library = x.sum(1)

    def step(loss: Callable) -> tuple[torch.Tensor, ...]:
        value = loss().mean()
        return value.detach(), *torch.autograd.grad(value, (logits, log_theta))

    def formula() -> torch.Tensor:
        """What scvi-tools and scldm compute, term by term (with their 1e-8)."""
        mu, theta, eps = library[:, None] * torch.softmax(logits, -1), log_theta.exp(), 1e-8
        log_theta_mu = torch.log(theta + mu + eps)
        likelihood = (
            theta * (torch.log(theta + eps) - log_theta_mu)
            + x * (torch.log(mu + eps) - log_theta_mu)
            + torch.lgamma(x + theta)
            - torch.lgamma(theta)
            - torch.lgamma(x + 1)
        )
        return -likelihood.sum(-1)

    ours = partial(step, lambda: nb_softmax_nll(x, logits, library, log_theta))
    theirs = partial(step, formula)
    apart = [f"{relative(a, b):.0e}" for a, b in zip(ours(), theirs(), strict=True)]
    ours_ms, peer_ms = turns(ours, theirs)
    return [
        row(
            "NB loss, forward + backward",
            f"2048 x {genes}",
            ours_ms=ours_ms,
            peer="the scvi-tools formula, eager",
            peer_ms=peer_ms,
            target="at least 30 times" if cuda() else "at least 4 times",
            agreement=f"loss {apart[0]}, gradients {apart[1]} and {apart[2]} apart",
        )
    ]


def encoder_block() -> Rows:
    """The pooling block of scLDM on 8 cells x 2000 genes, 15 % expressed: 64 latents, width 256, 8 heads.

    Counts mixed into gene embeddings (its eq. 6), layer norm, keys and values, attention, output and residual; once on
    the expressed genes packed and mixed as in ``models/scldm.py``, once on all genes with the others masked and mixed
    as printed. The feed-forward network of the latents is the same work in both and limits what packing can save; the
    second row has it.
    """
    import torch

    device = "cuda" if cuda() else "cpu"
    cells, genes = 8, 2000
    x = counts(np.zeros(cells, int), rates(1, genes, share=0), density=0.15)
    torch.manual_seed(0)
    block = _pooling_block(genes, latents=64, width=256).to(device)
    ours, theirs = _packed(block, x, device, heads=8), _masked(block, x, device, heads=8)

    def step(attend: Callable, feed: bool) -> list[torch.Tensor]:
        latent = block["latent"].weight
        out = latent + block["out"](attend(block["query"](latent)))
        if feed:
            up, gate = block["up"](block["feed_norm"](out)).chunk(2, -1)
            out = out + block["down"](up * torch.nn.functional.silu(gate))
        gradients = torch.autograd.grad(out.square().mean(), block.parameters(), allow_unused=not feed)
        return [out.detach(), *(g for g in gradients if g is not None)]

    rows = []
    for feed, name in ((False, "encoder block"), (True, "encoder block with the latents' feed-forward")):
        output, *gradients = (relative(a, b) for a, b in zip(step(ours, feed), step(theirs, feed), strict=True))
        ours_ms, peer_ms = turns(partial(step, ours, feed), partial(step, theirs, feed))
        rows.append(
            row(
                f"{name}, forward + backward",
                f"{cells} x {genes} genes, 15 % expressed",
                ours_ms=ours_ms,
                peer="masked attention on all genes",
                peer_ms=peer_ms,
                target="at least 5 times" if cuda() else "at least 6 times",
                agreement=f"output {output:.0e}, gradients {max(gradients):.0e} apart",
            )
        )
    return rows


def _pooling_block(genes: int, *, latents: int, width: int):
    from torch import nn

    hidden = -(-8 * width // 12) * 4  # 8/3 of the width, in steps of 4
    return nn.ModuleDict(
        {
            "gene": nn.Embedding(genes, width),
            "mix": nn.Linear(2 * width, width),
            "norm": nn.LayerNorm(width),
            "key_value": nn.Linear(width, 2 * width, bias=False),
            "latent": nn.Embedding(latents, width),
            "query": nn.Linear(width, width, bias=False),
            "out": nn.Linear(width, width),
            "feed_norm": nn.LayerNorm(width),
            "up": nn.Linear(width, 2 * hidden, bias=False),
            "down": nn.Linear(hidden, width, bias=False),
        }
    )


def _keys_values(block, mixed):
    return block["key_value"](block["norm"](mixed)).chunk(2, -1)


def _packed(block, x, device: str, *, heads: int) -> Callable:
    """Attention of latent queries (L, E) to the expressed genes, whose keys and values cost a product per gene."""
    from screpro.kernels.gene_tokens import TokenWeights, keys_values
    from screpro.kernels.set_attention import PackedCells, packed_cross_attention

    cells = PackedCells.from_scipy(x, device)

    def attend(query):
        of_count, of_gene = block["mix"].weight.chunk(2, 1)
        norm = block["norm"]
        weights = TokenWeights(
            of_gene, of_count, block["mix"].bias, norm.weight, norm.bias, norm.eps, block["key_value"].weight
        )
        return packed_cross_attention(query, *keys_values(block["gene"].weight, cells, weights), cells.offsets, heads)

    return attend


def _masked(block, x, device: str, *, heads: int) -> Callable:
    """The same over all genes, with a mask, and the count repeated beside the gene's embedding."""
    import torch
    import torch.nn.functional as F

    dense = torch.from_numpy(x.toarray()).to(device)
    every = torch.arange(x.shape[1], device=device).expand(len(dense), -1)
    mask = (dense > 0)[:, None, None, :]  # (B, 1, 1, G)

    def attend(query):
        embedded = block["gene"](every)
        mixed = block["mix"](torch.cat([dense.log1p()[..., None].expand_as(embedded), embedded], -1))
        key, value = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in _keys_values(block, mixed))
        query = query.unflatten(-1, (heads, -1)).transpose(0, 1).expand(len(dense), -1, -1, -1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)

    return attend


# --- linear maps -----------------------------------------------------------------------------------------------


def linear_map() -> Rows:
    """Linear maps of PerturbDiff, forward and backward; on a GPU both sides are torch's."""
    import torch

    from screpro.kernels.linear import linear

    device = "cuda" if cuda() else "cpu"
    rows = []
    for m, k, n in LINEAR:
        given = [torch.randn(shape, device=device, requires_grad=True) for shape in ((m, k), (n, k), (n,))]
        dy = torch.randn(m, n, device=device)

        def step(function: Callable, given=given, dy=dy) -> list[torch.Tensor]:
            y = function(*given)
            return [y.detach(), *torch.autograd.grad(y, given, dy)]

        ours, theirs = partial(step, linear), partial(step, torch.nn.functional.linear)
        gap = max(relative(a, b) for a, b in zip(ours(), theirs(), strict=True))
        ours_ms, peer_ms = turns(ours, theirs)
        rows.append(
            row(
                "linear map, forward + backward",
                f"{m} x {k} -> {n}",
                ours_ms=ours_ms,
                peer="torch.nn.functional.linear",
                peer_ms=peer_ms,
                agreement=f"value and gradients {gap:.0e} apart",
            )
        )
    return rows
