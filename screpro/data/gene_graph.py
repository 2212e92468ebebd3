"""Graphs between genes: what lets a model say something about a gene whose perturbation it has never seen.

A graph has directed, weighted edges; row i of ``weights`` holds the neighbours that gene i listens to. Three ways to
get one: genes that share gene ontology terms (as GEARS and scDiff use), genes that vary together in control cells,
or a drawn graph whose effects on cells are known (`planted`).
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "GeneGraph",
    "Planted",
    "coexpression_graph",
    "edge_graph",
    "file_graph",
    "gene2go_terms",
    "gene_terms",
    "normalised",
    "ontology_graph",
    "planted",
    "shuffled",
    "written_terms",
]


class GeneGraph(NamedTuple):
    """N genes and their neighbours."""

    genes: tuple[str, ...]  # (N,) the nodes
    weights: sp.csr_matrix  # (N, N) float32, row i: neighbours gene i listens to; the diagonal is empty
    source: str  # where the edges come from, in words


def gene_terms(path: str | Path) -> dict[str, frozenset[str]]:
    """Terms of every gene from a table with the columns ``gene`` and ``term``, one pair a row (.csv or .tsv, also .gz).

    GEARS publishes the same as a pickle, which is not read here: unpickling runs whatever the file says.

    Raises
    ------
    ScreproError
        The file cannot be read as such a table, or has no pair.
    """
    table = _table(path, {"gene", "term"})
    groups = table.groupby("gene")["term"]
    return {str(gene): frozenset(map(str, terms)) for gene, terms in groups}


def gene2go_terms(gene2go: str | Path, gene_info: str | Path, *, taxon: int = 9606) -> dict[str, frozenset[str]]:
    """Terms of every gene of a species from NCBI's ``gene2go`` and ``gene_info`` (tab-separated, also .gz).

    All evidence counts, as for GEARS; a term that a gene is said *not* to have is left out.

    Parameters
    ----------
    gene2go
        Columns ``#tax_id``, ``GeneID``, ``GO_ID``, ``Qualifier`` among others: numbers of genes and their terms.
    gene_info
        Columns ``#tax_id``, ``GeneID``, ``Symbol`` among others: what these genes are called.
    taxon
        The species; 9606 is human.

    Raises
    ------
    ScreproError
        A file cannot be read as such a table, or none of its genes is of the species.
    """
    own = []
    for path, columns in ((gene2go, ["GO_ID", "Qualifier"]), (gene_info, ["Symbol"])):
        columns = ["#tax_id", "GeneID", *columns]
        table = _table(path, set(columns), comment=None, dtype=str, keep_default_na=False)[
            columns
        ]  # a gene may be "NA"
        own.append(table[table["#tax_id"] == str(taxon)])
    terms, names = own
    pairs = terms[~terms["Qualifier"].str.upper().str.startswith("NOT")].merge(names, on="GeneID")
    if pairs.empty:
        raise ScreproError(
            "gene2go and gene_info have genes of the species in common.",
            got=f"none of taxon {taxon} in {Path(gene2go).name} and {Path(gene_info).name}",
            fix="take both files for the species, or name another `taxon`",
        )
    return {gene: frozenset(those) for gene, those in pairs.groupby("Symbol")["GO_ID"]}


def written_terms() -> dict[str, frozenset[str]]:
    """Terms of the genes perturbed in the stand-in data sets, from the hand-written ``gene_function.toml``.

    A stand-in for the annotation that GEARS and scDiff use: about two dozen terms for 56 genes.
    """
    import tomllib
    from importlib.resources import files

    listed = tomllib.loads(files("screpro.data").joinpath("gene_function.toml").read_text())["terms"]
    genes = sorted({gene for members in listed.values() for gene in members})
    return {gene: frozenset(term for term, members in listed.items() if gene in members) for gene in genes}


def ontology_graph(
    terms: Mapping[str, Collection[str]],
    genes: Sequence[str],
    *,
    k: int = 20,
    at_least: float = 0.1,
    source: str = "shared gene ontology terms",
) -> GeneGraph:
    r"""Neighbours by shared terms: the Jaccard index $|A \cap B| / |A \cup B|$ of the terms of two genes.

    Parameters
    ----------
    terms
        Terms by gene.
    genes
        Nodes that are asked for. Genes without a term are no nodes of the graph: nothing is known about them.
    k
        Neighbours a gene keeps at most, the closest first (GEARS: 20, beside itself).
    at_least
        Edges of a smaller index are left out (GEARS: 0.1).
    source
        Kept in the graph.
    """
    nodes = tuple(gene for gene in dict.fromkeys(genes) if terms.get(gene))
    if not nodes:
        raise ScreproError("A gene graph needs genes with terms.", got="none", fix="check the names of the genes")
    known = {term: i for i, term in enumerate(dict.fromkeys(t for gene in nodes for t in terms[gene]))}
    columns = [[known[term] for term in set(terms[gene])] for gene in nodes]
    sizes = np.array([len(own) for own in columns])
    pointer = np.concatenate([[0], np.cumsum(sizes)])
    has = sp.csr_matrix((np.ones(sizes.sum()), np.concatenate(columns), pointer), shape=(len(nodes), len(known)))
    shared = (has @ has.T).tocoo()
    jaccard = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    return GeneGraph(nodes, _top(shared.row, shared.col, jaccard, len(nodes), k=k, above=at_least), source)


def edge_graph(path: str | Path, genes: Sequence[str], *, k: int = 20) -> GeneGraph:
    """A graph from a table of edges with the columns ``source``, ``target`` and ``importance``, as GEARS writes it.

    Nodes are the genes among `genes` that have an edge; a gene listens to its `k` most important sources.
    """
    table = _table(path, {"source", "target", "importance"})
    table = table[table["source"].isin(genes) & table["target"].isin(genes)]
    nodes = tuple(gene for gene in dict.fromkeys(genes) if gene in set(table["source"]) | set(table["target"]))
    if not nodes:
        raise ScreproError("A gene graph needs genes with edges.", got="none", fix="check the names of the genes")
    number = {gene: i for i, gene in enumerate(nodes)}
    row, column = table["target"].map(number).to_numpy(), table["source"].map(number).to_numpy()
    weights = _top(row, column, table["importance"].to_numpy(float), len(nodes), k=k, above=0.0)
    return GeneGraph(nodes, weights, f"edges of {Path(path).name}")


def file_graph(path: str | Path, genes: Sequence[str]) -> GeneGraph:
    """The graph of a user's own table over `genes`: of edges (`edge_graph`) or of terms (`gene_terms`).

    Raises
    ------
    ScreproError
        The file cannot be read as either, or names none of the genes.
    """
    table = _table(path, set())
    edges = "importance" in table.columns
    terms = {} if edges else gene_terms(path)
    named = set(table.get("source", table.iloc[:, 0]).astype(str)) if edges else set(terms)
    if not named & set(genes):
        raise ScreproError(
            "A graph_file names genes of the data.",
            got=f"{path} with {', '.join(sorted(named)[:3])}, ..., none of {', '.join(list(genes)[:3])}, ...",
            fix="write its genes as the data does",
        )
    if edges:
        return edge_graph(path, genes)
    return ontology_graph(terms, genes, source=f"shared terms of {Path(path).name}")


def coexpression_graph(
    x: sp.spmatrix | np.ndarray,
    measured: Sequence[str],
    genes: Sequence[str] | None = None,
    *,
    k: int = 20,
    at_least: float = 0.4,
) -> GeneGraph:
    """Neighbours by the absolute Pearson correlation of expression over cells.

    Parameters
    ----------
    x
        (n, G) log-normalised cells: training cells only, or the graph leaks.
    measured
        (G,) names of its columns.
    genes
        Nodes; by default all measured genes. Those that are not measured, or do not vary, stay without neighbours.
    k, at_least
        Neighbours kept at most, and the smallest absolute correlation (GEARS: 20 and 0.4).
    """
    x = np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != len(measured) or len(x) < 2:
        raise ScreproError(
            "Co-expression needs two cells or more and a name for every gene.",
            got=f"{x.shape} values, {len(measured)} names",
            fix="pass cells x genes and the names of the columns",
        )
    nodes = tuple(measured if genes is None else dict.fromkeys(genes))
    column = {gene: i for i, gene in enumerate(measured)}
    present = np.array([i for i, gene in enumerate(nodes) if gene in column], dtype=int)
    own = x[:, [column[nodes[i]] for i in present]]
    own = own - own.mean(axis=0)
    size = np.sqrt((own**2).sum(axis=0))
    own = np.divide(own, size, out=np.zeros_like(own), where=size > 1e-12)
    row, col = (found.ravel() for found in np.meshgrid(present, present, indexing="ij"))
    weights = _top(row, col, np.abs(own.T @ own).ravel(), len(nodes), k=k, above=at_least)
    return GeneGraph(nodes, weights, "co-expression in training cells")


def shuffled(graph: GeneGraph, *, seed: int) -> GeneGraph:
    """The same edges between other genes: names are permuted, so the shape stays and the meaning goes."""
    order = np.random.default_rng(seed).permutation(len(graph.genes))
    return GeneGraph(graph.genes, sp.csr_matrix(graph.weights[order][:, order]), f"shuffled {graph.source}")


def normalised(graph: GeneGraph) -> sp.csr_matrix:
    r"""$D^{-1/2} (A + I) D^{-1/2}$ with $D$ the row sums of $A + I$: the operator of simple graph convolution.

    For a directed graph the row sums (what a gene receives) scale both sides, as in the common implementation.
    """
    full = graph.weights + sp.identity(len(graph.genes), dtype=np.float32, format="csr")
    scale = sp.diags(1 / np.sqrt(np.asarray(full.sum(axis=1)).ravel()))
    return sp.csr_matrix(scale @ full @ scale, dtype=np.float32)


def _top(row, column, value, n: int, *, k: int, above: float) -> sp.csr_matrix:
    """The `k` largest values of each row that are above the limit and off the diagonal, as a matrix (n, n)."""
    if k < 1:
        raise ScreproError("A gene keeps at least one neighbour.", got=f"k={k}", fix="raise k")
    kept = (row != column) & (value > above)
    row, column, value = row[kept], column[kept], value[kept]
    order = np.lexsort((column, -value, row))  # by row, then largest first; ties by number, so that it is reproducible
    row, column, value = row[order], column[order], value[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    best = rank < k
    return sp.csr_matrix((value[best].astype(np.float32), (row[best], column[best])), shape=(n, n))


def _table(path: str | Path, columns: set[str], **options):
    import pandas as pd

    path = Path(path)
    separator = "," if ".csv" in path.suffixes else "\t"
    try:
        table = pd.read_csv(path, sep=separator, **({"comment": "#"} | options))
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise ScreproError("A gene table is a .csv or .tsv file.", got=f"{path}: {error}", fix="check it") from None
    if missing := columns - set(table.columns):
        raise ScreproError(
            f"A gene table has the columns {', '.join(sorted(columns))}.",
            got=f"{path} without {', '.join(sorted(missing))}",
            fix="rename its columns",
        )
    if table.empty:
        raise ScreproError("A gene table has rows.", got=f"{path} with none", fix="check the file")
    return table


class Planted(NamedTuple):
    """Cells with perturbations put in, and the graph that tells which of them act alike."""

    adata: "AnnData"  # counts; obs["perturbation"]; uns["log2_fold"]: (perturbations, genes) truth
    graph: GeneGraph


def planted(
    adata: "AnnData",
    *,
    n_perturbed: int,
    n_modules: int,
    n_doubles: int = 0,
    n_targets: int = 30,
    effect: float = 1.0,
    own_share: float = 0.25,
    shared_share: float = 0.5,
    cells_each: int = 60,
    n_control: int = 400,
    n_genes: int | None = None,
    rng: np.random.Generator,
) -> Planted:
    """Cells in which genes of one module have nearly the same effect, put in by thinning alone.

    Perturbed genes are dealt to modules. Gene p of module m changes ``log2`` of the mean of every gene by::

        log2_fold_p = sqrt(shared_share) * all + sqrt(1 - shared_share - own_share) * module_m + sqrt(own_share) * own_p

    where each part is `effect` times a random sign on `n_targets` genes. Two genes at once add up. Molecules are
    never invented: gene g is thinned to a share c_g in control cells and to c_g * 2 ** log2_fold in perturbed
    ones, with c_g small enough for all of them. Genes of a module are linked in the graph: it knows what acts
    alike, not how.

    Parameters
    ----------
    adata
        Cells with counts, drawn with replacement.
    n_perturbed, n_modules, n_doubles
        Single perturbations, modules, and pairs of perturbed genes from different modules.
    shared_share, own_share
        Shares of the variance of the effects that all perturbations have in common, and that are a gene's own.
    cells_each, n_control
        Cells of a perturbation, and unperturbed ones.
    n_genes
        Genes kept, those with the most counts; None keeps all.
    rng
        Source of randomness; its state fixes every number.

    Raises
    ------
    ScreproError
        If there are too few genes for what is asked, or shares are out of range.
    """
    import pandas as pd
    from anndata import AnnData

    counts, kept = sp.csr_matrix(adata.X), np.arange(adata.n_vars)
    if n_genes is not None:
        kept = np.sort(np.argsort(-np.asarray(counts.sum(axis=0)).ravel(), kind="stable")[:n_genes])
        counts = counts[:, kept]
    m = counts.shape[1]
    seen = np.flatnonzero(np.bincount(counts.indices, minlength=m) >= 0.05 * counts.shape[0])
    if not (2 <= n_modules <= n_perturbed <= len(seen) and n_targets <= len(seen) and own_share + shared_share <= 1):
        raise ScreproError(
            "Planted effects need two modules, as many genes seen in 5 % of the cells as are perturbed or targets, and "
            "shares of at most 1 together.",
            got=f"{n_perturbed=}, {n_modules=}, {n_targets=}, {len(seen)} genes, {own_share + shared_share=}",
            fix="ask for fewer, or use more cells",
        )

    def parts(number: int) -> np.ndarray:
        targets = rng.permuted(np.tile(seen, (number, 1)), axis=1)[:, :n_targets]
        values = np.zeros((number, m))
        np.put_along_axis(values, targets, effect * rng.choice([-1.0, 1.0], size=(number, n_targets)), axis=1)
        return values

    module = rng.permutation(np.arange(n_perturbed) % n_modules)
    names = [f"P{i:02d}" for i in range(n_perturbed)]
    singles = (
        np.sqrt(shared_share) * parts(1)
        + np.sqrt(1 - shared_share - own_share) * parts(n_modules)[module]
        + np.sqrt(own_share) * parts(n_perturbed)
    )
    pairs = np.array([(i, j) for i in range(n_perturbed) for j in range(i) if module[i] != module[j]])
    pairs = rng.permutation(pairs)[:n_doubles] if n_doubles else pairs[:0]
    log2_fold = np.vstack([np.zeros((1, m)), singles, singles[pairs[:, 0]] + singles[pairs[:, 1]]])
    labels = ["control", *names, *(f"{names[j]}+{names[i]}" for i, j in pairs)]

    state = np.repeat(np.arange(len(labels)), [n_control] + [cells_each] * (len(labels) - 1))
    drawn = counts[rng.integers(counts.shape[0], size=len(state))]
    keep = 2.0 ** (log2_fold - np.maximum(log2_fold.max(axis=0), 0))
    rows = np.repeat(state, np.diff(drawn.indptr))
    share = np.minimum(keep[rows, drawn.indices], 1.0)
    drawn.data = rng.binomial(drawn.data.astype(np.int64), share).astype(np.float32)
    drawn.eliminate_zeros()
    some = np.asarray(drawn.sum(axis=1)).ravel() > 0
    made = AnnData(
        X=drawn[some],
        obs=pd.DataFrame(
            {"perturbation": pd.Categorical(np.array(labels)[state[some]], categories=labels)},
            index=[f"cell {i}" for i in range(some.sum())],
        ),
        var=pd.DataFrame(index=adata.var_names.astype(str)[kept]),
        uns={"log2_fold": log2_fold, "source": f"perturbations put into {adata.uns.get('source', 'cells')}"},
    )
    same = (module[:, None] == module[None, :]) & ~np.eye(n_perturbed, dtype=bool)
    graph = GeneGraph(tuple(names), sp.csr_matrix(same.astype(np.float32)), "the modules that were planted")
    return Planted(made, graph)
