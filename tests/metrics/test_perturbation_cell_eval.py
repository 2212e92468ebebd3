"""The perturbation metrics agree with Cell-Eval 0.6.6."""

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData, read_h5ad

from screpro.metrics import perturbation as pt

screens = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("screens.py"))))
CELL_EVAL, CONTROL = screens.CELL_EVAL, screens.CONTROL
adata, cell_eval, compared, lognorm = screens.adata, screens.cell_eval, screens.compared, screens.lognorm
pair_of_files, their_table = screens.pair_of_files, screens.their_table


def test_agreement_with_cell_eval(tmp_path):
    real, generated = pair_of_files(np.float64)
    theirs, tables = cell_eval(real, generated, tmp_path)
    pair = compared(real, generated)
    theirs = theirs.loc[list(pair.perturbations)]
    for side, table in ((pair.real, tables.real), (pair.generated, tables.pred)):
        for name in ("fdr", "fold_change"):  # float32 there
            np.testing.assert_allclose(getattr(side, name), their_table(table, name, pair), rtol=2e-7, err_msg=name)
    assert pair.real.significant.any(axis=1).sum() < pair.n_perturbations, "a perturbation without called genes"
    for name, function in CELL_EVAL.items():
        np.testing.assert_allclose(function(pair), theirs[name].to_numpy(float), atol=1e-6, err_msg=name)
    assert (theirs["discrimination_score_l1"] < 1).any()


def test_agreement_with_cell_eval_in_its_odd_corners(tmp_path):
    """p-values of 0, groups of 8 cells without ties, fold changes beyond 20, equal fold changes at the cut."""
    rng = np.random.default_rng(0)
    sizes = {"BIG": 300, "SMALL": 8, "ZEROED": 60, CONTROL: 300}
    labels = np.repeat(list(sizes), list(sizes.values()))
    genes = [f"G{number}" for number in range(60)]
    x = rng.uniform(1.0, 1.5, size=(len(labels), 60)).astype(np.float32)
    x[:, 30:] *= rng.random((len(labels), 30)) < 0.7  # the last genes have zeros, so ties
    y = x.copy()
    y[labels != CONTROL] = rng.permutation(y[labels != CONTROL])
    of = {name: labels == name for name in sizes}
    x[of["BIG"], :6] += 6  # e^6 times the controls; p is 0 in float32
    y[of["BIG"], :3] += 6
    y[of["BIG"], 20:25] += 0.15  # called in the generated cells only, with p-values that float32 can hold
    x[of["SMALL"], :10] += 1
    y[of["SMALL"], 5:15] += 1
    x[of["ZEROED"], 10:18] *= 0.5
    y[np.ix_(of["ZEROED"], range(10, 45))] = 0  # 35 genes with the same fold change 1/20, of which 8 are taken
    y[of[CONTROL]] = x[of[CONTROL]]
    real, generated = adata(sp.csr_matrix(x), labels, genes), adata(y, labels, genes)
    theirs, tables = cell_eval(real, generated, tmp_path)
    pair = compared(real, generated)
    theirs = theirs.loc[list(pair.perturbations)]
    fdr = their_table(tables.pred, "fdr", pair)
    np.testing.assert_allclose(pair.generated.fdr_read, fdr, rtol=2e-5)  # their z-values are float32
    assert (fdr[0] == 0).sum() == 3 and ((fdr[0, 20:25] > 0) & (fdr[0, 20:25] < 1e-10)).all()
    assert their_table(tables.real, "fold_change", pair).max() > 100
    for name, function in CELL_EVAL.items():
        ours, expected = np.broadcast_to(function(pair), 3), theirs[name].to_numpy(float)
        cut = 2 if name == "overlap_at_N" else 3  # ZEROED comes last
        np.testing.assert_allclose(ours[:cut], expected[:cut], atol=1e-6, err_msg=name)
    # the zeros rank below the wrongly called genes, unless they are left as they are
    assert pt.de_auroc(pair)[0] < pt.de_auroc_uncapped(pair)[0]
    assert pt.de_auprc(pair)[0] < pt.de_auprc_uncapped(pair)[0]
    # which of the equal fold changes make the cut is arbitrary there; here it is the first genes
    k = pair.real.significant[2].sum()
    assert pair.real.significant[2, 10:18].all() and 8 <= k < 12
    assert pt.de_overlap(pair)[2] == 8 / k >= theirs["overlap_at_N"].iloc[2]


@pytest.mark.original
def test_agreement_with_cell_eval_on_knock_outs(tmp_path):
    """Replicates of Papalexi et al. 2021 stand for real and generated cells: different cells, other batch."""
    folder = os.environ.get("SCREPRO_DATA")
    if not folder:
        pytest.skip("papalexi_thp1: SCREPRO_DATA is not set")
    path = Path(folder).parent / "prepared" / "papalexi_thp1.h5ad"
    if not path.exists():
        pytest.skip(f"papalexi_thp1: {path.name} is not in 'prepared' beside SCREPRO_DATA")
    whole = read_h5ad(path)
    whole.X = sp.csr_matrix(lognorm(whole.X.toarray().astype(np.float64)).astype(np.float32))
    names = ["CMTM6", "IFNGR2", "JAK2", "MYC", "NFKBIA", "STAT1", "STAT2"]
    rng = np.random.default_rng(0)
    genes = [*(g for g in names if g in whole.var_names), *rng.choice(whole.var_names, 110, replace=False)]
    whole = whole[:, list(dict.fromkeys(genes))]

    def some(batches: list[str], labels: list[str], n: int) -> AnnData:
        from_batches = whole.obs["batch"].isin(batches).to_numpy()
        chosen = [rng.permutation(np.flatnonzero(from_batches & (whole.obs["perturbation"] == x)))[:n] for x in labels]
        return whole[np.concatenate(chosen)].to_memory()

    batches = sorted(whole.obs["batch"].unique())
    real = some(batches[:2], [*names, CONTROL], 200)
    generated = some(batches[2:], names, 200)
    controls = real[(real.obs["perturbation"] == CONTROL).to_numpy()]
    with_controls = AnnData(sp.vstack([generated.X, controls.X]).tocsr(), var=real.var)
    with_controls.obs["perturbation"] = [*generated.obs["perturbation"], *controls.obs["perturbation"]]
    theirs, _ = cell_eval(real, with_controls, tmp_path)
    pair = compared(real, generated)
    theirs = theirs.loc[list(pair.perturbations)]
    for name, function in CELL_EVAL.items():
        np.testing.assert_allclose(function(pair), theirs[name].to_numpy(float), atol=1e-6, err_msg=name)
