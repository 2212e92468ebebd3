"""The sweep over sorted keys that gives every group's U and tie term, and the p-value of the two.

The controls have group 0, so they stand first among equal values. Passing the entries of a gene in order, with
``passed`` controls so far and ``start`` of them at the first entry of the present value, an entry of another group has
``start`` controls below and ``passed - start`` equal to it: it adds ``start + passed`` to twice the U of its group.
As the k-th of its group with this value it makes ``t = passed - start + k`` equal values ``t + 1``, which adds
``3 t (t + 1)`` to the group's sum of ``t^3 - t``. Nothing in this loop branches on the data.

With all cells as controls there is no such order: twice the mean rank of a run of equal values is its start plus its
end, which a pass in each direction adds.
"""

import math

import numpy as np
from numba import njit

from screpro.kernels.ranksum_keys import GROUP, ZERO

__all__ = ["p_value", "sweep"]

TWICE_U, TIES, SEEN, SEEN_NEGATIVE = range(4)  # what is summed for each group


@njit(cache=True, nogil=True)
def sweep(keys, bounds, sizes, reference, exact_to, u, p):
    """U and p (P, genes) for the genes whose sorted keys lie between `bounds`.

    `sizes` and the groups in the keys are turned by `reference`: 0 is the reference. `reference` -1: against all other
    cells. p is -1 where the smaller side has at most `exact_to` cells and no two values are equal.
    """
    n_groups = len(sizes)
    every = reference < 0
    n_cells = sizes.sum()
    n_controls = n_cells if every else sizes[0]
    sums = np.empty((n_groups, 4), np.float64)
    for gene in range(len(bounds) - 1):
        low, high = bounds[gene], bounds[gene + 1]
        middle = low + np.searchsorted(keys[low:high], ZERO)
        sums[:] = 0
        if every:
            zeros = n_controls - (high - low)
            below_zero = middle - low
            shared = _ranks(keys, low, middle, 0, sums) + _ranks(keys, middle, high, below_zero + zeros, sums)
            shared += _cubed(zeros)
        else:
            below_zero = _passed(keys, low, middle, 0, sums)
            sums[:, SEEN_NEGATIVE] = sums[:, SEEN]
            zeros = n_controls - (_passed(keys, middle, high, below_zero, sums))
            shared = sums[0, TIES]
            for group in range(n_groups):  # the controls at zero lie below the positive values
                sums[group, TWICE_U] += 2 * zeros * (sums[group, SEEN] - sums[group, SEEN_NEGATIVE])
        for group in range(n_groups):
            n1 = sizes[group]
            n2 = n_cells - n1 if every else n_controls
            own = n1 - sums[group, SEEN]  # cells of the group at zero
            twice = sums[group, TWICE_U] + own * (2 * below_zero + zeros)
            ties = shared
            if every:
                twice -= float(n1) * n1  # a group against itself
            else:
                ties += sums[group, TIES] + _cubed(own + zeros)
            row = (group + max(reference, 0)) % n_groups
            u[row, gene] = twice / 2
            if n1 == 0 or n2 == 0:
                p[row, gene] = np.nan
            elif min(n1, n2) <= exact_to and ties == 0:
                p[row, gene] = -1
            else:
                p[row, gene] = p_value(twice / 2, n1, n2, ties)


@njit(cache=True, nogil=True)
def _passed(keys, low, high, passed, sums):
    """Add the entries `low` to `high` to the sums; the number of controls passed after them, `passed` before."""
    last = np.uint64(0)  # no key is 0: the upper bits are 0 for a NaN only
    start, k = passed, 0
    for i in range(low, high):
        changed = keys[i] ^ last
        group = np.int64(keys[i] & GROUP)
        control = group == 0
        start = passed if changed > GROUP else start
        k = k + 1 if changed == 0 and not control else 0
        t = float(passed - start + k)
        sums[group, TWICE_U] += passed + start
        sums[group, TIES] += 3 * t * (t + 1)
        sums[group, SEEN] += 1
        passed += control
        last = keys[i]
    return passed


@njit(cache=True, nogil=True)
def _ranks(keys, low, high, before, sums):
    """Add start and end of each entry's run, `before` entries on, to the sums; the sum of t^3 - t over the runs."""
    shared = 0.0
    last = np.uint64(0)
    start = before
    for i in range(low, high):
        start = before + i - low if (keys[i] ^ last) > GROUP else start
        group = np.int64(keys[i] & GROUP)
        t = float(before + i - low - start)
        shared += 3 * t * (t + 1)
        sums[group, TWICE_U] += start
        sums[group, SEEN] += 1
        last = keys[i]
    last = np.uint64(0)
    end = before
    for i in range(high - 1, low - 1, -1):
        end = before + i + 1 - low if (keys[i] ^ last) > GROUP else end
        sums[np.int64(keys[i] & GROUP), TWICE_U] += end
        last = keys[i]
    return shared


@njit(inline="always")
def _cubed(t):
    return float(t) * float(t) * float(t) - t


@njit(cache=True)
def p_value(u, n1, n2, ties):
    """Two-sided, normal approximation with tie and continuity correction; 1 if all values are equal."""
    n = float(n1 + n2)
    product = float(n1) * float(n2)
    variance = product / 12.0 * (n + 1.0 - ties / (n * (n - 1.0)))
    if variance <= 0.0:
        return 1.0
    z = (max(u, product - u) - product / 2.0 - 0.5) / math.sqrt(variance)
    return min(1.0, math.erfc(z / math.sqrt(2.0)))
