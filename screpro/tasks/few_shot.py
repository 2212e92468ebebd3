"""Annotation with a few labelled cells of each type (scDiff section 4.2.1 and appendix E.4).

Types with many cells are pre-trained on; the largest of the others are the targets, of which a handful of cells are
labelled. The pre-trained network is fine-tuned on these alone and classifies the rest, choosing among the targets.
Pre-training does not depend on which cells are drawn, so one pre-trained network serves every draw: fine-tuning works
on a copy.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.losses import DenoisingLoss
from screpro.models.scdiff import ScDiff
from screpro.models.text_conditioner import TextConditioner
from screpro.processes.gaussian import scaled_linear
from screpro.tasks import denoiser
from screpro.tasks.annotation import Labelled
from screpro.tasks.cells import Cells
from screpro.tasks.denoiser import DenoiserSettings
from screpro.tasks.diffusion_classifier import ClassifierErrors, classifier_errors, predict

__all__ = [
    "PRESETS",
    "THRESHOLDS",
    "Answer",
    "Draw",
    "FewShotSettings",
    "Partition",
    "classify",
    "draw_shots",
    "fine_tune",
    "partition",
    "pretrain",
]

THRESHOLDS = {
    "scdiff_brain": 3000,  # the paper's Table 6
    "scdiff_liver": 600,
    "scdiff_hlca_subset": 1000,
    "scdiff_immune_subset": 1000,
    # leave four to eight types below the line with enough cells
    "pbmc68k_reduced": 60,
    "mca_gut": 100,
    "haber_sie_1k": 123,
    "worm_embryo_neurons": 220,
    "pbmc_facs_zheng": 300,
}
"""Smallest number of cells of a type to pre-train on, by data set."""


@dataclass(frozen=True)
class FewShotSettings(DenoiserSettings):
    """Pre-training as in ``DenoiserSettings``, then fine-tuning and classification."""

    fine_epochs: int = 50
    fine_rate: float = 5e-4  # constant; as in the paper half of the rate of pre-training
    n_times: int = 50
    draws: int = 1
    shared_noise: bool = True


PRESETS: dict[str, FewShotSettings] = {
    # appendix E.4 and the authors' run settings: rates 1e-8 and 5e-9 times 2048, both constant
    "paper": FewShotSettings(
        width=512,
        depth=6,
        heads=8,
        epochs=1000,
        batch_size=2048,
        learning_rate=2.048e-5,
        schedule="constant",
        fine_rate=1.024e-5,
        shared_noise=False,
    ),
    "laptop": FewShotSettings(epochs=40),
    "ci": FewShotSettings(epochs=30, n_times=20),
}
"""Starting points by tier."""


class Partition(NamedTuple):
    """Which types are pre-trained on and which are to be learned from few cells."""

    majority: np.ndarray  # (n,) bool, cells to pre-train on
    majority_types: list[int]  # their codes
    targets: list[int]  # codes of the minority types with enough cells, largest first


class Draw(NamedTuple):
    """Labelled and scored cells of the target types, as row numbers."""

    pool: np.ndarray  # (K, n pool) the cells that may be labelled; n shots are its first n columns
    test: np.ndarray  # every other cell, or a random part of them


@dataclass(frozen=True)
class Answer:
    """Predicted type codes of the test cells, (n,)."""

    searched: np.ndarray  # among the (batch, type) pairs of the shots, as the authors do
    batch_given: np.ndarray  # among the target types, in the batch the cell is known to come from
    errors: ClassifierErrors


def partition(labelled: Labelled, *, threshold: int, min_cells: int) -> Partition:
    """Split the types at `threshold` cells; minority types with fewer than `min_cells` are left out.

    Raises
    ------
    ScreproError
        If fewer than two types are left on either side.
    """
    size = np.bincount(labelled.cells.cell_type, minlength=len(labelled.types))
    majority = np.flatnonzero(size >= threshold)
    minority = np.flatnonzero((size < threshold) & (size >= min_cells))
    if len(majority) < 2 or len(minority) < 2:
        raise ScreproError(
            "Few-shot annotation needs at least two types to pre-train on and two to learn from few cells.",
            got=f"{len(majority)} types with {threshold} cells or more, {len(minority)} with {min_cells} to "
            f"{threshold - 1}; sizes {sorted(size.tolist(), reverse=True)}",
            fix="choose another threshold",
        )
    largest_first = minority[np.argsort(-size[minority], kind="stable")]
    return Partition(np.isin(labelled.cells.cell_type, majority), majority.tolist(), largest_first.tolist())


def draw_shots(
    cell_type: np.ndarray, targets: Sequence[int], *, pool: int, split: int, max_test: int | None = None
) -> Draw:
    """Draw `pool` cells of each target type that may be labelled; test cells are all others of these types.

    The draw of a type depends on `split` and the type alone, so that k and k + 1 types share their cells, and with
    n + 1 shots the first n are those of n shots. With `max_test` at most that many test cells of a type are scored.
    """
    order = {k: np.random.default_rng([split, k]).permutation(np.flatnonzero(cell_type == k)) for k in targets}
    if short := [k for k in targets if len(order[k]) <= pool]:
        raise ScreproError(
            "Every target type needs more cells than are set apart for labelling.",
            got=f"types {short} with {[len(order[k]) for k in short]} cells, {pool} set apart",
            fix="draw fewer shots, or leave these types out",
        )
    end = None if max_test is None else pool + max_test
    test = np.concatenate([order[k][pool:end] for k in targets])
    return Draw(np.stack([order[k][:pool] for k in targets]), np.sort(test))


def pretrain(
    majority: Cells,
    *,
    n_types: int,
    n_batches: int,
    settings: FewShotSettings,
    embeddings: Tensor | None = None,
    seed: int,
    threads: int | None = None,
    checkpoint: Path | None = None,
) -> denoiser.Trained:
    """Train scDiff on the majority types.

    Parameters
    ----------
    n_types, n_batches
        K and number of batches of the whole data set. A class conditioner has rows for all K types from the start;
        those of types without cells here stay as they were initialised, N(0, 1), until fine-tuning.
    embeddings
        (K + 1, E) embedded texts, the null text first: conditions on text. None conditions on classes.
    """
    text: dict[str, nn.Module] = {}
    if embeddings is not None:
        if len(embeddings) != n_types + 1:
            raise ScreproError(
                "There is one embedding per type, and one for the null text.",
                got=f"{len(embeddings)} embeddings, {n_types} types",
                fix="embed NULL_TEXT and the definition of every type, in the order of the types",
            )
        text["cell_type"] = TextConditioner(embeddings, width=settings.width, depth=settings.depth)
    model = denoiser.build(
        majority.x.shape[1],
        settings,
        classes={} if text else {"cell_type": n_types + 1},
        n_batches=n_batches + 1 if n_batches > 1 else 0,
        conditioners=text,
        seed=seed,
    )
    loss = _loss(model, majority, settings)
    title = f"pre-training on {'text' if text else 'classes'}"
    return denoiser.train(model, loss, settings, seed=seed, threads=threads, checkpoint=checkpoint, title=title)


def fine_tune(model: ScDiff, shots: Cells, settings: FewShotSettings, *, seed: int) -> ScDiff:
    """A copy of `model`, trained on `shots` alone: all of them in every step, ``settings.fine_epochs`` steps."""
    tuned = copy.deepcopy(model)
    how = replace(
        settings,
        epochs=settings.fine_epochs,
        batch_size=max(settings.batch_size, len(shots.cell_type)),
        learning_rate=settings.fine_rate,
        schedule="constant",
    )
    return denoiser.train(tuned, _loss(tuned, shots, settings), how, seed=seed, title="fine-tuning").model


def classify(
    model: ScDiff, test: Cells, shots: Cells | None, targets: Sequence[int], settings: FewShotSettings, *, seed: int
) -> Answer:
    """Name the types of `test` by denoising error (``diffusion_classifier``).

    Candidates are the (batch, type) pairs of `shots`; without shots (``None``) every batch with every target.
    """
    batches = np.arange(1, model.config.n_batches) if model.batch_table is not None else np.zeros(1, dtype=np.int64)
    pairs = np.array([(b, k + 1) for b in batches for k in sorted(targets)])
    generator = torch.Generator(device=model.head.weight.device).manual_seed(seed)
    errors = classifier_errors(
        model,
        test.x,
        pairs,
        schedule=scaled_linear(),
        generator=generator,
        n_times=settings.n_times,
        draws=settings.draws,
        shared_noise=settings.shared_noise,
    )
    given = predict(errors, batch=test.batch + 1 if model.batch_table is not None else None) - 1
    if shots is None or model.batch_table is None:
        return Answer(predict(errors) - 1, given, errors)
    seen = np.unique(np.stack([shots.batch + 1, shots.cell_type + 1], axis=1), axis=0)
    columns = np.flatnonzero((pairs[:, None] == seen[None]).all(axis=2).any(axis=1))
    among_seen = ClassifierErrors(errors.error[:, columns], pairs[columns], errors.times)
    return Answer(predict(among_seen) - 1, given, errors)


def _loss(model: ScDiff, cells: Cells, settings: FewShotSettings) -> DenoisingLoss:
    """scDiff's loss; the batch is never dropped in the few-shot runs."""
    return DenoisingLoss(
        cells.x,
        schedule=scaled_linear(),
        conditions={"cell_type": cells.cell_type + 1},
        batch=cells.batch + 1 if model.batch_table is not None else None,
        drop={"cell_type": settings.drop},
        empty_context=settings.empty_context,
    )
