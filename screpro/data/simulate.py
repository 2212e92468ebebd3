"""Cells whose truth is known: simulated from a formula, or real counts with effects put in.

Pages call what comes from here synthetic. Three makers:

- `cells`: negative-binomial counts with known types and batches;
- `thin`: every molecule kept with a given probability, the rest returned beside it;
- `perturbed`: real counts with known effects of perturbed genes on the genes they regulate.
"""

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Thinned", "cells", "expected_counts", "perturbed", "thin"]

CONTROL = "control"


def cells(
    n_cells: int,
    n_genes: int,
    n_types: int,
    *,
    n_batches: int = 1,
    depth: float = 2000.0,
    separation: float = 1.0,
    batch_effect: float = 0.3,
    markers: float = 0.1,
    dispersion: float = 0.2,
    size_spread: float = 0.3,
    rng: np.random.Generator,
) -> "AnnData":
    """Draw cells of known types from a negative-binomial model.

    With i a cell of type k in batch b, and g a gene::

        base_g   ~ N(0, 1)
        type_gk  ~ separation * N(0, 1) with probability `markers`, else 0
        batch_gb ~ batch_effect * N(0, 1), and 0 for the only batch
        share_g  = softmax over g of (base_g + type_gk + batch_gb)
        size_i   = depth * exp(size_spread * z - size_spread ** 2 / 2),  z ~ N(0, 1)
        y_ig     ~ NB(mean mu = size_i * share_g, variance mu + dispersion * mu ** 2)

    Types are of equal size up to one cell, and so are the batches within a type.

    Parameters
    ----------
    n_cells, n_genes, n_types, n_batches
        Sizes. Every type gets at least two cells.
    depth
        Expected total count of a cell.
    separation
        Standard deviation of the log fold changes of marker genes between types; 0 makes the types alike.
    batch_effect
        The same between batches, for every gene.
    markers
        Share of the genes that are markers of a given type.
    dispersion
        Of the negative binomial; 0 gives Poisson counts.
    size_spread
        Standard deviation of the logarithm of the cell sizes; 0 gives every cell the same expected total.
    rng
        Source of randomness; its state fixes every number.

    Returns
    -------
    AnnData
        ``X`` CSR float32 of counts (n, m); ``obs``: ``cell_type``, ``batch``, ``size``; the truth in
        ``var["base"]`` and ``varm["type_effect"]`` (m, types), ``varm["batch_effect"]`` (m, batches),
        ``uns["simulation"]``. `expected_counts` gives mu.

    Raises
    ------
    ScreproError
        If a size or a scale is out of range.
    """
    import pandas as pd
    from anndata import AnnData

    if min(n_genes, n_types, n_batches) < 1 or n_cells < 2 * n_types:
        raise ScreproError(
            "Simulated cells need at least one gene, type and batch, and two cells of every type.",
            got=f"{n_cells} cells, {n_genes} genes, {n_types} types, {n_batches} batches",
            fix="raise n_cells, or lower n_types.",
        )
    scales = {
        "depth": depth,
        "separation": separation,
        "batch_effect": batch_effect,
        "dispersion": dispersion,
        "size_spread": size_spread,
    }
    if not (all(0 <= value < np.inf for value in scales.values()) and 0 <= markers <= 1 and depth > 0):
        raise ScreproError(
            "Scales of a simulation are finite and 0 or more, depth is above 0, markers is within 0..1.",
            got=f"{scales | {'markers': markers}}",
            fix="change the value that is out of range.",
        )
    order = rng.permutation(n_cells)
    kind = np.empty(n_cells, dtype=np.int64)
    batch = np.empty(n_cells, dtype=np.int64)
    kind[order] = np.arange(n_cells) % n_types
    batch[order] = np.arange(n_cells) // n_types % n_batches  # crossed with the types

    base = rng.standard_normal(n_genes)
    is_marker = rng.random((n_genes, n_types)) < markers
    type_effect = separation * rng.standard_normal((n_genes, n_types)) * is_marker
    batch_effects = batch_effect * rng.standard_normal((n_genes, n_batches)) * (n_batches > 1)
    size = depth * np.exp(size_spread * rng.standard_normal(n_cells) - size_spread**2 / 2)

    # labels of one width, so that alphabetical order is the order of the columns of the truth
    types = [f"type {k:0{len(str(n_types - 1))}d}" for k in range(n_types)]
    batches = [f"batch {b:0{len(str(n_batches - 1))}d}" for b in range(n_batches)]
    adata = AnnData(
        X=sp.csr_matrix((n_cells, n_genes), dtype=np.float32),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical.from_codes(kind, types),
                "batch": pd.Categorical.from_codes(batch, batches),
                "size": size,
            },
            index=[f"cell {i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame({"base": base}, index=[f"gene {g}" for g in range(n_genes)]),
        varm={"type_effect": type_effect, "batch_effect": batch_effects},
    )
    rows = max(1, (1 << 22) // n_genes)  # a few million entries at a time are dense
    parts = []
    for start in range(0, n_cells, rows):
        mean = expected_counts(adata[start : start + rows])
        if dispersion > 0:  # the Poisson whose rate is gamma-distributed is negative binomial
            mean = mean * rng.gamma(1 / dispersion, dispersion, size=mean.shape)
        parts.append(sp.csr_matrix(rng.poisson(mean).astype(np.float32)))
    adata.X = sp.vstack(parts, format="csr")
    adata.uns["simulation"] = {**scales, "markers": markers, "types": types, "batches": batches}
    return signed(adata, f"simulated: {n_types} types, {n_batches} batches, negative-binomial counts")


def expected_counts(adata: "AnnData") -> np.ndarray:
    """The mean of every entry of cells made by `cells`.

    Returns
    -------
    ndarray
        (n, m) float64, mu of the formula there.
    """
    kind = adata.obs["cell_type"].astype(str).str.split(" ").str[1].astype(int).to_numpy()
    batch = adata.obs["batch"].astype(str).str.split(" ").str[1].astype(int).to_numpy()
    groups, which = np.unique(np.stack([kind, batch]), axis=1, return_inverse=True)
    log_share = adata.var["base"].to_numpy() + adata.varm["type_effect"].T[groups[0]]
    log_share = log_share + adata.varm["batch_effect"].T[groups[1]]
    share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)  # (groups, m)
    return adata.obs["size"].to_numpy()[:, None] * share[which.reshape(-1)]


class Thinned(NamedTuple):
    """Counts divided in two: ``kept + rest`` is what was there."""

    kept: sp.csr_matrix
    rest: sp.csr_matrix


def thin(counts: sp.spmatrix | np.ndarray, fraction: float, rng: np.random.Generator) -> Thinned:
    """Divide counts in two: every molecule is kept with probability `fraction`, independently.

    kept ~ Binomial(y, fraction) entry by entry, so E[kept | y] = fraction * y. Thinned Poisson counts are
    Poisson, thinned negative-binomial counts negative binomial with the same dispersion, each with fraction
    times the mean; of Poisson counts both parts are independent (Batson et al. 2019, molecular
    cross-validation).

    Parameters
    ----------
    counts
        (n, m) counts.
    fraction
        Within 0..1.

    Returns
    -------
    Thinned
        ``kept`` and ``rest``, CSR float32.
    """
    if not 0 <= fraction <= 1:
        raise ScreproError(
            "The fraction of molecules to keep is within 0..1.", got=f"{fraction}", fix="choose one within."
        )
    matrix = _counts(counts)
    return _thin(matrix, np.full(matrix.nnz, fraction), rng)


def _thin(matrix: sp.csr_matrix, keep: np.ndarray, rng: np.random.Generator) -> Thinned:
    """Thin stored value k with probability ``keep[k]``."""
    kept, rest = matrix.copy(), matrix.copy()
    kept.data = rng.binomial(matrix.data.astype(np.int64), keep).astype(np.float32)
    rest.data = matrix.data.astype(np.float32) - kept.data
    kept.eliminate_zeros()
    rest.eliminate_zeros()
    return Thinned(kept, rest)


def _counts(counts: sp.spmatrix | np.ndarray) -> sp.csr_matrix:
    from screpro.data.validate import check_counts

    check_counts(counts, what="The matrix to thin")
    matrix = sp.csr_matrix(counts, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def perturbed(
    adata: "AnnData",
    *,
    n_perturbations: int,
    n_targets: int,
    effect: float,
    rng: np.random.Generator,
    control_share: float = 0.25,
) -> "AnnData":
    """Real cells with known effects of perturbed genes, put in by thinning alone.

    A sparse gene graph is drawn: each of the perturbed genes p regulates `n_targets` other genes. In cells
    where p is perturbed, the mean of p itself falls by the factor 2 ** effect, and that of a target g rises
    or falls by it, with even chance::

        fold_pg = 2 ** log2_fold_pg,   log2_fold_pg in {-effect, 0, +effect}

    Molecules are never invented. Gene g is thinned in control cells to a share c_g = 1 / max(1, max_p
    fold_pg) and in cells of p to c_g * fold_pg, which is at most 1. Hence, given the real counts y::

        E[y'_ig | y] = c_g * fold_pg * y_ig

    and the ratio of means between perturbed and control state is fold_pg exactly, in every cell type, while
    thinned counts stay in their family (see `thin`). These are changes of counts: scaling cells to one
    total afterwards moves all genes of a cell a little.

    Parameters
    ----------
    adata
        Unperturbed cells with counts in ``X``.
    n_perturbations, n_targets
        Perturbed genes, and genes that each of them regulates. Both are drawn from genes seen in at least
        5 % of the cells.
    effect
        log2 of the fold change, above 0.
    rng
        Source of randomness; its state fixes every number.
    control_share
        Share of the cells that stays unperturbed. The others are divided evenly, regardless of their type.

    Returns
    -------
    AnnData
        A copy with ``X`` changed; ``obs["perturbation"]``: ``"control"`` or the name of the perturbed gene;
        ``var["control_share"]`` (c_g); the truth in ``uns["perturbation_truth"]``: ``perturbations`` (names)
        and ``log2_fold`` (CSR, perturbations x genes).

    Raises
    ------
    ScreproError
        If there are too few cells or genes for what is asked, or ``X`` does not hold counts.
    """
    import pandas as pd

    if n_perturbations < 1 or n_targets < 0 or not 0 < effect < 20 or not 0 < control_share < 1:
        raise ScreproError(
            "A perturbation needs n_perturbations >= 1, n_targets >= 0, effect within 0..20, "
            "control_share within 0..1.",
            got=f"{n_perturbations=}, {n_targets=}, {effect=}, {control_share=}",
            fix="change the value that is out of range.",
        )
    counts = _counts(adata.X)
    n, m = counts.shape
    seen = np.flatnonzero(np.bincount(counts.indices, minlength=m) >= 0.05 * n)
    n_control = max(1, round(control_share * n))
    if len(seen) < max(n_perturbations, n_targets + 1) or n - n_control < n_perturbations:
        raise ScreproError(
            "Every perturbation needs a cell, and genes seen in 5 % of the cells for itself and its targets.",
            got=f"{len(seen)} such genes and {n - n_control} cells to perturb, for {n_perturbations} "
            f"perturbations of {n_targets} targets",
            fix="ask for fewer, or use more cells.",
        )
    regulators = rng.choice(seen, size=n_perturbations, replace=False)
    log2_fold = sp.lil_matrix((n_perturbations, m))
    for p, gene in enumerate(regulators):
        targets = rng.choice(seen[seen != gene], size=n_targets, replace=False)
        log2_fold[p, targets] = effect * rng.choice([-1.0, 1.0], size=n_targets)
        log2_fold[p, gene] = -effect
    log2_fold = log2_fold.tocsr()

    state = np.full(n, -1)  # -1: control
    state[rng.permutation(n)[n_control:]] = np.arange(n - n_control) % n_perturbations
    control_kept = 2.0 ** -np.maximum(log2_fold.max(axis=0).toarray().ravel(), 0)  # c_g, (m,)
    fold = np.vstack([2.0 ** log2_fold.toarray(), np.ones(m)])  # the last row is the control, found by index -1
    rows = np.repeat(np.arange(n), np.diff(counts.indptr))
    keep = control_kept[counts.indices] * fold[state[rows], counts.indices]

    names = [str(name) for name in adata.var_names[regulators]]
    out = adata.copy()
    out.X = _thin(counts, np.minimum(keep, 1.0), rng).kept  # 2 ** -e * 2 ** e may round above 1
    labels = np.array([*names, CONTROL], dtype=object)[state]
    out.obs["perturbation"] = pd.Categorical(labels, categories=[CONTROL, *sorted(names)])
    out.var["control_share"] = control_kept
    out.uns["perturbation_truth"] = {"perturbations": names, "log2_fold": log2_fold, "effect": effect}
    return signed(out, f"semi-synthetic: {n_perturbations} perturbations put into {adata.uns.get('source', 'cells')}")


def signed(adata: "AnnData", source: str) -> "AnnData":
    """Say where the cells come from, and the sha256 of their counts."""
    digest = hashlib.sha256()
    for part in (adata.X.indptr, adata.X.indices, adata.X.data):
        digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    adata.uns["source"], adata.uns["data_hash"] = source, digest.hexdigest()
    return adata
