"""Every data set by name: what it is, where it is published, and ``load``.

The facts stand in ``registry.toml`` beside this file; here they are checked, looked up and acted on. Four
kinds of entry: ``embedded`` (ships inside an installed package), ``repository`` (files of public repositories
at pinned commits, with their sha256), ``paper`` (a data set of one of the three papers) and ``prepared`` (no public
recipe: one file of known sha256 that somebody who has it puts under ``SCREPRO_DATA``).
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from screpro.data import fetch
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["LOADERS", "Entry", "Use", "available", "data_hash", "entries", "get", "load", "of_paper", "verify"]

KINDS = ("embedded", "repository", "paper", "prepared")
LOADERS = ("embedded", "recipe", "h5ad", "gears_zip", "tenx_archive", "geo_kang", "umi_table")
_REQUIRED = ("title", "kind", "loader", "source", "licence", "citation", "cells", "genes", "split", "preprocessing")
_FILE_KEYS = {"repository", "commit", "path", "name", "url", "folder", "sha256", "bytes"}


class Use(NamedTuple):
    """Where a paper uses a data set: ``Use("scdiff", "PBMC12K", ("Table 1", "Table 5"))``."""

    paper: str
    dataset: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One data set. Numbers and labels are the publication's; 0 cells or genes means not stated.

    Parameters
    ----------
    name, title
        The name to load it by, and one line on what it is.
    kind, loader
        See `KINDS` and `LOADERS`.
    source, accession, licence, citation, doi
        Where it was published. ``licence = "unknown"`` where none is stated.
    cells, genes
        Shape after the publication's own preprocessing.
    labels
        Our name of a label -> the column of the file it is made from.
    optional
        Those of `labels` that a file may lack.
    control
        The value of the perturbation column that means unperturbed; it becomes ``control``.
    split, preprocessing
        How the paper divides and prepares the cells.
    options
        What the loader needs beyond that (see the readers in ``paper_h5ad`` and ``paper_matrix``).
    values
        ``counts``, or ``log1p`` where only normalised values are published.
    files, bytes
        What has to be brought here, and the size of all of it if known (the sum over the files).
    obtain
        For files that a person has to get: where and how.
    sha256
        Of an embedded set: of its counts.
    used_in, stands_in_for
        Papers that use it; registry names of paper sets it is shown in place of.
    cautions
        What to keep in mind before believing a number made with it.
    """

    name: str
    title: str
    kind: str
    loader: str
    source: str
    licence: str
    citation: str
    cells: int
    genes: int
    split: str
    preprocessing: str
    accession: str = ""
    doi: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    control: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    values: str = "counts"
    files: tuple[fetch.DataFile, ...] = ()
    bytes: int | None = None
    obtain: str = ""
    sha256: str = ""
    used_in: tuple[Use, ...] = ()
    stands_in_for: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


def _bad(name: str, what: str, fix: str = "correct registry.toml") -> ScreproError:
    return ScreproError(
        "Every entry of the data registry has to be complete and consistent.", got=f"{name}: {what}", fix=fix
    )


def _safe(name: str, place: str) -> str:
    """A place below the cache: relative, and never climbing out of it."""
    parts = PurePosixPath(place)
    if not place or parts.is_absolute() or ".." in parts.parts:
        raise _bad(name, f"file place {place!r} is not a relative path below the cache")
    return place


def _file(name: str, table: dict, obtain: str) -> fetch.DataFile:
    if unknown := set(table) - _FILE_KEYS:
        raise _bad(name, f"unknown file field {sorted(unknown)[0]!r}")
    known = {"sha256": table.get("sha256"), "bytes": table.get("bytes")}
    digest = known["sha256"]
    if digest is not None and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
        raise _bad(name, f"sha256 {digest!r} is not 64 hexadecimal digits")
    if "repository" in table:
        commit = table.get("commit", "")
        if len(commit) != 40 or digest is None:
            raise _bad(name, "a repository file needs a full commit (40 digits) and its sha256")
        _safe(name, f"{table['repository']}/{table['path']}")
        return fetch.DataFile.in_repository(table["repository"], commit, table["path"], **known)
    if "name" not in table:
        raise _bad(name, "a file needs a name, or repository, commit and path")
    url = table.get("url")
    folder = table.get("folder") or (f"files/{name}" if url else f"manual/{name}")
    place = _safe(name, f"{folder}/{table['name']}")
    return fetch.DataFile(name=table["name"], place=place, url=url, obtain="" if url else obtain, **known)


def _entry(name: str, table: dict) -> Entry:
    table = dict(table)
    known = {each.name for each in fields(Entry)} - {"name"}
    if unknown := set(table) - known:
        raise _bad(name, f"unknown field {sorted(unknown)[0]!r}")
    if missing := [key for key in _REQUIRED if key not in table]:
        raise _bad(name, f"field {missing[0]!r} is missing")
    if table["kind"] not in KINDS or table["loader"] not in LOADERS:
        raise _bad(name, f"kind {table['kind']!r} or loader {table['loader']!r} does not exist")
    if table.get("values", "counts") not in ("counts", "log1p"):
        raise _bad(name, f"values {table['values']!r} is neither counts nor log1p")
    files = tuple(_file(name, each, table.get("obtain", "")) for each in table.pop("files", ()))
    if table["kind"] in ("repository", "paper") and not files:
        raise _bad(name, "no file is listed")
    if any(each.url is None for each in files) and not table.get("obtain"):
        raise _bad(name, "a file without an address needs `obtain`: where a person gets it")
    uses = []
    for line in table.pop("used_in", ()):
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 3 or not all(parts):
            raise _bad(name, f"used_in {line!r} is not 'paper | data set | items'")
        uses.append(Use(parts[0], parts[1], tuple(item.strip() for item in parts[2].split(","))))
    for key in ("optional", "stands_in_for", "cautions"):
        table[key] = tuple(table.get(key, ()))
    for key in ("labels", "options"):
        table[key] = MappingProxyType(dict(table.get(key, {})))
    if unknown := set(table["optional"]) - set(table["labels"]):
        raise _bad(name, f"optional label {sorted(unknown)[0]!r} is not among the labels")
    sizes = [each.bytes for each in files]
    if files and None not in sizes:
        table.setdefault("bytes", sum(sizes))
    return Entry(name=name, files=files, used_in=tuple(uses), **table)


def read(path: str | Path) -> dict[str, Entry]:
    """Read and check a registry file.

    Raises
    ------
    ScreproError
        The file is not TOML, or an entry is incomplete or contradicts another one.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ScreproError(
            "The data registry has to be TOML.", got=f"{path}: {error}", fix="correct that line"
        ) from None
    read_entries = {name: _entry(name, table) for name, table in tables.items()}
    by_place: dict[str, fetch.DataFile] = {}
    for entry in read_entries.values():
        for other in entry.stands_in_for:
            if other not in read_entries:
                raise _bad(entry.name, f"stands in for {other!r}, which has no entry")
        for file in entry.files:
            same = by_place.setdefault(file.place, file)
            if (same.url, same.sha256) != (file.url, file.sha256):
                raise _bad(entry.name, f"two files with different addresses share the place {file.place}")
    return read_entries


@lru_cache(maxsize=1)
def _all() -> Mapping[str, Entry]:
    return MappingProxyType(read(Path(__file__).with_name("registry.toml")))


def entries() -> dict[str, Entry]:
    """All data sets by name, in the order of the registry."""
    return dict(_all())


def get(name: str) -> Entry:
    """One data set by name; an unknown name is an error that names the nearest one."""
    if name in _all():
        return _all()[name]
    near = difflib.get_close_matches(name, _all(), n=1, cutoff=0.4)
    if Path(f"{name}.h5ad").is_file():  # a file of one's own, without its ending
        near = [f"{name}.h5ad"]
    hint = f"did you mean {near[0]}? " if near else ""
    raise ScreproError(
        "A data set is a name in the registry or the path of an .h5ad file.",
        got=str(name),
        fix=f"{hint}`screpro data list` prints all names",
    )


def of_paper(paper: str, dataset: str, item: str | None = None) -> Entry:
    """The data set a paper's table calls `dataset`; `item` ("Table 12") decides where one name means two sets."""
    for entry in _all().values():
        for use in entry.used_in:
            if (use.paper, use.dataset) == (paper, dataset) and (item is None or item in use.items):
                return entry
    known = sorted({use.dataset for entry in _all().values() for use in entry.used_in if use.paper == paper})
    raise ScreproError(
        "A data set of a paper is named as in its tables.",
        got=f"{paper}, {dataset}" + (f", {item}" if item else ""),
        fix=f"one of {', '.join(known)}" if known else "paper is scdiff, scldm, scldm-icml-notes or perturbdiff",
    )


def _is_path(name_or_path: str | Path) -> bool:
    text = str(name_or_path)
    return isinstance(name_or_path, Path) or text.endswith(".h5ad") or "/" in text or "\\" in text


def data_hash(name_or_path: str | Path) -> str:
    """The hash ``load`` will put in ``uns["data_hash"]``, without loading.

    Costs nothing for a name; the bytes of a path are read once. For a set whose hash nobody has recorded yet it
    is the word ``unrecorded``, until the set first arrives.
    """
    if _is_path(name_or_path):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            others = [other.name for other in path.parent.glob("*.h5ad")]
            near = difflib.get_close_matches(path.name, others, n=1)
            hint = f"did you mean {path.parent / near[0]}?" if near else "correct the path"
            raise ScreproError("A data path has to name a file.", got=str(path), fix=hint)
        return fetch.sha256_of(path)
    entry = get(str(name_or_path))
    if entry.sha256:
        return entry.sha256
    hashes = {file.name: fetch.known_hash(file) for file in entry.files}
    return fetch.combined_hash(hashes) if hashes and all(hashes.values()) else "unrecorded"


def available(name: str) -> str:
    """Where a data set would come from: ``embedded``, ``in SCREPRO_DATA``, ``cached``, ``to download``,
    or ``manual`` (a person has to get it). Looks, but does not check contents."""
    entry = get(name)
    if entry.kind == "embedded":
        return entry.kind
    return fetch.available(entry.files)


def verify(name: str) -> list[tuple[str, str]]:
    """Check the files of a data set that are here: ``(file, status)``, one pair each, without downloading."""
    entry = get(name)
    if entry.kind == "embedded":
        from screpro.data.embedded import pbmc68k_reduced

        found = pbmc68k_reduced().uns["data_hash"]
        return [(name, "ok" if found == entry.sha256 else f"wrong hash {found}, expected {entry.sha256}")]
    return [(file.name, fetch.status(file)) for file in entry.files]


def load(name_or_path: str | Path, *, label_key: str | None = "cell_type", batch_key: str | None = None) -> "AnnData":
    """Load a data set of the registry, or a user's ``.h5ad``, as integer counts.

    Parameters
    ----------
    name_or_path
        A name from `entries`, or the path of an ``.h5ad`` file.
    label_key, batch_key
        Columns of ``obs`` that become ``cell_type`` and ``batch``. None: no labels are needed; batches are taken from
        ``batch`` if there is such a column.

    Returns
    -------
    AnnData
        ``X`` CSR float32 of counts (cells x genes; of log1p values where ``uns["values"] == "log1p"``), labels
        in ``obs`` under our names, unique ``var_names``, ``uns["source"]``, ``uns["data_hash"]``.

    Raises
    ------
    ScreproError
        Unknown name, file not to be had or damaged, no counts in it, a label column missing.
    """
    if _is_path(name_or_path):
        from screpro.data import own

        return own.read_h5ad(Path(name_or_path).expanduser(), label_key=label_key, batch_key=batch_key)
    entry = get(str(name_or_path))
    from screpro.data import paper_sets

    adata = paper_sets.read(entry)
    return paper_sets.with_keys(adata, entry, label_key=label_key, batch_key=batch_key)
