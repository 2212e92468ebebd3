"""Which points lie within the radius of any other, on the GPU: chunks of products, what they leave open in float64.

For every point y_j one product finds the i with the smallest |y_j - x_i|^2 - r_i^2 in float32. If that i reaches it in
float64, it is covered; if the product is above zero by more than its rounding, it is not; the few in between are
compared with all x in float64. So the answer is that of the definition.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["cover_cuda"]

CHUNK = 2**28  # numbers of one product
ROUNDING = 2.0**-19  # of a squared distance less a squared radius in float32, of the sum of what goes into it


def cover_cuda(a: Tensor, r: np.ndarray, b: Tensor) -> np.ndarray:
    """(m,) bool as ``screpro.kernels.neighbours.radius_cover``, of tensors (n, d) and (m, d) on one device.

    Raises
    ------
    ScreproError
        Points are not finite, or differ in dimension.
    """
    from screpro.errors import ScreproError

    if (
        a.ndim != 2
        or b.ndim != 2
        or a.shape[1] != b.shape[1]
        or not (torch.isfinite(a).all() and torch.isfinite(b).all())
    ):
        raise ScreproError(
            "Points are finite (n, d) and (m, d) tensors.",
            got=f"shapes {tuple(a.shape)} and {tuple(b.shape)}, or values that are not finite",
            fix="give both clouds the same dimensions and find out where NaN comes from",
        )
    reach = torch.as_tensor(r, dtype=torch.float64, device=a.device).square()
    reach = reach * (1 + 4 * torch.finfo(torch.float64).eps)  # a radius that is a distance covers its own point
    centre = b.double().mean(0)
    x, y = a.double() - centre, b.double() - centre
    unit = max(float(x.abs().max()), float(y.abs().max())) or 1.0
    x, y = (x / unit).float(), (y / unit).float()
    norms_x, norms_y, scaled = x.square().sum(1), y.square().sum(1), (reach / unit / unit).float()
    offset = norms_x - scaled
    slack = ROUNDING * (norms_y + norms_x.max() + scaled.max())
    covered = torch.zeros(len(b), dtype=torch.bool, device=a.device)
    rows = max(1, CHUNK // len(a))
    for start in range(0, len(b), rows):
        part = slice(start, start + rows)
        least, index = torch.addmm(offset, y[part], x.T, alpha=-2).min(1)
        exact = (b[part].double() - a[index].double()).square().sum(1) <= reach[index]
        is_open = ~exact & ~(least + norms_y[part] > slack[part])  # infinite radii make NaN: open as well
        exact[is_open] = _reached(b[part][is_open], a, reach)
        covered[part] = exact
    return covered.cpu().numpy()


def _reached(points: Tensor, a: Tensor, reach: Tensor) -> Tensor:
    """(k,) bool for points (k, d), from float64 differences with all of `a`."""
    rows = max(1, CHUNK // a.numel())
    found = [
        ((part[:, None].double() - a[None].double()).square().sum(2) <= reach).any(1) for part in points.split(rows)
    ]
    return torch.cat(found) if found else points.new_zeros(0, dtype=torch.bool)
