"""How well hidden counts can be recovered at all: oracles, and simulated cells, whose rates are known.

A hidden count is random even for who knows its rate mu. The best answer then is the mean of the log-normalised count
under its distribution, given that the entry was drawn for hiding: counts of 0 never are, others with weight
exp(-y / 20) (``data.masks``). Whatever can be computed from the visible entries tells less than mu, so no correlation
exceeds that of this answer, up to chance.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.data.masks import TARGET_SUM, ImputationMask
from screpro.metrics.imputation import imputation_pearson_pooled
from screpro.records import Run

__all__ = ["ORACLE", "Synthetic", "add_ceiling", "ceiling", "gene_type_oracle", "synthetic_cells", "true_rate"]

ORACLE = "oracle_gene_type"
"""Not a method: the best constant per gene and cell type, found on the hidden values themselves."""

DISPERSION = 0.2


class Synthetic(NamedTuple):
    """Simulated cells without empty genes."""

    counts: sp.csr_matrix  # (n, G)
    types: np.ndarray  # (n,) codes
    rate: np.ndarray  # (n, G) expected counts


def synthetic_cells(*, n_cells: int, n_genes: int, n_types: int, seed: int, depth: float = 300.0) -> Synthetic:
    """Negative-binomial cells of ``data.simulate.cells``, genes that no cell shows dropped."""
    from screpro.data.simulate import cells, expected_counts

    adata = cells(
        n_cells, n_genes, n_types, depth=depth, markers=0.3, dispersion=DISPERSION, rng=np.random.default_rng(seed)
    )
    seen = np.flatnonzero(adata.X.getnnz(axis=0))
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    return Synthetic(adata.X[:, seen].tocsr(), types, expected_counts(adata)[:, seen])


def gene_type_oracle(mask: ImputationMask, types: np.ndarray) -> np.ndarray:
    """Mean of the hidden values of every gene and type at its hidden entries, (hidden.nnz,).

    No prediction that is constant within gene and type correlates better. Not a ceiling for one that is not, and
    flattering where a gene and type have few hidden entries: a single one is hit exactly.
    """
    n_genes = mask.hidden.shape[1]
    cells = np.repeat(np.arange(mask.hidden.shape[0]), np.diff(mask.hidden.indptr))
    _, group = np.unique(types[cells].astype(np.int64) * n_genes + mask.hidden.indices, return_inverse=True)
    return (np.bincount(group, mask.truth) / np.bincount(group))[group]


def ceiling(mask: ImputationMask, rate: np.ndarray, *, dispersion: float, scale: float = 20.0) -> np.ndarray:
    """Mean of every hidden value given its rate and given that it was hidden, (hidden.nnz,).

    Parameters
    ----------
    mask
        Hidden entries; its `size` has to be the totals that the truth was normalised by.
    rate
        (n, G) expected counts mu.
    dispersion
        Of the negative binomial, variance mu + dispersion * mu^2; 0 for Poisson.
    scale
        Of the mask.
    """
    from scipy.stats import nbinom, poisson

    mu = mask.at_hidden(rate)[:, None]
    size = np.repeat(mask.size, np.diff(mask.hidden.indptr))[:, None]
    spread = np.sqrt(mu.max() + dispersion * mu.max() ** 2)
    y = np.arange(1, int(mu.max() + 12 * spread) + 10)
    if dispersion > 0:
        log_p = nbinom.logpmf(y, 1 / dispersion, 1 / (1 + dispersion * mu))
    else:
        log_p = poisson.logpmf(y, mu)
    weight = np.exp(log_p - y / scale)
    return (weight * np.log1p(TARGET_SUM * y / size)).sum(axis=1) / weight.sum(axis=1)


def true_rate(mask: ImputationMask, rate: np.ndarray) -> np.ndarray:
    """log1p of the rate per 10 000 at the hidden entries: what a perfect denoiser that is told nothing else answers."""
    size = np.repeat(mask.size, np.diff(mask.hidden.indptr))
    return np.log1p(TARGET_SUM * mask.at_hidden(rate) / size)


def add_ceiling(run: Run, synthetic: Synthetic, mask: ImputationMask, *, split: int) -> None:
    """Rows of the two oracles that know the rate, for one mask of the data set ``synthetic``."""
    found = {
        "oracle_rate": true_rate(mask, synthetic.rate),
        "oracle_ceiling": ceiling(mask, synthetic.rate, dispersion=DISPERSION),
    }
    for method, values in found.items():
        run.add(
            item="X-5",
            dataset="synthetic",
            split=str(split),
            method=method,
            metric="imputation_pearson_pooled",
            n_real=mask.hidden.shape[0],
            n_genes=mask.hidden.shape[1],
            value=imputation_pearson_pooled(mask.matrix(mask.truth), mask.matrix(values), mask.hidden),
            unit="correlation",
            direction="higher",
        )
