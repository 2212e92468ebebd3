"""Readers: tables, counts, and the inversion of log1p(CP10k)."""

import gzip

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.data.readers import (
    as_counts,
    assemble,
    invert_log1p,
    read_csv,
    read_h5ad,
    totals_from_smallest,
)
from screpro.errors import ScreproError

# cells whose total is over more genes than are seen here
cells = st.lists(
    st.tuples(st.lists(st.integers(0, 400), min_size=3, max_size=3), st.integers(0, 30_000)), min_size=1, max_size=5
).filter(lambda drawn: any(any(row) for row, _ in drawn))


def scaled(counts, totals, target=1e4):
    return np.log1p(counts * target / totals[:, None])


def drawn(cells):
    counts = np.array([row for row, _ in cells], dtype=float)
    return counts, np.maximum(counts.sum(axis=1) + [rest for _, rest in cells], 1.0)


@given(cells, st.sampled_from([1e3, 1e4, 1e6]))
@settings(max_examples=50, deadline=None)
def test_log1p_is_inverted_exactly_also_from_float32(cells, target):
    counts, totals = drawn(cells)
    values = scaled(counts, totals, target)
    for stored in (values, values.astype(np.float32), sp.csr_matrix(values)):
        found = invert_log1p(stored, totals, target_sum=target, atol=2e-6, what="X")
        assert found.dtype == np.float32 and found.nnz == np.count_nonzero(counts)
        np.testing.assert_array_equal(found.toarray(), counts)


@given(cells)
@settings(max_examples=50, deadline=None)
def test_log1p_rounded_to_three_decimals_is_inverted_exactly(cells):
    counts, totals = drawn(cells)
    found = invert_log1p(np.round(scaled(counts, totals), 3), totals, atol=6e-4, what="X")
    np.testing.assert_array_equal(found.toarray(), counts)


@given(cells, st.lists(st.floats(0.9, 1.1), min_size=5, max_size=5))
@settings(max_examples=50, deadline=None)
def test_totals_come_back_from_rough_ones(cells, error):
    counts, totals = drawn(cells)
    # the rough total has to tell the smallest count from its neighbours: 10 % does up to 4
    counts[:, 0] = np.where(counts.any(axis=1), 1 + counts[:, 0] % 4, 0)
    rough = totals * error[: len(totals)]
    filled = counts.any(axis=1)
    found = totals_from_smallest(scaled(counts, totals), rough)
    np.testing.assert_array_equal(found[filled], totals[filled])
    np.testing.assert_array_equal(found[~filled], rough[~filled])


def test_totals_of_nothing_stay_as_given():
    assert totals_from_smallest(sp.csr_matrix((2, 3)), np.array([5, 6])).tolist() == [5, 6]


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v * 1.01,  # not integers with these totals
        lambda v: -v,
        lambda v: np.where(v > 0, np.nan, v),
        lambda v: np.where(v > 0, 1e4, v),  # expm1 overflows
        np.expm1,  # no logarithm was taken
    ],
)
def test_what_is_no_scaled_integer_is_refused(change):
    counts = np.array([[3.0, 0, 7], [1, 2, 0]])
    values = change(scaled(counts, np.array([977.0, 1013.0])))
    with pytest.raises(ScreproError, match="values fit no integer"):
        invert_log1p(values, np.array([977.0, 1013.0]), what="X")


def test_a_step_too_coarse_to_tell_integers_apart_is_refused():
    values = scaled(np.array([[5000.0, 5001]]), np.array([20_000.0]))
    with pytest.raises(ScreproError, match="fit no integer"):
        invert_log1p(values, np.array([20_000.0]), atol=5e-4, what="X")


def test_counts_take_one_form():
    unsorted = sp.csr_matrix((np.array([1, 2, 0, 3]), np.array([2, 0, 1, 1]), np.array([0, 3, 4])), shape=(2, 3))
    for given_ in (unsorted, unsorted.toarray(), unsorted.tocsc(), unsorted.tocoo()):
        found = as_counts(given_, what="X")
        assert found.format == "csr" and found.dtype == np.float32
        assert found.has_sorted_indices and found.nnz == 3
        np.testing.assert_array_equal(found.toarray(), [[2, 0, 1], [0, 3, 0]])


@pytest.mark.parametrize("bad", [0.5, -1, np.nan, np.inf, 2.0**24 + 1])
def test_what_is_no_count_is_refused_by_name(bad):
    with pytest.raises(ScreproError, match=r"blood\.rda"):
        as_counts(np.array([[1, bad]]), what="blood.rda")


def test_assemble_names_and_sums():
    adata = assemble(
        as_counts([[1, 0, 2], [0, 0, 4]], what="X"),
        cells=["a", "b"],
        genes=["U1", "GAPDH", "U1"],
        labels={"cell_type": ["B", "T"]},
        numbers={"size": [1.5, 2.5]},
        var={"symbol": ["U1", "GAPDH", "U1"]},
        source="a test",
    )
    assert adata.var_names.tolist() == ["U1", "GAPDH", "U1-1"]
    assert adata.obs["n_counts"].tolist() == [3, 4] and adata.obs["n_genes"].tolist() == [2, 1]
    assert adata.obs["cell_type"].dtype == "category" and adata.uns["source"] == "a test"


def test_assemble_refuses_two_cells_of_one_name():
    with pytest.raises(ScreproError, match="unique"):
        assemble(as_counts([[1], [1]], what="X"), cells=["a", "a"], genes=["g"], source="a test")


def test_csv_with_and_without_a_name_for_the_row_names(tmp_path):
    for number, header in enumerate(['"c1","c2"', '"gene","c1","c2"']):
        path = tmp_path / f"{number}.csv.gz"
        path.write_bytes(gzip.compress(f'{header}\n"g1",0,3\n"g2",5,0\n'.encode()))
        table = read_csv(path)
        assert table.index.tolist() == ["g1", "g2"] and table.columns.tolist() == ["c1", "c2"]
        assert table.to_numpy().tolist() == [[0, 3], [5, 0]]


def test_damaged_tables_are_one_error(tmp_path):
    whole = gzip.compress(("a,b\n" + "g,1,2\n" * 500).encode(), mtime=0)
    for name, content in (("cut.csv.gz", whole[:-20]), ("page.csv.gz", b"<html>"), ("empty.csv.gz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ScreproError, match=name):
            read_csv(tmp_path / name)
    with pytest.raises(ScreproError, match="no such file"):
        read_csv(tmp_path / "absent.csv")


def test_damaged_h5ad_is_one_error(tmp_path):
    assemble(as_counts([[1]], what="X"), cells=["a"], genes=["g"], source="a test").write_h5ad(tmp_path / "whole.h5ad")
    assert read_h5ad(tmp_path / "whole.h5ad").uns["source"] == "a test"
    (tmp_path / "cut.h5ad").write_bytes((tmp_path / "whole.h5ad").read_bytes()[:3000])
    for name in ("cut.h5ad", "absent.h5ad"):
        with pytest.raises(ScreproError, match=name):
            read_h5ad(tmp_path / name)
