"""Write R data files without R (XDR serialisation, version 2), for tests: `rds(object)` and `rda(name=object)`."""

import struct
from typing import Any, NamedTuple

import scipy.sparse as sp

CODE = {"SYM": 1, "PAIRS": 2, "CLO": 3, "ENV": 4, "LGL": 10, "INT": 13, "REAL": 14, "STR": 16, "VEC": 19, "S4": 25}
GLOBAL, NULL, REF = 253, 254, 255
NA = -(2**31)


class R(NamedTuple):
    """An R object to be written."""

    kind: str
    value: Any = None
    attributes: dict | None = None


def strings(*values, **attributes):
    return R("STR", values, attributes)


def ints(*values, **attributes):
    return R("INT", values, attributes)


def reals(*values, **attributes):
    return R("REAL", values, attributes)


def named_list(parts, **attributes):
    return R("VEC", list(parts.values()), {"names": strings(*parts), **attributes})


def s4(name, **slots):
    return R("S4", None, {**slots, "class": strings(name)})


def factor(codes, levels):
    return R("INT", codes, {"levels": strings(*levels), "class": strings("factor")})


def frame(parts, row_names):
    return named_list(parts, **{"class": strings("data.frame"), "row.names": row_names})


def sparse(matrix, rows, columns, **changed):
    m = sp.csc_matrix(matrix)
    m.sort_indices()
    slots = {"i": ints(*m.indices), "p": ints(*m.indptr), "Dim": ints(*m.shape)}
    slots |= {"Dimnames": R("VEC", [rows, columns]), "x": reals(*m.data), "factors": R("VEC", [])}
    return s4("dgCMatrix", **(slots | changed))


def dense(matrix, rows, columns):
    n, m = matrix.shape
    return reals(*matrix.ravel(order="F"), dim=ints(n, m), dimnames=R("VEC", [rows, columns]))


def body(node: R | None, seen: dict) -> bytes:
    """One object in R's serialisation; `seen` is the table of symbols and environments to refer back to."""
    if node is None:
        return struct.pack(">i", NULL)
    kind, value, attributes = node
    key = ("symbol", value) if kind == "SYM" else id(node)
    if key in seen and kind in ("SYM", "ENV"):
        return struct.pack(">i", seen[key] << 8 | REF)
    if kind == "PAIRS":
        parts = [struct.pack(">i", 2 | 0x400) + body(R("SYM", k), seen) + body(v, seen) for k, v in value.items()]
        return b"".join(parts) + body(None, seen)
    out = struct.pack(">i", CODE[kind] | 0x200 * bool(attributes) | 0x400 * (kind == "CLO"))
    if kind == "SYM":
        out += text(value)
        seen[key] = len(seen) + 1
    elif kind == "ENV":
        seen[key] = len(seen) + 1
        table = struct.pack(">ii", CODE["VEC"], 1) + body(R("PAIRS", value), seen)
        return out + struct.pack(">iii", 0, GLOBAL, NULL) + table + body(None, seen)
    elif kind == "CLO":
        return out + struct.pack(">i", GLOBAL) + body(None, seen) + body(R("SYM", "x"), seen)
    elif kind in ("INT", "LGL"):
        out += struct.pack(f">i{len(value)}i", len(value), *value)
    elif kind == "REAL":
        out += struct.pack(f">i{len(value)}d", len(value), *value)
    elif kind == "STR":
        out += struct.pack(">i", len(value)) + b"".join(map(text, value))
    elif kind == "VEC":
        out += struct.pack(">i", len(value)) + b"".join([body(part, seen) for part in value])
    return out + (body(R("PAIRS", attributes), seen) if attributes else b"")


def text(value: str | None) -> bytes:
    raw = None if value is None else value.encode()
    return struct.pack(">ii", 9, -1) if raw is None else struct.pack(">ii", 9, len(raw)) + raw


def rds(node: R) -> bytes:
    return b"X\n" + struct.pack(">iii", 2, 0x30600, 0x20300) + body(node, {})


def rda(**objects: R) -> bytes:
    return b"RDX2\n" + rds(R("PAIRS", objects))
