"""Readers for published count matrices that are not ``.h5ad``: 10x archives, GEO matrix files, a text table."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp

from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

    from screpro.data.registry import Entry

__all__ = ["read_geo_kang", "read_tenx", "read_umi_table"]

_ROWS_AT_ONCE = 1000  # of a text table that would be gigabytes as one dense array


def _opened(raw: bytes) -> bytes:
    """Bytes of a file, unpacked if they are gzip."""
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def _table(raw: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(_opened(raw)), sep="\t", header=None, dtype=str, keep_default_na=False)


def _cells_by_genes(raw: bytes, cells: int, genes: int, what: str) -> sp.csr_matrix:
    """A Matrix Market file of genes x cells, transposed and checked against its two tables."""
    matrix = sp.csr_matrix(scipy.io.mmread(io.BytesIO(_opened(raw))).T, dtype=np.float32)
    if matrix.shape != (cells, genes):
        raise ScreproError(
            f"The matrix of {what} has to fit its tables: {genes} genes x {cells} cells.",
            got=f"{matrix.shape[1]} genes x {matrix.shape[0]} cells",
            fix="take matrix, genes and barcodes from the same release",
        )
    return matrix


def read_tenx(entry: "Entry", files: Mapping[str, Path]) -> "AnnData":
    """Read a 10x Genomics matrix: ``*_filtered_gene_bc_matrices.tar.gz`` (mtx and tables) or ``.h5``.

    Returns
    -------
    AnnData
        Cells x genes, gene symbols as names, Ensembl identifiers in ``var["gene_id"]``.
    """
    from anndata import AnnData

    ((name, path),) = files.items()
    if name.endswith(".h5"):
        from scanpy import read_10x_h5

        adata = read_10x_h5(path)
        adata.var = adata.var.rename(columns={"gene_ids": "gene_id"})[["gene_id"]]
        adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
        return adata
    found: dict[str, list[bytes]] = {"matrix.mtx": [], "genes.tsv": [], "barcodes.tsv": []}
    with tarfile.open(path) as archive:
        for member in archive:
            # features.tsv is what newer Cell Ranger versions call genes.tsv
            file_name = PurePosixPath(member.name).name.removesuffix(".gz").replace("features.tsv", "genes.tsv")
            if member.isfile() and file_name in found:
                found[file_name].append(archive.extractfile(member).read())
    if any(len(each) != 1 for each in found.values()):
        counts = ", ".join(f"{len(each)} x {key}" for key, each in found.items())
        raise ScreproError(
            f"{name} has to contain matrix.mtx, genes.tsv and barcodes.tsv once each.",
            got=counts,
            fix="take the filtered matrices of one genome",
        )
    genes, barcodes = _table(found["genes.tsv"][0]), _table(found["barcodes.tsv"][0])
    matrix = _cells_by_genes(found["matrix.mtx"][0], len(barcodes), len(genes), entry.name)
    symbols = genes[1] if genes.shape[1] > 1 else genes[0]
    return AnnData(
        X=matrix,
        obs=pd.DataFrame(index=pd.Index(barcodes[0].to_numpy())),
        var=pd.DataFrame({"gene_id": genes[0].to_numpy()}, index=pd.Index(symbols.to_numpy())),
    )


def read_geo_kang(entry: "Entry", files: Mapping[str, Path]) -> "AnnData":
    """Read GSE96583 batch 2: one matrix per condition, one gene table, one table of all cells.

    The table of cells lists the samples one after the other in the order of the matrices. Its row names are
    the barcodes, with a digit appended where both samples have the same barcode: each is checked.
    ``options``: ``samples`` [[condition, matrix, barcodes], ...], ``genes_file``, ``cells_file``.
    """
    from anndata import AnnData

    options = entry.options
    genes = _table(Path(files[options["genes_file"]]).read_bytes())
    cells = pd.read_csv(files[options["cells_file"]], sep="\t", index_col=0)
    cells.index = cells.index.astype(str)
    blocks, barcodes, conditions = [], [], []
    for condition, matrix_file, barcode_file in options["samples"]:
        own = _table(Path(files[barcode_file]).read_bytes())[0].tolist()
        blocks.append(_cells_by_genes(Path(files[matrix_file]).read_bytes(), len(own), len(genes), matrix_file))
        barcodes += own
        conditions += [condition] * len(own)
    fits = len(cells) == len(barcodes) and all(
        row.startswith(barcode) and stim == condition
        for row, stim, barcode, condition in zip(cells.index, cells["stim"], barcodes, conditions, strict=True)
    )
    if not fits:
        raise ScreproError(
            f"The cells of {entry.name} have to be those of the matrices, in their order.",
            got=f"{len(cells)} rows in {options['cells_file']}, {len(barcodes)} barcodes, not matching one by one",
            fix="take all files from GSE96583 again",
        )
    return AnnData(
        X=sp.vstack(blocks, format="csr"),
        obs=cells,
        var=pd.DataFrame({"gene_id": genes[0].to_numpy()}, index=pd.Index(genes[1].to_numpy())),
    )


def read_umi_table(entry: "Entry", files: Mapping[str, Path]) -> "AnnData":
    """Read a text table of genes x cells whose cell names carry the labels, joined by underscores.

    ``options["fields"]`` names the parts of a cell name, e.g. ``B1_AAACATAC_Control_TA.Early``; the last part may
    itself contain underscores. The header may or may not have a first field over the gene names.
    """
    from anndata import AnnData

    ((name, path),) = files.items()
    fields = list(entry.options["fields"])
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as handle:
        header = [each.strip('"') for each in handle.readline().rstrip("\r\n").split("\t")]
        start = handle.tell()
        width = len(handle.readline().rstrip("\r\n").split("\t"))
        handle.seek(start)
        cells = header[1:] if len(header) == width else header
        if len(cells) != width - 1:
            raise ScreproError(
                f"{name} has to be a table of genes x cells, separated by tabs.",
                got=f"{len(header)} names in the first line, {width} fields in the second",
                fix=f"take the file from {entry.source}",
            )
        blocks, genes = [], []
        for part in pd.read_csv(handle, sep="\t", header=None, index_col=0, chunksize=_ROWS_AT_ONCE):
            blocks.append(sp.csr_matrix(part.to_numpy(), dtype=np.float32))
            genes += part.index.astype(str).tolist()
    parts = [cell.split("_", len(fields) - 1) for cell in cells]
    if wrong := next((cell for cell, each in zip(cells, parts, strict=True) if len(each) != len(fields)), None):
        raise ScreproError(
            f"Cell names of {name} have to be {'_'.join(fields)}.", got=wrong, fix=f"take the file from {entry.source}"
        )
    return AnnData(
        X=sp.csr_matrix(sp.vstack(blocks).T),
        obs=pd.DataFrame(parts, columns=fields, index=pd.Index(cells)),
        var=pd.DataFrame(index=pd.Index(genes)),
    )
