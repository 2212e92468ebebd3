"""What others released and is not cells: the authors' networks, an ontology of cell types, terms of genes.

The facts stand in ``released.toml``; files come the way data sets do (``fetch``), so that the second download must
equal the first. Networks are read by ``screpro.models.scldm_authors.read_checkpoint``. Their statistics of the library
size are pickles and therefore left out: ``screpro.tasks.library_size`` takes them from training cells. The ontology is
read by ``screpro.data.definitions.read_ontology``, the terms by ``screpro.data.gene_graph.gene2go_terms``.
"""

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from screpro.data import fetch
from screpro.data.validate import nearest
from screpro.errors import ScreproError

__all__ = ["Released", "available", "bring", "entries", "get", "verify"]


@dataclass(frozen=True)
class Released:
    """Files that belong together: one network, one ontology.

    Parameters
    ----------
    name, paper, title
        The name to bring it by; the paper that uses it; what it is.
    files
        Of a network: checkpoint, configuration and whatever else is needed to run it.
    earlier
        Names of files of an earlier release at the same address, which `bring` leaves alone.
    cells
        Registry name of the data set a network was trained on; empty for what is no network.
    """

    name: str
    paper: str
    title: str
    files: tuple[fetch.DataFile, ...]
    earlier: tuple[str, ...]
    cells: str


@lru_cache(maxsize=1)
def _all() -> dict[str, Released]:
    tables = tomllib.loads(Path(__file__).with_name("released.toml").read_text(encoding="utf-8"))
    return {name: _released(name, **table) for name, table in tables.items()}


def _released(
    name: str, *, paper: str, title: str, address: str, files: list, cells: str = "", earlier: list = ()
) -> Released:
    folder = f"weights/{paper}" if cells else f"knowledge/{name}"
    here = tuple(
        fetch.DataFile(name=PurePosixPath(file).name, place=f"{folder}/{file}", url=address + file) for file in files
    )
    return Released(name, paper, title, here, tuple(earlier), cells)


def entries() -> dict[str, Released]:
    """All by name."""
    return dict(_all())


def get(name: str) -> Released:
    """One by name; an unknown name is an error that names the nearest one."""
    if name in _all():
        return _all()[name]
    close = nearest(name, list(_all()))
    raise ScreproError(
        "What others released has a name in the registry.",
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
    """The files of an entry by their names, downloaded if they are not here.

    Raises
    ------
    ScreproError
        Unknown name; a file cannot be had, or is not the one that arrived the first time.
    """
    return {file.name: fetch.fetch(file) for file in get(name).files}
