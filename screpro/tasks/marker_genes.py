"""Marker genes of cell types: from labelled cells, and from general knowledge of human blood.

L.2 computes "the marker genes for each cell type" without saying how. Here: one type against all other cells by the
rank-sum test at a false discovery rate of .05, expressed by a tenth of the type's cells or more, the genes with the
largest fold change first.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError
from screpro.kernels.ranksum import benjamini_hochberg, fold_change, rank_sum

__all__ = ["blood_markers", "markers"]


def markers(
    logs: sp.csr_matrix,
    codes: np.ndarray,
    *,
    n_types: int,
    most: int = 25,
    rate: float = 0.05,
    detected: float = 0.1,
    least_cells: int = 10,
) -> list[np.ndarray]:
    """Indices of the marker genes of each type, largest fold change first; empty for a type with too few cells.

    Parameters
    ----------
    logs
        (n, G) log1p of counts per ten thousand.
    codes
        (n,) type of each cell, 0 to `n_types` - 1; -1 leaves a cell out.
    most
        Genes at most.
    rate
        False discovery rate over all types and genes.
    detected
        Share of the type's cells that express a marker: a fold change of two rare numbers says little.
    least_cells
        Types with fewer cells get none.
    """
    logs, codes = sp.csr_matrix(logs), np.asarray(codes)
    found = rank_sum(logs, codes, n_groups=n_types)
    q, ratio = benjamini_hochberg(found.p), fold_change(logs, codes, n_groups=n_types)
    member = sp.csr_matrix(
        (np.ones((codes >= 0).sum()), (codes[codes >= 0], np.flatnonzero(codes >= 0))), shape=(n_types, len(codes))
    )
    share = (member @ (logs > 0)).toarray() / np.maximum(found.n, 1)[:, None]
    with np.errstate(invalid="ignore"):
        passed = (q <= rate) & (ratio > 1) & (share >= detected) & (found.n >= least_cells)[:, None]
    order = np.argsort(-np.where(passed, ratio, -np.inf), axis=1, kind="stable")
    return [line[: min(most, int(n))] for line, n in zip(order, passed.sum(1), strict=True)]


def blood_markers(genes: Sequence[str], *, least: int = 5) -> dict[str, np.ndarray]:
    """Indices in `genes` (symbols) of the known markers of human blood cells, of sets with at least `least` of them.

    Raises
    ------
    ScreproError
        A symbol occurs twice.
    """
    place = {name: number for number, name in enumerate(genes)}
    if len(place) < len(genes):
        raise ScreproError(
            "Gene names are unique.", got=f"{len(genes) - len(place)} repeated", fix="call var_names_make_unique"
        )
    path = Path(__file__).parents[1] / "data" / "markers.toml"
    known = tomllib.loads(path.read_text(encoding="utf-8"))["human_blood"]
    here = {name: np.array([place[g] for g in own if g in place], dtype=np.int64) for name, own in known.items()}
    return {name: own for name, own in here.items() if len(own) >= least}
