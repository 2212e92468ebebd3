"""scVI and CPA as makers of cells of a pair of type and perturbation never seen: what each is asked, and how.

Both start from control cells of the type. scVI answers with counts drawn from its likelihood, CPA with decoded means.
"""

from typing import TYPE_CHECKING

import numpy as np

from screpro.baselines.perturbed_counts import controls_of

if TYPE_CHECKING:
    from screpro.tasks.perturbed_cells import PairCells

__all__ = ["cpa", "scvi"]


def scvi(
    train: "PairCells",
    *,
    cell_type: np.ndarray,
    perturbation: np.ndarray,
    seed: int,
    threads: int = 1,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    n_latent: int = 10,
    n_layers: int = 1,
    n_hidden: int = 128,
    warmup_epochs: int | None = 400,
) -> np.ndarray:
    """scVI told the perturbation: control cells of the type are encoded, and decoded as if perturbed; one draw each.

    The perturbation is the covariate of scvi-tools' model that its decoder is told and its encoder is not; the type
    need not be told, the code of a control cell holds it. Counts are drawn at the control cell's library size. Options
    are those of ``screpro.baselines.scvi_counts.fit``.
    """
    import torch

    from screpro.baselines import scvi_counts
    from screpro.tasks.flow import nb_counts
    from screpro.tasks.perturbed_cells import normalised

    model = scvi_counts.fit(
        train.counts,
        labels=train.perturbation,
        n_labels=len(train.perturbations),
        seed=seed,
        threads=threads,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        n_latent=n_latent,
        n_layers=n_layers,
        n_hidden=n_hidden,
        warmup_epochs=warmup_epochs,
    )
    rows = controls_of(train, cell_type=cell_type, perturbation=perturbation, seed=seed)
    before = train.counts[rows]
    z = torch.from_numpy(model.encode(before, labels=np.zeros(len(rows), dtype=np.int64)))
    library = torch.from_numpy(np.asarray(before.sum(1), dtype=np.float32).ravel())
    mean, theta = model.decode(z, library, labels=perturbation)
    return normalised(nb_counts(mean.numpy(), theta.numpy(), rng=np.random.default_rng(seed))).toarray()


def cpa(
    train: "PairCells",
    *,
    cell_type: np.ndarray,
    perturbation: np.ndarray,
    seed: int,
    threads: int = 1,
    width: int = 256,
    layers: int = 2,
    latent: int = 64,
    dropout: float = 0.1,
    adversarial: float = 1.0,
    epochs: int = 60,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-6,
) -> np.ndarray:
    """CPA (``screpro.baselines.cpa``) with any number of perturbations: the control's vector is exchanged.

    It answers with the decoded mean of a cell, not with a draw, as CPA's Gaussian variant is used.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from screpro.baselines.cpa import Cpa
    from screpro.baselines.perturbation_networks import stack, train_network
    from screpro.kernels.linear import Linear
    from screpro.tasks.perturbed_cells import normalised

    x = torch.from_numpy(normalised(train.counts).toarray())
    kind, given = torch.from_numpy(train.cell_type), torch.from_numpy(train.perturbation)
    n_types, n_perturbations = len(train.types), len(train.perturbations)

    def make() -> Cpa:
        model = Cpa(x.shape[1], n_types, width, layers, latent, dropout=dropout)
        if n_perturbations > 2:
            model.state_vectors = nn.Embedding(n_perturbations, latent)
            model.state_reader = nn.Sequential(stack(latent, 64, 2, dropout=dropout), Linear(64, n_perturbations))
        return model

    def loss(model: nn.Module, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        decoded, types, states = model(x[rows], kind[rows], given[rows], adversarial)
        error = F.mse_loss(decoded, x[rows], reduction="none").sum(1).mean() / 2
        return error + F.cross_entropy(types, kind[rows]) + F.cross_entropy(states, given[rows])

    model, _ = train_network(
        make,
        loss,
        len(x),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        threads=threads,
        title="CPA",
    )
    rows = controls_of(train, cell_type=cell_type, perturbation=perturbation, seed=seed)
    with torch.no_grad():
        return model.decode(model.encoder(x[rows]), kind[rows], torch.from_numpy(perturbation)).numpy()
