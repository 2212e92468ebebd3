"""The experiment behind PerturbDiff's pre-training page (5.3): zero-shot curves, low-data fine-tuning, three starts.

One pre-training per seed serves all of it. Several perturbation sets are among its sources, with the training side of
their splits alone; some of them are targets. Rows stand under variants that never mix:

- "zero-shot" and "step N": cells drawn from their context by the pre-trained network, against the same network before
  its first step (`RANDOM`), which several scores of changed genes cannot tell from a trained one;
- "1 %", "5 %", "100 %" (and "1 %, step N"): fine-tuned against from scratch, the same number of steps each;
- "gain": fine-tuned minus scratch at each share of the data, and the mean of it over scores;
- "shape": how far a zero-shot curve dips;
- "initialisation": the three starts, a network from scratch on either list of genes, and one from scratch that takes
  as many steps as pre-training and fine-tuning together.

Pre-training has seen all training cells of a target without their labels, those left out of a subsample included. That
is so in the paper too; `ELSEWHERE` is fine-tuned from a pre-training without the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from screpro.baselines import responses
from screpro.data.populations import Populations
from screpro.metrics.perturbation import TABLE_4
from screpro.records import Run
from screpro.records.compare import merit
from screpro.tasks import set_finetuning as finetuning
from screpro.tasks import set_pretraining as pretraining
from screpro.tasks.responses import DIRECTIONS, ResponseSplit
from screpro.tasks.set_diffusion import SamplerSettings, SetDiffusionSettings, TrainedSets, generate
from screpro.tasks.set_pretraining import Pretrained
from screpro.tasks.set_pretraining_data import Study, Target, subsample
from screpro.tasks.set_snapshots import Course
from screpro.tasks.tuning import progress

__all__ = [
    "CEILING",
    "ELSEWHERE",
    "FINETUNED",
    "PRETRAINED",
    "RANDOM",
    "SCRATCH",
    "Protocol",
    "compare_starts",
    "variant_of",
]

SCRATCH, FINETUNED, PRETRAINED = "perturbdiff", "perturbdiff_finetuned", "perturbdiff_pretrained"
RANDOM = "random_initialisation"
ELSEWHERE = "finetuned_elsewhere"
CEILING = "split_half"
REFERENCES = ("control_cells", "control_own_effect", "linear")
SCORES = tuple(f.__name__ for f in TABLE_4.values())
DE_SCORES = ("de_overlap", "de_precision", "direction_agreement", "lfc_spearman", "effect_size_spearman", "pd_corr")
"""What appendix C.5 names as U-shaped."""


class Protocol(NamedTuple):
    """How the comparison is run."""

    pretraining: SetDiffusionSettings
    finetuning: SetDiffusionSettings
    seeds: Sequence[int]
    sampler: SamplerSettings = SamplerSettings()
    ratios: Sequence[float] = (0.01, 0.05, 1.0)  # of the training cells of every perturbation
    low_data: Sequence[str] = ()  # targets that are fine-tuned on
    starts: Mapping[str, str] = MappingProxyType({})  # target -> strategy; by default inputs are kept
    all_starts: Sequence[str] = ()  # targets on which the three are compared
    checkpoints: int = 5  # of pre-training
    course: int = 1  # of fine-tuning on less than all cells
    elsewhere: Sequence[str] = ()  # targets that are fine-tuned on after a pre-training without them, too
    threads: int = 1


def variant_of(ratio: float) -> str:
    """Variant of the rows at a share of the data, such as "5 %"."""
    return f"{100 * ratio:g} %"


def compare_starts(
    run: Run, study: Study, protocol: Protocol, *, pretrained: Mapping[int, Pretrained] = MappingProxyType({})
) -> None:
    """Run everything with every seed and add rows to `run`; what an interrupted run has measured stays.

    Parameters
    ----------
    run
        Where the rows go.
    study, protocol
        From `prepare`, and what is run.
    pretrained
        Pre-trainings that are there already, by seed.
    """
    for target in study.targets.values():
        _add_references(run, target, protocol)
    for seed in progress(list(protocol.seeds), "seeds"):
        networks = _Networks(study, protocol, seed, pretrained.get(seed))
        for target in study.targets.values():
            rows = _Rows(run, target, seed)
            if not rows.done(RANDOM, "shape"):
                _zero_shot(rows, networks, protocol)
            if target.name in protocol.low_data:
                for ratio in protocol.ratios:
                    _finetune(rows, networks, protocol, ratio)
            if target.name in protocol.all_starts:
                _all_starts(rows, networks, protocol)


class _Networks:
    """The pre-trainings of one seed, each made when it is first asked for."""

    def __init__(self, study: Study, protocol: Protocol, seed: int, there: Pretrained | None):
        self.study, self.protocol, self.seed = study, protocol, seed
        self.made = {} if there is None else {None: there}

    def without(self, left_out: str | None = None) -> Pretrained:
        if left_out not in self.made:
            sources = {name: cells for name, cells in self.study.sources.items() if name != left_out}
            self.made[left_out] = pretraining.pretrain(
                sources, self.study.space, self.protocol.pretraining, seed=self.seed,
                checkpoints=self.protocol.checkpoints,
            )  # fmt: skip
        return self.made[left_out]


class _Rows:
    """Adds scores of one target and seed."""

    def __init__(self, run: Run, target: Target, seed: int | None):
        self.run, self.target, self.seed = run, target, seed
        n = len(target.panel.test)
        self.sizes = {"n_real": n, "n_generated": n, "n_genes": len(target.columns)}
        self.unit = {"dataset": target.name, "split": "held-out context", "seed": seed}

    def add(self, method: str, variant: str, values: Mapping[str, float], *, item: str | None = None) -> None:
        for metric, value in values.items():
            if np.isfinite(value):
                self.run.add(
                    **self.unit, **self.sizes, method=method, metric=metric, metric_variant=variant, value=value,
                    item=item or "Table 4", direction=DIRECTIONS[metric], unit="",
                )  # fmt: skip

    def difference(self, method: str, variant: str, values: Mapping[str, float], *, item: str) -> None:
        """Differences of scores, larger is better whatever the score."""
        for metric, value in values.items():
            if np.isfinite(value):
                self.run.add(
                    **self.unit, **self.sizes, method=method, metric=metric, metric_variant=variant, value=value,
                    item=item, direction="higher", unit="difference",
                )  # fmt: skip

    def end(self, method: str, variant: str, seconds: float) -> None:
        """The last row of a piece of work."""
        self.run.add(
            **self.unit, method=method, metric="seconds", metric_variant=variant, value=seconds, item="section 5.3",
            direction="lower", unit="s",
        )  # fmt: skip

    def done(self, method: str, variant: str) -> bool:
        return self.run.done(**self.unit, method=method, metric="seconds", metric_variant=variant)

    def values(self, method: str, variant: str) -> dict[str, float]:
        frame = self.run.frame()
        chosen = frame[(frame["method"] == method) & (frame["metric_variant"] == variant)]
        chosen = chosen[(chosen["dataset"] == self.unit["dataset"]) & (chosen["seed"] == self.seed)]
        return dict(zip(chosen["metric"], chosen["value"], strict=True))


def better_by(new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, float]:
    """Per score of Table 4 that both have, how much better the new one is."""
    import pandas as pd

    out = {}
    for metric in SCORES:
        if metric in new and metric in old:
            first, second = merit(pd.Series([new[metric], old[metric]]), DIRECTIONS[metric])
            out[metric] = float(first - second)
    return out


def mean_gain(new: Mapping[str, float], old: Mapping[str, float]) -> float:
    """Mean over the scores both have of (new - old) / (|new| + |old|), turned so that better is above 0; within -1..1.

    Scores have different units; in this ratio none outweighs the others.
    """
    each = [
        gain / (abs(new[metric]) + abs(old[metric]))
        for metric, gain in better_by(new, old).items()
        if abs(new[metric]) + abs(old[metric]) > 0
    ]
    return float(np.mean(each)) if each else float("nan")


def _add_references(run: Run, target: Target, protocol: Protocol) -> None:
    rows = _Rows(run, target, None)
    rows.add(CEILING, "reference", target.scorer.ceiling.values)
    for name in REFERENCES:
        for ratio in protocol.ratios if target.name in protocol.low_data else (1.0,):
            if name == "control_cells" and ratio != protocol.ratios[-1]:
                continue  # learns nothing
            variant = "reference" if ratio == 1 else f"reference, {variant_of(ratio)}"
            train = subsample(target.panel.train, ratio, seed=0)
            made = responses.run(
                name, train, asked=target.panel.test, controls=target.panel.controls, seed=0, threads=protocol.threads
            )
            rows.add(name, variant, target.scorer.score(made).values)


def _zero_shot(rows: _Rows, networks: _Networks, protocol: Protocol) -> None:
    """Every kept step of pre-training, and the random initialisation."""
    target, network = rows.target, networks.without()
    split, curve = target.placed, {}

    def scores(step: int, sampler: SamplerSettings) -> dict[str, float]:
        made = pretraining.zero_shot(
            network, split.test, source=target.name, controls=split.controls, step=step, sampler=sampler,
            seed=rows.seed, title=None,
        )  # fmt: skip
        return target.scorer.score(target.on_panel(made)).values

    for step in network.snapshots:
        curve[step] = scores(step, protocol.sampler)
        rows.add(RANDOM if step == 0 else PRETRAINED, f"step {step}", curve[step], item="Figure 17")
    steps = [step for step in curve if step > 0]
    rows.add(RANDOM, "zero-shot", curve[0], item="Figure 6")
    rows.add(PRETRAINED, "zero-shot", curve[steps[-1]], item="Figure 6")
    rows.add("pretrained_first_epoch", "zero-shot", curve[steps[0]], item="Figure 6")
    rows.add("pretrained_last", "zero-shot", curve[steps[-1]], item="Figure 6")
    unguided = scores(steps[-1], replace(protocol.sampler, weight=0.0))
    rows.add("pretrained_unguided", "zero-shot", unguided, item="Figure 6")
    rows.difference("dip", "shape", dips(curve), item="Figure 17")
    rows.end(RANDOM, "shape", network.fit.seconds)


def dips(curve: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """How far the inner steps of a curve lie, on average, below the lower of its two ends; above 0 is a U.

    Of the mean and not of the lowest inner step, which noise alone would put below the ends.
    """
    steps = sorted(step for step in curve if step > 0)
    found = {}
    for metric in DE_SCORES:
        values = np.array([curve[step].get(metric, np.nan) for step in steps])
        if len(steps) > 2:
            found[metric] = float(min(values[0], values[-1]) - values[1:-1].mean())
    return found


def _answer(target: Target, trained: TrainedSets, split: ResponseSplit, protocol: Protocol, *, seed: int) -> np.ndarray:
    made = generate(trained, split.test, controls=split.controls, sampler=protocol.sampler, seed=seed, title=None)
    return target.on_panel(made)


def _scored(
    rows: _Rows, course: Course, split: ResponseSplit, protocol: Protocol, method: str, variant: str, *, null: bool
) -> None:
    """Scores at every kept step, and at the end under the plain variant."""
    target, seed = rows.target, rows.seed
    steps = [step for step in course.snapshots if step > 0]
    for step in steps:
        last = step == steps[-1]
        trained = course.trained if last else course.at(step)
        made = _answer(target, trained, split, protocol, seed=seed)
        again = None
        if null and last:  # the null test: cells generated for the control condition
            nothing = generate(
                trained, split.controls, controls=split.controls, sampler=protocol.sampler, seed=seed, title=None
            )
            again = target.on_panel(nothing)
        values = target.scorer.score(made, null=again).values
        if len(steps) > 1:
            rows.add(method, f"{variant}, step {step}", values, item="Figure 19")
        if last:
            rows.add(method, variant, values, item="Table 4" if variant == "100 %" else "Figure 8")
    rows.end(method, variant, course.trained.fit.seconds)


def _finetune(rows: _Rows, networks: _Networks, protocol: Protocol, ratio: float) -> None:
    """From scratch, fine-tuned, and fine-tuned from a pre-training without the target."""
    target, seed, variant = rows.target, rows.seed, variant_of(ratio)
    strategy = protocol.starts.get(target.name, "inputs_kept")
    if ratio >= 1:  # Figure 19 is about small shares
        protocol = protocol._replace(course=1)
    options = {"seed": seed, "checkpoints": protocol.course}
    few = subsample(target.panel.train, ratio, seed=seed)
    few_placed = subsample(target.placed.train, ratio, seed=seed)  # the same cells
    if not rows.done(SCRATCH, variant):
        course = finetuning.train_course(few, protocol.finetuning, **options)
        _scored(rows, course, target.panel, protocol, SCRATCH, variant, null=ratio == 1)
    if not rows.done(FINETUNED, variant):
        course, split = _from_pretrained(rows, networks.without(), few, few_placed, protocol, strategy)
        _scored(rows, course, split, protocol, FINETUNED, variant, null=ratio == 1)
    # every time: an interrupted run may have lost these rows, and those they come from not
    both = rows.values(FINETUNED, variant), rows.values(SCRATCH, variant)
    gain = better_by(*both) | {"mean_gain": mean_gain(*both)}
    rows.difference(f"gain_{100 * ratio:g}", "gain", gain, item="Figure 8")
    # inputs of a source that pre-training did not have cannot be kept
    wanted = target.name in protocol.elsewhere and ratio == min(protocol.ratios)
    if wanted and not rows.done(ELSEWHERE, variant):
        new = "inputs_new" if strategy == "inputs_kept" else strategy
        short = protocol._replace(course=1)
        course, split = _from_pretrained(rows, networks.without(target.name), few, few_placed, short, new)
        _scored(rows, course, split, protocol, ELSEWHERE, variant, null=False)


def _from_pretrained(
    rows: _Rows, network: Pretrained, panel: Populations, placed: Populations, protocol: Protocol, strategy: str
) -> tuple[Course, ResponseSplit]:
    """Fine-tune with one of the three starts; the split is on the genes that it reads."""
    target, seed = rows.target, rows.seed
    cells, split = (panel, target.panel) if strategy == "new_panel" else (placed, target.placed)
    model = finetuning.start(strategy, network, cells, source=target.name, seed=seed)
    settings = replace(protocol.finetuning, width=network.settings.width, layers=network.settings.layers)
    course = finetuning.train_course(
        cells, settings, seed=seed, model=model, checkpoints=protocol.course, title="fine-tuning"
    )
    return course, split


def _all_starts(rows: _Rows, networks: _Networks, protocol: Protocol) -> None:
    """The three strategies of C.1 on all training cells, beside three trainings from scratch."""
    target, seed = rows.target, rows.seed
    own = protocol.starts.get(target.name, "inputs_kept")
    short = protocol._replace(course=1)
    for method in (*finetuning.STARTS, "scratch_panel", "scratch_vocabulary", "scratch_longer"):
        if rows.done(method, "initialisation"):
            continue
        there = {own: FINETUNED, "scratch_panel": SCRATCH}.get(method)
        if there and rows.done(there, "100 %"):  # the same training
            values = {k: v for k, v in rows.values(there, "100 %").items() if k in DIRECTIONS}
            rows.add(method, "initialisation", values, item="appendix C.1")
            rows.end(method, "initialisation", 0.0)
            continue
        panel, placed = target.panel, target.placed
        if method.startswith("scratch"):
            split = placed if method == "scratch_vocabulary" else panel
            settings = protocol.finetuning
            if method == "scratch_longer":
                settings = replace(settings, steps=settings.steps + protocol.pretraining.steps)
            course = finetuning.train_course(split.train, settings, seed=seed)
        else:
            course, split = _from_pretrained(rows, networks.without(), panel.train, placed.train, short, method)
        values = target.scorer.score(_answer(target, course.trained, split, protocol, seed=seed)).values
        rows.add(method, "initialisation", values, item="appendix C.1")
        rows.end(method, "initialisation", course.trained.fit.seconds)
