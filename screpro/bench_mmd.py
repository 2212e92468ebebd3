"""The maximum mean discrepancy of five bandwidths beside the three ways it is computed now.

All three hold matrices of n x m numbers and take five exponentials of every pair: the eager formula, as the evaluation
of scLDM writes it; geomloss, one call per bandwidth; scikit-learn's kernel matrix, one per bandwidth. The streamed
kernel holds a tile and leaves out bandwidths that are too narrow for every pair of a row.

Products of float32 points put a point at a small distance from itself. A kernel narrower than that misses the pairs of
a point with itself, 1 / n of the biased estimate: what is said about the agreement names it.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from screpro.bench_data import clouds
from screpro.bench_measure import MISSING, Rows, apart, around, cuda, row, turns

__all__ = ["mmd_case", "rbf_mmd"]

SIGMAS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Bandwidths of scLDM's tables."""


def rbf_mmd(n: int = 5000, d: int = 30, *, memory: tuple[float, float] | None = None) -> Rows:
    """Biased squared MMD, summed over five Gaussian kernels, of two clouds of n points in d dimensions.

    Parameters
    ----------
    n, d
        Points of either cloud, and their dimensions.
    memory
        MiB at the peak of our kernel and of its input, where they were measured.
    """
    ours, _, (x, y) = mmd_case(n, d)
    line = partial(row, "RBF MMD, 5 bandwidths", f"{n} x {d}", memory=memory)
    value = ours()
    rows = []
    for name, theirs in _peers(x, y).items():
        if theirs is None:
            rows.append(line(peer=name, ours_ms=turns(ours, least=3)[0], agreement=MISSING))
            continue
        ours_ms, peer_ms, other = around(ours, theirs)
        agreement = apart(value, other)
        if "scikit" not in name:
            agreement += " (its points are not at 0 from themselves: the narrow kernels miss them)"
        rows.append(line(peer=name, ours_ms=ours_ms, peer_ms=peer_ms, agreement=agreement))
    return rows


def mmd_case(n: int = 5000, d: int = 30) -> tuple[Callable[[], float], Callable[[], float], Any]:
    """Our call, the same on something small, and the clouds (n, d) float32."""
    import torch

    from screpro.kernels.mmd import rbf_mmd2

    x, y = clouds(n, d)
    given = [torch.from_numpy(part).cuda() for part in (x, y)] if cuda() else [x, y]
    gammas = [1 / (2 * sigma**2) for sigma in SIGMAS]

    def total(a, b) -> float:
        return float(rbf_mmd2(a, b, gammas=gammas).sum())

    return partial(total, *given), partial(total, *(part[:1000] for part in given)), (x, y)


def _peers(x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], float] | None]:
    """Name and call of every peer; None where it is not installed. scikit-learn knows the CPU only."""
    import torch
    from sklearn.metrics.pairwise import rbf_kernel

    a, b = (torch.from_numpy(part).cuda() if cuda() else torch.from_numpy(part) for part in (x, y))

    def eager() -> float:
        def mean(u, v) -> float:
            squares = torch.cdist(u, v).square_()
            kernels = (torch.exp(squares * (-1 / (2 * sigma**2))) for sigma in SIGMAS)
            return sum(float(kernel.mean(dtype=torch.float64)) for kernel in kernels)

        return mean(a, a) + mean(b, b) - 2 * mean(a, b)

    def matrices() -> float:
        def mean(u, v) -> float:
            return sum(float(rbf_kernel(u, v, gamma=1 / (2 * s**2)).mean(dtype=np.float64)) for s in SIGMAS)

        return mean(x, x) + mean(y, y) - 2 * mean(x, y)

    peers = {
        "torch.cdist, eager": eager,
        "scikit-learn rbf_kernel" + (" (CPU)" if cuda() else ""): matrices,
        "geomloss gaussian, tensorized": None,
    }
    if find_spec("geomloss"):
        from geomloss import SamplesLoss

        # each is half of an MMD^2
        losses = [SamplesLoss("gaussian", blur=sigma, backend="tensorized") for sigma in SIGMAS]
        peers["geomloss gaussian, tensorized"] = lambda: sum(2 * float(loss(a, b)) for loss in losses)
    return peers
