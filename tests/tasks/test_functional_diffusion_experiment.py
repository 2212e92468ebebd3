"""Donors with known spread, the parts of the loss, constant predictions, and the rows of the page."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from screpro import records
from screpro.errors import ScreproError
from screpro.metrics.perturbation import pds_cosine, pds_l1, pds_l1_printed, pds_l2
from screpro.tasks import functional_diffusion_donors as donors
from screpro.tasks import functional_diffusion_experiment as experiment


def test_between_donor_variance_is_unbiased_and_known():
    # one gene far from spread: two donors of constant cells at 0 and 1 have |mu_1 - mu_2|² = 1, V = 1/2, W = 0
    cells = np.repeat([[0.0], [1.0]], 5, axis=0)
    found = donors.donor_spread(cells, np.repeat(["a", "b"], 5), permutations=50, rng=np.random.default_rng(0))
    assert found.between == pytest.approx(0.5) and found.within == 0 and found.cells_needed == 0
    assert found.measured == pytest.approx(0.25) and found.p < 0.1  # around the mean of two samples
    # no difference: V is 0 on average, the naive spread is not, and p is uniform
    rng = np.random.default_rng(1)
    results = [
        donors.donor_spread(rng.standard_normal((60, 4)), np.arange(60) % 6, permutations=30, rng=rng)
        for _ in range(60)
    ]
    between = np.array([each.between for each in results])
    assert abs(between.mean()) < 3 * between.std() / np.sqrt(60)
    assert np.mean([each.ratio for each in results]) == pytest.approx(1, abs=0.03)
    assert 0.3 < np.mean([each.p for each in results]) < 0.7
    # E|X - X'| / 2 of standard normal cells in four dimensions
    assert np.mean([each.within for each in results]) == pytest.approx(1.3293, rel=0.03)


def test_donor_spread_grows_with_the_hidden_factor():
    protocol = experiment.Protocol([0], permutations=40)
    share = []
    for strength in (0.0, 0.4):
        rng = np.random.default_rng(0)
        adata = donors.simulated_donors(strength=strength, donors=4, cells=30, genes=80, types=1, rng=rng)
        (cells, donor), *_ = donors.donor_populations(adata, least=10).values()
        assert len(np.unique(donor)) == 4
        found = donors.donor_spread(cells, donor, permutations=protocol.permutations, rng=rng)
        share.append(found.share)
    assert abs(share[0]) < 0.01 < 0.02 < share[1] and found.p < 0.05
    with pytest.raises(ScreproError, match="two donors"):
        donors.donor_spread(np.zeros((3, 2)), np.array(["a", "a", "b"]), rng=rng)


def test_unlabelled_cells_and_small_donors_are_left_out():
    rng = np.random.default_rng(0)
    adata = donors.simulated_donors(strength=0.1, donors=3, cells=12, genes=40, types=1, rng=rng)
    adata.obs["label_source"] = "published"
    adata.obs.loc[adata.obs_names[:1], "label_source"] = "none"
    adata.obs["condition"] = "ctrl"
    first = adata.obs["donor"].iloc[0]
    ((_, condition), (cells, donor)), *rest = donors.donor_populations(adata, least=12).items()
    assert condition == "ctrl" and not rest and first not in donor and len(cells) == len(donor) == 24
    del adata.obs["donor"]
    with pytest.raises(ScreproError, match="no column donor"):
        donors.donor_populations(adata)


def test_thinned_cells_have_one_depth():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(rng.uniform(1, 20, size=(200, 1)), size=(200, 50)).astype(np.float32))
    thin, rows = donors.equal_depth(counts, 0.2, rng=rng)
    assert thin.shape[0] == len(rows) == 160
    assert (thin.toarray() <= counts[rows].toarray()).all()
    totals, before = np.asarray(thin.sum(1)).ravel(), np.asarray(counts[rows].sum(1)).ravel()
    assert totals.std() / totals.mean() < 0.12 < before.std() / before.mean()
    assert abs(np.corrcoef(totals, before)[0, 1]) < 0.3


def test_loss_totals_and_what_they_weigh():
    rng = np.random.default_rng(0)
    real, wrong = rng.standard_normal((8, 20)), rng.standard_normal((8, 20))
    parts = donors.loss_parts(real, wrong)
    assert parts["code total"] == pytest.approx(parts["energy"] / 2 + parts["mse"])
    assert parts["paper total"] == pytest.approx(parts["energy"] + 20 * parts["mse"])
    assert parts["mse"] == pytest.approx(np.square(real - wrong).mean())

    def odds(share):
        return share / (1 - share)

    for kind in ("share", "pull"):  # the weights differ by G / 2
        assert odds(parts[f"paper {kind}"]) / odds(parts[f"code {kind}"]) == pytest.approx(10)
    from screpro.losses_sets import set_loss

    both = [torch.from_numpy(part[None]) for part in (wrong, real)]
    for scale in ("code", "paper"):
        assert parts[f"{scale} total"] == pytest.approx(float(set_loss(*both, scale)), rel=1e-9)


@pytest.mark.parametrize("number", [3, 17, 62])
def test_constant_predictions_score_half_and_a_bit(number):
    rng = np.random.default_rng(number)
    expected = (number + 1) / (2 * number)
    for ties in (False, True):
        pair = experiment.constant_prediction(number, ties=ties, rng=rng)
        for score in (pds_l1, pds_l2, pds_cosine):
            assert score(pair).mean() == pytest.approx(expected, abs=1e-12)
        assert (pds_l1_printed(pair).mean() > expected + 1e-9) == ties
    measured = experiment.constant_prediction(number, targets=True, rng=rng)
    assert pds_l1_printed(measured).mean() == pytest.approx(expected, abs=1e-12)
    assert pds_l2(measured).mean() > expected


def test_rows_of_the_page():
    run = records.start("perturbdiff/functional_diffusion", tier="ci")
    rng = np.random.default_rng(0)
    adata = donors.simulated_donors(strength=0.3, donors=2, cells=12, genes=30, types=2, rng=rng)
    protocol = experiment.Protocol([0], m=16, chains=20, trials=20, permutations=10)
    cells, labels = donors.network_scale(adata.X), adata.obs["cell_type"].astype(str).to_numpy()
    for _ in range(2):  # the second time everything is there
        experiment.measure(run, "simulated", cells, labels, protocol)
        experiment.measure_donors(run, "simulated", adata, protocol)
        experiment.measure_constant(run, protocol, numbers=(3,))
    rows = run.frame()
    digits = rows[rows["metric"] == "digits_of_agreement"].set_index(["item", "metric_variant"])["value"]
    fails = [("Prop. B.10", "as printed"), ("Prop. B.15", "H of each cell")]
    assert (digits.drop(fails) > 8).all() and (digits[fails] < 2).all()
    assert (rows.loc[rows["metric"] == "bound_slack", "value"] > 0).all()
    ratios = rows[rows["metric"] == "bound_ratio"].set_index("metric_variant")["value"]
    assert (ratios[["two genes of the set, with m + 1 for 2", "two independent genes, with m + 1 for 2"]] < 1).all()
    slopes = rows[rows["metric"] == "log_slope"].set_index("metric_variant")["value"]
    assert slopes["noise, error, Gaussian"] == pytest.approx(1, abs=0.01)
    assert slopes["noise, squared length, energy"] == pytest.approx(1, abs=0.1)
    assert slopes["squared MMD near its minimum, Gaussian"] == pytest.approx(2, abs=0.05)
    assert 0 < slopes["set size, error at t = 1, Gaussian"] < 0.5
    assert not rows.duplicated(["dataset", "split", "method", "item", "metric", "metric_variant", "seed"]).any()
    constant = rows[rows["item"] == "P20"].pivot_table(
        index="metric_variant", columns=["method", "metric"], values="value"
    )
    assert constant.loc["", ("constant prediction", "pds_l1")] == constant.loc["", ("closed form", "pds_l1")]
    with pytest.raises(ScreproError, match="Two groups"):
        experiment.two_sets(cells, np.full(len(cells), "one"), 5, rng=rng)
