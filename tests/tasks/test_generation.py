"""Scores of generated cells: zero for the cells themselves, the class mean as defined, floors in closed form."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from screpro.data.preprocess import log_cp10k
from screpro.errors import ScreproError
from screpro.kernels.mmd import rbf_mmd2
from screpro.metrics.frechet import frechet_distance
from screpro.tasks import generation as task


@pytest.fixture(scope="module")
def adata():
    rng = np.random.default_rng(0)
    types = rng.choice(["a", "b", "c"], 160, p=[0.5, 0.3, 0.2])
    rate = np.exp(rng.normal(0, 1, 120)) * np.where(np.arange(120) % 3 == (types == "b")[:, None], 3, 1)
    obs = pd.DataFrame({"cell_type": types}, index=[f"cell {i}" for i in range(160)])
    found = ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)
    found.var_names = [f"gene {i}" for i in range(120)]
    return found


@pytest.fixture(scope="module")
def cells(adata):
    return task.generation_cells(adata, split=0, test=0.3)


@pytest.fixture(scope="module")
def reference(cells):
    return task.reference_of(cells)


def test_cells_are_split_and_keep_their_labels(adata, cells):
    assert cells.train.shape == (112, 120) and cells.test.shape == (48, 120)
    rows = {tuple(row): label for row, label in zip(adata.X.toarray(), adata.obs["cell_type"], strict=True)}
    found = [rows[tuple(row)] for row in cells.test.toarray()]
    assert found == [cells.types[k] for k in cells.test_labels]
    assert not {tuple(row) for row in cells.train.toarray()} & {tuple(row) for row in cells.test.toarray()}


def test_the_panel_is_chosen_on_training_cells(adata):
    chosen = task.generation_cells(adata, split=0, test=0.3, panel=40, variable=1.0)
    changed = adata.copy()
    test = np.flatnonzero(~np.isin(np.arange(160), _train_rows(adata)))
    dense = adata.X.toarray()
    dense[test] = 7 * dense[test][:, ::-1]
    changed.X = sp.csr_matrix(dense)
    assert task.generation_cells(changed, split=0, test=0.3, panel=40, variable=1.0).genes == chosen.genes
    assert len(chosen.genes) == 40


def _train_rows(adata):
    from screpro.data.splits import cell_split

    return cell_split(adata.n_obs, seed=0, test=0.3).train


def test_types_without_training_cells_are_left_out(adata):
    types = adata.obs["cell_type"].astype(str).to_numpy().copy()
    held = np.setdiff1d(np.arange(160), _train_rows(adata))
    types[held[:2]] = "z"
    changed = ad.AnnData(adata.X, obs=pd.DataFrame({"cell_type": types}, index=adata.obs_names), var=adata.var)
    found = task.generation_cells(changed, split=0, test=0.3)
    assert found.left_out == 2 and found.test.shape[0] == 46
    assert "z" not in {found.types[k] for k in found.test_labels}


def test_cells_without_a_type_are_left_out(adata):
    """Whatever such a type is called; the others are split as if those had never been there."""
    changed = adata[np.repeat(np.arange(160), 2)]
    types = changed.obs["cell_type"].astype(str).to_numpy().copy()
    types[1::2] = np.resize(["Unassigned", "unknown", "nan", ""], 160)
    changed = ad.AnnData(changed.X, obs=pd.DataFrame({"cell_type": types}), var=adata.var)
    with pytest.raises(ScreproError):  # an empty label is an error before that
        task.generation_cells(changed, split=0, test=0.3)
    changed.obs["cell_type"] = np.where(np.isin(types, ["nan", ""]), "unassigned", types)
    found, alone = (task.generation_cells(own, split=0, test=0.3) for own in (changed, adata))
    assert found.left_out == 160 and found.types == alone.types
    np.testing.assert_array_equal(found.test.toarray(), alone.test.toarray())
    np.testing.assert_array_equal(found.train_labels, alone.train_labels)


def test_the_test_cells_themselves_score_best(cells, reference):
    x = log_cp10k(cells.test)
    np.testing.assert_allclose(reference.points(x), reference.fitted.scores, atol=1e-9)
    found = task.score_all(reference, x)
    assert found["w2_exact"] == pytest.approx(0, abs=1e-5)
    assert found["mmd2_rbf_sum5"] == pytest.approx(0, abs=1e-9)
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert found["gene_variance_ratio"] == pytest.approx(1)
    assert found["knn_precision"] == found["knn_recall"] == 1
    worse = task.score_all(reference, x.multiply(0.5).tocsr())
    assert worse["w2_exact"] > 1 and worse["gene_variance_ratio"] == pytest.approx(0.25)


def test_real_cells_are_closer_than_independent_genes(cells, reference):
    rng = np.random.default_rng(0)
    rows = task.same_labels(cells.train_labels, cells.test_labels, rng=rng, replace=False)
    real = task.score_all(reference, log_cp10k(cells.train[rows]))
    shuffled = cells.train[rows].toarray()
    for gene in range(shuffled.shape[1]):
        shuffled[:, gene] = rng.permutation(shuffled[:, gene])
    broken = task.score_all(reference, log_cp10k(sp.csr_matrix(shuffled)))
    assert real["frechet_distance"] < broken["frechet_distance"]
    assert real["w2_exact"] < broken["w2_exact"]


def test_the_conditional_score_is_the_plain_mean_over_classes(cells, reference):
    x, labels = log_cp10k(cells.test)[::-1], cells.test_labels[::-1]
    points = reference.points(x)
    each = [frechet_distance(reference.fitted.scores[cells.test_labels == k], points[labels == k]) for k in range(3)]
    assert task.score_classes(reference, x, labels)["frechet_distance"] == pytest.approx(np.mean(each))
    wrong = task.score_classes(reference, x, (labels + 1) % 3)
    assert wrong["w2_exact"] > task.score_classes(reference, x, labels)["w2_exact"] + 0.5


def test_classes_of_one_cell_are_skipped(cells, reference):
    alone = reference._replace(labels=np.where(np.arange(48) == 0, 5, reference.labels))
    x = log_cp10k(cells.test)
    labels = cells.test_labels.copy()
    labels[0] = 5
    assert np.isfinite(task.score_classes(alone, x, labels)["w2_exact"])
    with pytest.raises(ScreproError, match="two real and two generated"):
        task.score_classes(alone, x, np.full(48, 9))


def test_real_cells_are_once_as_far_as_real_cells_and_cells_in_the_middle_further(cells, reference):
    rng, labels = np.random.default_rng(0), cells.test_labels
    rows = [task.same_labels(cells.train_labels, labels, rng=rng, replace=False) for _ in range(3)]
    *real, again = (log_cp10k(cells.train[own]) for own in rows)
    assert task.times_ceiling(reference, labels, *real, real=real) == pytest.approx(1)
    # one sample or two: each distance counts as a factor, so another sample of real cells is about once as far
    assert task.times_ceiling(reference, labels, again, None, real=real) == pytest.approx(1, abs=0.3)

    middle = sp.csr_matrix(np.repeat(np.asarray(log_cp10k(cells.train).mean(0)), len(labels), axis=0))
    w2 = task.score_all(reference, middle)["w2_exact"] / task.score_all(reference, real[0])["w2_exact"]
    assert w2 < 1.2 and task.times_ceiling(reference, labels, middle, middle, real=real) > 2


def test_a_classifier_of_real_cells_knows_real_cells(cells, reference):
    found = task.class_accuracy(reference, log_cp10k(cells.test), cells.test_labels)
    swapped = task.class_accuracy(reference, log_cp10k(cells.test), (cells.test_labels + 1) % 3)
    assert found > 0.4 > swapped


def test_narrow_kernels_see_only_the_cell_itself():
    rng = np.random.default_rng(0)
    a, b = 20 * rng.normal(size=(2, 14, 30))  # some hundred units apart
    found = np.sum(rbf_mmd2(a, b, gammas=[1 / (2 * sigma**2) for sigma in (0.01, 0.1, 1.0)]))
    assert found == pytest.approx(task.narrow_kernels(14)) == pytest.approx(6 / 14)


def test_labels_are_drawn_without_replacement_while_they_last():
    labels = np.array([0, 0, 0, 1])
    rows = task.same_labels(labels, np.array([1, 0, 0, 0, 1]), rng=np.random.default_rng(0), replace=False)
    assert sorted(rows[1:4]) == [0, 1, 2] and rows[0] == rows[4] == 3
    with pytest.raises(ScreproError, match="drawn among cells"):
        task.same_labels(labels, np.array([2]), rng=np.random.default_rng(0), replace=False)


def test_other_numbers_of_cells_are_refused(cells, reference):
    with pytest.raises(ScreproError, match="As many cells"):
        task.score_all(reference, log_cp10k(cells.test)[:5])
