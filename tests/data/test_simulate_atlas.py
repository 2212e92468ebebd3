"""The simulated atlas: what is drawn has the truth it says it has."""

import numpy as np
import pytest

from screpro.data.simulate_atlas import Truth, atlas, expected_share
from screpro.errors import ScreproError

SIZES = {"n_contexts": 2, "n_perturbations": 3, "n_donors": 2, "cells": 15, "control_cells": 20, "n_genes": 30}


def test_design_and_reproducibility():
    made = atlas(**SIZES, rng=np.random.default_rng(0))
    again = atlas(**SIZES, rng=np.random.default_rng(0))
    assert (made.X != again.X).nnz == 0 and made.uns["data_hash"] == again.uns["data_hash"]
    sizes = made.obs.groupby(["perturbation", "context", "donor"], observed=True).size()
    assert len(sizes) == 4 * 4 and (sizes["control"] == 20).all()
    assert (sizes.drop("control", level=0) == 15).all()
    assert (made.X.data == np.round(made.X.data)).all() and made.X.min() >= 0


def test_counts_have_the_expected_mean_and_variance():
    """Poisson counts divided by size and share average to 1, and the shares of every condition to 1."""
    sizes = SIZES | {"cells": 400}
    for dispersion in (0.0, 0.5):
        made = atlas(**sizes, dispersion=dispersion, rng=np.random.default_rng(1))
        truth = Truth(**made.uns["truth"])
        codes = [made.obs[key].cat.codes.to_numpy() for key in ("context", "donor", "perturbation")]
        share = expected_share(truth, *codes)
        np.testing.assert_allclose(share.sum(1), 1)
        mean = made.obs["size"].to_numpy()[:, None] * share
        x = made.X.toarray()
        assert abs((x - mean).sum() / mean.sum()) < 0.02
        variance = (x - mean) ** 2
        assert variance.sum() == pytest.approx((mean + dispersion * mean**2).sum(), rel=0.1)


def test_without_latent_environments_labels_explain_everything():
    truth = Truth(**atlas(**SIZES, latent=0, rng=np.random.default_rng(0)).uns["truth"])
    assert (truth.rest == 0).all() and (truth.scale == 0).all()
    assert (truth.effect[0] == 0).all() and (truth.target[0] == 0).all()
    base = np.log(expected_share(truth, [0, 0], [0, 1], [0, 0]))
    shifted = np.log(expected_share(truth, [0, 0], [0, 1], [2, 2]))
    effect = shifted - base  # the same in both donors, up to the normalisation to 1
    np.testing.assert_allclose(*(row - row.mean() for row in effect), atol=1e-9)


@pytest.mark.parametrize("change", [{"cells": 0}, {"n_genes": 5}, {"effect": -1.0}, {"depth": 0.0}])
def test_sizes_that_cannot_be(change):
    with pytest.raises(ScreproError):
        atlas(**(SIZES | change), rng=np.random.default_rng(0))
