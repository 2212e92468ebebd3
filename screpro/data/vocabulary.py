"""One list of genes for cells of several sources: merge, then select (PerturbDiff, appendix A.3.2).

Sources measure different genes. Choosing variable genes in each of 1 139 studies and uniting them gives more than
30 000 genes; choosing them in all cells at once does not fit in memory. The paper merges the studies into 23 files,
chooses 2 000 variable genes in each, and takes the union. A gene of this vocabulary that a source does not measure is
zero in all of its cells.

Where this differs: the paper does not say how genes that only some of the merged studies measure are treated before
selection; here they are zero in the others, and a gene counts as shared when any of the merged sources measures it. The
genes are chosen as everywhere in this project (`variable_panel`), on the training cells that are passed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import scipy.sparse as sp

from screpro.data.preprocess import variable_panel
from screpro.errors import ScreproError

__all__ = ["Vocabulary", "expand", "merge_then_select"]


@dataclass(frozen=True)
class Vocabulary:
    """The union of the variable genes of several groups of sources."""

    genes: tuple[str, ...]  # in the order in which groups bring them
    selected: Mapping[str, tuple[str, ...]]  # of every group, its own variable genes
    columns: Mapping[str, np.ndarray]  # of every source, (G_source,) index of each gene in `genes`, or -1
    groups: Mapping[str, tuple[str, ...]]  # group -> its sources

    def shared(self, name: str) -> int:
        """Genes of the vocabulary that a source, or any source of a group, measures: Table 3."""
        return int(self.measured(name).sum())

    def measured(self, name: str) -> np.ndarray:
        """(V,) bool: which genes of the vocabulary a source or group measures."""
        found = np.zeros(len(self.genes), dtype=bool)
        for source in self.groups.get(name, (name,)):
            if source not in self.columns:
                raise ScreproError(
                    "A vocabulary knows its own sources and groups.",
                    got=repr(name),
                    fix=f"one of {', '.join([*self.groups, *self.columns])}",
                )
            index = self.columns[source]
            found[index[index >= 0]] = True
        return found


def merge_then_select(
    sources: Mapping[str, tuple[sp.spmatrix, Sequence[str]]],
    *,
    n_genes: int = 2000,
    groups: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Vocabulary:
    """Union of the variable genes of every group of sources.

    Parameters
    ----------
    sources
        name -> counts (n, G) of its training cells, and the names of its G genes. Genes are the same where names are.
    n_genes
        Variable genes chosen in each group, of those that occur in its cells.
    groups
        group -> names of the sources that are merged before genes are chosen; a source in none is a group of its own.

    Returns
    -------
    Vocabulary

    Raises
    ------
    ScreproError
        There is no source; a source names a gene twice or not every gene, a group has an unknown source, a source is
        in two groups, or `n_genes` is below 1.
    """
    for name, (counts, genes) in sources.items():
        _check_genes(counts, genes, name)
    merged = {group: tuple(names) for group, names in groups.items()}
    inside = [name for names in merged.values() for name in names]
    unknown = [name for name in inside if name not in sources]
    clashes = [name for name in merged if name in sources and merged[name] != (name,)]
    if not sources or unknown or len(set(inside)) < len(inside) or clashes or n_genes < 1:
        raise ScreproError(
            "Groups divide the sources: each source in one group at most, groups and sources named differently, and at "
            "least one gene of each.",
            got=f"sources {', '.join(sources) or 'none'}; groups {merged}; {n_genes} genes",
            fix="correct the groups",
        )
    # in the order of the sources, so that the order of genes does not depend on who is merged
    merged |= {name: (name,) for name in sources if name not in inside}
    selected = {group: _select([sources[name] for name in names], n_genes) for group, names in merged.items()}
    union = tuple(dict.fromkeys(gene for genes in selected.values() for gene in genes))
    place = {gene: index for index, gene in enumerate(union)}
    columns = {
        name: np.array([place.get(str(gene), -1) for gene in genes], dtype=np.int64)
        for name, (_, genes) in sources.items()
    }
    return Vocabulary(union, selected, columns, merged)


def _select(parts: Sequence[tuple[sp.spmatrix, Sequence[str]]], n_genes: int) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(str(gene) for _, genes in parts for gene in genes))
    counts = sp.vstack([expand(counts, genes, names) for counts, genes in parts], format="csr")
    return tuple(names[g] for g in variable_panel(counts, n_genes))


def expand(x: sp.spmatrix, genes: Sequence[str], vocabulary: Vocabulary | Sequence[str]) -> sp.csr_matrix:
    """Put cells into the columns of a vocabulary; genes that they lack are zero, genes it lacks are left out.

    Parameters
    ----------
    x
        (n, G) counts or expression. Normalise before: what is left out belongs to the total of a cell.
    genes
        Names of the G columns.
    vocabulary
        A `Vocabulary`, or V names of genes.

    Returns
    -------
    CSR (n, V) of the type of `x`, columns in the order of the vocabulary. A zero of a gene that was not measured looks
    like any other: `Vocabulary.measured` tells them apart.

    Raises
    ------
    ScreproError
        A gene is named twice, the names are not those of the columns, or no gene is shared.
    """
    _check_genes(x, genes, "the cells")
    names = vocabulary.genes if isinstance(vocabulary, Vocabulary) else tuple(map(str, vocabulary))
    place = {gene: index for index, gene in enumerate(names)}
    target = np.array([place.get(str(gene), -1) for gene in genes], dtype=np.int64)
    shared = np.flatnonzero(target >= 0)
    if len(place) < len(names) or not len(shared):
        raise ScreproError(
            "A vocabulary names genes once, and shares at least one with the cells.",
            got=f"{len(names)} names, {len(place)} different, {len(shared)} shared",
            fix="use the same kind of names, symbols or identifiers, on both sides",
        )
    kept = sp.csr_matrix(x)[:, shared].tocoo()
    return sp.csr_matrix((kept.data, (kept.row, target[shared][kept.col])), shape=(x.shape[0], len(names)))


def _check_genes(x: sp.spmatrix, genes: Sequence[str], name: str) -> None:
    if len(genes) != x.shape[1] or len(set(map(str, genes))) < len(genes):
        raise ScreproError(
            "Every column has a name of its own.",
            got=f"{name}: {x.shape[1]} columns, {len(genes)} names, {len(set(map(str, genes)))} different",
            fix="pass adata.var_names after adata.var_names_make_unique()",
        )
