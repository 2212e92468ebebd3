"""The compiled sweeps behind keys and values of gene tokens on the CPU (formulas: ``screpro.kernels.gene_tokens``)."""

import numpy as np
from numba import njit

from screpro.kernels.nb_loops import SWEEP

__all__ = ["backward", "by_gene", "forward"]

f32 = np.float32


@njit(cache=True, nogil=True)
def by_gene(genes, n_genes):
    """Genes that occur (U,), where the tokens of each start (U + 1,) in `order` (T,), and `order`."""
    at = np.zeros(n_genes + 1, np.int64)
    for gene in genes:
        at[gene + 1] += 1
    present = np.flatnonzero(at[1:])
    for g in range(n_genes):
        at[g + 1] += at[g]
    starts = np.append(at[present], len(genes))
    order = np.empty(len(genes), np.int64)
    for t in range(len(genes)):
        order[at[genes[t]]] = t
        at[genes[t]] += 1
    return present, starts, order


@njit(nogil=True, **SWEEP)
def _sigma(variance, covariance, spread, depth):
    """sigma^2 without epsilon; below 0 by rounding only."""
    return variance + depth * (f32(2) * covariance + depth * f32(spread))


@njit(**SWEEP)
def _token(row, of_count, constant, depth, inverse, out):
    for k in range(out.size):
        out[k] = (row[k] + depth * of_count[k]) * inverse + constant[k]


@njit(nogil=True, **SWEEP)
def forward(
    first, last, of_gene, of_count, constant, variance, covariance, depth, starts, order, spread, epsilon,
    keys, values,
):  # fmt: skip
    """Tokens of genes `first` to `last` into `keys` and `values` (T, D)."""
    half = keys.shape[1]
    for g in range(first, last):
        for p in range(starts[g], starts[g + 1]):
            t = order[p]
            square = _sigma(variance[g], covariance[g], spread, depth[t])
            inverse = f32(1) / np.sqrt(max(square, f32(0)) + f32(epsilon))
            _token(of_gene[g][:half], of_count[:half], constant[:half], depth[t], inverse, keys[t])
            _token(of_gene[g][half:], of_count[half:], constant[half:], depth[t], inverse, values[t])


@njit(**SWEEP)
def _dot(row, of_count, depth, given):
    total = f32(0)
    for k in range(given.size):
        total += given[k] * (row[k] + depth * of_count[k])
    return total


@njit(**SWEEP)
def _add(given, inverse, depth, of_row, of_count, plain):
    for k in range(given.size):
        value = inverse * given[k]
        of_row[k] += value
        of_count[k] += depth * value
        plain[k] += given[k]


@njit(nogil=True, **SWEEP)
def backward(
    first, last, of_gene, of_count, variance, covariance, depth, starts, order, spread, epsilon,
    of_keys, of_values, to_gene, to_variance, to_covariance, sums,
):  # fmt: skip
    """Gradients of genes `first` to `last`; those that all genes share are added to `sums` (4 D + 1,)."""
    half, width = of_keys.shape[1], of_gene.shape[1]
    for_count, plain = np.empty(width, f32), np.empty(width, f32)
    for g in range(first, last):
        to_gene[g], for_count[:], plain[:] = f32(0), f32(0), f32(0)
        of_variance = of_covariance = of_spread = f32(0)
        for p in range(starts[g], starts[g + 1]):
            t = order[p]
            d = depth[t]
            square = _sigma(variance[g], covariance[g], spread, d)
            inverse = f32(1) / np.sqrt(max(square, f32(0)) + f32(epsilon))
            _add(of_keys[t], inverse, d, to_gene[g][:half], for_count[:half], plain[:half])
            _add(of_values[t], inverse, d, to_gene[g][half:], for_count[half:], plain[half:])
            if square > f32(0):
                pull = _dot(of_gene[g][:half], of_count[:half], d, of_keys[t])
                pull += _dot(of_gene[g][half:], of_count[half:], d, of_values[t])
                slope = f32(-0.5) * inverse * inverse * inverse * pull
                of_variance += slope
                of_covariance += f32(2) * d * slope
                of_spread += d * d * slope
        to_variance[g], to_covariance[g] = of_variance, of_covariance
        for k in range(width):
            sums[k] += for_count[k]
            sums[width + k] += plain[k]
        sums[2 * width] += of_spread
