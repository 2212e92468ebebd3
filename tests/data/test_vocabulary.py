"""The union of variable genes: against anndata's outer join, and what each source keeps in it."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from screpro.data.preprocess import variable_panel
from screpro.data.vocabulary import expand, merge_then_select
from screpro.errors import ScreproError

NAMES = [f"g{i}" for i in range(300)]


def counts_of(n_genes, n=60, seed=0, first=()):
    """Poisson counts of genes of all levels; `first` multiplies the rates of the first genes."""
    rng = np.random.default_rng(seed)
    rate = np.tile(np.geomspace(0.3, 20, n_genes), (n, 1))
    rate[:, : len(first)] *= first
    return rng.poisson(rate * rng.gamma(5, 0.2, (n, 1))).astype(np.float32)


def source(genes, seed=0):
    return sp.csr_matrix(counts_of(len(genes), seed=seed)), list(genes)


@pytest.fixture
def sources():
    return {"a": source(NAMES[:200]), "b": source(NAMES[50:300][::-1], seed=1), "c": source(NAMES[:150], seed=2)}


def test_expand_is_an_outer_join(sources):
    made = [ad.AnnData(x, var=pd.DataFrame(index=genes)) for x, genes in sources.values()]
    joined = ad.concat(made, join="outer", fill_value=0, index_unique="-", keys=sources)
    ours = sp.vstack([expand(*each, list(joined.var_names)) for each in sources.values()])
    assert np.array_equal(ours.toarray(), sp.csr_matrix(joined.X).toarray())


def test_union_of_each_sources_own_genes(sources):
    vocabulary = merge_then_select(sources, n_genes=8)
    for name, (counts, genes) in sources.items():
        own = {genes[g] for g in variable_panel(counts, 8)}
        assert set(vocabulary.selected[name]) == own and own <= set(vocabulary.genes)
        shared = set(genes) & set(vocabulary.genes)
        assert vocabulary.shared(name) == len(shared)
        assert {vocabulary.genes[i] for i in np.flatnonzero(vocabulary.measured(name))} == shared
        index = vocabulary.columns[name]
        assert [vocabulary.genes[i] for i in index[index >= 0]] == [gene for gene in genes if gene in shared]
    assert set(vocabulary.genes) == set().union(*vocabulary.selected.values())
    assert len(set(vocabulary.genes)) == len(vocabulary.genes)


def test_what_is_in_the_vocabulary_comes_through(sources):
    vocabulary = merge_then_select(sources, n_genes=8)
    for name, (counts, genes) in sources.items():
        wide = expand(counts, genes, vocabulary)
        assert wide.shape == (60, len(vocabulary.genes)) and wide.dtype == counts.dtype
        index = vocabulary.columns[name]
        assert np.array_equal(wide[:, index[index >= 0]].toarray(), counts[:, index >= 0].toarray())
        assert wide[:, ~vocabulary.measured(name)].nnz == 0


def test_merging_comes_before_selecting():
    """Genes that differ between studies but not within one are variable only after merging."""
    parts = {"low": counts_of(200, first=[0.2] * 5), "high": counts_of(200, seed=1, first=[5.0] * 5)}
    both = {name: (sp.csr_matrix(x), NAMES[:200]) for name, x in parts.items()}
    merged = merge_then_select(both, n_genes=5, groups={"atlas": ["low", "high"]})
    assert set(merged.genes) == set(NAMES[:5]) and set(merged.selected) == {"atlas"}
    assert merged.shared("atlas") == merged.shared("low") == 5
    apart = merge_then_select(both, n_genes=5)
    assert set(apart.genes) != set(NAMES[:5]) and len(apart.genes) <= 10


def test_the_union_depends_on_no_order(sources):
    one = merge_then_select(sources, n_genes=8)
    other = merge_then_select(dict(reversed(sources.items())), n_genes=8)
    assert set(one.genes) == set(other.genes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"groups": {"x": ["a", "z"]}}, "Groups divide"),
        ({"groups": {"x": ["a"], "y": ["a"]}}, "Groups divide"),
        ({"groups": {"b": ["a"]}}, "Groups divide"),
        ({"n_genes": 0}, "Groups divide"),
    ],
)
def test_bad_groups(sources, change, said):
    with pytest.raises(ScreproError, match=said):
        merge_then_select(sources, **change)


def test_bad_names(sources):
    counts, genes = sources["a"]
    with pytest.raises(ScreproError, match="name of its own"):
        expand(counts, [*genes[:-1], genes[0]], NAMES)
    with pytest.raises(ScreproError, match="shares at least one"):
        expand(counts, genes, ["other"])
    with pytest.raises(ScreproError, match="own sources and groups"):
        merge_then_select(sources, n_genes=3).shared("z")
