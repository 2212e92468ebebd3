"""What is compared: matrices on one scale with the same genes, and groups of cells; all checked."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse

from screpro.data.preprocess import log_cp10k, most_variable
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Group", "Pair", "column_of", "groups_of", "pair_of", "variable_genes"]

LEAST = 2
"""Cells below which a class has no spread, and is skipped."""


class Pair(NamedTuple):
    """Real and generated cells on one scale, with the real cells' order of genes."""

    real: sparse.csr_matrix  # (n, G) float64
    generated: sparse.csr_matrix  # (m, G) float64
    genes: np.ndarray  # (G,) names
    scale: str  # what the values are


class Group(NamedTuple):
    """Cells to compare: ``all``, or a class ``column=class``."""

    name: str
    real: np.ndarray  # indices
    generated: np.ndarray


def pair_of(real: "AnnData", generated: "AnnData", *, hvg: int | None = None) -> Pair:
    """Both matrices, checked, log-normalised if they hold counts, and cut to the `hvg` most variable genes.

    Cells are scaled by their total over all genes, before genes are left out.

    Raises
    ------
    ScreproError
        Fewer than four cells or two genes, duplicate or different genes, no X, values that are not finite, counts
        against other values, or more variable genes than there are genes.
    """
    for which, cells in (("real", real), ("generated", generated)):
        if cells.n_obs < 4 or cells.n_vars < 2:
            raise ScreproError(
                f"The {which} cells are at least four, with at least two genes.",
                got=f"{cells.n_obs} cells x {cells.n_vars} genes",
                fix="compare larger samples",
            )
        if not cells.var_names.is_unique:
            raise ScreproError(
                f"Gene names of the {which} cells are unique.",
                got=f"{cells.var_names[cells.var_names.duplicated()][0]} more than once",
                fix="call var_names_make_unique() on both before writing them",
            )
    lacking = {
        "generated": real.var_names.difference(generated.var_names),
        "real": generated.var_names.difference(real.var_names),
    }
    for which, names in lacking.items():
        if len(names):
            raise ScreproError(
                "Real and generated cells have the same genes.",
                got=f"{len(names)} genes missing from the {which} cells: {', '.join(map(str, names[:5]))}"
                + (", ..." if len(names) > 5 else ""),
                fix="subset both to their common genes and say so beside the scores",
            )
    x = _checked("real", real.X)
    y = _checked("generated", generated.X)[:, generated.var_names.get_indexer(real.var_names)]
    counts = [bool((m.data >= 0).all() and (m.data == np.round(m.data)).all()) for m in (x, y)]
    if counts[0] != counts[1]:
        raise ScreproError(
            "Real and generated cells are on one scale: both counts, or both transformed alike.",
            got="integer counts in the real cells only" if counts[0] else "integer counts in the generated cells only",
            fix="bring both to the same scale, for instance log1p of counts scaled to 10 000 per cell",
        )
    names = real.var_names.to_numpy(dtype=str)
    if hvg is not None:
        if not counts[0]:
            raise ScreproError(
                "Variable genes are chosen on counts (seurat_v3).",
                got="values that are not integer counts",
                fix="give files of counts, or leave --hvg out",
            )
        kept = variable_genes(x, hvg)
    if not counts[0]:
        return Pair(x, y, names, "values as given")
    x, y = log_cp10k(x), log_cp10k(y)
    if hvg is None:
        return Pair(x, y, names, "log1p CP10k")
    return Pair(x[:, kept], y[:, kept], names[kept], f"log1p CP10k, {hvg} variable genes")


def variable_genes(counts: sparse.csr_matrix, n_genes: int) -> np.ndarray:
    """Indices, ascending, of the `n_genes` genes whose counts vary most for their mean (scanpy's seurat_v3).

    Raises
    ------
    ScreproError
        `n_genes` is not between 2 and the number of genes, or the fit of variance against mean has too little to fit.
    """
    if not 2 <= n_genes <= counts.shape[1]:
        raise ScreproError(
            f"--hvg is between 2 and the number of genes, {counts.shape[1]}.",
            got=n_genes,
            fix="choose more genes, or leave --hvg out to keep all" if n_genes < 2 else "choose fewer genes",
        )
    return np.flatnonzero(most_variable(counts, n_genes))


def groups_of(real: "AnnData", generated: "AnnData", by: str | None, *, notes: list[str]) -> list[Group]:
    """All cells, then each class of `by` with at least two cells on both sides; a note on those left out."""
    groups = [Group("all", np.arange(real.n_obs), np.arange(generated.n_obs))]
    if by is None:
        return groups
    a, b = (column_of(which, cells, by, "by") for which, cells in (("real", real), ("generated", generated)))
    alone = sorted(set(a) ^ set(b))
    if alone:
        raise ScreproError(
            f"Real and generated cells have the same classes of {by}.",
            got=f"only in one of them: {', '.join(alone[:5])}" + (", ..." if len(alone) > 5 else ""),
            fix="subset both to their common classes",
        )
    small = []
    for name in sorted(set(a)):
        in_a, in_b = np.flatnonzero(a == name), np.flatnonzero(b == name)
        if min(len(in_a), len(in_b)) < LEAST:
            small.append(f"{name} ({len(in_a)} real, {len(in_b)} generated)")
        else:
            groups.append(Group(f"{by}={name}", in_a, in_b))
    if len(groups) == 1:
        raise ScreproError(
            f"At least one class of {by} has two real and two generated cells.",
            got="; ".join(small[:5]),
            fix="choose a column with larger classes",
        )
    if small:
        notes.append(f"classes with fewer than {LEAST} cells, skipped: {', '.join(small)}")
    return groups


def column_of(which: str, cells: "AnnData", name: str, option: str) -> np.ndarray:
    """A column of obs as text.

    Raises
    ------
    ScreproError
        There is none of that name, or a cell has no value in it.
    """
    if name not in cells.obs:
        raise ScreproError(
            f"`{option}` names a column of obs in both files; the {which} cells lack it.",
            got=name,
            fix=f"choose one of {', '.join(map(str, cells.obs.columns)) or 'no columns'}",
        )
    if missing := int(cells.obs[name].isna().sum()):
        raise ScreproError(
            f"Every cell has a value in the column that `{option}` names.",
            got=f"{missing} {which} cells without one in {name}",
            fix="leave those cells out of both files",
        )
    return cells.obs[name].astype(str).to_numpy()


def _checked(which: str, matrix) -> sparse.csr_matrix:
    if matrix is None:
        raise ScreproError(
            f"The {which} cells have their expression in X.",
            got="no X",
            fix="copy the layer to compare, for instance adata.X = adata.layers['counts'], and write the file again",
        )
    x = sparse.csr_matrix(matrix)
    if not x.data.all():
        x = x.copy()  # the arrays are still the caller's
        x.eliminate_zeros()
    if not np.isfinite(x.data).all():
        raise ScreproError(
            f"Values of the {which} cells are finite.",
            got=f"{int((~np.isfinite(x.data)).sum())} values that are NaN or infinite",
            fix="find out where they come from; do not fill them with zeros",
        )
    return x
