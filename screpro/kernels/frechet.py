"""Fréchet distance of two normal distributions, in float64: the squared W2 distance between them.

``|m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2)``. The product ``C_1 C_2`` is not symmetric, and its root by a
Schur decomposition costs some 25 d^3 complex operations. Only the trace of the root is needed: with any ``C_1 = L L'``
the eigenvalues of ``C_1 C_2`` are those of the symmetric ``L' C_2 L``, and the trace is the sum of their roots.
Cholesky (d^3 / 3), two products (4 d^3) and eigenvalues without vectors (4 d^3 / 3) in real arithmetic.

A covariance of few points has no Cholesky factor. Then L is ``V diag(sqrt(l))`` from its eigenvectors, without the
directions of no variance (below ``d eps`` times the largest): the same formula, and exact. Where there are the points
themselves and they are fewer than d, L is simply the centred points (n, d), transposed, over ``sqrt(n - 1)``.

torch computes all of it, on the device of its tensors if that is one for both sides, else on the CPU: its MKL is
quicker at eigenvalues than the OpenBLAS of scipy. There is no Triton kernel: all that costs is products, a Cholesky
factor and eigenvalues, which on a GPU are calls of cuBLAS and cuSOLVER.
"""

import numpy as np
import torch
from torch import Tensor

from screpro.errors import ScreproError

__all__ = ["frechet", "frechet_of_points", "reference"]


def frechet(mean_1, cov_1, mean_2, cov_2) -> float:
    """Fréchet distance of two normal distributions; squared, never negative.

    Parameters
    ----------
    mean_1, mean_2
        (d,) means, numpy or torch; tensors on a GPU are worked on there.
    cov_1, cov_2
        (d, d) covariances; they may be singular, as those of fewer points than dimensions are.

    Raises
    ------
    ScreproError
        Shapes do not fit, or a value is not finite.
    """
    mean_1, mean_2, cov_1, cov_2 = _double(mean_1, mean_2, cov_1, cov_2)
    d = mean_1.shape[0] if mean_1.ndim == 1 else -1
    if mean_2.shape != (d,) or cov_1.shape != (d, d) or cov_2.shape != (d, d):
        raise ScreproError(
            "Means are (d,) and covariances (d, d).",
            got=", ".join(str(tuple(a.shape)) for a in (mean_1, cov_1, mean_2, cov_2)),
            fix="pass means and covariances in the same dimensions",
        )
    _check_finite(mean_1, cov_1, mean_2, cov_2)
    between = ((mean_1 - mean_2) ** 2).sum()
    return _sum(between, cov_1.trace(), cov_2.trace(), _trace_of_root(_factor(cov_1), cov_2))


def frechet_of_points(a, b) -> float:
    """Fréchet distance of the normal distributions with the means and covariances (n - 1) of two samples.

    Parameters
    ----------
    a, b
        (n, d) and (m, d) points, numpy or torch; at least two of each.

    Raises
    ------
    ScreproError
        Dimensions differ, fewer than two points, or a value is not finite.
    """
    a, b = _double(a, b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0 or min(len(a), len(b)) < 2:
        raise ScreproError(
            "The Fréchet distance needs at least two points of each sample, in the same dimensions.",
            got=f"points of shape {tuple(a.shape)} and {tuple(b.shape)}",
            fix="leave out classes of one cell, and project both samples on the same components",
        )
    _check_finite(a, b)
    mean_1, mean_2 = a.mean(0), b.mean(0)
    a, b = (a - mean_1) / (len(a) - 1) ** 0.5, (b - mean_2) / (len(b) - 1) ** 0.5
    few, many = sorted((a, b), key=len)
    factor = few.T if len(few) <= few.shape[1] else _factor(few.T @ few)
    root = _trace_of_root(factor, many.T @ many)
    return _sum(((mean_1 - mean_2) ** 2).sum(), (a**2).sum(), (b**2).sum(), root)


def reference(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
    """The formula as it is printed, with the matrix root of scipy."""
    from scipy.linalg import sqrtm

    root = np.trace(np.asarray(sqrtm(np.asarray(cov_1) @ np.asarray(cov_2)))).real
    return float(((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1) + np.trace(cov_2) - 2 * root)


def _factor(cov: Tensor) -> Tensor:
    """L (d, r) with ``L L' = C`` of rank r."""
    factor, failed = torch.linalg.cholesky_ex(cov)
    if not int(failed):
        return factor
    values, vectors = torch.linalg.eigh(cov)
    kept = values > _noise(values)
    return vectors[:, kept] * values[kept].sqrt()


def _trace_of_root(factor: Tensor, cov: Tensor) -> Tensor:
    """``tr (L L' C)^(1/2)``."""
    if factor.shape[1] == 0:
        return cov.new_zeros(())
    values = torch.linalg.eigvalsh(factor.T @ cov @ factor)
    return values[values > _noise(values)].sqrt().sum()


def _noise(values: Tensor) -> Tensor:
    """Eigenvalues up to here may be nothing but rounding, which a root would turn from 1e-16 into 1e-8."""
    return values.abs().max() * len(values) * torch.finfo(values.dtype).eps


def _sum(between: Tensor, trace_1: Tensor, trace_2: Tensor, root: Tensor) -> float:
    return max(0.0, float(between) + float(trace_1) + float(trace_2) - 2 * float(root))  # below 0 by rounding only


def _double(*arrays) -> list[Tensor]:
    """As float64 tensors without gradient on their one device, or on the CPU."""
    arrays = [
        a.detach().double() if isinstance(a, Tensor) else torch.from_numpy(np.require(a, np.float64, ["C", "W"]))
        for a in arrays
    ]
    return arrays if len({a.device for a in arrays}) == 1 else [a.cpu() for a in arrays]


def _check_finite(*arrays: Tensor) -> None:
    bad = sum(int((~torch.isfinite(a)).sum()) for a in arrays)
    if bad:
        raise ScreproError(
            "The Fréchet distance needs finite values.",
            got=f"{bad} values that are NaN or infinite",
            fix="find out where they come from; do not fill them with zeros",
        )
