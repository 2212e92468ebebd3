"""What a trained variant of scDiff answers: labels by denoising error, hidden entries, how far apart the labels are.

The classifier of the annotation page folds products that a variant may not have; this one calls the blocks as they are.
"""

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from screpro.data.masks import ImputationMask
from screpro.errors import ScreproError
from screpro.models.scdiff import Tokens
from screpro.models.scdiff_variants import CLEAN, NOISED, Staged
from screpro.processes.gaussian import Schedule, scaled_linear
from screpro.sparse import SparseCells
from screpro.tasks.diffusion_classifier import ClassifierErrors, embedded_noise, noise_root

__all__ = ["candidate_gap", "impute_once", "variant_errors"]


@torch.no_grad()
def variant_errors(
    model: Staged,
    x: sp.csr_matrix,
    candidates: np.ndarray,
    *,
    schedule: Schedule,
    generator: torch.Generator,
    n_times: int = 5,
    draws: int = 1,
    shared_noise: bool = True,
    visible: bool = False,
    noise: Tensor | None = None,
    memory_mib: int = 16,
) -> ClassifierErrors:
    """Denoising error of every cell under every candidate, for any variant.

    The same quantity as ``diffusion_classifier.classifier_errors``, which is faster and knows the default network
    only: here the blocks are called as they are, once per label, and only the two gene-sized products are folded.
    A network without noise is asked once, since neither time steps nor draws mean anything to it.

    Parameters
    ----------
    model
        A trained variant whose only conditioner is ``cell_type``.
    x
        (n, G) log-normalised cells, CSR.
    candidates
        (candidates, 2) rows of the batch table and of the label table.
    shared_noise
        The same noise for all candidates of a cell.
    visible
        Show the whole cell as context instead of nothing.
    noise
        (n, time steps, draws, 1 or candidates, D) noise as the gene table maps it, instead of drawing it.
    memory_mib
        Size of the largest temporary.

    Returns
    -------
    ClassifierErrors
        Errors (n, candidates, time steps), averaged over genes and draws.

    Raises
    ------
    ScreproError
        Other genes than the network's, or no candidate.
    """
    candidates = np.asarray(candidates, dtype=np.int64)
    if x.shape[1] != model.config.n_genes or not len(candidates):
        raise ScreproError(
            "The cells have the genes of the network, and there is a candidate.",
            got=f"{x.shape[1]} genes for a network of {model.config.n_genes}, {len(candidates)} candidates",
            fix="pass the genes and the (batch, label) pairs of training",
        )
    model.eval()
    device, config = model.head.weight.device, model.config
    noised = model.reads == NOISED
    times = schedule.bins(n_times) if noised else torch.zeros(1, dtype=torch.int64)
    draws = draws if noised else 1
    schedule, steps = schedule.to(device), times.to(device)
    root = noise_root(model) if noised and noise is None else None
    weight, bias = model.head.weight, model.head.bias
    gram, shift = weight.T @ weight, weight.T @ bias
    # with shared noise a label is encoded once for all its batches
    numbers = np.arange(len(candidates))
    groups = [numbers[candidates[:, 1] == label] for label in np.unique(candidates[:, 1])]
    groups = groups if shared_noise else list(numbers[:, None])
    tables = model.conditioners["cell_type"]

    chunk = max(1, int(memory_mib * 2**20 / (4 * 4 * config.width * len(times))))
    total = np.zeros((x.shape[0], len(candidates), len(times)))
    for first in range(0, x.shape[0], chunk):
        rows = slice(first, min(first + chunk, x.shape[0]))
        cells = SparseCells.from_scipy(sp.csr_matrix(x[rows], dtype=np.float32), device)
        n, matrix = cells.shape[0], cells.matrix()
        clean = matrix.times(model.embedder.table)[:, None]  # (n, 1, D)
        target = (matrix.times(weight) - shift)[:, None]  # W'(x - b)
        square = torch.zeros(n, device=device, dtype=torch.float64)
        square.index_add_(0, cells.cells, (cells.values * (cells.values - 2 * bias[cells.genes])).double())
        square += bias.double() @ bias.double()  # |x - b|^2
        context = model.context.embedder
        seen = matrix.times(context.table) if visible else torch.zeros(1, config.width, device=device)
        context_tokens = model.context.tokens(context.after_table(seen))
        if visible:  # one token per cell, repeated for its time steps
            context_tokens = [Tokens(token.rows.repeat_interleave(len(times), 0)) for token in context_tokens]
        for draw in range(draws):
            shared = None
            for position, group in enumerate(groups):
                if not noised:
                    read = clean if model.reads == CLEAN or visible else torch.zeros_like(clean)
                elif shared is None or not shared_noise:
                    if noise is not None:
                        drawn = noise[rows, :, draw, 0 if shared_noise else position].to(device)
                    else:
                        drawn = embedded_noise(root, (n, len(times)), generator)
                    read = shared = schedule.signal[steps, None] * clean + schedule.noise[steps, None] * drawn
                label = torch.as_tensor(candidates[group[:1], 1], device=device)
                tokens = [list(pair) for pair in zip(context_tokens, tables(label), strict=True)]
                h = model.encode(model.start(read, steps).flatten(0, 1), tokens)
                for number in group:
                    batch = None
                    if model.batch_table is not None:
                        batch = torch.full((len(h),), int(candidates[number, 0]), device=device)
                    last = model.before_head(h, batch).unflatten(0, (n, -1))
                    error = (last * (last @ gram - 2 * target)).sum(-1).double() + square[:, None]
                    total[rows, number] += error.cpu().numpy() / (draws * config.n_genes)
    return ClassifierErrors(total, candidates, times.numpy())


@torch.no_grad()
def impute_once(model: Staged, mask: ImputationMask, *, seed: int, chunk: int = 512) -> np.ndarray:
    """One network call on the masked cells, the visible part as context: the hidden entries (hidden.nnz,).

    A network that reads a noised cell gets the masked one with the noise of level 1 at step 0
    (``tasks.imputation.one_step``); one without noise gets the masked cell, or its context alone.
    """
    device = model.head.weight.device
    schedule = scaled_linear().to(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    out = np.empty(mask.hidden.nnz, dtype=np.float32)
    for first in range(0, mask.x.shape[0], chunk):
        rows = slice(first, first + chunk)
        x = torch.as_tensor(mask.x[rows].toarray(), device=device)
        read = x
        if model.reads == NOISED:
            noise = torch.randn(x.shape, generator=generator, device=device)
            read = schedule.signal[1] * x + schedule.noise[1] * noise
        predicted = model(read, torch.zeros(len(x), dtype=torch.int64, device=device), context=x).cpu().numpy()
        asked = mask.hidden[rows]
        cells = np.repeat(np.arange(asked.shape[0]), np.diff(asked.indptr))
        out[mask.hidden.indptr[first] : mask.hidden.indptr[first] + asked.nnz] = predicted[cells, asked.indices]
    return out


def candidate_gap(errors: ClassifierErrors) -> float:
    """By how much the second label is worse than the best, as a share of the best error: median over cells."""
    error = errors.error.mean(axis=2)
    labels = np.unique(errors.candidates[:, 1])
    per_label = np.stack([error[:, errors.candidates[:, 1] == label].min(axis=1) for label in labels], axis=1)
    best, second = np.partition(per_label, 1, axis=1)[:, :2].T
    return float(np.median((second - best) / best))
