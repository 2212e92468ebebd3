"""How rows decide a claim: the kinds of rule that ``claims.toml`` can name.

Every rule compares methods on each data set at its heaviest recorded tier, paired over splits and seeds, and calls a
difference real when it exceeds the standard error of the paired differences, which is taken over splits where there
are several (``records.compare``). All share the fields ``page`` (the notebook whose rows count), ``metric``,
``metric_variant``, ``tiers``, ``min_datasets``, ``min_seeds`` and, optionally, ``datasets`` (only these). Rows of the
item "tuning", scores on validation cells, never count.

A rule of the kind ``wins`` may have ``own_variants``: the rows of `method` are then those of these variants (of several
measured ones the last), while the others' are of ``metric_variant``. It names a way of sampling, which the others do
not have.

Any rule may have two more fields. ``needs`` is a floor: data sets decide only where a method has reached it (`_needs`).
``untested`` names the part of the statement that the rule does not test, so that it cannot be supported as a whole.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from screpro.errors import ScreproError
from screpro.records.compare import Comparison, compare, heaviest, plain, standard_error
from screpro.records.rules_rows import (
    NOT_TESTED,
    Verdict,
    at_least,
    compared,
    gap_said,
    rows_of,
    rows_used,
    too_few,
    where_said,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NOT_TESTED", "Verdict", "check", "decide"]


def decide(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """Apply the rule `test` to result rows."""
    apply = _KINDS[test["kind"]][0]
    decided = apply(test, results)
    if "needs" in test and decided.word != NOT_TESTED:
        decided = _needs(test, results, decided)
    if "untested" in test and decided.word != NOT_TESTED:
        rest = f"Not tested: {test['untested']}."
        if decided.word == "supported":  # one part that fails refutes a statement, one that holds does not prove it
            return replace(decided, word="inconclusive", evidence=f"Supported in part. {rest} {decided.evidence}")
        return replace(decided, evidence=f"{decided.evidence}. {rest}")
    return decided


def check(claim: str, test: Mapping[str, Any]) -> None:
    """Refuse a rule that names an unknown kind, or lacks or invents a field.

    Raises
    ------
    ScreproError
        With the id of the claim.
    """
    kind = test.get("kind")
    if kind not in _KINDS:
        raise ScreproError(
            f"the test of a claim is one of {', '.join(_KINDS)}", got=f"{claim}: {kind!r}", fix="correct claims.toml"
        )
    _, needed, optional = _KINDS[kind]
    missing = [name for name in needed if name not in test]
    unknown = [name for name in test if name not in ("kind", "page", *_ANY, *needed, *optional)]
    if missing or unknown:
        raise ScreproError(
            f"a test of kind {kind} has the fields {', '.join(needed)} and may have {', '.join((*optional, *_ANY))}",
            got=f"{claim}: missing {missing}, unknown {unknown}",
            fix="correct claims.toml",
        )
    if kind == "wins" and not [*test["against"], *test.get("lost_to", [])]:
        raise ScreproError(
            "a test of kind wins can be lost", got=f"{claim}: `against` is empty and there is no `lost_to`",
            fix="name in `lost_to` whom the method may not be behind",
        )  # fmt: skip
    if need := test.get("needs"):
        known = ("method", "metric", "metric_variant", "above", "above_variant")
        missing = [name for name in ("metric", "above") if name not in need]
        missing += ["method"] if "method" not in {**test, **need} else []
        if odd := [f"missing {m}" for m in missing] + [f"unknown {name}" for name in need if name not in known]:
            raise ScreproError(
                f"`needs` of a test has the fields {', '.join(known)}; the variants may be left out",
                got=f"{claim}: {', '.join(odd)}", fix="correct claims.toml",
            )  # fmt: skip
    for name in ("supported", "contradicted"):
        share = test.get(name, "any")
        if not (isinstance(share, float) and 0 < share <= 1) and share not in _SHARES:
            raise ScreproError(
                f"`{name}` of a test is a share of its parts", got=f"{claim}: {test[name]!r}",
                fix=f"one of {', '.join(_SHARES)}, or a number such as 0.8",
            )  # fmt: skip
    for part in test.get("parts", []):
        check(claim, part)


def _needs(test: Mapping[str, Any], results: "pd.DataFrame", decided: Verdict) -> Verdict:
    """The verdict of the data sets on which a method is ahead of a floor by more than the standard error.

    ``needs`` names the ``method`` (by default that of the rule), the ``metric`` and, as ``above``, the floor; with
    ``metric_variant`` and ``above_variant`` where the two stand under other variants. A set without a row of the floor
    does not decide either. If too few are left the claim is inconclusive, and the evidence says what the rows would
    have read.
    """
    import pandas as pd

    need = test["needs"]
    method, floor = need.get("method", test.get("method")), need["above"]
    rows = results[(results["metric"].map(plain) == plain(need["metric"])) & (results["item"] != "tuning")]
    sides = ((method, need.get("metric_variant", "")), (floor, need.get("above_variant", "")))
    pair = pd.concat(
        rows[(rows["method"].map(plain) == plain(name)) & (rows["metric_variant"].map(plain) == plain(variant))]
        for name, variant in sides
    ).assign(metric_variant="")
    found = {each.dataset: each for each in compare(heaviest(pair), method, floor)}
    below = {}
    for dataset in dict.fromkeys(decided.rows["dataset"]):
        if dataset not in found:
            below[dataset] = f"no row of {floor}"
        elif found[dataset].outcome != "win":
            below[dataset] = gap_said(found[dataset])
    if not below:
        return decided
    said = "; ".join(f"{dataset} ({why})" for dataset, why in below.items())
    said = f"Not decided where {method} is not shown to be above {floor} by {need['metric']}: {said}."
    rest = _KINDS[test["kind"]][0](test, results[~results["dataset"].isin(list(below))])
    if rest.word != NOT_TESTED:
        return replace(rest, evidence=f"{said} {rest.evidence}")
    return replace(
        decided, word="inconclusive", evidence=f"{said} Without this condition: {decided.word}. {decided.evidence}"
    )


# --- the kinds --------------------------------------------------------------------------------------------


def _wins(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """`method` is ahead of every one of `against` on a share `at_least` of the data sets.

    A set is won when that holds and no method of `not_behind` or `lost_to` is ahead; it is lost when one of
    `against` or `lost_to` is ahead. Where not being behind is enough, `against` is empty and `lost_to` names whom.
    With `metric_variants` both have to hold under every variant. The claim is supported when `at_least` of the sets
    are won, contradicted when `lost_at_least` (by default the same share) are lost or, with `no_win_contradicts`, when
    none is won.
    """
    import pandas as pd

    against = [test["against"]] if isinstance(test["against"], str) else list(test["against"])
    not_behind, lost_to = list(test.get("not_behind", [])), list(test.get("lost_to", []))
    everyone = [*against, *not_behind, *lost_to]
    variants = test.get("metric_variants", [test.get("metric_variant", "")])
    tables = [rows_of(test, results, variant) for variant in variants]
    found = [compared(test, rows, test["method"], everyone) for rows in tables]
    sets = [dataset for dataset in found[0] if all(dataset in each for each in found)]
    used = pd.concat([rows_used(rows, sets, (test["method"], *everyone)) for rows in tables], ignore_index=True)
    if len(sets) < test["min_datasets"]:
        return too_few(test, len(sets), used)

    def outcome(each: Mapping[str, Comparison]) -> str:
        if any(each[other].outcome == "loss" for other in (*against, *lost_to)):
            return "loss"
        ahead = all(each[other].outcome == "win" for other in against)
        return "win" if ahead and all(each[other].outcome != "loss" for other in not_behind) else "tie"

    outcomes = {dataset: {outcome(each[dataset]) for each in found} for dataset in sets}
    wins = sum(each == {"win"} for each in outcomes.values())
    losses = sum(each == {"loss"} for each in outcomes.values())
    needed = at_least(test["at_least"], len(sets))
    lost = losses >= at_least(test.get("lost_at_least", test["at_least"]), len(sets))
    lost |= bool(test.get("no_win_contradicts")) and wins == 0
    word = "inconclusive"
    if (wins >= needed) != lost:
        word = "contradicted" if lost else "supported"
    sentences = []
    for dataset in sets:
        parts = []
        for variant, each in zip(variants, found, strict=True):
            own = each[dataset]
            gaps = ", ".join(gap_said(own[other], other if len(everyone) > 1 else "") for other in everyone)
            parts.append(f"{variant + ': ' if len(variants) > 1 else ''}{gaps}")
        sentences.append(f"{dataset} {'; '.join(parts)} {where_said(found[0][dataset])}")
    own = " or ".join(test.get("own_variants", []))
    evidence = (
        f"{test['method']}{own and f' ({own})'} {'ahead of' if against else 'not behind'} "
        f"{', '.join(against or lost_to)} on {wins}, behind on {losses} of {len(sets)} data sets "
        f"({needed} decide): {'; '.join(sentences)}"
    )
    return Verdict(word, evidence, used)


def _gap_of(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """`method` leads `against` by at least `by` on every data set, and `against` scores below `other_below`.

    Contradicted when on every set the lead does not exceed its standard error.
    """
    rows = rows_of(test, results, test.get("metric_variant", ""))
    found = compared(test, rows, test["method"], [test["against"]])
    used = rows[
        rows["dataset"].isin(found) & rows["method"].map(plain).isin(map(plain, (test["method"], test["against"])))
    ]
    if len(found) < test["min_datasets"]:
        return too_few(test, len(found), used)
    gaps = {dataset: each[test["against"]] for dataset, each in found.items()}
    other = used[used["method"].map(plain) == plain(test["against"])].groupby("dataset")["value"].mean()
    limit = test.get("other_below", math.inf)
    word = "inconclusive"
    if all(gap.difference >= test["by"] and other[dataset] < limit for dataset, gap in gaps.items()):
        word = "supported"
    elif all(gap.difference <= gap.standard_error for gap in gaps.values()):
        word = "contradicted"
    said = "; ".join(
        f"{dataset} {gap_said(gap)}, {test['against']} at {other[dataset]:.3f} {where_said(found[dataset])}"
        for dataset, gap in gaps.items()
    )
    return Verdict(word, f"{test['metric']}, {test['method']} over {test['against']}: {said}", used)


def _within(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """None of `methods` differs from `base` by more than `limit`.

    Supported when every absolute mean difference is at most the limit, contradicted when one exceeds it by more
    than its standard error.
    """
    rows = rows_of(test, results, test.get("metric_variant", ""))
    found = {}
    for method in test["methods"]:
        for dataset, each in compared(test, rows, method, [test["base"]]).items():
            found.setdefault(dataset, {})[method] = each[test["base"]]
    found = {dataset: each for dataset, each in found.items() if len(each) == len(test["methods"])}
    used = rows[rows["dataset"].isin(found)]
    if len(found) < test["min_datasets"]:
        return too_few(test, len(found), used)
    gaps = [gap for each in found.values() for gap in each.values()]
    word = "inconclusive"
    if all(abs(gap.difference) <= test["limit"] for gap in gaps):
        word = "supported"
    elif any(abs(gap.difference) - gap.standard_error > test["limit"] for gap in gaps):
        word = "contradicted"
    said = "; ".join(
        f"{dataset} {', '.join(gap_said(gap, method) for method, gap in each.items())} {where_said(each)}"
        for dataset, each in found.items()
    )
    return Verdict(word, f"change of {test['metric']} against {test['base']}: {said}", used)


def _ratio(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """`method` takes at most `at_most` times what `against` takes, on every data set.

    Contradicted when on every set it takes `too_much` times as much or more.
    """
    rows = rows_of(test, results, test.get("metric_variant", ""))
    found = compared(test, rows, test["method"], [test["against"]])
    used = rows[
        rows["dataset"].isin(found) & rows["method"].map(plain).isin(map(plain, (test["method"], test["against"])))
    ]
    if len(found) < test["min_datasets"]:
        return too_few(test, len(found), used)
    mean = used.assign(method=used["method"].map(plain)).groupby(["dataset", "method"])["value"].mean()
    ratios = {d: float(mean[d, plain(test["method"])] / mean[d, plain(test["against"])]) for d in found}
    word = "inconclusive"
    if all(ratio <= test["at_most"] for ratio in ratios.values()):
        word = "supported"
    elif all(ratio >= test["too_much"] for ratio in ratios.values()):
        word = "contradicted"
    said = "; ".join(f"{dataset} {ratio:.2f} {where_said(found[dataset])}" for dataset, ratio in ratios.items())
    return Verdict(word, f"{test['metric']}, {test['method']} / {test['against']}: {said}", used)


def _above(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """The mean of `method` exceeds `limit` by more than its standard error on every data set.

    Contradicted when on every set the mean is at most `too_low`, by default the limit; with `margin_both_ways` when
    it is below that by more than its standard error.
    """
    return _beyond(test, results, 1, test.get("too_low", test["limit"]))


def _below(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """The mean of `method` is below `limit` by more than its standard error on every data set.

    Contradicted when on every set the mean is at least the limit; with `margin_both_ways` when it is above the limit
    by more than its standard error.
    """
    return _beyond(test, results, -1, test["limit"])


def _beyond(test: Mapping[str, Any], results: "pd.DataFrame", sign: int, reversed_at: float) -> Verdict:
    rows = rows_of(test, results, test.get("metric_variant", ""))
    used = rows[rows["method"].map(plain) == plain(test["method"])]
    found = {}
    for dataset, own in used.drop_duplicates(["dataset", "split", "seed"], keep="last").groupby("dataset"):
        if own["seed"].nunique() >= test["min_seeds"]:
            found[dataset] = (own["value"].mean(), standard_error(own["value"], own["split"]), len(own))
    if len(found) < test["min_datasets"]:
        return too_few(test, len(found), used)
    past = [sign * (reversed_at - mean) for mean, _, _ in found.values()]
    errors = [error for _, error, _ in found.values()]
    word = "inconclusive"
    if all(sign * (mean - test["limit"]) > error for mean, error, _ in found.values()):
        word = "supported"
    elif test.get("margin_both_ways"):
        word = "contradicted" if all(p > error for p, error in zip(past, errors, strict=True)) else "inconclusive"
    elif all(p >= 0 for p in past):
        word = "contradicted"
    said = "; ".join(f"{d} {mean:+.3f} ± {error:.3f} ({n} runs)" for d, (mean, error, n) in found.items())
    return Verdict(word, f"{test['metric']}, {test['method']}: {said}", used)


def _all(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """Every part is supported (`supported`: "most" or "half" are); contradicted when any part is (or "most", "all").

    "most" is more than half; a number is the least share itself. A part that is not tested yet leaves the whole not
    tested, unless it is contradicted whatever that part will say.
    """
    import pandas as pd

    parts = [decide(part, results) for part in test["parts"]]
    words = [part.word for part in parts]
    yes, no, open_ = (words.count(w) / len(words) for w in ("supported", "contradicted", NOT_TESTED))
    word = "inconclusive"
    if no >= _share(test.get("contradicted", "any")) and yes + open_ < _share(test.get("supported", "all")):
        word = "contradicted"  # whatever the parts that are not tested yet will say
    elif open_:
        word = NOT_TESTED
    elif yes >= _share(test.get("supported", "all")):
        word = "supported"
    rows = [part.rows for part in parts if part.rows is not None]
    named = zip(test["parts"], parts, strict=True)
    said = [f"[{p.word}] {_score(part)}{p.evidence}" for part, p in named]
    return Verdict(word, ". ".join(said), pd.concat(rows, ignore_index=True) if rows else None)


def _score(part: Mapping[str, Any]) -> str:
    """Which score a part is about, in front of its evidence; a rule of rules has none."""
    if "metric" not in part:
        return ""
    variant = part.get("metric_variant", "")
    return f"{part['metric']}{f' ({variant})' if variant else ''}: "


def _share(given: str | float) -> float:
    """Least share of the parts that a word or a number stands for."""
    return _SHARES[given] if isinstance(given, str) else given - 1e-9


#: least share of the parts of a rule that "any", "half", "most" and "all" of them are
_SHARES = {"any": 1e-9, "half": 0.5, "most": 0.5 + 1e-9, "all": 1.0}


def _none(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    return Verdict(NOT_TESTED, "no experiment")


_SHARED = ("metric", "tiers", "min_datasets", "min_seeds")
_MAYBE = ("metric_variant", "datasets")
_ANY = ("needs", "untested")

#: kind -> (how it is decided, fields it needs, fields it may have)
_KINDS: dict[str, tuple[Callable[[Mapping[str, Any], "pd.DataFrame"], Verdict], tuple, tuple]] = {
    "wins": (
        _wins,
        ("method", "against", "at_least", *_SHARED),
        ("metric_variants", "not_behind", "lost_to", "lost_at_least", "no_win_contradicts", "own_variants", *_MAYBE),
    ),
    "gap": (_gap_of, ("method", "against", "by", *_SHARED), ("other_below", *_MAYBE)),
    "within": (_within, ("methods", "base", "limit", *_SHARED), _MAYBE),
    "ratio": (_ratio, ("method", "against", "at_most", "too_much", *_SHARED), _MAYBE),
    "above": (_above, ("method", "limit", *_SHARED), ("too_low", "margin_both_ways", *_MAYBE)),
    "below": (_below, ("method", "limit", *_SHARED), ("margin_both_ways", *_MAYBE)),
    "all": (_all, ("parts",), ("supported", "contradicted")),
    "none": (_none, (), ()),
}
