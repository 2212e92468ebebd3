"""Library sizes: known log-normal laws come back, unseen combinations are main effects, errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from screpro.errors import ScreproError
from screpro.tasks.library_size import LibrarySizes, SizesOfLatents


def grid(*levels, copies=1):
    """Every combination of labels, `copies` times."""
    mesh = np.meshgrid(*(np.arange(n) for n in levels), indexing="ij")
    return [np.repeat(axis.ravel(), copies) for axis in mesh]


@settings(max_examples=10)
@given(means=st.lists(st.floats(2, 9), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_known_laws_come_back(means, seed):
    rng = np.random.default_rng(seed)
    spreads = rng.uniform(0.1, 0.8, len(means))
    label = np.repeat(np.arange(len(means)), 2000)
    library = LibrarySizes.fit(np.exp(rng.normal(np.array(means)[label], spreads[label])), {"cell": label})
    mean, spread = library.moments({"cell": np.arange(len(means))})
    np.testing.assert_allclose(mean, means, atol=0.09)
    np.testing.assert_allclose(spread, spreads, rtol=0.12)
    logs = np.log(library.draw({"cell": label}, rng=rng))
    for k in range(len(means)):
        assert logs[label == k].mean() == pytest.approx(means[k], abs=0.15)
        assert logs[label == k].std() == pytest.approx(spreads[k], rel=0.25, abs=0.02)


@settings(max_examples=20)
@given(data=st.data())
def test_an_additive_table_is_continued_exactly(data):
    """Cell effects plus dose effects, one combination left out: its mean is the sum of its effects."""
    n_cells, n_doses = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4))
    cell_effect = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=n_cells, max_size=n_cells)))
    dose_effect = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=n_doses, max_size=n_doses)))
    cell, dose = grid(n_cells, n_doses, copies=2)
    logs = 5 + cell_effect[cell] + dose_effect[dose]
    held_out = (cell == n_cells - 1) & (dose == n_doses - 1)
    library = LibrarySizes.fit(np.exp(logs[~held_out]), {"cell": cell[~held_out], "dose": dose[~held_out]})
    asked = {"cell": cell, "dose": dose}
    assert np.array_equal(library.unseen(asked), held_out)
    np.testing.assert_allclose(library.moments(asked)[0], logs, atol=1e-8)
    # no cell differs from its combination, however much combinations differ
    np.testing.assert_allclose(library.moments(asked)[1], 0, atol=1e-8)


def test_the_spread_of_an_unseen_pair_is_that_within_pairs():
    rng = np.random.default_rng(0)
    cell, dose = grid(2, 2, copies=4000)
    logs = 5 + 3.0 * cell - 0.5 * dose + rng.normal(0, 0.4, len(cell))
    seen = (cell == 0) | (dose == 0)
    library = LibrarySizes.fit(np.exp(logs[seen]), {"cell": cell[seen], "dose": dose[seen]})
    drawn = np.log(library.draw({"cell": np.ones(5000, int), "dose": np.ones(5000, int)}, rng=rng))
    assert drawn.mean() == pytest.approx(7.5, abs=0.05) and drawn.std() == pytest.approx(0.4, rel=0.05)


def test_unequal_numbers_of_cells_do_not_bias_the_fallback():
    cell, dose = grid(3, 3)
    copies = np.arange(1, 10) ** 2
    cell, dose = np.repeat(cell, copies), np.repeat(dose, copies)
    logs = 4 + 0.5 * cell - 0.25 * dose
    seen = ~((cell == 0) & (dose == 2))
    library = LibrarySizes.fit(np.exp(logs[seen]), {"cell": cell[seen], "dose": dose[seen]})
    assert library.moments({"cell": [0], "dose": [2]})[0][0] == pytest.approx(3.5)


def test_labels_that_were_never_seen_and_single_cells():
    totals = np.exp(np.array([1.0, 3.0, 5.0, 5.0]))
    library = LibrarySizes.fit(totals, {"cell": np.array([0, 0, 1, 2])})
    mean, spread = library.moments({"cell": np.array([0, 1, 7])})
    assert mean == pytest.approx([2, 5, 3.5])  # an unknown label adds nothing to the overall mean
    # one cell has no spread of its own, an unknown label not even a mean
    assert spread == pytest.approx([np.sqrt(2), np.sqrt(2), np.std([1, 3, 5, 5], ddof=1)])


def test_pooled_law_and_no_attributes():
    rng = np.random.default_rng(0)
    totals = np.exp(rng.normal(6, 0.4, 3000))
    for labels in ({}, {"cell": rng.integers(0, 3, 3000)}):
        drawn = np.log(LibrarySizes.fit(totals, labels).draw_pooled(4000, rng=rng))
        assert drawn.mean() == pytest.approx(6, abs=0.05) and drawn.std() == pytest.approx(0.4, rel=0.1)
        assert drawn.dtype == np.float32


def test_a_drawn_cell_has_at_least_one_count():
    library = LibrarySizes.fit(np.array([1.0, 1.0, 2.0]), {"cell": np.zeros(3, int)})
    assert library.draw({"cell": np.zeros(500, int)}, rng=np.random.default_rng(0)).min() == 1
    assert library.draw_pooled(500, rng=np.random.default_rng(0)).min() == 1


def test_wrong_input_is_explained():
    for totals, labels in (([1.0, 0.0], [0, 1]), ([1.0, 2.0], [0]), ([], [])):
        with pytest.raises(ScreproError, match="positive totals"):
            LibrarySizes.fit(np.array(totals), {"cell": np.array(labels, dtype=int)})
    library = LibrarySizes.fit(np.ones(2), {"cell": np.array([0, 1])})
    for labels in ({}, {"dose": np.array([0])}, {"cell": np.array([0]), "dose": np.array([0])}):
        with pytest.raises(ScreproError, match="learned with"):
            library.moments(labels)


def test_sizes_are_read_off_latents():
    """A log-linear law comes back, noise around it included; latents that tell nothing give the pooled law."""
    rng = np.random.default_rng(0)
    latents = torch.from_numpy(rng.normal(size=(3000, 3, 4))).float()
    told = 6 + latents.flatten(1).numpy() @ rng.normal(0, 0.2, 12)
    new = torch.from_numpy(rng.normal(size=(4000, 3, 4))).float()
    for logs, mean_spread in ((told + rng.normal(0, 0.3, 3000), told.std()), (rng.normal(6, 0.3, 3000), 0.0)):
        law = SizesOfLatents.fit(latents, np.exp(logs))
        assert law.spread == pytest.approx(0.3, rel=0.06)
        assert law.mean.predict(new.flatten(1).numpy()).std() == pytest.approx(mean_spread, abs=0.05)
        drawn = np.log(law.draw(new, rng=rng))
        assert drawn.mean() == pytest.approx(logs.mean(), abs=0.1) and drawn.std() == pytest.approx(logs.std(), rel=0.1)


@pytest.mark.parametrize("n", [9, 20, 60])
def test_the_spread_is_that_of_cells_left_out(n):
    """With more numbers in a latent than there are cells, residuals of the cells themselves would be nearly 0."""
    rng = np.random.default_rng(n)
    latents, logs = torch.from_numpy(rng.normal(size=(n, 3, 4))).float(), rng.normal(6, 1, n)
    law, x = SizesOfLatents.fit(latents, np.exp(logs)), latents.flatten(1).numpy()
    left_out = []
    for i in range(n):
        rest = np.arange(n) != i
        left_out.append(Ridge(law.mean.alpha_).fit(x[rest], logs[rest]).predict(x[i : i + 1])[0] - logs[i])
    assert law.spread == pytest.approx(np.sqrt(np.mean(np.square(left_out))), rel=0.02)
    assert law.spread > (law.mean.predict(x) - logs).std()
