"""Sparsity, imbalance and distances between conditions: closed forms, and data in which the answer is known."""

import numpy as np
import pytest
import scipy.sparse as sp

from screpro import records
from screpro.data.heldout import HeldOut
from screpro.data.vocabulary import merge_then_select
from screpro.errors import ScreproError
from screpro.kernels.mmd import rbf_mmd2
from screpro.metrics.distances import energy_distance_u
from screpro.tasks import perturbation_statistics as statistics
from screpro.tasks import perturbation_statistics_experiment as experiment


@pytest.fixture(scope="module")
def adata():
    return experiment.simulated_screen(rng=np.random.default_rng(0), cells=16, n_genes=120)


@pytest.fixture(scope="module")
def cells(adata):
    return experiment.prepare(adata, context_key="context", batch_key="donor")


# --- counts


def test_imbalance_in_closed_form():
    even = statistics.imbalance(np.array([7, 7, 7, 0]))
    assert even == (3, 7, 1, 3)  # the empty group does not count
    one = statistics.imbalance(np.array([1000, 1]))
    assert one.effective == pytest.approx(1001**2 / (1000**2 + 1))
    sizes = np.arange(1, 102)
    assert statistics.imbalance(sizes).ratio == pytest.approx(91 / 11)
    assert statistics.imbalance(3 * sizes)[2:] == pytest.approx(statistics.imbalance(sizes)[2:])
    with pytest.raises(ScreproError, match="a group with a cell"):
        statistics.imbalance(np.zeros(3))


def test_effective_number_is_a_chance_of_meeting(rng):
    """One over the probability that two random cells, drawn with replacement, are of one group."""
    sizes = np.array([50, 20, 5, 5])
    group = np.repeat(np.arange(4), sizes)
    meet = np.mean(rng.choice(group, 200_000) == rng.choice(group, 200_000))
    assert statistics.imbalance(sizes).effective == pytest.approx(1 / meet, rel=0.02)


def test_explicit_zeros_are_zero():
    x = sp.csr_matrix(np.array([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]))
    x.data[0] = 0
    assert statistics.non_zero_genes(x).tolist() == [1, 1] and x.nnz == 3


def test_group_sizes(cells):
    sizes = statistics.group_sizes(cells)
    assert sizes["perturbation"].sum() == sizes["combination"].sum() == (~cells.is_control).sum()
    assert len(sizes["perturbation"]) == len(cells.perturbations) - 1


# --- distances


def test_blocks_of_one_matrix_are_the_distances_of_pairs(rng):
    points = rng.normal(size=(60, 5)) + np.repeat(np.arange(3), 20)[:, None]
    groups = np.arange(60).reshape(3, 20)
    width = 1.7
    gauss = statistics.mmd2_between(statistics.kernel_matrix(points, width=width), groups, groups)
    energy = statistics.mmd2_between(statistics.kernel_matrix(points, kernel="energy"), groups, groups)
    for i, j in ((0, 1), (0, 2), (2, 1)):
        one, other = points[groups[i]], points[groups[j]]
        assert gauss[i, j] == pytest.approx(
            rbf_mmd2(one, other, gammas=[1 / (2 * width**2)], unbiased=True)[0], abs=1e-12
        )
        assert energy[i, j] == pytest.approx(energy_distance_u(one, other), abs=1e-12)


def test_within_is_zero_on_average(rng):
    """The estimator is unbiased; a biased one is above 0 for every pair. It is skewed: more than half are below 0."""
    points = rng.normal(size=(400 * 6, 4))
    label = np.repeat(np.arange(200), 12)
    codes, first, second = statistics.draw_halves(label, 6, rng=rng)
    found = statistics.within_between(statistics.kernel_matrix(points), first, second)
    error = found.within.std() / np.sqrt(len(codes))
    assert abs(found.within.mean()) < 3 * error
    assert 0.45 < found.share_below < 0.75 and np.median(found.within) < 0


def test_halves_are_disjoint_and_of_their_label(rng):
    label = np.array([0] * 10 + [1] * 7 + [2] * 8 + [-1] * 20)
    codes, first, second = statistics.draw_halves(label, 4, rng=rng)
    assert codes.tolist() == [0, 2]
    both = np.concatenate([first, second], axis=1)
    assert (label[both] == codes[:, None]).all() and len(np.unique(both)) == both.size
    with pytest.raises(ScreproError, match="two conditions with two sets"):
        statistics.draw_halves(label, 5, rng=rng)


def test_the_kernels_width_makes_units_irrelevant(rng):
    points = rng.normal(size=(30, 3))
    assert np.allclose(statistics.kernel_matrix(points), statistics.kernel_matrix(1000 * points))
    with pytest.raises(ScreproError, match="'gauss' or 'energy'"):
        statistics.kernel_matrix(points, kernel="linear")
    with pytest.raises(ScreproError, match="width above 0"):
        statistics.kernel_matrix(np.ones((4, 2)))


# --- permutation


def test_p_values_are_uniform_without_an_effect(rng):
    p = []
    for _ in range(200):
        gram = statistics.kernel_matrix(rng.normal(size=(24, 3)))
        p.append(statistics.permutation_p(gram, stratum=np.zeros(12), permutations=99, rng=rng)[1])
    assert abs(np.mean(p) - 0.5) < 0.08 and 0.01 <= np.mean(np.array(p) <= 0.05) < 0.12


def test_the_first_labelling_is_the_true_one(rng):
    points = np.concatenate([rng.normal(size=(15, 3)), rng.normal(size=(15, 3)) + 2])
    stratum = np.array([0, 1, 2] * 5)
    value, p = statistics.permutation_p(statistics.kernel_matrix(points, width=2.0), stratum=stratum, permutations=99,
                                        rng=rng)  # fmt: skip
    assert value == pytest.approx(rbf_mmd2(points[:15], points[15:], gammas=[1 / 8], unbiased=True)[0])
    assert p == 0.01


def test_batches_alone_are_not_an_effect(rng):
    """All cells of a batch alike, batches far apart: within batches there is nothing to exchange."""
    stratum = np.repeat([0, 1], 10)
    points = np.tile(rng.normal(size=(20, 3)) * 0.1 + 50 * stratum[:, None], (2, 1))
    points += 0.1 * rng.normal(size=points.shape)
    gram = statistics.kernel_matrix(points)
    p = [statistics.permutation_p(gram, stratum=stratum, permutations=99, rng=rng)[1] for _ in range(3)]
    assert min(p) > 0.05


def test_matched_cells(cells, rng):
    stratum = cells.context * len(cells.batches) + cells.batch
    given, control = statistics.matched_with_control(cells, 2, most=40, rng=rng)
    assert (cells.perturbation[given] == 2).all() and cells.is_control[control].all()
    assert (stratum[given] == stratum[control]).all()
    assert len(set(given)) == len(set(control)) == len(given) <= 40


def test_known_effects_are_found_and_nulls_are_not(cells, rng):
    tested = statistics.distinguishable(cells, most=100, permutations=239, rng=rng)
    names = np.array(cells.perturbations)[tested.perturbation]
    null = np.char.startswith(names, "null")
    assert null.sum() == 3 and len(names) == 11
    assert (tested.adjusted[~null] < 0.05).mean() >= 0.75 and (tested.p[null] > 0.01).all()
    with pytest.raises(ScreproError, match="too few permutations"):
        statistics.distinguishable(cells, permutations=99, rng=rng)


# --- experiment


def test_shuffled_labels_stay_in_their_context_and_batch(cells, rng):
    codes = experiment.shuffled(cells, rng=rng)
    stratum = cells.context * len(cells.batches) + cells.batch
    for code in np.unique(stratum):
        assert np.array_equal(np.sort(codes[stratum == code]), np.sort(cells.perturbation[stratum == code]))
    assert (codes != cells.perturbation).mean() > 0.3


def test_rows_and_resuming(cells):
    run = records.start("perturbdiff/datasets", tier="ci")
    protocol = experiment.Protocol("simulated", [0, 1], 15, 6, 40, 239, repeats="batch")
    drawn = experiment.measure(run, cells, protocol)
    rows = run.frame()
    shares = rows[rows["metric"] == "share_within_below_between"].groupby(["method", "metric_variant"])["value"]
    share = shares.agg(list).to_dict()
    assert min(share["cells", ""]) > 0.8 and max(share["shuffled", ""]) < 0.9
    assert max(share["cells", "across repeats"]) < 0.5  # batches differ more than perturbations do
    total = rows[(rows["metric"] == "n_cells")]["value"].item()
    assert total == len(cells)
    again = experiment.measure(run, cells, protocol)
    assert len(run.frame()) == len(rows)
    assert np.array_equal(again.distances["cells"].within, drawn.distances["cells"].within)


def test_published_log_values(adata):
    counts = experiment.prepare(adata, context_key="context", batch_key="donor")
    logged = adata[:, list(counts.genes)].copy()
    logged.X = counts.x
    logged.uns["values"] = "log1p"
    same = experiment.prepare(logged, context_key="context", batch_key="donor")
    for name in ("perturbation", "context", "batch"):
        assert np.array_equal(getattr(same, name), getattr(counts, name))
    assert same.perturbations == counts.perturbations and (same.x != counts.x).nnz == 0


def test_split_rows(adata):
    run = records.start("perturbdiff/datasets", tier="ci")
    names = sorted(set(adata.obs["perturbation"]) - {"control"})
    columns = {"held_out_contexts": ("context 0",), "context_key": "context", "batch_key": "donor"}
    split = HeldOut("t", "s", "simulated", "control", (names[0],), (names[1],), **columns)
    experiment.add_split(run, adata, split, dataset="simulated")
    rows = run.frame().set_index("metric_variant")["value"]
    assert rows.sum() == adata.n_obs
    assert rows["test"] == ((adata.obs["perturbation"] == names[1]) & (adata.obs["context"] == "context 0")).sum()


def test_share_of_entries_that_are_not_zero_on_a_vocabulary():
    """Two sources of one group, merged: counted by hand on its own genes, on all, and on what each source measures."""
    sources = {
        "a": (sp.csr_matrix([[5.0, 0.0], [0.0, 0.0], [9.0, 0.0]]), ["x", "y"]),
        "b": (sp.csr_matrix([[7.0, 1.0], [0.0, 3.0]]), ["x", "z"]),
        "c": (sp.csr_matrix([[1.0, 0.0], [4.0, 2.0]]), ["v", "w"]),
    }
    vocabulary = merge_then_select(sources, n_genes=2, groups={"both": ["a", "b"]})
    assert set(vocabulary.groups) == {"both", "c"}
    shares = experiment.non_zero_shares(vocabulary, "both", sources)
    own = set(vocabulary.selected["both"])
    filled = sum({"x": 3, "y": 0, "z": 2}[gene] for gene in own)
    kept = {gene for gene in "xyz" if gene in vocabulary.genes}
    entries = {"x": 5, "y": 3, "z": 2}  # cells of the sources that measure a gene
    total = sum({"x": 3, "y": 0, "z": 2}[gene] for gene in kept)
    assert shares["own variable genes"] == pytest.approx(filled / (5 * len(own)))
    assert shares["vocabulary"] == pytest.approx(total / (5 * len(vocabulary.genes)))
    assert shares["measured"] == pytest.approx(total / sum(entries[gene] for gene in kept))
