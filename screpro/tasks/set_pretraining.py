"""Marginal pre-training of PerturbDiff (4.6, appendices A.3 and C.1, equation 9), and cells drawn from it alone.

The network learns what cells of a context look like, D_c ~ F_theta(. | c): sets of cells of several sources, no
control cells (their stream is zero), no perturbation and no batch label, only the context. All sources share one
vocabulary of genes; each has an entrance of its own. Loss, optimiser, dropped labels and self-conditioning are those
of training.

What the paper leaves open, and what is done here:
- a mini-batch holds sets of one source, because a source is an entrance; sources take turns in proportion to their
  sets, so that every set is drawn about once in an epoch;
- sets are grouped as in training, by perturbation, context and batch, and told the context alone. Equation 9 speaks of
  unperturbed cells; the text takes all training cells, perturbed ones included, and so does this;
- fine-tuning starts from it in three ways: ``set_finetuning``.

No cell of a condition that is asked for later may be among the sources: ``set_pretraining_data.check_unseen``.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from screpro.data.populations import Populations
from screpro.errors import ScreproError
from screpro.losses_sets import Batch, HybridLoss
from screpro.models.perturbdiff import PerturbDiff, PerturbDiffConfig
from screpro.processes.gaussian import Schedule
from screpro.tasks.set_diffusion import (
    SamplerSettings,
    SetDiffusionSettings,
    SetDrawer,
    TrainedSets,
    divisor_of,
    generate,
    schedule_of,
    train_config,
)
from screpro.tasks.set_pretraining_data import Space
from screpro.tasks.set_snapshots import fit_watched
from screpro.training import Fit

__all__ = ["MixedDrawer", "Pretrained", "pretrain", "zero_shot"]

AS_PAPER = SamplerSettings()


class MixedDrawer:
    """Mini-batches of several sources, each of one source; an item is the number of a mini-batch."""

    def __init__(self, sources: Mapping[str, Populations], settings: SetDiffusionSettings, divisor: np.ndarray):
        alone = replace(settings, controls="none")
        self.drawers = [SetDrawer(cells, alone, divisor, ("context",)) for cells in sources.values()]
        self.sets = settings.sets
        self.source = np.repeat(np.arange(len(sources)), [-(-len(own) // self.sets) for own in self.drawers])

    def __len__(self) -> int:
        return len(self.source)

    def __call__(self, items: Tensor, generator: torch.Generator) -> Batch:
        source = int(self.source[int(items[0])])
        own = self.drawers[source]
        chosen = torch.randperm(len(own), generator=generator, device=generator.device)[: self.sets]
        return replace(own(chosen, generator), source=source)


@dataclass(frozen=True)
class Pretrained:
    """A pre-trained network, and what it was on the way."""

    model: PerturbDiff  # averaged weights after the last step
    settings: SetDiffusionSettings
    space: Space
    sources: tuple[str, ...]  # in the order of the entrances
    divisor: np.ndarray  # (V,)
    fit: Fit
    epoch: int  # steps of an epoch
    snapshots: dict[int, dict[str, Tensor]]  # step -> averaged weights; 0 is the random initialisation
    schedule: Schedule = field(repr=False)

    def at(self, step: int) -> PerturbDiff:
        """The network as it was after a step that was kept."""
        if step not in self.snapshots:
            kept = ", ".join(map(str, self.snapshots))
            raise ScreproError("Only some steps were kept.", got=str(step), fix=f"one of {kept}")
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.snapshots[step])
        return model.eval()

    def entrance(self, source: str) -> int:
        """Number of a source's entrance."""
        if source not in self.sources:
            raise ScreproError(
                "An entrance belongs to a source of pre-training.", got=source, fix=f"one of {', '.join(self.sources)}"
            )
        return self.sources.index(source)


def pretrain(
    sources: Mapping[str, Populations],
    space: Space,
    settings: SetDiffusionSettings,
    *,
    seed: int,
    checkpoints: int = 5,
    title: str = "pre-training",
) -> Pretrained:
    """Learn the marginal distribution of cells given their context (equation 9).

    Parameters
    ----------
    sources
        Name -> training cells in `space`; the order is that of the entrances.
    space
        From `unify`.
    settings
        Size and length; controls are left out whatever it says.
    seed
        Of weights, order and noise.
    checkpoints
        Steps whose averaged weights are kept, spread geometrically from the end of the first epoch to the last step.

    Raises
    ------
    ScreproError
        A source is not in the space.
    """
    for name, cells in sources.items():
        if cells.genes != space.vocabulary.genes or cells.contexts != space.contexts:
            raise ScreproError(
                "Sources of pre-training share one vocabulary and one list of contexts.",
                got=f"{name}: {len(cells.genes)} genes for {len(space.vocabulary.genes)} of the vocabulary",
                fix="pass space.place(cells)",
            )
    settings = replace(settings, controls="none", input_scale="tenth")
    first = next(iter(sources.values()))
    divisor = divisor_of(first.x, "tenth")  # one scale for all: a gene has one entrance weight per source
    draw = MixedDrawer(sources, settings, divisor)
    config = PerturbDiffConfig(
        n_genes=len(space.vocabulary.genes),
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        labels={"context": len(space.contexts)},
        label_width=min(128, settings.width),
        sources=len(sources),
        attention=settings.attention,
        mlp=settings.mlp,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PerturbDiff(config)
    schedule = schedule_of(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loss = HybridLoss(
        draw, schedule.to(device), scale=settings.scale, drop=settings.drop, self_condition=settings.self_condition
    )
    # an item is a whole mini-batch here
    plan = replace(train_config(settings, len(draw) * settings.sets, seed=seed), batch_size=1)
    fitted, snapshots = fit_watched(model, loss, len(draw), plan, checkpoints=checkpoints, first=len(draw), title=title)
    return Pretrained(model, settings, space, tuple(sources), divisor, fitted, len(draw), snapshots, schedule)


def zero_shot(
    pretrained: Pretrained,
    asked: Populations,
    *,
    source: str,
    controls: Populations,
    step: int | None = None,
    sampler: SamplerSettings = AS_PAPER,
    seed: int,
    title: str | None = "sampling",
) -> np.ndarray:
    """Cells drawn from their context alone: no control cell and no perturbation is shown.

    Parameters
    ----------
    pretrained
        From `pretrain`.
    asked
        Cells in the space of pre-training; only how many there are of each context matters.
    source
        Whose entrance noised cells go through.
    controls
        Cells with controls of these contexts: they divide the asked cells into sets as everywhere and are not shown.
    step
        A kept step, 0 for the random initialisation; by default the last.
    sampler, seed, title
        As for ``set_diffusion.generate``.

    Returns
    -------
    (n, V) float32 log1p-normalised expression in the order of `asked`.
    """
    network = pretrained.model if step is None else pretrained.at(step)
    number = pretrained.entrance(source)
    weights = {
        name.replace(f".{number}.", ".0.", 1) if name.startswith("enter") else name: tensor
        for name, tensor in network.state_dict().items()
        if not name.startswith("enter") or name.split(".")[1] == str(number)
    }
    with torch.random.fork_rng():
        alone = PerturbDiff(replace(network.config, sources=1))
    alone.load_state_dict(weights)
    alone.to(network.leave.weight.device).eval()
    trained = TrainedSets(
        alone, pretrained.settings, pretrained.divisor, ("context",), pretrained.fit, pretrained.schedule
    )
    return generate(trained, asked, controls=controls, sampler=sampler, seed=seed, title=title)
