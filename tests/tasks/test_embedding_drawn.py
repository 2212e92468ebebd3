"""Points of the figures of the embeddings page: cells on two components, and the curves among the rows."""

import numpy as np
import pytest
import scipy.sparse as sp

from screpro import records
from screpro.metrics.areas import roc_auc
from screpro.tasks import embedding, embedding_experiment
from screpro.tasks.embedding_drawn import CELLS, CLASSES, keep_components


def toy(target, classes):
    """Scored cells of given classes, without genes to speak of."""
    n, empty = len(target), sp.csr_matrix((0, 1))
    names = [f"cell {i}" for i in range(n)]
    return embedding.EmbeddingCells(
        empty, empty, sp.csr_matrix((n, 1)), np.zeros(n, int), target, ["all"], classes, names, ["g"], False
    )


@pytest.fixture
def run(no_records):
    return records.start("scldm/embeddings", tier="ci")


def test_cells_lie_on_their_first_two_components_class_by_class(run):
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 200)
    x = rng.standard_normal((200, 5)) + 4 * target[:, None]
    components = embedding.principal_components(x)
    keep_components(run, toy(target, ["c", "a", "b"]), components, dataset="d", method="medium")
    points = records.drawn_points(run, "components")
    assert list(dict.fromkeys(points["class"])) == ["c", "a", "b"] and len(points) == 200
    for code, name in enumerate("cab"):
        own, expected = points.loc[points["class"] == name, ["x", "y"]].to_numpy(), components[target == code, :2]
        apart = np.linalg.norm(own[:, None] - expected[None], axis=2)
        assert apart.shape == (len(own),) * 2 and sorted(apart.argmin(1)) == list(range(len(own)))
        assert apart.min(1).max() < 1e-3
    # the classes differ along the first component, so it tells them apart in the points as well
    chosen = points[points["class"] != "a"]
    area = roc_auc((chosen["class"] == "b").to_numpy().astype(int), chosen["x"].to_numpy())
    assert max(area, 1 - area) > 0.99


def test_many_cells_and_classes_are_thinned(run):
    sizes = np.array([3] * 4 + [60] * CLASSES)
    target = np.repeat(np.arange(len(sizes)), sizes)
    components = np.arange(len(target))[:, None] * 1.0  # one component alone
    cells = toy(target, [f"class {k:02}" for k in range(len(sizes))])
    keep_components(run, cells, components, dataset="d", method="medium")
    points = records.drawn_points(run, "components")
    assert len(points) == CELLS < len(target)
    assert set(points["class"]) == {f"class {k:02}" for k in range(4, len(sizes))}  # the four small ones are left out
    assert (points["y"] == 0).all() and points["x"].is_unique


def test_areas_under_the_curves_of_the_rows_are_the_scores(run):
    rng = np.random.default_rng(0)
    n = 1200
    target = np.arange(n) % 2
    protocol = embedding_experiment.Protocol("toy", 0, [0], {}, components=3)
    near, far = (rng.standard_normal((n, 3)) + gap * target[:, None] for gap in (0.4, 1.2))
    embedding_experiment.compare_embeddings(
        run, toy(target, ["no", "yes"]), protocol, [], external={"near": near, "far": far}
    )
    rows = run.frame()
    for method in ("near", "far"):
        own = rows[rows["method"] == method]
        score = own[own["metric_variant"] == ""].set_index("metric")["value"]
        for metric, area in (("roc_curve", "roc_auc"), ("pr_curve", "pr_auc")):
            curve = own[own["metric"] == metric]
            found = np.trapezoid(curve["value"], curve["metric_variant"].astype(float))
            assert found == pytest.approx(score[area], abs=0.015)
