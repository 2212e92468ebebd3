"""Cells of the pre-training page: sources in one space of genes and contexts, and targets that are scored.

PerturbDiff, appendix A.3. Every source of pre-training is put into the columns of one vocabulary; a gene that it does
not measure is zero. Perturbation sets enter with the training side of their split alone. For tier `ci` two simulated
laboratories share a biology.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from anndata import AnnData

from screpro.data.heldout import cell_roles, read_split, splits_dir
from screpro.data.populations import Populations, populations, values_of
from screpro.data.simulate_atlas import atlas
from screpro.data.validate import check_labels
from screpro.data.vocabulary import Vocabulary, expand, merge_then_select
from screpro.errors import ScreproError
from screpro.tasks.responses import ResponseSplit, Scorer, hold_out

__all__ = [
    "Space",
    "Study",
    "Target",
    "check_unseen",
    "columns",
    "laboratories",
    "prepare",
    "real_split",
    "subsample",
    "unify",
    "unperturbed",
]


@dataclass(frozen=True)
class Space:
    """Genes and contexts that all sources are put into."""

    vocabulary: Vocabulary
    contexts: tuple[str, ...]

    def place(self, cells: Populations) -> Populations:
        """Cells (n, V) in the columns of the vocabulary, with the common codes of contexts.

        Raises
        ------
        ScreproError
            They share no gene with it, or have a context that no source has.
        """
        codes = {name: code for code, name in enumerate(self.contexts)}
        if unknown := [name for name in cells.contexts if name not in codes]:
            raise ScreproError(
                "Contexts are those of the sources.",
                got=", ".join(unknown[:6]),
                fix="pass the training cells of this set to unify",
            )
        own = np.array([codes[name] for name in cells.contexts], dtype=np.int64)
        return replace(
            cells,
            x=expand(cells.x, cells.genes, self.vocabulary),
            counts=expand(cells.counts, cells.genes, self.vocabulary),
            context=own[cells.context],
            contexts=self.contexts,
            genes=self.vocabulary.genes,
        )


def unify(sources: Mapping[str, Populations], *, n_genes: int) -> Space:
    """Vocabulary of the training cells of several sources, and the union of their contexts by name.

    Parameters
    ----------
    sources
        Name -> training cells with all genes the source measures.
    n_genes
        Variable genes that each source brings.
    """
    vocabulary = merge_then_select({name: (c.counts, c.genes) for name, c in sources.items()}, n_genes=n_genes)
    return Space(vocabulary, tuple(dict.fromkeys(name for c in sources.values() for name in c.contexts)))


def columns(cells: Populations, genes: Sequence[str]) -> Populations:
    """The cells with some of their genes, in the order given.

    Raises
    ------
    ScreproError
        A gene is not among theirs.
    """
    place = {gene: column for column, gene in enumerate(cells.genes)}
    if missing := [gene for gene in genes if gene not in place]:
        raise ScreproError(
            "A panel is made of genes that the cells have.",
            got=f"{len(missing)} others, such as {missing[0]}",
            fix="choose the panel from these cells",
        )
    at = [place[gene] for gene in genes]
    return replace(cells, x=cells.x[:, at].tocsr(), counts=cells.counts[:, at].tocsr(), genes=tuple(genes))


def unperturbed(adata: AnnData, *, name: str, context_key: str = "cell_type") -> Populations:
    """Cells of a source without perturbations, all genes that occur, told apart by context alone, as CellxGene's.

    Parameters
    ----------
    adata
        Counts in ``X``, or log1p values, as for `populations`.
    name
        Of the source.
    context_key
        Column of ``obs``.

    Raises
    ------
    ScreproError
        The column is missing or has gaps, values are not counts, or a cell has none.
    """
    x, counts = values_of(adata)
    check_labels(adata.obs, context_key)
    seen = np.flatnonzero(counts.getnnz(axis=0) > 0)
    contexts, codes = np.unique(adata.obs[context_key].astype(str).to_numpy(), return_inverse=True)
    nothing = np.zeros(adata.n_obs, dtype=np.int64)
    return Populations(
        x=x[:, seen].tocsr(),
        counts=counts[:, seen].tocsr(),
        perturbation=nothing,
        context=codes.astype(np.int64),
        batch=nothing.copy(),
        genes=tuple(map(str, adata.var_names[seen])),
        perturbations=(f"none of {name}",),
        contexts=tuple(map(str, contexts)),
        batches=(name,),
    )


def check_unseen(source: Populations, asked: Populations) -> None:
    """Refuse a source that holds cells of a condition that is asked for.

    Raises
    ------
    ScreproError
        The same perturbation in the same context and batch, by name, is in both.
    """

    def conditions(c: Populations) -> set[tuple[str, str, str]]:
        codes = np.unique(np.stack([c.perturbation, c.context, c.batch]), axis=1).T
        return {(c.perturbations[p], c.contexts[k], c.batches[b]) for p, k, b in codes}

    seen, wanted = conditions(source), conditions(asked)
    if both := sorted(seen & wanted):
        raise ScreproError(
            "No cell of a condition that is asked for may enter pre-training.",
            got=f"{len(both)} conditions in both, such as {', '.join(both[0])}",
            fix="pre-train on the training side of the split",
        )


class Target(NamedTuple):
    """A perturbation set that is scored."""

    name: str
    panel: ResponseSplit  # on its own variable genes
    placed: ResponseSplit  # on the vocabulary
    columns: np.ndarray  # of the panel in the vocabulary
    scorer: Scorer

    def on_panel(self, generated: np.ndarray) -> np.ndarray:
        """Generated cells (n, V) or (n, G) as (n, G)."""
        return generated if generated.shape[1] == len(self.columns) else generated[:, self.columns]


class Study(NamedTuple):
    """Sources of pre-training in one space, and targets."""

    space: Space
    sources: dict[str, Populations]
    targets: dict[str, Target]


def prepare(
    splits: Mapping[str, ResponseSplit], others: Mapping[str, Populations] = MappingProxyType({}), *, genes: int
) -> Study:
    """Put everything into one vocabulary, chosen on training cells.

    Parameters
    ----------
    splits
        Name of a perturbation set -> its split, all genes it measures.
    others
        Sources without perturbations.
    genes
        Variable genes that each source brings.

    Raises
    ------
    ScreproError
        A training side holds a condition that is asked for.
    """
    for split in splits.values():
        for asked in (split.test, split.validation):
            check_unseen(split.train, asked)
    everything = {name: split.train for name, split in splits.items()} | dict(others)
    space = unify(everything, n_genes=genes)
    targets = {}
    for name, split in splits.items():
        names = space.vocabulary.selected[name]
        panel = ResponseSplit(*(columns(part, names) for part in split))
        placed = ResponseSplit(*(space.place(part) for part in split))
        place = {gene: column for column, gene in enumerate(space.vocabulary.genes)}
        at = np.array([place[gene] for gene in names])
        targets[name] = Target(name, panel, placed, at, Scorer(panel.test, panel.controls))
    sources = {name: target.placed.train for name, target in targets.items()}
    return Study(space, sources | {name: space.place(cells) for name, cells in others.items()}, targets)


def subsample(cells: Populations, ratio: float, *, seed: int) -> Populations:
    """A uniform share of the cells of every perturbation, at least one of each; control cells stay all."""
    if ratio >= 1:
        return cells
    order = np.random.default_rng(seed).permutation(len(cells))
    order = order[np.argsort(cells.perturbation[order], kind="stable")]
    _, start, count = np.unique(cells.perturbation[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(start, count)
    kept = np.repeat(np.maximum(1, np.round(ratio * count)), count)
    return cells.take(np.sort(order[(rank < kept) | (cells.perturbation[order] == 0)]))


def laboratories(
    *, n_perturbations: int = 10, n_donors: int = 2, cells: int = 16, n_genes: int = 140, seed: int = 0
) -> tuple[dict[str, ResponseSplit], AnnData]:
    """One simulated biology seen by two laboratories: other contexts, and other genes, three in seven in common.

    Returns
    -------
    Name -> split with the last of its contexts held out but three tenths of the perturbations, genes unselected; and
    the whole atlas, contexts 0 to 2 of which are "simulated_atlas" and 3 and 4 "simulated_atlas_b".
    """
    whole = atlas(
        n_contexts=5, n_perturbations=n_perturbations, n_donors=n_donors, cells=cells, control_cells=3 * cells,
        n_genes=n_genes, rng=np.random.default_rng(seed),
    )  # fmt: skip
    context = whole.obs["context"].cat.codes.to_numpy()
    own = 5 * n_genes // 7
    parts = {"simulated_atlas": (context < 3, slice(0, own)), "simulated_atlas_b": (context > 2, slice(-own, None))}
    splits = {}
    for name, (rows, genes) in parts.items():
        part = whole[rows, genes].copy()
        part = part[np.asarray(part.X.sum(1)).ravel() > 0].copy()
        part.obs["context"] = part.obs["context"].cat.remove_unused_categories()
        cells_of = populations(part, context_key="context", batch_key="donor", n_genes=None)
        splits[name] = hold_out(cells_of, kept=0.3, seed=0)
    return splits, whole


def real_split(
    adata: AnnData,
    name: str,
    *,
    keys: Mapping[str, str | None] | None = None,
    control: str | None = None,
    most: int | None = 60,
    most_controls: int | None = 200,
    seed: int = 0,
) -> ResponseSplit:
    """The split of a real set, genes unselected: that of its file in ``data/splits``, else its last context held out.

    Parameters
    ----------
    adata
        As for `populations`.
    name
        Of the set in the registry, by which the file is found.
    keys
        Columns as for `populations`; by default those of the file.
    control
        Label of the control cells, as for `populations`; by default that of the file.
    most, most_controls
        Cells kept of every perturbation in a context and batch, and of controls, drawn at random; None keeps all.
    seed
        Of that choice.
    """
    found = [split for path in sorted(splits_dir().glob("*.toml")) if (split := read_split(path.stem)).dataset == name]
    columns_of = ("perturbation_key", "context_key", "batch_key")
    keys = dict(keys or {key: getattr(found[0], key) or None for key in columns_of})
    cells = populations(adata, **keys, control=control or (found[0].control if found else None), n_genes=None)
    role = None
    if found:
        role = cell_roles(
            found[0],
            perturbation=np.array(cells.perturbations)[cells.perturbation],
            context=np.array(cells.contexts)[cells.context],
            batch=np.array(cells.batches)[cells.batch],
            ignore_absent=True,
        ).role
    order = np.random.default_rng(seed).permutation(len(cells))
    order = order[np.argsort(cells.group()[order], kind="stable")]
    _, start, count = np.unique(cells.group()[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(start, count)
    limits = [len(cells) if limit is None else limit for limit in (most_controls, most)]
    kept = rank < np.where(cells.perturbation[order] == 0, *limits)
    if role is not None:
        kept &= role[order] != "excluded"
    rows = np.sort(order[kept])
    return hold_out(cells.take(rows), None if role is None else role[rows])
