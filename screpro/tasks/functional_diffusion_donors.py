r"""Is there a distribution over distributions? How far populations of different donors lie apart, beyond sampling.

A donor's cells of one type are a sample of that donor's population. In the function space of the energy kernel, a cell
lies at k(x, .), a donor at its mean mu_d, and the variance of a cell splits as that of any number does:

    E |k(x, .) - mu|²  =  W + V,    W = E |k(x, .) - mu_d|² = E|X - X'| / 2 within donors,    V = E |mu_d - mu|²

V is what the paper calls distribution-level variability (equations 2 and 10). With pairs of cells never counted with
themselves, half of half the energy distance of two donors is V without bias, however few cells they have; a set of m
cells has a mean embedding that lies W / m from its population's. Sets tell donors apart where W / m < V, that is for
m > W / V.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from screpro.data.preprocess import log_cp10k, variable_panel
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "SCALE",
    "DonorSpread",
    "donor_populations",
    "donor_spread",
    "loss_parts",
    "network_scale",
    "simulated_donors",
]

SCALE = 10.0
"""PerturbDiff divides log-normalised expression by this before the network sees it."""


def network_scale(counts: sp.csr_matrix, n_genes: int | None = None) -> np.ndarray:
    """Cells (n, G) as the network sees them: log1p of 10 000 counts per cell, the variable genes, divided by 10."""
    counts = sp.csr_matrix(counts)
    return log_cp10k(counts)[:, variable_panel(counts, n_genes)].toarray() / SCALE


def equal_depth(counts: sp.csr_matrix, share: float, *, rng: np.random.Generator) -> tuple[sp.csr_matrix, np.ndarray]:
    """Cells thinned to one total, and their rows: donors then cannot differ by how deeply they were sequenced.

    The total is that of which a `share` of the cells has less; these are left out. Every molecule of a cell stays with
    the same chance, so totals agree on average.
    """
    counts = sp.csr_matrix(counts)
    totals = np.asarray(counts.sum(1)).ravel()
    target = np.quantile(totals, share)
    rows = np.flatnonzero((totals >= target) & (totals > 0))
    kept = counts[rows].astype(np.int64)
    chance = np.repeat(target / totals[rows], np.diff(kept.indptr))
    kept.data = rng.binomial(kept.data, chance)
    kept.eliminate_zeros()
    return kept.astype(np.float32), rows


# ---- what the training loss is made of


def loss_parts(real: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The two totals of a set of predicted cells (m, G) against the real ones in the same order, and their parts.

    "energy" is the energy distance (eq. 32) and "mse" the mean over cells and genes. The code adds energy / 2 + mse,
    the paper energy + G mse (eqs. 8, 31: the sum over genes). "... share" is that of the MSE term in the value, and
    "... pull" in the gradient: its length over the sum of both lengths.
    """
    import torch

    from screpro.kernels.energy import energy_loss

    x = torch.from_numpy(np.ascontiguousarray(predicted, float)[None]).requires_grad_()
    y = torch.from_numpy(np.ascontiguousarray(real, float)[None])
    half, mse = energy_loss(x, y).sum(), (x - y).square().mean()
    pulls = [float(torch.autograd.grad(part, x)[0].norm()) for part in (half, mse)]
    half, mse, n_genes = float(half.detach()), float(mse.detach()), real.shape[1]
    code, paper = half + mse, 2 * half + n_genes * mse

    def share(part: float, other: float) -> float:
        return part / (part + other) if part + other > 0 else float("nan")

    return {
        "energy": 2 * half,
        "mse": mse,
        "code total": code,
        "paper total": paper,
        "code share": share(mse, half),
        "paper share": share(n_genes * mse, 2 * half),
        "code pull": share(pulls[1], pulls[0]),
        "paper pull": share(n_genes * pulls[1], 2 * pulls[0]),
    }


# ---- donors


class DonorSpread(NamedTuple):
    """Spread of donors around their mean, for cells of one type and condition."""

    donors: int
    cells: int
    measured: float  # mean |mu_d - mean of donors|² of the samples, sampling included
    permuted: np.ndarray  # (P,) the same with the cells dealt out to donors at random
    between: float  # V, unbiased: may fall below 0
    within: float  # W

    @property
    def ratio(self) -> float:
        """Measured spread over its mean under random dealing: 1 where donors differ by sampling alone."""
        return self.measured / float(self.permuted.mean())

    @property
    def p(self) -> float:
        """Share of random deals, the true one included, that spread donors as much."""
        return float((1 + (self.permuted >= self.measured).sum()) / (1 + len(self.permuted)))

    @property
    def share(self) -> float:
        """V / (V + W): the part of the variance of cells that lies between donors."""
        return self.between / (self.between + self.within)

    @property
    def cells_needed(self) -> float:
        """W / V: the set size at which sampling moves an embedding as far as donors do; infinite where V <= 0."""
        return self.within / self.between if self.between > 0 else float("inf")


def donor_spread(
    cells: np.ndarray, donors: np.ndarray, *, permutations: int = 200, rng: np.random.Generator
) -> DonorSpread:
    """Distances between donors of cells (n, G), and what as many cells drawn at random would show.

    Parameters
    ----------
    cells
        Of one type and condition; every donor has at least two.
    donors
        (n,) labels.

    Raises
    ------
    ScreproError
        Fewer than two donors, or a donor with one cell.
    """
    names, code = np.unique(donors, return_inverse=True)
    sizes = np.bincount(code)
    if len(names) < 2 or sizes.min() < 2 or len(code) != len(cells):
        raise ScreproError(
            "Spread takes two donors or more, each with two cells or more.",
            got=f"{len(cells)} cells, {len(code)} labels, cells of each donor: {sizes.tolist()}",
            fix="leave out donors with one cell",
        )
    distance = cdist(cells, cells)

    def blocks(code: np.ndarray) -> np.ndarray:
        member = np.eye(len(sizes))[code]
        return member.T @ (distance @ member)

    def measured(sums: np.ndarray) -> float:
        mean = sums / np.outer(sizes, sizes)
        own = np.diag(mean)
        squared = mean - own[:, None] / 2 - own / 2  # |mu_i - mu_j|² of the samples
        return float(squared.mean() / 2)

    sums = blocks(code)
    within = np.diag(sums) / (sizes * (sizes - 1))
    apart = sums / np.outer(sizes, sizes) - within[:, None] / 2 - within / 2
    pairs = np.triu_indices(len(sizes), 1)
    permuted = np.array([measured(blocks(rng.permutation(code))) for _ in range(permutations)])
    return DonorSpread(
        len(names), len(cells), measured(sums), permuted, float(apart[pairs].mean() / 2), float(within.mean() / 2)
    )


def donor_populations(
    adata: "AnnData", *, least: int = 10, n_genes: int | None = 2000, thinned: np.random.Generator | None = None
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Cells and donors of every (type, condition) with two donors or more of `least` cells each.

    Columns ``cell_type``, ``donor``, and ``condition`` if there is one. Cells without a published label or a known
    donor are left out. Expression is that of `network_scale`, with one gene panel for all; `thinned` is the randomness
    of `equal_depth`, None leaves cells as deep as they are.
    """
    obs = adata.obs
    missing = {"cell_type", "donor"} - set(obs)
    if missing:
        raise ScreproError(
            "Donors are compared within a type.", got=f"no column {', '.join(sorted(missing))}", fix="take another set"
        )
    kept = np.ones(len(obs), bool)
    if "label_source" in obs:
        kept &= (obs["label_source"] == "published").to_numpy()
    kept &= (obs["donor"].astype(str) != "unknown").to_numpy()
    rows, counts = np.flatnonzero(kept), sp.csr_matrix(adata.X)[kept]
    if thinned is not None:
        counts, deep = equal_depth(counts, 0.2, rng=thinned)
        rows = rows[deep]
    obs = obs.iloc[rows]
    cells = network_scale(counts, n_genes)
    kind = obs["cell_type"].astype(str).to_numpy()
    donor = obs["donor"].astype(str).to_numpy()
    condition = obs["condition"].astype(str).to_numpy() if "condition" in obs else np.full(len(obs), "all")
    found = {}
    for own_type in np.unique(kind):
        for own in np.unique(condition):
            rows = np.flatnonzero((kind == own_type) & (condition == own))
            names, counts = np.unique(donor[rows], return_counts=True)
            enough = names[counts >= least]
            rows = rows[np.isin(donor[rows], enough)]
            if len(enough) >= 2:
                found[own_type, own] = cells[rows], donor[rows]
    return found


def simulated_donors(
    *, strength: float, donors: int, cells: int, genes: int, types: int = 2, rng: np.random.Generator
) -> "AnnData":
    """Donors with a hidden factor: each moves the log expression of every gene by ``strength`` times a normal number.

    `cells` of every donor and type, counts as `screpro.data.simulate.cells` draws them; strength 0 is donors that
    differ by sampling alone. Columns ``cell_type`` and ``donor``.
    """
    from screpro.data import simulate

    adata = simulate.cells(
        cells * donors * types, genes, types, n_batches=donors, batch_effect=strength, depth=1500.0, rng=rng
    )
    adata.obs["donor"] = adata.obs["batch"].astype(str).str.replace("batch", "donor")
    return adata
