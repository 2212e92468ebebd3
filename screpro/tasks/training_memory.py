"""Memory of one training step of scDiff: from shapes, from the tensors that are kept, on a GPU (appendix E.7).

The paper states 4.5 GB at 28 024 genes. The formula adds up what a plain step needs; a hook on autograd counts what it
really keeps, also on the meta device, where a network of any size takes no memory.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.models.scdiff import ScDiff
from screpro.tasks import denoiser
from screpro.tasks.denoiser import DenoiserSettings
from screpro.tasks.presets import parameter_count

__all__ = ["Memory", "cuda_peak", "plain_step", "saved_bytes", "training_memory"]


class Memory(NamedTuple):
    """Bytes of one training step."""

    parameters: int
    gradients: int
    moments: int  # two of AdamW
    activations: int  # kept for the backward pass
    beside: int  # gene-sized matrices that are alive and not kept: clean cells, noise, mask, prediction, its gradient

    @property
    def total(self) -> int:
        """If all of it is there at the same time."""
        return sum(self)


def training_memory(
    n_genes: int,
    batch_size: int,
    *,
    width: int,
    depth: int,
    heads: int,
    classes: Sequence[int] = (),
    n_batches: int = 0,
) -> Memory:
    """Memory of a plain training step from the shapes alone, float32.

    "Plain" is as the authors train: gene-sized matrices are dense and the prediction is formed. The losses of this
    package keep less. With G genes, D width, L blocks, H heads and S = 1 + number of classes tokens, the backward pass
    needs of every cell, in numbers of 4 bytes:

    - 3 G: noised cell, visible context, residual;
    - 2 (2 D + 2): input and output of both embedders' GELU; a LayerNorm keeps mean and deviation beside its input;
    - in each of L layers 3 D + 2 of the context branch, and (23 + 2 S) D + S H + 4 of the block: both LayerNorms
      4 D + 4, tokens D, query D, keys and values 2 S D, attention weights S H, mixed values D, feed-forward 16 D;
    - 2 D + 2: the last LayerNorm and the input of the head;
    - 2 for every label (8 bytes each),

    and, once a batch, the condition tables of every block.

    Parameters
    ----------
    classes
        Rows of each condition table, null included.
    n_batches
        Rows of the batch table; 0 for none.
    """
    tokens, labels = 1 + len(classes), len(classes) + (n_batches > 0)
    per_layer = 3 * width + 2 + (23 + 2 * tokens) * width + tokens * heads + 4
    per_cell = 3 * n_genes + 2 * (2 * width + 2) + depth * per_layer + 2 * width + 2 + 2 * labels
    tables = {str(i): rows for i, rows in enumerate(classes)}
    sizes = {"width": width, "depth": depth, "heads": heads}
    parameters = 4 * parameter_count(n_genes, **sizes, classes=tables, n_batches=n_batches)
    return Memory(
        parameters=parameters,
        gradients=parameters,
        moments=2 * parameters,
        activations=4 * (batch_size * per_cell + depth * sum(classes) * width),
        beside=batch_size * n_genes * (4 * 4 + 1),
    )


def saved_bytes(work: Callable[[], Tensor], parameters: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of `work`; each storage once, parameters not at all.

    Works on the meta device too, where a network of any size takes no memory.
    """
    own = {p.untyped_storage()._cdata for p in parameters}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            kept[key] = tensor  # keeping it alive keeps its address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = work()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return size


def plain_step(model: ScDiff, n_cells: int, device: str | torch.device = "cpu") -> Callable[[], Tensor]:
    """Loss of a plain training step on random cells: dense matrices, prediction formed, labels all 0."""
    n_genes = model.config.n_genes
    x, context = torch.rand(n_cells, n_genes, device=device), torch.rand(n_cells, n_genes, device=device)
    zero = torch.zeros(n_cells, dtype=torch.int64, device=device)
    conditions = {name: zero.clone() for name in model.conditioners}
    batch = None if model.batch_table is None else zero.clone()

    def work() -> Tensor:
        predicted = model(x, zero, context=context, conditions=conditions, batch=batch)
        return ((predicted - x) ** 2).mean()

    return work


def cuda_peak(settings: DenoiserSettings, n_genes: int, *, steps: int = 3, seed: int = 0) -> float:
    """Largest MiB allocated on the GPU during plain training steps of one batch, AdamW included.

    Raises
    ------
    ScreproError
        There is no GPU.
    """
    if not torch.cuda.is_available():
        raise ScreproError("GPU memory is measured on a GPU.", got="none", fix="use training_memory instead")
    model = denoiser.build(n_genes, settings, classes={"cell_type": 48}, n_batches=167, seed=seed).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    work = plain_step(model, settings.batch_size, "cuda")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        work().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated() / 2**20
