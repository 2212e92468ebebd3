"""Two clouds as the kernels of this folder take them: checked, in a unit whose squares float32 holds."""

from dataclasses import dataclass
from math import frexp

import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.kernels.tiles import LARGEST

__all__ = ["Clouds", "distances", "rounding"]


@dataclass(frozen=True)
class Clouds:
    """Points in units of `unit`, a power of two: no coordinate is farther than 1 from the centre."""

    a: Tensor  # (n, d) float32 or float64, both the same, contiguous
    b: Tensor  # (m, d)
    same: bool  # b is a
    centre: Tensor  # (d,) float64 mean of a
    unit: float

    @classmethod
    def of(cls, a: Tensor, b: Tensor | None = None) -> "Clouds":
        """Clouds of tensors (n, d) and (m, d) on one device, or of `a` with itself.

        Raises
        ------
        ScreproError
            Empty clouds, other shapes, dimensions that differ, values that are not finite or above `LARGEST`.
        """
        same = b is None
        b = a if same else b
        if a.ndim != 2 or b.ndim != 2 or not a.numel() or not b.numel() or a.shape[1] != b.shape[1]:
            raise ScreproError(
                "Clouds hold at least one point each, as (points, dimensions), in the same dimensions.",
                got=f"{tuple(a.shape)} and {tuple(b.shape)}",
                fix="project both onto the same components, or subset both to the same genes",
            )
        a, b = a.detach(), b.detach()
        largest = float(torch.maximum(a.abs().max().double(), b.abs().max().double()))  # NaN if there is one
        if not largest <= LARGEST:
            raise ScreproError(
                f"Points are finite numbers, at most {LARGEST:g}.",
                got=f"{largest:g}",
                fix="find out where NaN or infinity comes from (do not fill it with zeros), or change the unit",
            )
        dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
        centre = a.double().mean(0)
        span = max(float((cloud.double() - centre).abs().max()) for cloud in (a, b))
        unit = 2.0 ** frexp(span)[1] if span else 1.0  # division by it is exact
        a, b = ((cloud.double() / unit).to(dtype).contiguous() for cloud in (a, b))
        return cls(a, a if same else b, same, centre / unit, unit)

    def centred(self) -> tuple[Tensor, Tensor]:
        """Both around the centre, float32."""
        return tuple((cloud.double() - self.centre).float() for cloud in (self.a, self.b))


def rounding(d: int) -> float:
    """A squared distance from float32 products in d dimensions is off by at most this share of (|x| + |y|)^2.

    Four times what sums of d products and two norms round by, as matrix units truncate and three TF32 products are
    not quite one of float32; plus the 11 bits of TF32 where torch was told that they will do.
    """
    return (d + 10) * 2.0**-22 + (2.0**-9 if torch.backends.cuda.matmul.allow_tf32 else 0.0)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) float64 distances from differences; the caller bounds n m."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
