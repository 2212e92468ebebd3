"""What a number has to be read against: the control cells as a prediction, the mean effect, halves of the real cells.

None of the three has learned anything. `control_cells` says that nothing happens, `mean_effect` that every perturbation
does what perturbations do on average; a method that predicts single perturbations has to beat both. `split_half` is
what a perfect generator would get from as many cells as half of a perturbation has.
"""

from dataclasses import replace

import numpy as np

from screpro.metrics.perturbation.cells import Cells, compare, summary_side
from screpro.metrics.perturbation.tables import Comparison, Side

__all__ = ["control_cells", "mean_effect", "split_half"]


def control_cells(pair: Comparison) -> Comparison:
    """The prediction of no effect: the real control cells, for every perturbation.

    Tested against themselves they have p = 1 and a fold change of 1 in every gene, so no cell has to be read.
    """
    shape = pair.real.mean.shape
    nothing = Side(
        mean=np.tile(pair.control, (shape[0], 1)),
        overall=pair.control,
        fdr=np.ones(shape),
        fold_change=np.ones(shape),
    )
    return replace(pair, generated=nothing)


def mean_effect(pair: Comparison, real: Cells, *, seed: int) -> Comparison:
    """The prediction of one effect for all: the mean of the real effects, each perturbation with the same weight.

    A rank test on copies of a mean cell calls nearly every gene, as a mean of sparse values is never 0. So the tests
    are made on real cells: every perturbation gets as many cells as it has, drawn without replacement from the cells of
    all perturbations. The effects of the perturbations that are scored are part of the mean: better than any mean that
    a model could take from training data.
    """
    mean = pair.real.mean.mean(axis=0)
    drawn = real.codes.copy()
    perturbed = np.flatnonzero((drawn >= 0) & (drawn < real.control_code))
    drawn[perturbed] = drawn[np.random.default_rng(seed).permutation(perturbed)]
    tested = summary_side(replace(real, codes=drawn))
    return replace(pair, generated=replace(tested, mean=np.tile(mean, (len(pair.real.mean), 1)), overall=mean))


def split_half(real: Cells, *, seed: int) -> Comparison:
    """One random half of each perturbation's real cells as real, the other half as generated.

    All control cells serve both halves, as they do for a generated file. Halves call fewer genes than all cells do, so
    scores of called genes are a little below what a perfect generator reaches at full size. Where the number of cells
    is odd, the second half has one more.
    """
    rng = np.random.default_rng(seed)
    first, second = real.codes.copy(), real.codes.copy()
    for code in range(real.control_code):
        own = rng.permutation(np.flatnonzero(real.codes == code))
        half = len(own) // 2
        first[own[half:]] = -1
        second[own[:half]] = -1
    return compare(replace(real, codes=first), replace(real, codes=second))
