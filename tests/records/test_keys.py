"""What decides whether a run has to be executed again."""

import pytest

from screpro.errors import ScreproError
from screpro.records import keys, runner

TREE_HASH = keys.tree_hash

SOURCE = """\
# %% [markdown]
# # A small page

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}
seeds: list[int] = [0]  # one run per seed [0..100]
rate: float | None = None  # step size [1e-6..1]

# %%
kept = []
print("kept", kept)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "tree_hash", lambda: "library")
    monkeypatch.setattr(keys, "constraints_hash", lambda: "versions")
    monkeypatch.setenv("SCREPRO_DEVICE", "cpu")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "small.py").write_text(SOURCE)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# # A small page", "# # Other words", True),
        ('# %% tags=["parameters"]', '# %% tags=["parameters", "hide-input"]', True),
        ('print("kept", kept)', 'print("kept!", kept)', False),
        ("seeds: list[int] = [0]", "seeds: list[int] = [1]", False),
    ],
)
def test_key_covers_code_and_parameters_but_not_prose(place, old, new, same):
    path = place / "demo" / "keyed.py"
    path.write_text(SOURCE)
    before = runner.plan(path).key
    path.write_text(SOURCE.replace(old, new))
    assert (runner.plan(path).key == before) is same


def test_key_covers_library_constraints_tier_device_and_data(place, monkeypatch, tmp_path):
    path = place / "demo" / "small.py"
    seen = {runner.plan(path).key, runner.plan(path, tier="laptop").key, runner.plan(path, {"rate": 0.5}).key}
    with monkeypatch.context() as patch:
        patch.setattr(keys, "tree_hash", lambda: "another library")
        seen.add(runner.plan(path).key)
    with monkeypatch.context() as patch:
        patch.setattr(keys, "constraints_hash", lambda: "others")
        seen.add(runner.plan(path).key)
    monkeypatch.setenv("SCREPRO_DEVICE", "cuda")
    seen.add(runner.plan(path).key)
    source = place / "demo" / "with_data.py"
    source.write_text(SOURCE.replace("seeds: list", 'dataset: str = "pbmc68k_reduced"  # cells\nseeds: list'))
    own = tmp_path / "own.h5ad"
    for content in (b"one", b"two"):
        own.write_bytes(content)
        todo = runner.plan(source, {"dataset": str(own)})
        assert todo.data == {str(own): keys.file_hash(own)}
        seen.add(todo.key)
    assert len(seen) == 8
    with pytest.raises(ScreproError, match="missing"):
        runner.plan(source, {"dataset": str(tmp_path / "missing.h5ad")})


def test_tree_hash_changes_with_the_library_only(tmp_path, monkeypatch):
    package = tmp_path / "screpro"
    (package / "records").mkdir(parents=True)
    monkeypatch.setattr(keys, "__file__", str(package / "records" / "keys.py"))
    (package / "a.py").write_text("1")
    first = TREE_HASH()
    (package / "notes.md").write_text("words")
    assert TREE_HASH() == first
    (package / "a.py").write_text("2")
    second = TREE_HASH()
    (package / "registry.toml").write_text("")
    assert len({first, second, TREE_HASH()}) == 3


def test_tier_is_given_once(place):
    with pytest.raises(ScreproError, match="given once"):
        runner.plan(place / "demo" / "small.py", {"tier": "ci"}, tier="laptop")


def test_relative_data_path_is_made_whole(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.h5ad").write_bytes(b"cells")
    source = place / "demo" / "with_path.py"
    source.write_text(SOURCE.replace("seeds: list", 'dataset: str = "pbmc68k_reduced"  # cells\nseeds: list'))
    assert runner.plan(source, [("dataset", "own.h5ad")]).values["dataset"] == str(tmp_path / "own.h5ad")


def test_every_path_is_made_whole_and_cells_that_a_page_simulates_need_no_file(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("own.h5ad", "terms.csv", "latent.npy"):
        (tmp_path / name).write_bytes(b"content")
    extra = """datasets: list[str] | None = None  # registry names, simulated, or paths
graph_file: str | None = None  # a table
embeddings: list[str] | None = None  # each name=file
type_key: str = "none"  # a word that is no path
"""
    source = place / "demo" / "with_paths.py"
    source.write_text(SOURCE.replace("seeds: list", extra + "seeds: list"))
    given = {"datasets": '["simulated", "own.h5ad"]', "graph_file": "terms.csv", "embeddings": '["mine=latent.npy"]'}
    (tmp_path / "celltype").mkdir()
    todo = runner.plan(source, {**given, "type_key": "celltype"})
    assert todo.values["datasets"] == ["simulated", str(tmp_path / "own.h5ad")]
    assert list(todo.data) == [str(tmp_path / name) for name in ("own.h5ad", "terms.csv", "latent.npy")]
    (tmp_path / "terms.csv").write_bytes(b"edited")
    assert runner.plan(source, {**given, "type_key": "celltype"}).key != todo.key
    assert todo.values["graph_file"] == str(tmp_path / "terms.csv")
    assert todo.values["embeddings"] == [f"mine={tmp_path / 'latent.npy'}"]
    assert todo.values["type_key"] == "celltype"
    for name, value in (("graph_file", "trems.csv"), ("embeddings", '["mine=letant.npy"]')):
        with pytest.raises(ScreproError, match=f"{name} names a file"):
            runner.plan(source, {name: value})
