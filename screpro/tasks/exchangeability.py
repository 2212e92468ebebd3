r"""What scLDM's auto-encoder does when genes change places, padding is added or counts are multiplied.

Section 3 and appendices B, C and F of scLDM. A deviation is always relative to the largest absolute value of what it
deviates from, and shown as digits: -log10 of it, 6 to 7 for rounding in float32, 15 to 16 in float64, 0 for a change as
large as the values themselves.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from screpro.errors import ScreproError
from screpro.kernels.set_attention import PackedCells, reference
from screpro.models.scldm import AutoEncoder, pack_all
from screpro.models.scldm_velocity import position_table
from screpro.processes.interpolant import interpolate
from screpro.tasks.autoencoder import batch_of

__all__ = [
    "MOST_DIGITS",
    "as_dtype",
    "attention_digits",
    "decoder_digits",
    "digits_of_agreement",
    "encode_with_positions",
    "encoder_digits",
    "entrance_digits",
    "expressed_genes",
    "input_cost",
    "padded_cells",
    "padding_digits",
    "path_errors",
    "permute_genes",
    "positions_digits",
    "subset_digits",
    "token_similarity",
]

MOST_DIGITS = 16.0
"""Of a deviation of exactly zero, and of anything a float64 cannot tell from it."""


def digits_of_agreement(expected: Tensor, found: Tensor) -> float:
    """-log10 of the largest deviation over the largest absolute value of `expected`, at most `MOST_DIGITS`.

    Both tensors have one shape. 0 means that the largest deviation is as large as the largest value; below 0, larger.
    """
    if expected.shape != found.shape or not expected.numel():
        raise ScreproError(
            "Two results are compared entry by entry.",
            got=f"shapes {tuple(expected.shape)} and {tuple(found.shape)}",
            fix="compare results of the same cells and genes",
        )
    scale = expected.double().abs().max()
    deviation = (expected.double() - found.double()).abs().max()
    if deviation == 0:
        return MOST_DIGITS
    return min(MOST_DIGITS, float(torch.log10(scale / deviation)))


# ---- the same cells, written differently


def permute_genes(cells: PackedCells, *, generator: torch.Generator) -> PackedCells:
    """The same cells with the genes of each in another order."""
    lengths = cells.offsets.diff()
    cell = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    # a random key sorted inside each cell; whole numbers would tie, these do not
    key = cell.double() + torch.rand(len(cell), generator=generator, dtype=torch.float64)
    order = key.argsort()
    return PackedCells(cells.genes[order], cells.counts[order], cells.offsets)


def padded_cells(cells: PackedCells, *, extra: int = 0, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Gene numbers from 1 and counts (B, n) for ``AutoEncoder.encode_padded``, padding (0, 0) at the end (eq. 16).

    `length` is the context d, by default that of the cell with the most genes; `extra` is padding on top.
    """
    longest = int(cells.offsets.diff().max())
    length = longest if length is None else length
    if length < longest or extra < 0:
        raise ScreproError(
            "The context holds every expressed gene of every cell.",
            got=f"context {length}, extra {extra}, up to {longest} expressed genes",
            fix="make it longer, or leave `length` out",
        )
    lengths = cells.offsets.diff()
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    columns = torch.arange(len(cells.genes)) - cells.offsets[rows]
    ids = torch.zeros(len(lengths), length + extra, dtype=torch.long)
    counts = torch.zeros(ids.shape, dtype=cells.counts.dtype)
    ids[rows, columns] = cells.genes + 1
    counts[rows, columns] = cells.counts
    return ids, counts


def as_dtype(model: AutoEncoder, cells: PackedCells) -> PackedCells:
    """The cells with counts in the number format of the network's weights."""
    return cells._replace(counts=cells.counts.to(model.head.weight.dtype))


# ---- the properties


def attention_digits(model: AutoEncoder, cells: PackedCells, *, generator: torch.Generator) -> dict[str, float]:
    """Properties 1 to 4 on the bare attention of appendix B, with the pooling block's own queries, keys and values.

    Property 1 is that of the row-wise softmax, 2 permutes queries, keys and values, 3 keys and values, 4 the queries.
    The first cell of `cells` is used.
    """
    with torch.no_grad():
        block = model.pool.block
        cell = slice(0, int(cells.offsets[1]))
        tokens = model.genes(cells.genes[cell] + 1, as_dtype(model, cells).counts[cell])
        keys, values = block.keys_values(tokens)
        own, pseudo = block.queries(tokens), block.queries(model.pool.pseudo_inputs)
    n = len(tokens)
    p, columns = (torch.randperm(n, generator=generator) for _ in range(2))
    ends = torch.tensor([0, n])

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference(q, k, v, ends, block.heads)[0]

    scores = own @ keys.T
    softmax = scores.softmax(-1)
    every, pooled = attend(own, keys, values), attend(pseudo, keys, values)
    return {
        "1": min(
            digits_of_agreement(softmax[:, columns], scores[:, columns].softmax(-1)),
            digits_of_agreement(softmax[p], scores[p].softmax(-1)),
        ),
        "2": digits_of_agreement(every[p], attend(own[p], keys[p], values[p])),
        "3": digits_of_agreement(pooled, attend(pseudo, keys[p], values[p])),
        "4": digits_of_agreement(every[p], attend(own[p], keys, values)),
    }


@torch.no_grad()
def encoder_digits(model: AutoEncoder, cells: PackedCells, *, generator: torch.Generator) -> float:
    """Property 3 on the whole encoder: latents of cells against those of the same cells, genes in another order."""
    cells = as_dtype(model, cells)
    return digits_of_agreement(model.encode(cells), model.encode(permute_genes(cells, generator=generator)))


@torch.no_grad()
def encode_with_positions(model: AutoEncoder, cells: PackedCells) -> Tensor:
    """Latents of a network that also reads the place of a gene in the list: what the encoder must not do.

    A table of sines and cosines of the place is added to the tokens, as a language model would. For the control only.
    """
    cells = as_dtype(model, cells)
    lengths = cells.offsets.diff()
    place = torch.arange(len(cells.genes)) - torch.repeat_interleave(cells.offsets[:-1], lengths)
    tokens = model.genes(cells.genes + 1, cells.counts)
    tokens = tokens + position_table(int(lengths.max()), model.config.width)[0].to(tokens.dtype)[place]
    return model._latent(model.pool(tokens, cells.offsets))[0]


@torch.no_grad()
def positions_digits(model: AutoEncoder, cells: PackedCells, *, generator: torch.Generator) -> float:
    """`encoder_digits` of `encode_with_positions`: a network that the property does not hold for."""
    other = permute_genes(cells, generator=generator)
    return digits_of_agreement(encode_with_positions(model, cells), encode_with_positions(model, other))


@torch.no_grad()
def decoder_digits(model: AutoEncoder, z: Tensor, library: Tensor, *, generator: torch.Generator) -> float:
    """Property 4 on the whole decoder: means (B, G) for permuted genes against the permuted means."""
    order = torch.randperm(model.config.n_genes, generator=generator)
    return digits_of_agreement(model.decode(z, library)[0][:, order], model.decode(z, library, order)[0])


@torch.no_grad()
def subset_digits(model: AutoEncoder, z: Tensor, library: Tensor, *, generator: torch.Generator) -> dict[str, float]:
    """A random half of the genes asked alone, in any order, against the same genes of the whole panel.

    "logits" do not depend on what else is asked. "shares" are the means over their sum, equal as well; "means" are
    not, because the softmax shares the whole library size among the genes that are asked for.
    """
    n = model.config.n_genes
    half = torch.randperm(n, generator=generator)[: max(2, n // 2)]
    whole, part = model.logits(z), model.logits(z, half)
    own = model.decode(z, library)[0][:, half], model.decode(z, library, half)[0]
    shares = [mean / mean.sum(1, keepdim=True) for mean in own]
    return {
        "logits": digits_of_agreement(whole[:, half], part),
        "shares": digits_of_agreement(*shares),
        "means": digits_of_agreement(*own),
    }


@torch.no_grad()
def padding_digits(model: AutoEncoder, cells: PackedCells, *, extra: int, mask: bool) -> float:
    """Latents of cells padded to the longest of them against those with `extra` more padding tokens each."""
    plain, longer = padded_cells(cells), padded_cells(cells, extra=extra)
    return digits_of_agreement(
        model.encode_padded(*plain, mask_padding=mask), model.encode_padded(*longer, mask_padding=mask)
    )


@torch.no_grad()
def entrance_digits(model: AutoEncoder, z: Tensor, library: Tensor, *, scale: float = 1.5, shift: float = 0.3) -> float:
    """Means decoded from ``scale z + shift`` against those from z: the decoder's entrance normalises each token."""
    return digits_of_agreement(model.decode(z, library)[0], model.decode(scale * z + shift, library)[0])


# ---- what a cell costs, and what a token says


def expressed_genes(counts: sp.csr_matrix) -> np.ndarray:
    """Number of expressed genes (n,) of each cell: its tokens. Counts (n, G); stored zeros are not counted."""
    counts = sp.csr_matrix(counts)
    return np.diff(counts.indptr) if (counts.data != 0).all() else (counts != 0).sum(1).A1


class InputCost(NamedTuple):
    """What one way to hand cells to the encoder costs."""

    tokens: int  # that pass the input layer and the keys and values
    seconds: float  # of encoding, the fastest of some repeats


@torch.no_grad()
def input_cost(model: AutoEncoder, counts: sp.csr_matrix, *, context: int, repeats: int = 3) -> dict[str, InputCost]:
    """Tokens and seconds of encoding cells (n, G) in three ways, with the same weights.

    "expressed": packed, as here. "padded": the expressed genes and padding to `context`, as the authors' code.
    "all": every gene is a token, zeros included.
    """
    packed, dense = batch_of(sp.csr_matrix(counts), "expressed", "cpu")
    ids, values = padded_cells(packed, length=context)
    every = pack_all(dense)
    ways = {
        "expressed": (len(packed.genes), lambda: model.encode(packed)),
        "padded": (ids.numel(), lambda: model.encode_padded(ids, values)),
        "all": (len(every.genes), lambda: model.encode(every)),
    }
    return {name: InputCost(tokens, min(_seconds(run, repeats))) for name, (tokens, run) in ways.items()}


def _seconds(run, repeats: int) -> Iterator[float]:
    run()  # the first call allocates
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        yield time.perf_counter() - started


@torch.no_grad()
def token_similarity(
    model: AutoEncoder, counts: np.ndarray, *, n_genes: int, logarithm: bool = True, generator: torch.Generator
) -> dict[str, np.ndarray]:
    """How alike the normalised tokens are, for each of some counts (k,): mean cosine, (k,) each.

    "genes": of different genes with this count, 1 if a token no longer says which gene it is. "counts": of the same
    gene with this count and with count 1, 1 if it does not say how much. Both after the LayerNorm of the pooling block
    without its weights. `n_genes` random genes are used. With ``logarithm=False`` the raw count enters, as equation 6
    is printed.
    """
    genes = 1 + torch.randperm(model.config.n_genes, generator=generator)[:n_genes]

    def tokens(count: float) -> Tensor:
        # the layer takes the logarithm itself: hand it the number whose log1p is the count
        entered = np.log1p(count) if logarithm else count
        mixed = model.genes(genes, torch.zeros(n_genes))
        slope = model.genes(genes, torch.full((n_genes,), float(np.e - 1))) - mixed  # of one unit of log1p
        return F.normalize(F.layer_norm(mixed + entered * slope, mixed.shape[-1:]), dim=-1)

    one = tokens(1.0)
    off_diagonal = n_genes * (n_genes - 1)
    alike, same = [], []
    for count in counts:
        own = tokens(float(count))
        alike.append(float((own.sum(0).square().sum() - n_genes) / off_diagonal))
        same.append(float((own * one).sum(-1).mean()))
    return {"genes": np.array(alike), "counts": np.array(same)}


# ---- the straight path


@torch.no_grad()
def path_errors(
    network, train: Tensor, test: Tensor, times: np.ndarray, *, generator: torch.Generator
) -> dict[str, np.ndarray]:
    """Mean squared error of the velocity on test latents, (k,) for each of the `times` in [0, 1), of three predictors.

    "network": a velocity network without labels. "linear": the best linear answer, from mean and covariance of the
    training latents, E[Z_1 | Z_t] = mu + t S (t² S + (1 - t)² I)^-1 (Z_t - t mu). "mean": the mean latent, whatever Z_t
    is. Error in the noise Z_t - t v is t² times that of the velocity, in the data Z_t + (1 - t) v it is (1 - t)² times.

    Parameters
    ----------
    network
        ``network(z, t)``, or None to leave it out.
    train, test
        Latents (n, m, q).
    """
    flat = train.flatten(1).double()
    mean = flat.mean(0)
    strength, axes = torch.linalg.eigh(torch.cov((flat - mean).T))
    z1, noise = test, torch.randn(test.shape, generator=generator)
    errors: dict[str, list[float]] = {"network": [], "linear": [], "mean": []}
    for t in times.tolist():
        z_t, target = interpolate(noise, z1, torch.full((len(z1),), t))
        centred = (z_t.flatten(1).double() - t * mean) @ axes
        gain = t * strength / (t**2 * strength + (1 - t) ** 2)
        data = mean + (centred * gain) @ axes.T
        found = {"linear": (data - z_t.flatten(1)) / (1 - t), "mean": mean.expand(len(z1), -1)}
        if network is not None:
            found["network"] = network(z_t, torch.full((len(z1),), t)).flatten(1)
        for name, velocity in found.items():
            errors[name].append(float((velocity - target.flatten(1)).square().mean()))
    return {name: np.array(values) for name, values in errors.items() if values}
