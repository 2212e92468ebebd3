"""The report: what a value is, what stands beside it, and what is refused."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from screpro.data.preprocess import log_cp10k
from screpro.errors import ScreproError
from screpro.kernels.pca import pca
from screpro.metrics import suites
from screpro.metrics.catalogue import catalogue
from screpro.metrics.report import COLUMNS, MEAN, compare
from screpro.metrics.report_input import variable_genes
from screpro.metrics.suites import SCORES, setup_of

ON_POINTS = [score.name for score in SCORES if score.on == "points"]
BESIDE = ["value_equal_n", "ceiling", "floor_shuffled", "floor_mean"]


@pytest.fixture
def few_scores(monkeypatch):
    """Four of the scores, for what does not depend on which."""
    few = ("w2_exact", "energy_distance_u", "knn_recall", "gene_mean_pearson")
    monkeypatch.setattr(suites, "SCORES", [each for each in SCORES if each.name in few])


def cells(n=120, g=40, seed=0, sparse_form=True):
    """Counts of two types with many correlated genes; the law does not depend on the seed, the cells do."""
    rate = np.random.default_rng(99).gamma(2.0, 1.0, g)
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n)
    rate = rate * np.where((np.arange(g) < g // 2)[None, :] == (group == 0)[:, None], 3.0, 0.3)
    counts = rng.poisson(rate).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(counts) if sparse_form else counts)
    adata.var_names = [f"g{i}" for i in range(g)]
    adata.obs["cell_type"] = np.array(["A", "B"])[group]
    return adata


def replaced(adata, x):
    made = adata.copy()
    made.X = x
    return made


def score(found, metric, by="all"):
    rows = found.rows[(found.rows["metric"] == metric) & (found.rows["by"] == by)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_value_is_the_metric_on_components_of_the_real_cells():
    real, made = cells(), cells(n=90, seed=1)
    found = compare(real, made, n_components=7)
    assert tuple(found.rows.columns) == COLUMNS
    assert found.rows["metric"].tolist() == [score.name for score in SCORES]
    x, y = log_cp10k(real.X), log_cp10k(made.X)
    fitted = pca(x, 7)
    points = [part @ fitted.axes - fitted.mean @ fitted.axes for part in (x, y)]
    np.testing.assert_allclose(points[0], fitted.scores, atol=1e-9)
    for each in SCORES:
        row = score(found, each.name)
        given = points if each.on == "points" else (x, y)
        options = {"blur": suites.BLUR * np.linalg.norm(points[0].std(axis=0))} if "sinkhorn" in each.name else {}
        value = catalogue()[each.name].function(*given, **options)
        assert row["value"] == pytest.approx(value, rel=1e-6), each.name
        assert (row["n_real"], row["n_generated"]) == ((90, 90) if each.equal else (120, 90))
        assert row["n_equal"] == 60 and row["n_genes"] == 40
        assert row["variant"].startswith("7 PCs") == (each.on == "points")


def test_a_copy_is_perfect():
    real = cells()
    found = compare(real, real.copy())
    for metric in ("w2_exact", "mmd2_rbf_sum5", "energy_distance_v", "frechet_distance", "gene_variance_log2_ratio"):
        assert score(found, metric)["value"] == pytest.approx(0, abs=1e-3), metric
    assert score(found, "one_nn_accuracy")["value"] == 0  # every nearest neighbour is the copy
    assert score(found, "gene_mean_pearson")["value"] == pytest.approx(1)


def test_other_cells_of_the_same_law_stand_at_the_ceiling():
    found = compare(cells(400, seed=0), cells(400, seed=1))
    for metric in ("w2_exact", "energy_distance_u", "mmd2_rbf_median", "frechet_distance"):
        row = score(found, metric)
        distance = abs(row["value_equal_n"] - row["ceiling"])
        assert distance < 0.15 * abs(row["floor_shuffled"] - row["ceiling"]), metric
        assert row["floor_mean"] > row["ceiling"]
    assert abs(score(found, "one_nn_accuracy")["value_equal_n"] - 0.5) < 0.12


def test_cells_of_the_reference_half_spread_wider_than_any_others():
    """Why the ceiling needs components of the reference half alone."""
    x = sparse.csr_matrix(np.random.default_rng(0).normal(size=(60, 200)))
    setup = setup_of(x, x, labels=None, n_components=10, rng=np.random.default_rng(0))
    spread = [setup.half[0].points[part].var(axis=0).sum() for part in (setup.reference, ~setup.reference)]
    assert spread[0] > 2 * spread[1]
    whole = [setup.all[0].points[part].var(axis=0).sum() for part in (setup.reference, ~setup.reference)]
    assert whole[0] == pytest.approx(whole[1], rel=0.2)


def test_trivial_generators_stand_at_their_floors():
    real = cells(200)
    x = real.X.toarray()
    shuffled = compare(real, replaced(real, np.random.default_rng(3).permuted(x, axis=0)))
    for metric in ("w2_exact", "energy_distance_u", "frechet_distance"):
        row = score(shuffled, metric)
        assert row["value_equal_n"] == pytest.approx(row["floor_shuffled"], rel=0.2), metric
    real = replaced(real, log_cp10k(real.X))
    mean = compare(real, replaced(real, np.tile(real.X.toarray().mean(axis=0), (200, 1))))
    for metric in ("w2_exact", "energy_distance_u", "frechet_distance"):
        row = score(mean, metric)
        assert row["value_equal_n"] == pytest.approx(row["floor_mean"], rel=0.1), metric
    row = score(mean, "gene_variance_log2_ratio")
    assert row["value"] == row["floor_mean"] == np.inf
    # shuffling a gene over the cells leaves its own distribution alone
    for metric in (each.name for each in SCORES if each.on == "genes"):
        row = score(shuffled, metric)
        assert row["floor_shuffled"] == pytest.approx(row["ceiling"], abs=1e-9), metric


def test_order_of_genes_form_of_the_matrix_and_scale_do_not_matter():
    real, made = cells(), cells(seed=1)
    usual = compare(real, made).rows[["value", *BESIDE]]
    others = {
        "genes in another order": (real, made[:, ::-1].copy()),
        "dense": (cells(sparse_form=False), made),
        "normalised before": (replaced(real, log_cp10k(real.X)), replaced(made, log_cp10k(made.X))),
    }
    for name, pair in others.items():
        np.testing.assert_allclose(compare(*pair).rows[["value", *BESIDE]], usual, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_seed_draws_halves_and_nothing_else(few_scores):
    real, made = cells(), cells(seed=1)
    first, again, other = (compare(real, made, seed=seed).rows for seed in (0, 0, 1))
    assert first.equals(again)
    np.testing.assert_allclose(first["value"], other["value"], rtol=1e-6, atol=1e-9)
    assert (first["ceiling"] != other["ceiling"]).any()


def test_classes_and_their_unweighted_mean(few_scores):
    real, made = cells(), cells(n=90, seed=1)
    for adata, rare in ((real, 5), (made, 1)):
        adata.obs.iloc[:rare, 0] = "rare"
    done = []
    found = compare(real, made, by="cell_type", progress=done.append)
    classes = [f"cell_type={name}" for name in "AB"]
    assert found.rows["by"].unique().tolist() == ["all", *classes, MEAN]
    assert len(found.rows) == 4 * 4 and len(done) == 3 * 4
    assert "rare (5 real, 1 generated)" in " ".join(found.notes)
    for group in "AB":
        row = score(found, "energy_distance_u", by=f"cell_type={group}")
        assert row["n_real"] == (real.obs["cell_type"] == group).sum()
        assert row["n_generated"] == (made.obs["cell_type"] == group).sum()
        assert row["n_equal"] == min(row["n_real"] // 2, row["n_generated"])
    for metric in ("w2_exact", "gene_mean_pearson"):
        own = [score(found, metric, by=name) for name in classes]
        for column in ("value", *BESIDE):
            assert score(found, metric, by=MEAN)[column] == pytest.approx(np.mean([row[column] for row in own]))
    # genes are independent inside a class: shuffling them there destroys little, and what is left is noise
    row = score(found, "energy_distance_u", by=MEAN)
    assert row["floor_shuffled"] < score(found, "energy_distance_u")["floor_shuffled"] / 2


def test_a_class_of_two_cells_has_the_scores_that_two_cells_have(few_scores):
    real, made = cells(), cells(seed=1)
    for adata in (real, made):
        adata.obs.iloc[:2, 0] = "pair"
    found = compare(real, made, by="cell_type")
    assert np.isfinite(score(found, "energy_distance_u", by="cell_type=pair")["value"])
    assert np.isnan(score(found, "energy_distance_u", by="cell_type=pair")["ceiling"])  # of one cell against one
    assert np.isnan(score(found, "knn_recall", by="cell_type=pair")["value"])
    assert np.isfinite(score(found, "knn_recall", by=MEAN)["value"])
    assert "knn_recall: not defined for cell_type=pair" in " ".join(found.notes)


def test_cells_are_drawn_where_a_score_needs_fewer_or_equally_many(monkeypatch):
    found = compare(cells(), cells(n=90, seed=1))
    assert "one_nn_accuracy: 90 real and 90 generated cells" in " ".join(found.notes)
    assert "w2_exact: 120" not in " ".join(found.notes)
    monkeypatch.setattr(suites, "SCORES", [suites.Score("w2_exact", "points", "distance", most=30)])
    found = compare(cells(), cells(n=90, seed=1))
    assert found.rows[["n_real", "n_generated", "n_equal"]].to_numpy().tolist() == [[30, 30, 30]]
    assert "w2_exact: 30 real and 30 generated cells" in " ".join(found.notes)
    assert np.isfinite(found.rows["value"]).all()


def test_the_certificate_of_the_transport_is_printed(few_scores):
    notes = " ".join(compare(cells(), cells(seed=1)).notes)
    gap = float(notes.split("be within ")[1].split(" ")[0])
    assert 0 <= gap < 1e-6


def test_variable_genes_are_chosen_on_the_real_counts_after_scaling(few_scores):
    real, made = cells(300, 120), cells(200, 120, seed=1)
    found = compare(real, made, hvg=30)
    kept = variable_genes(real.X, 30)
    assert len(kept) == 30 and (found.rows["n_genes"] == 30).all()
    scaled = [replaced(adata, log_cp10k(adata.X))[:, kept].copy() for adata in (real, made)]
    np.testing.assert_allclose(found.rows["value"], compare(*scaled).rows["value"], rtol=1e-6, atol=1e-9)
    assert "30 variable genes" in found.notes[0]


def test_empty_cells_constant_genes_and_more_components_than_cells():
    real, made = cells(9), cells(8, seed=1)
    for adata in (real, made):
        x = adata.X.toarray()
        x[0], x[:, 5], x[:, 6] = 0, 0, 3
        adata.X = sparse.csr_matrix(x)
    found = compare(real, made)
    assert found.rows["variant"][found.rows["metric"].isin(ON_POINTS)].str.startswith("4 PCs").all()
    assert np.isfinite(found.rows["value"]).all()
    assert np.isfinite(compare(cells(4), cells(4, seed=1)).rows["value"][:6]).all()


def perturbed(n=160, seed=0):
    """log1p-like values of three perturbations of ten genes each, and controls."""
    rng = np.random.default_rng(seed)
    names = np.array(["control", "p1", "p2", "p3"])[np.arange(n) % 4]
    x = rng.gamma(2.0, 0.5, (n, 30))
    for number, name in enumerate(("p1", "p2", "p3")):
        x[np.ix_(names == name, range(10 * number, 10 * number + 10))] += 1.0
    adata = AnnData(x.astype(np.float32))
    adata.var_names = [f"g{i}" for i in range(30)]
    adata.obs["treatment"] = names
    return adata


def generated_effects(real, seed=1):
    """Other cells with the same effects, without controls."""
    made = perturbed(len(real), seed=seed)
    return made[made.obs["treatment"] != "control"].copy()


def test_every_score_without_a_value_has_a_note(few_scores, monkeypatch):
    monkeypatch.setattr(suites, "SCORES", [each for each in SCORES if each.on == "genes"])
    real, made = cells(), cells(seed=1)
    for adata in (real, made):
        adata.X = adata.X.toarray() + 1  # no zeros: their share is the same for all genes
    found = compare(real, made)
    notes = " ".join(found.notes)
    empty = [
        (row["metric"], c) for row in found.rows.to_dict("records") for c in ["value", *BESIDE] if row[c] != row[c]
    ]
    assert ("gene_zero_fraction_pearson", "value") in empty and ("gene_variance_pearson", "floor_mean") in empty
    for metric, column in empty:
        assert f"{metric}{'' if column == 'value' else f', {column}'}: not defined for all cells. " in notes


def test_every_distance_between_distributions_is_reported():
    assert {name for name, each in catalogue().items() if each.family == "distribution"} == {s.name for s in SCORES}


def test_one_component_is_one():
    pair = [cells(8, 2, seed=seed) for seed in (0, 1)]
    found = compare(*pair)
    assert found.rows["variant"][0] == "1 PC" and "on 1 principal component of" in found.notes[0]


def test_a_fit_that_fails_is_told_in_plain_words():
    counts = sparse.csr_matrix(np.repeat([[1.0], [3.0], [2.0], [1.0]], 6, axis=1))
    with pytest.raises(ScreproError, match="seurat_v3 fits a curve") as caught:
        variable_genes(counts, 3)
    assert "b'" not in str(caught.value)


def test_perturbation_scores_are_those_of_the_perturbation_module():
    from screpro.metrics.perturbation import TABLE_4, score_perturbations

    real = perturbed()
    made = generated_effects(real)
    options = {"perturbation": "treatment", "control": "control"}
    found = compare(real, made, suite="celleval", **options)
    assert found.rows["suite"].unique().tolist() == ["celleval"]
    whole = found.rows[found.rows["by"] == "all"].set_index("metric")
    assert whole["variant"].tolist() == list(TABLE_4)
    theirs = score_perturbations(real, made, control="control", by="treatment")
    columns = {
        "generated": "value",
        "control cells": "floor_control",
        "mean effect": "floor_mean",
        "split half": "ceiling",
    }
    for method, column in columns.items():
        table = theirs[(theirs["method"] == method) & (theirs["perturbation"] == "all")].set_index("metric")["value"]
        np.testing.assert_allclose(whole[column], table[whole.index], rtol=1e-5, err_msg=method)
    assert (whole["n_real"] == 120).all() and (whole["n_generated"] == 120).all() and (whole["n_equal"] == 60).all()
    assert np.isnan(whole["floor_shuffled"].astype(float)).all()
    # the same law: as good as the other half of the real cells, and better than the trivial predictions
    row = whole.loc["pd_corr"]
    assert row["value_equal_n"] == pytest.approx(row["ceiling"], abs=0.1) and row["value"] > row["floor_mean"] + 0.2
    each = found.rows[found.rows["metric"] == "pd_corr"]
    assert each["by"].tolist() == ["all", "treatment=p1", "treatment=p2", "treatment=p3"]
    assert each["value"].iloc[0] == pytest.approx(each["value"].iloc[1:].mean())


@pytest.mark.parametrize("targets", [("p1", "p2", "p3"), ("g0", "g10", "g20")])
def test_the_note_on_pds_holds_with_and_without_measured_targets(targets):
    real = perturbed()
    names = dict(zip(("p1", "p2", "p3"), targets, strict=True))
    real.obs["treatment"] = [names.get(name, name) for name in real.obs["treatment"]]
    for number, name in enumerate(targets):  # a knock-out: its own gene falls
        real.X[(real.obs["treatment"] == name).to_numpy(), 10 * number] = 0
    made = real[real.obs["treatment"] != "control"].copy()
    found = compare(real, made, suite="celleval", perturbation="treatment", control="control")
    nothing = found.rows[found.rows["by"] == "all"].set_index("metric")["floor_control"]
    notes = " ".join(found.notes)
    if targets[0] == "p1":
        assert "(M + 1) / 2M = 0.667" in notes and nothing["pds_l1"] == pytest.approx(2 / 3)
    else:
        assert "(M + 1)" not in notes and f"no effect scores {nothing['pds_l1']:.3f} in PDSL1" in notes
    (line,) = (note for note in found.notes if note.startswith("not defined in floor_control: "))
    assert "pd_corr" in line and np.isnan(nothing["pd_corr"])


def test_control_cells_are_not_scored_as_generated(few_scores):
    real = perturbed()
    made = generated_effects(real)
    options = {"perturbation": "treatment", "control": "control"}
    with_controls = AnnData(
        np.vstack([made.X, real.X[real.obs["treatment"] == "control"]]),
        obs={"treatment": [*made.obs["treatment"], *["control"] * 40]},
        var=made.var,
    )
    found = [compare(real, each, suite="all", **options).rows for each in (made, with_controls)]
    columns = ["value", *BESIDE, "floor_control"]
    np.testing.assert_allclose(found[0][columns].astype(float), found[1][columns].astype(float), rtol=1e-6)
    of_cells = found[0][found[0]["suite"] == "scldm"]
    assert of_cells["n_real"].max() == 120  # of 160
    bare = compare(*(each[each.obs["treatment"] != "control"].copy() for each in (real, made)))
    np.testing.assert_allclose(of_cells["value"], bare.rows["value"], rtol=1e-6)


def with_nan():
    bad = cells()
    bad.X.data[3] = np.nan
    return bad


def doubled():
    bad = cells()
    bad.var_names = ["g0", *bad.var_names[:-1]]
    return bad


def unlabelled():
    bad = cells()
    bad.obs.iloc[3, 0] = np.nan
    return bad


@pytest.mark.parametrize(
    ("made", "options", "said"),
    [
        (lambda: cells()[:, :-2].copy(), {}, "2 genes missing from the generated cells: g38, g39"),
        (with_nan, {}, "finite"),
        (doubled, {}, "unique"),
        (lambda: cells()[:2].copy(), {}, "at least four"),
        (lambda: AnnData(cells().X * 0.5, var=cells().var), {}, "integer counts in the real cells only"),
        (cells, {"by": "donor"}, "lack it"),
        (unlabelled, {"by": "cell_type"}, "1 generated cells without one"),
        (lambda: cells()[cells().obs["cell_type"] == "A"].copy(), {"by": "cell_type"}, "only in one of them: B"),
        (cells, {"hvg": 41}, "between 2 and the number of genes, 40"),
        (cells, {"suite": "celeval"}, "scldm, celleval, all"),
        (cells, {"suite": "all", "control": "ctrl"}, "no --perturbation"),
        (cells, {"perturbation": "cell_type"}, "knows no perturbations"),
        (cells, {"suite": "celleval", "perturbation": "drug", "control": "A"}, "lack it"),
        (cells, {"suite": "celleval", "perturbation": "cell_type", "control": "ctrl"}, "ctrl"),
        (cells, {"suite": "celleval", "perturbation": "cell_type", "control": "A", "by": "cell_type"}, "--by belongs"),
    ],
)
def test_bad_input_is_named_before_the_first_score(made, options, said, monkeypatch):
    monkeypatch.setattr(suites, "setup_of", None)
    with pytest.raises(ScreproError, match=said):
        compare(cells(), made(), **options)


def test_variable_genes_of_values_that_are_not_counts():
    halved = [replaced(each, each.X * 0.5) for each in (cells(), cells(seed=1))]
    with pytest.raises(ScreproError, match="not integer counts"):
        compare(*halved, hvg=10)
