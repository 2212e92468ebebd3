"""From public files to counts: tables, `.h5ad`, matrices of R, and logarithms turned back into integers.

R objects are opened by `screpro.data.robjects`. Everything here ends in the same two steps: `as_counts`,
which refuses what is not a count, and `assemble`, which puts counts and labels into an AnnData.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from screpro.errors import ScreproError

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

__all__ = ["as_counts", "assemble", "invert_log1p", "read_csv", "read_h5ad", "totals_from_smallest"]


def read_csv(path: str | Path) -> "pd.DataFrame":
    """Read a comma-separated table, plain or compressed, whose first column names the rows.

    Raises
    ------
    ScreproError
        If the file is missing, cut short or no table.
    """
    import pandas as pd

    rule = "a table has to be complete comma-separated text whose first column names the rows"
    return _read(path, rule, lambda: pd.read_csv(path, index_col=0))


def read_h5ad(path: str | Path) -> "AnnData":
    """Read an original `.h5ad` into memory; raises `ScreproError` if it is missing or damaged."""
    from anndata import read_h5ad

    return _read(path, "an .h5ad file has to be complete", lambda: read_h5ad(path))


def _read(path: str | Path, rule: str, read: Any) -> Any:
    try:
        return read()
    except FileNotFoundError as error:
        raise ScreproError(rule, got=f"{path}: no such file", fix="check the path") from error
    except MemoryError:
        raise
    except Exception as error:
        # pandas, gzip and h5py report damage through many unrelated types
        raise ScreproError(
            rule,
            got=f"{path}: cut short, damaged or of another kind ({type(error).__name__}: {error})",
            fix="fetch the file again",
        ) from error


def as_counts(matrix: Any, *, what: str) -> "sp.csr_matrix":
    """Bring a matrix of counts into the one form used everywhere.

    Parameters
    ----------
    matrix
        Dense or sparse, cells x genes.
    what
        File and part the values come from; the error names it.

    Returns
    -------
    scipy.sparse.csr_matrix
        (cells, genes) float32, column indices sorted, no stored zeros.

    Raises
    ------
    ScreproError
        If a value is negative, not finite, not an integer, or too large to be exact in float32.
    """
    import scipy.sparse as sp

    from screpro.data.validate import check_counts

    counts = sp.csr_matrix(matrix, copy=True)  # tidied in place, and the caller's stays as it is
    counts.sum_duplicates()
    counts.eliminate_zeros()
    # before the cast: float32 would round away what the check is looking for
    check_counts(counts, what=what)
    return counts.astype(np.float32)


def invert_log1p(
    values: Any, totals: np.ndarray, *, what: str, target_sum: float = 1e4, atol: float = 1e-6
) -> "sp.csr_matrix":
    """Recover integer counts c from stored values v = log1p(c * target_sum / total).

    Every stored value has to come back from the recovered count to within `atol`, and `atol` has to be fine
    enough to tell neighbouring integers apart; otherwise nothing is returned.

    Parameters
    ----------
    values
        Dense or sparse, cells x genes.
    totals
        (cells,) the total each cell was divided by.
    what
        File and part the values come from; errors name it.
    target_sum
        The total after scaling, 1e4 for CP10k.
    atol
        Half the step the stored values are rounded to: about 1e-6 for float32, 5e-4 for three decimals.

    Returns
    -------
    scipy.sparse.csr_matrix
        (cells, genes) float32 counts as from `as_counts`.

    Raises
    ------
    ScreproError
        If the values are not log1p of scaled integers with these totals.
    """
    import scipy.sparse as sp

    stored = sp.csr_matrix(values, dtype=np.float64)
    scale = np.repeat(np.asarray(totals, dtype=np.float64) / target_sum, np.diff(stored.indptr))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        exact = np.expm1(stored.data) * scale
        counts = np.rint(exact)
        # how far v may move before the count becomes the next integer
        width = 2 * atol * (exact + scale)
        wrong = ~(np.abs(np.log1p(counts / scale) - stored.data) <= atol) | ~(width < 1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ScreproError(
            f"{what} has to hold log1p of integer counts scaled to {target_sum:g} per cell",
            got=f"{int(wrong.sum())} of {wrong.size} values fit no integer to within {atol:g}, "
            f"the first being {stored.data[first]:.6g}, a count of {exact[first]:.6g}",
            fix="pass the totals and the target sum that the file was normalised with, or its raw counts",
        )
    return as_counts(sp.csr_matrix((counts, stored.indices, stored.indptr), stored.shape), what=what)


def totals_from_smallest(values: Any, approximate: np.ndarray, *, target_sum: float = 1e4) -> np.ndarray:
    """Find the exact per-cell totals behind log1p-scaled counts from totals known to a few percent.

    A file may give the total over all genes while its values were scaled by a total over fewer. The smallest
    value of a cell belongs to a count of 1, rarely 2: the approximate total says which, and the count then
    gives the total itself, an integer.

    Parameters
    ----------
    values
        Dense or sparse (cells, genes), log1p(c * target_sum / total).
    approximate
        (cells,) totals, near enough that the smallest count of the cell rounds to the right integer.

    Returns
    -------
    numpy.ndarray
        (cells,) integer totals as float64; `approximate` where a cell has no counts.
    """
    import scipy.sparse as sp

    stored = sp.csr_matrix(values, dtype=np.float64, copy=True)
    stored.eliminate_zeros()
    totals = np.array(approximate, dtype=np.float64)
    filled = np.flatnonzero(np.diff(stored.indptr))
    if filled.size == 0:
        return totals
    scaled = np.expm1(np.minimum.reduceat(stored.data, stored.indptr[filled]))
    smallest = np.maximum(np.rint(scaled * totals[filled] / target_sum), 1)
    totals[filled] = np.rint(smallest * target_sum / scaled)
    return totals


def assemble(
    counts: "sp.csr_matrix",
    *,
    cells: Iterable[str],
    genes: Iterable[str],
    source: str,
    labels: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
    var: Mapping[str, Any] | None = None,
) -> "AnnData":
    """Put counts, names and labels together.

    Parameters
    ----------
    counts
        (cells, genes) from `as_counts` or `invert_log1p`.
    cells, genes
        Names. Genes that share a name get ``-1``, ``-2``, ... appended; cells have to be unique.
    source
        One sentence for ``uns["source"]``: the public repository and what the file is.
    labels, numbers
        Columns of ``obs``; labels become categories of strings, numbers stay as they are.
        ``n_counts`` and ``n_genes`` are added.
    var
        Columns of ``var``.

    Returns
    -------
    AnnData
        ``X`` CSR float32 counts.
    """
    import pandas as pd
    from anndata import AnnData
    from anndata.utils import make_index_unique

    cells = pd.Index(list(cells)).astype(str)
    if not cells.is_unique:
        raise ScreproError(
            "cell names have to be unique",
            got=f"{cells[cells.duplicated()][0]!r} twice",
            fix="use the version of the files the recipe was written for",
        )
    obs = {name: pd.Categorical(np.asarray(column, dtype=str)) for name, column in (labels or {}).items()}
    obs |= {name: np.asarray(column) for name, column in (numbers or {}).items()}
    obs["n_counts"] = np.asarray(counts.sum(axis=1)).ravel().astype(np.float32)
    obs["n_genes"] = np.diff(counts.indptr).astype(np.int32)
    adata = AnnData(
        X=counts,
        obs=pd.DataFrame(obs, index=cells),
        var=pd.DataFrame(dict(var or {}), index=make_index_unique(pd.Index(list(genes)).astype(str))),
    )
    adata.uns["source"] = source
    return adata
