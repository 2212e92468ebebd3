"""Walking over a matrix block by block gives the matrix, wherever it lies."""

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata.io import write_elem
from hypothesis import given, settings
from hypothesis import strategies as st

from screpro.data.stored import stored


def draw(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).poisson(0.5, size=shape).astype(np.float64)


@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    layout=st.sampled_from(["csr", "csc", "dense"]),
    size=st.integers(1, 30),
)
@settings(max_examples=40, deadline=None)
def test_blocks_hold_every_value_at_its_position(seed, shape, layout, size):
    dense = draw(seed, shape)
    view = stored(dense if layout == "dense" else sp.csr_matrix(dense).asformat(layout))
    again = np.zeros(shape)
    for block in view.blocks(size=size):
        for k, value in enumerate(block.values):
            again[block.position(k, view.layout)] += value
    np.testing.assert_array_equal(again, dense)
    np.testing.assert_array_equal(view.to_csr().toarray(), dense)


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_a_matrix_in_a_file_reads_as_in_memory(tmp_path, layout):
    dense = draw(0, (20, 7))
    with h5py.File(tmp_path / "matrix.h5", "w") as file:
        write_elem(file, "x", dense if layout == "dense" else sp.csr_matrix(dense).asformat(layout))
    with h5py.File(tmp_path / "matrix.h5") as file:
        view = stored(file["x"])
        assert (view.layout, view.shape) == (layout, (20, 7))
        matrix = view.to_csr()
    assert matrix.dtype == np.float32 and matrix.has_canonical_format
    np.testing.assert_array_equal(matrix.toarray(), dense)


def test_to_csr_adds_up_repeated_entries_and_drops_zeros():
    twice = sp.csr_matrix((np.array([1.0, 2.0, 0.0]), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    matrix = stored(twice).to_csr()
    assert matrix.nnz == 1 and matrix[0, 1] == 3


def test_a_sample_is_spread_over_the_matrix():
    view = stored(np.arange(1000.0).reshape(100, 10))
    starts = [block.start for block in view.blocks(at_most=300, size=100)]
    assert starts == [0, 40, 90]


@pytest.mark.parametrize("pointer", [[0, 2, 1], [1, 1, 2], [0, 1], [0, 1, 9]])
def test_contradicting_parts_are_refused(tmp_path, pointer):
    with h5py.File(tmp_path / "matrix.h5", "w") as file:
        group = file.create_group("x")
        group.attrs["encoding-type"], group.attrs["shape"] = "csr_matrix", (2, 3)
        group["data"], group["indices"], group["indptr"] = [1.0, 2.0], [0, 1], pointer
        with pytest.raises(ValueError, match=r"pointer|announces"):
            stored(group)


def test_an_index_outside_the_matrix_is_refused(tmp_path):
    with h5py.File(tmp_path / "matrix.h5", "w") as file:
        group = file.create_group("x")
        group.attrs["encoding-type"], group.attrs["shape"] = "csr_matrix", (2, 3)
        group["data"], group["indices"], group["indptr"] = [1.0, 2.0], [0, 7], [0, 1, 2]
        with pytest.raises(ValueError):
            stored(group).to_csr()


@pytest.mark.parametrize("wrong", [np.arange(3), np.array(5), None])
def test_what_is_no_matrix_is_refused(wrong):
    with pytest.raises(ValueError, match="two dimensions"):
        stored(wrong)
