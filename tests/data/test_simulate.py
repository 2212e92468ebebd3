"""Simulated cells obey the formula they are drawn from. Every tolerance is a multiple of a standard error."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from screpro.data import simulate
from screpro.data.validate import check_counts, check_genes, check_labels
from screpro.errors import ScreproError

SIGMAS = 5  # a right program fails a check of some hundred numbers at five standard errors once in 10 000 seeds


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_cells_are_a_valid_data_set():
    adata = simulate.cells(203, 40, 12, n_batches=2, rng=rng())
    assert adata.shape == (203, 40) and adata.X.format == "csr" and adata.X.dtype == np.float32
    check_counts(adata.X, what="simulated")
    check_genes(adata.var_names)
    check_labels(adata.obs, "cell_type")
    sizes = adata.obs["cell_type"].value_counts()
    assert len(sizes) == 12 and sizes.max() - sizes.min() <= 1
    within = adata.obs.groupby(["cell_type", "batch"], observed=True).size().unstack()
    assert (within.max(axis=1) - within.min(axis=1) <= 1).all()
    categories = list(adata.obs["cell_type"].cat.categories)
    assert categories == sorted(categories)  # so codes are columns of varm["type_effect"]


def test_the_generator_fixes_every_number():
    a, b, c = (simulate.cells(30, 20, 3, rng=rng(seed)) for seed in (1, 1, 2))
    assert (a.X != b.X).nnz == 0 and a.uns["data_hash"] == b.uns["data_hash"]
    assert (a.X != c.X).nnz > 0 and a.uns["data_hash"] != c.uns["data_hash"]


@pytest.mark.parametrize("dispersion", [0.0, 0.5])
def test_moments_follow_the_formula(dispersion):
    adata = simulate.cells(3000, 30, 2, n_batches=2, depth=300, dispersion=dispersion, rng=rng(3))
    counts, mean = adata.X.toarray().astype(float), simulate.expected_counts(adata)
    variance = mean + dispersion * mean**2
    # every gene in every type: the sum of counts minus means has a known standard deviation
    for name in adata.obs["cell_type"].cat.categories:
        rows = (adata.obs["cell_type"] == name).to_numpy()
        z = (counts - mean)[rows].sum(0) / np.sqrt(variance[rows].sum(0))
        assert np.abs(z).max() < SIGMAS
    # squared standardised residuals average 1; their own spread is taken from the sample
    squared = (counts - mean) ** 2 / variance
    error = squared.std() / np.sqrt(squared.size)
    assert abs(squared.mean() - 1) < SIGMAS * error


def test_sizes_have_the_depth_as_mean():
    size = simulate.cells(4000, 2, 2, depth=500, size_spread=0.4, rng=rng(4)).obs["size"].to_numpy()
    spread = 500 * np.sqrt(np.expm1(0.4**2))  # of a log-normal with mean 500
    assert abs(size.mean() - 500) < SIGMAS * spread / np.sqrt(len(size))
    np.testing.assert_allclose(simulate.cells(10, 4, 2, size_spread=0, rng=rng()).obs["size"], 2000.0)


def test_expected_counts_add_up_to_the_size_and_follow_the_effects():
    adata = simulate.cells(40, 25, 2, n_batches=2, markers=0.5, rng=rng(5))
    mean = simulate.expected_counts(adata)
    np.testing.assert_allclose(mean.sum(1), adata.obs["size"])
    # within a batch, log ratios between types are the type effects up to one constant
    kind, batch = adata.obs["cell_type"].cat.codes, adata.obs["batch"].cat.codes
    first, second = (np.flatnonzero((kind == k) & (batch == 1))[0] for k in (0, 1))
    ratio = np.log(mean[second] / mean[first])
    effect = adata.varm["type_effect"][:, 1] - adata.varm["type_effect"][:, 0]
    np.testing.assert_allclose(ratio - ratio.mean(), effect - effect.mean(), atol=1e-9)


def test_without_separation_types_are_alike():
    adata = simulate.cells(20, 15, 4, separation=0, rng=rng())
    share = simulate.expected_counts(adata) / adata.obs["size"].to_numpy()[:, None]
    np.testing.assert_allclose(share, np.tile(share[:1], (20, 1)))


@pytest.mark.parametrize("change", [{"n_cells": 3}, {"n_types": 0}, {"depth": 0}, {"markers": 1.1}, {"dispersion": -1}])
def test_impossible_cells_are_refused(change):
    asked = {"n_cells": 20, "n_genes": 5, "n_types": 2} | change
    sizes = [asked.pop(key) for key in ("n_cells", "n_genes", "n_types")]
    with pytest.raises(ScreproError):
        simulate.cells(*sizes, **asked, rng=rng())


def test_thinning_divides_the_counts():
    counts = sp.csr_matrix(rng().poisson(3.0, size=(50, 20)))
    kept, rest = simulate.thin(counts, 0.3, rng(1))
    assert ((kept + rest) != counts).nnz == 0
    for part in (kept, rest):
        assert (part.data > 0).all() and (part.data == np.floor(part.data)).all()
    assert (simulate.thin(counts, 0.3, rng(1)).kept != kept).nnz == 0
    everything, nothing = simulate.thin(counts.toarray(), 1.0, rng())
    assert (everything != counts).nnz == 0 and nothing.nnz == 0


def test_thinned_poisson_counts_are_independent_poisson():
    mean, fraction, n = 4.0, 0.3, 40_000
    parts = simulate.thin(rng(2).poisson(mean, size=(n, 1)), fraction, rng(3))
    kept, rest = (part.toarray().ravel() for part in parts)
    for part, rate in ((kept, fraction * mean), (rest, (1 - fraction) * mean)):
        cells = np.arange(12)
        expected = stats.poisson.pmf(cells, rate)
        seen = np.array([(part == k).mean() for k in cells])
        assert (np.abs(seen - expected) < SIGMAS * np.sqrt(expected / n) + 1e-4).all()
    assert abs(np.corrcoef(kept, rest)[0, 1]) < SIGMAS / np.sqrt(n)


def test_thinning_keeps_the_dispersion_of_a_negative_binomial():
    mean, dispersion, fraction, n = 6.0, 0.4, 0.5, 60_000
    rates = rng(6).gamma(1 / dispersion, dispersion * mean, size=(n, 1))
    kept = simulate.thin(rng(7).poisson(rates), fraction, rng(8)).kept.toarray().ravel()
    target = fraction * mean
    squared = (kept - target) ** 2
    assert abs(squared.mean() - (target + dispersion * target**2)) < SIGMAS * squared.std() / np.sqrt(n)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, np.nan])
def test_an_impossible_fraction_is_refused(fraction):
    with pytest.raises(ScreproError):
        simulate.thin(np.ones((2, 2)), fraction, rng())


def made(seed: int = 0, **options):
    real = simulate.cells(2000, 60, 2, depth=1500, rng=rng(10))
    asked = {"n_perturbations": 5, "n_targets": 6, "effect": 1.0} | options
    return real, simulate.perturbed(real, **asked, rng=rng(seed))


def test_perturbed_cells_are_a_valid_data_set():
    real, adata = made()
    check_counts(adata.X, what="perturbed")
    assert (adata.X > real.X).nnz == 0  # molecules are only taken away
    sizes = adata.obs["perturbation"].value_counts()
    assert sizes["control"] == 500 and len(sizes) == 6
    assert sizes.drop("control").max() - sizes.drop("control").min() <= 1
    assert adata.obs["perturbation"].cat.categories[0] == "control"
    assert (made()[1].X != adata.X).nnz == 0 and (made(1)[1].X != adata.X).nnz > 0


def test_the_graph_is_as_asked():
    _, adata = made(effect=1.5)
    truth = adata.uns["perturbation_truth"]
    fold = truth["log2_fold"].toarray()
    assert fold.shape == (5, 60) and set(np.unique(fold)) == {-1.5, 0.0, 1.5}
    assert ((fold != 0).sum(1) == 7).all()  # six targets and the gene itself
    for row, name in enumerate(truth["perturbations"]):
        assert fold[row, adata.var_names.get_loc(name)] == -1.5


def test_fold_changes_are_the_truth():
    real, adata = made()
    truth = adata.uns["perturbation_truth"]
    before, after = real.X.toarray().astype(float), adata.X.toarray().astype(float)
    kept = adata.var["control_share"].to_numpy()
    folds = dict(zip(truth["perturbations"], 2 ** truth["log2_fold"].toarray(), strict=True))
    folds["control"] = np.ones(60)
    for name, fold in folds.items():
        rows = (adata.obs["perturbation"] == name).to_numpy()
        keep = kept * fold
        assert (keep <= 1 + 1e-12).all()
        y = before[rows].sum(0)  # given the real counts, what is kept is Binomial(y, keep)
        error = np.sqrt(np.maximum(y * keep * (1 - keep), 0))
        assert (np.abs(after[rows].sum(0) - y * keep) <= SIGMAS * error + 1e-9).all()


def test_untouched_genes_stay_exactly():
    real, adata = made()
    untouched = np.flatnonzero(adata.uns["perturbation_truth"]["log2_fold"].getnnz(axis=0) == 0)
    assert len(untouched) and (adata.X[:, untouched] != real.X[:, untouched]).nnz == 0


def test_perturbed_survives_a_file(tmp_path):
    import anndata

    _, adata = made()
    adata.write_h5ad(tmp_path / "perturbed.h5ad")
    again = anndata.read_h5ad(tmp_path / "perturbed.h5ad")
    truth = (x.uns["perturbation_truth"]["log2_fold"] for x in (adata, again))
    assert (next(truth) != next(truth)).nnz == 0


@pytest.mark.parametrize(
    "change",
    [{"n_perturbations": 0}, {"effect": 0.0}, {"control_share": 1.0}, {"n_targets": 60}, {"n_perturbations": 61}],
)
def test_impossible_perturbations_are_refused(change):
    with pytest.raises(ScreproError):
        made(**change)
