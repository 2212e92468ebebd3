"""A simulated perturbation atlas with known latent factors: contexts x perturbations x donors.

What the real sets at hand lack: enough perturbations to tell apart, contexts in which most of them were never seen,
and a cause of variation that no label names. Counts of cell i in context k, donor d, under perturbation p:

    log share_ig = base_g + C_kg + D_dg + sum_r L_rg (U_kdr + A_kr exp(H_kdr) W_pr) + target_pg
    y_ig ~ NB(mean = size_i share_ig, inverse dispersion)

Genes work in R programs (loadings L, sparse). A perturbation moves a few programs (W), a context answers more or less
to each (A), and two latent environments of every (context, donor) shift programs at rest (U) and scale the response
(H). Nothing in ``obs`` names U and H: one condition has a family of distributions, one per donor and context.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.data.simulate import signed
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Truth", "atlas", "expected_share"]

CONTROL = "control"


class Truth(NamedTuple):
    """Every factor that the counts were drawn from; K contexts, D donors, P perturbations, R programs, G genes."""

    base: np.ndarray  # (G,)
    context: np.ndarray  # (K, G)
    donor: np.ndarray  # (D, G)
    loadings: np.ndarray  # (R, G)
    rest: np.ndarray  # (K, D, R) U
    answer: np.ndarray  # (K, R) A
    scale: np.ndarray  # (K, D, R) H
    effect: np.ndarray  # (P + 1, R) W; row 0, the control, is zero
    target: np.ndarray  # (P + 1, G) the perturbed gene itself, row 0 zero


def atlas(
    *,
    n_contexts: int = 4,
    n_perturbations: int = 40,
    n_donors: int = 3,
    cells: int = 30,
    control_cells: int = 120,
    n_genes: int = 500,
    n_programs: int = 12,
    effect: float = 0.5,
    latent: float = 0.3,
    depth: float = 800.0,
    dispersion: float = 0.3,
    rng: np.random.Generator,
) -> "AnnData":
    """Draw an atlas.

    Parameters
    ----------
    n_contexts, n_perturbations, n_donors
        Sizes of the design; every combination has cells.
    cells, control_cells
        Cells of every combination of perturbation, context and donor, and of the control.
    n_genes, n_programs
        Genes, and programs they work in.
    effect
        Standard deviation of W, log fold change of a gene with loading 1 per program moved.
    latent
        Standard deviation of U and H. 0: the labels explain everything.
    depth, dispersion
        Mean molecules of a cell, and variance beyond Poisson in units of the squared mean (0 is Poisson).
    rng
        Source of randomness; its state fixes every number.

    Returns
    -------
    AnnData
        Counts CSR float32 in ``X``; ``obs``: ``perturbation`` ("control" or the name of a gene), ``context``,
        ``donor``, ``size``; ``uns["truth"]`` is a `Truth` as a dict of arrays.

    Raises
    ------
    ScreproError
        A size or a scale is out of range.
    """
    import pandas as pd
    from anndata import AnnData

    sizes = (n_contexts, n_perturbations, n_donors, cells, control_cells, n_programs)
    scales = (effect, latent, dispersion)
    if min(sizes) < 1 or n_genes < max(2 * n_perturbations, 20) or depth <= 0 or not 0 <= min(scales) < np.inf:
        raise ScreproError(
            "An atlas has at least one of everything and two genes for a perturbation; scales are 0 or more.",
            got=f"{n_contexts=}, {n_perturbations=}, {n_donors=}, {cells=}, {control_cells=}, {n_genes=}, "
            f"{n_programs=}, {effect=}, {latent=}, {dispersion=}, {depth=}",
            fix="change the value that is out of range",
        )
    truth = _truth(rng, n_contexts, n_perturbations, n_donors, n_genes, n_programs, effect, latent)
    k, d, p = (a.ravel() for a in np.meshgrid(*map(np.arange, (n_contexts, n_donors, n_perturbations + 1))))
    repeats = np.where(p == 0, control_cells, cells)
    k, d, p = (np.repeat(a, repeats) for a in (k, d, p))
    size = depth * np.exp(0.3 * rng.standard_normal(len(p)) - 0.045)
    parts = []
    for start in range(0, len(p), 2048):  # dense only a few thousand cells at a time
        rows = slice(start, start + 2048)
        mean = size[rows, None] * expected_share(truth, k[rows], d[rows], p[rows])
        if dispersion > 0:
            mean = mean * rng.gamma(1 / dispersion, dispersion, size=mean.shape)
        parts.append(sp.csr_matrix(rng.poisson(mean).astype(np.float32)))
    genes = [f"gene {g}" for g in range(n_genes)]
    names = [CONTROL, *(genes[g] for g in truth.target[1:].argmin(1))]
    adata = AnnData(
        X=sp.vstack(parts, format="csr"),
        obs=pd.DataFrame(
            {
                "perturbation": pd.Categorical.from_codes(p, names),
                "context": pd.Categorical.from_codes(k, [f"context {i}" for i in range(n_contexts)]),
                "donor": pd.Categorical.from_codes(d, [f"donor {i}" for i in range(n_donors)]),
                "size": size,
            },
            index=[f"cell {i}" for i in range(len(p))],
        ),
        var=pd.DataFrame(index=genes),
    )
    adata.uns["truth"] = truth._asdict()
    what = f"{n_contexts} contexts, {n_perturbations} perturbations, {n_donors} donors, latent environments"
    return signed(adata, f"simulated atlas: {what}")


def _truth(rng, n_contexts, n_perturbations, n_donors, n_genes, n_programs, effect, latent) -> Truth:
    """Draw every factor."""
    loadings = rng.standard_normal((n_programs, n_genes)) * (rng.random((n_programs, n_genes)) < 2.5 / n_programs)
    moved = rng.random((n_perturbations, n_programs)) < 2 / n_programs
    moved[np.arange(n_perturbations), rng.integers(n_programs, size=n_perturbations)] = True  # at least one
    weights = np.zeros((n_perturbations + 1, n_programs))
    weights[1:] = effect * rng.standard_normal((n_perturbations, n_programs)) * moved
    base = 1.5 * rng.standard_normal(n_genes)
    target = np.zeros((n_perturbations + 1, n_genes))
    # a gene has to be expressed for its loss to be seen
    seen = np.argsort(-base)[: max(n_perturbations, n_genes // 2)]
    target[np.arange(1, n_perturbations + 1), rng.choice(seen, n_perturbations, replace=False)] = -2.0
    return Truth(
        base=base,
        context=0.6 * rng.standard_normal((n_contexts, n_genes)) * (rng.random((n_contexts, n_genes)) < 0.3),
        donor=0.15 * rng.standard_normal((n_donors, n_genes)),
        loadings=loadings,
        rest=latent * rng.standard_normal((n_contexts, n_donors, n_programs)),
        answer=np.exp(0.4 * rng.standard_normal((n_contexts, n_programs))),
        scale=latent * rng.standard_normal((n_contexts, n_donors, n_programs)),
        effect=weights,
        target=target,
    )


def expected_share(truth: Truth, context: np.ndarray, donor: np.ndarray, perturbation: np.ndarray) -> np.ndarray:
    """Expected share of every gene among a cell's molecules, (n, G), for codes (n,); rows sum to 1."""
    codes, which = np.unique(np.stack([context, donor, perturbation]), axis=1, return_inverse=True)
    k, d, p = codes
    programs = truth.rest[k, d] + truth.answer[k] * np.exp(truth.scale[k, d]) * truth.effect[p]
    log_share = truth.base + truth.context[k] + truth.donor[d] + programs @ truth.loadings + truth.target[p]
    share = np.exp(log_share - log_share.max(1, keepdims=True))
    return (share / share.sum(1, keepdims=True))[which.reshape(-1)]
