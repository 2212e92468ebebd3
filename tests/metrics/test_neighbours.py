"""Nearest-neighbour scores against scikit-learn and laws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.metrics.neighbours import knn_precision, knn_recall, one_nn_accuracy


def cloud(n, shift=0.0, seed=0, d=4):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


@pytest.mark.parametrize("shift", [0.0, 0.7, 20.0])
def test_1nn_is_sklearns_leave_one_out(shift):
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    real, made = cloud(40), cloud(40, shift, seed=1)
    pooled, kind = np.concatenate([real, made]), np.repeat([0, 1], 40)
    expected = cross_val_score(KNeighborsClassifier(1), pooled, kind, cv=LeaveOneOut()).mean()
    assert one_nn_accuracy(real, made) == pytest.approx(expected)


def test_what_cannot_be_told_apart_scores_a_half_copies_0_and_far_clouds_1():
    assert one_nn_accuracy(cloud(1500), cloud(1500, seed=1)) == pytest.approx(0.5, abs=0.04)
    assert one_nn_accuracy(cloud(60), cloud(60)) == 0
    assert one_nn_accuracy(cloud(60), cloud(60, 100.0, seed=1)) == 1


@given(st.integers(2, 12), st.integers(1, 2), st.integers(0, 1000))
def test_cells_at_the_same_distance_share_the_vote(n, d, seed):
    rng = np.random.default_rng(seed)
    real, made = rng.integers(0, 3, (2, n, d)).astype(float)  # at most 9 places, at most 4 of them nearest to another
    pooled, kind = np.concatenate([real, made]), np.repeat([0, 1], n)
    squares = np.square(pooled[:, None] - pooled).sum(2)
    np.fill_diagonal(squares, np.inf)
    tied = squares == squares.min(1, keepdims=True)
    expected = ((tied & (kind[:, None] == kind)).sum(1) / tied.sum(1)).mean()
    assert one_nn_accuracy(real, made) == pytest.approx(expected)


def test_equal_cells_and_a_collapsed_generator():
    assert one_nn_accuracy(np.ones((5, 2)), np.ones((5, 2))) == pytest.approx(4 / 9)
    real = cloud(50)
    collapsed = np.repeat(real[:1], 50, axis=0)  # nearest to each: 49 copies and the cell they are copies of
    near = np.linalg.norm(real[1:] - real[:1], axis=1)
    wrong = np.linalg.norm(real[1:, None] - real[1:], axis=2) + 1e9 * np.eye(49)
    expected = (50 * 49 / 50 + 0 + ((wrong.min(1) < near) + (wrong.min(1) > near) / 51).sum()) / 100
    assert one_nn_accuracy(real, collapsed) == pytest.approx(expected)


def test_the_larger_side_is_cut_by_the_seed():
    real, made = cloud(300), cloud(50, seed=1)
    assert one_nn_accuracy(real, made, seed=3) == one_nn_accuracy(real, made, seed=3)
    assert len({one_nn_accuracy(real, made, seed=s) for s in range(6)}) > 1


def by_definition(real, generated, k):
    from scipy.spatial.distance import cdist

    within = np.sort(cdist(real, real), axis=1)[:, k]  # column 0 is the cell itself
    return (cdist(real, generated) <= within[:, None]).any(axis=0).mean()


@given(st.integers(1, 6), st.floats(0, 3), st.integers(0, 100))
def test_precision_and_recall_are_their_definition_and_each_other_exchanged(k, shift, seed):
    real, made = cloud(17, seed=seed, d=3), cloud(11, shift, seed=seed + 1, d=3)
    assert knn_precision(real, made, k=k) == pytest.approx(by_definition(real, made, k))
    assert knn_recall(real, made, k=k) == knn_precision(made, real, k=k)


def test_one_copied_cell_has_precision_but_no_recall():
    real = cloud(200)
    made = np.repeat(real[:1], 50, axis=0)
    assert knn_precision(real, made) == 1
    assert knn_recall(real, made) == pytest.approx(1 / 200)
    assert knn_precision(real, real) == knn_recall(real, real) == 1


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.fixture
def kernel_input(monkeypatch):
    """What the kernels of neighbours are given, type by type."""
    from screpro.kernels import neighbours as kernels

    seen = []

    def recorded(function):
        def call(*arguments, **options):
            seen.extend(type(a) for a in arguments if np.ndim(a) > 1)
            return function(*arguments, **options)

        return call

    for name in ("nearest", "radius_cover"):
        monkeypatch.setattr(kernels, name, recorded(getattr(kernels, name)))
    return seen


@pytest.mark.parametrize("score", [one_nn_accuracy, knn_precision, knn_recall])
def test_tensors_reach_the_kernels_of_their_device(score, kernel_input):
    real, made = (torch.from_numpy(x).bfloat16() for x in (cloud(30), cloud(30, 0.5, seed=1)))
    expected = score(real.double().numpy(), made.double().numpy())
    assert score(real.requires_grad_(), made) == expected
    assert score(real, made.detach().as_subclass(OnGpu)) == expected  # one side on a GPU: both are fetched
    assert set(kernel_input) == {np.ndarray}
    kernel_input.clear()
    assert score(*(x.detach().as_subclass(OnGpu) for x in (real, made))) == expected
    assert set(kernel_input) == {torch.Tensor}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("score", [one_nn_accuracy, knn_precision, knn_recall])
def test_on_a_gpu(score):
    real, made = cloud(900), cloud(900, 0.5, seed=1)
    assert score(torch.from_numpy(real).cuda(), torch.from_numpy(made).cuda()) == score(real, made)


def test_scores_do_not_depend_on_order_or_position():
    real, made = cloud(80), cloud(80, 0.5, seed=1)
    order = np.random.default_rng(2).permutation(80)
    for score in (one_nn_accuracy, knn_precision, knn_recall):
        assert score(real[order], made) == score(real, made) == pytest.approx(score(2 * real + 5, 2 * made + 5))


@pytest.mark.parametrize(
    ("score", "real", "made", "message"),
    [
        (one_nn_accuracy, cloud(1), cloud(5), "two cells"),
        (one_nn_accuracy, cloud(5), cloud(5, d=3), "same space"),
        (knn_precision, cloud(5), cloud(9), "number of other points"),
        (knn_recall, cloud(9), cloud(5), "number of other points"),
        (knn_precision, cloud(9) * np.nan, cloud(9), "finite"),
    ],
)
def test_bad_input_is_one_clear_error(score, real, made, message):
    with pytest.raises(ScreproError, match=message):
        score(real, made)
