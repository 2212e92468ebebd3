"""Points of the figures on perturbed cells: what is kept is what was measured."""

import numpy as np
import pytest

from screpro import records
from screpro.tasks import perturbation_statistics as statistics
from screpro.tasks import perturbation_statistics_drawn as kept
from screpro.tasks import perturbation_statistics_experiment as experiment

ROUNDED = {"rtol": 1e-3}  # four digits are kept


@pytest.fixture(scope="module")
def cells():
    adata = experiment.simulated_screen(rng=np.random.default_rng(0), cells=16, n_genes=120)
    return experiment.prepare(adata, context_key="context", batch_key="donor")


@pytest.fixture
def run(no_records):
    return records.start("perturbdiff/datasets", tier="ci")


@pytest.fixture
def drawn(cells, run):
    protocol = experiment.Protocol("simulated", [0], 15, 6, 40, 239, repeats="batch")
    return experiment.measure(run, cells, protocol)


def recorded(run, metric, **where):
    """The one value of a metric among the rows."""
    rows = run.frame().query("metric == @metric")
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows["value"].item()


def test_quantiles_of_the_share_of_non_zero_genes(cells, run):
    kept.keep_counts(run, cells, dataset="d")
    points = records.drawn_points(run, "sparsity")
    share = (cells.x.toarray() != 0).mean(1)
    assert points["quantile"].tolist() == list(kept.QUANTILES)
    np.testing.assert_allclose(points["share"], np.quantile(share, kept.QUANTILES), **ROUNDED)
    assert (points["genes"] == 120).all() and (points["method"] == kept.REAL).all()


def test_sizes_give_every_group_back(cells, run):
    kept.keep_counts(run, cells, dataset="d")
    points = records.drawn_points(run, "sizes")
    for kind, sizes in statistics.group_sizes(cells).items():
        own = points[points["kind"] == kind]
        assert np.repeat(own["cells"], own["groups"]).tolist() == sorted(sizes)


def test_distances_are_those_of_the_rows(drawn, run):
    kept.keep_distances(run, drawn, dataset="simulated")
    points = records.drawn_points(run, "distances")
    of = {kind: own.to_numpy() for kind, own in points.groupby("kind")["mmd2"]}
    within = drawn.distances["cells"].within
    assert len(of["between"]) == len(of["shuffled"]) == len(within) * (len(within) - 1) / 2
    np.testing.assert_allclose(of["within"], within, **ROUNDED)
    np.testing.assert_allclose(of["repeats"], drawn.distances["cells, across repeats"].within, **ROUNDED)
    means = records.drawn_points(run, "distance_means").set_index("kind")
    for kind, method, metric, variant in (
        ("within", "cells", "mmd2_within", ""),
        ("between", "cells", "mmd2_between", ""),
        ("shuffled", "shuffled", "mmd2_between", ""),
        ("repeats", "cells", "mmd2_within", "across repeats"),
    ):
        value = recorded(run, metric, method=method, metric_variant=variant)
        assert means.loc[kind, "mmd2"] == pytest.approx(value, rel=1e-3)
        assert of[kind].mean() == pytest.approx(value, rel=1e-2, abs=1e-5)
        assert means.loc[kind, "number"] == len(of[kind])


def test_of_many_pairs_some_are_kept_and_the_mean_of_all(run):
    between = np.random.default_rng(0).gamma(2.0, size=(60, 60)).round(3)
    between = (between + between.T) / 2
    many = statistics.WithinBetween(np.zeros(60), between)
    found = experiment.Drawn({}, {"cells": many, "shuffled": many}, {}, None)
    kept.keep_distances(run, found, dataset="d")
    of = dict(list(records.drawn_points(run, "distances").groupby("kind")["mmd2"]))
    whole = between[np.triu_indices(60, 1)]
    assert len(of["between"]) == kept.PAIRS < len(whole) and len(of["within"]) == 60 and "repeats" not in of
    assert of["between"].tolist() == of["shuffled"].tolist()  # the same pairs each time
    assert np.isclose(of["between"].to_numpy()[:, None], whole, rtol=1e-3).any(1).all()
    mean = records.drawn_points(run, "distance_means").set_index("kind").loc["between"]
    assert mean["mmd2"] == pytest.approx(whole.mean(), rel=1e-3) and mean["number"] == len(whole)


def test_as_many_are_told_as_the_rows_say(cells, drawn, run):
    kept.keep_tested(run, cells, drawn.tested, dataset="simulated")
    points = records.drawn_points(run, "told")
    assert (points["adjusted"] < 0.05).mean() == recorded(run, "share_distinguishable")
    assert len(points) == recorded(run, "tested")
    np.testing.assert_allclose(points["mmd2"], drawn.tested.mmd2, **ROUNDED)
    null = points["perturbation"].str.startswith("null")
    assert null.sum() == 3 and points.loc[~null, "mmd2"].mean() > 2 * points.loc[null, "mmd2"].max()
    assert points["cells"].between(10, 40).all()  # fewest and most cells of a test


def test_contexts_are_those_of_the_rows(cells, drawn, run):
    kept.keep_contexts(run, drawn, dataset="simulated")
    points = records.drawn_points(run, "contexts").set_index("context")
    assert sorted(points.index) == sorted(cells.contexts)
    for code, name in enumerate(cells.contexts):
        assert points.loc[name, "cells"] == (cells.context == code).sum()
        value = recorded(run, "mmd2_between", item="Figure 14", metric_variant=f"in {name}")
        assert points.loc[name, "mmd2"] == pytest.approx(value, rel=1e-3)


def test_without_a_context_that_can_be_compared_nothing_is_kept(drawn, run):
    kept.keep_contexts(run, drawn._replace(contexts={}), dataset="d")
    assert records.drawn_points(run, "contexts").empty
