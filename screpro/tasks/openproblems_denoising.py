"""OpenProblems' denoising task (scDiff E.8, Table 12): molecular cross-validation of scDiff and of every baseline.

The molecules of every cell are dealt out, nine in ten to a training part; a method sees that part alone and its answer
is scored against the rest (``screpro.metrics.denoising``). OpenProblems deals once, with seed 0; here several times.
It tunes nothing either; here settings are chosen by the same score on a second dealing, of the training part of the
first, by the same rule for every method.

How scDiff answers is a reading of ours (``openproblems_molecules``); other readings of the same trained network (later
steps, no context, several draws, sampling) are scored beside it.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines import imputation
from screpro.errors import ScreproError
from screpro.metrics.count_batches import normalised
from screpro.metrics.denoising import controls, mcv_mse
from screpro.models.scdiff import ScDiff
from screpro.records import Run
from screpro.tasks.denoiser import DenoiserSettings, generate
from screpro.tasks.imputation import Imputer, imputer_grid, train_imputer
from screpro.tasks.openproblems_molecules import (
    SCORES,
    Molecules,
    deal,
    denoise,
    denoised_counts,
    on_leaderboard_scale,
)
from screpro.tasks.tuning import best_setting, checkpoint_file

__all__ = ["CONTROLS", "LEADERBOARD", "METHODS", "STEPS", "Protocol", "compare_denoisers", "study_denoiser"]

CONTROLS = ("no_denoising", "zeros", "perfect")
"""Hand in the training part; nothing (not a control of OpenProblems, and what its score has to be seen with); the test
part, which nobody has."""

METHODS = ["scdiff", "magic", "dca", "alra", "scvi", "knn_smoothing", "gene_mean", *CONTROLS]
"""Every method of the page; scDiff first, then those of Table 12, then extras, then the controls."""

DETERMINISTIC = {"knn_smoothing", "gene_mean", *CONTROLS}
"""Methods without randomness: one run per thinning, recorded without a seed."""

UNITS = {"mcv_mse": "squared log1p", "mcv_poisson": "nats"}

LEADERBOARD = "leaderboard scale"
"""Variant of a score whose value lies between the controls: 0 for no denoising, 1 for perfect."""

STEPS = (0, 100, 300, 500, 700, 999)
"""Time steps that the one network call is studied at."""


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    runs: Sequence[
        tuple[int, int]
    ]  # (seed of the dealing, seed of weights and noise); settings are chosen in the first
    base: DenoiserSettings  # scDiff's starting point
    tune: bool  # choose settings on a second dealing; otherwise published defaults and `base`
    train_fraction: float = 0.9
    threads: int = 1
    grids: Mapping[str, list[dict[str, Any]]] = MappingProxyType({})  # settings to try instead of a baseline's grid


def compare_denoisers(
    run: Run,
    counts: sp.csr_matrix,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[tuple[int, int], Imputer] = MappingProxyType({}),
) -> None:
    """Run every method in every run of `protocol` and add its rows to `run`; what is there is not measured again.

    Parameters
    ----------
    run
        Where the rows go: both scores as they are and on the leaderboard's scale, and seconds.
    counts
        (n, G) raw counts.
    protocol, methods
        How they are dealt out and what is run on them.
    trained
        scDiff networks that are there already, by (thinning, seed); used where nothing is tuned.

    Raises
    ------
    ScreproError
        Unknown method, or whatever `deal` and a baseline refuse.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ScreproError(
            "A denoiser is named by its key.", got=", ".join(unknown), fix=f"choose from {', '.join(METHODS)}"
        )
    from tqdm import tqdm

    once = dict.fromkeys((thinning, None) for thinning, _ in protocol.runs)
    units = [(method, *one) for method in methods for one in (once if method in DETERMINISTIC else protocol.runs)]
    for method, thinning, seed in tqdm(units, desc=f"{protocol.dataset}, denoising", unit="run", disable=None):
        unit = {"dataset": protocol.dataset, "split": f"thinning {thinning}", "method": method, "seed": seed}
        if run.done(**unit, metric="mcv_mse"):
            continue
        options = _chosen(run, counts, protocol, method)
        parts = deal(counts, thinning, train_fraction=protocol.train_fraction)
        started, network = time.monotonic(), None
        if method == "scdiff":
            network = None if protocol.tune else trained.get((thinning, seed))
            seconds = network.seconds if network else 0.0
            network = network or _train(run, protocol, parts, options, seed)
            found = denoised_counts(denoise(network.model, parts.x, seed=seed), parts.train)
        else:
            seconds, found = 0.0, _answer(method, parts, options, seed or 0, protocol.threads)
        seconds += time.monotonic() - started
        sizes = {"n_real": parts.train.shape[0], "n_genes": parts.train.shape[1]}
        for metric, score in SCORES.items():
            value = score(found, train=parts.train, test=parts.test)
            rows = [("", value, UNITS[metric], "lower")]
            scaled = on_leaderboard_scale(value, controls(score, train=parts.train, test=parts.test))
            rows.append((LEADERBOARD, scaled, "fraction", "higher"))
            for variant, number, name, direction in rows:
                shown = {"metric": metric, "metric_variant": variant, "value": number}
                run.add(**unit, **sizes, **shown, item="Table 12", unit=name, direction=direction)
        run.add(**unit, **sizes, item="Table 10", metric="fit_predict", value=seconds, unit="s", direction="lower")
        if network is not None:
            study_denoiser(run, network.model, parts, unit=unit)
            _checkpoint(run, protocol, options, seed, parts).unlink(missing_ok=True)


def study_denoiser(run: Run, model: ScDiff, parts: Molecules, *, unit: Mapping[str, Any]) -> dict[str, float]:
    """`mcv_mse` of one trained scDiff under other readings, by name; also added to `run` (X-20).

    Readings: one call at each of `STEPS` with and without the cell as context; ten draws at t = 0; cells sampled with
    the whole cell as context (DDIM, 20 steps); and the answer at t = 0 left as it is, without the rescaling to 10 000
    that the task applies to every method.
    """
    seed = unit["seed"]
    readings: dict[str, np.ndarray] = {}
    for t in STEPS:
        readings[f"t = {t}, context"] = denoise(model, parts.x, t=t, seed=seed)
        readings[f"t = {t}, no context"] = denoise(model, parts.x, t=t, context=False, seed=seed)
    readings["t = 0, context, 10 draws"] = denoise(model, parts.x, draws=10, seed=seed)
    readings["sampled, context"] = generate(model, parts.x, conditions={}, sampler="ddim", steps=20, seed=seed)
    scores = {
        name: mcv_mse(denoised_counts(values, parts.train), train=parts.train, test=parts.test)
        for name, values in readings.items()
    }
    truth = normalised(parts.test.toarray().astype(np.float64))
    plain = np.maximum(readings[f"t = {STEPS[0]}, context"], 0)
    scores["t = 0, context, not rescaled"] = float(np.square(plain - truth).mean())
    for name, value in scores.items():
        run.add(
            **unit,
            item="X-20",
            metric="mcv_mse",
            metric_variant=name,
            n_real=parts.train.shape[0],
            n_genes=parts.train.shape[1],
            value=value,
            unit=UNITS["mcv_mse"],
            direction="lower",
        )
    return scores


def _answer(method: str, parts: Molecules, options: dict[str, Any], seed: int, threads: int) -> Any:
    """Expected counts at training depth by a baseline or a control."""
    if method in CONTROLS:
        nothing = sp.csr_matrix(parts.train.shape, dtype=np.float32)
        return {"no_denoising": parts.train, "zeros": nothing, "perfect": parts.test}[method]
    found = imputation.run(method, parts.train, seed=seed, threads=threads, options=options)
    return denoised_counts(found, parts.train)


def _chosen(run: Run, counts: sp.csr_matrix, protocol: Protocol, method: str) -> dict[str, Any]:
    """Options with the smallest `mcv_mse` on a second dealing, of the training part of the first thinning."""
    grid = _grid(method, protocol)
    if len(grid) == 1:
        return grid[0]
    thinning, seed = protocol.runs[0]
    work = {"dataset": protocol.dataset, "split": f"thinning {thinning}, validation", "method": method, "seed": seed}
    own = _inner(counts, thinning, protocol.train_fraction)

    def score(options: dict[str, Any]) -> float:
        if method == "scdiff":
            network = _train(run, protocol, own, options, seed)
            found = denoised_counts(denoise(network.model, own.x, seed=seed), own.train)
            _checkpoint(run, protocol, options, seed, own).unlink(missing_ok=True)
        else:
            found = _answer(method, own, options, seed, protocol.threads)
        return mcv_mse(found, train=own.train, test=own.test)

    row = {"metric": "mcv_mse", "unit": UNITS["mcv_mse"], "n_real": own.train.shape[0], "n_genes": own.train.shape[1]}
    return best_setting(run, grid, score, work=work, direction="lower", **row)


def _inner(counts: sp.csr_matrix, thinning: int, train_fraction: float) -> Molecules:
    first = deal(counts, thinning, train_fraction=train_fraction)
    return deal(first.train, 1_000_003 + thinning, train_fraction=train_fraction)


def _grid(method: str, protocol: Protocol) -> list[dict[str, Any]]:
    if method == "scdiff":
        settings = imputer_grid(protocol.base) if protocol.tune else [protocol.base]
        grid = [asdict(setting) for setting in settings]
    elif method in CONTROLS:
        grid = [{}]
    else:
        grid = list(imputation.IMPUTERS[method].grid)
    grid = list(protocol.grids.get(method, grid))
    return grid if protocol.tune else grid[:1]


def _checkpoint(run: Run, protocol: Protocol, options: dict, seed: int, parts: Molecules) -> Path:
    """One file per unit of work; the molecules tell one thinning from another."""
    cells = hashlib.sha256(parts.train.data.tobytes()).hexdigest()
    return checkpoint_file(run, protocol.dataset, seed, cells, options)


def _train(run: Run, protocol: Protocol, parts: Molecules, options: dict, seed: int) -> Imputer:
    return train_imputer(
        parts.x,
        DenoiserSettings(**options),
        seed=seed,
        threads=protocol.threads,
        checkpoint=_checkpoint(run, protocol, options, seed, parts),
        title=f"scDiff on {protocol.dataset}",
    )
