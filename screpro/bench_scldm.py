"""scLDM: a training step beside the same network written with padding, what its encoder keeps, and drawing cells."""

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

DRAWN = 10_000
"""Cells that are drawn."""

DENSITIES = (0.075, EXPRESSED)
"""Shares of the panel that cells express where memory is measured: the same cells but for twice the tokens."""


def scldm() -> Rows:
    """Forward and backward of a training step on a panel of 2000 genes, with the same weights on both sides; memory;
    `DRAWN` cells at the size of tier laptop, which takes minutes."""
    import torch

    from screpro.kernels.linear import without_onednn

    rows = []
    for n, sizes in SIZES:
        model, cells, dense = _setup(n, sizes)
        ours = partial(_step, model, _packed, cells, dense)
        theirs = without_onednn()(partial(_step, model, _padded, cells, dense))
        (loss, *gradients), (other, *slopes) = ours(), theirs()
        # as one vector: the gradient of the head's bias is rounding, for the softmax does not see a common shift
        apart = relative(*(torch.cat([g.flatten() for g in own]) for own in (gradients, slopes)))
        ours_ms, peer_ms = turns(ours, theirs)
        rows.append(
            row(
                "scLDM auto-encoder, training step",
                f"{n} cells x {GENES} genes, width {sizes['width']}, {sizes['tokens']} tokens",
                ours_ms=ours_ms,
                peer="torch's own layers, padded to the panel, masked attention, eager loss",
                peer_ms=peer_ms,
                target="at least 3 times",
                agreement=f"loss {relative(loss, other):.0e}, gradients {apart:.0e} apart",
            )
        )
    return [*rows, _memory(*SIZES[0]), _generation()]


def _generation() -> dict:
    """Seconds for drawing cells with the networks of the generation page at tier laptop and 20 steps of Heun."""
    from screpro.tasks.autoencoder import AutoEncoderSettings
    from screpro.tasks.flow import FlowSettings
    from screpro.tasks.generation_samplers import generation_seconds

    seconds = generation_seconds(
        AutoEncoderSettings(), FlowSettings(width=96, layers=3), cells=DRAWN, genes=GENES, steps=20
    )
    return row(
        "scLDM, drawing cells",
        f"{DRAWN} cells x {GENES} genes, 20 steps of Heun",
        ours_ms=1e3 * seconds,
        peer="",
        target="at most 3 minutes",
        agreement=f"{seconds:.0f} s, noise to sparse counts",
    )


def _memory(n: int, sizes: dict) -> dict:
    """Bytes that the encoder keeps for its backward pass, at two densities and as if padded to the panel."""
    tokens, kept = [], []
    for density in DENSITIES:
        model, cells, _ = _setup(n, sizes, density=density)
        tokens.append(len(cells.genes))
        kept.append(saved_bytes(model, partial(model.encode, cells)))
    padded = saved_bytes(model, partial(model.encode_padded, *_pad(cells), mask_padding=True))
    first = cells.offsets[:-1]  # one gene of each cell: what is left is kept for the latent tokens
    alone = cells._replace(genes=cells.genes[first], counts=cells.counts[first], offsets=first.new_tensor(range(n + 1)))
    fixed = saved_bytes(model, partial(model.encode, alone))
    few, many = (f"{own / 2**20:.1f} MiB at {density:.1%}" for own, density in zip(kept, DENSITIES, strict=True))
    return row(
        "scLDM encoder, memory kept for backward",
        f"{n} cells x {GENES} genes, width {sizes['width']}, {sizes['tokens']} tokens",
        peer="padded to the panel",
        target="at most in proportion to expressed genes",
        agreement=f"{few}, {many}: {kept[1] / kept[0]:.2f} times for {tokens[1] / tokens[0]:.2f} times the tokens, "
        f"{(kept[1] - fixed) / (kept[0] - fixed):.2f} times without the {fixed / 2**20:.1f} MiB of the latent tokens; "
        f"padded {padded / 2**20:.1f} MiB",
    )


def saved_bytes(model, call) -> int:
    """Bytes of all storages that autograd keeps of `call` for its backward pass, parameters of `model` left out."""
    import torch

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}  # the tensors stay alive: a freed address would be given out again

    def keep(tensor):
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = call()
    found = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)
    del result
    return found


def _pad(cells):
    """Packed cells as ids and counts (B, GENES), 0 where there is padding."""
    import torch

    lengths = cells.offsets.diff()
    where = torch.arange(GENES) < lengths[:, None]  # (B, d): their context on a panel of 2000 genes is d = 2000
    ids = torch.zeros(len(lengths), GENES, dtype=torch.long)
    values = torch.zeros(len(lengths), GENES)
    ids[where], values[where] = cells.genes.cpu() + 1, cells.counts.cpu()
    return ids.to(cells.genes.device), values.to(cells.genes.device)


def _setup(n: int, sizes: dict, *, density: float = EXPRESSED):
    import torch

    from screpro.models.scldm import AutoEncoder, AutoEncoderConfig
    from screpro.tasks.autoencoder import batch_of

    device = "cuda" if cuda() else "cpu"
    x = counts(np.zeros(n, int), rates(1, GENES, share=0), density=density)
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

    z = model.encode_padded(*_pad(cells), mask_padding=True)
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
