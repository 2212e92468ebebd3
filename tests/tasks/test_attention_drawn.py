"""Points of the heat maps of attention: what is drawn is what the rows of the run say."""

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from screpro import records
from screpro.tasks.attention import DECODER, ENCODER, Attention
from screpro.tasks.attention_drawn import SIDES, as_tables, keep_enrichment
from screpro.tasks.attention_experiment import METHODS, Protocol, compare, prepare
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.enrichment import slope_scores


@pytest.fixture(scope="module")
def protocol():
    base = AutoEncoderSettings(width=16, tokens=4, channels=4, layers=1, epochs=1)
    return Protocol("toy", [3], base, least=5, cells=60)


@pytest.fixture(scope="module")
def cells(protocol):
    """Three types with 15 genes of their own each; the names of the types are numbers."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, 3, 240)
    rate = np.full((240, 200), 0.6)
    for k in range(3):
        rate[types == k, 15 * k : 15 * k + 15] = 3
    adata = AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.obs["cell_type"] = [str(k) for k in types]
    return prepare(adata, protocol)


@pytest.fixture
def run(no_records):
    return records.start("scldm/interpretability", tier="ci")


def test_what_is_marked_is_what_the_rows_of_the_run_count(run, cells, protocol):
    found = compare(run, cells, protocol)
    for method in METHODS:
        keep_enrichment(run, cells, found[method, 3], dataset="toy", method=method, seed=3)
    rows = run.frame().set_index(["metric", "method", "metric_variant"])["value"]
    points = records.drawn_points(run, "enrichment")
    assert len(points) == 2 * 2 * 4 * len(cells.sets)
    for method, own in points.groupby("method"):
        for side, variant in ((ENCODER, ""), (DECODER, DECODER)):
            scores, marked = as_tables(own, side)
            assert list(scores.index) == list(marked.index) == list(cells.sets) and list(scores) == [0, 1, 2, 3]
            assert marked.any(axis=1).mean() == pytest.approx(rows["share_of_types_enriched", method, variant])
            assert marked.mean(axis=None) == pytest.approx(rows["share_of_pairs_enriched", method, variant])
            profiles = found[method, 3].readings(cells.usable)[side]
            expected = slope_scores(profiles, list(cells.sets.values())).T
            np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-12)


def test_a_token_that_looks_at_the_markers_of_a_type_is_marked_there_alone(run, cells):
    genes, at = len(cells.genes), list(cells.sets)
    encoder = np.random.default_rng(1).uniform(1, 1.1, (3, genes))
    encoder[1, cells.usable[cells.sets[at[2]]]] += 5
    made = Attention(encoder, np.full((3, genes), 0.25), np.ones(genes, int), 1)
    keep_enrichment(run, cells, made, dataset="toy", method="scldm", seed=0)
    points = records.drawn_points(run, "enrichment")
    scores, marked = as_tables(points, ENCODER)
    assert scores.to_numpy().argmax() == 2 * 3 + 1 and marked.loc[at[2], 1]
    others = [name for name in at if name != at[2]]
    assert not marked.loc[others, 1].any() and (scores.loc[others, 1] < 0).all()
    # a decoder whose genes attend to all tokens alike tells nothing
    scores, marked = as_tables(points, SIDES[1])
    assert (scores == 0).all(axis=None) and not marked.any(axis=None)
