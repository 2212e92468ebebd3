"""Recorded benchmarks come back with their machine, and only in the schema they were written in."""

import json

import pytest

from screpro import paths
from screpro.errors import ScreproError
from screpro.records import load_timings
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
    assert frame.drop(columns="machine").to_dict("records") == [ROW]
    assert frame["machine"].str.contains("threads").all()
    assert load_timings("nothing").empty


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
