"""Sizes of data sets as scDiff's Tables 4 and 6 count them, for whatever sets are here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from screpro import data
from screpro.data.columns import is_unlabelled
from screpro.errors import ScreproError
from screpro.tasks.presets import DATASETS, FEW_SHOT, FewShotFacts

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["HERE", "Majority", "SetStatistics", "majority", "reason_not_here", "scaled_threshold", "statistics_of"]

HERE = ("embedded", "in SCREPRO_DATA", "cached")
"""Answers of ``data.available`` that need no download."""

CONDITIONS = ("perturbation", "condition")


@dataclass(frozen=True)
class SetStatistics:
    """What Table 4 prints of a set, and two numbers that it does not; None where there is no such label."""

    name: str
    cells: int
    genes: int
    batches: int | None
    types: int | None
    conditions: int | None
    zeros: float  # share of the entries
    median_counts: float | None  # per cell; None where counts are not published
    type_sizes: "pd.Series"  # cells of each type, largest first; empty without types


def statistics_of(name: str, adata: "AnnData") -> SetStatistics:
    """Count after scDiff's preprocessing: cells with counts, genes seen in them. Unlabelled cells are in no class."""
    matrix = adata.X.tocsr()
    kept = matrix.getnnz(axis=1) > 0
    genes = matrix.getnnz(axis=0) > 0  # an empty cell adds to no gene
    obs = adata.obs[kept]
    sizes = _classes(obs, "cell_type")
    conditions = next((found for name_ in CONDITIONS if len(found := _classes(obs, name_))), None)
    batches = _classes(obs, "batch")
    totals = np.asarray(matrix.sum(axis=1)).ravel()[kept]
    return SetStatistics(
        name=name,
        cells=int(kept.sum()),
        genes=int(genes.sum()),
        batches=len(batches) or None,
        types=len(sizes) or None,
        conditions=None if conditions is None else len(conditions),
        zeros=1 - matrix.nnz / (int(kept.sum()) * int(genes.sum())),
        median_counts=float(np.median(totals)) if adata.uns.get("values", "counts") == "counts" else None,
        type_sizes=sizes,
    )


def _classes(obs: "pd.DataFrame", column: str) -> "pd.Series":
    if column not in obs:
        return pd.Series(dtype=int)
    counts = obs[column].dropna().astype(str).value_counts()
    return counts[(counts > 0) & ~is_unlabelled(counts.index)]


def reason_not_here(name: str) -> str | None:
    """None where the set can be loaded without a download, else what is missing."""
    state = data.available(name)
    if state in HERE:
        return None
    if state == "to download":
        return "not downloaded (`screpro data get` brings it)"
    return data.entries()[name].obtain or f"availability: {state}"


def scaled_threshold(few: FewShotFacts, n_cells: int) -> int:
    """The paper's threshold as the same share of `n_cells` cells, at least 1."""
    whole = next(own.cells for own in DATASETS if own.name == few.dataset)
    return max(1, round(few.threshold * n_cells / whole))


@dataclass(frozen=True)
class Majority:
    """A set divided as in Table 6."""

    threshold: int
    majority_types: int
    majority_cells: int
    minority_types: int
    minority_cells: int


def majority(type_sizes: "pd.Series", threshold: int) -> Majority:
    """Types with at least `threshold` cells against the others (the authors' code; the text says "more than")."""
    if threshold < 1:
        raise ScreproError("A threshold counts cells.", got=f"{threshold}", fix="use 1 or more")
    large = type_sizes >= threshold
    return Majority(
        threshold,
        int(large.sum()),
        int(type_sizes[large].sum()),
        int((~large).sum()),
        int(type_sizes[~large].sum()),
    )


def few_shot_table(sets: list[SetStatistics]) -> "pd.DataFrame":
    """Every set of at least two types divided at each of the four thresholds of Table 6, scaled to its size."""
    rows = []
    for own in sets:
        for few in FEW_SHOT if (own.types or 0) > 1 else ():
            split = majority(own.type_sizes, scaled_threshold(few, int(own.type_sizes.sum())))
            rows.append(
                {
                    "set": own.name,
                    "threshold of": f"{few.name} ({few.threshold})",
                    "scaled to": split.threshold,
                    "majority types": split.majority_types,
                    "majority cells": split.majority_cells,
                    "minority types": split.minority_types,
                    "minority cells": split.minority_cells,
                }
            )
    return pd.DataFrame(rows)
