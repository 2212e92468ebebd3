"""A residual MLP that is told time and labels, and its training: shared by the flow and the diffusion of cells."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.linear import Linear
from screpro.models.blocks import time_embedding
from screpro.training import TrainConfig, fit

__all__ = ["ToldMlp", "train_told"]

TIME_WIDTH = 128


class ToldMlp(nn.Module):
    """Points (B, n_in), times (B,) in 0..1 and labels -> (B, n_in).

    Parameters
    ----------
    n_in
        Size of a point.
    labels
        Attribute -> number of labels; each has a vector, and the vectors of a cell are added.
    shown
        Size of a vector shown besides, such as a control cell; 0 for none.
    width, layers
        Of the residual blocks.
    """

    def __init__(self, n_in: int, labels: Mapping[str, int], *, shown: int = 0, width: int, layers: int):
        super().__init__()
        if min(width, layers) < 1:
            raise ScreproError(
                "A network has at least one layer of at least one unit.",
                got=f"{layers} layers of {width}",
                fix="raise them",
            )
        self.enter = Linear(n_in, width)
        self.time = nn.Sequential(Linear(TIME_WIDTH, width), nn.SiLU(), Linear(width, width))
        self.labels = nn.ModuleDict({name: nn.Embedding(n, width) for name, n in labels.items()})
        self.see = nn.Sequential(Linear(shown, width), nn.SiLU(), Linear(width, width)) if shown else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.SiLU(), Linear(width, width))
            for _ in range(layers)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), Linear(width, n_in))
        nn.init.zeros_(self.leave[1].weight)
        nn.init.zeros_(self.leave[1].bias)

    def forward(self, x: Tensor, t: Tensor, labels: Mapping[str, Tensor], shown: Tensor | None = None) -> Tensor:
        told = self.time(time_embedding(1000 * t, TIME_WIDTH))
        for name, vectors in self.labels.items():
            told = told + vectors(labels[name])
        if self.see is not None:
            told = told + self.see(shown)
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h + told)
        return self.leave(h)


def train_told(
    make: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    threads: int,
    title: str,
) -> nn.Module:
    """Train `steps` steps on the CPU, the rate falling to 0 along half a cosine; averaged weights are kept.

    What is in a mini-batch is drawn by `loss`; row numbers only count. Weights follow from `seed`, torch's threads and
    global generator are put back.
    """
    from lightning.fabric import Fabric

    if min(steps, batch_size) < 1:
        raise ScreproError(
            "Training takes at least one step on at least one item.", got=f"{steps=}, {batch_size=}", fix="raise them"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = make()
            how = TrainConfig(
                epochs=1,
                batch_size=batch_size,
                learning_rate=learning_rate,
                warmup=0.05,
                clip=1.0,
                ema=0.995,
                seed=seed,
            )
            done = fit(model, loss, steps * batch_size, how, fabric=Fabric(accelerator="cpu", devices=1), title=title)
    finally:
        torch.set_num_threads(before)
    model.load_state_dict(done.average)
    return model.eval()
