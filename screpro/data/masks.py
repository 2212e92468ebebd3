"""Entries to hide and recover: the dropout mask of scDiff's imputation (section 4.1.2).

The mask is drawn over the whole matrix, not per cell: of all non-zero counts a tenth is drawn without replacement, with
weight exp(-count / 20), so that small counts are hidden slightly more often than large ones.

Where this differs from the paper: it says "the masking probability is given by the exponential distribution"; scale,
share and the draw without replacement are those of the authors' code. They draw once (seed 10); here the generator is
an argument, so that the mask can vary.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError

__all__ = ["ImputationMask", "hidden_share", "hide", "mar_mask"]

TARGET_SUM = 1e4


class ImputationMask(NamedTuple):
    """One matrix of counts with some entries hidden: what a method is given, and what it is asked."""

    counts: sp.csr_matrix  # (n, G) float32 counts, hidden entries zero
    x: sp.csr_matrix  # (n, G) float32 log-normalised, hidden entries zero
    hidden: sp.csr_matrix  # (n, G) bool, the hidden entries
    truth: np.ndarray  # (hidden.nnz,) float32 log-normalised values of the hidden entries, in the order of `hidden`
    size: np.ndarray  # (n,) totals that `x` was normalised by

    def matrix(self, values: np.ndarray) -> sp.csr_matrix:
        """Values of the hidden entries (hidden.nnz,) at their places in an (n, G) matrix."""
        hidden = self.hidden
        return sp.csr_matrix((np.asarray(values), hidden.indices, hidden.indptr), shape=hidden.shape)

    def take(self, rows: np.ndarray) -> "ImputationMask":
        """The cells at `rows` (n',), in that order."""
        truth = self.matrix(self.truth)[rows].data
        return ImputationMask(self.counts[rows], self.x[rows], self.hidden[rows], truth, self.size[rows])

    def at_hidden(self, dense: np.ndarray) -> np.ndarray:
        """Values (hidden.nnz,) of an (n, G) array at the hidden entries."""
        cells = np.repeat(np.arange(self.hidden.shape[0]), np.diff(self.hidden.indptr))
        return np.asarray(dense[cells, self.hidden.indices])


def mar_mask(
    counts: sp.csr_matrix, *, share: float = 0.1, scale: float | None = 20.0, rng: np.random.Generator
) -> sp.csr_matrix:
    """Entries to hide: floor(share x non-zeros) of them, without replacement, with weight exp(-count / scale).

    Parameters
    ----------
    counts
        (n, G) CSR of raw counts.
    share
        Of the non-zero entries, above 0 and below 1.
    scale
        In counts; None hides every entry with the same probability ("mcar").
    rng
        Source of randomness; scDiff's own mask is that of ``numpy.random.default_rng(10)``.

    Returns
    -------
    sp.csr_matrix
        (n, G) bool, true at the hidden entries, sorted within each row.

    Raises
    ------
    ScreproError
        Share or scale out of range, nothing to hide, or counts so large that too few have a weight above zero.
    """
    counts = _canonical(counts)
    weight = _weights(counts.data, share, scale)
    n = int(share * counts.nnz)
    possible = int(np.count_nonzero(weight))
    if not 1 <= n <= possible:
        raise ScreproError(
            "A mask hides at least one entry, and can only hide those with a weight above zero.",
            got=f"{n} of {counts.nnz} non-zero entries to hide, {possible} with a weight",
            fix="use more cells, or a scale of the size of the counts",
        )
    # numpy draws with replacement until n different ones are found, which is drawing without replacement
    chosen = np.sort(rng.choice(counts.nnz, n, replace=False, p=weight / weight.sum()))
    indptr = np.searchsorted(chosen, counts.indptr)
    return sp.csr_matrix((np.ones(n, dtype=bool), counts.indices[chosen], indptr), shape=counts.shape)


def hidden_share(counts: sp.csr_matrix, *, share: float = 0.1, scale: float | None = 20.0) -> np.ndarray:
    """Probability with which `mar_mask` hides each stored entry, (nnz,) in the order of the stored entries.

    Drawing without replacement by weight w is taking the n smallest of exponential waiting times with rates w. With
    many entries the last one taken comes at an almost fixed time s, so that an entry is hidden with probability
    1 - exp(-s w), and s follows from the number of entries: sum(1 - exp(-s w)) = n. For the paper's share and scale
    that is close to, and not the same as, share x w / mean(w).
    """
    counts = _canonical(counts)
    weight = _weights(counts.data, share, scale)
    n = int(share * counts.nnz)
    values, copies = np.unique(weight, return_counts=True)
    low, high = 0.0, 1.0
    while (copies * -np.expm1(-high * values)).sum() < n and high < 1e300:
        high *= 2
    for _ in range(200):  # bisection to the last bit: the sum grows with s
        middle = (low + high) / 2
        low, high = (middle, high) if (copies * -np.expm1(-middle * values)).sum() < n else (low, middle)
    return -np.expm1(-high * weight)


def hide(
    counts: sp.csr_matrix, hidden: sp.csr_matrix, *, size: np.ndarray | None = None, clean: bool = False
) -> ImputationMask:
    """Take the hidden entries out of `counts` and normalise the rest.

    Parameters
    ----------
    counts
        (n, G) raw counts.
    hidden
        (n, G) bool, from `mar_mask` of the same counts.
    size
        (n,) totals of the cells the truth is normalised by; the totals of `counts` by default.
    clean
        False: the visible counts are divided by `size` as well, which includes the hidden counts: the authors
        normalise first and hide then, so that the scale of the visible values tells how much is hidden. True: they
        are divided by what is visible.

    Raises
    ------
    ScreproError
        Shapes differ, or an entry is hidden that is zero.
    """
    counts, hidden = _canonical(counts), sp.csr_matrix(hidden, dtype=bool)
    if counts.shape != hidden.shape:
        raise ScreproError(
            "A mask has the shape of its counts.",
            got=f"counts {counts.shape}, mask {hidden.shape}",
            fix="draw the mask from these counts",
        )
    hidden.sort_indices()
    out = counts.multiply(hidden).tocsr()
    out.sort_indices()
    if out.nnz != hidden.nnz:
        raise ScreproError(
            "Only non-zero counts are hidden.",
            got=f"{hidden.nnz - out.nnz} of {hidden.nnz} hidden entries are zero",
            fix="draw the mask from these counts",
        )
    total = np.asarray(counts.sum(axis=1)).ravel() if size is None else np.asarray(size, dtype=np.float64)
    visible = (counts - out).tocsr()
    visible.eliminate_zeros()
    seen = np.asarray(visible.sum(axis=1)).ravel() if clean else total
    return ImputationMask(visible, _log_scaled(visible, seen), hidden, _log_scaled(out, total).data, seen)


def _log_scaled(counts: sp.csr_matrix, size: np.ndarray) -> sp.csr_matrix:
    """log1p of counts per 10 000 of `size`; a cell of size 0 has no entries to divide."""
    values = counts.data * np.repeat(TARGET_SUM / np.maximum(size, 1e-300), np.diff(counts.indptr))
    return sp.csr_matrix((np.log1p(values).astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


def _canonical(counts: sp.csr_matrix) -> sp.csr_matrix:
    """CSR float32 without stored zeros, sorted: the order in which a dense matrix lists its non-zeros."""
    counts = sp.csr_matrix(counts, dtype=np.float32, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _weights(counts: np.ndarray, share: float, scale: float | None) -> np.ndarray:
    if not 0 < share < 1 or (scale is not None and not scale > 0):
        raise ScreproError(
            "A mask has a share between 0 and 1 and a positive scale, or none.",
            got=f"share={share}, scale={scale}",
            fix="use share=0.1 and scale=20, as scDiff does",
        )
    if len(counts) and not (counts.min() > 0 and np.isfinite(counts).all()):
        raise ScreproError("Counts are finite and 0 or more.", got=f"smallest {counts.min()}", fix="pass raw counts")
    return np.ones(len(counts)) if scale is None else np.exp(-counts.astype(np.float64) / scale)
