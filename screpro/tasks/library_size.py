r"""Total counts of generated cells: a log-normal law per class or per combination of labels (protocol, section 3).

The velocity network knows nothing of library sizes; the authors draw them from mean and standard deviation of the log
totals of training cells with the same labels. A combination that was never seen has no such statistics; theirs falls
to log size 0, one count per cell, unless the file they ship covers it. Here it is the main-effects model
$\mu + \sum_j \delta_j$ in log space: overall mean plus what each label of the combination adds on average. Its spread
is that of cells around the mean of their combination; the spread of all cells would count the labels' effects twice.

Drawn like this, a size does not belong to its cell: among cells of one label, or of all labels where none is given, a
latent of a large cell gets the size of a small one. `SizesOfLatents` reads the size off the latent (a variant).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from screpro.errors import ScreproError

if TYPE_CHECKING:
    from sklearn.linear_model import RidgeCV
    from torch import Tensor

__all__ = ["LibrarySizes", "SizesOfLatents"]

MOST = 20_000
"""Cells that a regression on latents is made of at most: its decomposition is as large as they are."""


@dataclass(frozen=True)
class LibrarySizes:
    """Mean and standard deviation of the log totals by combination of labels, and main effects for the unseen."""

    names: tuple[str, ...]
    combinations: dict[tuple[int, ...], tuple[float, float]]  # labels -> mean, standard deviation of log totals
    overall: tuple[float, float]
    within: float  # standard deviation of log totals around the mean of their combination
    effects: dict[str, dict[int, float]]  # attribute -> label -> what it adds to the mean

    @classmethod
    def fit(cls, totals: np.ndarray, labels: Mapping[str, np.ndarray]) -> "LibrarySizes":
        """From the totals (n,) of training cells and their labels by attribute, each (n,) from 0.

        Raises
        ------
        ScreproError
            A total is not positive, or labels have another length.
        """
        totals = np.asarray(totals, dtype=float).ravel()
        wrong = [name for name, label in labels.items() if len(label) != len(totals)]
        if wrong or not len(totals) or not (totals > 0).all():
            raise ScreproError(
                "Library sizes are learned from positive totals, one per cell with its labels.",
                got=f"{len(totals)} totals, {int((totals <= 0).sum())} not positive, other lengths: {wrong or 'none'}",
                fix="remove empty cells, and pass labels in the order of the cells",
            )
        logs, names = np.log(totals), tuple(labels)
        stacked = np.stack([np.asarray(labels[name]) for name in names], 1) if names else np.zeros((len(logs), 0), int)
        groups, which = np.unique(stacked, axis=0, return_inverse=True)
        spread = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
        parts = [logs[which.ravel() == g] for g in range(len(groups))]
        rest = len(logs) - len(groups)  # degrees of freedom
        within = float(np.sqrt(sum(((own - own.mean()) ** 2).sum() for own in parts) / rest)) if rest else spread
        combinations = {
            # one cell says nothing about spread
            tuple(int(v) for v in group): (float(own.mean()), float(own.std(ddof=1)) if len(own) > 1 else within)
            for group, own in zip(groups, parts, strict=True)
        }
        return cls(names, combinations, (float(logs.mean()), spread), within, _main_effects(logs, stacked, names))

    def unseen(self, labels: Mapping[str, np.ndarray]) -> np.ndarray:
        """True (n,) where the combination of labels was not among the training cells."""
        return np.array([key not in self.combinations for key in self._keys(labels)])

    def moments(self, labels: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,) of the log total of cells with these labels."""
        means, spreads = [], []
        for key in self._keys(labels):
            mean, spread = self.combinations.get(key, (None, self.within))
            if mean is None:
                added = [self.effects[name].get(label) for name, label in zip(self.names, key, strict=True)]
                mean = self.overall[0] + sum(effect or 0.0 for effect in added)
                spread = self.overall[1] if None in added else spread  # nothing is known of such a label
            means.append(mean)
            spreads.append(spread)
        return np.array(means), np.array(spreads)

    def draw(self, labels: Mapping[str, np.ndarray], *, rng: np.random.Generator) -> np.ndarray:
        """Totals (n,) float32 of new cells with these labels, at least 1."""
        mean, spread = self.moments(labels)
        return np.maximum(np.exp(rng.normal(mean, spread)), 1.0).astype(np.float32)

    def draw_pooled(self, n: int, *, rng: np.random.Generator) -> np.ndarray:
        """Totals (n,) from the one log-normal law of all training cells, for cells without labels."""
        return np.maximum(np.exp(rng.normal(*self.overall, n)), 1.0).astype(np.float32)

    def _keys(self, labels: Mapping[str, np.ndarray]) -> list[tuple[int, ...]]:
        if set(labels) != set(self.names):
            raise ScreproError(
                "Library sizes are drawn for the attributes they were learned with.",
                got=", ".join(labels) or "none",
                fix=f"pass labels of {', '.join(self.names) or 'no attribute'}",
            )
        return [tuple(int(v) for v in key) for key in zip(*(labels[name] for name in self.names), strict=True)]


@dataclass(frozen=True)
class SizesOfLatents:
    """Log-normal totals around a linear function of the latent, learned by ridge regression."""

    mean: "RidgeCV"  # of the log total
    spread: float  # standard deviation of the log total around it, of cells left out of the regression

    @classmethod
    def fit(cls, latents: "Tensor", totals: np.ndarray) -> "SizesOfLatents":
        """From latents (n, m, q) of training cells and their totals (n,), positive; of many cells, every k-th."""
        from sklearn.linear_model import RidgeCV

        some = slice(None, None, -(-len(latents) // MOST))
        x, logs = latents[some].flatten(1).numpy(), np.log(np.asarray(totals, dtype=float).ravel()[some])
        mean = RidgeCV(np.logspace(-2, 4, 13), store_cv_results=True).fit(x, logs)
        left_out = mean.cv_results_[:, list(mean.alphas).index(mean.alpha_)]  # squared, each cell's without itself
        return cls(mean, float(np.sqrt(left_out.mean())))

    def draw(self, latents: "Tensor", *, rng: np.random.Generator) -> np.ndarray:
        """Totals (n,) float32 of cells with latents (n, m, q), at least 1."""
        logs = rng.normal(self.mean.predict(latents.flatten(1).numpy()), self.spread)
        return np.maximum(np.exp(logs), 1.0).astype(np.float32)


def _main_effects(logs: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> dict[str, dict[int, float]]:
    """Least-squares main effects around the mean, each attribute's averaging zero over the cells."""
    blocks, columns = [], []
    for j, name in enumerate(names):
        levels = np.unique(labels[:, j])
        blocks.append((labels[:, j, None] == levels).astype(float))
        columns += [(name, int(level)) for level in levels]
    effects: dict[str, dict[int, float]] = {name: {} for name in names}
    if not blocks:
        return effects
    design = np.concatenate(blocks, 1)
    design -= design.mean(0)  # minimum-norm solution of a rank-deficient, centred design
    solution = np.linalg.lstsq(design, logs - logs.mean(), rcond=None)[0]
    shift = {name: 0.0 for name in names}
    for (name, level), value in zip(columns, solution, strict=True):
        effects[name][level] = float(value)
        shift[name] += float(value) * float((labels[:, names.index(name)] == level).mean())
    return {name: {level: value - shift[name] for level, value in own.items()} for name, own in effects.items()}
