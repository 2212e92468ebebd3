"""Networks that the authors released: where their files are, and how they get here.

The facts stand in ``weights.toml``; files come the way data sets do (``fetch``), so that the second download must equal
the first. They are read by ``screpro.models.scldm_authors.read_checkpoint``. Their statistics of the library size are
pickles and therefore left out: ``screpro.tasks.library_size`` takes them from training cells.
"""

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from screpro.data import fetch
from screpro.data.validate import nearest
from screpro.errors import ScreproError

__all__ = ["Weights", "available", "bring", "entries", "get", "verify"]


@dataclass(frozen=True)
class Weights:
    """One released network.

    Parameters
    ----------
    name, paper, title
        The name to bring it by; the paper it belongs to; what it is.
    files
        Checkpoint, configuration and whatever else is needed to run it.
    earlier
        Names of files of an earlier release in the same bucket, which `bring` leaves alone.
    cells
        Registry name of the data set it was trained on.
    """

    name: str
    paper: str
    title: str
    files: tuple[fetch.DataFile, ...]
    earlier: tuple[str, ...]
    cells: str


@lru_cache(maxsize=1)
def _all() -> dict[str, Weights]:
    tables = tomllib.loads(Path(__file__).with_name("weights.toml").read_text(encoding="utf-8"))
    return {name: _weights(name, **table) for name, table in tables.items()}


def _weights(name: str, *, paper: str, title: str, bucket: str, files: list, cells: str, earlier: list = ()) -> Weights:
    here = tuple(
        fetch.DataFile(name=PurePosixPath(file).name, place=f"weights/{paper}/{file}", url=bucket + file)
        for file in files
    )
    return Weights(name, paper, title, here, tuple(earlier), cells)


def entries() -> dict[str, Weights]:
    """All released networks by name."""
    return dict(_all())


def get(name: str) -> Weights:
    """One released network by name; an unknown name is an error that names the nearest one."""
    if name in _all():
        return _all()[name]
    close = nearest(name, list(_all()))
    raise ScreproError(
        "Released weights have a name in the registry.",
        got=name,
        fix=(f"did you mean {close}? " if close else "") + f"one of {', '.join(_all())}",
    )


def available(name: str) -> str:
    """Where the files would come from: ``in SCREPRO_DATA``, ``cached`` or ``to download``."""
    return fetch.available(get(name).files)


def verify(name: str) -> list[tuple[str, str]]:
    """Check the files that are here: ``(file, status)``, without downloading."""
    return [(file.name, fetch.status(file)) for file in get(name).files]


def bring(name: str) -> dict[str, Path]:
    """The files of a released network by name, downloaded if they are not here.

    Raises
    ------
    ScreproError
        Unknown name; a file cannot be had, or is not the one that arrived the first time.
    """
    return {file.name: fetch.fetch(file) for file in get(name).files}
