r"""Are the latents of an auto-encoder good for telling cells apart? Section 4.3 of scLDM, protocol of its Table 17.

Every cell gets a vector; 128 principal components of the vectors of all scored cells go into a logistic regression
without penalty, which is trained and scored by five-fold cross-validation inside each group of cells (a donor, a
tissue). The groups weigh the same, whatever their size; the standard errors $s_i$ of the n groups add in quadrature:

$$\frac1n \sum_i m_i \pm \frac1n \sqrt{\sum_i s_i^2} .$$

The network that makes the vectors must not have seen the scored cells. `prepare` trains it on the others: on groups
that have nothing to tell apart, and, where every group has, on a random half of the cells; or on cells of other studies
alone, as the paper does. Which cells are scored does not depend on that.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.data.columns import is_unlabelled
from screpro.data.preprocess import variable_panel
from screpro.data.splits import cell_split
from screpro.errors import ScreproError
from screpro.metrics.areas import pr_auc, roc_auc
from screpro.metrics.classification import confusion, macro_f1, macro_precision, macro_recall
from screpro.tasks.embedding_pool import draw_pool

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "METRICS",
    "POSITIVE",
    "EmbeddingCells",
    "GroupScores",
    "classify",
    "combine",
    "curves",
    "prepare",
    "principal_components",
    "score_groups",
]

LARGEST_SCORED = 0.75
"""Where more than this share of the cells could be scored, half of the cells are kept for training the networks."""

METRICS = ("roc_auc", "pr_auc", "macro_f1", "macro_recall", "macro_precision")
"""The scores of Table 17; Table 18 has the last three."""

POSITIVE = ("positive_f1", "positive_recall", "positive_precision")
"""The same three of one class, which the paper may have printed for its two-class task instead."""

MAX_ITERATIONS = 1000


class EmbeddingCells(NamedTuple):
    """Cells of one panel: those that train a network (and test its reconstruction), and those that are scored."""

    train: sp.csr_matrix  # (n, G) raw counts, as all three
    held_out: sp.csr_matrix  # of the same origin as `train`
    scored: sp.csr_matrix
    group: np.ndarray  # (m,) codes of the groups of the scored cells
    target: np.ndarray  # (m,) codes of what is to be told
    groups: list[str]
    classes: list[str]  # with two, the second is the positive one
    names: list[str]  # of the scored cells
    genes: list[str]
    halved: bool  # half of the groups' own cells were kept from scoring
    pooled: Mapping[str, int] = MappingProxyType({})  # training cells by data set, where they are of other studies
    shared: int = 0  # genes that these share with the scored set; the panel is of them


class GroupScores(NamedTuple):
    """What one group of cells came to."""

    values: dict[str, np.ndarray]  # metric -> (folds,)
    target: np.ndarray  # (m,) codes
    probability: np.ndarray  # (m, K) of cells while they were held out
    separable: float  # share of folds whose training cells the regression tells apart without an error


def prepare(
    adata: "AnnData",
    *,
    group_key: str | None,
    target_key: str,
    positive: str | None = None,
    min_cells: int = 100,
    split: int = 0,
    n_genes: int | None = None,
    n_train: int | None = None,
    held_out: float = 0.2,
    pool: "Mapping[str, AnnData] | None" = None,
) -> EmbeddingCells:
    """Divide cells into those that train a network and those that are scored, and choose the panel on the former.

    Parameters
    ----------
    adata
        Raw counts in ``X``; the two columns in ``obs``.
    group_key
        Column of donors or tissues; None: all cells are one group.
    target_key
        Column of what is to be told, for instance the condition or the type.
    positive
        Of two classes, the one that is looked for; None: the second in alphabetical order.
    min_cells
        A class with fewer cells in a group is not scored there (the paper: 100, of a tissue), at least 5, the folds.
    split
        Seed of every random choice here.
    n_genes
        Most variable genes of the training cells (seurat_v3); None: all that some training cell has.
    n_train
        At most this many training cells, and at most a quarter, but 128, of held-out cells.
    held_out
        Share of the cells that are not scored on which reconstruction is measured.
    pool
        Other studies by name, raw counts: only their cells train (`draw_pool`), on genes that all of them share with
        `adata`, whose own training cells are then not used. None: the cells of `adata` that are not scored train.

    Raises
    ------
    ScreproError
        A column is missing, no group has two classes of enough cells, or the pool does not fit.
    """
    counts = sp.csr_matrix(adata.X, dtype=np.float32)
    target = _column(adata, target_key, "target_key")
    group = np.full(len(target), "all", dtype=object) if group_key is None else _column(adata, group_key, "group_key")
    known = ~(is_unlabelled(target) | is_unlabelled(group))
    rng, smallest = np.random.default_rng(split), max(min_cells, 5)
    scored = _eligible(group, target, known, smallest)
    halved = bool(scored.mean() > LARGEST_SCORED)
    if halved:
        keep = np.zeros(len(known), dtype=bool)
        keep[rng.permutation(len(known))[: len(known) // 2]] = True
        scored = _eligible(group, target, known & keep, smallest)
    if not scored.any():
        raise ScreproError(
            f"Some group of `{group_key or 'all cells'}` has two classes of `{target_key}` with {smallest} cells each"
            + (", after half of the cells went into training." if halved else "."),
            got=f"{known.sum()} labelled cells of {len(set(group[known]))} groups, {len(set(target[known]))} classes",
            fix="choose other columns, or lower min_cells",
        )
    if pool:
        drawn = draw_pool(adata, pool, split=split, n_train=n_train, held_out=held_out)
        panel = variable_panel(drawn.train, n_genes)
        own, test_cells, panel = drawn.train[:, panel], drawn.held_out[:, panel], drawn.columns[panel]
    else:
        rest = np.flatnonzero(~scored)
        parts = cell_split(len(rest), seed=split, test=held_out)
        train, test = rest[parts.train][:n_train], rest[parts.test]
        if n_train is not None:
            test = test[: max(128, n_train // 4)]
        panel = variable_panel(counts[train], n_genes)
        own, test_cells = counts[train][:, panel], counts[test][:, panel]
    counts = counts[:, panel]
    alive = np.asarray(counts.sum(1)).ravel() > 0
    rows = np.flatnonzero(scored & alive)
    groups, classes = sorted(set(group[rows])), sorted(set(target[rows]))
    if positive is not None and len(classes) == 2:
        if positive not in classes:
            raise ScreproError(
                "The positive class is one of the two.", got=positive, fix=f"choose {classes[0]} or {classes[1]}"
            )
        classes = [name for name in classes if name != positive] + [positive]
    return EmbeddingCells(
        train=_expressed(own),
        held_out=_expressed(test_cells),
        scored=counts[rows],
        group=np.array([groups.index(name) for name in group[rows]]),
        target=np.array([classes.index(name) for name in target[rows]]),
        groups=groups,
        classes=classes,
        names=[str(name) for name in adata.obs_names[rows]],
        genes=[str(name) for name in adata.var_names[panel]],
        halved=halved,
        pooled=drawn.cells if pool else {},
        shared=len(drawn.columns) if pool else 0,
    )


def principal_components(embedding: np.ndarray, components: int = 128) -> np.ndarray:
    """Leading principal components (n, k') of vectors (n, k), their mean variance 1; those without variance left out.

    Raises
    ------
    ScreproError
        A value is not finite, or all vectors are the same.
    """
    from sklearn.decomposition import PCA

    x = np.asarray(embedding, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all() or not np.ptp(x, axis=0).any():
        raise ScreproError(
            "An embedding has one row of finite numbers per cell, and the rows differ.",
            got=f"shape {x.shape}, {int((~np.isfinite(x)).sum())} values not finite",
            fix="check how the embedding was made",
        )
    n, k = x.shape
    exact = k <= 1000  # the covariance matrix is small enough to be decomposed
    solver = "covariance_eigh" if exact else "randomized"
    pca = PCA(min(components, n - 1, k), svd_solver=solver, random_state=0)
    z = pca.fit_transform(x)
    z = z[:, pca.explained_variance_ > 1e-10 * pca.explained_variance_[0]]
    return z / np.sqrt(z.var(0).mean())


def classify(
    x: np.ndarray, target: np.ndarray, *, penalty: str | None = None, folds: int = 5, seed: int = 0
) -> GroupScores:
    """Logistic regression of one group by stratified cross-validation; with three or more classes, multinomial.

    Parameters
    ----------
    x
        (m, k) vectors, sparse or dense.
    target
        (m,) codes; codes without a cell are allowed.
    penalty
        None, as in the paper, or "l2" with C = 1. Without a penalty the answer does not depend on scale or rotation of
        the vectors, so columns are standardised to let the optimiser converge; with it they are taken as they are.
    folds, seed
        Number and seed of the folds.

    Notes
    -----
    Where a hyperplane tells the training cells apart, no maximum of the likelihood exists: the coefficients grow until
    the optimiser stops. `separable` says how often that was so.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    from screpro.baselines.common import quiet

    classes, codes = np.unique(target, return_inverse=True)
    probability = np.zeros((len(codes), len(classes)))
    values: dict[str, list[float]] = {}
    perfect = 0
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(codes, codes):
        a, b = x[train], x[test]
        if penalty is None:
            scaler = StandardScaler(with_mean=not sp.issparse(x)).fit(a)
            a, b = scaler.transform(a), scaler.transform(b)
        with quiet():
            model = LogisticRegression(penalty=penalty, max_iter=MAX_ITERATIONS).fit(a, codes[train])
        perfect += model.score(a, codes[train]) == 1
        probability[test] = model.predict_proba(b)
        for name, value in _scores(codes[test], probability[test]).items():
            values.setdefault(name, []).append(value)
    full = np.zeros((len(codes), int(classes.max()) + 1))
    full[:, classes] = probability
    return GroupScores({k: np.array(v) for k, v in values.items()}, target, full, perfect / folds)


def score_groups(
    x: np.ndarray, cells: EmbeddingCells, *, penalty: str | None = None, seed: int = 0
) -> dict[str, GroupScores]:
    """`classify` inside every group of the scored cells; x (m, k) is in their order."""
    if x.shape[0] != len(cells.target):
        raise ScreproError(
            "An embedding has a row for every scored cell.",
            got=f"{x.shape[0]} rows for {len(cells.target)} cells",
            fix="embed cells.scored, in its order",
        )
    rows = {name: np.flatnonzero(cells.group == code) for code, name in enumerate(cells.groups)}
    return {
        name: classify(x[own], cells.target[own], penalty=penalty, seed=seed) for name, own in rows.items() if len(own)
    }


def combine(scores: Mapping[str, GroupScores], metric: str) -> tuple[float, float]:
    """Unweighted mean over the groups, and its standard error: those of the groups, over folds, in quadrature."""
    found = np.stack([own.values[metric] for own in scores.values()])  # (groups, folds)
    errors = found.std(axis=1, ddof=1) / np.sqrt(found.shape[1])
    return float(found.mean(axis=1).mean()), float(np.sqrt((errors**2).sum()) / len(found))


def curves(scores: Mapping[str, GroupScores], grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean ROC and precision-recall curve of the groups (Figure 14) at abscissae `grid` in [0, 1].

    Each cell is ranked by the fold that held it out. With two classes the curves are those of the second, with more
    the mean over the classes, each against the others.

    Returns
    -------
    tuple
        True positive rate at false positive rate = `grid`, linear between points; and precision at recall = `grid`, a
        step function, whose area is the average precision.
    """
    from sklearn.metrics import roc_curve

    found = []
    for own in scores.values():
        present = np.unique(own.target)
        for code in present[-1:] if own.probability.shape[1] == 2 else present:
            positive, score = own.target == code, own.probability[:, code]
            fpr, tpr, _ = roc_curve(positive, score)
            order = np.argsort(-score, kind="stable")
            last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # ends of tied groups
            hits = np.cumsum(positive[order])[last]
            at = np.searchsorted(hits / positive.sum(), grid - 1e-12).clip(max=len(last) - 1)
            found.append((np.interp(grid, fpr, tpr), (hits / (last + 1))[at]))
    rise, precision = (np.mean(parts, axis=0) for parts in zip(*found, strict=True))
    return rise, precision


def _scores(target: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Scores of one fold; `probability` (m, K) of codes 0..K-1, all of which occur in training."""
    called = probability.argmax(1)
    own = probability[:, 1] if probability.shape[1] == 2 else probability
    found = {
        "roc_auc": roc_auc(target, own),
        "pr_auc": pr_auc(target, own),
        "macro_f1": macro_f1(target, called),
        "macro_recall": macro_recall(target, called),
        "macro_precision": macro_precision(target, called),
    }
    if probability.shape[1] == 2:
        table = confusion(target, called, 2)
        hit, of_class, calls = table[1, 1], table[1].sum(), table[:, 1].sum()
        ratios = (2 * hit / max(of_class + calls, 1), hit / max(of_class, 1), hit / max(calls, 1))
        found |= dict(zip(POSITIVE, map(float, ratios), strict=True))
    return found


def _column(adata: "AnnData", key: str, parameter: str) -> np.ndarray:
    if key not in adata.obs:
        raise ScreproError(
            f"`{parameter}` names a column of the cells.",
            got=f"{key!r}; there are {', '.join(map(str, adata.obs.columns))}",
            fix=f"choose one of them as {parameter}",
        )
    return adata.obs[key].astype(str).to_numpy(dtype=object)


def _expressed(counts: sp.csr_matrix) -> sp.csr_matrix:
    """The cells with a count."""
    return counts[np.asarray(counts.sum(1)).ravel() > 0]


def _eligible(group: np.ndarray, target: np.ndarray, among: np.ndarray, smallest: int) -> np.ndarray:
    """Which cells (n,) bool are of a class with `smallest` cells in their group, in groups with two such classes."""
    names, at_group = np.unique(group.astype(str), return_inverse=True)
    types, at_type = np.unique(target.astype(str), return_inverse=True)
    table = np.zeros((len(names), len(types)), dtype=int)
    np.add.at(table, (at_group[among], at_type[among]), 1)
    enough = table >= smallest
    enough &= enough.sum(1, keepdims=True) >= 2
    return among & enough[at_group, at_type]
