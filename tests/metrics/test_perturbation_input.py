"""Which files the perturbation metrics take, and which they refuse: control cells are always the real ones."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from screpro.errors import ScreproError
from screpro.metrics import perturbation as pt

screens = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("screens.py"))))
CONTROL, GENES = screens.CONTROL, screens.GENES
compared, pair_of_files = screens.compared, screens.pair_of_files


def test_generated_controls_are_the_real_ones_or_left_out():
    real, generated = pair_of_files(np.float32)
    of_control = (generated.obs["perturbation"] == CONTROL).to_numpy()
    left_out = generated[~of_control]
    x = sp.csr_matrix(left_out.X)
    labels, genes = left_out.obs["perturbation"].to_numpy(), list(real.var_names)
    as_matrix = pt.read_pair((real.X, real.obs["perturbation"]), (x, labels), control=CONTROL, genes=genes)
    first = pt.score(compared(real, generated))
    for other in (compared(real, left_out), pt.compare(*as_matrix)):
        assert other.genes == tuple(GENES) and (other.targets >= 0).sum() == 7
        np.testing.assert_allclose(pt.score(other)["value"], first["value"], rtol=1e-9)
    own = generated.copy()
    own.X[np.flatnonzero(of_control)[3]] *= 1.01
    fewer = generated[np.flatnonzero(~of_control).tolist() + np.flatnonzero(of_control)[:-5].tolist()]
    for changed in (own, fewer, sparse_copy(own)):
        with pytest.raises(ScreproError, match="REAL control cells"):
            compared(real, changed)


def sparse_copy(data: AnnData) -> AnnData:
    data = data.copy()
    data.X = sp.csr_matrix(data.X)
    return data


def change(which: str, how) -> tuple[AnnData, AnnData]:
    files = dict(zip(("real", "generated"), pair_of_files(np.float32), strict=True))
    files[which] = how(files[which])
    return files["real"], files["generated"]


def with_x(function):
    def changed(data: AnnData) -> AnnData:
        data = data.copy()
        data.X = function(data.X.copy())
        return data

    return changed


def with_value(value: float):
    def put(x: np.ndarray) -> np.ndarray:
        x[7, 3] = value
        return x

    return with_x(put)


def relabel(old: str, new: str | None, keep: int = 0):
    def changed(data: AnnData) -> AnnData:
        data = data.copy()
        labels = data.obs["perturbation"].to_numpy().astype(object)
        labels[np.flatnonzero(labels == old)[keep:]] = new
        data.obs["perturbation"] = labels
        return data

    return changed


def without(old: str, keep: int = 0):
    def cut(data: AnnData) -> AnnData:
        gone = np.flatnonzero((data.obs["perturbation"] == old).to_numpy())[keep:]
        return data[np.setdiff1d(np.arange(data.n_obs), gone)].copy()

    return cut


@pytest.mark.parametrize(
    ("which", "how", "says"),
    [
        ("real", without(CONTROL), "at least two control cells"),
        ("generated", without("ABSENT"), "only real: ABSENT"),
        ("real", without("ABSENT"), "only generated: ABSENT"),
        ("generated", without("ABSENT", keep=1), "one cell: ABSENT"),
        ("real", without("ABSENT", keep=1), "one cell: ABSENT"),
        ("generated", relabel("ABSENT", None), "without a label"),
        ("generated", with_value(np.nan), "NaN or infinite"),
        ("real", with_value(np.inf), "NaN or infinite"),
        ("generated", with_value(-0.1), "from -0.1"),
        ("generated", with_value(30.0), "to 30"),
        ("generated", with_x(lambda x: np.round(x)), "whole numbers only"),
        ("real", with_x(lambda x: sp.csr_matrix(x.shape, dtype=np.float32)), "zeros only"),
        ("generated", lambda data: data[:, ::-1].copy(), "another order"),
        ("generated", lambda data: data[:, 1:].copy(), "1 genes only real"),
        ("generated", lambda data: AnnData(data.X), "obs\\['perturbation'\\]"),
    ],
)
def test_what_is_not_comparable_is_refused(which, how, says):
    with pytest.raises(ScreproError, match=says):
        compared(*change(which, how))


def test_only_controls_and_odd_matrices_are_refused():
    real, _ = pair_of_files(np.float32)
    controls = real[(real.obs["perturbation"] == CONTROL).to_numpy()]
    with pytest.raises(ScreproError, match="no perturbation besides"):
        compared(controls, controls)
    with pytest.raises(ScreproError, match="one label per cell"):
        pt.read_pair((real.X, ["a", "b"]), (real.X, ["a", "b"]), control="a")
    twice = (real.X, real.obs["perturbation"])
    with pytest.raises(ScreproError, match="unique"):
        pt.read_pair(twice, twice, control=CONTROL, genes=["same"] * real.n_vars)


def test_sides_of_different_shape_are_refused():
    with pytest.raises(ScreproError, match="same perturbations and genes"):
        pt.Comparison(real=pt.Side(mean=[[1, 2]]), generated=pt.Side(mean=[[1, 2, 3]]))


def test_a_perturbation_called_like_the_mean_over_all_is_refused():
    both = [relabel("ABSENT", "all")(file) for file in pair_of_files(np.float32)]
    with pytest.raises(ScreproError, match="No perturbation is called 'all'"):
        compared(*both)


@pytest.mark.parametrize("parts", [{"fdr": [0.01, 0.9]}, {"mean": [[1, 2]], "fdr": [[0.1]]}, {"overall": [[1, 2]]}])
def test_parts_of_another_shape_are_refused(parts):
    with pytest.raises(ScreproError, match=r"\(M, G\)"):
        pt.Side(**parts)


@pytest.mark.parametrize("names", [{"control": [1]}, {"genes": ("a", "b", "c")}, {"perturbations": ("a", "b")}])
def test_names_and_control_mean_fit_the_sides(names):
    side = pt.Side(mean=[[1, 2]])
    with pytest.raises(ScreproError, match="1 x 2"):
        pt.Comparison(real=side, generated=side, **names)


@pytest.mark.parametrize("function", [*pt.TABLE_4.values(), *pt.PRINTED], ids=lambda f: f.__name__)
def test_a_metric_names_the_part_that_it_lacks(function):
    """Whatever is left out: each metric needs at least one of these."""
    full = {"mean": [[1, 2], [2, 1]], "fdr": [[0.01, 0.9], [0.01, 0.9]], "fold_change": [[1, 2], [2, 1]]}
    lacking = 0
    for left_out in ("mean", "fdr", "fold_change", "control"):
        side = pt.Side(**{name: value for name, value in full.items() if name != left_out})
        pair = pt.Comparison(real=side, generated=side, control=None if left_out == "control" else [1, 1])
        try:
            function(pair)
        except ScreproError as error:
            lacking += 1
            assert f"`{left_out}`" in error.rule
    assert lacking


def test_calls_of_a_side_without_p_values():
    with pytest.raises(ScreproError, match="`fdr`"):
        pt.null_calls(pt.Side(mean=[[1, 2]]))
