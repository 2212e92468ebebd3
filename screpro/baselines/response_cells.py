"""From predictions to cells: what the answers of baselines have in common.

Log-normalised expression is not negative and mostly 0. A predicted change that is simply added to control cells turns
all zeros of a gene into one small value, which a rank test then calls, or pushes them below 0, where they are cut off
and the mean is no longer the predicted one. The same happens to values of a network around 0. Both functions here keep
the predicted mean and make zeros.
"""

from typing import TYPE_CHECKING

import numpy as np

from screpro.baselines.responses import Asked, controls_for
from screpro.data.populations import gather

if TYPE_CHECKING:
    from screpro.data.populations import Populations

__all__ = ["moved", "nonnegative", "pool_means"]

MOST = 2.0
"""By how much a value of a cell is multiplied at most before the rest of a change is added."""


def pool_means(controls: "Populations", pools: list[np.ndarray]) -> np.ndarray:
    """Mean expression (len(pools), G) of each pool of control cells, float64."""
    return np.stack([np.asarray(controls.x[rows].mean(0, dtype=np.float64)).ravel() for rows in pools])


def moved(controls: "Populations", asked: Asked, change: np.ndarray, which: np.ndarray, *, seed: int) -> np.ndarray:
    """Control cells whose mean expression is changed by a given amount, and which stay cells.

    The values of a gene are multiplied, up to `MOST` times, which keeps zeros; only what is missing then is added. The
    mean over the pool of control cells is that of the pool plus the change exactly, or 0 where that is negative.

    Parameters
    ----------
    controls
        Cells to start from.
    asked
        Labels of the n cells to make.
    change
        (U, G) changes of mean expression.
    which
        (n,) row of `change` for each cell.
    seed
        Of the control cells taken.

    Returns
    -------
    (n, G) float32
    """
    x = gather(controls.x, controls_for(controls, asked, seed=seed))
    pools, pool = controls.control_pools(asked.context, asked.batch)
    before = pool_means(controls, pools)
    pairs, member = np.unique(np.stack([pool, which]), axis=1, return_inverse=True)
    start = before[pairs[0]]
    wanted = np.maximum(start + change[pairs[1]], 0)
    factor = np.minimum(wanted / np.where(start > 0, start, 1), MOST)
    # exactly 0 where the factor does it all: a rest of rounding would break the ties of zeros
    rest = np.where((factor < MOST) & (start > 0), 0, np.maximum(wanted - factor * start, 0))
    member = member.reshape(-1)
    for first in range(0, len(x), 4096):  # factors of a few thousand cells at a time
        rows = slice(first, first + 4096)
        x[rows] = x[rows] * factor[member[rows]] + rest[member[rows]]
    return x


def nonnegative(made: np.ndarray, asked: Asked) -> np.ndarray:
    """The nearest cells without negative values that have the same mean, group by group.

    Per gene the Euclidean projection on non-negative values of a given sum (Duchi et al. 2008, ICML): one number is
    taken from all values and what is below 0 then is 0. Where the mean itself is negative, all values are 0.

    Parameters
    ----------
    made
        (n, G) predicted expression, some of it below 0.
    asked
        Labels of the cells; a group is a perturbation in a context and batch.

    Returns
    -------
    (n, G) float32
    """
    out = np.empty(made.shape, dtype=np.float32)
    _, member, count = np.unique(np.stack(asked), axis=1, return_inverse=True, return_counts=True)
    order = np.argsort(member.reshape(-1), kind="stable")
    for rows in np.split(order, np.cumsum(count)[:-1]):
        x = made[rows].astype(np.float64)
        total = np.maximum(x.sum(0), 0)
        falling = -np.sort(-x, axis=0)
        threshold = (np.cumsum(falling, axis=0) - total) / np.arange(1, len(x) + 1)[:, None]
        kept = np.maximum((falling > threshold).sum(0), 1)  # values that stay above 0, the largest ones
        cut = np.take_along_axis(threshold, kept[None] - 1, axis=0)
        out[rows] = np.where(total > 0, np.maximum(x - np.maximum(cut, 0), 0), 0)
    return out
