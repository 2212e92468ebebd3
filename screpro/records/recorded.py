"""What rows were made with: the settings of the recorded runs behind a page, and what tuning chose in them."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from screpro.records import manifest, parameters, results, sources
from screpro.records.tables import cell

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Markdown
    from pandas.io.formats.style import Styler

__all__ = ["recorded_before", "runs_table", "tuning_table"]

FEW = 4  # methods of a run that are named one by one

#: parameters that have a column of their own
_COLUMNS = ("tier", "dataset", "methods")


def runs_table(notebook: str, rows: "pd.DataFrame", *, titles: Mapping[str, str] | None = None) -> "Markdown":
    """The recorded runs that rows come from, a line each: data, tier, what was set, methods, day and commit.

    A parameter is named where its value differs from the default that the page has now. Runs of which no row is left,
    because all were recorded again, are not listed, nor is the run at hand: its sheet and its footer show it.

    Parameters
    ----------
    notebook
        ``"<paper>/<name>"``.
    rows
        The rows that the page shows.
    titles
        Method -> what it is called.
    """
    from IPython.display import Markdown

    titles, lines = titles or {}, []
    for file in sorted((results.results_dir() / notebook).glob("*/manifest.json")):
        content = manifest.read(file)
        own = rows[rows["run_id"] == content["run_id"]]
        if len(own):
            methods = [titles.get(name, name) for name in dict.fromkeys(own["method"])]
            commit = (content["commit"] or "no commit")[:9] + (" with local changes" if content["dirty"] else "")
            line = [
                ", ".join(f"`{name}`" for name in dict.fromkeys(own["dataset"])),
                f"`{content['tier']}`",
                ", ".join(f"`{name}={parameters.to_text(value)}`" for name, value in changed(content).items()) or "–",
                ", ".join(methods) if len(methods) <= FEW else f"{len(methods)}",
                f"{content['started'][:10]}, {commit}",
            ]
            lines.append("| " + " | ".join(map(cell, line)) + " |")
    if not lines:
        return Markdown("No recorded run stands behind these rows.")
    head = "| data | tier | set otherwise than the page's defaults | methods and references | recorded |"
    return Markdown("\n".join([head, "|---|---|---|---|---|", *lines]))


def recorded_before(notebook: str, rows: "pd.DataFrame", when: str) -> list[str]:
    """Data sets of `rows` with rows of a recorded run that started before `when`, an ISO time in UTC."""
    manifests = [manifest.read(file) for file in (results.results_dir() / notebook).glob("*/manifest.json")]
    early = {content["run_id"] for content in manifests if content["started"] < when}
    return sorted(set(rows.loc[rows["run_id"].isin(early), "dataset"]))


def changed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a manifest that differ from the defaults of its page, tier, data and methods aside.

    Of a parameter that the page no longer has, None counts as the default.
    """
    path = sources.names().get(content["notebook"])
    defaults = parameters.read(path).defaults if path else {}
    own = content["parameters"]
    return {name: own[name] for name in own if name not in _COLUMNS and own[name] != defaults.get(name)}


def tuning_table(rows: "pd.DataFrame", *, titles: Mapping[str, str] | None = None, digits: int = 3) -> "Styler | None":
    """Every setting that tuning tried, with its score by data set, the chosen one in bold; None if nothing was tuned.

    Columns name the score where runs chose by different ones. Of a setting the options are named that not all settings
    of the method share; one without any is "default".

    Parameters
    ----------
    rows
        Result rows; those of item "tuning" carry their options as JSON in ``metric_variant``.
    titles
        Method -> what it is called.
    digits
        Of the scores.
    """
    titles = titles or {}
    tried = rows[rows["item"] == "tuning"]
    if tried.empty:
        return None
    names = {}
    for method, variants in tried.groupby("method")["metric_variant"]:
        options = {variant: json.loads(variant) for variant in dict.fromkeys(variants)}
        for variant, own in options.items():
            told = {k: v for k, v in own.items() if any(k not in o or o[k] != v for o in options.values())}
            names[method, variant] = ", ".join(f"{k} {v}" for k, v in told.items()) or "default"
    keys = list(zip(tried["method"], tried["metric_variant"], strict=True))
    merit = tried["value"] * tried["direction"].map({"higher": 1.0, "lower": -1.0})
    best = merit == merit.groupby([tried[c] for c in ("dataset", "tier", "method", "metric")]).transform("max")
    tried = tried.assign(method=[titles.get(m, m) for m, _ in keys], setting=[names[key] for key in keys], best=best)
    tried["metric"] = tried["metric"].str.replace("_", " ")
    columns = ["dataset", *(c for c in ("tier", "metric") if len(set(tried[c])) > 1)]
    shape = {"index": ["method", "setting"], "columns": columns, "sort": False}
    chosen = tried.pivot_table(**shape, values="best", aggfunc=lambda of: any(of))
    bold = chosen.map(lambda one: "font-weight: bold" if one == 1 else "")
    return (
        tried.pivot_table(**shape, values="value")
        .style.format(f"{{:.{digits}f}}", na_rep="–")
        .apply(lambda _: bold, axis=None)
    )
