"""Paired comparison, claims decided from rows, and the table that shows both sides."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from screpro.errors import ScreproError
from screpro.records import Claim, facts_table, load_claims, paper_table, side_by_side, tried_table, verdict
from screpro.records.claims import WORDS
from screpro.records.compare import compare, heaviest, plain, standard_error
from screpro.records.results import check_row, to_frame


def rows(scores, *, tier="laptop", metric="macro_f1", direction="higher"):
    """`scores`: {(dataset, method): {(split, seed): value}}."""
    fixed = {"paper": "scdiff", "item": "Table 5", "metric": metric, "metric_variant": "", "unit": ""}
    fixed |= {"tier": tier, "direction": direction, "run_id": "r"}
    return to_frame(
        check_row(fixed | {"dataset": d, "method": m, "split": str(split), "seed": seed, "value": value})
        for (d, m), cells in scores.items()
        for (split, seed), value in cells.items()
    )


def cells(base, jitter=(0.0, 0.01, -0.01), splits=(0, 1)):
    return {(split, seed): base + j for split in splits for seed, j in enumerate(jitter)}


GRID = [(split, seed) for split in (0, 1) for seed in (0, 1, 2)]


def test_a_win_is_a_mean_gap_above_the_standard_error_of_the_pairs():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.02, -0.02, 0.2):
        a, b = rng.normal(0.5 + shift, 0.03, 6), rng.normal(0.5, 0.03, 6)
        table = rows({("d", "a"): dict(zip(GRID, a, strict=True)), ("d", "b"): dict(zip(GRID, b, strict=True))})
        (found,) = compare(table, "a", "b")
        gap = a - b
        halves = gap[:3].mean(), gap[3:].mean()
        error = max(np.std(gap, ddof=1) / math.sqrt(6), abs(halves[0] - halves[1]) / 2)
        expected = "tie" if abs(gap.mean()) <= error else "win" if gap.mean() > 0 else "loss"
        assert (found.difference, found.standard_error) == pytest.approx((gap.mean(), error))
        assert (found.outcome, found.n_pairs, found.n_splits, found.n_seeds) == (expected, 6, 2, 3)
        (back,) = compare(table, "b", "a")
        assert back.difference == pytest.approx(-found.difference)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((0.3,), math.sqrt(2 / 3) * 0.01 * math.sqrt(3 / 2) / math.sqrt(3)),  # one split: over its seeds
        ((0.0, 0.2), 0.1),  # two: half the distance of their means
        ((0.0, 0.1, 0.2), 0.1 / math.sqrt(3)),  # three: over the means of splits
    ],
)
def test_seeds_of_a_split_are_not_independent(levels, expected):
    runs = pd.DataFrame([(s, base + j) for s, base in enumerate(levels) for j in (-0.01, 0.0, 0.01)])
    assert standard_error(runs[1], runs[0]) == pytest.approx(expected)


def test_two_splits_that_agree_by_chance_leave_the_error_of_the_runs():
    runs = pd.DataFrame([(s, j) for s in (0, 1) for j in (-0.01, 0.0, 0.01)])
    assert standard_error(runs[1], runs[0]) == pytest.approx(runs[1].std(ddof=1) / math.sqrt(6))
    assert math.isnan(standard_error(runs[1][:1], runs[0][:1]))


def test_a_gap_on_one_of_two_splits_is_no_win_however_many_seeds_there_are():
    """Ahead by .1 on one split and behind by .02 on the other: as six independent pairs that would be a win."""
    better = {(split, seed): 0.5 + (0.1, -0.02)[split] + 0.001 * seed for split, seed in GRID}
    (found,) = compare(rows({("d", "a"): better, ("d", "b"): dict.fromkeys(GRID, 0.5)}), "a", "b")
    assert found.outcome == "tie" and found.standard_error == pytest.approx(0.06)


def test_lower_is_better_turns_the_sign():
    table = rows({("d", "a"): cells(0.1), ("d", "b"): cells(0.9)}, direction="lower", metric="mse")
    assert compare(table, "a", "b")[0].outcome == "win"


def test_pairing_removes_what_both_methods_share():
    hard = {key: 0.1 * i for i, key in enumerate(GRID)}  # splits and seeds differ far more than methods
    better = {key: value + 0.01 + 0.001 * (key[1] - 1) for key, value in hard.items()}
    assert compare(rows({("d", "a"): better, ("d", "b"): hard}), "a", "b")[0].outcome == "win"


def test_equal_scores_and_single_pairs_are_ties():
    same = rows({("d", "a"): cells(0.5), ("d", "b"): cells(0.5)})
    assert compare(same, "a", "b")[0].outcome == "tie"
    single = rows({("d", "a"): {(0, 0): 0.9}, ("d", "b"): {(0, 0): 0.1}})
    assert compare(single, "a", "b")[0].outcome == "tie"


def test_a_method_without_seeds_pairs_with_every_seed_of_its_split():
    table = rows({("d", "a"): cells(0.8), ("d", "b"): {(0, None): 0.5, (1, None): 0.6}})
    (found,) = compare(table, "a", "b")
    assert (found.n_pairs, found.n_seeds) == (6, 3) and found.difference == pytest.approx(0.25)


def test_names_are_compared_without_case_and_punctuation():
    assert plain("Macro F1") == plain("macro_f1") and plain("scVI (20M)") != plain("scVI (70M)")


def test_a_score_recorded_under_two_items_counts_once_and_variants_do_not_mix():
    table = rows({("d", "a"): cells(0.8), ("d", "b"): cells(0.5)})
    twice = pd.concat([table.assign(item="Table 1"), table], ignore_index=True)
    assert compare(twice, "a", "b") == compare(table, "a", "b")
    mixed = pd.concat([table.assign(metric_variant="as printed"), table], ignore_index=True)
    with pytest.raises(ScreproError, match="one metric_variant"):
        compare(mixed, "a", "b")
    with pytest.raises(ScreproError, match="one metric_variant"):
        side_by_side("scdiff", "Table 5", mixed, metric="macro_f1", subject="scdiff")
    chosen = side_by_side("scdiff", "Table 5", mixed, metric="macro_f1", subject="scdiff", metric_variant="As Printed")
    assert chosen.rows[-1].ours == ("0.500 ± 0.009",)


def claim(**changes):
    test = {
        "kind": "wins",
        "method": "scdiff",
        "against": "celltypist",
        "metric": "macro F1",
        "tiers": ["laptop", "paper"],
        "at_least": 0.66,
        "min_datasets": 3,
        "min_seeds": 3,
    }
    return Claim("S1", "scdiff", "…", "Table 1", "…", "…", test | changes)


def outcome_rows(outcomes, tier="laptop"):
    gap = {"win": 0.1, "loss": -0.1, "tie": 0.0}
    scores = {}
    for i, outcome in enumerate(outcomes):
        scores[f"set{i}", "scdiff"] = cells(0.7 + gap[outcome])
        scores[f"set{i}", "celltypist"] = cells(0.7, jitter=(0.001, -0.002, 0.001))
    return rows(scores, tier=tier)


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [
        (["win"] * 3, "supported"),
        (["win", "win", "loss"], "supported"),
        (["win", "win", "tie", "tie"], "inconclusive"),
        (["win", "win", "win", "loss"], "supported"),
        (["loss", "loss", "tie"], "contradicted"),
        (["tie"] * 4, "inconclusive"),
        (["win", "loss", "tie"], "inconclusive"),
        (["win", "win"], "not tested yet"),
    ],
)
def test_verdict_follows_from_the_rows(outcomes, word):
    decided = verdict(claim(), outcome_rows(outcomes))
    assert decided.word == word
    if word != "not tested yet":
        assert len(decided.rows) == 12 * len(outcomes) and "set0" in decided.evidence


def test_light_tiers_and_few_seeds_decide_nothing():
    assert verdict(claim(), outcome_rows(["win"] * 4, tier="ci")).word == "not tested yet"
    assert verdict(claim(min_seeds=4), outcome_rows(["win"] * 4)).word == "not tested yet"


def test_the_heaviest_tier_of_a_data_set_counts():
    both = pd.concat([outcome_rows(["win"] * 3), outcome_rows(["loss"] * 3, tier="paper")], ignore_index=True)
    assert set(heaviest(both)["tier"]) == {"paper"}
    assert verdict(claim(), both).word == "contradicted"


def test_networks_that_learned_from_other_studies_decide_nothing():
    """Not even by being of a heavier tier than the rows that do. Another paper's methods may be called so."""
    own = outcome_rows(["win"] * 3).assign(paper="scldm")
    pooled = own.assign(tier="paper", method=own["method"] + "_pooled", value=1 - own["value"])
    assert verdict(claim(), pd.concat([own, pooled], ignore_index=True)).word == "supported"
    other = own.assign(paper="scdiff", method=own["method"] + "_pooled")
    assert verdict(claim(method="scdiff_pooled", against="celltypist_pooled"), other).word == "supported"


def test_all_claims_of_the_ledger_are_there_and_decidable():
    claims = load_claims()
    ids = [f"S{i}" for i in range(1, 16)] + [f"L{i}" for i in range(1, 22)] + [f"P{i}" for i in range(1, 21)]
    assert [c.id for c in claims] == ids
    for c in claims:
        assert c.statement and c.item and c.experiment and c.rule
        decided = verdict(c)
        assert decided.word in WORDS and (decided.word != "not testable here" or c.why)
    assert {c.id for c in load_claims("scldm")} == {f"L{i}" for i in range(1, 22)}


def test_paper_table_has_a_row_per_method_and_a_column_per_data_set():
    table = paper_table("scdiff", "Table 5")
    assert table.shape == (5, 6) and table.loc["scDiff", "PBMC12K"] == "0.9485 ± 0.0062"
    assert paper_table("scldm", "Table 1").columns.nlevels == 2


@pytest.fixture
def table():
    scores = {("pbmc", "scdiff"): cells(0.9), ("pbmc", "celltypist"): cells(0.8, jitter=(0.002, -0.001, 0.0))}
    scores |= {("gut", "scdiff"): cells(0.7), ("gut", "majority"): {(0, None): 0.1, (1, None): 0.2}}
    return side_by_side(
        "scdiff",
        "Table 5",
        rows(scores),
        metric="macro F1",
        subject="scdiff",
        same={"pbmc": "PBMC12K"},
        kinds={"majority": "trivial"},
    )


def test_paper_and_reproduced_never_share_a_column(table):
    assert len(table.paper_heads) == 6 and len(table.our_heads) == 2
    pbmc, gut = table.our_heads
    assert pbmc == "PBMC12K (pbmc) · laptop · 2 splits, 3 seeds"
    assert gut == "stand-in: gut · laptop · 2 splits, 3 seeds"
    lines = {row.method: row for row in table.rows}
    assert lines["scDiff"].ours == ("0.900 ± 0.009", "0.700 ± 0.009")
    assert lines["CellTypist"].ours[1] == "not run" and lines["ACTINN"].verdict == "not run"
    assert lines["majority"].paper == ("–",) * 6
    assert [lines[m].kind for m in ("scDiff", "CellTypist", "majority")] == ["model", "baseline", "trivial"]


def test_verdicts_compare_both_sides(table):
    said = {row.method: row.verdict for row in table.rows}
    assert said["CellTypist"].startswith("agrees: scdiff ahead on 1, behind on 0 of 1 here")
    assert "ahead on 5 of 6 in the paper" in said["CellTypist"]
    assert said["majority"] == "scdiff ahead on 1, behind on 0 of 1 here"


def verdict_of(method, *parts, **options):
    found = pd.concat(parts, ignore_index=True)
    shown = side_by_side("scdiff", "Table 5", found, metric="macro_f1", subject="scdiff", **options)
    return {row.method: row.verdict for row in shown.rows}[method]


def test_verdicts_count_what_could_tell_methods_apart():
    """A ci run is one pair, always a tie: beside recorded sets it does not stand in the denominator."""
    recorded = rows({("gut", "scdiff"): cells(0.9), ("gut", "celltypist"): cells(0.5)})
    live = rows({("gut", "scdiff"): {(0, 0): 0.9}, ("gut", "celltypist"): {(0, 0): 0.5}}, tier="ci")
    fewer = rows({("pbmc", "scdiff"): {(0, 0): 0.9}, ("pbmc", "celltypist"): {(0, 0): 0.5}})
    heavier = rows({("gut", "scdiff"): cells(0.4), ("gut", "celltypist"): cells(0.5)}, tier="paper")
    assert "ahead on 1, behind on 0 of 1 here" in verdict_of("CellTypist", recorded, live, fewer)
    assert "ahead on 0, behind on 1 of 1 here" in verdict_of("CellTypist", recorded, heavier)
    assert verdict_of("CellTypist", live) == "ci run only"
    assert verdict_of("CellTypist", live, fewer) == "fewer than 3 seeds"


def test_a_ceiling_has_no_verdict():
    found = rows({("gut", "scdiff"): cells(0.5), ("gut", "oracle"): cells(0.9)})
    assert verdict_of("oracle", found) == "scdiff ahead on 0, behind on 1 of 1 here"
    assert verdict_of("oracle", found, kinds={"oracle": "ceiling"}) == ""


def test_a_method_of_ours_can_stand_in_the_row_of_the_paper():
    found = rows({("gut", "scdiff"): cells(0.5), ("gut", "majority"): {(0, None): 0.1, (1, None): 0.2}})
    shown = side_by_side(
        "scdiff", "Table 1", found, metric="macro_f1", subject="scdiff", kinds={"majority": "trivial"},
        methods={"majority": "Chance level"},
    )  # fmt: skip
    (row,) = [row for row in shown.rows if row.kind == "trivial"]
    assert row.method == "Chance level" and row.ours == ("0.150 ± 0.071",)
    assert row.verdict.startswith("agrees: scdiff ahead on 1")


def test_html_is_scrollable_labelled_and_escaped(table):
    html = table._repr_html_()
    assert html.startswith('<div class="screpro-table"') and "<caption>" in html
    assert html.count('scope="row"') == len(table.rows) and 'scope="colgroup"' in html
    assert "not run" in html
    assert table.to_frame().shape == (len(table.rows), 1 + 6 + 2 + 1)
    evil = side_by_side("scdiff", "Table 5", rows({("<d>", "<m>"): cells(0.5)}), metric="macro_f1", subject="scdiff")
    assert "<m>" not in evil._repr_html_() and "&lt;d&gt;" in evil._repr_html_()


def test_without_results_every_reproduced_cell_says_not_run():
    empty = side_by_side("scdiff", "Table 5", rows({}), metric="macro_f1", subject="scdiff")
    assert "not run" in empty._repr_html_() and len(empty.rows) == 5
    assert empty.to_frame().shape == (5, 1 + 6 + 1)


def test_several_metrics_have_to_be_chosen_from():
    with pytest.raises(ScreproError, match="MSE top 20 DE"):
        side_by_side("scdiff", "Table 7", rows({}), metric="mse", subject="scdiff")


def test_stand_ins_stand_beside_the_range_of_the_paper():
    scores = {("gut", "scdiff"): cells(0.9), ("gut", "knn"): cells(0.8)}
    table = side_by_side(
        "scdiff", "Table 5", rows(scores), metric="macro_f1", subject="scdiff", titles={"knn": "Neighbours"}
    )
    assert table.paper_heads == ("lowest to highest of 6 sets",)
    lines = {row.method: row for row in table.rows}
    assert lines["scDiff"].paper == ("0.8193 to 0.9626",)
    assert lines["Neighbours"].paper == ("–",)


def test_a_metric_the_paper_does_not_print_has_no_paper_column():
    scores = {("gut", "scdiff"): cells(0.9), ("gut", "knn"): cells(0.8)}
    table = side_by_side("scdiff", None, rows(scores), metric="macro_f1", subject="scdiff")
    assert table.paper_heads == () and "paper" not in {group for group, _ in table.to_frame().columns}
    said = {row.method: row.verdict for row in table.rows}
    assert said["knn"] == "scdiff ahead on 1, behind on 0 of 1 here"
    assert '<th scope="colgroup" colspan="1">reproduced' in table._repr_html_()


def test_the_rule_of_s1_reads_a_page_with_other_variants():
    """Rows of tuning and of other ways to classify stand in the same results; the rule is about the plain score."""
    (s1,) = [claim for claim in load_claims("scdiff") if claim.id == "S1"]
    scores = {(f"set {k}", m): cells(v) for k in range(3) for m, v in (("scdiff", 0.9), ("celltypist", 0.8))}
    plain_rows = rows(scores)
    variants = plain_rows.assign(metric_variant="shared noise, 5 draws", value=0.0)
    tuning = plain_rows.assign(metric_variant='{"C": 1}', split="0, validation", value=0.0)
    everything = pd.concat([plain_rows, variants, tuning], ignore_index=True)
    assert verdict(s1, everything).word == "supported"


def test_a_file_of_ones_own_has_a_column_and_decides_nothing():
    scores = {("gut", "scdiff"): 0.9, ("gut", "celltypist"): 0.5}
    scores |= {("mine.h5ad", "scdiff"): 0.3, ("mine.h5ad", "celltypist"): 0.8}
    found = rows({name: cells(score) for name, score in scores.items()})
    table = side_by_side("scdiff", "Table 5", found, metric="macro_f1", subject="scdiff")
    assert [head.split(" ·")[0] for head in table.our_heads] == ["stand-in: gut", "own file: mine.h5ad"]
    said = next(row.verdict for row in table.rows if row.method == "CellTypist")
    assert said.startswith("agrees: scdiff ahead on 1, behind on 0 of 1 here") and said.endswith(
        "; behind on mine.h5ad"
    )
    mine = found[found["dataset"] == "mine.h5ad"]
    alone = side_by_side("scdiff", "Table 5", mine, metric="macro_f1", subject="scdiff")
    assert next(row.verdict for row in alone.rows if row.method == "CellTypist") == "scdiff behind on mine.h5ad"


def test_facts_may_hold_bars():
    said = facts_table({"types | cells": "T CD4 | naive (15)", "genes": 765}).data.splitlines()
    assert said[2:] == [r"| types \| cells | T CD4 \| naive (15) |", "| genes | 765 |"]


def test_what_tuning_tried_is_a_line_for_each_method_with_the_smallest_in_bold():
    tried = [("a", 1e-3, 3.0), ("a", 3e-4, 2.0), ("b", 1e-3, 5.0)]
    rows = pd.DataFrame(
        [
            {"item": "tuning", "metric": "re_nb_nll", "dataset": "cells", "method": method, "value": value}
            | {"metric_variant": json.dumps({"learning_rate": rate, "width": 8})}
            for method, rate, value in tried
        ]
    )
    table = tried_table(rows, "learning_rate", metric="re_nb_nll", titles={"a": "Small"})
    assert table.columns.tolist() == ["0.0003", "0.001"] and table.index.tolist() == [
        ("cells", "Small"),
        ("cells", "b"),
    ]
    html = table.to_html()
    bold = html.split("font-weight: bold")[0]  # the cells that the style names
    assert "row0_col0" in bold and "row1_col1" in bold and "row0_col1" not in bold and "–" in html
    assert tried_table(rows, "learning_rate", metric="mse", titles={}) is None
