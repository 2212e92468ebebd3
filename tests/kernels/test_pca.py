import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.kernels import gram, pca
from screpro.kernels.pca import Components


def cells(n, g, density=0.3, rank=6, seed=0, dtype=np.float32):
    """CSR with a few strong directions and a share of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, g)) + 0.3 * rng.normal(size=(n, g)) + 2
    return sp.csr_matrix((x * (rng.random((n, g)) < density)).astype(dtype))


def angle(a, b):
    """Sine of the largest angle between the column spaces of two orthonormal matrices."""
    return np.linalg.norm(a - b @ (b.T @ a), 2)


def agree(found: Components, x, k, tolerance):
    """Components k of x are the reference's, up to `tolerance` of the largest variance in the Gram matrix."""
    wanted = pca.reference(x, k + 1)
    gap = -np.diff(wanted.variance).max() / wanted.variance[0]  # axes turn by the error over the gap
    np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-6)
    np.testing.assert_allclose(found.variance, wanted.variance[:k], atol=tolerance * wanted.variance[0])
    np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(found.axes, wanted.axes[:, :k], atol=tolerance / gap)
    np.testing.assert_allclose(found.scores.var(0, ddof=1), found.variance, atol=tolerance * wanted.variance[0])
    assert all(part.dtype == np.float64 for part in found)


FORMS = {
    "csr": lambda x: x,
    "csc": lambda x: x.tocsc(),
    "coo": lambda x: x.tocoo(),
    "array": sp.csr_array,
    "dense": lambda x: x.toarray(),
    "fortran": lambda x: np.asfortranarray(x.toarray()),
    "float64": lambda x: x.astype(np.float64),
    "tensor": lambda x: torch.from_numpy(x.toarray()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(17, 17), (127, 40), (40, 127), (1023, 33)])
@pytest.mark.parametrize("density", [0.05, 0.6])
def test_components_are_those_of_the_singular_value_decomposition(form, shape, density):
    x = cells(*shape, density)
    agree(pca.pca(FORMS[form](x), 4), x, 4, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(127, 40), (40, 127)])
def test_half_precision_cells_are_taken_as_they_are(dtype, shape):
    x = torch.from_numpy(cells(*shape, 0.6).toarray()).to(dtype)
    agree(pca.pca(x.requires_grad_(), 4), x.detach().double().numpy(), 4, 1e-5)


@pytest.mark.parametrize("density", [0.05, 0.6])
@pytest.mark.parametrize("shape", [(90, 30), (30, 90)])
def test_float64_is_exact_by_either_gram_matrix(shape, density):
    x = cells(*shape, density, dtype=np.float64)
    agree(pca.pca(x, 5), x, 5, 1e-12)
    agree(pca.pca(x.toarray(), 5), x, 5, 1e-12)
    agree(pca.pca(torch.from_numpy(x.toarray()), 5), x, 5, 1e-12)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("shape", [(200, 31), (31, 200)])
def test_sparse_tensors_in_chunks(shape, monkeypatch):
    from screpro.kernels.gpu import pca as on_gpu

    monkeypatch.setattr(on_gpu, "NUMBERS_PER_CHUNK", 31 * 17)
    x = cells(*shape, dtype=np.float64)
    tensor = torch.sparse_csr_tensor(*(torch.from_numpy(a) for a in (x.indptr, x.indices, x.data)), shape)
    agree(pca.pca(tensor, 5), x, 5, 1e-12)
    with pytest.raises(ScreproError, match="CSR"):
        pca.pca(tensor.to_sparse_coo(), 5)


def test_lanczos_where_both_sides_are_long(monkeypatch):
    x = cells(150, 120)
    monkeypatch.setattr(pca, "LIMIT", 100)
    agree(pca.pca(x, 4), x, 4, 1e-6)
    agree(pca.pca(x.toarray(), 4), x, 4, 1e-6)
    with pytest.raises(ScreproError, match="differ"):
        pca.pca(np.full((150, 120), 0.3), 4)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_gram_matrix_does_not_depend_on_threads_and_chunks(threads, monkeypatch):
    x = cells(301, 57)
    keep = np.ones((301, 57))
    keep[3], keep[:, 11] = 0, 0  # an empty cell, and an empty gene
    x = sp.csr_matrix(x.multiply(keep), dtype=np.float32)
    wanted = gram.sparse_gram(*gram.csr_parts(x), 57)
    monkeypatch.setattr(gram.numba, "get_num_threads", lambda: threads)
    np.testing.assert_array_equal(gram.sparse_gram(*gram.csr_parts(x), 57), wanted)
    monkeypatch.setattr(gram, "ENTRIES_PER_CHUNK", 40)
    exact = np.triu((x.T.astype(np.float64) @ x.astype(np.float64)).toarray())
    np.testing.assert_allclose(gram.sparse_gram(*gram.csr_parts(x), 57), exact, rtol=1e-12)
    table = np.random.default_rng(0).normal(size=(57, 3))
    np.testing.assert_allclose(gram.sparse_times_dense(*gram.csr_parts(x), table), x @ table, rtol=1e-5, atol=1e-5)
    assert not gram.sparse_gram(*gram.csr_parts(sp.csr_matrix((5, 4))), 4).any()


def test_dense_chunks_add_up():
    x = cells(9001, 7, dtype=np.float64).toarray()

    def block(start, stop, out):
        out[:] = x[start:stop]

    np.testing.assert_allclose(gram.dense_gram(block, 9001, 7, np.float64), np.triu(x.T @ x), rtol=1e-12)


def test_a_certificate_is_given_for_the_largest_eigenvalues_only(monkeypatch):
    import scipy.sparse.linalg

    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(600, 600)))[0]
    values = np.r_[np.linspace(9, 5, 12), [2.0, 2.0, 2.0], np.linspace(1, 0, 585)]  # one of them threefold
    matrix = (q * values) @ q.T
    found, vectors = pca._certified(np.triu(matrix), 15)
    np.testing.assert_allclose(found[::-1], values[:15], rtol=1e-12)
    assert angle(vectors, q[:, :15]) < 1e-6
    # iterations that overlooked the second eigenvalue
    monkeypatch.setattr(
        scipy.sparse.linalg, "eigsh", lambda *_, **__: (values[[3, 2, 0]], np.ascontiguousarray(q[:, [3, 2, 0]]))
    )
    assert pca._certified(np.triu(matrix), 3) is None
    slow, _ = pca._leading(np.triu(matrix), 3, mean=np.zeros(600), n=600)
    np.testing.assert_allclose(slow, values[:3], rtol=1e-12)


def test_the_certificate_sees_what_float32_cannot():
    """Where the next eigenvalue is too near for float32, float64 decides; one that was overlooked is never passed."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(300, 300)))[0]
    for gap in (1e-1, 1e-6):
        values = np.r_[[500.0, 2.0], np.full(298, 2.0 - 2.0 * gap)]
        upper = np.triu((q * values) @ q.T)
        assert pca._are_largest(upper, values[[1, 0]], q[:, [1, 0]])
        assert not pca._are_largest(upper, values[[2, 0]], q[:, [2, 0]])  # 2 was overlooked
        assert not pca._are_largest(upper, values[[2, 1]], q[:, [2, 1]])


def test_as_scanpy_and_sklearn_have_it():
    import scanpy as sc
    from sklearn.decomposition import PCA

    x = cells(800, 600, 0.08)
    found = pca.pca(x, 6)
    theirs = sc.pp.pca(x, n_comps=6, return_info=True)
    assert angle(found.axes, theirs[1].T) < 1e-3
    np.testing.assert_allclose(found.variance, theirs[3], rtol=1e-4)
    full = PCA(6, svd_solver="full").fit(x.toarray().astype(np.float64))
    assert angle(found.axes, full.components_.T) < 1e-6
    np.testing.assert_allclose(found.variance, full.explained_variance_, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 40), st.integers(2, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_laws(n, g, density, seed):
    rng = np.random.default_rng(seed)
    x = cells(n, g, 0.2 + 0.8 * density, seed=seed, dtype=np.float64)
    assume(np.ptp(x.toarray(), axis=0).max() > 0)
    k = min(n - 1, g, 3)
    found = pca.pca(x, k)
    # every largest loading is positive, and variances fall
    assert (found.axes[np.abs(found.axes).argmax(0), np.arange(k)] > 0).all()
    assert (np.diff(found.variance) <= 1e-12 * found.variance[0]).all()
    np.testing.assert_allclose(found.scores.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose((x.toarray() - found.mean) @ found.axes, found.scores, atol=1e-9)
    # order of the cells, a shift and a scale
    order = rng.permutation(n)
    other = pca.pca(3 * x.toarray()[order] - 5, k)
    np.testing.assert_allclose(other.variance, 9 * found.variance, rtol=1e-9, atol=1e-9)
    # the total variance, where there are as many components as directions
    every = min(n - 1, g)
    total = pca.pca(x, every).variance.sum()
    assert total == pytest.approx(x.toarray().var(0, ddof=1).sum(), rel=1e-9)


@pytest.mark.parametrize("shape", [(40, 9), (9, 40)])
def test_directions_that_do_not_exist_have_variance_zero(shape):
    rng = np.random.default_rng(0)
    x = np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))  # one direction
    found = pca.pca(x, 4)
    assert found.variance[0] == pytest.approx(x.var(0, ddof=1).sum())
    np.testing.assert_allclose(found.variance[1:], 0, atol=1e-12)
    np.testing.assert_allclose(found.scores[:, 1:], 0, atol=1e-6)
    np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(4), atol=1e-10)


def test_a_gene_far_from_zero_does_not_disturb_the_others():
    x = cells(500, 20, 1.0, dtype=np.float32).toarray()
    shifted = x.astype(np.float64)
    shifted[:, 4] += 1e4
    agree(pca.pca(sp.csr_matrix(shifted), 4), shifted, 4, 1e-8)
    far = np.float32(shifted)  # rounded by 1e-3, so the reference has to see the same numbers
    agree(pca.pca(far, 4), far, 4, 1e-5)


def test_duplicate_entries_and_integers_are_summed_and_nothing_is_changed():
    dense = np.random.default_rng(0).poisson(0.4, size=(30, 12))
    rows, columns = dense.nonzero()
    halves = sp.csr_matrix(
        (np.r_[dense[rows, columns] - 1, np.ones(len(rows))], (np.r_[rows, rows], np.r_[columns, columns])), (30, 12)
    )
    raw = sp.coo_matrix((halves.data, halves.nonzero()), (30, 12))
    unsorted = sp.csr_matrix(dense)
    unsorted.indices, unsorted.data = unsorted.indices.copy(), unsorted.data.copy()
    for start, stop in zip(unsorted.indptr, unsorted.indptr[1:], strict=False):
        unsorted.indices[start:stop] = unsorted.indices[start:stop][::-1].copy()
        unsorted.data[start:stop] = unsorted.data[start:stop][::-1].copy()
    unsorted.has_sorted_indices = unsorted.has_canonical_format = False
    kept = unsorted.indices.copy()
    for x in (raw, unsorted, dense, dense.astype(bool) * dense):
        agree(pca.pca(x, 3), dense, 3, 1e-12)
    np.testing.assert_array_equal(unsorted.indices, kept)


@pytest.mark.parametrize("form", ["csr", "dense", "tensor"])
def test_errors(form):
    make = FORMS[form]
    with pytest.raises(ScreproError, match=r"12 components of 12 cells x 40 genes"):
        pca.pca(make(cells(12, 40)), 12)
    with pytest.raises(ScreproError, match=r"13 components of 40 cells x 12 genes"):
        pca.pca(make(cells(40, 12)), 13)
    with pytest.raises(ScreproError, match="fewer than cells"):
        pca.pca(make(cells(40, 12)), 0)
    with pytest.raises(ScreproError, match="1 cells"):
        pca.pca(make(cells(1, 12)), 1)
    bad = cells(40, 12)
    bad.data[3], bad.data[7] = np.nan, np.inf
    with pytest.raises(ScreproError, match="2 values"):
        pca.pca(make(bad), 3)
    for shape in ((40, 12), (12, 40)):
        with pytest.raises(ScreproError, match="differ"):
            pca.pca(make(sp.csr_matrix(np.full(shape, 0.1, np.float32))), 3)
        with pytest.raises(ScreproError, match="differ"):
            pca.pca(make(sp.csr_matrix(shape, dtype=np.float32)), 3)
