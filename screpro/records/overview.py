"""What there is: every notebook with the tiers that were run here or recorded."""

from typing import Any

from screpro import paths
from screpro.records import manifest, results, sources

__all__ = ["notebooks"]


def notebooks() -> list[dict[str, Any]]:
    """One row per notebook: name, title, tiers with a finished default run, tiers with a recorded run."""
    rows = []
    for name, path in sources.names().items():
        live = {f.parent.name.split("-")[0] for f in (paths.runs_dir() / name).glob("*/manifest.json")}
        recorded = {manifest.read(f)["tier"] for f in (results.results_dir() / name).glob("*/manifest.json")}
        rows.append(
            {
                "notebook": name,
                "title": sources.read(path).title,
                "run": [t for t in results.TIERS if t in live],
                "recorded": [t for t in results.TIERS if t in recorded],
            }
        )
    return rows
