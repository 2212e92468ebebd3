"""The experiment behind the framework page: targets (S14) and wiring of the context (S15) under one protocol.

Each seed has a split, initial weights, noise and an imputation mask of its own, shared by all methods, so differences
are paired. The learning rate of each target is chosen on validation data of the first seed, for annotation and for
imputation separately; parallel heads take the rate of scDiff, with which they differ in the wiring alone. No split or
mask is shared with training: scores are of test cells, or of hidden entries.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.data.masks import mar_mask
from screpro.metrics.classification import macro_f1
from screpro.models.scdiff import ScDiff
from screpro.processes.gaussian import scaled_linear
from screpro.records import Run
from screpro.tasks.annotation import Labelled
from screpro.tasks.cells import Cells
from screpro.tasks.denoiser import DenoiserSettings
from screpro.tasks.diffusion_classifier import predict
from screpro.tasks.framework import (
    HIDDEN_SHARES,
    METHODS,
    READ_AT,
    TARGETS,
    candidate_errors,
    clean_factor,
    imputation_score,
    impute_once,
    parts,
    reconstruction_error,
    train_on_cells,
    train_on_visible,
    with_rate,
)

__all__ = ["Protocol", "candidates_of", "compare_annotation", "compare_imputation"]

NOISE_TARGETS = ("scdiff_epsilon", "scdiff_epsilon_skip")


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    seeds: Sequence[int]
    base: DenoiserSettings
    rates: Sequence[float]  # learning rates to choose from; one means no tuning
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    draws: int = 5  # noise draws of the classifier
    threads: int = 1


def candidates_of(model: ScDiff, train: Cells) -> np.ndarray:
    """(pairs, 2) rows of the batch and label tables seen in training; batch 0 where there is no batch table."""
    batch = np.zeros_like(train.cell_type) if model.batch_table is None else train.batch + 1
    return np.unique(np.stack([batch, train.cell_type + 1], axis=1), axis=0)


def compare_annotation(
    run: Run,
    labelled: Labelled,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[tuple[str, int], ScDiff] = MappingProxyType({}),
) -> None:
    """Train and score the annotators and add their rows.

    `trained` holds networks that are there already, by (method, seed); they are used where nothing is tuned.

    Rows: macro F1 by the error in the network's own target (variant ""), in units of the clean cell, and per time
    step; reconstruction error on test cells, its part at every share of hidden genes; squared error of the clean cell
    at every time step with nothing visible; and the trivial answers.
    """
    for seed in protocol.seeds:
        unit = {"dataset": protocol.dataset, "split": str(seed), "seed": seed}
        train, _, test = parts(labelled, split=seed, test=protocol.test_fraction, validation=0.0)
        _trivial_annotation(run, unit, train, test)
        for method in methods:
            if run.done(**unit, method=method, metric="reconstruction_error", metric_variant=""):
                continue
            rate = _annotation_rate(run, labelled, protocol, method)
            model = trained.get((method, seed)) if rate is None else None
            model = model or _annotator(protocol, labelled, method, train, rate, seed)
            _score_annotator(run, unit | {"method": method}, model, train, test, protocol)


def compare_imputation(run: Run, labelled: Labelled, protocol: Protocol, methods: Sequence[str] = TARGETS) -> None:
    """Train and score the networks that impute, all cells, a tenth of the non-zero counts hidden (protocol 1.4).

    Variant "" of the clean target is read at t = 0, as the authors do. A noise target cannot be: at t = 0 its clean
    cell is x_t itself, whose hidden entries are noise around zero. It is read where it correlates best with the very
    entries it is scored on, an advantage that the clean target does not get.
    """
    cells = labelled.cells
    for seed in protocol.seeds:
        unit = {"dataset": protocol.dataset, "split": f"mask {seed}", "seed": seed}
        hidden, visible = _masked(cells.counts, cells.x, seed)
        sizes = {"n_real": hidden.nnz, "n_genes": cells.x.shape[1]}
        mean = np.asarray(visible.mean(0)).ravel()[hidden.tocoo().col]
        shared = unit | sizes | {"metric": "imputation_pearson_pooled", "item": "S2-a", "direction": "higher"}
        run.add(**shared, method="gene_mean", value=imputation_score(cells.x, hidden, mean))
        for method in (m for m in methods if m in TARGETS):
            if run.done(**unit, method=method, metric="imputation_pearson_pooled", metric_variant=""):
                continue
            rate = _imputation_rate(run, labelled, protocol, method)
            scores = _imputation_scores(protocol, method, cells.x, visible, hidden, rate, seed)
            for t, value in scores.items():
                run.add(**shared, method=method, metric_variant=f"t = {t}", value=value)
            run.add(**shared, method=method, value=_headline(method, scores))


def _headline(method: str, scores: dict[int, float]) -> float:
    return max(scores.values()) if method in NOISE_TARGETS else scores[0]


def _annotator(
    protocol: Protocol, labelled: Labelled, method: str, train: Cells, rate: float | None, seed: int
) -> ScDiff:
    return train_on_cells(
        method,
        train,
        n_types=len(labelled.types),
        n_batches=len(labelled.batches),
        settings=with_rate(protocol.base, rate),
        seed=seed,
        threads=protocol.threads,
    )


def _score_annotator(run: Run, unit: dict, model: ScDiff, train: Cells, test: Cells, protocol: Protocol) -> None:
    errors = candidate_errors(model, test, candidates_of(model, train), seed=unit["seed"], draws=protocol.draws)
    factor = clean_factor(model, errors.times, schedule=scaled_linear())
    in_cells = errors._replace(error=errors.error * factor)
    sizes = {"n_real": len(test.cell_type), "n_genes": test.x.shape[1]}
    ways = {"": predict(errors), "in units of the clean cell": predict(in_cells)}
    ways |= {f"t = {t}": predict(errors, times=np.array([k])) for k, t in enumerate(errors.times)}
    for variant, found in ways.items():
        run.add(
            **unit,
            **sizes,
            item="C2-a" if unit["method"] == "parallel_heads" else "S2-a",
            metric="macro_f1",
            metric_variant=variant,
            value=macro_f1(test.cell_type, found - 1),
            unit="fraction",
            direction="higher",
        )
    table = reconstruction_error(model, test, seed=unit["seed"])
    shared = {"item": "S2-a", "metric": "clean_error", "direction": "lower"}
    for t, value in zip(scaled_linear().bins(table.shape[1]).tolist(), table[HIDDEN_SHARES.index(1.0)], strict=True):
        run.add(**unit, **sizes, **shared, metric_variant=f"t = {t}", value=float(value))
    shared = {"item": "C2-a", "metric": "reconstruction_error", "direction": "lower"}
    for share, value in zip(HIDDEN_SHARES, table.mean(axis=1), strict=True):
        run.add(**unit, **sizes, **shared, metric_variant=f"{share:.0%} hidden", value=float(value))
    run.add(**unit, **sizes, **shared, value=float(table.mean()))


def _trivial_annotation(run: Run, unit: dict, train: Cells, test: Cells) -> None:
    """The largest type for every cell, and the mean training cell for every cell."""
    largest = np.bincount(train.cell_type).argmax()
    mean = np.asarray(train.x.mean(0)).ravel()
    error = float(np.square(test.x.toarray() - mean).mean())
    sizes = {"n_real": len(test.cell_type), "n_genes": test.x.shape[1]}
    value = macro_f1(test.cell_type, np.full_like(test.cell_type, largest))
    run.add(**unit, **sizes, item="S2-a", method="majority", metric="macro_f1", value=value, direction="higher")
    run.add(
        **unit, **sizes, item="C2-a", method="gene_mean", metric="reconstruction_error", value=error, direction="lower"
    )


def _annotation_rate(run: Run, labelled: Labelled, protocol: Protocol, method: str) -> float | None:
    """Learning rate with the best macro F1 on validation cells of the first seed."""
    if len(protocol.rates) < 2:
        return None
    method = "scdiff" if method == "parallel_heads" else method
    seed = protocol.seeds[0]
    train, validation, _ = parts(
        labelled, split=seed, test=protocol.test_fraction, validation=protocol.validation_fraction
    )

    def score(rate: float) -> float:
        model = _annotator(protocol, labelled, method, train, rate, seed)
        errors = candidate_errors(model, validation, candidates_of(model, train), seed=seed, draws=protocol.draws)
        return macro_f1(validation.cell_type, predict(errors) - 1)

    return _best(run, protocol, method, "macro_f1", score)


def _imputation_rate(run: Run, labelled: Labelled, protocol: Protocol, method: str) -> float | None:
    """Learning rate with the best correlation on a tenth of the visible entries, hidden in addition."""
    if len(protocol.rates) < 2:
        return None
    seed, cells = protocol.seeds[0], labelled.cells
    hidden, outer = _masked(cells.counts, cells.x, seed)
    left = cells.counts - cells.counts.multiply(hidden).tocsr()
    left.eliminate_zeros()
    validation, inner = _masked(left, outer, seed + 1_000_003)

    def score(rate: float) -> float:
        return _headline(method, _imputation_scores(protocol, method, cells.x, inner, validation, rate, seed))

    return _best(run, protocol, method, "imputation_pearson_pooled", score)


def _best(run: Run, protocol: Protocol, method: str, metric: str, score: Callable[[float], float]) -> float:
    """The best of the protocol's rates, each measured once and left as a row."""
    unit = {"dataset": protocol.dataset, "split": f"{protocol.seeds[0]}, validation", "method": method}
    unit |= {"seed": protocol.seeds[0], "metric": metric}
    for rate in protocol.rates:
        if not run.done(**unit, metric_variant=f"learning rate {rate:g}"):
            value = score(rate)
            run.add(**unit, item="tuning", metric_variant=f"learning rate {rate:g}", value=value, direction="higher")
    rows = run.frame()
    for column, value in unit.items():
        rows = rows[rows[column] == value]
    found = dict(zip(rows["metric_variant"], rows["value"], strict=True))
    return max(protocol.rates, key=lambda rate: found[f"learning rate {rate:g}"])


def _imputation_scores(
    protocol: Protocol,
    method: str,
    x: sp.csr_matrix,
    visible: sp.csr_matrix,
    hidden: sp.csr_matrix,
    rate: float | None,
    seed: int,
) -> dict[int, float]:
    """Pooled correlation by time step at which the answer is read."""
    settings = with_rate(protocol.base, rate)
    model = train_on_visible(method, visible, settings=settings, seed=seed, threads=protocol.threads)
    return {t: imputation_score(x, hidden, impute_once(model, visible, hidden, t=t, seed=seed)) for t in READ_AT}


def _masked(counts: sp.csr_matrix, x: sp.csr_matrix, seed: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Hidden entries (CSR bool), and `x` without them. Normalised before masking, as the authors do."""
    hidden = mar_mask(counts, rng=np.random.default_rng(seed))
    visible = sp.csr_matrix(x - x.multiply(hidden))
    visible.eliminate_zeros()
    return hidden, visible.astype(np.float32)
