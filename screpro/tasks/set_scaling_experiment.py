"""The experiment behind PerturbDiff's scaling page (5.4): three widths, checkpoints of one training each.

As in the paper the checkpoints of a size are steps of one training, with one schedule of the learning rate over all of
it. What is chosen among them is chosen on validation perturbations and measured on the test ones: the rows "chosen on
validation" (one choice per score) and "fall", by how much the last step is worse than the step chosen among the
earlier ones. Without that, the best of several noisy checkpoints would always lie above the last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from screpro.baselines import responses
from screpro.metrics.perturbation import TABLE_4
from screpro.records import Run
from screpro.records.compare import merit
from screpro.tasks.responses import DIRECTIONS, ResponseSplit, Scorer
from screpro.tasks.set_diffusion import SamplerSettings, SetDiffusionSettings, generate
from screpro.tasks.set_finetuning import train_course
from screpro.tasks.set_scaling import parameter_formula, step_flops
from screpro.tasks.set_snapshots import Course
from screpro.tasks.tuning import progress

__all__ = ["CEILING", "SCORES", "Protocol", "chosen_steps", "compare_sizes"]

CEILING = "split_half"
REFERENCES = ("control_cells", "control_own_effect", "linear")
SCORES = tuple(f.__name__ for f in TABLE_4.values())


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str
    widths: Mapping[str, int]  # size -> width
    base: SetDiffusionSettings
    seeds: Sequence[int]
    checkpoints: int = 4
    sampler: SamplerSettings = SamplerSettings()
    threads: int = 1


def compare_sizes(
    run: Run, split: ResponseSplit, protocol: Protocol, *, trained: Mapping[tuple[str, int], Course] | None = None
) -> None:
    """Train every size with every seed and add rows to `run`; what an interrupted run has measured stays.

    Parameters
    ----------
    run
        Where the rows go.
    split, protocol
        Cells and what is run on them.
    trained
        (size, seed) -> a training that is there already.
    """
    test = Scorer(split.test, split.controls)
    validation = Scorer(split.validation, split.controls) if len(split.validation) else None
    base = {"dataset": protocol.dataset, "split": "held-out context"}
    row = {**base, "seed": None, "n_real": len(split.test), "n_genes": len(split.test.genes)}
    _add(run, test.ceiling.values, {**row, "method": CEILING, "metric_variant": "reference"})
    for name in REFERENCES:
        made = responses.run(
            name, split.train, asked=split.test, controls=split.controls, seed=0, threads=protocol.threads
        )
        _add(run, test.score(made).values, {**row, "method": name, "metric_variant": "reference"})
    units = [(size, seed) for seed in protocol.seeds for size in protocol.widths]
    for size, seed in progress(units, protocol.dataset):
        row |= {"method": size, "seed": seed, "n_generated": len(split.test)}
        # the seconds are the last row of a unit
        if run.done(**base, method=size, seed=seed, metric="seconds"):
            continue
        course = (trained or {}).get((size, seed)) or train_size(split, protocol, size, seed=seed)
        _measure(run, course, split, protocol, test, validation, row)


def train_size(split: ResponseSplit, protocol: Protocol, size: str, *, seed: int) -> Course:
    """One training of a size, weights kept at some steps."""
    settings = replace(protocol.base, width=protocol.widths[size])
    return train_course(split.train, settings, seed=seed, checkpoints=protocol.checkpoints, title=f"PerturbDiff {size}")


def _measure(
    run: Run,
    course: Course,
    split: ResponseSplit,
    protocol: Protocol,
    test: Scorer,
    validation: Scorer | None,
    row: dict[str, Any],
) -> None:
    settings, config = course.trained.settings, course.trained.model.config
    cost = step_flops(
        config, sets=settings.sets, set_size=settings.set_size, controls=settings.controls != "none",
        drop=settings.drop, self_condition=settings.self_condition,
    )  # fmt: skip
    curves: dict[str, dict[int, dict[str, float]]] = {"test": {}, "validation": {}}
    for step in (step for step in course.snapshots if step > 0):
        trained = course.at(step)
        own = {**row, "metric_variant": f"step {step}"}
        flops = {**own, "item": "Figure 7", "unit": "operations", "direction": "lower"}
        run.add(**flops, metric="training_flops", value=cost.total * step)
        for side, scorer in (("test", test), ("validation", validation)):
            if scorer is not None:
                made = generate(
                    trained, scorer.asked, controls=split.controls, sampler=protocol.sampler, seed=row["seed"],
                    title=None,
                )  # fmt: skip
                curves[side][step] = scorer.score(made).values
        _add(run, curves["test"][step], own)
        if validation is not None:
            _add(run, curves["validation"][step], {**own, "metric_variant": f"validation, step {step}"})
    if validation is not None:
        _add(run, chosen_values(curves, inner=False), {**row, "metric_variant": "chosen on validation"})
        earlier = chosen_values(curves, inner=True)
        last = curves["test"][max(curves["test"])]
        for metric, value in earlier.items():
            if np.isfinite(fall := _merit(value, metric) - _merit(last[metric], metric)):
                run.add(
                    **{**row, "metric_variant": "fall"}, item="Figure 7", metric=metric, value=fall,
                    direction="higher", unit="difference",
                )  # fmt: skip
    plain = {**row, "metric_variant": "", "item": "section 5.4", "direction": "lower"}
    run.add(**plain, metric="parameters", value=parameter_formula(config), unit="parameters")
    run.add(**plain, metric="seconds", value=course.trained.fit.seconds, unit="s")


def _merit(value: float, metric: str) -> float:
    import pandas as pd

    return float(merit(pd.Series([value]), DIRECTIONS[metric]).iloc[0])


def chosen_steps(curve: Mapping[int, Mapping[str, float]], *, inner: bool) -> dict[str, int]:
    """Score -> the step with its best value; the earliest of equals. `inner` leaves out the last step.

    A score that is not defined at a step loses there; one that is defined at none has no step.
    """
    steps = sorted(curve)[: -1 if inner else None]
    found = {}
    for metric in SCORES:
        values = [_merit(curve[step].get(metric, np.nan), metric) for step in steps]
        if np.isfinite(values).any():
            found[metric] = steps[int(np.nanargmax(values))]
    return found


def chosen_values(curves: Mapping[str, Mapping[int, Mapping[str, float]]], *, inner: bool) -> dict[str, float]:
    """Score -> its test value at the step that validation chooses for it."""
    steps = chosen_steps(curves["validation"], inner=inner)
    return {metric: curves["test"][step].get(metric, np.nan) for metric, step in steps.items()}


def _add(run: Run, values: Mapping[str, float], row: Mapping[str, Any]) -> None:
    for metric, value in values.items():
        if np.isfinite(value):
            item = "Figure 7" if metric in ("de_overlap", "de_precision") else "Figure 20"
            run.add(**row, item=item, metric=metric, value=value, direction=DIRECTIONS[metric], unit="")
