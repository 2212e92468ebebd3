"""The experiment behind the embeddings page: three sizes of scLDM's auto-encoder and other embeddings (section 4.3).

All networks learn from the same cells, none of which is scored; where these are of other studies (a pool), every method
has `POOLED` behind its name in the rows, which so stand beside those of the study itself and never among them. The
sizes differ in width and depth, as in the paper: same data, passes, number and width of latent tokens, so the embedding
has the same length. Each size gets the learning rate that reconstructs validation cells best: at one rate for all, the
rate of the narrow network decides which size is ahead. Nothing else is tuned for any method; the published default of
scVI comes with a version as wide as the protocol keeps components.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines import embedding as baselines
from screpro.errors import ScreproError
from screpro.metrics.reconstruction import mse_nb_draw, pcc_nb_draw, re_nb_nll
from screpro.records import Run
from screpro.tasks import autoencoder
from screpro.tasks.autoencoder import AutoEncoderSettings, Trained
from screpro.tasks.autoencoder_rates import best_rate
from screpro.tasks.embedding import (
    METRICS,
    POSITIVE,
    EmbeddingCells,
    GroupScores,
    combine,
    curves,
    principal_components,
    score_groups,
)
from screpro.tasks.embedding_pool import called
from screpro.tasks.reconstruction import DIRECTIONS, global_law, scores
from screpro.tasks.tuning import checkpoint_file, progress

__all__ = [
    "GRID",
    "METHODS",
    "PENALISED",
    "SIZES",
    "TITLES",
    "Protocol",
    "compare_embeddings",
    "embed",
    "evaluate",
    "with_best_rates",
]

SIZES = ("small", "medium", "large")
"""The three auto-encoders, for the paper's 20M, 70M and 270M."""

METHODS = (*SIZES, *baselines.EMBEDDINGS)

TITLES = {size: f"scLDM auto-encoder, {size}" for size in SIZES} | {
    name: entry.title for name, entry in baselines.EMBEDDINGS.items()
}
TITLES["global_mean"] = "One profile for all cells"
"""Every method of the page, and how a table prints it."""

PENALISED = "L2 penalty"
"""Variant of the scores with a penalty on the regression, which the paper does without."""

GRID = np.linspace(0, 1, 21)
"""Where the curves of Figure 14 are recorded."""

SAMPLE = 512
"""Training and scored cells of which reconstruction is measured as well; held-out cells all count."""


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    split: int  # noted in the rows; it chose the cells, and chooses the folds
    seeds: Sequence[int]  # of weights, order of the cells and draws
    sizes: Mapping[str, AutoEncoderSettings]  # of every one of SIZES
    options: Mapping[str, dict[str, Any]] = MappingProxyType({})  # of the other embeddings
    components: int = 128
    threads: int = 1


def with_best_rates(
    run: Run, cells: EmbeddingCells, protocol: Protocol, rates: Sequence[float], methods: Sequence[str] = METHODS
) -> Protocol:
    """The protocol with the rate for each size that `best_rate` finds on its training cells, with the first seed.

    Sizes that are not among `methods` keep theirs, and all do where `rates` are empty.
    """
    work = {"dataset": protocol.dataset, "split": protocol.split, "seed": protocol.seeds[0]}
    found = {
        size: replace(
            own,
            learning_rate=best_rate(
                run,
                cells.train,
                own,
                rates,
                work=work | {"method": called(size, bool(cells.pooled))},
                threads=protocol.threads,
            ),
        )
        for size, own in protocol.sizes.items()
        if size in methods and rates
    }
    return protocol._replace(sizes={**protocol.sizes, **found})


def compare_embeddings(
    run: Run,
    cells: EmbeddingCells,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[tuple[str, int], Trained] = MappingProxyType({}),
    external: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Make every embedding, classify with it, and add its rows to `run`; what is measured is not measured again.

    Parameters
    ----------
    run
        Where the rows go.
    cells, protocol, methods
        Cells, how they are used and what is run on them.
    trained
        Auto-encoders that are there already, by (size, seed).
    external
        Vectors (m, k) of the scored cells by name of the method, from ``screpro.baselines.embedding.external``.

    Raises
    ------
    ScreproError
        A method is unknown, or a file's name is that of a method.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown or (taken := [name for name in external if name in METHODS]):
        raise ScreproError(
            "A method of the page is named by its key, an embedding from a file by another name.",
            got=", ".join(unknown or taken),
            fix=f"the keys are {', '.join(METHODS)}",
        )
    if any(method in SIZES for method in methods):
        _floor(run, cells, protocol)
    _pool(run, cells, protocol)
    units = [(method, seed) for method in methods for seed in _seeds(method, protocol)]
    for method, seed in progress(units, protocol.dataset):
        unit = {"dataset": protocol.dataset, "split": str(protocol.split), "seed": seed}
        unit["method"] = called(method, bool(cells.pooled))
        if run.done(**unit, metric="fit_embed"):  # the last row of a unit
            continue
        number, started = seed or 0, time.monotonic()
        if method in SIZES:
            file = checkpoint_file(
                run, protocol.dataset, protocol.split, method, number, asdict(protocol.sizes[method])
            )
            found = trained.get((method, number)) or autoencoder.train(
                cells.train, protocol.sizes[method], seed=number, threads=protocol.threads, checkpoint=file,
                title=f"{method} auto-encoder",
            )  # fmt: skip
            vectors = embed(found, cells.scored)
            seconds = found.fit.seconds
            _reconstruction(run, unit, found, cells, seed=number)
            file.unlink(missing_ok=True)
        else:
            options = protocol.options.get(method)
            vectors = baselines.run(
                method, cells.train, cells.scored, seed=number, threads=protocol.threads, options=options
            )
            seconds = time.monotonic() - started
        direct = method in baselines.EMBEDDINGS and baselines.EMBEDDINGS[method].direct
        _classification(run, unit, vectors, cells, protocol, direct=direct)
        sizes = {"n_real": cells.train.shape[0], "n_genes": len(cells.genes)}
        run.add(**unit, **sizes, item="X-1", metric="fit_embed", value=seconds, unit="s", direction="lower")
    for method, vectors in external.items():
        unit = {"dataset": protocol.dataset, "split": str(protocol.split), "method": method, "seed": None}
        _classification(run, unit, vectors, cells, protocol, direct=False)


def embed(trained: Trained, counts: sp.csr_matrix) -> np.ndarray:
    """Latents of raw counts (n, G), the m tokens of a cell behind each other: (n, m q)."""
    return autoencoder.encode(trained.model, counts).flatten(1).numpy()


def evaluate(
    vectors: np.ndarray | sp.csr_matrix, cells: EmbeddingCells, *, components: int, split: int, direct: bool = False
) -> dict[str, dict[str, GroupScores]]:
    """Scores of an embedding by variant: "" is the paper's protocol.

    Parameters
    ----------
    vectors
        (m, k) of the scored cells.
    direct
        No principal components, and only with a penalty: for genes, which are more than a regression without one
        could bear. The variant is "" all the same.
    """
    if direct:
        return {"": score_groups(vectors, cells, penalty="l2", seed=split)}
    x = principal_components(vectors, components)
    return {
        penalty: score_groups(x, cells, penalty="l2" if penalty else None, seed=split) for penalty in ("", PENALISED)
    }


def _seeds(method: str, protocol: Protocol) -> Sequence[int | None]:
    fixed = method in baselines.EMBEDDINGS and baselines.EMBEDDINGS[method].deterministic
    return [None] if fixed else protocol.seeds


def _reconstruction(run: Run, unit: Mapping[str, Any], trained: Trained, cells: EmbeddingCells, *, seed: int) -> None:
    """Table 16: held-out cells of the training groups, training cells, and the scored cells, which are of others."""
    number = sum(parameter.numel() for parameter in trained.model.parameters())
    common = {"n_genes": len(cells.genes), "item": "Table 16"}
    run.add(**unit, **common, metric="parameters", value=number, direction="lower")
    for variant, counts in _rebuilt(cells).items():
        mean, theta = autoencoder.reconstruct(trained.model, counts)
        for metric, value in scores(counts, mean, theta, seed=seed).items():
            run.add(
                **unit, **common, metric=metric, metric_variant=variant, value=value, direction=DIRECTIONS[metric],
                n_real=counts.shape[0], unit="nats per cell" if metric == "re_nb_nll" else "",
            )  # fmt: skip


def _floor(run: Run, cells: EmbeddingCells, protocol: Protocol) -> None:
    """The three scores of Table 16 of a reconstruction that is the same for all cells: nothing learned."""
    name = called("global_mean", bool(cells.pooled))
    unit = {"dataset": protocol.dataset, "split": str(protocol.split), "method": name, "seed": None}
    if run.done(**unit):
        return
    law = global_law(cells.train)
    for variant, counts in _rebuilt(cells).items():
        mean, theta = law(counts)
        drawn = {"pcc_nb_draw": pcc_nb_draw, "mse_nb_draw": mse_nb_draw}
        found = {"re_nb_nll": re_nb_nll(counts, mean, theta)}
        found |= {name: score(counts, mean, theta, rng=np.random.default_rng(0)) for name, score in drawn.items()}
        for metric, value in found.items():
            run.add(
                **unit, item="Table 16", metric=metric, metric_variant=variant, value=value,
                direction=DIRECTIONS[metric], n_real=counts.shape[0], n_genes=len(cells.genes),
                unit="nats per cell" if metric == "re_nb_nll" else "",
            )  # fmt: skip


def _pool(run: Run, cells: EmbeddingCells, protocol: Protocol) -> None:
    """How many cells each data set of the pool gave, and the genes they share with the scored cells."""
    unit = {"dataset": protocol.dataset, "split": str(protocol.split), "method": called("pool", True), "seed": None}
    common = {"item": "X-1", "n_genes": cells.shared, "unit": "cells", "direction": "higher"}
    for name, number in cells.pooled.items():
        run.add(**unit, **common, metric="training_cells", metric_variant=name, value=number)


def _rebuilt(cells: EmbeddingCells) -> dict[str, sp.csr_matrix]:
    """Cells whose reconstruction is scored, by variant; the first is what the claim is about."""
    return {
        "size": cells.held_out,
        "size, training cells": _sample(cells.train),
        "size, scored cells": _sample(cells.scored),
    }


def _sample(counts: sp.csr_matrix) -> sp.csr_matrix:
    """The same `SAMPLE` cells for every method, all if there are fewer."""
    if counts.shape[0] <= SAMPLE:
        return counts
    return counts[np.sort(np.random.default_rng(0).choice(counts.shape[0], SAMPLE, replace=False))]


def _classification(
    run: Run, unit: Mapping[str, Any], vectors, cells: EmbeddingCells, protocol: Protocol, *, direct: bool
) -> None:
    """Rows of Table 17 (two classes) or 18, the error over folds, the scores of each group, and the curves."""
    two = len(cells.classes) == 2
    found = evaluate(vectors, cells, components=protocol.components, split=protocol.split, direct=direct)
    common = dict(unit) | {"n_real": len(cells.target), "n_genes": len(cells.genes)}
    higher = {"unit": "fraction", "direction": "higher"}
    lower = {"unit": "fraction", "direction": "lower"}
    item = "Table 17" if two else "Table 18"
    for variant, by_group in found.items():
        for metric in METRICS + (POSITIVE if two else ()):
            mean, error = combine(by_group, metric)
            run.add(**common, item=item, metric=metric, metric_variant=variant, value=mean, **higher)
            if not variant:
                run.add(**common, item=item, metric="fold_error", metric_variant=metric, value=error, **lower)
        separable = np.mean([own.separable for own in by_group.values()])
        run.add(**common, item="X-2", metric="separable", metric_variant=variant, value=separable, **lower)
    for group, own in found[""].items():
        for metric in ("macro_f1", "roc_auc"):
            value = own.values[metric].mean()
            run.add(**common, item=item, metric=metric, metric_variant=f"{group} alone", value=value, **higher)
    if unit["seed"] in (None, protocol.seeds[0]):
        rise, precision = curves(found[""], GRID)
        for x, up, right in zip(GRID, rise, precision, strict=True):
            point = {"item": "Figure 14", "metric_variant": f"{x:.2f}", **higher}
            run.add(**common, **point, metric="roc_curve", value=up)
            run.add(**common, **point, metric="pr_curve", value=right)
