"""Imputation and denoising baselines behind one call, with the settings that are tuned for each.

``run("magic", counts, seed=0)`` answers with log1p of the expected counts per 10 000 of every cell and gene. The first
setting of a grid is always the published default (``{}``); which one is used is decided on entries hidden for that
purpose, by the same rule for every method.

Every method sees counts alone, and divides them by `size` wherever it normalises. A page that hides entries after
normalising, as scDiff does, hands in the totals from before: then all methods know as much about what is hidden as
scDiff does.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from screpro.baselines.registry import contained, entry_of, method_of
from screpro.errors import ScreproError

__all__ = ["IMPUTERS", "Imputer", "run"]

TARGET_SUM = 1e4


class Imputer(NamedTuple):
    """One published or trivial method."""

    name: str  # key in IMPUTERS and in result rows
    title: str  # as a table prints it
    source: str  # whom to cite
    where: str  # module:function below screpro.baselines; imported at the first call
    grid: list[dict[str, Any]]  # options to try on the validation entries; first = published default
    trivial: bool = False  # True where nothing is learned about single cells
    needs: str | None = None  # extra of this package that has to be installed


def run(
    name: str,
    counts: sparse.csr_matrix,
    *,
    size: np.ndarray | None = None,
    seed: int,
    threads: int = 1,
    options: dict[str, Any] | None = None,
) -> np.ndarray:
    """Expected expression of every cell and gene by method `name`.

    Parameters
    ----------
    name
        Key of `IMPUTERS`.
    counts
        (n, G) CSR of raw counts; hidden entries are zero like any other zero.
    size
        (n,) totals that the cells are normalised by; by default the totals of `counts`.
    seed
        Everything random in the method derives from it.
    threads
        Threads the method may use.
    options
        Options of the method, as in its grid; None takes the published default.

    Returns
    -------
    ndarray
        (n, G) float32, log1p of expected counts per 10 000 of `size`, 0 or more. 0 for genes without a count.

    Raises
    ------
    ScreproError
        Unknown method or option, package not installed, not counts, a cell without counts, fewer than three cells, or
        sizes that do not fit.
    """
    imputer, options = entry_of(IMPUTERS, name), options or {}
    method = method_of(name, imputer.where, options, fixed=("counts", "size", "seed", "threads"))
    counts, size = _checked(counts, size)
    genes = np.flatnonzero(counts.getnnz(axis=0) > 0)
    with contained(name, threads=threads, needs=imputer.needs):
        found = method(counts[:, genes], size=size, seed=seed, threads=threads, **options)
    if len(genes) == counts.shape[1]:
        return np.asarray(found, dtype=np.float32)
    out = np.zeros(counts.shape, dtype=np.float32)
    out[:, genes] = found
    return out


def _checked(counts: sparse.csr_matrix, size: np.ndarray | None) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts as canonical CSR float32 without stored zeros, and sizes (n,) float64."""
    from screpro.data.validate import check_counts

    check_counts(counts, what="The matrix to impute")
    counts = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    if len(total) < 3 or not total.all():
        raise ScreproError(
            "Imputation takes at least three cells, and every cell has a count.",
            got=f"{len(total)} cells, {int((total == 0).sum())} of them empty",
            fix="drop empty cells first; hide fewer entries if hiding emptied them",
        )
    if size is None:
        return counts, total
    size = np.asarray(size, dtype=np.float64)
    if size.shape != total.shape or not (np.isfinite(size) & (size > 0)).all():
        raise ScreproError(
            "`size` holds one finite number above 0 for every cell.",
            got=f"shape {size.shape} for {len(total)} cells, smallest {size.min(initial=np.inf)}",
            fix="pass the total count of each cell before entries were hidden, or None",
        )
    return counts, size


IMPUTERS: dict[str, Imputer] = {
    entry.name: entry
    for entry in (
        Imputer("gene_mean", "Gene mean", "no method", "smoothing:gene_mean", [{}], trivial=True),
        Imputer(
            "knn_smoothing",
            "Mean of nearest neighbours (PCA 50)",
            "no single source; the neighbour averaging of OpenProblems' denoising task",
            "smoothing:knn_smoothing",
            [{}, {"k": 5}, {"k": 30}, {"k": 60}],
        ),
        Imputer(
            "magic",
            "MAGIC",
            "van Dijk et al., Cell 2018, 10.1016/j.cell.2018.05.061",
            "magic:impute",
            [{}, {"t": "auto"}, {"knn": 15}, {"knn": 15, "t": 6}],
            needs="baselines",
        ),
        Imputer(
            "alra",
            "ALRA",
            "Linderman et al., Nature Communications 2022, 10.1038/s41467-021-27729-z",
            "alra:impute",
            [{}, {"quantile": 0.0}, {"quantile": 0.01}],
        ),
        Imputer(
            "dca",
            "DCA",
            "Eraslan et al., Nature Communications 2019, 10.1038/s41467-018-07931-2",
            "dca:impute",
            [{}, {"likelihood": "nb"}, {"likelihood": "nb", "hidden": (128, 64, 128)}, {"batch_size": 128}],
        ),
        Imputer(
            "scvi",
            "scVI",
            "Lopez et al., Nature Methods 2018, 10.1038/s41592-018-0229-2",
            "scvi:impute",
            [{}, {"epochs": 100}, {"gene_likelihood": "nb"}, {"epochs": 100, "gene_likelihood": "nb"}],
            needs="baselines",
        ),
        Imputer(
            "saver",
            "SAVER",
            "Huang et al., Nature Methods 2018, 10.1038/s41592-018-0033-z",
            "saver:impute",
            [{}, {"min_mean": 0.02}, {"posterior": False}],
        ),
    )
}
