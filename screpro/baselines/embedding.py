"""Embeddings that scLDM's latents are compared with (Tables 4, 5, 17, 18), and files of embeddings made elsewhere.

Those with training learn from cells that are not scored and embed the ones that are:

- ``pca``: principal components of log-normalised counts.
- ``scvi``, ``scvi_wide``: posterior means of scVI with 10 latents (its default) and with as many as the protocol keeps.
- ``genes``: log-normalised counts themselves. `direct`: classified without principal components and with a penalty.
- ``depth``: number of molecules and of genes alone. What it can tell apart is told by how cells were prepared.
- ``noise``: random numbers. What the protocol scores where there is nothing to find.

TranscriptFormer, UCE, scGPT, Geneformer, AIDO.Cell and any other model enter as files (`external`): their weights do
not come with this project, and a vector per cell is all that the comparison needs.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines.common import contained_torch
from screpro.baselines.registry import contained, entry_of, method_of
from screpro.data.preprocess import log_cp10k
from screpro.errors import ScreproError

__all__ = ["EMBEDDINGS", "Embedding", "external", "run"]


class Embedding(NamedTuple):
    """One way to give cells vectors."""

    name: str  # key in EMBEDDINGS and in result rows
    title: str  # as a table prints it
    source: str  # whom to cite
    where: str  # module:function below screpro.baselines; imported at the first call
    trivial: bool = False
    deterministic: bool = False  # one run, without a seed
    direct: bool = False  # classified as it is, with a penalty
    needs: str | None = None  # extra of this package that has to be installed


def run(
    name: str,
    train: sp.csr_matrix,
    cells: sp.csr_matrix,
    *,
    seed: int,
    threads: int = 1,
    options: dict[str, Any] | None = None,
) -> np.ndarray:
    """Vectors (m, k) of cells by method `name`, which learns from other cells.

    Parameters
    ----------
    name
        Key of `EMBEDDINGS`.
    train, cells
        (n, G) and (m, G) raw counts of the same genes; every cell has at least one.
    seed, threads
        Of everything random in the method; threads it may use.
    options
        Options of the method; None takes its defaults.

    Raises
    ------
    ScreproError
        Unknown method or option, package not installed, other genes, or cells without counts.
    """
    entry, options = entry_of(EMBEDDINGS, name), options or {}
    method = method_of(name, entry.where, options, fixed=("train", "cells", "seed", "threads"))
    train, cells = (sp.csr_matrix(counts, dtype=np.float32) for counts in (train, cells))
    empty = sum(int((np.asarray(counts.sum(1)).ravel() == 0).sum()) for counts in (train, cells))
    if empty or train.shape[1] != cells.shape[1] or train.shape[0] < 2:
        raise ScreproError(
            "An embedding learns from two or more cells, and embeds cells of the same genes; each has a count.",
            got=f"training cells {train.shape}, cells {cells.shape}, {empty} of them empty",
            fix="use one panel of genes, and drop cells without a count in it",
        )
    with contained(name, threads=threads, needs=entry.needs), contained_torch(seed=seed, threads=threads):
        return method(train, cells, seed=seed, threads=threads, **options)


def pca(
    train: sp.csr_matrix, cells: sp.csr_matrix, *, seed: int, threads: int = 1, components: int = 128
) -> np.ndarray:
    """Principal components of log1p of counts per 10 000, fitted on the training cells."""
    from sklearn.decomposition import PCA

    solver = "covariance_eigh" if train.shape[1] <= 2000 else "arpack"
    model = PCA(min(components, min(train.shape) - 1), svd_solver=solver, random_state=0)
    if solver == "arpack":  # takes sparse input
        return model.fit(log_cp10k(train)).transform(log_cp10k(cells))
    return model.fit(log_cp10k(train).toarray()).transform(log_cp10k(cells).toarray())


def scvi(
    train: sp.csr_matrix,
    cells: sp.csr_matrix,
    *,
    seed: int,
    threads: int = 1,
    epochs: int | None = None,
    batch_size: int = 128,
    n_latent: int = 10,
) -> np.ndarray:
    """Posterior means of scVI; the KL term's weight rises over all of the epochs, however few.

    Parameters
    ----------
    epochs
        Passes over the training cells; None takes the package's rule.
    batch_size, n_latent
        Cells per step, and latents.
    """
    from screpro.baselines import scvi_counts

    how = {"epochs": epochs, "batch_size": batch_size, "n_latent": n_latent, "warmup_epochs": None}
    return scvi_counts.fit(train, seed=seed, threads=threads, **how).encode(cells)


def scvi_wide(
    train: sp.csr_matrix,
    cells: sp.csr_matrix,
    *,
    seed: int,
    threads: int = 1,
    epochs: int | None = None,
    batch_size: int = 128,
    n_latent: int = 128,
) -> np.ndarray:
    """scVI with as many latents as the protocol keeps components, so that a small latent is not what decides."""
    return scvi(train, cells, seed=seed, threads=threads, epochs=epochs, batch_size=batch_size, n_latent=n_latent)


def genes(train: sp.csr_matrix, cells: sp.csr_matrix, *, seed: int, threads: int = 1) -> sp.csr_matrix:
    """log1p of counts per 10 000 of every gene of the panel, sparse."""
    return log_cp10k(cells)


def depth(train: sp.csr_matrix, cells: sp.csr_matrix, *, seed: int, threads: int = 1) -> np.ndarray:
    """Logarithms of the number of molecules and of the number of expressed genes of the panel, (m, 2)."""
    return np.log(np.column_stack([np.asarray(cells.sum(1)).ravel(), cells.getnnz(axis=1)]))


def noise(
    train: sp.csr_matrix, cells: sp.csr_matrix, *, seed: int, threads: int = 1, components: int = 128
) -> np.ndarray:
    """Standard normal numbers, (m, components)."""
    return np.random.default_rng(seed).standard_normal((cells.shape[0], components))


EMBEDDINGS: dict[str, Embedding] = {
    entry.name: entry
    for entry in (
        Embedding("pca", "PCA", "Pearson 1901; log-normalised counts", "embedding:pca", deterministic=True),
        Embedding(
            "scvi", "scVI", "Lopez et al., Nature Methods 2018, 10.1038/s41592-018-0229-2", "embedding:scvi",
            needs="baselines",
        ),
        Embedding(
            "scvi_wide", "scVI, 128 latents", "Lopez et al., Nature Methods 2018, 10.1038/s41592-018-0229-2",
            "embedding:scvi_wide", needs="baselines",
        ),
        Embedding(
            "genes", "Genes, L2 penalty", "no embedding", "embedding:genes", deterministic=True, direct=True
        ),
        Embedding(
            "depth", "Molecules and genes alone", "no method", "embedding:depth", trivial=True, deterministic=True
        ),
        Embedding("noise", "Random numbers", "no method", "embedding:noise", trivial=True),
    )
}  # fmt: skip
"""Every embedding that is made here, besides scLDM's own."""


# --- embeddings made elsewhere ------------------------------------------------------------------------------


def external(
    path: str | Path, *, cells: list[str], key: str | None = None, index: str | Path | None = None
) -> np.ndarray:
    """Vectors (m, k) of the named cells, in their order, from a file that another model wrote. Nothing is unpickled.

    Parameters
    ----------
    path
        ``.npy`` with an array (n, k), or ``.h5ad``.
    cells
        Names of the m cells wanted. The file may hold others, in any order.
    key
        Of an ``.h5ad``: the entry of ``obsm``; None takes its only one, or ``X`` where there is none.
    index
        Of a ``.npy``: text file with the name of the cell of every row, one a line; None: the same name with the ending
        ``.cells.txt``. An ``.h5ad`` has the names in ``obs``.

    Raises
    ------
    ScreproError
        No such file, entry or index; not numbers in two dimensions; names missing, twice or of another number than the
        rows; a value of a wanted cell that is not finite.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".npy", ".h5ad"):
        raise _wrong(path, f"the ending {path.suffix or 'of nothing'}", "save the vectors as .npy or .h5ad")
    values, names = _npy(path, index) if path.suffix == ".npy" else _h5ad(path, key)
    if values.ndim != 2 or values.shape[1] < 1 or values.dtype.kind not in "fiu":
        raise _wrong(path, f"shape {values.shape}, type {values.dtype}", "save one row of numbers per cell")
    if len(names) != len(values):
        raise _wrong(path, f"{len(values)} rows, {len(names)} names", "name every row, in the order of the rows")
    row = {name: number for number, name in enumerate(names)}
    for listed, known, what in ((names, row, "the file"), (cells, set(cells), "the cells asked for")):
        if len(known) != len(listed):
            raise _wrong(path, f"{len(listed) - len(known)} names twice in {what}", "give every cell a name of its own")
    if missing := [name for name in cells if name not in row]:
        got = f"{len(missing)} of {len(cells)} cells are not in it, {missing[0]!r} among them"
        raise _wrong(path, got, f"embed every cell, under the names of the data set (the file has {names[:1]})")
    found = np.asarray(values[np.array([row[name] for name in cells], dtype=int)], dtype=np.float64)
    if bad := int((~np.isfinite(found)).any(axis=1).sum()):
        raise _wrong(path, f"{bad} of {len(cells)} cells have values that are not finite", "embed these cells again")
    return found


def _wrong(path: Path, got: str, fix: str) -> ScreproError:
    rule = "A file of an embedding has one named row of finite numbers for every cell that is scored."
    return ScreproError(rule, got=f"{path}: {got}", fix=fix)


def _npy(path: Path, index: str | Path | None) -> tuple[np.ndarray, list[str]]:
    beside = Path(index).expanduser() if index else path.with_suffix(".cells.txt")
    for file, what in ((path, "the vectors"), (beside, "the names of the cells, one a line")):
        if not file.is_file():
            raise _wrong(path, f"there is no file {file}", f"it should hold {what}")
    try:
        values = np.load(path, allow_pickle=False, mmap_mode="r")
        names = beside.read_text(encoding="utf-8").splitlines()
    except (ValueError, OSError, EOFError) as error:  # an array of objects would have to be unpickled
        first = (str(error).splitlines() or ["no message"])[0]
        raise _wrong(path, f"cannot be read: {first}", "save a plain array of numbers with numpy.save") from error
    return values, names


def _h5ad(path: Path, key: str | None) -> tuple[np.ndarray, list[str]]:
    from anndata.io import read_elem

    from screpro.data.own import open_h5ad

    with open_h5ad(path) as file:
        entries = list(file["obsm"]) if "obsm" in file else []
        if key is None and len(entries) > 1:
            raise _wrong(path, f"obsm has {', '.join(entries)}", "say which one with key=, on a page by name=file#key")
        if key is not None and key not in entries:
            raise _wrong(path, f"no {key!r} in obsm ({', '.join(entries) or 'empty'})", "name an entry of obsm")
        key = key or (entries[0] if entries else None)
        if key is None and "X" not in file:
            raise _wrong(path, "neither obsm nor X", "write the vectors into obsm or X")
        values = read_elem(file["obsm"][key] if key else file["X"])
        names = [str(name) for name in read_elem(file["obs"]).index]
    if sp.issparse(values):
        values = values.toarray()
    return np.asarray(values), names
