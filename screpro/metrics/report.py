"""Scores of generated cells against real ones, each between its ceiling and its floors.

Cells of integer counts are compared as log1p of counts scaled to 10 000 per cell, each cell by its own total over all
its genes; other values as they are. Distances between cells are measured on principal components fitted to the REAL
cells only: fitted to both, a generator could move the axes. What the scores are compared with is said in
`screpro.metrics.suites`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from screpro.errors import ScreproError
from screpro.metrics import suites
from screpro.metrics.catalogue import catalogue
from screpro.metrics.report_input import Group, Pair, column_of, groups_of, pair_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["COLUMNS", "MEAN", "SUITES", "Report", "compare"]

COLUMNS = (
    "suite",
    "metric",
    "variant",
    "by",
    *suites.COLUMNS,
    "floor_control",
    "n_real",
    "n_generated",
    "n_equal",
    "n_genes",
    "unit",
    "direction",
)
"""Columns of the rows; `n_equal` is the number of cells on either side of `value_equal_n` and what stands beside it.
`suites` and `suite_perturbation` say what the ceiling and the floors are."""

SUITES = ("scldm", "celleval", "all")
MEAN = "mean over classes"


@dataclass(frozen=True)
class Report:
    """Rows, one per score and group of cells, and what has to be said about them.

    A number is NaN where the score is not defined, and the notes say so, or where the column is of the other suite; it
    is infinite where the score is. As JSON the first is null, the second the text ``"inf"``.
    """

    rows: "pd.DataFrame"  # columns COLUMNS
    notes: list[str]


def compare(
    real: "AnnData",
    generated: "AnnData",
    *,
    suite: str = "scldm",
    by: str | None = None,
    perturbation: str | None = None,
    control: str | None = None,
    generated_control: str | None = None,
    hvg: int | None = None,
    n_components: int = 30,
    seed: int = 0,
    progress: Callable[[str], None] = lambda done: None,
) -> Report:
    """Score generated cells against real ones.

    Parameters
    ----------
    real, generated
        AnnData with the same genes (any order) and `X` on the same scale: both integer counts, or both not.
    suite
        ``scldm``: distances between the two distributions of cells and agreement of genes, those of scLDM's tables
        among them. ``celleval``: the effects of perturbations, PerturbDiff's Table 4. ``all``: both.
    by
        Column of `obs` in both; adds the scores of `scldm` inside each of its classes, and their unweighted mean.
    perturbation, control
        Column of `obs` in both that names the perturbation of a cell, and its value in control cells; for `celleval`.
        The control cells are those of `real`, on both sides.
    generated_control
        The value of that column in cells of `generated` that were made for the control condition, `control` or another
        one. They are scored by the null test alone: how many genes tell them from real control cells?
    hvg
        Keep this many genes, the most variable by seurat_v3 on the real counts; None keeps all.
    n_components
        Principal components, fitted on all real cells; lowered where cells or genes are too few.
    seed
        Of the halves, the subsamples and the shuffling.
    progress
        Called with a word on every score that is done.

    Returns
    -------
    Report
        Rows by suite, group (``all``, `MEAN`, ``column=class``, ``control cells``) and metric, a name of the catalogue;
        NaN where a score is not defined or a floor is of the other suite. Classes with fewer than two real or two
        generated cells are skipped, and a note says so.

    Raises
    ------
    ScreproError
        Other genes, duplicate genes, values that are not finite, counts against other values, fewer than four cells or
        two genes, a missing column, classes that only one of the two has, or options that do not belong together. All
        of it before the first score.
    """
    import pandas as pd

    wanted = _wanted(suite, by=by, perturbation=perturbation, control=control, generated_control=generated_control)
    pair = pair_of(real, generated, hvg=hvg)
    notes: list[str] = []
    if "celleval" in wanted:
        from screpro.metrics import suite_perturbation

        labels = [
            column_of(*which, perturbation, "perturbation") for which in (("real", real), ("generated", generated))
        ]
        effects = suite_perturbation.prepare(
            pair, labels, column=perturbation, control=control, generated_control=generated_control
        )
    if suite == "all":
        real, generated, pair = _without_controls(real, generated, pair, labels, controls=(control, generated_control))
        notes.append("control cells are left out of the scores of the suite scldm")
    groups = groups_of(real, generated, by, notes=notes)
    rows: list[dict] = []
    if "scldm" in wanted:
        rows += _scldm_rows(pair, groups, n_components=n_components, seed=seed, progress=progress, notes=notes)
        if by is not None:
            rows += _means(rows)
    if "celleval" in wanted:
        rows += suite_perturbation.rows(effects, seed=seed, notes=notes)
        progress("perturbations")
    return Report(pd.DataFrame(rows, columns=list(COLUMNS)), notes)


def _wanted(
    suite: str,
    *,
    by: str | None,
    perturbation: str | None,
    control: str | None,
    generated_control: str | None,
) -> tuple[str, ...]:
    if suite not in SUITES:
        raise ScreproError(f"--suite is one of {', '.join(SUITES)}.", got=suite, fix="choose one of them")
    given = {"--perturbation": perturbation, "--control": control}
    if suite == "scldm":
        also = {"--generated-control": generated_control}
        if named := [option for option, value in (given | also).items() if value is not None]:
            raise ScreproError(
                "The suite scldm knows no perturbations.",
                got=" and ".join(named),
                fix="add --suite celleval or --suite all, or leave them out",
            )
        return ("scldm",)
    if lacking := [option for option, value in given.items() if value is None]:
        raise ScreproError(
            f"The suite {suite} compares perturbed cells with control cells.",
            got=f"no {' and no '.join(lacking)}",
            fix="name the column of obs and its value in control cells: --perturbation COLUMN --control VALUE",
        )
    if suite == "all":
        return "scldm", "celleval"
    if by is not None:
        raise ScreproError(
            "--by belongs to the suite scldm; celleval scores each perturbation by itself.",
            got=f"--by {by}",
            fix="add --suite all, or leave --by out",
        )
    return ("celleval",)


def _without_controls(
    real: "AnnData", generated: "AnnData", pair: Pair, labels: list[np.ndarray], *, controls: tuple[str | None, ...]
) -> tuple["AnnData", "AnnData", Pair]:
    of_real, of_generated = (np.flatnonzero(~np.isin(of, [label for label in controls if label])) for of in labels)
    if min(len(of_real), len(of_generated)) < 4:
        raise ScreproError(
            "The suite scldm compares at least four real with at least four generated cells that are not controls.",
            got=f"{len(of_real)} and {len(of_generated)}",
            fix="score larger files, or take --suite celleval",
        )
    perturbed = pair._replace(real=pair.real[of_real], generated=pair.generated[of_generated])
    return real[of_real], generated[of_generated], perturbed


def _scldm_rows(
    pair: Pair, groups: list[Group], *, n_components: int, seed: int, progress: Callable[[str], None], notes: list[str]
) -> list[dict]:
    """Rows of every group; notes on what was fitted, cut and certified."""
    labels = np.full(pair.real.shape[0], "", dtype=object)
    for group in groups[1:]:
        labels[group.real] = group.name
    setup = suites.setup_of(
        pair.real,
        pair.generated,
        labels=labels.astype(str),
        n_components=n_components,
        rng=np.random.default_rng([seed, len(groups)]),
    )
    d = setup.fitted.axes.shape[1]
    components = "1 principal component" if d == 1 else f"{d} principal components"
    notes.insert(0, f"{pair.scale}; distances on {components} of the real cells")
    rows, gap, undefined = [], 0.0, {}
    for number, group in enumerate(groups):
        rng = np.random.default_rng([seed, number])
        for found in suites.score_group(setup, group.real, group.generated, rng=rng):
            score, (n_real, n_generated, n_equal) = found.score, found.n
            rows.append(
                {
                    "suite": "scldm",
                    "metric": score.name,
                    "variant": ", ".join(
                        filter(None, [f"{d} PC{'s' * (d > 1)}" if score.on == "points" else "", score.variant])
                    ),
                    "by": group.name,
                    **found.values,
                    "n_real": n_real,
                    "n_generated": n_generated,
                    "n_equal": n_equal,
                    "n_genes": pair.real.shape[1],
                    "unit": score.unit,
                    "direction": catalogue()[score.name].direction,
                }
            )
            gap = max(gap, found.gap)
            for column, why in found.why.items():
                undefined.setdefault((score.name, column, why), []).append(group.name)
            progress(f"{score.name}, {group.name}")
    for row in rows:
        if row["by"] == "all" and row["n_real"] + row["n_generated"] < len(groups[0].real) + len(groups[0].generated):
            sizes = f"{row['n_real']} real and {row['n_generated']} generated cells"
            notes.append(f"{row['metric']}: {sizes}, drawn at random where there are more")
    for (name, column, why), where in undefined.items():
        beside = "" if column == "value" else f", {column}"
        groups = ", ".join("all cells" if group == "all" else group for group in where)
        notes.append(f"{name}{beside}: not defined for {groups}. {why}")
    notes.append(
        f"w2_exact: the cost of the transport is proven to be within {gap:.0e} of the least possible (dual gap)"
    )
    return rows


def _means(rows: list[dict]) -> list[dict]:
    """Unweighted mean over the classes of every score; a class where a score is not defined does not count for it."""
    means = []
    for whole in [row for row in rows if row["by"] == "all"]:
        own = [row for row in rows if row["metric"] == whole["metric"] and row["by"] != "all"]
        mean = whole | {"by": MEAN}
        for column in suites.COLUMNS:
            values = np.array([row[column] for row in own])
            mean[column] = float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else float("nan")
        means.append(mean | {n: sum(row[n] for row in own) for n in ("n_real", "n_generated", "n_equal")})
    return means
