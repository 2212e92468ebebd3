"""scVI (Lopez et al., Nature Methods 2018, 10.1038/s41592-018-0229-2) as a model of counts: scvi-tools' implementation.

What scLDM compares with in Tables 1 and 14: a variational auto-encoder whose decoder is a negative binomial around
library size times a softmax over genes, one inverse dispersion per gene. A cell is reconstructed from the mean of its
posterior; new cells are drawn from the prior N(0, I) of the model, not from the codes of training cells, since the
prior is what a variational auto-encoder promises to sample from. (Where the codes do not fill the prior, samples are
worse than reconstructions; that gap is what a latent diffusion is for.)

Defaults are scvi-tools' (10 latents, one hidden layer of 128, dropout .1, Adam at 1e-3, KL weight rising over 400
epochs), with three changes: the likelihood is "nb", because the reconstruction error compares negative binomials; all
cells are trained on; and theta starts from moments, not from random numbers, and has a learning rate of its own
(``screpro.tasks.autoencoder.THETA_RATE_FACTOR``), which decides short trainings. With so slow a rise of the KL weight a
short training ends at a small weight; `warmup_epochs` makes it end at 1, which costs reconstruction and helps the
prior.
"""

import tempfile

import numpy as np
import scipy.sparse as sp

from screpro.baselines.common import contained_torch, quiet, scvi_seed
from screpro.baselines.registry import contained
from screpro.errors import ScreproError

__all__ = ["NO_KL", "ScviCounts", "fit"]

NO_KL = 100_000
"""Passes over which the weight of the KL term rises, for trainings that do without it."""


class ScviCounts:
    """A trained scVI; made by `fit`."""

    def __init__(self, module, *, n_labels: int, seconds: float):
        self.module, self.n_labels, self.seconds = module, n_labels, seconds

    def encode(self, counts: sp.csr_matrix, *, labels: np.ndarray | None = None, batch: int = 1024) -> np.ndarray:
        """Posterior means (n, k) of raw counts (n, G)."""
        import torch

        codes, parts = self._labels(labels, counts.shape[0]), []
        counts = sp.csr_matrix(counts)
        with torch.no_grad():
            for first in range(0, counts.shape[0], batch):
                rows = slice(first, first + batch)
                x = torch.from_numpy(counts[rows].toarray().astype(np.float32))
                parts.append(self.module.inference(x, codes[rows], n_samples=1)["qz"].loc.numpy())
        return np.concatenate(parts)

    def decode(self, z, library, *, labels: np.ndarray | None = None):
        """Mean counts (B, G) of codes (B, k) at library sizes (B,), and inverse dispersion (G,), as tensors.

        Parameters
        ----------
        z, library
            float32 tensors.
        labels
            (B,) label codes, if the model was trained with labels.
        """
        import torch

        with torch.no_grad():
            codes = self._labels(labels, len(z))
            law = self.module.generative(z, library.clamp(min=1e-8).log()[:, None], codes)["px"]
            return law.mean, self.module.px_r.exp()

    def reconstruct(
        self, counts: sp.csr_matrix, *, labels: np.ndarray | None = None, batch: int = 1024
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean (n, G) of cells at their own library size, decoded from the posterior mean, and theta (G,)."""
        import torch

        z = torch.from_numpy(self.encode(counts, labels=labels, batch=batch))
        totals = torch.from_numpy(np.asarray(counts.sum(1), dtype=np.float32).ravel())
        parts = []
        for first in range(0, len(z), batch):
            rows = slice(first, first + batch)
            parts.append(self.decode(z[rows], totals[rows], labels=None if labels is None else labels[rows])[0].numpy())
        return np.concatenate(parts), self.module.px_r.detach().exp().numpy()

    def draw(
        self, library: np.ndarray, *, labels: np.ndarray | None = None, seed: int, batch: int = 1024
    ) -> sp.csr_matrix:
        """New cells from the prior: codes from N(0, I), counts (n, G) int32 from the likelihood.

        Parameters
        ----------
        library
            (n,) library sizes, for instance ``LibrarySizes.draw`` of the cells' labels. Without labels in the model
            they are all that tells one class from another: the codes are the prior's for every class.
        labels
            (n,) label codes, if the model was trained with labels.
        seed
            Of codes and counts.
        """
        import torch

        from screpro.tasks.flow import decode_counts

        n_latent = self.module.n_latent
        z = torch.randn((len(library), n_latent), generator=torch.Generator().manual_seed(seed))
        rng, parts = np.random.default_rng(seed), []
        for first in range(0, len(z), batch):
            rows = slice(first, first + batch)
            own = None if labels is None else labels[rows]
            decode = lambda part, sizes, own=own: self.decode(part, sizes, labels=own)  # noqa: E731
            parts.append(decode_counts(decode, z[rows], library[rows], rng=rng, batch=batch))
        return sp.vstack(parts, format="csr")

    def _labels(self, labels: np.ndarray | None, n: int):
        import torch

        given = np.zeros(n, dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
        if (labels is None) != (self.n_labels == 0) or len(given) != n or (labels is not None and n and
            not (given.min() >= 0 and given.max() < self.n_labels)):  # fmt: skip
            raise ScreproError(
                "Labels are given exactly when the model was trained with them, one per cell, from 0.",
                got=f"{'no labels' if labels is None else f'{len(given)} labels'} for {n} cells; "
                f"trained with {self.n_labels or 'no'} labels",
                fix="pass the label codes the model knows, or none",
            )
        return torch.from_numpy(given)[:, None]


def fit(
    counts: sp.csr_matrix,
    *,
    labels: np.ndarray | None = None,
    n_labels: int | None = None,
    seed: int,
    threads: int = 1,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    n_latent: int = 10,
    n_layers: int = 1,
    n_hidden: int = 128,
    warmup_epochs: int | None = 400,
) -> ScviCounts:
    """Train scVI on raw counts.

    Parameters
    ----------
    counts
        (n, G) raw counts, every cell with at least one.
    labels
        (n,) codes from 0 that encoder and decoder are told besides; None: neither is told anything.
    n_labels
        Number of labels, those without training cells included; by default the largest code plus one.
    epochs
        Passes over the cells; None takes the package's rule (400 below 20 000 cells, fewer above).
    batch_size, learning_rate
        Cells per step, rate of Adam.
    n_latent, n_layers, n_hidden
        Width of the latent space, hidden layers of encoder and decoder, their width.
    warmup_epochs
        Over how many epochs the weight of the KL term rises to 1; None: over all of them.

    Raises
    ------
    ScreproError
        An empty cell, labels of another length, or the package is missing.
    """
    import time

    counts = sp.csr_matrix(counts, dtype=np.float32)
    empty = int((np.asarray(counts.sum(1)).ravel() == 0).sum())
    if counts.shape[0] < 2 or empty or (labels is not None and len(labels) != counts.shape[0]):
        raise ScreproError(
            "scVI is trained on at least two cells, each with at least one count, and one label per cell if any.",
            got=f"{counts.shape[0]} cells, {empty} of them empty, {'no' if labels is None else len(labels)} labels",
            fix="remove empty cells, and pass labels in the order of the cells",
        )
    size = 0 if labels is None else int(n_labels or np.max(labels) + 1)
    started = time.monotonic()
    with (
        contained("scVI", threads=threads, needs="baselines"),
        quiet(),
        contained_torch(seed=seed, threads=threads),
        tempfile.TemporaryDirectory() as scratch,
        scvi_seed(seed),
    ):
        import pandas as pd
        import scvi
        import torch
        from anndata import AnnData

        from screpro.tasks.autoencoder import THETA_RATE_FACTOR, moments_theta

        cells, key = AnnData(counts), None
        if labels is not None:
            key = "label"
            names = [f"{code:06d}" for code in range(size)]
            cells.obs[key] = pd.Categorical.from_codes(np.asarray(labels, dtype=np.int64), names)
        # batch normalisation cannot take a last batch of one cell: leave it out, another one every epoch
        lonely = cells.n_obs > batch_size and cells.n_obs % batch_size == 1
        scvi.model.SCVI.setup_anndata(cells, batch_key=key)
        model = scvi.model.SCVI(cells, n_latent=n_latent, n_layers=n_layers, n_hidden=n_hidden, gene_likelihood="nb")
        with torch.no_grad():
            model.module.px_r.copy_(torch.from_numpy(moments_theta(counts)).log())
        epochs = epochs or min(400, max(1, round(20_000 / cells.n_obs * 400)))

        def optimizer(params) -> torch.optim.Optimizer:
            """scvi-tools' own, but for the rate of theta."""
            theta = model.module.px_r
            rest = [p for p in params if p is not theta]
            groups = [{"params": rest}, {"params": [theta], "lr": THETA_RATE_FACTOR * learning_rate}]
            return torch.optim.Adam(groups, lr=learning_rate, eps=0.01, weight_decay=1e-6)

        model.train(
            max_epochs=epochs,
            batch_size=batch_size,
            datasplitter_kwargs={"drop_last": True} if lonely else None,
            train_size=1.0,
            plan_kwargs={
                "optimizer": "Custom",
                "optimizer_creator": optimizer,
                "n_epochs_kl_warmup": warmup_epochs or epochs,
            },
            accelerator="cpu",
            enable_progress_bar=False,
            enable_checkpointing=False,
            logger=False,
            default_root_dir=scratch,
        )
        module = model.module.eval()
    return ScviCounts(module, n_labels=size, seconds=time.monotonic() - started)
