"""Label projection as OpenProblems runs it: its methods behind the call of ``screpro.baselines.annotation``.

Three of them share a form: 100 truncated singular vectors of log-normalised expression fitted on the training cells
(the genes are not centred), every coordinate scaled to mean 0 and variance 1, then a classifier of scikit-learn. The
controls belong to the task: two negative ones and a positive one, which is handed the answer.

Sources: Luecken et al., Nature Biotechnology 2025, 10.1038/s41587-025-02694-w (OpenProblems); each method's own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from screpro.baselines import annotation
from screpro.baselines.annotation import Baseline
from screpro.baselines.common import Prediction, from_scores, quiet
from screpro.baselines.registry import entry_of
from screpro.tasks.cells import Cells

__all__ = ["BASELINES", "CONTROLS", "knn", "logistic_regression", "mlp", "random_labels", "run", "true_labels"]

CONTROLS = ("majority", "random_labels", "true_labels")
"""What the leaderboard runs beside the methods: two floors and a ceiling."""


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
    """Fit baseline `name` on `train` and predict the types of `test`; arguments as ``annotation.run``.

    Only the control ``true_labels`` looks at the types of `test`.

    Raises
    ------
    ScreproError
        Unknown method or option, package not installed, no cells, other genes, codes out of range.
    """
    return entry_of(BASELINES, name).fit_predict(
        train, test, n_types=n_types, seed=seed, threads=threads, **(options or {})
    )


def logistic_regression(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    C: float = 1.0,
    n_components: int = 100,
    class_weight: str | None = None,
    max_iter: int = 1000,
) -> Prediction:
    """Softmax regression with an L2 penalty on scaled singular vectors.

    Parameters
    ----------
    C
        Inverse strength of the penalty.
    n_components
        Singular vectors; lowered if cells or genes are too few.
    class_weight
        "balanced" weighs cells by the inverse frequency of their type.
    max_iter
        Limit of the L-BFGS iterations.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, max_iter=max_iter, class_weight=class_weight)
    return _classify(model, train, test, n_types=n_types, n_components=n_components)


def mlp(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    alpha: float = 1e-4,
    n_components: int = 100,
    early_stopping: bool = False,
    max_iter: int = 1000,
) -> Prediction:
    """Perceptron with two hidden layers of 100 on scaled singular vectors, Adam at 1e-3 until the loss stands still.

    Parameters
    ----------
    alpha
        Factor of the squared weights in the loss.
    n_components
        Singular vectors; lowered if cells or genes are too few.
    early_stopping
        Hold out a tenth of the training cells and stop when their accuracy no longer rises.
    max_iter
        Most passes over the training cells.
    """
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((100, 100), alpha=alpha, early_stopping=early_stopping, max_iter=max_iter, random_state=seed)
    with quiet():  # a warning where `max_iter` came before convergence
        return _classify(model, train, test, n_types=n_types, n_components=n_components)


def knn(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    k: int = 5,
    n_components: int = 100,
    weights: str = "uniform",
    scale: bool = True,
) -> Prediction:
    """Vote of the k nearest training cells in scaled singular vectors.

    Scaled, the hundredth vector, mostly noise, counts as much as the first. That costs nearest neighbours dearly where
    cells are few, and the other methods, which can weigh vectors down, nothing.

    Parameters
    ----------
    k
        Neighbours asked; all training cells if there are fewer.
    n_components
        Singular vectors; lowered if cells or genes are too few.
    weights
        "uniform", or "distance" for votes weighted by inverse distance.
    scale
        Scale the singular vectors, as OpenProblems does.
    """
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(min(k, train.x.shape[0]), weights=weights, n_jobs=threads)
    return _classify(model, train, test, n_types=n_types, n_components=n_components, scale=scale)


def random_labels(train: Cells, test: Cells, *, n_types: int, seed: int, threads: int = 1) -> Prediction:
    """Draw every label from the shares of the types among the training cells; the scores are these shares."""
    share = np.bincount(train.cell_type, minlength=n_types) / len(train.cell_type)
    n = test.x.shape[0]
    labels = np.random.default_rng(seed).choice(n_types, size=n, p=share)
    return Prediction(labels=labels.astype(np.int64), scores=np.tile(share, (n, 1)))


def true_labels(train: Cells, test: Cells, *, n_types: int, seed: int, threads: int = 1) -> Prediction:
    """The answer itself: what nobody can beat, types that training lacks included."""
    return Prediction(labels=test.cell_type.astype(np.int64), scores=np.eye(n_types)[test.cell_type])


def _classify(model, train: Cells, test: Cells, *, n_types: int, n_components: int, scale: bool = True) -> Prediction:
    """Singular vectors, scaling, then the classifier `model`."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_components = min(n_components, min(train.x.shape) - 1)
    # ARPACK converges to rounding, so that the space does not depend on a seed
    space = [TruncatedSVD(n_components, algorithm="arpack", random_state=0)] if n_components >= 1 else []
    scaler = [StandardScaler(with_mean=bool(space))] if scale else []
    pipeline = make_pipeline(*space, *scaler, model)
    pipeline.fit(train.x.astype(np.float64), train.cell_type)
    probability = pipeline.predict_proba(test.x.astype(np.float64))
    return from_scores(probability, pipeline.classes_, n_types=n_types)


def _own(name: str, title: str, source: str, where: str, grid: list[dict], **facts: Any) -> Baseline:
    # same checks, thread limit and single-type rule as on the annotation page
    entry: Callable[..., Baseline] = annotation.entry
    return entry(name, title, source, where, grid, **facts)


BASELINES: dict[str, Baseline] = {
    entry.name: entry
    for entry in (
        _own(
            "logistic_regression",
            "Logistic regression",
            "Pedregosa et al., Journal of Machine Learning Research 2011 (scikit-learn)",
            "label_projection:logistic_regression",
            [{}, {"C": 0.1}, {"C": 0.01}, {"C": 0.1, "class_weight": "balanced"}, {"C": 0.1, "n_components": 50}],
        ),
        _own(
            "seurat",
            "Seurat reference mapping",
            "Stuart et al., Cell 2019, 10.1016/j.cell.2019.05.031",
            "reference_mapping:fit_predict",
            [{}, {"space": "cca"}, {"n_components": 30}, {"k_weight": 20}, {"k_filter": None}],
        ),
        _own(
            "mlp",
            "Multilayer perceptron",
            "Hinton, Artificial Intelligence 1989 (scikit-learn's MLPClassifier)",
            "label_projection:mlp",
            [{}, {"alpha": 1.0}, {"n_components": 50}, {"early_stopping": True}],
        ),
        _own(
            "xgboost",
            "XGBoost",
            "Chen & Guestrin, KDD 2016, 10.1145/2939672.2939785",
            "gradient_boosting:fit_predict",
            [{}, {"rounds": 30}, {"rounds": 30, "colsample": 0.1}, {"rounds": 60, "max_depth": 3, "colsample": 0.1}],
            needs="baselines",
        ),
        _own(
            "knn",
            "k nearest neighbours",
            "Cover & Hart, IEEE Transactions on Information Theory 1967",
            "label_projection:knn",
            [{}, {"n_components": 30}, {"scale": False}, {"scale": False, "k": 15}],
        ),
        annotation.BASELINES["majority"],
        _own("random_labels", "Random labels", "no method", "label_projection:random_labels", [{}], trivial=True),
        _own("true_labels", "True labels", "no method", "label_projection:true_labels", [{}], trivial=True),
    )
}
