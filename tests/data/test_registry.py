"""The registry is complete, consistent with itself, and says where everything comes from."""

import csv
import os
import subprocess
import sys
import tomllib

import pytest

from screpro import data, paths
from screpro.data import fetch, registry
from screpro.errors import ScreproError

SMALL = {
    *("pbmc_facs_zheng", "pbmc3k", "kang_9k", "kang_1k", "papalexi_thp1", "norman_k562"),
    *("mca_gut", "haber_sie_1k", "pbmc_10x_3tech", "cellbench_5cl"),
}

GOOD = {
    "title": "Tiny",
    "kind": "paper",
    "loader": "h5ad",
    "source": "here",
    "licence": "unknown",
    "citation": "nobody",
    "cells": 1,
    "genes": 1,
    "split": "none",
    "preprocessing": "none",
    "options": {"counts": ["X"]},
    "files": [{"name": "tiny.h5ad", "url": "http://127.0.0.1:9/tiny.h5ad"}],
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_CACHE", str(tmp_path / "cache"))


def write(tmp_path, tables: dict):
    """A registry file of inline tables, made without a TOML writer."""

    def text(value) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f'"{key}" = {text(each)}' for key, each in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return f'"{value}"' if isinstance(value, str) else str(value)

    path = tmp_path / "registry.toml"
    lines = [
        f"[{name}]\n" + "".join(f"{key} = {text(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    ]
    path.write_text("\n".join(lines))
    tomllib.loads(path.read_text())
    return path


def test_every_paper_set_has_an_entry():
    count = dict.fromkeys(("scdiff", "openproblems", "scldm", "perturbdiff"), 0)
    for entry in data.entries().values():
        if entry.kind == "paper":
            count[entry.name.split("_")[0]] += 1
    assert count["scdiff"] == 15
    assert count["openproblems"] >= 3
    assert count["scldm"] == 7 + 1  # seven of table 6 and the census its auto-encoder is pre-trained on
    assert count["perturbdiff"] == 4


def test_every_table_of_values_finds_its_data_set():
    """Wherever the papers print a number for a data set, the registry knows which set that is."""
    table = paths.root() / "data" / "paper" / "values.csv"
    if not table.is_file():
        pytest.skip("data/paper/values.csv is not here")
    with table.open(newline="", encoding="utf-8") as handle:
        cells = {(row["paper"], row["dataset"], row["table"]) for row in csv.DictReader(handle)}
    for paper, dataset, item in sorted(cells):
        registry.of_paper(paper, dataset, item)


def test_one_name_in_two_tables_can_mean_two_sets():
    assert registry.of_paper("scdiff", "Pancreas", "Table 1").name == "scdiff_pancreas"
    assert registry.of_paper("scdiff", "Pancreas", "Table 12").name == "openproblems_pancreas_indrop1"
    assert registry.of_paper("scdiff", "PBMC", "Table 12").name == "scdiff_pbmc1k"
    assert registry.of_paper("scdiff", "PBMC", "Table 2b").name == "scdiff_pbmc_kang"
    for wrong in (("scdiff", "Tahoe", None), ("nobody", "PBMC", None)):
        with pytest.raises(ScreproError):
            registry.of_paper(*wrong)
    uses = [(u.paper, u.dataset, item) for e in data.entries().values() for u in e.used_in for item in u.items]
    assert len(uses) == len(set(uses))


def test_entries_say_what_a_reader_needs():
    from screpro.data.paper_sets import READERS

    assert set(READERS) == set(registry.LOADERS) - {"embedded", "recipe"}
    for entry in data.entries().values():
        assert all(
            getattr(entry, each) for each in ("title", "source", "licence", "citation", "split", "preprocessing")
        )
        assert not entry.doi or entry.doi.startswith("10.")
        if entry.loader in ("h5ad", "gears_zip"):
            assert entry.options["counts"]
        if entry.kind == "paper":
            assert not entry.stands_in_for
        for other in entry.stands_in_for:
            assert data.get(other).kind == "paper"


def test_small_sets_are_pinned_and_have_recipes():
    from screpro.data.recipes import FILES

    pinned = {entry.name: entry for entry in data.entries().values() if entry.kind == "repository"}
    assert set(pinned) == SMALL == set(FILES)
    for name, entry in pinned.items():
        assert {file.name for file in entry.files} == set(FILES[name])
        assert all(len(file.sha256) == 64 and file.bytes > 0 for file in entry.files)
        assert entry.bytes == sum(file.bytes for file in entry.files)


def test_embedded_set_loads_with_the_recorded_hash():
    entry = data.get("pbmc68k_reduced")
    adata = data.load("pbmc68k_reduced")
    assert adata.shape == (entry.cells, entry.genes) == (700, 765)
    assert adata.uns["data_hash"] == data.data_hash("pbmc68k_reduced") == entry.sha256
    assert isinstance(adata.uns["source"], str)
    assert data.verify("pbmc68k_reduced") == [("pbmc68k_reduced", "ok")]
    assert data.available("pbmc68k_reduced") == "embedded"


def test_another_column_can_be_the_label():
    adata = data.load("pbmc68k_reduced", label_key="cell_type", batch_key="cell_type")
    assert (adata.obs["batch"] == adata.obs["cell_type"]).all()
    with pytest.raises(ScreproError, match="celltype"):
        data.load("pbmc68k_reduced", label_key="celltype")


def test_unknown_name_names_the_nearest():
    with pytest.raises(ScreproError, match="scdiff_liver"):
        data.load("scdif_liver")
    with pytest.raises(ScreproError, match="data list"):
        data.get("zzzzzzzzzzzz")


def test_a_misspelt_file_names_the_nearest(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_cells.h5ad").write_bytes(b"x")
    with pytest.raises(ScreproError, match=r"did you mean my_cells\.h5ad"):
        registry.data_hash("my_cells")
    with pytest.raises(ScreproError, match=r"did you mean .*my_cells\.h5ad"):
        registry.data_hash("my_cell.h5ad")


def test_sets_without_a_recipe_are_taken_where_somebody_put_them_and_only_those(monkeypatch, tmp_path):
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path))
    monkeypatch.setenv("SCREPRO_CACHE", str(tmp_path / "cache"))
    assert data.available("worm_embryo_neurons") == "manual"
    with pytest.raises(ScreproError, match="instead of the name"):
        data.load("worm_embryo_neurons")
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "worm_embryo_neurons.h5ad").write_bytes(b"another file")
    with pytest.raises(ScreproError, match="sha256"):
        data.load("worm_embryo_neurons")


@pytest.mark.parametrize("name", ["worm_embryo_neurons", "pancreas_endocrinogenesis"])
def test_prepared_files_load(name, monkeypatch, tmp_path):
    folder = fetch.data_folder()
    file = folder and folder.parent / "prepared" / f"{name}.h5ad"
    if not file or not file.is_file():
        pytest.skip("needs the prepared files beside SCREPRO_DATA")
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path))
    (tmp_path / "prepared").symlink_to(file.parent)
    adata, entry = data.load(name), data.get(name)
    assert adata.shape == (entry.cells, entry.genes) and set(entry.labels) <= set(adata.obs)
    assert adata.uns["data_hash"] == entry.files[0].sha256


def test_state_and_hash_of_what_is_not_here(monkeypatch, tmp_path):
    monkeypatch.delenv("SCREPRO_DATA", raising=False)
    assert data.available("scdiff_pbmc_kang") == "to download"
    assert data.available("scdiff_hlca_subset") == "manual"
    assert data.data_hash("scdiff_pbmc_kang") == "unrecorded"
    ((name, status),) = data.verify("scdiff_hlca_subset")
    assert name == "HLCA_zstd_sub.h5ad" and status.startswith("manual")
    with pytest.raises(ScreproError, match="Google Drive"):
        data.load("scdiff_hlca_subset")
    # several files: the hash is known without any of them being here
    assert len(data.data_hash("cellbench_5cl")) == 64
    hashes = {file.name: file.sha256 for file in data.get("cellbench_5cl").files}
    assert data.data_hash("cellbench_5cl") == fetch.combined_hash(hashes)


def test_hash_of_a_path_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "x.h5ad"
    path.write_bytes(b"abc")
    assert data.data_hash(path) == data.data_hash(str(path)) == fetch.sha256_of(path)
    with pytest.raises(ScreproError):
        data.data_hash(tmp_path / "none.h5ad")


def test_verify_reports_without_raising(monkeypatch, tmp_path):
    (file,) = data.get("haber_sie_1k").files
    place = tmp_path / "mine" / file.place
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not it")
    monkeypatch.setenv("SCREPRO_DATA", str(tmp_path / "mine"))
    assert data.available("haber_sie_1k") == "in SCREPRO_DATA"
    ((_, status),) = data.verify("haber_sie_1k")
    assert file.sha256 in status and fetch.sha256_of(place) in status
    with pytest.raises(ScreproError, match=file.sha256):
        data.load("haber_sie_1k")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "other"}, "kind"),
        ({"loader": "other"}, "loader"),
        ({"colour": "red"}, "colour"),
        ({"values": "z"}, "values"),
        ({"files": []}, "no file"),
        ({"files": [{"name": "../x", "url": "http://a/x"}]}, "relative"),
        ({"files": [{"name": "/x", "url": "http://a/x", "folder": "/etc"}]}, "relative"),
        ({"files": [{"name": "x"}]}, "obtain"),
        ({"files": [{"url": "http://a/x"}]}, "name"),
        ({"files": [{"name": "x", "url": "http://a/x", "sha256": "abc"}]}, "64"),
        ({"files": [{"name": "x", "url": "http://a/x", "size": 3}]}, "size"),
        ({"files": [{"repository": "a/b", "commit": "abc", "path": "x"}]}, "commit"),
        ({"used_in": ["scdiff | PBMC"]}, "used_in"),
        ({"optional": ["batch"]}, "optional"),
        ({"stands_in_for": ["nothing"]}, "nothing"),
    ],
)
def test_a_bad_entry_is_one_clear_error(tmp_path, change, told):
    with pytest.raises(ScreproError, match=told):
        registry.read(write(tmp_path, {"tiny": GOOD | change}))


def test_missing_field_shared_place_and_broken_toml(tmp_path):
    assert registry.read(write(tmp_path, {"tiny": GOOD}))["tiny"].files[0].place == "files/tiny/tiny.h5ad"
    for field in ("title", "licence", "cells"):
        with pytest.raises(ScreproError, match=field):
            registry.read(write(tmp_path, {"tiny": {key: GOOD[key] for key in GOOD if key != field}}))
    one = GOOD | {"files": [{"name": "x", "url": "http://a/1", "folder": "f"}]}
    two = GOOD | {"files": [{"name": "x", "url": "http://a/2", "folder": "f"}]}
    with pytest.raises(ScreproError, match="share"):
        registry.read(write(tmp_path, {"one": one, "two": two}))
    (tmp_path / "registry.toml").write_text("[a\n")
    with pytest.raises(ScreproError, match="TOML"):
        registry.read(tmp_path / "registry.toml")


def test_importing_the_registry_is_cheap():
    code = (
        "import sys\nfrom screpro import data\ndata.entries()\ndata.data_hash('kang_9k')\ndata.available('kang_9k')\n"
        "print([m for m in ('torch', 'scanpy', 'anndata', 'pandas', 'pooch', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.original
@pytest.mark.parametrize("name", ["norman_k562", "haber_sie_1k"])
def test_small_sets_from_their_original_files(name):
    if data.available(name) not in ("in SCREPRO_DATA", "cached"):
        pytest.skip(f"the files of {name} are not here (set SCREPRO_DATA)")
    entry, adata = data.get(name), data.load(name)
    assert adata.shape == (entry.cells, entry.genes)
    assert set(entry.labels) <= set(adata.obs)
    assert adata.X.format == "csr" and adata.X.dtype == "float32"
    assert adata.uns["data_hash"] == data.data_hash(name)
    assert all(status.startswith("ok") for _, status in data.verify(name))


def test_the_readme_of_the_data_folder_lists_every_set_with_its_licence():
    readme = paths.root() / "data" / "README.md"
    if not readme.is_file():
        pytest.skip("data/README.md is not here")
    lines = readme.read_text(encoding="utf-8").splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `") and line.count("|") == 6}
    assert set(rows) == set(data.entries())
    for name, entry in data.entries().items():
        assert entry.licence in rows[name] and entry.citation in rows[name] and entry.title in rows[name]
