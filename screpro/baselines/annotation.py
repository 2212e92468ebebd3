"""Cell-type annotation baselines behind one call, with the settings that are tuned for each.

``run("celltypist", train, test, n_types=K, seed=0, threads=1)`` fits on `train` and answers for `test`.
The first setting of a grid is always the published default (``{}``); which one is used is decided on validation
cells, by the same rule for every method (``screpro.tasks.annotation_experiment``).

Labels live in one code space 0..K-1 for training and test cells. Types that training has not seen are never
predicted and have score 0; types that only training has are allowed answers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from screpro.baselines.common import Prediction
from screpro.baselines.registry import contained, entry_of, method_of
from screpro.errors import ScreproError
from screpro.tasks.cells import Cells

__all__ = ["BASELINES", "Baseline", "Prediction", "run"]


class Baseline(NamedTuple):
    """One published or trivial method."""

    name: str  # key in BASELINES and in result rows
    title: str  # as a table prints it
    source: str  # whom to cite
    fit_predict: Callable[..., Prediction]  # (train, test, *, n_types, seed, threads=1, **options)
    grid: list[dict[str, Any]]  # options to try on the validation split; first = published default
    trivial: bool  # True where nothing is learned from expression
    needs: str | None  # extra of this package that has to be installed


def run(
    name: str,
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    options: dict[str, Any] | None = None,
) -> Prediction:
    """Fit baseline `name` on `train` and predict the types of `test`; the types of `test` are not looked at.

    Parameters
    ----------
    name
        Key of `BASELINES`.
    train, test
        Cells with the same genes in the same order and the same code space.
    n_types
        K, number of types in that code space.
    seed
        Everything random in the method derives from it.
    threads
        Threads the method may use.
    options
        Options of the method, as in its grid; None takes the published default.

    Raises
    ------
    ScreproError
        Unknown method or option, package not installed, no cells, other genes, codes out of range.
    """
    return entry_of(BASELINES, name).fit_predict(
        train, test, n_types=n_types, seed=seed, threads=threads, **(options or {})
    )


def _guarded(name: str, where: str, *, needs: str | None) -> Callable[..., Prediction]:
    """The method ``module:function`` behind checks, a thread limit and the case of a single training type.

    The module is imported at the first call, so that listing the baselines costs nothing.
    """
    fixed = ("train", "test", "n_types", "seed", "threads")

    def fit_predict(
        train: Cells, test: Cells, *, n_types: int, seed: int, threads: int = 1, **options: Any
    ) -> Prediction:
        method = method_of(name, where, options, fixed=fixed)
        _check_cells(train, test, n_types)
        only = np.unique(train.cell_type)
        if len(only) == 1:  # nothing to tell apart: most of the packages refuse to be trained
            scores = np.zeros((test.x.shape[0], n_types))
            scores[:, only] = 1.0
            return Prediction(labels=np.full(len(scores), only[0], dtype=np.int64), scores=scores)
        with contained(name, threads=threads, needs=needs):
            return method(train, test, n_types=n_types, seed=seed, threads=threads, **options)

    return fit_predict


def _check_cells(train: Cells, test: Cells, n_types: int) -> None:
    for split, cells in (("training", train), ("test", test)):
        if not cells.x.shape[0]:
            raise ScreproError(f"The {split} split holds cells.", got="0 cells", fix="choose a larger share of them")
    if list(train.genes) != list(test.genes):
        raise ScreproError(
            "Training and test cells have the same genes in the same order.",
            got=f"{len(train.genes)} and {len(test.genes)} genes, or another order",
            fix="take both from one AnnData",
        )
    if train.cell_type.min() < 0 or train.cell_type.max() >= n_types:
        raise ScreproError(
            f"Types are codes from 0 to n_types - 1 = {n_types - 1}.",
            got=f"codes {train.cell_type.min()} to {train.cell_type.max()} in training",
            fix="pass the size of the shared code space and drop unlabelled cells",
        )


def entry(
    name: str,
    title: str,
    source: str,
    where: str,
    grid: list[dict[str, Any]],
    *,
    trivial: bool = False,
    needs: str | None = None,
) -> Baseline:
    return Baseline(name, title, source, _guarded(name, where, needs=needs), grid, trivial, needs)


BASELINES: dict[str, Baseline] = {
    entry.name: entry
    for entry in (
        entry("majority", "Largest class", "no method", "classical:majority", [{}], trivial=True),
        entry(
            "logistic_regression",
            "Logistic regression",
            "Pedregosa et al., Journal of Machine Learning Research 2011 (scikit-learn)",
            "classical:logistic_regression",
            [
                {},
                {"C": 0.1},
                {"C": 0.01},
                {"C": 0.1, "class_weight": "balanced"},
                {"C": 0.01, "class_weight": "balanced"},
            ],
        ),
        entry(
            "knn",
            "k nearest neighbours (PCA 50)",
            "Cover & Hart, IEEE Transactions on Information Theory 1967",
            "classical:knn",
            [{}, {"k": 5}, {"k": 30}, {"k": 5, "weights": "distance"}],
        ),
        entry(
            "celltypist",
            "CellTypist",
            "Domínguez Conde et al., Science 2022, 10.1126/science.abl5197",
            "celltypist:fit_predict",
            [{}, {"C": 0.1}, {"C": 0.01}, {"C": 0.01, "class_weight": "balanced"}, {"feature_selection": True}],
            needs="baselines",
        ),
        entry(
            "singlecellnet",
            "SingleCellNet",
            "Tan & Cahan, Cell Systems 2019, 10.1016/j.cels.2019.06.004",
            "singlecellnet:fit_predict",
            [{}, {"stratify": True}, {"n_top_genes": 25, "n_top_pairs": 50}],
        ),
        entry(
            "actinn",
            "ACTINN",
            "Ma & Pellegrini, Bioinformatics 2020, 10.1093/bioinformatics/btz592",
            "actinn:fit_predict",
            [
                {},
                {"learning_rate": 1e-3},
                {"learning_rate": 1e-3, "epochs": 20},
                {"learning_rate": 1e-3, "penalty": 0.02},
            ],
        ),
        entry(
            "scanvi",
            "scANVI",
            "Xu et al., Molecular Systems Biology 2021, 10.15252/msb.20209620",
            "scanvi:fit_predict",
            [
                {},
                {"epochs": 100},
                {"epochs": 100, "n_top_genes": 2000},
                {"epochs": 100, "n_layers": 2, "n_latent": 30, "gene_likelihood": "nb"},
            ],
            needs="baselines",
        ),
    )
}
