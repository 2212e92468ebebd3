"""Where things are, and how a file is replaced without anyone ever reading half of it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "build_dir", "cache_dir", "root", "runs_dir"]


def root() -> Path:
    """Folder that holds ``notebooks/`` and ``data/``: the clone, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent
    clone = package.parent
    return clone if (clone / "notebooks").is_dir() else package / "_bundle"


def build_dir() -> Path:
    """Generated files: ``_build`` in the clone, or in the working directory of an installed package."""
    top = root()
    return (Path.cwd() if top.name == "_bundle" else top) / "_build"


def runs_dir() -> Path:
    """One folder per finished or interrupted run."""
    return build_dir() / "runs"


def cache_dir() -> Path:
    """Downloaded data: ``SCREPRO_CACHE``, else ``screpro`` in the user's cache folder."""
    if given := os.environ.get("SCREPRO_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "screpro"


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it takes the place of `target` in one step.

    A reader sees the old file or the new one, never a part. If the block raises, `target` is untouched.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes private files; give the result the permissions any new file would have
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
