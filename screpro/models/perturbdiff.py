"""The denoiser of PerturbDiff: sections 4.4 and B.3, equations 37 to 44. Two streams of cells, joined in attention.

One item is a SET of m cells under one condition and m control cells. Cell i of the set and control i share a token.
Letters in shape comments: B sets, m cells of a set, G genes, D width, H heads.

Where this differs from the paper (following the authors' code, with which it agrees to 1e-5):
- the condition is the SUM of time and covariate embedding; eq. 37 has an MLP of both, concatenated;
- the MLP of a block reads the block's INPUT, in parallel to attention; eq. 42 and 43 put it after attention
  (``mlp="sequential"``);
- eq. 40 concatenates features: m tokens of width 2D. Figure 2 and the text speak of attention between the tokens of
  both streams (``attention="tokens"``: 2m tokens of width D);
- no embedding of genes, as in the paper's final models: one learned vector, added to both streams, stands in its
  place. The paper does not say how vectors of genes would enter. With ``gene_vectors`` their sum, weighted by the
  values of the (noised) cell, is added through a linear map that starts at zero: a linear entrance of low rank.
Where this differs from the code: the second half of the control input, always zeros there, has no weights here; layers
that cannot change the answer are left out (5120 -> D gene layer, control head, control MLP of the last block is kept
for its output). ``perturbdiff_authors`` translates their names and sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.linear import Linear, linear
from screpro.models.blocks import check_heads, split_heads, time_embedding

__all__ = ["ATTENTIONS", "MLPS", "PRESETS", "PerturbDiff", "PerturbDiffConfig"]

EPSILON = 1e-6
TIME_WIDTH = 256
ATTENTIONS = ("features", "tokens")
MLPS = ("parallel", "sequential")


@dataclass(frozen=True)
class PerturbDiffConfig:
    """Sizes of the denoiser; the defaults are those of the authors' configuration."""

    n_genes: int
    width: int = 512
    layers: int = 8
    heads: int = 8
    mlp_ratio: float = 4.0  # width of the MLP's hidden layer / D
    labels: Mapping[str, int] = field(default_factory=dict)  # attribute -> number of labels with a learned vector
    # attribute -> (labels, size of their frozen vectors), which `PerturbDiff.set_semantic` or a state dict brings
    semantic: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    label_width: int = 128
    gene_vectors: int = 0  # size of frozen vectors of genes, 0 for none; `PerturbDiff.genes` holds them
    sources: int = 1  # of pre-training; each has an entrance of its own
    attention: str = "features"
    mlp: str = "parallel"

    def __post_init__(self):
        check_heads(self.width, self.heads)
        if self.attention not in ATTENTIONS or self.mlp not in MLPS or min(self.n_genes, self.layers, self.sources) < 1:
            raise ScreproError(
                f"Attention is one of {', '.join(ATTENTIONS)}, mlp one of {', '.join(MLPS)}; sizes are at least 1.",
                got=f"{self.attention!r}, {self.mlp!r}, {self.n_genes} genes, {self.layers} layers, "
                f"{self.sources} sources",
                fix="correct the configuration",
            )


PRESETS = {
    "shipped": {"width": 512, "layers": 8, "heads": 8},
    "114M": {"width": 552, "layers": 8, "heads": 8},
    "239M": {"width": 808, "layers": 8, "heads": 8},
}
"""The shipped configuration has 104 M parameters at 2 000 genes. The paper's sizes are given as 114 M and 239 M without
widths; these come nearest at that depth, with 2 000 genes and the labels of Tahoe."""


class Feed(nn.Module):
    """Linear, GELU (tanh form), linear: (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.expand = Linear(width, hidden)
        self.contract = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x), approximate="tanh"))


class JointAttention(nn.Module):
    """Attention over the m cells; no positions, so permuting pairs of cell and control permutes the answer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.q_norm = nn.Parameter(torch.ones(width // heads))  # shared by the heads
        self.k_norm = nn.Parameter(torch.ones(width // heads))
        self.project = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = (F.rms_norm(part, part.shape[-1:], own, EPSILON) for part, own in ((q, self.q_norm), (k, self.k_norm)))
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Equations 38 to 44: both streams modulated, attended to together, each with an MLP; the identity at the start."""

    def __init__(self, config: PerturbDiffConfig):
        super().__init__()
        width = config.width
        self.by_feature, self.parallel = config.attention == "features", config.mlp == "parallel"
        self.attention = JointAttention(2 * width if self.by_feature else width, config.heads)
        hidden = round(config.mlp_ratio * width)
        self.mlp, self.control_mlp = Feed(width, hidden), Feed(width, hidden)
        self.modulation, self.control_modulation = (Linear(width, 6 * width) for _ in range(2))

    def forward(self, x: Tensor, control: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Streams (B, m, D) and SiLU of the condition (B, 1, D) -> streams."""
        mine, theirs = (part(condition).chunk(6, -1) for part in (self.modulation, self.control_modulation))
        own, other = modulate(x, mine[0], mine[1]), modulate(control, theirs[0], theirs[1])
        if self.by_feature:
            delta, control_delta = self.attention(torch.cat([own, other], -1)).chunk(2, -1)
        else:
            delta, control_delta = self.attention(torch.cat([own, other], 1)).chunk(2, 1)
        return (
            self._after(x, delta, mine, self.mlp),
            self._after(control, control_delta, theirs, self.control_mlp),
        )

    def _after(self, x: Tensor, delta: Tensor, modulation: tuple[Tensor, ...], mlp: Feed) -> Tensor:
        """Add attention and MLP, each through its gate."""
        _, _, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        attended = x + gate * delta
        return attended + gate_mlp * mlp(modulate(x if self.parallel else attended, shift_mlp, scale_mlp))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then scale and shift from the condition."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


class Covariates(nn.Module):
    """Perturbation, cell type and batch -> a vector as long as a cell (B, G), before its SiLU.

    Learned attributes have one vector per label; semantic ones a frozen vector per label (of a language model, say)
    and a linear map. The control label of a learned table is a label like any other.

    Frozen vectors are NaN until they are set, so that a network without them answers with NaN and not with something.
    """

    def __init__(self, config: PerturbDiffConfig):
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(n, config.label_width) for name, n in config.labels.items()})
        self.frozen = nn.ParameterDict(
            {
                name: nn.Parameter(torch.full(shape, torch.nan), requires_grad=False)
                for name, shape in config.semantic.items()
            }
        )
        self.maps = nn.ModuleDict(
            {name: Linear(size, config.label_width) for name, (_, size) in config.semantic.items()}
        )
        n = len(self.tables) + len(self.maps)
        self.mix = Linear(n * config.label_width, config.n_genes) if n else None

    def forward(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Labels (B,) by attribute -> (B, G)."""
        needed = [*self.tables, *self.maps]
        if set(labels) != set(needed):
            raise ScreproError(
                "Every set has a label of every attribute the network was built with.",
                got=", ".join(labels) or "no labels",
                fix=f"pass {', '.join(needed) or 'none'}",
            )
        parts = [table(labels[name]) for name, table in self.tables.items()]
        parts += [layer(self.frozen[name][labels[name]]) for name, layer in self.maps.items()]
        return self.mix(torch.cat(parts, -1))


class PerturbDiff(nn.Module):
    """x_theta(x_t, t, controls, covariates): the clean set (B, m, G), at or above 0."""

    def __init__(self, config: PerturbDiffConfig):
        super().__init__()
        self.config = c = config
        # [x_t ; the previous answer]; of controls only themselves, for their second half is always zero
        self.enter = nn.ModuleList(Linear(2 * c.n_genes, c.width) for _ in range(c.sources))
        self.enter_control = nn.ModuleList(Linear(c.n_genes, c.width) for _ in range(c.sources))
        self.shared = nn.Parameter(torch.empty(1, c.width))  # in the place of gene embeddings
        if c.gene_vectors:
            self.register_buffer("genes", torch.zeros(c.n_genes, c.gene_vectors))
            self.from_genes = Linear(c.gene_vectors, c.width, bias=False)
        self.time = nn.Sequential(Linear(TIME_WIDTH, c.width), nn.SiLU(), Linear(c.width, c.width))
        self.covariates = Covariates(c)
        self.condition = Linear(c.n_genes, c.width)
        self.no_condition = nn.Parameter(torch.empty(1, c.width))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.leave_modulation = Linear(c.width, 2 * c.width)
        self.leave = Linear(c.width, c.n_genes)
        self.initialise()

    def initialise(self) -> None:
        """Xavier for linear maps, small normal for time, zero for every modulation; the head is not zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.time[0], self.time[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for module in [self.leave_modulation, *(m for b in self.blocks for m in (b.modulation, b.control_modulation))]:
            nn.init.zeros_(module.weight)
        if self.config.gene_vectors:  # a start is the network without; unit vectors of 2 000 genes would drown the rest
            nn.init.zeros_(self.from_genes.weight)
        nn.init.normal_(self.shared)
        nn.init.normal_(self.no_condition)

    @torch.no_grad()
    def set_semantic(
        self,
        attribute: str,
        vectors: Mapping[str, Sequence[float]],
        *,
        names: Sequence[str],
        control: str | None = None,
    ) -> None:
        """Give the labels of an attribute their frozen vectors: of a language model of genes or drugs, for example.

        Parameters
        ----------
        attribute
            One of ``config.semantic``.
        vectors
            Name of a label -> its vector, (size,); other names are ignored.
        names
            Labels in the order of their numbers.
        control
            The label that may lack a vector: it gets the mean of the others, as in the paper (the authors' code takes
            one number, the mean over everything).

        Raises
        ------
        ScreproError
            The attribute has no frozen vectors, labels are not as many as the network has, a label has none, or one is
            of another size or not finite.
        """
        if attribute not in self.config.semantic:
            raise ScreproError(
                "Frozen vectors belong to an attribute that the network was built with as a semantic one.",
                got=attribute,
                fix=f"one of {', '.join(self.config.semantic) or 'none'}, or name it in the configuration's `semantic`",
            )
        n, size = self.config.semantic[attribute]
        without = [name for name in names if name not in vectors and name != control]
        given = {name: np.asarray(vectors[name], dtype=np.float32) for name in names if name in vectors}
        wrong = [name for name, vector in given.items() if vector.shape != (size,) or not np.isfinite(vector).all()]
        if len(names) != n or without or wrong or not given:
            raise ScreproError(
                f"Each of the {n} labels of {attribute} has a frozen vector of {size} finite numbers.",
                got=f"{len(names)} labels; without a vector: {', '.join(without[:5]) or 'none'}; "
                f"of another shape or not finite: {', '.join(wrong[:5]) or 'none'}",
                fix="pass a vector for every label, the control excepted, or leave the attribute to a learned table",
            )
        mean = np.mean(list(given.values()), axis=0)
        table = np.stack([given.get(name, mean) for name in names])
        self.covariates.frozen[attribute].copy_(torch.from_numpy(table))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        control: Tensor | None,
        labels: Mapping[str, Tensor] | None = None,
        dropped: Tensor | None = None,
        previous: Tensor | None = None,
        source: int = 0,
    ) -> Tensor:
        """Predict clean sets.

        Parameters
        ----------
        x_t
            (B, m, G) noised sets.
        t
            (B,) time steps, one for a set.
        control
            (B, m, G) control cells; None stands for zeros, as in pre-training.
        labels
            Attribute -> (B,) labels. None: no set has covariates.
        dropped
            (B,) bool: sets whose covariates are left out; the controls stay. None: none.
        previous
            (B, m, G) earlier prediction of the same sets (self-conditioning); None stands for zeros.
        source
            Whose entrance to use.
        """
        condition = self.time(time_embedding(t, TIME_WIDTH)) + self.covariate_condition(labels, dropped)
        x, _ = self.hidden(x_t, control=control, condition=condition, previous=previous, source=source)
        return self.answer(x, condition)

    def answer(self, x: Tensor, condition: Tensor) -> Tensor:
        """Clean sets (B, m, G) from the perturbed stream after the last block."""
        shift, scale = self.leave_modulation(F.silu(condition))[:, None].chunk(2, -1)
        return F.relu(self.leave(modulate(x, shift, scale)))

    def covariate_condition(self, labels: Mapping[str, Tensor] | None, dropped: Tensor | None) -> Tensor:
        """Embedding of the covariates, (B, D), or (1, D) without any."""
        if labels is None:
            return self.no_condition
        known = self.embed_covariates(self.covariates(labels))
        return known if dropped is None else torch.where(dropped[:, None], self.no_condition, known)

    def embed_covariates(self, encoded: Tensor) -> Tensor:
        """Output of the covariate encoder (B, G) -> (B, D)."""
        return self.condition(F.silu(encoded))

    def hidden(
        self, x_t: Tensor, *, control: Tensor | None, condition: Tensor, previous: Tensor | None, source: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Both streams (B, m, D) after the last block, for conditions (B, D), time included."""
        enter, genes = self.enter[source], self.config.n_genes
        if previous is None:  # half the entrance would be multiplied with zeros
            x = linear(x_t, enter.weight[:, :genes], enter.bias)
        else:
            x = enter(torch.cat([x_t, previous], -1))
        enter = self.enter_control[source]
        cells = enter.bias.expand_as(x) if control is None else enter(control)
        x, cells = x + self.gene_part(x_t), cells + self.gene_part(control)
        active = F.silu(condition)[:, None]
        for block in self.blocks:
            x, cells = block(x, cells, active)
        return x, cells

    def gene_part(self, x: Tensor | None) -> Tensor:
        """What is added to the tokens of cells x (B, m, G): the vector for all and, with `gene_vectors`, their sum."""
        if not self.config.gene_vectors or x is None:
            return self.shared
        return self.shared + self.from_genes(x @ self.genes)
