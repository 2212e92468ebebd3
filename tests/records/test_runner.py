"""A notebook end to end, killed half-way, continued and finished; two kernels are started in all."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from screpro import paths, records
from screpro.errors import ScreproError
from screpro.records import execute, keys, manifest, runner

SOURCE = """\
# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,slideshow,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A small page

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}
seeds: list[int] = [0]  # one run per seed [0..100]
rate: float | None = None  # step size [1e-6..1]
wait_for: str = ""  # the second unit waits as long as this file exists

# %%
import os
import sys
import time
from pathlib import Path

import pandas as pd

from screpro import records

run = records.start("demo/small", tier=tier)
records.keep_drawn(run, "map", pd.DataFrame({"x": [0.5]}), dataset="d", method="m")
print("noise", file=sys.stderr)
print(sys.executable, os.environ["OMP_NUM_THREADS"], rate, os.getcwd())

# %%
row = dict(item="Table 1", dataset="d", split=0, method="m", direction="higher")
kept = []
for seed in seeds:
    if run.done(dataset="d", split=0, method="m", seed=seed):
        kept.append(seed)
        continue
    run.add(**row, metric="accuracy", seed=seed, value=0.5 + seed / 10)
    if seed == 1 and wait_for and Path(wait_for).exists():
        Path(wait_for).write_text(str(os.getpid()))
        time.sleep(120)
    run.add(**row, metric="macro_f1", seed=seed, value=0.25)
print("kept", kept)
"""

PATCHED = """
import sys
from pathlib import Path
from screpro import paths
from screpro.records import keys, runner
paths.runs_dir = lambda: Path(sys.argv[1])
keys.tree_hash = lambda: "library"
keys.constraints_hash = lambda: "versions"
runner.run(sys.argv[2], {"seeds": [0, 1], "rate": 1e-4, "wait_for": sys.argv[3]}, threads=1)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs and notebook in a temporary folder; the library counts as unchanged while the tests run."""
    folder = tmp_path_factory.mktemp("runner")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "runs_dir", lambda: folder / "runs")
        patch.setattr(keys, "tree_hash", lambda: "library")
        patch.setattr(keys, "constraints_hash", lambda: "versions")
        patch.setenv("SCREPRO_DEVICE", "cpu")
        (folder / "demo").mkdir()
        (folder / "demo" / "small.py").write_text(SOURCE)
        yield folder


def given(place):
    return {"seeds": [0, 1], "rate": 1e-4, "wait_for": str(place / "wait")}


@pytest.fixture(scope="module")
def killed(place):
    """Kill a run inside its second unit: what it leaves, whether its kernel lives on, what counts as run."""
    source, wait = place / "demo" / "small.py", place / "wait"
    wait.touch()
    command = [sys.executable, "-c", PATCHED, str(place / "runs"), str(source), str(wait)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not wait.read_text() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    kernel = int(wait.read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{kernel}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    wait.unlink()
    folder = runner.plan(source, given(place)).folder
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if anything still holds it
    left = sorted(p.name for p in folder.iterdir())
    return left, Path(f"/proc/{kernel}").exists(), manifest.latest("demo/small")


@pytest.fixture(scope="module")
def finished(place, killed):
    """The same command again."""
    return runner.run(place / "demo" / "small.py", given(place), threads=1, out=place / "recorded")


def test_killed_run_leaves_nothing_that_counts(killed):
    assert killed == ([".lock", "clock.json", "drawn", "journal.jsonl", "work"], False, None)


def test_continued_run_keeps_what_was_complete(finished):
    assert not finished.reused
    notebook = nbformat.read(finished.folder / "notebook.ipynb", as_version=4)
    text = json.dumps(notebook)
    assert "kept [0]" in text
    rows = records.read_results(finished.folder / "results.json")
    assert sorted(zip(rows["seed"], rows["metric"], rows["value"], strict=True)) == [
        (0, "accuracy", 0.5),
        (0, "macro_f1", 0.25),
        (1, "accuracy", 0.6),
        (1, "macro_f1", 0.25),
    ]
    assert set(rows["run_id"]) == {finished.manifest["run_id"]}
    assert sorted(p.name for p in finished.folder.iterdir()) == [
        ".lock",
        "drawn",
        "manifest.json",
        "notebook.ipynb",
        "results.json",
    ]


def test_parameters_and_settings_arrive(finished):
    notebook = nbformat.read(finished.folder / "notebook.ipynb", as_version=4)
    printed = notebook.cells[3].outputs[0]["text"].split()
    assert Path(printed[0]).samefile(sys.executable)
    assert printed[1:3] == ["1", "0.0001"] and Path(printed[3]) == paths.root()


def test_manifest_says_where_the_numbers_come_from(finished, place):
    content = manifest.read(finished.folder)
    assert content["parameters"] == {"tier": "ci", **given(place)}
    assert content["key"] == finished.key and content["run_id"].endswith(f"ci-{finished.key[:12]}")
    assert content["threads"] == 1 and content["wall_seconds"] > 0 and content["peak_memory_mib"] > 10
    assert content["packages"]["papermill"] and not content["default_parameters"]


def test_page_carries_sheet_values_and_provenance_and_no_noise(finished, place):
    notebook = nbformat.read(finished.folder / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    cell = notebook.cells[1]
    assert {"parameters", "hide-input"} <= set(cell.metadata["tags"])
    scope = {}
    exec(cell.source, scope)
    assert scope["seeds"] == [0, 1] and scope["rate"] == 1e-4
    assert "| `seeds` | `[0, 1]` (default `[0]`) |" in notebook.cells[2].source
    assert "(`list[int]`: 0 to 100) |" in notebook.cells[2].source
    footer = notebook.cells[-1].source
    assert "screpro-provenance" in footer and finished.manifest["run_id"] in footer
    assert finished.manifest["command"] in footer
    text = json.dumps(notebook)
    for unwanted in ("papermill", "injected-parameters", "noise\\n", '"name": "stderr"', str(finished.folder)):
        assert unwanted not in text
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert notebook.metadata["screpro"]["run_id"] == finished.manifest["run_id"]


def test_out_gets_a_copy_and_a_chosen_run_is_not_placed_beside_the_source(finished, place):
    for name in ("manifest.json", "results.json", "notebook.ipynb", "drawn/map.m.d.json"):
        assert (place / "recorded" / name).read_bytes() == (finished.folder / name).read_bytes()
    assert not (place / "demo" / "small.ipynb").exists()


def test_a_copy_has_the_points_of_its_run_and_no_others(finished, place):
    (place / "recorded" / "drawn" / "old.m.d.json").write_text("{}")
    half_written = finished.folder / "drawn" / ".map.m.d.json.1234.json"
    half_written.write_text("{")
    runner.run(place / "demo" / "small.py", given(place), out=place / "recorded")
    half_written.unlink()
    assert [file.name for file in (place / "recorded" / "drawn").iterdir()] == ["map.m.d.json"]


def test_same_run_is_not_executed_again_and_shows_changed_prose(finished, place, monkeypatch):
    monkeypatch.setattr(execute, "execute", lambda *a, **k: pytest.fail("executed again"))
    source = place / "demo" / "small.py"
    before = (finished.folder / "notebook.ipynb").stat().st_mtime_ns
    again = runner.run(source, given(place))
    assert again.reused and again.folder == finished.folder
    assert (finished.folder / "notebook.ipynb").stat().st_mtime_ns == before
    source.write_text(SOURCE.replace("# # A small page", "# # Another title"))
    try:
        assert runner.run(source, given(place)).reused
        notebook = nbformat.read(finished.folder / "notebook.ipynb", as_version=4)
        assert notebook.cells[0].source == "# Another title" and "kept [0]" in json.dumps(notebook)
    finally:
        source.write_text(SOURCE)


def test_one_process_at_a_time(finished, place):
    with (finished.folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ScreproError, match="in progress"):
            runner.run(place / "demo" / "small.py", given(place))


@pytest.fixture
def no_kernel(monkeypatch):
    """papermill replaced: the notebook is written as executed, or as far as the cell that fails."""
    import papermill
    from nbformat.v4 import new_markdown_cell, new_output
    from papermill.exceptions import PapermillExecutionError

    def pretend(source, executed, **settings):
        notebook = nbformat.read(source, as_version=4)
        notebook.metadata["papermill"] = {"input_path": source}
        last = notebook.cells[-1]
        if failing := "boom" in last.source:
            banner = new_markdown_cell("failed", metadata={"tags": ["papermill-error-cell-tag"]})
            notebook.cells.insert(0, banner)
            kind = "ScreproError" if "ScreproError" in last.source else "ValueError"
            last.outputs = [new_output("error", ename=kind, evalue="boom", traceback=[])]
        nbformat.write(notebook, executed)
        if failing:
            raise PapermillExecutionError(4, 4, last.source, kind, "boom", [])

    monkeypatch.setattr(papermill, "execute_notebook", pretend)


def test_a_failing_cell_is_reported_and_the_notebook_kept(place, no_kernel):
    path = place / "demo" / "failing.py"
    path.write_text(SOURCE + '\n# %%\nraise ValueError("boom")\n')
    with pytest.raises(execute.RunFailed, match="ValueError: boom") as failed:
        runner.run(path)
    assert not failed.value.fixable
    assert failed.value.path.name == "failed.ipynb" and str(failed.value.path) in str(failed.value)
    kept = nbformat.read(failed.value.path, as_version=4)
    assert kept.cells[0].source == "# A small page" and "papermill" not in kept.metadata
    assert not (failed.value.path.parent / "manifest.json").exists()
    assert not path.with_suffix(".ipynb").exists()


def test_an_error_that_the_user_can_put_right_is_told_apart(place, no_kernel):
    path = place / "demo" / "failing.py"
    path.write_text(SOURCE + "\n# %%\nraise ScreproError('boom', got='this', fix='do that')\n")
    with pytest.raises(execute.RunFailed, match="error: boom") as failed:
        runner.run(path)
    assert failed.value.fixable and "in the cell" not in str(failed.value)


def test_a_users_file_is_checked_before_a_kernel_starts(place, monkeypatch):
    from anndata import AnnData

    path = place / "demo" / "own.py"
    keys_of = 'dataset: str = "pbmc68k_reduced"  # cells\nlabel_key: str = "cell_type"  # classes\n'
    keys_of += 'condition_key: str = "condition"  # states\nseeds: list'
    path.write_text(SOURCE.replace("seeds: list", keys_of, 1))
    monkeypatch.setattr(execute, "execute", lambda *a, **k: pytest.fail("a kernel was started"))
    file = place / "mine.h5ad"
    obs = pd.DataFrame({"celltypes": list("aabb")}, index=list("1234"))
    AnnData(np.ones((4, 3), np.float32), obs=obs).write_h5ad(file)
    with pytest.raises(ScreproError, match="-p label_key celltypes"):
        runner.run(path, {"dataset": str(file)})
    with pytest.raises(ScreproError, match="'treatment' in obs"):  # asked for: nothing is simulated in its place
        runner.run(path, {"dataset": str(file), "label_key": "celltypes", "condition_key": "treatment"})


def test_default_run_is_placed_beside_its_source(place, no_kernel):
    result = runner.run(place / "demo" / "small.py")
    placed = place / "demo" / "small.ipynb"
    assert placed.read_bytes() == (result.folder / "notebook.ipynb").read_bytes()
    assert result.manifest["default_parameters"] and manifest.latest("demo/small") == result.folder
    assert result.manifest["command"] == f"screpro run {place / 'demo' / 'small.py'}"


def test_seconds_are_those_of_all_sessions(tmp_path):
    assert runner._seconds_before(tmp_path) == (0, 0)
    runner._start_clock(tmp_path, spent=100.0, measured=7.0)
    assert runner._seconds_before(tmp_path) == (0, 0)  # nothing kept: the run starts afresh
    (tmp_path / "journal.jsonl").touch()
    started = json.loads((tmp_path / "clock.json").read_text())["started"]
    os.utime(tmp_path / "journal.jsonl", (started + 30, started + 30))  # the last row, then a kill
    spent, measured = runner._seconds_before(tmp_path)
    assert spent == pytest.approx(130) and measured == 7


def test_forced_run_replaces_the_finished_one(place, no_kernel):
    first = runner.run(place / "demo" / "small.py")
    again = runner.run(place / "demo" / "small.py", force=True)
    assert first.folder == again.folder and not again.reused


def test_changed_records_renew_the_page_and_keep_what_was_measured(finished, place, monkeypatch):
    """A page also shows recorded runs and verdicts; when those change it is made again from the same rows."""
    before = records.read_results(finished.folder / "results.json")
    monkeypatch.setattr(keys, "records_hash", lambda paper: f"other records of {paper}")
    again = runner.run(place / "demo" / "small.py", given(place), threads=1)
    assert not again.reused and again.key == finished.key
    assert again.manifest["records_hash"] == "other records of demo"
    assert again.manifest["wall_seconds"] >= finished.manifest["wall_seconds"]
    assert "kept [0]" in (again.folder / "notebook.ipynb").read_text()  # the last unit is never trusted
    after = records.read_results(again.folder / "results.json")
    assert (
        before.sort_values(["seed", "metric"])["value"].tolist()
        == after.sort_values(["seed", "metric"])["value"].tolist()
    )
    assert runner.run(place / "demo" / "small.py", given(place), threads=1).reused
