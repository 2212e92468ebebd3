"""Published packages run by another Python: what goes there, what comes back, and what is said when it fails.

Both packages are stood in for by modules of a few lines that record what they were given.
"""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from screpro.baselines import response_packages, responses
from screpro.baselines.response_packages import PACKAGES, missing
from screpro.data.populations import Populations
from screpro.errors import ScreproError
from screpro.second_python import run_script
from screpro.tasks import responses_experiment as experiment

NAMES = list(PACKAGES)


@pytest.fixture
def cells():
    """3 contexts, 2 batches, perturbations 0 to 2; (context 2, batch 1) has no control cells of its own."""
    p, k, b, _ = (a.ravel() for a in np.meshgrid([0, 1, 2], [0, 1, 2], [0, 1], range(3), indexing="ij"))
    kept = ~((p == 0) & (k == 2) & (b == 1))
    p, k, b = p[kept], k[kept], b[kept]
    x = np.zeros((len(p), 5))
    x[:, 0] = np.arange(1, len(p) + 1)  # tells which cell it is
    x[:, 1:4] = np.stack([p, k, b], 1)
    x = sp.csr_matrix(x, dtype=np.float32)
    return Populations(x, x, p, k, b, tuple("abcde"), ("control", "q", "r"), ("t", "u", "v"), ("d", "e"))


@pytest.fixture
def parts(cells):
    """(train, asked, controls): perturbed cells of the last context and some control cells are asked for."""
    asked = cells.take(np.flatnonzero((cells.context == 2) & (cells.perturbation < 2)))
    return cells, asked, cells.take(np.flatnonzero(cells.is_control & (cells.context == 2)))


def script(folder: Path, body: str) -> Path:
    """A script in the place of a package's, which has its arrays as `given` and its settings as `settings`."""
    file = folder / "stand_in.py"
    file.write_text(
        "import json, sys\nimport numpy as np\n"
        "settings, source, target, threads = json.loads(sys.argv[1]), *sys.argv[2:]\n"
        "given = dict(np.load(source, allow_pickle=False))\n" + body,
        encoding="utf-8",
    )
    return file


def stand_in(monkeypatch, folder: Path, name: str, body: str) -> None:
    package = PACKAGES[name]._replace(script=str(script(folder, body)))  # an absolute path stays what it is
    monkeypatch.setitem(response_packages.PACKAGES, name, package)
    monkeypatch.setenv(package.variable, sys.executable)


def answer(name, parts, **options):
    train, asked, controls = parts
    return responses.run(name, train, asked=asked, controls=controls, seed=3, options=options)


# --- what is missing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_without_its_python_a_method_says_what_to_do(monkeypatch, parts, name):
    monkeypatch.delenv(PACKAGES[name].variable, raising=False)
    with pytest.raises(ScreproError) as error:
        answer(name, parts)
    for said in (PACKAGES[name].variable, "is not set", f"pip install {PACKAGES[name].requirement}"):
        assert said in str(error.value)


def test_methods_that_cannot_run_are_left_out_with_a_line_each(monkeypatch, capsys, tmp_path):
    for package in PACKAGES.values():
        monkeypatch.delenv(package.variable, raising=False)
    assert set(experiment.OPTIONAL) == set(NAMES) and not set(NAMES) & set(experiment.METHODS)
    assert experiment.runnable() == experiment.METHODS and not capsys.readouterr().out
    assert experiment.runnable(["mean", "arc_state"]) == ["mean"]
    assert capsys.readouterr().out == "not run: arc_state (SCREPRO_ARC_STATE_PYTHON is not set)\n"
    # a Python without the package, a Python with it, no Python
    monkeypatch.setitem(response_packages.PACKAGES, "arc_state", PACKAGES["arc_state"]._replace(module="no_such_one"))
    monkeypatch.setenv("SCREPRO_ARC_STATE_PYTHON", sys.executable)
    (tmp_path / "cellflow.py").write_text("raise RuntimeError('is looked for, not imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SCREPRO_CELLFLOW_PYTHON", sys.executable)
    assert experiment.runnable() == [*experiment.METHODS, "cellflow_tools"]
    assert "has no package no_such_one" in capsys.readouterr().out
    monkeypatch.setenv("SCREPRO_CELLFLOW_PYTHON", str(tmp_path / "no_python"))
    assert "no_python" in missing("cellflow_tools") and missing("mean") is None


# --- what goes there and comes back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_cells_and_labels_go_there_and_cells_come_back_in_order(monkeypatch, tmp_path, parts, name):
    """The stand-in answers with each cell's own labels and the number of the control cell that it starts from."""
    body = f"""
np.savez({str(tmp_path / "seen.npz")!r}, settings=sys.argv[1], threads=threads, **given)
first = given['start_data'][given['start_indptr'][:-1]]  # gene a is in every cell
labels = [given[f'asked_{{n}}'] for n in ('perturbation', 'context', 'batch')]
np.savez(target, cells=np.stack([first[given['asked_start']], *labels, -np.ones(len(labels[0]))], 1))
"""
    stand_in(monkeypatch, tmp_path, name, body)
    train, asked, _ = parts
    made = answer(name, parts, steps=7)
    assert made.dtype == np.float32 and made[:, 4].tolist() == [0] * len(asked)  # below 0 is cut off
    assert made[:, 1:4].tolist() == np.stack([asked.perturbation, asked.context, asked.batch], 1).tolist()
    # every answer starts from a control cell of its context and batch; batch 1 has none there and takes the context's
    rows = [train.x[:, 0].toarray().ravel().tolist().index(number) for number in made[:, 0]]
    assert train.is_control[rows].all() and (train.context[rows] == asked.context).all()
    own = asked.batch == 0
    assert (train.batch[rows][own] == 0).all() and len({*made[own & (asked.perturbation == 1), 0]}) == 3
    seen = dict(np.load(tmp_path / "seen.npz", allow_pickle=False))
    settings = json.loads(str(seen["settings"]))
    assert settings["seed"] == 3 and settings["steps"] == 7 and str(seen["threads"]) == "1"
    x = sp.csr_matrix((seen["train_data"], seen["train_indices"], seen["train_indptr"]), shape=seen["train_shape"])
    x = x.toarray()
    known = {name: seen[f"train_{name}"] for name in ("perturbation", "context", "batch")}
    assert x[:, 1].tolist() == known["perturbation"].tolist()
    perturbed = known["perturbation"] > 0
    assert sorted(x[perturbed, 0]) == sorted(train.x[np.flatnonzero(~train.is_control), 0].toarray().ravel())
    assert x[perturbed, 2].tolist() == known["context"][perturbed].tolist()
    places = {(int(k), int(b)) for k, b in zip(known["context"][~perturbed], known["batch"][~perturbed], strict=True)}
    assert places == {(k, b) for k in range(3) for b in range(2)}  # control cells stand for every context and batch
    lent = ~perturbed & (known["context"] == 2) & (known["batch"] == 1)
    assert set(x[lent, 3]) == {1} and len(x) == len(train) + lent.sum()  # of the same batch, as `control_pools` says


def test_values_of_moved_cells_keep_their_mean(monkeypatch, tmp_path, parts):
    """`keep_rest` moves control cells: what is below 0 is removed with means kept. Otherwise it is cut off."""
    body = "n = len(given['asked_batch'])\nnp.savez(target, cells=np.tile((np.arange(n) % 3 - 0.5)[:, None], 5))"
    stand_in(monkeypatch, tmp_path, "cellflow_tools", body)
    cut, kept = (answer("cellflow_tools", parts, keep_rest=keep) for keep in (False, True))
    assert cut.min() == kept.min() == 0
    assert (cut.mean(), kept.mean()) == (pytest.approx(2 / 3), pytest.approx(1 / 2))  # of -.5, .5 and 1.5


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print('much before'); raise ValueError('no such solver: otfm')", "ValueError: no such solver: otfm"),
        ("sys.exit(9)", "exit code 9"),
        ("pass", "it wrote nothing"),
        ("np.savez(target, cells=np.zeros((2, 5)))", r"\(2, 5\)"),
        ("np.savez(target, other=np.zeros(3))", "no cells"),
        ("np.savez(target, cells=np.full((len(given['asked_batch']), 5), np.nan))", "not finite"),
    ],
)
def test_a_failure_there_is_one_error_here(monkeypatch, tmp_path, parts, body, said):
    stand_in(monkeypatch, tmp_path, "arc_state", body)
    with pytest.raises(ScreproError, match=said):
        answer("arc_state", parts)


def test_only_the_end_of_what_a_script_says_is_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_PYTHON", sys.executable)
    file = script(tmp_path, "sys.stderr.write('x' * 5000 + 'the end'); sys.exit(1)")
    with pytest.raises(ScreproError, match="xthe end") as error:
        run_script(file, "{}", given={}, variable="SOME_PYTHON", threads=1, rule="It runs.", fix="mend it")
    assert len(str(error.value)) < 1000
    monkeypatch.setenv("SOME_PYTHON", str(tmp_path / "no_python"))
    with pytest.raises(ScreproError, match="no_python"):
        run_script(file, "{}", given={}, variable="SOME_PYTHON", threads=1, rule="It runs.", fix="mend it")


def test_modules_beside_a_script_do_not_hide_packages(monkeypatch, tmp_path):
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.setenv("SOME_PYTHON", sys.executable)
    file = script(tmp_path, "np.savez(target, threads=threads)")
    _, made = run_script(file, "{}", given={}, variable="SOME_PYTHON", threads=2, rule="It runs.", fix="mend it")
    assert str(made["threads"]) == "2"


@pytest.mark.parametrize(("name", "options"), [("arc_state", {"heads": 3}), ("cellflow_tools", {"steps": 0})])
def test_sizes_are_refused_before_anything_runs(monkeypatch, parts, name, options):
    monkeypatch.delenv(PACKAGES[name].variable, raising=False)
    with pytest.raises(ScreproError, match="at least 1"):
        answer(name, parts, **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_scripts_import_nothing_of_ours(name):
    file = Path(response_packages.__file__).with_name(PACKAGES[name].script)
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not [name for name in names if name.split(".")[0] == "screpro"]
    assert PACKAGES[name].module in {name.split(".")[0] for name in names}


def test_a_notebooks_backend_for_figures_stays_here(monkeypatch, tmp_path):
    """The other environment need not have it, and the import of matplotlib would fail there."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("A_PYTHON", sys.executable)
    file = tmp_path / "says.py"
    file.write_text(
        "import os, sys, numpy as np\nprint(os.environ['MPLBACKEND'])\nnp.savez(sys.argv[2], done=np.ones(1))\n",
        encoding="utf-8",
    )
    printed, made = run_script(file, given={}, variable="A_PYTHON", threads=1, rule="It runs.", fix="none")
    assert printed.strip() == "agg" and made["done"] == 1
