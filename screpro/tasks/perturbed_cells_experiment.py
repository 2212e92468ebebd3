"""The experiment behind scLDM's perturbation page: every method on the same held-out pairs (section 4.2).

One training of scLDM per seed, its auto-encoder included, serves four questions: the comparison (Table 3, Figure 13),
the guidance weight (Table 3), joint against additive conditioning (Table 15: a second flow on the same auto-encoder)
and the library size of pairs without training cells. Rows of each stand under their own variant, so that the claims on
them never mix: "guidance 1", "guidance", "conditioning" and "library". `ZEROED` has the effects of the comparison once
more, without values that no count gives. Two more look at the auto-encoder alone, which has to be good before a flow on
it can be: "held-out pairs" (reconstruction, Table 14) and "told from control".

The printed spread of scLDM is over samples of one training; ours is over trainings, for it and for the baselines alike.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines import perturbed_counts as baselines
from screpro.metrics.reconstruction import mse_nb_draw, pcc_nb_draw, re_nb_nll
from screpro.records import Run
from screpro.tasks import autoencoder
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.flow import FlowSettings, nb_counts
from screpro.tasks.perturbed_cells import CellModel, HeldOutPairs, normalised, train_cell_model
from screpro.tasks.perturbed_cells_drawn import keep_changes, keep_pairs, keep_real_pairs
from screpro.tasks.perturbed_cells_scores import DISTANCES, EFFECTS, PairScorer, told_from_control
from screpro.tasks.reconstruction import global_law
from screpro.tasks.small_values import ZEROED, least_seen, zeroed
from screpro.tasks.tuning import best_setting, progress

__all__ = [
    "BOUND",
    "CEILING",
    "METHODS",
    "Models",
    "Protocol",
    "compare_methods",
    "options_of",
    "train_models",
]

METHODS = ["scldm", *(name for name in baselines.BASELINES if name != "scgpt")]
"""Every method that runs without a download; scLDM first. "scgpt" is run when asked for."""

CEILING = "real_cells"
"""Name in the rows of one half of the real cells as an answer to the other."""

BOUND = "autoencoder"
"""Name in the rows of the held-out cells encoded and decoded by scLDM: what its flow could reach at best."""

DRAWN = ("scldm", "mean_shift")
"""Methods whose cells, of the first seed, figures show."""

LAW_CELLS = 20_000
"""Training cells at most that the profile and the dispersions of `_add_floor` are fitted to."""


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    seeds: Sequence[int]  # of trainings
    autoencoder: AutoEncoderSettings
    flow: FlowSettings
    options: Mapping[str, dict[str, Any]] = MappingProxyType({})  # of a baseline, instead of its defaults
    weights: Sequence[float] = (1, 5, 10)  # of guidance
    sampler_steps: int = 20
    threads: int = 1
    split: str = "held-out pairs"
    tune: bool = False  # choose passes and KL term of scVI as an auto-encoder on validation cells


class Models(NamedTuple):
    """What one training seed of scLDM leaves."""

    trained: autoencoder.Trained
    joint: CellModel
    additive: CellModel


def options_of(protocol: Protocol, method: str) -> dict[str, Any]:
    """Options that a baseline runs with."""
    return dict(protocol.options.get(method, baselines.BASELINES[method].grid[0]))


def train_models(held: HeldOutPairs, protocol: Protocol, *, seed: int) -> Models:
    """One auto-encoder and on it two flows, one told both labels at once, one told one at a time."""
    trained = autoencoder.train(held.train.counts, protocol.autoencoder, seed=seed, threads=protocol.threads)
    flows = [
        train_cell_model(
            held.train, trained, replace(protocol.flow, strategy=strategy), seed=seed, title=f"flow, {strategy}"
        )
        for strategy in ("joint", "additive")
    ]
    return Models(trained, *flows)


def compare_methods(
    run: Run,
    held: HeldOutPairs,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    models: Mapping[int, Models] = MappingProxyType({}),
) -> None:
    """Run every method with every seed and add its rows to `run`; what an interrupted run has measured stays.

    Points of figures are kept of the first seed.

    Parameters
    ----------
    run
        Where the rows go.
    held, protocol, methods
        Cells and what is run on them.
    models
        Trainings of scLDM that are there already, by seed.
    """
    scorer = PairScorer(held)
    _add_ceiling(run, scorer, protocol)
    _add_floor(run, held, protocol)
    keep_real_pairs(run, scorer, dataset=protocol.dataset)
    several = any(len({p for k, p in held.pairs if k == kind}) > 1 for kind, _ in held.pairs)
    least = least_seen(normalised(held.train.counts))
    skipped = {"context_mean"} if len(held.train.perturbations) == 2 else set()
    units = [
        (method, seed)
        for method in methods
        if method not in skipped
        for seed in (protocol.seeds if method == "scldm" or baselines.BASELINES[method].random else [None])
    ]
    for method, seed in progress(units, protocol.dataset):
        unit = {"dataset": protocol.dataset, "split": protocol.split, "seed": seed}
        # the seconds are the last row of a unit
        if run.done(**unit, method=method, metric="fit_predict"):
            continue
        started = time.monotonic()
        if method == "scldm":
            trained = models.get(seed) or train_models(held, protocol, seed=seed)
            seconds = trained.joint.seconds
            made = _draw(trained.joint, held, protocol, seed=seed)
            _study(run, held, scorer, protocol, trained, made, seed=seed)
        else:
            made = baselines.run(
                method,
                held.train,
                cell_type=held.test.cell_type,
                perturbation=held.test.perturbation,
                seed=seed or 0,
                threads=protocol.threads,
                options=options_of(protocol, method),
            )
            seconds = time.monotonic() - started
        if method == "scvi":
            _study_scvi(run, held, protocol, seed=seed)
        if method in DRAWN and seed in (None, protocol.seeds[0]):
            keep_changes(run, scorer, made, dataset=protocol.dataset, method=method)
            if method == "scldm":
                keep_pairs(run, scorer, made, dataset=protocol.dataset, method=method)
        row = {**unit, "method": method, **_sizes(held)}
        _add(run, scorer.distances(made), {**row, "metric_variant": "guidance 1"}, DISTANCES)
        _add(run, scorer.distances(made, halves=True), {**row, "metric_variant": "halves"}, DISTANCES)
        answers = {"guidance 1": made, ZEROED: zeroed(sp.csr_matrix(made).toarray(), least)}
        for variant, cells in answers.items():
            effects = scorer.effects(cells)
            if not several:
                effects.pop("discrimination_l1")
            _add(run, effects, {**row, "metric_variant": variant}, EFFECTS)
        run.add(**row, item="Table 3", metric="fit_predict", value=seconds, unit="s", direction="lower")


def _sizes(held: HeldOutPairs) -> dict[str, int]:
    n = len(held.test.cell_type)
    return {"n_real": n, "n_generated": n, "n_genes": len(held.train.genes)}


def _draw(model: CellModel, held: HeldOutPairs, protocol: Protocol, **options) -> Any:
    return normalised(model.draw(held.test.labels, steps=protocol.sampler_steps, **options))


def _add(
    run: Run, values: Mapping[str, np.ndarray], row: Mapping[str, Any], scores: Mapping, *, item: str | None = None
) -> None:
    """The mean over pairs of each score; none where no pair has one."""
    for name, value in values.items():
        if np.isfinite(value).any():
            score = scores[name]
            run.add(
                **row,
                item=item or score.item,
                metric=name,
                value=float(np.nanmean(value)),
                unit=score.unit,
                direction=score.direction,
            )


def _add_ceiling(run: Run, scorer: PairScorer, protocol: Protocol) -> None:
    """One half of the real cells of every pair as the answer to the other, and how many they are; needs no seed."""
    row = {"dataset": protocol.dataset, "split": protocol.split, "method": CEILING, "seed": None}
    for pair, rows in zip(scorer.held.pairs, scorer.rows, strict=True):
        run.add(
            **row, item="Table 3", metric="cells_of_pair", metric_variant=scorer.held.name(pair), value=len(rows),
            unit="cells", direction="higher",
        )  # fmt: skip
    row |= _sizes(scorer.held)
    _add(run, scorer.ceiling(), {**row, "metric_variant": "halves"}, DISTANCES)
    _add(run, scorer.effects_ceiling(), {**row, "metric_variant": "guidance 1"}, EFFECTS)


def _add_floor(run: Run, held: HeldOutPairs, protocol: Protocol) -> None:
    """What the auto-encoder is to beat, one profile for all cells, and what it is to keep of the counts; no seed."""
    base = {"dataset": protocol.dataset, "split": protocol.split, "seed": None, **_sizes(held)}
    if run.done(**base, method="counts"):  # the last row
        return
    some = np.random.default_rng(0).permutation(held.train.counts.shape[0])[:LAW_CELLS]
    _add_reconstruction(run, held, *global_law(held.train.counts[some])(held.test.counts), "global_mean", base)
    seen = {
        "library": lambda c: np.log(np.asarray(c.sum(1)).reshape(-1, 1)),
        "counts": lambda c: normalised(c).toarray(),
    }
    for method, vectors in seen.items():
        _add_told(run, told_from_control(held, vectors), {**base, "method": method})


def _add_told(run: Run, areas: np.ndarray, row: Mapping[str, Any]) -> None:
    if np.isfinite(areas).any():
        run.add(
            **row, item="section 4.2", metric="roc_auc", metric_variant="told from control",
            value=float(np.nanmean(areas)), unit="area", direction="higher",
        )  # fmt: skip


def _study(
    run: Run, held: HeldOutPairs, scorer: PairScorer, protocol: Protocol, models: Models, made: Any, *, seed: int
) -> None:
    """Rows on guidance, conditioning, library size and auto-encoder of one training; `made` is joint at weight 1."""
    base = {"dataset": protocol.dataset, "split": protocol.split, "seed": seed, **_sizes(held)}
    plain = scorer.distances(made)

    def add(method: str, variant: str, values: Mapping[str, np.ndarray], *, item: str) -> None:
        _add(run, values, {**base, "method": method, "metric_variant": variant}, DISTANCES, item=item)

    def distances(model: CellModel, **options) -> dict[str, np.ndarray]:
        return scorer.distances(_draw(model, held, protocol, seed=seed, **options))

    for weight in protocol.weights:
        values = plain if weight == 1 else distances(models.joint, weight=weight)
        add(f"guidance_{weight:g}", "guidance", values, item="Table 3")
    add("joint", "conditioning", plain, item="Table 15")
    add("additive", "conditioning", distances(models.additive), item="Table 15")
    add("main_effects", "library", plain, item="section 4.2")
    add("one_count", "library", distances(models.joint, one_count=True), item="section 4.2")
    mean, theta = autoencoder.reconstruct(models.trained.model, held.test.counts)
    _add_reconstruction(run, held, mean, theta, "scldm", base)
    told = told_from_control(held, lambda c: autoencoder.encode(models.trained.model, c).flatten(1).numpy())
    _add_told(run, told, {**base, "method": "latents"})
    again = normalised(nb_counts(mean, theta, rng=np.random.default_rng(seed)))
    row = {**base, "method": BOUND, "metric_variant": "halves"}
    _add(run, scorer.distances(again, halves=True), row, DISTANCES)


def _study_scvi(run: Run, held: HeldOutPairs, protocol: Protocol, *, seed: int) -> None:
    """Rows of scVI as an auto-encoder, which like scLDM's is told no label (Table 14).

    The comparison's scVI is to draw cells and trains long. For this it would be too long, so passes, and whether the KL
    term is there, are chosen by the error on a tenth of the training cells, with the first seed.
    """
    from screpro.baselines import scvi_counts

    base = {"dataset": protocol.dataset, "split": protocol.split, "seed": seed, **_sizes(held)}
    options, counts = options_of(protocol, "scvi"), held.train.counts

    def fitted(rows: np.ndarray, setting: Mapping[str, Any], seed: int) -> "scvi_counts.ScviCounts":
        return scvi_counts.fit(counts[rows], seed=seed, threads=protocol.threads, **{**options, **setting})

    n = counts.shape[0]
    order = np.random.default_rng(0).permutation(n)
    kept, seen = np.sort(order[: n // 10]), np.sort(order[n // 10 :])
    grid: list[dict[str, Any]] = [{"warmup_epochs": scvi_counts.NO_KL}]
    if protocol.tune:
        longest = options.get("epochs") or 400  # the package's own number
        passes = [max(1, longest // share) for share in (16, 8, 4, 2)]
        grid = [{"epochs": p, "warmup_epochs": kl} for p in passes for kl in (scvi_counts.NO_KL, None)]

    def error(setting: dict[str, Any]) -> float:
        return re_nb_nll(counts[kept], *fitted(seen, setting, protocol.seeds[0]).reconstruct(counts[kept]))

    setting = grid[0]
    if len(grid) > 1:
        work = {"dataset": protocol.dataset, "split": f"{protocol.split}, validation", "method": "scvi"}
        setting = best_setting(
            run, grid, error, work={**work, "seed": protocol.seeds[0]}, direction="lower",
            metric="re_nb_nll", unit="nats", n_real=len(kept), n_genes=len(held.train.genes),
        )  # fmt: skip
    model = fitted(np.arange(n), setting, seed)
    _add_reconstruction(run, held, *model.reconstruct(held.test.counts), "scvi", base)


def _add_reconstruction(
    run: Run, held: HeldOutPairs, mean: np.ndarray, theta: np.ndarray, method: str, base: Mapping[str, Any]
) -> None:
    """Table 14 on the held-out cells: error in nats, correlation and squared error of one draw."""
    counts, seed = held.test.counts, base["seed"] or 0
    row = {**base, "method": method, "item": "Table 14", "metric_variant": "held-out pairs"}
    value = re_nb_nll(counts, mean, theta)
    run.add(**row, metric="re_nb_nll", value=value, unit="nats", direction="lower")
    value = pcc_nb_draw(counts, mean, theta, rng=np.random.default_rng(seed))
    run.add(**row, metric="pcc_nb_draw", value=value, unit="correlation", direction="higher")
    value = mse_nb_draw(counts, mean, theta, rng=np.random.default_rng(seed))
    run.add(**row, metric="mse_nb_draw", value=value, unit="squared log expression", direction="lower")
