"""What one trained auto-encoder of scLDM scores and costs, whatever its likelihood; padding as the authors have it."""

import time

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from screpro.metrics.reconstruction import mse_nb_draw, mse_nb_mean, pcc_nb_draw, pcc_nb_mean, re_nb_nll
from screpro.models.scldm import AutoEncoder
from screpro.tasks import autoencoder
from screpro.tasks.autoencoder import AutoEncoderSettings, ReconstructionLoss, batch_of
from screpro.tasks.training_memory import saved_bytes

__all__ = [
    "draw_gaussian",
    "epoch_seconds",
    "gaussian_law",
    "latent_spread",
    "padded_latents",
    "reconstruction_scores",
    "step_memory",
]

REPEATS = 9
"""Batches whose median time stands for an epoch."""


def reconstruction_scores(
    model: AutoEncoder, counts: sp.csr_matrix, *, seed: int, z: Tensor | None = None
) -> dict[str, tuple[float, str, str]]:
    """Metric -> value, direction and unit, of cells (n, G) the network has not seen.

    A network with a Gaussian likelihood answers with log-normalised values; its draw is compared with the cells in the
    same way, each side normalised by its own total, and it has no NB likelihood.

    Parameters
    ----------
    seed
        Of the draw.
    z
        (n, m, q) latents to decode instead of the cells' own.
    """
    rng = np.random.default_rng(seed)
    corr, square = ("higher", "correlation"), ("lower", "squared log expression")
    if model.config.likelihood == "gaussian":
        mean, precision = gaussian_law(model, autoencoder.encode(model, counts) if z is None else z)
        drawn = draw_gaussian(mean, precision, rng=rng)
        expected = np.expm1(_in_range(mean))
        return {
            "pcc_nb_draw": (pcc_nb_mean(counts, drawn), *corr),
            "mse_nb_draw": (mse_nb_mean(counts, drawn), *square),
            "pcc_nb_mean": (pcc_nb_mean(counts, expected), *corr),
            "mse_nb_mean": (mse_nb_mean(counts, expected), *square),
        }
    mean, theta = autoencoder.reconstruct(model, counts) if z is None else _decode(model, z, counts)
    return {
        "re_nb_nll": (re_nb_nll(counts, mean, theta), "lower", "nats"),
        "pcc_nb_draw": (pcc_nb_draw(counts, mean, theta, rng=rng), *corr),
        "mse_nb_draw": (mse_nb_draw(counts, mean, theta, rng=rng), *square),
        "pcc_nb_mean": (pcc_nb_mean(counts, mean), *corr),
        "mse_nb_mean": (mse_nb_mean(counts, mean), *square),
    }


@torch.no_grad()
def gaussian_law(model: AutoEncoder, z: Tensor, *, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n, G) and precision ((G,) or (n, G)) of the log-normalised values that latents (n, m, q) stand for."""
    means, precisions = [], []
    for part in z.split(batch):
        mean, log_precision = model.split(model.logits(part.to(model.head.weight.device)))
        means.append(mean.cpu().numpy())
        precisions.append(log_precision.exp().cpu().numpy())
    precision = precisions[0] if precisions[0].ndim == 1 else np.concatenate(precisions)
    return np.concatenate(means), precision


def draw_gaussian(mean: np.ndarray, precision: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """One draw per entry (n, G) as counts per 10 000, which are real numbers here.

    A Gaussian gives values no expression can have; they are moved to the nearest possible one, 0 or log(10 001), in
    its favour.
    """
    return np.expm1(_in_range(rng.normal(mean, precision**-0.5)))


def _in_range(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, np.log1p(1e4))


@torch.no_grad()
def _decode(model: AutoEncoder, z: Tensor, counts: sp.csr_matrix, *, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Means (n, G) and theta of latents at the library sizes of `counts`."""
    device = model.head.weight.device
    totals = torch.from_numpy(np.asarray(counts.sum(1), dtype=np.float32).ravel())
    parts = [
        model.decode(own.to(device), size.to(device))
        for own, size in zip(z.split(batch), totals.split(batch), strict=True)
    ]
    means, thetas = zip(*parts, strict=True)
    theta = thetas[0] if thetas[0].dim() == 1 else torch.cat(thetas)
    return torch.cat(means).cpu().numpy(), theta.cpu().numpy()


@torch.no_grad()
def padded_latents(
    model: AutoEncoder, counts: sp.csr_matrix, longest: sp.csr_matrix | int, *, batch: int = 64
) -> Tensor:
    """Latents (n, m, q) of cells (n, G) padded to one length that the attention sees, as the authors' network reads.

    `longest` is the length, or the cells whose largest number of expressed genes it is (training cells, as theirs).
    Longer cells keep their own length.
    """
    length = longest if isinstance(longest, int) else int(longest.getnnz(axis=1).max())
    parts, device = [], model.head.weight.device
    for first in range(0, counts.shape[0], batch):
        own = counts[first : first + batch]
        lengths = np.diff(own.indptr)
        width = max(length, int(lengths.max()))
        cell = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(own.nnz) - np.repeat(own.indptr[:-1], lengths)
        ids, values = np.zeros((len(lengths), width), dtype=np.int64), np.zeros((len(lengths), width), dtype=np.float32)
        ids[cell, place], values[cell, place] = own.indices + 1, own.data
        parts.append(model.encode_padded(torch.from_numpy(ids).to(device), torch.from_numpy(values).to(device)).cpu())
    return torch.cat(parts)


def latent_spread(model: AutoEncoder, counts: sp.csr_matrix) -> float:
    """Standard deviation of a latent channel between cells (n, G), mean over tokens and channels.

    A channel has variance 1 within its token. Near 0 every cell gets the same latent: the network has not left the
    plateau on which the decoder knows the mean cell and nothing else.
    """
    return float(autoencoder.encode(model, counts).std(0).mean())


def epoch_seconds(counts: sp.csr_matrix, model: AutoEncoder, settings: AutoEncoderSettings, *, threads: int) -> float:
    """Seconds of one pass over cells (n, G), forward and backward: the median batch times the number of batches.

    On one thread the time of the process counts, so that other work on the machine does not; else the clock on the
    wall. The weights stay as they are.
    """
    loss, n = ReconstructionLoss(counts, settings), counts.shape[0]
    device = model.head.weight.device
    clock = time.process_time if threads == 1 and device.type == "cpu" else time.perf_counter
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator(device=device).manual_seed(0)
    size, spent = min(settings.batch_size, n), []
    for i in range(REPEATS + 1):  # the first warms up
        rows = order[(i * size) % max(n - size + 1, 1) :][:size]
        started = clock()
        loss(model, rows, generator).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent.append(clock() - started)
        model.zero_grad(set_to_none=True)
    return float(np.median(spent[1:])) * n / size


def step_memory(counts: sp.csr_matrix, model: AutoEncoder, settings: AutoEncoderSettings) -> float:
    """MiB that one batch of the first cells keeps for its backward pass, parameters not counted.

    The decoder computes its genes in chunks and keeps none of their activations; what is left is mostly the encoder's.
    """
    own = counts[: settings.batch_size]
    device = model.head.weight.device

    def work() -> Tensor:
        cells, dense = batch_of(own, settings.inputs, device)
        generator = torch.Generator(device=device).manual_seed(0)
        return model.nll(cells, dense, generator=generator).mean()

    return saved_bytes(work, list(model.parameters())) / 2**20
