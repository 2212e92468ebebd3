"""Tables: what a paper prints, and the same beside what came out here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from screpro.errors import ScreproError
from screpro.records.compare import Comparison, compare, measured_once, merit, own_file, plain
from screpro.records.paper import paper_values
from screpro.records.results import TIERS
from screpro.records.sources import nearest

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Markdown
    from pandas.io.formats.style import Styler

__all__ = ["Table", "facts_table", "paper_table", "side_by_side", "spread", "tried_table"]

KINDS = ("model", "baseline", "trivial", "ceiling")
SEEDS = 3  # of a comparison that a verdict counts, as in the rules of claims


def spread(mean: float, deviation: float | None, digits: int = 3) -> str:
    """``mean ± deviation``; the mean alone where there is no deviation."""
    import math

    if deviation is None or math.isnan(deviation):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def paper_table(paper: str, item: str) -> "pd.DataFrame":
    """A table of a paper as printed: a row per method, a column per data set, ``mean ± spread`` in the cells.

    Where the table has several settings or metrics, they are further levels of rows or columns.
    """
    values = paper_values(paper, item)
    values["cell"] = [_printed(m, s) for m, s in zip(values["mean"], values["spread"], strict=True)]
    rows = ["method"] if len(set(values["setting"])) == 1 else ["setting", "method"]
    columns = ["dataset"] if len(set(values["metric"])) == 1 else ["metric", "dataset"]
    return values.pivot_table(index=rows, columns=columns, values="cell", aggfunc="first", sort=False).fillna("")


def _printed(mean: float, deviation: float) -> str:
    if mean != mean:
        return "NaN"
    return f"{mean:.10g}" if deviation != deviation else f"{mean:.10g} ± {deviation:.10g}"


@dataclass(frozen=True)
class Row:
    """One method: cells of the paper's data sets, cells of ours, and what the comparison says."""

    method: str
    kind: str
    paper: tuple[str, ...]
    ours: tuple[str, ...]
    verdict: str


@dataclass(frozen=True)
class Table:
    """Paper beside reproduced: HTML in a notebook, and the same cells as a DataFrame by `to_frame`."""

    caption: str
    paper_heads: tuple[str, ...]
    our_heads: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    comparisons: dict[str, list[Comparison]] = field(default_factory=dict, repr=False)

    def to_frame(self) -> "pd.DataFrame":
        """Rows by method; columns in the groups ``paper`` and ``reproduced`` after the verdict."""
        import pandas as pd

        # the verdict stands before the numbers: with many data sets the table scrolls sideways on a phone
        columns = [("", "kind"), ("", "verdict")]
        columns += [("paper", head) for head in self.paper_heads]
        columns += [("reproduced", head) for head in self.our_heads]
        cells = [[row.kind, row.verdict, *row.paper, *row.ours] for row in self.rows]
        index = pd.Index([row.method for row in self.rows], name="method")
        return pd.DataFrame(cells, index=index, columns=pd.MultiIndex.from_tuples(columns))

    def _repr_html_(self) -> str:
        groups = [("paper", len(self.paper_heads)), ("reproduced", max(1, len(self.our_heads)))]
        top = [f'<th scope="col" rowspan="2">{name}</th>' for name in ("method", "kind", "verdict")]
        top += [f'<th scope="colgroup" colspan="{n}">{name}</th>' for name, n in groups if n]
        heads = [*self.paper_heads, *(self.our_heads or ("not run",))]
        body = []
        for row in self.rows:
            cells = [f'<th scope="row">{escape(row.method)}</th>']
            cells += [f"<td>{row.kind}</td>", f'<td class="verdict">{escape(row.verdict)}</td>']
            cells += [f'<td class="paper">{escape(cell)}</td>' for cell in row.paper]
            cells += [f'<td class="reproduced">{escape(cell)}</td>' for cell in row.ours or ("not run",)]
            body.append(f'<tr class="{row.kind}">{"".join(cells)}</tr>')
        second = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
        note = f'<p class="screpro-note">{escape(self.note)}</p>' if self.note else ""
        return (
            '<div class="screpro-table" tabindex="0" role="region" '
            f'aria-label="{escape(self.caption, quote=True)}">'
            f"<table><caption>{escape(self.caption)}</caption>"
            f"<thead><tr>{''.join(top)}</tr><tr>{second}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table>{note}</div>"
        )


def side_by_side(
    paper: str,
    item: str | None,
    results: "pd.DataFrame",
    *,
    metric: str,
    subject: str,
    metric_variant: str | None = None,
    paper_metric: str | None = None,
    setting: str | None = None,
    same: Mapping[str, str] | None = None,
    methods: Mapping[str, str] | None = None,
    kinds: Mapping[str, str] | None = None,
    titles: Mapping[str, str] | None = None,
    caption: str | None = None,
    digits: int = 3,
) -> Table:
    """One table of a paper beside result rows.

    Parameters
    ----------
    paper, item
        Whose table, e.g. ``"scdiff", "Table 1"``; no item for a metric that the paper does not print.
    results
        Result rows, live or recorded, of any metrics and tiers.
    metric, metric_variant
        Which of our metrics to show; case, spaces and punctuation do not matter.
    subject
        Our name of the paper's own method; every verdict is about it against the method of the row.
    paper_metric, setting
        Which of the paper's, where the table has several.
    same
        Our data set -> the paper's data set, where it is the same one. Any other is labelled a stand-in, or a user's
        own file, which stands in a column and decides nothing about the paper.
    methods
        Our method -> the paper's name of it, where they differ by more than case and punctuation.
    kinds
        Method, by our name or the paper's -> ``baseline``, ``trivial`` or ``ceiling``; the subject is
        ``model``, others ``baseline``. A ceiling has no verdict: nobody is meant to be ahead of it.
    titles
        Our name of a method -> how to print it, where the paper does not name it.
    caption
        Above the table; by default paper, item and metric.
    digits
        Decimals of our means and standard deviations.

    Returns
    -------
    Table
        Paper and reproduced values in separate groups of columns, never mixed; ``not run`` where there is
        none. If every set of ours is a stand-in, a column per set of the paper has nothing to stand beside: one
        column gives the range of the paper's values (``paper_table`` shows each). Reproduced cells are the mean ±
        standard deviation over splits and seeds, whose numbers the column head states.

    Raises
    ------
    ScreproError
        The paper has no such table, metric or setting, a kind is unknown, or the results hold several variants
        of the metric and none was chosen.
    """
    printed = _printed_part(paper, item, paper_metric, setting) if item else paper_values(paper).iloc[:0]
    same, methods, kinds, titles = same or {}, methods or {}, kinds or {}, titles or {}
    if odd := set(kinds.values()) - set(KINDS):
        raise ScreproError(f"a kind is one of {', '.join(KINDS)}", got=", ".join(odd), fix="choose one of them")
    chosen = results[results["metric"].map(plain) == plain(metric)]
    if metric_variant is not None:
        chosen = chosen[chosen["metric_variant"].map(plain) == plain(metric_variant)]
    chosen = measured_once(chosen)
    sets = list(chosen[["dataset", "tier"]].drop_duplicates().itertuples(index=False, name=None))
    paper_sets = list(dict.fromkeys(printed["dataset"]))
    all_stand_ins = bool(sets) and len(paper_sets) > 1 and not any(d in same for d, _ in sets)
    translated = {plain(ours): plain(theirs) for ours, theirs in methods.items()}
    kind_of = {"chancelevel": "trivial"} | {plain(name): kind for name, kind in kinds.items()}
    in_paper = {plain(m): m for m in dict.fromkeys(printed["method"])}
    ours = {plain(m): m for m in dict.fromkeys(chosen["method"])}

    # methods of the paper in its order, each with ours beside it, then what only we ran
    lines: list[tuple[str | None, str | None]] = []
    for theirs in in_paper:
        match = next((m for m in ours if translated.get(m, m) == theirs), None)
        lines.append((theirs, match))
    lines += [(None, m) for m in ours if m not in {o for _, o in lines}]

    rows, comparisons = [], {}
    subject_in_paper = translated.get(plain(subject), plain(subject))
    for theirs, mine in lines:
        name = in_paper[theirs] if theirs else titles.get(ours[mine], ours[mine])
        is_subject = plain(subject) == mine or theirs == subject_in_paper
        against = [] if mine is None or is_subject else compare(chosen, subject, ours[mine])
        comparisons[name] = against
        paper_gaps = _paper_gaps(printed, in_paper.get(subject_in_paper), in_paper.get(theirs))
        kind = "model" if is_subject else kind_of.get(mine) or kind_of.get(theirs) or "baseline"
        rows.append(
            Row(
                method=name,
                kind=kind,
                paper=(_paper_range(printed, in_paper.get(theirs)),)
                if all_stand_ins
                else tuple(_paper_cell(printed, in_paper.get(theirs), d) for d in paper_sets),
                ours=tuple(_our_cell(chosen, ours.get(mine), d, t, digits) for d, t in sets),
                verdict="" if is_subject or kind == "ceiling" else _verdict(subject, paper_gaps, against),
            )
        )
    order = {kind: i for i, kind in enumerate(KINDS)}
    rows.sort(key=lambda row: order[row.kind])  # stable: the paper's order within a kind
    heads = tuple(_head(chosen, d, t, same) for d, t in sets)
    shown = f"{metric} ({metric_variant})" if metric_variant else metric
    theirs = ", ".join(dict.fromkeys(printed["metric"]))
    return Table(
        caption=caption or (f"{item}: {theirs} in the paper, {shown} here" if item else shown),
        paper_heads=(f"lowest to highest of {len(paper_sets)} sets",) if all_stand_ins else tuple(paper_sets),
        our_heads=heads,
        rows=tuple(rows),
        note=(
            "Reproduced: mean ± standard deviation over splits and seeds. A method is ahead on a data set "
            "when the mean difference exceeds the standard error of the paired differences, taken over splits where "
            f"there are several. Verdicts count data sets run with at least {SEEDS} seeds at a tier above ci."
        ),
        comparisons=comparisons,
    )


def _printed_part(paper: str, item: str, metric: str | None, setting: str | None) -> "pd.DataFrame":
    printed = paper_values(paper, item)
    for column, wanted in (("metric", metric), ("setting", setting)):
        known = list(dict.fromkeys(printed[column]))
        if wanted is None and len(known) > 1:
            raise ScreproError(
                f"{item} has several values of {column}",
                got="none chosen",
                fix=f"pass one of: {'; '.join(known)}",
            )
        if wanted is not None and wanted not in known:
            raise ScreproError(
                f"{column} of {item} is one of: {'; '.join(known)}",
                got=wanted + nearest(wanted, known),
                fix="choose one of them",
            )
        printed = printed if wanted is None else printed[printed[column] == wanted]
    return printed


def _paper_cell(printed: "pd.DataFrame", method: str | None, dataset: str) -> str:
    found = printed[(printed["method"] == method) & (printed["dataset"] == dataset)]
    return "–" if found.empty else _printed(found["mean"].iloc[0], found["spread"].iloc[0])


def _paper_range(printed: "pd.DataFrame", method: str | None) -> str:
    means = printed.loc[printed["method"] == method, "mean"].dropna()
    return "–" if means.empty else f"{means.min():.4g} to {means.max():.4g}"


def _our_cell(chosen: "pd.DataFrame", method: str | None, dataset: str, tier: str, digits: int) -> str:
    found = chosen[(chosen["method"] == method) & (chosen["dataset"] == dataset) & (chosen["tier"] == tier)]
    if found.empty:
        return "not run"
    deviation = float(found["value"].std(ddof=1)) if len(found) > 1 else None
    return spread(float(found["value"].mean()), deviation, digits)


def _head(chosen: "pd.DataFrame", dataset: str, tier: str, same: Mapping[str, str]) -> str:
    found = chosen[(chosen["dataset"] == dataset) & (chosen["tier"] == tier)]
    splits, seeds = found["split"].nunique(), max(1, found["seed"].nunique())
    name = f"{same[dataset]} ({dataset})" if dataset in same else f"stand-in: {dataset}"
    if own_file(dataset):
        name = f"own file: {dataset}"
    counts = f"{splits} split{'s' * (splits > 1)}, {seeds} seed{'s' * (seeds > 1)}"
    return f"{name} · {tier} · {counts}"


def _paper_gaps(printed: "pd.DataFrame", subject: str | None, other: str | None) -> Sequence[float]:
    """Differences in the paper, positive where the subject is better; empty when either is absent."""
    table = printed.pivot_table(index="dataset", columns="method", values="mean", sort=False)
    if printed.empty or subject not in table or other not in table:
        return []
    direction = printed["direction"].iloc[0]
    return list((merit(table[subject], direction) - merit(table[other], direction)).dropna())


def _verdict(subject: str, paper_gaps: Sequence[float], here: Sequence[Comparison]) -> str:
    if not here:
        return "not run"
    words = {"win": "ahead", "loss": "behind", "tie": "not told apart"}
    own = "; ".join(f"{words[c.outcome]} on {c.dataset}" for c in here if own_file(c.dataset))
    here = [c for c in here if not own_file(c.dataset)]
    if not here:
        return f"{subject} {own}"
    if counted := _counted(here):
        said = _agreement(subject, paper_gaps, counted)
    else:
        said = "ci run only" if all(c.tier == "ci" for c in here) else f"fewer than {SEEDS} seeds"
    return f"{said}; {own}" if own else said


def _counted(here: Sequence[Comparison]) -> list[Comparison]:
    """What a verdict counts: of every data set the heaviest tier above ci with enough seeds.

    A ci run shows that the page works; it has one seed, whose pair is a tie whatever it shows.
    """
    enough = [c for c in here if c.tier != "ci" and c.n_seeds >= SEEDS]
    return list({c.dataset: c for c in sorted(enough, key=lambda c: TIERS.index(c.tier))}.values())


def _agreement(subject: str, paper_gaps: Sequence[float], here: Sequence[Comparison]) -> str:
    wins = sum(c.outcome == "win" for c in here)
    losses = sum(c.outcome == "loss" for c in here)
    counted = f"{subject} ahead on {wins}, behind on {losses} of {len(here)} here"
    if not paper_gaps:
        return counted
    ahead = sum(gap > 0 for gap in paper_gaps)
    counted += f"; ahead on {ahead} of {len(paper_gaps)} in the paper"
    behind = sum(gap < 0 for gap in paper_gaps)
    their_side = (ahead > behind) - (ahead < behind)
    our_side = (3 * wins >= 2 * len(here)) - (3 * losses >= 2 * len(here))
    if our_side == 0 or their_side == 0:
        return f"unclear: {counted}"
    return f"{'agrees' if our_side == their_side else 'disagrees'}: {counted}"


def facts_table(facts: Mapping[str, object]) -> "Markdown":
    """What a run is, a line for each of `facts`: markdown in which names of a user's own may hold a bar."""
    from IPython.display import Markdown

    lines = (f"| {name} | {value} |" for name, value in ((cell(k), cell(v)) for k, v in facts.items()))
    return Markdown("| | this run |\n|---|---|\n" + "\n".join(lines))


def cell(value: object) -> str:
    """Text for a cell of a markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def tried_table(rows: "pd.DataFrame", option: str, *, metric: str, titles: Mapping[str, str]) -> "Styler | None":
    """What tuning found with each value of one option, by data set and method, the smallest in bold; None untuned.

    Parameters
    ----------
    rows
        Result rows; those of item "tuning" carry their options as JSON in ``metric_variant``.
    option
        The option, such as "learning_rate".
    metric
        What was compared; smaller is better.
    titles
        Method -> what it is called.
    """
    tried = rows[(rows["item"] == "tuning") & (rows["metric"] == metric)]
    if tried.empty:
        return None
    name = option.replace("_", " ")
    values = tried["metric_variant"].map(lambda variant: json.loads(variant)[option])
    table = tried.assign(**{name: values}).pivot_table(
        index=["dataset", "method"], columns=name, values="value", sort=False
    )
    table = table.sort_index(axis=1).rename(columns="{:g}".format).rename(index=titles)
    return table.style.format("{:.1f}", na_rep="–").highlight_min(axis=1, props="font-weight: bold")
