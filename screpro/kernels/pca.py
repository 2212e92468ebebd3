"""Principal components of cells x genes, sparse or dense: exact, by the Gram matrix of the shorter side.

``(x - 1 m')' (x - 1 m') = x' x - n m m'``: the means m leave a sparse x as it is and come in afterwards as a correction
of rank one, in float64. Cost: the Gram matrix (`screpro.kernels.gram`; sparse below about 10 % non-zeros, else chunks
made dense), its k leading eigenvectors, and one sparse product for the scores. Other implementations call x some
hundred times (Lanczos) or make all of it dense. With fewer cells than genes the n x n Gram matrix takes the place of
the g x g one; a matrix with more than `LIMIT` of both goes through Lanczos on x itself.

The eigenvectors of the Gram matrix come from Lanczos iterations as well, with a certificate: that no eigenvalue was
overlooked shows in a Cholesky factorisation of ``s I - (C - U L U')`` for s at the smallest one found, which exists
only if everything left is below s. Without it, all eigenvectors are computed the slow way.

Signs are fixed: the largest loading of every component is positive.

A tensor is worked on by torch on its own device (`gpu/pca.py`), on a GPU by cuBLAS and cuSOLVER. There is no Triton
kernel: the hot sum is a plain product of dense chunks, for which cuBLAS is the limit.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError
from screpro.kernels import gram

__all__ = ["LIMIT", "Components", "pca", "reference"]

LIMIT = 8192
"""Longest side of a Gram matrix; its eigenvectors would cost more than iterations on the cells themselves."""


class Components(NamedTuple):
    """Principal components, float64. Coordinates of other cells y: ``(y - mean) @ axes``."""

    mean: np.ndarray  # (G,) of every gene
    axes: np.ndarray  # (G, k) orthonormal, by falling variance
    variance: np.ndarray  # (k,) of the scores, n - 1 in the denominator
    scores: np.ndarray  # (n, k) coordinates of the cells


def pca(x, k: int) -> Components:
    """First k principal components of cells.

    Parameters
    ----------
    x
        (n, G) cells, dense or sparse (scipy), or a torch tensor: dense, or sparse CSR. A tensor on a GPU is worked on
        there. float32 sparse values are summed in float64; float32 dense chunks are multiplied in float32 after
        centring.
    k
        Number of components, at most n - 1 and at most G.

    Returns
    -------
    Components
        Exact up to rounding; with variance 0 and arbitrary orthonormal axes where the cells have no k directions.

    Raises
    ------
    ScreproError
        Fewer than two cells, k out of range, values that are not finite, or cells that are all equal.
    """
    if hasattr(x, "is_cuda"):  # a torch tensor; torch itself need not be imported here
        from screpro.kernels.gpu.pca import pca_torch

        _check_shape(tuple(x.shape), k)
        return Components(*pca_torch(x, k))
    _check_shape(np.shape(x), k)
    x = _plain(x)
    mean = _mean(x)
    if min(x.shape) > LIMIT:
        return _lanczos(x, mean, k)
    if x.shape[1] <= x.shape[0]:
        values, axes = _leading(_gram_of_genes(x, mean), k, mean=mean, n=x.shape[0])
        return _components(x, mean, axes, values)
    genes = x.T.tocsr() if sp.issparse(x) else x.T
    values, vectors = _leading(_gram_of_cells(x, genes, mean), k, mean=mean, n=x.shape[0])
    directions = _times(genes, vectors) - np.outer(mean, vectors.sum(0))
    return _components(x, mean, orthonormal(directions, values), values)


def reference(x, k: int) -> Components:
    """The same by the singular values of the dense centred matrix in float64."""
    x = (x.toarray() if sp.issparse(x) else np.asarray(x)).astype(np.float64)
    _check_shape(x.shape, k)
    mean = x.mean(0)
    _, s, axes = np.linalg.svd(x - mean, full_matrices=False)
    axes = fixed_signs(axes[:k].T)
    return Components(mean, axes, s[:k] ** 2 / (len(x) - 1), (x - mean) @ axes)


def fixed_signs(axes: np.ndarray) -> np.ndarray:
    """Every column (G, k) turned so that its largest entry in size is positive."""
    largest = np.abs(axes).argmax(0)
    return axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)


# --- Gram matrices of centred cells, upper triangle ------------------------------------------------------------


def _gram_of_genes(x, mean: np.ndarray) -> np.ndarray:
    """``sum_i (x_i - m)(x_i - m)'`` (G, G)."""
    n, g = x.shape
    if sp.issparse(x) and gram.is_sparse_enough(x.indptr, g):
        out = gram.sparse_gram(*gram.csr_parts(x), g)
        for i in range(g):  # rank one, line by line: no second matrix of that size
            out[i, i:] -= n * mean[i] * mean[i:]
        return out
    return _dense_gram(x, mean[None, :])


def _gram_of_cells(x, genes, mean: np.ndarray) -> np.ndarray:
    """``(x_i - m)'(x_j - m)`` (n, n): the sum runs over `genes`, the rows of the transposed matrix."""
    n = x.shape[0]
    if sp.issparse(x) and gram.is_sparse_enough(genes.indptr, n):
        out = gram.sparse_gram(*gram.csr_parts(genes), n)
        of_cell, of_mean = _times(x, mean[:, None])[:, 0], mean @ mean
        for i in range(n):
            out[i, i:] += of_mean - of_cell[i] - of_cell[i:]
        return out
    return _dense_gram(genes, mean[:, None])


def _dense_gram(a, centre: np.ndarray) -> np.ndarray:
    """Gram matrix of the rows of `a` less `centre`, which is one row, or one number a row, for all of them."""
    single = a.dtype == np.float32
    centre = centre.astype(np.float32 if single else np.float64)

    def block(start: int, stop: int, out: np.ndarray) -> None:
        own = centre if len(centre) == 1 else centre[start:stop]
        rows = a[start:stop]
        np.subtract(rows.toarray() if sp.issparse(rows) else rows, own, out=out)

    return gram.dense_gram(block, *a.shape, dtype=np.float32 if single else np.float64)


# --- eigenvectors ----------------------------------------------------------------------------------------------


def _leading(upper: np.ndarray, k: int, *, mean: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest eigenvalues (k,), falling, and eigenvectors (s, k) of a symmetric matrix of which `upper` is given.

    `mean` and `n` tell how large the matrix was before it was centred.
    """
    from scipy.linalg import eigh

    check_variation(np.trace(upper), mean, n)
    size = len(upper)
    found = _certified(upper, k) if size >= 512 and k <= size // 16 else None
    if found is None:  # LAPACK takes columns first, in which our upper triangle is the lower one
        found = eigh(upper.T, lower=True, subset_by_index=[size - k, size - 1], check_finite=False)
    values, vectors = found
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _certified(upper: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The k largest eigenvalues, rising, and vectors by Lanczos; None if they cannot be shown to be the largest."""
    from scipy.linalg.blas import dsymv
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    size = len(upper)
    # a product with one triangle reads half as much memory, which is all that it costs
    matrix = LinearOperator((size, size), matvec=lambda v: dsymv(1.0, upper.T, v, lower=1), dtype=np.float64)
    try:
        values, vectors = eigsh(matrix, k, v0=np.random.default_rng(0).normal(size=size), maxiter=20)
    except ArpackError:
        return None
    return (values, vectors) if _are_largest(upper, values, vectors) else None


def _are_largest(upper: np.ndarray, values: np.ndarray, vectors: np.ndarray) -> bool:
    """Whether all other eigenvalues are below those found, rising: ``s I - rest`` has a Cholesky factor only then."""
    from scipy.linalg.blas import dsyrk
    from scipy.linalg.lapack import dpotrf, spotrf

    # all of it by scipy's library: numpy brings one of its own, whose threads would spin beside the factorisation
    size = len(upper)
    weighted = vectors * np.sqrt(np.maximum(values, 0))
    left = dsyrk(1.0, weighted, beta=-1.0, c=upper.T.copy(order="F"), lower=1, overwrite_c=1)
    diagonal = left.diagonal().copy()

    def factor(potrf: Callable, dtype: type, s: float) -> bool:
        np.fill_diagonal(left, diagonal + s)
        return potrf(left.astype(dtype, copy=False), lower=1, clean=0, overwrite_a=1)[1] == 0

    # float32 takes half the time and will do where the next eigenvalue is further away than its rounding reaches
    margin = size * float(np.finfo(np.float32).eps)
    return factor(spotrf, np.float32, values[0] * (1 - margin)) or factor(
        dpotrf, np.float64, values[0] + 1e-10 * values[-1]
    )


def _lanczos(x, mean: np.ndarray, k: int) -> Components:
    """Both sides are long: iterations on the cells themselves, centred on the fly."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    n, g = x.shape
    genes = x.T.tocsr() if sp.issparse(x) else x.T

    def gene_side(v: np.ndarray) -> np.ndarray:
        scores = _times(x, v.reshape(g, 1)) - mean @ v.ravel()
        return (_times(genes, scores) - mean[:, None] * scores.sum()).ravel()

    operator = LinearOperator((g, g), matvec=gene_side, dtype=np.float64)
    values, vectors = eigsh(operator, k, v0=np.random.default_rng(0).normal(size=g))
    check_variation(values.sum(), mean, n)
    return _components(x, mean, vectors[:, ::-1], np.maximum(values[::-1], 0))


def orthonormal(directions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Axes (G, k) from directions (G, k) of length ``sqrt(values)``; those of no length become any others."""
    real = values > 1e-13 * values[0]
    filled = np.where(real, directions, np.random.default_rng(0).normal(size=directions.shape))
    axes, r = np.linalg.qr(filled / np.linalg.norm(filled, axis=0))
    return axes * np.where(np.diag(r) < 0, -1.0, 1.0)


def _components(x, mean: np.ndarray, axes: np.ndarray, values: np.ndarray) -> Components:
    axes = np.ascontiguousarray(fixed_signs(axes))
    scores = _times(x, axes)
    scores -= (mean[:, None] * axes).sum(0)  # not a product by BLAS: its threads would spin into what comes next
    return Components(mean, axes, values / (x.shape[0] - 1), scores)


# --- small pieces ----------------------------------------------------------------------------------------------


def _plain(x):
    """As CSR without duplicate entries, or as a dense array; float32 or float64."""
    if sp.issparse(x):
        x = x.tocsr()
        if not x.has_canonical_format:
            x = x.copy()
            x.sum_duplicates()
    else:
        x = np.asarray(x)
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)


def _times(x, table: np.ndarray) -> np.ndarray:
    """``x @ table`` (n, k) in float64."""
    if sp.issparse(x):
        return gram.sparse_times_dense(*gram.csr_parts(x), table)
    step = max(1, 2**22 // max(1, x.shape[1]))  # a float64 copy of some rows at a time
    return np.concatenate([x[i : i + step].astype(np.float64) @ table for i in range(0, len(x), step)])


def _mean(x) -> np.ndarray:
    """Mean (G,) float64 of finite values."""
    n, g = x.shape
    sums = gram.column_sums(*gram.csr_parts(x)[1:], g) if sp.issparse(x) else x.sum(0, dtype=np.float64)
    if not np.isfinite(sums).all():
        values = x.data if sp.issparse(x) else x
        raise ScreproError(
            "Principal components need finite values.",
            got=f"{int((~np.isfinite(values)).sum())} values that are NaN or infinite",
            fix="find out where they come from; do not fill them with zeros",
        )
    return sums / n


def _check_shape(shape: tuple[int, ...], k: int) -> None:
    if len(shape) != 2 or shape[0] < 2 or not 1 <= k <= min(shape[0] - 1, shape[1]):
        cells, genes = shape if len(shape) == 2 else ("?", "?")
        raise ScreproError(
            "Principal components are at least one, fewer than cells and at most as many as genes.",
            got=f"{k} components of {cells} cells x {genes} genes",
            fix="ask for fewer components, or pass more cells",
        )


def check_variation(sum_of_squares: float, mean: np.ndarray, n: int) -> None:
    """The centred sum of squares is more than the rounding of what was subtracted."""
    if not sum_of_squares > 1e-12 * n * (mean @ mean):
        raise ScreproError(
            "Principal components need cells that differ.",
            got="the same values in all cells",
            fix="check that the matrix holds expression of several cells",
        )
