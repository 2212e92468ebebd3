"""Gene perturbation: cells, scores of known predictions, scDiff on a planted effect, bookkeeping of the experiment."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from screpro import records
from screpro.data.gene_graph import GeneGraph, written_terms
from screpro.errors import ScreproError
from screpro.tasks import gene_perturbation_experiment as experiment
from screpro.tasks.gene_perturbation import (
    PRESETS,
    PerturbedCells,
    graph_of,
    halves,
    perturbed_cells,
    predict_scdiff,
    scdiff_grid,
    score,
    train_scdiff,
    training_part,
)

GENES = tuple("abcdefgh")
G = 30


def graph():
    """Two modules of four genes."""
    same = np.kron(np.eye(2), np.ones((4, 4))) - np.eye(8)
    return GeneGraph(GENES, sp.csr_matrix(same.astype(np.float32)), "two modules")


def cells(n=30, names=GENES):
    """Genes of a module raise the same ten genes by 2."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(len(names) + 1), n)
    x = np.abs(1 + 0.3 * rng.normal(size=(len(label), G)))
    for number in range(1, len(names) + 1):
        first = 0 if GENES.index(names[number - 1]) < 4 else 10
        x[label == number, first : first + 10] += 2
    return PerturbedCells(
        sp.csr_matrix(x.astype(np.float32)), label, ("control", *names), tuple(f"m{g}" for g in range(G)), graph()
    )


def table(names, n=25):
    labels = np.repeat(names, n)
    obs = pd.DataFrame({"perturbation": labels}, index=[str(i) for i in range(len(labels))])
    return AnnData(sp.csr_matrix(np.random.default_rng(0).random((len(labels), G)).astype(np.float32)), obs=obs)


def test_cells_are_chosen_and_numbered():
    adata = table(["control", "b", "a+b", "zz", "a"])
    made = perturbed_cells(adata, graph(), at_most=20, control_at_most=22)
    assert made.names == ("control", "a", "a+b", "b")  # zz is not in the graph
    assert np.bincount(made.label).tolist() == [22, 20, 20, 20]
    np.testing.assert_array_equal(made.incidence.toarray()[:, :3], [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(made.numbers(["b", "a+b"]), [3, 2])
    own = adata.X[(adata.obs["perturbation"] == "b").to_numpy()].toarray()
    assert all((own == row).all(axis=1).any() for row in made.of(3).toarray())
    np.testing.assert_allclose(made.means()[3], made.of(3).toarray().mean(axis=0), rtol=1e-5)


def test_bad_cells_are_refused():
    with pytest.raises(ScreproError, match="control"):
        perturbed_cells(table(["a", "b"]), graph())
    with pytest.raises(ScreproError, match="in the gene graph"):
        perturbed_cells(table(["control", "zz"]), graph())
    adata = table(["control", "a"])
    del adata.obs["perturbation"]
    with pytest.raises(ScreproError, match="column"):
        perturbed_cells(adata, graph())
    with pytest.raises(ScreproError, match="by its name"):
        cells().numbers(["nobody"])
    with pytest.raises(ScreproError, match="context"):
        train_scdiff(cells(), replace(PRESETS["ci"], context="other"), seed=0)


def test_genes_without_terms_get_a_graph_of_co_expression():
    """Two measured genes rise together in control cells; a third is not measured, and nothing is known of it."""
    adata = table(["control", "m0", "m1", "zz"], n=40)
    adata.var_names = [f"m{i}" for i in range(G)]
    x = adata.X.toarray()
    x[:, 1] = x[:, 0] + 0.01 * x[:, 1]
    adata.X = sp.csr_matrix(x)
    made = graph_of(adata)
    assert made.genes == ("m0", "m1") and made.source == "co-expression in control cells"
    assert made.weights.nnz == 2 and made.weights.data.min() > 0.99
    assert perturbed_cells(adata, made).names == ("control", "m0", "m1")
    held_out = adata.copy()
    held_out.X[(adata.obs["perturbation"] != "control").to_numpy()] = 0  # only control cells are looked at
    np.testing.assert_array_equal(graph_of(held_out).weights.toarray(), made.weights.toarray())
    with pytest.raises(ScreproError, match="-p graph coexpression"):
        graph_of(adata, kind="terms")
    adata.var_names = [f"n{i}" for i in range(G)]
    with pytest.raises(ScreproError, match="-p graph_file"):
        graph_of(adata)


def test_written_terms_are_taken_where_they_cover_half_of_the_genes():
    known, other = sorted(written_terms())[:3], ["xx", "yy", "zz"]
    assert graph_of(table(["control", *known, *other])).source.startswith("terms")
    few = table(["control", *known[:2], *other])
    few.var_names = [*other, *map(str, range(G - 3))]
    assert graph_of(few).source.startswith("co-expression")
    assert graph_of(few, kind="terms").genes == tuple(known[:2])


def test_a_graph_file_is_named_when_it_does_not_fit(tmp_path):
    adata, terms, edges = table(["control", "a", "b"]), tmp_path / "terms.tsv", tmp_path / "edges.csv"
    terms.write_text("gene\tterm\na\tx\nb\tx\n")
    edges.write_text("source,target,importance\na,b,0.5\n")
    for file in (terms, edges):
        assert graph_of(adata, file=file).genes == ("a", "b")
    terms.write_text("gene\tterm\nENSG1\tx\n")
    edges.write_text("source,target,importance\nENSG1,ENSG2,0.5\n")
    for file in (terms, edges):
        with pytest.raises(ScreproError, match="A graph_file names genes") as caught:
            graph_of(adata, file=file)
        assert file.name in str(caught.value) and "ENSG1" in str(caught.value)
    with pytest.raises(ScreproError, match=r"nowhere\.csv"):
        graph_of(adata, file=tmp_path / "nowhere.csv")


def scdiff_rows(chosen):
    """Rows of one recording whose tuning preferred the sampler `chosen`, with the direction of an older version."""
    values = {"ddim": {"delta_pearson": 0.1}, "one call": {"delta_pearson": 0.3}}
    main = {"": {"delta_pearson": values[chosen]["delta_pearson"] + 1e-9, "change_size_ratio": -0.2}}
    made = records.start("scdiff/gene_perturbation", tier="ci")
    for variant, scores in (main | values).items():
        for metric, value in scores.items():
            made.add(item="X-14", dataset="d", split="0", method="scdiff", metric=metric, metric_variant=variant,
                     seed=0, value=value, direction="higher")  # fmt: skip
    made.add(item="Table 7", dataset="d", split="0", method="gears", metric="delta_pearson", seed=0, value=0.2,
             direction="higher")  # fmt: skip
    return made.frame()


@pytest.mark.parametrize(("chosen", "name"), [("one call", experiment.ONE_CALL), ("ddim", "scdiff")])
def test_main_scores_are_named_by_how_cells_were_drawn(chosen, name):
    named = experiment.by_sampler(scdiff_rows(chosen))
    value = named.set_index(["metric", "method"])["value"]
    assert value["delta_pearson", "scdiff"] == pytest.approx(0.1)
    assert value["delta_pearson", experiment.ONE_CALL] == pytest.approx(0.3)
    assert value["delta_pearson", "gears"] == pytest.approx(0.2)
    assert named.loc[named["metric"] == "change_size_ratio", "method"].tolist() == [name]
    assert set(named.loc[named["metric"] == "change_size_ratio", "direction"]) == {"closer to 1"}
    assert not named.duplicated(["metric", "method", "split", "seed"]).any() and set(named["metric_variant"]) == {""}
    sizes = records.side_by_side("scdiff", None, named, metric="change_size_ratio", subject="scdiff")
    assert len(sizes.rows) == 1


def test_control_halves_are_disjoint():
    made = cells()
    own, other = halves(made, 1 / 3, seed=0)
    assert len(own) == 20 and len(other) == 10 and not set(own) & set(other)
    assert (made.label[np.concatenate([own, other])] == 0).all()


def test_scores_of_known_predictions():
    made = cells()
    truth, control = made.of(1), made.of(0)
    mean, base = (np.asarray(part.mean(axis=0)).ravel() for part in (truth, control))
    perfect = score(mean, truth, control)
    assert perfect["delta_pearson"] == pytest.approx(1)
    assert perfect["mse_top20_de"] == pytest.approx(0, abs=1e-8)
    half = score(base + (mean - base) / 2, truth, control)
    assert half["delta_pearson"] == pytest.approx(1) and half["change_size_ratio"] == pytest.approx(0.5, abs=1e-3)
    assert np.isnan(score(base, truth, control)["delta_pearson"])


def protocol(**changes):
    base = replace(PRESETS["ci"], width=16, depth=2, epochs=25, sampler_steps=5, learning_rate=3e-3)
    grids = {"gears": [{"epochs": 2, "hidden": 4, "batch_size": 64}]}
    return experiment.Protocol("drawn", [0], [0], base, False, grids=grids)._replace(**changes)


def test_parts_do_not_leak():
    made = cells()
    for validation in (False, True):
        own = experiment.parts(made, protocol(), 0, validation=validation)
        trained = set(own.train.label) - {0}
        assert not trained & set(own.held_out) and set(own.test.label) == set(own.held_out)
        assert (own.other_control.label == 0).all()
        if validation:
            test = experiment.parts(made, protocol(), 0)
            assert not (trained | set(own.held_out)) & set(test.held_out)


@pytest.mark.parametrize("context", ["own", "control"])
def test_scdiff_predicts_an_unseen_gene_of_a_known_module(context):
    made = cells()
    train = made.take(~np.isin(made.label, [2, 6]))
    settings = replace(protocol().base, context=context)
    trained = train_scdiff(train, settings, seed=0, threads=1)
    predicted = predict_scdiff(trained, train, [2, 6], settings, seed=0)
    change = predicted - made.means()[0]
    assert change[0, :10].mean() > change[0, 10:20].mean() + 0.2
    assert change[1, 10:20].mean() > change[1, :10].mean() + 0.2


def test_predictions_share_their_noise():
    """What two predictions differ in is their condition: the same perturbation twice is the same prediction."""
    made = cells(n=8)
    settings = replace(protocol().base, epochs=1)
    trained = train_scdiff(made, settings, seed=0, threads=1)
    twice = predict_scdiff(trained, made, [1, 6, 1], settings, seed=0)
    np.testing.assert_array_equal(twice[0], twice[2])
    assert np.abs(twice[0] - twice[1]).max() > 0


def test_settings_that_differ_in_drawing_share_a_network():
    grid = scdiff_grid(PRESETS["laptop"])
    assert grid[0] == PRESETS["laptop"] and len(grid) == len(set(grid)) == 4
    assert {(g.context, g.sampler) for g in grid} == {(c, s) for c in ("own", "control") for s in ("ddim", "one call")}
    assert len({training_part(setting) for setting in grid}) == 2
    assert training_part(replace(grid[0], inputs=3, sampler_steps=7)) == training_part(grid[0])
    assert training_part(replace(grid[0], epochs=3)) != training_part(grid[0])


def test_an_error_shared_by_all_generated_cells_is_found(monkeypatch):
    """Right changes upon a wrong level: as printed the correlation is lost, against generated control it is 1."""
    own = experiment.parts(cells(), protocol(), 0)
    base = np.asarray(own.train.of(0).mean(axis=0)).ravel()
    known = np.where(np.isfinite(own.test.means()), own.test.means(), own.train.means())
    known[0] = base
    change = known[own.held_out] - base
    shift = 5 * np.random.default_rng(0).normal(size=G)

    def predicted(trained, cells, perturbations, settings, *, seed):
        return known[perturbations] + (shift if settings.sampler == "ddim" else 0)

    monkeypatch.setattr(experiment, "predict_scdiff", predicted)
    found = experiment.drawing(None, own, replace(protocol().base, sampler="one call"), seed=0)
    assert found["control_error_ratio", "ddim"] == pytest.approx(np.sqrt((shift**2).mean() / (change**2).mean()))
    assert found["control_error_ratio", "one call"] == 0
    assert found["mse_top20_de", "one call"] < 1e-8 and found["mse_top20_de", "ddim"] > 1
    assert found["change_size_ratio", "one call"] == pytest.approx(1, abs=1e-5)
    assert found["change_size_ratio", "ddim, generated control"] == pytest.approx(1, abs=1e-5)
    assert abs(found["change_size_ratio", "ddim"] - 1) > 0.1
    assert found["delta_pearson", "ddim"] < 0.6
    for variant in ("ddim, generated control", "one call", "one call, generated control", "training perturbations"):
        assert found["delta_pearson", variant] == pytest.approx(1)


def test_one_call_has_the_level_of_control_cells_and_knows_what_it_was_trained_on():
    made = cells()
    own = experiment.parts(made, protocol(), 0)
    settings = replace(protocol().base, context="control", sampler="one call", epochs=50)
    trained = train_scdiff(own.train, settings, seed=0, threads=1)
    found = experiment.drawing(trained, own, settings, seed=0)
    assert found["control_error_ratio", "one call"] < 0.75  # well below the change that is predicted
    assert found["delta_pearson", "training perturbations"] > 0.8


def test_variants_of_the_score():
    made = cells()
    own = experiment.parts(made, protocol(), 0)
    mean = np.nanmean(own.train.means()[1:], axis=0)
    found = experiment.scores(np.stack([mean] * len(own.held_out)), own)
    assert ("delta_pearson", "beyond the mean effect") not in found  # the mean effect has nothing beyond itself
    assert found["delta_pearson", "held-out control"] == pytest.approx(found["delta_pearson", ""], abs=0.1)
    assert ("delta_pearson", "unseen_single") not in found  # a single kind is the score itself
    perfect = experiment.scores(own.test.means()[own.held_out], own)
    assert perfect["delta_pearson", "beyond the mean effect"] == pytest.approx(1)


def test_experiment_adds_its_rows_once():
    run = records.start("scdiff/gene_perturbation", tier="ci")
    short = protocol()
    short = short._replace(base=replace(short.base, epochs=1), tune=True, study=["X-12", "X-13"])
    methods = ["scdiff", "linear", "mean_effect", "no_change"]
    made = cells(n=12)
    experiment.compare_methods(run, made, short, methods)
    rows = run.frame()
    main = rows[(rows["metric_variant"] == "") & (rows["item"] == "Table 7")]
    scored = main[main["metric"] == "delta_pearson"]["method"].tolist()
    assert scored == ["scdiff", "linear", "mean_effect", experiment.CEILING]  # no change has no correlation
    assert set(main[main["metric"] == "mse_top20_de"]["method"]) == {*methods, experiment.CEILING}
    assert set(rows.loc[rows["item"] == "X-12", "method"]) == {"scdiff", "linear"}
    assert set(rows.loc[rows["item"] == "X-13", "method"]) == {"scdiff"}
    assert (rows["item"] == "tuning").sum() == len(scdiff_grid(short.base)) + 5
    drawn = rows[(rows["item"] == "X-14") & (rows["metric"] == "control_error_ratio")]
    assert drawn["method"].tolist() == ["scdiff"] * 2 and set(drawn["metric_variant"]) == {"ddim", "one call"}
    experiment.compare_methods(run, made, short, methods)
    assert len(run.frame()) == len(rows)
