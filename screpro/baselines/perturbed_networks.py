"""scVI and CPA as makers of cells of a pair of type and perturbation never seen: what each is asked, and how.

Both start from control cells of the type. scVI answers with counts drawn from its likelihood, CPA adds what it changes
to the control cell.
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
    keep_rest: bool = True,
) -> np.ndarray:
    """CPA (``screpro.baselines.cpa``) with any number of perturbations: the control's vector is exchanged.

    `adversarial` weighs how hard the encoder works against the classifiers of type and perturbation. `keep_rest` adds
    what the exchange changes to the control cell, and what would fall below 0 stays there; otherwise the answer is the
    decoded mean.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from screpro.baselines.cpa import Cpa
    from screpro.baselines.perturbation_networks import train_network
    from screpro.tasks.perturbed_cells import normalised

    x = torch.from_numpy(normalised(train.counts).toarray())
    kind, given = torch.from_numpy(train.cell_type), torch.from_numpy(train.perturbation)

    def loss(model: nn.Module, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        decoded, types, states = model(x[rows], kind[rows], given[rows], adversarial)
        error = F.mse_loss(decoded, x[rows], reduction="none").sum(1).mean() / 2
        return error + F.cross_entropy(types, kind[rows]) + F.cross_entropy(states, given[rows])

    model, _ = train_network(
        lambda: Cpa(
            x.shape[1], len(train.types), width, layers, latent, dropout=dropout, n_states=len(train.perturbations)
        ),
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
    made = model.exchanged(x[rows], kind[rows], torch.from_numpy(perturbation), keep_rest=keep_rest).numpy()
    return np.maximum(made, 0) if keep_rest else made
