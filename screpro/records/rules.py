"""How rows decide a claim: the kinds of rule that ``claims.toml`` can name.

Every rule compares methods on each data set at its heaviest recorded tier, paired over splits and seeds, and calls a
difference real when it exceeds the standard error of the paired differences (``records.compare``). All share the
fields ``page`` (the notebook whose rows count), ``metric``, ``metric_variant``, ``tiers``, ``min_datasets``,
``min_seeds`` and, optionally, ``datasets`` (only these). Rows of the item "tuning", scores on validation cells, never
count.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from screpro.errors import ScreproError
from screpro.records.compare import Comparison, compare, heaviest, plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NOT_TESTED", "Verdict", "check", "decide"]

NOT_TESTED = "not tested yet"


@dataclass(frozen=True)
class Verdict:
    """``word`` is the verdict, ``evidence`` a sentence with the numbers, ``rows`` the result rows used."""

    word: str
    evidence: str
    rows: "pd.DataFrame | None" = field(default=None, repr=False, compare=False)


def decide(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """Apply the rule `test` to result rows."""
    return _KINDS[test["kind"]][0](test, results)


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
    unknown = [name for name in test if name not in ("kind", "page", *needed, *optional)]
    if missing or unknown:
        raise ScreproError(
            f"a test of kind {kind} has the fields {', '.join(needed)} and may have {', '.join(optional)}",
            got=f"{claim}: missing {missing}, unknown {unknown}",
            fix="correct claims.toml",
        )
    for name in ("supported", "contradicted"):
        share = test.get(name, "any")
        if not (isinstance(share, float) and 0 < share <= 1) and share not in _SHARES:
            raise ScreproError(
                f"`{name}` of a test is a share of its parts", got=f"{claim}: {test[name]!r}",
                fix=f"one of {', '.join(_SHARES)}, or a number such as 0.8",
            )  # fmt: skip
    for part in test.get("parts", []):
        check(claim, part)


# --- what every rule starts from --------------------------------------------------------------------------


def _rows(test: Mapping[str, Any], results: "pd.DataFrame", variant: str) -> "pd.DataFrame":
    rows = results[(results["metric"].map(plain) == plain(test["metric"])) & (results["item"] != "tuning")]
    rows = rows[rows["metric_variant"].map(plain) == plain(variant)]
    if "datasets" in test:
        rows = rows[rows["dataset"].isin(test["datasets"])]
    return heaviest(rows, test["tiers"])


def _compared(
    test: Mapping[str, Any], rows: "pd.DataFrame", method: str, against: Sequence[str]
) -> dict[str, dict[str, Comparison]]:
    """Per data set the comparison of `method` with each of `against`; only sets with all of them and enough seeds."""
    found: dict[str, dict[str, Comparison]] = {}
    for other in against:
        pair = rows[rows["method"].map(plain).isin((plain(method), plain(other)))]
        for comparison in compare(pair, method, other):
            if comparison.n_seeds >= test["min_seeds"]:
                found.setdefault(comparison.dataset, {})[other] = comparison
    return {dataset: each for dataset, each in found.items() if len(each) == len(against)}


def _used(rows: "pd.DataFrame", datasets: Iterable[str], methods: Iterable[str]) -> "pd.DataFrame":
    names = [plain(method) for method in methods]
    return rows[rows["dataset"].isin(list(datasets)) & rows["method"].map(plain).isin(names)]


def _too_few(test: Mapping[str, Any], n: int, rows: "pd.DataFrame") -> Verdict:
    return Verdict(
        NOT_TESTED,
        f"{n} of the {test['min_datasets']} data sets it takes have at least {test['min_seeds']} seeds of every "
        f"method at tier {' or '.join(test['tiers'])}",
        rows,
    )


def _gap(c: Comparison, other: str = "") -> str:
    return f"{other and f'{other} '}{c.difference:+.3f} ± {c.standard_error:.3f}"


def _where(each: Mapping[str, Comparison]) -> str:
    some = next(iter(each.values()))
    return f"({some.n_pairs} pairs, {some.tier})"


def _needed(share: float, n: int) -> int:
    return max(1, math.ceil(share * n - 1e-9))


# --- the kinds --------------------------------------------------------------------------------------------


def _wins(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """`method` is ahead of every one of `against` on a share `at_least` of the data sets.

    A set is won when that holds and no method of `not_behind` or `lost_to` is ahead; it is lost when one of
    `against` or `lost_to` is ahead. With `metric_variants` both have to hold under every variant. The claim is
    supported when `at_least` of the sets are won, contradicted when `lost_at_least` (by default the same share) are
    lost or, with `no_win_contradicts`, when none is won.
    """
    import pandas as pd

    against = [test["against"]] if isinstance(test["against"], str) else list(test["against"])
    not_behind, lost_to = list(test.get("not_behind", [])), list(test.get("lost_to", []))
    everyone = [*against, *not_behind, *lost_to]
    variants = test.get("metric_variants", [test.get("metric_variant", "")])
    tables = [_rows(test, results, variant) for variant in variants]
    found = [_compared(test, rows, test["method"], everyone) for rows in tables]
    sets = [dataset for dataset in found[0] if all(dataset in each for each in found)]
    used = pd.concat([_used(rows, sets, (test["method"], *everyone)) for rows in tables], ignore_index=True)
    if len(sets) < test["min_datasets"]:
        return _too_few(test, len(sets), used)

    def outcome(each: Mapping[str, Comparison]) -> str:
        if any(each[other].outcome == "loss" for other in (*against, *lost_to)):
            return "loss"
        ahead = all(each[other].outcome == "win" for other in against)
        return "win" if ahead and all(each[other].outcome != "loss" for other in not_behind) else "tie"

    outcomes = {dataset: {outcome(each[dataset]) for each in found} for dataset in sets}
    wins = sum(each == {"win"} for each in outcomes.values())
    losses = sum(each == {"loss"} for each in outcomes.values())
    needed = _needed(test["at_least"], len(sets))
    lost = losses >= _needed(test.get("lost_at_least", test["at_least"]), len(sets))
    lost |= bool(test.get("no_win_contradicts")) and wins == 0
    word = "inconclusive"
    if (wins >= needed) != lost:
        word = "contradicted" if lost else "supported"
    sentences = []
    for dataset in sets:
        parts = []
        for variant, each in zip(variants, found, strict=True):
            own = each[dataset]
            gaps = ", ".join(_gap(own[other], other if len(everyone) > 1 else "") for other in everyone)
            parts.append(f"{variant + ': ' if len(variants) > 1 else ''}{gaps}")
        sentences.append(f"{dataset} {'; '.join(parts)} {_where(found[0][dataset])}")
    evidence = (
        f"{test['method']} {'ahead of' if against else 'not behind'} {', '.join(against or not_behind)} on {wins}, "
        f"behind on {losses} of {len(sets)} data sets "
        f"({needed} decide): {'; '.join(sentences)}"
    )
    return Verdict(word, evidence, used)


def _gap_of(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """`method` leads `against` by at least `by` on every data set, and `against` scores below `other_below`.

    Contradicted when on every set the lead does not exceed its standard error.
    """
    rows = _rows(test, results, test.get("metric_variant", ""))
    found = _compared(test, rows, test["method"], [test["against"]])
    used = rows[
        rows["dataset"].isin(found) & rows["method"].map(plain).isin(map(plain, (test["method"], test["against"])))
    ]
    if len(found) < test["min_datasets"]:
        return _too_few(test, len(found), used)
    gaps = {dataset: each[test["against"]] for dataset, each in found.items()}
    other = used[used["method"].map(plain) == plain(test["against"])].groupby("dataset")["value"].mean()
    limit = test.get("other_below", math.inf)
    word = "inconclusive"
    if all(gap.difference >= test["by"] and other[dataset] < limit for dataset, gap in gaps.items()):
        word = "supported"
    elif all(gap.difference <= gap.standard_error for gap in gaps.values()):
        word = "contradicted"
    said = "; ".join(
        f"{dataset} {_gap(gap)}, {test['against']} at {other[dataset]:.3f} {_where(found[dataset])}"
        for dataset, gap in gaps.items()
    )
    return Verdict(word, f"{test['metric']}, {test['method']} over {test['against']}: {said}", used)


def _within(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """None of `methods` differs from `base` by more than `limit`.

    Supported when every absolute mean difference is at most the limit, contradicted when one exceeds it by more
    than its standard error.
    """
    rows = _rows(test, results, test.get("metric_variant", ""))
    found = {}
    for method in test["methods"]:
        for dataset, each in _compared(test, rows, method, [test["base"]]).items():
            found.setdefault(dataset, {})[method] = each[test["base"]]
    found = {dataset: each for dataset, each in found.items() if len(each) == len(test["methods"])}
    used = rows[rows["dataset"].isin(found)]
    if len(found) < test["min_datasets"]:
        return _too_few(test, len(found), used)
    gaps = [gap for each in found.values() for gap in each.values()]
    word = "inconclusive"
    if all(abs(gap.difference) <= test["limit"] for gap in gaps):
        word = "supported"
    elif any(abs(gap.difference) - gap.standard_error > test["limit"] for gap in gaps):
        word = "contradicted"
    said = "; ".join(
        f"{dataset} {', '.join(_gap(gap, method) for method, gap in each.items())} {_where(each)}"
        for dataset, each in found.items()
    )
    return Verdict(word, f"change of {test['metric']} against {test['base']}: {said}", used)


def _ratio(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """`method` takes at most `at_most` times what `against` takes, on every data set.

    Contradicted when on every set it takes `too_much` times as much or more.
    """
    rows = _rows(test, results, test.get("metric_variant", ""))
    found = _compared(test, rows, test["method"], [test["against"]])
    used = rows[
        rows["dataset"].isin(found) & rows["method"].map(plain).isin(map(plain, (test["method"], test["against"])))
    ]
    if len(found) < test["min_datasets"]:
        return _too_few(test, len(found), used)
    mean = used.assign(method=used["method"].map(plain)).groupby(["dataset", "method"])["value"].mean()
    ratios = {d: float(mean[d, plain(test["method"])] / mean[d, plain(test["against"])]) for d in found}
    word = "inconclusive"
    if all(ratio <= test["at_most"] for ratio in ratios.values()):
        word = "supported"
    elif all(ratio >= test["too_much"] for ratio in ratios.values()):
        word = "contradicted"
    said = "; ".join(f"{dataset} {ratio:.2f} {_where(found[dataset])}" for dataset, ratio in ratios.items())
    return Verdict(word, f"{test['metric']}, {test['method']} / {test['against']}: {said}", used)


def _above(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """The mean of `method` exceeds `limit` by more than its standard error on every data set.

    Contradicted when on every set the mean is at most `too_low`, by default the limit.
    """
    return _beyond(test, results, 1, test.get("too_low", test["limit"]))


def _below(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """The mean of `method` is below `limit` by more than its standard error on every data set.

    Contradicted when on every set the mean is at least the limit.
    """
    return _beyond(test, results, -1, test["limit"])


def _beyond(test: Mapping[str, Any], results: "pd.DataFrame", sign: int, reversed_at: float) -> Verdict:
    rows = _rows(test, results, test.get("metric_variant", ""))
    used = rows[rows["method"].map(plain) == plain(test["method"])]
    found = {}
    for dataset, own in used.drop_duplicates(["dataset", "split", "seed"], keep="last").groupby("dataset"):
        if own["seed"].nunique() >= test["min_seeds"]:
            values = own["value"]
            found[dataset] = (values.mean(), values.std(ddof=1) / math.sqrt(len(values)), len(values))
    if len(found) < test["min_datasets"]:
        return _too_few(test, len(found), used)
    word = "inconclusive"
    if all(sign * (mean - test["limit"]) > error for mean, error, _ in found.values()):
        word = "supported"
    elif all(sign * (mean - reversed_at) <= 0 for mean, _, _ in found.values()):
        word = "contradicted"
    said = "; ".join(f"{d} {mean:+.3f} ± {error:.3f} ({n} runs)" for d, (mean, error, n) in found.items())
    return Verdict(word, f"{test['metric']}, {test['method']}: {said}", used)


def _all(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """Every part is supported (`supported`: "most" or "half" are); contradicted when any part is (or "most", "all").

    "most" is more than half; a number is the least share itself.
    """
    import pandas as pd

    parts = [decide(part, results) for part in test["parts"]]
    words = [part.word for part in parts]
    word = "inconclusive"
    if NOT_TESTED in words:
        word = NOT_TESTED
    else:
        yes, no = (words.count(w) / len(words) for w in ("supported", "contradicted"))
        if yes >= _share(test.get("supported", "all")):
            word = "supported"
        elif no >= _share(test.get("contradicted", "any")):
            word = "contradicted"
    rows = [part.rows for part in parts if part.rows is not None]
    named = zip(test["parts"], parts, strict=True)
    said = [p.evidence if p.word == NOT_TESTED else f"[{p.word}] {_score(part)}{p.evidence}" for part, p in named]
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

#: kind -> (how it is decided, fields it needs, fields it may have)
_KINDS: dict[str, tuple[Callable[[Mapping[str, Any], "pd.DataFrame"], Verdict], tuple, tuple]] = {
    "wins": (
        _wins,
        ("method", "against", "at_least", *_SHARED),
        ("metric_variants", "not_behind", "lost_to", "lost_at_least", "no_win_contradicts", *_MAYBE),
    ),
    "gap": (_gap_of, ("method", "against", "by", *_SHARED), ("other_below", *_MAYBE)),
    "within": (_within, ("methods", "base", "limit", *_SHARED), _MAYBE),
    "ratio": (_ratio, ("method", "against", "at_most", "too_much", *_SHARED), _MAYBE),
    "above": (_above, ("method", "limit", *_SHARED), ("too_low", *_MAYBE)),
    "below": (_below, ("method", "limit", *_SHARED), _MAYBE),
    "all": (_all, ("parts",), ("supported", "contradicted")),
    "none": (_none, (), ()),
}
