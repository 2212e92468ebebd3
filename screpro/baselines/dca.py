r"""DCA (Eraslan et al., Nature Communications 2019, 10.1038/s41467-018-07931-2): a count autoencoder.

Input: counts divided by the size factor (size over median size), log1p, every gene to mean 0 and variance 1. Network:
dense layers of 64, 32 and 64 units, each with batch normalisation (no scale) and ReLU, then one dense layer each for
mean $\exp$, dispersion $\theta$ (softplus) and dropout probability $\pi$ (sigmoid), per cell and gene. Loss: the
zero-inflated negative binomial likelihood of the raw counts around size factor times mean,

$$-\log p(y) = -\log\big(\pi [y = 0] + (1 - \pi)\, \mathrm{NB}(y; \mu, \theta)\big) .$$

Training as in the authors' code: RMSprop, rate .001 (a tenth after 10 epochs without a better validation loss),
gradient entries cut at 5, batches of 32, at most 300 epochs, stop after 15 without a better validation loss, last
weights kept; a tenth of the cells is for validation. Answer: the mean without the size factor and without the dropout,
which is what the package returns as denoised.

Differences: the validation cells are a random tenth (theirs are the last tenth in the order of the file). The log
likelihood is computed from logits, with no small constants inside the logarithms. A last batch of one cell is left
out, since batch normalisation cannot take it.

The shared training loop of this package has another optimiser and no validation loss; hence the loop here.
"""

import time
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from screpro.baselines.common import contained_torch
from screpro.errors import ScreproError
from screpro.kernels.linear import Linear

__all__ = ["CountAutoencoder", "Trained", "impute", "seconds_per_epoch", "train", "zinb_nll"]

TARGET_SUM = 1e4
MEAN_RANGE = (1e-5, 1e6)  # both ranges are the authors'
DISPERSION_RANGE = (1e-4, 1e4)


class Trained(NamedTuple):
    """A trained autoencoder and how it got there."""

    network: nn.Module
    losses: list[float]  # mean training loss of every epoch, nats per entry
    validation: list[float]  # validation loss after every epoch
    epoch_seconds: list[float]  # wall time of every epoch, validation included


class CountAutoencoder(nn.Module):
    """Autoencoder from scaled expression (B, G) to the parameters of a count distribution.

    Parameters
    ----------
    n_genes
        G.
    hidden
        Widths of the hidden layers, the bottleneck in the middle.
    zero_inflated
        Whether there is a dropout probability.
    generator
        Draws the weights (Glorot uniform).
    """

    def __init__(self, n_genes: int, *, hidden: tuple[int, ...], zero_inflated: bool, generator: torch.Generator):
        super().__init__()
        layers, width = [], n_genes
        for units in hidden:
            norm = nn.BatchNorm1d(units, eps=1e-3, momentum=0.01)
            norm.weight.requires_grad_(False)  # no scale, as the authors have it
            layers += [Linear(width, units), norm, nn.ReLU()]
            width = units
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleList(Linear(width, n_genes) for _ in range(3 if zero_inflated else 2))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def mean(self, x: Tensor) -> Tensor:
        """Expected counts (B, G) at size factor 1."""
        return self.heads[0](self.body(x)).exp().clamp(*MEAN_RANGE)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean and dispersion (B, G), and the logit of the dropout probability (B, G) if there is one."""
        body = self.body(x)
        mean = self.heads[0](body).exp().clamp(*MEAN_RANGE)
        theta = F.softplus(self.heads[1](body)).clamp(*DISPERSION_RANGE)
        return mean, theta, self.heads[2](body) if len(self.heads) == 3 else None


def zinb_nll(counts: Tensor, mu: Tensor, theta: Tensor, logit: Tensor | None) -> Tensor:
    """Zero-inflated negative-binomial negative log-likelihood, summed over all entries.

    Parameters
    ----------
    counts
        (B, G) counts.
    mu
        (B, G) means above 0, size factors included.
    theta
        (B, G) inverse dispersions: variance mu + mu^2 / theta before zeros are put in.
    logit
        (B, G) log(pi / (1 - pi)) of the dropout probability; None for a negative binomial.

    Returns
    -------
    Scalar, nats, gamma functions included.
    """
    log_zero = -theta * torch.log1p(mu / theta)  # log of the negative binomial at 0
    # gamma functions are only needed where something was counted, which is rare
    cell, gene = counts.nonzero(as_tuple=True)
    y, m, t = counts[cell, gene], mu[cell, gene], theta[cell, gene]
    seen = torch.lgamma(y + t) - torch.lgamma(t) - torch.lgamma(y + 1) + y * (m.log() - torch.log(t + m))
    if logit is None:
        return -log_zero.sum() - seen.sum()
    # log(pi + (1 - pi) p) = logaddexp(logit, log p) - softplus(logit), and log(1 - pi) = -softplus(logit)
    at_zero = torch.logaddexp(logit, log_zero)
    return F.softplus(logit).sum() - at_zero.sum() + (at_zero - log_zero)[cell, gene].sum() - seen.sum()


def impute(
    counts: sparse.csr_matrix,
    *,
    size: np.ndarray,
    seed: int,
    threads: int = 1,
    likelihood: str = "zinb",
    hidden: tuple[int, ...] = (64, 32, 64),
    epochs: int = 300,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
) -> np.ndarray:
    """log1p of the autoencoder's means per 10 000; options as in `train`."""
    with contained_torch(seed=seed, threads=threads):
        trained = train(
            counts,
            size=size,
            seed=seed,
            likelihood=likelihood,
            hidden=hidden,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )
        x = _scaled(counts, size)
        with torch.no_grad():
            mean = torch.cat([trained.network.mean(part) for part in x.split(1024)])
    return np.log1p(mean.numpy() * np.float32(TARGET_SUM / np.median(size)))


def train(
    counts: sparse.csr_matrix,
    *,
    size: np.ndarray,
    seed: int,
    likelihood: str = "zinb",
    hidden: tuple[int, ...] = (64, 32, 64),
    epochs: int = 300,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
) -> Trained:
    """Train the autoencoder.

    Parameters
    ----------
    counts
        (n, G) CSR counts, at least three cells.
    size
        (n,) totals of the cells.
    seed
        Of weights, validation cells and order of cells.
    likelihood
        "zinb", or "nb" without dropout.
    hidden
        Widths of the hidden layers.
    epochs
        At most so many; training stops early.
    batch_size
        Cells per step.
    learning_rate
        First step size.
    """
    if likelihood not in ("zinb", "nb") or epochs < 1 or batch_size < 2 or not hidden or min(hidden) < 1:
        raise ScreproError(
            "DCA takes likelihood 'zinb' or 'nb', at least one epoch, batches of at least two cells and hidden layers.",
            got=f"{likelihood=}, {epochs=}, {batch_size=}, {hidden=}",
            fix="correct the option",
        )
    generator = torch.Generator().manual_seed(seed)
    x, factor = _scaled(counts, size), torch.from_numpy((size / np.median(size)).astype(np.float32))[:, None]
    network = CountAutoencoder(
        x.shape[1], hidden=tuple(hidden), zero_inflated=likelihood == "zinb", generator=generator
    )
    order = torch.randperm(len(x), generator=generator)
    held, cells = order.tensor_split([max(1, len(x) // 10)])
    weights = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.RMSprop(weights, lr=learning_rate, alpha=0.9, eps=1e-7)
    # reduces at the tenth epoch in a row that is not better by 1e-4, as Keras counts
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=9, threshold=1e-4, threshold_mode="abs")

    def loss(rows: Tensor) -> Tensor:
        y = torch.from_numpy(counts[rows.numpy()].toarray().astype(np.float32))
        mean, theta, logit = network(x[rows])
        return zinb_nll(y, factor[rows] * mean, theta, logit) / y.numel()

    losses, validation, seconds = [], [], []
    best, since = np.inf, 0
    for _ in range(epochs):
        started = time.perf_counter()
        network.train()
        total = 0.0
        for rows in cells[torch.randperm(len(cells), generator=generator)].split(batch_size):
            if len(rows) == 1:
                continue
            value = loss(rows)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_value_(weights, 5.0)
            optimiser.step()
            total += value.item() * len(rows)
        network.eval()
        with torch.no_grad():
            held_out = sum(loss(rows).item() * len(rows) for rows in held.split(1024)) / len(held)
        if not np.isfinite(total + held_out):
            raise ScreproError(
                "The loss of DCA must stay finite.",
                got=f"training {total / len(cells)}, validation {held_out} after {len(losses) + 1} epochs",
                fix="lower learning_rate",
            )
        losses.append(total / len(cells))
        validation.append(held_out)
        plateau.step(held_out)
        seconds.append(time.perf_counter() - started)
        best, since = (held_out, 0) if held_out < best else (best, since + 1)
        if since >= 15:
            break
    return Trained(network, losses, validation, seconds)


def seconds_per_epoch(
    counts: sparse.csr_matrix,
    *,
    size: np.ndarray | None = None,
    seed: int,
    epochs: int = 3,
    threads: int = 1,
    **options,
) -> float:
    """Median wall time of one training epoch, the first one left out where there are several.

    Parameters
    ----------
    counts
        (n, G) CSR counts; every gene and cell with a count.
    size
        (n,) totals; by default those of `counts`.
    epochs
        Epochs to run.
    options
        As in `train`.
    """
    size = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel() if size is None else np.asarray(size)
    with contained_torch(seed=seed, threads=threads):
        seconds = train(counts, size=size, seed=seed, epochs=epochs, **options).epoch_seconds
    return float(np.median(seconds[1:] or seconds))


def _scaled(counts: sparse.csr_matrix, size: np.ndarray) -> Tensor:
    """The input: log1p of counts over size factor, every gene to mean 0 and variance 1, (n, G) float32."""
    x = counts.toarray().astype(np.float32)
    x /= (size / np.median(size)).astype(np.float32)[:, None]
    np.log1p(x, out=x)
    deviation = x.std(axis=0, ddof=1, dtype=np.float64)
    x -= x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x /= np.where(deviation > 0, deviation, 1.0).astype(np.float32)
    return torch.from_numpy(x)
