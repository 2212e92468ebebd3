"""SingleCellNet (Tan & Cahan, Cell Systems 2019, 10.1016/j.cels.2019.06.004): top pairs and a random forest.

Steps, with the defaults of the authors' R package:

1. Candidate genes: seen in more than 5 % of the cells, or in more than 0.1 % with a mean above 2 where seen, on
   log(1 + counts scaled to 10 000), scaled values under 0.25 set to 0.
2. Per type, by correlation of expression with membership: the 10 genes with the largest, the 10 with the smallest
   and the 10 with the least absolute correlation. The union over types are the classification genes.
3. Every pair of classification genes becomes one bit per cell: is gene 1 counted more often than gene 2? Per type
   the 25 pairs whose bit correlates best with membership, no gene in more than three of them.
4. A random forest of 1000 trees on the bits of the chosen pairs, with a class more than there are types: 70 random
   profiles, made by shuffling every pair over the cells and then the pairs within every cell.

A pair compares two genes within one cell, so the transform needs no normalisation.

Differences from the R package: the forest is scikit-learn's (same bootstrap, number of features tried, fully
grown trees; it averages leaf shares instead of counting votes, the same where leaves are pure). The random class
takes part in training, but a cell that scores highest on it gets the best real type, because every test cell here
has one. With ``stratify=True`` every tree sees 40 draws per class with replacement, the package's option of the
same name.
"""

import numpy as np
from scipy import sparse

from screpro.baselines.common import Prediction, from_scores
from screpro.tasks.cells import Cells

__all__ = ["classification_genes", "fit_predict", "pair_bits", "random_profiles", "top_pairs"]

PAIRS_AT_ONCE = 5000  # pairs scored together: bounds memory at cells x 5000


def fit_predict(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    n_top_genes: int = 10,
    n_top_pairs: int = 25,
    n_random: int = 70,
    n_trees: int = 1000,
    stratify: bool = False,
    draws_per_class: int = 40,
) -> Prediction:
    """Train on `train`, classify `test`. Scores are forest probabilities of the real types (they sum to at most 1).

    Parameters
    ----------
    n_top_genes
        Genes per type and per kind (largest, smallest, least correlation).
    n_top_pairs
        Pairs kept per type.
    n_random
        Profiles of the random class.
    n_trees
        Trees of the forest.
    stratify
        Draw the same number of cells of every class for every tree.
    draws_per_class
        That number; used with `stratify` only.
    """
    rng = np.random.default_rng(seed)
    types, member = np.unique(train.cell_type, return_inverse=True)
    genes = classification_genes(train.counts, member, n_top=n_top_genes)
    counts = _columns(train.counts, genes)
    first, second = top_pairs(counts, member, n_top=n_top_pairs)
    bits = pair_bits(counts, first, second)
    random = random_profiles(bits, n=n_random, rng=rng)
    features = np.concatenate([bits, random]).astype(np.float32)
    labels = np.concatenate([member, np.full(len(random), len(types))])
    query = pair_bits(_columns(test.counts, genes), first, second).astype(np.float32)
    probability = _forest(
        features,
        labels,
        query,
        n_trees=n_trees,
        draws_per_class=draws_per_class if stratify else None,
        rng=rng,
        threads=threads,
    )
    return from_scores(probability[:, : len(types)], types, n_types=n_types)


def classification_genes(counts: sparse.spmatrix, member: np.ndarray, *, n_top: int) -> np.ndarray:
    """Steps 1 and 2: indices of the classification genes, in the order in which the types ask for them.

    Parameters
    ----------
    counts
        (n, G) counts.
    member
        (n,) class 0..k-1 of every cell, each at least once.
    n_top
        Genes per type and kind; cut to half of the candidates where there are few.
    """
    x = sparse.csr_matrix(counts, dtype=np.float64)
    total = np.maximum(np.asarray(x.sum(axis=1)).ravel(), 1.0)
    x = sparse.diags_array(1e4 / total) @ x
    x.data[x.data < 0.25] = 0.0
    x = sparse.csr_matrix(x)
    x.eliminate_zeros()
    x.data = np.log1p(x.data)
    n = x.shape[0]
    seen, summed = x.getnnz(axis=0), np.asarray(x.sum(axis=0)).ravel()
    mean_seen = summed / np.maximum(seen, 1)
    candidate = (seen > 0.05 * n) | ((seen > 0.001 * n) & (mean_seen > 2))
    squares = np.asarray(x.multiply(x).sum(axis=0)).ravel()
    per_class = _one_hot(member).T @ x
    r = _correlation(np.asarray(per_class.todense()), summed, squares, np.bincount(member))
    usable = np.flatnonzero(candidate & np.isfinite(r).all(axis=0))
    if len(usable) < 2:  # tiny or odd data: every gene that varies at all
        usable = np.flatnonzero(np.isfinite(r).all(axis=0))
    r = r[:, usable]
    n_top = max(1, min(n_top, len(usable) // 2))
    by_r = np.argsort(-r, axis=1, kind="stable")
    by_size = np.argsort(np.abs(r), axis=1, kind="stable")
    asked = np.concatenate([by_r[:, :n_top], by_r[:, -n_top:], by_size[:, :n_top]], axis=1).ravel()
    _, where = np.unique(asked, return_index=True)
    return usable[asked[np.sort(where)]]


def top_pairs(counts: np.ndarray, member: np.ndarray, *, n_top: int, max_per_gene: int = 3) -> tuple:
    """Step 3: the best pairs of columns of `counts` per class, as two index arrays (p,), duplicates removed.

    Parameters
    ----------
    counts
        (n, g) counts of the classification genes.
    member
        (n,) class 0..k-1.
    n_top
        Pairs per class.
    max_per_gene
        Pairs of one class that a gene may be in.
    """
    first, second = np.triu_indices(counts.shape[1], k=1)
    size = np.bincount(member)
    one_hot = _one_hot(member).toarray().astype(np.float32)
    r = np.empty((len(size), len(first)), dtype=np.float32)
    for start in range(0, len(first), PAIRS_AT_ONCE):
        block = slice(start, start + PAIRS_AT_ONCE)
        per_class = one_hot.T @ pair_bits(counts, first[block], second[block]).astype(np.float32)
        ones = per_class.sum(axis=0)  # a bit is its own square
        r[:, block] = np.nan_to_num(_correlation(per_class, ones, ones, size), nan=-np.inf)
    chosen: dict[int, None] = {}
    for row in r:
        left = np.full(counts.shape[1], max_per_gene)
        for _ in range(min(n_top, len(row))):
            best = int(row.argmax())
            if row[best] == -np.inf:
                break
            chosen[best] = None
            row[best] = -np.inf
            left[[first[best], second[best]]] -= 1
            for gene in (first[best], second[best]):
                if left[gene] == 0:
                    row[(first == gene) | (second == gene)] = -np.inf
    kept = np.fromiter(chosen, dtype=np.int64)
    return first[kept], second[kept]


def pair_bits(counts: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, p) bits: is the count of gene ``first[j]`` above that of gene ``second[j]`` in cell i?"""
    return counts[:, first] > counts[:, second]


def random_profiles(bits: np.ndarray, *, n: int, rng: np.random.Generator) -> np.ndarray:
    """Step 4: at most `n` profiles (n, p) of the random class, as many as there are cells where those are fewer."""
    shuffled = rng.permuted(rng.permuted(bits, axis=0), axis=1)
    return shuffled[rng.permutation(len(bits))[:n]]


def _forest(
    features: np.ndarray,
    labels: np.ndarray,
    query: np.ndarray,
    *,
    n_trees: int,
    draws_per_class: int | None,
    rng: np.random.Generator,
    threads: int,
) -> np.ndarray:
    """Class probabilities (n_query, k+1) of a forest; with `draws_per_class`, of one with stratified bootstraps."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    if draws_per_class is None:
        seed = int(rng.integers(2**31))
        forest = RandomForestClassifier(n_trees, random_state=seed, n_jobs=threads)
        return forest.fit(features, labels).predict_proba(query)
    # pool: row indices sorted by class, so that a uniform draw within a class is one integer
    pool, size = np.argsort(labels, kind="stable"), np.bincount(labels)
    start = np.cumsum(size) - size
    total = np.zeros((len(query), len(size)))
    for _ in range(n_trees):
        offset = rng.integers(0, size, size=(draws_per_class, len(size)))
        rows = pool[(start + offset).ravel()]
        tree = DecisionTreeClassifier(max_features="sqrt", random_state=int(rng.integers(2**31)))
        total += tree.fit(features[rows], labels[rows]).predict_proba(query)
    return total / n_trees


def _columns(counts: sparse.spmatrix, genes: np.ndarray) -> np.ndarray:
    return sparse.csc_matrix(counts)[:, genes].toarray()


def _one_hot(member: np.ndarray) -> sparse.csr_matrix:
    n = len(member)
    return sparse.csr_matrix((np.ones(n), (np.arange(n), member)), shape=(n, member.max() + 1))


def _correlation(per_class: np.ndarray, total: np.ndarray, squares: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Pearson correlation (k, g) of g variables with membership in k classes, from their sums; NaN if constant."""
    n = size.sum()
    covariance = per_class - size[:, None] * (total / n)[None, :]
    variance = squares - total**2 / n
    variance = np.where(variance > 1e-9 * np.maximum(squares, 1e-12), variance, np.nan)
    return covariance / np.sqrt(variance[None, :] * (size * (1 - size / n))[:, None])
