"""The perturbation scores that `screpro.metrics.report` shows: PerturbDiff's Table 4 beside its ceiling and floors.

==================  ==================================================================================================
`value`             all generated against all real cells of each perturbation, both against all real control cells
`value_equal_n`     half of the generated against half of the real cells of each perturbation
`ceiling`           the other half of the real cells in place of the generated ones
`floor_mean`        one effect for all perturbations, the mean of the real ones
`floor_control`     no effect: the real control cells
==================  ==================================================================================================

The floors use all cells, as `value` does: they stand beside it, the ceiling beside `value_equal_n`.

The null test has cells of its own, those generated for the control condition, in place of a perturbation's: `value` is
all of them against all real control cells, `value_equal_n` and `ceiling` are as many generated or real ones against
the other half of the real control cells, `floor_mean` is a generator that does not know its condition: real perturbed
cells, drawn from all perturbations. `floor_control` is 0.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError
from screpro.metrics.catalogue import catalogue
from screpro.metrics.perturbation import (
    TABLE_4,
    control_cells,
    mean_effect,
    null_calls,
    null_side,
    read_pair,
    score,
    split_half,
)
from screpro.metrics.perturbation import compare as compare_effects
from screpro.metrics.perturbation.cells import Cells, summary_side
from screpro.metrics.perturbation.checks import TOTAL, check_values
from screpro.metrics.perturbation.tables import Comparison
from screpro.metrics.report_input import Pair

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Effects", "prepare", "rows"]

UNITS = {
    "mse_of_means": "squared log1p expression",
    "mae_of_means": "log1p expression",
    "r2_of_means": "share of variance",
    "pd_corr": "correlation",
    "lfc_spearman": "correlation",
    "effect_size_spearman": "correlation",
}
"""Units of the scores that are not shares."""

CONTROLS = "control cells"
"""Group of the null test: its cells are none of the other rows'."""


class Effects(NamedTuple):
    """Cells of both files, checked, and the column that names their perturbations."""

    real: Cells
    generated: Cells
    column: str
    null: sp.csr_matrix | None  # (m, G) cells generated for the control condition


def prepare(
    pair: Pair,
    labels: tuple[np.ndarray, np.ndarray],
    *,
    column: str,
    control: str,
    generated_control: str | None = None,
) -> Effects:
    """Check everything that can be wrong before anything is computed.

    Parameters
    ----------
    pair
        Expression of both files.
    labels
        Perturbation of each real and each generated cell.
    column, control
        Name of the column they come from, and its value in control cells.
    generated_control
        Its value in the cells that were generated for the control condition, the control's own included; None: there
        are none, and the control cells of the generated file are the real ones.

    Raises
    ------
    ScreproError
        As ``screpro.metrics.perturbation.read_pair``; fewer than two cells for the null test, or cells for it that are
        the real control cells.
    """
    # Cell-Eval computes p-values in the precision of the matrix, which is single in nearly every file
    real, generated = [(x.astype(np.float32), of) for x, of in zip((pair.real, pair.generated), labels, strict=True)]
    null = None
    if generated_control is not None:
        made_for_control = generated[1] == generated_control
        null = generated[0][made_for_control]
        _check_null(null, real[0][real[1] == control], label=generated_control, column=column)
        generated = tuple(part[~made_for_control] for part in generated)
    cells = read_pair(real, generated, control=control, genes=pair.genes.tolist())
    return Effects(*cells, column, null)


def rows(effects: Effects, *, seed: int, notes: list[str]) -> Iterator[dict]:
    """One row for each metric over all perturbations, and one for each metric and perturbation."""
    real, generated = effects.real, effects.generated
    pair = compare_effects(real, generated)
    halves = split_half(real, seed=seed)
    half = _half(generated, seed=seed)
    sides = {
        "value": pair,
        "value_equal_n": replace(halves, generated=summary_side(half)),
        "ceiling": halves,
        "floor_mean": mean_effect(pair, real, seed=seed),
        "floor_control": control_cells(pair),
    }
    tables = {name: score(side).set_index(["metric", "perturbation"])["value"] for name, side in sides.items()}
    m = pair.n_perturbations
    called = pair.real.significant.mean()
    notes.append(f"{m} perturbations; {called:.1%} of genes truly called: the floor of de_precision and de_auprc")
    notes.append(_without_skill(pair, tables["floor_control"]))
    notes += _undefined(tables)
    every = catalogue()
    sizes = {
        name: np.bincount(cells.codes[cells.codes >= 0], minlength=m + 1)[:m]
        for name, cells in (("n_real", real), ("n_generated", generated), ("n_equal", half))
    }
    for title, function in TABLE_4.items():
        name = function.__name__
        for perturbation in [TOTAL, *real.perturbations]:
            if (name, perturbation) not in tables["value"].index:
                continue  # one number for the whole data set
            of = slice(None) if perturbation == TOTAL else [real.perturbations.index(perturbation)]
            yield {
                "suite": "celleval",
                "metric": name,
                "variant": title,
                "by": perturbation if perturbation == TOTAL else f"{effects.column}={perturbation}",
                **{column: float(table[name, perturbation]) for column, table in tables.items()},
                **{n: int(of_each[of].sum()) for n, of_each in sizes.items()},
                "n_genes": len(real.genes),
                "unit": UNITS.get(name, "share"),
                "direction": every[name].direction,
            }
    if effects.null is None:
        notes.append("null test not made: no cells generated for the control condition are named (--generated-control)")
    else:
        yield _null_row(effects, seed=seed, notes=notes)


def _without_skill(pair: Comparison, nothing: "pd.Series") -> str:
    """What PDS gives to a prediction that knows no perturbation from another; `nothing`: scores of no effect."""
    m, measured = pair.n_perturbations, int((pair.targets >= 0).sum())
    if not measured:
        constant = (m + 1) / (2 * m)
        return f"the same prediction for every perturbation scores (M + 1) / 2M = {constant:.3f} in every PDS"
    # the gene of the perturbation in question is left out, and the others keep theirs: see `pds_l1`
    scores = [f"{nothing[f.__name__, TOTAL]:.3f} in {title}" for title, f in TABLE_4.items() if title[:3] == "PDS"]
    return (
        f"{measured} of {m} perturbations are named after a measured gene, which PDS leaves out for them: predicting "
        f"no effect scores {', '.join(scores)}"
    )


def _undefined(tables: dict[str, "pd.Series"]) -> Iterator[str]:
    """Which scores have no value in which columns, and which means leave perturbations out."""
    whole: dict[tuple[str, ...], list[str]] = {}
    for name in (function.__name__ for function in TABLE_4.values()):
        empty = tuple(column for column, table in tables.items() if np.isnan(table[name, TOTAL]))
        if empty:
            whole.setdefault(empty, []).append(name)
        missing = {column: int(table[name].isna().sum()) for column, table in tables.items() if column not in empty}
        if parts := [f"{n} of {len(tables[column][name]) - 1} in {column}" for column, n in missing.items() if n]:
            yield f"{name}: not defined for some perturbations, which its mean leaves out: {', '.join(parts)}"
    for columns, names in whole.items():
        where = "any column" if len(columns) == len(tables) else ", ".join(columns)
        yield f"not defined in {where}: {', '.join(names)}"


def _null_row(effects: Effects, *, seed: int, notes: list[str]) -> dict:
    """The null test beside its ceiling and its floor; a note says what it counts."""
    rng = np.random.default_rng(seed)
    real, made = effects.real, effects.null
    is_control = real.codes == real.control_code
    controls, perturbed = real.x[is_control], real.x[(real.codes >= 0) & ~is_control]
    n, m = controls.shape[0], made.shape[0]
    h = min(n // 2, m)
    order = rng.permutation(n)
    reference, other = controls[order[:h]], controls[order[h : 2 * h]]
    cases = {
        "value": (controls, made),
        "value_equal_n": (reference, made[rng.permutation(m)[:h]]),
        "ceiling": (reference, other),
        "floor_mean": (controls, perturbed[rng.permutation(perturbed.shape[0])[:m]]),
    }
    values = {name: float(null_calls(null_side(*case))[0]) for name, case in cases.items()}
    notes.append(
        f"null_calls: {values['value']:.1%} of genes are called in cells generated for the control condition, "
        f"{values['value_equal_n']:.1%} at equal n, {values['ceiling']:.1%} in other real control cells"
    )
    return {
        "suite": "celleval",
        "metric": "null_calls",
        "variant": "null test",
        "by": CONTROLS,
        **values,
        "floor_control": 0.0,  # tested against themselves
        "n_real": n,
        "n_generated": m,
        "n_equal": h,
        "n_genes": len(real.genes),
        "unit": "share of genes",
        "direction": catalogue()["null_calls"].direction,
    }


def _check_null(made: sp.csr_matrix, controls: sp.csr_matrix, *, label: str, column: str) -> None:
    """Refuse cells that cannot be what a generator made for the control condition."""
    if made.shape[0] < 2 or controls.shape[0] < 4:
        raise ScreproError(
            "The null test compares at least two generated control cells with at least four real ones.",
            got=f"{made.shape[0]} generated cells with {column} = {label}, {controls.shape[0]} real control cells",
            fix="name the cells of the generated file that were made for the control condition, or leave "
            "--generated-control out",
        )
    check_values(made, what="generated control")
    if made.shape == controls.shape and not (made != controls).nnz:
        raise ScreproError(
            "The null test needs cells that a generator made for the control condition.",
            got=f"the real control cells, as {column} = {label}",
            fix="generate control cells, or leave --generated-control out",
        )


def _half(cells: Cells, *, seed: int) -> Cells:
    """Half of the cells of each perturbation, at least one; all control cells."""
    rng = np.random.default_rng(seed)
    codes = cells.codes.copy()
    for code in range(cells.control_code):
        own = rng.permutation(np.flatnonzero(codes == code))
        codes[own[max(1, len(own) // 2) :]] = -1
    return replace(cells, codes=codes)
