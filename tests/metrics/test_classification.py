import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from screpro.errors import ScreproError
from screpro.metrics.classification import (
    accuracy,
    classification_scores,
    confusion,
    macro_f1,
    macro_precision,
    macro_recall,
)

labels = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 6), min_size=n, max_size=n).map(np.array) for _ in range(2)])
)
few = settings(max_examples=40, deadline=None)


def as_the_authors_call(metric, true, predicted):
    """Labels from 1, class 0 the null class that never occurs, arguments in the order (true, predicted)."""
    return float(metric(torch.tensor(true) + 1, torch.tensor(predicted) + 1, num_classes=8, average="macro"))


@few
@given(labels)
def test_macro_precision_and_f1_are_the_printed_numbers(pair):
    true, predicted = pair
    assert macro_precision(true, predicted) == pytest.approx(
        as_the_authors_call(multiclass_accuracy, true, predicted), abs=1e-6
    )
    assert macro_f1(true, predicted) == pytest.approx(
        as_the_authors_call(multiclass_f1_score, true, predicted), abs=1e-6
    )


@few
@given(labels)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_agrees(pair):
    true, predicted = pair
    assert macro_recall(true, predicted) == pytest.approx(sk.balanced_accuracy_score(true, predicted))
    assert macro_precision(true, predicted) == pytest.approx(
        sk.precision_score(true, predicted, average="macro", zero_division=0)
    )
    assert macro_f1(true, predicted) == pytest.approx(sk.f1_score(true, predicted, average="macro", zero_division=0))
    assert accuracy(true, predicted) == pytest.approx(sk.accuracy_score(true, predicted))
    n_types = int(max(true.max(), predicted.max())) + 1
    table = sk.confusion_matrix(true, predicted, labels=range(n_types))
    np.testing.assert_array_equal(confusion(true, predicted), table)


@few
@given(labels, st.permutations(range(7)), st.integers(0, 2**32 - 1))
def test_names_of_types_and_order_of_cells_do_not_matter(pair, renaming, seed):
    true, predicted = pair
    rename = np.array(renaming)
    order = np.random.default_rng(seed).permutation(len(true))
    moved = classification_scores(rename[true][order], rename[predicted][order])
    assert moved == pytest.approx(classification_scores(true, predicted))


@few
@given(labels)
def test_ranges_and_symmetry(pair):
    true, predicted = pair
    scores = classification_scores(true, predicted)
    assert all(0 <= score <= 1 for score in scores.values())
    assert macro_f1(true, predicted) == pytest.approx(macro_f1(predicted, true))
    assert set(classification_scores(true, true).values()) == {1.0}
    # with the same types on both sides, swapping the arguments turns precision into recall
    if set(true) == set(predicted):
        assert macro_precision(true, predicted) == pytest.approx(macro_recall(predicted, true))


def test_closed_form():
    true, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0])
    assert macro_recall(true, predicted) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert macro_precision(true, predicted) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert macro_f1(true, predicted) == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
    assert accuracy(true, predicted) == pytest.approx(3 / 5)
    assert confusion(true, predicted, 4).tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_always_the_largest_class():
    """The largest class alone scores its share in plain accuracy but one over K in macro recall."""
    true = np.repeat([0, 1, 2, 3], [70, 10, 10, 10])
    scores = classification_scores(true, np.zeros_like(true))
    assert scores["accuracy"] == pytest.approx(0.7)
    assert scores["macro_recall"] == pytest.approx(1 / 4)
    assert scores["macro_precision"] == pytest.approx(0.7 / 4)


@pytest.mark.parametrize(
    ("true", "predicted", "said"),
    [
        ([], [], "at least one"),
        ([0, 1], [0], "same cells"),
        ([0, -1], [0, 0], "at least one integer code from 0"),
        ([0.0, 1.0], [0, 1], "integer code"),
        ([[0, 1]], [[0, 1]], "one-dimensional"),
        (["a"], ["b"], "integer code"),
    ],
)
def test_bad_input_is_named(true, predicted, said):
    with pytest.raises(ScreproError, match=said):
        classification_scores(true, predicted)


def test_codes_beyond_the_code_space():
    with pytest.raises(ScreproError, match="n_types - 1 = 1"):
        confusion([0, 2], [0, 1], 2)
