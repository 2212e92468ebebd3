"""What a column of ``obs`` and the names of the genes say about the cells: rules of thumb, in one place."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from screpro.data.validate import is_missing, plain_name

__all__ = ["Column", "controls_among", "gene_names", "group_column", "is_unlabelled"]

MOST_CLASSES = 200

# what the name of a column says about it; the first that matches counts
ROLES = {
    "perturbation": r"perturb|guide|grna|sgrna|knockout|knockdown|targetgene|genetarget|drug|compound",
    "condition": r"^condition|stim|treat|disease|infect|genotype|^status$|^state$",
    "label": r"celltype|cellontology|celllabel|annotation|cluster|leiden|louvain|labels?$|populat",
    "batch": r"batch|donor|sample|^tech|replicate|^rep$|plate|lane|library|patient|subject|individual|assay"
    r"|^dataset|origident|method|protocol",
}
MEASURE = r"^n(counts?|genes?|umis?|cells)|count|total|umi|pct|percent|frac|score|size|doublet|^log|mito|time$"
NO_LABEL = ("", "nan", "none", "unassigned", "unknown", "unlabelled")
CONTROL = (
    r"(ctrl|ctl|controls?|nt|ntc|non[ _-]?targeting|scrambled?|vehicle|dmso(_tf 0\.0)?|pbs|mock|baseline|none|wt"
    r"|wild[ _-]?type|un(stim|treat|perturb|infect)\w*|healthy|normal|safe[ _-]?harbou?r|aavs1)"
)


def is_unlabelled(labels: Iterable[object]) -> np.ndarray:
    """Which labels (n,) say that a cell has none: a class of such cells would be a mixture of the others."""
    return np.isin(np.char.lower(np.asarray(list(labels)).astype(str)), NO_LABEL)


def controls_among(names: Iterable[str], control: str | None = None) -> list[str]:
    """Those of `names` that are `control` or, if none is given, that have a usual name of the untouched state."""
    if control is not None:
        return [name for name in names if name == control]
    return [name for name in names if re.fullmatch(CONTROL, name.strip(), re.IGNORECASE)]


@dataclass(frozen=True)
class Column:
    """A column of ``obs`` that divides the cells into groups."""

    name: str
    role: str  # "label", "batch", "condition", "perturbation" or "group"
    n_classes: int
    smallest: str  # name of the class with fewest cells
    smallest_cells: int
    missing: int  # cells without a value
    control: str | None  # value that looks like the untouched state


def gene_names(index: pd.Index) -> str:
    """What kind of names the genes have, and which species they suggest."""
    names = pd.Series(index[:5000].astype(str))
    if not len(names):
        return "none"
    if names.str.match(r"ENS[A-Z]*G\d{6,}").mean() > 0.5:
        species = {"ENSG": "human", "ENSMUSG": "mouse"}
        prefix = names.str.extract(r"^(ENS[A-Z]*G)\d")[0].mode()
        return f"Ensembl identifiers, {species.get(prefix.iloc[0], 'another species')}"
    if names.str.fullmatch(r"\d+").mean() > 0.5:
        return "numbers, not names"
    if names.str.fullmatch(r"[A-Z][A-Z0-9.\-]*(orf\d+)?[A-Z0-9.\-]*").mean() > 0.6:
        return "symbols, human"
    if names.str.fullmatch(r"[A-Z0-9][a-z0-9][A-Za-z0-9.\-]*").mean() > 0.6:
        return "symbols, mouse"
    return "names of no known kind"


def group_column(name: str, column: pd.Series, genes: set[str]) -> Column | None:
    """A column of ``obs`` if it divides the cells into a sensible number of groups, else None."""
    plain = plain_name(name)
    text_like = column.dtype.kind in "Ob" or isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype)
    if not text_like and (column.dtype.kind not in "iu" or re.search(MEASURE, plain)):
        return None
    missing = is_missing(column)
    sizes = column[~missing].astype(str).value_counts()
    if not 2 <= len(sizes) <= MOST_CLASSES and not (len(sizes) == 1 and re.search(ROLES["label"], plain)):
        return None
    if not text_like and len(sizes) * 10 > len(column):
        return None  # integers with few cells each: a measurement
    role = next((role for role, pattern in ROLES.items() if re.search(pattern, plain)), "group")
    control = next(iter(controls_among(sizes.index)), None)
    if control is None and role in ("condition", "perturbation"):
        control = next((v for v in sizes.index if re.match(r"(ctrl|control|nt|ntc)\b", v, re.IGNORECASE)), None)
    if role in ("condition", "group") and len(sizes) >= 3 and control is not None:
        # values that are names of genes, alone or joined as in "A+B": genes were perturbed
        pieces = [set(re.split(r"[+_,;|]", value)) & genes for value in sizes.index if value != control]
        role = "perturbation" if np.mean([bool(piece) for piece in pieces]) >= 0.5 else role
    if role == "group" and control is not None and len(sizes) <= 10:
        role = "condition"
    if role not in ("condition", "perturbation"):
        control = None
    return Column(name, role, len(sizes), sizes.index[-1], int(sizes.iloc[-1]), int(missing.sum()), control)
