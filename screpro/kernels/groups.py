"""What the tests of every gene on groups of cells share: checked group codes, plain float values, threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from screpro.errors import ScreproError

__all__ = ["array_of", "checked_codes", "in_threads", "not_finite", "plain_values", "threads"]


def checked_codes(
    codes: np.ndarray, *, n_groups: int, n_cells: int, reference: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Codes as int32 (cells,) and the size of each group (P,) int64, or a clear error."""
    codes = np.asarray(codes)
    if codes.shape != (n_cells,) or codes.dtype.kind not in "iu":
        raise ScreproError(
            "Every cell has one integer group code.",
            got=f"codes of shape {codes.shape} and type {codes.dtype} for {n_cells} cells",
            fix="pass for instance pandas.Categorical(labels).codes",
        )
    if len(codes) and not -1 <= codes.min() <= codes.max() < n_groups:
        raise ScreproError(
            f"Group codes run from 0 to n_groups - 1 = {n_groups - 1}; -1 leaves a cell out.",
            got=f"codes from {codes.min()} to {codes.max()}",
            fix="pass the number of groups of the code space",
        )
    sizes = np.bincount(codes[codes >= 0], minlength=n_groups)
    if reference is not None and not (0 <= reference < n_groups and sizes[reference]):
        raise ScreproError(
            "The reference is the code of a group that has cells.",
            got=f"reference {reference}, which no cell has",
            fix="pass the code of the control cells, or None for one versus rest",
        )
    return codes.astype(np.int32), sizes


def array_of(x):
    """Values as they are, but those of a torch tensor (any device, half precision too) as an array."""
    if type(x).__module__.partition(".")[0] != "torch":
        return x
    from screpro.kernels.tiles import plain

    return plain(x)


def not_finite() -> ScreproError:
    """The error of values that cannot be compared or averaged."""
    return ScreproError(
        "Expression values are finite numbers.",
        got="NaN or infinite values",
        fix="remove the cells or genes they are in, or look for the step that made them",
    )


def threads(tasks: int) -> int:
    """Threads worth starting for so many tasks (NUMBA_NUM_THREADS or the number of cores at most)."""
    return max(1, min(numba.get_num_threads(), tasks))


def in_threads(function: Callable, tasks: Sequence) -> list:
    """Results of `function` for all tasks; the functions here give the interpreter lock back while they work."""
    if threads(len(tasks)) == 1:
        return [function(task) for task in tasks]
    with ThreadPoolExecutor(threads(len(tasks))) as pool:
        return list(pool.map(function, tasks))


def plain_values(values: np.ndarray) -> np.ndarray:
    """As float32 if that changes nothing, else as float64."""
    if values.dtype == np.float32:
        return values
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if values.dtype in (np.float16, np.int8, np.uint8, np.int16, np.uint16, np.bool_):
        return single
    double = values.astype(np.float64, copy=False)
    return single if np.array_equal(single, double) else double
