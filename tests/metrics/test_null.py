"""The null test: what is called where nothing was changed, in the metric and in the report."""

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from scipy import stats

from screpro.errors import ScreproError
from screpro.metrics.perturbation import null_calls, null_side
from screpro.metrics.report import compare

GENES, BIASED = 40, 12
LABEL = "made for control"
OPTIONS = {"suite": "celleval", "perturbation": "treatment", "control": "control"}


def cells(n: int, seed: int, *, shift: float = 0.0) -> np.ndarray:
    """Gamma values with zeros; a generator's error moves the first `BIASED` genes by `shift`."""
    rng = np.random.default_rng(seed)
    x = rng.gamma(2.0, 0.5, (n, GENES)) * (rng.random((n, GENES)) < 0.7)
    x[:, :BIASED] += shift
    return x.astype(np.float32)


def test_the_calls_are_those_of_scipy_and_its_adjustment():
    real, made = cells(120, 0), cells(70, 1, shift=0.25)
    test = stats.mannwhitneyu(made.astype(float), real.astype(float), axis=0, method="asymptotic")
    adjusted = stats.false_discovery_control(test.pvalue)
    side = null_side(sp.csr_matrix(real), made)
    np.testing.assert_allclose(side.fdr[0], adjusted, rtol=1e-5)
    assert null_calls(side)[0] == np.mean(adjusted < 0.05) and 0 < np.mean(adjusted < 0.05) < 1
    np.testing.assert_allclose(side.mean[0], made.mean(axis=0), rtol=1e-6)


def test_cells_of_one_law_are_called_in_few_of_many_tests():
    """Under the null any call at all has a chance of 5 %: 40 of 200 is beyond chance, by far."""
    shares = np.array([null_calls(null_side(cells(60, s), cells(50, 10_000 + s)))[0] for s in range(200)])
    assert (shares > 0).sum() < 25


def test_true_differences_are_found_and_more_of_them_with_more_cells():
    few, many = (null_calls(null_side(cells(n, 0), cells(n, 1, shift=0.15)))[0] for n in (25, 800))
    assert few < many
    assert many == pytest.approx(BIASED / GENES, abs=0.06)


@pytest.mark.parametrize("made", [cells(1, 0), cells(9, 0)[:, 1:]])
def test_one_cell_and_other_genes_are_refused(made):
    with pytest.raises(ScreproError, match="null test"):
        null_side(cells(20, 1), made)


def files(shift: float, *, label: str = LABEL, n: int = 60) -> tuple[AnnData, AnnData]:
    """A screen of two perturbations, and a generator that is right about them but not about control cells."""
    names = ["control", "p1", "p2"]
    sides = []
    for seed, labels in ((0, names), (5, [label, *names[1:]])):
        parts = [cells(n, seed + number) for number in range(3)]
        parts[1][:, 20:30] += 1
        parts[2][:, 30:] += 1
        if seed:
            parts[0][:, :BIASED] += shift
        made = AnnData(np.vstack(parts))
        made.obs["treatment"] = np.repeat(labels, n)
        sides.append(made)
    return tuple(sides)


def test_the_report_has_the_null_test_beside_ceiling_and_floor_and_leaves_the_rest_alone():
    real, made = files(0.6)
    found = compare(real, made, generated_control=LABEL, **OPTIONS)
    (row,) = found.rows[found.rows["metric"] == "null_calls"].to_dict("records")
    controls = {name: side[side.obs["treatment"] == label].X for name, side, label in
                (("real", real, "control"), ("made", made, LABEL))}  # fmt: skip
    assert row["value"] == null_calls(null_side(controls["real"], controls["made"]))[0] >= 0.2
    assert row["value_equal_n"] > row["ceiling"] and row["ceiling"] <= 0.05
    assert row["floor_mean"] > 0.3 and row["floor_control"] == 0
    assert (row["n_real"], row["n_generated"], row["n_equal"], row["by"]) == (60, 60, 30, "control cells")
    assert "null_calls: " in " ".join(found.notes)
    without = compare(real, made[made.obs["treatment"] != LABEL].copy(), **OPTIONS)
    assert "null test not made" in " ".join(without.notes)
    assert without.rows.equals(found.rows[found.rows["metric"] != "null_calls"])
    again = compare(real, made, generated_control=LABEL, **OPTIONS)
    assert again.rows.equals(found.rows)


def test_a_perfect_generator_is_called_nowhere():
    found = compare(*files(0.0), generated_control=LABEL, **OPTIONS)
    row = found.rows.set_index("metric").loc["null_calls"]
    assert row["value"] <= 0.05


def test_generated_controls_may_bear_the_label_of_the_control_and_never_serve_as_controls():
    real, own_label = files(0.6, label="control")
    own, other = (
        compare(real, made, generated_control=label, **OPTIONS).rows
        for made, label in ((own_label, "control"), (files(0.6)[1], LABEL))
    )
    assert own.equals(other)
    with pytest.raises(ScreproError, match="REAL control cells"):
        compare(real, own_label, **OPTIONS)
    both = {**OPTIONS, "suite": "all"}
    every = compare(real, own_label, generated_control="control", **both).rows
    assert every[every["suite"] == "scldm"]["n_generated"].max() == 120  # of 180


@pytest.mark.parametrize(
    ("label", "options", "said"),
    [
        ("elsewhere", OPTIONS, "0 generated cells with treatment = elsewhere"),
        (LABEL, {}, "--generated-control"),
    ],
)
def test_a_label_of_no_cell_and_the_wrong_suite_are_named(label, options, said):
    with pytest.raises(ScreproError, match=said):
        compare(*files(0.3), generated_control=label, **options)


def test_the_real_control_cells_are_no_test():
    real, _ = files(0.0)
    with pytest.raises(ScreproError, match="the real control cells"):
        compare(real, real, generated_control="control", **OPTIONS)
