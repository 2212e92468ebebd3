"""MAGIC (van Dijk et al., Cell 2018, 10.1016/j.cell.2018.05.061): the authors' package magic-impute.

Counts are divided by the size of the cell and the square root is taken, as in the authors' tutorials; MAGIC diffuses
the values between neighbouring cells; the square of the result is a rate per 10 000 again. Defaults are those of the
package: 5 neighbours, at most 15, decay 1, t = 3, 100 principal components, exact solver.

``t="auto"`` lets the package choose the diffusion time, at most 20. The package takes its neighbours from the first
100 components found at random from `seed`; with fewer than 101 genes or cells there is no such reduction.
"""

import numpy as np
from scipy import sparse

from screpro.baselines.common import contained_torch, quiet
from screpro.baselines.smoothing import rates

__all__ = ["impute"]


def impute(
    counts: sparse.csr_matrix,
    *,
    size: np.ndarray,
    seed: int,
    threads: int = 1,
    knn: int = 5,
    t: int | str = 3,
    decay: int | None = 1,
    n_pca: int = 100,
    solver: str = "exact",
) -> np.ndarray:
    """log1p of the diffused rates.

    Parameters
    ----------
    knn
        Neighbours that set the width of the kernel; three times as many are connected at most.
    t
        Steps of diffusion, or "auto".
    decay
        How steeply the kernel falls; None connects neighbours with equal weight.
    n_pca
        Principal components among which neighbours are sought.
    solver
        "exact", or "approximate": diffusion of the components instead of the genes, for very many genes.
    """
    with quiet(), contained_torch(seed=seed, threads=threads):
        import tasklogger
        from magic import MAGIC

        root = rates(counts, size).sqrt()
        few = min(counts.shape) - 1
        operator = MAGIC(
            knn=min(knn, few),
            t=t,
            decay=decay,
            n_pca=n_pca if n_pca <= few else None,
            solver=solver,
            n_jobs=threads,
            random_state=seed,
            verbose=0,
        )
        before = tasklogger.get_tasklogger("graphtools").level
        try:
            diffused = operator.fit_transform(root, genes="all_genes")
        finally:
            tasklogger.get_tasklogger("graphtools").set_level(before)
    diffused = np.asarray(diffused.toarray() if sparse.issparse(diffused) else diffused)
    # the approximate solver may leave small negative values; there is no rate below 0
    return np.log1p(np.square(np.maximum(diffused, 0.0))).astype(np.float32)
