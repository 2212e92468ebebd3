"""The dropout mask: how many, how often by count, and what is taken out."""

import numpy as np
import pytest
import scipy.sparse as sp

from screpro.data.masks import hidden_share, hide, mar_mask
from screpro.errors import ScreproError


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    return sp.csr_matrix(rng.negative_binomial(0.3, 0.05, (60, 50)).astype(np.float32))


def test_a_tenth_of_the_non_zero_entries_is_hidden(counts):
    hidden = mar_mask(counts, rng=np.random.default_rng(10))
    assert hidden.nnz == int(0.1 * counts.nnz) and hidden.dtype == bool and hidden.shape == counts.shape
    assert (counts.toarray()[hidden.toarray()] > 0).all()


def test_the_mask_is_a_weighted_draw_over_the_entries_in_row_order(counts):
    dense = counts.toarray()
    entries = np.flatnonzero(dense)
    weight = np.exp(-dense.ravel()[entries].astype(np.float64) / 20)
    chosen = np.random.default_rng(10).choice(len(entries), len(entries) // 10, replace=False, p=weight / weight.sum())
    expected = np.zeros(dense.size, dtype=bool)
    expected[entries[chosen]] = True
    np.testing.assert_array_equal(mar_mask(counts, rng=np.random.default_rng(10)).toarray().ravel(), expected)


def test_the_order_in_which_a_sparse_matrix_lists_its_entries_does_not_matter(counts):
    unsorted = counts[:, np.random.default_rng(3).permutation(50)]
    back = sp.csr_matrix((unsorted.data, unsorted.indices, unsorted.indptr), shape=unsorted.shape)
    a, b = (mar_mask(m, rng=np.random.default_rng(1)).toarray() for m in (back, sp.csr_matrix(unsorted.toarray())))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("share", "scale"), [(0.1, 20.0), (0.4, 5.0), (0.2, None)])
def test_entries_are_hidden_as_often_as_the_formula_says(counts, share, scale):
    expected = hidden_share(counts, share=share, scale=scale)
    assert expected.sum() == pytest.approx(int(share * counts.nnz), rel=1e-9)
    times = np.zeros(counts.nnz)
    entries, draws = counts.nonzero(), 600
    for seed in range(draws):
        times += mar_mask(counts, share=share, scale=scale, rng=np.random.default_rng(seed)).toarray()[entries]
    error = (times / draws - expected) / np.sqrt(expected * (1 - expected) / draws + 1e-9)
    assert abs(error.mean()) < 0.1 and error.std() == pytest.approx(1, abs=0.12)
    if scale is None:
        np.testing.assert_allclose(expected, int(share * counts.nnz) / counts.nnz)
    else:  # small counts are hidden more often
        assert (np.diff(expected[np.argsort(counts.data)]) <= 1e-15).all()


def test_normalised_first_the_hidden_counts_stay_in_the_totals(counts):
    hidden = mar_mask(counts, rng=np.random.default_rng(0))
    mask, dense, out = hide(counts, hidden), counts.toarray().astype(np.float64), hidden.toarray()
    whole = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(mask.x.toarray(), np.where(out, 0, whole), rtol=1e-6)
    np.testing.assert_allclose(mask.matrix(mask.truth).toarray(), np.where(out, whole, 0), rtol=1e-6)
    np.testing.assert_array_equal(mask.counts.toarray(), np.where(out, 0, dense))
    np.testing.assert_allclose(mask.at_hidden(whole), mask.truth, rtol=1e-6)


def test_clean_the_visible_part_has_its_own_totals_and_the_truth_stays(counts):
    hidden = mar_mask(counts, rng=np.random.default_rng(0))
    mask, first = hide(counts, hidden, clean=True), hide(counts, hidden)
    np.testing.assert_allclose(np.expm1(mask.x.toarray()).sum(axis=1), 1e4, rtol=1e-4)
    np.testing.assert_array_equal(mask.truth, first.truth)
    assert (mask.size < first.size).any() and (mask.size <= first.size).all()


def test_a_mask_in_a_mask_keeps_the_scale(counts):
    outer = hide(counts, mar_mask(counts, rng=np.random.default_rng(0)))
    again = mar_mask(outer.counts, rng=np.random.default_rng(1))
    inner = hide(outer.counts, again, size=outer.size)
    np.testing.assert_allclose(inner.truth, outer.x.toarray()[again.toarray()], rtol=1e-6)
    np.testing.assert_allclose((inner.x + inner.matrix(inner.truth)).toarray(), outer.x.toarray(), rtol=1e-6)
    assert not (again.multiply(outer.hidden)).nnz


def test_rows_of_a_mask_are_the_mask_of_the_rows(counts):
    mask, rows = hide(counts, mar_mask(counts, rng=np.random.default_rng(0))), np.array([4, 17, 59])
    part = mask.take(rows)
    np.testing.assert_array_equal(part.matrix(part.truth).toarray(), mask.matrix(mask.truth).toarray()[rows])
    np.testing.assert_array_equal(part.x.toarray(), mask.x.toarray()[rows])


def test_wrong_masks_are_refused(counts):
    rng = np.random.default_rng(0)
    with pytest.raises(ScreproError, match="share between"):
        mar_mask(counts, share=1.0, rng=rng)
    with pytest.raises(ScreproError, match="at least one entry"):
        mar_mask(counts[:1, :8], rng=rng)
    with pytest.raises(ScreproError, match="with a weight"):
        mar_mask(counts * 20000, rng=rng)
    with pytest.raises(ScreproError, match="finite and 0 or more"):
        mar_mask(-counts, rng=rng)
    with pytest.raises(ScreproError, match="shape of its counts"):
        hide(counts[:3], mar_mask(counts, rng=rng))
    with pytest.raises(ScreproError, match="Only non-zero"):
        hide(counts, sp.csr_matrix(counts.toarray() == 0))
