"""Checks that run before any work: what arrives are counts, genes with names of their own, and usable labels.

Every check either returns None or raises one `ScreproError` that says the rule, what arrived, and the fix.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from screpro.data.stored import BLOCK, Block, Stored, stored
from screpro.errors import ScreproError

__all__ = [
    "LABEL_NAMES",
    "Offence",
    "check_counts",
    "check_genes",
    "check_labels",
    "check_same_genes",
    "find_offence",
    "is_missing",
    "nearest",
    "plain_name",
]

LARGEST = 2**24  # every whole number up to here is exact in float32, which is how counts are kept

# names under which cell types are usually found, most telling first (compared by `plain_name`)
LABEL_NAMES = (
    *("cell_type", "celltypes", "cell_labels", "str_labels", "cell_ontology_class", "cell_annotation"),
    *("annotation", "free_annotation", "major_celltype", "predicted_labels", "labels", "label", "population"),
    *("cluster", "clusters", "leiden", "louvain", "seurat_clusters"),
)


class Offence(NamedTuple):
    """The first value of a matrix that cannot be a count."""

    value: Any
    row: int
    col: int
    kind: str  # what is wrong with the value, in words
    hint: str  # what the values around it suggest; may be empty

    def __str__(self) -> str:
        number = f"{self.value:.6g}" if isinstance(self.value, int | float | np.number) else repr(self.value)
        hint = f" ({self.hint})" if self.hint else ""
        return f"[{self.row}, {self.col}] = {number} {self.kind}{hint}"


def find_offence(matrix: Any, *, at_most: int | None = None, size: int = BLOCK) -> Offence | None:
    """First value, in storage order, that is not a count: not finite, negative, fractional or too large.

    Parameters
    ----------
    matrix
        Anything that `screpro.data.stored.stored` accepts, of n cells x m genes. It is never made dense.
    at_most
        Look only at about this many values, spread over the matrix.
    size
        Values looked at in one go.
    """
    view = stored(matrix)
    for block in view.blocks(at_most=at_most, size=size):
        if (found := offence_in(block, view)) is not None:
            return found
    return None


def offence_in(block: Block, view: Stored) -> Offence | None:
    """The first offence within one block of `view`; None where all its values are counts."""
    values = block.values
    if values.dtype.kind == "b":
        return None
    if values.dtype.kind not in "iuf":
        if not len(values):
            return None
        row, col = block.position(0, view.layout)
        return Offence(values[0], row, col, f"is of type {values.dtype}, not a number", "")
    fine = (values >= 0) & (values <= LARGEST)  # false for NaN, too
    if values.dtype.kind == "f":
        fine &= values == np.floor(values)
    if fine.all():
        return None
    k = int(np.argmin(fine))
    value = values[k]
    row, col = block.position(k, view.layout)
    if np.isnan(value):
        return Offence(value, row, col, "is not a number", "")
    if np.isinf(value):
        return Offence(value, row, col, "is infinite", "")
    if value > LARGEST:
        return Offence(value, row, col, f"is larger than {LARGEST}, the largest count kept exactly", "")
    kind = "is negative" if value < 0 else "is not a whole number"
    return Offence(value, row, col, kind, _hint(values))


def _hint(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    fractional = bool((finite != np.floor(finite)).any())
    if low < 0:
        return f"looks scaled to z-scores: smallest value {low:.3g}" if fractional else ""
    if high <= 20:
        return f"looks log-normalised: largest value {high:.3g}"
    return f"looks normalised or corrected: largest value {high:.5g}"


def check_counts(matrix: Any, *, what: str, size: int = BLOCK) -> None:
    """Raise unless the matrix holds counts: finite whole numbers, 0 or more, not all 0.

    Parameters
    ----------
    matrix
        (n, m) cells x genes, sparse or dense, in memory or on disk. Read blockwise, never made dense.
    what
        How the message names it, for example ``"X of liver.h5ad"``.
    """
    try:
        view = stored(matrix)
    except ValueError as error:
        raise ScreproError(
            f"{what} must be a matrix of cells x genes.",
            got=str(error),
            fix="pass a NumPy array or a SciPy sparse matrix with one row per cell and one column per gene.",
        ) from error
    rule = f"{what} must hold counts: finite whole numbers of molecules, 0 or more."
    if 0 in view.shape:
        raise ScreproError(
            rule,
            got=f"{view.shape[0]} cells x {view.shape[1]} genes",
            fix="pass a matrix with at least one cell and one gene; a filter may have dropped all.",
        )
    any_counts = False
    for block in view.blocks(size=size):
        if (found := offence_in(block, view)) is not None:
            raise ScreproError(rule, got=f"value at {found}", fix=fix_for(found))
        any_counts = any_counts or bool(block.values.any())
    if not any_counts:
        raise ScreproError(rule, got="every value is 0", fix="pass the matrix that the counts are in.")


def fix_for(found: Offence) -> str:
    """What to do about an offence."""
    if found.kind in ("is not a number", "is infinite"):
        return "find how it came in; a molecule that was not seen is counted as 0, not left missing."
    return "put the raw counts in layers['counts'], X or raw of the file, before any normalisation or scaling."


def check_genes(names: Iterable[Any]) -> None:
    """Raise where a gene has no name or two genes share one."""
    index = pd.Index(list(names))
    empty = is_missing(pd.Series(index)).to_numpy()
    if empty.any():
        raise ScreproError(
            "Every gene must have a name.",
            got=f"{int(empty.sum())} of {len(index)} without one, first at position {int(np.argmax(empty))}",
            fix="drop these genes, or take another column: adata.var_names = adata.var['gene_ids'].",
        )
    twice = index[index.duplicated()].unique()
    if len(twice):
        few = ", ".join(f"{name} ({int((index == name).sum())} times)" for name in twice[:3])
        raise ScreproError(
            "Every gene name must occur once.",
            got=f"{len(twice)} names that occur more than once: {few}{', ...' if len(twice) > 3 else ''}",
            fix="adata.var_names_make_unique() before writing the file, or add up the columns of one gene.",
        )


def check_labels(
    obs: pd.DataFrame, key: str, *, parameter: str = "label_key", min_classes: int = 2, min_cells: int = 2
) -> None:
    """Raise unless a column of `obs` gives every cell a class that can be split into training and test.

    Parameters
    ----------
    obs
        One row per cell.
    key
        Name of the column.
    parameter
        Name of the parameter that chose the column, for the message.
    min_classes
        Fewest different classes: with one there is nothing to tell apart.
    min_cells
        Fewest cells of a class: 2, so that one may be trained on and one tested.
    """
    columns = [str(column) for column in obs.columns]
    if key not in obs.columns:
        close = nearest(key, columns)
        raise ScreproError(
            f"The cells must have a column {key!r} in obs.",
            got=f"columns {', '.join(columns)}" if columns else "no columns at all",
            fix=(f"did you mean {close!r}? " if close else "")
            + f"Name the right column, for example -p {parameter} {close or next(iter(columns), 'NAME')}.",
        )
    column = obs[key]
    if isinstance(column, pd.DataFrame):
        raise ScreproError(
            "A column of obs must have a name of its own.",
            got=f"{column.shape[1]} columns called {key!r}",
            fix="rename or drop all but one of them.",
        )
    missing = is_missing(column).to_numpy()
    if missing.any():
        raise ScreproError(
            f"Every cell must have a value in column {key!r}.",
            got=f"{int(missing.sum())} of {len(column)} without, first {obs.index[np.argmax(missing)]!r}",
            fix=f"drop these cells: adata[adata.obs[{key!r}].notna()], or give them a class of their own.",
        )
    if column.dtype.kind == "f" and (column != np.floor(column)).any():
        raise ScreproError(
            f"Column {key!r} must name classes.",
            got=f"fractional numbers such as {column.iloc[0]:.4g}: a measurement, not a class",
            fix="name a column of classes, or cut the measurement into classes first.",
        )
    sizes = column.astype(str).value_counts()
    if len(sizes) < min_classes:
        raise ScreproError(
            f"Column {key!r} must hold at least {min_classes} classes.",
            got=f"{len(sizes)}: {', '.join(map(repr, sizes.index)) or 'no cells'}",
            fix=f"name a column with more classes, for example -p {parameter} NAME.",
        )
    rare = sorted(sizes.index[sizes < min_cells])
    if rare:
        few = ", ".join(map(repr, rare[:3])) + (", ..." if len(rare) > 3 else "")
        raise ScreproError(
            f"Every class in column {key!r} must have {min_cells} cells or more, to train on and to test.",
            got=f"{len(rare)} of {len(sizes)} classes with fewer: {few}",
            fix="drop these cells, or merge the class with its nearest relative.",
        )


def check_same_genes(a: Any, b: Any) -> None:
    """Raise unless two sets of cells have the same genes in the same order.

    Parameters
    ----------
    a, b
        AnnData objects, or lists of gene names.
    """
    first, second = (pd.Index(getattr(side, "var_names", side)) for side in (a, b))
    if first.equals(second):
        return
    rule = "Both sets of cells must have the same genes in the same order."
    only_first, only_second = first.difference(second), second.difference(first)
    if not len(only_first) and not len(only_second) and len(first) == len(second):
        raise ScreproError(rule, got="the same genes in another order", fix="b = b[:, a.var_names].")
    sides = [
        f"{len(names)} only in the {side}" + (f" ({', '.join(map(str, names[:3]))})" if len(names) else "")
        for side, names in (("first", only_first), ("second", only_second))
    ]
    raise ScreproError(
        rule,
        got=f"{len(first)} and {len(second)} genes, {' and '.join(sides)}",
        fix="shared = a.var_names.intersection(b.var_names); a = a[:, shared]; b = b[:, shared].",
    )


def is_missing(column: pd.Series) -> pd.Series:
    """True where a cell has no value: NaN, None, an empty string, or the text "nan" that NaN becomes."""
    missing = column.isna()
    if column.dtype.kind in "iufb":
        return missing
    blank = [value for value in column.unique() if str(value).strip().lower() in ("", "nan", "<na>")]
    return missing | column.isin(blank)


def nearest(name: str, choices: list[str]) -> str | None:
    """The choice that a column name written in another way most likely meant; None if none is close."""
    plain: dict[str, str] = {}
    for choice in choices:
        plain.setdefault(plain_name(choice), choice)
    wanted = plain_name(name)
    if close := difflib.get_close_matches(wanted, list(plain), n=1, cutoff=0.7):
        return plain[close[0]]
    # asked for the cell type under our name: other names it goes by
    if wanted in {plain_name(known) for known in LABEL_NAMES}:
        for known in LABEL_NAMES:
            if (key := plain_name(known)) in plain:
                return plain[key]
    inside = [choice for key, choice in plain.items() if len(wanted) > 3 and wanted in key]
    return inside[0] if inside else None


def plain_name(name: str) -> str:
    """A column name without case, dots, blanks and underscores."""
    return re.sub(r"[\W_]+", "", str(name)).lower()
