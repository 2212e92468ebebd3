"""What any imputation method has to beat: the mean of a gene, and the mean of a cell's neighbours.

The gene mean is the mean over all cells of the *log-normalised* values, zeros included: on the log scale, where
predictions are scored, that is the constant with the smallest squared error. (The logarithm of the mean rate would be
larger for every gene; as a correlation over hidden entries both rank genes nearly alike.)

Neighbour smoothing finds neighbours among principal components of the log-normalised cells and averages their rates,
which are counts per 10 000, before the logarithm is taken: a mean of rates is an expected rate.
"""

import numpy as np
from scipy import sparse

from screpro.errors import ScreproError
from screpro.kernels.neighbours import nearest
from screpro.kernels.pca import pca

__all__ = ["gene_mean", "knn_smoothing", "log_rates", "rates"]

TARGET_SUM = 1e4


def rates(counts: sparse.csr_matrix, size: np.ndarray) -> sparse.csr_matrix:
    """Counts (n, G) per 10 000 of `size` (n,), CSR float64."""
    scaled = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    scaled.data *= np.repeat(TARGET_SUM / np.asarray(size, dtype=np.float64), np.diff(scaled.indptr))
    return scaled


def log_rates(counts: sparse.csr_matrix, size: np.ndarray) -> sparse.csr_matrix:
    """log1p of counts (n, G) per 10 000 of `size` (n,), CSR float64."""
    return rates(counts, size).log1p()


def gene_mean(counts: sparse.csr_matrix, *, size: np.ndarray, seed: int, threads: int = 1) -> np.ndarray:
    """Mean log-normalised value of every gene, the same for all cells; nothing random."""
    mean = np.asarray(log_rates(counts, size).mean(axis=0)).ravel()
    return np.tile(mean.astype(np.float32), (counts.shape[0], 1))


def knn_smoothing(
    counts: sparse.csr_matrix,
    *,
    size: np.ndarray,
    seed: int,
    threads: int = 1,
    k: int = 15,
    n_components: int = 50,
) -> np.ndarray:
    """log1p of the mean rate of a cell and its nearest others; nothing random.

    Parameters
    ----------
    k
        Cells averaged, the cell itself being one of them; all cells where there are fewer.
    n_components
        Principal components among which neighbours are sought; fewer where the matrix has fewer.
    """
    if k < 1 or n_components < 1:
        raise ScreproError(
            "A cell is averaged over k >= 1 cells, found among n_components >= 1 components.",
            got=f"{k=}, {n_components=}",
            fix="raise the value that is below 1",
        )
    n, n_genes = counts.shape
    k = min(k, n)
    if k == 1:
        return log_rates(counts, size).toarray().astype(np.float32)
    scores = pca(log_rates(counts, size), min(n_components, n - 1, n_genes)).scores
    _, others = nearest(scores, k - 1)
    members = np.concatenate([np.arange(n)[:, None], others], axis=1)  # (n, k)
    average = sparse.csr_matrix((np.full(n * k, 1 / k), members.ravel(), np.arange(n + 1) * k), shape=(n, n))
    return np.log1p((average @ rates(counts, size)).toarray()).astype(np.float32)
