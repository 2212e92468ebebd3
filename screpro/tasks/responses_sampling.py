r"""Do two samples of one condition differ by more than chance? Claim P19, after equation 2 of PerturbDiff.

A model that draws a *distribution* for each sample, as the paper says its model does, makes sets of cells whose means
scatter more than means of independent cells would. With R sets of n cells of one condition

    excess = variance of the R mean profiles - v / n,      ratio = variance of the R mean profiles / (v / n),

v the variance of the cells within a set, all summed over genes. The ratio is 1 on average for independent cells, above
1 for a distribution over distributions, and below 1 where the cells of a set are made to balance each other; v / n is
what a bootstrap of the cells of one set gives, without its factor (n - 1) / n. A network whose cells hardly differ has
a small v and so a large ratio: the excess, in squared log expression, can be compared between models and real cells.

Real cells have both over batches in the place of draws: how far donors of one condition are from each other.
"""

from typing import NamedTuple

import numpy as np

from screpro.data.populations import Populations
from screpro.errors import ScreproError
from screpro.tasks.set_diffusion import SamplerSettings, TrainedSets, generate

__all__ = ["Spread", "batch_spread", "draw_conditions", "mean_batch_spread", "sampling_spread"]


class Spread(NamedTuple):
    """Variance between mean profiles of sets, taken apart; both summed over genes."""

    excess: float  # what independent cells do not explain; below 0 by chance, or where cells balance each other
    within: float  # of the cells of a set

    def ratio(self, size: int) -> float:
        """Variance of the means of sets of `size` cells, in units of what independent cells would have."""
        return 1 + size * self.excess / self.within


def sampling_spread(draws: np.ndarray) -> Spread:
    """Spread of the mean profile over draws of one condition.

    Parameters
    ----------
    draws
        (R, n, G) R draws of n cells.

    Raises
    ------
    ScreproError
        Fewer than two draws or cells, or cells that are all the same.
    """
    draws = np.asarray(draws, dtype=np.float64)
    if draws.ndim != 3 or min(draws.shape[:2]) < 2:
        raise ScreproError(
            "A spread takes at least two draws of at least two cells.",
            got=f"shape {draws.shape}",
            fix="pass (draws, cells, genes)",
        )
    within = draws.var(axis=1, ddof=1).mean(0).sum()
    if within == 0:
        raise ScreproError(
            "Cells within a draw differ.", got="copies of one cell", fix="leave methods that answer with a mean out"
        )
    return Spread(float(draws.mean(1).var(axis=0, ddof=1).sum() - within / draws.shape[1]), float(within))


def batch_spread(x: np.ndarray, batch: np.ndarray) -> Spread | None:
    """Spread of the mean profile over the batches of one condition, whatever their numbers of cells.

    Parameters
    ----------
    x
        (n, G) cells.
    batch
        (n,) which batch each is of; batches of one cell are left out.

    Returns
    -------
    None if fewer than two batches have two cells, or all cells of each batch are the same.
    """
    x = np.asarray(x, dtype=np.float64)
    parts = [x[batch == code] for code in np.unique(batch)]
    parts = [part for part in parts if len(part) > 1]
    if len(parts) < 2:
        return None
    n = np.array([len(part) for part in parts])
    within = np.average([part.var(axis=0, ddof=1).sum() for part in parts], weights=n - 1)
    if within == 0:
        return None
    between = np.stack([part.mean(0) for part in parts]).var(axis=0, ddof=1).sum()
    return Spread(float(between - np.mean(within / n)), float(within))


def mean_batch_spread(cells: Populations, x: np.ndarray) -> Spread | None:
    """Mean over conditions of `batch_spread`; None where no condition has two batches.

    Batches of a (perturbation, context); where all cells are of one batch, contexts of a perturbation, which is what
    replicates are called where they are what is held out. `x` (n, G) is expression of the cells, or generated for them.
    """
    several = len(np.unique(cells.batch)) > 1
    condition = cells.perturbation * len(cells.contexts) + cells.context if several else cells.perturbation
    group = cells.batch if several else cells.context
    found = []
    for code in np.unique(condition[~cells.is_control]):
        rows = np.flatnonzero((condition == code) & ~cells.is_control)
        found.append(batch_spread(x[rows], group[rows]))
    found = [spread for spread in found if spread is not None]
    return Spread(*map(float, np.mean(found, axis=0))) if found else None


def draw_conditions(
    trained: TrainedSets,
    asked: Populations,
    *,
    controls: Populations,
    sampler: SamplerSettings,
    conditions: int,
    draws: int,
    seed: int,
) -> np.ndarray:
    """Draw sets of some conditions again and again, each time from other noise and other control cells.

    Parameters
    ----------
    trained, controls, sampler
        As for ``set_diffusion.generate``.
    asked
        Cells whose (perturbation, context, batch) are conditions.
    conditions, draws
        How many of them, taken evenly from all, and how often each is drawn.
    seed
        Of all draws.

    Returns
    -------
    (conditions, draws, m, G) float32, m the cells of a set in training.
    """
    _, first = np.unique(asked.group(), return_index=True)
    chosen = first[np.unique(np.linspace(0, len(first) - 1, min(conditions, len(first))).astype(int))]
    size = trained.settings.set_size
    again = asked.take(np.repeat(chosen, size))
    out = [
        generate(trained, again, controls=controls, sampler=sampler, seed=int(own), title=None)
        for own in np.random.SeedSequence(seed).generate_state(draws)
    ]
    return np.stack([made.reshape(len(chosen), size, -1) for made in out], axis=1)
