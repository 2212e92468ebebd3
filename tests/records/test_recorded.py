"""The settings behind recorded rows: those of the runs, from their manifests, and those that tuning chose."""

import json

import pytest

from screpro import records
from screpro.records import manifest, recorded, results
from screpro.records.results import to_frame

PAGE = "scdiff/annotation"


def row(method, value=0.5, **other):
    return {
        "paper": "scdiff", "item": "Table 1", "dataset": "d", "split": "0", "method": method, "metric": "m",
        "metric_variant": "", "n_real": None, "n_generated": None, "n_genes": None, "seed": 0, "tier": "laptop",
        "value": value, "unit": "", "direction": "lower", "run_id": f"{PAGE}/laptop-1", **other,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two recorded runs, made from a manifest that is there with other parameters."""
    content = manifest.read(next((results.results_dir() / PAGE).glob("*/manifest.json")))
    content.pop("schema")
    given = {1: {"epochs": None, "gone": None}, 2: {"epochs": 7, "gone": "a|b", "methods": ["m"]}}
    for number, values in given.items():
        parameters = content["parameters"] | {"tier": "laptop", "dataset": "d", "methods": None} | values
        own = {"run_id": f"{PAGE}/laptop-{number}", "parameters": parameters, "tier": "laptop", "dirty": number == 2}
        manifest.write(tmp_path / PAGE / str(number) / "manifest.json", content | own)
    monkeypatch.setattr(results, "results_dir", lambda: tmp_path)
    return tmp_path


def lines(table):
    return table.data.splitlines()[2:]


def test_runs_are_named_with_what_differs_from_the_defaults_of_their_page(folder):
    second = {"run_id": f"{PAGE}/laptop-2", "dataset": "e"}
    rows = to_frame([*(row(f"m{n}") for n in range(5)), row("m", **second), row("live", run_id="interactive")])
    first, other = lines(records.runs_table(PAGE, rows, titles={"m": "Mine"}))
    assert first.startswith("| `d` | `laptop` | – | 5 |") and "local" not in first
    assert other.startswith("| `e` | `laptop` | `epochs=7`, `gone=a\\|b` | Mine |")
    assert other.endswith(" with local changes |")


def test_a_run_without_a_row_left_is_not_named(folder):
    assert len(lines(records.runs_table(PAGE, to_frame([row("m")])))) == 1
    assert "No recorded run" in records.runs_table(PAGE, to_frame([row("m", run_id="interactive")])).data


def test_data_sets_of_earlier_runs_are_named(folder):
    rows = to_frame([row("m"), row("m", run_id=f"{PAGE}/laptop-2", dataset="e"), row("m", run_id="live", dataset="f")])
    started = manifest.read(folder / PAGE / "1" / "manifest.json")["started"]
    assert records.recorded_before(PAGE, rows, "9999") == ["d", "e"]
    assert records.recorded_before(PAGE, rows, started) == []


def test_every_recorded_run_can_be_read_with_the_page_as_it_is_now():
    for file in results.results_dir().glob("*/*/*/manifest.json"):
        content = manifest.read(file)
        assert not {"tier", "dataset", "methods"} & set(recorded.changed(content))
    screen = manifest.read(
        results.results_dir() / "perturbdiff" / "main_results" / "laptop-papalexi_thp1" / "manifest.json"
    )
    assert recorded.changed(screen) == {"max_cells": 300, "steps": 2500}


def tried(method, value, options, **other):
    return row(method, value, item="tuning", metric_variant=json.dumps(options), **other)


def test_what_tuning_chose_is_bold_by_data_set_and_options_in_common_are_left_out():
    rows = [tried("a", 3.0, {}), tried("a", 2.0, {"rate": 1}), row("a")]
    rows += [tried("b", v, {"k": k, "same": 4}, dataset="e", direction="higher") for k, v in ((1, 5.0), (2, 6.0))]
    table = records.tuning_table(to_frame(rows), titles={"a": "Alpha"}, digits=1)
    assert table.index.tolist() == [("Alpha", "default"), ("Alpha", "rate 1"), ("b", "k 1"), ("b", "k 2")]
    bold = table.to_html().split("font-weight: bold")[0]
    assert "row1_col0" in bold and "row3_col1" in bold and "row0_col0" not in bold and "row2_col1" not in bold
    assert records.tuning_table(to_frame([row("a")])) is None
    both = records.tuning_table(to_frame([*rows[:2], tried("a", 1.0, {}, tier="paper")]))
    assert both.columns.tolist() == [("d", "laptop"), ("d", "paper")]
    # two scores are never averaged, and each has its own best
    other = [tried("a", v, o, dataset="e", metric="a_b") for v, o in ((9.0, {}), (8.0, {"rate": 1}))]
    both = records.tuning_table(to_frame([*rows[:2], *other]))
    assert [name for _, name in both.columns] == [rows[0]["metric"].replace("_", " "), "a b"]
    assert both.data["e"].squeeze().tolist() == [9.0, 8.0]
