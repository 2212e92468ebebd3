"""The command line: exit codes, speed, tables and JSON."""

import json
import math
import subprocess
import sys
import time

import pytest

from screpro import cli, paths
from screpro.cli_show import show
from screpro.errors import ScreproError

SOURCE = """\
# %% [markdown]
# # A small page

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}
seeds: list[int] = [0]  # one run per seed [0..100]
rate: float | None = None  # step size [1e-6..1]

# %%
print(seeds)
"""

LIGHT = """
import sys
from screpro import cli
path = sys.argv[1]
for words in (["--help"], ["list"], ["params", path], ["run", path, "-p", "x", "1"]):
    sys.argv[1:] = words
    try:
        cli.main()
    except SystemExit:
        pass
heavy = {"torch", "scanpy", "anndata", "papermill", "pandas", "jupytext"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture
def notebook(tmp_path):
    (tmp_path / "demo").mkdir()
    path = tmp_path / "demo" / "small.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process; gives exit code, stdout and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["screpro", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out = capsys.readouterr()
        return left.value.code or 0, out.out, out.err

    return run


def test_a_wrong_parameter_ends_in_two_seconds_with_code_2(notebook):
    command = [sys.executable, "-m", "screpro.cli", "run", str(notebook), "-p", "rte", "1e-4"]
    seconds = math.inf
    for _ in range(3):  # a busy machine may need a second try
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = min(seconds, time.monotonic() - began)
        if seconds < 2:
            break
    assert done.returncode == 2 and "did you mean rate" in done.stderr and "Traceback" not in done.stderr
    assert seconds < 2


def test_lists_and_sheets_do_without_heavy_packages(notebook):
    done = subprocess.run([sys.executable, "-c", LIGHT, str(notebook)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "rate", "3"], "1e-06 to 1"),
        (["-p", "seeds", "0"], "with the brackets"),
        (["-p", "tier", "ci", "--tier", "laptop"], "given once"),
        (["--tier", "huge"], "ci, laptop, paper"),
        (["-p", "rate"], "a name and a value"),
    ],
)
def test_wrong_arguments_of_run(call, notebook, words, said):
    code, _, err = call("run", notebook, *words)
    assert code == 2 and said in err


def test_unknown_notebook_names_the_nearest(call, monkeypatch):
    from screpro.records import sources

    monkeypatch.setattr(sources, "names", lambda: {"scdiff/annotation": None})
    code, _, err = call("params", "scdiff/anotation")
    assert code == 2 and "did you mean scdiff/annotation" in err


def test_values_may_begin_with_a_dash():
    assert cli.pair_up(["run", "x", "-p", "shift", "-1", "--force"])[2:] == ["-p", "shift\0-1", "--force"]
    assert cli.pair_up(["params", "-p", "x"]) == ["params", "-p", "x"]
    with pytest.raises(ScreproError):
        cli.pair_up(["run", "x", "-p", "shift"])


def test_params_prints_the_sheet_and_a_command(call, notebook):
    code, out, _ = call("params", notebook)
    assert code == 0 and "1e-06 to 1" in out and f"screpro run {notebook}" in out and "-p seeds '[0]'" in out
    code, out, _ = call("params", notebook, "--json")
    rows = json.loads(out)
    assert [r["name"] for r in rows] == ["tier", "seeds", "rate"] and rows[1]["default"] == [0]


def test_run_passes_everything_on_and_reports_a_failed_cell(call, notebook, monkeypatch):
    from screpro.records import execute, runner

    seen = {}

    def fail(name, pairs, **settings):
        seen.update(settings, pairs=pairs)
        raise execute.RunFailed("ValueError: boom", fixable=seen.pop("fixable", False))

    monkeypatch.setattr(runner, "run", fail)
    words = ["-p", "rate", "1e-4", "-p", "seeds", "[0, 1]", "--threads", "1", "--force"]
    code, _, err = call("run", notebook, *words)
    assert code == 1 and "boom" in err
    seen["fixable"] = True
    assert call("run", notebook, *words)[0] == 2  # what the user can put right
    assert seen["pairs"] == [("rate", "1e-4"), ("seeds", "[0, 1]")]
    assert seen["threads"] == 1 and seen["force"] and seen["tier"] is None and seen["out"] is None


def test_every_verb_has_help(call):
    code, out, _ = call("--help")
    assert code == 0
    for verb in ("list", "params", "run", "data", "check", "book", "parity", "metrics", "bench", "doctor"):
        assert verb in out
    for verb in ("list", "get", "verify", "describe"):
        assert call("data", verb, "--help")[0] == 0


def test_data_list_and_describe(call, tmp_path):
    code, out, _ = call("data", "list", "--json")
    names = [row["name"] for row in json.loads(out)]
    assert code == 0 and "pbmc68k_reduced" in names
    code, _, err = call("data", "describe", tmp_path / "none.h5ad")
    assert code == 2 and "none.h5ad" in err
    assert call("data", "get", "pbmc68k_reducd")[0] == 2


def test_check_fails_with_code_1(call, monkeypatch):
    from screpro.records import check

    good = check.Finding("recorded:a/b/c", "accuracy", 0.5, 0.4, 0.6, True)
    bad = check.Finding("recorded:a/b/c", "macro_f1", 0.5, 0.6, 0.7, False, "outside its band")
    monkeypatch.setattr(check, "check", lambda: [good])
    assert call("check")[:2] == (0, "1 of 1 checks passed, 1 runs looked at\n")
    monkeypatch.setattr(check, "check", lambda: [good, bad])
    code, out, _ = call("check")
    assert code == 1 and "outside its band" in out
    code, out, _ = call("check", "--json")
    assert code == 1 and len(json.loads(out)) == 2


def test_recorded_numbers_of_this_repository_are_inside_their_bands(monkeypatch, tmp_path):
    from screpro.records import check

    monkeypatch.setattr(paths, "runs_dir", lambda: tmp_path)  # what was run on this machine is not at stake
    assert [f for f in check.check() if not f.ok] == []


def test_parity_fails_above_its_tolerance(call, monkeypatch, tmp_path):
    from screpro import parity

    for ratio, expected in ((1e-6, 0), (2e-4, 1), (math.nan, 1)):
        monkeypatch.setattr(parity, "check_file", lambda path, r=ratio: [parity.Row("x0", r, 1.0, r)])
        code, out, _ = call("parity", tmp_path / "a.npz", tmp_path / "b.npz", "--json")
        assert code == expected and len(json.loads(out)) == 2


@pytest.fixture
def pair(tmp_path):
    """Files of real and of generated counts of two types."""
    import numpy as np
    from anndata import AnnData

    rng = np.random.default_rng(0)
    files = []
    for name in ("real", "generated"):
        adata = AnnData(rng.poisson(3.0, (40, 12)).astype(np.float32))
        adata.obs["cell_type"] = np.repeat(["A", "B"], 20)
        files.append(tmp_path / f"{name}.h5ad")
        adata.write_h5ad(files[-1])
    return files


def test_metrics_prints_tables_and_writes_rows(call, pair, tmp_path):
    code, out, err = call("metrics", *pair, "--by", "cell_type", "--json", tmp_path / "rows.json")
    assert (code, err) == (0, "")  # progress is for terminals
    lines = out.splitlines()
    assert lines[0] == "scldm, all: 40 real and 40 generated cells, n = 20, 12 genes"
    assert lines[2].split("  ")[0] == "score" and "floor: shuffled" in lines[2] and "floor: control" not in lines[2]
    assert any(line.startswith("scldm, mean over classes") for line in lines)
    assert [line.split()[:3] for line in lines if line.startswith("cell_type=")] == [
        ["cell_type=A", "20", "20"],
        ["cell_type=B", "20", "20"],
    ]
    assert "dual gap" in out
    rows = json.loads((tmp_path / "rows.json").read_text())
    (row,) = (row for row in rows if row["metric"] == "w2_exact" and row["by"] == "all")
    assert next(line for line in lines if line.startswith("w2_exact")).split()[4] == f"{row['value']:.4g}"
    assert {row["by"] for row in rows} == {"all", "mean over classes", "cell_type=A", "cell_type=B"}
    assert row["floor_control"] is None and row["n_equal"] == 20


def test_json_without_a_file_goes_to_standard_output(call, pair, tmp_path, monkeypatch):
    from screpro.metrics import suites

    few = [score for score in suites.SCORES if score.name == "gene_variance_log2_ratio"]
    monkeypatch.setattr(suites, "SCORES", few)
    monkeypatch.chdir(tmp_path)
    words = ["metrics", *pair, "--suite", "scldm"]
    code, out, err = call(*words, "--json")
    rows = json.loads(out)
    assert code == 0 and "dual gap" in err  # the notes
    assert call("metrics", *pair, "--json", "--suite", "scldm")[1] == out == call(*words, "--json", "-")[1]
    call(*words, "--json", "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    (row,) = rows
    assert row["floor_mean"] == "inf" and row["floor_control"] is None
    assert not (tmp_path / "-").exists()


def test_bench_prints_a_table_or_json_or_writes_a_file(call, tmp_path, monkeypatch):
    from screpro import bench

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "run", lambda what: [{"operation": what, "ratio": 2.0}])
    rows = [{"operation": "pca", "ratio": 2.0}]
    code, out, _ = call("bench", "pca", "--json")
    assert code == 0 and json.loads(out) == rows and not list(tmp_path.iterdir())
    code, out, _ = call("bench", "pca", "--json", "made/pca.timings.json")
    assert out.splitlines()[0].split() == ["operation", "ratio"]
    content = json.loads((tmp_path / "made" / "pca.timings.json").read_text())
    assert content["rows"] == rows and content["schema"] == "screpro.timings/1" and content["what"] == "pca"


def test_metrics_of_perturbations(call, pair):
    words = ["--suite", "all", "--perturbation", "cell_type", "--control", "A"]
    code, _, err = call("metrics", *pair, *words)
    assert code == 2 and "REAL control cells" in err  # the generated file has control cells of its own
    import anndata

    made = anndata.read_h5ad(pair[1])
    made[made.obs["cell_type"] == "B"].copy().write_h5ad(pair[1])
    code, out, _ = call("metrics", *pair, *words)
    assert code == 0 and "celleval, all: 20 real and 20 generated cells" in out and "floor: control" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "both"], "scldm, celleval, all"),
        (["--by", "donor"], "cell_type"),
        (["--json", "nowhere/rows.json"], "make the folder"),
        (["--hvg", "99"], "choose fewer genes"),
        (["--hvg", "0"], "choose more genes"),
        (["--hvg", "-3"], "choose more genes"),
        (["--control", "A"], "--suite celleval"),
    ],
)
def test_wrong_arguments_of_metrics(call, pair, words, said):
    code, out, err = call("metrics", *pair, *words)
    assert code == 2 and said in err and not out


def test_a_score_that_is_not_defined_is_a_dash():
    from screpro import cli_metrics

    row = {
        "metric": "gene_variance_pearson",
        "variant": "",
        "direction": "higher",
        "value": 0.9,
        "floor_mean": math.nan,
    }
    line = cli_metrics._line(row)
    assert line["value"] == 0.9 and line["floor: mean"] == "–"


def test_metrics_of_files_that_are_not_there_or_not_h5ad(call, pair, tmp_path):
    code, _, err = call("metrics", pair[0], tmp_path / "none.h5ad")
    assert code == 2 and "none.h5ad" in err
    (tmp_path / "text.h5ad").write_text("no cells")
    code, _, err = call("metrics", tmp_path / "text.h5ad", pair[1])
    assert code == 2 and "text.h5ad" in err


def test_metrics_of_hdf5_that_is_not_anndata_and_of_cells_without_x(call, pair, tmp_path):
    import anndata
    import h5py

    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["matrix/data"] = [1, 2, 3]
    code, _, err = call("metrics", tmp_path / "other.h5ad", pair[1])
    assert code == 2 and "other.h5ad" in err and "write_h5ad" in err
    cells = anndata.read_h5ad(pair[0])
    cells.layers["counts"], cells.X = cells.X, None
    cells.write_h5ad(tmp_path / "layer.h5ad")
    code, _, err = call("metrics", tmp_path / "layer.h5ad", pair[1])
    assert code == 2 and "real cells have their expression in X" in err


@pytest.mark.parametrize("content", ["text", "npy", "pickle", "bare", "no json"])
def test_parity_of_other_files_gives_no_advice_to_load_pickles(call, tmp_path, content):
    import numpy as np

    path = tmp_path / "vectors.npz"
    if content == "text":
        path.write_text("no vectors")
    elif content == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    else:
        config = {"pickle": {"config": np.array({}, dtype=object)}, "bare": {}, "no json": {"config": "here"}}[content]
        np.savez(path, **config, **{"weight/a": np.ones(3)})
    code, _, err = call("parity", path)
    assert code == 2 and "vectors.npz" in err and "pickle" not in err and "config" in err


def test_data_describe_prints_the_licence_of_a_set(call, tmp_path, monkeypatch):
    monkeypatch.setenv("SCREPRO_CACHE", str(tmp_path))
    code, out, _ = call("data", "describe", "scdiff_pbmc12k")
    assert code == 0 and "  licence: " in out and "  not here: " in out
    code, out, _ = call("data", "describe", "scdiff_pbmc12k", "--json")
    assert code == 0 and json.loads(out)["registry"]["citation"]
    code, out, _ = call("data", "describe", "gene2go", "--json")
    assert code == 0 and [row["file"] for row in json.loads(out)] == ["gene2go.gz", "Homo_sapiens.gene_info.gz"]


def test_doctor_looks_at_everything(call):
    code, out, _ = call("doctor", "--json")
    rows = json.loads(out)
    assert {"python", "device", "disk", "data"} <= {r["check"] for r in rows}
    assert code == any(r["status"] == "problem" for r in rows)


def test_tables_and_json_of_odd_values(capsys):
    import numpy as np

    rows = [{"a": math.nan, "b": np.float64(0.5), "c": [1, 2], "d": None, "e": True}]
    show([rows[0] | {"f": math.inf, "g": np.float64(-math.inf)}], as_json=True)
    expected = {"a": None, "b": 0.5, "c": [1, 2], "d": None, "e": True, "f": "inf", "g": "-inf"}
    assert json.loads(capsys.readouterr().out) == [expected]
    show(rows, as_json=False)
    assert capsys.readouterr().out.split() == ["a", "b", "c", "d", "e", "nan", "0.5", "1,", "2", "yes"]
    show([], as_json=False)
    assert capsys.readouterr().out == "nothing to show\n"
