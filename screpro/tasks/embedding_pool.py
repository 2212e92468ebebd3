"""Training cells of other studies: what stands in for the Census on the embeddings page (scLDM, section 4.3).

In the paper the networks learn from a collection of many studies, and the scored cells come from studies that are not
in it. Here a pool of data sets takes the place of the collection. No cell of the scored study is in it, labelled or
not: a network that has seen the batches, the chemistry and the donors of the scored cells answers another question.

The cells are drawn so that every data set gives as many, as far as it has them; the large ones would decide the panel
otherwise. What is drawn from a set depends on its name and the seed, not on which other sets are named or where.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from screpro.data import registry
from screpro.errors import ScreproError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

__all__ = ["FEWEST_GENES", "POOLED", "Pool", "apart", "called", "check_pool", "draw_pool", "equal_shares", "load_pool"]

POOLED = "_pooled"
"""Ending of a method's name in the rows where it learned from a pool. Rules of claims do not know such names."""

FEWEST_GENES = 100
"""Genes that all data sets have to share."""

FEWEST_EXPRESSED = 20
"""Two cells with the same counts of all shared genes are one cell if they express as many; fewer may be chance."""


class Pool(NamedTuple):
    """Cells of other studies on the genes that all data sets share."""

    train: "sp.csr_matrix"  # (n, G) raw counts, sets in the order of their names
    held_out: "sp.csr_matrix"  # (k, G) of the same sets
    columns: "np.ndarray"  # (G,) of the scored data set
    cells: dict[str, int]  # training cells by data set


def check_pool(dataset: str, pool: Sequence[str]) -> None:
    """Whether the names of a pool will do beside the data set that is scored, without loading any of them.

    Parameters
    ----------
    dataset
        Registry name or path of the scored cells.
    pool
        Names of the data sets whose cells train the networks.

    Raises
    ------
    ScreproError
        A name is not in the registry or stands twice, has log values alone, or is of the study that is scored.
    """
    own = registry.entries().get(dataset)
    rule = "A pool names data sets of the registry, each once, with counts, of other studies than the scored one."
    for name in pool:
        entry, wrong = registry.get(name), ""
        if list(pool).count(name) > 1:
            wrong = "stands twice"
        elif entry.values != "counts":
            wrong = f"has {entry.values} values alone"
        elif name == dataset or (own and _same_study(own, entry)):
            wrong = f"is of the same study as {dataset} ({entry.citation})"
        if wrong:
            raise ScreproError(rule, got=f"{name}, which {wrong}", fix="leave it out of the pool")


def load_pool(dataset: str, pool: Sequence[str]) -> "dict[str, AnnData]":
    """The data sets of a pool by name, after `check_pool`."""
    check_pool(dataset, pool)
    return {name: registry.load(name, label_key=None) for name in sorted(pool)}


def draw_pool(
    adata: "AnnData",
    pool: "Mapping[str, AnnData]",
    *,
    split: int = 0,
    n_train: int | None = None,
    held_out: float = 0.2,
) -> Pool:
    """Draw training and held-out cells of the pool, as many of each data set as it has, up to an equal share.

    Parameters
    ----------
    adata
        The data set that is scored; of it only the genes are taken, and its cells to find them again in the pool.
    pool
        Raw counts of the other data sets by name, in any order.
    split
        Seed of the draws.
    n_train
        At most this many training cells of all sets together, and at most a quarter, but 128, of held-out cells. A set
        that has fewer than its share gives all, and the others more. None: all cells of every set.
    held_out
        Share of the cells of a set that do not train.

    Raises
    ------
    ScreproError
        The genes of a set are of another species or kind of names, the sets share fewer than `FEWEST_GENES` genes, or a
        cell of the pool is one of the scored data set.
    """
    import numpy as np
    import scipy.sparse as sp

    from screpro.data.splits import cell_split

    names = sorted(pool)
    columns = _shared_genes(adata, pool)
    genes = adata.var_names[columns]
    own = _profiles(sp.csr_matrix(adata.X)[:, columns])
    parts, counts = {}, {}
    for name in names:
        counts[name] = sp.csr_matrix(pool[name].X, dtype=np.float32)[:, pool[name].var_names.get_indexer(genes)]
        if same := len(own & _profiles(counts[name])):
            raise ScreproError(
                "No cell that trains is a cell of the scored data set.",
                got=f"{same} profiles of {name} occur in it, on {len(genes)} shared genes",
                fix="leave that set out of the pool",
            )
        # the letters of the name are part of the seed: no set's draw depends on another's, equal sizes or not
        parts[name] = cell_split(
            counts[name].shape[0],
            seed=int(np.random.SeedSequence([split, *name.encode()]).generate_state(1)[0]),
            test=held_out,
        )
    train = equal_shares([len(parts[name].train) for name in names], n_train)
    test = equal_shares([len(parts[name].test) for name in names], None if n_train is None else max(128, n_train // 4))
    return Pool(
        train=sp.vstack([counts[k][parts[k].train[:n]] for k, n in zip(names, train, strict=True)], format="csr"),
        held_out=sp.vstack([counts[k][parts[k].test[:n]] for k, n in zip(names, test, strict=True)], format="csr"),
        columns=columns,
        cells=dict(zip(names, train, strict=True)),
    )


def equal_shares(sizes: Sequence[int], total: int | None) -> list[int]:
    """How many of `total` cells come from sets of these sizes: the same number, or all that a smaller set has.

    None: all cells.
    """
    if total is None:
        return list(sizes)
    found, left = [0] * len(sizes), total
    # smallest first, so that larger sets give what it lacks
    for rank, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        found[i] = min(sizes[i], left // (len(sizes) - rank))
        left -= found[i]
    return found


def called(method: str, pooled: bool) -> str:
    """What rows call a method: its name, with `POOLED` behind it where it learned from other studies."""
    return method + POOLED if pooled else method


def apart(rows: "pd.DataFrame") -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Rows of networks trained on the scored study itself, and of those trained on other studies, as the method."""
    pooled = rows["method"].str.endswith(POOLED)
    return rows[~pooled], rows[pooled].assign(method=rows.loc[pooled, "method"].str.removesuffix(POOLED))


def _same_study(one: registry.Entry, other: registry.Entry) -> bool:
    """By DOI or by the first work cited: further ones say who prepared the cells, and accessions may be of a folder."""
    first = [entry.citation.split(";")[0].strip() for entry in (one, other)]
    return bool(one.doi and one.doi == other.doi) or first[0] == first[1]


def _shared_genes(adata: "AnnData", pool: "Mapping[str, AnnData]") -> "np.ndarray":
    """(G,) columns of `adata` whose genes every set of the pool has, ascending."""
    import numpy as np

    from screpro.data.columns import gene_names

    shared, told = np.ones(adata.n_vars, dtype=bool), []
    for name in sorted(pool):
        found = adata.var_names.isin(pool[name].var_names)
        shared &= found
        told.append(f"{name} has {found.sum()} of its {adata.n_vars} genes ({gene_names(pool[name].var_names)})")
    if shared.sum() < FEWEST_GENES:
        raise ScreproError(
            f"All data sets of a pool are of the scored species and share {FEWEST_GENES} genes with it, by name.",
            got=f"{shared.sum()} shared with the scored set ({gene_names(adata.var_names)}): {'; '.join(told)}",
            fix="leave out the set that shares few, or use sets of one species with the same kind of gene names",
        )
    return np.flatnonzero(shared)


def _profiles(counts: "sp.csr_matrix") -> set[bytes]:
    """Digests of the cells that express `FEWEST_EXPRESSED` genes or more."""
    import hashlib

    import numpy as np

    counts = counts.copy()
    counts.eliminate_zeros()
    counts.sort_indices()
    indices, values = counts.indices.astype(np.int64), counts.data.astype(np.float32)
    found = set()
    for start, stop in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        if stop - start >= FEWEST_EXPRESSED:
            found.add(hashlib.blake2b(indices[start:stop].tobytes() + values[start:stop].tobytes()).digest())
    return found
