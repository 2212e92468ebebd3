"""A claim about one way of sampling is decided by rows of that way, and not by what tuning preferred."""

import pandas as pd

from screpro.records import load_claims, rules
from screpro.records.results import to_frame

TEST = {
    "kind": "wins", "method": "ours", "against": "rival", "at_least": 1.0, "metric": "score", "tiers": ["laptop"],
    "min_datasets": 1, "min_seeds": 3,
}  # fmt: skip


def table(values):
    """{(method, variant): mean}, three seeds that jitter in step."""
    return to_frame(
        {
            "paper": "scdiff", "item": "X-14" if variant else "Table 7", "dataset": "d", "split": "0",
            "method": method, "metric": "score", "metric_variant": variant, "n_real": None, "n_generated": None,
            "n_genes": None, "seed": seed, "tier": "laptop", "value": mean + 0.01 * seed, "unit": "",
            "direction": "higher", "run_id": "x",
        }
        for (method, variant), mean in values.items() for seed in range(3)
    )  # fmt: skip


def test_the_sampler_that_a_rule_names_decides():
    rows = table({("ours", ""): 0.9, ("ours", "ddim"): 0.2, ("ours", "one call"): 0.9, ("rival", ""): 0.5})
    chain = TEST | {"own_variants": ["ddim", "ancestral"]}
    rules.check("X", chain)
    assert rules.decide(TEST, rows).word == "supported"
    decided = rules.decide(chain, rows)
    assert decided.word == "contradicted" and "ours (ddim or ancestral)" in decided.evidence
    all_steps = pd.concat([rows, table({("ours", "ancestral"): 0.8})], ignore_index=True)
    assert rules.decide(chain, all_steps).word == "supported"  # the paper's own sampler, where it was run
    without = rows[rows["metric_variant"] != "ddim"]
    assert rules.decide(chain, without).word == "not tested yet"


def test_a_part_that_fails_is_not_saved_by_one_that_is_missing():
    rows = table({("ours", ""): 0.2, ("rival", ""): 0.5})
    missing = TEST | {"metric": "other"}
    both = {"kind": "all", "parts": [TEST, missing]}
    assert rules.decide(both, rows).word == "contradicted"
    assert rules.decide(both | {"contradicted": "all"}, rows).word == "not tested yet"
    assert rules.decide(both | {"supported": "half"}, rows).word == "not tested yet"  # the missing part may support it
    better = table({("ours", ""): 0.9, ("rival", ""): 0.5})
    assert rules.decide(both, better).word == "not tested yet"


def test_unseen_gene_perturbations_are_judged_by_the_chain():
    claim = next(claim for claim in load_claims("scdiff") if claim.id == "S8")
    assert {part["metric"] for part in claim.test["parts"]} == {"delta_pearson", "mse_top20_de"}
    assert all(part["own_variants"] == ["ddim", "ancestral"] for part in claim.test["parts"])
    assert "named after the first recording" in claim.rule and "spread over runs, is not tested" in claim.rule
