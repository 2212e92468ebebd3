"""scLDM's auto-encoder: a training step beside the same network written with padding and the eager loss."""

from functools import partial

import numpy as np

from screpro.bench_data import counts, rates
from screpro.bench_measure import Rows, cuda, relative, row, turns

__all__ = ["scldm"]

GENES = 2000
EXPRESSED = 0.15
SIZES = (
    (32, {"width": 64, "tokens": 16, "channels": 8, "layers": 2, "heads": 4, "cross_heads": 1}),
    (32, {"width": 128, "tokens": 64, "channels": 8, "layers": 2, "heads": 4, "cross_heads": 1}),
)
"""Cells a step and sizes of the network: the default of tier laptop, and the smallest of the paper's sweep."""


def scldm() -> Rows:
    """Forward and backward of a training step on a panel of 2000 genes; the same weights on both sides."""
    import torch

    rows = []
    for n, sizes in SIZES:
        model, cells, dense = _setup(n, sizes)
        ours, theirs = partial(_step, model, _packed, cells, dense), partial(_step, model, _padded, cells, dense)
        (loss, *gradients), (other, *slopes) = ours(), theirs()
        # as one vector: the gradient of the head's bias is rounding, for the softmax does not see a common shift
        apart = relative(*(torch.cat([g.flatten() for g in own]) for own in (gradients, slopes)))
        ours_ms, peer_ms = turns(ours, theirs)
        rows.append(
            row(
                "scLDM auto-encoder, training step",
                f"{n} cells x {GENES} genes, width {sizes['width']}, {sizes['tokens']} tokens",
                ours_ms=ours_ms,
                peer="padded to the panel, masked attention, eager loss",
                peer_ms=peer_ms,
                target="at least 3 times",
                agreement=f"loss {relative(loss, other):.0e}, gradients {apart:.0e} apart",
            )
        )
    return rows


def _setup(n: int, sizes: dict):
    import torch

    from screpro.models.scldm import AutoEncoder, AutoEncoderConfig
    from screpro.tasks.autoencoder import batch_of

    device = "cuda" if cuda() else "cpu"
    x = counts(np.zeros(n, int), rates(1, GENES, share=0), density=EXPRESSED)
    torch.manual_seed(0)
    model = AutoEncoder(AutoEncoderConfig(n_genes=GENES, **sizes)).to(device)
    return model, *batch_of(x, "expressed", device)


def _step(model, loss, cells, dense) -> list:
    import torch

    value = loss(model, cells, dense)
    return [value.detach(), *torch.autograd.grad(value, list(model.parameters()))]


def _packed(model, cells, dense):
    return model.nll(cells, dense).mean()


def _padded(model, cells, dense):
    """The network as its formulas read: padded tokens, whole-panel activations, log-gammas term by term."""
    import torch
    import torch.nn.functional as F

    from screpro.models.blocks import EPSILON, split_heads

    lengths = cells.offsets.diff()
    where = torch.arange(GENES) < lengths[:, None]  # (B, d): their context on a panel of 2000 genes is d = 2000
    ids = torch.zeros(len(lengths), GENES, dtype=torch.long)
    values = torch.zeros(len(lengths), GENES)
    ids[where], values[where] = cells.genes.cpu() + 1, cells.counts.cpu()
    z = model.encode_padded(ids.to(dense.device), values.to(dense.device), mask_padding=True)
    h = model.from_latent(F.layer_norm(z, (model.config.channels,), eps=EPSILON))
    for block in model.decoder:
        h = block(h)
    block, raw = model.unpool, model.genes.genes()
    keys, heads = block.keys_values(h), block.heads
    queries = split_heads(block.queries(raw), heads).expand(len(h), -1, -1, -1)
    attended = F.scaled_dot_product_attention(queries, *(split_heads(part, heads) for part in keys))
    logits = model.head(block.after(raw, attended.transpose(1, 2).flatten(2))).squeeze(-1)
    x, theta, eps = dense, model.log_theta[1:].exp(), 1e-8
    mean = x.sum(-1, keepdim=True) * logits.softmax(-1)
    total = torch.log(theta + mean + eps)
    log_p = theta * (torch.log(theta + eps) - total) + x * (torch.log(mean + eps) - total)
    log_p = log_p + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return -log_p.sum(-1).mean()
