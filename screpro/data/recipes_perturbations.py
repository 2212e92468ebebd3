"""Recipes of the sets whose cells were treated: interferon, CRISPR knock-out, CRISPR activation.

Each function takes ``{key: local path}`` for its keys below and returns AnnData as `readers.assemble` makes it.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from screpro.data.readers import as_counts, assemble, invert_log1p, read_h5ad, totals_from_smallest
from screpro.data.robjects import RMatrix, RNode, read_r

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

HARMONY = "immunogenomics/harmony/data/pbmc_stim.RData"
MUSCAT_SE = "HelenaLC/muscat/data/kang_se.rda"
MUSCAT_SCE = "HelenaLC/muscat/data/example_sce.rda"
DISTINCT = "SimoneTiberi/distinct/data/Kang_subset.RData"
KANG = [HARMONY, MUSCAT_SE, MUSCAT_SCE, DISTINCT]

LOWMOI = "Katsevich-Lab/sceptre/data/lowmoi_example_data.rda"
LOWMOI_RESPONSE = "Katsevich-Lab/sceptre/data/response_matrix_lowmoi.rda"
LOWMOI_COVARIATES = "Katsevich-Lab/sceptre/data/covariate_data_frame_lowmoi.rda"
PAPALEXI = [LOWMOI, LOWMOI_RESPONSE, LOWMOI_COVARIATES]

NORMAN = "altoslabs/perturbench/src/perturbench/data/resources/devel.h5ad"


def kang_9k(files: dict[str, Path]) -> "AnnData":
    """2000 blood cells x 9015 genes, half of them under interferon beta (Kang et al. 2018).

    The counts are harmony's: 1000 ctrl, then 1000 stim cells. Their type and donor come from the cells of the
    same condition and barcode in muscat and distinct, where there is one: ``label_source`` is ``published``
    there, elsewhere ``none`` with ``cell_type`` unassigned and ``donor`` unknown. No label is inferred.
    """
    import scipy.sparse as sp

    ctrl, stim = _harmony(files)
    return _kang(
        sp.vstack([ctrl.values.T, stim.values.T]),
        cells=[*_cells("ctrl", ctrl.columns), *_cells("stim", stim.columns)],
        genes=ctrl.rows,
        published=_published(files, *_muscat(files)),
        source="immunogenomics/harmony: 10x UMI counts of PBMC of 8 donors, control or interferon beta "
        "(Kang et al. 2018); labels from HelenaLC/muscat and SimoneTiberi/distinct",
    )


def kang_1k(files: dict[str, Path]) -> "AnnData":
    """14054 blood cells x 1012 genes: the experiment of `kang_9k`, more cells, fewer genes.

    Cells: muscat's 12261 ctrl cells, then the stim cells of its example, then harmony's remaining stim and
    ctrl cells. A cell found twice is taken once. Genes: those of all three, in the order of the first.
    Labels as in `kang_9k`.
    """
    import scipy.sparse as sp

    control, example = _muscat(files)
    ctrl, stim = _harmony(files)
    # one matrix is named by Ensembl id with the symbols in a table, the other appends the id to some symbols
    first, second = _counts(control).values, _counts(example)
    symbols = control["elementMetadata"].table()["feature"].tolist()
    plain = [re.sub(r"_ENSG\d+$", "", name) for name in second.rows]
    columns = example["colData"].table()
    is_stim = (columns["group_id"] == "stim").to_numpy()
    sources: list[tuple[sp.csc_matrix, Iterable[str], list[str]]] = [
        (first, symbols, _cells("ctrl", control["colData"].table().index)),
        (second.values[:, is_stim], plain, _cells("stim", columns.index[is_stim])),
        (stim.values, stim.rows, _cells("stim", stim.columns)),
        (ctrl.values, ctrl.rows, _cells("ctrl", ctrl.columns)),
    ]
    common = set(plain) & set(ctrl.rows)
    genes = [gene for gene in symbols if gene in common]
    blocks: list[sp.spmatrix] = []
    names: dict[str, None] = {}
    for values, rows, cells in sources:
        new = [at for at, cell in enumerate(cells) if cell not in names]
        names.update(dict.fromkeys(cells[at] for at in new))
        place = {gene: at for at, gene in enumerate(rows)}
        blocks.append(values[[place[gene] for gene in genes]][:, new].T)
    return _kang(
        sp.vstack(blocks),
        cells=list(names),
        genes=genes,
        published=_published(files, control, example),
        source="HelenaLC/muscat and immunogenomics/harmony: 10x UMI counts of PBMC of 8 donors, control or "
        "interferon beta (Kang et al. 2018); labels from HelenaLC/muscat and SimoneTiberi/distinct",
    )


def papalexi_thp1(files: dict[str, Path]) -> "AnnData":
    """20729 THP-1 cells x 303 genes, 25 knock-outs and controls, 3 replicates (Papalexi et al. 2021).

    299 genes are those of sceptre's example, the last 4 those that only an earlier version of it had. The
    perturbation is the target of the guide with most UMIs (non-targeting: ``control``); ``guide_fraction``
    is that guide's share of the cell's guide UMIs. Cells are called ``cell0``, ``cell1``, ... in file order.
    """
    import scipy.sparse as sp

    saved = read_r(files[LOWMOI])["lowmoi_example_data"]
    now, guides = saved["response_matrix"].matrix(), saved["grna_matrix"].matrix()
    earlier = read_r(files[LOWMOI_RESPONSE])["response_matrix_lowmoi"].matrix()
    covariates = read_r(files[LOWMOI_COVARIATES])["covariate_data_frame_lowmoi"].table()
    added = np.flatnonzero(~np.isin(earlier.rows, now.rows))

    umis = guides.values.T.toarray()
    top = umis.argmax(axis=1)
    guide_umis = umis.max(axis=1)
    target = saved["grna_target_data_frame"].table().set_index("grna_id")["grna_target"]
    perturbation = target.loc[guides.rows[top]].replace("non-targeting", "control").to_numpy()
    return assemble(
        as_counts(sp.hstack([now.values.T, earlier.values[added].T]), what=f"{LOWMOI} > response_matrix"),
        cells=[f"cell{number}" for number in range(len(umis))],
        genes=[*now.rows, *earlier.rows[added]],
        labels={
            "perturbation": perturbation,
            "guide_id": guides.rows[top],
            "batch": saved["extra_covariates"].table()["bio_rep"],
            "condition": np.where(perturbation == "control", "control", "perturbed"),
            "cell_type": ["THP-1"] * len(umis),
        },
        numbers={
            "guide_umis": guide_umis.astype(np.float32),
            "guide_fraction": (guide_umis / umis.sum(axis=1)).astype(np.float32),
            "total_umis_all_genes": covariates["response_n_umis"].to_numpy(np.float32),
            "genes_detected_all": covariates["response_n_nonzero"].to_numpy(np.int32),
            "p_mito": covariates["p_mito"].to_numpy(np.float32),
        },
        source="Katsevich-Lab/sceptre: ECCITE-seq UMI counts of THP-1 cells under CRISPR knock-out "
        "(Papalexi et al. 2021), 303 genes drawn by the package",
    )


def norman_k562(files: dict[str, Path]) -> "AnnData":
    """3375 K562 cells x 500 genes, 33 CRISPR activations (doubles ``A+B``) and control (Norman et al. 2019).

    The file holds two experiments as log1p of counts per 10 000; this one is ``dataset == "norman19"``. Its
    totals count more genes than the values were scaled by, so the true ones are found from each cell's
    smallest value; every value then is an exact integer.
    """
    both = read_h5ad(files[NORMAN])
    adata = both[(both.obs["dataset"] == "norman19").to_numpy()]
    obs = adata.obs
    totals = totals_from_smallest(adata.X, obs["ncounts"].to_numpy())
    line = obs["cell_type"].astype(str).str.upper()
    return assemble(
        invert_log1p(adata.X, totals, what=NORMAN),
        cells=adata.obs_names,
        genes=adata.var_names,
        labels={
            "perturbation": obs["perturbation"],
            "condition": np.where(obs["perturbation"] == "control", "control", "perturbed"),
            "cell_type": line,
            "perturbation_type": obs["perturbation_type"],
            "dose": obs["dose"],
            "batch": line,
        },
        numbers={
            "total_umis_all_genes": obs["ncounts"].to_numpy(np.float32),
            "genes_detected_all": obs["ngenes"].to_numpy(np.int32),
        },
        source="altoslabs/perturbench: 10x UMI counts of K562 under CRISPR activation (Norman et al. 2019), "
        "500 variable genes",
    )


def _kang(
    counts: "sp.spmatrix", *, cells: list[str], genes: Iterable[str], published: "pd.DataFrame", source: str
) -> "AnnData":
    labels = published.reindex(cells)
    donor = labels["donor"].fillna("unknown")
    return assemble(
        as_counts(counts, what="the counts of Kang et al."),
        cells=cells,
        genes=genes,
        labels={
            "cell_type": labels["cell_type"].fillna("unassigned"),
            "label_source": np.where(labels["cell_type"].isna(), "none", "published"),
            "condition": [cell.split("_", 1)[0] for cell in cells],
            "donor": donor,
            "batch": donor,
        },
        source=source,
    )


def _harmony(files: dict[str, Path]) -> tuple[RMatrix, RMatrix]:
    saved = read_r(files[HARMONY])
    return saved["pbmc.ctrl"].matrix(), saved["pbmc.stim"].matrix()


def _muscat(files: dict[str, Path]) -> tuple[RNode, RNode]:
    return read_r(files[MUSCAT_SE])["kang_se"], read_r(files[MUSCAT_SCE])["example_sce"]


def _counts(experiment: RNode) -> RMatrix:
    """The assay `counts` of a SummarizedExperiment, which older versions keep inside an environment."""
    assays = experiment["assays"]
    held = assays[".xData"][".->data"] if ".xData" in assays else assays["data"]
    return held["listData"]["counts"].matrix()


def _published(files: dict[str, Path], control: RNode, example: RNode) -> "pd.DataFrame":
    """Type and donor of every labelled cell, indexed by condition and barcode; the sources agree."""
    import pandas as pd

    first, second = control["colData"].table(), example["colData"].table()
    saved = read_r(files[DISTINCT])["Kang_subset"]
    third = saved["colData"].table()
    barcodes = saved["int_colData"]["listData"]["reducedDims"]["listData"]["TSNE"].matrix().rows
    cells = [
        *_cells("ctrl", first.index),
        *map("_".join, zip(second["group_id"], _barcodes(second.index), strict=True)),
        *map("_".join, zip(third["stim"], _barcodes(barcodes), strict=True)),
    ]
    # sample_id of the example is condition and donor in one word, e.g. ctrl101
    donors = [*first["sample_id"], *second["sample_id"].str[len("ctrl") :], *third["ind"]]
    types = [*first["cluster_id"], *second["cluster_id"], *third["cell"]]
    labels = pd.DataFrame({"cell_type": types, "donor": list(map(str, donors))}, index=cells)
    return labels[~labels.index.duplicated()]


def _cells(condition: str, barcodes: Iterable[str]) -> list[str]:
    return [f"{condition}_{barcode}" for barcode in _barcodes(barcodes)]


def _barcodes(barcodes: Iterable[str]) -> list[str]:
    """A stim barcode that also occurs among ctrl carries `-11` in some files: the condition tells them apart."""
    return [re.sub(r"-\d+$", "-1", barcode) for barcode in barcodes]
