"""How a parameter names an embedding made elsewhere, from the text to the vectors."""

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from screpro.baselines.embedding import external
from screpro.errors import ScreproError
from screpro.tasks.embedding_file import named_file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scGPT=cells.npy", ("scGPT", "cells.npy", None)),
        ("UCE=/a=b/own.h5ad", ("UCE", "/a=b/own.h5ad", None)),
        ("my model = own.h5ad#X_uce", ("my model", "own.h5ad", "X_uce")),
        ("a=run #2/own.h5ad#b#c", ("a", "run #2/own.h5ad", "b#c")),
        ("a=run#2.npy", ("a", "run#2.npy", None)),
    ],
)
def test_name_file_and_key_are_read(text, expected):
    assert named_file(text) == expected


@pytest.mark.parametrize("text", ["/x.npy", "=x.npy", "a=", "a=x.pkl", "a=x.npy#key", "a=x.h5ad#", "  =x.npy", ""])
def test_anything_else_is_refused_by_the_rule(text):
    with pytest.raises(ScreproError, match='is "name=file", or "name=file#key"'):
        named_file(text)


def test_one_entry_of_several_can_be_named_in_the_text(tmp_path):
    names = ["cell 0", "cell 1"]
    adata = ad.AnnData(np.zeros((2, 1), np.float32), obs=pd.DataFrame(index=names))
    adata.obsm["a"], adata.obsm["b"] = np.ones((2, 3)), np.full((2, 3), 2.0)
    adata.write_h5ad(tmp_path / "own.h5ad")
    _, file, key = named_file(f"mine={tmp_path / 'own.h5ad'}#b")
    assert (external(file, cells=names, key=key) == 2).all()
    _, file, key = named_file(f"mine={tmp_path / 'own.h5ad'}")
    with pytest.raises(ScreproError, match="on a page by name=file#key"):
        external(file, cells=names, key=key)


def test_the_check_before_a_run_loads_nothing_heavy():
    code = "import sys, screpro.tasks.embedding_file; print({'numpy', 'torch', 'anndata'} & set(sys.modules) or 'none')"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["none"]
