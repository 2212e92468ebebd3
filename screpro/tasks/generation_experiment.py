"""The experiment behind the generation page: scLDM and every baseline on one split (section 4.1, Tables 2 and 13).

Every method learns from the same training cells, once per seed, and generates one cell per test cell: a sample without
condition, and one with the test cells' labels. Both are scored on variable genes and on all genes of the panel. A
baseline's setting is chosen on a part of the training cells set apart; scLDM runs with the setting it is given. The
paper varies the seed of sampling only, of one trained model; here every seed trains anew.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines import generation as baselines
from screpro.data.preprocess import log_cp10k
from screpro.data.splits import cell_split
from screpro.errors import ScreproError
from screpro.records import Run
from screpro.tasks import autoencoder as stage_one
from screpro.tasks import generation as scores
from screpro.tasks import generation_variants as variants
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.flow import FlowSettings
from screpro.tasks.generation import GenerationCells
from screpro.tasks.generation_samplers import study_samplers, time_generation
from screpro.tasks.generation_training import ScLdm, second_stage, train_scldm
from screpro.tasks.tuning import best_setting, checkpoint_file, progress

__all__ = [
    "CEILING",
    "FIRST_STAGE",
    "FLOOR",
    "METHODS",
    "Protocol",
    "compare_methods",
    "sample_of",
    "train_seed",
]

METHODS = ["scldm", *baselines.GENERATORS]
"""Every method of the page; scLDM first."""

CEILING = "real_cells"
"""Real training cells, as many as test cells and with their labels."""

FIRST_STAGE = "scldm_autoencoder"
"""Latents of real training cells, decoded at drawn library sizes: what scLDM's flow could reach at best."""

FLOOR = "narrow_kernels"
"""What the number of cells alone adds to the MMD²."""

ITEM = {"": "Table 2", ", all genes": "Table 13"}
UNITS = {
    "w2_exact": "distance",
    "mmd2_rbf_sum5": "sum of five squared MMD",
    "frechet_distance": "squared distance",
    "gene_variance_ratio": "ratio",
    "times_ceiling": "times what real cells score",
}


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    split: int
    seeds: Sequence[int]  # of weights, noise and draws
    autoencoder: AutoEncoderSettings
    flow: FlowSettings
    n_variable: int | None  # genes of Table 2; None: all
    steps: int = 20  # of Heun's sampler
    threads: int = 1
    grids: Mapping[str, list[dict[str, Any]]] = MappingProxyType({})  # settings of a baseline, instead of its grid
    tune: bool = False  # choose a baseline's setting on validation cells; otherwise the first of its grid
    drop_study: float | None = 0.8  # label drop probability that the first seed is also trained with
    passes_study: int | None = None  # fewer passes that the first seed's auto-encoder is also trained for
    samplers: Sequence[tuple[str, int]] = (("euler", 20), ("heun", 10), ("heun", 20), ("dopri5", 1), ("sde", 50))
    sampler_cells: int = 256
    timed: tuple[int, int] | None = None  # cells and genes that a network of this size is timed on


def compare_methods(
    run: Run,
    cells: GenerationCells,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[int, ScLdm] = MappingProxyType({}),
) -> None:
    """Train every method with every seed, generate, score, and add the rows to `run`.

    What an interrupted run has already measured is not measured again. The samples of the first seed stay in the run's
    folder for the figures (`sample_of`).

    Parameters
    ----------
    run
        Where the rows go.
    cells, protocol, methods
        Cells, how they are used and what is run on them.
    trained
        Models that are there already, by seed.

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
    work = _Work(run, cells, protocol)
    work.references()
    units = [(method, seed) for seed in protocol.seeds for method in methods]
    for method, seed in progress(units, protocol.dataset):
        if work.done(method, seed):
            continue
        if method == "scldm":
            work.scldm(trained.get(seed) or train_seed(run, cells, protocol, seed), seed)
        else:
            options, started = work.chosen(method), time.monotonic()  # what choosing took is not the method's time
            made = baselines.run(
                method,
                cells.train,
                cells.train_labels,
                wanted=cells.test_labels,
                n_types=len(cells.types),
                seed=seed,
                threads=protocol.threads,
                options=options,
            )
            seconds = time.monotonic() - started
            normalised = [x if x is None or made.expression else log_cp10k(x) for x in made[:2]]
            work.score(method, seed, *normalised, seconds=seconds)
    for seed in protocol.seeds:  # not earlier: a run that is killed forgets the rows of what it was at
        for passes in {protocol.autoencoder.epochs, protocol.passes_study} - {None}:
            _stage_file(run, protocol, seed, passes).unlink(missing_ok=True)


class _Work:
    """One comparison: what the cells are compared with, and the rows."""

    def __init__(self, run: Run, cells: GenerationCells, protocol: Protocol):
        self.run, self.cells, self.protocol = run, cells, protocol
        self.against = {"": scores.reference_of(cells, n_variable=protocol.n_variable)}
        self.against[", all genes"] = scores.reference_of(cells)

    def unit(self, method: str, seed: int | None) -> dict[str, Any]:
        return {
            "dataset": self.protocol.dataset,
            "split": str(self.protocol.split),
            "method": method,
            "seed": seed,
        }

    def done(self, method: str, seed: int) -> bool:
        # seconds are recorded last: with them, every row of the unit is there
        return self.run.done(**self.unit(method, seed), metric="fit_generate")

    def chosen(self, method: str) -> dict[str, Any]:
        """The setting with the smallest `times_ceiling` on a fifth of the training cells, set apart for that."""
        p = self.protocol
        grid = list(p.grids.get(method, baselines.GENERATORS[method].grid))
        if not p.tune or len(grid) == 1:
            return grid[0]
        inner = _inner(self.cells, seed=p.split)
        reference, labels = scores.reference_of(inner, n_variable=p.n_variable), inner.test_labels
        rng = np.random.default_rng(p.split)
        real = [log_cp10k(inner.train[rows]) for rows in _real_rows(inner, rng=rng)]

        def score(options: dict[str, Any]) -> float:
            made = baselines.run(
                method, inner.train, inner.train_labels, wanted=labels, n_types=len(inner.types),
                seed=p.seeds[0], threads=p.threads, options=options,
            )  # fmt: skip
            samples = [x if x is None or made.expression else log_cp10k(x) for x in made[:2]]
            return scores.times_ceiling(reference, labels, *samples, real=real)

        work = self.unit(method, p.seeds[0]) | {"split": f"{p.split}, validation"}
        row = {"metric": "times_ceiling", "unit": UNITS["times_ceiling"], "n_genes": len(reference.genes)}
        row |= {"n_real": len(labels), "n_generated": len(labels)}
        return best_setting(self.run, grid, score, work=work, direction="lower", **row)

    def add(self, method: str, seed: int | None, genes: str, **row: Any) -> None:
        n = len(self.cells.test_labels)
        defaults = {
            "item": ITEM.get(genes), "unit": UNITS.get(row["metric"], "share of cells"), "n_real": n, "n_generated": n,
            "n_genes": len(self.against.get(genes, self.against[""]).genes),
        }  # fmt: skip
        self.run.add(**self.unit(method, seed), **(defaults | row))

    def references(self) -> None:
        """Rows of the ceiling, of the floor of the MMD², and of the class sizes."""
        cells, labels = self.cells, self.cells.test_labels
        for seed in self.protocol.seeds:
            rows = _real_rows(cells, rng=np.random.default_rng(seed))
            self.score(CEILING, seed, *(log_cp10k(cells.train[own]) for own in rows), seconds=None)
        sizes = np.bincount(labels)
        sizes = sizes[sizes >= scores.LEAST]
        floors = {"unconditional": scores.narrow_kernels(len(labels))}
        floors["conditional"] = float(np.mean([scores.narrow_kernels(n) for n in sizes]))
        for genes in self.against:
            for kind, value in floors.items():
                self.add(FLOOR, None, genes, metric="mmd2_rbf_sum5", metric_variant=kind + genes, value=value,
                         direction="lower")  # fmt: skip
        for name, n in scores.class_sizes(labels, cells.types).items():
            self.add(CEILING, None, "", metric="cells_of_class", metric_variant=name, value=n, unit="cells",
                     direction="higher")  # fmt: skip

    def score(
        self,
        method: str,
        seed: int,
        unconditional: sp.csr_matrix,
        conditional: sp.csr_matrix | None,
        *,
        seconds: float | None,
    ) -> None:
        """Score both samples (log-normalised) on both sets of genes."""
        labels = self.cells.test_labels
        for genes, reference in self.against.items():
            found = {"unconditional": scores.score_all(reference, unconditional, seed=seed)}
            if conditional is not None:
                together = scores.score_all(reference, conditional, seed=seed)
                found["conditional"] = scores.score_classes(reference, conditional, labels)
                found["conditional"]["gene_variance_ratio"] = together.pop("gene_variance_ratio")
                found["conditional, classes together"] = together
                accuracy = scores.class_accuracy(reference, conditional, labels)
                found["conditional"] |= {} if accuracy is None else {"macro_recall": accuracy}
            for kind, values in found.items():
                for metric, value in values.items():
                    item = "Figures 5 to 7" if metric == "gene_variance_ratio" else ITEM[genes]
                    self.add(method, seed, genes, item=item, metric=metric, metric_variant=kind + genes, value=value,
                             direction=scores.DIRECTIONS[metric])  # fmt: skip
        if seed == self.protocol.seeds[0]:
            self.keep(method, unconditional, conditional)
        if seconds is not None:
            self.add(method, seed, "", metric="fit_generate", value=seconds, unit="s", direction="lower")

    def keep(self, method: str, unconditional: sp.csr_matrix, conditional: sp.csr_matrix | None) -> None:
        for kind, x in (("unconditional", unconditional), ("conditional", conditional)):
            if x is not None:
                file = _sample_file(self.run, self.protocol, method, kind)
                file.parent.mkdir(parents=True, exist_ok=True)
                sp.save_npz(file, sp.csr_matrix(x, dtype=np.float32))

    # --- scLDM ----------------------------------------------------------------------------------------------

    def draw(self, own: ScLdm, seed: int) -> list[sp.csr_matrix]:
        labels = {"cell_type": self.cells.test_labels}
        how = {"steps": self.protocol.steps, "seed": seed}
        return [log_cp10k(own.generator.draw(labels, weight=weight, **how)) for weight in (0.0, 1.0)]

    def scldm(self, own: ScLdm, seed: int) -> None:
        """Rows of one trained scLDM; with the first seed also samplers, other drop probability and passes, timing."""
        p, started = self.protocol, time.monotonic()
        samples = self.draw(own, seed)
        seconds = own.seconds + time.monotonic() - started
        if seed == p.seeds[0]:
            against = self.against[""]
            study_samplers(
                self.run, self.cells, own.generator, against, samplers=p.samplers, most=p.sampler_cells, seed=seed,
                unit=self.unit("scldm", seed),
            )  # fmt: skip
            if p.drop_study is not None:
                self.other_drop(own, p.drop_study, seed)
            if p.passes_study is not None and p.passes_study < p.autoencoder.epochs:
                self.other_passes(own, p.passes_study, seed)
            if p.timed is not None:
                time_generation(
                    self.run, p.autoencoder, p.flow, cells=p.timed[0], genes=p.timed[1], steps=p.steps,
                    unit=self.unit("scldm", seed),
                )  # fmt: skip
        for each in variants.size_and_label(self.cells, own, steps=p.steps, seed=seed):
            method = FIRST_STAGE if each.real else "scldm"
            self.variant(method, seed, each.samples, item=each.item, name=each.name)
        real = variants.real_decoded(self.cells, own, own.generator.autoencoder, seed=seed)
        self.score(FIRST_STAGE, seed, *real, seconds=None)
        self.score("scldm", seed, *samples, seconds=seconds)

    def other_drop(self, own: ScLdm, drop: float, seed: int) -> None:
        """Ablation A10: the same auto-encoder, a velocity network trained with another share of labels dropped."""
        flow = replace(self.protocol.flow, drop=drop)
        other = second_stage(
            self.cells, own.generator.autoencoder, own.latents, flow, seed=seed, losses=[], started=time.monotonic()
        )
        self.variant("scldm", seed, self.draw(other, seed), item="A10", name=f"drop {drop:g}")

    def other_passes(self, own: ScLdm, passes: int, seed: int) -> None:
        """X-22: what another number of passes does to the auto-encoder: its error, and real latents it decodes."""
        p = self.protocol
        settings, file = replace(p.autoencoder, epochs=passes), _stage_file(self.run, p, seed, passes)
        other = stage_one.train(self.cells.train, settings, seed=seed, threads=p.threads, checkpoint=file).model
        for epochs, model in ((passes, other), (p.autoencoder.epochs, own.generator.autoencoder)):
            name = f"{epochs} passes"
            for which, counts in (("training", self.cells.train), ("test", self.cells.test)):
                error = float(stage_one.nll(model, counts).mean())
                self.add(FIRST_STAGE, seed, ", all genes", item="X-22", metric="re_nb_nll", unit="nats per cell",
                         metric_variant=f"{which} cells, {name}", value=error, direction="lower",
                         n_real=counts.shape[0], n_generated=None)  # fmt: skip
            real = variants.real_decoded(self.cells, own, model, seed=seed)
            self.variant(FIRST_STAGE, seed, real, item="X-22", name=name)

    def variant(self, method: str, seed: int, samples: list[sp.csr_matrix], *, item: str, name: str) -> None:
        """Rows of a variant on the variable genes, from its unconditional and, where it has one, conditional sample."""
        reference, labels = self.against[""], self.cells.test_labels
        values = {"unconditional": scores.score_all(reference, samples[0], seed=seed)}
        for conditional in samples[1:]:
            values["conditional"] = scores.score_classes(reference, conditional, labels)
            accuracy = scores.class_accuracy(reference, conditional, labels)
            values["conditional"] |= {} if accuracy is None else {"macro_recall": accuracy}
        for kind, each in values.items():
            for metric, value in each.items():
                self.add(method, seed, "", item=item, metric=metric, metric_variant=f"{kind}, {name}", value=value,
                         direction=scores.DIRECTIONS[metric])  # fmt: skip


def train_seed(run: Run, cells: GenerationCells, protocol: Protocol, seed: int) -> ScLdm:
    """scLDM trained with a seed; an interrupted run goes on with the auto-encoder where it was."""
    p = protocol
    file = _stage_file(run, p, seed, p.autoencoder.epochs)
    return train_scldm(cells, p.autoencoder, p.flow, seed=seed, threads=p.threads, checkpoint=file)


def _stage_file(run: Run, protocol: Protocol, seed: int, passes: int) -> Path:
    """Where the auto-encoder of some passes is until the comparison has ended."""
    p, settings = protocol, asdict(protocol.autoencoder) | {"epochs": passes}
    file = checkpoint_file(run, "generation", p.dataset, p.split, seed, settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _real_rows(cells: GenerationCells, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of training cells, as many as test cells: any of them, and ones with the test cells' labels."""
    n, wanted = cells.train.shape[0], len(cells.test_labels)
    anyone = rng.permutation(n)
    anyone = anyone[:wanted] if n >= wanted else rng.choice(anyone, wanted)
    return anyone, scores.same_labels(cells.train_labels, cells.test_labels, rng=rng, replace=False)


def _inner(cells: GenerationCells, *, seed: int) -> GenerationCells:
    """Training cells split again: four fifths to learn from, a fifth, of types among them, to score on."""
    parts = cell_split(cells.train.shape[0], seed=seed, test=0.2)
    held = parts.test[np.isin(cells.train_labels[parts.test], cells.train_labels[parts.train])]
    return cells._replace(
        train=cells.train[parts.train],
        test=cells.train[held],
        train_labels=cells.train_labels[parts.train],
        test_labels=cells.train_labels[held],
    )


def sample_of(run: Run, protocol: Protocol, method: str, kind: str) -> sp.csr_matrix | None:
    """Log-normalised expression that `method` generated with the first seed: kind "unconditional" or "conditional".

    None if it was not run, or has no such sample.
    """
    file = _sample_file(run, protocol, method, kind)
    return sp.csr_matrix(sp.load_npz(file)) if file.is_file() else None


def _sample_file(run: Run, protocol: Protocol, method: str, kind: str) -> Path:
    return run.folder / "samples" / f"{protocol.dataset}-{protocol.split}-{method}-{kind}.npz"
