r"""Perturbation discrimination: is a generated effect closer to its own real effect than to those of the others?

Cell-Eval 0.6.6 ranks all M real effects by their distance from the generated one and takes the rank of the right one.
The gene that a perturbation targets is left out, as to knock a gene out trivially moves that gene; but only the target
of the prediction that is ranked, which has a price, see the bias of `pds_l1`. What the paper prints is in
``discrimination_printed``.
"""

import numpy as np
from scipy.spatial.distance import cdist

from screpro.metrics.catalogue import metric
from screpro.metrics.perturbation.tables import Comparison

__all__ = ["distances", "pds_cosine", "pds_l1", "pds_l2", "share_farther"]


def distances(pair: Comparison, kind: str, *, leave_target_out: bool) -> np.ndarray:
    """(M, M) distance of each generated effect (rows) from every real effect (columns)."""
    targets = pair.targets if leave_target_out else np.full(pair.n_perturbations, -1)
    if kind == "cosine":
        return _cosine(pair.generated_effect, pair.effect, targets)
    real, distance = pair.effect.copy(), np.empty((pair.n_perturbations, pair.n_perturbations))
    for row, (effect, target) in enumerate(zip(pair.generated_effect, targets, strict=True)):
        kept = real[:, target].copy()
        if target >= 0:
            real[:, target] = effect[target]  # a difference of 0 in this gene
        distance[row] = cdist(effect[None], real, "cityblock" if kind == "l1" else "euclidean")[0]
        real[:, target] = kept
    return distance


def _cosine(generated: np.ndarray, real: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(M, M) 1 - cosine, without the gene of each row in product and lengths; 1 for an effect of zero."""
    rows = np.flatnonzero(targets >= 0)
    generated, squares = generated.copy(), real * real
    generated[rows, targets[rows]] = 0.0
    length = np.tile(squares.sum(axis=1), (len(real), 1))
    length[rows] -= squares[:, targets[rows]].T
    length = np.sqrt(np.maximum(length, 0.0) * (generated * generated).sum(axis=1, keepdims=True))
    length[length == 0] = 1.0
    return 1 - generated @ real.T / length


def share_farther(distance: np.ndarray, *, ties_by_order: bool) -> np.ndarray:
    """(M,) 1 - rank / M of the diagonal within its row."""
    own = distance.diagonal()[:, None]
    ahead = distance < own
    if ties_by_order:
        ahead |= (distance == own) & np.tri(len(distance), k=-1, dtype=bool)
    return 1 - ahead.sum(axis=1) / len(distance)


@metric(title="PDS L1: discrimination by L1 distance", family="perturbation", direction="higher")
def pds_l1(pair: Comparison) -> np.ndarray:
    r"""How many of the real effects are at least as far from the generated effect as the right one (L1 distance).

    Formula
    -------
    $$ \mathrm{PDS}_\lambda = 1 - \frac{r_\lambda}{M}, \qquad r_\lambda = \#\{p : d_p < d_\lambda\}
    + \#\{p < \lambda : d_p = d_\lambda\}, \qquad d_p = \sum_{g \ne \lambda} |\hat\Delta_{\lambda g} - \Delta_{pg}| $$

    $g \ne \lambda$: without the gene that bears the perturbation's name.

    Estimator
    ---------
    Rank from 0 among all M real effects, divided by M: at best 1, at worst 1/M. Equal distances rank by the
    alphabetical order of the perturbations.

    Bias
    ----
    Same prediction for all perturbations, no target measured: (M + 1) / (2M), .508 for M = 62. Where targets are
    measured it is more, up to 1: only the gene of the perturbation in question is left out, the other real effects keep
    theirs, and a knock-out that lowers its own gene strongly makes them the more distant ones. Always show the
    prediction of no effect. Long effects are easy to tell apart, weak ones are not: read it against the split halves.

    Unit
    ----
    None; share of perturbations.

    Used in
    -------
    PerturbDiff, Table 4, column PDSL1; Cell-Eval's ``discrimination_score_l1``, also the score of the Virtual Cell
    Challenge. Cell-Eval sorts by numpy's quicksort, so beyond 16 perturbations exact ties fall anyhow; here they fall
    by order. Equation 50 keeps the targeted gene and breaks ties in favour of the method (``pds_l1_printed``). Names of
    several genes (``A+B``) match no gene and exclude none, as in Cell-Eval.

    Parameters
    ----------
    pair
        Real and generated means, the control mean and the names of perturbations and genes.

    Returns
    -------
    (M,)

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations named after the three genes, control mean 0, so the effects are the means. Prediction A is
    compared on genes B and C only: distances 0, 5, 4 from the three real effects, its own is first: 1. B (on genes A
    and C): 4, 1, 4, first again. C (on genes A and B): 5, 1, 3, the real effect of B is closer: rank 1, score 1 - 1/3.

    >>> from screpro.metrics.perturbation import Comparison, Side, pds_l1
    >>> real = Side(mean=[[-3, 0, 0], [0, -3, 2], [0, 1, -3]])
    >>> generated = Side(mean=[[0, 0, 0], [0, 0, 1], [0, -2, 0]])
    >>> names = ("A", "B", "C")
    >>> pair = Comparison(real=real, generated=generated, control=[0, 0, 0], perturbations=names, genes=names)
    >>> pds_l1(pair).round(3).tolist()
    [1.0, 1.0, 0.667]
    """
    return share_farther(distances(pair, "l1", leave_target_out=True), ties_by_order=True)


@metric(title="PDS L2: discrimination by Euclidean distance", family="perturbation", direction="higher")
def pds_l2(pair: Comparison) -> np.ndarray:
    r"""How many of the real effects are at least as far from the generated effect as the right one (L2 distance).

    Formula
    -------
    $$ \mathrm{PDS}_\lambda = 1 - \frac{r_\lambda}{M}, \qquad r_\lambda = \#\{p : d_p < d_\lambda\}
    + \#\{p < \lambda : d_p = d_\lambda\}, \qquad
    d_p = \sqrt{\textstyle\sum_{g \ne \lambda} (\hat\Delta_{\lambda g} - \Delta_{pg})^2} $$

    $g \ne \lambda$: without the gene that bears the perturbation's name.

    Estimator
    ---------
    Rank from 0 among all M real effects, divided by M: at best 1, at worst 1/M. Equal distances rank by the
    alphabetical order of the perturbations.

    Bias
    ----
    As ``pds_l1``, with more weight on the few genes that move most, so more for predicting nothing where the targets
    are measured; (M + 1) / (2M) where they are not.

    Unit
    ----
    None; share of perturbations.

    Used in
    -------
    PerturbDiff, Table 4, column PDSL2; Cell-Eval's ``discrimination_score_l2``. Equation 50 keeps the targeted gene and
    breaks ties in favour of the method (``pds_l2_printed``).

    Parameters
    ----------
    pair
        Real and generated means, the control mean and the names of perturbations and genes.

    Returns
    -------
    (M,)

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes of other names, control mean 0. The first two predictions are exact. The third is
    (2, 2, 0): squared distances from the real effects are 1 + 4 = 5, 4 + 1 = 5 and 4 + 4 + 9 = 17, two are closer.

    >>> from screpro.metrics.perturbation import Comparison, Side, pds_l2
    >>> real = Side(mean=[[3, 0, 0], [0, 3, 0], [0, 0, 3]])
    >>> generated = Side(mean=[[3, 0, 0], [0, 3, 0], [2, 2, 0]])
    >>> pds_l2(Comparison(real=real, generated=generated, control=[0, 0, 0])).round(3).tolist()
    [1.0, 1.0, 0.333]
    """
    return share_farther(distances(pair, "l2", leave_target_out=True), ties_by_order=True)


@metric(title="PDS cos: discrimination by cosine distance", family="perturbation", direction="higher")
def pds_cosine(pair: Comparison) -> np.ndarray:
    r"""How many of the real effects point at most as much in the direction of the generated effect as the right one.

    Formula
    -------
    $$ \mathrm{PDS}_\lambda = 1 - \frac{r_\lambda}{M}, \qquad r_\lambda = \#\{p : d_p < d_\lambda\}
    + \#\{p < \lambda : d_p = d_\lambda\}, \qquad
    d_p = 1 - \frac{\sum_{g \ne \lambda} \hat\Delta_{\lambda g} \Delta_{pg}}
    {\|\hat\Delta_{\lambda}\|\,\|\Delta_{p}\|} $$

    $g \ne \lambda$, in the norms too: without the gene that bears the perturbation's name.

    Estimator
    ---------
    Rank from 0 among all M real effects, divided by M: at best 1, at worst 1/M. An effect of zero is at distance 1 from
    all. Equal distances rank by the alphabetical order of the perturbations.

    Bias
    ----
    Blind to the size of effects. Predicting the control gives ties only and therefore (M + 1) / (2M) on average.

    Unit
    ----
    None; share of perturbations.

    Used in
    -------
    PerturbDiff, Table 4, column PDScos; Cell-Eval's ``discrimination_score_cosine``, where numpy's unstable sort
    decides ties of more than 16 perturbations. With equation 50 as printed, ties are won: predicting the control would
    score a perfect 1 (``pds_cosine_printed``).

    Parameters
    ----------
    pair
        Real and generated means, the control mean and the names of perturbations and genes.

    Returns
    -------
    (M,)

    Raises
    ------
    ScreproError
        `pair` lacks one of these parts.

    Examples
    --------
    Three perturbations, three genes of other names, control mean 0. The first prediction has the right direction and
    the wrong length: first. The second points nowhere: all distances are 1, in alphabetical order it is second of
    three: 1 - 1/3. The third has cosines 1/√5, 2/√5 and 0 with the real effects, it comes last: 1 - 2/3.

    >>> from screpro.metrics.perturbation import Comparison, Side, pds_cosine
    >>> real = Side(mean=[[3, 0, 0], [0, 3, 0], [0, 0, 3]])
    >>> generated = Side(mean=[[9, 0, 0], [0, 0, 0], [1, 2, 0]])
    >>> pds_cosine(Comparison(real=real, generated=generated, control=[0, 0, 0])).round(3).tolist()
    [1.0, 0.667, 0.333]
    """
    return share_farther(distances(pair, "cosine", leave_target_out=True), ties_by_order=True)
