"""Benchmarks: this package beside named peers, in one run on one machine. Only the ratios travel.

Every figure is a median over repeats that take turns, so that a machine that slows down slows both.
"""

import os
import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from screpro.bench_kernels import OPERATIONS, kernels
from screpro.bench_measure import turns
from screpro.bench_perturbdiff import perturbdiff
from screpro.bench_scldm import scldm
from screpro.errors import ScreproError

__all__ = ["BENCHES", "run"]


def run(what: str) -> list[dict[str, Any]]:
    """Rows of one benchmark: ``operation, size, ours_ms, peer, peer_ms, ratio, target, agreement, machine``.

    `ratio` is peer / ours where faster is the aim, ours / peer where the aim is not to be much slower; `target`
    says which and how much. ``kernels`` measures all kernels, ``kernels-NAME`` one of them; its rows have ``peak_mib``
    and ``input_mib`` besides, memory beyond the input and of the input, for the operations that are streamed.
    """
    if what not in BENCHES:
        raise ScreproError(
            "A benchmark is named by what it measures.", got=what, fix=f"choose one of {', '.join(BENCHES)}"
        )
    return BENCHES[what]()


def annotate() -> list[dict[str, Any]]:
    """The diffusion classifier against the loop that defines it, and a training step against its matrix products."""
    import torch

    threads = int(os.environ.get("SCREPRO_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(threads)
    machine = f"{platform.machine()}, {threads} threads, torch {torch.__version__}"
    rows = []
    for genes, density in ((765, 0.33), (2000, 0.15), (16_000, 0.05)):
        rows += [_classifier(genes, density), *_training_step(genes, density, 128, width=128, depth=3)]
    # the paper's network and batch on as many genes as its PBMC12K has
    rows += _training_step(3254, 0.1, 2048, width=512, depth=6)
    return [row | {"machine": machine} for row in rows]


def _network(genes: int, width: int = 128, depth: int = 3, types: int = 10, batches: int = 3):
    import torch

    from screpro.models.scdiff import ScDiff, ScDiffConfig

    torch.manual_seed(0)
    config = ScDiffConfig(
        n_genes=genes, width=width, depth=depth, heads=4, classes={"cell_type": types + 1}, n_batches=batches + 1
    )
    return ScDiff(config)


def _cells(n: int, genes: int, density: float):
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    x = sp.random(
        n, genes, density, format="csr", dtype=np.float32, random_state=rng, data_rvs=lambda size: rng.gamma(2, 1, size)
    )
    return x


def _classifier(genes: int, density: float) -> dict[str, Any]:
    """Answers and time of the classifier and of one network call per candidate pair and time step."""
    import torch

    from screpro.processes.gaussian import scaled_linear
    from screpro.tasks.diffusion_classifier import classifier_errors, embedded_noise, noise_root, predict

    schedule, model, n = scaled_linear(), _network(genes).eval(), 128
    for parameter in model.parameters():  # untrained heads hardly tell candidates apart
        torch.nn.init.normal_(parameter, std=0.05)
    x = _cells(n, genes, density)
    candidates = np.array([[batch, label] for batch in (1, 2, 3) for label in range(1, 11)])
    noise = embedded_noise(noise_root(model), (n, 5, 1, 1), torch.Generator().manual_seed(0))
    dense, everything = torch.as_tensor(x.toarray()), torch.ones(n, genes, dtype=torch.bool)
    # the same noise for the loop, which needs it in gene space: any e with W'e equal to the embedded noise
    to_genes = torch.linalg.pinv(model.embedder.table.detach().double()).float()
    in_genes = [noise[:, k, 0, 0] @ to_genes for k in range(5)]
    times = schedule.bins(5)

    @torch.no_grad()
    def loop() -> np.ndarray:
        errors = np.zeros((n, len(candidates), 5))
        for c, (batch, label) in enumerate(candidates):
            for k, t in enumerate(times):
                step = t.expand(n)
                predicted = model(
                    schedule.diffuse(dense, step, in_genes[k]),
                    step,
                    context=dense,
                    hidden=everything,
                    conditions={"cell_type": torch.full((n,), int(label))},
                    batch=torch.full((n,), int(batch)),
                )
                errors[:, c, k] = ((predicted - dense) ** 2).mean(1)
        return errors

    def ours() -> Any:
        return classifier_errors(
            model, x, candidates, schedule=schedule, generator=torch.Generator().manual_seed(0), noise=noise
        )

    slow, fast = loop(), ours()
    answers = candidates[slow.mean(2).argmin(1), 1]
    fast_ms, slow_ms = turns(ours, loop, seconds=3.0, least=3)
    return {
        "operation": "diffusion classifier",
        "size": f"{n} cells x {genes} genes, 30 (batch, type) pairs x 5 steps",
        "ours_ms": fast_ms,
        "peer": "network call per candidate and step",
        "peer_ms": slow_ms,
        "ratio": slow_ms / fast_ms,
        "target": "at least 10 times the throughput",
        "agreement": f"{np.mean(predict(fast) == answers):.1%} of answers equal, "
        f"largest relative error difference {np.abs(fast.error / slow - 1).max():.1e}",
    }


def _training_step(genes: int, density: float, n: int, *, width: int, depth: int) -> list[dict[str, Any]]:
    """One step (batch, noise, loss, gradients, AdamW) against the matrix products of the network's own layers."""
    import torch

    from screpro.losses import DenoisingLoss
    from screpro.processes.gaussian import scaled_linear

    model = _network(genes, width, depth)
    x = _cells(4 * n, genes, density)
    rng = np.random.default_rng(0)
    loss = DenoisingLoss(
        x,
        schedule=scaled_linear(),
        conditions={"cell_type": rng.integers(1, 11, 4 * n)},
        batch=rng.integers(1, 4, 4 * n),
        drop={"cell_type": 0.1, "batch": 0.1},
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    generator, rows = torch.Generator().manual_seed(0), torch.arange(n)

    def step() -> None:
        loss(model, rows, generator).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    products = _products(n, genes, width, depth)
    dense = _dense_step(model, x, optimizer, n)
    ours_ms, products_ms, dense_ms = turns(step, products, dense, least=3)
    size = f"batch {n} x {genes} genes ({density:.0%} non-zero), width {width}, depth {depth}"
    return [
        {
            "operation": "training step",
            "size": size,
            "ours_ms": ours_ms,
            "peer": "matrix products of its layers, forward and backward",
            "peer_ms": products_ms,
            "ratio": ours_ms / products_ms,
            "target": "at most 1.3 times as long",
            "agreement": "",
        },
        {
            "operation": "training step",
            "size": size,
            "ours_ms": ours_ms,
            "peer": "the same network called on dense cells",
            "peer_ms": dense_ms,
            "ratio": dense_ms / ours_ms,
            "target": "",
            "agreement": "same loss and gradients (tests/test_losses.py)",
        },
    ]


def _products(n: int, genes: int, width: int, depth: int) -> Callable[[], None]:
    """The dense products a step of this network consists of: Y = X W', dX = dY W, dW = dY' X for every layer.

    The two gene tables need no gradient of their input. Keys and values are computed for the context token and for
    the label token of every cell, as written in the paper and done by the authors.
    """
    import torch

    layers = [(genes, width, n, False)] * 2 + [(width, genes, n, True)]
    for _ in range(depth):
        layers += [(width, width, n, True)]  # context
        layers += [(width, width, n, True)] * 2 + [(width, width, 2 * n, True)] * 2  # query, output, key, value
        layers += [(width, 8 * width, n, True), (4 * width, width, n, True)]
    # every layer has matrices of its own: shared ones would stay in the cache, which a step's do not
    operands = [
        (torch.randn(rows, fan_in), torch.randn(fan_out, fan_in), torch.randn(rows, fan_out), needs_input)
        for fan_in, fan_out, rows, needs_input in layers
    ]

    def multiply() -> None:
        for x, weight, grad, needs_input in operands:
            x @ weight.T
            grad.T @ x
            if needs_input:
                grad @ weight

    return multiply


def _dense_step(model, x, optimizer, n: int) -> Callable[[], None]:
    """A training step the direct way: dense cells, the network's prediction, mean squared error."""
    import torch

    from screpro.processes.gaussian import scaled_linear

    schedule, x0 = scaled_linear(), torch.as_tensor(x[:n].toarray())
    labels, batch = torch.ones(n, dtype=torch.long), torch.ones(n, dtype=torch.long)

    def step() -> None:
        t = torch.randint(1000, (n,))
        hidden = torch.rand_like(x0) < torch.rand(n, 1)
        noised = schedule.diffuse(x0, t, torch.randn_like(x0))
        predicted = model(noised, t, context=x0, hidden=hidden, conditions={"cell_type": labels}, batch=batch)
        ((predicted - x0) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


BENCHES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "annotate": annotate,
    "scldm": scldm,
    "perturbdiff": perturbdiff,
    "kernels": kernels,
    **{f"kernels-{name}": partial(kernels, name) for name in OPERATIONS},
}
