"""From the files of a data set to the shape all of screpro works with.

A reader turns one file format into counts, cells and genes (``paper_h5ad``, ``paper_matrix``; ``recipes`` for
the small sets). What is common to all of them happens here: bring the files, give the labels our names, check
that the values are counts, and write down where they come from.
"""

import difflib
import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from screpro.data import fetch
from screpro.data.paper_h5ad import read_gears_zip, read_h5ad_set
from screpro.data.paper_matrix import read_geo_kang, read_tenx, read_umi_table
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

    from screpro.data.registry import Entry

__all__ = ["READERS", "finish", "read", "with_keys"]

READERS: dict[str, Callable[["Entry", Mapping[str, Path]], "AnnData"]] = {
    "h5ad": read_h5ad_set,
    "gears_zip": read_gears_zip,
    "tenx_archive": read_tenx,
    "geo_kang": read_geo_kang,
    "umi_table": read_umi_table,
}

_DAMAGED = (EOFError, OSError, ValueError, KeyError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError)


def read(entry: "Entry") -> "AnnData":
    """Bring the files of a registry entry and load them.

    Raises
    ------
    ScreproError
        A file cannot be had, is not what it should be, or holds no counts.
    """
    if entry.kind == "embedded":
        from screpro.data.embedded import pbmc68k_reduced

        return pbmc68k_reduced()
    files = {file.name: fetch.fetch(file) for file in entry.files}
    try:
        if entry.loader == "recipe":
            from screpro.data.recipes import RECIPES

            adata = RECIPES[entry.name](files)
        else:
            adata = finish(READERS[entry.loader](entry, files), entry)
    except _DAMAGED as error:
        places = ", ".join(str(files[file.name]) for file in entry.files)
        locked = "" if all(file.sha256 for file in entry.files) else " and the .lock.json beside"
        raise ScreproError(
            f"The files of {entry.name} have to be what the registry describes ({entry.source}).",
            got=f"{type(error).__name__}: {str(error).strip() or 'no message'}",
            fix=f"if they are damaged, delete {places}{locked}, and load again",
        ) from error
    adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    adata.uns["source"] = f"{entry.title}; {entry.source}"
    adata.uns["data_hash"] = fetch.combined_hash({file.name: fetch.known_hash(file) for file in entry.files})
    return adata


def finish(adata: "AnnData", entry: "Entry") -> "AnnData":
    """Select, filter and label cells as the entry says, and check the values.

    ``options`` understood here: ``constant`` {our column: value}; ``keep`` {column of the file: values};
    ``min_cells_per_gene``, then ``min_genes_per_cell``; ``min_cells_per_type`` (types with fewer are dropped).
    """
    from screpro.data.validate import check_counts

    options = entry.options
    for column, kept in options.get("keep", {}).items():
        _need(adata.obs, column, entry)
        chosen = adata.obs[column].astype(str).isin(list(kept)).to_numpy()
        if not chosen.any():
            seen = ", ".join(sorted(adata.obs[column].astype(str).unique())[:8])
            raise ScreproError(
                f"{entry.name} has to hold cells with {column} in {list(kept)}.", got=seen, fix="check the file"
            )
        adata = adata[chosen].copy()
    if least := options.get("min_cells_per_gene"):
        adata = adata[:, np.asarray((adata.X > 0).sum(axis=0)).ravel() >= least].copy()
    if least := options.get("min_genes_per_cell"):
        adata = adata[np.asarray((adata.X > 0).sum(axis=1)).ravel() >= least].copy()
    adata.obs = _labelled(adata.obs, entry)
    if least := options.get("min_cells_per_type"):
        sizes = adata.obs["cell_type"].map(adata.obs["cell_type"].value_counts()).astype(int)
        adata = adata[sizes.to_numpy() >= least].copy()
        adata.obs["cell_type"] = adata.obs["cell_type"].cat.remove_unused_categories()
    adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    adata.uns["values"] = adata.uns.get("values", "counts")
    if adata.uns["values"] == "counts":
        check_counts(adata.X, what=f"the count matrix of {entry.name}")
    adata.var_names = adata.var_names.astype(str)
    adata.var_names_make_unique()
    adata.obs_names = adata.obs_names.astype(str)
    adata.obs_names_make_unique()
    return adata


def _labelled(obs: pd.DataFrame, entry: "Entry") -> pd.DataFrame:
    """The cells with their labels under our names, as categories; the file's other columns stay."""
    made: dict[str, pd.Series] = {}
    for ours, theirs in entry.labels.items():
        if theirs not in obs and ours in entry.optional:
            continue
        _need(obs, theirs, entry)
        column = obs[theirs]
        text = column.astype(str).where(column.notna(), "unassigned")
        made[ours] = text.map(lambda value: _plain(value, entry.control)) if ours == "perturbation" else text
    if "perturbation" in made and "condition" not in made:
        made["condition"] = pd.Series(
            np.where(made["perturbation"] == "control", "control", "perturbed"), index=obs.index
        )
    for ours, value in entry.options.get("constant", {}).items():
        made[ours] = pd.Series(value, index=obs.index)
    obs = obs.copy()
    for ours, column in made.items():
        if ours in obs and entry.labels.get(ours) != ours:
            obs[f"{ours}_published"] = obs[ours]
        obs[ours] = pd.Categorical(column)
    return obs


def _plain(name: str, control: str) -> str:
    """``A+ctrl`` and ``ctrl+A`` -> ``A``, the control's own name -> ``control``, ``A+B`` as it is."""
    parts = [part for part in name.split("+") if part != control] if control else [name]
    return "+".join(parts) if parts else "control"


def _need(obs: pd.DataFrame, column: str, entry: "Entry") -> None:
    if column not in obs:
        near = difflib.get_close_matches(column, [str(c) for c in obs.columns], n=1)
        raise ScreproError(
            f"The cells of {entry.name} have to have a column {column}.",
            got=", ".join(map(str, obs.columns)) or "no column at all",
            fix=f"rename {near[0]}" if near else f"check that the file is {entry.source}",
        )


def with_keys(adata: "AnnData", entry: "Entry", *, label_key: str | None, batch_key: str | None) -> "AnnData":
    """Let other columns of a registry data set serve as ``cell_type`` and ``batch``."""
    for ours, theirs in (("cell_type", label_key), ("batch", batch_key)):
        if theirs is None or theirs == ours:
            continue
        _need(adata.obs, theirs, entry)
        adata.obs[ours] = pd.Categorical(adata.obs[theirs].astype(str))
    return adata
