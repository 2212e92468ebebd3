"""A user's own ``.h5ad``: find the counts, check everything, and give it the shape of a registry data set."""

import difflib
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from screpro.data.stored import Stored, stored
from screpro.data.validate import check_counts, check_genes, check_labels, find_offence, is_missing
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["PLACES", "Parts", "check_h5ad", "open_h5ad", "parts_of", "read_h5ad"]

# where counts are looked for; the first that holds counts is used
PLACES = ("layers['counts']", "X", "raw.X")


class Parts(NamedTuple):
    """What is looked at of a file or an AnnData. Matrices are views: nothing large has been read yet."""

    obs: pd.DataFrame  # (n, ...)
    var: pd.DataFrame  # (m, ...) genes of X and of the layers
    raw_var: pd.DataFrame | None  # (m', ...) genes of raw.X
    matrices: dict[str, Stored]  # name of the place -> matrix: those of PLACES first, then other layers

    def genes(self, place: str) -> pd.DataFrame:
        """The gene table that belongs to a matrix."""
        return self.raw_var if place == "raw.X" else self.var


def read_h5ad(path: str | Path, *, label_key: str | None = "cell_type", batch_key: str | None = None) -> "AnnData":
    """Read cells that nobody prepared for screpro.

    Parameters
    ----------
    path
        An ``.h5ad`` file. Its counts are the first of ``layers['counts']``, ``X`` and ``raw.X`` that holds
        only finite whole numbers, 0 or more. Gene names stay as they are (symbols or Ensembl identifiers).
    label_key
        Column of ``obs`` with the classes, copied to ``cell_type``. None: no labels are needed.
    batch_key
        Column of ``obs`` copied to ``batch``. None: a column ``batch`` is used if there is one
        without gaps.

    Returns
    -------
    AnnData
        ``X`` CSR float32 of counts, ``obs`` and ``var`` of the file, ``uns["source"]`` (the file and where in
        it the counts were), ``uns["data_hash"]`` (sha256 of the file, hexadecimal). Embeddings, graphs
        and other layers of the file are not read.

    Raises
    ------
    ScreproError
        If the file cannot be read, or breaks one of the rules of `screpro.data.validate`.
    """
    from anndata import AnnData

    path = Path(path).expanduser()
    with open_h5ad(path) as file:
        parts = parts_of(file)
        obs = parts.obs.copy()
        # the cheap checks first: a misspelt column is told before gigabytes are read
        if label_key is not None:
            check_labels(obs, label_key)
            obs["cell_type"] = _classes(obs[label_key])
        if batch_key is None and "batch" in obs.columns:
            if is_missing(obs["batch"]).any():
                warnings.warn(f"column 'batch' of {path.name} has gaps and is left out", stacklevel=2)
                del obs["batch"]
            else:
                batch_key = "batch"
        if batch_key is not None:
            check_labels(obs, batch_key, parameter="batch_key", min_classes=1, min_cells=1)
            obs["batch"] = _classes(obs[batch_key])
        place = _counts_place(parts, path.name)
        var = parts.genes(place)
        check_genes(var.index)
        counts = parts.matrices[place].to_csr()
    with path.open("rb") as whole:
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    obs.index, var.index = obs.index.astype(str), var.index.astype(str)
    adata = AnnData(X=counts, obs=obs, var=var, uns={"source": f"{path} (counts from {place})"})
    adata.obs_names_make_unique()  # barcodes repeat where files were joined; nothing depends on them
    adata.uns["data_hash"] = digest
    return adata


def check_h5ad(path: str | Path, *, columns: Mapping[str, str]) -> None:
    """Raise what is wrong with a file before any work is begun with it; nothing is kept in memory.

    Parameters
    ----------
    path
        An ``.h5ad`` file.
    columns
        Parameter of a page -> column of ``obs`` that it names. Batches, groups and conditions may be one and of any
        size; any other column must hold two classes of two cells.

    Raises
    ------
    ScreproError
        As `read_h5ad`, with the name of the parameter.
    """
    path = Path(path).expanduser()
    if path.suffix != ".h5ad":
        raise ScreproError(
            "A data set of your own is an .h5ad file, named so.", got=str(path), fix="rename it, or write it as .h5ad."
        )
    with open_h5ad(path) as file:
        parts = parts_of(file)
        for parameter, column in columns.items():
            least = 1 if parameter in ("batch_key", "group_key", "condition_key") else 2
            check_labels(parts.obs, column, parameter=parameter, min_classes=least, min_cells=least)
        check_genes(parts.genes(_counts_place(parts, path.name)).index)


def _classes(column: pd.Series) -> pd.Categorical:
    """The classes as text, in alphabetical order, none of them empty."""
    text = column.astype(str)
    return pd.Categorical(text, categories=sorted(text.unique()))


def _counts_place(parts: Parts, name: str) -> str:
    """The first of `PLACES` that holds counts."""
    found = {}
    for place in PLACES:
        if place in parts.matrices:
            try:
                check_counts(parts.matrices[place], what=f"{place} of {name}")
            except ScreproError as error:
                found[place] = error
            else:
                return place
    if len(found) == 1:
        raise next(iter(found.values()))
    spare = [place for place in parts.matrices if place not in PLACES and find_offence(parts.matrices[place]) is None]
    raise ScreproError(
        f"{name} must hold counts in {', '.join(PLACES)}: finite whole numbers of molecules, 0 or more.",
        got="; ".join(f"{place}: {error.got}" for place, error in found.items()) or "none of these places exists",
        fix=f"adata.layers['counts'] = adata.{spare[0]}, which holds counts, and write the file again."
        if spare
        else "put the raw counts in layers['counts'] of the file, before any normalisation or scaling.",
    )


@contextmanager
def open_h5ad(path: Path) -> Iterator[Any]:
    """Open an ``.h5ad`` for reading; whatever is wrong with the file becomes one `ScreproError`."""
    import h5py

    rule = "A data set of your own must be a complete .h5ad file."
    if path.is_dir():
        raise ScreproError(
            rule,
            got=f"{path} is a folder",
            fix="name the .h5ad file inside it; a Zarr store or 10x folder has to be written as .h5ad first.",
        )
    if not path.exists():
        close = difflib.get_close_matches(path.name, _siblings(path), n=1)
        hint = f"did you mean {path.parent / close[0]}?" if close else "check the spelling and the folder."
        raise ScreproError(rule, got=f"there is no file {path}", fix=hint)
    try:
        is_hdf5 = _starts_readable(path) and h5py.is_hdf5(path)
    except OSError as error:
        raise ScreproError(
            rule, got=f"{path} may not be read: {error.strerror or error}", fix="check its permissions."
        ) from error
    if not is_hdf5:
        raise ScreproError(rule, got=f"{path} {_looks_like(path)}", fix=_AGAIN)
    try:
        with h5py.File(path, "r") as file:
            if "obs" not in file or "var" not in file:
                raise ScreproError(
                    rule,
                    got=f"{path} is HDF5 without obs and var; in it: {', '.join(list(file)[:5]) or '-'}",
                    fix="read it with scanpy (read_10x_h5, read_loom) and save it with adata.write_h5ad().",
                )
            yield file
    except (ScreproError, MemoryError):
        raise
    except Exception as error:  # damaged HDF5 shows itself as almost any exception
        first_line = (str(error).strip() or "no message").splitlines()[0]
        raise ScreproError(
            rule, got=f"{path} cannot be read: {type(error).__name__}: {first_line}", fix=_AGAIN
        ) from error


_AGAIN = "copy or download it again and compare sizes; or write it again with adata.write_h5ad(...)."


def _siblings(path: Path) -> list[str]:
    try:
        return [other.name for other in path.parent.iterdir()]
    except OSError:
        return []


def _starts_readable(path: Path) -> bool:
    """Raise OSError where the file may not be opened; h5py would only say that it is not HDF5."""
    with path.open("rb") as file:
        return bool(file.read(1))


def _looks_like(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        return "is empty"
    if start.startswith(b"\x1f\x8b"):
        return "is gzip-compressed: gunzip it first"
    if start.startswith(b"\x89HDF"):
        return "begins like HDF5 and is cut off"
    return "is not HDF5, which every .h5ad is"


def parts_of(source: Any) -> Parts:
    """The tables and matrices of an open ``.h5ad`` or of an AnnData, without reading the matrices.

    Raises
    ------
    ValueError
        If the matrices do not fit the tables.
    """
    import h5py
    from anndata import AnnData
    from anndata.io import read_elem
    from anndata.io import read_h5ad as read_whole

    if isinstance(source, h5py.File) and isinstance(source["obs"], h5py.Dataset):
        source = read_whole(source.filename)  # written before anndata 0.7: let anndata translate it
    if isinstance(source, AnnData):
        obs, var, x, layers = source.obs, source.var, source.X, dict(source.layers)
        raw = source.raw
        raw_x, raw_var = (raw.X, raw.var) if raw is not None else (None, None)
    else:
        obs, var = read_elem(source["obs"]), read_elem(source["var"])
        x, layers = source.get("X"), dict(source.get("layers", {}))
        raw_x = source.get("raw/X")
        raw_var = read_elem(source["raw/var"]) if raw_x is not None else None
    layers = {f"layers[{name!r}]": matrix for name, matrix in layers.items()}
    if isinstance(x, h5py.Dataset) and x.shape in ((), None):  # how an AnnData without X is written
        x = None
    everything = {"layers['counts']": layers.pop("layers['counts']", None), "X": x, "raw.X": raw_x, **layers}
    parts = Parts(obs, var, raw_var, {})
    for place, matrix in everything.items():
        if matrix is None:
            continue
        try:
            view = stored(matrix)
        except ValueError:
            if place in PLACES:
                raise
            continue  # a layer nobody asked for, of a kind that is not a matrix of numbers
        rows, columns = len(obs), len(parts.genes(place))
        if view.shape != (rows, columns):
            raise ValueError(f"{place} is {view.shape[0]} x {view.shape[1]} for {rows} cells and {columns} genes")
        parts.matrices[place] = view
    return parts
