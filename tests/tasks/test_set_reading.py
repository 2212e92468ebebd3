"""What pages say about rows: paired differences and not bare means, and networks behind untreated cells."""

import pytest

from screpro.records.results import to_frame
from screpro.tasks.responses_reading import (
    judged,
    missed_sentence,
    moved,
    reach,
    reach_sentence,
    reach_text,
    said,
    standing,
)


def row(method, value, seed=0, metric="pd_corr", direction="higher", variant="", dataset="set", tier="laptop"):
    return {
        "paper": "perturbdiff", "item": "Table 4", "dataset": dataset, "split": "held out", "method": method,
        "metric": metric, "metric_variant": variant, "n_real": None, "n_generated": None, "n_genes": None,
        "seed": seed, "tier": tier, "value": value, "unit": "", "direction": direction, "run_id": "perturbdiff/x/1",
    }  # fmt: skip


def test_a_difference_below_its_error_is_level():
    """.431 against .430 with seeds that scatter by .02 is neither met nor missed."""
    rows = to_frame(
        [row("model", v, seed) for seed, v in enumerate((0.451, 0.432, 0.411))] + [row("linear", 0.430, None)]
    )
    assert said(judged(rows, "model", "pd_corr", against="linear")).startswith("level (+0.001 ± 0.012")
    assert said(judged(rows, "model", "pd_corr", against=0.3)).startswith("met")
    assert said(judged(rows, "model", "pd_corr", against=0.6)).startswith("missed")
    assert said(judged(rows, "model", "pd_corr", against="absent")) == "not run"
    assert "one training" in said(judged(rows[rows["seed"] != 1][1:], "model", "pd_corr", against=0.1))


def test_a_missed_aim_is_told_with_the_repair_and_what_real_cells_reach():
    own = [row("model", v, seed) for seed, v in enumerate((0.41, 0.40, 0.39))]
    own += [row("repaired", v, seed) for seed, v in enumerate((0.36, 0.34, 0.35))]
    own += [row("linear", 0.430, None), row("halves", 0.429, None)]
    asked = {"against": "linear", "models": {"model": "the model", "repaired": "the repair"}, "ceiling": "halves"}
    text = missed_sentence(to_frame(own), "pd_corr", **asked)
    assert text == (
        "the model misses it by 0.030 ± 0.006; the repair misses it by 0.080 ± 0.006; on this score the repair is "
        "worse than the model (-0.050 ± 0.006); half of the real cells (0.429) would miss it too."
    )
    assert missed_sentence(to_frame(own), "pd_corr", **(asked | {"against": 0.3})) == ""
    assert "(0.429) would meet it" in missed_sentence(to_frame(own), "pd_corr", **(asked | {"against": 0.42}))
    assert standing(to_frame(own), "halves", "pd_corr", against=0.4291) == (pytest.approx(0.429), 0.0)
    assert standing(to_frame(own), "absent", "pd_corr", against="linear") is None


def test_bounds_of_scores_that_are_better_low_and_other_metrics_of_a_baseline():
    low = {"metric": "null_calls", "direction": "lower"}
    rows = to_frame(
        [row("model", v, seed, **low) for seed, v in enumerate((0.02, 0.03))]
        + [row("model", v, seed, metric="de_auroc") for seed, v in enumerate((0.7, 0.71))]
        + [row("mean", 0.5, None, metric="de_auroc"), row("mean", 0.8, None, metric="de_auroc_of_shift")]
    )
    assert said(judged(rows, "model", "null_calls", against=0.1)).startswith("met")
    shift = judged(rows, "model", "de_auroc", against="mean", against_metric="de_auroc_of_shift")
    assert said(shift).startswith("missed (-0.095")


def test_what_a_variant_moves_follows_the_direction():
    rows = to_frame(
        [row(m, v + 0.001 * s, s) for s in (0, 1, 2) for m, v in (("main", 0.5), ("other", 0.3))]
        + [row(m, v + 0.001 * s, s, "null_calls", "lower") for s in (0, 1) for m, v in (("main", 0.7), ("other", 0.6))]
        + [row(m, 0.4, s, "mae") for s in (0, 1) for m in ("main", "other")]
    )
    found = moved(rows, "other", "main", ["pd_corr", "null_calls", "mae", "absent"])
    assert found == {"better": ["null_calls"], "worse": ["pd_corr"], "level": ["mae"]}


@pytest.mark.parametrize("own_reference", [True, False])
def test_a_network_behind_untreated_cells_is_said_to_be(own_reference):
    r2 = {"metric": "r2_of_means"}
    rows = [row("perturbdiff", 0.8, 0, **r2), row("perturbdiff", 0.99, 0, **r2, dataset="other")]
    rows += [row("control_cells", 0.98, None, **r2, dataset="other")]
    rows += [row("control_cells", 0.98, None, **r2)] if own_reference else []
    main = to_frame([row("control_cells", 0.975, None, **r2), row("control_cells", 0.5, None, **r2, tier="ci")])
    twice = [row("perturbdiff", 0.82, 1, **r2), rows[0], row("control_cells", 0.98, None, **r2)]
    found = {own.dataset: own for own in reach(to_frame(rows), "perturbdiff", elsewhere=main)}
    assert found["set"].behind and not found["other"].behind
    assert found["set"].borrowed != own_reference
    text = reach_sentence(found["set"])
    assert ("10.0 times" if own_reference else "8.0 times") in text and ("main results" in text) != own_reference
    assert "0.800, that" in text and "0.810 ± 0.014" in reach_sentence(reach(to_frame(twice), "perturbdiff")[0])
    assert "times" not in reach_sentence(found["other"])
    assert [own.dataset for own in reach(to_frame(rows), "perturbdiff")] == (["set"] if own_reference else []) + [
        "other"
    ]


def test_a_network_within_the_error_of_its_trainings_is_not_behind():
    """.95 +- .04 over four trainings has a standard error of .02: not behind .96, behind .98."""
    values = [0.91, 0.99, 0.91, 0.99]
    for untreated, behind in ((0.96, False), (0.98, True)):
        rows = [row("model", value, seed, metric="r2_of_means") for seed, value in enumerate(values)]
        rows.append(row("control_cells", untreated, None, metric="r2_of_means"))
        (found,) = reach(to_frame(rows), "model")
        assert (found.runs, found.behind) == (4, behind)


def test_the_conclusion_names_who_is_behind_and_where():
    rows = [row("near", 0.9, metric="r2_of_means"), row("far", 0.5, metric="r2_of_means")]
    rows = to_frame([*rows, row("control_cells", 0.8, None, metric="r2_of_means")])
    text = reach_text({name: reach(rows, name) for name in ("near", "far")}, claims="P14", why="so")
    assert "So far is behind on `set`." in text and "near is behind" not in text and "P14" in text
    assert text.count("\n- ") == 1 and "None is behind" in reach_text(
        {"near": reach(rows, "near")}, claims="P14", why="so"
    )
