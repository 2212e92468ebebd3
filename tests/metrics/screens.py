"""Cells of small screens, Cell-Eval's own results on them, and random effects: what several files test with."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import strategies as st

from screpro.metrics import perturbation as pt

CELL_EVAL = {
    "pearson_delta": pt.pd_corr,
    "mse": pt.mse_of_means,
    "mae": pt.mae_of_means,
    "discrimination_score_l1": pt.pds_l1,
    "discrimination_score_l2": pt.pds_l2,
    "discrimination_score_cosine": pt.pds_cosine,
    "overlap_at_N": pt.de_overlap,
    "precision_at_N": pt.de_precision,
    "de_direction_match": pt.direction_agreement,
    "de_spearman_lfc_sig": pt.lfc_spearman,
    "roc_auc": pt.de_auroc,
    "pr_auc": pt.de_auprc,
    "de_spearman_sig": pt.effect_size_spearman,
}
CONTROL = "control"
GENES = [f"G{number:03d}" for number in range(80)]
sizes = st.tuples(st.integers(0, 10_000), st.integers(1, 9), st.integers(10, 40), st.sampled_from([0, 2, 5]))


def lognorm(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts * (200 / np.maximum(counts.sum(axis=1, keepdims=True), 1)))


def screen(seed: int, *, strength: float = 1.0, cells: int = 40, controls: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Sparse log1p counts of 9 perturbations, 7 of them named like genes, which they shut down; two do nothing."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(7)
    base = fixed.gamma(0.4, 2.0, size=len(GENES))
    base[::17] = 0.02  # genes that nearly nobody expresses: means of 0
    names = [*(GENES[number] for number in (3, 8, 21, 40, 41, 67, 79)), "ABSENT", "NOTHING"]
    counts, labels = [], []
    for number, name in enumerate([*names, CONTROL]):
        change = np.zeros(len(GENES))
        touched = fixed.choice(len(GENES), size=6 + 3 * number, replace=False)
        change[touched] = fixed.normal(0, 1.5, size=len(touched))
        if name in (CONTROL, "NOTHING", GENES[79]):
            change[:] = 0
        rate = base * np.exp(strength * change)
        if name in GENES:
            rate[GENES.index(name)] *= 0.1
        n = controls if name == CONTROL else cells + number
        counts.append(rng.poisson(rate * rng.gamma(4, 0.25, size=(n, 1))))
        labels += [name] * n
    counts = np.vstack(counts)
    counts[:, 5] = 0  # a gene nobody expresses
    counts[[0, -1]] = 0  # two empty cells, one of them a control
    return lognorm(counts), np.array(labels)


def adata(x: np.ndarray, labels: np.ndarray, genes: list[str] = GENES) -> AnnData:
    made = AnnData(x.copy())
    made.var_names, made.obs["perturbation"] = list(genes), labels
    return made


def pair_of_files(dtype: type, *, sparse: bool = False) -> tuple[AnnData, AnnData]:
    """Real cells, and generated ones with weaker effects and the real controls."""
    x, labels = screen(1)
    y, _ = screen(2, strength=0.7)
    y[labels == CONTROL] = x[labels == CONTROL]
    form = sp.csr_matrix if sparse else np.asarray
    return adata(form(x.astype(dtype)), labels), adata(form(y.astype(dtype)), labels)


def compared(real: AnnData, generated: AnnData) -> pt.Comparison:
    return pt.compare(*pt.read_pair(real, generated, control=CONTROL))


def cell_eval(real: AnnData, generated: AnnData, outdir: Path):
    """Cell-Eval's table: one row for each perturbation."""
    evaluator = pytest.importorskip("cell_eval").MetricsEvaluator(
        generated.copy(),
        real.copy(),
        control_pert=CONTROL,
        pert_col="perturbation",
        num_threads=1,
        outdir=str(outdir),
    )
    skipped = ["clustering_agreement", "pearson_edistance"]
    results, _ = evaluator.compute(profile="full", skip_metrics=skipped, write_csv=False, break_on_error=True)
    return results.to_pandas().set_index("perturbation"), evaluator.de_comparison


def their_table(table, column: str, pair: pt.Comparison) -> np.ndarray:
    """(M, G) of one column of Cell-Eval's results of the tests."""
    wide = table.data.to_pandas().astype({"target": str, "feature": str})
    return wide.pivot(index="target", columns="feature", values=column).loc[[*pair.perturbations], [*pair.genes]].values


def random_pair(seed: int, m: int, g: int, *, levels: int = 0) -> pt.Comparison:
    """Effects without any meaning; with few `levels` many values are equal."""
    rng = np.random.default_rng(seed)

    def draw(low: float, high: float) -> np.ndarray:
        values = rng.uniform(low, high, size=(m, g))
        return np.round(values * levels) / levels if levels else values

    real, generated = (
        pt.Side(mean=draw(0.1, 3), fdr=draw(0, 1) ** 4, fold_change=np.exp(draw(-2, 2))) for _ in range(2)
    )
    names = tuple(f"g{number}" for number in range(g))
    return pt.Comparison(
        real=real, generated=generated, control=rng.uniform(0.1, 3, g), perturbations=names[:m], genes=names
    )
