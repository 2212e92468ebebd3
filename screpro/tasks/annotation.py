"""scDiff as an annotation method (section 4.1.1), and the cells and splits that every method is given."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from anndata import AnnData

from screpro.data.splits import cell_split
from screpro.data.validate import check_labels
from screpro.errors import ScreproError
from screpro.losses import DenoisingLoss
from screpro.models.scdiff import ScDiff
from screpro.processes.gaussian import scaled_linear
from screpro.tasks import denoiser
from screpro.tasks.cells import Cells
from screpro.tasks.denoiser import DenoiserSettings, build
from screpro.tasks.diffusion_classifier import ClassifierErrors, classifier_errors, predict

__all__ = [
    "PRESETS",
    "Annotator",
    "Labelled",
    "ScDiffSettings",
    "annotation_cells",
    "scdiff_grid",
    "scdiff_trainings",
    "starting_point",
    "train_annotator",
    "train_test",
]


MIN_CELLS = 5
"""Cells of a type below which a fifth of them is no test cell: one cell would decide a class of the macro scores."""


class Labelled(NamedTuple):
    """Cells with the names behind their codes."""

    cells: Cells
    types: list[str]  # name of each type code
    batches: list[str]  # name of each batch code; one entry if there is one batch
    left_out: Mapping[str, int] = MappingProxyType({})  # types with too few cells, and how many they have


def annotation_cells(adata: AnnData) -> Labelled:
    """Turn preprocessed cells (``log_normalise``) into codes; needs ``obs["cell_type"]``.

    ``obs["batch"]`` is used where it exists and does not settle the type: if every type comes from a batch of its
    own (sorted cells, one run per type), the batch IS the answer, and using it would be cheating. Cells of types with
    fewer than `MIN_CELLS` are left out.

    Raises
    ------
    ScreproError
        If there is no column of cell types, a cell has none, or a type has a single cell.
    """
    check_labels(adata.obs, "cell_type")
    sizes = adata.obs["cell_type"].astype(str).value_counts()
    left_out = sizes[sizes < MIN_CELLS].to_dict()
    if left_out:
        adata = adata[~adata.obs["cell_type"].astype(str).isin(list(left_out))]
    types = adata.obs["cell_type"].astype(str).astype("category").cat
    batch = np.zeros(adata.n_obs, dtype=np.int64)
    batches = ["all"]
    if "batch" in adata.obs:
        found = adata.obs["batch"].astype(str).astype("category").cat
        pairs = set(zip(found.codes, types.codes, strict=True))
        if len(found.categories) > 1 and len(pairs) > len(found.categories):
            batch, batches = found.codes.to_numpy().astype(np.int64), list(found.categories)
    cells = Cells(
        counts=adata.layers["counts"].tocsr(),
        x=adata.X.tocsr(),
        cell_type=types.codes.to_numpy().astype(np.int64),
        batch=batch,
        genes=list(adata.var_names),
    )
    return Labelled(cells, list(types.categories), batches, left_out)


def train_test(labelled: Labelled, split: int, *, test: float, validation: float) -> tuple[Cells, Cells, Cells]:
    """Cells for training, validation and test of one split.

    Raises
    ------
    ScreproError
        If training cells of fewer than two types are left.
    """
    parts = cell_split(len(labelled.cells.cell_type), seed=split, test=test, validation=validation)
    train = labelled.cells.take(parts.train)
    if len(np.unique(train.cell_type)) < 2:
        raise ScreproError(
            "Annotation needs training cells of at least two types.",
            got=f"{len(parts.train)} training cells of one type in split {split}",
            fix="use a larger data set or a smaller test share",
        )
    return train, labelled.cells.take(parts.validation), labelled.cells.take(parts.test)


@dataclass(frozen=True)
class ScDiffSettings(DenoiserSettings):
    """Everything that defines scDiff as an annotation method."""

    n_times: int = 5
    last_time: int = 1000  # steps of noise above this one do not count
    draws: int = 5
    shared_noise: bool = True
    search_batch: bool = True  # the authors' choice; False takes the batch of the cell as known


PRESETS: dict[str, ScDiffSettings] = {
    # the paper's own, appendix E.1 and Table 3: rate 1e-8 x 2048, constant; noise anew for every candidate
    "paper": ScDiffSettings(
        width=512,
        depth=6,
        heads=8,
        epochs=2000,
        batch_size=2048,
        learning_rate=2.048e-5,
        schedule="constant",
        draws=1,
        shared_noise=False,
    ),
    "laptop": ScDiffSettings(),
    "ci": ScDiffSettings(),
}
"""Starting points by tier."""


def starting_point(tier: str, dataset: str) -> ScDiffSettings:
    """`PRESETS` of a tier; at tier `paper` with the rate that Table 3 prints for this data set, if it is there."""
    if tier == "paper":
        from screpro.tasks.presets import DATASETS, preset

        for own in DATASETS:
            if (own.task, own.registry) == ("Annotation", dataset):
                return replace(PRESETS["paper"], learning_rate=preset("Annotation", own.name).learning_rate)
    return PRESETS[tier]


@dataclass
class Annotator:
    """A trained scDiff and what it needs to name types."""

    model: ScDiff
    candidates: np.ndarray  # (pairs, 2) rows of the batch and label tables seen in training
    settings: ScDiffSettings
    seconds: float
    losses: list[float]

    def errors(self, cells: Cells, *, seed: int, **options: Any) -> ClassifierErrors:
        """Denoising errors of `cells` under every candidate; `options` as in ``classifier_errors``."""
        given = {"n_times": self.settings.n_times, "draws": self.settings.draws}
        given |= {"shared_noise": self.settings.shared_noise} | options
        generator = torch.Generator(device=self.model.head.weight.device).manual_seed(seed)
        return classifier_errors(
            self.model, cells.x, self.candidates, schedule=scaled_linear(), generator=generator, **given
        )

    def label(self, errors: ClassifierErrors, cells: Cells, *, times: np.ndarray | None = None) -> np.ndarray:
        """Type codes (n,) from errors; the batch is searched or taken from `cells` as the settings say.

        `times` are columns of the errors; None takes those of steps up to the settings' `last_time`.
        """
        batch = None if self.settings.search_batch else cells.batch + 1
        if times is None:
            times = np.flatnonzero(errors.times <= self.settings.last_time)
        return predict(errors, times=times, batch=batch) - 1


def train_annotator(
    train: Cells,
    *,
    n_types: int,
    n_batches: int,
    settings: ScDiffSettings,
    seed: int,
    threads: int | None = None,
    checkpoint: Path | None = None,
    title: str = "scDiff",
) -> Annotator:
    """Train scDiff on labelled cells. Row 0 of both tables is null, so codes move up by one.

    A network for one batch has no batch table.
    """
    batch = train.batch + 1 if n_batches > 1 else None
    model = build(
        train.x.shape[1],
        settings,
        classes={"cell_type": n_types + 1},
        n_batches=n_batches + 1 if n_batches > 1 else 0,
        seed=seed,
    )
    loss = DenoisingLoss(
        train.x,
        schedule=scaled_linear(),
        conditions={"cell_type": train.cell_type + 1},
        batch=batch,
        drop={"cell_type": settings.drop, "batch": settings.drop},
        empty_context=settings.empty_context,
    )
    done = denoiser.train(model, loss, settings, seed=seed, threads=threads, checkpoint=checkpoint, title=title).fit
    rows = train.batch + 1 if n_batches > 1 else np.zeros_like(train.batch)
    candidates = np.unique(np.stack([rows, train.cell_type + 1], axis=1), axis=0)
    return Annotator(model, candidates, settings, done.seconds, done.losses)


def scdiff_trainings(base: ScDiffSettings) -> list[ScDiffSettings]:
    """Trainings of scDiff to try on validation cells: as many as the longest grid of a baseline has."""
    return [
        base,
        replace(base, epochs=max(1, base.epochs // 2)),
        replace(base, width=2 * base.width),
        replace(base, learning_rate=3 * base.learning_rate),
        replace(base, empty_context=0.75),  # the classifier shows no context either
    ]


def scdiff_grid(base: ScDiffSettings) -> list[ScDiffSettings]:
    """`scdiff_trainings`, each classified with all time steps and with those up to 500."""
    return [replace(own, last_time=last) for own in scdiff_trainings(base) for last in (base.last_time, 500)]
