r"""The exchangeable auto-encoder of scLDM: section 3.2, equations 2 to 7, 17 to 20 (F.2), Properties 1 to 4, Figure 1.

A cell is the set of its expressed genes with their counts. Every gene is a token, m learned pseudo-inputs pool the
tokens (MCAB), L transformer blocks work on the m tokens, and q channels of each are the latent Z (m, q). The decoder
runs backwards: L blocks, then every gene of the panel asks the m tokens for its share of the cell's counts.

Letters in shape comments: B cells, G genes of the panel, T expressed genes of all cells of a batch, D width, m latent
tokens, q channels of one, F hidden width of an MLP.

Where this differs from the paper (following the authors' code, with which it agrees to 1e-5):
- the encoder is deterministic and its output passes a LayerNorm without weights over the q channels of each token;
  the Gaussian posterior and the KL term of eq. 1 exist only as the option `posterior` (Table 11 lists weights 0, 1e-5).
- eqs. 3, 4: the queries are normed before their linear map, not after it, and keys and values share one norm.
- eq. 4: the residual adds the pseudo-inputs themselves, not a linear map of them.
- eq. 6: the count enters as log1p(count), repeated D times after the gene's embedding, not before it ("projconcat").
- F.2: theta is one value per gene ("gene"), or one per cell and gene ("cell_gene"); one value for all genes is not
  what the code calls shared. theta is the inverse dispersion, variance = mu + mu^2 / theta.
Where this differs from the code:
- cells are packed: attention sees the expressed genes and nothing else. Theirs pads every cell to one length, and the
  padding takes part in the softmax, so that a latent depends on how much padding its batch has. `encode_padded`
  computes theirs, for agreement with their numbers and their checkpoints.
- their shipped configuration mixes by E_gene * log1p(count) ("log1p" here), which the LayerNorm that follows makes
  independent of the count; the default here is "projconcat".
- the decoder's last block runs at the cost of its tokens, and the keys and values of the pooling block at the cost of
  the genes, with the same results (``kernels.gene_decoder``, ``kernels.gene_tokens``).
- the gene table starts from N(0, 1), as theirs; theta starts from given values (`start_dispersion`) and learns at a
  rate of its own (``tasks.autoencoder.THETA_RATE_FACTOR``), because on the log scale it moves by about one learning
  rate a step at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.gene_decoder import GeneDecoder, decode_genes
from screpro.kernels.gene_tokens import TokenWeights, keys_values
from screpro.kernels.linear import Linear
from screpro.kernels.nb import nb_softmax_nll
from screpro.kernels.set_attention import PackedCells, packed_cross_attention
from screpro.models.blocks import EPSILON, SelfAttention, SwiGLU, check_heads, split_heads

__all__ = ["CENSUS", "AutoEncoder", "AutoEncoderConfig", "Block", "CrossAttentionBlock", "GeneTokens"]

MIXING = ("projconcat", "log1p")
DISPERSION = ("gene", "cell_gene")
LIKELIHOOD = ("nb", "gaussian")


@dataclass(frozen=True)
class AutoEncoderConfig:
    """Sizes of the auto-encoder; the paper's sweep is in its Tables 7 to 11 (`screpro.tasks.presets_scldm`)."""

    n_genes: int
    width: int = 256  # D
    tokens: int = 128  # m
    layers: int = 4  # L, per side
    channels: int = 16  # q
    heads: int = 8
    cross_heads: int = 4
    mixing: str = "projconcat"
    dispersion: str = "gene"
    likelihood: str = "nb"  # "gaussian": log-normalised values, ablation L19
    pooling: str = "mcab"  # "set_transformer": ablation L20 (scldm_variants)
    inputs: str = "expressed"  # "all": zero counts are tokens too, Table 12
    posterior: bool = False  # Gaussian posterior of eq. 1


CENSUS = {
    "20M": {"width": 256, "layers": 8, "tokens": 256, "channels": 16},
    "70M": {"width": 512, "layers": 8, "tokens": 256, "channels": 16},
    "270M": {"width": 768, "layers": 16, "tokens": 256, "channels": 16},
}
"""Sizes of the Census models of section 4.3: 23.7, 75.9 and 269.9 million parameters, the gene table of 36 130 genes
included."""


class GeneTokens(nn.Module):
    """Gene table and how counts enter it (eq. 6). Row 0 of the table is padding, gene g has row g + 1."""

    def __init__(self, n_genes: int, width: int, mixing: str):
        super().__init__()
        self.table = nn.Parameter(torch.randn(n_genes + 1, width))
        self.mix = nn.Linear(2 * width, width) if mixing == "projconcat" else None

    def forward(self, ids: Tensor, counts: Tensor) -> Tensor:
        """Ids (...) from 0 to G and counts (...) -> tokens (..., D)."""
        depth = torch.log1p(counts)[..., None]
        embedding = F.embedding(ids, self.table)
        if self.mix is None:
            return embedding * depth
        of_gene, of_count = self.mix.weight.chunk(2, dim=1)  # (D, D) each
        # a count repeated D times, times a matrix, is the count times the matrix' row sums
        return depth * of_count.sum(1) + F.linear(embedding, of_gene, self.mix.bias)

    def genes(self, which: Tensor | None = None) -> Tensor:
        """Embeddings of the panel's genes (G, D), or of the 0-based genes in `which`."""
        return self.table[1:] if which is None else self.table[1 + which]


class CrossAttentionBlock(nn.Module):
    """Multi-head cross-attention block, MCAB (eqs. 2 to 4): queries look at tokens, then a gated MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.norm_tokens = nn.LayerNorm(width, eps=EPSILON)
        self.norm_query = nn.LayerNorm(width, eps=EPSILON)
        self.norm_mlp = nn.LayerNorm(width, eps=EPSILON)
        self.to_q = Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.project = Linear(width, width, bias=False)
        self.mlp = SwiGLU(width)

    def queries(self, raw: Tensor) -> Tensor:
        """(n, D) -> projected queries (n, D)."""
        return self.to_q(self.norm_query(raw))

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> projected keys and values, (..., D) each."""
        return self.to_kv(self.norm_tokens(tokens)).chunk(2, dim=-1)

    def after(self, raw: Tensor, attended: Tensor) -> Tensor:
        """Residual on the raw queries (n, D), and the MLP: (B, n, D) -> (B, n, D)."""
        h = raw + self.project(attended)
        return h + self.mlp(self.norm_mlp(h))


class Block(nn.Module):
    """Self-attention block with LayerNorm first, (B, m, D) -> (B, m, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps=EPSILON)
        self.norm_mlp = nn.LayerNorm(width, eps=EPSILON)
        self.attention = SelfAttention(width, heads, bias=False)
        self.mlp = SwiGLU(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class Pool(nn.Module):
    """Any number of gene tokens -> m latent tokens through one MCAB with learned pseudo-inputs S (eqs. 2, 5)."""

    def __init__(self, config: AutoEncoderConfig):
        super().__init__()
        self.pseudo_inputs = nn.Parameter(torch.randn(config.tokens, config.width))  # (m, D)
        self.block = CrossAttentionBlock(config.width, config.cross_heads)

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Packed tokens (T, D) of the cells between `offsets` (B + 1,) -> (B, m, D)."""
        keys, values = self.block.keys_values(tokens)
        queries = self.block.queries(self.pseudo_inputs)
        attended = packed_cross_attention(queries, keys, values, offsets, self.block.heads)
        return self.block.after(self.pseudo_inputs, attended)

    def of_genes(self, genes: GeneTokens, cells: PackedCells) -> Tensor:
        """The same for tokens that are not made one by one (``kernels.gene_tokens``); counts enter by `genes.mix`."""
        weights = TokenWeights(
            *genes.mix.weight.chunk(2, dim=1),
            bias=genes.mix.bias,
            gamma=self.block.norm_tokens.weight,
            beta=self.block.norm_tokens.bias,
            epsilon=self.block.norm_tokens.eps,
            to_kv=self.block.to_kv.weight,
        )
        keys, values = keys_values(genes.genes(), cells, weights)
        queries = self.block.queries(self.pseudo_inputs)
        attended = packed_cross_attention(queries, keys, values, cells.offsets, self.block.heads)
        return self.block.after(self.pseudo_inputs, attended)

    def padded(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, n, D) -> (B, m, D); `mask` (B, n) is True where a token counts, None where all do."""
        keys, values = (split_heads(part, self.block.heads) for part in self.block.keys_values(tokens))
        queries = split_heads(self.block.queries(self.pseudo_inputs), self.block.heads)  # (H, m, D / H)
        if mask is not None:
            mask = mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(queries.expand(len(tokens), -1, -1, -1), keys, values, mask)
        return self.block.after(self.pseudo_inputs, attended.transpose(1, 2).flatten(2))


class AutoEncoder(nn.Module):
    """scLDM's first stage. Counts of a cell -> latent Z (m, q) -> expected counts of any genes, in any order."""

    forward_methods = ("nll",)

    def __init__(self, config: AutoEncoderConfig):
        super().__init__()
        _check(config)
        self.config = c = config
        self.genes = GeneTokens(c.n_genes, c.width, c.mixing)
        if c.pooling == "mcab":
            self.pool = Pool(c)
        else:
            from screpro.models.scldm_variants import SetTransformerPool

            self.pool = SetTransformerPool(c)
        self.encoder = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.layers))
        self.to_latent = Linear(c.width, c.channels, bias=False)
        self.to_spread = Linear(c.width, c.channels) if c.posterior else None  # log variance of the posterior
        self.from_latent = Linear(c.channels, c.width, bias=False)
        self.decoder = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.layers))
        self.unpool = CrossAttentionBlock(c.width, c.cross_heads)
        self.head = Linear(c.width, 2 if c.dispersion == "cell_gene" else 1)
        if c.dispersion == "gene":
            self.log_theta = nn.Parameter(torch.ones(c.n_genes + 1))  # row 0 is padding, as in the gene table

    # ---- cells to latents

    def encode(self, cells: PackedCells) -> Tensor:
        """Latents (B, m, q), zero mean and unit variance over the channels of each token, of packed cells.

        The order of the genes inside a cell does not matter (Property 3). With ``inputs="all"`` pass cells packed by
        `pack_all`, in which zero counts are tokens.
        """
        return self._latent(self._pooled(cells))[0]

    def _pooled(self, cells: PackedCells) -> Tensor:
        """(B, m, D)"""
        if isinstance(self.pool, Pool) and self.genes.mix is not None:
            return self.pool.of_genes(self.genes, cells)
        return self.pool(self.genes(cells.genes + 1, cells.counts), cells.offsets)

    def encode_padded(self, ids: Tensor, counts: Tensor, *, mask_padding: bool = False) -> Tensor:
        """The same from padded sets, as the authors' code runs it.

        Parameters
        ----------
        ids
            (B, n) gene numbers from 1 to G, and 0 for padding.
        counts
            (B, n), 0 at padding.
        mask_padding
            Hide padding from the attention. Theirs does not, so that a latent depends on the amount of padding; with
            the mask the result is that of `encode`.
        """
        tokens = self.genes(ids, counts.float())
        return self._latent(self.pool.padded(tokens, ids > 0 if mask_padding else None))[0]

    def _latent(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pooled tokens (B, m, D) -> latents and the log variance of the posterior, if there is one."""
        for block in self.encoder:
            h = block(h)
        z = F.layer_norm(self.to_latent(h), (self.config.channels,), eps=EPSILON)
        return z, None if self.to_spread is None else self.to_spread(h)

    # ---- latents to genes

    def logits(self, z: Tensor, genes: Tensor | None = None, *, chunk: int | None = None) -> Tensor:
        """What the head says about every gene: (B, m, q) -> (B, G), or (B, G, 2) if theta depends on the cell.

        Parameters
        ----------
        z
            Latents; each token is normalised over its channels first, so scale and shift of a token do not matter.
        genes
            0-based genes to ask for, in any order; None: the whole panel. The answer for a gene depends neither on
            the other genes asked nor on their order (Property 4).
        chunk
            Genes at a time, see ``kernels.gene_decoder``.
        """
        h = self.from_latent(F.layer_norm(z, (self.config.channels,), eps=EPSILON))
        for block in self.decoder:
            h = block(h)
        block, raw = self.unpool, self.genes.genes(genes)
        weights = GeneDecoder(
            project=block.project.weight,
            gamma=block.norm_mlp.weight,
            beta=block.norm_mlp.bias,
            epsilon=block.norm_mlp.eps,
            gate=block.mlp.gate.weight,
            value=block.mlp.value.weight,
            contract=block.mlp.contract.weight,
            head=self.head.weight,
            bias=self.head.bias,
            heads=block.heads,
        )
        out = decode_genes(raw, block.queries(raw), *block.keys_values(h), weights, chunk=chunk)
        return out if self.config.dispersion == "cell_gene" else out.squeeze(-1)

    def decode(self, z: Tensor, library: Tensor, genes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean counts (B, G) and inverse dispersion theta ((G,) or (B, G)) of the negative binomial of each gene.

        The softmax runs over the genes asked for, so a subset shares the whole library size among its genes.
        """
        logits, log_theta = self.split(self.logits(z, genes), genes)
        return library[:, None] * logits.softmax(-1), log_theta.exp()

    def split(self, out: Tensor, genes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the mean and log theta from what `logits` returned for `genes`."""
        if self.config.dispersion == "cell_gene":
            return out.unbind(-1)  # logit of the mean, log theta
        return out, self.log_theta[1:] if genes is None else self.log_theta[1 + genes]

    def nll(
        self, cells: PackedCells, counts: Tensor, *, kl_weight: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Training loss of each cell (B,), in nats: reconstruction summed over the panel, plus the weighted KL term.

        Parameters
        ----------
        cells
            The input set.
        counts
            (B, G) counts of the panel; their sum is the library size.
        kl_weight
            beta of section 3.3, only with `posterior`.
        generator
            Draws from the posterior; needed with `posterior`.
        """
        z, spread = self._latent(self._pooled(cells))
        kl = 0.0
        if spread is not None:
            kl = 0.5 * (z.square() + spread.exp() - spread - 1).sum((1, 2))
            noise = torch.randn(z.shape, generator=generator, device=z.device)
            z = z + (0.5 * spread).exp() * noise
        out, log_theta = self.split(self.logits(z))
        if self.config.likelihood == "gaussian":
            return gaussian_nll(counts, out, log_theta) + kl_weight * kl
        return nb_softmax_nll(counts, out, counts.sum(-1), log_theta) + kl_weight * kl

    @torch.no_grad()
    def start_dispersion(self, theta: Tensor) -> None:
        """Start theta (G,) from given values (``screpro.tasks.autoencoder.start_theta``)."""
        if self.config.dispersion == "gene":
            self.log_theta[1:] = theta.clamp(1e-4, 1e4).log()


def gaussian_nll(counts: Tensor, mean: Tensor, log_precision: Tensor) -> Tensor:
    """Gaussian negative log-likelihood (B,) of log1p(counts per 10 000); `log_precision` takes theta's place."""
    values = torch.log1p(counts * (1e4 / counts.sum(-1, keepdim=True).clamp(min=1)))
    log_two_pi = 1.8378770664093453
    return 0.5 * ((values - mean).square() * log_precision.exp() - log_precision + log_two_pi).sum(-1)


def pack_all(counts: Tensor) -> PackedCells:
    """Every gene of every cell as a token, zeros included: the "full context" input of Table 12. Counts (B, G)."""
    n, genes = counts.shape
    ids = torch.arange(genes, device=counts.device).repeat(n)
    return PackedCells(ids, counts.float().flatten(), torch.arange(n + 1) * genes)


def _check(c: AutoEncoderConfig) -> None:
    choices = {
        "mixing": MIXING,
        "dispersion": DISPERSION,
        "likelihood": LIKELIHOOD,
        "pooling": ("mcab", "set_transformer"),
        "inputs": ("expressed", "all"),
    }  # fmt: skip
    wrong = [f"{name}={getattr(c, name)!r}" for name, known in choices.items() if getattr(c, name) not in known]
    sizes: Sequence[str] = ("n_genes", "width", "tokens", "channels", "heads", "cross_heads")
    wrong += [f"{name}={getattr(c, name)}" for name in sizes if getattr(c, name) < 1]
    if wrong:
        raise ScreproError(
            "Sizes of the auto-encoder are at least 1 and its options have the values of AutoEncoderConfig.",
            got=", ".join(wrong),
            fix="; ".join(f"{name}: {' or '.join(known)}" for name, known in choices.items()),
        )
