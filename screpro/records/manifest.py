"""The manifest of a run: everything needed to say where a number came from.

It is written last. A run folder without a manifest is unfinished and nobody reads its numbers.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from screpro import paths
from screpro.errors import ScreproError
from screpro.records.stored import check_schema, read_json

__all__ = ["SCHEMA", "device_name", "git_state", "latest", "packages", "read", "write"]

SCHEMA = "screpro.manifest/1"

#: field -> type; a field that may be None lists it
FIELDS: dict[str, type | tuple[type, ...]] = {
    "run_id": str,
    "notebook": str,
    "key": str,
    "commit": (str, type(None)),
    "dirty": (bool, type(None)),
    "parameters": dict,
    "default_parameters": bool,
    "tier": str,
    "tree_hash": str,
    "constraints_hash": str,
    "records_hash": str,
    "data": dict,
    "packages": dict,
    "python": str,
    "platform": str,
    "device": str,
    "device_name": str,
    "threads": int,
    "peak_memory_mib": (int, float),
    "started": str,
    "wall_seconds": (int, float),
    "determinism": dict,
    "command": str,
}


def check(content: Any, where: str) -> dict[str, Any]:
    """The manifest itself when it fits the schema.

    Raises
    ------
    ScreproError
        Another schema version, a field missing, unknown or of the wrong type.
    """
    check_schema(content, SCHEMA, what="a manifest", where=where)
    odd = set(content) ^ (set(FIELDS) | {"schema"})
    odd |= {f for f, kind in FIELDS.items() if f in content and not isinstance(content[f], kind)}
    if odd:
        raise ScreproError(
            "a manifest has exactly the fields of its schema, each of its type",
            got=f"{', '.join(sorted(odd))} in {where}",
            fix="record the run again",
        )
    return content


def write(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` in one step, after checking it."""
    content = check({"schema": SCHEMA, **content}, str(path))
    with paths.atomic_path(path) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: str | Path) -> dict[str, Any]:
    """Read ``manifest.json`` (or the one in a run folder) and check it."""
    path = Path(path)
    path = path / "manifest.json" if path.is_dir() else path
    try:
        content = read_json(path, SCHEMA, what="a manifest")
    except FileNotFoundError:
        raise ScreproError(
            "a finished run has a manifest", got=f"no {path}", fix="run the notebook to its end"
        ) from None
    return check(content, str(path))


def latest(notebook: str, *, tier: str = "ci") -> Path | None:
    """Folder of the most recent finished run of `notebook` at `tier` with default parameters, or None."""
    found = []
    for path in (paths.runs_dir() / notebook).glob(f"{tier}-*/manifest.json"):
        try:
            content = read(path)
        except ScreproError:
            continue  # left by another version
        if content["default_parameters"]:
            found.append((content["started"], path.parent))
    return max(found)[1] if found else None


# --- facts about the machine -----------------------------------------------------------------------------


def git_state() -> tuple[str | None, bool | None]:
    """Commit and whether anything differs from it; (None, None) outside a clone of this repository."""
    top = paths.root()

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(top), *words], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # an installed copy may lie inside somebody else's repository, whose commit says nothing about this one
    inside = git("rev-parse", "--show-toplevel")
    if inside is None or Path(inside).resolve() != top.resolve():
        return None, None
    commit = git("rev-parse", "--verify", "HEAD")
    return commit, bool(git("status", "--porcelain")) if commit else True


def packages() -> dict[str, str]:
    """Installed versions of the direct dependencies, extras included where present."""
    found = {}
    for line in metadata.requires("screpro") or []:
        name = re.match(r"[\w.-]+", line)[0]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def device_name(device: str) -> str:
    """Model name of the GPU for ``cuda``, else of the processor."""
    if device == "cuda" and (tool := shutil.which("nvidia-smi")):
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if listed.returncode == 0 and listed.stdout.strip():
            return listed.stdout.splitlines()[0].strip()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        return found[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_mib() -> float:
    """Largest resident memory of any finished child process, in MiB: the kernel, in a run of one notebook."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def cores() -> int:
    """Cores this process may use; ``SCREPRO_THREADS`` decides when set."""
    if given := os.environ.get("SCREPRO_THREADS"):
        return max(1, int(given))
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
