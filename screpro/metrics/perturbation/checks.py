"""What has to hold of real and generated cells before their effects are compared."""

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError

__all__ = ["TOTAL", "check_same_controls", "check_same_perturbations", "check_values"]

LOG_BELOW = 15.0
"""Cell-Eval refuses values from here on: e^15 is more molecules than a cell is read for."""

FRACTION = 1e-3
"""Values without any fractional part above this are counts."""

TOTAL = "all"
"""What stands in place of a perturbation's name beside a number for all of them."""

CHUNK = 1 << 20  # values looked at in one go


def check_values(x: sp.csr_matrix | np.ndarray, *, what: str) -> None:
    """Refuse a matrix that is not log1p-normalised expression.

    Cell-Eval normalises what looks like counts by itself, each file to its own median total: here counts are refused,
    because real and generated cells would then be on two scales.

    Raises
    ------
    ScreproError
        If values are missing, infinite, negative, 15 or more, or all whole numbers.
    """
    values = x.data if sp.issparse(x) else x.reshape(-1)
    has_fraction = False
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        low, high = part.min(), part.max()  # both are NaN if one value is
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ScreproError(
                f"The {what} expression values are finite numbers.",
                got="NaN or infinite values",
                fix="find the cells concerned with numpy.isfinite and drop or mend them",
            )
        if low < 0 or high >= LOG_BELOW:
            raise ScreproError(
                f"The {what} expression values are log1p of normalised counts: from 0 to below {LOG_BELOW:g}.",
                got=f"values from {low:.3g} to {high:.3g}",
                fix="set negative predictions to 0; undo scaling (PerturbDiff's x/10); apply log1p to counts",
            )
        has_fraction = has_fraction or bool((np.modf(part)[0] > FRACTION).any())
    if not has_fraction:
        raise ScreproError(
            f"The {what} expression values are log1p of normalised counts, so most have a fractional part.",
            got="whole numbers only" if len(values) else "zeros only",
            fix="normalise real and generated counts alike (same target total), then apply log1p",
        )


def check_same_perturbations(labels: np.ndarray, generated_labels: np.ndarray, *, control: str) -> np.ndarray:
    """The perturbations of both files in alphabetical order, without the control.

    Raises
    ------
    ScreproError
        If real control cells are missing, a perturbation is in one file only or none is there at all, one has a
        single cell, or one is called like the mean over all of them (`TOTAL`).
    """
    counted = [dict(zip(*np.unique(part, return_counts=True), strict=True)) for part in (labels, generated_labels)]
    real, generated = ({str(name): int(n) for name, n in part.items()} for part in counted)
    if real.get(control, 0) < 2:
        raise ScreproError(
            f"The real file has at least two control cells, labelled {control!r}.",
            got=f"{real.get(control, 0)} of them; labels {', '.join(list(real)[:5])} ...",
            fix="name the control label, and keep the control cells in the real file",
        )
    if TOTAL in {*real, *generated} - {control}:
        raise ScreproError(
            f"No perturbation is called {TOTAL!r}: in the tables that is the mean over perturbations.",
            got=f"cells labelled {TOTAL!r}",
            fix="give them another name in both files",
        )
    ours, theirs = set(real) - {control}, set(generated) - {control}
    if ours != theirs or not ours:
        shown = [
            f"only {side}: {', '.join(sorted(names)[:5])}"
            for side, names in (("real", ours - theirs), ("generated", theirs - ours))
            if names
        ]
        raise ScreproError(
            "Real and generated cells have the same perturbations.",
            got="; ".join(shown) or "no perturbation besides the control",
            fix="generate cells for every perturbation of the real file, or subset both to those that are in both",
        )
    single = sorted(name for name in ours if min(real[name], generated[name]) < 2)
    if single:
        raise ScreproError(
            "Every perturbation has at least two real and two generated cells.",
            got=f"one cell: {', '.join(single[:5])}",
            fix="drop these perturbations from both files",
        )
    return np.array(sorted(ours))


def check_same_controls(real: sp.csr_matrix | np.ndarray, generated: sp.csr_matrix | np.ndarray) -> None:
    """Refuse control cells of a generated file that are not the real ones in the real order."""
    if real.shape == generated.shape:
        dtype = min(real.dtype, generated.dtype, key=lambda kind: kind.itemsize)
        unequal = real.astype(dtype) != generated.astype(dtype)
        if not (unequal.nnz if sp.issparse(unequal) else unequal.any()):
            return
        got = "other values, or another order"
    else:
        got = f"{generated.shape[0]} control cells where {real.shape[0]} are real"
    raise ScreproError(
        "Effects are differences from the REAL control cells on both sides.",
        got=f"a generated file with control cells of its own: {got}",
        fix="leave cells with the control label out of the generated file",
    )
