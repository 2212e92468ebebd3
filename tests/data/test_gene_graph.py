"""Gene graphs on inputs whose answer is known, and planted effects against their formula."""

import gzip

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from screpro.data import released
from screpro.data.gene_graph import (
    GeneGraph,
    coexpression_graph,
    edge_graph,
    gene2go_terms,
    gene_terms,
    normalised,
    ontology_graph,
    planted,
    shuffled,
    written_terms,
)
from screpro.errors import ScreproError
from screpro.tasks.gene_perturbation import graph_of

TERMS = {"a": {"t1", "t2", "t3"}, "b": {"t2", "t3", "t4"}, "c": {"t4"}, "d": {"t9"}}


def test_ontology_graph_is_the_jaccard_index():
    graph = ontology_graph(TERMS, ["a", "b", "c", "d", "unknown"], at_least=0.0)
    assert graph.genes == ("a", "b", "c", "d")
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 2 / 4
    expected[1, 2] = expected[2, 1] = 1 / 3
    np.testing.assert_allclose(graph.weights.toarray(), expected, rtol=1e-6)


def test_neighbours_are_limited_per_gene_and_by_weight():
    one = ontology_graph(TERMS, list("abcd"), k=1, at_least=0.0).weights.toarray()
    assert one[1].argmax() == 0 and (one > 0).sum(1).tolist() == [1, 1, 1, 0]
    assert one[2, 1] > 0  # c listens to b although b does not listen to c
    assert ontology_graph(TERMS, list("abcd"), at_least=0.4).weights.nnz == 2


def test_renaming_genes_renames_the_graph():
    order = ["d", "b", "a", "c"]
    one, other = (ontology_graph(TERMS, names, at_least=0.0) for names in (list("abcd"), order))
    place = [one.genes.index(gene) for gene in other.genes]
    np.testing.assert_array_equal(one.weights.toarray()[np.ix_(place, place)], other.weights.toarray())


def test_gene_table_is_read(tmp_path):
    path = tmp_path / "terms.tsv"
    path.write_text("gene\tterm\na\tt1\na\tt2\nb\tt2\n")
    assert gene_terms(path) == {"a": {"t1", "t2"}, "b": {"t2"}}
    bad = tmp_path / "bad.csv"
    bad.write_text("gene,go\na,t1\n")
    with pytest.raises(ScreproError, match="columns"):
        gene_terms(bad)
    with pytest.raises(ScreproError):
        gene_terms(tmp_path / "missing.csv")


def gene2go_files(folder):
    """NCBI's layout: two species, a gene said not to have a term, a gene without a symbol."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["#tax_id\tGeneID\tGO_ID\tEvidence\tQualifier\tGO_term\tPubMed\tCategory"]
    for taxon, gene, term, qualifier in (
        (9606, 1, "GO:1", "enables"), (9606, 1, "GO:2", "-"), (9606, 1, "GO:3", "NOT involved_in"),
        (9606, 2, "GO:1", "enables"), (9606, 9, "GO:1", "enables"), (10090, 1, "GO:4", "enables"),
    ):  # fmt: skip
        rows.append(f"{taxon}\t{gene}\t{term}\tIEA\t{qualifier}\tsome term\t-\tFunction")
    with gzip.open(folder / "gene2go.gz", "wt") as handle:
        handle.write("\n".join(rows) + "\n")
    names = ["#tax_id\tGeneID\tSymbol\tLocusTag", "9606\t1\tSTAT1\t-", "9606\t2\tNA\t-", "10090\t1\tStat1\t-"]
    with gzip.open(folder / "Homo_sapiens.gene_info.gz", "wt") as handle:
        handle.write("\n".join(names) + "\n")
    return folder / "gene2go.gz", folder / "Homo_sapiens.gene_info.gz"


def test_gene2go_is_read_as_ncbi_writes_it(tmp_path):
    files = gene2go_files(tmp_path)
    assert gene2go_terms(*files) == {"STAT1": {"GO:1", "GO:2"}, "NA": {"GO:1"}}
    assert gene2go_terms(*files[:1], files[1], taxon=10090) == {"Stat1": {"GO:4"}}
    with pytest.raises(ScreproError, match="taxon 7"):
        gene2go_terms(*files, taxon=7)
    with pytest.raises(ScreproError, match="GO_ID"):
        gene2go_terms(files[1], files[1])


def test_the_graph_of_a_screen_can_come_from_gene2go(tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path))
    monkeypatch.setenv("SCREPRO_CACHE", str(tmp_path / "cache"))
    for file in released.get("gene2go").files:
        (tmp_path / file.place).parent.mkdir(parents=True, exist_ok=True)
    files = gene2go_files(tmp_path / "made")
    for file, made in zip(released.get("gene2go").files, files, strict=True):
        made.rename(tmp_path / file.place)
    obs = pd.DataFrame({"perturbation": ["control", "STAT1", "NA", "other"]}, index=list("abcd"))
    screen = AnnData(np.ones((4, 2)), obs=obs)
    graph = graph_of(screen, kind="gene2go")
    assert set(graph.genes) == {"STAT1", "NA"} and graph.weights.nnz == 2 and "gene2go" in graph.source


def test_edge_table_is_read(tmp_path):
    path = tmp_path / "go.csv"
    path.write_text("source,target,importance\na,b,0.5\nc,b,0.9\nb,b,1.0\na,c,0.2\nz,b,0.8\n")
    graph = edge_graph(path, ["a", "b", "c", "e"], k=1)
    assert graph.genes == ("a", "b", "c")
    expected = np.zeros((3, 3))
    expected[1, 2], expected[2, 0] = 0.9, 0.2
    np.testing.assert_allclose(graph.weights.toarray(), expected, rtol=1e-6)


def test_coexpression_is_the_absolute_correlation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    x[:, 1] = -x[:, 0] + 0.1 * rng.normal(size=200)
    x[:, 3] = 2.0  # does not vary
    graph = coexpression_graph(sp.csr_matrix(x), list("abcd"), ["b", "a", "q", "d"])
    assert graph.genes == ("b", "a", "q", "d")
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = abs(np.corrcoef(x[:, 0], x[:, 1])[0, 1])
    np.testing.assert_allclose(graph.weights.toarray(), expected, atol=1e-6)


def test_normalised_operator_of_two_linked_genes():
    graph = GeneGraph(("a", "b", "c"), sp.csr_matrix(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)), "")
    np.testing.assert_allclose(normalised(graph).toarray(), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], rtol=1e-6)


def test_shuffled_keeps_the_shape_of_the_graph():
    graph = ontology_graph(written_terms(), list(written_terms()))
    other = shuffled(graph, seed=1)
    assert other.genes == graph.genes and (other.weights != graph.weights).nnz > 0
    degrees = [np.sort(np.diff(g.weights.indptr)) for g in (graph, other)]
    np.testing.assert_array_equal(*degrees)
    np.testing.assert_allclose(np.sort(graph.weights.data), np.sort(other.weights.data))


def test_written_terms_link_one_pathway():
    graph = ontology_graph(written_terms(), list(written_terms()))
    weights, place = graph.weights, graph.genes.index
    assert weights[place("IFNGR1"), place("IFNGR2")] == weights[place("IFNGR1")].max()
    assert weights[place("IFNGR1"), place("HK2")] == 0


def cells(n=300, m=40):
    rng = np.random.default_rng(0)
    adata = AnnData(sp.csr_matrix(rng.poisson(30, size=(n, m)).astype(np.float32)))
    adata.uns["source"] = "drawn"
    return adata


def test_planted_changes_are_the_folds_they_say():
    made = planted(
        cells(), n_perturbed=6, n_modules=2, n_doubles=2, n_targets=10, cells_each=400, n_control=400,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    label = made.adata.obs["perturbation"].astype(str).to_numpy()
    names = list(made.adata.obs["perturbation"].cat.categories)
    means = np.array([np.asarray(made.adata.X[label == name].mean(axis=0)).ravel() for name in names])
    measured = np.log2(means[1:] / means[0])
    assert np.abs(measured - made.adata.uns["log2_fold"][1:]).mean() < 0.05
    first, second = (made.adata.uns["log2_fold"][names.index(gene)] for gene in names[-1].split("+"))
    np.testing.assert_allclose(made.adata.uns["log2_fold"][-1], first + second)


def test_planted_graph_links_what_acts_alike():
    made = planted(
        cells(), n_perturbed=8, n_modules=2, n_targets=20, own_share=0.2, shared_share=0.2, cells_each=2, n_control=2,
        rng=np.random.default_rng(2),
    )  # fmt: skip
    alike = np.corrcoef(made.adata.uns["log2_fold"][1:9])
    linked = made.graph.weights.toarray() > 0
    other = ~linked & ~np.eye(8, dtype=bool)
    assert alike[linked].mean() > alike[other].mean() + 0.3
    np.testing.assert_array_equal(linked, linked.T)


def test_bad_requests_are_refused():
    with pytest.raises(ScreproError, match="genes with terms"):
        ontology_graph(TERMS, ["nobody"])
    with pytest.raises(ScreproError, match="neighbour"):
        ontology_graph(TERMS, list("abc"), k=0)
    with pytest.raises(ScreproError, match="name for every gene"):
        coexpression_graph(np.ones((3, 2)), ["a"])
    with pytest.raises(ScreproError, match="Planted"):
        planted(cells(), n_perturbed=100, n_modules=2, rng=np.random.default_rng(0))
