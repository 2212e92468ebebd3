"""Rows survive what interrupts them, and nothing that breaks the schema gets in."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro import records
from screpro.errors import ScreproError
from screpro.records import manifest, results

ROW = {
    "item": "Table 1",
    "dataset": "d",
    "split": 0,
    "method": "m",
    "metric": "macro_f1",
    "value": 0.5,
    "direction": "higher",
    "seed": 0,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SCREPRO_RUN_ID", "scdiff/annotation/ci-0")
    return tmp_path


def test_interactive_run_keeps_rows_without_any_setup(monkeypatch):
    monkeypatch.delenv("SCREPRO_RUN_DIR", raising=False)
    run = records.start("scdiff/annotation", tier="ci")
    run.add(**ROW)
    row = run.frame().iloc[0]
    assert (row["paper"], row["tier"], row["run_id"], row["split"]) == ("scdiff", "ci", "interactive", "0")


def test_numpy_scalars_become_plain_values(folder):
    run = records.start("scdiff/annotation", tier="ci")
    run.add(**ROW | {"value": np.float32(0.25), "seed": np.int64(3), "n_real": np.int32(7)})
    entry = json.loads((folder / "journal.jsonl").read_text().splitlines()[-1])
    assert (entry["row"]["value"], entry["row"]["seed"], entry["row"]["n_real"]) == (0.25, 3, 7)


def test_resumed_run_keeps_all_units_but_the_last(folder):
    run = records.start("scdiff/annotation", tier="ci")
    for seed in (0, 1):
        for metric in ("accuracy", "macro_f1"):
            run.add(**ROW | {"seed": seed, "metric": metric})
    run.use_data("d", "0" * 64)
    again = records.start("scdiff/annotation", tier="ci")
    assert again.done(dataset="d", split=0, method="m", seed=0)
    assert not again.done(dataset="d", split=0, method="m", seed=1)
    assert len(again.frame()) == 2 and again.data == {"d": "0" * 64}


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(min_value=0, max_value=2000))
def test_a_journal_cut_anywhere_gives_whole_rows(cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = results.Run("scdiff/annotation", tier="ci", folder=folder, run_id="r")
    for seed in range(6):
        run.add(**ROW | {"seed": seed})
    journal = folder / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:cut])
    rows, _ = results.read_journal(journal, drop_last_unit=False)
    assert [r["seed"] for r in rows] == list(range(whole[:cut].count(b"\n")))


def test_measuring_again_replaces_the_row(folder):
    run = records.start("scdiff/annotation", tier="ci")
    run.add(**ROW)
    run.add(**ROW | {"value": 0.75})
    assert list(run.frame()["value"]) == [0.75]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": math.nan}, "finite"),
        ({"value": math.inf}, "finite"),
        ({"value": "0.5"}, "a number"),
        ({"value": True}, "a number"),
        ({"seed": 0.5}, "whole number"),
        ({"dataset": 3}, "text"),
        ({"direction": "up"}, "higher or lower"),
        ({"item": None}, "every column"),
    ],
)
def test_rows_that_break_the_schema_are_refused(folder, change, said):
    run = records.start("scdiff/annotation", tier="ci")
    with pytest.raises(ScreproError, match=said):
        run.add(**ROW | change)
    assert run.frame().empty


def test_unknown_tier_is_refused():
    with pytest.raises(ScreproError, match="ci or laptop or paper"):
        records.start("scdiff/annotation", tier="big")


def test_written_results_read_back_the_same_one_row_a_line(tmp_path, folder):
    run = records.start("scdiff/annotation", tier="laptop")
    for seed in (0, 1, None):
        run.add(**ROW | {"seed": seed})
    path = tmp_path / "results.json"
    records.write_results(path, run.frame().astype(object).where(run.frame().notna(), None).to_dict("records"))
    pd.testing.assert_frame_equal(records.read_results(path), run.frame())
    assert sum(line.startswith('["scdiff"') for line in path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": "screpro.results/99", "columns": [], "rows": []}', "screpro.results/99"),
        ("[]", "schema"),
        ('{"schema": ', "JSON"),
        ('{"schema": "screpro.results/1", "columns": ["colour"], "rows": [[1]]}', "colour"),
        ('{"schema": "screpro.results/1", "columns": ["paper"], "rows": [[1, 2]]}', "2 values for 1"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, text, said):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ScreproError, match=said):
        records.read_results(path)


def record(monkeypatch, tmp_path, folder, name, started, rows, *, page="annotation", tier="laptop"):
    """A recorded run of a page of scDiff; without `started` it has no manifest."""
    monkeypatch.setattr(results, "results_dir", lambda: tmp_path / "recorded")
    monkeypatch.setenv("SCREPRO_RUN_DIR", str(folder / name))
    run = records.start(f"scdiff/{page}", tier=tier)
    for row in rows:
        run.add(**{**ROW, **row})
    own = tmp_path / "recorded" / "scdiff" / page / name
    rows, _ = results.read_journal(folder / name / "journal.jsonl", drop_last_unit=False)
    records.write_results(own / "results.json", rows)
    if started:
        finish(own, started)


def finish(run, started):
    """A manifest of nothing but the time."""
    kinds = {field: kind[0] if isinstance(kind, tuple) else kind for field, kind in manifest.FIELDS.items()}
    manifest.write(run / "manifest.json", {f: kind() for f, kind in kinds.items()} | {"started": started})


def test_recorded_rows_count_only_with_their_manifest(tmp_path, monkeypatch, folder):
    record(monkeypatch, tmp_path, folder, "whole", "2026-01-01T00:00:00+00:00", [{}])
    record(monkeypatch, tmp_path, folder, "partial", None, [{"method": "other"}])
    assert len(records.load_results("scdiff")) == len(records.load_results("scdiff", "annotation")) == 1
    assert records.load_results("scldm").empty


def test_what_is_recorded_again_takes_the_place_of_what_it_was(tmp_path, monkeypatch, folder):
    """Method, data set, split, item, metric and tier decide, and when a run started; not the names of folders."""
    again = {"value": 0.9, "metric_variant": "another setting"}
    others = [{"method": "n"}, {"dataset": "e"}, {"item": "Table 2"}, {"metric": "accuracy"}, {"split": 1}]
    record(monkeypatch, tmp_path, folder, "a", "2026-01-02T00:00:00+00:00", [again])
    record(monkeypatch, tmp_path, folder, "b", "2026-01-01T00:00:00+00:00", [{}, {"seed": 1}, *others])
    record(monkeypatch, tmp_path, folder, "c", "2026-01-01T00:00:00+00:00", [{}], tier="ci")
    record(monkeypatch, tmp_path, folder, "d", "2026-01-01T00:00:00+00:00", [{}], page="one_shot")
    found = records.load_results("scdiff")
    assert len(found) == 1 + len(others) + 2
    assert list(found.loc[found["value"] == 0.9, "metric_variant"]) == ["another setting"]


def test_a_method_is_tuned_once_whatever_it_is_tuned_by(tmp_path, monkeypatch, folder):
    tuned = {"item": "tuning", "metric_variant": "{}"}
    older = [tuned | {"metric": "w2"}, tuned | {"metric": "w2", "method": "n"}, {"metric": "w2"}]
    record(monkeypatch, tmp_path, folder, "a", "2026-01-01T00:00:00+00:00", older)
    record(monkeypatch, tmp_path, folder, "b", "2026-01-02T00:00:00+00:00", [tuned | {"metric": "ratio"}])
    found = records.load_results("scdiff")
    left = found[found["item"] == "tuning"]
    assert sorted(left["metric"]) == ["ratio", "w2"] and set(left.loc[left["metric"] == "w2", "method"]) == {"n"}
    assert len(found) == 3


def test_this_runs_rows_stand_for_recorded_ones_of_the_same_measurement(tmp_path, monkeypatch):
    """Whoever asks for other parameters sees the answer, not the recorded one; everything else stays visible."""
    monkeypatch.setattr(results.paths, "root", lambda: tmp_path)
    unit = {"item": "Table 1", "dataset": "d", "split": 0, "seed": 0, "direction": "higher"}
    there = tmp_path / "data" / "results" / "scdiff" / "page" / "laptop-d"
    there.mkdir(parents=True)
    for tier, folder in (("laptop", "one"), ("ci", "two")):
        (tmp_path / folder).mkdir()
        run = results.Run("scdiff/page", tier=tier, folder=tmp_path / folder, run_id=folder)
        if tier == "laptop":
            for method in ("a", "b"):
                run.add(**unit, method=method, metric="f1", value=0.5)
            results.write_results(there / "results.json", run.frame().to_dict("records"))
            finish(there, "2026-01-01T00:00:00+00:00")
    (tmp_path / "three").mkdir()
    again = results.Run("scdiff/page", tier="laptop", folder=tmp_path / "three", run_id="three")
    again.add(**unit, method="a", metric="f1", value=0.9)
    again.add(**unit, method="b", metric="accuracy", value=0.8)
    tuned = {**unit, "item": "tuning", "method": "b", "metric_variant": "{}"}
    again.add(**tuned, metric="f1", value=0.7)  # what settings were chosen by is no measurement of the method
    rows = again.with_recorded()
    seen = rows[rows["item"] != "tuning"].set_index(["method", "metric"])["value"].to_dict()
    assert len(rows) == len(seen) + 1 and seen == {("b", "f1"): 0.5, ("a", "f1"): 0.9, ("b", "accuracy"): 0.8}
    light = results.Run("scdiff/page", tier="ci", folder=tmp_path / "two", run_id="two")
    light.add(**unit, method="a", metric="f1", value=0.1)
    assert len(light.with_recorded()) == 3
