"""The kinds of rule a claim can be decided by, each on rows whose answer is plain."""

import numpy as np
import pandas as pd
import pytest

from screpro.errors import ScreproError
from screpro.records import load_claims, rules, verdicts
from screpro.records.claims import Claim, verdict
from screpro.records.results import to_frame

SHARED = {"metric": "score", "tiers": ["laptop"], "min_datasets": 1, "min_seeds": 3}


def table(scores, *, variant="", direction="higher", metric="score"):
    """{(dataset, method): mean}, three seeds each that jitter by a hundredth in step."""
    jitter = np.array([0.01, -0.01, 0.0])
    return to_frame(
        {
            "paper": "scdiff", "item": "Table 1", "dataset": dataset, "split": "0", "method": method,
            "metric": metric, "metric_variant": variant, "n_real": None, "n_generated": None, "n_genes": None,
            "seed": seed, "tier": "laptop", "value": mean * (1 + jitter[seed]), "unit": "", "direction": direction,
            "run_id": "x",
        }
        for (dataset, method), mean in scores.items() for seed in range(3)
    )  # fmt: skip


def word(rows, **test):
    test = SHARED | test
    rules.check("X", test)
    return rules.decide(test, rows).word


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"ours": 0.8, "a": 0.5, "b": 0.6, "peer": 0.7}, "supported"),
        ({"ours": 0.8, "a": 0.5, "b": 0.6, "peer": 0.9}, "inconclusive"),  # only behind the one it may equal
        ({"ours": 0.55, "a": 0.5, "b": 0.6, "peer": 0.5}, "contradicted"),
        ({"ours": 0.8, "a": 0.5, "peer": 0.5}, "not tested yet"),
    ],
)
def test_ahead_of_several_and_not_behind_another(scores, expected):
    rows = table({("d", method): value for method, value in scores.items()})
    test = {"kind": "wins", "method": "ours", "against": ["a", "b"], "not_behind": ["peer"], "at_least": 1.0}
    assert word(rows, **test) == expected


def test_behind_a_trivial_method_is_a_loss_although_ahead_of_the_rival():
    rows = table({("d", "ours"): 0.8, ("d", "rival"): 0.5, ("d", "mean"): 0.9})
    test = {"kind": "wins", "method": "ours", "against": "rival", "at_least": 1.0}
    assert word(rows, **test) == "supported"
    assert word(rows, **test, lost_to=["mean"]) == "contradicted"


def test_every_variant_has_to_be_won():
    import pandas as pd

    good = table({("d", "ours"): 0.8, ("d", "rival"): 0.5}, variant="2 shots")
    bad = table({("d", "ours"): 0.4, ("d", "rival"): 0.5}, variant="5 shots")
    test = {"kind": "wins", "method": "ours", "against": "rival", "at_least": 0.5,
            "metric_variants": ["2 shots", "5 shots"], "no_win_contradicts": True}  # fmt: skip
    both = pd.concat([good, bad], ignore_index=True)
    assert word(both, **test) == "contradicted"
    assert word(both, **(test | {"metric_variants": ["2 shots"]})) == "supported"
    assert word(good, **test) == "not tested yet"


def test_a_lead_of_at_least_so_much():
    test = {"kind": "gap", "method": "ours", "against": "rival", "by": 0.03}
    assert word(table({("d", "ours"): 0.8, ("d", "rival"): 0.7}), **test) == "supported"
    assert word(table({("d", "ours"): 0.8, ("d", "rival"): 0.7}), **test, other_below=0.6) == "inconclusive"
    assert word(table({("d", "ours"): 0.8, ("d", "rival"): 0.79}), **test) == "inconclusive"
    assert word(table({("d", "ours"): 0.8, ("d", "rival"): 0.9}), **test) == "contradicted"


def test_no_change_beyond_a_limit():
    test = {"kind": "within", "methods": ["a", "b"], "base": "ours", "limit": 0.04}
    scores = {("d", "ours"): 0.80, ("d", "a"): 0.82, ("d", "b"): 0.78}
    assert word(table(scores), **test) == "supported"
    assert word(table(scores | {("d", "b"): 0.9}), **test) == "contradicted"
    assert word(table({key: v for key, v in scores.items() if key[1] != "b"}), **test) == "not tested yet"


def test_times_as_a_ratio():
    test = {"kind": "ratio", "method": "ours", "against": "rival", "at_most": 3.0, "too_much": 10.0}
    for ours, expected in ((2.0, "supported"), (5.0, "inconclusive"), (11.0, "contradicted")):
        rows = table({("d", "ours"): ours, ("d", "rival"): 1.0}, direction="lower")
        assert word(rows, **test) == expected


def test_a_mean_above_a_limit():
    test = {"kind": "above", "method": "ours", "limit": 0.0}
    assert word(table({("d", "ours"): 0.1}), **test) == "supported"
    assert word(table({("d", "ours"): -0.1}), **test) == "contradicted"


def test_parts_together():
    parts = [SHARED | {"kind": "above", "method": "ours", "limit": limit} for limit in (0.0, 0.5)]
    for value, any_, every in ((0.9, "supported", "supported"), (0.2, "contradicted", "inconclusive"),
                               (-0.2, "contradicted", "contradicted")):  # fmt: skip
        rows = table({("d", "ours"): value})
        assert rules.decide({"kind": "all", "parts": parts}, rows).word == any_
        assert rules.decide({"kind": "all", "parts": parts, "contradicted": "all"}, rows).word == every
    assert rules.decide({"kind": "all", "parts": parts}, table({("d", "other"): 1.0})).word == "not tested yet"


def test_shares_of_parts():
    """Two of three parts hold: enough for "most", not for "all"; one of three contradicted is not most of them."""
    parts = [SHARED | {"kind": "above", "method": "ours", "limit": limit} for limit in (0.0, 0.1, 0.5)]
    rows = table({("d", "ours"): 0.3})
    rule = {"kind": "all", "parts": parts}
    assert rules.decide(rule, rows).word == "contradicted"
    assert rules.decide(rule | {"contradicted": "most"}, rows).word == "inconclusive"
    assert rules.decide(rule | {"supported": "most", "contradicted": "most"}, rows).word == "supported"
    assert rules.decide(rule | {"supported": "half", "contradicted": "all"}, rows).word == "supported"
    assert rules.decide(rule, rows).evidence.count(f"] {SHARED['metric']}") == 3  # each part says what it is about
    assert rules.decide(rule | {"supported": 2 / 3, "contradicted": "all"}, rows).word == "supported"
    assert rules.decide(rule | {"supported": 0.7, "contradicted": 0.4}, rows).word == "inconclusive"
    for wrong in ("some", 0.0, 1.5):
        with pytest.raises(ScreproError, match="a share of its parts"):
            rules.check("X", rule | {"supported": wrong})


def test_a_mean_below_a_limit():
    test = {"kind": "below", "method": "ours", "limit": 0.5}
    assert word(table({("d", "ours"): 0.1}), **test) == "supported"
    assert word(table({("d", "ours"): 0.9}), **test) == "contradicted"


def test_far_below_a_limit_to_be_contradicted():
    test = {"kind": "above", "method": "ours", "limit": 0.5, "too_low": 0.0}
    assert word(table({("d", "ours"): 0.2}), **test) == "inconclusive"
    assert word(table({("d", "ours"): 0.0}), **test) == "contradicted"


def test_not_behind_is_enough_where_nothing_has_to_be_beaten():
    test = {"kind": "wins", "method": "ours", "against": [], "lost_to": ["rival"], "at_least": 1.0}
    assert word(table({("d", "ours"): 0.5, ("d", "rival"): 0.5}), **test) == "supported"
    behind = table({("d", "ours"): 0.3, ("d", "rival"): 0.5})
    assert word(behind, **test) == "contradicted"
    assert "ours not behind rival on 0, behind on 1 of 1" in rules.decide(SHARED | test, behind).evidence
    with pytest.raises(ScreproError, match="can be lost"):  # nobody it could be lost to: never contradicted
        word(behind, **(test | {"lost_to": [], "not_behind": ["rival"]}))


def of_claim(id, rows):
    (claim,) = [claim for claim in load_claims() if claim.id == id]
    return verdict(claim, rows)


def scored(scores, *, dataset="d", **more):
    """{(metric, variant, method): mean}, of which larger is better."""
    parts = [table({(dataset, m): v}, metric=metric, variant=variant) for (metric, variant, m), v in scores.items()]
    return pd.concat(parts, ignore_index=True).assign(**more)


DISTANCES = ("w2_exact", "mmd2_rbf_sum5", "frechet_distance")


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ((0.0, 0.1, -0.5), "supported"),
        ((0.0, -0.5, -0.5), "contradicted"),  # two of three do not count
        ((-0.5, -0.5, -0.5), "contradicted"),
    ],
)
def test_l7_counts_the_distances_on_which_the_rival_is_not_behind(gaps, expected):
    scores = {}
    for metric, gap in zip(DISTANCES, gaps, strict=True):
        scores |= {(metric, "unconditional, all genes", "scldm"): 1.0,
                   (metric, "unconditional, all genes", "scdiffusion_like"): 1.0 + gap}  # fmt: skip
    assert of_claim("L7", scored(scores)).word == expected


@pytest.mark.parametrize(
    ("correlation", "growth", "expected"),
    [
        (0.4, (1.0, 1.0, 1.0), "supported"),
        (1.0, (2.5, 2.5, 2.5), "supported"),
        (1.0, (1.0, 1.0, 1.5), "inconclusive"),  # one distance grows
        (1.1, (1.0, 0.9, 1.0), "contradicted"),  # neither the correlation falls nor a distance grows
    ],
)
def test_l19_is_contradicted_only_when_no_distance_grows(correlation, growth, expected):
    scores = {("pcc_nb_draw", "likelihood", "scldm"): 1.0, ("pcc_nb_draw", "likelihood", "gaussian"): correlation}
    for metric, factor in zip(DISTANCES, growth, strict=True):
        scores |= {(metric, "likelihood", "scldm"): 1.0, (metric, "likelihood", "gaussian"): factor}
    assert of_claim("L19", scored(scores)).word == expected


def test_a_limit_may_have_to_be_missed_by_more_than_the_error():
    """The three seeds jitter by a hundredth: the mean .999 is below 1 by less than its standard error."""
    near, far = table({("d", "ours"): 0.999}), table({("d", "ours"): 0.9})
    test = {"kind": "above", "method": "ours", "limit": 1.0}
    assert (word(near, **test), word(far, **test)) == ("contradicted", "contradicted")
    test["margin_both_ways"] = True
    assert (word(near, **test), word(far, **test)) == ("inconclusive", "contradicted")
    over = table({("d", "ours"): 1.001})
    assert word(over, **(test | {"kind": "below"})) == "inconclusive"


def test_p13_needs_dips_below_zero_by_more_than_their_error():
    metrics = ("de_overlap", "de_precision", "direction_agreement", "lfc_spearman", "pd_corr")
    rows = pd.concat([scored({(m, "shape", "dip"): 1.0 for m in metrics}, dataset=d) for d in "ab"], ignore_index=True)
    for values, expected in (((0.1, 0.2, 0.3), "supported"), ((-0.1, -0.2, -0.3), "contradicted"),
                             ((-0.3, 0.2, 0.0), "inconclusive")):  # fmt: skip
        shaped = rows.assign(value=rows["seed"].map(dict(enumerate(values))))
        assert of_claim("P13", shaped).word == expected


def test_a_statement_tested_in_part_cannot_be_supported():
    test = {"kind": "above", "method": "ours", "limit": 0.0, "untested": "that pigs fly"}
    decided = rules.decide(SHARED | test, table({("d", "ours"): 0.1}))
    assert decided.word == "inconclusive" and decided.evidence.startswith(
        "Supported in part. Not tested: that pigs fly."
    )
    assert len(decided.rows) == 3
    refuted = rules.decide(SHARED | test, table({("d", "ours"): -0.1}))
    assert refuted.word == "contradicted" and refuted.evidence.endswith("Not tested: that pigs fly.")
    assert word(table({("d", "other"): 0.1}), **test) == "not tested yet"


@pytest.mark.parametrize("id", ["P16", "P17"])
def test_p16_and_p17_test_half_of_what_they_state(id):
    (claim,) = [claim for claim in load_claims("perturbdiff") if claim.id == id]
    assert claim.test["untested"] and "not supported" in claim.rule


def test_p5_takes_a_set_of_the_paper_to_be_supported_and_any_set_to_be_contradicted():
    both = ("called_unchanged", "", "perturbdiff"), ("called_unchanged", "", "state_like")
    areas = ("de_auroc", "", "perturbdiff"), ("de_auroc", "", "state_like")
    ahead, behind = {both[0]: 0.8, both[1]: 0.5}, {both[0]: 0.5, both[1]: 0.8}
    apart = {areas[0]: 0.8, areas[1]: 0.5}
    for scores, dataset, expected in (
        (behind | apart, "papalexi_thp1", "contradicted"),
        (ahead | apart, "papalexi_thp1", "not tested yet"),  # AUROC there says nothing about the second half
        (ahead | apart, "perturbdiff_pbmc", "supported"),
        (ahead | {areas[0]: 0.5, areas[1]: 0.8}, "perturbdiff_pbmc", "contradicted"),
    ):
        assert of_claim("P5", scored(scores, dataset=dataset)).word == expected


def test_p8_waits_for_win_rates_on_tahoe():
    (claim,) = [claim for claim in load_claims("perturbdiff") if claim.id == "P8"]
    scores = {("win_rate", part["metric_variant"], "perturbdiff"): 0.8 for part in claim.test["parts"]}
    assert len(scores) == 10 and ("win_rate", "lfc_spearman", "perturbdiff") not in scores
    assert of_claim("P8", scored(scores, dataset="simulated_atlas")).word == "not testable here"
    assert of_claim("P8", scored(scores, dataset="perturbdiff_tahoe100m")).word == "supported"
    scores["win_rate", "pd_corr", "perturbdiff"] = 0.4
    assert of_claim("P8", scored(scores, dataset="perturbdiff_tahoe100m")).word == "contradicted"


def test_p17_waits_for_counts_of_the_papers_cells():
    def counted(genes, dataset):
        rows = scored({("non_zero_genes", "median", "cells"): genes}, dataset=dataset)
        return rows[rows["seed"] == 2].assign(seed=pd.NA)  # a count has no seed

    assert of_claim("P17", counted(300, "papalexi_thp1")).word == "not testable here"
    one = counted(100, "perturbdiff_pbmc")
    assert of_claim("P17", one).word == "not testable here"
    assert of_claim("P17", counted(140, "perturbdiff_pbmc")).word == "contradicted"
    both = pd.concat([one, counted(110, "perturbdiff_tahoe100m")], ignore_index=True)
    assert of_claim("P17", both).word == "inconclusive"


def test_sets_on_which_a_method_does_not_reach_the_floor_do_not_decide():
    ahead = scored({("score", "", "ours"): 0.8, ("score", "", "rival"): 0.5})
    reached = scored({("r2", "all", "ours"): 0.9, ("r2", "reference", "still"): 0.7})
    missed = scored({("r2", "all", "ours"): 0.6, ("r2", "reference", "still"): 0.7})
    floor = {"metric": "r2", "metric_variant": "all", "above": "still", "above_variant": "reference"}
    test = {"kind": "wins", "method": "ours", "against": "rival", "at_least": 1.0, "needs": floor}

    def decided(*rows):
        rules.check("X", SHARED | test)
        return rules.decide(SHARED | test, pd.concat(rows, ignore_index=True))

    assert decided(ahead, reached).word == "supported"
    below = decided(ahead, missed)
    assert below.word == "inconclusive" and "ours is not shown to be above still by r2: d (-0.1" in below.evidence
    assert "Without this condition: supported." in below.evidence
    assert "d (no row of still)" in decided(ahead, reached[reached["method"] == "ours"]).evidence
    lost = scored({("score", "", "ours"): 0.3, ("score", "", "rival"): 0.5}, dataset="e")
    both = decided(ahead, reached, lost, missed.assign(dataset="e"))
    assert both.word == "supported" and "still by r2: e (-0.1" in both.evidence  # the set that is lost is left out
    assert decided(reached).word == "not tested yet"


def test_a_floor_holds_for_all_parts_and_names_its_method():
    part = SHARED | {"kind": "above", "method": "gain", "limit": 0.0}
    floor = {"method": "ours", "metric": "r2", "above": "still"}
    test = {"kind": "all", "parts": [part], "needs": floor}
    rules.check("X", test)
    rows = scored({("score", "", "gain"): 0.5, ("r2", "", "ours"): 0.9, ("r2", "", "still"): 0.7})
    assert rules.decide(test, rows).word == "supported"
    swapped = rows.assign(method=rows["method"].replace({"ours": "still", "still": "ours"}))
    assert rules.decide(test, swapped).word == "inconclusive"
    for wrong in ({"metric": "r2", "above": "still"}, floor | {"aboev": 1}):
        with pytest.raises(ScreproError, match="`needs` of a test"):
            rules.check("X", test | {"needs": wrong})


@pytest.mark.parametrize(
    ("id", "method", "against", "r2_variants"),
    [
        ("P15", "paper_scale", "squares_only", ("", "")),
        ("P18", "perturbdiff", "set_size_1", ("", "")),
        ("P9", "perturbdiff_finetuned", "perturbdiff", ("100 %", "reference")),
    ],
)
def test_claims_about_parts_of_a_network_take_one_that_reaches_untreated_cells(id, method, against, r2_variants):
    (claim,) = [claim for claim in load_claims("perturbdiff") if claim.id == id]
    scores = {}
    for part in claim.test["parts"]:
        variant = part["metric_variant"]
        scores |= {(part["metric"], variant, method): 0.8, (part["metric"], variant, against): 0.5}
    own, floor = r2_variants
    for still, expected in ((0.7, "supported"), (0.9, "inconclusive")):
        r2 = {("r2_of_means", own, method): 0.8, ("r2_of_means", floor, "control_cells"): still}
        assert of_claim(id, scored(scores | r2, dataset="papalexi_thp1")).word == expected


def test_a_rule_with_a_wrong_field_is_refused():
    with pytest.raises(ScreproError, match="the test of a claim is one of"):
        rules.check("X", {"kind": "vote"})
    with pytest.raises(ScreproError, match="unknown \\['aginst'\\]"):
        rules.check("X", SHARED | {"kind": "wins", "method": "a", "against": "b", "aginst": "c", "at_least": 1.0})


@pytest.mark.parametrize("paper", ["scdiff", "scldm"])
def test_every_decidable_claim_names_its_page(paper):
    for claim in load_claims(paper):
        assert claim.test["kind"] == "none" or claim.test["page"], claim.id


def test_what_a_page_says():
    said = verdicts("scdiff", ["S1", "S12"]).data
    assert "**S1.**" in said and "*Rule:*" in said and "{verdict}`not testable here`" in said
    with pytest.raises(ScreproError, match="named by its id"):
        verdicts("scdiff", ["S99"])


def test_closer_to_a_target_is_better():
    """1-NN accuracy is best at a half: .45 beats .6 and .3, although it is neither the highest nor the lowest."""
    rows = table({("d", "ours"): 0.45, ("d", "low"): 0.3, ("d", "high"): 0.6}, direction="closer to 0.5")
    test = {"kind": "wins", "method": "ours", "at_least": 1.0}
    assert word(rows, **test, against=["low", "high"]) == "supported"
    assert word(rows, **(test | {"method": "high"}), against=["ours"]) == "contradicted"


def test_scores_on_validation_cells_do_not_count():
    """A default setting has the variant "{}", which is no variant at all once punctuation is left out."""
    import pandas as pd

    good = table({("d", "ours"): 0.8, ("d", "rival"): 0.5})
    tuning = table({("d", "ours"): 0.1, ("d", "rival"): 0.9}, variant="{}").assign(item="tuning", split="0, validation")
    rows = pd.concat([good, tuning], ignore_index=True)
    decided = rules.decide(SHARED | {"kind": "wins", "method": "ours", "against": "rival", "at_least": 1.0}, rows)
    assert decided.word == "supported" and "(3 pairs" in decided.evidence


def test_a_file_of_ones_own_decides_no_claim():
    rows = table({("kang_9k", "scdiff"): 0.9, ("kang_9k", "scgen"): 0.5}, metric="r2_change_top100")
    own = rows.assign(dataset="planted in mine.h5ad", value=1 - rows["value"])
    claim = Claim("X", "scdiff", "", "", "", "", SHARED | {
        "kind": "wins", "page": "perturbation", "metric": "r2_change_top100", "method": "scdiff", "against": "scgen",
        "at_least": 1.0,
    })  # fmt: skip
    both = pd.concat([rows, own], ignore_index=True)
    assert verdict(claim, both) == verdict(claim, rows) and verdict(claim, rows).word == "supported"
    assert verdict(claim, own).word == "not tested yet"
    said = verdicts("scdiff", ["S4"], both).data
    assert "Rows of planted in mine.h5ad are in the tables and do not count" in said
    assert "do not count" not in verdicts("scdiff", ["S4"], rows).data
