"""Which perturbations are held out: the `simulation` split of GEARS, which scDiff uses too (protocol 1.3)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from screpro.errors import ScreproError

__all__ = ["CATEGORIES", "PerturbationSplit", "genes_of", "perturbation_split"]

CATEGORIES = ("unseen_single", "combo_seen0", "combo_seen1", "combo_seen2")
"""Kinds of held-out perturbations: one unseen gene; two genes of which 0, 1 or 2 are among the training genes."""


class PerturbationSplit(NamedTuple):
    """Names of perturbations; the control belongs to training and is in neither."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    category: dict[str, str]  # of each test perturbation


def genes_of(name: str) -> tuple[str, ...]:
    """Perturbed genes of a perturbation: ``A`` or ``A+B``; none of ``control``."""
    return () if name == "control" else tuple(name.split("+"))


def perturbation_split(
    names: Sequence[str],
    *,
    seed: int,
    train_genes: float = 0.75,
    seen_pairs: float = 0.75,
) -> PerturbationSplit:
    """Hold out genes, and with them every perturbation that involves one of them.

    A share of the genes is for training. Singles of these are trained on, singles of the others tested. A pair with a
    gene that is not for training is tested (``combo_seen1``, ``combo_seen0``); of the pairs with two training genes
    a share is trained on and the rest tested (``combo_seen2``). Without pairs this holds out genes. A gene counts as
    seen when it is among the training genes, even if no single perturbation of it exists.

    Parameters
    ----------
    names
        Perturbations ``A`` or ``A+B``; ``control`` is ignored, repeated names count once.
    seed
        Of the draw.
    train_genes
        Share of the genes for training, rounded down (GEARS: 0.75).
    seen_pairs
        Share of the pairs of two training genes that are trained on, rounded down (GEARS: 0.75).

    Raises
    ------
    ScreproError
        If no perturbation is left for training, or none for testing, or a share is outside 0..1.
    """
    every = sorted(set(names) - {"control"})
    if not (0 <= train_genes <= 1 and 0 <= seen_pairs <= 1):
        raise ScreproError(
            "Shares are within 0..1.", got=f"{train_genes=}, {seen_pairs=}", fix="choose shares of genes and pairs"
        )
    if odd := [name for name in every if len(genes_of(name)) > 2 or "" in genes_of(name)]:
        raise ScreproError(
            "A perturbation is one gene, or two joined by +.", got=", ".join(odd[:3]), fix="rename or drop them"
        )
    genes = sorted({gene for name in every for gene in genes_of(name)})
    rng = np.random.default_rng(seed)
    seen = set(rng.permutation(genes)[: int(len(genes) * train_genes)])
    known = {name: sum(gene in seen for gene in genes_of(name)) for name in every}
    both = [name for name in every if len(genes_of(name)) == 2 and known[name] == 2]
    trained = set(rng.permutation(both)[: int(len(both) * seen_pairs)]) if both else set()
    train = tuple(name for name in every if (len(genes_of(name)) == 1 and known[name]) or name in trained)
    test = tuple(name for name in every if name not in set(train))
    if not train or not test:
        raise ScreproError(
            "A split holds perturbations for training and for testing.",
            got=f"{len(train)} and {len(test)} of {len(every)}",
            fix="use more perturbations, or another share of training genes",
        )
    category = {name: "unseen_single" if len(genes_of(name)) == 1 else f"combo_seen{known[name]}" for name in test}
    return PerturbationSplit(train, test, category)
