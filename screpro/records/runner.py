"""Run a notebook: check its parameters, execute it with papermill, keep rows, page and manifest.

A run lives in ``_build/runs/<paper>/<name>/<tier>-<key>/``. Everything unfinished stays in its ``work/``;
results, page and manifest are each put in place in one step, the manifest last. A run that was killed is
started again by the same command and continues from its journal.
"""

import fcntl
import json
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from screpro import paths
from screpro.errors import ScreproError
from screpro.records import drawn, execute, keys, manifest, page, parameters, results, sources

__all__ = ["RunResult", "plan", "run"]


@dataclass(frozen=True)
class RunResult:
    """A finished run; ``reused`` tells that nothing had to be executed."""

    folder: Path
    key: str
    manifest: dict[str, Any]
    reused: bool


@dataclass(frozen=True)
class _Plan:
    """What is to be run, decided before anything starts."""

    source: sources.Source
    sheet: parameters.Sheet
    values: dict[str, Any]
    tier: str
    data: dict[str, str]
    device: str
    library: str
    key: str

    @property
    def paper(self) -> str:
        return self.source.name.split("/")[0]

    @property
    def name(self) -> str:
        return f"{self.tier}-{self.key[:12]}"

    @property
    def folder(self) -> Path:
        return paths.runs_dir() / self.source.name / self.name

    @property
    def run_id(self) -> str:
        return f"{self.source.name}/{self.name}"

    @property
    def is_default(self) -> bool:
        """Whether only the tier was chosen."""
        return all(v == self.values[n] for n, v in self.sheet.defaults.items() if n != "tier")


def plan(
    notebook: str | Path,
    given: Iterable[tuple[str, str]] | Mapping[str, Any] = (),
    *,
    tier: str | None = None,
) -> _Plan:
    """Check everything that can be checked without executing, and work out the key.

    Raises
    ------
    ScreproError
        Notebook, parameters, tier or data are not valid.
    """
    source = sources.read(sources.find(notebook))
    sheet = parameters.read(source.path)
    pairs = list(given.items() if isinstance(given, Mapping) else given)
    if tier is not None:
        if any(name == "tier" and value != tier for name, value in pairs):
            raise ScreproError("the tier is given once", got="--tier and -p tier", fix="leave one of them out")
        pairs.append(("tier", tier))
    values = _with_whole_paths(parameters.resolve(sheet, pairs))
    tier = values.get("tier", "ci")
    data = keys.data_hashes(values)
    device = keys.device_class()
    library = keys.tree_hash()
    key = keys.run_key(source, values, tier=tier, data=data, device=device, library=library)
    return _Plan(source, sheet, values, tier, data, device, library, key)


def _with_whole_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Paths given relative to the user's folder, whole: the notebook runs in the root of the repository.

    Raises
    ------
    ScreproError
        A parameter that can only be a file names none.
    """

    def whole(text: str) -> str:
        return str(Path(text).expanduser().resolve())

    def file(name: str, text: str) -> str:
        if not Path(text).expanduser().is_file():
            raise ScreproError(f"{name} names a file", got=f"there is no file {whole(text)}", fix="correct the path")
        return whole(text)

    found = dict(values)
    for name, value in values.items():
        if name in ("dataset", "datasets") and value:
            own = [whole(v) if keys.is_file_name(v) else v for v in ([value] if isinstance(value, str) else value)]
            found[name] = own[0] if isinstance(value, str) else own
        elif name in keys.FILES and value:
            found[name] = file(name, value)
        elif name == "embeddings" and value:  # each "name=file" or "name=file.h5ad#key"
            from screpro.tasks.embedding_file import named_file

            parts = [named_file(text) for text in value]
            found[name] = [f"{own}={file(name, path)}" + (f"#{key}" if key else "") for own, path, key in parts]
        elif name == "language_model" and value and Path(value).expanduser().is_dir():
            found[name] = whole(value)
    return found


def _check_own(todo: _Plan) -> None:
    """Raise what is wrong with a user's own files before a kernel is started, not in its first cells."""
    files = [name for name in keys.named_data(todo.values) if keys.is_file_name(name)]
    if not files:
        return
    from screpro.data import own

    columns = {}
    for p in todo.sheet.parameters:
        value = todo.values[p.name]
        if p.name in ("type_key", "target_key"):  # None takes the set's, which a file can only have under our name
            columns[p.name] = value or "cell_type"
        # some pages do without the column of a default; the column that was asked for has to be there
        elif p.name.endswith("_key") and value and (value != p.default or p.name in ("label_key", "context_key")):
            columns[p.name] = value
    for path in files:
        own.check_h5ad(path, columns=columns)


def run(
    notebook: str | Path,
    given: Iterable[tuple[str, str]] | Mapping[str, Any] = (),
    *,
    tier: str | None = None,
    out: str | Path | None = None,
    threads: int | None = None,
    force: bool = False,
) -> RunResult:
    """Execute a notebook, or find that the same run is already there.

    Parameters
    ----------
    notebook
        ``scdiff/annotation`` or the path of a ``.py``.
    given
        Parameters, as for `parameters.resolve`.
    tier
        Short for the parameter of that name.
    out
        Folder that gets a copy of results, page and manifest (to record a run: one in ``data/results``).
    threads
        For OpenMP, MKL, OpenBLAS, numba and torch; all cores of this process by default.
    force
        Execute again although the same run is finished.

    Raises
    ------
    ScreproError
        Something given is not valid, or the same run is in progress elsewhere.
    execute.RunFailed
        A cell raised; the notebook as far as it got is kept as ``failed.ipynb`` in the run folder.
    """
    todo = plan(notebook, given, tier=tier)
    _check_own(todo)
    threads = threads or manifest.cores()
    with _lock(todo):
        finished = (todo.folder / "manifest.json").is_file() and not force
        reused = finished and manifest.read(todo.folder)["records_hash"] == keys.records_hash(todo.paper)
        if reused:
            # the prose of the source may have changed since; its code cannot have
            _write_page(todo, manifest.read(todo.folder), todo.folder / "notebook.ipynb")
        else:
            if finished:
                # the page also shows recorded runs, which changed; what was measured need not be measured again
                _start_clock(todo.folder, spent=0.0, measured=manifest.read(todo.folder)["wall_seconds"])
                results.write_journal(todo.folder)
            _execute(todo, threads)
        content = manifest.read(todo.folder)
        if out is not None:
            _export(todo.folder, Path(out))
        elif todo.is_default and todo.tier == "ci":
            _place(todo.folder / "notebook.ipynb", todo.source.path.with_suffix(".ipynb"))
    return RunResult(todo.folder, todo.key, content, reused)


@contextmanager
def _lock(todo: _Plan) -> Iterator[None]:
    """One process per key. The system drops the lock when its holder ends, however it ends."""
    todo.folder.mkdir(parents=True, exist_ok=True)
    with (todo.folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScreproError(
                "one process at a time executes a run",
                got=f"{todo.run_id} is in progress",
                fix="wait for it, or stop it",
            ) from None
        yield


def _start_clock(folder: Path, *, spent: float, measured: float) -> None:
    """Note the seconds that earlier sessions of a run took, that one starts now, and what measuring took before a page
    is made again."""
    with paths.atomic_path(folder / "clock.json") as aside:
        aside.write_text(json.dumps({"spent": spent, "measured": measured, "started": time.time()}))


def _seconds_before(folder: Path) -> tuple[float, float]:
    """`spent` and `measured` of a run that is continued, each session up to the last row it kept; 0 of a new one."""
    clock, journal = folder / "clock.json", folder / "journal.jsonl"
    if not (clock.is_file() and journal.is_file()):
        return 0.0, 0.0
    noted = json.loads(clock.read_text())
    return noted["spent"] + max(0.0, journal.stat().st_mtime - noted["started"]), noted["measured"]


def _execute(todo: _Plan, threads: int) -> None:
    import jupytext

    folder, work = todo.folder, todo.folder / "work"
    for stale in (folder / "manifest.json", folder / "failed.ipynb"):
        stale.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    started, clock = datetime.now(UTC), time.monotonic()
    spent, measured = _seconds_before(folder)
    _start_clock(folder, spent=spent, measured=measured)
    notebook = page.fix_ids(jupytext.reads(todo.source.text, fmt="py:percent"))
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            # the checked values stand in the cell itself: nothing is injected, nothing typed anew
            cell.source = sources.merge(cell.source, todo.values)
    jupytext.write(notebook, work / "source.ipynb", fmt="ipynb")
    execute.execute(
        work / "source.ipynb",
        work / "executed.ipynb",
        folder / "failed.ipynb",
        folder=folder,
        run_id=todo.run_id,
        threads=threads,
    )
    rows, data = results.read_journal(folder / "journal.jsonl", drop_last_unit=False)
    results.write_results(folder / "results.json", rows)
    commit, dirty = manifest.git_state()
    content = {
        "run_id": todo.run_id,
        "notebook": todo.source.name,
        "key": todo.key,
        "commit": commit,
        "dirty": dirty,
        "parameters": todo.values,
        "default_parameters": todo.is_default,
        "tier": todo.tier,
        "tree_hash": todo.library,
        "constraints_hash": keys.constraints_hash(),
        "records_hash": keys.records_hash(todo.paper),
        "data": todo.data | data,
        "packages": manifest.packages(),
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "device": todo.device,
        "device_name": manifest.device_name(todo.device),
        "threads": threads,
        "peak_memory_mib": manifest.peak_memory_mib(),
        "started": started.isoformat(timespec="seconds"),
        "wall_seconds": round(max(measured, spent + time.monotonic() - clock), 1),
        "determinism": dict(execute.DETERMINISM),
        "command": parameters.command(todo.sheet, todo.values),
    }
    _write_page(todo, content, work / "executed.ipynb")
    manifest.write(folder / "manifest.json", content)
    for done in ("journal.jsonl", "clock.json"):
        (folder / done).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _write_page(todo: _Plan, content: Mapping[str, Any], executed_at: Path) -> None:
    """Outputs of the run in the source as it reads now; rewritten only when something differs."""
    import jupytext
    import nbformat

    target = todo.folder / "notebook.ipynb"
    fresh = jupytext.reads(todo.source.text, fmt="py:percent")
    executed = nbformat.read(executed_at, as_version=4)
    notebook = page.assemble(fresh, executed, todo.sheet, todo.values, content)
    known = {k: v for k, v in executed.metadata.items() if k in ("kernelspec", "language_info")}
    notebook.metadata = nbformat.from_dict(known)
    notebook.metadata["screpro"] = {"run_id": content["run_id"], "tier": content["tier"]}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    execute.strip(notebook)
    text = nbformat.writes(notebook) + "\n"
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        with paths.atomic_path(target) as aside:
            aside.write_text(text, encoding="utf-8")


def _place(source: Path, target: Path) -> None:
    """Copy in one step, and not at all when nothing would change (the book rebuilds what is newer)."""
    if not target.is_file() or target.read_bytes() != source.read_bytes():
        with paths.atomic_path(target) as aside:
            shutil.copyfile(source, aside)


def _export(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)  # until the copy is whole, the folder does not count
    for stale in (out / drawn.FOLDER).glob("*"):
        stale.unlink()
    pictured = sorted(file.relative_to(folder) for file in (folder / drawn.FOLDER).glob(drawn.FILES))
    for name in ("results.json", "notebook.ipynb", *pictured, "manifest.json"):
        (out / name).parent.mkdir(exist_ok=True)
        _place(folder / name, out / name)
