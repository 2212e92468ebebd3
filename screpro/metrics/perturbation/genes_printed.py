r"""Metrics of differentially expressed genes as the paper prints them, where that is not what Cell-Eval computes.

Appendix C.2.2 defines the fold change as the ratio of mean LOG expressions with 1e-8 added to both,
$\log_2 \frac{\bar x_{\lambda g} + \epsilon}{\bar c_g + \epsilon}$. The code takes ``expm1`` of both means and adds
nothing. The printed one shrinks the changes of highly expressed genes, and a gene without any count on one side gets an
enormous change (log2 of about 1e8) where the code has log2 of 20. The printed direction agreement asks for genes called
on both sides.
"""

import numpy as np

from screpro.metrics.catalogue import metric
from screpro.metrics.perturbation.genes import agreement_of, overlap_of, spearman_of
from screpro.metrics.perturbation.tables import Comparison

__all__ = ["de_overlap_printed", "de_precision_printed", "direction_agreement_both", "lfc_spearman_printed"]


def _sizes(pair: Comparison) -> tuple[np.ndarray, np.ndarray]:
    return np.abs(pair.printed_log2_ratio(pair.real)), np.abs(pair.printed_log2_ratio(pair.generated))


@metric(title="DirAgr as printed: genes called on both sides", family="perturbation", direction="higher")
def direction_agreement_both(pair: Comparison) -> np.ndarray:
    r"""Share of the genes called on BOTH sides that go in the same direction, as equation 56 prints it.

    Formula
    -------
    $$ \frac{1}{|\mathcal G_\lambda \cap \hat{\mathcal G}_\lambda|} \sum_{g \in \mathcal G_\lambda \cap
    \hat{\mathcal G}_\lambda} \mathbb 1\big[\operatorname{sgn} \log_2 \hat F_{\lambda g} = \operatorname{sgn} \log_2
    F_{\lambda g}\big] $$

    Estimator
    ---------
    Over the genes called in the real and in the generated cells.

    Bias
    ----
    Upwards compared with ``direction_agreement``: genes that the model misses no longer count, so a model that calls
    one gene and gets its sign right has 1.

    Unit
    ----
    None; share from 0 to 1.

    Used in
    -------
    PerturbDiff, equation 56. No number in Table 4 is computed this way: those are ``direction_agreement``.

    Parameters
    ----------
    pair
        Adjusted p-values and fold changes of both sides.

    Returns
    -------
    (M,) NaN where no gene is called on both sides.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes. First: genes 1 and 2 are truly called, only gene 1 in the generated cells, and it
    goes up on both sides: 1. Second: gene 2 is called on both sides in opposite directions: 0. Third: none on both.

    >>> from screpro.metrics.perturbation import Comparison, Side, direction_agreement_both
    >>> real = Side(fdr=[[.01, .01, .9], [.9, .01, .9], [.01, .9, .9]], fold_change=[[4, 2, 1], [1, .5, 1], [2, 1, 1]])
    >>> generated = Side(fdr=[[.01, .9, .9], [.9, .01, .9], [.9, .01, .9]],
    ...                  fold_change=[[8, .9, 1], [1, 3, 1], [1, 2, 1]])
    >>> direction_agreement_both(Comparison(real=real, generated=generated)).tolist()
    [1.0, 0.0, nan]
    """
    return agreement_of(pair, pair.real.significant & pair.generated.significant)


@metric(title="DEOver as printed: fold change of log expression", family="perturbation", direction="higher")
def de_overlap_printed(pair: Comparison) -> np.ndarray:
    r"""Overlap of called genes, ordered by the ratio of mean log expressions.

    Formula
    -------
    $$ \frac{|\mathcal G^k_\lambda \cap \hat{\mathcal G}^k_\lambda|}{k}, \qquad k = |\mathcal G_\lambda|, \qquad
    \text{ordered by } \Big|\log_2 \frac{\bar x_{\lambda g} + 10^{-8}}{\bar c_g + 10^{-8}}\Big| $$

    Estimator
    ---------
    As ``de_overlap`` with the printed fold change. Nothing says what an empty set counts: it is left undefined.

    Bias
    ----
    As ``de_overlap``; genes that are absent on one side come first, as their ratio is limited by 1e-8 only.

    Unit
    ----
    None; share of k from 0 to 1.

    Used in
    -------
    PerturbDiff, equation 54 with the fold change of appendix C.2.2. No number in Table 4 is computed this way: those
    are ``de_overlap``.

    Parameters
    ----------
    pair
        Adjusted p-values and means of both sides and the control mean.

    Returns
    -------
    (M,) NaN where no gene is truly called.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Control mean 1 for three genes, three perturbations. First: k = 2 with genes 1 and 2; the generated means 8, 2 and
    1/4 order the genes 1, 3, 2, one in common: 1/2. Second: k = 1, gene 2 on both sides: 1. Third: none truly called.

    >>> from screpro.metrics.perturbation import Comparison, Side, de_overlap_printed
    >>> real = Side(fdr=[[.01, .01, .9], [.9, .01, .9], [.9, .9, .9]], mean=[[4, 2, 1], [1, 2, 1], [1, 1, 1]])
    >>> generated = Side(fdr=[[.01, .01, .01], [.9, .01, .9], [.01, .9, .9]],
    ...                  mean=[[8, 2, 1 / 4], [1, 4, 1], [2, 1, 1]])
    >>> de_overlap_printed(Comparison(real=real, generated=generated, control=[1, 1, 1])).round(6).tolist()
    [0.5, 1.0, nan]
    """
    return overlap_of(pair, pair.real.significant.sum(axis=1), _sizes(pair), if_none=np.nan)


@metric(title="DEPrec as printed: fold change of log expression", family="perturbation", direction="higher")
def de_precision_printed(pair: Comparison) -> np.ndarray:
    r"""Precision of called genes, ordered by the ratio of mean log expressions.

    Formula
    -------
    $$ \frac{|\mathcal G^k_\lambda \cap \hat{\mathcal G}^k_\lambda|}{k}, \qquad k = |\hat{\mathcal G}_\lambda|, \qquad
    \text{ordered by } \Big|\log_2 \frac{\bar x_{\lambda g} + 10^{-8}}{\bar c_g + 10^{-8}}\Big| $$

    Estimator
    ---------
    As ``de_precision`` with the printed fold change. An empty set is left undefined.

    Bias
    ----
    As ``de_precision``: its floor is the share of truly called genes.

    Unit
    ----
    None; share of k from 0 to 1.

    Used in
    -------
    PerturbDiff, equation 55 with the fold change of appendix C.2.2. No number in Table 4 is computed this way: those
    are ``de_precision``.

    Parameters
    ----------
    pair
        Adjusted p-values and means of both sides and the control mean.

    Returns
    -------
    (M,) NaN where no gene is called in the generated cells.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Control mean 1 for three genes, three perturbations. First: all three genes are called in the generated cells, two
    of them truly: 2/3. Second: k = 1; the strongest real gene is 1, the generated one is 2: 0. Third: none called.

    >>> from screpro.metrics.perturbation import Comparison, Side, de_precision_printed
    >>> real = Side(fdr=[[.01, .01, .9], [.01, .01, .9], [.01, .9, .9]], mean=[[4, 2, 1], [4, 2, 1], [2, 1, 1]])
    >>> generated = Side(fdr=[[.01, .01, .01], [.9, .01, .9], [.9, .9, .9]],
    ...                  mean=[[8, 2, 1 / 4], [1, 4, 1], [2, 1, 1]])
    >>> de_precision_printed(Comparison(real=real, generated=generated, control=[1, 1, 1])).round(6).tolist()
    [0.666667, 0.0, nan]
    """
    return overlap_of(pair, pair.generated.significant.sum(axis=1), _sizes(pair), if_none=np.nan)


@metric(title="LFCSpear as printed: fold change of log expression", family="perturbation", direction="higher")
def lfc_spearman_printed(pair: Comparison) -> np.ndarray:
    r"""Rank correlation over truly called genes of the ratios of mean log expressions.

    Formula
    -------
    $$ \mathrm{Spearman}_{g \in \mathcal G_\lambda}\Big( \log_2 \frac{\bar x_{\lambda g} + \epsilon}{\bar c_g +
    \epsilon}, \log_2 \frac{\hat{\bar x}_{\lambda g} + \epsilon}{\bar c_g + \epsilon}\Big), \qquad \epsilon = 10^{-8} $$

    Estimator
    ---------
    As ``lfc_spearman`` with the printed fold change. The order differs from the code's where genes differ in their
    control mean.

    Bias
    ----
    As ``lfc_spearman``.

    Unit
    ----
    None; -1 to 1.

    Used in
    -------
    PerturbDiff, equation 57 with the fold change of appendix C.2.2. No number in Table 4 is computed this way: those
    are ``lfc_spearman``.

    Parameters
    ----------
    pair
        Adjusted p-values and means of both sides and the control mean.

    Returns
    -------
    (M,) NaN where fewer than two genes are truly called, or all have the same ratio on a side.

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Control mean 1 for three genes, three perturbations. First: all three called, ranks (1, 2, 3) and (1, 3, 2):
    1 - 6·2/(3·8) = 1/2. Second: genes 1 and 2 called, in opposite order: -1. Third: one gene called, undefined.

    >>> from screpro.metrics.perturbation import Comparison, Side, lfc_spearman_printed
    >>> real = Side(fdr=[[.01, .01, .01], [.01, .01, .9], [.01, .9, .9]], mean=[[.5, 2, 4], [2, 4, 1], [2, 1, 1]])
    >>> generated = Side(fdr=[[1, 1, 1], [1, 1, 1], [1, 1, 1]],
    ...                  mean=[[.1, 5, 3], [3, .5, 9], [2, 1, 1]])
    >>> lfc_spearman_printed(Comparison(real=real, generated=generated, control=[1, 1, 1])).round(6).tolist()
    [0.5, -1.0, nan]
    """
    ratios = pair.printed_log2_ratio(pair.real), pair.printed_log2_ratio(pair.generated)
    return spearman_of(*ratios, pair.real.significant)
