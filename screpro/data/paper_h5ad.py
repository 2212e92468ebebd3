"""Reader for published ``.h5ad`` files, wherever they keep their counts.

One reader serves scvi-tools' PBMC, OpenProblems (counts in a layer), CELLxGENE (counts in ``raw``, symbols in
``feature_name``), CFGen (train and test file, layer ``X_counts``), Parse, Replogle in STATE's form and the
files of PerturbDiff (normalised values in ``obsm``); the registry's ``options`` say which is which.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

    from screpro.data.registry import Entry

__all__ = ["read_gears_zip", "read_h5ad_set"]


def read_h5ad_set(entry: "Entry", files: Mapping[str, Path]) -> "AnnData":
    """Read one or several ``.h5ad`` files.

    ``options``: ``counts``, the places to look in, first with whole numbers wins (``X``, ``raw``,
    ``layers/NAME``); ``log1p``, places of normalised values if there are no counts and the entry allows them
    (also ``obsm/NAME``); ``whole`` cuts fractions off, as the authors of the set do; ``genes``, the column
    of the gene table with the names; ``parts`` {file: split}; ``also`` {layer: place}.

    Returns
    -------
    AnnData
        CSR values, cells and genes of the file(s); ``obs["split"]`` where files are parts;
        ``uns["values"]`` is ``counts`` or ``log1p``.
    """
    import anndata

    parts = entry.options.get("parts", {})
    read = []
    for name, path in files.items():
        adata = _read_one(entry, Path(path))
        if parts:
            adata.obs["split"] = parts[name]
        read.append(adata)
    if len(read) == 1:
        return read[0]
    first = read[0]
    for name, other in zip(list(files)[1:], read[1:], strict=True):
        if list(other.var_names) != list(first.var_names):
            raise ScreproError(
                f"The parts of {entry.name} have to have the same genes in the same order.",
                got=f"{first.n_vars} genes in {next(iter(files))}, {other.n_vars} in {name}, not all equal",
                fix=f"take all parts from one source: {entry.obtain or entry.source}",
            )
    joined = anndata.concat(read, merge="same", index_unique=None)
    joined.uns["values"] = first.uns["values"]
    return joined


def _read_one(entry: "Entry", path: Path) -> "AnnData":
    from anndata import AnnData

    from screpro.data.own import open_h5ad, parts_of

    options = entry.options
    with open_h5ad(path) as file:
        parts = parts_of(file)
        place, values = _choose(entry, parts, file, path.name)
        if place.startswith("obsm/"):
            matrix, var = _embedded(file, place, parts.var)
        else:
            matrix, var = parts.matrices[place].to_csr(), _genes(entry, parts, place)
        if options.get("whole"):
            matrix.data = np.trunc(matrix.data)
            matrix.eliminate_zeros()
        adata = AnnData(X=matrix, obs=parts.obs.copy(), var=var, uns={"values": values})
        for layer, origin in options.get("also", {}).items():
            adata.layers[layer] = parts.matrices[_own_name(origin)].to_csr()
    adata.obs.index = adata.obs.index.astype(str)
    return adata


def _own_name(place: str) -> str:
    """``layers/counts`` -> ``layers['counts']``, ``raw`` -> ``raw.X``: the names that ``own.parts_of`` uses."""
    if place == "raw":
        return "raw.X"
    return f"layers[{place.removeprefix('layers/')!r}]" if place.startswith("layers/") else place


def _choose(entry: "Entry", parts, file, name: str) -> tuple[str, str]:
    """The first place with counts; where the entry allows it, else the first place with log values."""
    from screpro.data.validate import find_offence

    seen = []
    for place in entry.options["counts"]:
        matrix = parts.matrices.get(_own_name(place))
        if matrix is None:
            continue
        if entry.options.get("whole"):
            return _own_name(place), "counts"
        offence = find_offence(matrix)
        if offence is None:
            return _own_name(place), "counts"
        seen.append(f"{place}: {offence}")
    if entry.values == "log1p":
        for place in entry.options.get("log1p", ()):
            if place.startswith("obsm/") and place in file:
                return place, "log1p"
            if _own_name(place) in parts.matrices:
                return _own_name(place), "log1p"
    held = ", ".join(parts.matrices) or "no matrix"
    raise ScreproError(
        f"{name} has to hold the counts of {entry.name} in {' or '.join(entry.options['counts'])}.",
        got="; ".join(seen) or f"none of these; the file has {held}",
        fix=f"take the file from {entry.source}, not a processed copy",
    )


def _genes(entry: "Entry", parts, place: str) -> pd.DataFrame:
    """The gene table of a matrix, indexed by the column the entry names."""
    var = parts.genes(place).copy()
    column = entry.options.get("genes")
    if column is not None:
        if column in var:
            names = var[column]
        elif column in parts.var and len(parts.var) == len(var) and (parts.var.index == var.index).all():
            names = parts.var[column]  # raw keeps the identifiers only; the symbols stand in var
        else:
            raise ScreproError(
                f"The genes of {entry.name} have to have a column {column}.",
                got=", ".join(map(str, var.columns)) or "no column at all",
                fix=f"take the file from {entry.source}",
            )
        var["gene_id"] = var.index.astype(str)
        var.index = pd.Index(names.astype(str).to_numpy())
    var.index = var.index.astype(str)
    var.index.name = None
    return var


def _embedded(file, place: str, var: pd.DataFrame) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Values of a gene panel kept in ``obsm``, with the names of its genes if the file tells them."""
    from anndata.io import read_elem

    values = read_elem(file[place])
    if isinstance(values, pd.DataFrame):
        names = values.columns.astype(str)
        matrix = sp.csr_matrix(values.to_numpy(), dtype=np.float32)
    else:
        matrix = sp.csr_matrix(values, dtype=np.float32)
        chosen = var["highly_variable"].to_numpy(bool) if "highly_variable" in var else np.ones(len(var), bool)
        if chosen.sum() == matrix.shape[1]:
            names = var.index[chosen].astype(str)
        else:  # the panel's names are published in a separate pickle, which is never opened
            names = pd.Index([f"panel_{i}" for i in range(matrix.shape[1])])
    if not np.isfinite(matrix.data).all() or (matrix.nnz and (matrix.data.min() < 0 or matrix.data.max() > 20)):
        raise ScreproError(
            f"{place} has to hold log1p values: finite, 0 or more, below 20.",
            got=f"values from {matrix.data.min():.4g} to {matrix.data.max():.4g}",
            fix="take the published file; scaled or centred values cannot be used",
        )
    return matrix, pd.DataFrame(index=names)


def read_gears_zip(entry: "Entry", files: Mapping[str, Path]) -> "AnnData":
    """Read ``perturb_processed.h5ad`` out of the archive GEARS publishes; its own X is kept as a layer.

    ``options["member"]`` is the name of the file inside, in whatever folder. Nothing else is unpacked.
    """
    ((name, path),) = files.items()
    member = entry.options["member"]
    with zipfile.ZipFile(path) as archive:
        inside = [each for each in archive.namelist() if Path(each).name == member and "__MACOSX" not in each]
        if len(inside) != 1:
            raise ScreproError(
                f"{name} has to contain {member} once.",
                got=", ".join(archive.namelist()[:8]) or "an empty archive",
                fix=f"delete {path} and load again",
            )
        with tempfile.TemporaryDirectory(dir=path.parent if _writable(path.parent) else None) as folder:
            target = Path(folder) / member
            with archive.open(inside[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            return read_h5ad_set(entry, {member: target})


def _writable(folder: Path) -> bool:
    """Unpack beside the archive where that is allowed: the system's temporary folder may be small."""
    import os

    return os.access(folder, os.W_OK)
