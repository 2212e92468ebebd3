"""Classification of embeddings: known answers, what must not change them, and the rows of the experiment."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from screpro import records
from screpro.errors import ScreproError
from screpro.metrics.areas import pr_auc, roc_auc
from screpro.tasks import embedding, embedding_experiment
from screpro.tasks.autoencoder import AutoEncoderSettings


def two_gaussians(n=2000, gap=2.0, extra=2, seed=0):
    """Cells of two classes whose means are `gap` standard deviations apart, in 1 + `extra` dimensions."""
    rng = np.random.default_rng(seed)
    target = np.arange(n) % 2
    x = rng.standard_normal((n, 1 + extra))
    x[:, 0] += gap * target
    return x, target


def toy(donors=("a", "b", "c", "unknown"), per_donor=60, seed=0):
    """Donor c has one condition alone; a condition changes half of the 40 genes."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(donors, per_donor)
    stimulated = (np.arange(len(donor)) % 2 == 0) & (donor != "c")
    rate = np.exp(rng.normal(0.5, 0.7, 40)) * np.where(stimulated[:, None] & (np.arange(40) < 20), 2.5, 1)
    obs = pd.DataFrame({"donor": donor, "condition": np.where(stimulated, "on", "zero")})
    obs.index = [f"cell {number}" for number in range(len(obs))]
    var = pd.DataFrame(index=[f"gene {number}" for number in range(40)])
    return ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="module")
def cells():
    return embedding.prepare(toy(), group_key="donor", target_key="condition", positive="on", min_cells=20)


# --- cells --------------------------------------------------------------------------------------------------


def test_groups_with_nothing_to_tell_train_and_the_others_are_scored(cells):
    assert cells.groups == ["a", "b"] and cells.classes == ["zero", "on"] and not cells.halved
    assert cells.scored.shape[0] == 120 and cells.train.shape[0] + cells.held_out.shape[0] == 120
    assert set(cells.names) == {f"cell {number}" for number in range(120)}
    adata = toy()
    at = adata.obs_names.get_indexer(cells.names)
    assert (adata.obs["donor"].to_numpy()[at] == np.array(cells.groups)[cells.group]).all()
    assert (adata.obs["condition"].to_numpy()[at] == np.array(cells.classes)[cells.target]).all()
    np.testing.assert_array_equal(cells.scored.toarray(), adata[cells.names, cells.genes].X.toarray())


def test_half_of_the_cells_train_where_every_group_could_be_scored():
    found = embedding.prepare(toy(("a", "b")), group_key=None, target_key="donor", min_cells=10)
    assert found.halved and found.groups == ["all"] and found.classes == ["a", "b"]
    assert found.train.shape[0] + found.held_out.shape[0] == 60 == found.scored.shape[0]
    few = embedding.prepare(toy(("a", "b")), group_key=None, target_key="donor", min_cells=10, n_train=20, n_genes=15)
    assert few.train.shape == (20, 15) and len(few.genes) == 15


def test_rare_classes_are_left_out_of_their_group():
    adata = toy()
    adata.obs["condition"] = np.where(np.arange(240) < 7, "rare", adata.obs["condition"])
    found = embedding.prepare(adata, group_key="donor", target_key="condition", min_cells=20)
    assert found.classes == ["on", "zero"] and found.scored.shape[0] == 113


def test_columns_and_classes_that_do_not_fit_are_refused():
    with pytest.raises(ScreproError, match="`target_key` names a column"):
        embedding.prepare(toy(), group_key="donor", target_key="infected")
    with pytest.raises(ScreproError, match="two classes of `condition` with 100 cells"):
        embedding.prepare(toy(), group_key="donor", target_key="condition", min_cells=100)
    with pytest.raises(ScreproError, match="positive class is one of the two"):
        embedding.prepare(toy(), group_key="donor", target_key="condition", positive="yes", min_cells=20)


# --- classification -----------------------------------------------------------------------------------------


def test_two_gaussians_are_told_apart_as_well_as_bayes_rule_does():
    from scipy.stats import norm

    x, target = two_gaussians(6000)
    found = embedding.classify(x, target)
    # the best linear rule cuts half way: recall norm.cdf(gap / 2) for both classes; scores differ by N(gap, 2)
    assert found.values["macro_recall"].mean() == pytest.approx(norm.cdf(1), abs=0.015)
    assert found.values["roc_auc"].mean() == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.015)
    assert found.separable == 0 and len(found.values["macro_f1"]) == 5
    np.testing.assert_allclose(found.probability.sum(1), 1)


def test_without_penalty_no_invertible_map_changes_the_answer():
    x, target = two_gaussians(400, extra=3)
    rng = np.random.default_rng(1)
    mapped = x @ (rng.standard_normal((4, 4)) + 3 * np.eye(4)) * np.array([1, 1e-2, 30, 1]) + 5
    one, other = (embedding.classify(embedding.principal_components(y), target) for y in (x, mapped))
    np.testing.assert_allclose(one.probability, other.probability, atol=5e-3)
    punished = embedding.classify(10 * x, target, penalty="l2").probability
    assert not np.allclose(punished, embedding.classify(x / 10, target, penalty="l2").probability, atol=5e-2)


def test_random_labels_give_chance_and_separable_cells_are_noticed():
    x, target = two_gaussians(600, gap=0.0, extra=9)
    found = embedding.classify(x, target)
    assert found.values["roc_auc"].mean() == pytest.approx(0.5, abs=0.08) and found.separable == 0
    wide = np.random.default_rng(0).standard_normal((100, 99))
    assert embedding.classify(wide, np.arange(100) % 2).separable == 1


def test_positive_scores_are_those_of_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    rng = np.random.default_rng(0)
    target, probability = rng.integers(0, 2, 50), rng.random(50)
    found = embedding._scores(target, np.column_stack([1 - probability, probability]))
    own = precision_recall_fscore_support(target, probability > 0.5, average="binary")
    expected = dict(zip(("positive_precision", "positive_recall", "positive_f1"), own[:3], strict=True))
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_groups_weigh_the_same_and_errors_add_in_quadrature():
    def group(values):
        return embedding.GroupScores({"macro_f1": np.array(values)}, np.zeros(1), np.zeros((1, 1)), 0.0)

    mean, error = embedding.combine({"small": group([0.5, 0.7]), "large": group([0.8, 0.8])}, "macro_f1")
    # standard errors .1 and 0: half the root of .01
    assert (mean, error) == (pytest.approx(0.7), pytest.approx(0.05))


def test_areas_under_the_curves_are_the_areas():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 300)
    score = np.round(rng.standard_normal(300) + target, 1)  # with ties
    scores = {"g": embedding.GroupScores({}, target, np.column_stack([-score, score]), 0.0)}
    grid = np.linspace(0, 1, 20_001)
    rise, precision = embedding.curves(scores, grid)
    assert np.trapezoid(rise, grid) == pytest.approx(roc_auc(target, score), abs=1e-3)
    assert precision[1:].mean() == pytest.approx(pr_auc(target, score), abs=1e-3)
    several = rng.integers(0, 3, 300)
    probability = rng.dirichlet(np.ones(3), 300)
    rise, precision = embedding.curves({"g": embedding.GroupScores({}, several, probability, 0.0)}, grid)
    assert np.trapezoid(rise, grid) == pytest.approx(roc_auc(several, probability), abs=1e-3)
    assert precision[1:].mean() == pytest.approx(pr_auc(several, probability), abs=1e-3)


def test_components_keep_what_there_is():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 8))  # rank 3
    z = embedding.principal_components(x)
    assert z.shape == (50, 3) and z.var(0).mean() == pytest.approx(1)
    a, b = (np.linalg.norm(y[:, None] - y[None], axis=2) for y in (x, z))
    np.testing.assert_allclose(a / a.max(), b / b.max(), atol=1e-8)
    assert embedding.principal_components(x, 2).shape == (50, 2)
    for wrong in (np.full((5, 2), 1.0), np.where(x == x[0, 0], np.nan, x)):
        with pytest.raises(ScreproError, match="rows differ"):
            embedding.principal_components(wrong)


def test_every_scored_cell_needs_a_row(cells):
    with pytest.raises(ScreproError, match="row for every scored cell"):
        embedding.score_groups(np.zeros((3, 2)), cells)


# --- the experiment -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def protocol():
    tiny = {"tokens": 2, "channels": 4, "heads": 2, "cross_heads": 1, "epochs": 1}
    sizes = {"small": AutoEncoderSettings(width=8, layers=1, **tiny)}
    return embedding_experiment.Protocol("toy", 0, [0, 1], sizes, components=10)


@pytest.fixture(scope="module")
def run(cells, protocol):
    run = records.start("scldm/embeddings", tier="ci")
    own = np.random.default_rng(0).standard_normal((120, 3)) + 3 * cells.target[:, None]
    methods = ["small", "pca", "genes", "depth", "noise"]
    embedding_experiment.compare_embeddings(run, cells, protocol, methods, external={"mine": own})
    return run


def test_rows_are_those_the_rules_and_tables_ask_for(run):
    rows = run.frame()
    sizes = rows[(rows["method"] == "small") & (rows["metric_variant"] == "size")]
    assert set(sizes["metric"]) >= {"re_nb_nll", "pcc_nb_draw", "mse_nb_draw"} and set(sizes["seed"]) == {0, 1}
    floor = rows[(rows["method"] == "global_mean") & (rows["metric_variant"] == "size")].set_index("metric")["value"]
    assert set(floor.index) == {"re_nb_nll", "pcc_nb_draw", "mse_nb_draw"} and abs(floor["pcc_nb_draw"]) < 0.2
    scores = rows[(rows["item"] == "Table 17") & (rows["metric_variant"] == "")]
    wide = scores.pivot_table(index="method", columns="metric", values="value")
    assert wide.notna().all(axis=None)
    assert wide.loc["genes", "roc_auc"] > 0.8 and wide.loc["mine", "macro_f1"] > 0.9
    assert abs(wide.loc["noise", "roc_auc"] - 0.5) < 0.2
    variants = set(rows.loc[rows["method"] == "small", "metric_variant"])
    assert {"a alone", "b alone", embedding_experiment.PENALISED} <= variants
    assert (rows[rows["metric"] == "roc_curve"].groupby("method").size() == len(embedding_experiment.GRID)).all()


def test_what_is_measured_is_not_measured_again(run, cells, protocol, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(embedding_experiment.autoencoder, "train", fail)
    monkeypatch.setattr(embedding_experiment.baselines, "run", fail)
    embedding_experiment.compare_embeddings(run, cells, protocol, ["small", "pca"])


def test_names_are_checked_before_anything_runs(run, cells, protocol):
    with pytest.raises(ScreproError, match="named by its key"):
        embedding_experiment.compare_embeddings(run, cells, protocol, ["scdiff"])
    with pytest.raises(ScreproError, match="by another name"):
        embedding_experiment.compare_embeddings(run, cells, protocol, [], external={"pca": np.zeros((120, 2))})


def test_each_size_takes_the_rate_that_rebuilds_held_back_cells_best(cells, protocol, monkeypatch):
    run = records.start("scldm/embeddings", tier="ci")
    own = protocol._replace(dataset="rates", sizes={"small": protocol.sizes["small"]})
    assert embedding_experiment.with_best_rates(run, cells, own, []) == own
    chosen = embedding_experiment.with_best_rates(run, cells, own, [1e-7, 3e-2])
    rows = run.frame()
    tried = rows[(rows["dataset"] == "rates") & (rows["item"] == "tuning")]
    assert list(tried["metric_variant"]) == [f'{{"learning_rate": {rate}}}' for rate in (0.001, 1e-07, 0.03)]
    assert set(tried["split"]) == {"0 validation"} and set(tried["n_real"]) == {round(0.1 * cells.train.shape[0])}
    best = tried.loc[tried["value"].idxmin(), "metric_variant"]
    assert best == f'{{"learning_rate": {chosen.sizes["small"].learning_rate}}}'
    assert chosen.sizes["small"].learning_rate != 1e-7  # which leaves the network as it was drawn
    monkeypatch.setattr(embedding_experiment.autoencoder, "train", None)  # an interrupted run tries nothing twice
    assert embedding_experiment.with_best_rates(run, cells, own, [1e-7, 3e-2]) == chosen
