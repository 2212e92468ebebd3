"""The perturbation metrics agree with Cell-Eval 0.6.6, and what they are read against is what it says."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData, read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from screpro.errors import ScreproError
from screpro.metrics import perturbation as pt
from screpro.metrics.catalogue import catalogue

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


def test_agreement_with_cell_eval(tmp_path):
    real, generated = pair_of_files(np.float64)
    theirs, tables = cell_eval(real, generated, tmp_path)
    pair = compared(real, generated)
    theirs = theirs.loc[list(pair.perturbations)]
    for side, table in ((pair.real, tables.real), (pair.generated, tables.pred)):
        for name in ("fdr", "fold_change"):  # float32 there
            np.testing.assert_allclose(getattr(side, name), their_table(table, name, pair), rtol=2e-7, err_msg=name)
    assert pair.real.significant.any(axis=1).sum() < pair.n_perturbations, "a perturbation without called genes"
    for name, function in CELL_EVAL.items():
        np.testing.assert_allclose(function(pair), theirs[name].to_numpy(float), atol=1e-6, err_msg=name)
    assert (theirs["discrimination_score_l1"] < 1).any()


def test_agreement_with_cell_eval_in_its_odd_corners(tmp_path):
    """p-values of 0, groups of 8 cells without ties, fold changes beyond 20, equal fold changes at the cut."""
    rng = np.random.default_rng(0)
    sizes = {"BIG": 300, "SMALL": 8, "ZEROED": 60, CONTROL: 300}
    labels = np.repeat(list(sizes), list(sizes.values()))
    genes = [f"G{number}" for number in range(60)]
    x = rng.uniform(1.0, 1.5, size=(len(labels), 60)).astype(np.float32)
    x[:, 30:] *= rng.random((len(labels), 30)) < 0.7  # the last genes have zeros, so ties
    y = x.copy()
    y[labels != CONTROL] = rng.permutation(y[labels != CONTROL])
    of = {name: labels == name for name in sizes}
    x[of["BIG"], :6] += 6  # e^6 times the controls; p is 0 in float32
    y[of["BIG"], :3] += 6
    y[of["BIG"], 20:25] += 0.15  # called in the generated cells only, with p-values that float32 can hold
    x[of["SMALL"], :10] += 1
    y[of["SMALL"], 5:15] += 1
    x[of["ZEROED"], 10:18] *= 0.5
    y[np.ix_(of["ZEROED"], range(10, 45))] = 0  # 35 genes with the same fold change 1/20, of which 8 are taken
    y[of[CONTROL]] = x[of[CONTROL]]
    real, generated = adata(sp.csr_matrix(x), labels, genes), adata(y, labels, genes)
    theirs, tables = cell_eval(real, generated, tmp_path)
    pair = compared(real, generated)
    theirs = theirs.loc[list(pair.perturbations)]
    fdr = their_table(tables.pred, "fdr", pair)
    np.testing.assert_allclose(pair.generated.fdr_read, fdr, rtol=2e-5)  # their z-values are float32
    assert (fdr[0] == 0).sum() == 3 and ((fdr[0, 20:25] > 0) & (fdr[0, 20:25] < 1e-10)).all()
    assert their_table(tables.real, "fold_change", pair).max() > 100
    for name, function in CELL_EVAL.items():
        ours, expected = np.broadcast_to(function(pair), 3), theirs[name].to_numpy(float)
        cut = 2 if name == "overlap_at_N" else 3  # ZEROED comes last
        np.testing.assert_allclose(ours[:cut], expected[:cut], atol=1e-6, err_msg=name)
    # the zeros rank below the wrongly called genes, unless they are left as they are
    assert pt.de_auroc(pair)[0] < pt.de_auroc_uncapped(pair)[0]
    assert pt.de_auprc(pair)[0] < pt.de_auprc_uncapped(pair)[0]
    # which of the equal fold changes make the cut is arbitrary there; here it is the first genes
    k = pair.real.significant[2].sum()
    assert pair.real.significant[2, 10:18].all() and 8 <= k < 12
    assert pt.de_overlap(pair)[2] == 8 / k >= theirs["overlap_at_N"].iloc[2]


def test_generated_controls_are_the_real_ones_or_left_out():
    real, generated = pair_of_files(np.float32)
    of_control = (generated.obs["perturbation"] == CONTROL).to_numpy()
    left_out = generated[~of_control]
    x = sp.csr_matrix(left_out.X)
    labels, genes = left_out.obs["perturbation"].to_numpy(), list(real.var_names)
    as_matrix = pt.read_pair((real.X, real.obs["perturbation"]), (x, labels), control=CONTROL, genes=genes)
    first = pt.score(compared(real, generated))
    for other in (compared(real, left_out), pt.compare(*as_matrix)):
        assert other.genes == tuple(GENES) and (other.targets >= 0).sum() == 7
        np.testing.assert_allclose(pt.score(other)["value"], first["value"], rtol=1e-9)
    own = generated.copy()
    own.X[np.flatnonzero(of_control)[3]] *= 1.01
    fewer = generated[np.flatnonzero(~of_control).tolist() + np.flatnonzero(of_control)[:-5].tolist()]
    for changed in (own, fewer, sparse_copy(own)):
        with pytest.raises(ScreproError, match="REAL control cells"):
            compared(real, changed)


def sparse_copy(data: AnnData) -> AnnData:
    data = data.copy()
    data.X = sp.csr_matrix(data.X)
    return data


def change(which: str, how) -> tuple[AnnData, AnnData]:
    files = dict(zip(("real", "generated"), pair_of_files(np.float32), strict=True))
    files[which] = how(files[which])
    return files["real"], files["generated"]


def with_x(function):
    def changed(data: AnnData) -> AnnData:
        data = data.copy()
        data.X = function(data.X.copy())
        return data

    return changed


def with_value(value: float):
    def put(x: np.ndarray) -> np.ndarray:
        x[7, 3] = value
        return x

    return with_x(put)


def relabel(old: str, new: str | None, keep: int = 0):
    def changed(data: AnnData) -> AnnData:
        data = data.copy()
        labels = data.obs["perturbation"].to_numpy().astype(object)
        labels[np.flatnonzero(labels == old)[keep:]] = new
        data.obs["perturbation"] = labels
        return data

    return changed


def without(old: str, keep: int = 0):
    def cut(data: AnnData) -> AnnData:
        gone = np.flatnonzero((data.obs["perturbation"] == old).to_numpy())[keep:]
        return data[np.setdiff1d(np.arange(data.n_obs), gone)].copy()

    return cut


@pytest.mark.parametrize(
    ("which", "how", "says"),
    [
        ("real", without(CONTROL), "at least two control cells"),
        ("generated", without("ABSENT"), "only real: ABSENT"),
        ("real", without("ABSENT"), "only generated: ABSENT"),
        ("generated", without("ABSENT", keep=1), "one cell: ABSENT"),
        ("real", without("ABSENT", keep=1), "one cell: ABSENT"),
        ("generated", relabel("ABSENT", None), "without a label"),
        ("generated", with_value(np.nan), "NaN or infinite"),
        ("real", with_value(np.inf), "NaN or infinite"),
        ("generated", with_value(-0.1), "from -0.1"),
        ("generated", with_value(30.0), "to 30"),
        ("generated", with_x(lambda x: np.round(x)), "whole numbers only"),
        ("real", with_x(lambda x: sp.csr_matrix(x.shape, dtype=np.float32)), "zeros only"),
        ("generated", lambda data: data[:, ::-1].copy(), "another order"),
        ("generated", lambda data: data[:, 1:].copy(), "1 genes only real"),
        ("generated", lambda data: AnnData(data.X), "obs\\['perturbation'\\]"),
    ],
)
def test_what_is_not_comparable_is_refused(which, how, says):
    with pytest.raises(ScreproError, match=says):
        compared(*change(which, how))


def test_only_controls_and_odd_matrices_are_refused():
    real, _ = pair_of_files(np.float32)
    controls = real[(real.obs["perturbation"] == CONTROL).to_numpy()]
    with pytest.raises(ScreproError, match="no perturbation besides"):
        compared(controls, controls)
    with pytest.raises(ScreproError, match="one label per cell"):
        pt.read_pair((real.X, ["a", "b"]), (real.X, ["a", "b"]), control="a")
    twice = (real.X, real.obs["perturbation"])
    with pytest.raises(ScreproError, match="unique"):
        pt.read_pair(twice, twice, control=CONTROL, genes=["same"] * real.n_vars)


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


sizes = st.tuples(st.integers(0, 10_000), st.integers(1, 9), st.integers(10, 40), st.sampled_from([0, 2, 5]))


@settings(max_examples=25, deadline=None)
@given(sizes)
def test_sums_over_arrays_agree_with_the_libraries_row_by_row(size):
    """One perturbation after the other, by scipy and scikit-learn."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    seed, m, g, levels = size
    pair = random_pair(seed, m, g, levels=levels)
    auroc, auprc, spearman = (f(pair) for f in (pt.de_auroc_uncapped, pt.de_auprc_uncapped, pt.lfc_spearman))
    overlap, precision = pt.de_overlap(pair), pt.de_precision(pair)
    for row in range(m):
        label, p = pair.real.significant[row], pair.generated.fdr[row]
        if 0 < label.sum() < g:
            np.testing.assert_allclose(auroc[row], roc_auc_score(label, -p))
            np.testing.assert_allclose(auprc[row], average_precision_score(label, -p))
        else:
            assert np.isnan(auroc[row]) and np.isnan(auprc[row])
        a, b = (side.fold_change[row].astype(np.float32)[label] for side in (pair.real, pair.generated))
        if min(len(set(a)), len(set(b))) > 1:
            np.testing.assert_allclose(spearman[row], stats.spearmanr(a, b).statistic, atol=1e-12)
        else:
            assert np.isnan(spearman[row])
        ranked = []
        for side in (pair.real, pair.generated):
            called = [gene for gene in range(g) if side.fdr_read[row, gene] < np.float32(0.05)]
            ranked.append(sorted(called, key=lambda gene: -abs(np.float32(np.log2(side.fold_change[row, gene])))))
        for value, k in ((overlap[row], len(ranked[0])), (precision[row], len(ranked[1]))):
            assert value == (len({*ranked[0][:k]} & {*ranked[1][:k]}) / k if k else 0.0)
    counts = [side.significant.sum(axis=1) for side in (pair.real, pair.generated)]
    if all(len(set(part)) > 1 for part in counts):
        np.testing.assert_allclose(pt.effect_size_spearman_all(pair), stats.spearmanr(*counts).statistic, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(sizes)
def test_the_order_of_genes_and_perturbations_does_not_matter(size):
    seed, m, g, _ = size
    pair = random_pair(seed, m, g)  # no equal values: those are the one thing that goes by order
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(m), rng.permutation(g)

    def reordered(side: pt.Side) -> pt.Side:
        parts = {name: getattr(side, name)[rows][:, columns] for name in ("mean", "fdr", "fold_change")}
        return pt.Side(**parts)

    other = pt.Comparison(
        real=reordered(pair.real),
        generated=reordered(pair.generated),
        control=pair.control[columns],
        perturbations=tuple(pair.perturbations[row] for row in rows),
        genes=tuple(pair.genes[column] for column in columns),
    )
    for function in (*pt.TABLE_4.values(), *pt.PRINTED):
        before, after = np.asarray(function(pair)), np.asarray(function(other))
        np.testing.assert_allclose(after, before[rows] if before.ndim else before, atol=1e-9, err_msg=function.__name__)


def test_the_real_cells_themselves_are_a_perfect_prediction():
    pair = random_pair(3, 6, 60)
    table = pt.score(replace(pair, generated=pair.real))
    value = table[table["perturbation"] == "all"].set_index("metric")["value"]
    best = {name: 0.0 if metric.direction == "lower" else 1.0 for name, metric in of_this_family().items()}
    assert pair.real.significant.any(axis=1).all()
    np.testing.assert_allclose(value[list(best)], list(best.values()), atol=1e-12)


def of_this_family() -> dict:
    return {name: metric for name, metric in catalogue().items() if metric.family == "perturbation"}


def test_every_metric_of_the_family_is_scored():
    assert {f.__name__ for f in (*pt.TABLE_4.values(), *pt.PRINTED)} == set(of_this_family())
    assert len(pt.TABLE_4) == 14


def test_printed_norms_are_the_means_on_another_scale():
    pair = random_pair(0, 5, 30)
    np.testing.assert_allclose(pt.effect_error_squared_norm(pair), 30 * pt.mse_of_means(pair))
    np.testing.assert_allclose(pt.effect_error_norm(pair) ** 2, pt.effect_error_squared_norm(pair))


def test_calling_every_gene_reaches_the_floors():
    """Precision and average precision of a method that calls all genes alike are the share of true genes."""
    pair = random_pair(1, 5, 40)
    everything = replace(pair.generated, fdr=np.full((5, 40), 0.01), fdr_read=None)
    pair = replace(pair, generated=everything)
    share = pair.real.significant.mean(axis=1)
    np.testing.assert_allclose(pt.de_precision(pair), share)
    np.testing.assert_allclose(pt.de_auprc(pair), share)
    np.testing.assert_allclose(pt.de_auroc(pair), 0.5)


@pytest.mark.parametrize("m", [1, 2, 7, 62])
def test_one_prediction_for_all_discriminates_as_much_as_chance(m):
    drawn = random_pair(m, m, 70)  # no gene is a target
    one = np.tile(drawn.generated.mean[:1], (m, 1))
    pair = pt.Comparison(real=pt.Side(mean=drawn.real.mean), generated=pt.Side(mean=one), control=drawn.control)
    for function in (pt.pds_l1, pt.pds_l2, pt.pds_cosine, pt.pds_l1_printed):
        np.testing.assert_allclose(function(pair).mean(), (m + 1) / (2 * m))


def knock_outs(predicted: np.ndarray) -> pt.Comparison:
    """8 perturbations that lower their own gene by 50, next to random effects; `predicted` (8,) for the own gene."""
    drawn, own = random_pair(5, 8, 30), np.arange(8)
    real, generated = drawn.real.mean.copy(), np.tile(drawn.control, (8, 1))
    real[own, own] -= 50
    generated[own, own] += predicted
    return replace(drawn, real=replace(drawn.real, mean=real), generated=replace(drawn.generated, mean=generated))


@pytest.mark.parametrize("kind", ["l1", "l2", "cosine"])
def test_the_targeted_gene_is_left_out(kind):
    """What is predicted for the own gene decides the printed score and leaves Cell-Eval's alone."""
    function, printed = getattr(pt, f"pds_{kind}"), getattr(pt, f"pds_{kind}_printed")
    right, wrong = knock_outs(np.full(8, -50.0)), knock_outs(np.full(8, 50.0))
    np.testing.assert_array_equal(function(right), function(wrong))
    assert printed(right).mean() == 1.0 and printed(wrong).mean() < 0.8


def test_leaving_out_the_targeted_gene_rewards_predicting_nothing():
    """The other real effects keep THEIR targets, so the own one is closest to no effect. A trap of the definition."""
    nothing = knock_outs(np.zeros(8))
    assert pt.pds_l1(nothing).mean() == pt.pds_l2(nothing).mean() == 1.0
    assert pt.pds_l1_printed(nothing).mean() == pt.pds_l2_printed(nothing).mean() == 9 / 16
    assert pt.pds_cosine(nothing).mean() == pytest.approx(9 / 16)


def test_references_and_constants():
    real, generated = pair_of_files(np.float32, sparse=True)
    table = pt.score_perturbations(real, generated, control=CONTROL)
    value = table[table["perturbation"] == "all"].set_index(["method", "metric"])["value"]
    m, share = 9, value["constant", "share_of_called_genes"]
    assert value["constant", "pds_of_one_prediction"] == (m + 1) / (2 * m)
    nothing = value["control cells"]
    assert nothing["pds_cosine"] == pytest.approx((m + 1) / (2 * m)) and nothing["pds_cosine_printed"] == 1.0
    assert nothing["called_genes"] == nothing["de_overlap"] == nothing["de_precision"] == 0
    assert np.isnan(nothing["pd_corr"]) and nothing["de_auroc"] == 0.5
    assert nothing["de_auprc"] >= share > 0  # perturbations without called genes have a share but no average precision
    same = value["mean effect"]
    assert same["pds_l2_printed"] == pytest.approx((m + 1) / (2 * m)) == same["pds_cosine_printed"]
    assert same["r2_of_means"] > 0.99 and same["mse_of_means"] < nothing["mse_of_means"]
    assert same["called_genes"] < value["constant", "called_genes"]
    assert value["generated", "mse_of_means"] < same["mse_of_means"]
    assert value["split half", "pds_l1"] > 0.9 and value["split half", "de_auroc"] > 0.8
    again = pt.score_perturbations(real, generated, control=CONTROL)
    assert again.equals(table)
    other = pt.score_perturbations(real, generated, control=CONTROL, seed=1)
    changed = (other["value"] != table["value"]) & ~(other["value"].isna() & table["value"].isna())
    assert set(table.loc[changed, "method"]) == {"mean effect", "split half"}


def test_halves_share_no_cell_and_leave_none():
    real, _ = pt.read_pair(*pair_of_files(np.float32, sparse=True), control=CONTROL)
    halves = pt.split_half(real, seed=0)
    n = np.bincount(real.codes, minlength=10)[:9, None]
    both = halves.real.mean * (n // 2) + halves.generated.mean * (n - n // 2)
    np.testing.assert_allclose(both / n, pt.compare(real, real).real.mean)
    np.testing.assert_array_equal(halves.control, pt.compare(real, real).control)


def test_the_table_has_a_row_for_each_perturbation_and_the_mean_of_those_that_are_defined():
    real, generated = pair_of_files(np.float32)
    pair = compared(real, generated)
    table = pt.score(pair)
    rows = table[table["metric"] == "de_auroc"].set_index("perturbation")
    assert list(rows.index) == [*pair.perturbations, "all"]
    defined = ~np.isnan(pt.de_auroc(pair))
    assert 0 < defined.sum() < 9 and rows["n"].tolist() == [*defined.astype(int), defined.sum()]
    assert rows["value"]["all"] == pytest.approx(pt.de_auroc(pair)[defined].mean())
    assert len(table[table["metric"] == "r2_of_means"]) == 1


def test_sides_of_different_shape_are_refused():
    with pytest.raises(ScreproError, match="same perturbations and genes"):
        pt.Comparison(real=pt.Side(mean=[[1, 2]]), generated=pt.Side(mean=[[1, 2, 3]]))


@pytest.mark.original
def test_agreement_with_cell_eval_on_knock_outs(tmp_path):
    """Replicates of Papalexi et al. 2021 stand for real and generated cells: different cells, other batch."""
    folder = os.environ.get("SCREPRO_DATA")
    if not folder:
        pytest.skip("papalexi_thp1: SCREPRO_DATA is not set")
    path = Path(folder).parent / "prepared" / "papalexi_thp1.h5ad"
    if not path.exists():
        pytest.skip(f"papalexi_thp1: {path.name} is not in 'prepared' beside SCREPRO_DATA")
    whole = read_h5ad(path)
    whole.X = sp.csr_matrix(lognorm(whole.X.toarray().astype(np.float64)).astype(np.float32))
    names = ["CMTM6", "IFNGR2", "JAK2", "MYC", "NFKBIA", "STAT1", "STAT2"]
    rng = np.random.default_rng(0)
    genes = [*(g for g in names if g in whole.var_names), *rng.choice(whole.var_names, 110, replace=False)]
    whole = whole[:, list(dict.fromkeys(genes))]

    def some(batches: list[str], labels: list[str], n: int) -> AnnData:
        from_batches = whole.obs["batch"].isin(batches).to_numpy()
        chosen = [rng.permutation(np.flatnonzero(from_batches & (whole.obs["perturbation"] == x)))[:n] for x in labels]
        return whole[np.concatenate(chosen)].to_memory()

    batches = sorted(whole.obs["batch"].unique())
    real = some(batches[:2], [*names, CONTROL], 200)
    generated = some(batches[2:], names, 200)
    controls = real[(real.obs["perturbation"] == CONTROL).to_numpy()]
    with_controls = AnnData(sp.vstack([generated.X, controls.X]).tocsr(), var=real.var)
    with_controls.obs["perturbation"] = [*generated.obs["perturbation"], *controls.obs["perturbation"]]
    theirs, _ = cell_eval(real, with_controls, tmp_path)
    pair = compared(real, generated)
    theirs = theirs.loc[list(pair.perturbations)]
    for name, function in CELL_EVAL.items():
        np.testing.assert_allclose(function(pair), theirs[name].to_numpy(float), atol=1e-6, err_msg=name)
