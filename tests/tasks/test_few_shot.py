"""Few-shot annotation on simulated cells: what is drawn, what is trained, and what comes out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from screpro import records
from screpro.baselines import few_shot as baselines
from screpro.data import simulate
from screpro.data.preprocess import log_normalise
from screpro.errors import ScreproError
from screpro.tasks import few_shot_experiment as experiment
from screpro.tasks.annotation import annotation_cells
from screpro.tasks.few_shot import FewShotSettings, classify, draw_shots, fine_tune, partition, pretrain

SMALL = FewShotSettings(width=32, depth=2, heads=2, epochs=6, batch_size=32, n_times=5, fine_epochs=30, fine_rate=3e-3)
KEPT = [50, 50, 50, 30, 28, 26, 24]


def simulated(n_batches=1, separation=3.0):
    """Seven types: three with 50 cells, the others with 30, 28, 26 and 24."""
    adata = simulate.cells(
        350, 60, 7, n_batches=n_batches, separation=separation, markers=0.5, rng=np.random.default_rng(0)
    )
    codes = adata.obs["cell_type"].astype("category").cat.codes.to_numpy()
    rank = np.zeros(len(codes), dtype=int)
    for k in range(7):
        rank[codes == k] = np.arange((codes == k).sum())
    return annotation_cells(log_normalise(adata[rank < np.array(KEPT)[codes]].copy()))


@pytest.fixture(scope="module")
def labelled():
    return simulated()


@pytest.fixture(scope="module")
def part(labelled):
    return partition(labelled, threshold=50, min_cells=25)


@pytest.fixture(scope="module")
def network(labelled, part):
    return trained(labelled, part)


def trained(labelled, part, settings=SMALL, **options):
    majority = labelled.cells.take(np.flatnonzero(part.majority))
    n_batches = len(labelled.batches)
    return pretrain(majority, n_types=7, n_batches=n_batches, settings=settings, seed=0, threads=1, **options).model


def taken(labelled, draw, n):
    return labelled.cells.take(draw.pool[:, :n].ravel()), labelled.cells.take(draw.test)


def test_types_are_split_at_the_threshold(labelled, part):
    assert part.majority_types == [0, 1, 2]
    assert part.targets == [3, 4, 5]  # largest first; the type of 24 is too small
    assert part.majority.sum() == 150
    assert set(labelled.cells.cell_type[part.majority]) == {0, 1, 2}
    with pytest.raises(ScreproError, match="two types"):
        partition(labelled, threshold=10, min_cells=5)


def test_shots_are_exact_disjoint_and_nested(labelled, part):
    codes = labelled.cells.cell_type
    draw = draw_shots(codes, part.targets, pool=5, split=3)
    assert (codes[draw.pool] == np.array(part.targets)[:, None]).all()
    assert len(np.unique(draw.pool)) == 15 and not np.intersect1d(draw.pool, draw.test).size
    # together they are all the cells of the target types
    both = np.sort(np.concatenate([draw.pool.ravel(), draw.test]))
    assert (both == np.flatnonzero(np.isin(codes, part.targets))).all()
    fewer = draw_shots(codes, part.targets[:2], pool=5, split=3, max_test=4)
    assert (fewer.pool == draw.pool[:2]).all()
    assert np.bincount(codes[fewer.test], minlength=7)[part.targets].tolist() == [4, 4, 0]
    assert np.isin(fewer.test, draw.test).all()
    assert (draw_shots(codes, part.targets, pool=5, split=4).pool != draw.pool).any()
    with pytest.raises(ScreproError, match="more cells"):
        draw_shots(codes, part.targets, pool=26, split=0)


def test_class_rows_of_unseen_types_wait_as_they_were_initialised(labelled, part, network):
    start = trained(labelled, part, replace(SMALL, epochs=1, learning_rate=1e-12))
    for before, after in zip(
        start.conditioners["cell_type"].tables, network.conditioners["cell_type"].tables, strict=True
    ):
        unseen = torch.tensor(part.targets) + 1
        torch.testing.assert_close(before[unseen], after[unseen], atol=1e-6, rtol=0)
        assert (before[1:4] - after[1:4]).abs().max() > 1e-3


def test_fine_tuning_leaves_the_pretrained_network_alone(labelled, part, network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shots, _ = taken(labelled, draw_shots(labelled.cells.cell_type, part.targets, pool=2, split=0), 2)
    tuned = fine_tune(network, shots, SMALL, seed=0)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in tuned.state_dict().items())
    again = fine_tune(network, shots, SMALL, seed=0)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in tuned.state_dict().items())


@pytest.mark.parametrize("text", [False, True], ids=["class", "text"])
def test_one_cell_is_enough_where_types_are_far_apart(labelled, part, text):
    vectors = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)) if text else None
    settings = replace(SMALL, epochs=20, fine_epochs=60)
    network = trained(labelled, part, settings, embeddings=vectors)
    if text:
        assert torch.equal(network.conditioners["cell_type"].embeddings, vectors)  # never trained
    shots, test = taken(labelled, draw_shots(labelled.cells.cell_type, part.targets[:2], pool=1, split=0), 1)
    tuned = fine_tune(network, shots, settings, seed=0)
    answer = classify(tuned, test, shots, part.targets[:2], settings, seed=0)
    assert (answer.searched == test.cell_type).all()
    assert (answer.batch_given == answer.searched).all()  # one batch


def test_candidates_are_the_pairs_of_the_shots():
    """Without a cell in a batch, a type does not compete there; with the batch given it does."""
    labelled = simulated(n_batches=2)
    part = partition(labelled, threshold=50, min_cells=25)
    network, targets = trained(labelled, part), part.targets[:2]
    shots, test = taken(labelled, draw_shots(labelled.cells.cell_type, targets, pool=1, split=0), 1)
    shots = shots._replace(batch=np.array([0, 1]))
    answer = classify(network, test, shots, targets, SMALL, seed=0)
    assert answer.errors.candidates.tolist() == [[1, 4], [1, 5], [2, 4], [2, 5]]
    error = answer.errors.error.mean(axis=2)
    expected = np.where(error[:, 0] <= error[:, 3], targets[0], targets[1])
    assert (answer.searched == expected).all()
    own = np.where(test.batch[:, None] == 0, error[:, :2], error[:, 2:])
    assert (answer.batch_given == np.array(targets)[own.argmin(axis=1)]).all()


def test_one_embedding_per_type_is_needed(labelled, part):
    with pytest.raises(ScreproError, match="null text"):
        trained(labelled, part, embeddings=torch.randn(7, 12))


def test_shuffled_texts_all_belong_to_another_type():
    vectors = torch.arange(9.0)[:, None].expand(9, 4)
    mixed = experiment.shuffled(vectors, seed=1)
    assert mixed[0, 0] == 0 and sorted(mixed[:, 0].tolist()) == list(range(9))
    assert (mixed[1:, 0] != vectors[1:, 0]).all()


def test_the_related_type_is_the_near_one():
    """Types 3 and 4 are made copies of each other: whichever joins is called related to the other."""
    labelled = simulated()
    cells = labelled.cells
    mixed = cells.cell_type.copy()
    near = np.flatnonzero(np.isin(mixed, [3, 4]))
    mixed[near] = np.random.default_rng(0).permutation(mixed[near])
    labelled = labelled._replace(cells=cells._replace(cell_type=mixed))
    part = partition(labelled, threshold=50, min_cells=20)
    types = experiment.joining_types(labelled, part)
    assert (types.nearest, types.related) == (3, 4)
    assert set(types.base) | {types.related, types.unrelated} == {3, 4, 5, 6}
    assert types.unrelated in (5, 6) and types.similarity[0] > 0.9 > types.similarity[1]
    few = part._replace(targets=part.targets[:3])
    assert experiment.joining_types(labelled, few) is None


@pytest.mark.parametrize("name", [n for n in baselines.FEW_SHOT if n != "chance"])
def test_baselines_answer_targets_and_are_right_where_it_is_easy(name, labelled, part):
    if name.startswith("celltypist"):
        pytest.importorskip("celltypist")
    draw = draw_shots(labelled.cells.cell_type, part.targets, pool=5, split=0)
    shots, test = taken(labelled, draw, 5)
    majority = baselines.Majority(labelled.cells.take(np.flatnonzero(part.majority)))
    found = baselines.run(name, shots, majority, test, n_types=7, seed=0, threads=1)
    assert set(found) <= set(part.targets)
    assert (found == test.cell_type).mean() > 0.9


def test_the_ceiling_is_cross_validated_logistic_regression(labelled):
    """Rotating the cells changes nothing; scored rows come back in their order."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    cells = labelled.cells.take(np.flatnonzero(np.isin(labelled.cells.cell_type, [3, 4, 5, 6])))
    rows = np.array([5, 3, 40])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    direct = cross_val_predict(LogisticRegression(max_iter=1000), cells.x.toarray(), cells.cell_type, cv=folds)
    assert (baselines.ceiling(cells, rows, seed=0) == direct[rows]).all()


def test_the_experiment_adds_every_row_once(labelled, part):
    run = records.start("scdiff/one_shot", tier="ci")
    settings = replace(SMALL, epochs=2, fine_epochs=2)
    protocol = experiment.Protocol("simulated", [0], [0, 1], settings, shots=(1, 2), n_targets=3, curve=(2,), threads=1)
    vectors = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    part = partition(labelled, threshold=50, min_cells=20)
    methods = [m for m in experiment.METHODS if not m.startswith("celltypist")]
    experiment.compare_few_shot(run, labelled, part, protocol, vectors, methods)
    rows = run.frame()
    assert not rows.duplicated(["split", "method", "metric", "metric_variant", "seed"]).any()
    f1 = rows[rows["metric"] == "macro_f1"].groupby("method")["metric_variant"].agg(set)
    assert f1["scdiff_text"] == {"1 shot, k = 3", "2 shots, k = 3", "1 shot, k = 2", "0 shots, k = 3"}
    assert f1["centroid"] == f1["chance"] == {"1 shot, k = 3", "2 shots, k = 3", "1 shot, k = 2"}
    falls = rows[rows["metric"] == "macro_f1_fall"]
    assert len(falls) == 4 and set(falls["method"]) == {"related type joins", "unrelated type joins"}
    assert rows["value"].between(-1, 1).all()
    assert not list((run.folder / "checkpoints").glob("*"))
    experiment.compare_few_shot(run, labelled, part, protocol, vectors, methods)
    assert len(run.frame()) == len(rows)


def test_settings_are_named_as_the_claims_name_them():
    assert experiment.setting(1, 5) == "1 shot" and experiment.setting(10, 5) == "10 shots"
    assert experiment.setting(1, 4) == "1 shot, k = 4"
