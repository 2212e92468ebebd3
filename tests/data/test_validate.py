"""Every rule about counts, genes and labels: kept, nothing happens; broken, one error that says where."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.data.validate import (
    LARGEST,
    check_counts,
    check_genes,
    check_labels,
    check_same_genes,
    find_offence,
    nearest,
)
from screpro.errors import ScreproError

LAYOUTS = {
    "dense": np.asarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "coo": sp.coo_matrix,
    "csr_array": sp.csr_array,
}


def good(n: int = 6, m: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(2.0, size=(n, m)).astype(np.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint16", "bool"])
def test_counts_pass_in_every_layout_and_type(layout, dtype):
    check_counts(LAYOUTS[layout](good().astype(dtype)), what="X")


@given(
    value=st.sampled_from([np.nan, np.inf, -np.inf, -1.0, -0.5, 0.5, 1e-7, LARGEST + 2.0]),
    row=st.integers(0, 5),
    col=st.integers(0, 4),
    layout=st.sampled_from(["dense", "csr", "csc"]),
    size=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_one_wrong_value_is_found_where_it_is(value, row, col, layout, size):
    matrix = good()
    matrix[row, col] = value
    found = find_offence(LAYOUTS[layout](matrix), size=size)
    assert (found.row, found.col) == (row, col)
    np.testing.assert_equal(found.value, value)
    with pytest.raises(ScreproError) as error:
        check_counts(LAYOUTS[layout](matrix), what="X of mine", size=size)
    assert error.value.rule.startswith("X of mine must hold counts")
    assert f"[{row}, {col}]" in error.value.got


@pytest.mark.parametrize(
    ("matrix", "hint"),
    [
        (np.log1p(good() * 3.3), "looks log-normalised: largest value"),
        ((good() - 2) / 1.7, "looks scaled to z-scores: smallest value"),
        (good() * 1234.5678, "looks normalised or corrected: largest value"),
    ],
)
def test_the_message_says_what_the_values_look_like(matrix, hint):
    with pytest.raises(ScreproError, match=hint) as error:
        check_counts(matrix, what="X")
    assert "layers['counts']" in error.value.fix


@pytest.mark.parametrize(
    "matrix", [np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((3, 3)), np.arange(3), np.array([["a"]])]
)
def test_what_is_no_matrix_of_counts_is_refused(matrix):
    with pytest.raises(ScreproError):
        check_counts(matrix, what="X")


def test_a_sparse_matrix_is_never_made_dense():
    # 200 000 x 50 000 would be 40 GB as float32
    matrix = sp.random(200_000, 50_000, density=1e-6, format="csr", random_state=np.random.default_rng(0))
    matrix.data[:] = 1
    tracemalloc.start()
    check_counts(matrix, what="X")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_genes_need_names_of_their_own():
    check_genes(["A", "B", "C"])
    with pytest.raises(ScreproError, match="3 names") as error:
        check_genes(["A", "B", "A", "C", "C", "C", "D", "D"])
    assert "A (2 times), C (3 times), D (2 times)" in error.value.got
    assert "var_names_make_unique" in error.value.fix
    for empty in ("", " ", np.nan, None):
        with pytest.raises(ScreproError, match="position 1"):
            check_genes(["A", empty])


def labels(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns, index=[f"cell {i}" for i in range(len(next(iter(columns.values()))))])


def test_good_labels_pass():
    check_labels(labels(cell_type=["a", "a", "b", "b"]), "cell_type")
    check_labels(labels(leiden=pd.Categorical([0, 0, 1, 1])), "leiden")
    check_labels(labels(batch=["x", "x", "y"]), "batch", min_classes=1, min_cells=1)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (["a", "a", "b", None], "cell 3"),
        (["a", "a", "b", ""], "cell 3"),
        (["a", "a", "b", "nan"], "cell 3"),
        (pd.Categorical(["a", "a", "b", None]), "cell 3"),
        ([1.0, 1.0, 2.0, np.nan], "cell 3"),
        (["a", "a", "a", "a"], "1: 'a'"),
        (["a", "a", "b", "c"], "2 of 3 classes with fewer: 'b', 'c'"),
        ([0.1, 0.2, 0.3, 0.4], "a measurement"),
    ],
)
def test_broken_labels_are_named(column, says):
    with pytest.raises(ScreproError) as error:
        check_labels(labels(cell_type=column), "cell_type")
    assert says in error.value.got


def test_unused_categories_are_not_classes():
    column = pd.Categorical(["a", "a", "b", "b"], categories=["a", "b", "never"])
    check_labels(labels(cell_type=column), "cell_type")


def test_a_missing_column_suggests_the_nearest():
    with pytest.raises(ScreproError) as error:
        check_labels(labels(n_counts=[1, 2], CellType=["a", "b"]), "cell_type")
    assert "n_counts, CellType" in error.value.got
    assert "did you mean 'CellType'?" in error.value.fix
    with pytest.raises(ScreproError, match="batch_key"):
        check_labels(labels(n_counts=[1, 2]), "donor", parameter="batch_key")


@pytest.mark.parametrize(
    ("asked", "columns", "expected"),
    [
        ("cell_type", ["x", "Cell.Type"], "Cell.Type"),
        ("celltpye", ["n_counts", "celltype"], "celltype"),
        ("cell_type", ["n_genes", "leiden"], "leiden"),
        ("donor", ["n_genes", "donor_id"], "donor_id"),
        ("zzz", ["n_genes", "leiden"], None),
        ("cell_type", [], None),
    ],
)
def test_nearest(asked, columns, expected):
    assert nearest(asked, columns) == expected


def test_same_genes():
    a = AnnData(good(3, 3), var=pd.DataFrame(index=list("ABC")))
    check_same_genes(a, a.copy())
    check_same_genes(a, ["A", "B", "C"])
    with pytest.raises(ScreproError, match="another order"):
        check_same_genes(a, a[:, ["C", "A", "B"]])
    with pytest.raises(ScreproError) as error:
        check_same_genes(a, ["B", "C", "D", "E"])
    assert "1 only in the first (A)" in error.value.got and "2 only in the second (D, E)" in error.value.got
