"""The measurements behind the exchangeability page: claim L4, and what an input layer leaves of the counts.

One auto-encoder per seed and way of mixing counts into gene tokens, trained on a split of its own. Methods:

``scldm``             mixing of eq. 6 ("projconcat"), with log1p(count)
``scldm_log1p``       gene embedding times log1p(count), the authors' shipped configuration
``scldm_positions``   the first network with the place of a gene added to its token: a control that has to fail
``binary_pca``        principal components of "expressed or not": the most a network that lost the counts can know
``log_counts_pca``    principal components of log counts: what can be known linearly in that many numbers
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from screpro.data.splits import cell_split
from screpro.errors import ScreproError
from screpro.kernels.set_attention import PackedCells
from screpro.metrics.report_input import variable_genes
from screpro.models.scldm import AutoEncoder
from screpro.records import Run
from screpro.tasks import exchangeability as exch
from screpro.tasks.autoencoder import AutoEncoderSettings, batch_of, encode, nll, train

__all__ = [
    "FEW",
    "MIXINGS",
    "SET",
    "Protocol",
    "SplitCounts",
    "compare",
    "double_some",
    "read_out",
    "ridge",
    "split_counts",
]

MIXINGS = {"scldm": "projconcat", "scldm_log1p": "log1p"}
"""Methods and how counts enter their tokens."""

SET = 128
"""Test cells on which agreement is measured."""

FEW = 32
"""Those of them that are padded or given with all genes, which takes memory."""


class SplitCounts(NamedTuple):
    """Counts (n, G) of one split on its panel; every cell has a count in it."""

    train: sp.csr_matrix
    test: sp.csr_matrix


class Protocol(NamedTuple):
    """How the measurements are run."""

    dataset: str  # name in the result rows
    seeds: Sequence[int]
    base: AutoEncoderSettings
    panel: int | None = None  # variable genes, chosen on training cells; None: all
    cells: int | None = None  # at most this many, drawn at random; None: all
    trials: int = 5  # permutations per property
    test_fraction: float = 0.2
    threads: int = 1


def split_counts(counts: sp.csr_matrix, protocol: Protocol, *, seed: int) -> SplitCounts:
    """Training and test cells of a seed, restricted to the panel; cells without a count in it are left out."""
    counts = sp.csr_matrix(counts, dtype=np.float32)
    split = cell_split(counts.shape[0], seed=seed, test=protocol.test_fraction)
    share = min(1.0, (protocol.cells or counts.shape[0]) / counts.shape[0])
    parts = [counts[rows[: max(1, round(share * len(rows)))]] for rows in (split.train, split.test)]
    if protocol.panel is not None and protocol.panel < counts.shape[1]:
        genes = variable_genes(parts[0], protocol.panel)
    else:
        genes = np.flatnonzero(parts[0].getnnz(axis=0))
    parts = [part[:, genes] for part in parts]
    return SplitCounts(*(part[part.getnnz(axis=1) > 0] for part in parts))


def compare(
    run: Run,
    counts: sp.csr_matrix,
    protocol: Protocol,
    *,
    trained: Mapping[tuple[str, int], AutoEncoder] = MappingProxyType({}),
) -> None:
    """Train, measure and add the rows of every seed; what an interrupted run has measured is kept.

    `trained` holds networks that are there already, by (method, seed), trained on ``split_counts`` with `protocol`.
    """
    for seed in protocol.seeds:
        parts = split_counts(counts, protocol, seed=seed)
        latents = {}
        for method in MIXINGS:
            unit = {"dataset": protocol.dataset, "split": str(seed), "method": method, "seed": seed}
            if run.done(**unit, metric="read_out_r2"):
                continue
            model = trained.get((method, seed)) or _train(method, parts.train, protocol, seed)
            if method == "scldm":
                _agreement(run, unit, model, parts.test, protocol)
                _cost(run, unit, model, parts.test)
            _erased(run, unit, model, parts.test)
            latents[method] = [encode(model, part).flatten(1).numpy() for part in parts]
            _read_out(run, unit, parts, latents[method])
        size = protocol.base.tokens * protocol.base.channels
        for method, features in _references(parts, size, seed).items():
            unit = {"dataset": protocol.dataset, "split": str(seed), "method": method, "seed": seed}
            if not run.done(**unit, metric="read_out_r2"):
                _read_out(run, unit, parts, features)


def _train(method: str, counts: sp.csr_matrix, protocol: Protocol, seed: int) -> AutoEncoder:
    settings = replace(protocol.base, mixing=MIXINGS[method])
    title = f"{method} on {protocol.dataset}, seed {seed}"
    return train(counts, settings, seed=seed, threads=protocol.threads, title=title).model.eval()


# ---- agreement under rewriting


def _agreement(run: Run, unit: dict, model: AutoEncoder, counts: sp.csr_matrix, protocol: Protocol) -> None:
    """Digits of agreement. Variant "" is the worst of encoder and decoder over all trials, in float32."""
    cells = batch_of(counts[:SET], "expressed", "cpu")[0]
    few = batch_of(counts[:FEW], "expressed", "cpu")[0]
    library = torch.from_numpy(np.asarray(counts[:SET].sum(1), dtype=np.float32).ravel())
    item = {"item": "Properties 1 to 4", "metric": "digits_of_agreement", "unit": "digits", "direction": "higher"}
    item |= {"n_real": len(library), "n_genes": counts.shape[1]}
    found: dict[str, list[float]] = {}
    control = []
    for trial in range(protocol.trials):
        generator = torch.Generator().manual_seed(1000 * unit["seed"] + trial)
        for dtype, network in zip((", float64", ""), map(model.to, (torch.float64, torch.float32)), strict=True):
            z = network.encode(exch.as_dtype(network, cells)).detach()
            sizes = library.to(z.dtype)
            digits = {"encoder": exch.encoder_digits(network, cells, generator=generator)}
            digits["decoder"] = exch.decoder_digits(network, z, sizes, generator=generator)
            for name, value in exch.attention_digits(network, cells, generator=generator).items():
                digits[f"property {name}"] = value
            for name, value in exch.subset_digits(network, z, sizes, generator=generator).items():
                digits[f"half of the genes, {name}"] = value
            if trial == 0:  # nothing random in these
                context = int(few.offsets.diff().max())
                digits["length doubled, masked"] = exch.padding_digits(network, few, extra=context, mask=True)
                digits["length doubled, not masked"] = exch.padding_digits(network, few, extra=context, mask=False)
                digits["decoder, 1.5 z + 0.3"] = exch.entrance_digits(network, z, sizes)
            for name, value in digits.items():
                found.setdefault(name + dtype, []).append(value)
        control.append(exch.positions_digits(model, cells, generator=generator))
    for name, values in found.items():
        run.add(**unit, **item, metric_variant=name, value=min(values))
    run.add(**unit, **item, value=min(found["encoder"] + found["decoder"]))
    run.add(**unit | {"method": "scldm_positions"}, **item, value=min(control))


def _cost(run: Run, unit: dict, model: AutoEncoder, counts: sp.csr_matrix) -> None:
    """Tokens and seconds of encoding `FEW` test cells, by the way they are handed over."""
    context = int(exch.expressed_genes(counts).max())
    sizes = {"n_real": min(FEW, counts.shape[0]), "n_genes": counts.shape[1]}
    for way, cost in exch.input_cost(model, counts[:FEW], context=context).items():
        own = unit | sizes | {"method": f"{way}_tokens", "item": "F.1", "direction": "lower"}
        run.add(**own, metric="input_tokens", value=cost.tokens)
        run.add(**own, metric="encode_seconds", value=cost.seconds, unit="s")


# ---- what is left of the counts


def double_some(cells: PackedCells, share: float, *, generator: torch.Generator) -> PackedCells:
    """The same cells, the counts of a random `share` of their expressed genes doubled."""
    factor = 1 + (torch.rand(len(cells.counts), generator=generator) < share).to(cells.counts.dtype)
    return cells._replace(counts=cells.counts * factor)


@torch.no_grad()
def latent_change(model: AutoEncoder, cells: PackedCells, other: PackedCells) -> float:
    """How far latents move: root mean square of the change over that of the differences between cells."""
    z, moved = model.encode(cells), model.encode(other)
    return float(((moved - z).square().mean() / (z - z.mean(0)).square().mean()).sqrt())


def changes(model: AutoEncoder, cells: PackedCells, *, seed: int) -> dict[str, float]:
    """`latent_change` when counts are changed and the expressed genes stay the same."""
    generator = torch.Generator().manual_seed(seed)
    mixed = cells.counts[torch.randperm(len(cells.counts), generator=generator)]
    others: dict[str, Tensor] = {
        "all counts doubled": 2 * cells.counts,
        "counts of half of the genes doubled": double_some(cells, 0.5, generator=generator).counts,
        "all counts set to one": torch.ones_like(cells.counts),
        "counts shuffled between genes": mixed,
    }
    return {name: latent_change(model, cells, cells._replace(counts=counts)) for name, counts in others.items()}


def _erased(run: Run, unit: dict, model: AutoEncoder, counts: sp.csr_matrix) -> None:
    cells = batch_of(counts[:SET], "expressed", "cpu")[0]
    sizes = {"n_real": min(SET, counts.shape[0]), "n_genes": counts.shape[1], "item": "A11"}
    for name, value in changes(model, cells, seed=unit["seed"]).items():
        run.add(**unit, **sizes, metric="latent_change", metric_variant=name, value=value, direction="higher")
    sizes["n_real"] = counts.shape[0]
    value = float(nll(model, counts).mean())
    run.add(**unit, **sizes, metric="re_nb_nll", value=value, unit="nats", direction="lower")


def ridge(x: np.ndarray, y: np.ndarray, x_new: np.ndarray) -> np.ndarray:
    """Ridge regression of y (n,) on features x (n, k), for new features (n', k): (n',).

    Features are scaled to unit variance; the penalty is the best of eleven by generalised cross-validation. One
    decomposition of a k x k matrix serves all penalties: fifty genes take milliseconds each.
    """
    x, x_new = np.asarray(x, dtype=float), np.asarray(x_new, dtype=float)
    centre, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    x, x_new, middle = (x - centre) / scale, (x_new - centre) / scale, y.mean()
    strength, axes = np.linalg.eigh(x.T @ x)
    strength = np.maximum(strength, 0)
    along = axes.T @ (x.T @ (y - middle))
    kept = along**2
    best, weights = np.inf, along
    for penalty in np.logspace(-1, 4, 11):
        shrunk = 1 / (strength + penalty)
        residual = np.square(y - middle).sum() - 2 * (kept * shrunk).sum() + (kept * strength * shrunk**2).sum()
        free = len(y) - 1 - (strength * shrunk).sum()
        criterion = residual / max(free, 1e-3) ** 2
        if criterion < best:
            best, weights = criterion, along * shrunk
    return middle + x_new @ (axes @ weights)


def read_out(
    train: np.ndarray, test: np.ndarray, counts_train: sp.csr_matrix, counts_test: sp.csr_matrix, *, most: int = 50
) -> dict[str, float]:
    """How well a ridge regression reads the counts of a cell from numbers that describe it: R² on test cells.

    Parameters
    ----------
    train, test
        (n, k) features; scaled by the training cells.
    counts_train, counts_test
        (n, G) counts of the same cells.
    most
        Genes of the third score: those expressed in most training cells, in at least 30.

    Returns
    -------
    "total counts": log of the total. "expressed genes": log of their number. "graded expression": of a gene, among
    the cells that express it, the log of its share of the cell's counts; residual over total sum of squares, both
    pooled over genes in units of each gene's training variance.
    """

    def errors(rows, target, rows_test, target_test) -> tuple[float, float]:
        spread = max(float(target.var()), 1e-12)
        left = np.square(target_test - ridge(train[rows], target, test[rows_test])).sum() / spread
        return float(left), float(np.square(target_test - target.mean()).sum() / spread)

    every, every_test = slice(None), slice(None)
    totals = [np.log(np.asarray(part.sum(1)).ravel()) for part in (counts_train, counts_test)]
    numbers = [np.log(part.getnnz(axis=1)) for part in (counts_train, counts_test)]
    scores = {}
    for name, (own, other) in {"total counts": totals, "expressed genes": numbers}.items():
        left, whole = errors(every, own, every_test, other)
        scores[name] = 1 - left / whole
    detected = counts_train.getnnz(axis=0)
    genes = [g for g in np.argsort(-detected, kind="stable")[:most] if detected[g] >= 30]
    columns, columns_test = counts_train.tocsc(), counts_test.tocsc()
    left = whole = 0.0
    for g in genes:
        parts = []
        for matrix, total in ((columns, totals[0]), (columns_test, totals[1])):
            column = slice(matrix.indptr[g], matrix.indptr[g + 1])
            rows = matrix.indices[column]
            parts += [rows, np.log(matrix.data[column]) - total[rows]]
        if len(parts[2]):
            more = errors(*parts)
            left, whole = left + more[0], whole + more[1]
    if not whole:
        raise ScreproError(
            "Graded expression needs genes that many cells express.",
            got=f"no gene in 30 of {counts_train.shape[0]} training cells and in a test cell",
            fix="use more cells",
        )
    return scores | {"graded expression": 1 - left / whole}


def _read_out(run: Run, unit: dict, parts: SplitCounts, features: Sequence[np.ndarray]) -> None:
    shared = {"item": "A11", "metric": "read_out_r2", "direction": "higher"}
    shared |= {"n_real": parts.test.shape[0], "n_genes": parts.test.shape[1]}
    for name, value in read_out(*features, parts.train, parts.test).items():
        run.add(**unit, **shared, metric_variant=name, value=value)


def _references(parts: SplitCounts, size: int, seed: int) -> dict[str, list[np.ndarray]]:
    """As many principal components, of the training cells, as a latent has numbers."""
    from sklearn.decomposition import PCA

    found = {}
    for method, change in (("binary_pca", lambda x: x > 0), ("log_counts_pca", np.log1p)):
        dense = [np.asarray(change(part.toarray()), dtype=np.float32) for part in parts]
        fitted = PCA(min(size, *dense[0].shape), random_state=seed, svd_solver="randomized").fit(dense[0])
        found[method] = [fitted.transform(part) for part in dense]
    return found
