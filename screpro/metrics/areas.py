"""Areas under curves: scores of a ranking of cells for each type, where no label has been called yet."""

import numpy as np

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric
from screpro.metrics.classification import type_codes

__all__ = ["pr_auc", "roc_auc"]


@metric(title="ROC AUC", family="classification", direction="higher")
def roc_auc(true: np.ndarray, score: np.ndarray) -> float:
    r"""Chance that a cell of the type scores higher than a cell of another type, averaged over the types.

    Formula
    -------
    $$\mathrm{AUC}_k = \frac{1}{n_k (n - n_k)} \sum_{i : y_i = k}\ \sum_{j : y_j \ne k}
      \left( \mathbb 1[s_{ik} > s_{jk}] + \tfrac12 \mathbb 1[s_{ik} = s_{jk}] \right)$$

    with $y_i$ the type of cell $i$, $s_{ik}$ its score for type $k$ and $n_k$ the cells of type $k$. Two types and one
    score: $\mathrm{AUC}_1$. A score per type: the unweighted mean of $\mathrm{AUC}_k$, each type against all others.

    Estimator
    ---------
    The Mann-Whitney statistic over all pairs, from average ranks: ties count one half. Only the order of the scores
    within a type matters, so probabilities, logits and log odds give the same answer.

    Bias
    ----
    None: a U-statistic. It does not depend on how rare the type is, and therefore looks good for rare types where few
    of the top-ranked cells are right; `pr_auc` does not forgive that. A type without cells, or with all the cells, has
    no pairs and is left out of the mean; if none is left, the value is NaN.

    Unit
    ----
    Share, 0 to 1; 0.5 for scores without information.

    Used in
    -------
    scLDM Table 17 and Figure 14. Infected against not, so one score. PerturbDiff's AUROC is the same area with genes
    in place of cells, one per perturbation; see the perturbation family.

    Parameters
    ----------
    true
        (n,) integer codes: 0 and 1 with one score per cell, else 0 to K - 1.
    score
        (n,) score of type 1, or (n, K) one score per type. Larger means more like the type.

    Returns
    -------
    float
        Between 0 and 1, or NaN where every cell is of one type.

    Raises
    ------
    ScreproError
        Shapes do not fit, codes reach beyond the columns, or a score is NaN.

    Examples
    --------
    One cell of type 0 with score 0.3, and two of type 1 with scores 0.2 and 0.9. Of the two (type 1, type 0) pairs one
    is in the right order.

    >>> roc_auc([0, 1, 1], [0.3, 0.2, 0.9])
    0.5
    """
    from scipy.stats import rankdata

    areas = []
    for positive, own in _one_against_rest(true, score):
        n, n_k = len(own), positive.sum()
        u = rankdata(own)[positive].sum() - n_k * (n_k + 1) / 2
        areas.append(u / (n_k * (n - n_k)))
    return float(np.mean(areas)) if areas else float("nan")


@metric(title="PR AUC (average precision)", family="classification", direction="higher")
def pr_auc(true: np.ndarray, score: np.ndarray) -> float:
    r"""Precision at the score of each cell of the type, averaged over those cells and then over the types.

    Formula
    -------
    $$\mathrm{AP}_k = \frac{1}{n_k} \sum_{i : y_i = k}
      \frac{|\{j : y_j = k,\ s_{jk} \ge s_{ik}\}|}{|\{j : s_{jk} \ge s_{ik}\}|}$$

    with $y_i$ the type of cell $i$, $s_{ik}$ its score for type $k$ and $n_k$ the cells of type $k$. Two types and one
    score: $\mathrm{AP}_1$. A score per type: the unweighted mean of $\mathrm{AP}_k$, each type against all others.

    Estimator
    ---------
    Average precision: the step function below the precision-recall curve. Joining the points of that curve by straight
    lines (a trapezoid) is too optimistic and is not used. Ties share the precision of the whole tied group.

    Bias
    ----
    Depends on how rare the type is: scores without information give about $n_k / n$, which is the floor to compare
    with. With few positives that floor is exceeded by chance, by about $1 / n$ and more. A type without cells, or with
    all the cells, is left out of the mean; if none is left, the value is NaN.

    Unit
    ----
    Share, 0 to 1; about the share of the type for scores without information.

    Used in
    -------
    scLDM Table 17 and Figure 14. PerturbDiff's AUPRC is average precision too, over genes for each perturbation; see
    the perturbation family.

    Parameters
    ----------
    true
        (n,) integer codes: 0 and 1 with one score per cell, else 0 to K - 1.
    score
        (n,) score of type 1, or (n, K) one score per type. Larger means more like the type.

    Returns
    -------
    float
        Between 0 and 1, or NaN where every cell is of one type.

    Raises
    ------
    ScreproError
        Shapes do not fit, codes reach beyond the columns, or a score is NaN.

    Examples
    --------
    One cell of type 0 with score 0.3, and two of type 1 with scores 0.2 and 0.9. At 0.9 the only call is right, at 0.2
    two of three calls are: (1 + 2/3) / 2.

    >>> round(pr_auc([0, 1, 1], [0.3, 0.2, 0.9]), 4)
    0.8333
    """
    means = []
    for positive, own in _one_against_rest(true, score):
        order = np.argsort(-own, kind="stable")
        last = np.append(np.flatnonzero(np.diff(own[order])), len(own) - 1)  # last cell of each tied group
        found = np.cumsum(positive[order])[last]
        means.append(np.sum(np.diff(found, prepend=0) * found / (last + 1)) / positive.sum())
    return float(np.mean(means)) if means else float("nan")


def _one_against_rest(true: np.ndarray, score: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(is it of the type (n,) bool, score for the type (n,)) of every type that some cells have and some do not."""
    true, score = type_codes("true", true), np.asarray(score, dtype=np.float64)
    if score.ndim not in (1, 2) or len(score) != len(true) or np.isnan(score).any():
        raise ScreproError(
            "`score` holds one number per cell, or one per cell and type, and none is NaN.",
            got=f"shape {score.shape} for {len(true)} cells, {int(np.isnan(score).sum())} NaN",
            fix="pass (n,) scores of type 1, or (n, K) scores of every type",
        )
    n_types = score.shape[1] if score.ndim == 2 else 2
    if true.max() >= n_types:
        raise ScreproError(
            f"Labels are codes from 0 to {n_types - 1} for scores of shape {score.shape}.",
            got=f"code {true.max()}",
            fix="pass one column of scores per type",
        )
    types = [(1, score)] if score.ndim == 1 else list(enumerate(score.T))
    return [(true == k, own) for k, own in types if 0 < (true == k).sum() < len(true)]
