r"""Enrichment of gene sets in profiles over genes, against permuted gene labels.

A profile is one number per gene, a set some of the genes. The score is the t of the slope of the profile on membership
(decoupler's univariate linear model). For a set of k genes it grows with their sum,

$$t = r \sqrt{\frac{n - 2}{1 - r^2}}, \qquad
  r = \frac{\sum_{g \in S} a_g - k \bar a}{s_a \sqrt{(n - 1)\, k (1 - k / n)}},$$

so a permutation test of t is one of the sum, and needs no t. With `strata` gene labels are exchanged only among genes
of the same stratum, for instance of like expression: then being widely expressed explains no enrichment.

The p-value is $(1 + \#\{\text{permuted} \ge \text{observed}\}) / (1 + P)$, one-sided, and never 0. It cannot be smaller
than 1 / (1 + P), so P follows from the number of tests (`permutations_for`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from screpro.errors import ScreproError

__all__ = ["decoupler_scores", "like_expression", "permutation_p", "permutations_for", "slope_scores"]

CHUNK = 4_000_000
"""Entries of the table of permuted labels at a time: 32 MB."""


def permutations_for(tests: int, *, rate: float = 0.05, least: int = 1000) -> int:
    """Permutations with which even a single discovery among `tests` can pass Benjamini-Hochberg at `rate`."""
    return max(least, math.ceil(2 * tests / rate))


def like_expression(expressing: np.ndarray, *, bins: int = 10) -> np.ndarray:
    """Strata (G,) of genes with about the same number of expressing cells (G,): equal parts by rank."""
    order = np.argsort(np.argsort(expressing, kind="stable"), kind="stable")
    return order * bins // len(order)


def permutation_p(
    profiles: np.ndarray,
    sets: Sequence[np.ndarray],
    *,
    permutations: int,
    rng: np.random.Generator,
    strata: np.ndarray | None = None,
) -> np.ndarray:
    """One-sided p-values (r, K) of the enrichment of K sets of genes in r profiles.

    Parameters
    ----------
    profiles
        (r, G).
    sets
        Distinct gene indices of each set. All profiles and sets share the permutations.
    permutations
        P; the smallest p is 1 / (P + 1).
    strata
        (G,) integers; labels are permuted inside each. None: among all genes.

    Raises
    ------
    ScreproError
        Profiles are not finite, a set is empty, repeats a gene or has one that is not there.
    """
    profiles = np.asarray(profiles, dtype=np.float64)
    n_genes = profiles.shape[1]
    sets = [np.asarray(each, dtype=np.int64) for each in sets]
    if not np.isfinite(profiles).all():
        raise ScreproError("A profile has a finite number for every gene.", got="NaN or infinity", fix="leave them out")
    for each in sets:
        if not len(each) or len(np.unique(each)) < len(each) or each.min() < 0 or each.max() >= n_genes:
            raise ScreproError(
                "A set holds different genes of the profile, and at least one.",
                got=f"{len(each)} entries, {len(np.unique(each))} different",
                fix=f"pass indices from 0 to {n_genes - 1}",
            )
    strata = np.zeros(n_genes, np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    slots = np.argsort(strata, kind="stable")  # genes, one stratum after another
    place = np.argsort(slots)  # where a gene stands there
    by_gene = np.ascontiguousarray(profiles.T)
    observed = np.stack([by_gene[each].sum(0) for each in sets])  # (K, r)
    # sums of the same numbers in another order differ in the last bits: such ties count as ties
    slack = 1e-10 * np.maximum(np.abs(observed), np.abs(profiles).max(initial=0))
    reached = np.zeros_like(observed)
    step = max(1, CHUNK // n_genes)
    for first in range(0, permutations, step):
        size = min(step, permutations - first)
        # sorting stratum + uniform number shuffles every stratum in its own slots
        shuffled = np.argsort(strata[slots] + rng.random((size, n_genes)), axis=1)
        for k, each in enumerate(sets):
            drawn = by_gene[slots[shuffled[:, place[each]]]].sum(1)  # (size, r)
            reached[k] += (drawn >= observed[k] - slack[k]).sum(0)
    return ((1 + reached) / (1 + permutations)).T


def slope_scores(profiles: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """The t (r, K) of the slope of r profiles (r, G) on membership in K sets of gene indices; 0 for a constant profile.

    Source: the formulas above; equal to decoupler's ``mt.ulm`` with weights 1, which takes half a minute to import and
    compile where this takes a millisecond.
    """
    profiles = np.asarray(profiles, dtype=np.float64)
    n = profiles.shape[1]
    member = np.zeros((n, len(sets)))
    for k, each in enumerate(sets):
        member[each, k] = 1
    size = member.sum(0)
    left = profiles - profiles.mean(1, keepdims=True)
    left[np.ptp(profiles, axis=1) == 0] = 0  # a rounded mean would leave a slope
    scale = np.sqrt(np.square(left).sum(1))[:, None] * np.sqrt(size * (1 - size / n))
    r = np.divide(left @ member, scale, out=np.zeros(scale.shape), where=scale > 0)
    return r * np.sqrt((n - 2) / np.maximum((1 - r) * (1 + r), 1e-15))


def decoupler_scores(profiles: np.ndarray, sets: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores (r, K) of decoupler's univariate linear model of profiles (r, G), all sets unweighted.

    Raises
    ------
    ScreproError
        decoupler is not installed.
    """
    try:
        import decoupler
    except ImportError:
        raise ScreproError(
            "Enrichment scores come from decoupler.", got="it is not installed", fix='pip install "screpro[baselines]"'
        ) from None
    import pandas as pd

    names = [f"{gene}" for gene in range(profiles.shape[1])]
    table = pd.DataFrame(profiles, index=[f"{row}" for row in range(len(profiles))], columns=names)
    net = pd.DataFrame(
        [(name, f"{gene}") for name, genes in sets.items() for gene in genes], columns=["source", "target"]
    )
    scores, _ = decoupler.mt.ulm(table, net, tmin=1)
    return scores.loc[table.index, list(sets)].to_numpy()
