"""The numbers, figures and open items of the papers, as committed under ``data/paper``."""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screpro import paths
from screpro.errors import ScreproError
from screpro.records.sources import nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["figures", "heldout", "inventory", "paper_dir", "paper_values"]


def paper_dir() -> Path:
    """``data/paper``."""
    return paths.root() / "data" / "paper"


_NUMBERS = {"mean", "spread", "sd", "n", "n_shot", "n_cell_types"}


@cache
def _read(name: str) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.read_csv(paper_dir() / name, dtype=str, keep_default_na=False)
    for column in _NUMBERS & set(frame):
        # what the papers print where there is no value
        absent = frame[column].isin(("", "N/A", "NaN"))
        frame[column] = pd.to_numeric(frame[column].mask(absent))
    return frame


def _select(frame: "pd.DataFrame", **wanted: str | None) -> "pd.DataFrame":
    for column, value in wanted.items():
        if value is None:
            continue
        known = list(dict.fromkeys(frame[column]))
        if value not in known:
            raise ScreproError(
                f"{column} is one of {', '.join(known)}",
                got=f"{value}{nearest(value, known)}",
                fix="choose one of them",
            )
        frame = frame[frame[column] == value]
    return frame.reset_index(drop=True).copy()


def paper_values(paper: str | None = None, item: str | None = None) -> "pd.DataFrame":
    """Every number the tables of the papers print.

    Parameters
    ----------
    paper
        ``scdiff``, ``scldm``, ``scldm-icml-notes`` or ``perturbdiff``; all by default.
    item
        Table of that paper, e.g. ``"Table 1"``.

    Returns
    -------
    DataFrame
        Columns ``paper, table, dataset, setting, method, metric, direction, mean, spread``; names as printed,
        `mean` is missing
        where the paper prints NaN, `spread` where it gives none.

    Raises
    ------
    ScreproError
        There is no such paper or table.
    """
    return _select(_read("values.csv"), paper=paper, table=item)


def figures(paper: str | None = None, figure: str | None = None) -> "pd.DataFrame":
    """Numbers behind the figures, where the authors released them: one row per point of a curve or bar."""
    return _select(_read("figures.csv"), paper=paper, figure=figure)


def inventory(paper: str | None = None, kind: str | None = None) -> "pd.DataFrame":
    """Every table, figure, ablation, claim and equation of the papers.

    Returns
    -------
    DataFrame
        Columns ``paper, kind, id, title, datasets, methods, metrics, needs, smallest-honest-reproduction``.
    """
    return _select(_read("inventory.csv"), paper=paper, kind=kind)


def heldout() -> dict[str, Any]:
    """Names of the perturbations and contexts that the papers hold out, per data set."""
    return json.loads((paper_dir() / "heldout.json").read_text(encoding="utf-8"))
