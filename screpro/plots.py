"""Figures that read the same everywhere: on white, colour-blind safe, wide enough for a phone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["PALETTE", "confusion_figure", "score_figure", "use_style"]

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
"""Okabe and Ito's colours, told apart with every kind of colour vision; black and grey last."""


def use_style() -> None:
    """Settings of every figure in the book: opaque white face (dark mode keeps its labels readable), 9 pt text."""
    import matplotlib as mpl

    mpl.rcParams.update(
        {
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": 110,
            "savefig.bbox": "tight",
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": mpl.cycler(color=PALETTE),
            "legend.frameon": False,
        }
    )


LEGIBLE = 24
"""Types up to which a confusion matrix has a number in every entry."""


def confusion_figure(counts: np.ndarray, names: Sequence[str]) -> "Figure":
    """Confusion matrix as shares of the true type, the number of cells beside each row.

    Up to `LEGIBLE` types the figure grows with them and every entry has its number; with more, both would be unreadable
    on any screen, so that the figure keeps its size and names shrink.

    Parameters
    ----------
    counts
        (K, K) cells by true (row) and predicted (column) type.
    names
        Names of the K types. Types without true or predicted cells are left out.
    """
    import matplotlib.pyplot as plt

    shown = np.flatnonzero(counts.sum(0) + counts.sum(1))
    counts, names = counts[np.ix_(shown, shown)], [names[k] for k in shown]
    total = counts.sum(1)
    share = counts / np.maximum(total, 1)[:, None]
    size = 1.8 + 0.33 * min(len(names), LEGIBLE)
    figure, axes = plt.subplots(figsize=(size + 1.6, size))
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True) if len(names) <= LEGIBLE else ():
        dark = share[row, column] > 0.55
        axes.text(column, row, counts[row, column], ha="center", va="center", color="white" if dark else "black")
    text = {"fontsize": plt.rcParams["font.size"] * LEGIBLE / max(len(names), LEGIBLE)}
    slope = {"rotation": 45, "ha": "right"} if len(names) <= LEGIBLE else {"rotation": 90}
    axes.set_xticks(range(len(names)), names, **slope, **text)
    axes.set_yticks(range(len(names)), [f"{name} ({n})" for name, n in zip(names, total, strict=True)], **text)
    axes.set_xlabel("predicted type")
    axes.set_ylabel("true type (cells)")
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true type")
    return figure


def score_figure(
    rows: "pd.DataFrame", *, label: str, order: Sequence[str], titles: dict[str, str], highlight: str
) -> "Figure":
    """One dot per measurement and a bar at the mean, methods below each other, one panel per data set.

    Parameters
    ----------
    rows
        Result rows of one metric: ``dataset, method, value``.
    label
        Name of the score on the axis.
    order
        Methods from top to bottom; others are left out.
    titles
        Printed name of each method.
    highlight
        The method drawn in another colour and with another marker.
    """
    import matplotlib.pyplot as plt

    sets = list(dict.fromkeys(rows["dataset"]))
    columns = min(2, len(sets))
    lines = -(-len(sets) // columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(3.2 * columns + 1.2, (0.26 * len(order) + 0.8) * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, name in zip(panels.flat, sets, strict=False):
        own = rows[rows["dataset"] == name]
        for height, method in enumerate(order):
            values = own.loc[own["method"] == method, "value"].to_numpy()
            mine = method == highlight
            colour, marker = (PALETTE[1], "D") if mine else (PALETTE[0], "o")
            axes.plot(values, np.full(len(values), height), marker, color=colour, ms=4, alpha=0.6, mew=0)
            if len(values):
                axes.plot([values.mean()] * 2, [height - 0.35, height + 0.35], color=colour, lw=2.5)
        axes.set_title(name)
        axes.set_yticks(range(len(order)), [titles.get(method, method) for method in order])
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    panels.flat[0].invert_yaxis()
    for axes in panels[-1]:
        axes.set_xlabel(label)
    for axes in panels.flat[len(sets) :]:
        axes.remove()
    return figure
