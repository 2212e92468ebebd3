"""Principal components on the GPU: chunks of cells made dense, centred and multiplied by cuBLAS, sums in float64.

There is no Triton kernel here on purpose. The hot sum is a plain matrix product, for which cuBLAS is the limit:
``2 n g^2`` operations, by arithmetic 0.12 s for a million cells and 2000 genes at the 67 TFLOP/s of an H200 in float32.
A kernel that scatters the products of sparse rows would do 800 times fewer multiply-adds at 5 % non-zeros, but each as
an atomic addition to a g x g matrix, in an order that changes from run to run: some 5e9 additions at a few 1e11 per
second, a few times faster at 5 % and slower from about 10 % on. TF32 tensor cores are left out: products of 11-bit
factors turn the trailing components by more than other implementations differ. None of this was measured.

Written in torch, so that the tests run it on any device.
"""

import numpy as np
import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.kernels.pca import check_variation, fixed_signs, orthonormal

__all__ = ["pca_torch"]

NUMBERS_PER_CHUNK = 2**26
"""Numbers made dense at a time: 256 MiB of float32."""


def pca_torch(x: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean (G,), axes (G, k), variance (k,) and scores (n, k) as float64 arrays; see `screpro.kernels.pca.pca`.

    Parameters
    ----------
    x
        (n, G) dense, or sparse in CSR layout, float32 or float64. Products are computed in its precision.
    k
        Number of components.
    """
    (n, g), x = x.shape, x.detach()
    if x.layout is not torch.strided and x.layout is not torch.sparse_csr:
        raise ScreproError("A sparse tensor of cells is in CSR layout.", got=str(x.layout), fix="call to_sparse_csr()")
    if x.dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float32)
    mean = _mean(x)
    allowed, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    try:
        if g <= n:
            values, axes = _leading(sum(_squares(c.T) for _, c in _centred(x, mean)), k, mean, n)
        else:  # so few cells that all of them are made dense
            ((_, cells),) = _centred(x, mean, rows=n)
            step = max(1, NUMBERS_PER_CHUNK // n)
            values, vectors = _leading(sum(_squares(cells[:, i : i + step]) for i in range(0, g, step)), k, mean, n)
            directions = (cells.T.double() @ vectors).cpu().numpy()
            axes = torch.from_numpy(orthonormal(directions, values.cpu().numpy())).to(x.device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    axes = fixed_signs(axes.cpu().numpy())
    on_device = torch.from_numpy(axes).to(x.device)
    # the means are subtracted in float64 here: scores are exact to the precision of x
    scores = torch.cat([chunk.double() @ on_device for _, chunk in _centred(x, torch.zeros_like(mean))])
    scores -= mean @ on_device
    return mean.cpu().numpy(), axes, (values / (n - 1)).cpu().numpy(), scores.cpu().numpy()


def _mean(x: Tensor) -> Tensor:
    """Mean (G,) float64 of finite values."""
    n, g = x.shape
    values = x.values() if x.layout is torch.sparse_csr else x
    if not bool(torch.isfinite(values).all()):
        raise ScreproError(
            "Principal components need finite values.",
            got=f"{int((~torch.isfinite(values)).sum())} values that are NaN or infinite",
            fix="find out where they come from; do not fill them with zeros",
        )
    if x.layout is torch.strided:
        return x.sum(0, dtype=torch.float64) / n
    sums = torch.zeros(g, dtype=torch.float64, device=x.device)
    return sums.index_add_(0, x.col_indices().long(), values.double()) / n


def _centred(x: Tensor, mean: Tensor, rows: int | None = None):
    """Yield (first cell, dense chunk of cells less the mean) in the precision of x."""
    n, g = x.shape
    rows = rows or max(1, NUMBERS_PER_CHUNK // g)
    centre = mean.to(x.dtype)
    for start in range(0, n, rows):
        stop = min(n, start + rows)
        if x.layout is torch.strided:
            yield start, x[start:stop] - centre
            continue
        crow = x.crow_indices()[start : stop + 1].long()
        first, last = int(crow[0]), int(crow[-1])
        cell = torch.repeat_interleave(torch.arange(stop - start, device=x.device), crow.diff())
        chunk = (-centre).repeat(stop - start, 1)
        place = cell * g + x.col_indices()[first:last].long()
        chunk.view(-1).index_add_(0, place, x.values()[first:last])
        yield start, chunk


def _squares(a: Tensor) -> Tensor:
    """``a a'`` in float64, multiplied in the precision of a."""
    return (a @ a.T).double()


def _leading(matrix: Tensor, k: int, mean: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues, falling, and their vectors."""
    check_variation(float(matrix.trace()), mean.cpu().numpy(), n)
    values, vectors = torch.linalg.eigh(matrix)
    return values[-k:].flip(0).clamp_min(0), vectors[:, -k:].flip(1)
