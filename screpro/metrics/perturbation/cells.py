"""From cells to a `Comparison`, the way Cell-Eval 0.6.6 and its pdex 0.1.28 do it.

The facts below were read in their sources and are tested against them.

- All cells of a perturbation are pooled. Its pseudobulk is the plain mean of the log1p-normalised values.
- The test of a gene is the two-sided Mann-Whitney U of the perturbation's cells against all control cells: the normal
  approximation with tie and continuity correction, and the exact distribution where one group has at most 8 cells and
  no two values are equal. A p-value that is undefined counts as 1.
- Benjamini-Hochberg takes all M x G p-values of a file as ONE family.
- The fold change is the ratio of ``expm1(mean of log values)``, not of means of ``expm1``. It is NOT clipped in
  general: only where the control mean is 0 it is set to 20, where the perturbed mean is 0 to 1/20, and where both are
  to 1. Ratios of 100 stay 100.
- p-values come in the precision of the matrix, nearly always float32, and the adjusted ones are read as float32: what
  is smaller than 1e-45 becomes 0. Ranks by significance treat these zeros as 1e-10 (see ``de_auroc``).

Control cells are those of the REAL file on both sides. A generated file may leave them out; if it has cells under the
control label, they have to be the real ones, row by row, or it is refused.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError
from screpro.metrics.perturbation.checks import check_same_controls, check_same_perturbations, check_values
from screpro.metrics.perturbation.tables import Comparison, Side

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Cells", "compare", "read_pair", "summary_side"]

EXACT_UP_TO = 8
"""Largest group for which the exact distribution of U is used, if no two values are equal."""


@dataclass(frozen=True)
class Cells:
    """The perturbed cells of one file together with the real control cells."""

    x: sp.csr_matrix | np.ndarray  # (cells, G) log1p-normalised, float32 or float64
    codes: np.ndarray  # (cells,) perturbation 0..M-1, M = control, -1 = not used
    perturbations: tuple[str, ...]
    genes: tuple[str, ...]

    @property
    def control_code(self) -> int:
        """M."""
        return len(self.perturbations)


def read_pair(
    real: "AnnData | tuple",
    generated: "AnnData | tuple",
    *,
    control: str,
    by: str = "perturbation",
    genes: list[str] | None = None,
) -> tuple[Cells, Cells]:
    """Both files, checked, each with the real control cells.

    Parameters
    ----------
    real, generated
        AnnData, or a matrix (cells, G) with the label of every cell as a tuple ``(x, labels)``. The matrix is
        log1p-normalised, dense or sparse.
    control
        The label of control cells.
    by
        Column of ``obs`` with the labels (AnnData only).
    genes
        Names of the G columns of a plain matrix; without them no gene is known to be a perturbation's target.

    Returns
    -------
    real, generated
        `Cells` with the perturbations in alphabetical order.

    Raises
    ------
    ScreproError
        If genes or perturbations differ between the files, there are no control cells, a perturbation has a single
        cell, the generated control cells are not the real ones, or the values are not log1p-normalised.
    """
    x, labels, names = _read(real, what="real", by=by, genes=genes)
    y, generated_labels, generated_names = _read(generated, what="generated", by=by, genes=genes)
    if names != generated_names:
        raise ScreproError(
            "Real and generated cells have the same genes in the same order.",
            got=_difference(names, generated_names),
            fix="subset both files to their common genes and put these in one order",
        )
    perturbations = check_same_perturbations(labels, generated_labels, control=control)
    is_control, says_control = labels == control, generated_labels == control
    if says_control.any():
        check_same_controls(x[is_control], y[says_control])
        y, generated_labels = y[~says_control], generated_labels[~says_control]
    dtype = np.result_type(x.dtype, y.dtype)
    stack = sp.vstack if sp.issparse(x) or sp.issparse(y) else np.vstack
    y = stack([y.astype(dtype, copy=False), x[is_control].astype(dtype, copy=False)])
    y = y.tocsr() if sp.issparse(y) else y
    generated_labels = np.concatenate([generated_labels, labels[is_control]])

    def coded(matrix, of_cells: np.ndarray) -> Cells:
        codes = np.searchsorted(perturbations, of_cells)
        codes[of_cells == control] = len(perturbations)
        return Cells(matrix, codes, tuple(perturbations.tolist()), names)

    return coded(x, labels), coded(y, generated_labels)


def compare(real: Cells, generated: Cells) -> Comparison:
    """Means and tests of both sides, computed once for all metrics.

    Parameters
    ----------
    real, generated
        Cells of the same perturbations and genes, see `read_pair`.
    """
    from screpro.kernels.fdr import group_means

    m = real.control_code
    control = group_means(real.x, np.where(real.codes == m, 0, -1), n_groups=1, reference=None)[0][0]
    return Comparison(
        real=summary_side(real),
        generated=summary_side(generated),
        control=control,
        perturbations=real.perturbations,
        genes=real.genes,
    )


def summary_side(cells: Cells) -> Side:
    """Means, tests and fold changes of one file: one sort of the non-zeros and two passes for means.

    The p-values are adjusted twice: in full precision, and as Cell-Eval reads them. There the rounding to the precision
    of the matrix comes before the adjustment, so a p-value that is 0 in float32 stays 0 whatever it is multiplied by.
    """
    from screpro.kernels.fdr import group_means
    from screpro.kernels.ranksum import benjamini_hochberg, fold_change, rank_sum

    m = cells.control_code
    groups = {"n_groups": m + 1, "reference": m}
    tested = rank_sum(cells.x, cells.codes, **groups, exact_to=EXACT_UP_TO)
    mean = group_means(cells.x, cells.codes, **groups)[0][:m]
    p, n = tested.p[:m], tested.n[:m]
    return Side(
        mean=mean,
        overall=n @ mean / n.sum(),
        fdr=benjamini_hochberg(p),
        fdr_read=benjamini_hochberg(p.astype(cells.x.dtype)).astype(np.float32),
        fold_change=fold_change(cells.x, cells.codes, **groups)[:m],
    )


def _read(data: "AnnData | tuple", *, what: str, by: str, genes: list[str] | None) -> tuple:
    """Matrix, labels (cells,) str and gene names of one file, checked by itself."""
    if isinstance(data, tuple):
        x, labels = data
        names = genes if genes is not None else [f"column {number}" for number in range(x.shape[1])]
    else:
        if by not in data.obs:
            raise ScreproError(
                f"The {what} cells say their perturbation in obs['{by}'].",
                got=f"columns {', '.join(map(str, data.obs.columns)) or 'none'}",
                fix="name the right column",
            )
        x, labels, names = data.X, data.obs[by].to_numpy(), data.var_names
    x = x.tocsr() if sp.issparse(x) else np.asarray(x)
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float32)
    labels = np.asarray(labels)
    if x.ndim != 2 or labels.shape != x.shape[:1] or len(names) != x.shape[1]:
        raise ScreproError(
            f"The {what} cells are a matrix of cells by genes with one label per cell and one name per gene.",
            got=f"matrix {x.shape}, labels {labels.shape}, {len(names)} gene names",
            fix="pass an AnnData, or (matrix, labels) and `genes`",
        )
    check_values(x, what=what)
    if any(label is None or label != label for label in labels.tolist()):
        raise ScreproError(
            f"Every {what} cell has a perturbation or the control label.",
            got="cells without a label",
            fix="drop these cells or label them",
        )
    names = tuple(map(str, names))
    if len(set(names)) < len(names):
        raise ScreproError(
            "Gene names are unique.",
            got=f"{len(names) - len(set(names))} repeated names among the {what} genes",
            fix="call var_names_make_unique(), or drop the repeated genes",
        )
    return x, labels.astype(str), names


def _difference(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    missing, extra = set(ours) - set(theirs), set(theirs) - set(ours)
    if not missing and not extra:
        return f"the same {len(ours)} genes in another order"
    shown = ", ".join(sorted(missing | extra)[:5])
    return f"{len(missing)} genes only real, {len(extra)} only generated ({shown})"
