"""Build the book: execute what changed, write the generated pages, render; survive being killed.

The order of work is in ``Snakefile``; this module is what its rules call, and `build` is what starts it.
Three things make a second start safe after a kill at any moment:

* every file is written aside and renamed, or is an output that Snakemake redoes when it is missing;
* what has to be redone is decided by content (`write_keys`), not by who touched which file when;
* processes that outlived a killed build are found by a mark in their environment and ended first.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from screpro import paths
from screpro.errors import ScreproError

__all__ = ["available_cores", "build", "notebooks", "render", "write_keys"]

# inherited by every process of a build, so that survivors of a killed one can be told apart from all others
MARK = "SCREPRO_BUILD"


def available_cores() -> int:
    """Cores this process may use (an affinity mask counts, the machine's size does not)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def notebooks() -> list[str]:
    """Notebook pages of the book, ``paper/name``, in the order of ``_toc.yml``."""
    import yaml

    toc = yaml.safe_load((paths.root() / "_toc.yml").read_text(encoding="utf-8"))

    def files(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            if "file" in node:
                yield node["file"]
            for value in node.values():
                yield from files(value)
        elif isinstance(node, list):
            for value in node:
                yield from files(value)

    return [name.removeprefix("notebooks/") for name in files(toc) if name.startswith("notebooks/")]


def executed_path(notebook: str) -> Path:
    """Where the executed copy of ``paper/name`` stands: beside its source."""
    return paths.root() / "notebooks" / f"{notebook}.ipynb"


def write_keys(*, tier: str = "ci") -> list[str]:
    """Bring ``_build/keys`` up to date and return the notebooks that have to be executed.

    Snakemake compares the times of a rule's inputs and outputs. A key file changes only when its content
    does, and it is the only input of its notebook, so that comparison becomes one of content.

    Parameters
    ----------
    tier
        How much every notebook runs: ``ci``, ``laptop`` or ``paper``.
    """
    from screpro.records import keys, runner

    folder = paths.build_dir() / "keys"
    stale = []
    for name in notebooks():
        todo, target, executed = runner.plan(name, tier=tier), folder / f"{name}.json", executed_path(name)
        # a copy executed by hand with other parameters, or from a source that has since been put back, is
        # newer than its key file and yet not the page; nor is one whose run is gone with ``_build``
        run_is_there = (todo.folder / "manifest.json").is_file()
        if executed.is_file() and not (run_is_there and _run_id(executed) == todo.run_id):
            executed.unlink()
        # prose is not part of the run's key; with it changed, `screpro run` writes the page without executing
        content = {"notebook": name, "tier": tier, "key": todo.key, "source": keys.file_hash(todo.source.path)}
        content["records"] = keys.records_hash(todo.paper)
        changed = _write_if_changed(target, json.dumps(content) + "\n")
        if changed or not executed.is_file() or executed.stat().st_mtime_ns < target.stat().st_mtime_ns:
            stale.append(name)
    root = paths.root()
    library = [p for p in (root / "screpro").rglob("*") if p.suffix in {".py", ".toml"}]
    records = [p for p in (root / "data").rglob("*") if p.suffix in {".csv", ".toml", ".json"}]
    prose = [p for p in (root / "book").rglob("*") if p.is_file() and _is_prose(p.relative_to(root))]
    settings = [root / "_config.yml", root / "_toc.yml", root / "constraints.txt"]
    _write_if_changed(folder / "pages.json", _digest(library + records + settings))
    _write_if_changed(folder / "html.json", _digest(library + prose + settings))
    return stale


def _is_prose(path: Path) -> bool:
    return "generated" not in path.parts and "__pycache__" not in path.parts


def _run_id(executed: Path) -> str | None:
    """The run an executed notebook came from, or None if it does not say."""
    try:
        return json.loads(executed.read_bytes())["metadata"]["screpro"]["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(files: list[Path]) -> str:
    root, total = paths.root(), hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(root).as_posix()}:{content}\n".encode())
    return json.dumps({"sha256": total.hexdigest()}) + "\n"


def _write_if_changed(target: Path, text: str) -> bool:
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return False
    with paths.atomic_path(target) as aside:
        aside.write_text(text, encoding="utf-8")
    return True


def render() -> None:
    """Render the pages into ``_build/html``; a warning is an error.

    Always from nothing and in a folder of its own: an incremental run would repeat neither the warnings of
    pages it skips nor the side bar on them. The finished folder takes the place of the old one.
    """
    out = paths.build_dir()
    aside, html, old = out / "render", out / "html", out / "html.old"
    shutil.rmtree(aside, ignore_errors=True)
    command = [_beside_python("jupyter-book"), "build", str(paths.root()), "-W", "--keep-going", "--quiet"]
    done = subprocess.run([*command, "--path-output", str(aside)], text=True, capture_output=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise SystemExit("the pages did not render; the warnings above say where")
    fresh = aside / "_build" / "html"
    (fresh / ".rendered").write_text(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")
    shutil.rmtree(old, ignore_errors=True)
    if html.exists():
        html.rename(old)
    fresh.rename(html)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def build(*, tier: str = "ci", cores: int | None = None, profile: str | None = None) -> int:
    """Execute the notebooks whose content key changed, in parallel, and render the book.

    Parameters
    ----------
    tier
        How much every notebook runs: ``ci``, ``laptop`` or ``paper``.
    cores
        Cores shared by everything that runs side by side; all that are available by default.
    profile
        Snakemake profile, for a cluster.

    Returns
    -------
    int
        Exit code: 0, or Snakemake's where a rule failed.

    Raises
    ------
    ScreproError
        If another build is running, or if this is an installed copy without the book's sources.
    """
    root = paths.root()
    if not (root / "Snakefile").is_file():
        raise ScreproError(
            "The book is built from a clone of the repository.",
            got=f"no Snakefile in {root}",
            fix="git clone the repository and run `make book` there",
        )
    cores = cores or available_cores()
    before, began = _finished(), time.monotonic()
    with _only_one() as token:
        # Snakemake does this again; here a mistake in a notebook or its data is a plain message
        write_keys(tier=tier)
        command = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--cores", str(cores)]
        # our own lock replaces Snakemake's, which a killed run would leave behind
        command += ["--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime", "--keep-going"]
        command += ["--profile", profile] if profile else []
        command += ["--config", f"tier={tier}"]
        environment = {**os.environ, MARK: token, "PYTHONUNBUFFERED": "1"}
        code = _supervise([*command, "--quiet", "all"], root, environment, token)
        if code not in (0, 130):
            _say_if_the_graph_is_wrong(command, root)
    after = _finished()
    ran = [name for name in notebooks() if after[name] != before[name]]
    pages = "pages rendered" if after["html"] != before["html"] else "pages unchanged"
    seconds = time.monotonic() - began
    if code == 0:
        count = f"{len(ran)} notebook{'' if len(ran) == 1 else 's'} executed"
        print(f"book: {count}, {pages}, {seconds:.0f} s: {paths.build_dir() / 'html' / 'index.html'}")
    else:
        print(f"book: failed after {seconds:.0f} s; what was finished is kept", file=sys.stderr)
    return code


def _say_if_the_graph_is_wrong(command: list[str], root: Path) -> None:
    """Rules report their own errors; one in the graph itself is silent under ``--quiet all``."""
    quiet = ["--dry-run", "--quiet", "host", "progress", "rules", "reason"]
    done = subprocess.run([*command, *quiet], cwd=root, text=True, capture_output=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)


def _finished() -> dict[str, int]:
    """Modification times of finished runs and of the rendered book, to say afterwards what was done."""
    runs = {name: (paths.runs_dir() / name).glob("*/manifest.json") for name in notebooks()}
    made = {name: max((p.stat().st_mtime_ns for p in found), default=0) for name, found in runs.items()}
    rendered = paths.build_dir() / "html" / ".rendered"
    made["html"] = rendered.stat().st_mtime_ns if rendered.exists() else 0
    return made


def _supervise(command: list[str], root: Path, environment: dict[str, str], token: str) -> int:
    """Run Snakemake; whatever ends this process also ends everything it started."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        return subprocess.run(command, cwd=root, env=environment).returncode
    except KeyboardInterrupt:
        end_marked(token)
        print("book: stopped; start it again to go on where it was", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _only_one() -> Iterator[str]:
    """Hold ``_build/.lock`` and end the survivors of a build that was killed; yield this build's mark."""
    path = paths.build_dir() / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScreproError(
                "One build at a time writes into this folder.",
                got=f"another build holds {path} ({' '.join(lock.read().split()) or 'just started'})",
                fix="wait for it to finish, or stop it, then start again",
            ) from None
        left = lock.read().split()
        if left:
            end_marked(left[0].removeprefix("mark="))
        token = uuid.uuid4().hex
        lock.truncate(0)
        lock.write(f"mark={token} pid={os.getpid()}\n")
        lock.flush()
        yield token
        lock.truncate(0)


def end_marked(token: str) -> int:
    """End every process that carries `token` in its environment, but this one; return how many."""
    import psutil

    ended = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == token:
                process.kill()
                ended.append(process)
        except psutil.Error:
            # gone already, or somebody else's
            continue
    psutil.wait_procs(ended, timeout=5)
    return len(ended)


def _beside_python(name: str) -> str:
    """Path of a command that was installed into the same environment as this interpreter."""
    return str(Path(sys.executable).with_name(name))


if __name__ == "__main__":
    if sys.argv[1:] == ["pages"]:
        from screpro import book_atlas, book_pages

        book_pages.write_pages()
        book_atlas.write_pages()
    elif sys.argv[1:] == ["render"]:
        render()
    else:
        raise SystemExit("usage: python -m screpro.book {pages,render}")
