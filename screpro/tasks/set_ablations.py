"""What PerturbDiff's parts are worth: variants of training and of sampling, on the same held-out responses.

Section 5.5 and Figure 9 take the energy distance out of the loss. The paper's argument rests on more than that, none of
it tested there: that sets are diffused and not cells, that controls are those of the same context and batch, that which
control stands beside which cell means nothing. Each is one variant here, everything else as in the main model.

Variants of training have a network of their own for each seed; variants of sampling share that of the main model. Sets
of another size have as many cells in a mini-batch, so that compute is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from screpro.errors import ScreproError
from screpro.records import Run
from screpro.tasks.responses import DIRECTIONS, ResponseSplit, Scorer
from screpro.tasks.responses_experiment import FAITHFUL, joined, null_cells
from screpro.tasks.set_diffusion import SamplerSettings, SetDiffusionSettings, TrainedSets, generate, train
from screpro.tasks.tuning import checkpoint_file, progress

__all__ = ["SAMPLINGS", "TRAININGS", "Ablation", "Protocol", "compare_variants", "paired_change", "settings_of"]


class Ablation(NamedTuple):
    """One variant: what is changed, and where the question comes from."""

    title: str
    item: str  # of the paper
    changes: Mapping[str, Any]


TRAININGS = {
    FAITHFUL: Ablation("PerturbDiff", "Figure 9", {}),
    "squares_only": Ablation("without the energy distance", "Figure 9", {"scale": "squares only"}),
    "paper_scale": Ablation("the two terms as printed", "Figure 9", {"scale": "paper"}),
    "energy_only": Ablation("the energy distance alone", "Figure 9", {"scale": "energy only"}),
    "set_size_1": Ablation("sets of 1 cell", "sections 1 and 4.1", {"set_size": 1}),
    "set_size_8": Ablation("sets of 8 cells", "sections 1 and 4.1", {"set_size": 8}),
    "controls_shuffled": Ablation("trained with controls of any context", "section 1", {"controls": "shuffled"}),
    "controls_none": Ablation("no controls", "section 1", {"controls": "none"}),
    "token_attention": Ablation("attention between tokens", "Figure 2", {"attention": "tokens"}),
    "sequential_mlp": Ablation("MLP after attention", "eq. 38-44", {"mlp": "sequential"}),
    "gene_vectors": Ablation("frozen vectors of genes", "section B.3", {"gene_vectors": 32}),
    "less_dropping": Ablation("covariates dropped in 1 of 10 batches", "eq. 35", {"drop": 0.1}),
    "unit_input": Ablation("genes divided by their spread", "section A.2", {"input_scale": "unit"}),
    "less_noise": Ablation("a tenth of the noise", "eq. 27-29", {"noise_shift": 0.1}),
}
"""A network each."""

SAMPLINGS = {
    "last_hundred": Ablation("the last 100 steps alone, as the code", "eq. 34", {"start": "last", "steps": 100}),
    "last_start": Ablation("the last steps alone", "eq. 34", {"start": "last"}),
    "one_step": Ablation("one step", "eq. 34", {"steps": 1}),
    "guidance_0": Ablation("no guidance", "eq. 35", {"weight": 0.0}),
    "guidance_3": Ablation("guidance 3", "eq. 35", {"weight": 3.0}),
    "controls_permuted": Ablation("controls permuted inside sets", "section 1", {"shuffle_controls": True}),
    "fresh_noise": Ablation("fresh noise in every step", "eq. 34", {"eta": 1.0}),
}
"""Drawn from the network of `FAITHFUL`."""


class Protocol(NamedTuple):
    """How variants are run."""

    dataset: str  # name in the result rows
    split: str
    seeds: Sequence[int]
    training: SetDiffusionSettings
    sampler: SamplerSettings
    threads: int = 1


def settings_of(training: SetDiffusionSettings, name: str) -> SetDiffusionSettings:
    """Settings of a variant of training; sets of another size come in as many cells.

    Raises
    ------
    ScreproError
        There is no such variant.
    """
    if name not in TRAININGS:
        raise ScreproError("A variant has a name.", got=repr(name), fix=f"choose among {', '.join(TRAININGS)}")
    changed = replace(training, **TRAININGS[name].changes)
    return replace(changed, sets=max(1, training.sets * training.set_size // changed.set_size))


def compare_variants(
    run: Run,
    split: ResponseSplit,
    protocol: Protocol,
    *,
    trainings: Sequence[str] = tuple(TRAININGS),
    samplings: Sequence[str] = tuple(SAMPLINGS),
) -> None:
    """Train, draw and score every variant with every seed; rows that an interrupted run has stay.

    Parameters
    ----------
    run
        Where the rows go.
    split, protocol
        What is known and asked, and how much is trained.
    trainings, samplings
        Which variants. The main model is trained in any case.
    """
    scorer = Scorer(split.test, split.controls)
    for name, value in scorer.ceiling.values.items():
        _add(run, protocol, "split_half", "Figure 9", None, name, value, scorer)
    untreated = scorer.score(scorer.unconditional(rng=np.random.default_rng(0)))
    for name, value in untreated.values.items():  # a network that is behind these says little about its parts
        _add(run, protocol, "control_cells", "Figure 9", None, name, value, scorer)
    names = [FAITHFUL, *(name for name in trainings if name != FAITHFUL)]
    for seed in protocol.seeds:
        for name in progress(names, f"{protocol.dataset}, seed {seed}"):
            wanted = [FAITHFUL, *samplings] if name == FAITHFUL else [name]
            wanted = [variant for variant in wanted if not _done(run, protocol, variant, seed)]
            if not wanted:
                continue
            settings = settings_of(protocol.training, name)
            file = checkpoint_file(run, protocol.dataset, protocol.split, seed, asdict(settings))
            trained = train(
                split.train, settings, seed=seed, threads=protocol.threads, checkpoint=file, title=TRAININGS[name].title
            )
            for variant in wanted:
                changes = SAMPLINGS[variant].changes if variant in SAMPLINGS else {}
                sampler = replace(protocol.sampler, **changes)
                _score(run, split, scorer, protocol, trained, sampler, variant, seed)


def _score(
    run: Run,
    split: ResponseSplit,
    scorer: Scorer,
    protocol: Protocol,
    trained: TrainedSets,
    sampler: SamplerSettings,
    variant: str,
    seed: int,
) -> None:
    """Rows of one variant; the seconds are the last."""
    asked = joined(split.test, null_cells(split.controls))
    # in sets as large as in training: a network of single cells draws them one by one
    made = generate(trained, asked, controls=split.controls, sampler=sampler, seed=seed, title=None)
    scores = scorer.score(made[: len(split.test)], null=made[len(split.test) :])
    item = (SAMPLINGS.get(variant) or TRAININGS[variant]).item
    for name, value in scores.values.items():
        _add(run, protocol, variant, item, seed, name, value, scorer)
    if sampler.shuffle_controls:
        value = paired_change(trained, split, sampler, seed=seed)
        shares = {"unit": "share of the distance between two samplings", "direction": "lower"}
        run.add(**_unit(protocol, variant, seed), item=item, metric="paired_change", value=value, **shares)
    seconds = {"metric": "train_seconds", "value": trained.fit.seconds, "unit": "s", "direction": "lower"}
    run.add(**_unit(protocol, variant, seed), item=item, **seconds)


def paired_change(trained: TrainedSets, split: ResponseSplit, sampler: SamplerSettings, *, seed: int) -> float:
    """How far cells move when the controls of their set are permuted, the noise they start from being the same.

    Root mean square change of a generated cell, in units of that between two samplings with different noise, sets and
    controls. Scores cannot tell, for controls are drawn at random anyway and every order of them is as likely.

    Parameters
    ----------
    trained, split, sampler
        A network, what is asked of it, and how.
    seed
        Of both draws that are compared; the two samplings have this and the next.

    Returns
    -------
    float
        0: which control stands beside which cell means nothing.
    """
    ways = (replace(sampler, shuffle_controls=shuffled) for shuffled in (False, True, False))
    plain, permuted, other = (
        generate(trained, split.test, controls=split.controls, sampler=way, seed=own, title=None)
        for way, own in zip(ways, (seed, seed, seed + 1), strict=True)
    )
    return float(np.sqrt(np.square(permuted - plain).mean() / np.square(other - plain).mean()))


def _unit(protocol: Protocol, variant: str, seed: int | None) -> dict[str, Any]:
    return {"dataset": protocol.dataset, "split": protocol.split, "method": variant, "seed": seed}


def _done(run: Run, protocol: Protocol, variant: str, seed: int) -> bool:
    return run.done(**_unit(protocol, variant, seed), metric="train_seconds")


def _add(
    run: Run, protocol: Protocol, variant: str, item: str, seed: int | None, name: str, value: float, scorer: Scorer
) -> None:
    """One row; a score that is defined for no perturbation, or infinite, has none."""
    if value == value and abs(value) != float("inf"):
        n = len(scorer.asked)
        run.add(
            **_unit(protocol, variant, seed), item=item, metric=name, value=value, direction=DIRECTIONS[name],
            n_real=n, n_generated=n, n_genes=len(scorer.asked.genes),
        )  # fmt: skip
