"""What rows of responses say, in words that pages show: an aim met or not, a variant better on what, a network trained
far enough to be compared.

Every difference is one of pairs of trainings with the same seed, and counts when it exceeds its standard error
(``records.compare``).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from screpro.records.compare import Comparison, compare

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Reach",
    "judged",
    "missed_sentence",
    "moved",
    "reach",
    "reach_sentence",
    "reach_text",
    "said",
    "standing",
]  # fmt: skip

R2, UNTREATED = "r2_of_means", "control_cells"


def judged(
    rows: "pd.DataFrame", method: str, metric: str, *, against: str | float, against_metric: str | None = None
) -> Comparison | None:
    """Is a method better than another, or than a bound, on one data set and tier? None where one has no rows.

    Parameters
    ----------
    rows
        Of one data set and tier and one variant.
    method, metric
        What is compared.
    against
        A method, or a number.
    against_metric
        Metric of the method that is compared with, if it is another than `metric`.
    """
    import pandas as pd

    own = rows[(rows["method"] == method) & (rows["metric"] == metric)]
    if isinstance(against, str):
        other = rows[(rows["method"] == against) & (rows["metric"] == (against_metric or metric))]
    else:
        other = own.drop_duplicates("split").assign(method="bound", seed=None, value=float(against))
        against = "bound"
    columns = ["dataset", "tier", "split", "seed", "method", "metric", "metric_variant", "value", "direction"]
    both = [part[columns].astype({"seed": float}) for part in (own, other.assign(metric=metric))]  # NaN: no seed
    both = pd.concat(both, ignore_index=True)
    found = compare(both, method, against) if len(own) and len(other) else []
    return found[0] if found else None


def said(found: Comparison | None) -> str:
    """ "met", "level" or "missed", with the difference and its standard error; one pair decides nothing."""
    if found is None:
        return "not run"
    if found.n_pairs < 2:
        return f"not decided, one training ({found.difference:+.3f})"
    word = {"win": "met", "tie": "level", "loss": "missed"}[found.outcome]
    return f"{word} ({found.difference:+.3f} ± {found.standard_error:.3f})"


def standing(
    rows: "pd.DataFrame", method: str, metric: str, *, against: str | float, against_metric: str | None = None
) -> tuple[float, float] | None:
    """A method's score and how far it is beyond that of another, or beyond a bound, to three digits; above 0 is better.

    Arguments as in `judged`. It is for references that are computed once, whose lead has no standard error.
    """
    found = judged(rows, method, metric, against=against, against_metric=against_metric)
    own = rows[(rows["method"] == method) & (rows["metric"] == metric)]
    return found and (float(own["value"].mean()), round(found.difference, 3) + 0.0)  # as shown; no -0.000


def missed_sentence(
    rows: "pd.DataFrame",
    metric: str,
    *,
    against: str | float,
    against_metric: str | None = None,
    models: Mapping[str, str],
    ceiling: str,
) -> str:
    """By how much models miss an aim, how the second stands to the first, and whether real cells would meet it.

    Parameters
    ----------
    rows, metric, against, against_metric
        As in `judged`.
    models
        The faithful and the repaired model, each with what it is called.
    ceiling
        Method of the rows in which real cells are the answer.

    Returns
    -------
    str
        Empty where no model misses the aim by more than the standard error.
    """
    found = {m: judged(rows, m, metric, against=against, against_metric=against_metric) for m in models}
    parts = [
        f"{models[m]} misses it by {-own.difference:.3f} ± {own.standard_error:.3f}"
        for m, own in found.items()
        if own and own.outcome == "loss"  # a single pair is never one
    ]
    if not parts:
        return ""
    first, second = models
    if between := judged(rows, second, metric, against=first):
        word = {"win": "better than", "tie": "level with", "loss": "worse than"}[between.outcome]
        gap = f"{between.difference:+.3f} ± {between.standard_error:.3f}"
        parts.append(f"on this score {models[second]} is {word} {models[first]} ({gap})")
    if top := standing(rows, ceiling, metric, against=against, against_metric=against_metric):
        word = "would meet it" if top[1] > 0 else "would miss it too" if top[1] < 0 else "would be level"
        parts.append(f"half of the real cells ({top[0]:.3f}) {word}")
    return "; ".join(parts) + "."


def moved(rows: "pd.DataFrame", method: str, against: str, metrics: Sequence[str]) -> dict[str, list[str]]:
    """Metrics on which a method is better, worse or level, over rows of one data set, tier and variant."""
    out: dict[str, list[str]] = {"better": [], "worse": [], "level": []}
    for metric in metrics:
        if found := judged(rows, method, metric, against=against):
            out[{"win": "better", "loss": "worse", "tie": "level"}[found.outcome]].append(metric)
    return out


class Reach(NamedTuple):
    """How near a network's mean expression comes to the truth, beside cells to which nothing was done."""

    dataset: str
    tier: str
    r2: float
    spread: float  # standard deviation over trainings, NaN for one
    runs: int  # trainings
    untreated: float
    borrowed: bool  # the value of untreated cells is another page's

    @property
    def behind(self) -> bool:
        """Whether untreated cells would be a better answer, by more than the standard error if there is one."""
        error = self.spread / math.sqrt(self.runs) if self.runs > 1 else 0.0
        return self.r2 + error < self.untreated


def reach(
    rows: "pd.DataFrame",
    method: str,
    *,
    variant: str = "",
    untreated: Mapping[str, str] | None = None,
    elsewhere: "pd.DataFrame | None" = None,
) -> list[Reach]:
    """R² of mean expression of a method and of untreated cells, for every data set and tier where both are known.

    Parameters
    ----------
    rows
        The rows that a page shows.
    method, variant
        The network, and the variant of its rows.
    untreated
        Columns and values that the rows of untreated cells have besides; by default the same variant.
    elsewhere
        Rows of another page to take untreated cells from, of the same data set and tier, where `rows` have none.
    """
    own = rows[(rows["metric"] == R2) & (rows["method"] == method) & (rows["metric_variant"] == variant)]
    wanted = {"metric": R2, "method": UNTREATED, "metric_variant": variant} | dict(untreated or {})
    found = []
    for (dataset, tier), part in own.groupby(["dataset", "tier"], sort=False):
        for source, borrowed in ((rows, False), (elsewhere, True)):
            if source is None:
                continue
            here = {"dataset": dataset, "tier": tier} | (wanted | {"metric_variant": ""} if borrowed else wanted)
            value = source[(source[list(here)] == list(here.values())).all(axis=1)]["value"].mean()
            if value == value:
                mean, spread = float(part["value"].mean()), float(part["value"].std())
                found.append(Reach(dataset, tier, mean, spread, len(part), float(value), borrowed))
                break
    return found


def reach_sentence(found: Reach, of: str = "the main model") -> str:
    """Both values, and whether the network is behind."""
    r2 = f"{found.r2:.3f}" + ("" if math.isnan(found.spread) else f" ± {found.spread:.3f}")
    text = (
        f"`{found.dataset}`, tier `{found.tier}`: the mean expression of the cells of {of} has an R² of {r2}, that of "
        f"untreated cells {found.untreated:.3f}"
    )
    if found.borrowed:
        text += " (by the recorded main results, where this data set may have other sizes)"
    if not found.behind:
        return text + ". The network knows at least what untreated cells show."
    times = (1 - found.r2) / max(1 - found.untreated, 1e-9)
    return f"{text}. It leaves {times:.1f} times as much unexplained as the answer that nothing happens."


def reach_text(found: Mapping[str, Sequence[Reach]], *, claims: str, why: str) -> str:
    """A line for every named network and data set, and what it means for `claims`, whose rules have no such floor.

    `why` they have none follows a colon.
    """
    lines = [f"- {reach_sentence(own, name)}" for name, levels in found.items() for own in levels]
    behind = {name: [f"`{own.dataset}`" for own in levels if own.behind] for name, levels in found.items()}
    told = "; ".join(f"{name} is behind on {', '.join(sets)}" for name, sets in behind.items() if sets)
    conclusion = (
        f"So {told}. A claim that ranks networks there ranks some that untreated cells would beat as an answer: its "
        "verdict is to be read with that, and says nothing of networks trained as long as the paper's. The rules of "
        f"{claims} have no such floor: {why}."
        if told
        else "None is behind untreated cells on a data set where both are shown."
    )
    return "\n".join([*lines, "", conclusion])
