"""Is one method better than another? Paired over splits and seeds, the standard error being the margin."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from screpro.errors import ScreproError
from screpro.records.results import TIERS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "compare", "heaviest", "measured_once", "merit", "own_file", "plain", "standard_error"]


@dataclass(frozen=True)
class Comparison:
    """Two methods on one data set.

    ``difference`` is the mean over pairs, positive when the first method is better whatever the direction of
    the metric; ``outcome`` is ``win``, ``loss`` or ``tie``.
    """

    dataset: str
    tier: str
    n_pairs: int
    n_splits: int
    n_seeds: int
    difference: float
    standard_error: float
    outcome: str


def plain(name: str) -> str:
    """A name without case, spaces and punctuation, so that ``macro F1`` and ``macro_f1`` are one metric."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def own_file(dataset: str) -> bool:
    """Whether rows are of a file of a user's own: pages call it by the name of the file, ending included."""
    return ".h5ad" in dataset


def merit(values: "pd.Series", direction: str) -> "pd.Series":
    """The values turned so that larger is better: as they are, negated, or minus the distance to a target."""
    if direction in ("higher", "lower"):
        return values if direction == "higher" else -values
    return -(values - float(direction.removeprefix("closer to "))).abs()


def measured_once(rows: "pd.DataFrame") -> "pd.DataFrame":
    """One row per measurement: a score that belongs to two items of the paper is recorded under both.

    Raises
    ------
    ScreproError
        The rows are of several metrics or variants, whose mean would mean nothing.
    """
    for column in ("metric", "metric_variant"):
        if len(found := {plain(name) for name in rows[column]}) > 1:
            raise ScreproError(
                f"a comparison is about one {column}",
                got=", ".join(sorted(set(rows[column]))),
                fix=f"choose one of these {len(found)} with {column}=",
            )
    return rows.drop_duplicates(["dataset", "tier", "method", "split", "seed"], keep="last")


def heaviest(rows: "pd.DataFrame", tiers: Sequence[str] = TIERS) -> "pd.DataFrame":
    """Of every data set the rows of its heaviest tier among `tiers`."""
    rows = rows[rows["tier"].isin(tiers)]
    rank = rows["tier"].map({t: i for i, t in enumerate(TIERS)})
    return rows[rank == rank.groupby(rows["dataset"]).transform("max")]


def standard_error(values: "pd.Series", splits: "pd.Series") -> float:
    """Standard error of the mean of runs, of which those of one split are not independent.

    Seeds of a split share its cells: what is easy or hard about them comes back with every seed, and counting each
    seed as one more observation would make the error too small.

    Parameters
    ----------
    values
        (runs,) a score, or a difference between two methods.
    splits
        (runs,) the split of each run.

    Returns
    -------
    float
        Of three splits or more: the standard error over the means of splits. Of two: half the distance of their
        means, which is the same formula, but no less than the standard error over runs, for two numbers are close by
        chance too often. Of one: over runs, which says nothing about other cells. nan for a single run.
    """
    if len(values) < 2:
        return math.nan
    over_runs = float(values.std(ddof=1) / math.sqrt(len(values)))
    means = values.groupby(splits).mean()
    if len(means) < 2:
        return over_runs
    over_splits = float(means.std(ddof=1) / math.sqrt(len(means)))
    return over_splits if len(means) > 2 else max(over_runs, over_splits)


def compare(rows: "pd.DataFrame", method: str, against: str) -> list[Comparison]:
    """Compare two methods on every (data set, tier) where both have rows.

    Parameters
    ----------
    rows
        Result rows of one metric.
    method, against
        Names of the methods; compared by `plain`.

    Returns
    -------
    list of Comparison
        A pair is one split and seed; rows without a seed (a method without randomness) pair with every seed
        of the same split. A win is a mean difference above the standard error of the paired differences
        (`standard_error`: over splits where there are several). One pair has none, so it is a tie.

    Raises
    ------
    ScreproError
        The rows are of several metrics or variants.
    """
    rows = measured_once(rows)
    names = rows["method"].map(plain)
    found = []
    for (dataset, tier), group in rows.groupby(["dataset", "tier"], sort=False):
        first = group[names[group.index] == plain(method)]
        second = group[names[group.index] == plain(against)]
        pairs = _pairs(first, second)
        if pairs.empty:
            continue
        direction = first["direction"].iloc[0]
        gaps = merit(pairs["value_x"], direction) - merit(pairs["value_y"], direction)
        difference = float(gaps.mean())
        error = standard_error(gaps, pairs["split"])
        outcome = "tie"
        if abs(difference) > error and difference != 0:  # False for nan
            outcome = "win" if difference > 0 else "loss"
        found.append(
            Comparison(
                dataset=dataset,
                tier=tier,
                n_pairs=len(pairs),
                n_splits=pairs["split"].nunique(),
                n_seeds=pairs["seed"].nunique(),
                difference=difference,
                standard_error=error,
                outcome=outcome,
            )
        )
    return found


def _pairs(first: "pd.DataFrame", second: "pd.DataFrame") -> "pd.DataFrame":
    first, second = first[["split", "seed", "value"]], second[["split", "seed", "value"]]
    if first["seed"].isna().any() == second["seed"].isna().any():
        return first.merge(second, on=["split", "seed"])
    pairs = first.merge(second, on="split")
    pairs["seed"] = pairs["seed_x"].fillna(pairs["seed_y"])
    return pairs
