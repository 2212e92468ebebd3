"""R data files written here byte by byte (XDR, version 2) come back as what was put in, or as one clear error."""

import bz2
import gzip
import lzma
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from screpro.data.robjects import read_r
from screpro.errors import ScreproError

# tests are no package: the writer is run from the file beside this one
rwriter = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("rwriter.py"))))
R, NA = rwriter.R, rwriter.NA
strings, ints, reals, factor = rwriter.strings, rwriter.ints, rwriter.reals, rwriter.factor
named_list, frame, sparse, s4 = rwriter.named_list, rwriter.frame, rwriter.sparse, rwriter.s4
rds, rda = rwriter.rds, rwriter.rda


@pytest.fixture
def opened(tmp_path):
    def open_(data: bytes, name: str = "file.rda", pack=gzip.compress):
        path = tmp_path / name
        path.write_bytes(pack(data))
        return read_r(path)

    return open_


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_every_compression(opened, pack):
    assert opened(rda(a=ints(1, 2)), pack=pack)["a"].vector().tolist() == [1, 2]
    assert opened(rds(ints(1, 2)), "file.rds", pack=pack).vector().tolist() == [1, 2]


def test_vectors_and_missing_values(opened):
    saved = opened(
        rda(
            words=strings("a", None, "β"),
            whole=ints(3, NA),
            flags=R("LGL", (1, 0)),
            real=reals(0.5, -1e300),
            types=factor((2, NA, 1, 2), ("B cell", "T cell")),
        )
    )
    assert saved.names() == ["words", "whole", "flags", "real", "types"]
    assert saved["words"].vector().tolist() == ["a", None, "β"]
    np.testing.assert_array_equal(saved["whole"].vector(), [3, np.nan])
    assert saved["flags"].vector().tolist() == [True, False]
    assert saved["real"].vector().tolist() == [0.5, -1e300]
    assert saved["types"].vector().tolist() == ["T cell", None, "B cell", "T cell"]


def test_tables_of_both_kinds(opened):
    columns = {"donor": ints(7, 8), "type": factor((1, 1), ("B",)), "nested": named_list({"a": ints(1)})}
    saved = opened(
        rda(
            plain=frame(columns, ints(NA, -2)),
            named=frame(columns, strings("x", "y")),
            s4=s4("DFrame", rownames=strings("x", "y"), listData=named_list(columns)),
            nameless=s4("DFrame", rownames=R("SYM", "\x01NULL\x01"), listData=named_list(columns)),
        )
    )
    for name, index in (("plain", "12"), ("named", "xy"), ("s4", "xy"), ("nameless", "12")):
        table = saved[name].table()
        assert table.index.tolist() == list(index)
        assert table.columns.tolist() == ["donor", "type"]
        assert table["type"].tolist() == ["B", "B"]
    assert saved["nameless"]["rownames"].is_null and not saved["s4"]["rownames"].is_null


small_matrices = hnp.arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.integers(0, 3))


@given(small_matrices)
@settings(max_examples=25, deadline=None)
def test_sparse_triplet_and_dense_matrices_agree(tmp_path_factory, values):
    n, m = values.shape
    rows, columns = strings(*(f"r{k}" for k in range(n))), strings(*(f"c{k}" for k in range(m)))
    triplet = sp.coo_matrix(values)
    # scipy's triplets have no repeats: write the first entry as two halves
    parts = [*triplet.data[:1] / 2, *triplet.data[:1] / 2, *triplet.data[1:]]
    i, j = ([*where[:1], *where] for where in (triplet.row, triplet.col))
    data = rda(
        compressed=sparse(values, rows, columns),
        triplets=s4(
            "dgTMatrix",
            i=ints(*i),
            j=ints(*j),
            x=reals(*parts),
            Dim=ints(n, m),
            Dimnames=R("VEC", [rows, columns]),
        ),
        dense=ints(*values.ravel(order="F"), dim=ints(n, m), dimnames=R("VEC", [rows, columns])),
        nameless=sparse(values, None, None),
    )
    path = tmp_path_factory.mktemp("r") / "m.rda"
    path.write_bytes(data)
    saved = read_r(path)
    for name in saved.names():
        found = saved[name].matrix()
        np.testing.assert_array_equal(found.values.toarray(), values)
        if name == "nameless":
            assert found.rows is None and found.columns is None
        else:
            assert found.rows.tolist() == list(rows.value) and found.columns.tolist() == list(columns.value)


def test_environments_are_walked_and_functions_skipped(opened):
    function = R("CLO")
    inner = R("ENV", {".->data": named_list({"counts": ints(1, 2, dim=ints(1, 2))}), "show": function})
    saved = opened(
        rda(
            experiment=s4("Assays", **{".xData": inner, "again": inner}),
            method=function,
            last=named_list({"f": function, "value": ints(5)}),
        )
    )
    first, again = saved["experiment"][".xData"], saved["experiment"]["again"]
    assert first.names() == again.names() == [".->data", "show"]
    assert again[".->data"]["counts"].matrix().values.toarray().tolist() == [[1, 2]]
    assert saved["last"]["value"].vector().tolist() == [5]
    with pytest.raises(ScreproError, match="has to be a vector"):
        saved["method"].vector()


def test_a_missing_part_is_named_with_file_and_content(opened):
    saved = opened(rda(cells=named_list({"counts": ints(1), "labels": ints(1)})), "blood.rda")
    with pytest.raises(ScreproError) as error:
        saved["cells"]["types"]
    assert error.value.rule == "blood.rda > cells has to hold 'types'"
    assert "counts, labels" in error.value.got


@pytest.mark.parametrize(
    "wrong",
    [
        sparse([[1, 0], [0, 2]], None, None, x=reals(1.0)),
        sparse([[1, 0], [0, 2]], None, None, i=ints(0, 7)),
        sparse([[1, 0], [0, 2]], strings("only one"), None),
        ints(1, 2, 3),
    ],
)
def test_an_inconsistent_matrix_is_one_error(opened, wrong):
    with pytest.raises(ScreproError, match="m has to be"):
        opened(rda(m=wrong))["m"].matrix()


def test_columns_of_different_length_are_one_error(opened):
    with pytest.raises(ScreproError, match="one length"):
        opened(rda(t=frame({"a": ints(1), "b": ints(1, 2)}, ints(NA, -2))))["t"].table()


WHOLE = rda(a=sparse(np.eye(3), strings("x", "y", "z"), None), b=frame({"k": ints(1, 2)}, ints(NA, -2)))


@given(st.data(), st.sampled_from([gzip.compress, bz2.compress, lzma.compress, bytes]))
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_is_one_error(tmp_path_factory, data, pack):
    packed = pack(WHOLE)
    path = tmp_path_factory.mktemp("cut") / "cut.rda"
    path.write_bytes(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with pytest.raises(ScreproError, match="complete and in R's own format"):
        read_r(path)


def test_other_files_are_one_error(tmp_path):
    with pytest.raises(ScreproError, match="No such file"):
        read_r(tmp_path / "absent.rda")
    (tmp_path / "page.rda").write_text("<html>not found</html>")
    with pytest.raises(ScreproError, match="R's own format"):
        read_r(tmp_path / "page.rda")
