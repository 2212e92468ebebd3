r"""Perturbation discrimination as the paper's equation 50 prints it, where that is not what Cell-Eval computes.

The equation counts the real effects that are strictly closer than the right one, over all genes: ties are won, and the
gene that a perturbation targets takes part.
"""

import numpy as np

from screpro.metrics.catalogue import metric
from screpro.metrics.perturbation.discrimination import distances, share_farther
from screpro.metrics.perturbation.tables import Comparison

__all__ = ["pds_cosine_printed", "pds_l1_printed", "pds_l2_printed"]


@metric(title="PDS L1 as printed", family="perturbation", direction="higher")
def pds_l1_printed(pair: Comparison) -> np.ndarray:
    r"""Discrimination by L1 distance as equation 50 prints it: all genes, and ties are won.

    Formula
    -------
    $$ \mathrm{PDS}_\lambda = 1 - \frac{1}{M} \sum_{p \ne \lambda}
    \mathbb 1\big[d(\hat\Delta_\lambda, \Delta_p) < d(\hat\Delta_\lambda, \Delta_\lambda)\big], \qquad
    d(a, b) = \sum_g |a_g - b_g| $$

    Estimator
    ---------
    Number of real effects strictly closer than the right one, divided by M: at best 1, at worst 1/M.

    Bias
    ----
    Upwards where the targeted gene is measured: a knock-out that is predicted to lower its own gene is told apart by
    that gene alone. Same prediction for all perturbations: (M + 1) / (2M).

    Unit
    ----
    None; share of perturbations.

    Used in
    -------
    PerturbDiff, equation 50. No number in Table 4 is computed this way: those are ``pds_l1``.

    Parameters
    ----------
    pair
        Real and generated means and the control mean.

    Returns
    -------
    (M,)

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    The effects of ``pds_l1``, control mean 0, on all three genes. Distances of A from the three real effects: 3, 5, 4:
    first. B: 4, 4, 5: tied with A, and a tie is won. C: 5, 3, 6: two real effects are closer, 1 - 2/3.

    >>> from screpro.metrics.perturbation import Comparison, Side, pds_l1_printed
    >>> real = Side(mean=[[-3, 0, 0], [0, -3, 2], [0, 1, -3]])
    >>> generated = Side(mean=[[0, 0, 0], [0, 0, 1], [0, -2, 0]])
    >>> names = ("A", "B", "C")
    >>> pair = Comparison(real=real, generated=generated, control=[0, 0, 0], perturbations=names, genes=names)
    >>> pds_l1_printed(pair).round(3).tolist()
    [1.0, 1.0, 0.333]
    """
    return share_farther(distances(pair, "l1", leave_target_out=False), ties_by_order=False)


@metric(title="PDS L2 as printed", family="perturbation", direction="higher")
def pds_l2_printed(pair: Comparison) -> np.ndarray:
    r"""Discrimination by Euclidean distance as equation 50 prints it: all genes, and ties are won.

    Formula
    -------
    $$ \mathrm{PDS}_\lambda = 1 - \frac{1}{M} \sum_{p \ne \lambda}
    \mathbb 1\big[d(\hat\Delta_\lambda, \Delta_p) < d(\hat\Delta_\lambda, \Delta_\lambda)\big], \qquad
    d(a, b) = \sqrt{\textstyle\sum_g (a_g - b_g)^2} $$

    Estimator
    ---------
    Number of real effects strictly closer than the right one, divided by M: at best 1, at worst 1/M.

    Bias
    ----
    Upwards where the targeted gene is measured: a knock-out that is predicted to lower its own gene is told apart by
    that gene alone. Same prediction for all perturbations: (M + 1) / (2M).

    Unit
    ----
    None; share of perturbations.

    Used in
    -------
    PerturbDiff, equation 50. No number in Table 4 is computed this way: those are ``pds_l2``.

    Parameters
    ----------
    pair
        Real and generated means and the control mean.

    Returns
    -------
    (M,)

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations that target the three genes, control mean 0. The first two predictions are exact. The third
    moves only its own gene, (0, 0, -2): squared distances 9 + 4, 9 + 4 and 1 + 1 + 1 = 3 make it first. Without gene C
    it is at squared distances 9, 9 and 2, first as well.

    >>> from screpro.metrics.perturbation import Comparison, Side, pds_l2_printed
    >>> real = Side(mean=[[-3, 0, 0], [0, -3, 0], [1, 1, -3]])
    >>> generated = Side(mean=[[-3, 0, 0], [0, -3, 0], [0, 0, -2]])
    >>> names = ("A", "B", "C")
    >>> pair = Comparison(real=real, generated=generated, control=[0, 0, 0], perturbations=names, genes=names)
    >>> pds_l2_printed(pair).round(3).tolist()
    [1.0, 1.0, 1.0]
    """
    return share_farther(distances(pair, "l2", leave_target_out=False), ties_by_order=False)


@metric(title="PDS cos as printed", family="perturbation", direction="higher")
def pds_cosine_printed(pair: Comparison) -> np.ndarray:
    r"""Discrimination by cosine distance as equation 50 prints it: all genes, and ties are won.

    Formula
    -------
    $$ \mathrm{PDS}_\lambda = 1 - \frac{1}{M} \sum_{p \ne \lambda}
    \mathbb 1\big[d(\hat\Delta_\lambda, \Delta_p) < d(\hat\Delta_\lambda, \Delta_\lambda)\big], \qquad
    d(a, b) = 1 - \frac{a \cdot b}{\|a\|\,\|b\|} $$

    Estimator
    ---------
    Number of real effects strictly closer than the right one, divided by M: at best 1, at worst 1/M.

    Bias
    ----
    To predict no effect at all is perfect: every distance is 1 and no other effect is strictly closer. The targeted
    gene is kept, which helps as in ``pds_l1_printed``.

    Unit
    ----
    None; share of perturbations.

    Used in
    -------
    PerturbDiff, equation 50. No number in Table 4 is computed this way: those are ``pds_cosine``.

    Parameters
    ----------
    pair
        Real and generated means and the control mean.

    Returns
    -------
    (M,)

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes, control mean 0, and a prediction of no effect for each: nothing is strictly
    closer.

    >>> from screpro.metrics.perturbation import Comparison, Side, pds_cosine_printed
    >>> real = Side(mean=[[3, 0, 0], [0, 3, 0], [0, 0, 3]])
    >>> generated = Side(mean=[[0, 0, 0], [0, 0, 0], [0, 0, 0]])
    >>> pds_cosine_printed(Comparison(real=real, generated=generated, control=[0, 0, 0])).tolist()
    [1.0, 1.0, 1.0]
    """
    return share_farther(distances(pair, "cosine", leave_target_out=False), ties_by_order=False)
