"""Ratios of variances: independent cells are at 1, and shifted sets where the arithmetic says."""

import numpy as np
import pytest

from screpro.errors import ScreproError
from screpro.tasks.responses_sampling import batch_spread, sampling_spread


def test_independent_cells_are_at_one_and_shifts_add_what_they_should():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((200, 16, 30)) * rng.uniform(0.5, 2, 30)
    assert sampling_spread(draws).ratio(16) == pytest.approx(1, abs=0.1)
    # shifts of variance s^2 per gene add m s^2 / sigma^2
    plain = rng.standard_normal((200, 16, 30))
    shifted = plain + 0.5 * rng.standard_normal((200, 1, 30))
    found = sampling_spread(shifted)
    assert found.excess == pytest.approx(30 * 0.25, rel=0.1)
    assert found.ratio(16) == pytest.approx(1 + 16 * 0.25, rel=0.1)
    # cells in opposite pairs: no set has another mean than the next
    paired = np.concatenate([plain, -plain], axis=1)
    assert sampling_spread(paired).ratio(32) == pytest.approx(0, abs=1e-9)


def test_ratio_by_hand_and_in_any_unit():
    draws = np.array([[[0.0], [2.0]], [[4.0], [6.0]]])  # means 1 and 5: variance 8; within 2, over 2 cells 1
    assert sampling_spread(draws) == pytest.approx((7, 2))
    assert sampling_spread(7 * draws + 3).ratio(2) == pytest.approx(8)
    with pytest.raises(ScreproError, match="at least two draws"):
        sampling_spread(draws[:1])
    with pytest.raises(ScreproError, match="differ"):
        sampling_spread(np.ones((3, 4, 2)))


def test_batches_of_any_size_agree_with_what_they_were_drawn_from():
    rng = np.random.default_rng(1)
    sizes = rng.integers(5, 60, 150)
    batch = np.repeat(np.arange(150), sizes)
    noise = rng.standard_normal((len(batch), 20))
    assert batch_spread(noise, batch).ratio(32) == pytest.approx(1, abs=0.2)
    shifted = noise + 0.3 * rng.standard_normal((150, 20))[batch]
    found = batch_spread(shifted, batch)
    assert found.excess == pytest.approx(20 * 0.09, rel=0.1) and found.within == pytest.approx(20, rel=0.05)
    assert batch_spread(noise[:9], np.zeros(9)) is None
    assert batch_spread(np.ones((9, 3)), np.arange(9) % 3) is None
