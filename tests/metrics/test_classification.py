import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from screpro.errors import ScreproError
from screpro.metrics.areas import pr_auc, roc_auc
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


@st.composite
def scored(draw, n_types):
    """Labels of which every type has a cell, and scores with ties, one per cell and type."""
    n = draw(st.integers(n_types, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    true = rng.permutation(np.concatenate([np.arange(n_types), rng.integers(0, n_types, n - n_types)]))
    return true, rng.integers(0, draw(st.integers(1, 9)), (n, n_types)) / 8


@few
@given(scored(2))
def test_areas_of_two_types_are_those_of_scikit_learn(drawn):
    true, score = drawn
    assert roc_auc(true, score[:, 1]) == pytest.approx(sk.roc_auc_score(true, score[:, 1]))
    assert pr_auc(true, score[:, 1]) == pytest.approx(sk.average_precision_score(true, score[:, 1]))
    # turning the scores round turns every pair round
    assert roc_auc(true, -score[:, 1]) == pytest.approx(1 - roc_auc(true, score[:, 1]))


@few
@given(scored(4))
def test_areas_of_several_types_are_means_of_one_against_the_rest(drawn):
    true, score = drawn
    shares = (score + 1) / (score + 1).sum(axis=1, keepdims=True)  # scikit-learn wants rows that add up to one
    assert roc_auc(true, shares) == pytest.approx(sk.roc_auc_score(true, shares, multi_class="ovr"))
    assert pr_auc(true, shares) == pytest.approx(sk.average_precision_score(np.eye(4)[true], shares))
    rising = np.exp(3 * shares)  # only the order of the scores matters
    assert roc_auc(true, rising) == pytest.approx(roc_auc(true, shares))
    assert pr_auc(true, rising) == pytest.approx(pr_auc(true, shares))
    # a type without cells has no pairs: it is left out
    wider = np.column_stack([shares, np.ones(len(true))])
    assert roc_auc(true, wider) == roc_auc(true, shares)
    assert pr_auc(true, wider) == pr_auc(true, shares)


def test_areas_in_closed_form():
    true = np.array([0, 1, 0, 0])
    assert roc_auc(true, np.zeros(4)) == 0.5 and pr_auc(true, np.zeros(4)) == 0.25  # all tied: the share of type 1
    assert roc_auc(true, np.array([1, 9, 2, 3])) == pr_auc(true, np.array([1, 9, 2, 3])) == 1
    assert pr_auc(true, np.array([3, 1, 2, 4])) == 0.25 and roc_auc(true, np.array([3, 1, 2, 4])) == 0


def test_areas_of_one_type_alone_are_not_numbers():
    for area in (roc_auc, pr_auc):
        assert np.isnan(area([1, 1], [0.2, 0.3])) and np.isnan(area([0, 0], np.ones((2, 3))))


@pytest.mark.parametrize(
    ("true", "score", "said"),
    [
        ([0, 1], [0.1], "one number per cell"),
        ([0, 1], [0.1, np.nan], "1 NaN"),
        ([0, 2], [0.1, 0.2], "codes from 0 to 1"),
        ([0, 3], np.ones((2, 3)), "one column of scores per type"),
        ([0.5, 1], [0.1, 0.2], "integer code"),
        ([], [], "at least one"),
    ],
)
def test_bad_scores_are_named(true, score, said):
    for area in (roc_auc, pr_auc):
        with pytest.raises(ScreproError, match=said):
            area(true, score)
