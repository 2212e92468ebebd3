"""The perturbation scores that `screpro.metrics.report` shows: PerturbDiff's Table 4 beside its ceiling and floors.

==================  ==================================================================================================
`value`             all generated against all real cells of each perturbation, both against all real control cells
`value_equal_n`     half of the generated against half of the real cells of each perturbation
`ceiling`           the other half of the real cells in place of the generated ones
`floor_mean`        one effect for all perturbations, the mean of the real ones
`floor_control`     no effect: the real control cells
==================  ==================================================================================================

The floors use all cells, as `value` does: their scores hardly depend on the number of cells.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from screpro.metrics.catalogue import catalogue
from screpro.metrics.perturbation import TABLE_4, control_cells, mean_effect, read_pair, score, split_half
from screpro.metrics.perturbation import compare as compare_effects
from screpro.metrics.perturbation.cells import Cells, summary_side
from screpro.metrics.report_input import Pair

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


class Effects(NamedTuple):
    """Cells of both files, checked, and the column that names their perturbations."""

    real: Cells
    generated: Cells
    column: str


def prepare(pair: Pair, labels: tuple[np.ndarray, np.ndarray], *, column: str, control: str) -> Effects:
    """Check everything that can be wrong before anything is computed.

    Parameters
    ----------
    pair
        Expression of both files.
    labels
        Perturbation of each real and each generated cell.
    column, control
        Name of the column they come from, and its value in control cells.

    Raises
    ------
    ScreproError
        As ``screpro.metrics.perturbation.read_pair``.
    """
    # Cell-Eval computes p-values in the precision of the matrix, which is single in nearly every file
    sides = [(x.astype(np.float32), of) for x, of in zip((pair.real, pair.generated), labels, strict=True)]
    return Effects(*read_pair(*sides, control=control, genes=pair.genes.tolist()), column)


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
    notes.append(
        f"the same prediction for every perturbation scores (M + 1) / 2M = {(m + 1) / (2 * m):.3f} in every PDS"
    )
    every = catalogue()
    sizes = {
        name: np.bincount(cells.codes[cells.codes >= 0], minlength=m + 1)[:m]
        for name, cells in (("n_real", real), ("n_generated", generated), ("n_equal", half))
    }
    for title, function in TABLE_4.items():
        name = function.__name__
        for perturbation in ["all", *real.perturbations]:
            if (name, perturbation) not in tables["value"].index:
                continue  # one number for the whole data set
            of = slice(None) if perturbation == "all" else [real.perturbations.index(perturbation)]
            yield {
                "suite": "celleval",
                "metric": name,
                "variant": title,
                "by": perturbation if perturbation == "all" else f"{effects.column}={perturbation}",
                **{column: float(table[name, perturbation]) for column, table in tables.items()},
                **{n: int(of_each[of].sum()) for n, of_each in sizes.items()},
                "n_genes": len(real.genes),
                "unit": UNITS.get(name, "share"),
                "direction": every[name].direction,
            }


def _half(cells: Cells, *, seed: int) -> Cells:
    """Half of the cells of each perturbation, at least one; all control cells."""
    rng = np.random.default_rng(seed)
    codes = cells.codes.copy()
    for code in range(cells.control_code):
        own = rng.permutation(np.flatnonzero(codes == code))
        codes[own[max(1, len(own) // 2) :]] = -1
    return replace(cells, codes=codes)
