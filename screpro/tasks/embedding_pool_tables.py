"""The scored study itself beside other studies: whose cells trained what the embeddings page compares."""

from collections.abc import Mapping, Sequence

import pandas as pd

from screpro.records.compare import compare
from screpro.records.tables import spread
from screpro.tasks.embedding_pool import apart, called

__all__ = ["beside", "origins"]

_WORDS = {"win": "better", "loss": "worse", "tie": "not told apart"}
_NONE = "not run"
_SIDES = ("study itself", "other studies", "difference")


def origins(rows: pd.DataFrame) -> pd.DataFrame:
    """Pools of the runs among `rows`: a line per scored data set and tier, empty where none has a pool.

    Parameters
    ----------
    rows
        Result rows of `compare_embeddings`, with and without a pool.

    Returns
    -------
    pandas.DataFrame
        What each set of the pool gave, the genes that all share, and training cells and genes of the panel beside those
        of the run on the study itself, as text.
    """
    own, pooled = apart(rows)
    lines = {}
    for key, found in pooled.groupby(["dataset", "tier"], sort=False):
        given = found[found["metric"] == "training_cells"]
        told = [f"{n:.0f} of {name}" for name, n in zip(given["metric_variant"], given["value"], strict=True)]
        line = {"pool": ", ".join(told), "shared genes": _sizes(given, "n_genes")}
        itself = own[(own["dataset"] == key[0]) & (own["tier"] == key[1])]
        for part, where in ((found, "other studies"), (itself, "study itself")):
            fitted = part[part["metric"] == "fit_embed"]
            line |= {f"training cells, {where}": _sizes(fitted, "n_real"), f"panel, {where}": _sizes(fitted, "n_genes")}
        lines[key] = line
    if not lines:
        return pd.DataFrame()
    index = pd.MultiIndex.from_tuples(list(lines), names=["scored set", "tier"])
    return pd.DataFrame(list(lines.values()), index=index)


def beside(
    rows: pd.DataFrame, metric: str, variants: Mapping[str, str], order: Sequence[str], titles: Mapping[str, str]
) -> pd.DataFrame:
    """A score of every method trained on the scored study itself and on other studies, where a pool was run.

    Parameters
    ----------
    rows
        Result rows, with and without a pool.
    metric
        Which score; the scored cells and the folds are the same on both sides, the panel of genes is not.
    variants
        Variant of the rows -> what the table calls it.
    order, titles
        Methods in the order of the table, and what it calls them.

    Returns
    -------
    pandas.DataFrame
        A line per scored set, tier and method. For each variant mean ± standard deviation over seeds of both sides, and
        the mean difference (other studies minus study itself, positive where other studies are better). Of two or more
        pairs of seeds the difference has a word as well: "not told apart" within its standard error.
    """
    own, pooled = apart(rows)
    lines = {}
    for (dataset, tier), found in pooled[pooled["metric"] == metric].groupby(["dataset", "tier"], sort=False):
        here = rows[(rows["metric"] == metric) & (rows["dataset"] == dataset) & (rows["tier"] == tier)]
        itself = own[own.index.isin(here.index)]
        for method in [name for name in order if (found["method"] == name).any()]:
            line = {}
            for variant, said in variants.items():
                one, two = (
                    part.loc[(part["method"] == method) & (part["metric_variant"] == variant), "value"]
                    for part in (itself, found)
                )
                gaps = compare(here[here["metric_variant"] == variant], called(method, True), method)
                if one.empty and two.empty:  # a method without this variant
                    line |= {(said, side): "" for side in _SIDES}
                    continue
                line |= dict(zip([(said, side) for side in _SIDES], (_said(one), _said(two), "–"), strict=True))
                if gaps:
                    word = f" ({_WORDS[gaps[0].outcome]})" if gaps[0].n_pairs > 1 else ""
                    line[said, _SIDES[-1]] = f"{gaps[0].difference:+.3f}{word}"
            lines[dataset, tier, titles.get(method, method)] = line
    if not lines:
        return pd.DataFrame()
    index = pd.MultiIndex.from_tuples(list(lines), names=["scored set", "tier", "method"])
    columns = pd.MultiIndex.from_product([variants.values(), _SIDES])
    return pd.DataFrame(list(lines.values()), index=index, columns=columns)


def _said(values: pd.Series) -> str:
    return spread(float(values.mean()), float(values.std()), 3) if len(values) else _NONE


def _sizes(rows: pd.DataFrame, column: str) -> str:
    """The size in these rows; smallest and largest where they differ, as of runs recorded at different times."""
    found = sorted(set(rows[column].dropna().astype(int)))
    return _NONE if not found else str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
