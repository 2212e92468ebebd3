"""Scores of a cell-type annotation, and what the scDiff paper's "macro ACC" is.

With ``c_kl`` cells of true type k that were called l, ``n_k`` cells of type k and ``m_l`` cells called l:

=================  ==========================================  =====================================================
name               formula                                     where it stands
=================  ==========================================  =====================================================
`macro_recall`     mean of ``c_kk / n_k`` over k with n_k > 0   what "macro accuracy" usually means; balanced accuracy
`macro_precision`  mean of ``c_kk / m_k`` over k in either      scDiff Tables 1 and 8, Figures 2 and 6, as printed
`macro_f1`         mean of ``2 c_kk / (n_k + m_k)``, k in       scDiff Table 5, Figures 5 and 7
                   either
`accuracy`         ``sum c_kk / n``                             scDiff Table 11 (called macro accuracy there)
=================  ==========================================  =====================================================

"k in either" means that type k occurs among the true or the predicted labels. The scDiff code calls torchmetrics'
macro accuracy with its two arguments swapped, which turns recall into precision; a type that occurs but is never
predicted counts 0. All scores are shares without unit from 0 to 1, larger is better, computed in float64.
"""

import numpy as np

from screpro.errors import ScreproError

__all__ = [
    "METRICS",
    "accuracy",
    "classification_scores",
    "confusion",
    "macro_f1",
    "macro_precision",
    "macro_recall",
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
    true, predicted = _codes("true", true), _codes("predicted", predicted)
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


def macro_recall(true: np.ndarray, predicted: np.ndarray) -> float:
    """Share of each type's cells that was found, averaged over the types that occur in `true` (balanced accuracy).

    Range 0 to 1. Source: the macro-averaged accuracy that scDiff section 4.1.1 describes in words.
    """
    hits, of_type, _ = _margins(true, predicted)
    present = of_type > 0
    return float(np.mean(hits[present] / of_type[present]))


def macro_precision(true: np.ndarray, predicted: np.ndarray) -> float:
    """Share of each type's calls that was right, averaged over types true or called; 0 for a type never called.

    Range 0 to 1. Source: the number printed as macro ACC in scDiff, Tables 1 and 8 (see the head of this file).
    """
    hits, of_type, called = _margins(true, predicted)
    present = of_type + called > 0
    return float(np.mean(hits[present] / np.maximum(called[present], 1)))


def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """Harmonic mean of a type's precision and recall, averaged over types true or called.

    Range 0 to 1, symmetric in its arguments. Source: scDiff, Table 5.
    """
    hits, of_type, called = _margins(true, predicted)
    present = of_type + called > 0
    return float(np.mean(2 * hits[present] / (of_type + called)[present]))


def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Share of cells called right. Range 0 to 1. Source: scDiff, Table 11; the class shares of Table 1's chance."""
    hits, of_type, _ = _margins(true, predicted)
    return float(hits.sum() / of_type.sum())


METRICS = {
    "macro_recall": macro_recall,
    "macro_precision": macro_precision,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
}


def classification_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """All four scores of one set of cells, by name."""
    return {name: metric(true, predicted) for name, metric in METRICS.items()}


def _margins(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, cells of the type and calls of the type, (K,) float64 each."""
    table = confusion(true, predicted).astype(np.float64)
    return table.diagonal(), table.sum(axis=1), table.sum(axis=0)


def _codes(name: str, labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ScreproError(
            f"`{name}` is a one-dimensional array of at least one integer code from 0.",
            got=f"shape {labels.shape}, type {labels.dtype}",
            fix="encode the types as 0..K-1, for instance with pandas.Categorical(...).codes without missing values",
        )
    return labels.astype(np.int64)
