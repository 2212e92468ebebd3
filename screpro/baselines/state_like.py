"""A set transformer in the manner of STATE's transition model (Adduri et al. 2025, 10.1101/2025.06.26.661135).

One training item is a set of S control cells of a type, a perturbation, and a set of S cells of that type under it. No
cell of one belongs to any of the other: the network turns the control set as a whole into a set whose distribution is
to be that of the perturbed one.

    h_i = encode(x_i) + embed(p)                       cell i of the control set, perturbation p
    (h_1 .. h_S) -> transformer, no positions -> (u_1 .. u_S)
    y_i = relu(x_i + decode(u_i))                      a change of the cell it started from
    loss = energy distance of {y_i} from the S real cells under p

Cells attend to each other in both directions, so the answer does not depend on their order. The control is a
perturbation like any other and maps a set of control cells to another one. Sets are drawn with replacement where a
group has fewer than S cells.

Where this differs: sizes (STATE: 672 wide, eight layers of a language model's backbone, sets of up to 512); plain
pre-norm transformer layers; no batch covariate and no set-count token; log-normalised expression of the panel in and
out, no pretrained cell embedding, with which STATE can be combined. The type is not told to the network, as there: it
is seen from the control cells.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.baselines.perturbation_networks import train_network
from screpro.data.populations import gather
from screpro.errors import ScreproError
from screpro.kernels.energy import energy_loss
from screpro.kernels.linear import Linear

if TYPE_CHECKING:
    from screpro.tasks.perturbed_cells import PairCells

__all__ = ["Groups", "StateLike", "grouped", "state_like", "trained", "transformed"]


class StateLike(nn.Module):
    """Sets of control cells (B, S, G) and perturbations (B,) -> sets of perturbed cells (B, S, G), at or above 0."""

    def __init__(self, n_genes: int, n_perturbations: int, *, width: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.encode = _mlp(n_genes, width, width)
        self.embed = nn.Embedding(n_perturbations, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.decode = _mlp(width, width, n_genes)
        # starts near "nothing changes", from where the residual is learned
        nn.init.zeros_(self.decode[-1].weight)
        nn.init.zeros_(self.decode[-1].bias)

    def forward(self, x: Tensor, perturbation: Tensor) -> Tensor:
        h = self.encode(x) + self.embed(perturbation)[:, None]
        return F.relu(x + self.decode(self.transformer(h)))


def _mlp(n_in: int, width: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(Linear(n_in, width), nn.GELU(), nn.LayerNorm(width), Linear(width, n_out))


class Groups:
    """Cells by (type, perturbation), and sets drawn from them.

    Parameters
    ----------
    x
        (n, G) log-normalised cells.
    rows
        Row numbers of every (type, perturbation); what counts as a type is the caller's: its control cells, code 0, are
        those that the network starts from. Types without any are left out.
    """

    def __init__(self, x: sp.csr_matrix, rows: Mapping[tuple[int, int], np.ndarray]):
        self.x = x
        self.rows = {pair: torch.from_numpy(own) for pair, own in rows.items() if (pair[0], 0) in rows}
        self.codes = list(self.rows)

    def draw(self, pair: tuple[int, int], size: int, generator: torch.Generator) -> Tensor:
        """A set (S, G): every cell at most once if there are enough."""
        rows = self.rows[pair]
        if len(rows) >= size:
            picked = torch.randperm(len(rows), generator=generator)[:size]
        else:
            picked = torch.randint(len(rows), (size,), generator=generator)
        return torch.from_numpy(gather(self.x, rows[picked].numpy()))


def grouped(cell_type: np.ndarray, perturbation: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Row numbers of every (type, perturbation) that occurs, in ascending order of the codes."""
    codes, member, count = np.unique(
        np.stack([cell_type, perturbation], 1), axis=0, return_inverse=True, return_counts=True
    )
    order = np.argsort(member.reshape(-1), kind="stable")
    parts = np.split(order, np.cumsum(count)[:-1])
    return {(int(k), int(p)): own for (k, p), own in zip(codes, parts, strict=True)}


def state_like(
    train: "PairCells",
    *,
    cell_type: np.ndarray,
    perturbation: np.ndarray,
    seed: int,
    threads: int = 1,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.1,
    set_size: int = 64,
    steps: int = 1000,
    batch_size: int = 4,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
) -> np.ndarray:
    """Log-normalised cells (n, G) with labels (n,), each made from a control cell of its type in a set of such.

    Parameters
    ----------
    train
        Training cells; types without control cells teach nothing here.
    cell_type, perturbation
        Codes (n,) of the cells to make.
    seed
        Of weights, sets and the control cells that are transformed.
    width, layers, heads, dropout
        Sizes of the network.
    set_size
        Cells in a set, S.
    steps, batch_size
        Steps of training, sets in each.
    learning_rate, weight_decay
        Of AdamW, constant rate.

    Raises
    ------
    ScreproError
        Sizes below 1, or a width that its heads do not divide.
    """
    from screpro.tasks.perturbed_cells import normalised

    groups = Groups(normalised(train.counts), grouped(train.cell_type, train.perturbation))
    model = trained(
        groups,
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
    return transformed(model, groups, cell_type=cell_type, perturbation=perturbation, set_size=set_size, seed=seed)


def trained(
    groups: Groups,
    *,
    n_perturbations: int,
    seed: int,
    threads: int,
    width: int,
    layers: int,
    heads: int,
    dropout: float,
    set_size: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
) -> StateLike:
    """The network, trained on pairs of sets drawn from `groups`; parameters and errors as of `state_like`."""
    if min(width, layers, heads, set_size, steps, batch_size) < 1 or width % heads:
        raise ScreproError(
            "Sizes are at least 1, and the width is a multiple of the heads.",
            got=f"{width=}, {layers=}, {heads=}, {set_size=}, {steps=}, {batch_size=}",
            fix="for example width=128, heads=4",
        )

    def loss(model: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        # row numbers count sets, not cells: which group a set is drawn from is drawn with it
        chosen = torch.randint(len(groups.codes), (len(rows),), generator=generator).tolist()
        pairs = [groups.codes[number] for number in chosen]
        before = torch.stack([groups.draw((k, 0), set_size, generator) for k, _ in pairs])
        after = torch.stack([groups.draw(pair, set_size, generator) for pair in pairs])
        made = model(before, torch.tensor([p for _, p in pairs]))
        return energy_loss(made, after).mean()

    model, _ = train_network(
        lambda: StateLike(groups.x.shape[1], n_perturbations, width=width, layers=layers, heads=heads, dropout=dropout),
        loss,
        steps * batch_size,
        epochs=1,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        threads=threads,
        title="STATE-like",
    )
    return model


@torch.no_grad()
def transformed(
    model: StateLike, groups: Groups, *, cell_type: np.ndarray, perturbation: np.ndarray, set_size: int, seed: int
) -> np.ndarray:
    """One cell (n, G) for each label, in sets of `set_size`; what the last set of a pair has too many is left out."""
    generator = torch.Generator().manual_seed(seed)
    out = np.zeros((len(cell_type), groups.x.shape[1]), dtype=np.float32)
    for k, p in np.unique(np.stack([cell_type, perturbation], 1), axis=0).tolist():
        places = np.flatnonzero((cell_type == k) & (perturbation == p))
        wanted = -(-len(places) // set_size) * set_size
        before = groups.draw((k, 0), wanted, generator).reshape(-1, set_size, groups.x.shape[1])
        made = model(before, torch.full((len(before),), p))
        out[places] = made.reshape(wanted, -1)[: len(places)].numpy()
    return out
