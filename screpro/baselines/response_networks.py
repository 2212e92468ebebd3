"""Networks on populations of cells: CPA and a STATE-like set transformer, what each is told and where it starts.

Both know a (context, batch) as one covariate. STATE's transition model draws its control set from the same covariate as
the perturbed set and is not told which one it is; CPA has a vector for each. Both start from control cells of the
context and batch asked for, and answer with log-normalised expression of the panel.

CPA's decoder gives out the mean of a cell, and cells that are means vary too little. So what it changes is added to the
control cell that it starts from (`keep_rest`), as CellFlow-like does with what its components leave out; the decoded
means alone, as its Gaussian variant is used, are among the settings to try.
"""

from typing import TYPE_CHECKING

import numpy as np

from screpro.baselines.response_cells import nonnegative
from screpro.baselines.responses import Asked, controls_for

if TYPE_CHECKING:
    from screpro.baselines.state_like import Groups
    from screpro.data.populations import Populations

__all__ = ["cpa", "state_like"]


def _covariate(cells: "Populations | Asked", n_batches: int) -> np.ndarray:
    """(n,) code of the context and batch."""
    return cells.context * n_batches + cells.batch


def _groups(train: "Populations") -> "Groups":
    """Training cells by covariate and perturbation; a covariate without control cells borrows them."""
    from screpro.baselines.state_like import Groups, grouped

    covariate = _covariate(train, len(train.batches))
    rows = grouped(covariate, train.perturbation)
    pools, which = train.control_pools(train.context, train.batch)
    of_pool = np.unique(np.stack([which, covariate]), axis=1)
    rows |= {(int(k), 0): pools[number] for number, k in of_pool.T if (int(k), 0) not in rows}
    return Groups(train.x, rows)


def state_like(
    train: "Populations",
    *,
    asked: Asked,
    controls: "Populations",
    seed: int,
    threads: int = 1,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.1,
    set_size: int = 32,
    steps: int = 1200,
    batch_size: int = 4,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
) -> np.ndarray:
    """Sets of control cells turned into sets of perturbed ones (``screpro.baselines.state_like``), (n, G).

    Options are those of that module; every group of cells is drawn equally often, the control among them.
    """
    from screpro.baselines.state_like import Groups, trained, transformed

    model = trained(
        _groups(train),
        n_perturbations=len(train.perturbations),
        seed=seed,
        threads=threads,
        width=width,
        layers=layers,
        heads=heads,
        dropout=dropout,
        set_size=set_size,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
    pools, which = controls.control_pools(asked.context, asked.batch)
    start = Groups(controls.x, {(number, 0): rows for number, rows in enumerate(pools)})
    return transformed(model, start, cell_type=which, perturbation=asked.perturbation, set_size=set_size, seed=seed)


def cpa(
    train: "Populations",
    *,
    asked: Asked,
    controls: "Populations",
    seed: int,
    threads: int = 1,
    width: int = 256,
    layers: int = 2,
    latent: int = 64,
    dropout: float = 0.1,
    adversarial: float = 1.0,
    epochs: int = 40,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-6,
    keep_rest: bool = True,
) -> np.ndarray:
    """CPA (``screpro.baselines.cpa``): the control's vector is exchanged for that of the perturbation, (n, G).

    `adversarial` weighs how hard the encoder works against the classifiers of covariate and perturbation. `keep_rest`
    adds what that exchange changes to the control cell; otherwise the answer is the decoded mean.
    """
    import torch
    import torch.nn.functional as F

    from screpro.baselines.cpa import Cpa
    from screpro.baselines.perturbation_networks import train_network
    from screpro.data.populations import gather

    covariates = np.unique(_covariate(train, len(train.batches)))
    kind = torch.from_numpy(np.searchsorted(covariates, _covariate(train, len(train.batches))))
    given = torch.from_numpy(train.perturbation)

    def loss(model: Cpa, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = torch.from_numpy(gather(train.x, rows.numpy()))
        decoded, types, states = model(x, kind[rows], given[rows], adversarial)
        error = F.mse_loss(decoded, x, reduction="none").sum(1).mean() / 2
        return error + F.cross_entropy(types, kind[rows]) + F.cross_entropy(states, given[rows])

    model, _ = train_network(
        lambda: Cpa(
            len(train.genes), len(covariates), width, layers, latent,
            dropout=dropout, n_states=len(train.perturbations),
        ),
        loss,
        len(train),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        threads=threads,
        title="CPA",
    )  # fmt: skip
    rows = controls_for(controls, asked, seed=seed)
    # the vector is that of the control cell's own covariate, which the network was trained on
    own = _covariate(controls, len(controls.batches))[rows]
    wanted = torch.from_numpy(np.searchsorted(covariates, own).clip(max=len(covariates) - 1))
    parts = []
    for first in range(0, len(rows), 4096):
        piece = slice(first, first + 4096)
        before = torch.from_numpy(gather(controls.x, rows[piece]))
        state = torch.from_numpy(asked.perturbation[piece])
        parts.append(model.exchanged(before, wanted[piece], state, keep_rest=keep_rest).numpy())
    made = np.concatenate(parts)
    return nonnegative(made, asked) if keep_rest else made
