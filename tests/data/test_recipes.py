"""Every recipe gives the recorded cells, and those of the prepared files where they are present.

Needs the original files: set SCREPRO_DATA to a folder laid out <owner>/<repository>/<12 of commit>/<path>.
"""

import hashlib
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData, read_h5ad

from screpro.data import recipes_perturbations
from screpro.data.recipes import FILES, RECIPES
from screpro.errors import ScreproError

# set -> cells, genes, total counts, sha256 of the counts (see `digest`)
EXPECTED = {
    "pbmc_facs_zheng": (
        3874,
        16791,
        7675054,
        "1d1581a7db253a839a3720148205b09ccd57557513b2fe9eedbccf813c33d7a0",
    ),
    "pbmc3k": (
        2638,
        13714,
        6254880,
        "fba19c8d582eec293a673d9d0bb3bdd624699aa3eee536c7eeafdea26ea252b6",
    ),
    "kang_9k": (
        2000,
        9015,
        3081827,
        "d6348476bae7f01f9ad51db502b8392d217cebf8ecef47a4dbab1e7e90e1e0e8",
    ),
    "kang_1k": (
        14054,
        1012,
        17112061,
        "887b7db1a502472dec1965d897596a84fcc78005b7eaa169e504d601ea67b383",
    ),
    "papalexi_thp1": (
        20729,
        303,
        8626744,
        "9475f7a95e9e5b7e65eca967df71fb671eb4455c5efd99905cd582cfd0e1190e",
    ),
    "norman_k562": (
        3375,
        500,
        510299,
        "f1130194e242db2714f3008a3046ed158ef14f8132ef4d337c0ce5db5fbc3b21",
    ),
    "mca_gut": (
        1871,
        14688,
        2236326,
        "a750251a99c1479d0d4055e11b445037c4960e892c8bcb13ee36e04dd34b8aac",
    ),
    "haber_sie_1k": (
        2160,
        1000,
        1161678,
        "ffc282035069e30742ddffd0f14f9d4b83c3eba2cba6d53a7bc2fdbddbce52e4",
    ),
    "pbmc_10x_3tech": (
        1500,
        1764,
        1845998,
        "00acc8a00907bb09f18887dc3dcb5b099391075492ef3c72be54075c3a6c30eb",
    ),
    "cellbench_5cl": (
        909,
        12653,
        22484822,
        "a7b1a56284350ddbd2d05a9e5df32c8b74a9b26112cf0134073768137a8cb6ad",
    ),
}

# columns of the prepared files that do not follow from the originals: labels from elsewhere, or inferred
NOT_IN_ORIGINALS = {
    "pbmc3k": {"cell_type"},
    "kang_9k": {"cell_type_inferred", "inferred_conf"},
    "kang_1k": {"cell_type_inferred", "inferred_conf"},
}


def digest(adata: AnnData) -> str:
    """sha256 over data, indices (int32) and indptr (int64) of the canonical CSR counts."""
    counts = adata.X.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()
    total = hashlib.sha256()
    for part, kind in ((counts.data, "<i4"), (counts.indices, "<i4"), (counts.indptr, "<i8")):
        total.update(part.astype(kind).tobytes())
    return total.hexdigest()


def originals(name: str) -> dict[str, Path]:
    folder = os.environ.get("SCREPRO_DATA")
    if not folder:
        pytest.skip(f"{name}: SCREPRO_DATA is not set")
    files = {}
    for key in FILES[name]:
        owner, repository, path = key.split("/", 2)
        found = sorted(Path(folder, owner, repository).glob(f"*/{path}"))
        if not found:
            pytest.skip(f"{name}: {key} is not under SCREPRO_DATA")
        files[key] = found[0]
    return files


@cache
def made(name: str) -> AnnData:
    return RECIPES[name](originals(name))


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """The two sets of Kang et al. share their files, and most of their time is spent on opening these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes_perturbations, "read_r", cache(recipes_perturbations.read_r))
        yield
    made.cache_clear()


@pytest.mark.original
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_gives_the_recorded_counts(name):
    adata = made(name)
    assert adata.X.format == "csr" and adata.X.dtype == np.float32
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    assert isinstance(adata.uns["source"], str)
    assert (*adata.shape, int(adata.X.sum(dtype=np.float64)), digest(adata)) == EXPECTED[name]


@pytest.mark.original
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_equals_the_prepared_file(name):
    adata = made(name)
    path = Path(os.environ["SCREPRO_DATA"]).parent / "prepared" / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"{name}: {path.name} is not in 'prepared' beside SCREPRO_DATA")
    prepared = read_h5ad(path)
    assert adata.obs_names.tolist() == prepared.obs_names.tolist()
    # the original of cellbench_5cl knows genes by Ensembl id only
    genes = prepared.var["ensembl"] if name == "cellbench_5cl" else prepared.var_names
    assert adata.var_names.tolist() == list(genes)
    assert (adata.X != prepared.X).nnz == 0
    assert set(prepared.obs) - set(adata.obs) == NOT_IN_ORIGINALS.get(name, set())
    for column in adata.obs:
        ours, theirs = adata.obs[column], prepared.obs[column]
        if column == "label_source":  # what the prepared file infers, the recipe leaves open
            ours, theirs = ours == "published", theirs == "published"
        if theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        else:
            assert ours.astype(str).tolist() == theirs.astype(str).tolist(), column


def test_every_set_names_its_files():
    assert set(FILES) == set(RECIPES)
    for keys in FILES.values():
        assert keys and all(key.count("/") >= 2 for key in keys)


@pytest.mark.parametrize("name", RECIPES)
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(ScreproError) as error:
        RECIPES[name]({})
    assert FILES[name][0] in error.value.got
    with pytest.raises(ScreproError, match=r"[Nn]o such file"):
        RECIPES[name]({key: tmp_path / Path(key).name for key in FILES[name]})
