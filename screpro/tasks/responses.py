"""Responses to perturbations in a context that they were mostly not measured in: what is known, asked and scored.

Protocol sections 1, 3 and 4. Control cells of every context are known. Of the held-out contexts a share of the
perturbations is known too (the paper keeps 30 %); the cells of the others are asked for, as many as there are, and
scored against the real ones with the 14 metrics of Table 4. The control cells in the evaluation are real ones, of the
held-out contexts, the same on both sides.

What the scores of called genes are made of is reported beside them: the null test on cells generated for the control,
the share of truly unchanged genes that are called, and how alike the cells themselves are.
"""

import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.data.populations import Populations
from screpro.errors import ScreproError
from screpro.metrics.genes import gene_variance_log2_ratio, gene_zero_fraction_gap
from screpro.metrics.perturbation import TABLE_4, Comparison, compare, null_calls, null_side, split_half
from screpro.metrics.perturbation.calls import auroc, average_precision
from screpro.metrics.perturbation.cells import Cells, summary_side

__all__ = [
    "DIRECTIONS",
    "DISCRIMINATION",
    "REALISM",
    "ResponseSplit",
    "Scorer",
    "Scores",
    "constants",
    "hold_out",
    "win_rates",
]

MIN_CELLS = 10
"""Cells a perturbation needs to be asked for."""

DISCRIMINATION = ("pds_l1", "pds_l2", "pds_cosine")
"""Is a perturbation nearest to its own real cells? Not asked where there is a single one."""

REALISM = ("gene_variance_log2_ratio", "gene_zero_fraction_gap", "gene_correlation_gap")

DIRECTIONS = {
    **{f.__name__: "lower" if f.__name__.startswith(("mse", "mae")) else "higher" for f in TABLE_4.values()},
    "de_auroc_of_shift": "higher",
    "de_auprc_of_shift": "higher",
    "called_unchanged": "lower",
    "called_ratio": "closer to 1",
    "null_calls": "lower",
    **dict.fromkeys(REALISM, "lower"),
}
"""Metric -> which way is better."""


class ResponseSplit(NamedTuple):
    """Cells by what is known of them; genes and codes are the same in all parts."""

    train: Populations  # control cells of every context among them
    validation: Populations  # perturbed cells of the held-out contexts to choose settings on; may be empty
    test: Populations  # perturbed cells of the held-out contexts
    controls: Populations  # control cells of the held-out contexts and, where they have any, batches; known to all


def hold_out(
    cells: Populations, role: np.ndarray | None = None, *, context: str | None = None, kept: float = 0.3, seed: int = 0
) -> ResponseSplit:
    """Divide cells by role, or hold out a context with a random share of its perturbations kept.

    What is asked for is a perturbation that is known, in a context where it is not. Methods know perturbations by
    learned vectors, and that of one without training cells is what it was before training: such perturbations are left
    out with a warning. For a method with given vectors (``set_diffusion.train(semantic=...)``) make a `ResponseSplit`.

    Parameters
    ----------
    cells
        All cells.
    role
        (n,) "train", "validation" or "test"; control cells train whatever it says. From ``screpro.data.heldout``.
    context
        Name of the context to hold out if there is no `role`; by default the last.
    kept
        Share of its perturbations that train. A third of the others, at least one and at most four, is for validation.
    seed
        Of that choice.

    Raises
    ------
    ScreproError
        No context of that name, nothing to ask for, or a held-out context without control cells.
    """
    if role is None:
        role = _roles(cells, context, kept, seed)
    role = np.where(cells.is_control, "train", role)
    known = np.isin(cells.perturbation, cells.perturbation[role == "train"])
    if unseen := [cells.perturbations[code] for code in np.unique(cells.perturbation[~known & (role != "excluded")])]:
        some = f"{', '.join(unseen[:6])}{f' and {len(unseen) - 6} more' if len(unseen) > 6 else ''}"
        warnings.warn(f"{len(unseen)} perturbations without a training cell are not asked for: {some}", stacklevel=2)
    test, validation = (_enough(cells.take(np.flatnonzero(known & (role == name)))) for name in ("test", "validation"))
    asked = np.unique(np.concatenate([test.context, validation.context]))
    own = cells.is_control & np.isin(cells.context, asked)
    # donors differ at rest: effects are measured against control cells of the donors that are asked for
    same = own & np.isin(cells.batch, np.concatenate([test.batch, validation.batch]))
    covered = np.isin(asked, cells.context[same]).all()
    controls = cells.take(np.flatnonzero(same if covered else own))
    without = [cells.contexts[k] for k in asked if not (controls.context == k).any()]
    if not len(test) or without:
        raise ScreproError(
            f"There are perturbations of at least {MIN_CELLS} cells to ask for that have training cells elsewhere, in "
            "contexts with control cells.",
            got=f"{len(test)} cells to ask for; contexts without control cells: {', '.join(without) or 'none'}",
            fix="hold out another context, or keep fewer of its perturbations",
        )
    return ResponseSplit(cells.take(np.flatnonzero(role == "train")), validation, test, controls)


def _roles(cells: Populations, context: str | None, kept: float, seed: int) -> np.ndarray:
    name = cells.contexts[-1] if context is None else context
    if name not in cells.contexts or not 0 <= kept < 1:
        raise ScreproError(
            "A held-out context is one of the cells', and the kept share of perturbations is within 0..1.",
            got=f"{name!r}, {kept}",
            fix=f"contexts: {', '.join(cells.contexts[:8])}",
        )
    own = cells.context == cells.contexts.index(name)
    there = np.unique(cells.perturbation[own & ~cells.is_control])
    order = np.random.default_rng(seed).permutation(there)
    n_kept = round(kept * len(order))
    n_validation = min(4, max(1, (len(order) - n_kept) // 3)) if len(order) - n_kept > 1 else 0
    role = np.full(len(cells), "train", dtype="U10")
    role[own & np.isin(cells.perturbation, order[n_kept:])] = "test"
    role[own & np.isin(cells.perturbation, order[n_kept : n_kept + n_validation])] = "validation"
    return role


def _enough(cells: Populations) -> Populations:
    """Without perturbations that have too few cells."""
    count = np.bincount(cells.perturbation, minlength=len(cells.perturbations))
    return cells.take(np.flatnonzero(count[cells.perturbation] >= MIN_CELLS))


class Scores(NamedTuple):
    """Every score of one method: one number each, and by perturbation where there is such a thing."""

    values: dict[str, float]  # metric -> mean over the perturbations where it is defined; NaN if there is none
    each: dict[str, np.ndarray]  # metric -> (M,)
    pair: Comparison


class Scorer:
    """Real cells of one side of a split, ready to score generated ones.

    Parameters
    ----------
    asked
        Real cells, `ResponseSplit.test` or `validation`.
    controls
        Real control cells of their contexts.
    """

    def __init__(self, asked: Populations, controls: Populations):
        self.asked, self.controls = asked, controls
        self.codes = np.unique(asked.perturbation)
        self.real = self._cells(asked.x)

    @property
    def names(self) -> tuple[str, ...]:
        """Perturbations in the order of `Scores.each`."""
        return self.real.perturbations

    def _cells(self, x: sp.csr_matrix) -> Cells:
        own = np.searchsorted(self.codes, self.asked.perturbation)
        codes = np.concatenate([own, np.full(len(self.controls), len(self.codes))])
        names = tuple(self.asked.perturbations[code] for code in self.codes)
        return Cells(sp.vstack([x, self.controls.x], format="csr"), codes, names, self.asked.genes)

    def score(self, generated: np.ndarray | sp.spmatrix, *, null: np.ndarray | sp.spmatrix | None = None) -> Scores:
        """Scores of generated cells.

        Parameters
        ----------
        generated
            (n, G) log1p-normalised expression with the labels of `asked`, in its order. Below 0 counts as 0.
        null
            (k, G) cells generated for the control condition of the held-out contexts; None leaves the null test out.
        """
        made = self._checked(generated)
        scores = self._of(compare(self.real, self._cells(made)), made)
        if null is not None:
            cells = _clean(null)
            scores.values["null_calls"] = float(null_calls(null_side(self.controls.x, cells))[0])
        return scores

    def _of(self, pair: Comparison, made: sp.csr_matrix | None) -> Scores:
        each = {}
        values = {}
        for function in TABLE_4.values():
            if len(self.codes) == 1 and function.__name__ in DISCRIMINATION:
                continue  # a single perturbation has nothing to be told from: every answer would score 1
            value = np.asarray(function(pair), dtype=np.float64)
            if value.ndim:
                each[function.__name__] = value
            else:
                values[function.__name__] = float(value)
        shift = np.abs(pair.generated.mean - pair.control)
        label = pair.real.significant
        each["de_auroc_of_shift"], each["de_auprc_of_shift"] = auroc(label, shift), average_precision(label, shift)
        unchanged = ~label
        with np.errstate(invalid="ignore", divide="ignore"):
            each["called_unchanged"] = (pair.generated.significant & unchanged).sum(1) / unchanged.sum(1)
        values["called_ratio"] = float(pair.generated.significant.sum() / max(label.sum(), 1))
        if made is not None:
            values |= self.realism(made)
        values |= {name: _mean(value) for name, value in each.items()}
        return Scores(values, each, pair)

    def realism(self, made: sp.csr_matrix) -> dict[str, float]:
        """How the cells of a perturbation differ from real ones: spread, zeros and correlation of genes; 0 is ideal."""
        each = [np.flatnonzero(self.asked.perturbation == code) for code in self.codes]
        return _realism((self.asked.x[rows], made[rows]) for rows in each)

    @cached_property
    def ceiling(self) -> Scores:
        """One half of the real cells as the answer to the other, and one half of the controls for the null test.

        Realism of halves is what chance does with half as many cells: no bound, all cells of a method can lie below it.
        """
        scores = self._of(split_half(self.real, seed=0), None)
        order = np.random.default_rng(0).permutation(len(self.controls))
        half = len(order) // 2
        first, second = (self.controls.x[rows] for rows in (order[:half], order[half:]))
        scores.values["null_calls"] = float(null_calls(null_side(first, second))[0])
        rng = np.random.default_rng(0)
        each = [rng.permutation(np.flatnonzero(self.asked.perturbation == code)) for code in self.codes]
        halves = [np.array_split(rows, 2) for rows in each if len(rows) > 3]
        scores.values.update(_realism((self.asked.x[one], self.asked.x[other]) for one, other in halves))
        return scores

    def unconditional(self, *, rng: np.random.Generator) -> sp.csr_matrix:
        """Control cells in the place of the asked ones: the answer that nothing happens, (n, G)."""
        rows = self.controls.matched(self.asked.context, self.asked.batch, 1, rng=rng)[:, 0]
        return self.controls.x[rows]

    def _checked(self, generated: np.ndarray | sp.spmatrix) -> sp.csr_matrix:
        if generated.shape != self.asked.x.shape:
            raise ScreproError(
                "Generated cells are as many as the cells asked for, in their order, with their genes.",
                got=f"{generated.shape} for {self.asked.x.shape}",
                fix="make one cell for the labels of each",
            )
        return _clean(generated)


def _realism(pairs: Iterable[tuple[sp.csr_matrix, sp.csr_matrix]]) -> dict[str, float]:
    """`Scorer.realism` of real cells and others, a pair of matrices for every perturbation."""
    out = {name: [] for name in REALISM}
    for real, made in pairs:
        a, b = real.toarray(), made.toarray()
        out["gene_variance_log2_ratio"].append(gene_variance_log2_ratio(a, b))
        out["gene_zero_fraction_gap"].append(gene_zero_fraction_gap(a, b))
        out["gene_correlation_gap"].append(np.abs(gene_correlation(a) - gene_correlation(b)).mean())
    return {name: _mean(np.array(values)) for name, values in out.items()}


def _clean(generated: np.ndarray | sp.spmatrix) -> sp.csr_matrix:
    out = sp.csr_matrix(generated, dtype=np.float32)
    if not np.isfinite(out.data).all():
        raise ScreproError(
            "Generated expression is finite.", got="NaN or infinite values", fix="check how the method was trained"
        )
    out = out.maximum(0).tocsr()
    out.eliminate_zeros()
    return out


def gene_correlation(x: np.ndarray, most: int = 100) -> np.ndarray:
    """Correlations of all pairs among at most `most` genes, spread over the panel, flat; constant genes give 0."""
    x = x[:, np.unique(np.linspace(0, x.shape[1] - 1, most).astype(int))]
    centred = x - x.mean(0)
    norm = np.sqrt((centred**2).sum(0))
    unit = centred / np.where(norm > 0, norm, 1)
    return (unit.T @ unit)[np.triu_indices(x.shape[1], 1)]


def _mean(value: Sequence[float] | np.ndarray) -> float:
    value = np.asarray(value, dtype=np.float64)
    return float(np.nanmean(value)) if np.isfinite(value).any() else float("nan")


def win_rates(own: Scores, other: Scores) -> dict[str, tuple[float, float]]:
    """Share of perturbations that score at least as well as with another method, and strictly better.

    Of Table 4's scores those that a perturbation has by itself, each over the perturbations where both have it, if
    these are several: the share of a single one is 0 or 1. Equal scores count as a win in the paper: two methods that
    are both at 0, or both say the same, win everything.
    """
    rates = {}
    for function in TABLE_4.values():
        if (name := function.__name__) not in own.each:
            continue
        sign = 1 if DIRECTIONS[name] == "higher" else -1
        gap = sign * (own.each[name] - other.each[name])
        gap = gap[np.isfinite(gap)]
        if len(gap) > 1:
            rates[name] = float((gap >= 0).mean()), float((gap > 0).mean())
    return rates


def constants(scorer: Scorer) -> dict[str, float]:
    """What scores are worth without any knowledge of perturbations.

    Precision and area under the precision curve: the share of truly called genes, which calling everything reaches.
    Discrimination: (M + 1) / (2 M), one answer for all of M perturbations if no perturbed gene is measured; where some
    are, one answer can score more, for the gene is left out (``pds_l1``). Areas under the ROC curve: 1/2.
    """
    share = summary_side(scorer.real).significant.mean(1)  # (M,)
    m = len(share)
    defined = share[(share > 0) & (share < 1)]
    floors = {"de_precision": share.mean()}
    if m > 1:
        floors |= dict.fromkeys(DISCRIMINATION, (m + 1) / (2 * m))
    if len(defined):
        floors |= dict.fromkeys(("de_auprc", "de_auprc_of_shift"), defined.mean())
        floors |= dict.fromkeys(("de_auroc", "de_auroc_of_shift"), 0.5)
    return {name: float(value) for name, value in floors.items()}
