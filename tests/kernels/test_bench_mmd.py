"""The benchmark of the MMD: the peers compute the same number, and one that is missing is said to be."""

import numpy as np
import pytest

from screpro import bench_kernels, bench_measure, bench_mmd
from screpro.kernels.mmd import reference


@pytest.fixture
def called_once(monkeypatch):
    def around(ours, peer):
        return bench_measure.once(ours)[0], *bench_measure.once(peer)

    monkeypatch.setattr(bench_mmd, "around", around)
    monkeypatch.setattr(bench_mmd, "turns", lambda *calls, **_: [bench_measure.once(call)[0] for call in calls])
    return monkeypatch


def test_every_peer_computes_the_same_number(called_once):
    pytest.importorskip("geomloss")
    rows = bench_mmd.rbf_mmd(300, 30)
    assert [row["peer"].split()[0] for row in rows] == ["torch.cdist,", "scikit-learn", "geomloss"]
    for row in rows:
        # two lose the pairs of a point with itself at the narrow bandwidths, of 300 points a visible part of the sum
        most = 1e-3 if "scikit" in row["peer"] else 0.05
        assert float(row["agreement"].split(" apart")[0]) < most, row["peer"]
        assert row["ratio"] > 0 and row["operation"].startswith("RBF MMD")
    ours, _, (x, y) = bench_mmd.mmd_case(300, 30)
    gammas = [1 / (2 * sigma**2) for sigma in bench_mmd.SIGMAS]
    assert ours() == pytest.approx(reference(x, y, gammas=np.array(gammas)).sum(), rel=1e-5)


def test_a_missing_peer_is_said_to_be_missing(called_once):
    called_once.setattr(bench_mmd, "find_spec", lambda name: None)
    *_, row = bench_mmd.rbf_mmd(60, 5)
    assert row["agreement"] == bench_measure.MISSING and row["ours_ms"] > 0 and row["peer_ms"] is None


def test_it_is_one_of_the_kernels_and_its_memory_is_measured():
    assert "rbf-mmd" in bench_kernels.OPERATIONS
    assert bench_kernels.STREAMED["rbf-mmd"] is bench_mmd.mmd_case
