"""Auto-encoders of a cell as one vector of all genes: the first stage of CFGen and, on another scale, of scDiffusion.

scLDM's comparisons (Tables 1, 2, 13) are with CFGen (Palma et al., ICLR 2025, arXiv:2407.11734) and scDiffusion (Luo et
al., Bioinformatics 2024, 10.1093/bioinformatics/btae518). Both encode a cell by a multilayer perceptron into one vector
and generate there; what they differ in is how the vector is turned back.

- "nb", CFGen: log1p of the counts -> 512 -> 256 -> 50 -> 256 -> 512 -> softmax over genes, times the library size, is
  the mean of a negative binomial with one inverse dispersion per gene. Batch normalisation and ELU after each hidden
  layer, deterministic, no term on the latent. AdamW at 1e-3 (weight decay 1e-5, constant rate), batches of 128,
  gradients clipped at norm 1, 200 epochs: the defaults of `fit`.
- "gaussian", scDiffusion (`SCDIFFUSION`): squared error of log1p of counts per 10 000, cut at 0 when used; three hidden
  layers of 1024, 128 latents, rate 5e-4, weight decay .01.

Where this differs: theta starts from moments, not from random numbers, and has a learning rate of its own, as scLDM's
here (``screpro.tasks.autoencoder.THETA_RATE_FACTOR``). scDiffusion's latents are scaled to unit length there, which
leaves a diffusion that starts at variance 1 with variances of 1/128; here they are not, and whoever generates in them
standardises them. It has PReLU where this has ELU.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.linear import Linear
from screpro.kernels.nb import nb_softmax_nll
from screpro.training import Fit, TrainConfig
from screpro.training import fit as fit_network

__all__ = ["SCDIFFUSION", "CountAutoEncoder", "fit"]

LIKELIHOODS = ("nb", "gaussian")
TARGET_SUM = 1e4

SCDIFFUSION = {
    "likelihood": "gaussian",
    "hidden": (1024, 1024, 1024),
    "latent": 128,
    "learning_rate": 5e-4,
    "weight_decay": 0.01,
}
"""Options of `fit` for scDiffusion's first stage."""

Counts = np.ndarray | sp.spmatrix | sp.sparray | Tensor


class CountAutoEncoder(nn.Module):
    """Counts of a cell (G,) -> latent vector (k,) -> mean and dispersion of every gene, or its log expression.

    Parameters
    ----------
    n_genes
        G.
    hidden
        Widths of the encoder's hidden layers; the decoder has them in reverse.
    latent
        k.
    likelihood
        "nb" or "gaussian".
    """

    forward_methods = ("nll",)

    def __init__(self, n_genes: int, *, hidden: Sequence[int], latent: int, likelihood: str):
        super().__init__()
        self.likelihood = likelihood
        self.history: Fit | None = None  # set by `fit`
        self.encoder = _perceptron([n_genes, *hidden, latent])
        self.decoder = _perceptron([latent, *reversed(hidden), n_genes])
        self.log_theta = nn.Parameter(torch.zeros(n_genes)) if likelihood == "nb" else None

    def forward(self, counts: Tensor) -> Tensor:
        """Counts (B, G) -> latents (B, k)."""
        return self.encoder(torch.log1p(counts) if self.likelihood == "nb" else _log_normalised(counts))

    def nll(self, counts: Tensor) -> Tensor:
        """Training loss (B,): negative log-likelihood of the counts in nats, or half the squared error, over genes."""
        out = self.decoder(self(counts))
        if self.likelihood == "nb":
            return nb_softmax_nll(counts, out, counts.sum(-1), self.log_theta)
        return 0.5 * (out - _log_normalised(counts)).square().sum(-1)

    @torch.no_grad()
    def encode(self, counts: Counts, *, batch: int = 1024) -> Tensor:
        """Latents (n, k) of raw counts (n, G), dense or sparse."""
        device = next(self.parameters()).device
        parts = [self(_dense(counts, slice(i, i + batch)).to(device)).cpu() for i in range(0, counts.shape[0], batch)]
        return torch.cat(parts)

    def decode(self, z: Tensor, library: Tensor) -> tuple[Tensor, Tensor]:
        """Mean counts (B, G) of latents (B, k) at library sizes (B,), and inverse dispersion (G,).

        Raises
        ------
        ScreproError
            The likelihood is Gaussian: there are no counts.
        """
        if self.likelihood != "nb":
            raise ScreproError(
                "Mean and dispersion of counts come from the negative-binomial auto-encoder.",
                got=f"likelihood {self.likelihood!r}",
                fix="ask for `expression`, or fit with likelihood='nb'",
            )
        return library[:, None] * self.decoder(z).softmax(-1), self.log_theta.exp()

    def expression(self, z: Tensor) -> Tensor:
        """Log expression, log1p of counts per 10 000, (B, G) of latents (B, k); that of the mean for "nb"."""
        out = self.decoder(z)
        return out.clamp(min=0) if self.likelihood == "gaussian" else torch.log1p(TARGET_SUM * out.softmax(-1))

    @torch.no_grad()
    def reconstruct(self, counts: Counts, *, batch: int = 1024) -> tuple[np.ndarray, np.ndarray]:
        """Mean (n, G) of cells at their own library size, and theta (G,), float32; likelihood "nb" only."""
        z, device = self.encode(counts, batch=batch), next(self.parameters()).device
        library = torch.from_numpy(np.asarray(_totals(counts), dtype=np.float32)).to(device)
        parts = [self.decode(z[i : i + batch].to(device), library[i : i + batch]) for i in range(0, len(z), batch)]
        return np.concatenate([mean.cpu().numpy() for mean, _ in parts]), parts[0][1].cpu().numpy()


def fit(
    counts: sp.csr_matrix,
    *,
    seed: int,
    threads: int | None = None,
    hidden: Sequence[int] = (512, 256),
    latent: int = 50,
    likelihood: str = "nb",
    epochs: int = 200,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-5,
    clip: float | None = 1.0,
    schedule: str = "constant",
    checkpoint: Path | None = None,
    title: str = "count auto-encoder",
) -> CountAutoEncoder:
    """Train an auto-encoder on raw counts.

    Parameters
    ----------
    counts
        (n, G) raw counts of at least two cells, each with at least one count.
    seed
        Weights and order of the cells follow from it.
    threads
        Threads torch may use meanwhile.
    hidden, latent, likelihood
        As for `CountAutoEncoder`.
    epochs, batch_size, learning_rate, weight_decay, clip, schedule
        Training, see ``screpro.training.TrainConfig``.
    checkpoint
        File from which an interrupted training continues.

    Returns
    -------
    CountAutoEncoder
        In evaluation mode; ``history`` holds losses and seconds.

    Raises
    ------
    ScreproError
        An empty cell, a single cell, sizes below 1 or an unknown likelihood.
    """
    counts = sp.csr_matrix(counts, dtype=np.float32)
    _check(counts, hidden, latent, likelihood)
    with _threads(threads):
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # modules draw their initial weights from the global generator
            model = CountAutoEncoder(counts.shape[1], hidden=hidden, latent=latent, likelihood=likelihood)
        factors = {}
        if likelihood == "nb":
            from screpro.tasks.autoencoder import THETA_RATE_FACTOR, moments_theta

            factors = {"log_theta": THETA_RATE_FACTOR}
            with torch.no_grad():
                model.log_theta.copy_(torch.from_numpy(moments_theta(counts)).log())

        def loss(network: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
            # a batch of one cell has no variance to normalise by; twice the same cell passes as zeros
            own = rows.repeat(2) if len(rows) == 1 else rows
            return network.nll(_dense(counts, own.cpu().numpy()).to(generator.device)).mean()

        how = TrainConfig(
            epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay,
            clip=clip, schedule=schedule, rate_factors=factors, seed=seed,
        )  # fmt: skip
        model.history = fit_network(model, loss, counts.shape[0], how, checkpoint=checkpoint, title=title)
    return model


def _perceptron(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes[:-1]):
        layers += [Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ELU()]
    return nn.Sequential(*layers, Linear(sizes[-2], sizes[-1]))


def _log_normalised(counts: Tensor) -> Tensor:
    return torch.log1p(counts * (TARGET_SUM / counts.sum(-1, keepdim=True).clamp(min=1)))


def _dense(counts: Counts, rows: slice | np.ndarray) -> Tensor:
    if isinstance(counts, Tensor):
        return counts[rows].float()
    part = counts[rows]
    return torch.from_numpy(np.asarray(part.toarray() if sp.issparse(part) else part, dtype=np.float32))


def _totals(counts: Counts) -> np.ndarray:
    return np.asarray(counts.sum(1)).ravel()


def _check(counts: sp.csr_matrix, hidden: Sequence[int], latent: int, likelihood: str) -> None:
    empty = int((_totals(counts) == 0).sum())
    if counts.shape[0] < 2 or empty:
        raise ScreproError(
            "An auto-encoder is trained on at least two cells, each with at least one count.",
            got=f"{counts.shape[0]} cells, {empty} of them empty",
            fix="remove empty cells, or choose more genes",
        )
    if likelihood not in LIKELIHOODS or latent < 1 or min(hidden, default=1) < 1:
        raise ScreproError(
            "Layers have at least one unit, and the likelihood is 'nb' or 'gaussian'.",
            got=f"hidden {tuple(hidden)}, latent {latent}, likelihood {likelihood!r}",
            fix="correct the options",
        )


@contextmanager
def _threads(number: int | None):
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
