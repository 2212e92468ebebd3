"""Bring one file here: a folder of the user's, the cache, else a download. Nothing unverified is ever returned.

The order is fixed: ``SCREPRO_DATA`` (a folder somebody filled), then the cache, then the address. A file whose
sha256 the registry knows must match it. A file whose sha256 nobody has recorded is accepted once; what arrived
is written to a lock beside it, and from then on it must stay the same.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from screpro.errors import ScreproError
from screpro.paths import atomic_path, cache_dir

__all__ = [
    "DataFile",
    "available",
    "combined_hash",
    "data_folder",
    "fetch",
    "known_hash",
    "locate",
    "lock_path",
    "sha256_of",
    "status",
]

_CONNECT_SECONDS, _READ_SECONDS = 15, 60
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Parameters
    ----------
    name
        How the loader asks for it: ``owner/repository/path``, or the file name.
    place
        Where it lies below ``SCREPRO_DATA`` and below the cache, with forward slashes.
    url
        Where it can be downloaded; None if a person has to get it.
    sha256, bytes
        What it must be; None if nobody has recorded it.
    obtain
        For a person: where it is published and how to get it.
    """

    name: str
    place: str
    url: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    obtain: str = ""

    @classmethod
    def in_repository(cls, repository: str, commit: str, path: str, **known) -> "DataFile":
        """A file of a public GitHub repository at a pinned commit."""
        return cls(
            name=f"{repository}/{path}",
            place=f"{repository}/{commit[:12]}/{path}",
            url=f"https://raw.githubusercontent.com/{repository}/{commit}/{quote(path)}",
            **known,
        )


def sha256_of(path: str | Path) -> str:
    """Hexadecimal sha256 of the bytes of a file."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def combined_hash(hashes: Mapping[str, str]) -> str:
    """One hash for a data set: of its file if there is one, else sha256 over the sorted ``name:hash`` lines."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{name}:{digest}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def data_folder() -> Path | None:
    """The folder named by ``SCREPRO_DATA``, or None if the variable is not set."""
    given = os.environ.get("SCREPRO_DATA")
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise ScreproError(
            "SCREPRO_DATA has to name a folder.",
            got=str(folder),
            fix="create it, correct the path, or unset the variable",
        )
    return folder


def locate(file: DataFile) -> tuple[Path, str] | None:
    """Where the file lies, unchecked: ``(path, "in SCREPRO_DATA" | "cached")``, or None."""
    folder = data_folder()
    if folder is not None and (folder / file.place).is_file():
        return folder / file.place, "in SCREPRO_DATA"
    if (cache_dir() / file.place).is_file():
        return cache_dir() / file.place, "cached"
    return None


def available(files: Iterable[DataFile]) -> str:
    """Where files would come from: ``manual``, else ``to download``, else ``cached``, else ``in SCREPRO_DATA``."""
    states = {found[1] if (found := locate(file)) else "to download" if file.url else "manual" for file in files}
    return next(state for state in ("manual", "to download", "cached", "in SCREPRO_DATA") if state in states)


def status(file: DataFile) -> str:
    """Whether a file is here and what it should be; nothing is downloaded."""
    found = locate(file)
    if found is None:
        return "to download" if file.url else "manual: " + file.obtain
    digest, expected = sha256_of(found[0]), known_hash(file)
    if expected is None:
        return f"present ({found[1]}), no hash on record yet: {digest}"
    if digest == expected:
        return f"ok ({found[1]})"
    return f"wrong hash {digest} ({found[1]}: {found[0]}), expected {expected}"


def lock_path(file: DataFile) -> Path:
    """The lock of a file without a recorded hash: in the cache, beside where a download would lie."""
    kept = cache_dir() / file.place
    return kept.with_name(kept.name + ".lock.json")


def known_hash(file: DataFile) -> str | None:
    """The sha256 the file has to have: recorded in the registry, else by its lock, else None."""
    if file.sha256 is not None:
        return file.sha256
    lock = lock_path(file)
    if not lock.is_file():
        return None
    try:
        return str(json.loads(lock.read_text())["sha256"])
    except (ValueError, KeyError, TypeError):
        raise ScreproError(
            "The lock of a data file has to be JSON with a field sha256.",
            got=f"another content in {lock}",
            fix="delete the lock; the next load records the hash again",
        ) from None


def _problem(path: Path, file: DataFile, digest: str) -> str | None:
    """Why these bytes are not the file, or None."""
    size = path.stat().st_size
    if file.bytes is not None and size < file.bytes:
        return f"{size} of {file.bytes} bytes (truncated), sha256 {digest}"
    expected = known_hash(file)
    if expected is not None and digest != expected:
        return f"sha256 {digest} ({size} bytes)"
    return None


def _lock(path: Path, file: DataFile, digest: str) -> str:
    """Record the hash of a file seen for the first time; of two processes that race here, the first one wins.

    Returns the hash on record, which is not `digest` if another process recorded another one.
    """
    lock = lock_path(file)
    lock.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "sha256": digest,
        "bytes": path.stat().st_size,
        "first_seen": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": file.url,
    }
    aside = lock.with_name(f".{lock.name}.{os.getpid()}.{time.monotonic_ns()}")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    try:
        os.link(aside, lock)  # fails if the lock exists: never overwrites what somebody else recorded
    except FileExistsError:
        return known_hash(file) or digest
    except OSError:
        aside.replace(lock)
    finally:
        aside.unlink(missing_ok=True)
    print(
        f"screpro: no hash is on record for {file.name}; recorded sha256 {digest} in {lock}. It must stay the same.",
        file=sys.stderr,
    )
    return digest


def fetch(file: DataFile, *, progress: bool | None = None) -> Path:
    """Return the path of a verified copy of `file`, downloading it if need be.

    Parameters
    ----------
    file
        What to bring.
    progress
        Show a progress bar on stderr; None shows it only on a terminal.

    Returns
    -------
    Path
        In ``SCREPRO_DATA`` or in the cache.

    Raises
    ------
    ScreproError
        A file in ``SCREPRO_DATA`` has the wrong hash; a file changed after its hash was recorded; the file is
        nowhere and cannot be downloaded (no address, no network, wrong bytes at the address).
    """
    found = locate(file)
    if found is not None:
        path, where = found
        digest = sha256_of(path)
        problem = _problem(path, file, digest)
        if problem is None:
            if known_hash(file) is None:
                _lock(path, file, digest)
            return path
        if where == "in SCREPRO_DATA":
            raise ScreproError(
                f"{file.name} in SCREPRO_DATA has to have sha256 {known_hash(file)}.",
                got=f"{path}: {problem}",
                fix="replace or delete that file, or unset SCREPRO_DATA to have it downloaded",
            )
        if file.sha256 is None:
            # nobody but the lock says what is right, so neither copy can be thrown away for the user
            raise ScreproError(
                f"{file.name} has to keep the sha256 recorded when it first arrived, {known_hash(file)}.",
                got=f"{path}: {problem}",
                fix=f"restore the file, or delete it and {lock_path(file)} to accept what comes next",
            )
        print(f"screpro: {path} is damaged ({problem}); downloading it again", file=sys.stderr)
    if file.url is None:
        raise _not_here(file, "nowhere, and it cannot be downloaded automatically")
    return _download(file, progress=sys.stderr.isatty() if progress is None else progress)


def _download(file: DataFile, *, progress: bool) -> Path:
    """Download aside, verify, then put in place: the target is never half a file."""
    import pooch
    import requests

    target = cache_dir() / file.place
    get = pooch.HTTPDownloader(progressbar=progress, timeout=(_CONNECT_SECONDS, _READ_SECONDS))
    with atomic_path(target) as aside:
        try:
            get(file.url, str(aside), None)
        except requests.HTTPError as error:
            code = getattr(error.response, "status_code", "?")
            raise _not_here(file, f"HTTP status {code} from {file.url}") from None
        except requests.RequestException as error:
            raise _not_here(file, f"no complete answer from {file.url} ({type(error).__name__})") from None
        digest = sha256_of(aside)
        problem = _problem(aside, file, digest)
        if problem is None and known_hash(file) is None and _lock(aside, file, digest) != digest:
            problem = f"sha256 {digest}"
        if problem is not None:
            raise ScreproError(
                f"What {file.url} sends has to have sha256 {known_hash(file)}.",
                got=problem,
                fix="try again; if it stays so the published file changed: tell us, and supply the old one as "
                f"{target}",
            )
    _sweep(target)
    return target


def _sweep(target: Path) -> None:
    """Delete what a killed download left beside the file, once it is certainly dead."""
    for left in target.parent.glob(f".{target.name}.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()


def _not_here(file: DataFile, got: str) -> ScreproError:
    """The one error of a file that is not to be had: which, where it was looked for, how to supply it."""
    folder = data_folder()
    searched = [str(cache_dir() / file.place)]
    if folder is not None:
        searched.insert(0, str(folder / file.place))
    hash_note = f" (sha256 {file.sha256})" if file.sha256 else ""
    source = file.obtain or (f"download {file.url} on a machine with a network" if file.url else "get it")
    return ScreproError(
        f"The data file {file.name}{hash_note} has to be at hand.",
        got=f"{got}; looked for {' and '.join(searched)}",
        fix=f"{source}; put it at {searched[-1]}, or below a folder named by SCREPRO_DATA as {file.place}",
    )
