r"""Scores of predicted labels, and what the scDiff paper's "macro ACC" is.

With $c_{kl}$ cells of true type k that were called l, $n_k = \sum_l c_{kl}$ cells of type k and
$m_l = \sum_k c_{kl}$ cells called l:

=================  ==========================================  =====================================================
name               formula                                     where it stands
=================  ==========================================  =====================================================
`macro_recall`     mean of ``c_kk / n_k`` over k with n_k > 0   what "macro accuracy" usually means; balanced accuracy
`macro_precision`  mean of ``c_kk / m_k`` over k in either      scDiff Tables 1 and 8, Figures 2 and 6, as printed
`macro_f1`         mean of ``2 c_kk / (n_k + m_k)``, k in       scDiff Table 5, Figures 5 and 7
                   either
`accuracy`         ``sum c_kk / n``                             scDiff Table 11 (called macro accuracy there)
=================  ==========================================  =====================================================

"k in either" means that type k occurs among the true or the predicted labels. All are shares without unit from 0 to 1,
larger is better, computed in float64. What needs a score per cell and type instead of a label is in
`screpro.metrics.areas`.
"""

import numpy as np

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric

__all__ = [
    "METRICS",
    "accuracy",
    "classification_scores",
    "confusion",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "type_codes",
]


def confusion(true: np.ndarray, predicted: np.ndarray, n_types: int | None = None) -> np.ndarray:
    """Count cells by true and predicted type.

    Parameters
    ----------
    true, predicted
        (n,) integer codes from 0.
    n_types
        K; None takes the largest code that occurs plus one.

    Returns
    -------
    (K, K) int64, true type in rows, predicted type in columns; sums to n.

    Raises
    ------
    ScreproError
        If the labels are empty, not integers, negative, differ in length or reach beyond `n_types`.
    """
    true, predicted = type_codes("true", true), type_codes("predicted", predicted)
    if len(true) != len(predicted):
        raise ScreproError(
            "True and predicted labels belong to the same cells.",
            got=f"{len(true)} true and {len(predicted)} predicted labels",
            fix="pass one predicted label for every true label, in the same order",
        )
    largest = int(max(true.max(), predicted.max()))
    if n_types is None:
        n_types = largest + 1
    if largest >= n_types:
        raise ScreproError(
            f"Labels are codes from 0 to n_types - 1 = {n_types - 1}.",
            got=f"code {largest}",
            fix="pass the number of types of the shared code space",
        )
    return np.bincount(true * n_types + predicted, minlength=n_types**2).reshape(n_types, n_types)


@metric(title="Macro recall (balanced accuracy)", family="classification", direction="higher")
def macro_recall(true: np.ndarray, predicted: np.ndarray) -> float:
    r"""Share of each type's cells that was found, averaged over the types.

    Every type weighs the same, however rare. Always answering one of K types scores 1 / K.

    Formula
    -------
    $$\frac{1}{|\{k : n_k > 0\}|} \sum_{k : n_k > 0} \frac{c_{kk}}{n_k}$$

    with $c_{kk}$ the cells of type $k$ that were called $k$, and $n_k$ the cells of type $k$.

    Estimator
    ---------
    The shares themselves, no smoothing; types without a true cell are left out of the mean.

    Bias
    ----
    Each $c_{kk} / n_k$ is unbiased for cells drawn at random within the type. A type with few cells makes the mean
    noisy: one cell of a type of five moves its recall by 0.2.

    Unit
    ----
    Share, 0 to 1.

    Used in
    -------
    scDiff section 4.1.1, in words, as macro accuracy. Its tables hold `macro_precision` instead, because the authors'
    code hands the two label arrays over in the wrong order. scLDM Tables 4, 5, 17 and 18 print "Recall", presumably
    this one; the averaging is not stated.

    Parameters
    ----------
    true, predicted
        (n,) integer codes from 0.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ScreproError
        Labels are empty, not integer codes, or differ in number.

    Examples
    --------
    Two T cells (0) and one B cell (1); one of the T cells is called B. Recall is 1/2 for T and 1/1 for B.

    >>> macro_recall([0, 0, 1], [0, 1, 1])
    0.75
    """
    hits, of_type, _ = _margins(true, predicted)
    present = of_type > 0
    return float(np.mean(hits[present] / of_type[present]))


@metric(title="Macro precision", family="classification", direction="higher")
def macro_precision(true: np.ndarray, predicted: np.ndarray) -> float:
    r"""Share of each type's calls that was right, averaged over the types.

    Formula
    -------
    $$\frac{1}{|S|} \sum_{k \in S} \frac{c_{kk}}{m_k}, \qquad S = \{k : n_k + m_k > 0\}$$

    with $c_{kk}$ the cells of type $k$ that were called $k$, and $m_k$ the cells called $k$.

    Estimator
    ---------
    The shares themselves. A type that occurs but is never called ($m_k = 0$) counts 0; a type that is called but does
    not occur counts 0 as well.

    Bias
    ----
    Depends on the composition of the test cells, unlike recall: with more cells of other types, more of the calls are
    wrong. Values of data sets with other compositions do not compare.

    Unit
    ----
    Share, 0 to 1.

    Used in
    -------
    scDiff Tables 1 and 8, Figures 2 and 6, under the name "macro ACC". The code calls a macro accuracy whose first
    argument is the prediction with the truth first, and "correct / cells of the type" becomes "correct / cells called
    the type". We report both; claims about annotation are decided on `macro_f1`, which is the same for both orders.
    scLDM Tables 4, 5, 17 and 18 print "Precision", averaging not stated.

    Parameters
    ----------
    true, predicted
        (n,) integer codes from 0.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ScreproError
        Labels are empty, not integer codes, or differ in number.

    Examples
    --------
    Two T cells (0) and one B cell (1), all three called T. Of three calls T two are right, and B is never called:
    (2/3 + 0) / 2.

    >>> round(macro_precision([0, 0, 1], [0, 0, 0]), 4)
    0.3333
    """
    hits, of_type, called = _margins(true, predicted)
    present = of_type + called > 0
    return float(np.mean(hits[present] / np.maximum(called[present], 1)))


@metric(title="Macro F1", family="classification", direction="higher")
def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    r"""Harmonic mean of a type's precision and recall, averaged over the types.

    Formula
    -------
    $$\frac{1}{|S|} \sum_{k \in S} \frac{2\, c_{kk}}{n_k + m_k}, \qquad S = \{k : n_k + m_k > 0\}$$

    with $c_{kk}$ the cells of type $k$ that were called $k$, $n_k$ the cells of the type and $m_k$ the cells called it.

    Estimator
    ---------
    The F1 of each type, then the mean; not the F1 of the mean precision and recall, which is a different number.

    Bias
    ----
    As precision, it depends on the composition of the test cells. Symmetric in its arguments: handing truth and
    prediction over in the wrong order changes nothing.

    Unit
    ----
    Share, 0 to 1.

    Used in
    -------
    scDiff Table 5, Figures 5 and 7. scLDM Tables 4, 5, 17 and 18 print "F1", presumably this one.

    Parameters
    ----------
    true, predicted
        (n,) integer codes from 0.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ScreproError
        Labels are empty, not integer codes, or differ in number.

    Examples
    --------
    Two T cells (0) and one B cell (1); one T cell is called B. T: one hit, two cells, one call: 2 / 3. B: one hit, one
    cell, two calls: 2 / 3.

    >>> round(macro_f1([0, 0, 1], [0, 1, 1]), 4)
    0.6667
    """
    hits, of_type, called = _margins(true, predicted)
    present = of_type + called > 0
    return float(np.mean(2 * hits[present] / (of_type + called)[present]))


@metric(title="Accuracy", family="classification", direction="higher")
def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    r"""Share of cells called right; large types decide.

    Formula
    -------
    $$\frac{1}{n} \sum_k c_{kk}$$

    with $c_{kk}$ the cells of type $k$ that were called $k$, and $n$ all cells.

    Estimator
    ---------
    The share itself. Equals micro-averaged precision, recall and F1.

    Bias
    ----
    None for cells drawn at random. Always answering the largest type scores that type's share, so compare with it.

    Unit
    ----
    Share, 0 to 1.

    Used in
    -------
    scDiff Table 11, called macro accuracy there. It stands beside the plain accuracies of the OpenProblems leaderboard.
    The "chance level" of scDiff Table 1 is this score of always answering the largest type: a floor of another metric
    than the one in the table.

    Parameters
    ----------
    true, predicted
        (n,) integer codes from 0.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ScreproError
        Labels are empty, not integer codes, or differ in number.

    Examples
    --------
    Two T cells (0) and one B cell (1), all called T: two of three are right.

    >>> round(accuracy([0, 0, 1], [0, 0, 0]), 4)
    0.6667
    """
    hits, of_type, _ = _margins(true, predicted)
    return float(hits.sum() / of_type.sum())


METRICS = {
    "macro_recall": macro_recall,
    "macro_precision": macro_precision,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
}
"""The four scores by name."""


def classification_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """All four scores of one set of called labels, by name."""
    return {name: score(true, predicted) for name, score in METRICS.items()}


def _margins(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, cells of the type and calls of the type, (K,) float64 each."""
    table = confusion(true, predicted).astype(np.float64)
    return table.diagonal(), table.sum(axis=1), table.sum(axis=0)


def type_codes(name: str, labels: np.ndarray) -> np.ndarray:
    """Labels as int64 codes from 0, checked; `name` is what an error calls them."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ScreproError(
            f"`{name}` is a one-dimensional array of at least one integer code from 0.",
            got=f"shape {labels.shape}, type {labels.dtype}",
            fix="encode the types as 0..K-1, for instance with pandas.Categorical(...).codes without missing values",
        )
    return labels.astype(np.int64)
