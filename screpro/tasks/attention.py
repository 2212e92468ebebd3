r"""What the cross-attention of scLDM's auto-encoder looks at: weights per latent token and gene (appendix L.2).

The encoder's pseudo-input l of cell b weighs the genes t that the cell expresses, the decoder's gene g weighs the m
latent tokens; per head, and averaged over the heads here,

$$w_{blt} = \mathrm{softmax}_t\big(q_l \cdot k_{bt} / \sqrt d\big), \qquad
  v_{bgl} = \mathrm{softmax}_l\big(q_g \cdot k_{bl} / \sqrt d\big) .$$

Both are averaged over cells. A gene that a cell does not express has no token and so no weight in the encoder. Whether
it counts as 0 or not at all is a choice that L.2 leaves open, and it matters: with zeros, the mean of a gene is its
mean weight times the share of cells that express it, which is large for widely expressed genes whatever the network
has learned. `readings` gives both, and a third that keeps only what tells tokens apart.

Shape letters: B cells, T expressed genes of all cells, G genes, H heads, d width of one, m latent tokens.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from screpro.errors import ScreproError
from screpro.kernels.set_attention import PackedCells
from screpro.models.blocks import EPSILON
from screpro.models.scldm import AutoEncoder
from screpro.tasks.autoencoder import batch_of

__all__ = ["ALL_CELLS", "DECODER", "ENCODER", "OTHERS", "Attention", "decoder_weights", "encoder_weights", "measure"]

ENCODER, ALL_CELLS, OTHERS, DECODER = "encoder", "encoder, all cells", "encoder, against other tokens", "decoder"
"""Names of the readings."""


class Attention(NamedTuple):
    """Attention of a network, summed over cells."""

    encoder: np.ndarray  # (m, G) sums over the cells that express the gene
    decoder: np.ndarray  # (m, G) sums over all cells
    expressing: np.ndarray  # (G,) cells that express the gene
    cells: int

    def usable(self, least: int) -> np.ndarray:
        """(G,) bool: genes that at least `least` of the cells express; a mean over fewer is mostly noise."""
        return self.expressing >= least

    def readings(self, genes: np.ndarray) -> dict[str, np.ndarray]:
        """Mean attention of each token to some genes, (m, g) each.

        ``"encoder"``
            Mean over the cells that express the gene.
        ``"encoder, all cells"``
            Mean over all cells; 0 where the gene is absent.
        ``"encoder, against other tokens"``
            The first, divided by its sum over tokens. What all tokens have in common is gone: how many genes a cell
            has, and that some genes attract every token.
        ``"decoder"``
            Mean over all cells; sums to 1 over the tokens.

        Parameters
        ----------
        genes
            (G,) mask or indices of genes that some cell expresses.
        """
        number = self.expressing[genes]
        if (number < 1).any():
            raise ScreproError(
                "Attention to a gene needs a cell that expresses it.",
                got=f"{int((number < 1).sum())} genes in none of {self.cells} cells",
                fix="pass genes of usable(1)",
            )
        mean = self.encoder[:, genes] / number
        return {
            ENCODER: mean,
            ALL_CELLS: self.encoder[:, genes] / self.cells,
            OTHERS: mean / mean.sum(0),
            DECODER: self.decoder[:, genes] / self.cells,
        }


@torch.no_grad()
def encoder_weights(model: AutoEncoder, cells: PackedCells) -> Tensor:
    """Weights (T, H, m) of the pseudo-inputs on the packed genes; over the genes of a cell they sum to 1.

    Raises
    ------
    ScreproError
        The network does not pool with one cross-attention block.
    """
    if model.config.pooling != "mcab":
        raise ScreproError(
            "Attention of the encoder is read from one cross-attention block of pseudo-inputs.",
            got=f"pooling={model.config.pooling!r}",
            fix='use a network with pooling="mcab"',
        )
    block = model.pool.block
    split = block.heads, model.config.width // block.heads
    queries = block.queries(model.pool.pseudo_inputs).unflatten(-1, split)  # (m, H, d)
    keys = block.keys_values(model.genes(cells.genes + 1, cells.counts))[0].unflatten(-1, split)  # (T, H, d)
    scores = torch.einsum("thd,lhd->thl", keys, queries) * split[1] ** -0.5
    # a softmax over the genes of each cell, all cells at once
    lengths = cells.offsets.diff()
    cell = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(scores.device)
    top = scores.new_full((len(lengths), *scores.shape[1:]), -torch.inf)
    top = top.scatter_reduce(0, cell[:, None, None].expand_as(scores), scores, "amax")
    weights = (scores - top[cell]).exp()
    total = torch.zeros_like(top).index_add(0, cell, weights)
    return weights / total[cell]


@torch.no_grad()
def decoder_weights(model: AutoEncoder, z: Tensor) -> Tensor:
    """Weights (B, H, G, m) of every gene of the panel on the tokens of latents z (B, m, q); over m they sum to 1."""
    h = model.from_latent(F.layer_norm(z, (model.config.channels,), eps=EPSILON))
    for each in model.decoder:
        h = each(h)
    block = model.unpool
    split = block.heads, model.config.width // block.heads
    queries = block.queries(model.genes.genes()).unflatten(-1, split)  # (G, H, d)
    keys = block.keys_values(h)[0].unflatten(-1, split)  # (B, m, H, d)
    return (torch.einsum("ghd,bmhd->bhgm", queries, keys) * split[1] ** -0.5).softmax(-1)


@torch.no_grad()
def measure(model: AutoEncoder, counts: sp.csr_matrix, *, batch: int = 64) -> Attention:
    """Attention of a network to the genes of raw counts (n, G), averaged over heads and summed over cells.

    Raises
    ------
    ScreproError
        There are no cells, or one has no count.
    """
    counts = sp.csr_matrix(counts)
    if not counts.shape[0] or counts.getnnz(axis=1).min() == 0:
        raise ScreproError(
            "Attention is averaged over cells that express something.",
            got=f"{counts.shape[0]} cells, {int((counts.getnnz(axis=1) == 0).sum())} of them empty",
            fix="leave empty cells out",
        )
    c, device = model.config, model.head.weight.device
    encoder, decoder = torch.zeros(2, c.n_genes, c.tokens, dtype=torch.float64, device=device)
    expressing = torch.zeros(c.n_genes, device=device)
    for first in range(0, counts.shape[0], batch):
        cells, _ = batch_of(counts[first : first + batch], c.inputs, device)
        encoder.index_add_(0, cells.genes, encoder_weights(model, cells).mean(1).double())
        expressing.index_add_(0, cells.genes, torch.ones_like(cells.counts))
        decoder += decoder_weights(model, model.encode(cells)).mean(1).sum(0)
    return Attention(
        encoder.T.cpu().numpy(), decoder.T.cpu().numpy(), expressing.cpu().numpy().astype(int), counts.shape[0]
    )
