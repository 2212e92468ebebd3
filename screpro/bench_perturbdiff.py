"""PerturbDiff: a training step, the evaluation of Table 4 and the cutting of sets, beside named peers in one run."""

import os
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np

from screpro.bench_data import counts, log_normalised, perturbed_cells, rates
from screpro.bench_measure import MISSING, Rows, around, cuda, relative, row, turns

__all__ = ["perturbdiff"]

GENES = 2000
STEPS = (
    (4, 32, {"width": 128, "layers": 4, "heads": 8}),
    (8, 256, {"width": 128, "layers": 4, "heads": 8}),
    (8, 256, {"width": 512, "layers": 8, "heads": 8}),
)
"""Sets, cells in a set and sizes of the network: tier laptop, the sets of PBMC and Tahoe, the shipped network."""


def perturbdiff() -> Rows:
    """All rows; the largest step and Cell-Eval take minutes on a CPU."""
    return [*_steps(), *_losses(), *_evaluation(), *_batching()]


# --- training step ---------------------------------------------------------------------------------------------


def _steps() -> Rows:
    rows = []
    for sets, cells, sizes in STEPS:
        line = partial(
            row,
            "PerturbDiff, training step",
            f"{sets} sets x {cells} cells x {GENES} genes, width {sizes['width']}, {sizes['layers']} blocks",
            peer="the same network of torch's own layers, controls padded with zeros, geomloss called twice",
            target="at least 1.8 times",
        )
        if not find_spec("geomloss"):
            rows.append(line(agreement=MISSING))
            continue
        ours, theirs = _both_steps(sets, cells, sizes)
        (loss, *gradients), (other, *slopes) = ours(), theirs()
        gap = max(relative(a, b) for a, b in zip(gradients, slopes, strict=True) if b.abs().max() > 1e-6)
        ours_ms, peer_ms = turns(ours, theirs, least=3)
        agreement = f"loss {relative(loss, other):.0e}, gradients {gap:.0e} apart"
        rows.append(line(ours_ms=ours_ms, peer_ms=peer_ms, agreement=agreement))
    return rows


def _both_steps(sets: int, cells: int, sizes: dict):
    """Forward and backward of one step, with and without what this package does differently; the same weights."""
    import torch

    from screpro.kernels.linear import without_onednn
    from screpro.losses_sets import set_loss
    from screpro.models.perturbdiff import PerturbDiff, PerturbDiffConfig

    device = "cuda" if cuda() else "cpu"
    torch.manual_seed(0)
    labels = {"perturbation": 90, "context": 18, "batch": 12}
    model = PerturbDiff(PerturbDiffConfig(n_genes=GENES, labels=labels, **sizes)).to(device)
    for block in model.blocks:  # zero at the start, when half of the gradients would be zero too
        for layer in (block.modulation, block.control_modulation):
            torch.nn.init.normal_(layer.weight, std=0.02)
    x = log_normalised(counts(np.zeros(sets * cells, int), rates(1, GENES, share=0), density=0.05))
    x0 = torch.from_numpy(x.toarray().astype(np.float32) / 10).reshape(sets, cells, GENES).to(device)
    given = {
        "x_t": x0 + torch.randn_like(x0),
        "t": torch.full((sets,), 300, device=device),
        "control": x0.flip(0),
        "labels": {name: torch.zeros(sets, dtype=torch.long, device=device) for name in labels},
    }
    wide = torch.nn.Linear(2 * GENES, sizes["width"]).to(device)
    with torch.no_grad():
        wide.weight[:, :GENES] = model.enter_control[0].weight
        wide.bias.copy_(model.enter_control[0].bias)
    value = model(**given).sum()  # the last control MLP and the null vector have no part in this step
    every = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(value, every, allow_unused=True)
    weights = [p for p, slope in zip(every, slopes, strict=True) if slope is not None]

    def ours():
        value = set_loss(model(**given), x0).mean()
        return [value.detach(), *torch.autograd.grad(value, weights)]

    @without_onednn()
    def theirs():
        zeros = torch.zeros_like(x0)
        entrance = model.enter_control[0]
        model.enter_control[0] = _padded(wide, zeros)
        try:
            predicted = model(**given, previous=zeros)
        finally:
            model.enter_control[0] = entrance
        value = _their_loss(predicted, x0)
        entry = {id(entrance.weight): wide.weight, id(entrance.bias): wide.bias}
        slopes = torch.autograd.grad(value, [entry.get(id(p), p) for p in weights])
        cut = [s[:, :GENES] if id(p) == id(entrance.weight) else s for p, s in zip(weights, slopes, strict=True)]
        return [value.detach(), *cut]

    return ours, theirs


def _losses() -> Rows:
    """The loss of a step alone, value and gradient: what a step would save if its network were the same."""
    import torch

    from screpro.losses_sets import set_loss

    rows = []
    for sets, cells in dict.fromkeys((sets, cells) for sets, cells, _ in STEPS):
        line = partial(
            row,
            "PerturbDiff, loss of a step alone",
            f"{sets} sets x {cells} cells x {GENES} genes",
            peer="geomloss called twice, squared error",
        )
        if not find_spec("geomloss"):
            rows.append(line(agreement=MISSING))
            continue
        torch.manual_seed(0)
        x0 = torch.rand(sets, cells, GENES, device="cuda" if cuda() else "cpu")
        predicted = (x0 + 0.1 * torch.randn_like(x0)).requires_grad_()

        def ours(predicted=predicted, x0=x0):
            value = set_loss(predicted, x0).mean()
            return value.detach(), *torch.autograd.grad(value, predicted)

        def theirs(predicted=predicted, x0=x0):
            value = _their_loss(predicted, x0)
            return value.detach(), *torch.autograd.grad(value, predicted)

        gaps = [relative(a, b) for a, b in zip(ours(), theirs(), strict=True)]
        ours_ms, peer_ms = turns(ours, theirs)
        agreement = f"loss {gaps[0]:.0e}, gradient {gaps[1]:.0e} apart"
        rows.append(line(ours_ms=ours_ms, peer_ms=peer_ms, agreement=agreement))
    return rows


def _their_loss(predicted, x0):
    """As the authors call geomloss: for the value, and once more for the log, as in their training module."""
    import torch
    from geomloss import SamplesLoss

    energy = SamplesLoss("energy", blur=0.05)
    value = energy(predicted, x0).mean() + (predicted - x0).square().mean()
    with torch.no_grad():
        energy(predicted.detach(), x0).tolist()
    return value


def _padded(layer, zeros):
    """An entrance for [control ; zeros], as theirs is."""
    import torch

    class Padded(torch.nn.Module):
        def forward(self, control):
            return layer(torch.cat([control, zeros], -1))

    return Padded()


# --- evaluation ------------------------------------------------------------------------------------------------


def _evaluation() -> Rows:
    """All 14 scores of 60 perturbations x 200 cells x 2000 genes with 2000 control cells."""
    from screpro.metrics.perturbation import TABLE_4, compare, read_pair

    x, codes = perturbed_cells(60 * 200 + 2000, GENES, 60, density=0.15)
    rng = np.random.default_rng(0)
    names = np.array(["control", *(f"gene {i}" for i in range(60))])[codes]
    other = x[rng.permutation(np.flatnonzero(codes > 0))]  # cells of other perturbations as an answer
    made_names = names[codes > 0]
    genes = [f"g{i}" for i in range(GENES)]

    def ours():
        pair = compare(*read_pair((x, names), (other, made_names), control="control", genes=genes))
        return {function.__name__: float(np.nanmean(function(pair))) for function in TABLE_4.values()}

    size = f"60 perturbations x {GENES} genes x 200 cells"
    line = partial(row, "the 14 scores of Table 4", size, peer="cell-eval 0.6.6", target="at least 20 times")
    if not find_spec("cell_eval"):
        return [line(ours_ms=turns(ours, least=3)[0], agreement='not measured: pip install "screpro[baselines]"')]
    ours_ms, peer_ms, found = around(ours, partial(_cell_eval, x, names, other, made_names, genes))
    mine = ours()
    gap = max(abs(mine[name] - value) for name, value in found.items() if np.isfinite(value))
    return [line(ours_ms=ours_ms, peer_ms=peer_ms, agreement=f"{len(found)} scores at most {gap:.0e} apart")]


def _cell_eval(x, names, other, made_names, genes) -> dict[str, float]:
    """Cell-Eval's means of the scores that Table 4 takes from it."""
    import tempfile
    import warnings

    import anndata
    import pandas as pd
    import scipy.sparse as sp
    from cell_eval import MetricsEvaluator

    theirs = {
        "pearson_delta": "pd_corr", "mse": "mse_of_means", "mae": "mae_of_means",
        "discrimination_score_l1": "pds_l1", "discrimination_score_l2": "pds_l2",
        "discrimination_score_cosine": "pds_cosine", "overlap_at_N": "de_overlap", "precision_at_N": "de_precision",
        "de_direction_match": "direction_agreement", "de_spearman_lfc_sig": "lfc_spearman", "roc_auc": "de_auroc",
        "pr_auc": "de_auprc", "de_spearman_sig": "effect_size_spearman",
    }  # fmt: skip

    def annotated(matrix, labels):
        obs = pd.DataFrame({"perturbation": labels}, index=np.arange(len(labels)).astype(str))
        return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=genes))

    controls = names == "control"
    made = annotated(sp.vstack([other, x[controls]], format="csr"), np.concatenate([made_names, names[controls]]))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        evaluator = MetricsEvaluator(
            adata_pred=made, adata_real=annotated(x, names), control_pert="control", pert_col="perturbation",
            num_threads=int(os.environ.get("SCREPRO_THREADS", os.cpu_count() or 1)), outdir=folder,
        )  # fmt: skip
        # these two are no scores of Table 4
        others = ["pearson_edistance", "clustering_agreement"]
        _, table = evaluator.compute(profile="full", skip_metrics=others, write_csv=False)
    means = dict(zip(table.columns, table.filter(table["statistic"] == "mean").row(0), strict=True))
    return {ours: float(means[name]) for name, ours in theirs.items() if name in means}


# --- batching --------------------------------------------------------------------------------------------------


def _batching() -> Rows:
    """Cutting all cells into sets with matched controls, and making them dense."""
    from screpro.data.populations import Populations, gather

    n = 100_000
    rng = np.random.default_rng(0)
    x = log_normalised(counts(rng.integers(0, 11, n), rates(11, GENES, share=0.1), density=0.05)).astype(np.float32)
    names = tuple(map(str, range(100)))
    cells = Populations(
        x=x, counts=x, perturbation=rng.integers(0, 100, n), context=rng.integers(0, 8, n), batch=rng.integers(0, 3, n),
        genes=tuple(map(str, range(GENES))), perturbations=names, contexts=names[:8], batches=names[:3],
    )  # fmt: skip
    divisor = np.full(GENES, 10, dtype=np.float32)

    def ours():
        sets = cells.sets(32, rng=np.random.default_rng(0))
        for first in range(0, len(sets.rows), 16):
            gather(x, np.stack([sets.rows[first : first + 16], sets.controls[first : first + 16]]), divisor)

    fresh = replace(cells)

    def sliced():
        sets = fresh.sets(32, rng=np.random.default_rng(0))
        for first in range(0, len(sets.rows), 16):
            for rows in (sets.rows, sets.controls):
                x[rows[first : first + 16].ravel()].toarray() / 10

    ours_ms, peer_ms = turns(ours, sliced, least=3)
    return [
        row(
            "sets of 32 cells with controls, dense",
            f"{n} cells x {GENES} genes, 5 % non-zero",
            ours_ms=ours_ms,
            peer="scipy: rows, toarray",
            peer_ms=peer_ms,
            target="at least 300 000 cells/s",
            agreement=f"{1e3 * n / ours_ms:,.0f} cells/s, as many controls besides",
        )
    ]
