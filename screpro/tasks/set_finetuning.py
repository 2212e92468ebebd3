"""Three ways to start fine-tuning PerturbDiff from a pre-trained network (appendix C.1), and training with a course.

Output layers, the last linear map and its modulation, are always new. So are the tables of covariates, that of the
contexts included, and their mixing: pre-training knows contexts alone. Everything else is taken over, but for the
layers that read genes:

    inputs_kept   the vocabulary and the entrance of the source stay       the paper's choice for PBMC
    inputs_new    the vocabulary stays, the entrance is new                for Replogle
    new_panel     another list of genes: all layers that read it are new   for Tahoe

The entrance of the control stream never saw a cell in pre-training; where it is kept, its weights are random ones.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from screpro.data.populations import Populations
from screpro.errors import ScreproError
from screpro.losses_sets import HybridLoss
from screpro.models.perturbdiff import PerturbDiff
from screpro.tasks.set_diffusion import (
    SetDiffusionSettings,
    SetDrawer,
    TrainedSets,
    build,
    divisor_of,
    schedule_of,
    told,
    train_config,
)
from screpro.tasks.set_pretraining import Pretrained
from screpro.tasks.set_snapshots import Course, fit_watched

__all__ = ["STARTS", "keep_inputs", "new_panel", "renew_inputs", "start", "train_course"]

STARTS = ("inputs_kept", "inputs_new", "new_panel")
"""The three strategies of appendix C.1, in its order."""


def keep_inputs(
    pretrained: Pretrained, cells: Populations, *, source: str, seed: int, step: int | None = None
) -> PerturbDiff:
    """Start with the source's own entrance, new output layers: the paper's choice for PBMC.

    Parameters
    ----------
    pretrained
        From `pretrain`.
    cells
        Cells to fine-tune on, in the vocabulary of pre-training.
    source
        The source of pre-training that they belong to.
    seed
        Of the new layers.
    step
        A kept step to start from; by default the last.

    Returns
    -------
    A network for the argument `model` of ``set_diffusion.train``.

    Raises
    ------
    ScreproError
        The cells have other genes than the vocabulary, or the source is unknown.
    """
    _check_vocabulary(pretrained, cells)
    number = pretrained.entrance(source)
    return _start(pretrained, cells, entrance=number, seed=seed, step=step)


def renew_inputs(pretrained: Pretrained, cells: Populations, *, seed: int, step: int | None = None) -> PerturbDiff:
    """Same vocabulary, new entrance and output layers: the paper's choice for Replogle. See `keep_inputs`."""
    _check_vocabulary(pretrained, cells)
    return _start(pretrained, cells, seed=seed, step=step)


def new_panel(pretrained: Pretrained, cells: Populations, *, seed: int, step: int | None = None) -> PerturbDiff:
    """Another list of genes, so every layer that reads or writes genes is new: the paper's choice for Tahoe.

    The map from encoded covariates to the condition is one of them. See `keep_inputs`.
    """
    if cells.genes == pretrained.space.vocabulary.genes:
        raise ScreproError(
            "A new panel is another list of genes than the vocabulary.",
            got=f"the {len(cells.genes)} genes of the vocabulary",
            fix="use renew_inputs, or pass columns(cells, panel)",
        )
    return _start(pretrained, cells, without=("condition.",), seed=seed, step=step)


def start(
    strategy: str, pretrained: Pretrained, cells: Populations, *, source: str, seed: int, step: int | None = None
) -> PerturbDiff:
    """`keep_inputs`, `renew_inputs` or `new_panel`, by its name in `STARTS`."""
    if strategy not in STARTS:
        raise ScreproError("Fine-tuning starts in one of three ways.", got=strategy, fix=f"one of {', '.join(STARTS)}")
    if strategy == "inputs_kept":
        return keep_inputs(pretrained, cells, source=source, seed=seed, step=step)
    return (renew_inputs if strategy == "inputs_new" else new_panel)(pretrained, cells, seed=seed, step=step)


def _check_vocabulary(pretrained: Pretrained, cells: Populations) -> None:
    genes = pretrained.space.vocabulary.genes
    if cells.genes != genes:
        raise ScreproError(
            "To keep layers of pre-training, cells have the genes of its vocabulary in its order.",
            got=f"{len(cells.genes)} genes for {len(genes)}, {len(set(cells.genes) & set(genes))} shared",
            fix="pass space.place(cells), or start with new_panel",
        )


def _start(
    pretrained: Pretrained,
    cells: Populations,
    *,
    entrance: int | None = None,
    without: Sequence[str] = (),
    seed: int,
    step: int | None,
) -> PerturbDiff:
    """A new network for the labels of `cells` with pre-trained weights where they fit by meaning."""
    fresh = build(cells, replace(pretrained.settings, controls="matched"), labels=told(cells), seed=seed)
    old = (pretrained.model if step is None else pretrained.at(step)).state_dict()
    new = ("covariates.", "leave.", "leave_modulation.", "enter.", "enter_control.", *without)
    copied = {name: tensor for name, tensor in old.items() if not name.startswith(new)}
    if entrance is not None:
        for stream in ("enter", "enter_control"):
            for part in ("weight", "bias"):
                copied[f"{stream}.0.{part}"] = old[f"{stream}.{entrance}.{part}"]
    fresh.load_state_dict({**fresh.state_dict(), **{name: tensor.cpu() for name, tensor in copied.items()}})
    return fresh


def train_course(
    cells: Populations,
    settings: SetDiffusionSettings,
    *,
    seed: int,
    model: PerturbDiff | None = None,
    checkpoints: int = 1,
    first: int | None = None,
    title: str = "PerturbDiff",
) -> Course:
    """``set_diffusion.train`` with averaged weights kept on the way; the end is the same to the last bit.

    Parameters
    ----------
    cells, settings, seed, model, title
        As there.
    checkpoints, first
        How many steps are kept, spread geometrically from `first` (a tenth of all) to the last.
    """
    labels = told(cells)
    divisor = divisor_of(cells.x, settings.input_scale)
    draw = SetDrawer(cells, settings, divisor, tuple(labels))
    model = build(cells, settings, labels=labels, seed=seed) if model is None else model
    schedule = schedule_of(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loss = HybridLoss(
        draw, schedule.to(device), scale=settings.scale, drop=settings.drop, self_condition=settings.self_condition
    )
    plan = train_config(settings, len(draw), seed=seed)
    fitted, snapshots = fit_watched(model, loss, len(draw), plan, checkpoints=checkpoints, first=first, title=title)
    return Course(TrainedSets(model.eval(), settings, divisor, tuple(labels), fitted, schedule), snapshots)
