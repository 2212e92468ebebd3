"""What is in a file of cells or a set of the registry, and which of the book's tasks it can be used for.

Nothing is raised for bad contents: a problem is a line of the description. Matrices are read block by block,
so a file may be larger than memory.
"""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from screpro.data.columns import Column, gene_names, group_column
from screpro.data.own import PLACES, Parts, open_h5ad, parts_of
from screpro.data.stored import Stored
from screpro.data.validate import LABEL_NAMES, check_genes, check_labels, offence_in, plain_name
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from screpro.data.registry import Entry

__all__ = ["Description", "Use", "describe", "describe_set"]

AT_MOST = 1 << 25  # values looked at in one matrix; larger ones are sampled, and the description says so

# pages that run a task on a file of one's own
PAGES = {
    "annotation": "scdiff/annotation",
    "imputation": "scdiff/imputation",
    "generation": "scldm/generation",
    "perturbation across cell types": "scldm/perturbation",
    "gene perturbation": "scdiff/gene_perturbation",
}


@dataclass(frozen=True)
class Use:
    """Whether the cells can be used for one task."""

    task: str
    possible: bool
    reason: str  # what it rests on, or why not
    command: str | None  # line to copy, where the book has a page that takes a file of one's own


@dataclass
class Description:
    """What `describe` found. ``str()`` gives the text for a terminal."""

    source: str
    registry: dict[str, str] = field(default_factory=dict)  # a set of the registry: its facts, see `describe_set`
    n_cells: int = 0
    n_genes: int = 0
    counts_in: str | None = None  # "layers['counts']", "X" or "raw.X"
    sparsity: float | None = None  # share of entries that are 0
    counts_per_cell: float | None = None  # median total
    genes_per_cell: float | None = None  # median number of genes seen
    cells_checked: int = 0  # cells whose counts were looked at
    gene_names: str = ""  # "symbols, human" and the like
    columns: list[Column] = field(default_factory=list)
    tasks: list[Use] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain types."""
        return asdict(self)

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per task: task, possible, reason, command."""
        return [asdict(use) for use in self.tasks]

    def __str__(self) -> str:
        lines = [self.source]
        lines += [f"  {fact}: {text}" for fact, text in self.registry.items()]
        if self.n_cells:
            lines.append(f"  {self.n_cells} cells x {self.n_genes} genes ({self.gene_names})")
        if self.counts_in:
            lines.append(f"  counts in {self.counts_in}")
            if self.sparsity is not None:
                lines.append(f"  {self.sparsity:.1%} zeros")
            if self.counts_per_cell is not None:
                lines.append(f"  median cell: {self.counts_per_cell:.0f} counts in {self.genes_per_cell:.0f} genes")
            if self.cells_checked < self.n_cells:
                lines.append(f"  looked at {self.cells_checked} of the cells")
        if self.columns:
            lines.append("  columns that group the cells")
            width = max(len(column.name) for column in self.columns)
            for c in self.columns:
                text = f"    {c.name:<{width}}  {c.role:<12} {c.n_classes:>4} classes, "
                text += f"smallest {c.smallest!r} with {c.smallest_cells}"
                text += f", {c.missing} cells without" if c.missing else ""
                text += f", control {c.control!r}" if c.control else ""
                lines.append(text)
        if self.problems:
            lines.append("  problems")
            lines += ["    " + problem.replace("\n", "\n    ") for problem in self.problems]
        if self.tasks:
            lines.append("  can be used for")
        for use in self.tasks:
            lines.append(f"    {'yes' if use.possible else 'no ':<3}  {use.task}: {use.reason}")
            if use.command:
                lines.append(f"           {use.command}")
        return "\n".join(lines)


def describe(source: Any, *, dataset: str | None = None) -> Description:
    """Say what a file or an AnnData holds and what it can be used for.

    Parameters
    ----------
    source
        Path to an ``.h5ad``, or an AnnData.
    dataset
        How the command to copy names an AnnData: its name in the registry. Default: no command is given.

    Returns
    -------
    Description
        Bad contents are listed under ``problems``; a task that they prevent says so.

    Raises
    ------
    ScreproError
        Only if there is no such file.
    """
    if not isinstance(source, str | Path):
        found = Description(str(source.uns.get("source", "cells in memory")) if hasattr(source, "uns") else "")
        _fill(found, parts_of(source), dataset)
        return found
    path = Path(source).expanduser()
    found = Description(str(path))
    try:
        with open_h5ad(path) as file:
            _fill(found, parts_of(file), str(path))
    except ScreproError as error:
        if not path.is_file():
            raise
        # whatever was found up to here stays
        found.problems.append(str(error))
        found.tasks = [Use(task, False, "the file cannot be read to its end", None) for task in TASKS]
    return found


def describe_set(name: str) -> Description:
    """Say what the registry knows of a data set and, if its files are here, what is in them; nothing is downloaded.

    Parameters
    ----------
    name
        Name in the registry.

    Returns
    -------
    Description
        With ``registry``: title, source, licence, citation and split rule, what it is used for and, if it is not here,
        where to get it. Files that are here but cannot be read are listed under ``problems``.

    Raises
    ------
    ScreproError
        The registry has no such name.
    """
    from screpro.data import registry

    entry, where = registry.get(name), registry.available(name)
    found = Description(name)
    if where not in ("to download", "manual"):
        try:
            _fill(found, parts_of(registry.load(name)), name)
        except ScreproError as error:
            found.problems.append(str(error))
    found.registry = _facts(entry, where)
    return found


def _facts(entry: "Entry", where: str) -> dict[str, str]:
    """What stands above the contents: one line each, those that are known."""
    used = [f"{use.paper}: {use.dataset} ({', '.join(use.items)})" for use in entry.used_in]
    facts = {
        "title": entry.title,
        "source": ", ".join(filter(None, [entry.source, entry.accession])),
        "licence": entry.licence,
        "citation": entry.citation + (f", doi:{entry.doi}" if entry.doi else ""),
        "split": entry.split,
        "preprocessing": entry.preprocessing,
        "used in": "; ".join(used),
        "stands in for": ", ".join(entry.stands_in_for),
        "keep in mind": "; ".join(entry.cautions),
    }
    if where == "to download":
        size = f" ({entry.bytes / 1e6:,.1f} MB)" if entry.bytes else ""
        facts["not here"] = f"`screpro data get {entry.name}` downloads it{size}"
    elif where == "manual":
        facts["not here"] = f"{entry.obtain}; `screpro data get {entry.name}` says where to put it"
    return {fact: text for fact, text in facts.items() if text}


TASKS = (
    "annotation",
    "imputation",
    "generation",
    "perturbation across cell types",
    "gene perturbation",
    "several batches",
)


def _fill(found: Description, parts: Parts, dataset: str | None) -> None:
    found.n_cells = len(parts.obs)
    reasons = _find_counts(found, parts)
    if found.counts_in is None:
        found.problems.append("no counts: " + ("; ".join(reasons) or "there is no matrix"))
    genes = parts.var if found.counts_in is None else parts.genes(found.counts_in)
    found.n_genes, found.gene_names = len(genes), gene_names(genes.index)
    genes_problem = None
    try:
        check_genes(genes.index)
    except ScreproError as error:
        genes_problem = error
        found.problems.append(str(error))
    names = set(genes.index.astype(str))
    for name in parts.obs.columns[~parts.obs.columns.duplicated()]:
        if (column := group_column(str(name), parts.obs[name], names)) is not None:
            found.columns.append(column)
    blocked = None
    if found.counts_in is None:
        blocked = "there are no counts"
    elif genes_problem is not None:
        blocked = f"gene names: {genes_problem.got}"
    _judge(found, parts.obs, blocked, dataset)


def _find_counts(found: Description, parts: Parts) -> list[str]:
    """Set what `found` says about counts; return why places do not hold them."""
    reasons = []
    for place in (place for place in PLACES if place in parts.matrices):
        if (reason := _scan(found, parts.matrices[place])) is None:
            found.counts_in = place
            break
        reasons.append(f"{place} {reason}")
    return reasons


def _scan(found: Description, view: Stored) -> str | None:
    """Look through a matrix once: None where it holds counts (noted in `found`), else why not."""
    n, m = view.shape
    totals, seen = np.zeros(n), np.zeros(n)
    looked = np.zeros(n, dtype=bool)
    n_values = n_nonzero = 0
    for block in view.blocks(at_most=AT_MOST):
        if (offence := offence_in(block, view)) is not None:
            return str(offence)
        if view.layout == "csc":
            rows = block.minor
            looked[:] = True
        else:
            rows = np.repeat(np.arange(block.start, block.stop), np.diff(block.ends))
            looked[block.start : block.stop] = True
        totals += np.bincount(rows, weights=block.values, minlength=n)
        seen += np.bincount(rows, weights=block.values != 0, minlength=n)
        n_values += len(block.values)
        n_nonzero += int(np.count_nonzero(block.values))
    if not n_nonzero:
        return "holds only zeros"
    sampled = n_values < view.n_stored
    found.cells_checked = int(looked.sum())
    # of a sampled matrix stored by columns no cell was seen whole
    if not (view.layout == "csc" and sampled):
        found.counts_per_cell = float(np.median(totals[looked]))
        found.genes_per_cell = float(np.median(seen[looked]))
    found.sparsity = 1 - (n_nonzero / n_values) * (view.n_stored / (n * m))
    return None


def _judge(found: Description, obs: pd.DataFrame, blocked: str | None, dataset: str | None) -> None:
    """Decide every task; `blocked` is why none of them can be done."""

    def use(task: str, possible: bool, reason: str, parameters: Mapping[str, str] | None = None) -> None:
        """`parameters` of the page that does it; None: there is no page for it."""
        command = None
        if possible and not blocked and parameters is not None and dataset:
            words = [word for name, value in parameters.items() for word in ("-p", name, value)]
            command = shlex.join(["screpro", "run", PAGES[task], "-p", "dataset", dataset, *words])
        found.tasks.append(Use(task, possible and not blocked, blocked or reason, command))

    label, why_not = _best_label(found.columns, obs)
    batch = _first(found.columns, "batch", lambda c: not c.missing)
    if label:
        use("annotation", True, f"{label.n_classes} classes in {label.name!r}", {"label_key": label.name})
    else:
        use("annotation", False, why_not)
    use("imputation", True, "needs counts only", {"label_key": label.name if label else "none"})
    use(
        "generation",
        True,
        f"conditional on {label.name!r}" if label else "unconditional: there are no labels",
        {"label_key": label.name} if label else None,
    )
    use("perturbation across cell types", *_across_types(found.columns, label, why_not, obs))

    gene = _first(found.columns, "perturbation", lambda c: c.control is not None and c.n_classes >= 3)
    some = _first(found.columns, "perturbation", lambda c: True)
    if gene:
        given = {"perturbation_key": gene.name, "control": gene.control}
        use("gene perturbation", True, f"{gene.n_classes - 1} in {gene.name!r}, control {gene.control!r}", given)
    elif some:
        lacks = "fewer than two perturbations" if some.control else "no value that looks like a control"
        use("gene perturbation", False, f"{some.name!r} has {lacks}")
    else:
        use("gene perturbation", False, "no column names perturbed genes")
    use("several batches", bool(batch), f"{batch.n_classes} in {batch.name!r}" if batch else "no batch column")


def _first(columns: list[Column], role: str, good: Any) -> Column | None:
    return next((column for column in columns if column.role == role and good(column)), None)


def _best_label(columns: list[Column], obs: pd.DataFrame) -> tuple[Column | None, str]:
    """The most telling column that passes the checks of a classifier; else None and the reason."""
    known = [plain_name(name) for name in LABEL_NAMES]

    def rank(column: Column) -> tuple[bool, bool, int]:
        plain = plain_name(column.name)
        numbered = bool(obs[column.name].astype(str).str.isdigit().all())  # clusters that nobody named
        return (column.role != "label", numbered, known.index(plain) if plain in known else len(known))

    reason = "no column that looks like cell types"
    if others := [c.name for c in columns if c.role == "group" and not c.missing]:
        reason += f"; if one holds them, run with -p label_key {shlex.quote(others[0])}"
        reason += f" (or {', '.join(others[1:])})" if others[1:] else ""
    # a column called "split" or "sex" is no cell type: an unnamed group needs three classes to be offered
    likely = [c for c in columns if c.role == "label" or (c.role == "group" and c.n_classes >= 3)]
    for k, column in enumerate(sorted(likely, key=rank)):
        try:
            check_labels(obs, column.name)
        except ScreproError as error:
            reason = f"{error.rule.rstrip('.')}, got {error.got}" if k == 0 else reason
        else:
            return column, ""
    return None, reason


def _across_types(
    columns: list[Column], label: Column | None, why_not: str, obs: pd.DataFrame
) -> tuple[bool, str, dict[str, str] | None]:
    """Can the effect of a condition be learnt on some cell types, or lines, and predicted for another?"""
    # without cell types an unnamed group, lines most often, may stand for them
    contexts = [label] if label else [c for c in columns if c.role == "group" and not c.missing]
    reason = "no column of conditions" if contexts else why_not
    for column in columns:
        if column.role not in ("condition", "perturbation"):
            continue
        if column.control is None:
            reason = f"no value of {column.name!r} looks like a control"
            continue
        for context in contexts:
            table = pd.crosstab(obs[context.name].astype(str), obs[column.name].astype(str))
            treated = table.drop(columns=column.control)
            n_types = int(((treated > 0).any(axis=1) & (table[column.control] > 0)).sum())
            if n_types >= 2:
                given = {"type_key": context.name, "perturbation_key": column.name, "control": column.control}
                found = f"{column.name!r} against {column.control!r} in {n_types} classes of {context.name!r}"
                return True, found, given
            reason = f"{column.name!r} and its control {column.control!r} meet in fewer than two cell types"
    return False, reason, None
