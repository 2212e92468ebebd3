"""The experiment behind the one-shot page: class and text conditioners of scDiff with few labels (section 4.2.1).

For every seed each conditioner is pre-trained once on the majority types. A split is a draw of labelled cells: the
copies are fine-tuned on n of them per type, scored on the other cells of the target types, and beside them baselines
are given the same cells. Then types are added one at a time to see what a close relative costs (appendix E.4).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from screpro.baselines import few_shot as baselines
from screpro.metrics.classification import classification_scores, macro_f1
from screpro.models.scdiff import ScDiff
from screpro.records import Run
from screpro.tasks.annotation import Labelled
from screpro.tasks.cells import Cells
from screpro.tasks.few_shot import FewShotSettings, Partition, classify, draw_shots, fine_tune, pretrain
from screpro.tasks.tuning import progress

__all__ = ["CONDITIONERS", "METHODS", "Joining", "Protocol", "compare_few_shot", "joining_types", "setting"]

CONDITIONERS = ["scdiff_class", "scdiff_text", "scdiff_text_shuffled"]
"""Kinds of scDiff; the last has every type's definition given to another type."""

METHODS = [*CONDITIONERS, *baselines.FEW_SHOT, "ceiling", "joining"]
"""Every method of the page; ``joining`` is the study of one more type."""

NO_CURVE = {"scdiff_text_shuffled", "celltypist_all"}
"""Methods that are slow and have nothing to say about the number of types."""

FIGURES = {"macro_f1": "Figure 7", "macro_precision": "Figure 6", "macro_recall": "Figure 6", "accuracy": "Figure 6"}
CURVES = {"macro_f1": "Figure 5", "macro_precision": "Figure 2", "macro_recall": "Figure 2", "accuracy": "Figure 2"}


class Protocol(NamedTuple):
    """How the comparison is run."""

    dataset: str  # name in the result rows
    splits: Sequence[int]  # draws of labelled cells
    seeds: Sequence[int]  # weights and noise
    base: FewShotSettings
    shots: Sequence[int] = (1, 2, 5, 10)
    n_targets: int = 5
    curve: Sequence[int] = ()  # other numbers of target types to be tried with one shot
    max_test: int | None = None  # scored cells of each type
    threads: int = 1

    @property
    def pool(self) -> int:
        """Cells of each type that are set apart for labelling."""
        return max(self.shots)


class Joining(NamedTuple):
    """Types to start with, and the two of which one joins."""

    base: list[int]
    related: int
    unrelated: int
    nearest: int  # the base type that `related` resembles most
    similarity: tuple[float, float]  # largest correlation with a base type: related, unrelated


def setting(shots: int, n_targets: int) -> str:
    """Name of a setting in the result rows: "1 shot", "5 shots", and with other than 5 targets "1 shot, k = 4"."""
    words = f"{shots} shot{'' if shots == 1 else 's'}"
    return words if n_targets == 5 else f"{words}, k = {n_targets}"


def joining_types(labelled: Labelled, part: Partition, *, largest_base: int = 4) -> Joining | None:
    """Choose the types for the study of one more type; None with fewer than four target types.

    Likeness is the correlation of mean log-expression, taken relative to the mean over all types of the data set: it
    would otherwise be near 1 for every pair. The related type is the smaller of the two most alike targets, the
    unrelated one resembles no other target. Labels of every cell are used, to set up the question and not to answer
    it.
    """
    targets = part.targets
    if len(targets) < 4:
        return None
    cells = labelled.cells
    means = np.stack(
        [np.asarray(cells.x[cells.cell_type == k].mean(axis=0)).ravel() for k in range(len(labelled.types))]
    )
    like = np.corrcoef((means - means.mean(axis=0))[targets])
    np.fill_diagonal(like, -np.inf)
    first, second = sorted(np.unravel_index(like.argmax(), like.shape))
    others = [i for i in range(len(targets)) if i not in (first, second)]
    alone = min(others, key=lambda i: like[i].max())
    base = [first, *[i for i in others if i != alone]][:largest_base]
    return Joining(
        [targets[i] for i in sorted(base)],
        targets[second],
        targets[alone],
        targets[base[int(like[second, base].argmax())]],
        (float(like[second, base].max()), float(like[alone, base].max())),
    )


def compare_few_shot(
    run: Run,
    labelled: Labelled,
    part: Partition,
    protocol: Protocol,
    embeddings: Tensor,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[tuple[str, int], ScDiff] = MappingProxyType({}),
) -> None:
    """Run every method on every draw and seed and add its rows to `run`; what is there already is not repeated.

    Parameters
    ----------
    run
        Where the rows go.
    labelled, part, protocol, methods
        Cells, which types are targets, how they are drawn and what is run on them.
    embeddings
        (K + 1, E) embedded definitions, the null text first.
    trained
        Pre-trained networks that are there already, by (conditioner, seed).
    """
    units = [
        (method, split, seed)
        for method in methods
        for seed in (protocol.seeds if method in (*CONDITIONERS, "chance", "joining") else [None])
        for split in protocol.splits
    ]
    networks = _Networks(run, labelled, part, protocol, embeddings, trained)
    majority = baselines.Majority(labelled.cells.take(np.flatnonzero(part.majority)))
    for method, split, seed in progress(units, protocol.dataset):
        if method in CONDITIONERS:
            _score_scdiff(run, labelled, part, protocol, networks, method, split, seed)
        elif method == "joining":
            _score_joining(run, labelled, part, protocol, networks, split, seed)
        elif method == "ceiling":
            _score_ceiling(run, labelled, part, protocol, split)
        else:
            _score_baseline(run, labelled, part, protocol, majority, method, split, seed)
    networks.forget()


class _Networks:
    """Pre-trained networks by (conditioner, seed), each trained at its first use."""

    def __init__(self, run, labelled, part, protocol, embeddings, trained):
        self.run, self.labelled, self.part, self.protocol = run, labelled, part, protocol
        self.embeddings, self.held, self.files = embeddings, dict(trained), []

    def __call__(self, method: str, seed: int) -> ScDiff:
        if (method, seed) not in self.held:
            protocol, majority = self.protocol, self.labelled.cells.take(np.flatnonzero(self.part.majority))
            unit = [protocol.dataset, method, seed, len(majority.cell_type), asdict(protocol.base)]
            name = hashlib.sha256(json.dumps(unit, sort_keys=True).encode()).hexdigest()[:16]
            checkpoint = self.run.folder / "checkpoints" / f"few-shot-{name}.safetensors"
            self.files.append(checkpoint)
            done = pretrain(
                majority,
                n_types=len(self.labelled.types),
                n_batches=len(self.labelled.batches),
                settings=protocol.base,
                embeddings=self._texts(method, seed),
                seed=seed,
                threads=protocol.threads,
                checkpoint=checkpoint,
            )
            self.held[method, seed] = done.model
        return self.held[method, seed]

    def _texts(self, method: str, seed: int) -> Tensor | None:
        if method == "scdiff_class":
            return None
        if method == "scdiff_text":
            return self.embeddings
        return shuffled(self.embeddings, seed)

    def forget(self) -> None:
        files: list[Path] = self.files
        for file in files:
            file.unlink(missing_ok=True)


def shuffled(embeddings: Tensor, seed: int) -> Tensor:
    """Every type gets the text of another type: rows from 1 on a random cycle; the null text stays in row 0."""
    order = np.random.default_rng(seed).permutation(np.arange(1, len(embeddings)))
    mixed = embeddings.clone()
    mixed[torch.as_tensor(order)] = embeddings[torch.as_tensor(np.roll(order, 1))]
    return mixed


def _settings(protocol: Protocol, method: str, n_available: int) -> Iterator[tuple[int, int]]:
    """(shots, number of targets): the main comparison first, then the curve over the number of types."""
    yield from ((shots, min(protocol.n_targets, n_available)) for shots in protocol.shots)
    if method in NO_CURVE:
        return
    yield from ((1, k) for k in protocol.curve if k <= n_available and k != protocol.n_targets)


def _cells(labelled: Labelled, protocol: Protocol, targets: Sequence[int], shots: int, split: int):
    """Labelled and scored cells of one setting."""
    draw = draw_shots(labelled.cells.cell_type, targets, pool=protocol.pool, split=split, max_test=protocol.max_test)
    return labelled.cells.take(draw.pool[:, :shots].ravel()), labelled.cells.take(draw.test)


def _add(run: Run, unit: dict, variant: str, test: Cells, predicted: np.ndarray, items: Mapping[str, str]) -> None:
    sizes = {"n_real": len(test.cell_type), "n_genes": len(test.genes)}
    for metric, value in classification_scores(test.cell_type, predicted).items():
        run.add(
            **unit,
            **sizes,
            item=items[metric],
            metric=metric,
            metric_variant=variant,
            value=value,
            unit="fraction",
            direction="higher",
        )


def _items(protocol: Protocol, method: str, k: int) -> Mapping[str, str]:
    if method == "scdiff_text_shuffled":
        return dict.fromkeys(FIGURES, "X-9")
    return FIGURES if k == protocol.n_targets else CURVES


def _score_scdiff(run, labelled, part, protocol, networks, method, split, seed) -> None:
    unit = {"dataset": protocol.dataset, "split": str(split), "method": method, "seed": seed}
    for shots, k in _settings(protocol, method, len(part.targets)):
        variant, targets = setting(shots, k), part.targets[:k]
        if run.done(**unit, metric="macro_f1", metric_variant=variant):
            continue
        labels, test = _cells(labelled, protocol, targets, shots, split)
        model = fine_tune(networks(method, seed), labels, protocol.base, seed=seed)
        answer = classify(model, test, labels, targets, protocol.base, seed=seed)
        _add(run, unit, variant, test, answer.searched, _items(protocol, method, k))
        if len(labelled.batches) > 1:
            extra = dict.fromkeys(FIGURES, "X-10")
            _add(run, unit, f"{variant}, batch given", test, answer.batch_given, extra)
    k = min(protocol.n_targets, len(part.targets))
    variant = setting(0, k)
    if not run.done(**unit, metric="macro_f1", metric_variant=variant):
        targets = part.targets[:k]
        _, test = _cells(labelled, protocol, targets, 1, split)
        answer = classify(networks(method, seed), test, None, targets, protocol.base, seed=seed)
        _add(run, unit, variant, test, answer.searched, dict.fromkeys(FIGURES, "X-11"))


def _score_baseline(run, labelled, part, protocol, majority, method, split, seed) -> None:
    unit = {"dataset": protocol.dataset, "split": str(split), "method": method, "seed": seed}
    for shots, k in _settings(protocol, method, len(part.targets)):
        variant, targets = setting(shots, k), part.targets[:k]
        if run.done(**unit, metric="macro_f1", metric_variant=variant):
            continue
        labels, test = _cells(labelled, protocol, targets, shots, split)
        predicted = baselines.run(
            method,
            labels,
            majority,
            test,
            n_types=len(labelled.types),
            seed=seed or 0,
            threads=protocol.threads,
        )
        _add(run, unit, variant, test, predicted, _items(protocol, method, k))


def _score_ceiling(run, labelled, part, protocol, split) -> None:
    unit = {"dataset": protocol.dataset, "split": str(split), "method": "ceiling", "seed": None}
    targets = part.targets[: protocol.n_targets]
    if run.done(**unit, metric="macro_f1", metric_variant="all labels"):
        return
    draw = draw_shots(labelled.cells.cell_type, targets, pool=protocol.pool, split=split, max_test=protocol.max_test)
    rows = np.flatnonzero(np.isin(labelled.cells.cell_type, targets))
    predicted = baselines.ceiling(labelled.cells.take(rows), np.searchsorted(rows, draw.test), seed=split)
    _add(run, unit, "all labels", labelled.cells.take(draw.test), predicted, FIGURES)


def _score_joining(run, labelled, part, protocol, networks, split, seed) -> None:
    """One shot, class conditioner: macro F1 before a type joins minus macro F1 after."""
    types = joining_types(labelled, part)
    names = {"related type joins": "related", "unrelated type joins": "unrelated"}
    unit = {"dataset": protocol.dataset, "split": str(split), "seed": seed}
    if types is None or all(run.done(**unit, method=name, metric="macro_f1_fall") for name in names):
        return

    def score(targets: list[int]) -> tuple[float, int]:
        labels, test = _cells(labelled, protocol, targets, 1, split)
        model = fine_tune(networks("scdiff_class", seed), labels, protocol.base, seed=seed)
        answer = classify(model, test, labels, targets, protocol.base, seed=seed)
        return macro_f1(test.cell_type, answer.searched), len(test.cell_type)

    before, _ = score(types.base)
    for name, which in names.items():
        after, n = score([*types.base, getattr(types, which)])
        run.add(
            **unit,
            method=name,
            item="Figure 5",
            metric="macro_f1_fall",
            metric_variant="",
            n_real=n,
            n_genes=len(labelled.cells.genes),
            value=before - after,
            unit="fraction",
            direction="higher",  # of the statement: claim S7 asks which type makes the score fall further
        )
