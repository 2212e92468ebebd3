"""Rank-sum tests, fold changes and false discovery rates against the definition, scipy and pdex."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, mannwhitneyu

from screpro.errors import ScreproError
from screpro.kernels.ranksum import benjamini_hochberg, fold_change, rank_sum, rank_sum_reference


def cells(n=60, genes=12, groups=4, seed=0, signed=False, dtype=np.float32):
    """Values with many zeros and ties; one empty gene, one constant gene, one cell left out."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(1.2, (n, genes)).astype(dtype) / dtype(4)
    if signed:
        x *= rng.choice([-1, 1], x.shape)
    x[:, 0] = 0
    if genes > 1:
        x[:, 1] = 2
    codes = rng.integers(0, groups, n)
    codes[:groups] = np.arange(groups)
    codes[-1] = -1
    return x, codes


def same(ours, theirs):
    np.testing.assert_array_equal(ours.u, theirs.u)
    np.testing.assert_allclose(ours.p, theirs.p, rtol=1e-9)
    np.testing.assert_array_equal(ours.n, theirs.n)


@pytest.mark.parametrize("reference", [0, 2, None])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_form_is_the_definition(form, reference, dtype):
    x, codes = cells(signed=True, dtype=dtype)
    same(
        rank_sum(form(x), codes, n_groups=4, reference=reference),
        rank_sum_reference(x, codes, n_groups=4, reference=reference),
    )


@given(st.integers(2, 40), st.integers(1, 5), st.integers(2, 5), st.integers(0, 10**6), st.booleans(), st.booleans())
def test_any_size_is_the_definition(n, genes, groups, seed, signed, rest):
    x, codes = cells(max(n, groups + 1), genes, groups, seed, signed)
    reference = None if rest else 0
    same(
        rank_sum(sp.csr_matrix(x), codes, n_groups=groups, reference=reference),
        rank_sum_reference(x, codes, n_groups=groups, reference=reference),
    )


@pytest.mark.parametrize("n", [127, 1023])
@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_large_groups_are_the_definition(n, rest, form):
    x, codes = cells(n, 4, 3, seed=n, signed=True)
    reference = None if rest else 0
    same(
        rank_sum(form(x), codes, n_groups=3, reference=reference),
        rank_sum_reference(x, codes, n_groups=3, reference=reference),
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_tensors_are_tested_as_the_numbers_they_hold(dtype):
    import torch

    x, codes = cells(50)
    tensor = torch.from_numpy(x * 1.37).to(getattr(torch, dtype)).requires_grad_()
    rounded = tensor.detach().double().numpy()
    same(
        rank_sum(tensor, codes, n_groups=4, reference=0),
        rank_sum_reference(rounded, codes, n_groups=4, reference=0),
    )
    found = fold_change(tensor, codes, n_groups=4, reference=0)
    np.testing.assert_allclose(found, fold_change(rounded, codes, n_groups=4, reference=0), rtol=1e-12)


@pytest.mark.parametrize("rest", [False, True])
def test_u_and_p_are_scipys(rest):
    x, codes = cells(200, 20, 3, seed=4, signed=True)
    found = rank_sum(sp.csr_matrix(x), codes, n_groups=3, reference=None if rest else 0)
    for group in range(0 if rest else 1, 3):
        own, other = codes == group, ((codes >= 0) & (codes != group)) if rest else codes == 0
        expected = mannwhitneyu(x[own].astype(np.float64), x[other].astype(np.float64), method="asymptotic")
        np.testing.assert_array_equal(found.u[group], expected.statistic)
        # scipy answers NaN where every value is the same; the documented value is 1
        np.testing.assert_allclose(found.p[group], np.nan_to_num(expected.pvalue, nan=1.0), rtol=1e-6)


def test_far_tails_stay_accurate():
    """All of one side above the other, 850 cells each: z is 36, p about 1e-279."""
    x = np.r_[np.zeros(850), np.ones(850)][:, None] + np.random.default_rng(0).random((1700, 1)) / 2
    codes = np.repeat([0, 1], 850)
    expected = mannwhitneyu(x[codes == 1, 0], x[codes == 0, 0], method="asymptotic").pvalue
    assert 1e-300 < expected < 1e-270
    assert rank_sum(x, codes, n_groups=2, reference=0).p[1, 0] == pytest.approx(expected, rel=1e-6)


def test_small_groups_without_ties_take_the_exact_distribution_as_scipy_does():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 30)).astype(np.float32)
    x[:, 3] = np.round(x[:, 3])  # ties: back to the approximation
    codes = np.r_[np.zeros(33, int), np.ones(7, int)]
    found = rank_sum(x, codes, n_groups=2, reference=0, exact_to=8).p[1]
    # gene by gene, as pdex calls it: scipy decides once for all columns it is given
    exact = [mannwhitneyu(column[33:], column[:33], method="auto").pvalue for column in x.T.astype(float)]
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_order_of_cells_and_monotone_maps_change_nothing():
    x, codes = cells(80, 6, 3, seed=2)
    found = rank_sum(x, codes, n_groups=3, reference=0)
    order = np.random.default_rng(0).permutation(len(x))
    same(rank_sum(x[order], codes[order], n_groups=3, reference=0), found)
    same(rank_sum(np.expm1(x), codes, n_groups=3, reference=0), found)
    turned = rank_sum(-x, codes, n_groups=3, reference=0)
    np.testing.assert_array_equal(turned.u[1:] + found.u[1:], (found.n[1:, None] * found.n[0]) * np.ones((1, 6)))


def test_empty_groups_and_unexpressed_genes_have_documented_values():
    x, codes = cells(30, 4, 3)
    found = rank_sum(x, codes, n_groups=5, reference=0)
    assert np.isnan(found.p[[0, 3, 4]]).all() and np.isnan(found.u[[0, 3, 4]]).all()
    assert (found.p[1:3, :2] == 1).all()  # all zero; all equal
    assert list(found.n[3:]) == [0, 0]
    one = rank_sum(x[:2], np.array([0, 1]), n_groups=2, reference=0)
    assert np.isfinite(one.p[1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(codes=np.zeros(3, int)), "one integer group code"),
        (dict(codes=np.full(10, 7)), "Group codes run"),
        (dict(reference=5), "reference is the code"),
        (dict(x=np.full((10, 2), np.nan, np.float32)), "finite"),
        (dict(x=sp.csr_matrix(np.full((10, 2), np.inf))), "finite"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    given_ = dict(x=np.ones((10, 2), np.float32), codes=np.arange(10) % 2, n_groups=2, reference=0) | change
    with pytest.raises(ScreproError, match=message):
        rank_sum(given_.pop("x"), given_.pop("codes"), **given_)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fold_changes_and_tests_refuse_the_same_values(form, value):
    x = np.ones((10, 2), np.float32)
    x[3, 1] = value
    for test in (rank_sum, fold_change):
        with pytest.raises(ScreproError, match="finite"):
            test(form(x), np.arange(10) % 2, n_groups=2, reference=0)


# --- fold changes and false discovery rates ---------------------------------------------------------------------


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_fold_change_is_that_of_mean_logs_and_zero_means_are_clipped(form):
    x = np.array([[0, 1, 0, 2], [0, 1, 0, 0], [0, 2, 1, 0], [0, 4, 1, 0]], np.float32)
    codes = np.array([0, 0, 1, 1])
    found = fold_change(form(x), codes, n_groups=2, reference=0)
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], [1, np.expm1(3) / np.expm1(1), 20, 1 / 20], rtol=1e-6)
    plain = fold_change(form(x), codes, n_groups=2, reference=0, log1p=False)
    np.testing.assert_allclose(plain[1], [1, 3, 20, 1 / 20])
    rest = fold_change(form(x), codes, n_groups=2)
    np.testing.assert_allclose(rest[0, 1] * rest[1, 1], 1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_benjamini_hochberg_is_scipys(values):
    p = np.array(values)
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p), rtol=1e-12, atol=1e-300)


def test_families_and_missing_tests():
    p = np.random.default_rng(0).random((3, 7))
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p.ravel()).reshape(3, 7))
    np.testing.assert_allclose(benjamini_hochberg(p, axis=1), false_discovery_control(p, axis=1))
    p[0] = np.nan  # the controls: not tests
    np.testing.assert_allclose(benjamini_hochberg(p)[1:], false_discovery_control(p[1:].ravel()).reshape(2, 7))
    assert np.isnan(benjamini_hochberg(p)[0]).all()
    with pytest.raises(ScreproError, match="between 0 and 1"):
        benjamini_hochberg(np.array([1.5]))
    with pytest.raises(ScreproError, match="One family"):
        benjamini_hochberg(p, axis=0)


def test_everything_is_pdexs():
    """pdex 0.1: the differential expression that Cell-Eval 0.6 calls."""
    pdex = pytest.importorskip("pdex")
    if not hasattr(pdex, "parallel_differential_expression"):
        pytest.skip("another version of pdex")
    import anndata
    import pandas as pd

    rng = np.random.default_rng(3)
    counts = np.log1p(rng.poisson(rng.gamma(1, 1, 25), (120, 25)))
    counts[:, 20:] = rng.random((120, 5))  # no ties: the small group takes the exact test
    counts[:, 0] = 0
    codes = np.r_[rng.integers(0, 3, 114), np.full(6, 3)]
    counts[codes == 0, 1] = counts[codes == 1, 2] = 0  # fold changes without a denominator, a numerator
    names = np.array(["ctrl", "a", "b", "few"])
    # scipy computes the p-values of a float32 matrix in float32
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 1e-4)):
        x = counts.astype(dtype)
        adata = anndata.AnnData(x, obs=pd.DataFrame({"p": names[codes]}, index=[str(i) for i in range(120)]))
        table = pdex.parallel_differential_expression(
            adata, reference="ctrl", groupby_key="p", num_workers=1, is_log1p=True
        )
        found = rank_sum(x, codes, n_groups=4, reference=0, exact_to=8)
        folds = fold_change(x, codes, n_groups=4, reference=0)
        q = benjamini_hochberg(found.p)
        for code in (1, 2, 3):
            own = table[table["target"] == names[code]].set_index("feature").loc[adata.var_names]
            np.testing.assert_array_equal(found.u[code], own["statistic"])
            np.testing.assert_allclose(found.p[code], own["p_value"], rtol=tolerance)
            np.testing.assert_allclose(folds[code], own["fold_change"], rtol=min(tolerance, 1e-5))
            np.testing.assert_allclose(q[code], own["fdr"], rtol=tolerance)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_threads_and_ranges_of_genes_change_nothing(monkeypatch, form):
    from screpro.kernels import groups, ranksum_keys

    x, codes = cells(70, 9, 3, seed=8, signed=True)
    expected = rank_sum_reference(x, codes, n_groups=3, reference=1)
    folds = fold_change(form(x), codes, n_groups=3, reference=1)
    for module in (groups, ranksum_keys):
        monkeypatch.setattr(module, "threads", lambda tasks: 3)
    for at_once in (10**9, 100, 1):  # keys: all genes, about three of nine, less than one gene
        monkeypatch.setattr(ranksum_keys, "ENTRIES_AT_ONCE", at_once)
        same(rank_sum(form(x), codes, n_groups=3, reference=1), expected)
    np.testing.assert_array_equal(fold_change(form(x), codes, n_groups=3, reference=1), folds)


def test_storage_changes_nothing():
    """Entries that stand twice are added, stored zeros and -0 are zeros, 64-bit indices and column order are read."""
    x, codes = cells(30, 5, 3, seed=9)
    expected = rank_sum_reference(x, codes, n_groups=3, reference=0)
    rows, columns = np.indices(x.shape).reshape(2, -1)
    twice = sp.coo_matrix((np.r_[x.ravel() / 2, x.ravel() / 2], (np.r_[rows, rows], np.r_[columns, columns])), x.shape)
    indptr = np.arange(31) * 5
    as_stored = sp.csr_matrix((twice.data, (twice.row, twice.col)), x.shape)
    reversed_ = sp.csr_matrix((x[:, ::-1].ravel(), np.tile(np.arange(5)[::-1], 30).astype(np.int64), indptr), x.shape)
    negative_zero = np.where(x == 0, np.float32(-0.0), x)
    doubled = sp.csr_matrix((np.repeat(x.ravel() / 2, 2), np.repeat(columns, 2), indptr * 2), x.shape)
    for stored in (as_stored, reversed_, negative_zero, sp.csr_array(negative_zero), doubled, x.astype(np.float16)):
        same(rank_sum(stored, codes, n_groups=3, reference=0), expected)
    integers = rank_sum((4 * x).astype(np.int64), codes, n_groups=3, reference=0)
    same(integers, expected)


# --- Triton -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [0, 2, None])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_triton_is_the_definition(form, reference, dtype):
    pytest.importorskip("triton")
    import torch

    from screpro.kernels.gpu import ranksum as gpu

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, codes = cells(41, 7, 4, seed=5, signed=True, dtype=dtype)
    if dtype == np.float64:
        x[:, 5] *= 1 + np.random.default_rng(0).random(41) * 1e-12  # not a float32
    expected = rank_sum_reference(x, codes, n_groups=4, reference=reference)
    sizes = np.bincount(codes[codes >= 0], minlength=4)
    u, p = gpu.sums(form(x), codes, sizes, -1 if reference is None else reference, 0, device=device)
    groups = [g for g in range(4) if g != reference]
    np.testing.assert_array_equal(u[groups], expected.u[groups])
    np.testing.assert_allclose(p[groups], expected.p[groups], rtol=1e-9)


def test_triton_in_several_blocks_of_genes_and_without_any_value(monkeypatch):
    pytest.importorskip("triton")
    import torch

    from screpro.kernels.gpu import ranksum as gpu

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, codes = cells(23, 5, 3, seed=6)
    sizes = np.bincount(codes[codes >= 0], minlength=3)
    whole = gpu.sums(x, codes, sizes, 0, 8, device=device)
    monkeypatch.setattr(gpu, "ENTRIES_AT_ONCE", 40)
    for form in (np.asarray, sp.csr_matrix, torch.from_numpy):
        for part, all_at_once in zip(gpu.sums(form(x), codes, sizes, 0, 8, device=device), whole, strict=True):
            np.testing.assert_array_equal(part, all_at_once)
    u, p = gpu.sums(np.zeros((23, 2), np.float32), codes, sizes, 0, 0, device=device)
    assert (p == 1).all() and (u[1] == sizes[1] * sizes[0] / 2).all()
    with pytest.raises(ScreproError, match="finite"):
        gpu.sums(np.full((23, 2), np.inf, np.float32), codes, sizes, 0, 0, device=device)
