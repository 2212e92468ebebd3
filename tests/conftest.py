"""Fixtures that several folders use."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import settings

# the first example may compile a kernel: no test is about time
settings.register_profile("screpro", deadline=None)
settings.load_profile("screpro")

# read by Triton when it is imported: without a GPU its kernels run in the interpreter, on the CPU
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

VECTORS = Path(__file__).parent / "vectors"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Test processes run side by side: each keeps to one core, or they slow each other down tenfold."""
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def sparse_cells(rng) -> sp.csr_matrix:
    """23 log-normalised-looking cells x 31 genes, one cell and one gene empty."""
    dense = rng.gamma(1.0, 1.0, size=(23, 31)) * (rng.random((23, 31)) < 0.3)
    dense[4] = 0
    dense[:, 7] = 0
    return sp.csr_matrix(dense, dtype=np.float32)


@pytest.fixture
def no_records(tmp_path, monkeypatch):
    """No recorded run: what is read back is what this test made."""
    from screpro.records import results

    monkeypatch.setattr(results, "results_dir", lambda: tmp_path / "no records")
