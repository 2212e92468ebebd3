"""Training PerturbDiff on populations of cells, and drawing populations from it (protocol 2 and 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from screpro.data.populations import Populations, Sets, gather
from screpro.errors import ScreproError
from screpro.kernels.pca import pca
from screpro.losses_sets import Batch, HybridLoss
from screpro.models.perturbdiff import PerturbDiff, PerturbDiffConfig
from screpro.processes.gaussian import Schedule, linear, shifted
from screpro.samplers.ddim import strided
from screpro.samplers.set_ddim import guided, last, sample_sets
from screpro.training import Fit, TrainConfig, fit

__all__ = [
    "SamplerSettings",
    "SetDiffusionSettings",
    "SetDrawer",
    "TrainedSets",
    "divisor_of",
    "gene_vectors",
    "generate",
    "train",
]

MOST_SETS = 2**22
"""Numbers in the sets that go through the network together when sampling."""


@dataclass(frozen=True)
class SetDiffusionSettings:
    """Size and training. What the paper and its code state: AdamW (.9, .98), decay .01, clip 1, EMA, drop 1/2."""

    width: int = 128
    layers: int = 4
    heads: int = 8
    set_size: int = 32  # m; the paper: 256, on Replogle 32
    sets: int = 4  # sets in a mini-batch
    steps: int = 3000
    learning_rate: float = 2e-3  # Replogle's; PBMC and Tahoe: 2e-4
    warmup_steps: int = 200
    ema: float = 0.999  # the code's .99 every 10 steps
    scale: str = "code"  # of the loss, see losses_sets
    drop: float = 0.5
    self_condition: float = 0.5
    controls: str = "matched"  # "shuffled": of any context and batch; "none": zeros
    input_scale: str = "tenth"  # "unit": every gene divided by its standard deviation, the repair variant
    noise_shift: float = 1.0  # below 1: noise of every step smaller by about that factor, the repair variant
    attention: str = "features"
    mlp: str = "parallel"
    gene_vectors: int = 0  # size of frozen vectors of genes (`gene_vectors`) beside the one learned for all; 0: none


@dataclass(frozen=True)
class SamplerSettings:
    """How sets are drawn. The paper: 100 steps spread over the schedule, weight 1."""

    steps: int = 100
    start: str = "strided"  # "last": the authors' default, the last `steps` steps only
    weight: float = 1.0  # w of guidance; 0 is the conditional prediction alone
    eta: float = 0.0  # 1 over all steps is DDPM
    threshold: float = 1e-4
    shuffle_controls: bool = False  # controls permuted among the cells of a set, which should change little


@dataclass(frozen=True)
class TrainedSets:
    """A trained network, its scale and what training took."""

    model: PerturbDiff
    settings: SetDiffusionSettings
    divisor: np.ndarray  # (G,) what log-normalised values are divided by
    labels: tuple[str, ...]  # attributes it is told
    fit: Fit
    schedule: Schedule = field(repr=False)


def schedule_of(settings: SetDiffusionSettings) -> Schedule:
    """Noise schedule: DDPM's linear one, shifted to less noise if asked for."""
    plain = linear()
    return plain if settings.noise_shift == 1 else shifted(plain, settings.noise_shift)


def divisor_of(x: sp.csr_matrix, input_scale: str) -> np.ndarray:
    """(G,) divisor of log-normalised values: 10 everywhere, or each gene's standard deviation.

    Raises
    ------
    ScreproError
        The scale has no such name.
    """
    if input_scale == "tenth":
        return np.full(x.shape[1], 10.0, dtype=np.float32)
    if input_scale != "unit":
        raise ScreproError("Values are scaled in one of two ways.", got=repr(input_scale), fix="choose tenth or unit")
    mean = np.asarray(x.mean(0), dtype=np.float64).ravel()
    square = np.asarray(x.multiply(x).mean(0), dtype=np.float64).ravel()
    # a gene seen in a handful of cells would otherwise be blown up
    return np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), 0.05).astype(np.float32)


class SetDrawer:
    """Draws sets of cells for training: item numbers count sets, and which cells are in one is drawn with it.

    A group of n cells stands for ceil(n / m) items, so every cell is seen about once in an epoch. All randomness is the
    generator's, which makes a resumed training exact.
    """

    def __init__(self, cells: Populations, settings: SetDiffusionSettings, divisor: np.ndarray, labels: Sequence[str]):
        self.cells, self.settings, self.divisor, self.labels = cells, settings, divisor, tuple(labels)
        order = np.argsort(cells.group(), kind="stable")
        _, start, count = np.unique(cells.group()[order], return_index=True, return_counts=True)
        self.order, self.start, self.count = order, start, count
        self.item_group = np.repeat(np.arange(len(start)), -(-count // settings.set_size))
        if settings.controls not in ("matched", "shuffled", "none"):
            raise ScreproError(
                "Controls are matched, shuffled or none.", got=repr(settings.controls), fix="choose one of these"
            )
        if settings.controls != "none":
            first = order[start]
            cells.matched(cells.context[first], cells.batch[first], 1, rng=np.random.default_rng(0))  # or an error now

    def __len__(self) -> int:
        return len(self.item_group)

    def __call__(self, items: Tensor, generator: torch.Generator) -> Batch:
        size, device = self.settings.set_size, generator.device
        seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
        rng = np.random.default_rng(seed)
        groups = self.item_group[items.cpu().numpy()]
        picked = [
            rng.choice(n, size, replace=False) if n >= size else rng.permutation(np.resize(rng.permutation(n), size))
            for n in self.count[groups]
        ]
        rows = self.order[self.start[groups, None] + np.array(picked)]
        first = rows[:, 0]
        context, batch = self.cells.context[first], self.cells.batch[first]
        control = None
        if self.settings.controls == "shuffled":
            control = rng.choice(np.flatnonzero(self.cells.is_control), rows.shape)
        elif self.settings.controls == "matched":
            control = self.cells.matched(context, batch, size, rng=rng)
        dense = gather(self.cells.x, rows if control is None else np.stack([rows, control]), self.divisor)
        both = torch.from_numpy(dense).to(device)
        codes = {"perturbation": self.cells.perturbation[first], "context": context, "batch": batch}
        labels = {name: torch.from_numpy(codes[name]).to(device) for name in self.labels}
        x0, controls = (both, None) if control is None else (both[0], both[1])
        return Batch(x0, controls, labels)


def told(cells: Populations) -> dict[str, int]:
    """Attributes with more than one label, and their numbers: what the network is told."""
    return {name: n for name, n in cells.labels.items() if n > 1}


def build(
    cells: Populations,
    settings: SetDiffusionSettings,
    *,
    labels: dict[str, int],
    seed: int,
    semantic: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> PerturbDiff:
    """A network for the genes and labels of `cells`, its weights a function of `seed`; `semantic` as for `train`."""
    semantic = semantic or {}
    names = {"perturbation": cells.perturbations, "context": cells.contexts, "batch": cells.batches}
    if unknown := [attribute for attribute in semantic if attribute not in labels or not semantic[attribute]]:
        raise ScreproError(
            "Frozen vectors belong to an attribute with several labels, and there is at least one.",
            got=", ".join(unknown),
            fix=f"pass vectors for {', '.join(labels) or 'none: nothing varies in these cells'}",
        )
    config = PerturbDiffConfig(
        n_genes=len(cells.genes),
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        labels={attribute: n for attribute, n in labels.items() if attribute not in semantic},
        semantic={attribute: (labels[attribute], len(next(iter(v.values())))) for attribute, v in semantic.items()},
        label_width=min(128, settings.width),
        attention=settings.attention,
        mlp=settings.mlp,
        gene_vectors=settings.gene_vectors,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # modules draw their initial weights from the global generator
        model = PerturbDiff(config)
    if settings.gene_vectors:
        model.genes.copy_(torch.from_numpy(gene_vectors(cells.x, settings.gene_vectors)))
    for attribute, vectors in semantic.items():
        control = cells.perturbations[0] if attribute == "perturbation" else None
        model.set_semantic(attribute, vectors, names=names[attribute], control=control)
    return model


def gene_vectors(x: sp.csr_matrix, size: int) -> np.ndarray:
    """A vector of length 1 for every gene (G, size) that says which genes it varies with: its loadings on components.

    Stands in for vectors that a language model makes of summaries of genes. Genes that never vary get zeros; where
    cells or genes are so few that there are fewer components, the last numbers are zeros.
    """
    found = pca(x, min(size, x.shape[0] - 1, x.shape[1]))
    loadings = found.axes * np.sqrt(found.variance)
    length = np.linalg.norm(loadings, axis=1, keepdims=True)
    varies = length > 1e-6 * length.max()  # rounding leaves others a direction too
    vectors = np.where(varies, loadings / np.where(varies, length, 1), 0).astype(np.float32)
    return np.pad(vectors, ((0, 0), (0, size - vectors.shape[1])))


def train_config(settings: SetDiffusionSettings, n_items: int, *, seed: int) -> TrainConfig:
    """Protocol 2.3: warm-up, a tenth of all steps at full rate, half a cosine to a tenth of it.

    Whole epochs, at least one: the number of steps is the nearest that has them.
    """
    return TrainConfig(
        epochs=max(1, round(settings.steps / -(-n_items // settings.sets))),
        batch_size=settings.sets,
        learning_rate=settings.learning_rate,
        schedule="flat cosine",
        warmup=min(0.5, settings.warmup_steps / settings.steps),
        weight_decay=0.01,
        betas=(0.9, 0.98),
        clip=1.0,
        ema=settings.ema,
        seed=seed,
    )


def train(
    cells: Populations,
    settings: SetDiffusionSettings,
    *,
    seed: int,
    threads: int | None = None,
    model: PerturbDiff | None = None,
    semantic: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    checkpoint: Path | None = None,
    title: str = "PerturbDiff",
) -> TrainedSets:
    """Train on sets of cells, control cells among them under their own label; the averaged weights are kept.

    Parameters
    ----------
    cells
        Training cells, and the control cells of every context.
    settings
        Size, loss and length.
    seed
        Of weights, order and noise.
    threads
        Limits torch for the whole process.
    model
        A network to start from, such as a pre-trained one; by default a new one.
    semantic
        Attribute ("perturbation", "context" or "batch") -> name of a label -> its frozen vector, in the place of a
        learned table: of a language model of genes, cell types or drugs for example. Of a new network. The control
        needs none (``PerturbDiff.set_semantic``).
    checkpoint
        As for ``training.fit``.
    title
        Of the progress bar.

    Raises
    ------
    ScreproError
        A group of cells has no control to be matched with, or settings are out of range.
    """
    if threads:
        torch.set_num_threads(threads)
    labels = told(cells)
    divisor = divisor_of(cells.x, settings.input_scale)
    draw = SetDrawer(cells, settings, divisor, tuple(labels))
    model = build(cells, settings, labels=labels, seed=seed, semantic=semantic) if model is None else model
    schedule = schedule_of(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loss = HybridLoss(
        draw, schedule.to(device), scale=settings.scale, drop=settings.drop, self_condition=settings.self_condition
    )
    fitted = fit(
        model, loss, len(draw), train_config(settings, len(draw), seed=seed), checkpoint=checkpoint, title=title
    )
    model.load_state_dict(fitted.average)
    return TrainedSets(model.eval(), settings, divisor, tuple(labels), fitted, schedule)


@torch.no_grad()
def generate(
    trained: TrainedSets,
    asked: Populations,
    *,
    controls: Populations,
    sampler: SamplerSettings = SamplerSettings(),
    set_size: int | None = None,
    seed: int,
    title: str | None = "sampling",
) -> np.ndarray:
    """One generated cell for every cell asked for, drawn set by set.

    Parameters
    ----------
    trained
        From `train`.
    asked
        Cells whose labels are asked for; their expression is not read.
    controls
        Cells whose controls are shown to the network, of the same genes and codes.
    sampler
        Steps, guidance and so on.
    set_size
        Cells in a set; by default that of training.
    seed
        Of sets, matched controls and noise.
    title
        Of the progress bar.

    Returns
    -------
    (n, G) float32 log1p-normalised expression in the order of `asked`; padding is removed.
    """
    rng = np.random.default_rng(seed)
    size = set_size or trained.settings.set_size
    sets = asked.sets(size, rng=rng, controls=controls)
    n_genes = len(asked.genes)
    out = np.empty((len(asked), n_genes), dtype=np.float32)
    device = trained.model.leave.weight.device
    generator = torch.Generator(device=device).manual_seed(seed)
    schedule = trained.schedule.to(device)
    times = strided(schedule, sampler.steps) if sampler.start == "strided" else last(sampler.steps)
    at_once = max(1, MOST_SETS // (size * n_genes))
    for first in range(0, len(sets.rows), at_once):
        part = sets.take(slice(first, first + at_once))
        predict = denoiser(trained, part, controls, sampler, rng)
        drawn = sample_sets(
            predict, (len(part.rows), size, n_genes), schedule=schedule, times=times, generator=generator,
            eta=sampler.eta, threshold=sampler.threshold, title=title,
        ).cpu().numpy()  # fmt: skip
        kept = ~part.padding
        out[part.rows[kept]] = drawn[kept] * trained.divisor
    return out


def denoiser(
    trained: TrainedSets, sets: Sets, controls: Populations, sampler: SamplerSettings, rng: np.random.Generator
):
    """(x_t, t, previous) -> guided x_0 of these sets; with guidance both branches go through the network together."""
    model = trained.model
    device = model.leave.weight.device
    rows = rng.permuted(sets.controls, axis=1) if sampler.shuffle_controls else sets.controls
    control = None
    if trained.settings.controls != "none":
        control = torch.from_numpy(gather(controls.x, rows, trained.divisor)).to(device)
    labels = {name: torch.from_numpy(sets.labels[name]).to(device) for name in trained.labels}
    n = len(rows)
    if sampler.weight == 0:
        return lambda x, t, previous: model(x, t, control=control, labels=labels, previous=previous)
    twice = {name: label.repeat(2) for name, label in labels.items()}
    both = None if control is None else control.repeat(2, 1, 1)
    dropped = torch.arange(2 * n, device=device) >= n

    def predict(x: Tensor, t: Tensor, previous: Tensor | None) -> Tensor:
        shown = None if previous is None else previous.repeat(2, 1, 1)
        x0 = model(x.repeat(2, 1, 1), t.repeat(2), control=both, labels=twice, dropped=dropped, previous=shown)
        return guided(x0[:n], x0[n:], sampler.weight)

    return predict
