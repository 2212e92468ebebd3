"""Points of figures: kept with a run, read back from recorded runs and from the one at hand."""

import numpy as np
import pandas as pd
import pytest

from screpro import records
from screpro.errors import ScreproError
from screpro.records import keys, manifest, results

PAGE = "scdiff/annotation"


def new_run(folder, tier="ci", name="live"):
    folder.mkdir(parents=True, exist_ok=True)
    return results.Run(PAGE, tier=tier, folder=folder, run_id=name)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Keep points in a run and record it, on the given day."""
    content = manifest.read(next((results.results_dir() / PAGE).glob("*/manifest.json")))
    content.pop("schema")
    monkeypatch.setattr(results, "results_dir", lambda: tmp_path / "recorded")

    def record(name, day, tier="laptop", **kept):
        run = new_run(tmp_path / "recorded" / PAGE / name, tier, name)
        for method, values in kept.items():
            records.keep_drawn(run, "map", pd.DataFrame({"x": values}), dataset="d", method=method)
        own = {"run_id": name, "tier": tier, "started": f"2026-01-{day:02}T00:00:00+00:00"}
        manifest.write(run.folder / "manifest.json", content | own)

    return record


def seen(run):
    points = records.drawn_points(run, "map")
    return {key: own["x"].tolist() for key, own in points.groupby(["dataset", "tier", "method"])}


def test_nothing_kept_is_an_empty_table(tmp_path, recorded):
    points = records.drawn_points(new_run(tmp_path / "live"), "map")
    assert points.empty and {"dataset", "tier", "method", "run_id"} <= set(points)


def test_points_come_back_to_four_digits_whatever_the_data_is_called(tmp_path, recorded):
    run = new_run(tmp_path / "live")
    kept = pd.DataFrame({"x": [1 / 3, -1e-7], "of": ["a,b", 'c "d"'], "n": [100001, 2]})
    records.keep_drawn(run, "map", kept, dataset="my.own.h5ad", method="m")
    records.keep_drawn(run, "map_of_genes", kept, dataset="d", method="m")
    points = records.drawn_points(run, "map")
    assert points["x"].tolist() == [0.3333, -1e-7] and points["of"].tolist() == kept["of"].tolist()
    assert points["n"].tolist() == [100001, 2] and set(points["dataset"]) == {"my.own.h5ad"}
    assert set(points["run_id"]) == {"live"}


def test_names_that_look_like_something_else_stay_names_and_missing_numbers_missing(tmp_path, recorded):
    run = new_run(tmp_path / "live")
    names = ["NA", "1", "null", "", "None", "é"]
    kept = pd.DataFrame({"x": [1.0, np.nan, np.inf, 2.0, 0.0, -3.0], "type": names, "flag": [True, False] * 3})
    records.keep_drawn(run, "map", kept, dataset="d", method="m")
    points = records.drawn_points(run, "map")
    assert points["type"].tolist() == names and points["flag"].tolist() == [1, 0] * 3
    assert points["x"].isna().tolist() == [False, True, True, False, False, False]


def test_points_of_another_ground_are_not_drawn_beside_it(tmp_path, recorded):
    """Coordinates mean nothing on the map of another run."""
    recorded("a", 1, ground=[1.0, 2.0], first=[10.0])
    recorded("b", 2, ground=[1.0, 2.0], second=[20.0])
    run = new_run(tmp_path / "live", "laptop")
    assert set(records.drawn_points(run, "map", beside="ground")["method"]) == {"ground", "first", "second"}
    records.keep_drawn(run, "map", pd.DataFrame({"x": [1.0, 3.0]}), dataset="d", method="ground")
    records.keep_drawn(run, "map", pd.DataFrame({"x": [30.0]}), dataset="d", method="second")
    points = records.drawn_points(run, "map", beside="ground")
    assert points.groupby("method")["x"].agg(list).to_dict() == {"ground": [1.0, 3.0], "second": [30.0]}
    assert set(records.drawn_points(run, "map")["method"]) == {"ground", "first", "second"}


@pytest.mark.parametrize("text", ["{", '{"schema": "other/1", "columns": {}}', "[]"])
def test_a_file_that_is_none_of_ours_is_told(tmp_path, recorded, text):
    run = new_run(tmp_path / "live")
    records.keep_drawn(run, "map", pd.DataFrame({"x": [1.0]}), dataset="d", method="m")
    next((run.folder / "drawn").iterdir()).write_text(text)
    with pytest.raises(ScreproError, match="a file of points"):
        records.drawn_points(run, "map")


def test_of_a_method_the_last_run_counts_and_the_run_at_hand_before_recorded_ones(tmp_path, recorded):
    recorded("b", 1, first=[1.0, 2.0], second=[3.0])
    recorded("a", 2, first=[4.0])
    assert seen(new_run(tmp_path / "live")) == {("d", "laptop", "first"): [4.0], ("d", "laptop", "second"): [3.0]}
    run = new_run(tmp_path / "live", "laptop")
    records.keep_drawn(run, "map", pd.DataFrame({"x": [5.0]}), dataset="d", method="first")
    assert seen(run) == {("d", "laptop", "first"): [5.0], ("d", "laptop", "second"): [3.0]}


def test_the_heaviest_tier_of_a_data_set_is_drawn(tmp_path, recorded):
    recorded("a", 1, first=[1.0])
    run = new_run(tmp_path / "live")
    records.keep_drawn(run, "map", pd.DataFrame({"x": [2.0]}), dataset="d", method="first")
    records.keep_drawn(run, "map", pd.DataFrame({"x": [3.0]}), dataset="e", method="first")
    assert seen(run) == {("d", "laptop", "first"): [1.0], ("e", "ci", "first"): [3.0]}


def test_what_is_kept_again_takes_the_place_of_what_was(tmp_path, recorded):
    run = new_run(tmp_path / "live")
    for values in ([1.0, 2.0], [3.0]):
        records.keep_drawn(run, "map", pd.DataFrame({"x": values}), dataset="d", method="m")
    assert seen(run) == {("d", "ci", "m"): [3.0]}


@pytest.mark.parametrize(
    "given", [{"figure": "a.b"}, {"figure": "../a"}, {"method": "m/n"}, {"points": pd.DataFrame({"tier": [1]})}]
)
def test_names_that_would_be_lost_are_refused(tmp_path, given):
    own = {"figure": "map", "points": pd.DataFrame({"x": [1.0]}), "dataset": "d", "method": "m"} | given
    with pytest.raises(ScreproError, match=r"plain names|no column"):
        records.keep_drawn(new_run(tmp_path), own.pop("figure"), own.pop("points"), **own)


def test_pages_are_made_again_when_recorded_points_change(tmp_path, monkeypatch):
    monkeypatch.setattr(keys.paths, "root", lambda: tmp_path)
    folder = tmp_path / "data" / "results" / "scldm" / "page" / "laptop-d" / "drawn"
    folder.mkdir(parents=True)
    before = keys.records_hash("scldm")
    (folder / "map.m.d.json").write_text("{}")
    assert keys.records_hash("scldm") != before
