"""Manifests that hold together, and recorded numbers that stay in their accepted bands."""

import json
import shutil
import subprocess

import pytest

from screpro import paths, records
from screpro.errors import ScreproError
from screpro.records import check, manifest, results

CONTENT = {
    "run_id": "demo/small/laptop-0",
    "notebook": "demo/small",
    "key": "0",
    "commit": None,
    "dirty": None,
    "parameters": {},
    "default_parameters": True,
    "tier": "laptop",
    "tree_hash": "",
    "constraints_hash": "",
    "records_hash": "",
    "data": {},
    "packages": {},
    "python": "3.11",
    "platform": "Linux",
    "device": "cpu",
    "device_name": "cpu",
    "threads": 1,
    "peak_memory_mib": 1.0,
    "started": "2026-01-01T00:00:00+00:00",
    "wall_seconds": 1,
    "determinism": {},
    "command": "screpro run demo/small",
}

ROW = {
    "paper": "demo",
    "item": "Table 1",
    "dataset": "d",
    "split": "0",
    "method": "m",
    "metric_variant": "",
    "tier": "laptop",
    "unit": "",
    "direction": "higher",
    "run_id": "demo/small/laptop-0",
}


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """One recorded run: accuracy .5 and .6 over two seeds, macro F1 .25 from one."""
    monkeypatch.setattr(results, "results_dir", lambda: tmp_path)
    monkeypatch.setattr(paths, "runs_dir", lambda: tmp_path / "runs")
    folder = tmp_path / "demo" / "small" / "laptop"
    rows = [ROW | {"metric": "accuracy", "seed": seed, "value": 0.5 + seed / 10} for seed in (0, 1)]
    rows += [ROW | {"metric": "macro_f1", "seed": 0, "value": 0.25}]
    records.write_results(folder / "results.json", rows)
    manifest.write(folder / "manifest.json", CONTENT)
    return folder


def test_manifest_of_another_version_or_shape_is_refused(recorded):
    path = recorded / "manifest.json"
    content = json.loads(path.read_text())
    for change, said in (
        ({"schema": "screpro.manifest/9"}, "screpro.manifest/9"),
        ({"threads": "two"}, "threads"),
        ({"colour": 1}, "colour"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ScreproError, match=said):
            manifest.read(recorded)
    path.unlink()
    with pytest.raises(ScreproError, match="finished run has a manifest"):
        manifest.read(recorded)


def test_newest_default_run_is_the_latest(recorded):
    folder = paths.runs_dir() / "demo" / "small"
    for name, change in {
        "ci-1": {"started": "2026-01-01T00:00:00+00:00"},
        "ci-2": {"started": "2026-01-02T00:00:00+00:00"},
        "ci-3": {"started": "2026-01-03T00:00:00+00:00", "default_parameters": False},
        "laptop-4": {"started": "2026-01-04T00:00:00+00:00"},
    }.items():
        manifest.write(folder / name / "manifest.json", CONTENT | change)
    (folder / "ci-5").mkdir()
    (folder / "ci-5" / "manifest.json").write_text('{"schema": "screpro.manifest/0"}')
    assert manifest.latest("demo/small").name == "ci-2"
    assert manifest.latest("demo/small", tier="paper") is None


def test_commit_is_that_of_this_repository_only(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "-C", str(tmp_path), "add", "."], check=True)
    subprocess.run([*git, "-C", str(tmp_path), "commit", "-qm", "one"], check=True)
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    commit, dirty = manifest.git_state()
    assert len(commit) == 40 and dirty is False
    (tmp_path / "file").write_text("2")
    assert manifest.git_state() == (commit, True)
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(paths, "root", lambda: tmp_path / "inside")
    assert manifest.git_state() == (None, None)


def problems():
    return sorted(f.problem.split(";")[0].splitlines()[0] for f in check.check() if not f.ok)


def test_check_passes_on_accepted_numbers_and_fails_outside(recorded):
    assert problems() == ["no band"] * 2
    assert check.accept() == 2
    assert problems() == []
    path = recorded / "results.json"
    text = path.read_text()
    path.write_text(text.replace("0.25", "0.75"))
    assert problems() == ["outside its band"]
    path.write_text(text.replace('"macro_f1"', '"other"'))
    assert problems() == ["no band", "no rows"]


def test_check_fails_on_records_that_do_not_hold_together(recorded):
    check.accept()
    content = json.loads((recorded / "manifest.json").read_text())
    (recorded / "manifest.json").write_text(json.dumps(content | {"run_id": "demo/small/laptop-1"}))
    assert problems() == ["results and manifest are of one run"]
    (recorded / "manifest.json").unlink()
    assert problems() == ["a finished run has a manifest"]
    (recorded / "results.json").unlink()
    assert problems() == ["the recorded run is not there"]


def test_accepted_band_is_four_standard_errors_wide(recorded):
    check.accept()
    (band,) = [f for f in check.check() if "accuracy" in f.what]
    assert band.value == pytest.approx(0.55)
    assert (band.low, band.high) == pytest.approx((0.55 - 4 * 0.05, 0.55 + 4 * 0.05))


def test_a_single_row_gets_a_tenth_on_either_side(recorded):
    check.accept()
    (band,) = [f for f in check.check() if "macro_f1" in f.what]
    assert (band.low, band.high) == pytest.approx((0.225, 0.275))


def live(recorded):
    """The recorded run again, as a live run of a page that exists."""
    folder = paths.runs_dir() / "demo" / "small" / "ci-0"
    shutil.copytree(recorded, folder)
    for name in ("results.json", "manifest.json"):
        (folder / name).write_text((folder / name).read_text().replace("laptop", "ci"))
    return folder


def test_live_numbers_that_nobody_accepted_are_no_failure(recorded, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    (tmp_path / "notebooks" / "demo").mkdir(parents=True)
    (tmp_path / "notebooks" / "demo" / "small.py").touch()
    check.accept()
    folder = live(recorded)
    assert problems() == []
    assert [f.problem for f in check.check() if f.run == "live:demo/small"] == ["not compared: no bands for this page"]
    assert check.accept() == 4 and problems() == []
    (folder / "results.json").write_text((folder / "results.json").read_text().replace("0.25", "0.75"))
    assert problems() == ["outside its band"]


def test_rounding_may_shrink(recorded):
    path = recorded / "results.json"
    path.write_text(path.read_text().replace('"macro_f1"', '"relative_error"').replace("0.25", "8e-06"))
    check.accept()
    (band,) = [f for f in check.check() if "relative_error" in f.what]
    assert (band.low, band.high) == pytest.approx((0, 8e-5))


def test_accepting_keeps_bands_of_live_runs_that_are_not_here(recorded):
    check.accept()
    text = check.bands_path().read_text()
    lines = "".join(line + "\n" for line in text.splitlines() if line.startswith("  {"))
    check.bands_path().write_text(text.replace(lines, lines + lines.replace("recorded:", "live:")))
    assert problems() == []
    assert check.accept() == 4 and check.bands_path().read_text().count("live:demo") == 2


def test_seconds_and_validation_scores_have_no_band(recorded):
    file = recorded / "results.json"
    row = results.read_rows(file)[0]
    timed = row | {"metric": "fit_predict", "unit": "s"}
    results.write_results(file, [row, timed, row | {"item": "tuning"}])
    check.accept()
    assert check.bands_path().read_text().count("run = ") == 1
