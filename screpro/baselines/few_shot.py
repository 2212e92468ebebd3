"""What else can name cells from a few labelled ones: floors, simple methods and a ceiling beside few-shot scDiff.

The paper shows CellTypist trained on the shots alone, which leaves it without the majority cells that scDiff is
pre-trained on. The methods here use them in the two ways open to a method without a generative model: as a space in
which the shots are compared (principal components), or as further classes whose answers are then not allowed.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines import annotation
from screpro.baselines.common import Prediction
from screpro.baselines.registry import entry_of
from screpro.tasks.cells import Cells

__all__ = ["FEW_SHOT", "FewShotBaseline", "Majority", "ceiling", "run"]

N_COMPONENTS = 50


class Majority:
    """Cells of the types that are pre-trained on; their principal components are found once, at first use."""

    def __init__(self, cells: Cells):
        self.cells = cells

    @cached_property
    def components(self):
        """scikit-learn's PCA, fitted to log-normalised expression."""
        from sklearn.decomposition import PCA

        n, g = self.cells.x.shape
        return PCA(min(N_COMPONENTS, n - 1, g - 1), svd_solver="arpack", random_state=0).fit(self.cells.x)


class FewShotBaseline(NamedTuple):
    """One method: title, kind, and labels (n,) from shots, majority cells and test cells."""

    title: str
    kind: str  # "method" or "trivial"
    predict: Callable[..., np.ndarray]


def run(
    name: str, shots: Cells, majority: Majority, test: Cells, *, n_types: int, seed: int, threads: int
) -> np.ndarray:
    """Type codes (n,) of `test`, always among the types of `shots`; the types of `test` are not looked at.

    Raises
    ------
    ScreproError
        Unknown method, or the package of CellTypist is missing.
    """
    return entry_of(FEW_SHOT, name).predict(shots, majority, test, n_types=n_types, seed=seed, threads=threads)


def ceiling(cells: Cells, scored: np.ndarray, *, seed: int, folds: int = 5) -> np.ndarray:
    """Types of the rows `scored` by logistic regression that knows the labels of all other folds.

    What is to be had with every label but those of the cell's own fold: no number of shots has to reach it.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    # predictions of logistic regression with an L2 penalty depend on scalar products of cells alone
    x = _rotated(cells.x)
    out = np.empty(len(cells.cell_type), dtype=np.int64)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, cells.cell_type):
        model = LogisticRegression(max_iter=1000).fit(x[train], cells.cell_type[train])
        out[test] = model.predict(x[test])
    return out[scored]


def _rotated(x: sp.csr_matrix) -> np.ndarray:
    """Cells in the space they span: the same scalar products in at most n dimensions."""
    values, vectors = np.linalg.eigh((x @ x.T).toarray().astype(np.float64))
    keep = values > 1e-9 * values[-1]
    return vectors[:, keep] * np.sqrt(values[keep])


def _chance(shots: Cells, majority: Majority, test: Cells, *, n_types: int, seed: int, threads: int) -> np.ndarray:
    """Any of the types, all equally often."""
    return np.random.default_rng(seed).choice(np.unique(shots.cell_type), test.x.shape[0])


def _celltypist(shots: Cells, majority: Majority, test: Cells, *, n_types: int, seed: int, threads: int) -> np.ndarray:
    """CellTypist trained on the shots alone (the paper's reference)."""
    return _fit_celltypist(shots, test, n_types=n_types, seed=seed, threads=threads).labels


def _celltypist_all(
    shots: Cells, majority: Majority, test: Cells, *, n_types: int, seed: int, threads: int
) -> np.ndarray:
    """CellTypist trained on majority cells and shots; only the types of the shots may be answered."""
    many = majority.cells
    both = Cells(
        counts=sp.vstack([many.counts, shots.counts], format="csr"),
        x=sp.vstack([many.x, shots.x], format="csr"),
        cell_type=np.concatenate([many.cell_type, shots.cell_type]),
        batch=np.concatenate([many.batch, shots.batch]),
        genes=many.genes,
    )
    scores = _fit_celltypist(both, test, n_types=n_types, seed=seed, threads=threads).scores
    allowed = np.unique(shots.cell_type)
    return allowed[scores[:, allowed].argmax(axis=1)]


def _fit_celltypist(train: Cells, test: Cells, *, n_types: int, seed: int, threads: int) -> Prediction:
    return annotation.run("celltypist", train, test, n_types=n_types, seed=seed, threads=threads)


def _centroid(shots: Cells, majority: Majority, test: Cells, *, n_types: int, seed: int, threads: int) -> np.ndarray:
    """Nearest mean of the shots in the principal components of the majority cells."""
    near, far = majority.components.transform(shots.x), majority.components.transform(test.x)
    types, of = np.unique(shots.cell_type, return_inverse=True)
    centre = np.stack([near[of == k].mean(axis=0) for k in range(len(types))])
    distance = ((far[:, None] - centre[None]) ** 2).sum(axis=2)
    return types[distance.argmin(axis=1)]


def _logistic(shots: Cells, majority: Majority, test: Cells, *, n_types: int, seed: int, threads: int) -> np.ndarray:
    """Logistic regression on the shots in the principal components of the majority cells."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000).fit(majority.components.transform(shots.x), shots.cell_type)
    return model.predict(majority.components.transform(test.x))


FEW_SHOT: dict[str, FewShotBaseline] = {
    "chance": FewShotBaseline("Guessing", "trivial", _chance),
    "celltypist": FewShotBaseline("CellTypist on the shots", "method", _celltypist),
    "celltypist_all": FewShotBaseline("CellTypist on majority and shots", "method", _celltypist_all),
    "centroid": FewShotBaseline("Nearest centroid (PCA of the majority)", "method", _centroid),
    "logistic_pca": FewShotBaseline("Logistic regression (PCA of the majority)", "method", _logistic),
}
"""Every method but scDiff."""
