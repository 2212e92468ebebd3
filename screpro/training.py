"""One training loop for every model: precision and devices through Lightning Fabric, averages, exact resume.

A run that is killed and started again with the same arguments continues from its last checkpoint and ends with
the same weights, bit for bit, as one that was never interrupted: the order of the cells is a function of seed and
epoch, and the noise generator's state is part of the checkpoint.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.paths import atomic_path

__all__ = ["Fit", "TrainConfig", "fit", "learning_rate_factor"]

SCHEDULES = ("cosine", "constant", "flat cosine")
"""Half a cosine to 0; the same rate throughout; a tenth of the steps at full rate, then half a cosine to a tenth."""

Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
"""(model, row numbers of the batch (B,), generator) -> scalar loss."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast. scDiff: constant rate, no weight decay, no clipping (protocol 2.3)."""

    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: str = "cosine"  # one of SCHEDULES
    warmup: float = 0.0  # share of all steps with a linearly rising rate
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    clip: float | None = None  # largest gradient norm
    ema: float | None = None  # decay of the moving average of the weights, with warm-up (1 + k) / (10 + k)
    rate_factors: Mapping[str, float] = field(default_factory=dict)  # on the rate of single parameters, by name
    seed: int = 0
    precision: str = "32-true"
    checkpoint_seconds: float = 60.0  # at most this much work is lost to a kill


@dataclass
class Fit:
    """What training leaves behind besides the weights in the model."""

    losses: list[float]  # mean loss of every epoch
    seconds: float  # wall time of training, earlier calls that were interrupted included
    steps: int
    average: dict[str, Tensor] | None  # moving average of the weights, if asked for


def learning_rate_factor(step: int, total: int, *, schedule: str, warmup: float) -> float:
    """Factor on the learning rate at `step` of `total`: linear warm-up, then one of `SCHEDULES`."""
    ramp = warmup * total
    if step < ramp:
        return (step + 1) / (ramp + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "flat cosine":
        flat = ramp + 0.1 * total
        share = min(1.0, max(0.0, step - flat) / max(total - flat, 1))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * share))
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(total - ramp, 1)))


def fit(
    model: nn.Module,
    loss: Loss,
    n_cells: int,
    config: TrainConfig,
    *,
    checkpoint: str | Path | None = None,
    fabric: Any = None,
    title: str = "training",
) -> Fit:
    """Train `model` in place with AdamW.

    Parameters
    ----------
    model
        Any network; moved to the device of `fabric`.
    loss
        Called with the model, the row numbers of a batch and a generator on the model's device. It draws all its
        randomness from that generator.
    n_cells
        Number of training cells; an epoch visits each once, in random order. The last, smaller batch is kept.
    config
        Length, rate, seed and so on.
    checkpoint
        File of the state (safetensors). If it exists and belongs to the same configuration, training continues
        from it; it is replaced atomically.
    fabric
        A launched ``lightning.fabric.Fabric`` for another precision, device or several processes; by default one
        device, the accelerator if there is one. With several processes every one gets its share of each epoch.
    title
        Shown before the progress bar, which is silent when stderr is not a terminal.

    Raises
    ------
    ScreproError
        If there are no cells, the configuration is out of range, the checkpoint is not ours, or the loss is not
        finite.
    """
    _check(n_cells, config)
    if fabric is None:
        from lightning.fabric import Fabric

        fabric = Fabric(accelerator="auto", devices=1, precision=config.precision)
    optimizer = torch.optim.AdamW(
        _groups(model, config),
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )
    wrapped, optimizer = fabric.setup(model, optimizer)
    for name in getattr(model, "forward_methods", ()):
        wrapped.mark_forward_method(name)
    generator = torch.Generator(device=fabric.device).manual_seed(config.seed + 1_000_003 * fabric.global_rank)
    share = math.ceil(n_cells / fabric.world_size)
    per_epoch = math.ceil(share / config.batch_size)
    total = config.epochs * per_epoch
    state = _State(model, optimizer, generator, config, n_cells)
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        if fabric.world_size > 1:
            checkpoint = checkpoint.with_suffix(f".rank{fabric.global_rank}{checkpoint.suffix}")
        if checkpoint.exists():
            state.load(checkpoint)

    started = saved = time.monotonic()
    earlier = state.seconds
    progress = _progress(total, state.step, title)
    wrapped.train()
    order, epoch_of_order = None, -1
    while state.step < total:
        epoch, position = divmod(state.step, per_epoch)
        if epoch != epoch_of_order:
            order, epoch_of_order = _order(n_cells, config.seed, epoch), epoch
            order = order[fabric.global_rank :: fabric.world_size].to(fabric.device)
        rows = order[position * config.batch_size : (position + 1) * config.batch_size]
        factor = learning_rate_factor(state.step, total, schedule=config.schedule, warmup=config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor * group["rate_factor"]
        value = loss(wrapped, rows, generator)
        fabric.backward(value)
        if config.clip is not None:
            fabric.clip_gradients(wrapped, optimizer, max_norm=config.clip, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.advance(value.detach(), len(rows), last_of_epoch=position == per_epoch - 1, share=share)
        progress.update(1)
        if checkpoint is not None and time.monotonic() - saved > config.checkpoint_seconds:
            saved = time.monotonic()
            state.save(checkpoint, seconds=earlier + saved - started)
    progress.close()
    seconds = earlier + time.monotonic() - started
    if checkpoint is not None:
        state.save(checkpoint, seconds=seconds)
    model.eval()
    return Fit(state.losses, seconds, state.step, state.average)


def _groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameters by whether they shrink (biases and weights of norms never do) and by the factor on their rate."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if missing := sorted(set(config.rate_factors) - set(own)):
        raise ScreproError(
            "A factor on the learning rate is that of a trained parameter of the network.",
            got=", ".join(missing),
            fix=f"choose among {', '.join(own)}",
        )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in own.items():
        key = (config.weight_decay if p.ndim > 1 else 0.0, config.rate_factors.get(name, 1.0))
        groups.setdefault(key, []).append(p)
    return [
        {"params": params, "weight_decay": decay, "rate_factor": factor} for (decay, factor), params in groups.items()
    ]


def _check(n_cells: int, config: TrainConfig) -> None:
    """Refuse what would fail or do nothing later."""
    wrong = [
        message
        for failed, message in [
            (n_cells < 1, f"{n_cells} cells"),
            (config.epochs < 1, f"epochs={config.epochs}"),
            (config.batch_size < 1, f"batch_size={config.batch_size}"),
            (not config.learning_rate > 0, f"learning_rate={config.learning_rate}"),
            (config.schedule not in SCHEDULES, f"schedule={config.schedule!r}"),
            (not 0 <= config.warmup < 1, f"warmup={config.warmup}"),
            (not min(config.rate_factors.values(), default=1) > 0, f"rate_factors={dict(config.rate_factors)}"),
        ]
        if failed
    ]
    if wrong:
        raise ScreproError(
            "Training needs cells, at least one epoch, positive batch size and learning rates, a warm-up share in "
            f"[0, 1) and a schedule among {', '.join(SCHEDULES)}.",
            got=", ".join(wrong),
            fix="correct the training configuration",
        )


def _order(n_cells: int, seed: int, epoch: int) -> Tensor:
    """Order of the cells in one epoch, a function of seed and epoch alone."""
    return torch.randperm(n_cells, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def _progress(total: int, done: int, title: str):
    from tqdm import tqdm

    # disable=None: no bar where stderr is not a terminal
    return tqdm(total=total, initial=done, desc=title, unit="step", disable=None, leave=False)


class _State:
    """Everything a resumed run needs: weights, optimiser moments, average, generator, losses so far."""

    def __init__(self, model, optimizer, generator, config: TrainConfig, n_cells: int):
        self.model, self.optimizer, self.generator = model, optimizer, generator
        # the checkpoint interval has no effect on the result, so it may differ between the two calls
        self.identity = {**asdict(config), "betas": list(config.betas), "n_cells": n_cells}
        del self.identity["checkpoint_seconds"]
        if not config.rate_factors:  # as in checkpoints from before there were any
            del self.identity["rate_factors"]
        self.decay = config.ema
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()} if config.ema else None
        self.step, self.losses, self.seconds = 0, [], 0.0
        self.running = torch.zeros((), dtype=torch.float64, device=generator.device)

    def advance(self, loss: Tensor, size: int, *, last_of_epoch: bool, share: int) -> None:
        self.step += 1
        # summed on the device: asking for the value at every step would make an accelerator wait
        self.running += loss.double() * size
        if self.average is not None:
            rate = 1 - min(self.decay, (1 + self.step) / (10 + self.step))
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value.detach(), rate)
                else:
                    self.average[name].copy_(value)
        if last_of_epoch:
            mean = self.running.item() / share
            if not math.isfinite(mean):
                raise ScreproError(
                    "The training loss must stay finite.",
                    got=f"{mean} after {self.step} steps",
                    fix="lower the learning rate, or clip the gradient",
                )
            self.losses.append(mean)
            self.running.zero_()

    def save(self, path: Path, *, seconds: float) -> None:
        from safetensors.torch import save_file

        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": v for k, v in moments.items()}
        if self.average is not None:
            tensors |= {f"average/{k}": v for k, v in self.average.items()}
        tensors["generator"] = self.generator.get_state()
        tensors["running"] = self.running
        meta = {"identity": self.identity, "step": self.step, "losses": self.losses, "seconds": seconds}
        # a parameter that is a view of another may not be written twice
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        with atomic_path(path) as aside:
            save_file(tensors, aside, metadata={"screpro": json.dumps(meta)})

    def load(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads((file.metadata() or {})["screpro"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            raise ScreproError(
                "A checkpoint must be a complete file written by this training loop.",
                got=f"{path}: {error}",
                fix="delete the file to train from the start",
            ) from None
        if meta["identity"] != self.identity:
            changed = [k for k in self.identity if self.identity[k] != meta["identity"].get(k)]
            raise ScreproError(
                "A checkpoint can only be continued with the configuration it was started with.",
                got=f"{path}: {', '.join(changed)} changed",
                fix="delete the file, or give another checkpoint path",
            )
        parts = {kind: {k.removeprefix(f"{kind}/"): v for k, v in tensors.items() if k.startswith(f"{kind}/")}
                 for kind in ("model", "average", "optimizer")}  # fmt: skip
        try:
            self.model.load_state_dict(parts["model"])
        except RuntimeError as error:
            raise ScreproError(
                "A checkpoint can only be continued with the network it was started with.",
                got=f"{path}: {str(error).splitlines()[-1].strip()}",
                fix="delete the file, or give another checkpoint path",
            ) from None
        if self.average is not None:
            self.average = {k: v.to(self.generator.device) for k, v in parts["average"].items()}
        optimizer = self.optimizer.state_dict()
        for key, value in parts["optimizer"].items():
            index, name = key.split("/")
            optimizer["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(tensors["generator"])
        self.running.copy_(tensors["running"])
        self.step, self.losses, self.seconds = meta["step"], meta["losses"], meta["seconds"]
