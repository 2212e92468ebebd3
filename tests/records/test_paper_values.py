"""Every number of the papers' tables is here."""

import csv

import pytest

from screpro import records
from screpro.errors import ScreproError
from screpro.records.paper import paper_dir

# counted in the papers
COUNTS = {
    ("scdiff", "Table 1"): 36,
    ("scdiff", "Table 2a"): 18,
    ("scdiff", "Table 2b"): 18,
    ("scdiff", "Table 5"): 30,
    ("scdiff", "Table 7"): 12,
    ("scdiff", "Table 8"): 60,
    ("scdiff", "Table 9"): 6,
    ("scdiff", "Table 10"): 30,
    ("scdiff", "Table 11"): 15,
    ("scdiff", "Table 12"): 12,
    ("scldm", "Table 1"): 27,
    ("scldm", "Table 2"): 54,
    ("scldm", "Table 3"): 42,
    ("scldm", "Table 4"): 27,
    ("scldm", "Table 5"): 27,
    ("scldm", "Table 12"): 6,
    ("scldm", "Table 13"): 54,
    ("scldm", "Table 14"): 12,
    ("scldm", "Table 15"): 12,
    ("scldm", "Table 16"): 9,
    ("scldm", "Table 17"): 45,
    ("scldm", "Table 18"): 27,
    ("scldm-icml-notes", "Table 1"): 27,
    ("scldm-icml-notes", "Table 2"): 28,
    ("perturbdiff", "Table 4"): 462,
}


def test_every_table_has_its_numbers():
    values = records.paper_values()
    assert dict(values.groupby(["paper", "table"]).size()) == COUNTS
    assert len(values) == sum(COUNTS.values()) == 1096


def test_no_number_is_there_twice_and_three_are_printed_as_nan():
    values = records.paper_values()
    assert not values.duplicated(["paper", "table", "dataset", "setting", "method", "metric"]).any()
    assert list(values[values["mean"].isna()]["metric"]) == ["ES"] * 3
    assert set(values["direction"]) == {"higher", "lower", "closer to 0.5"}


@pytest.mark.parametrize(("paper", "item"), list(COUNTS))
def test_selection_by_paper_and_table(paper, item):
    assert len(records.paper_values(paper, item)) == COUNTS[paper, item]
    assert not records.paper_table(paper, item).empty


def test_reading_does_not_alter_the_text_of_a_number():
    with (paper_dir() / "values.csv").open(newline="", encoding="utf-8") as stream:
        text = [row["mean"] for row in csv.DictReader(stream)]
    for printed, value in zip(text, records.paper_values()["mean"], strict=True):
        assert printed == "NaN" or float(printed) == value


def test_spot_checks_against_the_printed_tables():
    table = records.paper_values("scdiff", "Table 1").set_index(["method", "dataset"])
    assert table.loc[("scANVI", "PBMC12K"), ["mean", "spread"]].tolist() == [0.9297, 0.0148]
    assert table.loc[("Chance level", "Liver"), "mean"] == 0.3064


def test_figures_inventory_and_heldout():
    assert records.figures().groupby("figure").size().to_dict() == {
        "Figure 2": 84,
        "Figure 3": 12,
        "Figure 5": 84,
        "Figure 6": 84,
        "Figure 7": 84,
    }
    inventory = records.inventory()
    assert len(inventory) == 235 and not inventory.duplicated(["paper", "kind", "id"]).any()
    claims = inventory[inventory["kind"] == "claim"]
    assert sorted(claims["id"]) == sorted(c.id for c in records.load_claims())
    assert all(claims.set_index("id")["paper"][c.id] == c.paper for c in records.load_claims())
    assert len(records.heldout()["perturbdiff_pbmc"]["validation"]) == 4


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ScreproError, match="did you mean scdiff"):
        records.paper_values("scdif")
    with pytest.raises(ScreproError, match="did you mean Table 5"):
        records.paper_values("scdiff", "Tabel 5")
