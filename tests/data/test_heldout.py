"""Splits by name: those of the paper agree with the lists of its authors, and what every cell is for."""

import numpy as np
import pytest

from screpro import records
from screpro.data.heldout import HeldOut, cell_roles, read_split, splits_dir
from screpro.errors import ScreproError

SPLIT = HeldOut("t", "s", "d", "ctrl", validation=("v",), test=("p", "q"), held_out_contexts=("B",))


def every_cell(contexts="AB", batches="12"):
    """One cell of every combination: names of perturbation, context and batch."""
    grid = np.meshgrid(["ctrl", "p", "q", "v", "w"], list(contexts), list(batches), indexing="ij")
    return dict(zip(("perturbation", "context", "batch"), (part.ravel() for part in grid), strict=True))


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("perturbdiff_pbmc", "perturbdiff_pbmc"),
        ("perturbdiff_tahoe", "perturbdiff_tahoe100m"),
        ("perturbdiff_replogle", "perturbdiff_replogle"),
    ],
)
def test_the_papers_splits_are_the_authors_lists(name, listed):
    split, lists = read_split(name), records.heldout()[listed]
    assert set(split.validation) == set(lists["validation"]) and set(split.test) == set(lists["test"])
    assert list(split.held_out_contexts) == lists["holdout_celltype"]
    assert list(split.held_out_batches) == lists["holdout_batches"]
    assert split.dataset == listed


def test_all_splits_can_be_read_and_name_registered_sets():
    from screpro import data

    for path in splits_dir().glob("*.toml"):
        split = read_split(path.stem)
        assert split == read_split(path)
        assert split.dataset in data.entries()


def test_strong_knock_outs_are_not_kept():
    split = read_split("papalexi_thp1")
    assert {"IFNGR1", "IFNGR2", "IRF1", "JAK2"} <= set(split.test) and "STAT1" in split.validation
    assert len(split.test) + len(split.validation) == 17  # of 25: 8 stay


def test_roles():
    cells = every_cell()
    role = cell_roles(SPLIT, **cells).role
    held = cells["context"] == "B"
    assert (role[held & np.isin(cells["perturbation"], ["p", "q"])] == "test").all()
    assert (role[held & (cells["perturbation"] == "v")] == "validation").all()
    rest = ~held | np.isin(cells["perturbation"], ["ctrl", "w"])
    assert (role[rest] == "train").all() and (role[~rest] != "train").all()


def test_held_out_batches_and_excluded_ones():
    split = HeldOut("t", "s", "d", "ctrl", (), ("p",), held_out_batches=("1",), excluded_batches=("3",))
    cells = every_cell(batches="123")
    role = cell_roles(split, **cells).role
    assert ((role == "test") == ((cells["batch"] == "1") & (cells["perturbation"] == "p"))).all()
    assert ((role == "excluded") == (cells["batch"] == "3")).all()


def test_order_of_cells_does_not_matter():
    cells = every_cell()
    order = np.random.default_rng(0).permutation(len(cells["batch"]))
    shuffled = {key: names[order] for key, names in cells.items()}
    assert (cell_roles(SPLIT, **shuffled).role == cell_roles(SPLIT, **cells).role[order]).all()


def test_absent_names():
    cells = every_cell()
    fewer = {key: names[~((cells["perturbation"] == "q") & (cells["context"] == "B"))] for key, names in cells.items()}
    with pytest.raises(ScreproError, match="Every name of a split has cells"):
        cell_roles(SPLIT, **fewer)
    roles = cell_roles(SPLIT, **fewer, ignore_absent=True)
    assert roles.absent == ("q",) and len(roles.rows("test")) == 2
    with pytest.raises(ScreproError, match="left to test"):
        cell_roles(SPLIT, **every_cell(contexts="AC"), ignore_absent=True)
    with pytest.raises(ScreproError, match="control cells"):
        cell_roles(SPLIT, **cells, control="PBS")
    with pytest.raises(ScreproError, match="one perturbation, one context"):
        cell_roles(SPLIT, **cells | {"batch": np.array(["1"])})


def test_a_name_stands_once():
    with pytest.raises(ScreproError, match="stands once"):
        HeldOut("t", "s", "d", "ctrl", ("p",), ("p",), held_out_contexts=("B",))
    with pytest.raises(ScreproError, match="stands once"):
        HeldOut("t", "s", "d", "p", (), ("p",), held_out_contexts=("B",))
    with pytest.raises(ScreproError, match="contexts or batches"):
        HeldOut("t", "s", "d", "ctrl", (), ("p",))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('tests = ["p"]', "unknown field tests"),
        ('validation = "p"', "validation is not a list"),
        ("test = [", "is a TOML file"),
        ("", "no field test"),
    ],
)
def test_bad_files(tmp_path, line, said):
    head = 'schema = "screpro.split/1"\ntitle = "t"\nsource = "s"\ndataset = "d"\ncontrol = "c"\n'
    path = tmp_path / "own.toml"
    path.write_text(head + 'held_out_contexts = ["B"]\n' + line + "\n")
    with pytest.raises(ScreproError, match=said):
        read_split(path)


def test_unknown_name():
    with pytest.raises(ScreproError, match="did you mean papalexi_thp1"):
        read_split("papalexi")
    with pytest.raises(ScreproError, match="begins with schema"):
        read_split(splits_dir().parents[1] / "pyproject.toml")
