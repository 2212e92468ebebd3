"""Recorded benchmarks come back with their machine, and only in the schema they were written in."""

import json

import pandas as pd
import pytest

from screpro import paths
from screpro.errors import ScreproError
from screpro.records import load_timings, timings, timings_table
from screpro.records.timings import write_timings

ROW = {"operation": "energy", "ratio": 3.5, "peer": "geomloss"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    return tmp_path / "data" / "results" / "together"


def test_rows_come_back_with_their_machine(folder):
    write_timings(folder / "kernels-here.timings.json", "kernels", [ROW], device="cpu")
    write_timings(folder / "other.timings.json", "annotate", [ROW], device="cpu")
    frame = load_timings("kernels")
    assert frame.drop(columns=["machine", "peer_version"]).to_dict("records") == [ROW]
    assert frame["machine"].str.contains("threads").all()
    assert load_timings("nothing").empty


def test_a_row_names_the_version_of_its_peer(folder, monkeypatch):
    monkeypatch.setattr(timings, "peer_versions", lambda: {"geomloss": "0.3.1", "torch": "2.13.0"})
    rows = [{"peer": "torch.cdist, eager"}, {"peer": "geomloss, tensorized"}, {"peer": "the formula, eager"}]
    write_timings(folder / "kernels.timings.json", "kernels", rows, device="cpu")
    assert load_timings("kernels")["peer_version"].tolist() == ["torch 2.13.0", "geomloss 0.3.1", None]


def test_a_file_from_before_versions_were_recorded_is_read(folder):
    write_timings(folder / "kernels.timings.json", "kernels", [ROW], device="cpu")
    content = json.loads((folder / "kernels.timings.json").read_text())
    assert set(content.pop("peers")) >= {"torch", "scipy"}
    (folder / "kernels.timings.json").write_text(json.dumps(content))
    frame = load_timings("kernels")
    assert frame["ratio"].tolist() == [3.5] and frame["peer_version"].isna().all()


def test_the_table_shows_what_was_asked_for_and_says_when_there_is_nothing(folder, capsys):
    times = {"ours_ms": 2.0, "peer_ms": 7.0, "size": "10 x 3", "target": "at least 3 times", "agreement": "1e-7 apart"}
    rows = [ROW | times, ROW | times | {"operation": "PCA", "peer": "scanpy", "peer_ms": None, "ratio": None}]
    write_timings(folder.parent / "scdiff" / "here.timings.json", "annotate", rows, device="cpu")
    with pd.option_context("display.max_columns", None, "display.width", 1000):
        timings_table("annotate", "PCA")
        one = capsys.readouterr().out
        timings_table("annotate")
        every = capsys.readouterr().out.split()
    assert "not measured" in one and "energy" not in one and "3.5" not in one
    assert {"PCA", "energy", "3.5"} <= set(every)
    assert "screpro bench scldm" in timings_table("scldm").data


@pytest.mark.parametrize("spoiled", ['{"schema": "screpro.timings/0"}', "{", '{"schema": "screpro.timings/1"}'])
def test_another_schema_is_refused(folder, spoiled):
    folder.mkdir(parents=True)
    (folder / "x.timings.json").write_text(spoiled)
    with pytest.raises(ScreproError, match="timings"):
        load_timings("kernels")


def test_a_file_is_replaced_in_one_step(folder, monkeypatch):
    target = folder / "kernels.timings.json"
    write_timings(target, "kernels", [ROW], device="cpu")
    monkeypatch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_timings(target, "kernels", [ROW, ROW], device="cpu")
    monkeypatch.undo()
    assert len(json.loads(target.read_text())["rows"]) == 1


def test_an_operation_measured_alone_takes_the_place_of_its_row(folder):
    rows = [ROW | {"size": size} for size in ("small", "large")]
    write_timings(folder / "z.timings.json", "kernels", rows, device="cpu")
    earlier = json.loads((folder / "z.timings.json").read_text()) | {"recorded": "2020-01-01T00:00:00+00:00"}
    (folder / "z.timings.json").write_text(json.dumps(earlier))
    write_timings(folder / "a.timings.json", "kernels-one", [rows[0] | {"ratio": 9.0}], device="cpu")
    ratio = load_timings("kernels").set_index("size")["ratio"]
    assert ratio.to_dict() == {"small": 9.0, "large": 3.5}
    assert len(load_timings("kernels-one")) == 1
