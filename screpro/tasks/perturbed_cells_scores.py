"""Scores of generated cells of held-out pairs: distances (Tables 3 and 15, and unbiased) and four effects (Figure 13).

Every score is computed inside each pair of type and perturbation and averaged over pairs with equal weight (protocol
4.2, 4.5). Distances are measured on principal components fitted to the real cells of all held-out pairs; effects
against the real control cells of the pair's type, on all genes of the panel.

Distances shrink with the number of cells. So besides the number of the table, all real against as many generated
cells, each is computed between a random half of a pair's real cells, to which the components are then fitted, and as
many generated ones; the other half of the real cells in their place is the ceiling (as in ``screpro.metrics.suites``).
"""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError
from screpro.kernels.pca import Components, pca
from screpro.metrics import perturbation as effects
from screpro.metrics.distances import mmd2_rbf_median, mmd2_rbf_sum5
from screpro.metrics.frechet import frechet_distance
from screpro.metrics.transport import w2_exact
from screpro.tasks.embedding import classify, principal_components
from screpro.tasks.perturbed_cells import HeldOutPairs, normalised

__all__ = ["DISTANCES", "EFFECTS", "PairScorer", "Score", "told_from_control"]


class Score(NamedTuple):
    """One score of a pair."""

    function: Callable
    item: str  # of the paper
    unit: str
    direction: str


DISTANCES = {
    "w2_exact": Score(w2_exact, "Table 3", "distance", "lower"),
    "mmd2_rbf_sum5": Score(mmd2_rbf_sum5, "Table 3", "sum of five squared MMD", "lower"),
    "frechet_distance": Score(frechet_distance, "Table 3", "squared distance", "lower"),
    # without the floor of the sum of five; it may be below 0
    "mmd2_rbf_median": Score(mmd2_rbf_median, "X-median", "squared MMD", "lower"),
}
"""Of points: real and generated."""

EFFECTS = {
    "de_overlap": Score(effects.de_overlap, "Figure 13", "fraction", "higher"),
    "de_lfc_spearman": Score(effects.lfc_spearman, "Figure 13", "correlation", "higher"),
    "discrimination_l1": Score(effects.pds_l1, "Figure 13", "fraction", "higher"),
    "mae": Score(effects.mae_of_means, "Figure 13", "log expression", "lower"),
}
"""Of a ``screpro.metrics.perturbation.Comparison``."""

FOLDS = 5
"""Of cross-validation in `told_from_control`."""


class PairScorer:
    """Everything about the real cells that does not depend on the method, computed once.

    Parameters
    ----------
    held
        Training cells, for their controls, and test cells.
    n_components
        Principal components, fewer where there are not enough cells or genes.
    seed
        Draws the halves.
    """

    def __init__(self, held: HeldOutPairs, *, n_components: int = 30, seed: int = 0):
        self.held, self.seed = held, seed
        self.real = normalised(held.test.counts)
        self.rows = [held.test.rows(k, p) for k, p in held.pairs]
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(rows) for rows in self.rows]
        self.halves = [(rows[: len(rows) // 2], rows[len(rows) // 2 : len(rows) // 2 * 2]) for rows in shuffled]
        self.whole = self._components(np.arange(self.real.shape[0]), n_components)
        self.half = self._components(np.concatenate([first for first, _ in self.halves]), n_components)

    def _components(self, rows: np.ndarray, most: int) -> Components:
        return pca(self.real[rows], max(1, min(most, len(rows) - 1, self.real.shape[1] - 1)))

    def distances(self, generated: sp.spmatrix | np.ndarray, *, halves: bool = False) -> dict[str, np.ndarray]:
        """The distances of every pair.

        Parameters
        ----------
        generated
            (n, G) log-normalised cells with the labels of the test cells, in their order.
        halves
            Against the reference half of the real cells, with as many of the generated.

        Returns
        -------
        dict
            Name -> (pairs,) float64.
        """
        generated = self._checked(generated)
        fitted = self.half if halves else self.whole
        real, made = (_project(x, fitted) for x in (self.real, generated))
        if halves:
            # the generated cells in the places of the other half: as many, and of the same labels
            groups = [(real[first], made[second]) for first, second in self.halves]
        else:
            groups = [(real[rows], made[rows]) for rows in self.rows]
        with redirect_stdout(io.StringIO()):  # a solver of optimal transport may greet when it is first imported
            return {name: np.array([score.function(*group) for group in groups]) for name, score in DISTANCES.items()}

    def ceiling(self) -> dict[str, np.ndarray]:
        """The distances, on halves, of real cells from real cells."""
        return self.distances(self.real, halves=True)

    def effects(self, generated: sp.spmatrix | np.ndarray) -> dict[str, np.ndarray]:
        """Four scores of the effect of every pair, (pairs,) float64.

        NaN where one is not defined: fold changes without a truly changed gene, discrimination in a type with a single
        held-out perturbation.
        """
        return self._effects(lambda real, made: effects.compare(real, made), self._checked(generated))

    def effects_ceiling(self) -> dict[str, np.ndarray]:
        """The same of one half of the real cells as an answer to the other."""
        return self._effects(lambda real, made: effects.split_half(real, seed=self.seed), self.real)

    def _effects(self, compared: Callable, generated: sp.csr_matrix) -> dict[str, np.ndarray]:
        train, test = self.held.train, self.held.test
        control = train.perturbations[0]
        out = {name: np.full(len(self.held.pairs), np.nan) for name in EFFECTS}
        for k in sorted({k for k, _ in self.held.pairs}):
            names = {train.perturbations[p]: number for number, (kind, p) in enumerate(self.held.pairs) if kind == k}
            own = np.flatnonzero(test.cell_type == k)
            labels = np.array(train.perturbations)[test.perturbation[own]]
            before = normalised(train.counts[train.rows(k, 0)])
            real = sp.vstack([self.real[own], before], format="csr")
            real_labels = np.concatenate([labels, np.full(before.shape[0], control)])
            sides = effects.read_pair(
                (real, real_labels), (generated[own], labels), control=control, genes=list(train.genes)
            )
            pair = compared(*sides)
            where = [names[name] for name in pair.perturbations]
            for name, score in EFFECTS.items():
                if name != "discrimination_l1" or len(where) > 1:  # one perturbation cannot be mistaken for another
                    out[name][where] = score.function(pair)
        return out

    def _checked(self, generated: sp.spmatrix | np.ndarray) -> sp.csr_matrix:
        """CSR float32; expression below 0, which networks and shifts may answer, counts as none."""
        if generated.shape != self.real.shape:
            raise ScreproError(
                "Generated cells are as many as the held-out ones, in their order, with their genes.",
                got=f"{generated.shape} for {self.real.shape}",
                fix="draw one cell for the labels of each test cell",
            )
        out = sp.csr_matrix(generated, dtype=np.float32)
        if not np.isfinite(out.data).all():
            raise ScreproError(
                "Generated expression is finite.", got="NaN or infinite values", fix="check how the method was trained"
            )
        return out.maximum(0).tocsr()


def _project(x: sp.csr_matrix, fitted: Components) -> np.ndarray:
    return x @ fitted.axes - fitted.mean @ fitted.axes


def told_from_control(held: HeldOutPairs, vectors: Callable[[sp.csr_matrix], np.ndarray]) -> np.ndarray:
    """How well vectors of cells tell those of each held-out pair from control cells of its type.

    Logistic regression on principal components, scored by five-fold cross-validation as in section 4.3. What a code
    does not tell, no law of codes can generate. Control cells have trained the networks and those of the pair have
    not, so a little of what tells codes apart may be that.

    Parameters
    ----------
    held
        Training cells, among them the control cells, and those of the pairs.
    vectors
        Raw counts (n, G) -> (n, k).

    Returns
    -------
    np.ndarray
        Area under the ROC curve of each pair: .5 by chance and where all vectors are equal, 1 where every cell is told;
        NaN with fewer than five cells on a side.
    """
    areas = np.full(len(held.pairs), np.nan)
    controls: dict[int, np.ndarray] = {}
    for number, (kind, given) in enumerate(held.pairs):
        rows = held.train.rows(kind, 0), held.test.rows(kind, given)
        if min(map(len, rows)) < FOLDS:
            continue
        if kind not in controls:
            controls[kind] = vectors(held.train.counts[rows[0]])
        both = np.concatenate([controls[kind], vectors(held.test.counts[rows[1]])])
        if not np.ptp(both, axis=0).any():
            areas[number] = 0.5  # equal vectors tell nothing
            continue
        target = np.repeat([0, 1], [len(own) for own in rows])
        areas[number] = classify(principal_components(both), target, penalty="l2", folds=FOLDS).values["roc_auc"].mean()
    return areas
