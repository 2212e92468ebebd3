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
from torch import Tensor

from screpro.data.masks import ImputationMask, hide, mar_mask
from screpro.errors import ScreproError
from screpro.losses import DenoisingLoss
from screpro.metrics.change import imputation_pearson_pooled
from screpro.metrics.classification import classification_scores
from screpro.models.scdiff import ScDiffConfig, Tokens
from screpro.models.scdiff_variants import CLEAN, NOISED, Staged, make
from screpro.processes.gaussian import Schedule, scaled_linear
from screpro.records import Run
from screpro.sparse import SparseCells
from screpro.tasks.annotation import Labelled, ScDiffSettings, train_test
from screpro.tasks.cells import Cells
from screpro.tasks.denoiser import DenoiserSettings
from screpro.tasks.diffusion_classifier import ClassifierErrors, embedded_noise, noise_root, predict
from screpro.tasks.tuning import checkpoint_file
from screpro.training import Fit, TrainConfig, fit

__all__ = [
    "Ablation",
    "annotate_variants",
    "candidate_gap",
    "impute_once",
    "impute_variants",
    "train_on_labels",
    "train_variant",
    "variant_errors",
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


@torch.no_grad()
def variant_errors(
    model: Staged,
    x: sp.csr_matrix,
    candidates: np.ndarray,
    *,
    schedule: Schedule,
    generator: torch.Generator,
    n_times: int = 5,
    draws: int = 1,
    shared_noise: bool = True,
    visible: bool = False,
    noise: Tensor | None = None,
    memory_mib: int = 16,
) -> ClassifierErrors:
    """Denoising error of every cell under every candidate, for any variant.

    The same quantity as ``diffusion_classifier.classifier_errors``, which is faster and knows the default network
    only: here the blocks are called as they are, once per label, and only the two gene-sized products are folded.
    A network without noise is asked once, since neither time steps nor draws mean anything to it.

    Parameters
    ----------
    model
        A trained variant whose only conditioner is ``cell_type``.
    x
        (n, G) log-normalised cells, CSR.
    candidates
        (candidates, 2) rows of the batch table and of the label table.
    shared_noise
        The same noise for all candidates of a cell.
    visible
        Show the whole cell as context instead of nothing.
    noise
        (n, time steps, draws, 1 or candidates, D) noise as the gene table maps it, instead of drawing it.
    memory_mib
        Size of the largest temporary.

    Returns
    -------
    ClassifierErrors
        Errors (n, candidates, time steps), averaged over genes and draws.

    Raises
    ------
    ScreproError
        Other genes than the network's, or no candidate.
    """
    candidates = np.asarray(candidates, dtype=np.int64)
    if x.shape[1] != model.config.n_genes or not len(candidates):
        raise ScreproError(
            "The cells have the genes of the network, and there is a candidate.",
            got=f"{x.shape[1]} genes for a network of {model.config.n_genes}, {len(candidates)} candidates",
            fix="pass the genes and the (batch, label) pairs of training",
        )
    model.eval()
    device, config = model.head.weight.device, model.config
    noised = model.reads == NOISED
    times = schedule.bins(n_times) if noised else torch.zeros(1, dtype=torch.int64)
    draws = draws if noised else 1
    schedule, steps = schedule.to(device), times.to(device)
    root = noise_root(model) if noised and noise is None else None
    weight, bias = model.head.weight, model.head.bias
    gram, shift = weight.T @ weight, weight.T @ bias
    # with shared noise a label is encoded once for all its batches
    numbers = np.arange(len(candidates))
    groups = [numbers[candidates[:, 1] == label] for label in np.unique(candidates[:, 1])]
    groups = groups if shared_noise else list(numbers[:, None])
    tables = model.conditioners["cell_type"]

    chunk = max(1, int(memory_mib * 2**20 / (4 * 4 * config.width * len(times))))
    total = np.zeros((x.shape[0], len(candidates), len(times)))
    for first in range(0, x.shape[0], chunk):
        rows = slice(first, min(first + chunk, x.shape[0]))
        cells = SparseCells.from_scipy(sp.csr_matrix(x[rows], dtype=np.float32), device)
        n, matrix = cells.shape[0], cells.matrix()
        clean = matrix.times(model.embedder.table)[:, None]  # (n, 1, D)
        target = (matrix.times(weight) - shift)[:, None]  # W'(x - b)
        square = torch.zeros(n, device=device, dtype=torch.float64)
        square.index_add_(0, cells.cells, (cells.values * (cells.values - 2 * bias[cells.genes])).double())
        square += bias.double() @ bias.double()  # |x - b|^2
        context = model.context.embedder
        seen = matrix.times(context.table) if visible else torch.zeros(1, config.width, device=device)
        context_tokens = model.context.tokens(context.after_table(seen))
        if visible:  # one token per cell, repeated for its time steps
            context_tokens = [Tokens(token.rows.repeat_interleave(len(times), 0)) for token in context_tokens]
        for draw in range(draws):
            shared = None
            for position, group in enumerate(groups):
                if not noised:
                    read = clean if model.reads == CLEAN or visible else torch.zeros_like(clean)
                elif shared is None or not shared_noise:
                    if noise is not None:
                        drawn = noise[rows, :, draw, 0 if shared_noise else position].to(device)
                    else:
                        drawn = embedded_noise(root, (n, len(times)), generator)
                    read = shared = schedule.signal[steps, None] * clean + schedule.noise[steps, None] * drawn
                label = torch.as_tensor(candidates[group[:1], 1], device=device)
                tokens = [list(pair) for pair in zip(context_tokens, tables(label), strict=True)]
                h = model.encode(model.start(read, steps).flatten(0, 1), tokens)
                for number in group:
                    batch = None
                    if model.batch_table is not None:
                        batch = torch.full((len(h),), int(candidates[number, 0]), device=device)
                    last = model.before_head(h, batch).unflatten(0, (n, -1))
                    error = (last * (last @ gram - 2 * target)).sum(-1).double() + square[:, None]
                    total[rows, number] += error.cpu().numpy() / (draws * config.n_genes)
    return ClassifierErrors(total, candidates, times.numpy())


@torch.no_grad()
def impute_once(model: Staged, mask: ImputationMask, *, seed: int, chunk: int = 512) -> np.ndarray:
    """One network call on the masked cells, the visible part as context: the hidden entries (hidden.nnz,).

    A network that reads a noised cell gets the masked one with the noise of level 1 at step 0
    (``tasks.imputation.one_step``); one without noise gets the masked cell, or its context alone.
    """
    device = model.head.weight.device
    schedule = scaled_linear().to(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    out = np.empty(mask.hidden.nnz, dtype=np.float32)
    for first in range(0, mask.x.shape[0], chunk):
        rows = slice(first, first + chunk)
        x = torch.as_tensor(mask.x[rows].toarray(), device=device)
        read = x
        if model.reads == NOISED:
            noise = torch.randn(x.shape, generator=generator, device=device)
            read = schedule.signal[1] * x + schedule.noise[1] * noise
        predicted = model(read, torch.zeros(len(x), dtype=torch.int64, device=device), context=x).cpu().numpy()
        asked = mask.hidden[rows]
        cells = np.repeat(np.arange(asked.shape[0]), np.diff(asked.indptr))
        out[mask.hidden.indptr[first] : mask.hidden.indptr[first] + asked.nnz] = predicted[cells, asked.indices]
    return out


def candidate_gap(errors: ClassifierErrors) -> float:
    """By how much the second label is worse than the best, as a share of the best error: median over cells."""
    error = errors.error.mean(axis=2)
    labels = np.unique(errors.candidates[:, 1])
    per_label = np.stack([error[:, errors.candidates[:, 1] == label].min(axis=1) for label in labels], axis=1)
    best, second = np.partition(per_label, 1, axis=1)[:, :2].T
    return float(np.median((second - best) / best))


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
