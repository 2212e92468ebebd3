"""A flow from control cells to perturbed ones, after CellFlow (Klein et al. 2025, 10.1101/2025.04.11.648220).

    z_0, z_1        a control cell and a perturbed cell of one context and batch, as principal components
    pairs           within a set of m of each, the assignment of least total squared distance
    z_t = (1 - t) z_0 + t z_1,    loss |v(z_t, t, perturbation, context, batch) - (z_1 - z_0)|^2
    answer          dz/dt = v from control cells of the context, t from 0 to 1, back to genes

The control is a perturbation like any other and flows to control cells. Components are those of the training cells, in
one common scale: the squared distance of two cells is that of their expression, as far as components hold it.

What components leave out of a control cell stays with it (x + V (z_1 - z_0)): reconstructed from components alone a
cell would have lost most of the noise of single genes, and with it every zero. Values below 0 are removed so that
means stay (``response_cells.nonnegative``).

Where this differs from CellFlow: assignments are exact and of small sets, not entropic ones of 1 024 cells; labels have
learned vectors, where CellFlow takes embeddings of drugs, genes or cell lines and pools several treatments by
attention; sizes.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from screpro.baselines.response_cells import nonnegative
from screpro.baselines.response_mlp import ToldMlp, train_told
from screpro.baselines.responses import Asked, controls_for
from screpro.data.populations import gather
from screpro.errors import ScreproError
from screpro.samplers.ode import integrate

if TYPE_CHECKING:
    from screpro.data.populations import Populations

__all__ = ["Components", "cellflow_like", "components_of", "paired"]


PART = 4096
"""Cells that are dense at a time."""


class Components(NamedTuple):
    """Leading principal components of cells."""

    mean: np.ndarray  # (G,)
    axes: np.ndarray  # (k, G), orthonormal rows
    scale: float  # root mean square of a component over training cells

    def __call__(self, x: sp.csr_matrix) -> Tensor:
        """(n, G) cells -> (n, k) float32 of about unit size."""
        z = x @ self.axes.T - self.mean @ self.axes.T
        return torch.from_numpy((z / self.scale).astype(np.float32))

    def change(self, z: Tensor) -> np.ndarray:
        """A difference of components (n, k) as one of expression (n, G)."""
        return (z.numpy() * self.scale) @ self.axes.astype(np.float32)


def components_of(x: sp.csr_matrix, k: int) -> Components:
    """Principal components of (n, G) cells, at most as many as there are genes or cells; the signs are fixed."""
    mean = np.asarray(x.mean(0, dtype=np.float64)).ravel()
    covariance = -np.outer(mean, mean)
    for first in range(0, x.shape[0], PART):  # dense products of a few thousand cells are faster than sparse ones
        part = x[first : first + PART].toarray()
        covariance += (part.T @ part).astype(np.float64) / x.shape[0]
    values, vectors = np.linalg.eigh(covariance)
    k = min(k, *x.shape)
    axes = vectors[:, ::-1][:, :k].T
    axes = axes * np.sign(axes[np.arange(k), np.abs(axes).argmax(1)])[:, None]
    return Components(mean, axes, float(np.sqrt(max(values[::-1][:k].mean(), 1e-12))))


def paired(z0: Tensor, z1: Tensor) -> Tensor:
    """Sets (S, m, k) and (S, m, k) -> the second in the order of least total squared distance to the first."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(z0, z1).square().numpy()
    order = np.stack([linear_sum_assignment(each)[1] for each in cost])  # one set at a time: a few dozen cells
    return torch.take_along_dim(z1, torch.from_numpy(order)[..., None], dim=1)


def cellflow_like(
    train: "Populations",
    *,
    asked: Asked,
    controls: "Populations",
    seed: int,
    threads: int = 1,
    components: int = 50,
    width: int = 256,
    layers: int = 3,
    told_context: bool = True,
    set_size: int = 32,
    batch_size: int = 8,
    steps: int = 2000,
    learning_rate: float = 1e-3,
    sampling_steps: int = 10,
) -> np.ndarray:
    """Control cells carried along the flow of their perturbation, (n, G).

    Parameters
    ----------
    train, asked, controls, seed, threads
        As of ``responses.run``.
    components
        Principal components that the flow lives in.
    width, layers
        Of the velocity network.
    told_context
        Whether it is told context and batch, besides seeing the cell it starts from.
    set_size, batch_size, steps
        Cells in a set that are assigned to each other, sets in a step, and steps. Every group of perturbation, context
        and batch is drawn equally often.
    learning_rate
        The highest, after warm-up.
    sampling_steps
        Steps of Heun's method.
    """
    if min(components, set_size, sampling_steps) < 1:
        raise ScreproError(
            "Components, sets and steps are at least 1.",
            got=f"{components=}, {set_size=}, {sampling_steps=}",
            fix="for example components=50, set_size=32, sampling_steps=10",
        )
    code = components_of(train.x, components)
    z = code(train.x)
    sizes = train.labels if told_context else {"perturbation": len(train.perturbations)}
    pools, which = train.control_pools(train.context, train.batch)
    order = np.argsort(train.group(), kind="stable")
    _, start, count = np.unique(train.group()[order], return_index=True, return_counts=True)

    def drawn(rows: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.choice(own, set_size, replace=len(own) < set_size) for own in rows])

    def loss(model: nn.Module, items: Tensor, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        groups = rng.integers(len(start), size=len(items))
        after = drawn([order[start[g] : start[g] + count[g]] for g in groups], rng)
        before = drawn([pools[which[first]] for first in after[:, 0]], rng)
        z0, z1 = z[before], z[after]
        z1 = paired(z0, z1)
        t = torch.rand(z0.shape[:2], generator=generator)
        point = z0 + t[..., None] * (z1 - z0)
        labels = {name: torch.from_numpy(getattr(train, name)[after]).reshape(-1) for name in sizes}
        velocity = model(point.flatten(0, 1), t.reshape(-1), labels)
        return (velocity - (z1 - z0).flatten(0, 1)).square().mean()

    model = train_told(
        lambda: ToldMlp(z.shape[1], sizes, width=width, layers=layers),
        loss,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        threads=threads,
        title="CellFlow-like",
    )
    rows = controls_for(controls, asked, seed=seed)
    labels = {name: torch.from_numpy(getattr(asked, name)) for name in sizes}
    before = code(controls.x)[rows]
    after = integrate(lambda point, t: model(point, t, labels), before, method="heun", steps=sampling_steps)
    return nonnegative(gather(controls.x, rows) + code.change(after - before), asked)
