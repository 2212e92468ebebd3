"""Real cells that ship inside the scanpy package: nothing has to be downloaded."""

import hashlib

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from screpro.errors import ScreproError

__all__ = ["pbmc68k_reduced"]


def pbmc68k_reduced() -> AnnData:
    """700 peripheral blood cells x 765 genes in 10 types (Zheng et al. 2017), with their integer counts.

    scanpy stores log1p(counts x 10 000 / n_counts) rounded to three decimals, where n_counts is the total
    over ALL genes that were measured, not only the 765 kept. Small counts are whole numbers, so rounding
    ``expm1(value) * n_counts / 10 000`` gives them back; that normalising them again gives every stored
    value is checked on each load.

    Returns
    -------
    AnnData
        ``X`` CSR float32 of counts; ``obs["cell_type"]``; ``uns["source"]``, ``uns["data_hash"]``.
    """
    from scanpy.datasets import pbmc68k_reduced as packaged

    stored = packaged()
    values = sp.csr_matrix(stored.raw.X, dtype=np.float64)
    total = stored.obs["n_counts"].to_numpy(dtype=np.float64)
    scale = np.repeat(total / 1e4, np.diff(values.indptr))
    counts = np.round(np.expm1(values.data) * scale)
    if np.abs(np.log1p(counts / scale) - values.data).max() > 6e-4:
        raise ScreproError(
            "The counts recovered from scanpy's pbmc68k_reduced must reproduce its stored values (rounded to 0.001).",
            got="another matrix in the installed scanpy",
            fix="install the scanpy version pinned in constraints.txt",
        )
    matrix = sp.csr_matrix((counts.astype(np.float32), values.indices, values.indptr), shape=values.shape)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    labels = pd.Categorical(stored.obs["bulk_labels"].astype(str))
    adata = AnnData(
        X=matrix,
        obs=pd.DataFrame({"cell_type": labels}, index=stored.obs_names.astype(str)),
        var=pd.DataFrame(index=stored.raw.var_names.astype(str)),
    )
    digest = hashlib.sha256()
    for part in (matrix.indptr.astype("<i8"), matrix.indices.astype("<i8"), matrix.data.astype("<i8")):
        digest.update(part.tobytes())
    adata.uns["source"] = "scanpy.datasets.pbmc68k_reduced (10x Genomics, Zheng et al. 2017), counts recovered"
    adata.uns["data_hash"] = digest.hexdigest()
    return adata
