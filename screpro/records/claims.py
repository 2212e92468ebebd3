"""Claims of the papers as tests: a rule fixed before the run, a verdict that follows from rows."""

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from screpro.errors import ScreproError
from screpro.records.compare import Comparison, compare, heaviest, plain
from screpro.records.paper import paper_dir
from screpro.records.results import load_results

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NOT_TESTABLE", "NOT_TESTED", "WORDS", "Claim", "Verdict", "load_claims", "verdict"]

NOT_TESTED = "not tested yet"
NOT_TESTABLE = "not testable here"
WORDS = ("supported", "contradicted", "inconclusive", NOT_TESTED, NOT_TESTABLE)


@dataclass(frozen=True)
class Claim:
    """A falsifiable statement.

    ``item`` is where the paper makes it, ``experiment`` the smallest test of it, ``rule`` the decision rule in
    words and ``test`` the same for the machine; ``why`` says what is missing where it cannot be tested.
    """

    id: str
    paper: str
    statement: str
    item: str
    experiment: str
    rule: str
    test: Mapping[str, Any]
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    """``word`` is one of `WORDS`, ``evidence`` a sentence with the numbers, ``rows`` the result rows used."""

    word: str
    evidence: str
    rows: "pd.DataFrame | None" = field(default=None, repr=False, compare=False)


def load_claims(paper: str | None = None) -> list[Claim]:
    """The claims of one paper (its later version included), or of all three, in the order of the ledger.

    Raises
    ------
    ScreproError
        ``claims.toml`` is of another version, or a claim lacks a field or a known kind of test.
    """
    content = tomllib.loads((paper_dir() / "claims.toml").read_text(encoding="utf-8"))
    if content.get("schema") != "screpro.claims/1":
        raise ScreproError(
            "claims.toml has schema screpro.claims/1", got=repr(content.get("schema")), fix="update screpro"
        )
    claims = []
    for entry in content["claim"]:
        try:
            claim = Claim(**entry)
        except TypeError as error:
            raise ScreproError(
                "a claim has exactly the fields of screpro.records.Claim",
                got=f"{entry.get('id')}: {error}",
                fix="correct claims.toml",
            ) from None
        if claim.test.get("kind") not in _KINDS:
            raise ScreproError(
                f"the test of a claim is one of {', '.join(_KINDS)}",
                got=f"{claim.id}: {claim.test.get('kind')!r}",
                fix="correct claims.toml",
            )
        if paper is None or claim.paper == paper or claim.paper.startswith(f"{paper}-"):
            claims.append(claim)
    return claims


def verdict(claim: Claim, results: "pd.DataFrame | None" = None) -> Verdict:
    """Decide a claim by its rule.

    Parameters
    ----------
    claim
        From `load_claims`.
    results
        Result rows; by default every recorded row of the claim's paper.
    """
    if claim.test["kind"] == "none":
        return Verdict(NOT_TESTABLE, claim.why) if claim.why else Verdict(NOT_TESTED, "no experiment yet")
    if results is None:
        results = load_results(claim.paper.split("-")[0])
    return _KINDS[claim.test["kind"]](claim.test, results)


def _wins(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    """`method` beats `against` by more than the standard error on a share of the data sets.

    Fields: ``method, against, metric, tiers, at_least`` (share of data sets), ``min_datasets, min_seeds``;
    optionally ``metric_variant`` and ``datasets`` (only these).
    """
    rows = results[results["metric"].map(plain) == plain(test["metric"])]
    if "metric_variant" in test:
        rows = rows[rows["metric_variant"].map(plain) == plain(test["metric_variant"])]
    if "datasets" in test:
        rows = rows[rows["dataset"].isin(test["datasets"])]
    rows = heaviest(rows, test["tiers"])
    rows = rows[rows["method"].map(plain).isin((plain(test["method"]), plain(test["against"])))]
    found = compare(rows, test["method"], test["against"])
    enough = [c for c in found if c.n_seeds >= test["min_seeds"]]
    used = rows[rows["dataset"].isin([c.dataset for c in enough])]
    if len(enough) < test["min_datasets"]:
        return Verdict(
            NOT_TESTED,
            f"{len(enough)} of the {test['min_datasets']} data sets it takes have at least "
            f"{test['min_seeds']} seeds of both methods at tier {' or '.join(test['tiers'])}",
            used,
        )
    needed = math.ceil(test["at_least"] * len(enough) - 1e-9)
    wins = sum(c.outcome == "win" for c in enough)
    losses = sum(c.outcome == "loss" for c in enough)
    word = "inconclusive"
    if (wins >= needed) != (losses >= needed):
        word = "supported" if wins >= needed else "contradicted"
    evidence = (
        f"{test['method']} ahead of {test['against']} on {wins}, behind on {losses} of {len(enough)} data sets "
        f"({needed} decide): {'; '.join(map(_gap, enough))}"
    )
    return Verdict(word, evidence, used)


def _gap(c: Comparison) -> str:
    return f"{c.dataset} {c.difference:+.3f} ± {c.standard_error:.3f} ({c.n_pairs} pairs, {c.tier})"


def _none(test: Mapping[str, Any], results: "pd.DataFrame") -> Verdict:
    return Verdict(NOT_TESTED, "no experiment yet")


#: kind of test -> how it is decided
_KINDS: dict[str, Callable[[Mapping[str, Any], "pd.DataFrame"], Verdict]] = {"wins": _wins, "none": _none}
