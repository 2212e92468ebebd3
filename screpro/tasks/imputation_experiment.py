"""The experiment behind the imputation page: scDiff and every baseline on the same hidden entries (section 4.1.2).

A tenth of the non-zero counts is hidden, every method sees the rest, and is scored on the hidden entries alone. The
paper draws one mask for all runs; here the seed of the mask is the `split`. Hyper-parameters are chosen on a further
tenth, hidden from the visible entries of the first mask, by the same rule for every method; then each method runs on
the masks with the chosen setting: with every seed on the first mask, with the first seed on the others.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines import imputation as baselines
from screpro.data.masks import ImputationMask, hide, mar_mask
from screpro.errors import ScreproError
from screpro.metrics.imputation import imputation_pearson_per_cell, imputation_pearson_pooled
from screpro.records import Run
from screpro.tasks.denoiser import DenoiserSettings
from screpro.tasks.imputation import Imputer, imputer_grid, train_imputer
from screpro.tasks.imputation_ceiling import ORACLE, gene_type_oracle
from screpro.tasks.tuning import best_setting, progress

__all__ = ["METHODS", "Protocol", "compare_methods", "draw_mask", "validation_mask"]

SCDIFF = ["scdiff", "scdiff_inpainting"]
"""One network, asked once or sampled with all steps."""

METHODS = [*SCDIFF, *baselines.IMPUTERS]
"""Every method of the page; scDiff first."""

DETERMINISTIC = {"gene_mean", "knn_smoothing", "magic", "alra", "saver"}
"""One run per mask, recorded without a seed: at most the start of a truncated SVD is random."""

SAME_CELLS = "one step, the inpainted cells"
"""Variant of scDiff's rows that `scdiff_inpainting` is compared with."""

LATE = {1: "one step at t = 999", 5: "mean of 5 steps at t = 999"}
"""Numbers of calls on pure noise, and the variants of scDiff's rows that they make."""

CLEAN = {"item": "X-3", "variant": "clean"}
"""Rows of the variant in which counts are hidden before they are normalised."""

METRICS = {
    "imputation_pearson_pooled": imputation_pearson_pooled,
    "imputation_pearson_per_cell": imputation_pearson_per_cell,
}


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    splits: Sequence[int]  # seeds of the mask
    seeds: Sequence[int]  # seeds of weights and noise, all of them on the first mask
    base: DenoiserSettings  # scDiff's starting point
    tune: bool  # choose settings on validation entries; otherwise published defaults and `base`
    share: float = 0.1  # of the non-zero counts that is hidden
    threads: int = 1
    grids: Mapping[str, list[dict[str, Any]]] = MappingProxyType({})  # settings to try instead of a method's grid
    clean: Sequence[str] = ()  # methods that are also run with counts hidden before they are normalised
    samples: Sequence[int] = (1, 5)  # numbers of inpainting samples whose mean is scored
    inpainted: int | None = None  # cells that are inpainted, which takes a thousand network calls each; None: all


def draw_mask(counts: sp.csr_matrix, split: int, *, share: float = 0.1, clean: bool = False) -> ImputationMask:
    """The mask of one split: entries hidden by ``default_rng(split)``; scDiff's own is split 10."""
    return hide(counts, mar_mask(counts, share=share, rng=np.random.default_rng(split)), clean=clean)


def validation_mask(mask: ImputationMask, split: int, *, share: float = 0.1) -> ImputationMask:
    """A further share hidden from what is visible, on the same scale; the entries of `mask` stay hidden, unscored."""
    rng = np.random.default_rng([split, 1])
    return hide(mask.counts, mar_mask(mask.counts, share=share, rng=rng), size=mask.size)


def compare_methods(
    run: Run,
    counts: sp.csr_matrix,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    types: np.ndarray | None = None,
    trained: Mapping[tuple[int, int], Imputer] = MappingProxyType({}),
) -> None:
    """Run every method on every seed of the first mask and the first seed of every other; add its rows to `run`.

    What an interrupted run has already measured is not measured again. Besides the two correlations, each unit
    records its seconds, and each tried setting its validation score.

    Parameters
    ----------
    run
        Where the rows go.
    counts
        (n, G) CSR of raw counts, no empty cells.
    protocol, methods
        How entries are hidden and what is run on them.
    types
        (n,) codes of the cell types for the oracle; without them it is left out.
    trained
        scDiff networks that are there already, by (split, seed); used where their settings are the chosen ones.

    Raises
    ------
    ScreproError
        Unknown method.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ScreproError(
            "A method of the page is named by its key.",
            got=", ".join(unknown),
            fix=f"choose among {', '.join(METHODS)}",
        )
    work = _Work(run, counts, protocol, dict(trained))
    for split in protocol.splits:
        if types is not None and not work.done(split, ORACLE, None):
            mask = work.mask(split)
            work.score(mask, gene_type_oracle(mask, types), split, ORACLE, None)
    first, *rest = protocol.splits
    pairs = [(first, seed) for seed in protocol.seeds] + [(split, protocol.seeds[0]) for split in rest]
    for split, seed in progress(pairs, protocol.dataset):
        for method in (m for m in methods if m in SCDIFF):
            if not work.done(split, method, seed):
                work.scdiff(method, split, seed)
        work.forget(split, seed)
    others = [m for m in methods if m not in SCDIFF]
    single = [(split, None) for split in protocol.splits]
    units = [(m, *pair) for m in others for pair in (single if m in DETERMINISTIC else pairs)]
    for method, split, seed in progress(units, protocol.dataset):
        if not work.done(split, method, seed):
            work.baseline(method, split, seed)


class _Work:
    """One comparison: its masks, chosen settings and trained networks, each made when first needed."""

    def __init__(self, run: Run, counts: sp.csr_matrix, protocol: Protocol, trained: dict[tuple[int, int], Imputer]):
        self.run, self.counts, self.protocol, self.trained = run, counts, protocol, trained
        self.first = (protocol.splits[0], protocol.seeds[0])
        self._masks: dict[tuple[int, bool], ImputationMask] = {}
        self._files: list[Path] = []

    # --- masks and scores ---------------------------------------------------------------------------------

    def mask(self, split: int, *, clean: bool = False) -> ImputationMask:
        if (split, clean) not in self._masks:
            self._masks[split, clean] = draw_mask(self.counts, split, share=self.protocol.share, clean=clean)
        return self._masks[split, clean]

    def inpainted(self, mask: ImputationMask) -> ImputationMask:
        """The cells that are inpainted, spread evenly over the matrix."""
        n, number = mask.hidden.shape[0], self.protocol.inpainted
        return mask if number is None or number >= n else mask.take(np.linspace(0, n - 1, number).astype(int))

    def done(self, split: int, method: str, seed: int | None) -> bool:
        # seconds are recorded last: with them, every row of the unit is there
        metric = "fit_predict" if method != ORACLE else "imputation_pearson_per_cell"
        return self.run.done(dataset=self.protocol.dataset, split=str(split), method=method, seed=seed, metric=metric)

    def score(
        self,
        mask: ImputationMask,
        found: np.ndarray,
        split: int | str,
        method: str,
        seed: int | None,
        *,
        item: str = "Table 2a",
        variant: str = "",
        metrics: Sequence[str] = tuple(METRICS),
    ) -> float:
        """Add the correlations of `found` (hidden.nnz,); returns the last."""
        if np.ptp(found) == 0:  # nothing learned: a constant has no correlation, which counts as none
            values = dict.fromkeys(metrics, 0.0)
        else:
            truth, imputed = mask.matrix(mask.truth), mask.matrix(found)
            values = {name: METRICS[name](truth, imputed, mask.hidden) for name in metrics}
        for name, value in values.items():
            self.run.add(
                item=item,
                dataset=self.protocol.dataset,
                split=str(split),
                method=method,
                metric=name,
                metric_variant=variant,
                n_real=mask.hidden.shape[0],
                n_genes=mask.hidden.shape[1],
                seed=seed,
                value=value if np.isfinite(value) else 0.0,
                unit="correlation",
                direction="higher",
            )
        return value

    def seconds(self, split: int, method: str, seed: int | None, value: float) -> None:
        self.run.add(
            item="Table 10",
            dataset=self.protocol.dataset,
            split=str(split),
            method=method,
            metric="fit_predict",
            n_real=self.counts.shape[0],
            n_genes=self.counts.shape[1],
            seed=seed,
            value=value,
            unit="s",
            direction="lower",
        )

    # --- the methods --------------------------------------------------------------------------------------

    def baseline(self, method: str, split: int, seed: int | None) -> None:
        options, mask = self.chosen(method), self.mask(split)
        started = time.monotonic()
        found = self._run_baseline(method, mask, seed, options)
        took = time.monotonic() - started
        self.score(mask, found, split, method, seed)
        if self._is_clean(method, split, seed):
            mask = self.mask(split, clean=True)
            self.score(mask, self._run_baseline(method, mask, seed, options), split, method, seed, **CLEAN)
        self.seconds(split, method, seed, took)

    def scdiff(self, method: str, split: int, seed: int) -> None:
        options, mask = self.chosen("scdiff"), self.mask(split)
        imputer = self._network(mask, options, split, seed)
        started = time.monotonic()
        if method == "scdiff":
            self.score(mask, imputer.one_step(mask, seed=seed), split, method, seed)
            took = time.monotonic() - started
            for calls, variant in LATE.items():
                late = imputer.late(mask, calls=calls, seed=seed)
                self.score(mask, late, split, method, seed, item="X-4", variant=variant)
            if self._is_clean(method, split, seed):
                clean = self.mask(split, clean=True)
                again = self._network(clean, options, f"{split}, clean", seed)
                self.score(clean, again.one_step(clean, seed=seed), split, method, seed, **CLEAN)
        else:
            some = self.inpainted(mask)
            drawn = [imputer.inpaint(some, seed=seed)]
            took = time.monotonic() - started
            self.score(some, drawn[0], split, method, seed)
            # the same cells answered in one step: nothing else differs
            self.score(some, imputer.one_step(some, seed=seed), split, "scdiff", seed, item="X-2", variant=SAME_CELLS)
            if (split, seed) == self.first:
                self._study_samples(some, imputer, drawn)
        self.seconds(split, method, seed, took + imputer.seconds)

    def _study_samples(self, mask: ImputationMask, imputer: Imputer, drawn: list[np.ndarray]) -> None:
        """Correlation of the mean of several samples: what a single one loses by being a sample (X-2)."""
        split, seed = self.first
        n, more = mask.hidden.shape[0], max(self.protocol.samples) - len(drawn)
        if more > 0:  # as further cells of one call: a chain costs least for many cells at a time
            again = imputer.inpaint(mask.take(np.tile(np.arange(n), more)), seed=seed + 1_000_003)
            drawn = [*drawn, *again.reshape(more, -1)]
        for number in self.protocol.samples:
            mean = np.mean(drawn[:number], axis=0)
            variant = f"mean of {number} sample{'s' if number > 1 else ''}"
            self.score(mask, mean, split, "scdiff_inpainting", seed, item="X-2", variant=variant)

    def _run_baseline(self, method: str, mask: ImputationMask, seed: int | None, options: dict) -> np.ndarray:
        dense = baselines.run(
            method, mask.counts, size=mask.size, seed=seed or 0, threads=self.protocol.threads, options=options
        )
        return mask.at_hidden(dense)

    def _is_clean(self, method: str, split: int, seed: int | None) -> bool:
        return method in self.protocol.clean and (split, self.first[1] if seed is None else seed) == self.first

    def _network(self, mask: ImputationMask, options: dict, split: int | str, seed: int) -> Imputer:
        """A trained network; one that was trained before a kill is read from its checkpoint."""
        known = self.trained.get((split, seed))
        if known is not None and known.settings == DenoiserSettings(**options):
            return known
        # one file per unit of work: a killed run finds exactly the training it was in the middle of
        unit = json.dumps([self.protocol.dataset, split, seed, self.protocol.share, options], sort_keys=True)
        name = hashlib.sha256(unit.encode()).hexdigest()[:16]
        file = self.run.folder / "checkpoints" / f"scdiff-{name}.safetensors"
        self._files.append(file)
        imputer = train_imputer(
            mask.x,
            DenoiserSettings(**options),
            seed=seed,
            threads=self.protocol.threads,
            checkpoint=file,
            title=f"scDiff on {self.protocol.dataset}",
        )
        self.trained[split, seed] = imputer
        return imputer

    def forget(self, split: int, seed: int) -> None:
        """Drop the networks of a finished (split, seed) and their files."""
        self.trained.pop((split, seed), None)
        for file in self._files:
            file.unlink(missing_ok=True)
        self._files.clear()

    # --- tuning -------------------------------------------------------------------------------------------

    def chosen(self, method: str) -> dict[str, Any]:
        """Best options on the validation entries of the first mask; each tried setting leaves a row."""
        grid = self._grid(method)
        if len(grid) == 1:
            return grid[0]
        split, seed = self.first
        work = {"dataset": self.protocol.dataset, "split": f"{split}, validation", "method": method}
        work["seed"] = None if method in DETERMINISTIC else seed
        inner = validation_mask(self.mask(split), split, share=self.protocol.share)

        def score(options: dict[str, Any]) -> float:
            if method == "scdiff":
                name = f"{work['split']}, {json.dumps(options, sort_keys=True)}"
                found = self._network(inner, options, name, seed).one_step(inner, seed=seed)
            else:
                found = self._run_baseline(method, inner, seed, options)
            if np.ptp(found) == 0:  # as in `score`: no correlation counts as none
                return 0.0
            return imputation_pearson_pooled(inner.matrix(inner.truth), inner.matrix(found), inner.hidden)

        sizes = {"n_real": inner.hidden.shape[0], "n_genes": inner.hidden.shape[1]}
        return best_setting(self.run, grid, score, work=work, metric="imputation_pearson_pooled", **sizes)

    def _grid(self, method: str) -> list[dict[str, Any]]:
        if method in self.protocol.grids:
            grid = list(self.protocol.grids[method])
        elif method == "scdiff":
            grid = [asdict(settings) for settings in imputer_grid(self.protocol.base)]
        else:
            grid = list(baselines.IMPUTERS[method].grid)
        return grid if self.protocol.tune else grid[:1]
