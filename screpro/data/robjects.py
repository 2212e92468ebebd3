"""Read R data files (`.rds`, `.rda`, `.RData`) without R: a lazy view on what the `rdata` package parses.

A saved R object often drags along environments, closures and whole embeddings nobody asked for. So nothing
is converted on opening: :func:`read_r` gives the root, ``node["a"]["b"]`` walks by list name, S4 slot or
environment variable, and only the node reached is turned into numpy or pandas. What is never visited
(functions, formulas, unknown classes) is skipped and cannot break the reading.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from screpro.errors import ScreproError

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

__all__ = ["RMatrix", "RNode", "read_r"]

# an S4 slot cannot hold NULL itself; R stores this symbol instead
NULL_SLOT = "\x01NULL\x01"


class RMatrix(NamedTuple):
    """A matrix with its names: `values` CSC float64 (rows, columns); names are None where R had NULL."""

    values: "sp.csc_matrix"
    rows: np.ndarray | None
    columns: np.ndarray | None


def read_r(path: str | Path) -> "RNode":
    """Open an R data file.

    Parameters
    ----------
    path
        ``.rds`` (one object) or ``.rda``/``.RData`` (named objects), compressed in any of R's ways.

    Returns
    -------
    RNode
        The object of an ``.rds``; for ``.rda`` a node whose names are those of the saved objects.

    Raises
    ------
    ScreproError
        If the file is missing, cut short, or no R data.
    """
    import rdata

    path = Path(path)
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise ScreproError(
            "an R data file has to be readable", got=f"{path}: {error.strerror}", fix="check the path"
        ) from error
    try:
        with warnings.catch_warnings():
            # flags on language objects and file endings, neither of which matters here
            warnings.simplefilter("ignore")
            parsed = rdata.parser.parse_data(packed)
    except MemoryError:
        raise
    except Exception as error:
        # a broken file surfaces in the parser as any of a dozen types (EOFError, zlib.error, IndexError, ...)
        raise ScreproError(
            "an R data file has to be complete and in R's own format (.rds, .rda, .RData)",
            got=f"{path}: cut short, damaged or of another kind ({type(error).__name__}: {error})",
            fix="fetch the file again",
        ) from error
    return RNode(parsed.object, path.name)


class RNode:
    """One R object, converted only when asked.

    Parameters
    ----------
    parsed
        The object as `rdata.parser` gives it.
    where
        File and steps that led here; errors print it.
    """

    def __init__(self, parsed: Any, where: str):
        # a reference stands for an object met before (symbols and environments are shared so)
        while parsed.referenced_object is not None:
            parsed = parsed.referenced_object
        self._parsed, self.where = parsed, where

    def __repr__(self) -> str:
        return f"RNode({self.where}: {self.kind} {list(self.classes)})"

    @property
    def kind(self) -> str:
        """R's name of the storage type, e.g. ``INT``, ``VEC`` (a list), ``S4``, ``ENV``."""
        return self._parsed.info.type.name

    @property
    def is_null(self) -> bool:
        """True for NULL, also as an S4 slot."""
        return self.kind in ("NIL", "NILVALUE") or (self.kind == "SYM" and _symbol(self._parsed) == NULL_SLOT)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class attribute; empty for plain vectors and lists."""
        found = self._attributes().get("class")
        return () if found is None else tuple(_strings(found))

    def names(self) -> list[str]:
        """Names reachable by ``node[name]``: list elements, pairlist tags, S4 slots, environment variables."""
        return list(self._children())

    def __contains__(self, name: str) -> bool:
        return name in self._children()

    def __getitem__(self, name: str) -> "RNode":
        children = self._children()
        if name not in children:
            raise ScreproError(
                f"{self.where} has to hold {name!r}",
                got=f"{self.kind} with {', '.join(children) or 'no named parts'}",
                fix="use the version of the file the recipe was written for",
            )
        return RNode(children[name], f"{self.where} > {name}")

    def vector(self) -> np.ndarray:
        """Values of an atomic vector or factor, shape (n,).

        Character vectors and factors give an object array of str with None for NA; integers and logicals
        with NA become float64 with NaN.
        """
        value = self._parsed.value
        if self.kind == "STR":
            return _strings(self._parsed)
        if self.kind not in ("INT", "REAL", "LGL"):
            raise self._mismatch("a vector")
        if "factor" in self.classes:
            levels = np.append(_strings(self._attributes()["levels"]), None)
            codes = np.ma.filled(value, 0)
            return levels[np.where(codes < 1, len(levels), codes) - 1]
        if isinstance(value, np.ma.MaskedArray):
            return value.astype(np.float64).filled(np.nan)
        return np.asarray(value)

    def table(self) -> "pd.DataFrame":
        """A data.frame or S4 DataFrame; its index are the row names (``"1"..."n"`` where R kept none).

        Columns that are not plain vectors (nested frames, lists) are left out.
        """
        import pandas as pd

        if "listData" in self:
            columns, named = self["listData"], self["rownames"]
        elif "data.frame" in self.classes:
            columns, named = self, self._attribute("row.names")
        else:
            raise self._mismatch("a data.frame or DataFrame")
        parts = {name: columns[name] for name in columns.names()}
        kept = {k: v.vector() for k, v in parts.items() if v.kind in ("STR", "INT", "REAL", "LGL")}
        rows = max(map(len, kept.values()), default=0)
        if any(len(column) != rows for column in kept.values()):
            raise self._mismatch("columns of one length")
        # row names 1..n are stored as the pair (NA, -n)
        index = np.arange(1, rows + 1) if named is None or named.kind != "STR" else named.vector()
        return pd.DataFrame(kept, index=pd.Index(index).astype(str))

    def matrix(self) -> RMatrix:
        """A sparse (``dgCMatrix``, ``dgTMatrix``) or dense matrix with its dimnames."""
        import scipy.sparse as sp

        if "dgCMatrix" in self.classes or "dgTMatrix" in self.classes:
            shape = tuple(int(size) for size in self["Dim"].vector())
            slots = {name: self[name].vector() for name in ("x", "i", "j", "p") if name in self}
            try:
                if "p" in slots:
                    values = sp.csc_matrix((slots["x"], slots["i"], slots["p"]), shape=shape)
                    values.check_format(full_check=True)
                else:
                    # triplets; R, like scipy, adds up those that repeat a position
                    values = sp.coo_matrix((slots["x"], (slots["i"], slots["j"])), shape=shape).tocsc()
            except (KeyError, ValueError) as error:
                raise self._mismatch(f"a consistent sparse matrix ({error})") from error
            rows, columns = self["Dimnames"]._pair()
        elif (dim := self._attribute("dim")) is not None and len(dim.vector()) == 2:
            # R stores column by column
            values = sp.csc_matrix(self.vector().reshape(dim.vector(), order="F"), dtype=np.float64)
            dimnames = self._attribute("dimnames")
            rows, columns = (None, None) if dimnames is None else dimnames._pair()
        else:
            raise self._mismatch("a matrix (dgCMatrix, dgTMatrix or dense)")
        for names, size in zip((rows, columns), values.shape, strict=True):
            if names is not None and len(names) != size:
                raise self._mismatch("as many dimnames as rows and columns")
        return RMatrix(values, rows, columns)

    def _pair(self) -> list[np.ndarray | None]:
        """The two entries of a dimnames list."""
        if self.kind != "VEC" or len(self._parsed.value) != 2:
            raise self._mismatch("a list of row and column names")
        parts = [RNode(part, self.where) for part in self._parsed.value]
        return [None if part.is_null else part.vector() for part in parts]

    def _attributes(self) -> dict[str, Any]:
        return dict(_pairs(self._parsed.attributes))

    def _attribute(self, name: str) -> "RNode | None":
        found = self._attributes().get(name)
        return None if found is None else RNode(found, f"{self.where} > {name}")

    def _children(self) -> dict[str, Any]:
        value = self._parsed.value
        if self.kind == "LIST":
            return dict(_pairs(self._parsed))
        if self.kind == "ENV":
            buckets = [value.frame, *(value.hash_table.value or [])]
            return {name: part for bucket in buckets for name, part in _pairs(bucket)}
        if self.kind == "S4":
            return self._attributes()
        if self.kind == "VEC" and (names := self._attributes().get("names")) is not None:
            return dict(zip(_strings(names), value, strict=True))
        return {}

    def _mismatch(self, expected: str) -> ScreproError:
        return ScreproError(
            f"{self.where} has to be {expected}",
            got=f"{self.kind} of class {', '.join(self.classes) or '(none)'}",
            fix="use the version of the file the recipe was written for",
        )


def _pairs(pairlist: Any) -> Iterator[tuple[str, Any]]:
    """Named entries of a pairlist (attributes, the top level of an `.rda`, a bucket of an environment)."""
    while pairlist is not None and pairlist.info.type.name == "LIST":
        head, rest = pairlist.value
        if pairlist.tag is not None:
            yield _symbol(pairlist.tag), head
        pairlist = rest


def _symbol(parsed: Any) -> str:
    while parsed.referenced_object is not None:
        parsed = parsed.referenced_object
    return _text(parsed.value.value)


def _strings(parsed: Any) -> np.ndarray:
    values = np.empty(len(parsed.value), dtype=object)
    values[:] = [_text(entry.value) for entry in parsed.value]
    return values


def _text(raw: bytes | None) -> str | None:
    """R marks Latin-1 strings, UTF-8 and plain ASCII; gene and cell names are the latter two."""
    return None if raw is None else raw.decode("utf-8", errors="replace")
