"""Rank-sum tests on the GPU: one radix sort of all non-zeros, then every entry finds its place among the controls.

Each non-zero is one 64-bit key, the gene above the value above the group, so that one sort orders all genes. The
entries of the controls are a sorted array of their own. A program takes a block of entries and finds for each, by
bisection in its gene's controls, how many lie below and how many are equal, and by bisection in all keys, how many of
its own group come before it at this value. That is what an entry adds to U and to the tie term, see
``screpro/kernels/ranksum.py``; nothing is carried from entry to entry, so no program waits for another.

Cost: the sort (8 bytes x a few passes), then 4 log2(entries per gene) reads of keys per entry, mostly in the cache.
All sums are whole numbers, in int64 or in float64 below 2^53: the order of the atomic additions does not matter.
"""

import numpy as np
import scipy.sparse as sp
import torch
import triton
import triton.language as tl
from torch import Tensor

from screpro.kernels.groups import not_finite

__all__ = ["sums"]

ENTRIES_AT_ONCE = 2**27
"""Non-zeros sorted at a time: 1 GiB of keys."""

BLOCK = 256


def sums(
    x, codes: np.ndarray, sizes: np.ndarray, reference: int, exact_to: int, *, device: str = "cuda"
) -> tuple[np.ndarray, np.ndarray]:
    """U and p (P, G) float64; p is -1 where the exact distribution is asked for. `reference` -1: all cells.

    Parameters
    ----------
    x
        (cells, G) CSR, CSC or dense array, or a dense tensor.
    codes, sizes
        (cells,) group of each cell or -1, and (P,) cells of each group.
    device
        Where to compute; the tests use the CPU, where Triton interprets.
    """
    n_genes, n_groups = x.shape[1], len(sizes)
    entries = x.nnz if sp.issparse(x) else x.shape[0] * n_genes
    group_bits = max(1, int(n_groups - 1).bit_length())
    most = min(2 ** (31 - group_bits), max(1, ENTRIES_AT_ONCE * n_genes // max(1, entries)))
    u, p = np.empty((2, n_groups, n_genes))
    groups, counts = torch.from_numpy(codes).to(device).long(), torch.from_numpy(sizes).to(device)
    whole = _uploaded(x, device) if sp.issparse(x) else None
    for first in range(0, n_genes, most):
        genes = slice(first, min(first + most, n_genes))
        part = _nonzeros(whole, genes) if whole else _nonzeros_of_dense(x, genes, device)
        tested = _test(*part, genes.stop - genes.start, groups, counts, reference, exact_to, group_bits)
        u[:, genes], p[:, genes] = (each.cpu().numpy() for each in tested)
    return u, p


def _uploaded(x, device) -> tuple[Tensor, Tensor, Tensor]:
    """Cell, gene and value of every stored entry of a sparse matrix."""
    if x.format not in ("csr", "csc"):
        x = x.tocsr()
    if not x.has_canonical_format:  # duplicate entries would count as two cells
        x = x.copy()
        x.sum_duplicates()
    counts = torch.from_numpy(np.diff(x.indptr)).to(device)
    major = torch.repeat_interleave(torch.arange(len(counts), dtype=torch.int32, device=device), counts)
    minor, value = torch.from_numpy(x.indices).to(device), torch.from_numpy(x.data).to(device)
    return (major, minor, value) if x.format == "csr" else (minor, major, value)


def _nonzeros(entries: tuple[Tensor, Tensor, Tensor], genes: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Cell, gene within `genes` and value of the non-zeros of these genes."""
    cell, gene, value = entries
    chosen = (gene >= genes.start) & (gene < genes.stop) & (value != 0)
    return cell[chosen].long(), gene[chosen].long() - genes.start, value[chosen]


def _nonzeros_of_dense(x, genes: slice, device) -> tuple[Tensor, Tensor, Tensor]:
    part = (x[:, genes].detach() if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x[:, genes]))).to(
        device
    )
    cell, gene = part.nonzero(as_tuple=True)
    return cell, gene, part[cell, gene]


def _value_bits(value: Tensor) -> tuple[Tensor, int]:
    """Whole numbers below 2^32 that order like the values, 0 in its place among them, and that of 0."""
    if not torch.isfinite(value).all():
        raise not_finite()
    single = value.float()
    if value.dtype.is_floating_point and value.dtype == torch.float64 and not torch.equal(single.double(), value):
        # no room for 64 bits: the rank among the distinct values stands for a value
        levels, rank = torch.unique(value, return_inverse=True)
        negative = int((levels < 0).sum())
        return rank + (rank >= negative), negative
    bits = single.view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000), 0x80000000


def _test(
    cell: Tensor, gene: Tensor, value: Tensor, n_genes: int, groups: Tensor, sizes: Tensor,
    reference: int, exact_to: int, group_bits: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """U and p (P, n_genes) from the non-zeros of some genes."""
    device, n_groups = groups.device, len(sizes)
    every = reference < 0
    group = groups[cell]
    gene, value, group = (each[group >= 0] for each in (gene, value, group))
    bits, zero = _value_bits(value)
    keys = ((((gene << 32) | bits) << group_bits) | group).sort().values
    group, of_value = keys & (2**group_bits - 1), keys >> group_bits
    controls = of_value if every else of_value[group == reference].contiguous()
    edges = torch.arange(n_genes + 1, device=device) << 32
    starts, all_starts = torch.searchsorted(controls, edges), torch.searchsorted(keys, edges << group_bits)
    n_controls = sizes.sum() if every else sizes[reference]
    zeros = n_controls - starts.diff()  # (G,) controls at zero
    below_zero = torch.searchsorted(controls, edges[:-1] | zero) - starts[:-1]

    twice_u = torch.zeros(n_groups * n_genes, dtype=torch.int64, device=device)
    ties = torch.zeros(n_groups * n_genes, dtype=torch.float64, device=device)
    shared = torch.zeros(n_genes, dtype=torch.float64, device=device)
    if len(keys):
        longest = max(int(starts.diff().max()), int(all_starts.diff().max()))
        _entries_kernel[(triton.cdiv(len(keys), BLOCK),)](
            keys, controls, starts, all_starts, zeros, twice_u, ties, shared, len(keys), n_genes, reference, zero,
            longest.bit_length() + 1, GROUP_BITS=group_bits, EVERY=every, BLOCK=BLOCK,
        )  # fmt: skip
    seen = torch.bincount(group * n_genes + (of_value >> 32), minlength=n_groups * n_genes)
    twice_u, ties, seen = (each.view(n_groups, n_genes) for each in (twice_u, ties, seen))

    n1 = sizes[:, None].double()
    n2 = sizes.sum() - n1 if every else n_controls.double().expand_as(n1)
    own = sizes[:, None] - seen  # cells of the group at zero
    twice_u = twice_u + own * (2 * below_zero + zeros)
    tied = shared + _cubed(zeros)
    if every:
        twice_u = twice_u - sizes[:, None] ** 2
        tied = tied.expand(n_groups, -1)
    else:
        tied = tied + ties + _cubed(zeros + own) - _cubed(zeros)
    u = twice_u.double() / 2
    n = n1 + n2
    variance = n1 * n2 / 12 * (n + 1 - tied / (n * (n - 1)))
    z = (torch.maximum(u, n1 * n2 - u) - n1 * n2 / 2 - 0.5) / variance.clamp(min=0).sqrt()
    p = torch.where(variance > 0, torch.erfc(z / 2**0.5).clamp(max=1), 1.0)
    return u, torch.where((torch.minimum(n1, n2) <= exact_to) & (tied == 0), -1.0, p)


def _cubed(t: Tensor) -> Tensor:
    t = t.double()
    return t * t * t - t


@triton.jit
def _first_not_below(array, low, high, key, steps):
    """Bisection, lane by lane: the first position in low..high whose entry is not below `key`."""
    for _ in range(steps):
        middle = (low + high) // 2
        is_open = low < high
        smaller = is_open & (tl.load(array + middle, mask=is_open, other=0) < key)
        low = tl.where(smaller, middle + 1, low)
        high = tl.where(is_open & (smaller == 0), middle, high)
    return low


@triton.jit
def _entries_kernel(
    keys, controls, starts, all_starts, zeros, twice_u, ties, shared, n, n_genes, reference, zero, steps,
    GROUP_BITS: tl.constexpr, EVERY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each entry adds to U and the tie term of its group, and a control to the ties that all groups share."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    key = tl.load(keys + at, mask=inside, other=0)
    of_value = key >> GROUP_BITS
    gene = of_value >> 32
    group = key & ((1 << GROUP_BITS) - 1)
    first = tl.load(starts + gene, mask=inside, other=0)
    last = tl.load(starts + gene + 1, mask=inside, other=0)
    low = _first_not_below(controls, first, last, of_value, steps)
    high = _first_not_below(controls, low, last, of_value + 1, steps)
    # controls at zero lie below every positive value
    positive = (of_value & 0xFFFFFFFF) > zero
    below = low - first + tl.where(positive, tl.load(zeros + gene, mask=inside, other=0), 0)
    tl.atomic_add(twice_u + group * n_genes + gene, 2 * below + high - low, mask=inside)
    if EVERY:
        # all cells are controls: this entry is the t-th of its run
        t = (at - low).to(tl.float64)
        tl.atomic_add(shared + gene, 3 * t * (t + 1), mask=inside)
    else:
        own = _first_not_below(keys, tl.load(all_starts + gene, mask=inside, other=0), at, key, steps)
        k = at - own  # entries of the same group and value before this one
        t = (high - low + k).to(tl.float64)
        is_control = inside & (group == reference)
        tl.atomic_add(ties + group * n_genes + gene, 3 * t * (t + 1), mask=inside & (group != reference))
        t = k.to(tl.float64)
        tl.atomic_add(shared + gene, 3 * t * (t + 1), mask=is_control)
