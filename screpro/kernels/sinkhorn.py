"""Entropic optimal transport between sets of points, and the debiased Sinkhorn divergence: streamed, in the log domain.

    OT_eps = max over f, g of  <a, f> + <b, g>  with  sum_ij a_i b_j exp((f_i + g_j - c_ij) / eps) = 1

for c_ij = |x_i - y_j|^2, uniform weights a_i = 1 / n, b_j = 1 / m, and eps = 2 blur^2: a kernel exp(-c / eps) is a
Gaussian of standard deviation `blur` (geomloss takes half the squared distance and eps = blur^2, the same problem at
half the value). The divergence S = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2 is 0 for equal sets and tends to W2^2 as blur
tends to 0.

One iteration is a single sweep over row blocks of the exponents ((2 x_i y_j - |y_j|^2 + g_j) / eps + log b_j), one
matrix product each, with scales, norms and potentials put into it as columns: the row maximum, one exponential, the row
sum. That is the exact update of f; and since the rows of the plan then sum to a_i, its column sums, taken from the same
exponentials, are the exact update of g. So both half steps cost one product and one exponential per pair, half of the
usual. The product is taken in float64 (differences of large numbers), the exponentials in float32.

The number of iterations is kept to some hundred where plain ones would need many thousands (cell types that differ in
number, blur well below their distance): eps falls by halves, each level converged before the next, and the map
g -> Tg is extrapolated from its last steps (Anderson), back to plain steps whenever the dual value falls. A set with
itself has f = g and averages, f <- (f + Tf) / 2, which at least halves every error. Small sets are swept together.

Cost per iteration: 2 (d + 1) n m flops and n m exponentials a set; memory O(sets (n + m) d) and a block that stays in
cache. On an NVIDIA GPU both half steps run in Triton, the sets in the grid (`gpu.sinkhorn`), in float32 at every eps
whose exponents float32 holds to well below the tolerance, and in float64 below that.

There is no gradient: points are taken out of the graph they came from. `screpro.kernels.energy.energy_loss` has one.
"""

from dataclasses import dataclass
from math import e, frexp, log, log2

import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.kernels.tiles import LARGEST

__all__ = ["Entropic", "divergence", "reference", "sinkhorn"]

BLOCK = 2**16  # pairs of one block: 512 KiB in float64, half of a second-level cache
SHRINK = 0.5  # of eps from one level to the next
LEVEL = 10.0  # levels above the last are converged to this multiple of the tolerance
MEMORY = 6  # steps that the next is extrapolated from
FLOOR = -80.0  # powers of two below this share of a row's largest are raised to it: none is subnormal, which is slow
NOTHING = -1e30  # exponent of a padded point
ROUNDING = 2.0**-21  # error of a squared distance in float32, for points within 1 of their middle: eight times its ulp


@dataclass(frozen=True)
class Entropic:
    """Entropic transport of every set. Costs are squared distances."""

    cost: Tensor  # (B,) float64: OT_eps from below, <a, f> + <b, g> for a plan with exact row sums
    f: Tensor  # (B, n) float64 potentials, 0 at padded points
    g: Tensor  # (B, m)
    error: Tensor  # (B,) float64: sum_j |column sum - b_j| of the plan
    iterations: int


def reference(x: Tensor, y: Tensor, *, blur: float, iterations: int = 2000) -> tuple[Tensor, Tensor, Tensor]:
    """OT_eps, f and g of one pair of sets (n, d), (m, d) from the full float64 cost matrix, without warm-up."""
    costs, eps = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2, 2 * blur**2
    f, g = costs.new_zeros(len(x)), costs.new_zeros(len(y))
    for _ in range(iterations):
        g = -eps * torch.logsumexp((f[:, None] - costs) / eps - log(len(x)), dim=0)
        f = -eps * torch.logsumexp((g - costs) / eps - log(len(y)), dim=1)
    return f.mean() + g.mean(), f, g


def divergence(x: Tensor, y: Tensor, *, blur: float, lengths_x=None, lengths_y=None, tolerance: float = 1e-4) -> Tensor:
    """Debiased Sinkhorn divergence of every pair of sets, (B,) float64, without gradient; parameters as `sinkhorn`."""
    cross = sinkhorn(x, y, blur=blur, lengths_x=lengths_x, lengths_y=lengths_y, tolerance=tolerance).cost
    for own, lengths in ((x, lengths_x), (y, lengths_y)):
        cross = cross - sinkhorn(own, blur=blur, lengths_x=lengths, tolerance=tolerance).cost / 2
    return cross


def sinkhorn(
    x: Tensor,
    y: Tensor | None = None,
    *,
    blur: float,
    lengths_x=None,
    lengths_y=None,
    tolerance: float = 1e-4,
    most: int = 2000,
) -> Entropic:
    """Entropic transport between sets, or of sets with themselves; the result has no gradient.

    Parameters
    ----------
    x, y
        (B, n, d) and (B, m, d) points of any floating dtype, on one device; `y` None is `x`.
    blur
        Standard deviation of the kernel, in units of the points; eps = 2 blur^2.
    lengths_x, lengths_y
        (B,) how many points of a set are real, the others being padding; None is all.
    tolerance
        Largest L1 error of the plan's column sums, which sum to 1, at which iterations stop. One point too many in a
        far cluster is an error of 2 / n: stay well below that.
    most
        Iterations after which convergence is given up.

    Raises
    ------
    ScreproError
        Shapes do not fit, `blur` is not positive, points are not finite, or `most` iterations were not enough.
    """
    same = y is None
    y, lengths_y = (x, lengths_x) if same else (y, lengths_y)
    _check(x, y, blur)
    weights_x, weights_y = _weights(x, lengths_x), _weights(y, lengths_y)
    x, y = _centred(x, y, weights_x, weights_y)
    # in a unit that is a power of two, squares neither overflow nor vanish in float32
    unit = 2.0 ** frexp(max(float(z.abs().max()) for z in (x, y)))[1]
    x, y = x / unit, y / unit
    sweep = _sweep_cuda if x.is_cuda else _sweep
    single = (x.float(), y.float()) if sweep is _sweep_cuda else None
    target = 2 * (blur / unit) ** 2
    radius = max(float(z.square().sum(2).max()) for z in (x, y))  # squared
    eps = max(4 * radius, target)  # the diameter, squared, at most
    g, extrapolate = torch.zeros_like(weights_y), _Extrapolation()
    for iteration in range(1, most + 1):
        # an exponent that is off by e makes its term off by the share e: half of the tolerance is left to that
        exact = single is None or radius * ROUNDING > tolerance / 2 * eps
        points = (x, y) if exact else single
        f, ratio = sweep(*points, g, weights_x, weights_y, eps, columns=not same)
        if same:
            ratio = torch.exp(((g - f) / eps).clamp(max=80))
        error = (weights_y * (ratio - 1).abs()).sum(1)
        cost = (weights_x * f).sum(1) + (weights_y * g).sum(1)
        if eps == target and float(error.max()) <= tolerance:
            return Entropic(cost * unit**2, f * unit**2, g * unit**2, error, iteration)
        level_done = eps > target and float(error.max()) <= LEVEL * tolerance
        if same:
            g = (f + g) / 2
        else:
            new = g - eps * ratio.log()
            g = new if level_done else extrapolate(g, new, cost)
        if level_done or (same and eps > target):
            eps, extrapolate = max(eps * SHRINK, target), _Extrapolation()
    raise ScreproError(
        "Sinkhorn's iterations converge for a blur that is not far below the distance between neighbours.",
        got=f"an error of {float(error.max()):.2g} after {most} iterations at blur {blur:g}",
        fix="pass a larger blur, or ask for the exact distance (exact_w2)",
    )


class _Extrapolation:
    """Anderson's: of a map's last steps, the combination whose residual is smallest is taken as the next point."""

    def __init__(self):
        self.last = None

    def __call__(self, point: Tensor, image: Tensor, merit: Tensor) -> Tensor:
        """Next point from a point (B, m), its image, and the merit (B,) of the point, which must not fall."""
        residual = image - point
        if self.last is None:
            self.moves = image.new_zeros(MEMORY, *image.shape)  # differences of successive images
            self.changes = image.new_zeros(MEMORY, *image.shape)  # and of their residuals
            self.slot = 0
            self.last = image, residual, merit
            return image
        before, residual_before, merit_before = self.last
        self.moves[self.slot], self.changes[self.slot] = image - before, residual - residual_before
        self.slot = (self.slot + 1) % MEMORY
        worse = merit < merit_before - 1e-9 * merit_before.abs()
        self.moves[:, worse] = self.changes[:, worse] = 0  # of these sets the past is forgotten
        self.last = image, residual, merit
        products = torch.einsum("kbm,lbm->bkl", self.changes, self.changes)
        ridge = 1e-10 * products.diagonal(dim1=1, dim2=2).sum(1) + 1e-300
        products = products + ridge[:, None, None] * torch.eye(MEMORY, dtype=image.dtype, device=image.device)
        weights = torch.linalg.solve(products, torch.einsum("kbm,bm->bk", self.changes, residual))
        return image - torch.einsum("kbm,bk->bm", self.moves, weights)


def _check(x: Tensor, y: Tensor, blur: float):
    if x.ndim != 3 or y.ndim != 3 or x.shape[::2] != y.shape[::2] or not x.numel() or not y.numel():
        raise ScreproError(
            "Sets come as (sets, points, dimensions), as many sets and dimensions on both sides, none empty.",
            got=f"shapes {tuple(x.shape)} and {tuple(y.shape)}",
            fix="add a first axis for a single pair: x[None], y[None]",
        )
    if not blur > 0:
        raise ScreproError("`blur` is positive.", got=f"{blur!r}", fix="use exact_w2 for the limit of no blur")
    if x.device != y.device:
        raise ScreproError("Both sides lie on one device.", got=f"{x.device} and {y.device}", fix="move one of them")
    if not bool((x.abs() <= LARGEST).all() & (y.abs() <= LARGEST).all()):
        raise ScreproError(
            f"Points are finite numbers, at most {LARGEST:g}.",
            got="NaN, infinite or larger values",
            fix="find out where they come from, or measure in a larger unit",
        )


def _weights(points: Tensor, lengths) -> Tensor:
    """(B, n) float64 weights of the real points of every set, summing to 1."""
    sets, n, _ = points.shape
    lengths = torch.full((sets,), n) if lengths is None else torch.as_tensor(lengths)
    if lengths.shape != (sets,) or not bool(((lengths >= 1) & (lengths <= n)).all()):
        raise ScreproError(
            f"Lengths are one number from 1 to {n} for each of {sets} sets.",
            got=f"{lengths.tolist()}",
            fix="leave out empty sets; pad no further than the longest",
        )
    lengths = lengths.to(points.device)
    return (torch.arange(n, device=points.device) < lengths[:, None]).double() / lengths[:, None]


def _centred(x: Tensor, y: Tensor, weights_x: Tensor, weights_y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 around the middle of the two means; padding becomes 0."""
    x, y = x.detach().double(), y.detach().double()
    middle = ((weights_x[..., None] * x).sum(1) + (weights_y[..., None] * y).sum(1))[:, None] / 2
    return (x - middle) * (weights_x > 0)[..., None], (y - middle) * (weights_y > 0)[..., None]


def _sweep(
    x: Tensor, y: Tensor, g: Tensor, weights_x: Tensor, weights_y: Tensor, eps: float, *, columns: bool
) -> tuple[Tensor, Tensor | None]:
    """f from g, (B, n); and the plan's column sums as shares of the weights, (B, m)."""
    (sets, n, _), m, scale = x.shape, y.shape[1], log2(e) / eps
    last = (g - y.square().sum(2)) * scale + weights_y.log2().clamp(min=NOTHING)
    left = torch.cat([(2 * scale) * x, torch.ones_like(x[..., :1])], dim=2)
    right = torch.cat([y, last[..., None]], dim=2).mT.contiguous()  # left @ right: exponents to base 2, less |x|^2
    f = x.square().sum(2)
    totals = x.new_zeros(sets, m)
    rows = min(n, max(BLOCK // m, 16))
    many = max(1, BLOCK // (rows * m))
    exponents = x.new_empty(min(many, sets) * rows * m)
    exponentials = exponents.float()
    for s in range(0, sets, many):
        group = slice(s, s + many)
        for i in range(0, n, rows):
            block = slice(i, i + rows)
            shape = (*left[group, block].shape[:2], m)
            size = shape[0] * shape[1] * m
            tile, mass = exponents[:size].view(shape), exponentials[:size].view(shape)
            torch.bmm(left[group, block], right[group], out=tile)
            top = tile.amax(2, keepdim=True)
            mass.copy_(tile.sub_(top)).clamp_(min=FLOOR)
            total = mass.exp2_().sum(2).double()
            f[group, block] -= eps * log(2) * (top[..., 0] + total.log2())
            if columns:
                share = (weights_x[group, block] / total).float()
                totals[group] += torch.bmm(share[:, None], mass)[:, 0]
    ratio = torch.where(weights_y > 0, totals / weights_y, 1.0) if columns else None
    return f * (weights_x > 0), ratio


def _sweep_cuda(x, y, g, weights_x, weights_y, eps, *, columns):
    from screpro.kernels.gpu.sinkhorn import softmin

    f = softmin(x, y, g, weights_y, eps) * (weights_x > 0)
    if not columns:
        return f, None
    # exp((g - g_next) / eps) is the column sum that the fused sweep would have taken
    return f, torch.where(weights_y > 0, torch.exp((g - softmin(y, x, f, weights_x, eps)) / eps), 1.0)
