"""Cell types from a diffusion model: the label under which a cell is denoised best (appendix D.1, eq. 23 to 25).

The definition is a loop: for every candidate label and every time step, noise the cell, denoise it under that label
with nothing to look at as context, and take the mean squared error over the genes; average over time steps (and
draws), and choose the label with the smallest error. scDiff's code also searches the batch: a candidate is a (batch,
type) pair seen in training and the predicted type is that of the winning pair.

Three identities make it cheap without changing an answer:
1. The network sees noise only through the gene table W, and W'e of standard normal e is N(0, W'W). It is drawn there,
   in D dimensions instead of G.
2. The head is linear, so the error is |x - b|^2 - 2 (h + e_batch)' W'(x - b) + (h + e_batch)' W'W (h + e_batch), with
   W'W and W'(x - b) computed once. The batch enters nowhere else, so all batches share the encoder's h.
3. With the context hidden its token is the same for every cell, and a label's token is the same for every cell.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from screpro.errors import ScreproError
from screpro.models.blocks import time_embedding
from screpro.models.scdiff import ScDiff, Tokens
from screpro.processes.gaussian import Schedule
from screpro.sparse import SparseCells

__all__ = ["ClassifierErrors", "classifier_errors", "embedded_noise", "noise_root", "predict"]


class ClassifierErrors(NamedTuple):
    """Mean squared error over genes of every cell under every candidate, averaged over the draws."""

    error: np.ndarray  # (n, candidates, time steps) float64
    candidates: np.ndarray  # (candidates, 2): batch row, label row
    times: np.ndarray  # (time steps,)


def noise_root(model: ScDiff) -> Tensor:
    """Matrix R (D, D) with R R' = W'W for the gene table W: R z of standard normal z has the law of W'e."""
    table = model.embedder.table.detach().double()
    # eigenvalues rather than Cholesky: W'W is singular where the network is wider than the cell has genes
    values, vectors = torch.linalg.eigh(table.T @ table)
    return (vectors * values.clamp(min=0).sqrt()).float()


def embedded_noise(root: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """W'e for standard normal e in gene space: (*shape, D). `root` is from ``noise_root``."""
    return torch.randn(*shape, len(root), generator=generator, device=root.device) @ root.T


@torch.no_grad()
def classifier_errors(
    model: ScDiff,
    x: sp.csr_matrix,
    candidates: np.ndarray,
    *,
    schedule: Schedule,
    generator: torch.Generator,
    condition: str = "cell_type",
    n_times: int = 5,
    draws: int = 1,
    shared_noise: bool = True,
    noise: Tensor | None = None,
    memory_mib: int = 16,
) -> ClassifierErrors:
    """Denoising error of every cell under every candidate.

    Parameters
    ----------
    model
        A trained denoiser whose only conditioner besides the context is `condition`.
    x
        (n, G) log-normalised cells, CSR.
    candidates
        (candidates, 2) integer rows of the batch table and of the label table. The batch is ignored by a network
        without batches.
    n_times
        Number of equally spaced time steps (the paper: 5; few-shot: 50).
    draws
        Noise draws per cell and time step, averaged.
    shared_noise
        Use the same noise for all candidates of a cell. The authors draw it anew for each, which adds variance to
        the comparison; the diffusion classifier they cite shares it.
    noise
        (n, time steps, draws, candidates or 1, D) embedded noise to use instead of drawing it (for tests).
    memory_mib
        Size of the temporaries; cells are processed in chunks that respect it. The default keeps them in cache.

    Returns
    -------
    ClassifierErrors
        Errors (n, candidates, time steps) in squared log-expression units, averaged over genes and draws.
    """
    candidates = np.asarray(candidates, dtype=np.int64)
    _check(model, x, candidates, condition, draws)
    config, device = model.config, model.head.weight.device
    model.eval()
    times = schedule.bins(n_times)
    schedule = schedule.to(device)
    labels, label_of = np.unique(candidates[:, 1], return_inverse=True)
    # with shared noise a label is encoded once for all its batches; with independent noise every pair is its own
    n_encoded = len(labels) if shared_noise else len(candidates)
    encoded_label = torch.as_tensor(labels if shared_noise else candidates[:, 1], device=device)
    encoded_of = torch.as_tensor(label_of if shared_noise else np.arange(len(candidates)), device=device)

    tokens = _candidate_tokens(model, encoded_label, condition)
    folded = [block.attention.folded(own) for block, own in zip(model.blocks, tokens, strict=True)]
    root = noise_root(model)
    weight, bias = model.head.weight, model.head.bias
    gram = weight.T @ weight  # (D, D)
    shift = weight.T @ bias
    batch_of = torch.as_tensor(candidates[:, 0], device=device)

    # feed-forward temporaries: value and gate of 4 D, and a few of D
    bytes_per_cell = 4 * 14 * config.width * n_times * n_encoded
    chunk = max(1, int(memory_mib * 2**20 / bytes_per_cell))
    total = np.zeros((x.shape[0], len(candidates), n_times))
    space = torch.empty(2, chunk * n_times * n_encoded, 4 * config.width, device=device)
    for start in range(0, x.shape[0], chunk):
        rows = slice(start, min(start + chunk, x.shape[0]))
        cells = SparseCells.from_scipy(sp.csr_matrix(x[rows], dtype=np.float32), device)
        n = cells.shape[0]
        clean = cells.matrix().times(model.embedder.table)  # (n, D)
        target = cells.matrix().times(weight) - shift  # (n, D) W'(x - b)
        square = torch.zeros(n, device=device, dtype=torch.float64)
        residual = cells.values * (cells.values - 2 * bias[cells.genes])
        square.index_add_(0, cells.cells, residual.double())
        square += bias.double() @ bias.double()  # |x - b|^2
        for draw in range(draws):
            if noise is None:
                embedded = embedded_noise(root, (1 if shared_noise else n_encoded, n, n_times), generator)
            else:
                embedded = noise[rows, :, draw].to(device).movedim(2, 0)
            noised = schedule.signal[times, None] * clean[:, None] + schedule.noise[times, None] * embedded
            h = model.embedder.after_table(noised) + time_embedding(times.to(device), config.width)
            h = h.expand(n_encoded, n, n_times, config.width).reshape(n_encoded, n * n_times, config.width)
            h = _encode(model, h, folded, space).view(n_encoded, n, n_times, config.width)
            h_gram = h @ gram
            error = (h * (h_gram - 2 * target[:, None])).sum(-1)[encoded_of].double() + square[:, None]
            if model.batch_table is not None:
                # |W (h + e) + b - x|^2 has two more terms with the batch embedding e: 2 e'W'(W h + b - x) + e'W'W e
                batches = model.batch_table  # (batches, D)
                with_h = 2 * (h_gram - target[:, None]) @ batches.T  # (encoded, n, times, batches)
                alone = ((batches @ gram) * batches).sum(-1)
                error += with_h[encoded_of, :, :, batch_of].double() + alone[batch_of, None, None]
            total[rows] += error.movedim(0, 1).cpu().numpy() / (draws * config.n_genes)
    return ClassifierErrors(total, candidates, times.numpy())


def _encode(model: ScDiff, h: Tensor, folded: list[tuple[Tensor, Tensor, Tensor]], space: Tensor) -> Tensor:
    """``ScDiff.encode`` for states (candidates, n, D), in place where that spares a pass through memory.

    `space` (2, at least candidates * n, 4 D) is written over: fresh memory of its size in every block can make all
    of it take half as long again.
    """
    value, gate = space[:, : h.shape[0] * h.shape[1]]
    for block, own in zip(model.blocks, folded, strict=True):
        h = h + block.attention.attend_folded(block.norm_query(h), own)
        normed, layer = block.norm_feed_forward(h).flatten(0, 1), block.feed_forward
        torch.addmm(layer.value.bias, normed, layer.value.weight.T, out=value)
        torch.addmm(layer.gate.bias, normed, layer.gate.weight.T, out=gate)
        value *= torch.ops.aten.gelu_(gate)
        h += layer.contract(value).view_as(h)
    return model.norm_out(h)


def _candidate_tokens(model: ScDiff, labels: Tensor, condition: str) -> list[list[Tokens]]:
    """Per block the token of a hidden context (1, D) and those of the candidate labels (candidates, D)."""
    nothing = model.context(torch.zeros(1, model.config.n_genes, device=labels.device))
    each = model.conditioners[condition](labels)
    return [[empty, Tokens(own.rows[own.index])] for empty, own in zip(nothing, each, strict=True)]


def predict(
    errors: ClassifierErrors, *, times: np.ndarray | None = None, batch: np.ndarray | None = None
) -> np.ndarray:
    """Label row of the candidate with the smallest mean error, (n,); an exact tie goes to the earlier candidate.

    Parameters
    ----------
    errors
        From ``classifier_errors``.
    times
        Columns of the time steps to average over; None takes all.
    batch
        (n,) batch row of each cell, if it is known: only candidates of that batch compete. A cell whose batch was
        not seen in training is compared with every candidate.
    """
    error = (errors.error if times is None else errors.error[:, :, times]).mean(axis=2)
    if batch is not None:
        allowed = errors.candidates[None, :, 0] == np.asarray(batch)[:, None]
        allowed |= ~allowed.any(axis=1, keepdims=True)
        error = np.where(allowed, error, np.inf)
    return errors.candidates[error.argmin(axis=1), 1]


def _check(model: ScDiff, x: sp.csr_matrix, candidates: np.ndarray, condition: str, draws: int) -> None:
    if set(model.conditioners) != {condition}:
        raise ScreproError(
            f"The classifier varies the one condition it is given ({condition}).",
            got=f"a network with conditioners {sorted(model.conditioners)}",
            fix="name the network's condition, or train one with that condition alone",
        )
    if x.shape[1] != model.config.n_genes:
        raise ScreproError(
            "The cells must have the genes the network was trained on.",
            got=f"{x.shape[1]} genes, network {model.config.n_genes}",
            fix="select and order the genes as in training",
        )
    if candidates.ndim != 2 or candidates.shape[1] != 2 or not len(candidates) or draws < 1:
        raise ScreproError(
            "At least one candidate (batch row, label row) and one draw are needed.",
            got=f"candidates of shape {candidates.shape}, draws={draws}",
            fix="pass the pairs seen in training",
        )
    tables = [("label", candidates[:, 1], model.config.classes.get(condition))]
    if model.batch_table is not None:
        tables.append(("batch", candidates[:, 0], model.config.n_batches))
    for name, rows, size in tables:
        if size is not None and (rows.min() < 0 or rows.max() >= size):
            raise ScreproError(
                f"Every candidate's {name} must be a row of its table.",
                got=f"rows {rows.min()} to {rows.max()}, table of {size}",
                fix="number real labels from 1 as in training",
            )
