"""Cells: the registry of data sets, how they get here, and what they look like when they arrive.

``load("pbmc68k_reduced")`` or ``load("my_cells.h5ad")`` gives an AnnData of integer counts with the labels
under our names. Importing this package is cheap: scanpy and anndata are imported by what needs them.
"""

from screpro.data.registry import available, data_hash, entries, get, load, verify

__all__ = ["available", "data_hash", "entries", "get", "load", "verify"]
