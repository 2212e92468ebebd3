"""The experiment behind the reconstruction page: scLDM's auto-encoder, scVI and a CFGen-like auto-encoder (Table 1).

Every method gets the same training cells and the same panel, and chooses its setting, number of passes included, by
the reconstruction error on validation cells. The first entry of a grid is the published setting (scLDM: the starting
point). A network that trains in seconds chooses among every setting at every number of passes, scLDM among a few.
Scored are the same test cells, whole (what the paper's tables do) and with half of the molecules encoded and the other
half scored (`HALVES`), where copying the input does not help.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines.registry import method_of
from screpro.baselines.scvi_counts import NO_KL
from screpro.errors import ScreproError
from screpro.metrics.reconstruction import re_nb_nll
from screpro.records import Run
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.reconstruction import (
    DIRECTIONS,
    Law,
    Parts,
    class_law,
    copy_law,
    global_law,
    half_bounds,
    halves,
    neighbour_law,
    scores,
)
from screpro.tasks.tuning import best_setting, checkpoint_file, progress

__all__ = ["HALVES", "METHODS", "NETWORKS", "PASSES", "TITLES", "Protocol", "Trained", "compare_methods", "train"]

NETWORKS = ["scldm", "scvi", "cfgen_like"]
"""What is trained; scLDM first."""

TITLES = {
    "scldm": "scLDM",
    "scvi": "scVI",
    "cfgen_like": "CFGen-like auto-encoder",
    "global_mean": "One profile for all cells",
    "class_mean": "One profile per cell type",
    "neighbours": "15 nearest training cells",
    "copy": "The cell itself",
    "one_half": "Bound: one half answers for the other",
    "truth": "True mean and dispersion",
}
"""Every method of the page, and how a table prints it."""

METHODS = [*NETWORKS, "global_mean", "class_mean", "neighbours", "copy", "one_half"]

HALVES = "other half of the molecules"
"""Variant of the scores in which one half of every cell's molecules is encoded and the other half scored."""

PASSES = "X-23"
"""Item of the first seed's scores by number of passes: the variant of a row is the number."""

FIXED = ("counts", "labels", "n_labels", "seed", "threads", "epochs", "checkpoint", "title")
"""What this module decides; everything else is an option of a baseline."""

UNITS = {"re_nb_nll": "nats per cell"}

WORST = 1e9
"""Nats: what an error on validation cells that is not finite is recorded as, to lose against every other."""

PASSES_TRIED: list[dict[str, Any]] = [{}, {"epochs": 60}, {"epochs": 150}]
"""Passes over the cells of a network that trains in seconds; the first is the protocol's number."""

SMALL_BATCHES = {"batch_size": 32, "learning_rate": 2e-3}

GRIDS: dict[str, list[dict[str, Any]]] = {
    "scldm": [{}, {"learning_rate": 1e-3}, {"epochs": 60}, {"epochs": 100}, {"epochs": 100, "batch_size": 8}],
    "scvi": [
        {**setting, **passes}
        for passes in PASSES_TRIED
        for setting in (
            {},
            {"batch_size": 32},
            {**SMALL_BATCHES, "n_latent": 30},
            {**SMALL_BATCHES, "n_latent": 30, "warmup_epochs": NO_KL},  # the score asks for no KL term
        )
    ],
    "cfgen_like": [
        {**setting, **passes}
        for passes in PASSES_TRIED
        for setting in ({}, {"batch_size": 32}, {**SMALL_BATCHES, "clip": None, "schedule": "cosine"})
    ],
}
"""Changes to try, of scLDM's starting point or of the published defaults of a baseline, which come first."""


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    split: int  # seed of the split, noted in the rows
    seeds: Sequence[int]  # of weights, order of the cells and draws
    base: AutoEncoderSettings  # scLDM's starting point; its epochs are everybody's where a setting names none
    tune: bool  # choose among the settings of a grid on validation cells; otherwise its first
    threads: int = 1
    grids: Mapping[str, list[dict[str, Any]]] = MappingProxyType({})  # instead of a network's grid


class Trained(NamedTuple):
    """A trained network as a law of counts."""

    law: Law
    seconds: float
    model: Any


def train(
    method: str,
    counts: sp.csr_matrix,
    options: Mapping[str, Any],
    *,
    base: AutoEncoderSettings,
    epochs: int,
    seed: int,
    threads: int,
    checkpoint=None,
) -> Trained:
    """Train one of `NETWORKS` on raw counts (n, G).

    Parameters
    ----------
    options
        Changes to `base` for scLDM, to the published defaults for the others.
    epochs
        Passes over the cells.
    checkpoint
        File from which an interrupted training continues; scVI starts again.

    Raises
    ------
    ScreproError
        The method is not one of `NETWORKS`, or an option is not one of its own.
    """
    if method == "scldm":
        from screpro.tasks import autoencoder

        known = {**asdict(base), "epochs": epochs}
        if odd := [name for name in options if name not in known]:
            raise ScreproError(
                f"The options of scldm are {', '.join(known)}.", got=", ".join(odd), fix="use one of these names"
            )
        settings = AutoEncoderSettings(**{**known, **options})
        done = autoencoder.train(counts, settings, seed=seed, threads=threads, checkpoint=checkpoint, title="scLDM")
        return Trained(lambda x: autoencoder.reconstruct(done.model, x), done.fit.seconds, done.model)
    if method == "cfgen_like":
        fit = method_of(method, "count_autoencoder:fit", options, fixed=FIXED)
        model = fit(
            counts, seed=seed, threads=threads, epochs=epochs, checkpoint=checkpoint, title="CFGen-like", **options
        )
        return Trained(model.reconstruct, model.history.seconds, model)
    if method == "scvi":
        fit = method_of(method, "scvi_counts:fit", options, fixed=FIXED)
        model = fit(counts, seed=seed, threads=threads, epochs=epochs, **options)
        return Trained(model.reconstruct, model.seconds, model)
    raise ScreproError("A network of the page is named by its key.", got=method, fix=f"choose {', '.join(NETWORKS)}")


def compare_methods(
    run: Run,
    parts: Parts,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[tuple[str, int], Trained] = MappingProxyType({}),
    truth: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Train and score every method; add its rows to `run`. What an interrupted run has measured is not repeated.

    Parameters
    ----------
    run
        Where the rows go.
    parts, protocol, methods
        Cells, how they are used and what is run on them. Types are needed by "class_mean" alone, which is left out
        without them.
    trained
        Networks that are there already, by (method, seed), trained with the first entry of their grid.
    truth
        Mean (n, G) and theta of the test cells, if they are simulated: scored as the method "truth".

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
    work = _Work(run, parts, protocol, trained)
    for method in (m for m in methods if m not in NETWORKS):
        if not work.done(method, None) and (method != "class_mean" or parts.n_types):
            work.untrained(method)
    if truth is not None and not work.done("truth", None):
        work.score("truth", None, {"": truth, HALVES: (truth[0][work.rows], truth[1])}, 0.0)
    units = [(m, seed) for m in methods if m in NETWORKS for seed in protocol.seeds]
    for method, seed in progress(units, protocol.dataset):
        if not work.done(method, seed):
            work.network(method, seed)
    for method, seed in units:  # not earlier: a run that is killed forgets the rows of what it was at
        work.forget(method, seed)


class _Work:
    """One comparison: chosen settings, networks kept from tuning, test cells whole and in halves."""

    def __init__(self, run: Run, parts: Parts, protocol: Protocol, trained: Mapping[tuple[str, int], Trained]):
        self.run, self.parts, self.protocol = run, parts, protocol
        self.kept: dict[tuple[str, str], Trained] = {}  # first seed, by method and options
        self.trained = dict(trained)
        self.encoded, self.scored, self.rows = halves(parts.test, seed=protocol.split)

    def done(self, method: str, seed: int | None) -> bool:
        # seconds are recorded last: with them, every row of the unit is there
        unit = {"dataset": self.protocol.dataset, "split": str(self.protocol.split), "method": method, "seed": seed}
        return self.run.done(**unit, metric="fit")

    def score(
        self, method: str, seed: int | None, laws: Mapping[str, tuple[np.ndarray, np.ndarray]], seconds: float
    ) -> None:
        """Rows of reconstructions (mean, theta) by variant, and the seconds of fitting."""
        for variant, law in laws.items():
            counts = self.scored if variant == HALVES else self.parts.test
            self.rows_of(method, seed, "X-1" if variant else "Table 1", variant, counts, law)
        self.run.add(
            dataset=self.protocol.dataset, split=self.protocol.split, method=method, seed=seed, item="X-2",
            metric="fit", value=seconds, unit="s", direction="lower", n_real=self.parts.train.shape[0],
            n_genes=self.parts.train.shape[1],
        )  # fmt: skip

    def rows_of(
        self, method: str, seed: int | None, item: str, variant: str, counts: sp.csr_matrix,
        law: tuple[np.ndarray, np.ndarray],
    ) -> None:  # fmt: skip
        """Every score of a reconstruction (mean, theta) of counts."""
        self.add(method, seed, item, variant, counts, scores(counts, *law, seed=seed or 0))

    def add(
        self, method: str, seed: int | None, item: str, variant: str, counts: sp.csr_matrix,
        values: Mapping[str, float],
    ) -> None:  # fmt: skip
        """A row of each score of some counts."""
        for metric, value in values.items():
            if not np.isfinite(value):
                continue  # a mean of 0 where a count was seen: no number to record
            self.run.add(
                dataset=self.protocol.dataset, split=self.protocol.split, method=method, seed=seed, item=item,
                metric=metric, metric_variant=variant, value=value, unit=UNITS.get(metric, ""),
                direction=DIRECTIONS[metric], n_real=counts.shape[0], n_genes=counts.shape[1],
            )  # fmt: skip

    def untrained(self, method: str) -> None:
        started, parts = time.monotonic(), self.parts
        if method == "one_half":
            self.add(method, None, "X-1", HALVES, self.scored, half_bounds(self.encoded, self.scored))
            self.score(method, None, {}, time.monotonic() - started)
            return
        if method == "class_mean":
            whole, half = (
                class_law(parts.train, parts.train_types, types, n_types=parts.n_types)
                for types in (parts.test_types, parts.test_types[self.rows])
            )
        else:
            make = {"global_mean": global_law, "neighbours": neighbour_law, "copy": copy_law}[method]
            whole = half = make(parts.train)
        seconds = time.monotonic() - started
        self.score(method, None, {"": whole(parts.test), HALVES: half(self.encoded)}, seconds)

    def network(self, method: str, seed: int) -> None:
        options = self.chosen(method)
        found = self.fitted(method, options, seed)
        laws = {"": found.law(self.parts.test), HALVES: found.law(self.encoded)}
        same = [each for each in self.grid(method) if _without_passes(each) == _without_passes(options)]
        if seed == self.protocol.seeds[0] and len(same) > 1:
            for each in same:
                network = found if each == options else self.fitted(method, each, seed)
                passes = each.get("epochs", self.protocol.base.epochs)
                self.rows_of(method, seed, PASSES, str(passes), self.parts.test, network.law(self.parts.test))
        self.score(method, seed, laws, found.seconds)

    def forget(self, method: str, seed: int) -> None:
        """Remove the files of everything that was trained with a seed."""
        for options in self.grid(method):
            self._file(method, options, seed).unlink(missing_ok=True)

    def fitted(self, method: str, options: dict[str, Any], seed: int) -> Trained:
        """A network trained before, or now."""
        if options == self.grid(method)[0] and (method, seed) in self.trained:
            return self.trained[method, seed]
        if seed == self.protocol.seeds[0] and (found := self.kept.pop((method, repr(options)), None)):
            return found
        base, own = self.protocol.base, dict(options)
        return train(
            method, self.parts.train, own, base=base, epochs=own.pop("epochs", base.epochs), seed=seed,
            threads=self.protocol.threads, checkpoint=self._file(method, options, seed),
        )  # fmt: skip

    def _file(self, method: str, options: dict[str, Any], seed: int):
        p = self.protocol
        return checkpoint_file(self.run, p.dataset, p.split, method, seed, asdict(p.base), options)

    # --- tuning -------------------------------------------------------------------------------------------

    def chosen(self, method: str) -> dict[str, Any]:
        """Options with the smallest error on the validation cells, first seed; each tried setting leaves a row."""
        grid = self.grid(method)
        if len(grid) == 1:
            return grid[0]
        p, seed, counts = self.protocol, self.protocol.seeds[0], self.parts.validation
        work = {"dataset": p.dataset, "split": f"{p.split}, validation", "method": method, "seed": seed}

        def score(options: dict[str, Any]) -> float:
            found = self.kept[method, repr(options)] = self.fitted(method, options, seed)
            error = re_nb_nll(counts, *found.law(counts))
            return error if error < WORST else WORST  # infinite, of a mean of 0 where a count was seen, or no number

        sizes = {"n_real": counts.shape[0], "n_genes": counts.shape[1]}
        best = best_setting(
            self.run, grid, score, work=work, metric="re_nb_nll", direction="lower", unit=UNITS["re_nb_nll"], **sizes
        )
        for options in grid:  # networks that lost are not scored, but for the best setting's other numbers of passes
            if _without_passes(options) != _without_passes(best):
                self.kept.pop((method, repr(options)), None)
        return best

    def grid(self, method: str) -> list[dict[str, Any]]:
        """Settings to choose from; the first alone where nothing is tuned."""
        grid = list(self.protocol.grids.get(method, GRIDS[method]))
        return grid if self.protocol.tune else grid[:1]


def _without_passes(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "epochs"}
