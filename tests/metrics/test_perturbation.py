"""What the perturbation metrics say: sums row by row, what does not matter, and what they are read against."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from screpro.metrics import perturbation as pt
from screpro.metrics.catalogue import catalogue

screens = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("screens.py"))))
CONTROL, sizes = screens.CONTROL, screens.sizes
compared, pair_of_files, random_pair = screens.compared, screens.pair_of_files, screens.random_pair


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
    """Without the null test, which is no metric of a `Comparison`: it has cells of its own."""
    family = {name: metric for name, metric in catalogue().items() if metric.family == "perturbation"}
    family.pop("null_calls")
    return family


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
