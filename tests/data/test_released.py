"""Released weights: every entry is complete, arrives as data does, and is read without being run."""

import pytest

from screpro import data
from screpro.data import fetch, released
from screpro.errors import ScreproError


def test_every_entry_can_be_brought_and_run():
    networks = {name: own for name, own in released.entries().items() if own.cells}
    assert len(networks) == 8  # five data sets of the paper with a flow, three sizes of the Census
    places = [file.place for own in networks.values() for file in own.files]
    for name, own in networks.items():
        names = [file.name for file in own.files]
        assert sum(each.endswith(".ckpt") for each in names) == sum(each.endswith(".yaml") for each in names) == 1
        assert data.get(own.cells).kind == "paper" and name not in data.entries()
        assert not any(each.endswith((".pkl", ".pickle", ".pt")) for each in (*names, *own.earlier))
        for file in own.files:
            assert file.url.startswith("https://") and file.url.endswith(
                file.place.removeprefix(f"weights/{own.paper}/")
            )
    assert len(set(places)) == len(places) - 2  # the gene table of the Census belongs to all three


def test_files_somebody_put_there_are_found_checked_and_locked(tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path))
    monkeypatch.setenv("SCREPRO_CACHE", str(tmp_path / "cache"))
    name = "scldm_weights_census_20M"
    assert released.available(name) == "to download"
    for file in released.get(name).files:
        (tmp_path / file.place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.place).write_bytes(file.name.encode())
    assert released.available(name) == "in SCREPRO_DATA"
    found = released.bring(name)
    assert found["20M.ckpt"].read_bytes() == b"20M.ckpt"
    assert all(status.startswith(("ok", "present")) for _, status in released.verify(name))


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ScreproError, match="scldm_weights_census_70M"):
        released.get("scldm_weights_census_7OM")


def test_the_farthest_place_decides(tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path))
    here = fetch.DataFile("a", "a", url="https://a")
    (tmp_path / "a").write_bytes(b"a")
    far, by_hand = fetch.DataFile("b", "b", url="https://b"), fetch.DataFile("c", "c", obtain="ask")
    assert fetch.available([here]) == "in SCREPRO_DATA"
    assert fetch.available([here, far]) == "to download"
    assert fetch.available([far, by_hand, here]) == "manual"
    assert fetch.status(by_hand) == "manual: ask"
