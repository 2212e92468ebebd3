"""Three baselines that anyone can run: the largest class, logistic regression, nearest neighbours.

They are the honest floor of an annotation table. Logistic regression is softmax regression on log-normalised
expression; CellTypist (its own file) is the one-against-rest variant on standardised expression.
"""

import numpy as np

from screpro.baselines.common import Prediction, from_scores
from screpro.tasks.cells import Cells

__all__ = ["knn", "logistic_regression", "majority"]


def majority(train: Cells, test: Cells, *, n_types: int, seed: int, threads: int = 1) -> Prediction:
    """Give every cell the commonest type of the training cells; scores are the training shares."""
    share = np.bincount(train.cell_type, minlength=n_types) / len(train.cell_type)
    n = test.x.shape[0]
    return Prediction(labels=np.full(n, share.argmax(), dtype=np.int64), scores=np.tile(share, (n, 1)))


def logistic_regression(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    C: float = 1.0,
    scale: bool = False,
    class_weight: str | None = None,
    max_iter: int = 1000,
) -> Prediction:
    """Softmax regression with an L2 penalty.

    Parameters
    ----------
    C
        Inverse strength of the penalty.
    scale
        Divide every gene by its standard deviation over the training cells. Genes are not centred, so the
        matrix stays sparse; the intercept takes up the difference except for the penalty.
    class_weight
        "balanced" weighs cells by the inverse frequency of their type.
    max_iter
        Limit of the L-BFGS iterations.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    steps = [StandardScaler(with_mean=False)] if scale else []
    model = make_pipeline(*steps, LogisticRegression(C=C, max_iter=max_iter, class_weight=class_weight))
    model.fit(train.x, train.cell_type)
    return from_scores(model.predict_proba(test.x), model.classes_, n_types=n_types)


def knn(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    k: int = 15,
    n_components: int = 50,
    weights: str = "uniform",
) -> Prediction:
    """Vote of the k nearest training cells in a PCA of log-normalised expression fitted on training cells.

    Parameters
    ----------
    k
        Neighbours asked; all training cells if there are fewer.
    n_components
        Principal components, Euclidean distance between them; lowered if cells or genes are too few.
    weights
        "uniform", or "distance" for votes weighted by inverse distance.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    n, g = train.x.shape
    n_components = min(n_components, n - 1, g - 1)
    if n_components >= 1:
        pca = PCA(n_components, svd_solver="arpack", random_state=seed).fit(train.x)
        near, far = pca.transform(train.x), pca.transform(test.x)
    else:  # one gene or one cell: nothing to rotate
        near, far = train.x.toarray(), test.x.toarray()
    model = KNeighborsClassifier(min(k, n), weights=weights, n_jobs=threads).fit(near, train.cell_type)
    return from_scores(model.predict_proba(far), model.classes_, n_types=n_types)
