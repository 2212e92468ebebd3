"""Methods of OpenProblems' label projection: reference mapping piece by piece, scores in the shared code space."""

import importlib.util

import numpy as np
import pytest
from scipy import sparse

from screpro.baselines import annotation, reference_mapping
from screpro.baselines.label_projection import BASELINES, CONTROLS, run
from screpro.baselines.reference_mapping import (
    Anchors,
    mutual_neighbours,
    residuals,
    score_anchors,
    shared_space,
    vote_weights,
)
from screpro.errors import ScreproError
from screpro.metrics.classification import macro_f1
from screpro.tasks.cells import Cells

LEARNERS = [name for name in BASELINES if name not in CONTROLS]
FAST = {
    "mlp": {"max_iter": 60, "n_components": 10},
    "logistic_regression": {"n_components": 20},
    "knn": {"n_components": 5},
    "xgboost": {"rounds": 15},
}


def simulated(n=150, g=60, n_types=3, *, seed=0, ambient=0.0):
    """Every type has ten genes of its own; `ambient` molecules of the first type's genes are in every cell."""
    rng = np.random.default_rng(seed)
    cell_type = rng.integers(0, n_types, n)
    rate = np.full((n_types, g), 0.5)
    for k in range(n_types):
        rate[k, 10 * k : 10 * k + 10] = 4.0
    rate[:, :10] += ambient
    counts = sparse.csr_matrix(rng.poisson(rate[cell_type]).astype(np.float32))
    x = sparse.csr_matrix(sparse.diags_array(1e4 / np.asarray(counts.sum(axis=1)).ravel()) @ counts, dtype=np.float32)
    x.data = np.log1p(x.data)
    return Cells(counts, x, cell_type.astype(np.int64), np.zeros(n, np.int64), [f"g{i}" for i in range(g)])


def fit(name, train, test, n_types=3, seed=0, **options):
    if name == "xgboost" and importlib.util.find_spec("xgboost") is None:
        pytest.skip("needs xgboost: pip install 'screpro[baselines]'")
    return run(name, train, test, n_types=n_types, seed=seed, options=FAST.get(name, {}) | options)


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(3)
    return rng.standard_normal((40, 5)), rng.standard_normal((30, 5))


# --- the registry ------------------------------------------------------------------------------------------


def test_registry_says_what_a_table_needs():
    for name, entry in BASELINES.items():
        assert isinstance(entry, annotation.Baseline) and entry.name == name
        assert entry.title and entry.source and entry.grid[0] == {}
    assert [name for name in BASELINES if BASELINES[name].trivial] == list(CONTROLS)


@pytest.mark.parametrize("name", LEARNERS)
def test_easy_cells_are_annotated(name):
    train, test = simulated(), simulated(40, seed=1)
    found = fit(name, train, test)
    assert found.labels.dtype == np.int64 and found.scores.shape == (40, 3)
    assert np.isfinite(found.scores).all() and (found.scores >= 0).all()
    np.testing.assert_array_equal(found.labels, found.scores.argmax(axis=1))
    assert macro_f1(test.cell_type, found.labels) > 0.85


@pytest.mark.parametrize("name", LEARNERS)
def test_gaps_in_the_code_space(name):
    """Training lacks codes 0 and 3, the test cells contain 0: answers are among the trained types."""
    train, test = simulated(), simulated(30, seed=1)
    train = train._replace(cell_type=np.array([1, 2, 4])[train.cell_type])
    found = fit(name, train, test, n_types=5)
    assert set(found.labels) <= {1, 2, 4} and (found.scores[:, [0, 3]] == 0).all()
    np.testing.assert_allclose(found.scores.sum(axis=1), 1, atol=1e-5)
    assert macro_f1(np.array([1, 2, 4])[test.cell_type], found.labels) > 0.8


@pytest.mark.parametrize("name", ["mlp", "xgboost", "random_labels"])
def test_the_seed_decides(name):
    train, test = simulated(), simulated(40, seed=1)
    options = {"xgboost": {"colsample": 0.3, "rounds": 2}}.get(name, {})
    first, again, other = (fit(name, train, test, seed=seed, **options) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert not np.array_equal(first.labels, other.labels) or not np.array_equal(first.scores, other.scores)


@pytest.mark.parametrize("name", ["logistic_regression", "seurat", "knn"])
def test_methods_recorded_without_a_seed_do_not_depend_on_it(name):
    train, test = simulated(), simulated(40, seed=1)
    first, other = (fit(name, train, test, seed=seed).scores for seed in (0, 1))
    np.testing.assert_array_equal(first, other)


def test_logistic_regression_is_the_pipeline_it_says_it_is():
    from sklearn.linear_model import LogisticRegression

    train, test = simulated(), simulated(40, seed=1)
    x, y = train.x.toarray().astype(float), test.x.toarray().astype(float)
    axes = np.linalg.svd(x, full_matrices=False)[2][:10].T
    x, y = x @ axes, y @ axes
    x, y = (x - x.mean(0)) / x.std(0), (y - x.mean(0)) / x.std(0)
    expected = LogisticRegression(max_iter=1000).fit(x, train.cell_type).predict_proba(y)
    found = fit("logistic_regression", train, test, n_components=10)
    np.testing.assert_allclose(found.scores, expected, atol=2e-3)  # two optimisations, stopped by a tolerance


def test_boosting_reads_stored_zeros_as_zeros():
    """The package takes what a sparse matrix does not store for missing: the form must not change the answer."""
    train, test = simulated(), simulated(40, seed=1)
    full = test.x.copy()
    full[0, 0] = 1.0
    full.data[0] = 0.0  # a zero that is stored
    same = test._replace(x=sparse.csr_matrix(full.toarray()))
    first, second = (fit("xgboost", train, cells).scores for cells in (test._replace(x=full), same))
    np.testing.assert_array_equal(first, second)


def test_controls():
    train, test = simulated(), simulated(4000, seed=1)
    random = run("random_labels", train, test, n_types=3, seed=0)
    share = np.bincount(train.cell_type, minlength=3) / len(train.cell_type)
    np.testing.assert_allclose(np.bincount(random.labels, minlength=3) / 4000, share, atol=0.03)
    assert np.mean(random.labels == test.cell_type) == pytest.approx(share @ np.full(3, 1 / 3), abs=0.05)
    assert (run("true_labels", train, test, n_types=3, seed=0).labels == test.cell_type).all()


# --- reference mapping -------------------------------------------------------------------------------------


def test_anchors_are_mutual_neighbours(clouds):
    reference, query = clouds
    distance = np.linalg.norm(reference[:, None] - query[None], axis=2)
    forward = distance.argsort(axis=1)[:, :4]
    backward = distance.argsort(axis=0)[:4].T
    expected = {(i, j) for i in range(40) for j in forward[i] if i in backward[j]}
    found = mutual_neighbours(reference, query, 4)
    assert set(zip(found.reference, found.query, strict=True)) == expected
    assert len(mutual_neighbours(reference, query + 100, 1).query) >= 1


def test_scores_count_shared_neighbours(clouds):
    reference, query = clouds
    anchors = mutual_neighbours(reference, query, 5)
    everyone = np.vstack([reference, query])

    def around(point):
        distance = np.linalg.norm(everyone - point, axis=1)
        own = {("r", i) for i in distance[:40].argsort()[:7]}
        return own | {("q", i) for i in distance[40:].argsort()[:7]}

    shared = [
        len(around(reference[i]) & around(query[j])) for i, j in zip(anchors.reference, anchors.query, strict=True)
    ]
    low, high = np.quantile(shared, [0.01, 0.9])
    expected = np.clip((np.array(shared) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(score_anchors(reference, query, anchors, 7), expected, atol=1e-12)


def test_weights_sum_to_one_and_follow_the_formula(clouds):
    reference, query = clouds
    anchors = mutual_neighbours(reference, query, 5)
    score = np.random.default_rng(0).random(len(anchors.query))
    index, weight = vote_weights(query, anchors, score, 6)
    np.testing.assert_allclose(weight.sum(axis=1), 1)
    distance = np.linalg.norm(query[3] - query[anchors.query], axis=1)
    nearest = np.sort(distance)[:6]
    np.testing.assert_allclose(distance[index[3]], nearest, atol=1e-12)
    raw = 1 - np.exp(-(1 - nearest / nearest[-1]) * score[index[3]] / 4)
    np.testing.assert_allclose(weight[3], raw / raw.sum(), atol=1e-12)
    # anchors that all weigh nothing vote equally
    np.testing.assert_allclose(vote_weights(query, anchors, score * 0, 6)[1], 1 / 6)
    assert vote_weights(query, Anchors(np.array([0]), np.array([0])), np.ones(1), 6)[1].shape == (30, 1)


def test_residuals_are_those_of_the_formula():
    train, test = simulated(), simulated(40, seed=1)
    counts = train.counts.toarray().astype(float)
    mean = counts.sum(1)[:, None] * counts.sum(0) / counts.sum()
    z = ((counts - mean) / np.sqrt(mean + mean**2 / 100)).clip(-np.sqrt(150), np.sqrt(150))
    chosen = np.sort(np.argsort(-z.var(0))[:20])
    found, other = residuals(train.counts, test.counts, 20)
    np.testing.assert_allclose(found, z[:, chosen], atol=1e-8)
    assert other.shape == (40, 20)


def test_canonical_space_is_the_singular_vectors_of_the_product(clouds):
    reference, query = clouds
    both = shared_space(reference, query, space="cca", n_components=3)
    left, right = ((x - x.mean(0)) / x.std(0) for x in clouds)
    u = np.linalg.svd(left @ right.T)[0][:, :3]
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(both.reference), np.abs(u), atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(both.query, axis=1), 1)


@pytest.mark.parametrize(("space", "ambient"), [("pca", 4), ("cca", 4), ("cca", 16)])
def test_a_batch_shift_is_undone_where_nearest_neighbours_fail(space, ambient):
    """A soup of the first type's molecules in every query cell makes the other types look like it.

    The stronger one is more than the reference's own axes can tell apart; CCA standardises each set, so it is gone.
    """
    train, test = simulated(300, seed=0), simulated(200, seed=1, ambient=ambient)
    near, far = train.x.toarray(), test.x.toarray()
    raw = train.cell_type[((far[:, None] - near[None]) ** 2).sum(2).argmin(1)]
    mapped = fit("seurat", train, test, space=space)
    right = [np.mean(labels == test.cell_type) for labels in (raw, mapped.labels)]
    assert right[0] < 0.7 and right[1] > 0.94, right


def test_few_cells_and_the_filter():
    train, test = simulated(8, seed=0), simulated(3, seed=1)
    for options in ({}, {"space": "cca"}, {"k_filter": 1}, {"k_filter": None}):
        assert fit("seurat", train, test, **options).labels.shape == (3,)
    train, test = simulated(150), simulated(100, seed=1)
    assert macro_f1(test.cell_type, fit("seurat", train, test, k_filter=20).labels) > 0.9
    kept = reference_mapping._filtered(Anchors(np.array([0, 1]), np.array([0, 2])), np.eye(3), np.eye(3), 1)
    assert list(kept.reference) == [0] and list(kept.query) == [0]


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("seurat", {"space": "tsne"}, "shared space has a name"),
        ("seurat", {"k": 3}, "options of seurat"),
        ("xgboost", {"rounds": 0}, "at least one round"),
        ("nearest", {}, "named by its key"),
    ],
)
def test_bad_input(name, options, message):
    with pytest.raises(ScreproError, match=message):
        fit(name, simulated(), simulated(10, seed=1), **options)
