"""The content key of a run: two runs with the same key would do the same thing.

It covers the code cells, the resolved parameters, the library, the pinned dependencies, the data, the tier
and the kind of device. It leaves out markdown, cell tags and titles, thread counts and times.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from screpro import paths
from screpro.records import sources

__all__ = [
    "constraints_hash",
    "data_hashes",
    "device_class",
    "file_hash",
    "is_file_name",
    "named_data",
    "named_files",
    "records_hash",
    "run_key",
    "tree_hash",
]

FILES = ("graph_file", "ontology")
"""Parameters that can only name a file."""

SIMULATED = ("simulated", "simulated_atlas", "simulated_atlas_b")
"""Names in ``datasets`` of cells that a page simulates; the registry does not know them."""


def file_hash(path: str | Path) -> str:
    """sha256 of a file, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_hash() -> str:
    """sha256 over the names and contents of every ``*.py`` and ``*.toml`` of the library."""
    package = Path(__file__).resolve().parents[1]
    files = sorted(p for pattern in ("*.py", "*.toml") for p in package.rglob(pattern))
    lines = [
        f"{p.relative_to(package).as_posix()}:{file_hash(p)}"
        for p in files
        if "_bundle" not in p.relative_to(package).parts
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def constraints_hash() -> str:
    """sha256 of ``constraints.txt``; empty where there is none (an installed copy)."""
    path = paths.root() / "constraints.txt"
    return file_hash(path) if path.is_file() else ""


def records_hash(paper: str) -> str:
    """sha256 over what a page shows but does not compute: the papers' values and claims, recorded runs of `paper`.

    Not part of the key: when only these change, what was measured stays valid and just the page is made again.
    """
    top = paths.root() / "data"
    files = [p for p in (top / "paper").glob("*") if p.suffix in {".csv", ".toml", ".json"}]
    files += (top / "results" / paper).rglob("results.json")
    files += (top / "results" / paper).glob("*/*/drawn/[!.]*.json")
    files += (top / "results" / paper).glob("*.timings.json")
    lines = [f"{p.relative_to(top).as_posix()}:{file_hash(p)}" for p in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def device_class() -> str:
    """``cuda`` or ``cpu``, found out without importing torch. ``SCREPRO_DEVICE`` decides when set."""
    if given := os.environ.get("SCREPRO_DEVICE"):
        return given.split(":")[0]
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not _torch_has_cuda():
        return "cpu"
    tool = shutil.which("nvidia-smi")
    if not tool:
        return "cpu"
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if listed.returncode == 0 and "GPU" in listed.stdout else "cpu"


def _torch_has_cuda() -> bool:
    from importlib import metadata

    try:
        return not metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def data_hashes(parameters: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of every data set that ``dataset``, ``datasets`` and ``pool`` name, and of `named_files`.

    A value that looks like a file (it ends in ``.h5ad`` or holds a slash) is hashed; any other is looked up
    in the registry. Cells that pages make themselves (`SIMULATED`) follow from the library, which has its own hash.

    Raises
    ------
    ScreproError
        The file is not there, the registry does not know the name, or sets do not go together as a pool.
    """
    files = {path: file_hash(path) for path in named_files(parameters)}
    if not (named := [name for name in named_data(parameters) if name not in SIMULATED]):
        return files
    from screpro.data import registry

    if pool := parameters.get("pool"):
        from screpro.tasks.embedding_pool import check_pool

        check_pool(parameters["dataset"], pool)
        named += pool
    return {name: registry.data_hash(name) for name in named} | files


def named_data(parameters: Mapping[str, Any]) -> list[str]:
    """Every data set that the parameters ``dataset`` and ``datasets`` name."""
    values = (parameters.get(parameter) for parameter in ("dataset", "datasets"))
    return [name for value in values for name in ([value] if isinstance(value, str) else value or [])]


def named_files(parameters: Mapping[str, Any]) -> list[str]:
    """Files beside the cells: a graph, an ontology, embeddings given as ``name=file``. An edited one is another run."""
    files = [path for name in FILES if (path := parameters.get(name))]
    from screpro.tasks.embedding_file import named_file

    return files + [named_file(text)[1] for text in parameters.get("embeddings") or []]


def is_file_name(name: str) -> bool:
    """Whether a data set is given as a path rather than by its registry name."""
    return name.endswith(".h5ad") or "/" in name or os.sep in name


def run_key(
    source: sources.Source,
    parameters: Mapping[str, Any],
    *,
    tier: str,
    data: Mapping[str, str],
    device: str,
    library: str,
) -> str:
    """sha256 of everything that decides what a run computes, in hex; `library` is `tree_hash`."""
    content = {
        "cells": [cell.text for cell in source.cells if cell.kind == "code"],
        "parameters": dict(parameters),
        "library": library,
        "constraints": constraints_hash(),
        "data": dict(data),
        "tier": tier,
        "device": device,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
