r"""Metrics of the p-values themselves: are truly changed genes the more significant ones, are strong effects strong?

$q_{\lambda g}$ and $\hat q_{\lambda g}$ are the adjusted p-values of the real and the generated cells;
$\mathcal G_\lambda = \{g : q_{\lambda g} < .05\}$ are the truly called genes.
"""

import numpy as np
from scipy.stats import rankdata

from screpro.metrics.catalogue import metric
from screpro.metrics.perturbation.means import row_pearson
from screpro.metrics.perturbation.tables import Comparison

__all__ = [
    "de_auprc",
    "de_auprc_uncapped",
    "de_auroc",
    "de_auroc_uncapped",
    "effect_size_spearman",
    "effect_size_spearman_all",
]

ZERO_READS_AS = 1e-10
"""What Cell-Eval takes for an adjusted p-value of 0 before its logarithm."""


def _capped(pair: Comparison) -> np.ndarray:
    """(M, G) float32 score of Cell-Eval: -log10 of the adjusted p-value."""
    read = pair.generated.part("fdr_read")
    return -np.log10(np.where(read == 0, np.float32(ZERO_READS_AS), read))


def auroc(label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(M,) share of pairs (gene with label, gene without) in the right order, ties half; NaN without one of them."""
    positive = label.sum(axis=1).astype(np.float64)
    negative = label.shape[1] - positive
    ranks = np.where(label, rankdata(score, axis=1), 0.0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks - positive * (positive + 1) / 2) / (positive * negative)


def average_precision(label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(M,) mean over genes with label of the precision at their score; NaN without a gene with or without label."""
    genes = label.shape[1]
    order = np.argsort(-score, axis=1, kind="stable")
    sorted_score, hit = np.take_along_axis(score, order, axis=1), np.take_along_axis(label, order, axis=1)
    # genes of one score come in together: each sees the precision at the last of them
    last = np.concatenate([sorted_score[:, 1:] != sorted_score[:, :-1], np.ones((len(label), 1), bool)], axis=1)
    end = np.where(last, np.arange(genes), genes)
    end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
    precision = np.take_along_axis(hit.cumsum(axis=1), end, axis=1) / (end + 1)
    positive = label.sum(axis=1)
    defined = (positive > 0) & (positive < genes)
    return np.where(defined, (precision * hit).sum(axis=1) / np.maximum(positive, 1), np.nan)


def _count_spearman(pair: Comparison, among: np.ndarray) -> float:
    """Spearman correlation over the perturbations `among` (M,) of the numbers of called genes."""
    counts = (side.significant[among].sum(axis=1) for side in (pair.real, pair.generated))
    return float(row_pearson(*(rankdata(part)[None] for part in counts))[0])


@metric(title="AUROC of truly changed genes", family="perturbation", direction="higher")
def de_auroc(pair: Comparison) -> np.ndarray:
    r"""Chance that a truly changed gene is more significant in the generated cells than one that is not.

    Formula
    -------
    $$ \mathrm{AUROC}_\lambda = P(s_g > s_h) + \tfrac12 P(s_g = s_h), \quad g \in \mathcal G_\lambda,
    h \notin \mathcal G_\lambda, \qquad s_g = -\log_{10} \hat q_{\lambda g} $$

    Estimator
    ---------
    All pairs of a called and another gene, from ranks. $\hat q$ is float32; where it is 0, it counts as 1e-10.

    Bias
    ----
    .5 for a guess. The zeros: p-values of a float32 matrix below 1e-45 are 0, and as 1e-10 they rank BELOW a gene with
    1e-20. With many cells that is the strongest genes (``de_auroc_uncapped`` keeps them on top). The adjustment runs
    over all perturbations, which does not change the order within one.

    Unit
    ----
    None; 0 to 1.

    Used in
    -------
    PerturbDiff, Table 4, column AUROC; Cell-Eval's ``roc_auc``. Cell-Eval's mean over perturbations is NaN as soon as
    one is undefined; ours is over those that are defined.

    Parameters
    ----------
    pair
        Adjusted p-values of both sides.

    Returns
    -------
    (M,) NaN where none or all genes are truly called.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes, gene 1 truly called in the first two. First: its generated p-value .02 is smaller
    than .5 and equal to .02: (1 + 1/2)/2. Second: the p-value of 0 counts as 1e-10 and loses against 1e-20: 1/2. Third:
    no gene called.

    >>> from screpro.metrics.perturbation import Comparison, Side, de_auroc
    >>> real = Side(fdr=[[.01, .9, .9], [.01, .9, .9], [.9, .9, .9]])
    >>> generated = Side(fdr=[[.02, .02, .5], [0, 1e-20, .5], [.5, .5, .5]])
    >>> de_auroc(Comparison(real=real, generated=generated)).tolist()
    [0.75, 0.5, nan]
    """
    return auroc(pair.real.significant, _capped(pair))


@metric(title="AUPRC of truly changed genes", family="perturbation", direction="higher")
def de_auprc(pair: Comparison) -> np.ndarray:
    r"""Average precision with which the generated p-values pick out the truly changed genes.

    Formula
    -------
    $$ \mathrm{AUPRC}_\lambda = \frac{1}{|\mathcal G_\lambda|} \sum_{g \in \mathcal G_\lambda}
    \frac{|\{h \in \mathcal G_\lambda : s_h \ge s_g\}|}{|\{h : s_h \ge s_g\}|}, \qquad
    s_g = -\log_{10} \hat q_{\lambda g} $$

    Estimator
    ---------
    Average precision (a sum of steps, no interpolation); genes of one score enter together. $\hat q$ is float32; where
    it is 0, it counts as 1e-10.

    Bias
    ----
    Its floor is the share of truly called genes: .54 on PBMC is nothing. Zeros as in ``de_auroc``.

    Unit
    ----
    None; 0 to 1.

    Used in
    -------
    PerturbDiff, Table 4, column AUPRC; Cell-Eval's ``pr_auc``.

    Parameters
    ----------
    pair
        Adjusted p-values of both sides.

    Returns
    -------
    (M,) NaN where none or all genes are truly called.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. First: gene 1 is called and comes second of three: precision 1/2. Second: genes 1
    and 3 are called and come first (1/1) and third (2/3): mean 5/6. Third: all p-values equal, the share of called
    genes, 1/3.

    >>> from screpro.metrics.perturbation import Comparison, Side, de_auprc
    >>> real = Side(fdr=[[.01, .9, .9], [.01, .9, .01], [.01, .9, .9]])
    >>> generated = Side(fdr=[[.02, .01, .5], [.01, .02, .5], [.5, .5, .5]])
    >>> de_auprc(Comparison(real=real, generated=generated)).round(3).tolist()
    [0.5, 0.833, 0.333]
    """
    return average_precision(pair.real.significant, _capped(pair))


@metric(title="ES: order of effect sizes", family="perturbation", direction="higher")
def effect_size_spearman(pair: Comparison) -> float:
    r"""Rank correlation over perturbations of the numbers of changed genes: one number per data set.

    Formula
    -------
    $$ \mathrm{ES} = \mathrm{Spearman}_{\lambda\,:\,|\mathcal G_\lambda| > 0}
    \big(|\mathcal G_\lambda|, |\hat{\mathcal G}_\lambda|\big) $$

    Estimator
    ---------
    Over the perturbations with at least one truly called gene; equal counts share their mean rank.

    Bias
    ----
    Numbers of called genes follow the numbers of cells: a method that copies these correlates without any biology.
    Perturbations without an effect are left out, so calling genes for them costs nothing.

    Unit
    ----
    None; -1 to 1.

    Used in
    -------
    PerturbDiff, Table 4, column ES; Cell-Eval's ``de_spearman_sig``. Equation 58 runs over all M perturbations
    (``effect_size_spearman_all``).

    Parameters
    ----------
    pair
        Adjusted p-values of both sides.

    Returns
    -------
    float; 1 if no perturbation has a truly called gene (Cell-Eval's choice), NaN if all counts of a side are equal or
    one perturbation is left.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. Truly called are 0, 1 and 2 genes, in the generated cells 3, 1 and 2. The first
    perturbation has none and is left out; the other two are in the same order: 1.

    >>> from screpro.metrics.perturbation import Comparison, Side, effect_size_spearman
    >>> real = Side(fdr=[[.9, .9, .9], [.01, .9, .9], [.01, .01, .9]])
    >>> generated = Side(fdr=[[.01, .01, .01], [.01, .9, .9], [.01, .01, .9]])
    >>> round(effect_size_spearman(Comparison(real=real, generated=generated)), 6)
    1.0
    """
    changed = pair.real.significant.any(axis=1)
    return _count_spearman(pair, changed) if changed.any() else 1.0


@metric(title="ES as printed: over all perturbations", family="perturbation", direction="higher")
def effect_size_spearman_all(pair: Comparison) -> float:
    r"""Rank correlation over ALL perturbations of the numbers of changed genes, as equation 58 prints it.

    Formula
    -------
    $$ \mathrm{Spearman}_{\lambda = 1 \dots M}\big(|\mathcal G_\lambda|, |\hat{\mathcal G}_\lambda|\big) $$

    Estimator
    ---------
    Over all perturbations; equal counts share their mean rank.

    Bias
    ----
    Numbers of called genes follow the numbers of cells, as in ``effect_size_spearman``.

    Unit
    ----
    None; -1 to 1.

    Used in
    -------
    PerturbDiff, equation 58. Table 4 has ``effect_size_spearman``; the two agree where every perturbation changes a
    gene.

    Parameters
    ----------
    pair
        Adjusted p-values of both sides.

    Returns
    -------
    float; NaN if all counts of a side are equal.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. Truly called are 0, 1 and 2 genes, in the generated cells 3, 1 and 2: ranks
    (1, 2, 3) and (3, 1, 2), squared differences 4 + 1 + 1, 1 - 6·6/(3·8) = -1/2.

    >>> from screpro.metrics.perturbation import Comparison, Side, effect_size_spearman_all
    >>> real = Side(fdr=[[.9, .9, .9], [.01, .9, .9], [.01, .01, .9]])
    >>> generated = Side(fdr=[[.01, .01, .01], [.01, .9, .9], [.01, .01, .9]])
    >>> round(effect_size_spearman_all(Comparison(real=real, generated=generated)), 6)
    -0.5
    """
    return _count_spearman(pair, np.ones(pair.n_perturbations, dtype=bool))


@metric(title="AUROC as printed: no cap on p-values", family="perturbation", direction="higher")
def de_auroc_uncapped(pair: Comparison) -> np.ndarray:
    r"""AUROC of truly changed genes with the adjusted p-values as they are: the smallest rank first, zeros too.

    Formula
    -------
    $$ P(s_g > s_h) + \tfrac12 P(s_g = s_h), \quad g \in \mathcal G_\lambda, h \notin \mathcal G_\lambda,
    \qquad s_g = -\hat q_{\lambda g} $$

    Estimator
    ---------
    From ranks of the float64 p-values, which reach down to 1e-308 instead of 1e-45.

    Bias
    ----
    .5 for a guess.

    Unit
    ----
    None; 0 to 1.

    Used in
    -------
    PerturbDiff, the words of appendix C.2.2 ("negative log-transformed adjusted p-values"). Table 4 has ``de_auroc``,
    where what rounds to 0 counts as 1e-10.

    Parameters
    ----------
    pair
        Adjusted p-values of both sides.

    Returns
    -------
    (M,) NaN where none or all genes are truly called.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes, gene 1 truly called in the first two. First: .02 is smaller than .5 and equal to
    .02: (1 + 1/2)/2. Second: 0 is smaller than 1e-20 and .5: 1. Third: no gene called.

    >>> from screpro.metrics.perturbation import Comparison, Side, de_auroc_uncapped
    >>> real = Side(fdr=[[.01, .9, .9], [.01, .9, .9], [.9, .9, .9]])
    >>> generated = Side(fdr=[[.02, .02, .5], [0, 1e-20, .5], [.5, .5, .5]])
    >>> de_auroc_uncapped(Comparison(real=real, generated=generated)).tolist()
    [0.75, 1.0, nan]
    """
    return auroc(pair.real.significant, -pair.generated.part("fdr"))


@metric(title="AUPRC as printed: no cap on p-values", family="perturbation", direction="higher")
def de_auprc_uncapped(pair: Comparison) -> np.ndarray:
    r"""Average precision of truly changed genes with the adjusted p-values as they are: zeros rank first.

    Formula
    -------
    $$ \frac{1}{|\mathcal G_\lambda|} \sum_{g \in \mathcal G_\lambda}
    \frac{|\{h \in \mathcal G_\lambda : s_h \ge s_g\}|}{|\{h : s_h \ge s_g\}|}, \qquad s_g = -\hat q_{\lambda g} $$

    Estimator
    ---------
    Average precision on the float64 p-values; genes of one score enter together.

    Bias
    ----
    Its floor is the share of truly called genes.

    Unit
    ----
    None; 0 to 1.

    Used in
    -------
    PerturbDiff, the words of appendix C.2.2. Table 4 has ``de_auprc``, where what rounds to 0 counts as 1e-10.

    Parameters
    ----------
    pair
        Adjusted p-values of both sides.

    Returns
    -------
    (M,) NaN where none or all genes are truly called.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes, gene 1 truly called. First: it comes second: 1/2. Second: its p-value of 0 comes
    before 1e-20: 1. Third: all equal: 1/3.

    >>> from screpro.metrics.perturbation import Comparison, Side, de_auprc_uncapped
    >>> real = Side(fdr=[[.01, .9, .9], [.01, .9, .9], [.01, .9, .9]])
    >>> generated = Side(fdr=[[.02, .01, .5], [0, 1e-20, .5], [.5, .5, .5]])
    >>> de_auprc_uncapped(Comparison(real=real, generated=generated)).round(3).tolist()
    [0.5, 1.0, 0.333]
    """
    return average_precision(pair.real.significant, -pair.generated.part("fdr"))
