"""Do latent tokens come back? Profiles of the tokens of two trainings, matched one to one (not in the paper).

Tokens have no order: token 3 of one training need not be token 3 of another. So they are matched, and the mean
correlation of the best one-to-one matching is the score. The best of many matchings is above 0 by chance, hence two
baselines. With gene labels permuted nothing is shared: what matching alone gives. With the tokens of one training
rotated among each other (a random orthogonal matrix) the space they span stays and only the single tokens are lost: a
score that is no better says that trainings agree on a space, not on its axes, and that looking at single tokens is
looking at an accident of one training.
"""

import numpy as np

from screpro.errors import ScreproError

__all__ = ["match", "matched"]


def match(one: np.ndarray, other: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean Pearson correlation of the best one-to-one matching of two sets of profiles (m, G), and the partners (m,).

    Each gene's mean over tokens is taken away first: what all tokens have in common does not tell them apart.
    """
    from scipy.optimize import linear_sum_assignment

    if one.shape != other.shape or one.ndim != 2:
        raise ScreproError(
            "Two trainings with the same tokens and genes are matched.",
            got=f"{one.shape}, {other.shape}",
            fix="use one panel and one number of tokens",
        )
    correlation = _units(one) @ _units(other).T
    rows, partners = linear_sum_assignment(correlation, maximize=True)
    return float(correlation[rows, partners].mean()), partners


def matched(one: np.ndarray, other: np.ndarray, *, rng: np.random.Generator, draws: int = 20) -> dict[str, float]:
    """`match` of two sets of profiles (m, G) and the mean of its baselines: "", "genes permuted", "tokens rotated"."""
    other = other - other.mean(0)
    permuted, rotated = [], []
    for _ in range(draws):
        permuted.append(match(one, other[:, rng.permutation(other.shape[1])])[0])
        turn = np.linalg.qr(rng.normal(size=2 * [len(other)]))[0]
        rotated.append(match(one, turn @ other)[0])
    return {
        "": match(one, other)[0],
        "genes permuted": float(np.mean(permuted)),
        "tokens rotated": float(np.mean(rotated)),
    }


def _units(profiles: np.ndarray) -> np.ndarray:
    left = profiles - profiles.mean(0)
    left = left - left.mean(1, keepdims=True)
    return left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-12)
