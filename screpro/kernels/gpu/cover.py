"""Which points lie within the radius of any other, on the GPU: chunks of products, what they leave open in float64.

For every point y_j one product finds the i with the smallest |y_j - x_i|^2 - r_i^2 in float32. If that i reaches it in
float64, it is covered; if the product is above zero by more than its rounding, it is not; the few in between are
compared with all x in float64. So the answer is that of the definition.
"""

import numpy as np
import torch
from torch import Tensor

from screpro.kernels.gpu.points import Clouds, distances, rounding

__all__ = ["cover_cuda"]

CHUNK = 2**24  # numbers of one product: 64 MiB


def cover_cuda(a: Tensor, r: np.ndarray, b: Tensor) -> np.ndarray:
    """(m,) bool as ``screpro.kernels.neighbours.radius_cover``, of tensors (n, d) and (m, d) on one device.

    Raises
    ------
    ScreproError
        Points are not finite, or differ in dimension.
    """
    clouds = Clouds.of(a, b)
    a, b, d = clouds.a, clouds.b, clouds.a.shape[1]
    reach = (torch.as_tensor(r, dtype=torch.float64, device=a.device) / clouds.unit).square()
    # a radius that is a distance covers its own point, in whatever order its squares were summed
    reach = reach * (1 + (4 + d) * torch.finfo(torch.float64).eps)
    x, y = clouds.centred()
    norms_x, norms_y, scaled = x.double().square().sum(1), y.double().square().sum(1), reach.float()
    offset = (norms_x - scaled).float()
    slack = 2 * rounding(d) * (norms_y + norms_x.max() + scaled.max())
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
    found = [(distances(part, a).square() <= reach).any(1) for part in points.split(max(1, CHUNK // len(a)))]
    return torch.cat(found)
