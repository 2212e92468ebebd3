"""Claims of the papers as tests: a rule fixed before the run, a verdict that follows from rows."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from screpro.errors import ScreproError
from screpro.records import rules
from screpro.records.compare import own_file
from screpro.records.paper import paper_dir
from screpro.records.results import load_results

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Markdown

__all__ = ["NOT_TESTABLE", "WORDS", "Claim", "load_claims", "verdict", "verdicts"]

NOT_TESTABLE = "not testable here"
WORDS = ("supported", "contradicted", "inconclusive", rules.NOT_TESTED, NOT_TESTABLE)


@dataclass(frozen=True)
class Claim:
    """A falsifiable statement.

    ``item`` is where the paper makes it, ``experiment`` the smallest test of it, ``rule`` the decision rule in
    words and ``test`` the same for the machine; ``why`` says what is missing where it cannot be tested. With a
    ``why`` a test may still wait for rows, of a data set that could not be had.
    """

    id: str
    paper: str
    statement: str
    item: str
    experiment: str
    rule: str
    test: Mapping[str, Any]
    why: str = ""


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
        rules.check(claim.id, claim.test)
        if paper is None or claim.paper == paper or claim.paper.startswith(f"{paper}-"):
            claims.append(claim)
    return claims


def verdict(claim: Claim, results: "pd.DataFrame | None" = None) -> rules.Verdict:
    """Decide a claim by its rule.

    Parameters
    ----------
    claim
        From `load_claims`.
    results
        Result rows; by default every recorded row of the page that tests the claim (``test.page``). Rows of a user's
        own file do not count: the rules were fixed for the data sets of the book.
    """
    decided = rules.Verdict(rules.NOT_TESTED, "no experiment")
    if claim.test["kind"] != "none":
        if results is None:
            results = load_results(claim.paper.split("-")[0], claim.test["page"])
        decided = rules.decide(claim.test, results[~_of_own_files(results) & ~_pooled(results)])
    return rules.Verdict(NOT_TESTABLE, claim.why) if claim.why and decided.word == rules.NOT_TESTED else decided


def _pooled(results: "pd.DataFrame") -> "pd.Series":
    """Rows of scLDM's embeddings that were learned from other studies: rules are older, and know one study alone."""
    from screpro.tasks.embedding_pool import POOLED

    return (results["paper"] == "scldm") & results["method"].astype(str).str.endswith(POOLED)


def _of_own_files(results: "pd.DataFrame") -> "pd.Series":
    return results["dataset"].map(own_file).astype(bool)


def verdicts(paper: str, ids: Sequence[str], results: "pd.DataFrame | None" = None) -> "Markdown":
    """What a page says about its claims: statement, rule, verdict and evidence of each, ready to be shown.

    Parameters
    ----------
    paper, ids
        Which claims, e.g. ``"scdiff", ["S1", "S2"]``.
    results
        As in `verdict`.

    Raises
    ------
    ScreproError
        The paper has no claim of that id.
    """
    from IPython.display import Markdown

    known = {claim.id: claim for claim in load_claims(paper)}
    if unknown := [id for id in ids if id not in known]:
        raise ScreproError("a claim is named by its id", got=", ".join(unknown), fix=f"choose among {', '.join(known)}")
    parts = []
    for claim in (known[id] for id in ids):
        decided = verdict(claim, results)
        parts.append(
            f"**{claim.id}.** {claim.statement} ({claim.item})\n\n"
            f"{{verdict}}`{decided.word}` {decided.evidence}\n\n*Rule:* {claim.rule}"
        )
    if results is not None and (own := results.loc[_of_own_files(results), "dataset"].unique()).size:
        parts.append(
            f"Rows of {', '.join(own)} are in the tables and do not count here: claims are about cells of the book."
        )
    return Markdown("\n\n".join(parts))
