"""CellTypist (Domínguez Conde et al., Science 2022, 10.1126/science.abl5197): the authors' own package.

Training is `celltypist.train` with its defaults: every expressed gene, standardised and clipped at +10, then one
L2 logistic regression per type against the rest. Prediction is `celltypist.annotate` on the test cells, best
match, without majority voting: voting would smooth over clusters of the test cells, which no other method here
is allowed to look at together.

Differences from the defaults: the random state is fixed. With ``feature_selection=True`` a first pass by SGD
keeps `top_genes` genes per type (the authors' two-pass option); `top_genes` is cut to what the data has.
"""

import logging
import os
from types import ModuleType

import numpy as np
from scipy import sparse

from screpro.baselines.common import Prediction, contained_torch, from_scores, quiet
from screpro.paths import cache_dir
from screpro.tasks.cells import Cells

__all__ = ["fit_predict"]


def fit_predict(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    C: float = 1.0,
    class_weight: str | None = None,
    feature_selection: bool = False,
    top_genes: int = 300,
) -> Prediction:
    """Train CellTypist on `train` and annotate `test`.

    Parameters
    ----------
    C
        Inverse strength of the L2 penalty.
    class_weight
        "balanced" weighs cells by the inverse frequency of their type.
    feature_selection
        Two passes: choose genes by SGD first.
    top_genes
        Genes kept per type in the first pass.
    """
    package = _package()
    from anndata import AnnData

    expressed = int((train.x.getnnz(axis=0) > 0).sum())
    selection = {"feature_selection": True, "top_genes": min(top_genes, expressed - 1)} if feature_selection else {}
    # type names sort like their codes, whatever the number of types
    names = np.array([f"{code:06d}" for code in range(n_types)])
    with quiet(), contained_torch(seed=seed, threads=threads):
        model = package.train(
            X=sparse.csr_matrix(train.x),
            labels=names[train.cell_type],
            genes=np.array(train.genes),
            C=C,
            n_jobs=threads,
            check_expression=False,  # Cells.x is log1p CP10k by definition
            random_state=seed,
            class_weight=class_weight,
            **selection,
        )
        query = AnnData(sparse.csr_matrix(test.x))
        query.var_names = list(train.genes)
        query.obs_names = [str(i) for i in range(query.n_obs)]
        result = package.annotate(query, model=model, majority_voting=False)
    probability = result.probability_matrix
    scores = from_scores(probability.to_numpy(), probability.columns.astype(int).to_numpy(), n_types=n_types).scores
    # the package's own answer, taken before the sigmoid can saturate
    return Prediction(labels=result.predicted_labels["predicted_labels"].astype(int).to_numpy(), scores=scores)


def _package() -> ModuleType:
    """Import celltypist without its two side effects: a folder in the home directory, a root log handler."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    folder = os.environ.get("CELLTYPIST_FOLDER")
    os.environ["CELLTYPIST_FOLDER"] = folder or str(cache_dir() / "celltypist")
    try:
        with quiet():
            import celltypist
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        if folder is None:
            del os.environ["CELLTYPIST_FOLDER"]
    return celltypist
