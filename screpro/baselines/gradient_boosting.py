"""XGBoost (Chen & Guestrin, KDD 2016, 10.1145/2939672.2939785): boosted trees on log-normalised expression.

As OpenProblems runs it: every gene, one tree per type and round, softmax over the types, the package's own depth (6)
and step (0.3), and only 5 rounds. So short a run suits a leaderboard of many large sets; the grid holds longer ones.
"""

import numpy as np
from scipy import sparse

from screpro.baselines.common import Prediction, from_scores
from screpro.errors import ScreproError
from screpro.tasks.cells import Cells

__all__ = ["fit_predict"]


def fit_predict(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    rounds: int = 5,
    max_depth: int = 6,
    learning_rate: float = 0.3,
    colsample: float = 1.0,
) -> Prediction:
    """Boost trees on `train`, classify `test`. Scores are softmax probabilities.

    Parameters
    ----------
    rounds
        Boosting rounds, one tree per type each.
    max_depth
        Depth of a tree.
    learning_rate
        Factor on what each tree adds.
    colsample
        Share of the genes, drawn anew, that each tree may use. Below 1 the seed matters.

    Raises
    ------
    ScreproError
        If there is no round.
    """
    import xgboost

    if rounds < 1:
        raise ScreproError("Boosting takes at least one round.", got=f"rounds={rounds}", fix="use 5, as OpenProblems")
    # the package wants codes without gaps: absent types would be trained as classes without cells
    types, target = np.unique(train.cell_type, return_inverse=True)
    settings = {
        "objective": "multi:softprob",
        "num_class": len(types),
        "max_depth": max_depth,
        "learning_rate": learning_rate,
        "colsample_bytree": colsample,
        "tree_method": "hist",
        "seed": seed,
        "nthread": threads,
        "verbosity": 0,
    }
    near = xgboost.DMatrix(_zeros_are_values(train.x), label=target, nthread=threads)
    far = xgboost.DMatrix(_zeros_are_values(test.x), nthread=threads)
    model = xgboost.train(settings, near, num_boost_round=rounds)
    probability = model.predict(far).reshape(test.x.shape[0], len(types))
    return from_scores(probability, types, n_types=n_types)


def _zeros_are_values(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """CSR without stored zeros: the package reads what is not stored as missing, so a zero must always be one."""
    x = sparse.csr_matrix(x, dtype=np.float32, copy=True)
    x.eliminate_zeros()
    return x
