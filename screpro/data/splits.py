"""Splits of cells, as the papers draw them and seeded so that they can be varied."""

from typing import NamedTuple

import numpy as np

from screpro.errors import ScreproError

__all__ = ["Split", "cell_split"]


class Split(NamedTuple):
    """Row numbers of the cells of each part; the parts are disjoint and cover every cell."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def cell_split(n: int, *, seed: int, test: float = 0.1, validation: float = 0.0) -> Split:
    """Random split of `n` cells (scDiff section 4.1.1: a tenth is held out).

    A permutation of ``numpy.random.default_rng(seed)`` is cut at the fractions: train, validation, test.
    scDiff draws it once (seed 10) and shares it between all runs; the pages here vary it.

    Raises
    ------
    ScreproError
        If a fraction is outside [0, 1) or leaves the training or the test part empty.
    """
    sizes = {"test": test, "validation": validation}
    n_validation, n_test = round(validation * n), round(test * n)
    n_train = n - n_validation - n_test
    if not all(0 <= value < 1 for value in sizes.values()) or n_train < 1 or (test > 0 and n_test < 1):
        raise ScreproError(
            "A split needs at least one training cell, and one test cell where a test part is asked for.",
            got=f"{n} cells, test={test}, validation={validation}",
            fix="use fractions in [0, 1) whose sum is below 1, or more cells",
        )
    order = np.random.default_rng(seed).permutation(n)
    train, validation_cells, test_cells = np.split(order, [n_train, n_train + n_validation])
    return Split(train=train, validation=validation_cells, test=test_cells)
