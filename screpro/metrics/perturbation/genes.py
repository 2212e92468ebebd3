r"""Metrics of differentially expressed genes: are the same genes found, in the same direction and order?

$\mathcal G_\lambda$ and $\hat{\mathcal G}_\lambda$ are the genes called in the real and in the generated cells of
perturbation $\lambda$ (adjusted p below .05, see ``screpro.metrics.perturbation.cells``); $F_{\lambda g}$ and
$\hat F_{\lambda g}$ the fold changes against the real control cells.
"""

import numpy as np
from scipy.stats import rankdata

from screpro.metrics.catalogue import metric
from screpro.metrics.perturbation.means import row_pearson
from screpro.metrics.perturbation.tables import Comparison

__all__ = [
    "agreement_of",
    "de_overlap",
    "de_precision",
    "direction_agreement",
    "lfc_spearman",
    "overlap_of",
    "spearman_of",
]


def _top(significant: np.ndarray, size: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(M, G) bool: the `k` (M,) significant genes of largest `size` (M, G); all of them where there are fewer."""
    order = np.argsort(np.where(significant, -size, np.inf), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None], axis=1)
    return significant & (rank < k[:, None])


def overlap_of(pair: Comparison, k: np.ndarray, sizes: tuple[np.ndarray, np.ndarray], *, if_none: float) -> np.ndarray:
    """(M,) share of `k` (M,) that the top k genes of both sides have in common."""
    real, generated = (_top(s.significant, size, k) for s, size in zip((pair.real, pair.generated), sizes, strict=True))
    return np.where(k > 0, (real & generated).sum(axis=1) / np.maximum(k, 1), if_none)


def _sizes(pair: Comparison) -> tuple[np.ndarray, np.ndarray]:
    return np.abs(pair.real.log2_fold_change), np.abs(pair.generated.log2_fold_change)


def agreement_of(pair: Comparison, among: np.ndarray) -> np.ndarray:
    """(M,) share of the genes `among` (M, G) whose fold changes have the same direction; NaN if there are none."""
    same = np.sign(pair.real.log2_fold_change) == np.sign(pair.generated.log2_fold_change)
    n = among.sum(axis=1)
    return np.where(n > 0, (same & among).sum(axis=1) / np.maximum(n, 1), np.nan)


def spearman_of(a: np.ndarray, b: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(M,) Spearman correlation of the rows of `a` and `b` (M, G) over the genes `among`, equal values at mean rank."""
    ranked = (rankdata(np.where(among, part, np.nan), axis=1, nan_policy="omit") for part in (a, b))
    return row_pearson(*ranked)


@metric(title="DEOver: overlap of differentially expressed genes", family="perturbation", direction="higher")
def de_overlap(pair: Comparison) -> np.ndarray:
    r"""Share of the truly changed genes that are found again among equally many of the generated cells' strongest.

    Formula
    -------
    $$ \mathrm{DEOver}_\lambda = \frac{|\mathcal G^k_\lambda \cap \hat{\mathcal G}^k_\lambda|}{k}, \qquad
    k = |\mathcal G_\lambda| $$

    $\mathcal G^k$: the k genes of largest $|\log_2 F|$ among those called on that side, all if fewer are called.

    Estimator
    ---------
    Rank-sum test of each side against all real control cells, Benjamini-Hochberg over all perturbations and genes of
    the side, adjusted p < .05. Equal sizes are taken in gene order.

    Bias
    ----
    Rises with the number of called genes on either side: when nearly all genes are called it is near 1 for anything
    that also calls nearly all. Ratios with a mean of 0 stand at 20 or 1/20, below true ratios beyond 20, and are all
    equal.

    Unit
    ----
    None; share of k from 0 to 1.

    Used in
    -------
    PerturbDiff, Table 4, column DEOver; Cell-Eval's ``overlap_at_N``. Where equal sizes straddle the k-th place,
    Cell-Eval's sort is not stable and takes arbitrary ones: the two can then differ by the number of ties. Equation 54
    has another fold change (``de_overlap_printed``).

    Parameters
    ----------
    pair
        Adjusted p-values and fold changes of both sides.

    Returns
    -------
    (M,) 0 where no gene is truly called.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. First: genes 1 and 2 are truly called, so k = 2; the two strongest generated ones
    are 1 (8-fold) and 3 (1/4): one in common, 1/2. Second: k = 1, gene 2 on both sides, 1. Third: none truly called, 0.

    >>> from screpro.metrics.perturbation import Comparison, Side, de_overlap
    >>> real = Side(fdr=[[.01, .01, .9], [.9, .01, .9], [.9, .9, .9]], fold_change=[[4, 2, 1], [1, 2, 1], [1, 1, 1]])
    >>> generated = Side(fdr=[[.01, .01, .01], [.9, .01, .9], [.01, .9, .9]],
    ...                  fold_change=[[8, 2, 1 / 4], [1, 4, 1], [2, 1, 1]])
    >>> de_overlap(Comparison(real=real, generated=generated)).tolist()
    [0.5, 1.0, 0.0]
    """
    return overlap_of(pair, pair.real.significant.sum(axis=1), _sizes(pair), if_none=0.0)


@metric(title="DEPrec: precision of differentially expressed genes", family="perturbation", direction="higher")
def de_precision(pair: Comparison) -> np.ndarray:
    r"""Share of the genes called in the generated cells that are among equally many of the truly strongest.

    Formula
    -------
    $$ \mathrm{DEPrec}_\lambda = \frac{|\mathcal G^k_\lambda \cap \hat{\mathcal G}^k_\lambda|}{k}, \qquad
    k = |\hat{\mathcal G}_\lambda| $$

    $\mathcal G^k$: the k genes of largest $|\log_2 F|$ among those called on that side, all if fewer are called.

    Estimator
    ---------
    As ``de_overlap`` with k the number of generated calls. With at least as many generated as real calls it is the
    plain precision: real calls among the generated ones.

    Bias
    ----
    Its floor is the share of truly called genes (.542 on PBMC, .504 on Tahoe, .087 on Replogle in the paper's mean
    baselines): calling every gene reaches it. Report it beside the value.

    Unit
    ----
    None; share of k from 0 to 1.

    Used in
    -------
    PerturbDiff, Table 4, column DEPrec; Cell-Eval's ``precision_at_N``. Ties as in ``de_overlap``. Equation 55 has
    another fold change (``de_precision_printed``).

    Parameters
    ----------
    pair
        Adjusted p-values and fold changes of both sides.

    Returns
    -------
    (M,) 0 where no gene is called in the generated cells.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. First: all three genes are called in the generated cells, k = 3, two of them
    truly: 2/3. Second: k = 1; the strongest real gene is 1, the generated one is 2: 0. Third: none called, 0.

    >>> from screpro.metrics.perturbation import Comparison, Side, de_precision
    >>> real = Side(fdr=[[.01, .01, .9], [.01, .01, .9], [.01, .9, .9]], fold_change=[[4, 2, 1], [4, 2, 1], [2, 1, 1]])
    >>> generated = Side(fdr=[[.01, .01, .01], [.9, .01, .9], [.9, .9, .9]],
    ...                  fold_change=[[8, 2, 1 / 4], [1, 4, 1], [2, 1, 1]])
    >>> de_precision(Comparison(real=real, generated=generated)).round(3).tolist()
    [0.667, 0.0, 0.0]
    """
    return overlap_of(pair, pair.generated.significant.sum(axis=1), _sizes(pair), if_none=0.0)


@metric(title="DirAgr: direction of truly changed genes", family="perturbation", direction="higher")
def direction_agreement(pair: Comparison) -> np.ndarray:
    r"""Share of the truly changed genes that go up or down in the generated cells as they do in the real ones.

    Formula
    -------
    $$ \mathrm{DirAgr}_\lambda = \frac{1}{|\mathcal G_\lambda|} \sum_{g \in \mathcal G_\lambda}
    \mathbb 1\big[\operatorname{sgn} \log_2 \hat F_{\lambda g} = \operatorname{sgn} \log_2 F_{\lambda g}\big] $$

    Estimator
    ---------
    Over the genes called in the REAL cells, whether or not the generated cells call them. A fold change of exactly 1
    agrees with nothing but 1.

    Bias
    ----
    About .5 for a guess; higher for the mean effect of all perturbations, as many perturbations move genes in the same
    direction. Depth differences between perturbed and control cells push all genes one way.

    Unit
    ----
    None; share from 0 to 1.

    Used in
    -------
    PerturbDiff, Table 4, column DirAgr; Cell-Eval's ``de_direction_match``. Equation 56 asks for genes called on both
    sides (``direction_agreement_both``).

    Parameters
    ----------
    pair
        Real adjusted p-values and fold changes of both sides.

    Returns
    -------
    (M,) NaN where no gene is truly called; Cell-Eval leaves such perturbations out.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. First: genes 1 and 2 are truly called, both up; the generated ones go up and down:
    1/2. Second: gene 2 goes down on both sides: 1. Third: nothing called.

    >>> from screpro.metrics.perturbation import Comparison, Side, direction_agreement
    >>> real = Side(fdr=[[.01, .01, .9], [.9, .01, .9], [.9, .9, .9]], fold_change=[[4, 2, 1], [1, .5, 1], [1, 1, 1]])
    >>> generated = Side(fdr=[[.01, .9, .9], [.9, .9, .9], [.9, .9, .9]],
    ...                  fold_change=[[8, .9, 1], [1, .2, 1], [1, 1, 1]])
    >>> direction_agreement(Comparison(real=real, generated=generated)).tolist()
    [0.5, 1.0, nan]
    """
    return agreement_of(pair, pair.real.significant)


@metric(title="LFCSpear: order of fold changes", family="perturbation", direction="higher")
def lfc_spearman(pair: Comparison) -> np.ndarray:
    r"""Rank correlation of generated and real fold changes over the truly changed genes.

    Formula
    -------
    $$ \mathrm{LFCSpear}_\lambda = \mathrm{Spearman}_{g \in \mathcal G_\lambda}\big(F_{\lambda g},
    \hat F_{\lambda g}\big), \qquad F = \frac{e^{\bar x} - 1}{e^{\bar c} - 1} $$

    Estimator
    ---------
    Over the genes called in the real cells. Fold changes, not their logarithms: ranks are the same. Equal values share
    their mean rank; they are compared as float32.

    Bias
    ----
    With few called genes it takes few values: with two it is 1 or -1. Selecting genes by their significance in the real
    cells makes their real fold changes larger than they are.

    Unit
    ----
    None; -1 to 1.

    Used in
    -------
    PerturbDiff, Table 4, column LFCSpear; Cell-Eval's ``de_spearman_lfc_sig``. Equation 57 is the same with the fold
    change of appendix C.2.2 (``lfc_spearman_printed``).

    Parameters
    ----------
    pair
        Real adjusted p-values and fold changes of both sides.

    Returns
    -------
    (M,) NaN where fewer than two genes are truly called, or all have the same fold change on a side.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. First: all three called, ranks (1, 2, 3) and (1, 3, 2): 1 - 6·2/(3·8) = 1/2.
    Second: genes 1 and 2 called, in opposite order: -1. Third: one gene called, undefined.

    >>> from screpro.metrics.perturbation import Comparison, Side, lfc_spearman
    >>> real = Side(fdr=[[.01, .01, .01], [.01, .01, .9], [.01, .9, .9]],
    ...             fold_change=[[.5, 2, 4], [2, 4, 1], [2, 1, 1]])
    >>> generated = Side(fdr=[[1, 1, 1], [1, 1, 1], [1, 1, 1]], fold_change=[[.1, 5, 3], [3, .5, 9], [2, 1, 1]])
    >>> lfc_spearman(Comparison(real=real, generated=generated)).round(6).tolist()
    [0.5, -1.0, nan]
    """
    real, generated = (side.part("fold_change").astype(np.float32) for side in (pair.real, pair.generated))
    return spearman_of(real, generated, pair.real.significant)
