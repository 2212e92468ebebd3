"""What figures draw: tables of points beside the rows of a run.

A result row is a number that stands in a table or decides a claim. The cells of a map and the genes under a curve are
no results one by one, but the figure of a recorded run needs them. A run keeps such points in its folder, as
``drawn/<figure>.<method>.<data>.csv``, and a recorded run has them beside its ``results.json``.
"""

from typing import TYPE_CHECKING

from screpro import paths
from screpro.errors import ScreproError
from screpro.records import manifest, results
from screpro.records.results import TIERS, Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FOLDER", "drawn_points", "keep_drawn"]

FOLDER = "drawn"

#: what is added to the columns of a table when it is read back
_ADDED = ("dataset", "tier", "method", "run_id")


def keep_drawn(run: Run, figure: str, points: "pd.DataFrame", *, dataset: str, method: str) -> None:
    """Keep the points that a method has in a figure, to four significant digits, in the place of what was kept before.

    Parameters
    ----------
    run
        The run at hand.
    figure
        Its name, in letters, digits and underscores.
    points
        A row per point.
    dataset, method
        As in the result rows.

    Raises
    ------
    ScreproError
        A name would not do in that of a file, or a column is one that reading adds.
    """
    for name in (figure, method):
        if not name.isidentifier():
            raise ScreproError(
                "Figures and methods have plain names.", got=repr(name), fix='use one like "map" or "scldm"'
            )
    if taken := set(_ADDED) & set(points):
        raise ScreproError(
            "Points of a figure have no column that reading them adds.",
            got=", ".join(sorted(taken)),
            fix="leave it out, or give it another name",
        )
    with paths.atomic_path(run.folder / FOLDER / f"{figure}.{method}.{dataset}.csv") as aside:
        points.to_csv(aside, index=False, float_format="%.4g")


def drawn_points(run: Run, figure: str) -> "pd.DataFrame":
    """Points of a figure in the recorded runs of the page and in the run at hand, each data set at its heaviest tier.

    What several runs have of a method is taken from the last of them, and from the run at hand before recorded ones,
    as for rows.

    Returns
    -------
    pandas.DataFrame
        The columns that were kept, and ``dataset``, ``tier``, ``method`` and ``run_id``; empty where nothing was kept.
    """
    import pandas as pd

    found = []
    for file in (results.results_dir() / run.notebook).glob("*/manifest.json"):
        content = manifest.read(file)
        found.append((content["started"], file.parent, content["tier"], content["run_id"]))
    folders = [each[1:] for each in sorted(found)] + [(run.folder, run.tier, run.run_id)]
    parts = {}
    for folder, tier, run_id in folders:
        for file in sorted((folder / FOLDER).glob(f"{figure}.*.csv")):
            _, method, dataset = file.name.removesuffix(".csv").split(".", 2)
            place = {"dataset": dataset, "tier": tier, "method": method, "run_id": run_id}
            parts[dataset, tier, method] = pd.read_csv(file).assign(**place)
    if not parts:
        return pd.DataFrame(columns=list(_ADDED))
    heaviest = {}
    for dataset, tier, _ in parts:
        heaviest[dataset] = max(heaviest.get(dataset, 0), TIERS.index(tier))
    kept = [own for (dataset, tier, _), own in parts.items() if TIERS.index(tier) == heaviest[dataset]]
    return pd.concat(kept, ignore_index=True)
