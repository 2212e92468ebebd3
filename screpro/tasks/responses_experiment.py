"""The experiment behind PerturbDiff's main results: every method on the same held-out responses (section 5.2, Table 4).

One fit of a method per seed answers three questions at once: the test perturbations, the validation perturbations that
settings are chosen on, and the control condition (the null test). Rows stand under variants, so that the claims on them
never mix: "" for the 14 scores and what is reported beside them, the name of a score for win rates against STATE-like
(equal counts as a win, as in the paper; with "strictly" it does not), "seeds" and "batches" for variances, `ZEROED`.

Two versions of the model are run. `perturbdiff` is the paper's: a chain of guided answers. `perturbdiff_repaired` is
the same network asked once, without guidance, or trained on smaller sets or rescaled genes as well: settings alone.

Settings of every method with something to choose are chosen by the energy distance to the real cells of the validation
perturbations: the score that both set methods are trained on, and none of those that are reported.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines import responses as baselines
from screpro.baselines.response_packages import PACKAGES, missing
from screpro.data.populations import Populations
from screpro.metrics.distances import energy_distance_v
from screpro.metrics.perturbation import TABLE_4
from screpro.records import Run
from screpro.tasks.responses import DIRECTIONS, ResponseSplit, Scorer, Scores, constants, win_rates
from screpro.tasks.responses_drawn import keep_perturbations, keep_significance
from screpro.tasks.responses_sampling import Spread, draw_conditions, mean_batch_spread, sampling_spread
from screpro.tasks.set_diffusion import SamplerSettings, SetDiffusionSettings, TrainedSets, generate, train
from screpro.tasks.small_values import ZEROED, least_seen, zeroed
from screpro.tasks.tuning import best_setting, checkpoint_file, progress

__all__ = [
    "AGAINST",
    "CEILING",
    "CONSTANT",
    "DRAWN",
    "FAITHFUL",
    "METHODS",
    "OPTIONAL",
    "REAL",
    "REPAIRED",
    "Made",
    "Protocol",
    "answer",
    "choose",
    "compare_methods",
    "runnable",
    "settings_of",
]

FAITHFUL, REPAIRED, AGAINST = "perturbdiff", "perturbdiff_repaired", "state_like"

METHODS = [
    FAITHFUL,
    REPAIRED,
    *(name for name, entry in baselines.BASELINES.items() if entry.needs is None),
]
"""Every method that runs without another package, the model's two versions first."""

OPTIONAL = [name for name in baselines.BASELINES if name not in METHODS]
"""Methods that run a published package in an environment of its own."""

CEILING, CONSTANT, REAL = "split_half", "constant", "real_cells"
"""Names in the rows of halves of the real cells, of what no prediction at all scores, and of real batches."""

DRAWN = (FAITHFUL, REPAIRED, AGAINST)
"""Methods whose first seed Figures 4, 5, 15 and 16 show."""

NULL_CELLS = 200
"""Cells generated for the control condition: all methods the same number, as the test finds more with more cells."""


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    split: str
    seeds: Sequence[int]
    training: SetDiffusionSettings
    sampler: SamplerSettings
    grids: Mapping[str, Sequence[dict[str, Any]]] = MappingProxyType({})  # of a method, in the place of its own
    options: Mapping[str, dict[str, Any]] = MappingProxyType({})  # of a method, its length; a setting may replace it
    tune: bool = False  # choose settings on validation perturbations; otherwise the first of the grid
    conditions: int = 4  # of which samples are drawn again and again
    draws: int = 8
    threads: int = 1


class Made(NamedTuple):
    """What one fit of a method answers; log1p-normalised cells each."""

    test: np.ndarray  # (n, G)
    validation: np.ndarray
    null: np.ndarray  # for the control condition of the held-out contexts
    trained: TrainedSets | None  # of the model
    seconds: float  # of fitting and generating


def runnable(wanted: Sequence[str] | None = None) -> list[str]:
    """Methods that can be run here, with a line printed for each that is left out.

    Parameters
    ----------
    wanted
        Names; by default `METHODS` and those of `OPTIONAL` whose Python is named in the environment.
    """
    if wanted is None:
        wanted = [*METHODS, *(name for name in OPTIONAL if os.environ.get(PACKAGES[name].variable))]
    reasons = {name: missing(name) for name in wanted}
    for name, reason in reasons.items():
        if reason:
            print(f"not run: {name} ({reason})")
    return [name for name, reason in reasons.items() if not reason]


def grid_of(protocol: Protocol, method: str) -> list[dict[str, Any]]:
    """Settings to choose among; the first is the default."""
    if method in protocol.grids:
        return [dict(options) for options in protocol.grids[method]]
    return [dict(options) for options in baselines.BASELINES[method].grid] if method in baselines.BASELINES else [{}]


def settings_of(protocol: Protocol, options: Mapping[str, Any]) -> tuple[SetDiffusionSettings, SamplerSettings]:
    """Training and sampling of the model with some settings replaced by name, whichever of the two they belong to.

    Both have a number of steps: "steps" is that of training, "sampler_steps" that of the sampler.
    """
    options = dict(options)
    sampler_steps = options.pop("sampler_steps", protocol.sampler.steps)
    of_training = {f.name for f in fields(SetDiffusionSettings)}
    training = replace(protocol.training, **{k: v for k, v in options.items() if k in of_training})
    of_sampler = {k: v for k, v in options.items() if k not in of_training}
    return training, replace(protocol.sampler, steps=sampler_steps, **of_sampler)


def joined(*parts: Populations) -> Populations:
    """Cells of several parts of one set, one after the other."""
    names = ("perturbation", "context", "batch")
    codes = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    stacked = {name: sp.vstack([getattr(part, name) for part in parts], format="csr") for name in ("x", "counts")}
    return replace(parts[0], **codes, **stacked)


def null_cells(controls: Populations, most: int = NULL_CELLS) -> Populations:
    """Control cells whose labels are asked for in the null test, the same for every method."""
    rows = np.random.default_rng(0).permutation(len(controls))[:most]
    return controls.take(np.sort(rows))


def answer(
    method: str,
    split: ResponseSplit,
    protocol: Protocol,
    *,
    seed: int,
    options: Mapping[str, Any],
    trained: TrainedSets | None = None,
    run: Run | None = None,
) -> Made:
    """Fit a method on the training cells and make cells for everything that is asked.

    Parameters
    ----------
    method
        One of `METHODS`.
    split, protocol
        What is known and asked, and how much is trained.
    seed
        Everything random derives from it.
    options
        Settings of the method, from its grid.
    trained
        The model, if it is trained already.
    run
        Whose folder keeps an unfinished training of the model.

    Raises
    ------
    ScreproError
        There is no such method or setting.
    """
    asked = joined(split.test, split.validation, null_cells(split.controls))
    ends = np.cumsum([len(split.test), len(split.validation)])
    options = {**protocol.options.get(method, {}), **options}
    started = time.monotonic()
    if method in (FAITHFUL, REPAIRED):
        training, sampler = settings_of(protocol, options)
        file = run and checkpoint_file(run, protocol.dataset, protocol.split, seed, asdict(training))
        trained = trained or train(
            split.train, training, seed=seed, threads=protocol.threads, checkpoint=file, title=method
        )
        seconds = trained.fit.seconds
        started = time.monotonic()
        cells = generate(trained, asked, controls=split.controls, sampler=sampler, seed=seed, title=None)
        seconds += time.monotonic() - started
    else:
        cells = baselines.run(
            method, split.train, asked=asked, controls=split.controls, seed=seed, threads=protocol.threads,
            options=options,
        )  # fmt: skip
        seconds = time.monotonic() - started
    test, validation, null = np.split(cells, ends)
    return Made(test, validation, null, trained, seconds)


def choose(
    run: Run, split: ResponseSplit, protocol: Protocol, methods: Sequence[str] = METHODS
) -> tuple[Protocol, dict[tuple[str, int], Made]]:
    """Choose the settings of every method that has a choice, with the first seed.

    Without validation cells, or with `Protocol.tune` off, the first setting is taken.

    Returns
    -------
    protocol
        With one setting in each grid.
    made
        Answers of the chosen ones by (method, seed), so that they need not be fitted again.
    """
    grids, kept = {method: grid_of(protocol, method)[:1] for method in methods}, {}
    if not (protocol.tune and len(split.validation)):
        return protocol._replace(grids=grids), kept
    seed = protocol.seeds[0]
    for method in progress([m for m in methods if len(grid_of(protocol, m)) > 1], "settings"):
        found: dict[str, tuple[float, Made]] = {}
        networks: dict[SetDiffusionSettings, TrainedSets] = {}

        def score(options: dict[str, Any], method=method, found=found, networks=networks) -> float:
            training = settings_of(protocol, options)[0] if method in (FAITHFUL, REPAIRED) else None
            made = answer(method, split, protocol, seed=seed, options=options, trained=networks.get(training), run=run)
            if made.trained is not None:
                networks[training] = made.trained
            value = validation_distance(split.validation, made.validation)
            # only the best answer is kept in memory
            if not found or value < found["best"][0]:
                found["best"] = value, made
                found["options"] = options
            return value

        best = best_setting(
            run, grid_of(protocol, method), score,
            work={
                "dataset": protocol.dataset, "split": f"{protocol.split}, validation", "method": method, "seed": seed,
            },
            direction="lower", metric="energy_distance_v", unit="log expression",
            n_real=len(split.validation), n_generated=len(split.validation), n_genes=len(split.validation.genes),
        )  # fmt: skip
        grids[method] = [best]
        if found and found["options"] == best:
            kept[method, seed] = found["best"][1]
    return protocol._replace(grids=grids), kept


def validation_distance(asked: Populations, made: np.ndarray) -> float:
    """Energy distance between real and generated cells, mean over perturbations."""
    rows = (np.flatnonzero(asked.perturbation == code) for code in np.unique(asked.perturbation))
    return float(np.mean([energy_distance_v(asked.x[own].toarray(), made[own]) for own in rows]))


# --- the comparison ---------------------------------------------------------------------------------------


def compare_methods(
    run: Run,
    split: ResponseSplit,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    made: Mapping[tuple[str, int], Made] = MappingProxyType({}),
) -> None:
    """Run every method with every seed and add its rows to `run`; what an interrupted run has measured stays.

    Every answer is scored as it is, and once more under the variant `ZEROED`. Points of figures are kept of the first
    seed.

    Parameters
    ----------
    run
        Where the rows go.
    split, protocol, methods
        Cells and what is run on them; grids as `choose` returns them.
    made
        Answers that are there already, by (method, seed).
    """
    scorer = Scorer(split.test, split.controls)
    _add_references(run, split, scorer, protocol)
    scored: dict[int, Scores] = {}
    least = least_seen(split.train.x)

    def against(seed: int) -> Scores:
        # an interrupted run may have its rows, but not what it scored on each perturbation
        if seed not in scored:
            again = _made(run, AGAINST, split, protocol, seed, made)
            scored[seed] = scorer.score(again.test, null=again.null)
        return scored[seed]

    for method, seed in progress(list(_units(protocol, methods)), protocol.dataset):
        unit = {"dataset": protocol.dataset, "split": protocol.split, "method": method, "seed": seed}
        if run.done(**unit, metric="fit_predict"):  # the last row of a unit
            continue
        own = _made(run, method, split, protocol, seed or 0, made)
        scores = scorer.score(own.test, null=own.null)
        row = unit | {"n_real": len(split.test), "n_generated": len(own.test), "n_genes": len(split.test.genes)}
        _add(run, scores.values, row)
        cut = scorer.score(zeroed(own.test, least), null=zeroed(own.null, least))
        _add(run, cut.values, {**row, "metric_variant": ZEROED})
        if method in DRAWN and seed == protocol.seeds[0]:
            keep_perturbations(run, scores, scorer.names, dataset=protocol.dataset, method=method)
            keep_significance(run, scores.pair, dataset=protocol.dataset, method=method)
        if method == AGAINST:
            scored[seed] = scores
        elif AGAINST in methods and own.trained is not None:
            for metric, (equal, strictly) in win_rates(scores, against(seed)).items():
                item = "Figure 4" if metric in ("de_auroc", "de_auprc", "de_precision") else "Figure 15"
                for variant, value in ((metric, equal), (f"{metric} strictly", strictly)):
                    run.add(
                        **row, item=item, metric="win_rate", metric_variant=variant, value=value,
                        unit="share of perturbations", direction="higher",
                    )  # fmt: skip
        if own.trained is not None:
            _add_variances(run, split, protocol, own, {**row, "item": "eq. 2"}, method=method, seed=seed)
        run.add(**row, item="section 5.2", metric="fit_predict", value=own.seconds, unit="s", direction="lower")


def _units(protocol: Protocol, methods: Sequence[str]) -> Iterator[tuple[str, int | None]]:
    """Methods without randomness once, the others seed by seed, that which is compared with before the model."""
    fixed = [m for m in methods if m in baselines.BASELINES and not baselines.BASELINES[m].random]
    yield from ((method, None) for method in fixed)
    for seed in protocol.seeds:
        yield from ((m, seed) for m in sorted(methods, key=lambda m: m != AGAINST) if m not in fixed)


def _made(run: Run, method: str, split: ResponseSplit, protocol: Protocol, seed: int, made: Mapping) -> Made:
    if (method, seed) in made:
        return made[method, seed]
    return answer(method, split, protocol, seed=seed, options=grid_of(protocol, method)[0], run=run)


def _add_references(run: Run, split: ResponseSplit, scorer: Scorer, protocol: Protocol) -> None:
    """The ceiling, the floors and the spread of real batches; none needs a seed."""
    row = {"dataset": protocol.dataset, "split": protocol.split, "seed": None}
    row |= {"n_real": len(split.test), "n_genes": len(split.test.genes)}
    _add(run, scorer.ceiling.values, {**row, "method": CEILING})
    keep_significance(run, scorer.ceiling.pair, dataset=protocol.dataset, method=CEILING)
    _add(run, constants(scorer), {**row, "method": CONSTANT})
    cells = joined(split.train, split.test)
    found = mean_batch_spread(cells, cells.x.toarray())
    _add_spread(run, found, {**row, "method": REAL, "item": "eq. 2"}, "batches", protocol)


def _add_variances(
    run: Run, split: ResponseSplit, protocol: Protocol, own: Made, row: dict[str, Any], *, method: str, seed: int
) -> None:
    """Claim P19: how far samples of one condition differ, and the batches of what was generated."""
    sampler = settings_of(protocol, {**protocol.options.get(method, {}), **grid_of(protocol, method)[0]})[1]
    drawn = draw_conditions(
        own.trained, split.test, controls=split.controls, sampler=sampler,
        conditions=protocol.conditions, draws=protocol.draws, seed=seed,
    )  # fmt: skip
    found = [sampling_spread(each) for each in drawn]
    _add_spread(run, Spread(*map(float, np.mean(found, axis=0))), row, "seeds", protocol)
    _add_spread(run, mean_batch_spread(split.test, own.test), row, "batches", protocol)


def _add_spread(run: Run, found: Spread | None, row: Mapping[str, Any], variant: str, protocol: Protocol) -> None:
    if found is not None:
        row = {**row, "metric_variant": variant, "direction": "higher"}
        ratio = found.ratio(protocol.training.set_size)
        run.add(**row, metric="sampling_variance_ratio", value=ratio, unit="times independent cells")
        run.add(**row, metric="excess_variance", value=found.excess, unit="squared log expression, all genes")


def _add(run: Run, values: Mapping[str, float], row: Mapping[str, Any]) -> None:
    """A row for each score that there is; none where it is not defined."""
    for name, value in values.items():
        if np.isfinite(value):
            item = "Figure 5" if name == "called_unchanged" else "section 5.2"
            item = "Table 4" if name in _TABLE_4 else item
            run.add(**row, item=item, metric=name, value=value, direction=DIRECTIONS[name], unit=_UNITS.get(name, ""))


_TABLE_4 = {function.__name__ for function in TABLE_4.values()}

_UNITS = {
    "mse_of_means": "squared log expression",
    "mae_of_means": "log expression",
    "called_unchanged": "share of genes",
    "null_calls": "share of genes",
    "called_ratio": "times as many genes",
    "gene_variance_log2_ratio": "log2",
    "gene_zero_fraction_gap": "share of cells",
    "gene_correlation_gap": "correlation",
}
