"""Recorded benchmarks: the rows of ``screpro bench``, with the machine they were measured on.

One file per benchmark and machine, ``<name>.timings.json``, in the folder under ``data/results`` of the paper whose
pages show it or in ``together``. Times say nothing without their machine and little with it; pages show the ratios of
one run.
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
    from IPython.display import Markdown

__all__ = ["SCHEMA", "load_timings", "timings_table", "write_timings"]

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

    A benchmark of several operations is also measured one by one, as ``kernels-pca``: such rows belong to it as well,
    and of equal rows the latest counts. Two columns are added: ``machine``, and ``peer_version``, name and version of
    the distribution that the peer's label begins with (None for a formula written out here, and in files that hold no
    versions).

    Raises
    ------
    ScreproError
        A file is not of this schema.
    """
    import pandas as pd

    found = []
    for path in sorted((paths.root() / "data" / "results").glob("*/*.timings.json")):
        content = _read(path)
        if content["what"] == what or content["what"].startswith(f"{what}-"):
            machine = f"{content['device']}, {content['threads']} threads"
            peers = content.get("peers", {})
            found += [
                {**row, "machine": machine, "peer_version": _version(row["peer"], peers), "at": content["recorded"]}
                for row in content["rows"]
            ]
    if not found:
        return pd.DataFrame()
    rows = pd.DataFrame(found).sort_values("at", kind="stable")
    same = rows.columns.intersection(["operation", "size", "peer", "machine"])
    return rows.drop_duplicates(same, keep="last").sort_index().drop(columns="at").reset_index(drop=True)


def timings_table(what: str, *operations: str) -> "Markdown | None":
    """Show the recorded rows of the benchmark `what`, those whose operation begins so; below, the peers' versions.

    ``ratio`` is peer / ours, but ours / peer where the aim is a bound from above ("at most ...").
    """
    import pandas as pd
    from IPython.display import Markdown, display

    own = load_timings(what)
    if len(own) and operations:
        own = own[own["operation"].str.startswith(operations)]
    if own.empty:
        return Markdown(f"*No timing recorded: `screpro bench {what} --json FILE` measures what has a named peer.*")
    rows = [
        {
            "operation": row["operation"],
            "size": row["size"],
            "ratio": _number(row["ratio"], 3),
            "aim": row["target"],
            "ours, ms": _number(row["ours_ms"]),
            "peer, ms": "not measured" if row["peer"] and pd.isna(row["peer_ms"]) else _number(row["peer_ms"]),
            "peer": row["peer"],
            "agreement": row["agreement"],
            "machine": row["machine"],
        }
        for row in own.to_dict("records")
    ]
    shown = pd.DataFrame(rows).set_index(["operation", "size"])
    with pd.option_context("display.max_colwidth", None):
        display(shown.droplevel("operation") if len(set(own["operation"])) == 1 else shown)
    versions = own["peer_version"].dropna().unique()
    return Markdown(f"Measured beside {', '.join(versions)}.") if len(versions) else None


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None or value != value else f"{value:.{digits}g}"


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
