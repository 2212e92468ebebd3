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

    Raises
    ------
    ScreproError
        A part has another shape; later, from a metric, if it needs a part that was left out.
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
        self._check_shapes()

    def _check_shapes(self) -> None:
        tables = {name: getattr(self, name) for name in ("mean", "fdr", "fdr_read", "fold_change")}
        shapes = {name: table.shape for name, table in tables.items() if table is not None}
        wrong = len(set(shapes.values())) > 1 or any(len(shape) != 2 for shape in shapes.values())
        if self.overall is not None:
            shapes["overall"] = self.overall.shape
            wrong = wrong or self.overall.ndim != 1 or any(len(self.overall) != shape[-1] for shape in shapes.values())
        if wrong:
            raise ScreproError(
                "A part of a side has one row per perturbation and one column per gene; `overall` one value per gene.",
                got=", ".join(f"{name} {shape}" for name, shape in shapes.items()),
                fix="pass arrays (M, G); a single perturbation is [[...]]",
            )

    def part(self, name: str) -> np.ndarray:
        """The part of that name, for a metric that needs it.

        Raises
        ------
        ScreproError
            It was left out.
        """
        found = getattr(self, name)
        if found is None:
            raise _lacking(name)
        return found

    @cached_property
    def significant(self) -> np.ndarray:
        """(M, G) bool: which genes are called differentially expressed."""
        return self.part("fdr_read") < np.float32(FDR)

    @cached_property
    def log2_fold_change(self) -> np.ndarray:
        """(M, G) float32, the precision in which Cell-Eval compares them."""
        return np.log2(self.part("fold_change")).astype(np.float32)


def _lacking(name: str) -> ScreproError:
    given = {"fdr_read": "fdr", "overall": "mean"}.get(name, name)  # the part that it is made from
    return ScreproError(
        f"This metric needs `{given}`.",
        got=f"a comparison without `{given}`",
        fix="make it from cells with screpro.metrics.perturbation.compare, or pass it with the others",
    )


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

    Raises
    ------
    ScreproError
        The sides, the control mean or the names do not fit each other; later, from a metric, if it needs a part that
        was left out.
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
        known = [part.shape for part in (self.real.mean, self.real.fdr, self.real.fold_change) if part is not None]
        m, g = known[0] if known else (0, 0)
        sizes = {
            "control": None if self.control is None else (self.control.shape, (g,)),
            "perturbations": (len(self.perturbations), m) if self.perturbations else None,
            "genes": (len(self.genes), g) if self.genes else None,
        }
        for name, both in sizes.items():
            if known and both is not None and both[0] != both[1]:
                raise ScreproError(
                    "`control` has one value per gene, `perturbations` and `genes` one name per row and column.",
                    got=f"`{name}` {both[0]} where the sides are {m} x {g}",
                    fix="pass (G,) values, M and G names, or leave them out",
                )

    @property
    def n_perturbations(self) -> int:
        """M."""
        known = (part for part in (self.real.mean, self.real.fdr, self.real.fold_change) if part is not None)
        return len(next(known, ()))

    @property
    def control_mean(self) -> np.ndarray:
        """(G,) `control`, for a metric that needs it."""
        if self.control is None:
            raise _lacking("control")
        return self.control

    @cached_property
    def effect(self) -> np.ndarray:
        """(M, G) real effect: mean of the perturbed less mean of the control cells."""
        return self._change(self.real)

    @cached_property
    def generated_effect(self) -> np.ndarray:
        """(M, G) generated effect, against the same real control cells."""
        return self._change(self.generated)

    def _change(self, side: Side) -> np.ndarray:
        return side.part("mean") - self.control_mean

    @cached_property
    def targets(self) -> np.ndarray:
        """(M,) column of the gene that bears the perturbation's name, -1 where there is none."""
        column = {gene: number for number, gene in enumerate(self.genes)}
        names = self.perturbations or ("",) * self.n_perturbations
        return np.array([column.get(name, -1) for name in names])

    def printed_log2_ratio(self, side: Side) -> np.ndarray:
        """(M, G) the paper's log fold change: log2 of the ratio of mean log-expressions, 1e-8 added to both."""
        return np.log2((side.part("mean") + PRINTED_EPSILON) / (self.control_mean + PRINTED_EPSILON))
