import ast
import json
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from screpro import bench, bench_data, bench_kernels, bench_measure, bench_networks, bench_peers
from screpro.errors import ScreproError

KEYS = ["operation", "size", "ours_ms", "peer", "peer_ms", "ratio", "target", "agreement", "peak_mib", "input_mib"]


# --- what is run -----------------------------------------------------------------------------------------------


def test_every_kernel_has_a_name_of_its_own():
    assert {"annotate", "kernels"} < set(bench.BENCHES)
    assert {f"kernels-{name}" for name in bench_kernels.OPERATIONS} < set(bench.BENCHES)
    assert set(bench_kernels.STREAMED) <= set(bench_kernels.OPERATIONS)
    with pytest.raises(ScreproError, match="kernels-pca"):
        bench.run("everything")


def test_rows_carry_the_machine(monkeypatch):
    monkeypatch.setattr(bench_kernels, "limit_threads", lambda: None)
    monkeypatch.setattr(bench_kernels, "OPERATIONS", {"a": lambda: [bench_measure.row("x", "1", peer="y")]})
    (row,) = bench.run("kernels")
    assert "threads, torch" in row["machine"]
    assert row["ratio"] is None


# --- how it is measured ----------------------------------------------------------------------------------------


def test_turns_are_medians_of_interleaved_calls():
    calls = []
    slow, fast = bench_measure.turns(
        lambda: (calls.append("s"), time.sleep(0.004)), lambda: calls.append("f"), seconds=0, least=3
    )
    assert calls == ["s", "f"] * 4
    assert slow >= 4 > fast
    calls.clear()
    _, _, result = bench_measure.around(lambda: calls.append("o"), lambda: calls.append("p") or 7, seconds=0)
    assert calls == ["o", "o", "o", "p", "o", "o"] and result == 7
    calls.clear()
    started = time.monotonic()
    bench_measure.around(lambda: calls.append("o"), lambda: calls.append("p"), seconds=0, rounds=3, rest=0.002)
    assert calls == ["o", "o", "o"] + ["p", "o", "o"] * 3
    assert time.monotonic() - started >= 11 * 0.002  # before every call but the first


def test_a_row_has_the_ratio_of_peer_to_ours():
    row = bench_measure.row("a", "1", peer="b", ours_ms=2.0, peer_ms=8.0, memory=(1.0, 3.0))
    assert list(row) == KEYS
    assert row["ratio"] == 4 and (row["peak_mib"], row["input_mib"]) == (1, 3)
    assert bench_measure.row("a", "1", peer="b", ours_ms=2.0)["ratio"] is None


@pytest.mark.skipif(not bench_measure.can_measure_memory() or bench_measure.cuda(), reason="reads /proc of Linux")
def test_peak_memory_is_that_of_the_call_and_not_of_its_result(capsys):
    def call():
        np.ones(20 * 2**17).sum()  # 20 MiB, given back

    bench_measure.report_peak(call, lambda: None, 3 * 2**20)
    peak, size = json.loads(capsys.readouterr().out)
    assert 18 < peak < 30 and size == 3


def test_memory_of_an_operation_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "some_module.py").write_text("import sys\nprint([len(sys.argv[1]), 2.5])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert bench_measure.peak_memory("some_module", "pca") == (3, 2.5)
    with pytest.raises(ScreproError, match="no_such_module"):
        bench_measure.peak_memory("no_such_module", "pca")


PERTPY = """
class Distance:
    def __init__(self, metric):
        assert metric == "edistance"
    def __call__(self, x, y):
        return float(x.sum() - y.sum())
class tl:
    Distance = Distance
"""


def test_a_peer_is_called_in_the_second_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(bench_measure.PEER_PYTHON, raising=False)
    given = {"x": np.full((3, 2), 5.0), "y": np.ones((3, 2))}
    assert bench_measure.around_elsewhere(lambda: None, "pertpy", given) is None
    (tmp_path / "pertpy.py").write_text(PERTPY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(bench_measure.PEER_PYTHON, sys.executable)
    ours_ms, peer_ms, made = bench_measure.around_elsewhere(lambda: None, "pertpy", given)
    assert made["value"] == 24 and ours_ms >= 0 and peer_ms > 0
    monkeypatch.setenv(bench_measure.PEER_PYTHON, str(tmp_path / "no_python"))
    with pytest.raises(ScreproError, match="second environment"):
        bench_measure.in_second_environment("pertpy", given)


def test_versions_of_peers_come_from_the_environment_they_run_in(tmp_path, monkeypatch):
    monkeypatch.delenv(bench_measure.PEER_PYTHON, raising=False)
    here = bench_measure.peer_versions()
    assert here["torch"] == metadata.version("torch") and here["POT"] == metadata.version("POT")
    assert not set(here) & set(bench_peers.PEERS)  # Cell-Eval brings a pdex of its own, which is not the one measured
    (tmp_path / "pdex-9.8.dist-info").mkdir()
    (tmp_path / "pdex-9.8.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pdex\nVersion: 9.8\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(bench_measure.PEER_PYTHON, sys.executable)
    assert bench_measure.peer_versions()["pdex"] == "9.8"
    monkeypatch.setenv(bench_measure.PEER_PYTHON, str(tmp_path / "no_python"))
    assert bench_measure.peer_versions() == here


def test_the_script_of_the_second_environment_imports_nothing_of_ours():
    tree = ast.parse(Path(bench_peers.__file__).read_text(encoding="utf-8"))
    names = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"json", "sys", "time", "importlib", "anndata", "numpy", "pandas", "scipy.sparse", "pdex", "pertpy"}


# --- what it is measured on ------------------------------------------------------------------------------------


def test_counts_are_gamma_poisson_of_the_density_asked_for():
    means = bench_data.rates(1, 200, share=0)
    x = bench_data.counts(np.zeros(20_000, int), means, density=0.3)
    assert x.shape == (20_000, 200) and x.dtype == np.float32
    assert x.nnz / 4e6 == pytest.approx(0.3, rel=0.05)
    mean, square = np.asarray(x.mean(0)).ravel(), np.asarray(x.multiply(x).mean(0)).ravel()
    # variance over cells: Poisson, plus that of gamma (shape 2) times log-normal depth (0.3)
    over = (square - mean - mean**2) / mean**2
    assert np.median(over) == pytest.approx(1.5 * np.exp(0.3**2) - 1, rel=0.05)
    np.testing.assert_allclose(mean / mean.sum(), means[0] / means[0].sum(), rtol=0.15)
    again = bench_data.counts(np.zeros(20_000, int), means, density=0.3)
    assert (again != x).nnz == 0


def test_perturbed_cells_have_controls_and_normalised_values():
    x, codes = bench_data.perturbed_cells(3000, 60, 5, density=0.15)
    assert sp.issparse(x) and set(codes) == set(range(6))
    assert np.mean(codes == 0) == pytest.approx(0.1, abs=0.03)
    totals = np.expm1(x.toarray().astype(np.float64)).sum(1)
    np.testing.assert_allclose(totals[totals > 0], 1e4, rtol=1e-4)


# --- every operation, small and once ---------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Operations at a size of no interest, every function called once, no memory, no peer of elsewhere."""

    def turns(*functions, **_):
        return [bench_measure.once(f)[0] for f in functions]

    def around(ours, peer, **_):
        peer_ms, result = bench_measure.once(peer)
        return bench_measure.once(ours)[0], peer_ms, result

    for module in (bench_kernels, bench_networks):
        monkeypatch.setattr(module, "turns", turns)
    monkeypatch.setattr(bench_kernels, "around", around)
    monkeypatch.setattr(bench_kernels, "_memory", lambda *_: None)
    monkeypatch.delenv(bench_measure.PEER_PYTHON, raising=False)
    # KeOps compiles for ten seconds
    found = bench_kernels.find_spec
    monkeypatch.setattr(bench_kernels, "find_spec", lambda name: None if name == "pykeops" else found(name))
    return monkeypatch


def apart(row) -> float:
    return float(row["agreement"].split(" apart")[0].split()[-1])


def is_named(row) -> bool:
    """What a row calls its peer begins with a distribution, whose version is recorded with it."""
    return row["peer"].startswith((*bench_measure.PEERS, *bench_peers.PEERS))


@pytest.mark.parametrize("name", ["energy_loss", "nb_loss", "encoder_block"])
def test_networks(small, name):
    pytest.importorskip("geomloss")
    for row in getattr(bench_networks, name)():
        assert list(row) == KEYS and row["ratio"] > 0
        assert apart(row) < 1e-2


def test_energy_distance(small):
    cdist, keops, pertpy = rows = bench_kernels._energy_distance(400, 30)
    assert all(is_named(row) for row in rows)
    assert apart(cdist) < 1e-3 and cdist["ratio"] > 0
    assert keops["agreement"].startswith('not measured: pip install "screpro[bench]"')
    assert bench_measure.PEER_PYTHON in pertpy["agreement"] and pertpy["ratio"] is None


def test_rank_sum(small):
    pytest.importorskip("illico")
    case = bench_kernels._rank_sum_case
    small.setattr(bench_kernels, "_rank_sum_case", partial(case, 600, 30, 4))
    illico, pdex, scanpy = bench_kernels.rank_sum()
    assert all(is_named(row) for row in (illico, pdex, scanpy))
    assert "tie_correct" in scanpy["peer"]
    assert apart(illico) < 1e-3
    assert pdex["ratio"] is None and scanpy["ratio"] > 0
    assert apart(scanpy) < 0.05


def test_exact_w2_and_neighbours(small):
    pytest.importorskip("faiss")
    clouds = bench_kernels.clouds
    small.setattr(bench_kernels, "clouds", lambda n, d: clouds(200, d))
    (w2,), (neighbour,) = bench_kernels.exact_w2(), bench_kernels.nearest_neighbour()
    assert is_named(w2) and is_named(neighbour)
    assert apart(w2) < 1e-6 and "certified" in w2["agreement"]
    assert neighbour["agreement"].startswith("100.000%")


def test_components(small):
    case = bench_kernels._pca_case
    small.setattr(bench_kernels, "_pca_case", partial(case, 2500))
    (row,) = bench_kernels.principal_components()
    assert is_named(row)
    assert float(row["agreement"].split()[2].strip(",")) < 1e-3


def test_a_peer_that_is_not_installed_is_said_to_be_missing(small):
    small.setattr(bench_networks, "find_spec", lambda name: None)
    (row,) = bench_networks.energy_loss()
    assert row["agreement"] == bench_measure.MISSING and row["ours_ms"] > 0 and row["peer_ms"] is None
