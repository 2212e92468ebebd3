"""The two design choices of scDiff that its paper argues for in words: the target and the context's wiring.

S14 (section 2.2): "predict-epsilon fails to recover the expression", the clean cell is the better target.
S15 (appendix C.2): the reversed context chain reconstructs better than parallel heads.

Four networks with the same initial weights see the same cells, noise and masks in the same order:

``scdiff``               answers with the clean cell; context from one chain, deepest output first
``scdiff_epsilon``       answers with the noise
``scdiff_epsilon_skip``  error in the noise, x_t led around the network (``screpro.losses_noise``)
``parallel_heads``       as scdiff, context from one head per block

Each is trained for annotation (labels as conditions, random context) and, the three targets, for imputation (context
only). The learning rate of every target is chosen on validation data where the protocol tunes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from screpro.data.splits import cell_split
from screpro.errors import ScreproError
from screpro.losses import DenoisingLoss
from screpro.losses_noise import NoiseScDiff, SkipNoiseScDiff, predict_clean
from screpro.metrics.imputation import imputation_pearson_pooled
from screpro.models.blocks import time_embedding
from screpro.models.parallel_context import with_parallel_context
from screpro.models.scdiff import ScDiff
from screpro.processes.gaussian import Schedule, scaled_linear
from screpro.samplers.ddpm import Denoiser
from screpro.sparse import SparseCells
from screpro.tasks import denoiser
from screpro.tasks.annotation import Labelled
from screpro.tasks.cells import Cells
from screpro.tasks.denoiser import DenoiserSettings
from screpro.tasks.diffusion_classifier import ClassifierErrors

__all__ = [
    "HIDDEN_SHARES",
    "METHODS",
    "READ_AT",
    "TARGETS",
    "LinearErrors",
    "candidate_errors",
    "clean_factor",
    "conditional_denoiser",
    "impute_once",
    "linear_errors",
    "network",
    "reconstruction_error",
    "train_on_cells",
    "unpredictable_share",
]

TARGETS = ("scdiff", "scdiff_epsilon", "scdiff_epsilon_skip")
"""The same network with three targets."""

METHODS = (*TARGETS, "parallel_heads")

READ_AT = (0, 100, 300, 500, 700, 900, 999)
"""Time steps at which one answer is read as an imputation."""

HIDDEN_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the genes hidden from the context when a reconstruction is measured."""


def network(
    method: str,
    n_genes: int,
    settings: DenoiserSettings,
    *,
    n_types: int = 0,
    n_batches: int = 0,
    seed: int,
) -> ScDiff:
    """One of `METHODS`, all with the same initial weights for a `seed`.

    `n_types` and `n_batches` count without the null row; zero types and fewer than two batches mean no table.
    """
    if method not in METHODS:
        raise ScreproError("A network has a name.", got=repr(method), fix=f"choose one of {', '.join(METHODS)}")
    classes = {"cell_type": n_types + 1} if n_types else {}
    model = denoiser.build(
        n_genes, settings, classes=classes, n_batches=n_batches + 1 if n_batches > 1 else 0, seed=seed
    )
    with torch.random.fork_rng():  # weights that are overwritten at once must not move the caller's generator
        if method == "parallel_heads":
            return with_parallel_context(model)
        if method == "scdiff":
            return model
        other = (NoiseScDiff if method == "scdiff_epsilon" else SkipNoiseScDiff)(model.config)
    other.load_state_dict(model.state_dict())
    return other


def train_on_cells(
    method: str,
    cells: Cells,
    *,
    n_types: int,
    n_batches: int,
    settings: DenoiserSettings,
    seed: int,
    threads: int | None = None,
) -> ScDiff:
    """Train one of `METHODS` as an annotator: cell types and batches as conditions, context masked at random."""
    model = network(method, cells.x.shape[1], settings, n_types=n_types, n_batches=n_batches, seed=seed)
    loss = DenoisingLoss(
        cells.x,
        schedule=scaled_linear(),
        conditions={"cell_type": cells.cell_type + 1},
        batch=cells.batch + 1 if model.batch_table is not None else None,
        drop={"cell_type": settings.drop, "batch": settings.drop},
        empty_context=settings.empty_context,
    )
    denoiser.train(model, loss, settings, seed=seed, threads=threads, title=method)
    return model


def train_on_visible(
    method: str, visible: sp.csr_matrix, *, settings: DenoiserSettings, seed: int, threads: int | None = None
) -> ScDiff:
    """Train one of `TARGETS` for imputation: what is visible (n, G) is cell and context, no labels (protocol 2.1)."""
    model = network(method, visible.shape[1], settings, seed=seed)
    loss = DenoisingLoss(visible, schedule=scaled_linear(), conditions={}, empty_context=settings.empty_context)
    denoiser.train(model, loss, settings, seed=seed, threads=threads, title=f"{method}, imputation")
    return model


@torch.no_grad()
def candidate_errors(
    model: ScDiff, cells: Cells, candidates: np.ndarray, *, seed: int, n_times: int = 5, draws: int = 5
) -> ClassifierErrors:
    """Denoising error of every cell under every candidate, in the units of the network's own target.

    ``diffusion_classifier.classifier_errors`` is faster but knows only the clean target: it never forms the noise.
    Here the noise is drawn for every gene, once for all candidates and, for one `seed`, the same for all networks.

    Parameters
    ----------
    model
        Trained by ``train_on_cells``.
    candidates
        (candidates, 2) rows of the batch and label tables.
    seed
        Of the noise.
    n_times, draws
        Equally spaced time steps, and draws that are averaged.

    Returns
    -------
    ClassifierErrors
        (n, candidates, time steps): mean over genes of the squared error of x_0, or of epsilon for a noise target.
    """
    schedule, n_genes = scaled_linear(), cells.x.shape[1]
    generator = torch.Generator().manual_seed(seed)
    times = schedule.bins(n_times)
    labels, label_of = np.unique(candidates[:, 1], return_inverse=True)
    nothing = torch.zeros(1, n_genes)
    tokens = [model.condition_tokens(nothing, {"cell_type": torch.tensor([label])}) for label in labels]
    weight, bias = model.head.weight, model.head.bias
    gram = weight.T @ weight
    x = torch.as_tensor(cells.x.toarray())
    total = torch.zeros(len(x), len(candidates), n_times, dtype=torch.float64)
    for column, step in enumerate(times):
        t = step.expand(len(x))
        for _ in range(draws):
            noise = torch.randn(x.shape, generator=generator)
            x_t = schedule.diffuse(x, t, noise)
            h = model.embedder(x_t) + time_embedding(t, model.config.width)
            target = (noise if isinstance(model, NoiseScDiff) else x) - bias
            square = target.double().square().sum(-1)
            offset = target @ weight  # (n, D)
            encoded = [model.encode(h, own) for own in tokens]
            for row, (batch, _) in enumerate(candidates):
                table = None if model.batch_table is None else torch.tensor([batch])
                state = model.with_batch(encoded[label_of[row]], table)
                total[:, row, column] += square + (state * (state @ gram - 2 * offset)).sum(-1).double()
    scale = schedule.snr[times].double() if isinstance(model, SkipNoiseScDiff) else 1.0
    return ClassifierErrors((total * scale / (draws * n_genes)).numpy(), candidates, times.numpy())


def clean_factor(model: ScDiff, times: np.ndarray, *, schedule: Schedule) -> np.ndarray:
    """What turns errors of ``candidate_errors`` into squared errors of the clean cell: 1, or (1 - abar) / abar."""
    if isinstance(model, NoiseScDiff | SkipNoiseScDiff):
        return 1 / schedule.snr[torch.as_tensor(times)].double().numpy()
    return np.ones(len(times))


@torch.no_grad()
def reconstruction_error(
    model: ScDiff, cells: Cells, *, seed: int, hidden_shares: Sequence[float] = HIDDEN_SHARES, n_times: int = 10
) -> np.ndarray:
    """Training loss on held-out cells with fixed noise and masks, in units of the clean cell: (shares, time steps).

    Every cell with its true label, at every step and with every share of its genes hidden. For one `seed` all networks
    get the same noise and the same masks, so that their differences are not sampling error.
    """
    schedule = scaled_linear()
    generator = torch.Generator().manual_seed(seed)
    sparse = SparseCells.from_scipy(sp.csr_matrix(cells.x, dtype=np.float32))
    labels = {"cell_type": torch.as_tensor(cells.cell_type + 1)}
    batch = None if model.batch_table is None else torch.as_tensor(cells.batch + 1)
    times = schedule.bins(n_times)
    error = np.empty((len(hidden_shares), n_times))
    for column, step in enumerate(times):
        noise = torch.randn(sparse.shape, generator=generator)
        draw = torch.rand(len(sparse.values), generator=generator)
        t = step.expand(sparse.shape[0])
        for row, share in enumerate(hidden_shares):
            context = sparse.matrix(sparse.values * (draw >= share))
            own = model.denoising_error(
                sparse, t, noise, schedule=schedule, context=context, conditions=labels, batch=batch
            )
            error[row, column] = own.double().mean().item()
    return error * clean_factor(model, times.numpy(), schedule=schedule)


@torch.no_grad()
def impute_once(
    model: ScDiff, visible: sp.csr_matrix, hidden: sp.csr_matrix, *, t: int, seed: int, chunk: int = 512
) -> np.ndarray:
    """One answer of the network as imputation, (hidden.nnz,) in CSR order.

    The visible cell is noised to level `t`, hidden entries as zeros, shown whole as context, and the predicted clean
    cell is read at the hidden entries. t = 0 is what the authors' first version computes (protocol section 3). A
    noise target is turned into a clean cell by eq. 6.
    """
    schedule = scaled_linear()
    generator = torch.Generator().manual_seed(seed)
    coordinates = hidden.tocoo()
    out = np.empty(hidden.nnz, dtype=np.float32)
    for first in range(0, visible.shape[0], chunk):
        seen = torch.as_tensor(visible[first : first + chunk].toarray())
        step = torch.full((len(seen),), t)
        x_t = schedule.diffuse(seen, step, torch.randn(seen.shape, generator=generator))
        tokens = model.condition_tokens(seen, {})
        cell = predict_clean(model, x_t, step, tokens=tokens, batch=None, schedule=schedule).numpy()
        own = (coordinates.row >= first) & (coordinates.row < first + chunk)
        out[own] = cell[coordinates.row[own] - first, coordinates.col[own]]
    return out


def imputation_score(x: sp.csr_matrix, hidden: sp.csr_matrix, values: np.ndarray) -> float:
    """Pooled Pearson correlation of imputed `values` (hidden.nnz,) with the truth."""
    rows, columns = hidden.tocoo().row, hidden.tocoo().col
    truth = np.asarray(x[rows, columns]).reshape(1, -1)
    return imputation_pearson_pooled(truth, values[None], np.ones(truth.shape, dtype=bool))


def conditional_denoiser(model: ScDiff, cell_type: np.ndarray, batch: np.ndarray) -> Denoiser:
    """(x_t, t) -> clean cell, under type codes (n,) and batch codes (n,) with nothing visible; for the samplers."""
    nothing = torch.zeros(1, model.config.n_genes)
    with torch.no_grad():
        tokens = model.condition_tokens(nothing, {"cell_type": torch.as_tensor(cell_type + 1)})
    rows = None if model.batch_table is None else torch.as_tensor(batch + 1)
    schedule = scaled_linear()
    return lambda x_t, t: predict_clean(model, x_t, t, tokens=tokens, batch=rows, schedule=schedule)


# --- why the noise target fails ---------------------------------------------------------------------------


def unpredictable_share(width: int, n_genes: int) -> float:
    """Smallest possible mean squared error of predicted noise, for any network that ends in ``width -> genes``.

    The answers W h + b lie in `width` dimensions; of standard normal noise, the part outside is lost: 1 - width / G.
    """
    return max(0.0, 1 - width / n_genes)


class LinearErrors(NamedTuple):
    """Error of the clean cell, mean over genes, of the best linear network of a width, (time steps,)."""

    clean: np.ndarray  # trained to predict x_0
    noise: np.ndarray  # trained to predict epsilon


def linear_errors(x: sp.csr_matrix, *, width: int | None, times: np.ndarray, schedule: Schedule) -> LinearErrors:
    """What the best linear map x_t -> `width` numbers -> genes reaches under either target, from the cells' covariance.

    In the direction of the i-th principal component, of variance v_i, x_t = a x_0 + s epsilon lets a linear map remove
    a² v_i² / (a² v_i + s²) of the variance of x_0, and s² / (a² v_i + s²) of that of epsilon. A map through `width`
    numbers has to choose directions: the clean target takes those of largest v_i, the noise target those of
    *smallest*, where there is nothing to learn about cells. With ``width=None`` every direction is used and both
    targets give the same cell.
    """
    n_genes = x.shape[1]
    centred = x.toarray() - np.asarray(x.mean(0))
    kept = np.linalg.svd(centred, compute_uv=False).astype(np.float64) ** 2 / x.shape[0]
    variance = np.zeros(n_genes)
    variance[: len(kept)] = kept  # descending; with fewer cells than genes the rest is zero
    width = n_genes if width is None else min(width, n_genes)
    signal = schedule.alpha_bar[torch.as_tensor(times)].double().numpy()[:, None]  # a²
    total = signal * variance + (1 - signal)
    clean, noise = variance - signal * variance**2 / total, 1 - (1 - signal) / total
    clean[:, width:] = variance[width:]
    noise[:, : n_genes - width] = 1.0
    return LinearErrors(clean.mean(1), noise.mean(1) * (1 - signal[:, 0]) / signal[:, 0])


def parts(labelled: Labelled, *, split: int, test: float, validation: float) -> tuple[Cells, Cells, Cells]:
    """Training, validation and test cells of one split."""
    rows = cell_split(len(labelled.cells.cell_type), seed=split, test=test, validation=validation)
    return tuple(labelled.cells.take(own) for own in rows)


def with_rate(settings: DenoiserSettings, rate: float | None) -> DenoiserSettings:
    """`settings` with another learning rate, or as they are."""
    return settings if rate is None else replace(settings, learning_rate=rate)
