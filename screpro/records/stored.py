"""JSON files with a schema: read, and refused where they are of another version."""

import json
from pathlib import Path
from typing import Any

from screpro.errors import ScreproError

__all__ = ["check_schema", "read_json"]


def check_schema(content: Any, schema: str, *, what: str, where: str | Path) -> None:
    """Raise a `ScreproError` if the content of `where`, called `what` in the message, does not name this schema."""
    found = content.get("schema") if isinstance(content, dict) else None
    if found != schema:
        raise ScreproError(
            f"{what} has schema {schema}",
            got=f"{found!r} in {where}",
            fix="use the version of screpro that wrote it, or record the run again",
        )


def read_json(path: Path, schema: str, *, what: str) -> dict[str, Any]:
    """Content of a JSON file that names this schema.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ScreproError
        It is not JSON, or of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScreproError(f"{what} is JSON", got=f"{path}: {error}", fix="record the run again") from None
    check_schema(content, schema, what=what, where=path)
    return content
