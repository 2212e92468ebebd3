"""What the metrics of perturbation effects are computed from: one object for real and generated cells together.

`Comparison` holds M perturbations x G genes as plain arrays: mean expression, adjusted p-values, fold changes. It is
made from cells once (``screpro.metrics.perturbation.cells.compare``); every metric is a short sum over it. By hand it
is made from small lists, which is what the worked examples do.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from screpro.errors import ScreproError

__all__ = ["FDR", "PRINTED_EPSILON", "Comparison", "Side"]

FDR = 0.05
"""A gene is called differentially expressed below this adjusted p-value."""

PRINTED_EPSILON = 1e-8
"""The constant that the paper adds to both means of its fold change (appendix C.2.2)."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one file, the real or the generated one, says about each of M perturbations and G genes.

    Parameters
    ----------
    mean
        (M, G) mean over the cells of each perturbation of the log1p-normalised expression (the pseudobulk).
    overall
        (G,) mean over all perturbed cells; None: the mean of the rows of `mean`, right for equal numbers of cells.
    fdr
        (M, G) p-values of the rank-sum test against the real control cells, adjusted over all M x G of them.
    fdr_read
        (M, G) float32, the same as Cell-Eval reads them, see ``cells.summary_side``; None: `fdr` rounded to float32.
    fold_change
        (M, G) ratio of the expression of perturbed to control cells, not its logarithm.

    A metric uses the parts that it needs; the rest may be left out.
    """

    mean: np.ndarray | None = None
    overall: np.ndarray | None = None
    fdr: np.ndarray | None = None
    fdr_read: np.ndarray | None = None
    fold_change: np.ndarray | None = None

    def __post_init__(self):
        def put(name: str, dtype: type, default=None) -> None:
            value = getattr(self, name)
            value = default if value is None else np.asarray(value, dtype)
            object.__setattr__(self, name, value)

        put("mean", np.float64)
        put("overall", np.float64, None if self.mean is None else self.mean.mean(axis=0))
        put("fdr", np.float64)
        put("fdr_read", np.float32, None if self.fdr is None else self.fdr.astype(np.float32))
        put("fold_change", np.float64)

    @cached_property
    def significant(self) -> np.ndarray:
        """(M, G) bool: which genes are called differentially expressed."""
        return self.fdr_read < np.float32(FDR)

    @cached_property
    def log2_fold_change(self) -> np.ndarray:
        """(M, G) float32, the precision in which Cell-Eval compares them."""
        return np.log2(self.fold_change).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Real and generated effects of the same M perturbations on the same G genes.

    Parameters
    ----------
    real, generated
        The two sides.
    control
        (G,) mean of the real control cells, the same for both sides.
    perturbations, genes
        M and G names. A perturbation that bears the name of a gene has that gene as its target.
    """

    real: Side
    generated: Side
    control: np.ndarray | None = None
    perturbations: tuple[str, ...] = ()
    genes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.control is not None:
            object.__setattr__(self, "control", np.asarray(self.control, np.float64))
        for name in ("mean", "fdr", "fold_change"):
            ours, theirs = getattr(self.real, name), getattr(self.generated, name)
            shapes = [getattr(part, "shape", None) for part in (ours, theirs)]
            if shapes[0] != shapes[1]:
                raise ScreproError(
                    f"Real and generated `{name}` have one row per perturbation and one column per gene, both.",
                    got=f"shapes {shapes[0]} and {shapes[1]}",
                    fix="give both sides the same perturbations and genes, in the same order",
                )

    @property
    def n_perturbations(self) -> int:
        """M."""
        return len(next(part for part in (self.real.mean, self.real.fdr) if part is not None))

    @cached_property
    def effect(self) -> np.ndarray:
        """(M, G) real effect: mean of the perturbed less mean of the control cells."""
        return self.real.mean - self.control

    @cached_property
    def generated_effect(self) -> np.ndarray:
        """(M, G) generated effect, against the same real control cells."""
        return self.generated.mean - self.control

    @cached_property
    def targets(self) -> np.ndarray:
        """(M,) column of the gene that bears the perturbation's name, -1 where there is none."""
        column = {gene: number for number, gene in enumerate(self.genes)}
        names = self.perturbations or ("",) * self.n_perturbations
        return np.array([column.get(name, -1) for name in names])

    def printed_log2_ratio(self, side: Side) -> np.ndarray:
        """(M, G) the paper's log fold change: log2 of the ratio of mean log-expressions, 1e-8 added to both."""
        return np.log2((side.mean + PRINTED_EPSILON) / (self.control + PRINTED_EPSILON))
