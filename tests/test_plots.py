"""Figures: what is drawn, and that colours can be told apart."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from screpro import plots

mpl.use("Agg")


def luminance(colour: str) -> float:
    """WCAG relative luminance."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_two_first_colours_stand_out_from_white_and_from_each_other():
    first, second = plots.PALETTE[:2]
    assert all(1.05 / (luminance(colour) + 0.05) > 3 for colour in (first, second))  # WCAG: graphics 3:1
    assert len(set(plots.PALETTE)) == len(plots.PALETTE)


def test_figures_are_opaque():
    with mpl.rc_context():
        plots.use_style()
        assert mpl.rcParams["savefig.facecolor"] == "white" and mpl.rcParams["figure.facecolor"] == "white"


def test_a_confusion_of_many_types_keeps_its_size():
    few, many = (plots.confusion_figure(np.eye(k, dtype=int), [f"type {i}" for i in range(k)]) for k in (24, 60))
    assert few.get_size_inches().tolist() == many.get_size_inches().tolist()
    assert len(few.axes[0].texts) == 24 and not many.axes[0].texts
    sizes = [figure.axes[0].get_yticklabels()[0].get_fontsize() for figure in (few, many)]
    np.testing.assert_allclose(sizes[0] / sizes[1], 60 / 24)


def test_confusion_shows_shares_and_leaves_out_empty_types():
    figure = plots.confusion_figure(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]]), ["a", "never seen", "c"])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (4)", "never seen (0)", "c (4)"]
    np.testing.assert_allclose(axes.images[0].get_array()[0], [0.75, 0.25, 0])
    smaller = plots.confusion_figure(np.array([[3, 0, 0], [0, 0, 0], [2, 0, 2]]), ["a", "never seen", "c"])
    assert smaller.axes[0].images[0].get_array().shape == (2, 2)


@pytest.mark.parametrize("sets", [1, 2, 3])
def test_scores_share_one_axis(sets):
    rows = pd.DataFrame(
        [(f"set {s}", m, 0.1 * s + 0.2 * k) for s in range(sets) for m in ("scdiff", "knn") for k in range(3)],
        columns=["dataset", "method", "value"],
    )
    figure = plots.score_figure(
        rows, label="macro F1", order=["scdiff", "knn", "not run"], titles={"knn": "Neighbours"}, highlight="scdiff"
    )
    assert [axes.get_title() for axes in figure.axes] == [f"set {s}" for s in range(sets)]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    markers = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None)]
    assert [line.get_marker() for line in markers] == ["D", "o", "o"]
    np.testing.assert_allclose(np.sort(markers[0].get_xdata()), [0, 0.2, 0.4])
