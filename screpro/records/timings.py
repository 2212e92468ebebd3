"""Recorded benchmarks: the rows of ``screpro bench``, with the machine they were measured on.

One file per benchmark and machine, ``data/results/together/<name>.timings.json``. Times say nothing without their
machine and little with it; pages show the ratios of one run.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screpro import paths
from screpro.bench_measure import peer_versions
from screpro.errors import ScreproError
from screpro.records import manifest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA", "load_timings", "write_timings"]

SCHEMA = "screpro.timings/1"
FACTS = ("what", "commit", "dirty", "recorded", "device", "threads", "packages", "rows")
"""What every file has. Newer ones also have ``peers``: the versions of what was measured beside this package."""


def write_timings(path: str | Path, what: str, rows: Sequence[Mapping[str, Any]], *, device: str) -> None:
    """Write the rows of the benchmark `what`, and where they were measured, in one step.

    Parameters
    ----------
    path
        The file; its folder is made.
    rows
        As from ``screpro.bench.run``: plain values only.
    device
        "cpu" or "cuda".
    """
    commit, dirty = manifest.git_state()
    content = {
        "schema": SCHEMA,
        "what": what,
        "commit": commit,
        "dirty": dirty,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": manifest.device_name(device),
        "threads": manifest.cores(),
        "packages": manifest.packages(),
        "peers": peer_versions(),
        "rows": [dict(row) for row in rows],
    }
    with paths.atomic_path(path) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_timings(what: str) -> "pd.DataFrame":
    """Recorded rows of the benchmark `what`; an empty table where none is recorded.

    Two columns are added: ``machine``, and ``peer_version``, name and version of the distribution that the peer's label
    begins with (None for a formula written out here, and in files that hold no versions).

    Raises
    ------
    ScreproError
        A file is not of this schema.
    """
    import pandas as pd

    found = []
    for path in sorted((paths.root() / "data" / "results" / "together").glob("*.timings.json")):
        content = _read(path)
        if content["what"] == what:
            machine = f"{content['device']}, {content['threads']} threads"
            peers = content.get("peers", {})
            found += [
                {**row, "machine": machine, "peer_version": _version(row["peer"], peers)} for row in content["rows"]
            ]
    return pd.DataFrame(found)


def _version(label: str, peers: Mapping[str, str]) -> str | None:
    return next((f"{name} {version}" for name, version in peers.items() if label.startswith(name)), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScreproError("Recorded timings are JSON.", got=f"{path}: {error}", fix="record them again") from None
    if content.get("schema") != SCHEMA or any(fact not in content for fact in FACTS):
        raise ScreproError(
            f"Recorded timings have schema {SCHEMA} and the fields {', '.join(FACTS)}.",
            got=f"{content.get('schema')!r} in {path}",
            fix="record them again with `screpro bench NAME --json FILE`",
        )
    return content
