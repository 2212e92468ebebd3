"""Cells before and after a perturbation, one type of whose perturbed cells is held out, and scDiff as a method.

Section 4.1.3: a model sees control and stimulated cells of several types, and of one more type the control cells
alone. From those it has to say what the stimulated cells of that type look like.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from screpro.data.columns import controls_among
from screpro.data.preprocess import log_normalise
from screpro.data.validate import check_labels
from screpro.errors import ScreproError
from screpro.losses import DenoisingLoss
from screpro.processes.gaussian import scaled_linear
from screpro.tasks import denoiser
from screpro.tasks.denoiser import DenoiserSettings, build, generate

if TYPE_CHECKING:
    from screpro.models.scdiff import ScDiff

__all__ = [
    "PRESETS",
    "SAMPLING",
    "HeldOut",
    "Perturbed",
    "Predictor",
    "ScDiffSettings",
    "StateCells",
    "hold_out",
    "largest_types",
    "perturbed_cells",
    "scdiff_grid",
    "train_predictor",
    "validation_type",
]

"""What a column of conditions calls the cells that nothing was done to."""

MIN_CELLS = 10
"""Cells of either state that a held-out type needs: fewer have no mean profile to speak of."""


class StateCells(NamedTuple):
    """Cells in two states, as every method is given them."""

    x: sp.csr_matrix  # (n, G) log1p of counts scaled to 10 000 per cell, float32
    cell_type: np.ndarray  # (n,) int64 codes 0..K-1
    state: np.ndarray  # (n,) int64, 0 control and 1 stimulated
    batch: np.ndarray  # (n,) int64 codes from 0
    genes: list[str]  # (G,) gene names

    def rows(self, *, state: int, cell_type: int | None = None) -> np.ndarray:
        """Row numbers of the cells in `state`, of one type or of all."""
        wanted = self.state == state
        return np.flatnonzero(wanted if cell_type is None else wanted & (self.cell_type == cell_type))

    def take(self, rows: np.ndarray) -> "StateCells":
        """The cells at `rows` in that order; genes and code spaces stay as they are."""
        return StateCells(self.x[rows], self.cell_type[rows], self.state[rows], self.batch[rows], self.genes)


class Perturbed(NamedTuple):
    """Cells with the names behind their codes."""

    cells: StateCells
    types: list[str]  # name of each type code
    batches: list[str]  # name of each batch code; one entry if there is one batch
    states: tuple[str, str]  # what the data call control and stimulated


class HeldOut(NamedTuple):
    """What is known and what is to be predicted when the stimulated cells of one type are held out."""

    name: str
    code: int  # of the type
    train: StateCells  # every cell but the stimulated ones of the type, on the chosen genes
    control: sp.csr_matrix  # (c, G) control cells of the type, a part of `train`: what a prediction starts from
    stimulated: sp.csr_matrix  # (s, G) its stimulated cells: the truth, seen by no method


def perturbed_cells(
    adata: AnnData, *, condition_key: str = "condition", control: str | None = None, max_control: int | None = None
) -> Perturbed:
    """Preprocess counts (``log_normalise``) and turn their labels into codes.

    Parameters
    ----------
    adata
        Counts with ``obs["cell_type"]`` and two conditions in ``obs[condition_key]``. With ``obs["label_source"]``
        only cells whose type is published are kept: a guessed type is no truth, and guesses are made from the very
        expression that the stimulation changes.
    condition_key
        Column of the conditions.
    control
        The condition of the control cells; by default the one with a usual name for it (``data.columns.CONTROL``).
    max_control
        Keep at most this many control cells of each type, drawn once and for all; None keeps all.

    Raises
    ------
    ScreproError
        A column is missing, a cell has no label, or there are not exactly two conditions, one of them the control.
    """
    check_labels(adata.obs, "cell_type")
    if "label_source" in adata.obs:
        adata = adata[(adata.obs["label_source"] == "published").to_numpy()]
    check_labels(adata.obs, condition_key)
    condition = adata.obs[condition_key].astype(str)
    found = sorted(set(condition))
    usual = controls_among(found, control)
    if len(found) != 2 or len(usual) != 1:
        raise ScreproError(
            "A perturbation has two conditions, one of them the control.",
            got=f"{', '.join(found[:6])} in {condition_key}" + (f", control {control!r}" if control else ""),
            fix="keep the cells of two conditions and name the control one",
        )
    states = (usual[0], next(name for name in found if name != usual[0]))
    if max_control is not None:
        adata = adata[_capped(adata.obs["cell_type"].astype(str), (condition == usual[0]).to_numpy(), max_control)]
    adata = log_normalise(adata)
    types = adata.obs["cell_type"].astype(str).astype("category").cat
    donor = adata.obs["batch" if "batch" in adata.obs else "cell_type"].astype(str).astype("category").cat
    batched = "batch" in adata.obs and len(donor.categories) > 1
    cells = StateCells(
        x=adata.X.tocsr(),
        cell_type=types.codes.to_numpy().astype(np.int64),
        state=(adata.obs[condition_key].astype(str) == states[1]).to_numpy().astype(np.int64),
        batch=donor.codes.to_numpy().astype(np.int64) if batched else np.zeros(adata.n_obs, dtype=np.int64),
        genes=list(adata.var_names),
    )
    return Perturbed(cells, list(types.categories), list(donor.categories) if batched else ["all"], states)


def _capped(cell_type, is_control: np.ndarray, most: int) -> np.ndarray:
    """Rows of all stimulated and of at most `most` control cells of each type, in their order."""
    shuffled = np.random.default_rng(0).permutation(np.flatnonzero(is_control))
    rank = cell_type.iloc[shuffled].groupby(cell_type.iloc[shuffled].to_numpy()).cumcount().to_numpy()
    return np.sort(np.concatenate([np.flatnonzero(~is_control), shuffled[rank < most]]))


def hold_out(perturbed: Perturbed, name: str, *, n_genes: int | None = None, also: str | None = None) -> HeldOut:
    """Hold out the stimulated cells of type `name`.

    Genes are chosen on what is left for training: variability across held-out stimulated cells would tell which
    genes respond in them.

    Parameters
    ----------
    perturbed
        All cells.
    name
        The type.
    n_genes
        Number of highly variable genes (scanpy's "seurat" flavour); None keeps every gene that training cells have.
    also
        Another type whose stimulated cells are left out of training (without being predicted): while settings are
        tuned on one type, the stimulated cells of the type that is tested later stay unseen.

    Raises
    ------
    ScreproError
        No such type, fewer than `MIN_CELLS` of its cells in a state, or no other type with cells in both states.
    """
    cells, types = perturbed.cells, perturbed.types
    for wanted in (name, *([also] if also else [])):
        if wanted not in types:
            raise ScreproError(
                "A held-out type is one of the cells' types.", got=repr(wanted), fix=f"choose among {', '.join(types)}"
            )
    code = types.index(name)
    sizes = [len(cells.rows(state=state, cell_type=code)) for state in (0, 1)]
    if min(sizes) < MIN_CELLS:
        raise ScreproError(
            f"A held-out type has at least {MIN_CELLS} control and {MIN_CELLS} stimulated cells.",
            got=f"{name}: {sizes[0]} control, {sizes[1]} stimulated",
            fix="hold out a type with more cells",
        )
    hidden = np.isin(cells.cell_type, [types.index(each) for each in (name, also) if each]) & (cells.state == 1)
    train = cells.take(np.flatnonzero(~hidden))
    both = set(train.cell_type[train.state == 1]) & set(train.cell_type[train.state == 0])
    if not both:
        raise ScreproError(
            "What the stimulation does is learned from types with control and stimulated cells.",
            got=f"no type but {name} has both",
            fix="use cells of more types, in both conditions",
        )
    genes = _variable_genes(train.x, n_genes)
    names = [train.genes[g] for g in genes]
    train = train._replace(x=train.x[:, genes].tocsr(), genes=names)
    stimulated = cells.x[cells.rows(state=1, cell_type=code)][:, genes].tocsr()
    return HeldOut(name, code, train, train.x[train.rows(state=0, cell_type=code)], stimulated)


def _variable_genes(x: sp.csr_matrix, n_genes: int | None) -> np.ndarray:
    """Columns of the most variable genes among those that are expressed, in their order."""
    seen = np.flatnonzero(x.getnnz(axis=0) > 0)
    if n_genes is None or n_genes >= len(seen):
        return seen
    import scanpy as sc

    found = sc.pp.highly_variable_genes(AnnData(x[:, seen]), n_top_genes=n_genes, flavor="seurat", inplace=False)
    return seen[found["highly_variable"].to_numpy()]


def validation_type(perturbed: Perturbed, scored: list[str]) -> str | None:
    """The type settings are tuned on: the one with most stimulated cells among those that are not scored later.

    None if no such type has `MIN_CELLS` cells in either state.
    """
    cells = perturbed.cells
    for name in largest_types(perturbed, len(perturbed.types)):
        code = perturbed.types.index(name)
        if name not in scored:
            enough = min(len(cells.rows(state=state, cell_type=code)) for state in (0, 1)) >= MIN_CELLS
            return name if enough else None
    return None


def largest_types(perturbed: Perturbed, n: int) -> list[str]:
    """The `n` types with most cells in the rarer of their two states, largest first: those that can be scored best."""
    cells = perturbed.cells
    sizes = [min(len(cells.rows(state=state, cell_type=k)) for state in (0, 1)) for k in range(len(perturbed.types))]
    return [perturbed.types[k] for k in np.argsort(sizes, kind="stable")[::-1][:n]]


# --- scDiff -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScDiffSettings(DenoiserSettings):
    """Everything that defines scDiff as a perturbation method."""

    epochs: int = 100
    use_batch: bool = False  # a batch with control cells alone gives the stimulation away


PRESETS: dict[str, ScDiffSettings] = {
    # the paper's own, appendix E.1 and Table 3: rate 5e-9 x 2048, constant
    "paper": ScDiffSettings(
        width=512,
        depth=6,
        heads=8,
        epochs=1000,
        batch_size=2048,
        learning_rate=1.024e-5,
        schedule="constant",
        use_batch=True,
    ),
    "laptop": ScDiffSettings(),
    "ci": ScDiffSettings(epochs=60),
}
"""Starting points by tier."""

SAMPLING = {"scdiff": "ancestral", "scdiff_ddim50": "ddim quadratic", "scdiff_one_call": "one call"}
"""Names in the result rows of the ways to draw from one trained network."""


@dataclass
class Predictor:
    """A trained scDiff that turns control cells of one type into stimulated ones."""

    model: "ScDiff"
    code: int  # of the held-out type
    control: sp.csr_matrix  # (c, G) its control cells
    batch: np.ndarray | None  # rows of the batch table of these cells, or None
    seconds: float
    losses: list[float]

    def predict(
        self, *, sampler: str = "ancestral", seed: int, rows: np.ndarray | None = None, end: int = 0
    ) -> np.ndarray:
        """A stimulated cell for each control cell, or for those at `rows`, (c, G): the cell itself is the context.

        With `end` it is the network's answer at that time step, the rest of the chain left out.
        """
        rows = np.arange(self.control.shape[0]) if rows is None else rows
        return generate(
            self.model,
            self.control[rows],
            conditions={
                "cell_type": np.full(len(rows), self.code + 1),
                "state": np.ones(len(rows), dtype=np.int64),
            },
            batch=None if self.batch is None else self.batch[rows],
            sampler=sampler,
            end=end,
            nonnegative=True,
            seed=seed,
        )


def train_predictor(
    held: HeldOut,
    *,
    n_types: int,
    n_batches: int,
    settings: ScDiffSettings,
    seed: int,
    threads: int | None = None,
    checkpoint: Path | None = None,
    title: str = "scDiff",
) -> Predictor:
    """Train scDiff on the training cells of `held`.

    Type and batch have a null row 0, so their codes move up by one, and are dropped at random; the state has no null
    and is never dropped (protocol 3). The context is the cell itself, masked at random.
    """
    train = held.train
    batched = settings.use_batch and n_batches > 1
    model = build(
        train.x.shape[1],
        settings,
        classes={"cell_type": n_types + 1, "state": 2},
        n_batches=n_batches + 1 if batched else 0,
        seed=seed,
    )
    loss = DenoisingLoss(
        train.x,
        schedule=scaled_linear(),
        conditions={"cell_type": train.cell_type + 1, "state": train.state},
        batch=train.batch + 1 if batched else None,
        drop={"cell_type": settings.drop, "batch": settings.drop},
        empty_context=settings.empty_context,
    )
    done = denoiser.train(model, loss, settings, seed=seed, threads=threads, checkpoint=checkpoint, title=title).fit
    batch = train.batch[train.rows(state=0, cell_type=held.code)] + 1 if batched else None
    return Predictor(model, held.code, held.control, batch, done.seconds, done.losses)


def scdiff_grid(base: ScDiffSettings) -> list[ScDiffSettings]:
    """Settings of scDiff to try on the validation type: as many as the other networks' grids have."""
    return [base, replace(base, epochs=max(1, base.epochs // 2)), replace(base, empty_context=0.5)]
