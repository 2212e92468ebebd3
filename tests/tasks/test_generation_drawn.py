"""Points of scLDM's figures: what is kept is what the cells are."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from screpro import records
from screpro.data.preprocess import log_cp10k
from screpro.errors import ScreproError
from screpro.tasks.generation import gene_variance_ratio, generation_cells, reference_of
from screpro.tasks.generation_drawn import (
    REAL,
    TRAINING,
    Sample,
    keep_maps,
    keep_markers,
    keep_variances,
    marker_genes,
)


@pytest.fixture(scope="module")
def cells():
    """Three types of different size; gene 0 marks the first, gene 1 the second."""
    rng = np.random.default_rng(0)
    types = np.repeat(["a", "b", "c"], [80, 50, 30])
    rate = np.full((160, 30), 2.0)
    rate[types == "a", 0], rate[types == "b", 1] = 30, 30
    obs = pd.DataFrame({"cell_type": types}, index=[f"cell {i}" for i in range(160)])
    return generation_cells(ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs), split=0, test=0.3)


@pytest.fixture(scope="module")
def reference(cells):
    return reference_of(cells, n_variable=20)


@pytest.fixture(scope="module")
def same(cells):
    """A generator that gives out the test cells themselves."""
    x = log_cp10k(cells.test)
    return {"copy": Sample(x, x)}


@pytest.fixture
def run(no_records):
    return records.start("scldm/generation", tier="ci")


def test_cells_that_are_the_test_cells_lie_where_these_lie(cells, reference, same, run):
    keep_maps(run, cells, reference, same, dataset="d", chart="components")
    points = records.drawn_points(run, "map")
    of = {method: own for method, own in points.groupby("method")}
    assert len(of[TRAINING]) == len(cells.train_labels) and len(of[REAL]) == len(cells.test_labels)
    for kind in ("unconditional", "conditional"):
        own = of["copy"][of["copy"]["kind"] == kind]
        np.testing.assert_array_equal(own[["x", "y"]], of[REAL][["x", "y"]])
        assert own["type"].tolist() == of[REAL]["type"].tolist() == [cells.types[k] for k in cells.test_labels]
    title = of[TRAINING]["chart"].iloc[0]
    assert title.endswith(f"% of the variance of {reference.fitted.axes.shape[1]}")
    # the map is centred on the training cells, which alone made it
    assert np.abs(of[TRAINING][["x", "y"]].mean()).max() < 1e-3


def test_a_chart_that_is_not_there_is_refused(cells, reference, same, run):
    with pytest.raises(ScreproError, match="umap or components"):
        keep_maps(run, cells, reference, same, dataset="d", chart="tsne")


def test_variances_are_those_of_the_score(cells, reference, same, run):
    half = Sample(same["copy"].unconditional, same["copy"].conditional * 0.5)
    keep_variances(run, cells, reference, {**same, "half": half}, dataset="d")
    points = records.drawn_points(run, "variances").pivot_table(index="gene", columns="method", values="variance")
    assert (points["copy"] == points[REAL]).all() and len(points) == 20
    ratio = gene_variance_ratio(reference.x, half.conditional[:, reference.genes])
    assert (points["half"] / points[REAL]).median() == pytest.approx(ratio, rel=1e-3) == pytest.approx(0.25, rel=1e-3)


def test_markers_are_the_genes_that_mark_the_largest_types(cells, same, run):
    assert [(cells.types[k], cells.genes[g]) for k, g in marker_genes(cells)][:2] == [
        ("a", cells.genes[0]),
        ("b", cells.genes[1]),
    ]
    keep_markers(run, cells, same, dataset="d")
    points = records.drawn_points(run, "markers")
    sizes = points.groupby(["method", "type"]).size()
    for k, name in enumerate(cells.types):
        assert sizes["copy", name] == sizes[REAL, name] == (cells.test_labels == k).sum()


def test_one_type_has_no_marker(cells, run):
    one = cells._replace(train_labels=0 * cells.train_labels, test_labels=0 * cells.test_labels, types=["a"])
    assert marker_genes(one) == []
    keep_markers(run, one, {}, dataset="d")
    assert records.drawn_points(run, "markers").empty
