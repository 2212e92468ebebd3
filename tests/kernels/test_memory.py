"""Kernels over all pairs of cells, or all cells and genes, never hold a matrix of that size."""

import json
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro.bench_measure import can_measure_memory, report_peak
from screpro.kernels import energy, mmd
from screpro.kernels.neighbours import nearest, radius_cover
from screpro.kernels.ranksum import rank_sum
from screpro.kernels.sinkhorn import sinkhorn
from screpro.kernels.transport import exact_w2

N = 3000  # a float32 matrix of all pairs is 34 MiB, more than an allocator keeps back


def points(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)


def rank_sums(n: int):
    """Of as many genes as cells, 1 % of them expressed."""
    x = sp.random(n, n, 0.01, "csr", np.float32, rng=np.random.default_rng(0))
    return lambda: rank_sum(x, np.arange(n) % 5, n_groups=5)


def of_pairs(function):
    return lambda n: partial(function, points(n, 0), points(n, 1))


KERNELS = {
    "energy": of_pairs(energy.streamed),
    "mmd": of_pairs(lambda a, b: mmd.streamed(a, b, gammas=np.array([0.5, 5.0]))),
    "nearest": of_pairs(lambda a, b: nearest(a, 1)),
    "cover": of_pairs(lambda a, b: radius_cover(a, np.full(len(a), 1e-3), b)),
    "w2": of_pairs(exact_w2),
    "sinkhorn": of_pairs(lambda a, b: sinkhorn(torch.from_numpy(a)[None], torch.from_numpy(b)[None], blur=5.0)),
    "rank_sum": rank_sums,
}


@pytest.mark.skipif(torch.cuda.is_available() or not can_measure_memory(), reason="needs Linux, and kernels on the CPU")
@pytest.mark.parametrize("name", KERNELS)
def test_memory_is_a_fraction_of_the_full_matrix(name, capsys):
    report_peak(KERNELS[name](N), KERNELS[name](64), 0)
    peak, _ = json.loads(capsys.readouterr().out)
    assert peak < 4 * N * N / 2**20 / 2  # MiB
