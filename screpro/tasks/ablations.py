"""The experiment behind the ablations page: one change to the network at a time (appendix E.6, Tables 8 and 9).

Every variant gets the same cells, the same order of the same batches, the same epochs and the same rate, and starts
from the default's weights where it shares them. Nothing is tuned: what is asked is what a change does at the default's
settings, as in the paper.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from screpro.data.masks import hide, mar_mask
from screpro.losses import DenoisingLoss
from screpro.metrics.classification import classification_scores
from screpro.metrics.imputation import imputation_pearson_pooled
from screpro.models.scdiff import ScDiffConfig
from screpro.models.scdiff_variants import Staged, make
from screpro.processes.gaussian import scaled_linear
from screpro.records import Run
from screpro.tasks.annotation import Labelled, ScDiffSettings, train_test
from screpro.tasks.cells import Cells
from screpro.tasks.denoiser import DenoiserSettings
from screpro.tasks.diffusion_classifier import ClassifierErrors, predict
from screpro.tasks.tuning import checkpoint_file
from screpro.tasks.variant_answers import candidate_gap, impute_once, variant_errors
from screpro.training import Fit, TrainConfig, fit

__all__ = [
    "Ablation",
    "annotate_variants",
    "impute_variants",
    "train_on_labels",
    "train_variant",
]

EMA = 0.9999
"""Decay of the authors' moving average of the weights, which they keep and do not use (protocol row 16)."""


class Ablation(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    splits: Sequence[int]  # seeds of the cell splits, or of the imputation masks
    seeds: Sequence[int]
    settings: DenoiserSettings  # of every variant; annotation needs ``ScDiffSettings``
    test_fraction: float = 0.2
    threads: int = 1
    variant: str = ""  # of the rows of a side question, e.g. "longer"; they belong to no table of the paper


def train_variant(
    name: str,
    loss: DenoisingLoss,
    settings: DenoiserSettings,
    *,
    classes: Mapping[str, int],
    n_batches: int,
    seed: int,
    threads: int | None = None,
    checkpoint: Path | None = None,
) -> tuple[Staged, Fit]:
    """Train the variant called `name`; the default also keeps a moving average of its weights.

    Parameters
    ----------
    loss
        Of the training cells.
    classes, n_batches
        Rows of the condition tables and of the batch table (0: none), null rows included.
    seed
        Of weights, order of the cells and noise. Equal for two variants, they see the same noise too.
    """
    if threads:
        torch.set_num_threads(threads)
    config = ScDiffConfig(
        n_genes=loss.x.shape[1],
        width=settings.width,
        depth=settings.depth,
        heads=settings.heads,
        classes=dict(classes),
        n_batches=n_batches,
    )
    model = make(name, config, seed=seed)
    how = TrainConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        ema=EMA if name == "scdiff" else None,
        seed=seed,
    )
    return model, fit(model, loss, loss.x.shape[0], how, checkpoint=checkpoint, title=name)


def train_on_labels(
    name: str,
    train: Cells,
    settings: DenoiserSettings,
    *,
    n_types: int,
    n_batches: int,
    seed: int,
    threads: int | None = None,
    checkpoint: Path | None = None,
) -> tuple[Staged, Fit, np.ndarray]:
    """Train a variant for annotation; also the (pairs, 2) rows of batch and label seen in training.

    Row 0 of both tables is null. With one batch there is no batch table.
    """
    batched = n_batches > 1
    rows = train.batch + 1 if batched else np.zeros_like(train.batch)
    loss = DenoisingLoss(
        train.x,
        schedule=scaled_linear(),
        conditions={"cell_type": train.cell_type + 1},
        batch=rows if batched else None,
        drop={"cell_type": settings.drop, "batch": settings.drop},
        empty_context=settings.empty_context,
    )
    model, done = train_variant(
        name,
        loss,
        settings,
        classes={"cell_type": n_types + 1},
        n_batches=n_batches + 1 if batched else 0,
        seed=seed,
        threads=threads,
        checkpoint=checkpoint,
    )
    return model, done, np.unique(np.stack([rows, train.cell_type + 1], axis=1), axis=0)


def annotate_variants(run: Run, labelled: Labelled, protocol: Ablation, names: Sequence[str]) -> None:
    """Train and classify with every variant on every (split, seed); rows go to `run`.

    For a side question (``protocol.variant``) only the scores are recorded. What an interrupted run has measured is not
    measured again.
    """
    settings = protocol.settings
    variant = protocol.variant
    for split, seed, name in _units(protocol, names, "annotation"):
        unit = {"dataset": protocol.dataset, "split": str(split), "method": name, "seed": seed}
        if run.done(**unit, metric="macro_f1", metric_variant=variant):
            continue
        train, _, test = train_test(labelled, split, test=protocol.test_fraction, validation=0.0)
        checkpoint = _checkpoint(run, "annotation", protocol, split, name, seed)
        model, done, candidates = train_on_labels(
            name,
            train,
            settings,
            n_types=len(labelled.types),
            n_batches=len(labelled.batches),
            seed=seed,
            threads=protocol.threads,
            checkpoint=checkpoint,
        )
        started = time.monotonic()
        errors = _errors(model, test, candidates, settings, seed)
        seconds = time.monotonic() - started
        sizes = {"n_real": len(test.cell_type), "n_genes": len(test.genes)}
        _scores(run, test, errors, item="X-17" if variant else "Table 8", variant=variant, **unit)
        if variant:
            checkpoint.unlink(missing_ok=True)
            continue
        if name == "no_diffusion":
            # the context is shown in training three times in four: without x_t this is what shows the cell
            shown = _errors(model, test, candidates, settings, seed, visible=True)
            _scores(run, test, shown, item="X-15", variant="whole cell as context", **unit)
        if done.average is not None:
            model.load_state_dict(done.average)
            averaged = _errors(model, test, candidates, settings, seed)
            _scores(run, test, averaged, item="X-16", variant="averaged weights", **unit)
        lower = {"item": "Table 8", "direction": "lower", **unit, **sizes}
        run.add(**lower, metric="fit", value=done.seconds, unit="s")
        run.add(**lower, metric="predict", value=seconds, unit="s")
        run.add(**lower, metric="parameters", value=sum(p.numel() for p in model.parameters()))
        run.add(**lower, metric="training_loss", value=done.losses[-1], unit="squared log expression")
        run.add(
            **(lower | {"direction": "higher"}), metric="candidate_gap", value=candidate_gap(errors), unit="fraction"
        )
        checkpoint.unlink(missing_ok=True)


def impute_variants(run: Run, counts: sp.csr_matrix, protocol: Ablation, names: Sequence[str]) -> None:
    """Train on the masked matrix and impute in one step with every variant on every (mask, seed)."""
    for split, seed, name in _units(protocol, names, "imputation"):
        unit = {"dataset": protocol.dataset, "split": str(split), "method": name, "seed": seed}
        if run.done(**unit, metric="imputation_pearson_pooled", metric_variant=""):
            continue
        mask = hide(counts, mar_mask(counts, rng=np.random.default_rng(split)))
        loss = DenoisingLoss(
            mask.x, schedule=scaled_linear(), conditions={}, empty_context=protocol.settings.empty_context
        )
        checkpoint = _checkpoint(run, "imputation", protocol, split, name, seed)
        model, done = train_variant(
            name,
            loss,
            protocol.settings,
            classes={},
            n_batches=0,
            seed=seed,
            threads=protocol.threads,
            checkpoint=checkpoint,
        )
        answers = {"": impute_once(model, mask, seed=seed)}
        if done.average is not None:
            model.load_state_dict(done.average)
            answers["averaged weights"] = impute_once(model, mask, seed=seed)
        for variant, answer in answers.items():
            run.add(
                **unit,
                item="X-16" if variant else "Table 9",
                metric="imputation_pearson_pooled",
                metric_variant=variant,
                n_real=counts.shape[0],
                n_genes=counts.shape[1],
                value=imputation_pearson_pooled(mask.matrix(mask.truth), mask.matrix(answer), mask.hidden),
                direction="higher",
            )
        run.add(**unit, item="Table 9", metric="fit", value=done.seconds, unit="s", direction="lower")
        checkpoint.unlink(missing_ok=True)


def _errors(
    model: Staged, test: Cells, candidates: np.ndarray, settings: ScDiffSettings, seed: int, *, visible: bool = False
) -> ClassifierErrors:
    return variant_errors(
        model,
        test.x,
        candidates,
        schedule=scaled_linear(),
        generator=torch.Generator(device=model.head.weight.device).manual_seed(seed),
        n_times=settings.n_times,
        draws=settings.draws,
        shared_noise=settings.shared_noise,
        visible=visible,
    )


def _scores(run: Run, test: Cells, errors: ClassifierErrors, *, item: str, variant: str, **unit) -> None:
    for metric, value in classification_scores(test.cell_type, predict(errors) - 1).items():
        run.add(
            **unit,
            item=item,
            metric=metric,
            metric_variant=variant,
            n_real=len(test.cell_type),
            n_genes=len(test.genes),
            value=value,
            unit="fraction",
            direction="higher",
        )


def _units(protocol: Ablation, names: Sequence[str], title: str):
    """(split, seed, variant) with a progress bar; variants innermost, so that an interrupted run has whole rows."""
    from tqdm import tqdm

    units = [(split, seed, name) for split in protocol.splits for seed in protocol.seeds for name in names]
    return tqdm(units, desc=f"{title} on {protocol.dataset}", unit="run", disable=None)


def _checkpoint(run: Run, task: str, protocol: Ablation, split: int, name: str, seed: int) -> Path:
    return checkpoint_file(run, task, protocol.dataset, split, name, seed, asdict(protocol.settings))
