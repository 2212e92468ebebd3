"""What PerturbDiff's Table 4 says when it is counted, beside what section 5.2 says about it.

Nothing here is measured by us: every number comes from the printed table, so the counts hold whatever a reproduction
finds. A method is ahead on a score when its printed value is better; equal values and missing ones are neither.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CALLED", "MEANS", "ahead", "best_counts", "merits", "oddities", "statements"]

SCRATCH, FINETUNED, STATE, LINEAR, MEAN = "PerturbDiff (Scratch)", "PerturbDiff (Finetuned)", "STATE", "Linear", "Mean"

MEANS = (MEAN, *(f"Mean Variant ({of})" for of in ("per Cell Type", "per Batch", "Overall")))
"""The mean per perturbation and its three variants, as the table names them."""

CALLED = ("DEOver", "DEPrec", "DirAgr", "LFCSpear", "AUPRC", "AUROC", "ES")
"""The seven scores of differential expression."""

PDS = ("PDSL1", "PDSL2", "PDScos")

ERRORS = ("MSE", "MAE")

NEARLY_ALL = 0.9
"""Share of the scores from which on "nearly all" is granted."""

COMPARABLE = 1.1
"""Times the other's error, or its complement of a score whose best value is 1, up to which "comparable" is granted."""


def merits(values: "pd.DataFrame", dataset: str) -> "pd.DataFrame":
    """Printed values of a data set, methods by scores, turned so that larger is better."""
    own = values[values["dataset"] == dataset]
    turned = own["mean"].where(own["direction"] == "higher", -own["mean"])
    return own.assign(mean=turned).pivot_table(
        index="method", columns="metric", values="mean", sort=False, dropna=False
    )


def best_counts(values: "pd.DataFrame", methods: Sequence[str] | None = None) -> "pd.DataFrame":
    """On how many scores each method is the best of `methods` (all by default); who shares the best value counts.

    Returns
    -------
    Methods by data sets, whole numbers.
    """
    import pandas as pd

    counts = {}
    for dataset in dict.fromkeys(values["dataset"]):
        table = merits(values, dataset)
        table = table if methods is None else table.loc[list(methods)]
        counts[dataset] = (table == table.max()).sum(axis=1)
    return pd.DataFrame(counts)


def ahead(
    values: "pd.DataFrame",
    dataset: str,
    method: str,
    against: str | Iterable[str],
    metrics: Sequence[str] | None = None,
) -> tuple[list[str], list[str]]:
    """Scores on which `method` is better than all of `against`, and those on which one of them is better than it."""
    table = merits(values, dataset)
    table = table if metrics is None else table[list(metrics)]
    others = table.loc[[against] if isinstance(against, str) else list(against)].max()
    own = table.loc[method]
    return list(own.index[own > others]), list(own.index[own < others])


def statements(values: "pd.DataFrame") -> "pd.DataFrame":
    """Statements of section 5.2 and appendix C.3, what the table counts, and whether it bears them out."""
    import pandas as pd

    baselines = [m for m in dict.fromkeys(values["method"]) if m not in (SCRATCH, FINETUNED)]
    rows = []

    def say(statement: str, where: str, counted: str, holds: bool) -> None:
        rows.append({"statement": statement, "data": where, "Table 4": counted, "borne out": "yes" if holds else "no"})

    def names(found: Sequence[str]) -> str:
        return ", ".join(found) or "none"

    for where in ("PBMC", "Tahoe100M"):
        wins, losses = ahead(values, where, SCRATCH, baselines)
        n = merits(values, where).shape[1]
        counted = f"ahead of all baselines on {len(wins)} of {n}, equal to the best of them on "
        counted += f"{n - len(wins) - len(losses)}; a baseline is better on {names(losses)}"
        say("Scratch outperforms all baselines on nearly all scores", where, counted, len(wins) >= NEARLY_ALL * n)
    wins, losses = ahead(values, "Tahoe100M", SCRATCH, LINEAR)
    counted = f"Linear is better than Scratch on {len(losses)} of {len(wins) + len(losses)}: {names(losses)}"
    say("Linear achieves competitive results", "Tahoe100M", counted, len(losses) >= len(wins) / 2)
    table = merits(values, "Replogle")
    rank = table.drop(index=FINETUNED).rank(ascending=False, method="min").loc[SCRATCH]
    wins, losses = ahead(values, "Replogle", SCRATCH, STATE)
    counted = f"second or better on {int((rank <= 2).sum())} of {len(rank)}; behind STATE on {len(losses)}"
    say("Scratch is second best", "Replogle", counted, (rank <= 2).mean() >= NEARLY_ALL)
    wins, losses = ahead(values, "Replogle", FINETUNED, SCRATCH)
    say("Finetuned improves on Scratch in all scores", "Replogle", f"better on {len(wins)}, worse on {len(losses)}",
        not losses)  # fmt: skip
    wins, losses = ahead(values, "Replogle", FINETUNED, STATE)
    counted = f"better on {len(wins)} ({names(wins)}), worse on {len(losses)}"
    say("Finetuned matches STATE", "Replogle", counted, len(wins) >= len(losses))
    for where in ("PBMC", "Tahoe100M"):
        wins, losses = ahead(values, where, FINETUNED, SCRATCH, CALLED)
        counted = f"better on {len(wins)} of {len(CALLED)} ({names(wins)}), worse on {names(losses)}"
        say("Finetuned improves scores of differential expression further", where, counted,
            len(wins) >= NEARLY_ALL * len(CALLED))  # fmt: skip
    linear = merits(values, "Replogle").loc[LINEAR, list(PDS)]
    near = (linear - 0.5).abs() < 0.05
    counted = "; ".join(f"{name} {value:.3f}" for name, value in linear.items())
    say("Linear drops to about .5 on all three PDS", "Replogle", counted, bool(near.all()))
    mean = merits(values, "Tahoe100M").loc[MEAN, ["AUPRC", "AUROC"]]
    counted = "; ".join(f"{name} {value:.3f}" for name, value in mean.items())
    near = (mean - 0.5).abs() < 0.02
    say("Mean is near chance on AUPRC and AUROC", "Tahoe100M", counted, bool(near.all()))
    for where in dict.fromkeys(values["dataset"]):
        table = merits(values, where)[list(ERRORS)]
        times = table.loc[SCRATCH] / table.loc[baselines].max()
        counted = "; ".join(f"{m} {times[m]:.2g} times the best baseline's" for m in ERRORS)
        say("Scratch has errors comparable to or better than strong baselines", where, counted,
            times.max() <= COMPARABLE)  # fmt: skip
    table = merits(values, "PBMC")
    found = {m: table.loc[FINETUNED, m] / table.loc[SCRATCH, m] for m in ERRORS}
    found |= {m: (1 - table.loc[FINETUNED, m]) / (1 - table.loc[SCRATCH, m]) for m in ("R2", "PDCorr")}
    counted = "; ".join(f"{m if m in ERRORS else f'1 - {m}'} {times:.2g} times Scratch's" for m, times in found.items())
    say("Finetuned remains comparable to Scratch on average expression", "PBMC", counted,
        max(found.values()) <= COMPARABLE)  # fmt: skip
    for where in dict.fromkeys(values["dataset"]):
        table = merits(values, where).loc[[SCRATCH, *baselines]]
        last = (table == table.min()).sum(axis=1).drop(list(MEANS[1:]))
        worst = list(last.sort_values(ascending=False).index[:2])
        counted = ", ".join(f"{method} on {last[method]}" for method in last.index if last[method])
        say("Squidiff and CellFlow are the weakest, last on several scores", where, f"last: {counted}",
            set(worst) == {"Squidiff", "CellFlow"})  # fmt: skip
    for where in dict.fromkeys(values["dataset"]):
        wins, losses = ahead(values, where, MEAN, MEANS[1:])
        counted = f"ahead of all three variants on {len(wins)}; a variant is better on {len(losses)}"
        say("Mean per perturbation is the best of the means", where, counted, len(wins) > len(losses))
    return pd.DataFrame(rows)


def oddities(values: "pd.DataFrame") -> "pd.DataFrame":
    """Printed values that do not fit the others, found by a rule rather than by eye.

    The rules: a missing value; R2 below 0, worse than predicting one constant; a squared error that is more than five
    times as large beside the squared absolute error as the median of its data set, as a misprinted exponent would make
    it; a mean baseline that equals or exceeds Scratch on a score of differential expression.
    """
    import pandas as pd

    rows = []
    for dataset in dict.fromkeys(values["dataset"]):
        table = values[values["dataset"] == dataset].pivot_table(
            index="method", columns="metric", values="mean", sort=False, dropna=False
        )
        ratio = table["MSE"] / table["MAE"] ** 2
        large = ratio > 5 * ratio.median()
        odd = {
            "no ES, so all its perturbations have one number of called genes": table.index[table["ES"].isna()],
            "R2 below 0: another scale than the data": table.index[table["R2"] < 0],
            "MSE out of proportion to MAE": table.index[large],
            "a mean baseline not behind Scratch on DEOver": [
                m for m in MEANS if table.loc[m, "DEOver"] >= table.loc[SCRATCH, "DEOver"]
            ],
        }
        for what, methods in odd.items():
            if len(methods):
                shown = ", ".join(
                    f"{m} ({ratio[m]:.0f} times MAE², median {np.nanmedian(ratio):.1f})" if "MSE" in what else m
                    for m in methods
                )
                rows.append({"data": dataset, "what": what, "where": shown})
    return pd.DataFrame(rows)
