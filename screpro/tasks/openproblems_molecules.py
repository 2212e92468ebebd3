"""Molecules dealt out in two, scDiff's answer from the first part, and what the score makes of a known truth.

How scDiff denoises is not said anywhere. Our reading, after its imputation: it is trained on the log-normalised
training part without labels and answers with one network call at t = 0, the cell itself with the noise of that step as
x_t and the whole cell as context; what is not above 0 is cut, and the logarithm undone (protocol 1.5).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from screpro.data import simulate
from screpro.errors import ScreproError
from screpro.metrics.denoising import mcv_mse, mcv_poisson, split_counts
from screpro.models.blocks import time_embedding
from screpro.models.scdiff import ScDiff
from screpro.processes.gaussian import scaled_linear

__all__ = ["SCORES", "Molecules", "deal", "denoise", "denoised_counts", "on_leaderboard_scale", "shallow_cells"]

SCORES = {"mcv_mse": mcv_mse, "mcv_poisson": mcv_poisson}
"""Both scores of the task by name."""


class Molecules(NamedTuple):
    """Two parts of the same molecules, of the cells and genes that have some in the training part."""

    train: sp.csr_matrix  # (n, G) counts
    test: sp.csr_matrix  # (n, G) counts
    x: sp.csr_matrix  # (n, G) log1p of the training counts per 10 000, float32


def deal(counts: sp.csr_matrix, thinning: int, *, train_fraction: float = 0.9) -> Molecules:
    """Deal the molecules of `counts` (n, G) out with seed `thinning`.

    Genes without a training molecule are dropped, as the task does; so are cells without one, which nobody can
    denoise.

    Raises
    ------
    ScreproError
        Not counts, or fewer than three cells with a training molecule.
    """
    train, test = split_counts(
        sp.csr_matrix(counts), train_fraction=train_fraction, rng=np.random.default_rng(thinning)
    )
    cells = np.flatnonzero(_total(train) > 0)
    if len(cells) < 3:
        raise ScreproError(
            "Denoising needs at least three cells with molecules in the training part.",
            got=f"{len(cells)} of {train.shape[0]} cells",
            fix="use more or deeper cells, or a larger train_fraction",
        )
    genes = np.flatnonzero(np.asarray(train.sum(0)).ravel() > 0)
    train, test = (part[cells][:, genes].tocsr() for part in (train, test))
    x = train.astype(np.float64)
    x.data = np.log1p(x.data * np.repeat(1e4 / _total(train), np.diff(x.indptr)))
    return Molecules(train, test, x.astype(np.float32))


@torch.no_grad()
def denoise(
    model: ScDiff,
    x: sp.csr_matrix,
    *,
    t: int = 0,
    draws: int = 1,
    context: bool = True,
    seed: int,
    chunk: int = 1024,
) -> np.ndarray:
    """One network call at step `t` on the noised cells: (n, G) float32 log-normalised expression.

    Parameters
    ----------
    x
        (n, G) log-normalised cells.
    t
        Step that the cells are noised to, and that the network is told; 0 is our reading of the paper.
    draws
        Noise draws whose answers are averaged.
    context
        Show the whole cell, noise-free, as context; otherwise nothing.
    seed
        Of the noise.
    chunk
        Cells that are dense at a time.
    """
    device = model.head.weight.device
    schedule = scaled_linear().to(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    out = np.empty(x.shape, dtype=np.float32)
    for first in range(0, x.shape[0], chunk):
        rows = slice(first, first + chunk)
        clean = torch.as_tensor(x[rows].toarray(), dtype=torch.float32, device=device)
        tokens = model.condition_tokens(clean if context else torch.zeros_like(clean), {})
        step = torch.full((len(clean),), t, device=device)
        total = torch.zeros_like(clean)
        for _ in range(draws):
            noise = torch.randn(clean.shape, generator=generator, device=device)
            h = model.embedder(schedule.diffuse(clean, step, noise)) + time_embedding(step, model.config.width)
            total += model.decode(model.encode(h, tokens), None)
        out[rows] = (total / draws).cpu().numpy()
    return out


def denoised_counts(log_values: np.ndarray, train: sp.csr_matrix) -> np.ndarray:
    """Expected counts at the depth of the training part from log1p of counts per 10 000: (n, G) float64, 0 or more."""
    expected = np.expm1(np.maximum(log_values, 0), dtype=np.float64)
    return expected * (_total(train)[:, None] / 1e4)


def on_leaderboard_scale(value: float, control: Mapping[str, float]) -> float:
    """Where `value` lies between the two controls of ``metrics.denoising.controls``: 0 no denoising, 1 perfect.

    Raises
    ------
    ScreproError
        Both controls have the same value, so that there is nothing to lie between.
    """
    worst, best = control["no denoising"], control["perfect"]
    if worst == best:
        raise ScreproError(
            "A score is placed between two controls that differ.",
            got=f"{worst} for both",
            fix="check that the test part holds molecules that the training part does not predict",
        )
    return (worst - value) / (worst - best)


def shallow_cells(
    depths: Sequence[int], *, n_cells: int = 200, n_genes: int = 400, n_types: int = 3, seed: int
) -> dict[tuple[str, int, str], float]:
    """What molecular cross-validation gives to the truth: simulated cells whose rates are known (synthetic).

    Counts are Poisson around `simulate.expected_counts`, so that the two parts are independent given the rates.

    Parameters
    ----------
    depths
        Expected molecules per cell, before nine in ten go to the training part.
    seed
        Of the cells and of the dealing; the cells of all depths have the same types and rates.

    Returns
    -------
    Scores by (metric, depth, who): ``truth`` (the rates), ``no_denoising`` (the training counts), ``gene_mean`` (the
    same for all cells) and ``zeros`` (nothing at all).
    """
    found = {}
    for depth in depths:
        rng = np.random.default_rng(seed)
        cells = simulate.cells(n_cells, n_genes, n_types, depth=depth, dispersion=0.0, separation=1.5, rng=rng)
        train, test = split_counts(sp.csr_matrix(cells.X), rng=rng)
        mean = np.asarray(train.mean(axis=0)).ravel()
        answers = {
            "truth": simulate.expected_counts(cells) * 0.9,
            "no_denoising": train,
            "gene_mean": np.outer(_total(train) / max(mean.sum(), 1e-12), mean),
            "zeros": np.zeros(train.shape),
        }
        for metric, score in SCORES.items():
            found |= {(metric, depth, who): score(answer, train=train, test=test) for who, answer in answers.items()}
    return found


def _total(counts: sp.csr_matrix) -> np.ndarray:
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
