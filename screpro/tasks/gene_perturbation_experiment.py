"""The experiment behind the gene perturbation page: every method on the same held-out genes (section 4.2.2).

Genes are held out by the split of GEARS. Hyper-parameters are chosen by Delta Pearson on validation perturbations,
held out from the training ones of the first split by the same rule, the same way for every method; then each method
is trained on all training perturbations of each split and scored on the held-out ones, once per seed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from screpro.baselines import gene_perturbation as baselines
from screpro.data.gene_graph import shuffled
from screpro.data.perturbation_splits import CATEGORIES, perturbation_split
from screpro.metrics.change import delta_pearson, pearson
from screpro.records import Run
from screpro.tasks.denoiser import Trained
from screpro.tasks.gene_perturbation import (
    GenePerturbationSettings,
    PerturbedCells,
    halves,
    predict_scdiff,
    scdiff_grid,
    score,
    train_scdiff,
    training_part,
)
from screpro.tasks.tuning import best_setting, checkpoint_file, progress

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CEILING",
    "METHODS",
    "ONE_CALL",
    "Parts",
    "Protocol",
    "by_sampler",
    "compare_methods",
    "drawing",
    "parts",
    "predict",
    "scores",
]

METHODS = ["scdiff", *baselines.BASELINES]
"""Every method of the page; scDiff first."""

CEILING = "split_half"
"""Row name of the ceiling: half of the real cells of a held-out perturbation as the prediction of the other half."""

ONE_CALL = "scdiff_one_call"
"""Row name of scDiff with its cells taken from one network call; ``scdiff`` itself draws them by a chain of steps."""

CHAINS = ("ddim", "ancestral")
"""Samplers that run a chain; where both were run the last counts, which is the paper's."""

DIRECTIONS = {
    "delta_pearson": "higher",
    "mse_top20_de": "lower",
    "change_size_ratio": "closer to 1",
    "control_error_ratio": "lower",
}
ITEMS = {"delta_pearson": "Table 7", "mse_top20_de": "Table 7"}


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    splits: Sequence[int]
    seeds: Sequence[int]
    base: GenePerturbationSettings  # scDiff's starting point
    tune: bool  # choose settings on validation perturbations; otherwise published defaults and `base`
    train_genes: float = 0.75
    validation_genes: float = 0.75  # share of the training genes that stays for training while tuning
    control_share: float = 1 / 3  # control cells that only check what shared control cells do to the score
    threads: int = 1
    grids: Mapping[str, list[dict[str, Any]]] = MappingProxyType({})  # settings to try instead of a method's grid
    study: Sequence[str] = ("X-12", "X-13")  # ablations, run on the first split


class Parts(NamedTuple):
    """Cells of one split."""

    train: PerturbedCells  # control cells and training perturbations
    test: PerturbedCells  # cells of the held-out perturbations
    other_control: PerturbedCells  # control cells that nobody is trained on
    held_out: np.ndarray  # numbers of the held-out perturbations
    category: dict[str, str]  # kind of each held-out perturbation by name


def parts(cells: PerturbedCells, protocol: Protocol, split: int, *, validation: bool = False) -> Parts:
    """Divide `cells` by the split of GEARS; with `validation` the training perturbations once more, tests left out."""
    found = perturbation_split(cells.names, seed=split, train_genes=protocol.train_genes)
    if validation:
        found = perturbation_split(found.train, seed=split, train_genes=protocol.validation_genes)
    own, other = halves(cells, protocol.control_share, seed=split)
    train, test = cells.numbers(found.train), cells.numbers(found.test)
    rows = np.concatenate([own, np.flatnonzero(np.isin(cells.label, train))])
    return Parts(
        train=cells.take(rows),
        test=cells.take(np.isin(cells.label, test)),
        other_control=cells.take(other),
        held_out=test,
        category=found.category,
    )


def predict(
    method: str,
    train: PerturbedCells,
    held_out: np.ndarray,
    options: dict[str, Any],
    *,
    seed: int,
    threads: int,
    trained: Trained | None = None,
) -> np.ndarray:
    """Mean profile of each held-out perturbation (k, G) by `method` trained on `train`."""
    if method != "scdiff":
        return baselines.run(method, train, predict=held_out, seed=seed, threads=threads, options=options)
    settings = GenePerturbationSettings(**options)
    if trained is None:
        trained = train_scdiff(train, settings, seed=seed, threads=threads)
    return predict_scdiff(trained, train, held_out, settings, seed=seed)


def scores(predicted: np.ndarray, own: Parts) -> dict[tuple[str, str], float]:
    """Scores by (metric, variant): means over the held-out perturbations where a score is defined.

    Variants of Delta Pearson: by kind of perturbation where there are several; ``held-out control``: the true change
    against control cells that the prediction has not seen; ``beyond the mean effect``: the mean effect of the training
    perturbations takes the place of the control, so that only what is special about a perturbation counts.
    """
    control = own.train.of(0)
    base = np.asarray(control.mean(axis=0)).ravel()
    other = np.asarray(own.other_control.x.mean(axis=0)).ravel()
    mean_effect = np.nanmean(own.train.means()[1:], axis=0)
    collected: dict[tuple[str, str], list[float]] = {}
    kinds = set(own.category.values())
    for profile, number in zip(predicted, own.held_out, strict=True):
        truth = own.test.of(number)
        true_mean = np.asarray(truth.mean(axis=0)).ravel()
        values = {(name, ""): value for name, value in score(profile, truth, control).items()}
        if len(kinds) > 1:
            kind = own.category[own.test.names[number]]
            values["delta_pearson", kind] = values["delta_pearson", ""]
        # both changes are differences of means, so another control is another shift of the truth
        if np.isfinite(values["delta_pearson", ""]):
            values["delta_pearson", "held-out control"] = delta_pearson(profile, true_mean - other + base, base)
        if np.isfinite(values["delta_pearson", ""]) and np.abs(profile - mean_effect).max() > 1e-5:
            values["delta_pearson", "beyond the mean effect"] = delta_pearson(profile, true_mean, mean_effect)
        for key, value in values.items():
            collected.setdefault(key, []).append(value)
    defined = {key: np.array(values)[np.isfinite(values)] for key, values in collected.items()}
    return {key: float(values.mean()) for key, values in defined.items() if len(values)}


def drawing(
    trained: Trained, own: Parts, settings: GenePerturbationSettings, *, seed: int
) -> dict[tuple[str, str], float]:
    """What the way of drawing does to the prediction of one trained network, by (metric, variant).

    The predicted change is a small difference of means, so an error that all generated cells share hides it. For each
    sampler, ``control_error_ratio``: root mean square over genes of generated minus real control mean, as a share of
    that of the true change of the held-out perturbations; above 1 the error is larger than what is predicted. Then the
    scores as printed, Delta Pearson and the size of the change against *generated* control cells, where the shared
    error cancels, and (of the sampler that was chosen) Delta Pearson of perturbations that were trained on.
    """
    base = np.asarray(own.train.of(0).mean(axis=0)).ravel()
    true_change = own.test.means()[own.held_out] - base
    found = {}
    for sampler in dict.fromkeys([settings.sampler, "ddim", "one call"]):
        setting = replace(settings, sampler=sampler)
        control, *guesses = predict_scdiff(trained, own.train, [0, *own.held_out], setting, seed=seed)
        ratio = np.sqrt(np.square(control - base).mean() / np.square(true_change).mean())
        found["control_error_ratio", sampler] = float(ratio)
        found["delta_pearson", sampler] = _correlation(guesses - base, true_change)
        found["delta_pearson", f"{sampler}, generated control"] = _correlation(guesses - control, true_change)
        for metric, variant, profiles in (
            ("mse_top20_de", sampler, guesses),
            ("change_size_ratio", sampler, guesses),
            ("change_size_ratio", f"{sampler}, generated control", guesses - control + base),
        ):
            each = [
                score(profile, own.test.of(number), own.train.of(0))[metric]
                for profile, number in zip(profiles, own.held_out, strict=True)
            ]
            found[metric, variant] = float(np.nanmean(each))
    seen = np.setdiff1d(own.train.label, [0])
    guesses = predict_scdiff(trained, own.train, seen, settings, seed=seed)
    found["delta_pearson", "training perturbations"] = _correlation(guesses - base, own.train.means()[seen] - base)
    return found


def by_sampler(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The main scores with scDiff's named after how its cells were drawn: ``scdiff`` by a chain, or `ONE_CALL`.

    scDiff's own rows (no variant) are drawn by the sampler that its settings name, on tuned runs the one preferred on
    validation perturbations. Which one that was is seen in Delta Pearson, which every sampler has. Rows of validation
    perturbations and of ablations are left out; all directions are the current ones.
    """
    import pandas as pd

    rows = rows[~rows["split"].str.contains("validation") & rows["metric"].isin(DIRECTIONS)]
    rows = rows.assign(direction=rows["metric"].map(DIRECTIONS))
    main, own = rows[rows["metric_variant"] == ""], rows[rows["method"] == "scdiff"]
    unit = ["dataset", "tier", "split", "seed"]
    names = dict.fromkeys(CHAINS, "scdiff") | {"one call": ONE_CALL}
    drawn = [own[own["metric_variant"] == sampler].assign(method=name) for sampler, name in names.items()]
    pearson_of = own[own["metric"] == "delta_pearson"].set_index(unit)
    as_chosen = pearson_of.loc[pearson_of["metric_variant"] == "", "value"]
    chosen = main[main["method"] == "scdiff"].copy()
    for sampler, name in names.items():
        value = pearson_of.loc[pearson_of["metric_variant"] == sampler, "value"]
        same = set(as_chosen.index[np.isclose(as_chosen, value.reindex(as_chosen.index), rtol=1e-5, atol=1e-7)])
        here = [key in same for key in chosen[unit].itertuples(index=False, name=None)]
        chosen.loc[here, "method"] = name
    found = pd.concat([*drawn, chosen], ignore_index=True).assign(metric_variant="")
    found = found.drop_duplicates(["metric", "method", *unit], keep="last")
    return pd.concat([found, main[main["method"] != "scdiff"]], ignore_index=True)


def _correlation(guess: np.ndarray, truth: np.ndarray) -> float:
    """Mean Pearson correlation of the rows."""
    return float(np.mean([pearson(a, b) for a, b in zip(guess, truth, strict=True)]))


def compare_methods(
    run: Run,
    cells: PerturbedCells,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[tuple[int, int], Trained] = MappingProxyType({}),
) -> None:
    """Run every method on every (split, seed), the ceiling and the ablations, and add their rows to `run`.

    What an interrupted run has already measured is not measured again.

    Parameters
    ----------
    run
        Where the rows go.
    cells, protocol, methods
        Cells, how they are split and what is run on them.
    trained
        scDiff networks that are there already, by (split, seed); used where nothing is tuned.
    """
    units = [
        (method, split, seed)
        for method in [*methods, CEILING]
        for split in protocol.splits
        for seed in ([None] if _deterministic(method) else protocol.seeds)
    ]
    for method, split, seed in progress(units, protocol.dataset):
        unit = {"dataset": protocol.dataset, "split": str(split), "method": method, "seed": seed}
        own = parts(cells, protocol, split)
        if not run.done(**unit, metric="mse_top20_de", metric_variant=""):
            started = time.monotonic()
            if method == CEILING:
                _add(run, unit, own, _ceiling(own, seed or 0))
                continue
            options = _chosen(run, cells, protocol, method)
            ready = None if protocol.tune or method != "scdiff" else trained.get((split, seed or 0))
            checkpoint = _checkpoint(run, protocol, options, split, seed)
            known = ready.fit.seconds if ready else 0.0
            if method == "scdiff" and ready is None:
                settings = GenePerturbationSettings(**options)
                ready = train_scdiff(own.train, settings, seed=seed, threads=protocol.threads, checkpoint=checkpoint)
            predicted = predict(
                method, own.train, own.held_out, options, seed=seed or 0, threads=protocol.threads, trained=ready
            )
            seconds = time.monotonic() - started + known
            if ready is not None:
                found = drawing(ready, own, GenePerturbationSettings(**options), seed=seed or 0)
                _add(run, unit, own, found, item="X-14")
            _add(run, unit, own, scores(predicted, own))
            run.add(**unit, item="Table 10", metric="fit_predict", value=seconds, unit="s", direction="lower")
            checkpoint.unlink(missing_ok=True)
        if split == protocol.splits[0] and method in ("scdiff", "linear"):
            _ablate(run, cells, protocol, method, unit, own)


def _add(run: Run, unit: dict, own: Parts, values: dict[tuple[str, str], float], item: str | None = None) -> None:
    sizes = {"n_real": len(own.test.label), "n_genes": len(own.test.genes)}
    for (metric, variant), value in values.items():
        run.add(
            **unit,
            **sizes,
            item=item or (ITEMS.get(metric, "X-14") if variant in ("", *CATEGORIES) else "X-14"),
            metric=metric,
            metric_variant=variant,
            value=value,
            direction=DIRECTIONS[metric],
        )


def _ceiling(own: Parts, seed: int) -> dict[tuple[str, str], float]:
    """Scores of half of the cells of each held-out perturbation as the prediction of the other half."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(own.test.label))
    rows = rows[np.argsort(own.test.label[rows], kind="stable")]  # by perturbation, random within
    first = np.sort(rows[::2])
    half, rest = own.test.take(first), own.test.take(np.setdiff1d(rows, first))
    return scores(half.means()[own.held_out], own._replace(test=rest))


def _ablate(run: Run, cells: PerturbedCells, protocol: Protocol, method: str, unit: dict, own: Parts) -> None:
    """X-12: the graph with its genes shuffled; X-13: what scDiff's context shows in training."""
    options = _chosen(run, cells, protocol, method)
    graph = shuffled(own.train.graph, seed=unit["seed"] or 0)
    trials = [("X-12", "shuffled graph", options, own.train._replace(graph=graph))]
    if method == "scdiff":
        other = {"own": "control", "control": "own"}[options["context"]]
        trials.append(("X-13", f"context in training: {other}", options | {"context": other}, own.train))
    for item, variant, given, train in trials:
        if item not in protocol.study or run.done(**unit, metric_variant=variant):
            continue
        predicted = predict(method, train, own.held_out, given, seed=unit["seed"] or 0, threads=protocol.threads)
        found = scores(predicted, own)
        kept = {(m, variant): value for (m, v), value in found.items() if not v}
        _add(run, unit, own, kept, item=item)


def _chosen(run: Run, cells: PerturbedCells, protocol: Protocol, method: str) -> dict[str, Any]:
    """Best options on the validation perturbations of the first split; each tried setting leaves a row."""
    grid = _grid(method, protocol)
    if len(grid) == 1:
        return grid[0]
    split, seed = protocol.splits[0], protocol.seeds[0]
    work = {"dataset": protocol.dataset, "split": f"{split}, validation", "method": method, "seed": seed}
    own = parts(cells, protocol, split, validation=True)
    networks: dict[GenePerturbationSettings, Trained] = {}  # one for all samplers

    def score(options: dict[str, Any]) -> float:
        trained = None
        if method == "scdiff":
            part = training_part(GenePerturbationSettings(**options))
            if part not in networks:
                networks[part] = train_scdiff(own.train, part, seed=seed, threads=protocol.threads)
            trained = networks[part]
        predicted = predict(
            method, own.train, own.held_out, options, seed=seed, threads=protocol.threads, trained=trained
        )
        return scores(predicted, own)["delta_pearson", ""]

    sizes = {"n_real": len(own.test.label), "n_genes": len(own.test.genes)}
    return best_setting(run, grid, score, work=work, metric="delta_pearson", **sizes)


def _grid(method: str, protocol: Protocol) -> list[dict[str, Any]]:
    if method == "scdiff":
        settings = scdiff_grid(protocol.base) if protocol.tune else [protocol.base]
        return [asdict(setting) for setting in settings]
    grid = list(protocol.grids.get(method, baselines.BASELINES[method].grid))
    return grid if protocol.tune else grid[:1]


def _deterministic(method: str) -> bool:
    return method in baselines.BASELINES and baselines.BASELINES[method].deterministic


def _checkpoint(run: Run, protocol: Protocol, options: dict, split: int, seed: int | None) -> Path:
    return checkpoint_file(run, protocol.dataset, split, seed, options)
