"""Cells of several types under several perturbations, some pairs of which are never seen, and scLDM's answer.

Section 4.2: a pair (type, perturbation) is held out while its type is known from control cells and other perturbations
and its perturbation from other types. A method that generates counts has to put the two together. The control is a
perturbation like any other to the networks, with code 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from screpro.data.populations import control_first
from screpro.data.preprocess import log_cp10k, variable_panel
from screpro.data.validate import check_labels
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from screpro.tasks.autoencoder import Trained
    from screpro.tasks.flow import FlowSettings, Generator

__all__ = [
    "CellModel",
    "HeldOutPairs",
    "PairCells",
    "default_pairs",
    "hold_out_pairs",
    "normalised",
    "pair_cells",
    "put_in_effects",
    "train_cell_model",
]

MIN_CELLS = 10
"""Cells that a held-out pair needs, and control cells of its type."""


class PairCells(NamedTuple):
    """Cells with a type and a perturbation each."""

    counts: sp.csr_matrix  # (n, G) raw counts, float32
    cell_type: np.ndarray  # (n,) int64 codes from 0
    perturbation: np.ndarray  # (n,) int64 codes, 0 is the control
    genes: list[str]
    types: list[str]  # name of each type code
    perturbations: list[str]  # name of each perturbation code

    def rows(self, cell_type: int, perturbation: int) -> np.ndarray:
        """Row numbers of one pair."""
        return np.flatnonzero((self.cell_type == cell_type) & (self.perturbation == perturbation))

    def take(self, rows: np.ndarray) -> "PairCells":
        """The cells at `rows` in that order; genes and code spaces stay as they are."""
        return self._replace(
            counts=self.counts[rows], cell_type=self.cell_type[rows], perturbation=self.perturbation[rows]
        )

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """Attributes of the cells as the velocity network takes them."""
        return {"cell_type": self.cell_type, "perturbation": self.perturbation}

    @property
    def classes(self) -> dict[str, int]:
        """Number of labels of each attribute."""
        return {"cell_type": len(self.types), "perturbation": len(self.perturbations)}


class HeldOutPairs(NamedTuple):
    """What is known, and the cells of the pairs that are to be generated, on the same genes."""

    train: PairCells
    test: PairCells
    pairs: tuple[tuple[int, int], ...]  # (type, perturbation) codes

    def name(self, pair: tuple[int, int]) -> str:
        """A pair in words."""
        return f"{self.train.types[pair[0]]}, {self.train.perturbations[pair[1]]}"


def normalised(counts: sp.spmatrix) -> sp.csr_matrix:
    """`log_cp10k` in the precision of the networks, float32."""
    return log_cp10k(sp.csr_matrix(counts)).astype(np.float32)


def pair_cells(
    adata: AnnData,
    *,
    type_key: str = "cell_type",
    perturbation_key: str = "perturbation",
    control: str | None = None,
    max_control: int | None = None,
    max_cells: int | None = None,
) -> PairCells:
    """Turn labels into codes.

    Parameters
    ----------
    adata
        Counts in ``X``. With ``obs["label_source"]`` only cells whose type is published are kept: a guessed type is no
        truth, and guesses are made from the very expression that a perturbation changes.
    type_key, perturbation_key
        Columns of the types (or cell lines, or replicates) and of the perturbations.
    control
        The label of control cells; by default the one with a usual name for it (``data.columns.CONTROL``).
    max_control, max_cells
        Keep at most this many cells of a type under the control, and under each perturbation; None keeps all.

    Raises
    ------
    ScreproError
        A column is missing, a cell has no label, or no perturbation or several are called by a control's name.
    """
    for key in (type_key, perturbation_key):
        check_labels(adata.obs, key)
    if "label_source" in adata.obs:
        adata = adata[(adata.obs["label_source"] == "published").to_numpy()]
    kind = adata.obs[type_key].astype(str).to_numpy()
    given = adata.obs[perturbation_key].astype(str).to_numpy()
    types, perturbations = sorted(set(kind)), list(control_first(given, control, column=perturbation_key))
    type_code = np.searchsorted(types, kind)
    code_of = {name: code for code, name in enumerate(perturbations)}
    code = np.array([code_of[name] for name in given], dtype=np.int64)
    counts = sp.csr_matrix(adata.X, dtype=np.float32)
    cells = PairCells(counts, type_code, code, list(map(str, adata.var_names)), types, perturbations)
    return cells.take(_capped(cells, max_control, max_cells))


def _capped(cells: PairCells, max_control: int | None, max_cells: int | None) -> np.ndarray:
    """Rows of at most so many cells of each pair, drawn once and for all, in their order."""
    n = len(cells.cell_type)
    order = np.random.default_rng(0).permutation(n)
    pair = (cells.cell_type * len(cells.perturbations) + cells.perturbation)[order]
    first = np.argsort(pair, kind="stable")
    rank = np.empty(n, dtype=np.int64)
    rank[first] = np.arange(n) - np.searchsorted(pair[first], pair[first])
    limit = np.where(cells.perturbation[order] == 0, max_control or n, max_cells or n)
    return np.sort(order[rank < limit])


def put_in_effects(
    adata: AnnData, *, n_types: int = 3, n_perturbations: int = 3, rng: np.random.Generator, **effects
) -> AnnData:
    """Cells of the largest types with known effects of perturbations in them (``simulate.perturbed``).

    The fold change of a gene is the same in every type, so that what is learned in one type holds in another. `effects`
    goes to the simulation: ``n_targets``, ``effect``, ``control_share``.
    """
    from screpro.data import simulate

    check_labels(adata.obs, "cell_type")
    largest = adata.obs["cell_type"].astype(str).value_counts().index[:n_types]
    chosen = adata[adata.obs["cell_type"].astype(str).isin(largest).to_numpy()].copy()
    chosen.obs = chosen.obs[["cell_type"]].astype(str)
    options = {"n_targets": 60, "effect": 2.0, "control_share": 0.4} | effects
    return simulate.perturbed(chosen, n_perturbations=n_perturbations, rng=rng, **options)


def default_pairs(cells: PairCells) -> list[tuple[str, str]]:
    """Which pairs to hold out where nobody says: half of the perturbations of the largest type, as in the paper.

    Those with most cells come first. With a single perturbation it is that one in the two types with most cells of it.
    """
    size = np.zeros((len(cells.types), len(cells.perturbations)), dtype=int)
    np.add.at(size, (cells.cell_type, cells.perturbation), 1)
    if size.shape[1] == 2:
        return [(cells.types[k], cells.perturbations[1]) for k in np.argsort(-size[:, 1], kind="stable")[:2]]
    k = int(size.sum(1).argmax())
    order = np.argsort(-size[k, 1:], kind="stable")[: -(-(size.shape[1] - 1) // 2)]
    return [(cells.types[k], cells.perturbations[p + 1]) for p in order]


def hold_out_pairs(cells: PairCells, pairs: Sequence[tuple[str, str]], *, n_genes: int | None = None) -> HeldOutPairs:
    """Take every cell of the pairs out of training.

    Parameters
    ----------
    cells
        All cells.
    pairs
        Names of types and perturbations.
    n_genes
        Size of the panel: the most variable genes of the training cells' counts (scanpy's "seurat_v3"); None keeps
        every gene that training cells have. Cells without a count in the panel are dropped on both sides.

    Raises
    ------
    ScreproError
        A name is unknown or the control, a pair has fewer than `MIN_CELLS` cells or its type fewer control cells, or
        no other type with control cells was given the perturbation.
    """
    codes = []
    for kind, perturbation in dict.fromkeys(map(tuple, pairs)):
        if kind not in cells.types or perturbation not in cells.perturbations[1:]:
            raise ScreproError(
                "A held-out pair is a type and a perturbation of the cells, not the control.",
                got=f"{kind}, {perturbation}",
                fix=f"types: {', '.join(cells.types[:8])}; perturbations: {', '.join(cells.perturbations[1:9])}",
            )
        codes.append((cells.types.index(kind), cells.perturbations.index(perturbation)))
    hidden = np.zeros(len(cells.cell_type), dtype=bool)
    for k, p in codes:
        hidden[cells.rows(k, p)] = True
    train, test = cells.take(np.flatnonzero(~hidden)), cells.take(np.flatnonzero(hidden))
    controlled = set(train.cell_type[train.perturbation == 0])
    for k, p in codes:
        elsewhere = controlled & set(train.cell_type[train.perturbation == p])
        sizes = len(test.rows(k, p)), len(train.rows(k, 0))
        if min(sizes) < MIN_CELLS or not elsewhere:
            raise ScreproError(
                f"A held-out pair has {MIN_CELLS} cells, its type {MIN_CELLS} control cells, and its perturbation was "
                "given to another type.",
                got=f"{cells.types[k]}, {cells.perturbations[p]}: {sizes[0]} cells, {sizes[1]} control cells, "
                f"{len(elsewhere)} other types",
                fix="hold out another pair",
            )
    genes = variable_panel(train.counts, n_genes)
    names = [train.genes[g] for g in genes]
    train, test = (side._replace(counts=side.counts[:, genes].tocsr(), genes=names) for side in (train, test))
    train, test = (side.take(np.flatnonzero(np.asarray(side.counts.sum(1)).ravel() > 0)) for side in (train, test))
    return HeldOutPairs(train, test, tuple(codes))


# --- scLDM --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellModel:
    """Auto-encoder and flow of one training; draws cells of any pair of labels."""

    generator: "Generator"
    strategy: str  # how its labels were given in training
    seconds: float

    def draw(
        self,
        labels: Mapping[str, np.ndarray],
        *,
        weight: float = 1.0,
        steps: int = 20,
        one_count: bool = False,
        seed: int,
    ) -> sp.csr_matrix:
        """Counts (n, G) of cells with these labels.

        Parameters
        ----------
        labels
            Codes (n,) of ``cell_type`` and ``perturbation``.
        weight
            Guidance omega.
        steps
            Heun steps of the sampler.
        one_count
            Draw cells of library size 1, as the authors' code does for pairs without training cells, in place of
            the main effects of both labels (``screpro.tasks.library_size``).
        seed
            Of latents, library sizes and counts.
        """
        from screpro.tasks.flow import decode_counts, sample_latents

        options = {"weight": weight, "strategy": self.strategy, "steps": steps, "seed": seed}
        if not one_count:
            return self.generator.draw(labels, **options)
        model, n = self.generator.autoencoder, len(labels["cell_type"])
        shape = model.config.tokens, model.config.channels
        latents = sample_latents(self.generator.network, labels, n=n, shape=shape, **options)
        device = model.head.weight.device
        return decode_counts(
            lambda z, size: model.decode(z.to(device), size.to(device)),
            latents,
            np.ones(n),
            rng=np.random.default_rng(seed),
        )


def train_cell_model(
    train: PairCells,
    autoencoder: "Trained",
    settings: "FlowSettings",
    *,
    seed: int,
    title: str = "flow",
) -> CellModel:
    """Train a flow on the latents of `train` under a trained auto-encoder, which stays as it is.

    The auto-encoder has seen no label (``screpro.tasks.autoencoder.train`` on ``train.counts``); the flow is given
    type and perturbation, together or one at a time as ``settings.strategy`` says.
    """
    from screpro.tasks.autoencoder import encode
    from screpro.tasks.flow import Generator, train_flow
    from screpro.tasks.library_size import LibrarySizes

    latents = encode(autoencoder.model, train.counts)
    trained = train_flow(latents, train.labels, settings, classes=train.classes, seed=seed, title=title)
    totals = np.asarray(train.counts.sum(1)).ravel()
    library = LibrarySizes.fit(totals, train.labels)
    generator = Generator(autoencoder.model, trained.network, library)
    return CellModel(generator, settings.strategy, autoencoder.fit.seconds + trained.fit.seconds)
