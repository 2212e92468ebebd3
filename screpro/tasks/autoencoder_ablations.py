"""The experiment behind scLDM's ablations page: one change to the auto-encoder at a time (Table 12, Figure 4).

Every network gets the same training cells, the same order of the same batches and the same epochs. What is asked is
what a change does at the default's settings. Questions that decide claims (`RATED`) are the exception, because at one
rate for all the rate decides which network is ahead: there each takes the rate at which held-back training cells are
rebuilt best, the default included. Networks whose settings are the same under two questions are trained once and
recorded under both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.data.splits import cell_split
from screpro.errors import ScreproError
from screpro.metrics.report_input import variable_genes
from screpro.models.scldm import AutoEncoder
from screpro.records import Run
from screpro.tasks import autoencoder
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.autoencoder_prior import add_generation
from screpro.tasks.autoencoder_rates import best_rate
from screpro.tasks.autoencoder_scores import (
    epoch_seconds,
    latent_spread,
    padded_latents,
    reconstruction_scores,
    step_memory,
)
from screpro.tasks.flow import FlowSettings
from screpro.tasks.tuning import progress

__all__ = [
    "LONGER",
    "METHODS",
    "QUESTIONS",
    "RATED",
    "Ablation",
    "Method",
    "Panel",
    "Question",
    "best_rates",
    "compare",
    "draw_panel",
]


class Method(NamedTuple):
    """One network, or one way to draw cells."""

    title: str
    changes: Mapping[str, Any]  # to the default's settings


METHODS = {
    "scldm": Method("scLDM", {}),
    "all_genes": Method("All genes as input", {"inputs": "all"}),
    "width_32": Method("Width 32", {"width": 32}),
    "width_64": Method("Width 64", {"width": 64}),
    "width_128": Method("Width 128", {"width": 128}),
    "tokens_4": Method("4 tokens", {"tokens": 4}),
    "tokens_16": Method("16 tokens", {"tokens": 16}),
    "tokens_32": Method("32 tokens", {"tokens": 32}),
    "layers_1": Method("1 layer a side", {"layers": 1}),
    "layers_2": Method("2 layers a side", {"layers": 2}),
    "layers_4": Method("4 layers a side", {"layers": 4}),
    "gaussian": Method("Gaussian likelihood", {"likelihood": "gaussian"}),
    "set_transformer": Method("Set Transformer pooling", {"pooling": "set_transformer"}),
    "kl_1e-5": Method("Posterior, KL weight 1e-5", {"kl_weight": 1e-5}),
    "log1p": Method("Mixing by a product", {"mixing": "log1p"}),
    "cell_gene": Method("Dispersion per cell and gene", {"dispersion": "cell_gene"}),
}
"""Networks by the name in result rows."""


class Question(NamedTuple):
    """What is compared under one name."""

    item: str  # of the paper's inventory
    variant: str  # `metric_variant` of the rows
    methods: tuple[str, ...]


QUESTIONS = (
    Question("Table 12", "", ("scldm", "all_genes")),
    Question("Figure 4", "width", ("width_32", "width_64", "width_128")),
    Question("Figure 4", "tokens", ("tokens_4", "tokens_16", "tokens_32")),
    Question("Figure 4", "layers", ("layers_1", "layers_2", "layers_4")),
    Question("N1", "likelihood", ("scldm", "gaussian")),
    Question("N5", "pooling", ("scldm", "set_transformer")),
    Question("A9", "posterior", ("scldm", "kl_1e-5")),
    Question("A11", "mixing", ("scldm", "log1p")),
    Question("X-dispersion", "dispersion", ("scldm", "cell_gene")),
)
"""Every question of the page that an auto-encoder answers."""

LONGER = (
    "scldm",
    "all_genes",
    "set_transformer",
    "width_32",
    "width_128",
    "tokens_4",
    "tokens_32",
    "layers_1",
    "layers_4",
)
"""Networks that decide claims L3, L12 and L20: these are also trained for longer."""

RATED = ("", "width", "tokens", "layers", "pooling")
"""Variants of the questions, those of L3, L12 and L20, whose networks take a rate of their own."""

GENERATED = ("scldm", "gaussian")
"""Networks whose latents also get a flow, for questions N1 and N2."""


@dataclass(frozen=True)
class Ablation:
    """How the comparison is run."""

    dataset: str  # name in the result rows
    splits: Sequence[int]  # seeds of the cell split; the panel of genes is chosen on each one's training cells
    seeds: Sequence[int]  # seeds of weights, order and noise
    settings: AutoEncoderSettings  # the default
    flow: FlowSettings
    genes: int | None = None  # most variable genes of the training cells; None: all that are seen
    cells: int | None = None  # drawn at random before the split; None: all
    test_fraction: float = 0.2
    sampler: str = "heun"
    steps: int = 20
    threads: int = 1
    rates: Sequence[float] = ()  # what networks of the questions `RATED` try besides the default's rate
    variant: str = ""  # of the rows of a side question, e.g. "longer"; they belong to no item of the paper


class Panel(NamedTuple):
    """Counts of one split on the panel of its training cells; cells without a count there are left out."""

    train: sp.csr_matrix  # (n, G)
    test: sp.csr_matrix  # (n', G)
    genes: np.ndarray  # (G,) columns of the data set
    train_rows: np.ndarray  # (n,) cells of the data set
    test_rows: np.ndarray  # (n',)


def draw_panel(counts: sp.csr_matrix, protocol: Ablation, split: int) -> Panel:
    """Split the cells (n, G) and choose the genes on the training part (seurat_v3)."""
    counts = sp.csr_matrix(counts, dtype=np.float32)
    rows = np.arange(counts.shape[0])
    if protocol.cells is not None and protocol.cells < len(rows):
        rows = np.sort(np.random.default_rng([split, 7]).permutation(len(rows))[: protocol.cells])
    parts = cell_split(len(rows), seed=split, test=protocol.test_fraction)
    train, test = rows[parts.train], rows[parts.test]
    genes = np.flatnonzero(counts[train].getnnz(axis=0))
    if protocol.genes is not None and protocol.genes < len(genes):
        genes = genes[variable_genes(counts[train][:, genes], protocol.genes)]
    train, test = (part[counts[part][:, genes].getnnz(axis=1) > 0] for part in (train, test))
    return Panel(counts[train][:, genes], counts[test][:, genes], genes, train, test)


def compare(
    run: Run,
    counts: sp.csr_matrix,
    protocol: Ablation,
    methods: Sequence[str] = tuple(METHODS),
    *,
    trained: Mapping[tuple[int, int, str], AutoEncoder] | None = None,
) -> None:
    """Train every network of `methods` on every split and seed, and add its rows to `run`.

    Parameters
    ----------
    counts
        (n, G) integer counts.
    methods
        Names of `METHODS`.
    trained
        Default networks by (split, seed, "scldm") that exist already.

    Notes
    -----
    What an interrupted run has measured is not measured again. Each network leaves, under every question it belongs to,
    the error of reconstruction (``re_nb_nll``; not for a Gaussian, whose density is in other units), ``pcc_nb_draw``,
    ``mse_nb_draw``, ``pcc_nb_mean``, ``mse_nb_mean``, ``latent_spread``, ``seconds`` of an epoch, ``memory`` kept by a
    step and ``parameters``. The default also leaves "padded" (unmasked padding at evaluation) and generated cells.
    A side question (``protocol.variant``) leaves the first part alone, as item "X-longer".
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ScreproError("An ablation has a name.", got=", ".join(unknown), fix=f"choose among {', '.join(METHODS)}")
    panels: dict[int, Panel] = {}
    rates = best_rates(run, counts, protocol, methods)
    for split, seed, settings, uses in progress(_units(protocol, methods, rates), f"ablations on {protocol.dataset}"):
        unit = {"dataset": protocol.dataset, "split": str(split), "seed": seed}
        side = bool(protocol.variant)
        written = [dict(method=name, metric_variant=_variant(question, protocol)) for question, name in uses]
        if all(run.done(**unit, **own, metric="parameters") for own in written):
            continue
        if split not in panels:
            panels[split] = draw_panel(counts, protocol, split)
        panel = panels[split]
        names, asked = {name for _, name in uses}, {question.variant for question, _ in uses}
        plain = settings == protocol.settings  # not the default at a rate of its own
        model = (trained or {}).get((split, seed, "scldm")) if plain and not side else None
        if model is None:
            model = autoencoder.train(
                panel.train, settings, seed=seed, threads=protocol.threads, title=min(names)
            ).model
        sizes = {"n_real": panel.test.shape[0], "n_genes": panel.test.shape[1]}
        for name in sorted(names.intersection(GENERATED if "likelihood" in asked and not side else ())):
            add_generation(run, model, panel, protocol, method=name, seed=seed, unit=unit)
        scores = reconstruction_scores(model, panel.test, seed=seed)
        cost = {
            "seconds": (epoch_seconds(panel.train, model, settings, threads=protocol.threads), "s an epoch"),
            "memory": (step_memory(panel.train, model, settings), "MiB kept by a step"),
            "parameters": (float(sum(p.numel() for p in model.parameters())), ""),
        }
        scores["latent_spread"] = (latent_spread(model, panel.test), "higher", "standard deviation between cells")
        if plain and "scldm" in names and not side:
            rows = {"item": "X-padding", "metric_variant": "padding", **unit, **sizes}
            for method, latents in {"scldm": None, "padded": padded_latents(model, panel.test, panel.train)}.items():
                own = scores if latents is None else reconstruction_scores(model, panel.test, seed=seed, z=latents)
                for metric, (value, direction, unit_name) in own.items():
                    run.add(**rows, method=method, metric=metric, value=value, direction=direction, unit=unit_name)
        for question, name in uses:
            item = "X-longer" if side else question.item
            rows = {"item": item, "metric_variant": _variant(question, protocol), "method": name, **unit, **sizes}
            for metric, (value, direction, unit_name) in scores.items():
                run.add(**rows, metric=metric, value=value, direction=direction, unit=unit_name)
            for metric, (value, unit_name) in cost.items():  # parameters last: they say that the unit is complete
                run.add(**rows, metric=metric, value=value, direction="lower", unit=unit_name)


def _variant(question: Question, protocol: Ablation) -> str:
    """`metric_variant` of the rows of a question, or of a side question."""
    return ", ".join(filter(None, (question.variant, protocol.variant)))


def best_rates(run: Run, counts: sp.csr_matrix, protocol: Ablation, methods: Sequence[str]) -> dict[str, float]:
    """Rate of each network of the questions `RATED` by its name; empty where `protocol.rates` are.

    `best_rate` finds it on the training cells of the first split, with the first seed; it is taken on all of them.
    """
    if not protocol.rates:
        return {}
    asked = [name for question in QUESTIONS if question.variant in RATED for name in question.methods]
    work = {"dataset": protocol.dataset, "split": protocol.splits[0], "seed": protocol.seeds[0]}
    train, known = draw_panel(counts, protocol, protocol.splits[0]).train, {}
    return {
        name: best_rate(
            run, train, replace(protocol.settings, **METHODS[name].changes), protocol.rates,
            work=work | {"method": name}, threads=protocol.threads, known=known,
        )
        for name in asked
        if name in methods
    }  # fmt: skip


def _units(
    protocol: Ablation, methods: Sequence[str], rates: Mapping[str, float]
) -> list[tuple[int, int, AutoEncoderSettings, list[tuple[Question, str]]]]:
    """(split, seed, settings, the questions and names under which they are asked for), in the order of `QUESTIONS`."""
    uses: dict[AutoEncoderSettings, list[tuple[Question, str]]] = {}
    for question in QUESTIONS:
        asked = [name for name in question.methods if name in methods]
        if protocol.variant and len(asked) < 2:  # a side question is about differences alone
            continue
        for name in asked:
            changes = dict(METHODS[name].changes)
            if question.variant in RATED and name in rates:
                changes["learning_rate"] = rates[name]
            uses.setdefault(replace(protocol.settings, **changes), []).append((question, name))
    return [(split, seed, s, own) for split in protocol.splits for seed in protocol.seeds for s, own in uses.items()]
