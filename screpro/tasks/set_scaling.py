"""Sizes of PerturbDiff, its parameters and its training compute, counted in closed form (5.4, Figures 7 and 20).

A matrix product of (n, k) with (k, m) counts 2 n k m operations; biases, norms, activations and the energy distance,
which is a few per cent, are left out, as they are by ``torch.utils.flop_counter``. A training step is the mean over
its two coins: with probability `self_condition` the network answers once more without a gradient, and with probability
`drop` no covariate is embedded.

Letters: B sets of m cells, N = B m, G genes, D width, L blocks, F = round(ratio D), w width of a covariate table.
"""

from bisect import bisect_left
from dataclasses import dataclass

import torch

from screpro.errors import ScreproError
from screpro.models.perturbdiff import PRESETS, TIME_WIDTH, PerturbDiff, PerturbDiffConfig

__all__ = [
    "PANELS",
    "PRINTED",
    "SIZES",
    "Cost",
    "nearest_width",
    "paper_sizes",
    "parameter_formula",
    "parameters",
    "step_flops",
]

PRINTED = {"medium": 114e6, "large": 239e6}
"""What section 5.4 says of its three sizes; the small one is not specified."""

PANELS = (2000, 12626)
"""Genes of a screen, and of the vocabulary of pre-training."""

SIZES = {
    "ci": {"small": 16, "medium": 32, "large": 64},
    "laptop": {"small": 32, "medium": 64, "large": 128},
    "paper": {"small": 384, "medium": 552, "large": 808},
}
"""Width of each size by tier; depth and heads stay. Small is our choice throughout, as are all at ci and laptop."""


def parameters(config: PerturbDiffConfig) -> int:
    """Trainable parameters, counted without allocating them."""
    with torch.random.fork_rng(), torch.device("meta"):
        return sum(p.numel() for p in PerturbDiff(config).parameters() if p.requires_grad)


def parameter_formula(config: PerturbDiffConfig) -> int:
    """The same in closed form.

    A block has two MLPs, 2 (2 D F + F + D), two modulations, 2 (6 D² + 6 D), and attention over E = 2 D features
    (E = D with ``attention="tokens"``), 4 E² + 4 E + 2 E / heads. On top: an entrance of 2 G D + D and one of controls,
    G D + D, per source; (256 + 1) D + D² + D of the time; 2 D of the shared vector and of the absent condition;
    G D + D of the condition; 2 D² + 2 D and D G + G of the exit; w for every label and n w G + G of the mixing of n
    attributes, a frozen attribute having a map of its vector instead.
    """
    c, d, g = config, config.width, config.n_genes
    e = 2 * d if c.attention == "features" else d
    hidden = round(c.mlp_ratio * d)
    block = 2 * (2 * d * hidden + hidden + d) + 2 * (6 * d * d + 6 * d) + 4 * e * e + 4 * e + 2 * (e // c.heads)
    entrances = c.sources * (3 * g * d + 2 * d)
    time = (TIME_WIDTH + 1) * d + d * d + d
    exit_ = 2 * d * d + 2 * d + d * g + g
    n = len(c.labels) + len(c.semantic)
    covariates = c.label_width * (sum(c.labels.values()) + sum(size + 1 for _, size in c.semantic.values()))
    covariates += n * c.label_width * g + g if n else 0
    return c.layers * block + entrances + time + 2 * d + g * d + d + exit_ + covariates


@dataclass(frozen=True)
class Cost:
    """Operations of one training step: expected values over its two coins."""

    forward: float  # of the pass with a gradient
    backward: float
    shown: float  # of the pass that self-conditioning adds

    @property
    def total(self) -> float:
        """Of the step."""
        return self.forward + self.backward + self.shown


def step_flops(
    config: PerturbDiffConfig,
    *,
    sets: int,
    set_size: int,
    controls: bool = True,
    drop: float = 0.5,
    self_condition: float = 0.5,
) -> Cost:
    """Operations of one training step.

    A product costs as much again for the gradient of its weights, and once more for that of its input; the entrances,
    the first layer of the time and the last block's control MLP, whose output nothing reads, need less.

    Parameters
    ----------
    config
        Of the network.
    sets, set_size
        B and m.
    controls
        Whether control cells are shown; pre-training shows none.
    drop, self_condition
        Probabilities of training.

    Raises
    ------
    ScreproError
        A size is below 1 or a probability outside 0..1.
    """
    if min(sets, set_size) < 1 or not (0 <= drop <= 1 and 0 <= self_condition <= 1):
        raise ScreproError(
            "A step has at least one set of one cell, and probabilities are within 0..1.",
            got=f"{sets} sets of {set_size}, {drop=}, {self_condition=}",
            fix="correct the settings",
        )
    c, d, g, b, n = config, config.width, config.n_genes, sets, sets * set_size
    hidden = round(c.mlp_ratio * d)
    mlp = 4 * n * d * hidden
    modulation = 12 * b * d * d
    if c.attention == "features":
        attention = 32 * n * d * d + 8 * n * set_size * d
    else:
        attention = 16 * n * d * d + 16 * n * set_size * d
    block = 2 * modulation + attention + 2 * mlp
    own = 2 * n * g * d  # x_t; the previous answer costs as much again
    entrance = own + (own if controls else 0)
    known = 2 * b * g * d + 2 * b * c.label_width * g * (len(c.labels) + len(c.semantic))
    known += sum(2 * b * size * c.label_width for _, size in c.semantic.values())
    known *= (1 - drop) if c.labels or c.semantic else 0
    time = 2 * b * d * (TIME_WIDTH + d)
    leave = 4 * b * d * d + 2 * n * d * g
    once = entrance + time + known + c.layers * block + leave
    forward = once + self_condition * own
    backward = 2 * forward - (entrance + self_condition * own) - 2 * b * d * TIME_WIDTH - 2 * mlp
    return Cost(forward, backward, self_condition * once)


def nearest_width(printed: float, *, genes: int, layers: int = 8, heads: int = 8) -> int:
    """The width, a multiple of the heads, whose network has a parameter count nearest to a printed one.

    Labels are those of the paper's Tahoe: see `paper_sizes`.
    """

    def count(width: int) -> int:
        return parameter_formula(_tahoe(genes, width=width, layers=layers, heads=heads))

    widths = range(heads, 8192, heads)
    above = min(max(1, bisect_left(widths, printed, key=count)), len(widths) - 1)
    return min(widths[above - 1 : above + 1], key=lambda width: abs(count(width) - printed))


def paper_sizes() -> list[dict[str, object]]:
    """What widths count to at the paper's two vocabularies: the shipped one, and those nearest to the printed sizes.

    Covariates of the largest set, Tahoe: 1 137 perturbations and a control, 50 lines, 14 plates, each a learned vector
    of 128; the authors' lines have a frozen vector instead. Other depths would give other widths.
    """
    widths = [("shipped", PRESETS["shipped"]["width"])]
    for name, printed in PRINTED.items():
        widths += [(f"{name}, {genes} genes", nearest_width(printed, genes=genes)) for genes in PANELS]
    rows = []
    for name, width in widths:
        row: dict[str, object] = {"size": name, "width": width, "blocks": 8}
        for genes in PANELS:
            row[f"at {genes} genes"] = parameter_formula(_tahoe(genes, width=width, layers=8, heads=8))
        row["printed"] = PRINTED.get(name.split(",")[0])
        rows.append(row)
    return rows


def _tahoe(genes: int, **sizes: int) -> PerturbDiffConfig:
    return PerturbDiffConfig(n_genes=genes, labels={"perturbation": 1138, "context": 50, "batch": 14}, **sizes)
