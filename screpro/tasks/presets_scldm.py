"""What scLDM's appendices G and I state: data sets (Table 6) and hyper-parameters (Tables 7 to 11).

Numbers are the paper's. Tables 7, 8 and 11 list what was tried, not what was chosen: the choice for each data set is
in the authors' bucket, not in their repository, so there is no preset "as used for Table 1". A preset here is a point
of the sweep that says so (`sweep_settings`), or a Census model, whose three sizes are known from the code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from screpro.errors import ScreproError
from screpro.models.blocks import hidden_width
from screpro.models.scldm import CENSUS, AutoEncoder, AutoEncoderConfig
from screpro.models.scldm_velocity import TIME_WIDTH, VelocityConfig, VelocityNetwork
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.flow import FlowSettings

__all__ = [
    "CENSUS_GENES",
    "CENSUS_PARAMETERS",
    "DATASETS",
    "TABLE_7",
    "TABLE_8",
    "TABLE_9",
    "TABLE_10",
    "TABLE_11",
    "DatasetFacts",
    "Setting",
    "autoencoder_formula",
    "autoencoder_parameters",
    "census_config",
    "flow_settings",
    "sweep",
    "sweep_settings",
    "velocity_formula",
    "velocity_parameters",
]


@dataclass(frozen=True)
class Setting:
    """One line of a table of hyper-parameters."""

    block: str  # heading inside the table
    name: str  # the paper's label
    values: tuple[object, ...]  # one value, or all that were tried
    ours: str = ""  # field of our settings or configuration; empty: no such option here
    note: str = ""  # where the authors' code or another table says something else


TABLE_7: tuple[Setting, ...] = (
    Setting("Embedding layer", "Embedding size", (256,), "width"),
    Setting("Cross-Attention Block", "Number of Heads", (1, 4, 8), "cross_heads", "code: 4"),
    Setting("Cross-Attention Block", "No. pseudoinputs", (64, 128, 256), "tokens"),
    Setting("Cross-Attention Block", "Embedding size", (128, 256), "width", "the gene table above has 256 alone"),
    Setting("Transformer Blocks", "Number of Blocks", (2, 4), "layers"),
    Setting("Transformer Blocks", "Number of Heads", (1,), "heads", "code: 8; the decoder's blocks have 1, 4 or 8"),
    Setting("Transformer Blocks", "Embedding size", (256,), "width"),
    Setting("Gaussian Stochastic Layer", "Latents per token", (8, 16, 32), "channels", "code: no posterior"),
)
"""Encoder."""

TABLE_8: tuple[Setting, ...] = (
    Setting("Transformer Blocks", "Number of Blocks", (2, 4), "layers"),
    Setting("Transformer Blocks", "Number of Heads", (1, 4, 8), "heads", "code: 8"),
    Setting("Transformer Blocks", "Embedding size", (128, 256), "width"),
    Setting("Transformer Blocks", "Normalization", ("LayerNorm",)),
    Setting("Cross-Attention Block", "Shared embedding layer", (True,), "", "always so in code and here"),
    Setting(
        "Cross-Attention Block", "No. pseudoinputs", (64, 128, 256), "", "its queries are the genes: no such number"
    ),
    Setting("Cross-Attention Block", "Number of Heads", (1,), "cross_heads", "code: 4; the encoder's has 1, 4, 8"),
    Setting("Cross-Attention Block", "Embedding size", (256,), "width"),
    Setting(
        "NegativeBinomial Stochastic Layer",
        "Shared theta",
        (False,),
        "dispersion",
        "F.2: shared means one value for all genes; code: one value per gene",
    ),
)
"""Decoder."""

TABLE_9: tuple[Setting, ...] = (
    Setting("Denoising Transformer", "Number of Blocks", (8,), "layers"),
    Setting("Denoising Transformer", "Number of Heads", (8,), "heads"),
    Setting("Denoising Transformer", "Embedding size", (256,), "width"),
    Setting("Denoising Transformer", "Normalization", ("LayerNorm",)),
    Setting("Denoising Transformer", "Adaptive Normalization", (True,)),
    Setting("Hyperparams", "sigma", (1e-4,), "", "read by nothing in the code"),
    Setting("Hyperparams", "nu", (0,), "", "read by nothing in the code"),
    Setting("Hyperparams", "Transport", ("linear",)),
)
"""Flow matching."""

TABLE_10: tuple[Setting, ...] = (
    Setting("Encoder-Decoder", "Number of Blocks", (8, 16), "layers"),
    Setting("Encoder-Decoder", "Number of Heads", (8, 16), "heads", "which model has 16 is not said"),
    Setting("Encoder-Decoder", "Number of Layers", (8, 16), "layers", "the same numbers as the blocks, once more"),
    Setting("Encoder-Decoder", "Number of Latent Tokens", (256,), "tokens"),
    Setting("Encoder-Decoder", "Embedding size", (256, 512, 768), "width"),
    Setting("Encoder-Decoder", "Normalization", ("LayerNorm",)),
)
"""Auto-encoders trained on CELLxGENE Census."""

TABLE_11: tuple[Setting, ...] = (
    Setting("Training", "KL-weight", (0, 1e-5), "kl_weight", "code: no KL term"),
    Setting("Training", "Optimizer", ("AdamW",)),
    Setting("Training", "Mini-batch size", (64, 128, 256), "batch_size"),
    Setting("Training", "Learning rate", (1e-3, 5e-4), "learning_rate"),
    Setting("Training", "(beta_1, beta_2)", ((0.9, 0.95),), "", "the flow's are the default (0.9, 0.999) in the code"),
    Setting("Training", "Weight Decay", (0, 1e-7, 1e-4), "weight_decay"),
    Setting("Training", "Learning scheduler", ("cosine",), "", "code: 10 % warm-up, constant, last 10 % decay"),
)
"""Training."""


@dataclass(frozen=True)
class DatasetFacts:
    """One row of Table 6, and what the authors' code adds; None where a number is not given."""

    experiment: int
    name: str  # the paper's label
    cells: int
    genes: int | None  # None: "~ 25k"
    types: int  # cell types or lines
    registry: str  # our name of the same set
    context: int | None = None  # most expressed genes of a cell, the length d of appendix F.1 (authors' code)
    classes: tuple[tuple[str, int], ...] = ()  # conditions of the flow in the code


DATASETS: tuple[DatasetFacts, ...] = (
    DatasetFacts(1, "Dentate gyrus", 18213, 17002, 14, "scldm_dentate_gyrus", 6147, (("cluster", 14),)),
    DatasetFacts(1, "Tabula Muris", 245389, 19734, 123, "scldm_tabula_muris", 9059, (("tissue", 16),)),
    DatasetFacts(1, "HLCA", 584944, 27997, 50, "scldm_hlca", 10186, (("cell type", 50),)),
    DatasetFacts(2, "Parse1M", 1267690, 2000, 18, "scldm_parse1m", 2000, (("cell type", 18), ("cytokine", 91))),
    DatasetFacts(2, "Replogle-Nadig", 624158, 2000, 4, "scldm_replogle", 2000, (("cell line", 4), ("target", 2024))),
    DatasetFacts(3, "COVID-19", 354026, 27998, 55, "scldm_covid_lung"),
    DatasetFacts(3, "Tabula Sapiens 2.0", 1482026, None, 22, "scldm_tabula_sapiens"),
)
"""Table 6, in its order."""

CENSUS_GENES = 36130
"""Vocabulary of the Census models (authors' code)."""

CENSUS_PARAMETERS = {"20M": 23.7e6, "70M": 75.9e6, "270M": 269.9e6}
"""Of the authors' networks, counted on their code; the frozen position table is not counted."""


# ---- settings that can be trained


def sweep() -> Iterator[AutoEncoderSettings]:
    """Every combination of Tables 7, 8 and 11 whose two tables agree: one width, one depth, one number of heads."""
    tried = {own.ours: own.values for own in (*TABLE_7, *TABLE_8, *TABLE_11) if len(own.values) > 1}
    names = ("width", "tokens", "channels", "layers", "heads", "cross_heads")
    names += ("kl_weight", "batch_size", "learning_rate", "weight_decay")
    for values in product(*(tried[name] for name in names)):
        yield AutoEncoderSettings(epochs=100, dispersion="gene", **dict(zip(names, values, strict=True)))


def sweep_settings(
    *,
    width: int = 256,
    tokens: int = 128,
    channels: int = 16,
    layers: int = 4,
    heads: int = 8,
    cross_heads: int = 1,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
) -> AutoEncoderSettings:
    """A point of the paper's sweep, trained for the 100 epochs of the authors' configuration, without a KL term.

    The defaults are ours: nothing says which point the tables' numbers come from.

    Raises
    ------
    ScreproError
        A value was not in the sweep.
    """
    given = {name: value for name, value in locals().items()}
    tables = {own.ours: set() for own in (*TABLE_7, *TABLE_8, *TABLE_11) if own.ours}
    for own in (*TABLE_7, *TABLE_8, *TABLE_11):
        if own.ours:
            tables[own.ours] |= set(own.values)
    if wrong := [name for name, value in given.items() if value not in tables[name]]:
        name = wrong[0]
        raise ScreproError(
            "A point of the sweep has values of Tables 7, 8 and 11.",
            got=f"{name}={given[name]}",
            fix=f"{name} is one of {', '.join(map(str, sorted(tables[name])))}; AutoEncoderSettings takes any",
        )
    return AutoEncoderSettings(epochs=100, **given)


def flow_settings(*, drop: float = 0.2) -> FlowSettings:
    """Table 9. Steps and batch are not in it; those of `FlowSettings` stay, and the drop probability is ours."""
    fixed = {own.ours: own.values[0] for own in TABLE_9 if own.ours}
    return FlowSettings(**fixed, drop=drop)


def census_config(size: str) -> AutoEncoderConfig:
    """Network of a Census model by the paper's label: "20M", "70M" or "270M"."""
    if size not in CENSUS:
        raise ScreproError("A Census model has a size.", got=repr(size), fix=f"choose {', '.join(CENSUS)}")
    return AutoEncoderConfig(n_genes=CENSUS_GENES, **CENSUS[size])


# ---- numbers of parameters


def autoencoder_parameters(config: AutoEncoderConfig) -> int:
    """Parameters of our auto-encoder, counted without allocating them; the gene table is among them."""
    with torch.random.fork_rng(), torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoEncoder(config).parameters())


def autoencoder_formula(config: AutoEncoderConfig) -> int:
    """The same in closed form, for "projconcat" mixing, one theta per gene and no posterior.

    A transformer block has 4 D² of attention, 3 D F of the gated MLP (F = 8 D / 3 rounded up) and two LayerNorms, 4 D;
    a cross-attention block one LayerNorm more. On top: (G + 1) D of the gene table, G + 1 of theta, 2 D² + D of the
    mixing, m D of the pseudo-inputs, 2 q D at the bottleneck and D + 1 of the head.
    """
    if (config.mixing, config.dispersion, config.pooling, config.posterior) != ("projconcat", "gene", "mcab", False):
        raise ScreproError(
            "The formula counts the network with projconcat, theta per gene, MCAB and no posterior.",
            got=f"{config.mixing}, {config.dispersion}, {config.pooling}, posterior={config.posterior}",
            fix="count it with autoencoder_parameters",
        )
    d, genes = config.width, config.n_genes + 1
    block = 4 * d**2 + 3 * d * hidden_width(d) + 4 * d
    once = 2 * d**2 + d + config.tokens * d + 2 * config.channels * d + d + 1
    return 2 * config.layers * block + 2 * (block + 2 * d) + genes * (d + 1) + once


def velocity_parameters(config: VelocityConfig) -> int:
    """Parameters of our velocity network, counted without allocating them; its position table is fixed."""
    with torch.random.fork_rng(), torch.device("meta"):
        return sum(parameter.numel() for parameter in VelocityNetwork(config).parameters())


def velocity_formula(config: VelocityConfig) -> int:
    """The same in closed form.

    A block has 4 D² + 4 D of attention, 3 D F of the gated MLP and 6 D² + 6 D of the modulation. On top: q D + D of the
    entrance, D q + q of the exit, 2 D² + 2 D of its modulation, (256 + 1) D + D² + D of the time, and D for every label
    of every attribute and its null.
    """
    d, q = config.width, config.channels
    block = 10 * d**2 + 10 * d + 3 * d * hidden_width(d)
    once = 2 * q * d + d + q + 2 * d**2 + 2 * d + (TIME_WIDTH + 1) * d + d**2 + d
    return config.layers * block + once + d * sum(n + 1 for n in config.classes.values())
