"""ALRA (Linderman et al., Nature Communications 2022, 10.1038/s41467-021-27729-z): a thresholded low-rank matrix.

On log-normalised values A, cells x genes:

1. rank k: the last k at which a singular value stands out from the next one, s_k - s_{k+1} being more than 6 standard
   deviations above the mean of the spacings 80 to 100, which are taken for noise;
2. the best approximation of rank k (no centring);
3. in each gene, values up to the size of its most negative one are set to zero. A gene that is truly zero somewhere
   comes out symmetric about zero there, so that its negative values show how far above zero a true zero can be found;
4. the remaining values of each gene are shifted and scaled to mean and standard deviation of its observed non-zero
   values, and set to zero if that makes them negative;
5. an observed non-zero value that has become zero is put back.

The paper takes the minimum in step 3; the authors' code, whose default is the default here, the .001 quantile.

Differences: singular values are exact (Lanczos) where the authors' are randomised. With fewer than 101 cells or genes
the noise spacings are the last fifth of those there are (at least five); where no spacing stands out, the rank is 1.
"""

import numpy as np
from scipy import sparse

from screpro.baselines.smoothing import log_rates
from screpro.errors import ScreproError

__all__ = ["choose_rank", "complete", "impute"]


def impute(
    counts: sparse.csr_matrix,
    *,
    size: np.ndarray,
    seed: int,
    threads: int = 1,
    rank: int | None = None,
    quantile: float = 0.001,
) -> np.ndarray:
    """The completed log-normalised matrix; nothing random.

    Parameters
    ----------
    rank
        k; None chooses it by the spacings.
    quantile
        Of a gene's values, the size of which is its threshold; 0 is the minimum.
    """
    if not 0 <= quantile < 1:
        raise ScreproError(
            "The quantile of ALRA lies from 0 to below 1.", got=f"{quantile=}", fix="use 0.001, the authors' choice"
        )
    observed = log_rates(counts, size)
    most = min(observed.shape) - 1  # Lanczos finds all singular values but one
    if rank is not None and not 1 <= rank <= most:
        raise ScreproError(
            f"The rank of this matrix lies between 1 and {most}.", got=f"{rank=}", fix="leave it out to have it chosen"
        )
    u, s, v = _svd(observed, min(100, most) if rank is None else rank)
    k = choose_rank(s) if rank is None else rank
    return complete(observed.toarray(), (u[:, :k] * s[:k]) @ v[:k], quantile=quantile)


def choose_rank(singular_values: np.ndarray, *, deviations: float = 6.0) -> int:
    """The last k whose spacing to the next singular value stands out from the spacings taken for noise.

    Parameters
    ----------
    singular_values
        Falling; the authors use the first 100, and take spacings 80 and later for noise.
    deviations
        Standard deviations above the mean of the noise spacings.
    """
    spacings = -np.diff(singular_values)  # spacing i is between values i and i + 1, counted from 1
    n_values = len(singular_values)
    first = 79 if n_values >= 100 else max(0, min(int(0.8 * n_values), len(spacings) - 5))
    noise = spacings[first:]
    if len(noise) < 2:
        return 1
    outstanding = np.flatnonzero(spacings > noise.mean() + deviations * noise.std(ddof=1))
    return int(outstanding[-1]) + 1 if len(outstanding) else 1


def complete(observed: np.ndarray, low_rank: np.ndarray, *, quantile: float) -> np.ndarray:
    """Steps 3 to 5 of the method.

    Parameters
    ----------
    observed
        (n, G) log-normalised values, dense.
    low_rank
        (n, G) their approximation; not changed.

    Returns
    -------
    ndarray
        (n, G) float32.
    """
    threshold = np.abs(np.quantile(low_rank, quantile, axis=0))
    out = np.where(low_rank > threshold, low_rank, 0.0)
    n_found, mean_found, sd_found = _moments(out)
    n_seen, mean_seen, sd_seen = _moments(observed)
    # genes with a single value on either side have no spread to match; they stay as they are
    scaled = (n_found > 1) & (n_seen > 1) & (sd_found > 0)
    factor = np.where(scaled, sd_seen / np.where(scaled, sd_found, 1.0), 1.0)
    shift = np.where(scaled, mean_seen - mean_found * factor, 0.0)
    out = np.where(out != 0, np.maximum(out * factor + shift, 0.0), 0.0)
    return np.where(out == 0, observed, out).astype(np.float32)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean and standard deviation (n - 1) of the non-zero values of every column of (n, G)."""
    inside = x != 0
    number = inside.sum(axis=0)
    mean = x.sum(axis=0) / np.maximum(number, 1)
    squares = (np.square(x - mean) * inside).sum(axis=0)
    return number, mean, np.sqrt(squares / np.maximum(number - 1, 1))


def _svd(x: sparse.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k largest singular values, falling, with left (n, k) and right (k, G) vectors."""
    from scipy.sparse.linalg import svds

    # a start without regard to the order of genes or cells: the shorter side decides its length
    u, s, v = svds(x, k, v0=np.ones(min(x.shape)))
    order = np.argsort(-s)
    return u[:, order], s[order], v[order]
