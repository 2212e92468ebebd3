"""What every rule of a claim starts from: the rows that count, their paired comparisons, and how evidence is worded."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from screpro.records.compare import Comparison, compare, heaviest, plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "NOT_TESTED",
    "Verdict",
    "at_least",
    "compared",
    "gap_said",
    "rows_of",
    "rows_used",
    "too_few",
    "where_said",
]

NOT_TESTED = "not tested yet"


@dataclass(frozen=True)
class Verdict:
    """``word`` is the verdict, ``evidence`` a sentence with the numbers, ``rows`` the result rows used."""

    word: str
    evidence: str
    rows: "pd.DataFrame | None" = field(default=None, repr=False, compare=False)


def rows_of(test: Mapping[str, Any], results: "pd.DataFrame", variant: str) -> "pd.DataFrame":
    """Rows of the metric and `variant` that a rule looks at, each data set at its heaviest tier."""
    import pandas as pd

    rows = results[(results["metric"].map(plain) == plain(test["metric"])) & (results["item"] != "tuning")]
    variants = rows["metric_variant"].map(plain)
    kept = variants == plain(variant)
    if "own_variants" in test:
        own = rows["method"].map(plain) == plain(test["method"])
        parts = [rows[own & (variants == plain(name))] for name in test["own_variants"]]  # `compare` keeps the last
        rows = pd.concat([rows[kept & ~own], *parts]).assign(metric_variant=variant)
    else:
        rows = rows[kept]
    if "datasets" in test:
        rows = rows[rows["dataset"].isin(test["datasets"])]
    return heaviest(rows, test["tiers"])


def compared(
    test: Mapping[str, Any], rows: "pd.DataFrame", method: str, against: Sequence[str]
) -> dict[str, dict[str, Comparison]]:
    """Per data set the comparison of `method` with each of `against`; only sets with all of them and enough seeds."""
    found: dict[str, dict[str, Comparison]] = {}
    for other in against:
        pair = rows[rows["method"].map(plain).isin((plain(method), plain(other)))]
        for comparison in compare(pair, method, other):
            if comparison.n_seeds >= test["min_seeds"]:
                found.setdefault(comparison.dataset, {})[other] = comparison
    return {dataset: each for dataset, each in found.items() if len(each) == len(against)}


def rows_used(rows: "pd.DataFrame", datasets: Iterable[str], methods: Iterable[str]) -> "pd.DataFrame":
    """Those of the rows that a verdict rests on."""
    names = [plain(method) for method in methods]
    return rows[rows["dataset"].isin(list(datasets)) & rows["method"].map(plain).isin(names)]


def too_few(test: Mapping[str, Any], n: int, rows: "pd.DataFrame") -> Verdict:
    """Too few data sets have what the rule needs: not tested yet."""
    return Verdict(
        NOT_TESTED,
        f"{n} of the {test['min_datasets']} data sets it takes have at least {test['min_seeds']} seeds of every "
        f"method at tier {' or '.join(test['tiers'])}",
        rows,
    )


def gap_said(c: Comparison, other: str = "") -> str:
    """A difference with its standard error."""
    return f"{other and f'{other} '}{c.difference:+.3f} ± {c.standard_error:.3f}"


def where_said(each: Mapping[str, Comparison]) -> str:
    """How many pairs, of how many splits, at which tier."""
    some = next(iter(each.values()))
    return f"({some.n_pairs} pairs{f' of {some.n_splits} splits' * (some.n_splits > 1)}, {some.tier})"


def at_least(share: float, n: int) -> int:
    """The smallest number of n things that is this share of them; never 0."""
    return max(1, math.ceil(share * n - 1e-9))
