"""From integer counts to what networks and metrics read: log1p of counts per ten thousand, and variable genes."""

import warnings

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from screpro.errors import ScreproError

__all__ = ["SPANS", "log_cp10k", "log_normalise", "most_variable", "variable_panel"]

SPANS = (0.3, 0.6, 1.0)
"""Shares of the genes that seurat_v3's local fit looks at; the first is scanpy's default."""


def log_normalise(adata: AnnData, *, target_sum: float = 1e4) -> AnnData:
    """Preprocess as scDiff does for every data set (appendix E.2 and the authors' code).

    In this order: make gene names unique, drop genes seen in no cell, drop cells without a count, keep the
    counts as layer ``counts``, scale every cell to a total of `target_sum`, take log(1 + x). No gene
    selection, no z-scores.

    Parameters
    ----------
    adata
        Integer counts in ``X``, cells x genes, sparse or dense.
    target_sum
        Total of every cell after scaling.

    Returns
    -------
    AnnData
        A new object: ``X`` CSR float32 of log1p counts per `target_sum`, ``layers["counts"]`` CSR float32.

    Raises
    ------
    ScreproError
        If ``X`` holds log values already, or nothing is left after dropping empty genes and cells.
    """
    if adata.uns.get("values", "counts") != "counts":
        raise ScreproError(
            "Counts are normalised once, from counts.",
            got=f"{adata.uns['values']} values in X",
            fix="use X as it is; this data set is published without its counts",
        )
    counts = sp.csr_matrix(adata.X, dtype=np.float32)
    counts.eliminate_zeros()
    genes = np.flatnonzero(counts.getnnz(axis=0) > 0)
    cells = np.flatnonzero(counts.getnnz(axis=1) > 0)
    if not len(genes):
        raise ScreproError(
            "A count matrix has to hold at least one count.",
            got=f"{adata.n_obs} cells x {adata.n_vars} genes, all zero",
            fix="check that X (or the layer you named) is the count matrix",
        )
    kept = adata[cells].copy()
    kept.var_names_make_unique()
    kept = kept[:, genes].copy()
    counts = counts[cells][:, genes].tocsr()

    x = counts.astype(np.float64)
    scale = target_sum / np.asarray(x.sum(axis=1)).ravel()
    x.data *= np.repeat(scale, np.diff(x.indptr))
    np.log1p(x.data, out=x.data)
    kept.X = x.astype(np.float32)
    kept.layers = {"counts": counts}
    return kept


def log_cp10k(counts: sp.csr_matrix) -> sp.csr_matrix:
    """log1p of counts (n, G) scaled to 10 000 per cell, float64; a cell without counts stays zero."""
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    scaled = counts.astype(np.float64)
    scaled.data = np.log1p(scaled.data * np.repeat(1e4 / np.maximum(total, 1), np.diff(scaled.indptr)))
    return scaled


def most_variable(counts: sp.csr_matrix, n_genes: int) -> np.ndarray:
    """Which genes (G,) are the `n_genes` whose counts vary most for their mean: scanpy's "seurat_v3".

    Its local fit of variance against mean has no solution where many genes have the same mean, as in a few hundred
    cells. There it is fitted with the next of `SPANS`.

    Raises
    ------
    ScreproError
        No span has a fit, or the package that fits is not installed.
    """
    import scanpy as sc

    for span in SPANS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = sc.pp.highly_variable_genes(
                    AnnData(counts), flavor="seurat_v3", n_top_genes=n_genes, span=span, inplace=False
                )
            return found["highly_variable"].to_numpy()
        except ImportError:
            raise ScreproError(
                "seurat_v3 fits its curve with scikit-misc.",
                got="scikit-misc is not installed",
                fix="pip install scikit-misc",
            ) from None
        except ValueError as error:
            said = error.args[0] if error.args else "a fit that failed"
    said = said.decode(errors="replace") if isinstance(said, bytes) else str(said)  # the fit is Fortran's
    raise ScreproError(
        "seurat_v3 fits a curve through the variances of many genes.",
        got=f"{counts.shape[0]} cells x {counts.shape[1]} genes: {said.strip()}",
        fix="take more cells, or keep all genes",
    )


def variable_panel(counts: sp.csr_matrix, n_genes: int | None) -> np.ndarray:
    """Ascending columns of the `n_genes` most variable genes; None or too many: all genes that occur.

    scanpy's "seurat_v3" of counts; of log values, where a set is published without its counts, "seurat".
    """
    seen = np.flatnonzero(counts.getnnz(axis=0) > 0)
    if n_genes is None or n_genes >= len(seen):
        return seen
    if (counts.data % 1 == 0).all():
        return seen[most_variable(counts[:, seen], n_genes)]
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sc.pp.highly_variable_genes(
            AnnData(counts[:, seen]), n_top_genes=n_genes, flavor="seurat", inplace=False
        )
    spread = found["dispersions_norm"].fillna(-np.inf).to_numpy()  # scanpy keeps every gene that is level with the last
    return seen[np.sort(np.argsort(-spread, kind="stable")[:n_genes])]
