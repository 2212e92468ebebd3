"""Do the recorded numbers still say what they said? Accepted bands, and records that hold together.

A band is a range for the mean over splits and seeds of one (item, data set, method, metric). Bands of
recorded runs are always checked; those of live runs only where such a run is there.
"""

import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screpro import paths
from screpro.errors import ScreproError
from screpro.records import manifest, results

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Finding", "accept", "bands_path", "check"]

SCHEMA = "screpro.bands/1"
GROUP = ("item", "dataset", "method", "metric", "metric_variant")

HEADER = """\
# Accepted ranges of recorded numbers; `screpro check` fails when a mean over splits and seeds leaves its range.
#
# run   recorded: the folder below data/results; live: the newest finished run of the notebook with default
#       parameters at tier ci, checked where there is one
# low, high   set by `screpro check --accept` to mean ± max(4 standard errors, 0.02 |mean|), or to
#       mean ± 0.1 |mean| where there is a single row and so no standard error; errors of rounding
#       (relative_error) may reach ten times their value
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    run: str
    what: str
    value: float | None
    low: float | None
    high: float | None
    ok: bool
    problem: str = ""


def bands_path() -> Path:
    """``data/results/bands.toml``."""
    return results.results_dir() / "bands.toml"


def check() -> list[Finding]:
    """Look at every recorded run and every band.

    Returns
    -------
    list of Finding
        One per band and one per run; ``ok`` is False where a mean is outside its band or missing, a record breaks its
        schema, its manifest is of another run, or a recorded mean has no band. A live run of a page without any band
        is not compared.
    """
    bands = _read_bands()
    findings, seen = [], set()
    for run, folder in _runs():
        seen.add(run)
        try:
            means = _means(_rows(folder))
        except ScreproError as error:
            findings.append(Finding(run, "record", None, None, None, False, str(error)))
            continue
        own = {_group(band): band for band in bands if band["run"] == run}
        if run.startswith("live:") and not own:  # a page whose live numbers nobody has accepted yet
            findings.append(Finding(run, "record", None, None, None, True, "not compared: no bands for this page"))
            continue
        findings.append(Finding(run, "record", None, None, None, True))
        for group, band in own.items():
            mean = means[group][0] if group in means else None
            inside = mean is not None and band["low"] <= mean <= band["high"]
            problem = "" if inside else "no rows" if mean is None else "outside its band"
            findings.append(Finding(run, _label(group), mean, band["low"], band["high"], inside, problem))
        for group in means.keys() - own.keys():
            missing = "no band; see the number, then `screpro check --accept`"
            findings.append(Finding(run, _label(group), means[group][0], None, None, False, missing))
    for run in dict.fromkeys(b["run"] for b in bands if b["run"] not in seen):
        if run.startswith("recorded:"):
            findings.append(Finding(run, "record", None, None, None, False, "the recorded run is not there"))
    return findings


def accept() -> int:
    """Rewrite the bands from the rows that are there now; bands of live runs that are not here stay.

    Returns
    -------
    int
        Number of bands written.
    """
    present = {run: _means(_rows(folder)) for run, folder in _runs()}
    bands = [b for b in _read_bands() if b["run"].startswith("live:") and b["run"] not in present]
    for run, means in present.items():
        for group, (mean, error) in means.items():
            width = 0.1 * abs(mean) if math.isnan(error) else max(4 * error, 0.02 * abs(mean))
            width = max(width, 1e-9)
            low, high = mean - width, mean + width
            if group[GROUP.index("metric")] == "relative_error":  # rounding, which machines do differently
                low, high = 0.0, max(10 * mean, 1e-9)
            bands.append({"run": run, **dict(zip(GROUP, group, strict=True)), "low": low, "high": high})
    bands.sort(key=lambda b: (b["run"], _group(b)))
    text = [HEADER, f'schema = "{SCHEMA}"', "", "band = ["]
    for band in bands:
        # a JSON string is a TOML string
        pairs = [f"{c} = {json.dumps(band[c], ensure_ascii=False)}" for c in ("run", *GROUP)]
        pairs += [f"{c} = {band[c]:.6g}" if band[c] % 1 else f"{c} = {band[c]:.1f}" for c in ("low", "high")]
        text.append(f"  {{ {', '.join(pairs)} }},")
    text += ["]", ""]
    with paths.atomic_path(bands_path()) as aside:
        aside.write_text("\n".join(text), encoding="utf-8")
    return len(bands)


def _read_bands() -> list[dict[str, Any]]:
    if not bands_path().is_file():
        return []
    content = tomllib.loads(bands_path().read_text(encoding="utf-8"))
    if content.get("schema") != SCHEMA:
        raise ScreproError(f"bands.toml has schema {SCHEMA}", got=repr(content.get("schema")), fix="update screpro")
    return content.get("band", [])


def _runs() -> Iterator[tuple[str, Path]]:
    """Recorded runs, then the newest live run of every notebook."""
    top = results.results_dir()
    for file in sorted(top.glob("*/*/*/results.json")):
        yield f"recorded:{file.parent.relative_to(top).as_posix()}", file.parent
    for folder in sorted(paths.runs_dir().glob("*/*")):
        name = f"{folder.parent.name}/{folder.name}"
        # runs of a user's own notebooks lie here too, and have no accepted numbers
        if (paths.root() / "notebooks" / f"{name}.py").is_file() and (newest := manifest.latest(name)):
            yield f"live:{name}", newest


def _rows(folder: Path) -> "pd.DataFrame":
    """Rows of a run whose manifest belongs to them."""
    rows, content = results.read_results(folder / "results.json"), manifest.read(folder)
    odd = set(rows["run_id"]) - {content["run_id"]}
    if odd:
        raise ScreproError(
            "results and manifest are of one run",
            got=f"rows of {', '.join(sorted(odd))}, manifest of {content['run_id']}",
            fix="record the run again",
        )
    if odd := set(rows["tier"]) - {content["tier"]}:
        raise ScreproError(
            "the rows of a run have its tier", got=f"{', '.join(odd)} in {folder}", fix="record the run again"
        )
    return rows


def _means(rows: "pd.DataFrame") -> dict[tuple[str, ...], tuple[float, float]]:
    """Mean and standard error (NaN for a single row) of every group.

    Seconds depend on the machine, and validation scores only chose a setting: neither has a band.
    """
    found = {}
    rows = rows[(rows["unit"] != "s") & (rows["item"] != "tuning")]
    for group, part in rows.groupby(list(GROUP), sort=True):
        value = part["value"]
        found[group] = (float(value.mean()), float(value.std(ddof=1) / math.sqrt(len(value))))
    return found


def _group(band: dict[str, Any]) -> tuple[str, ...]:
    return tuple(band[c] for c in GROUP)


def _label(group: tuple[str, ...]) -> str:
    return " · ".join(part for part in group if part)
