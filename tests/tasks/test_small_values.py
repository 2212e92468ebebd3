"""Values that no count gives: what counts as one, and what they do to a rank test."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from screpro.data.populations import populations
from screpro.data.simulate_atlas import atlas
from screpro.metrics.perturbation import null_side
from screpro.tasks.responses import hold_out
from screpro.tasks.small_values import least_seen, zeroed


@pytest.fixture(scope="module")
def split():
    adata = atlas(
        n_contexts=2, n_perturbations=6, n_donors=2, cells=12, control_cells=80, n_genes=40, n_programs=4,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return hold_out(populations(adata, context_key="context", batch_key="donor", n_genes=None))


def test_the_bound_is_the_smallest_positive_value_of_training_cells(split):
    least, dense = least_seen(split.train.x), split.train.x.toarray()
    for gene in range(dense.shape[1]):
        values = dense[:, gene][dense[:, gene] > 0]
        assert least[gene] == (values.min() if len(values) else np.inf)
    unseen = sp.csr_matrix(dense * (np.arange(dense.shape[1]) != 3))
    unseen.data[0] = 0  # a stored zero is none
    least = least_seen(unseen)
    assert least[3] == np.inf and least[unseen.indices[0]] > 0


@given(arrays(np.float32, (5, 4), elements=st.floats(0, 8, width=32)))
def test_what_stays_is_unchanged_and_what_goes_was_small(cells):
    least = np.array([0.5, 0.1, np.inf, 2.0], dtype=np.float32)
    out = zeroed(cells, least)
    assert out.dtype == np.float32 and ((out == 0) | (out == cells)).all() and ((out == 0) | (out >= least)).all()
    assert (out[cells >= least] == cells[cells >= least]).all()
    np.testing.assert_array_equal(zeroed(out, least), out)


def test_training_cells_stay_as_they_are(split):
    dense = split.train.x.toarray()
    np.testing.assert_array_equal(zeroed(dense, least_seen(split.train.x)), dense)


def test_a_value_far_below_one_count_is_called_until_it_is_0(split):
    real = split.controls.x
    made = np.where(real.toarray() > 0, real.toarray(), np.float32(1e-3))
    shares = 1 - np.asarray((real > 0).mean(0)).ravel()
    called = null_side(real, sp.csr_matrix(made)).significant[0]
    assert (shares > 0.5).sum() > 1 and called[shares > 0.5].all() and not called[shares < 0.05].any()
    np.testing.assert_array_equal(zeroed(made, least_seen(split.train.x)), real.toarray())
