"""Every recipe on a tiny made-up file of the same format as its original."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from screpro.data.recipes import FILES, RECIPES
from screpro.errors import ScreproError

r = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("rwriter.py"))))
strings, ints, reals, named_list, s4 = r.strings, r.ints, r.reals, r.named_list, r.s4

ROWS = r.ints(r.NA, -2)  # row names 1, 2
GENES = strings("MT-A", "B", "C")
COUNTS = np.array([[1, 0, 30], [2, 40, 0]])  # cells x genes


@pytest.fixture
def make(tmp_path):
    """Write the contents given per file of a set, in the order of FILES, and run its recipe."""

    def make_(name, *contents):
        files = {key: tmp_path / f"{at}-{Path(key).name}" for at, key in enumerate(FILES[name])}
        for path, content in zip(files.values(), contents, strict=True):
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif isinstance(content, pd.DataFrame):
                content.to_csv(path)
            else:
                content.write_h5ad(path)
        return RECIPES[name](files)

    return make_


def test_pbmc_facs_zheng(make):
    def samples(*types):
        return r.frame({"celltype": strings(*types), "subpop": strings(*types)}, ints(r.NA, -len(types)))

    saved = named_list(
        {
            "samples": samples("B", "T"),
            "samples_test": samples("T"),
            "genes": r.frame({"ensembl": strings("E1", "E2", "E3"), "symbol": strings("U", "V", "U")}, ints(r.NA, -3)),
            "counts": r.sparse(COUNTS, strings("AA-1-b_cells", "AC-1-naive_t"), GENES),
            "counts_test": r.sparse([[0, 1, 1]], strings("AG-1-naive_t"), GENES),
            "fit": r.R("CLO"),
        }
    )
    adata = make("pbmc_facs_zheng", r.rda(pbmc_facs=saved))
    assert adata.X.toarray().tolist() == [*COUNTS.tolist(), [0, 1, 1]]
    assert adata.var_names.tolist() == ["U", "V", "U-1"]
    assert adata.obs["batch"].tolist() == ["b_cells", "naive_t", "naive_t"]
    assert adata.obs["split"].tolist() == ["main", "main", "test"]


def test_pbmc3k_drops_cells_rich_in_mitochondrial_counts(make):
    cells = np.vstack([COUNTS, [5, 5, 5]])
    adata = make("pbmc3k", r.rda(pbmc3k=r.sparse(cells.T, GENES, strings("AA", "AC", "AG"))))
    assert adata.obs_names.tolist() == ["AA-1", "AC-1"]
    assert adata.X.toarray().tolist() == COUNTS.tolist() and "cell_type" not in adata.obs


def test_mca_gut(make):
    cells = strings("SmallIntestine_1.AA", "AdultStomach_2.AC")
    labels = {
        "cell_type_annotation_broad": r.factor((1, 2), ("B", "Pit")),
        "cell_type_annotation": strings("intestine_B", "stomach_Pit"),
        "Idents.pbmc.": strings("B_x", "Pit_y"),
    }
    seurat = s4(
        "Seurat",
        assays=named_list({"RNA": s4("Assay", counts=r.dense(COUNTS.T, GENES, cells))}),
        **{"meta.data": r.frame(labels, cells)},
    )
    adata = make("mca_gut", r.rda(mmu_subset=seurat))
    assert adata.X.toarray().tolist() == COUNTS.tolist()
    assert adata.obs["tissue"].tolist() == ["small intestine", "stomach"]
    assert adata.obs["batch"].tolist() == ["SmallIntestine_1", "AdultStomach_2"]


def test_haber_sie_1k(make):
    adata = make("haber_sie_1k", r.rds(r.dense(COUNTS.T, GENES, strings("Stem", "Stem"))))
    assert adata.obs_names.tolist() == ["cell0", "cell1"] and set(adata.obs["cell_type"]) == {"Stem"}


def test_pbmc_10x_3tech_pairs_cells_with_their_own_totals(make):
    totals = np.array([977, 2011])
    values = np.log1p(COUNTS * 1e4 / totals[:, None])
    columns = {"cell_id": strings("y", "x"), "nUMI": ints(*totals[::-1]), "nGene": ints(9, 8)}
    columns |= {name: strings("b", "a") for name in ("donor", "cell_type", "cell_type_broad")}
    table = r.frame(columns | {"percent_mito": reals(0.1, 0.2)}, ROWS)
    adata = make(
        "pbmc_10x_3tech",
        r.rda(pbmcs_exprs_small=r.sparse(values.T, GENES, strings("x", "y"))),
        r.rda(pbmcs_meta_small=table),
    )
    assert adata.X.toarray().tolist() == COUNTS.tolist()
    assert adata.obs["cell_type"].tolist() == ["a", "b"]


def test_cellbench_5cl_keeps_the_genes_of_all_plates(make):
    contents = []
    for genes in (["E2", "E1"], ["E1", "E2", "E3"], ["E4", "E2", "E1"]):
        counts = pd.DataFrame(np.arange(len(genes))[:, None] + 1, index=genes, columns=["p1_A1"])
        meta = {"cell_line_demuxlet": ["A549"], "demuxlet_cls": ["SNG"], "total_count_per_cell": [9]}
        contents += [counts, pd.DataFrame(meta, index=["p1_A1"])]
    adata = make("cellbench_5cl", *contents)
    assert adata.var_names.tolist() == ["E1", "E2"]
    assert adata.X.toarray().tolist() == [[2, 1], [1, 2], [3, 2]]
    assert adata.obs_names.tolist() == [f"CEL-seq2_p{plate}_p1_A1" for plate in (1, 2, 3)]


@pytest.fixture
def kang():
    """Harmony, muscat's control cells, muscat's example, distinct: they share genes B and C and some cells."""
    harmony = r.rda(
        **{
            "pbmc.ctrl": r.sparse([[0, 0], [1, 2], [3, 4]], strings("H", "B", "C"), strings("AA-1", "AC-1")),
            "pbmc.stim": r.sparse([[0], [5], [6]], strings("H", "B", "C"), strings("AA-11")),
        }
    )
    control = s4(
        "SummarizedExperiment",
        assays=s4(
            "Assays",
            **{
                ".xData": r.R(
                    "ENV",
                    {
                        ".->data": s4(
                            "SimpleList",
                            listData=named_list({"counts": r.dense(np.array([[3], [1]]), strings("E1", "E2"), None)}),
                        )
                    },
                )
            },
        ),
        colData=s4(
            "DataFrame",
            rownames=strings("AA-1"),
            listData=named_list({"sample_id": ints(101), "cluster_id": strings("NK cells")}),
        ),
        elementMetadata=s4(
            "DataFrame", rownames=r.R("SYM", "\x01NULL\x01"), listData=named_list({"feature": strings("C", "B")})
        ),
    )
    example = s4(
        "SingleCellExperiment",
        assays=s4(
            "Assays",
            data=s4(
                "SimpleList",
                listData=named_list({"counts": r.sparse([[7, 9], [8, 9]], strings("B_ENSG01", "C"), None)}),
            ),
        ),
        colData=s4(
            "DFrame",
            rownames=strings("AG-1", "AT-1"),
            listData=named_list(
                {
                    "cluster_id": strings("B cells", "B cells"),
                    "sample_id": strings("stim107", "ctrl107"),
                    "group_id": strings("stim", "ctrl"),
                }
            ),
        ),
    )
    tsne = s4("DFrame", listData=named_list({"TSNE": r.dense(np.zeros((1, 2)), strings("AA-11"), None)}))
    distinct = s4(
        "SingleCellExperiment",
        int_colData=s4("DFrame", listData=named_list({"reducedDims": tsne})),
        colData=s4(
            "DFrame",
            rownames=r.R("SYM", "\x01NULL\x01"),
            listData=named_list({"ind": ints(1015), "stim": strings("stim"), "cell": strings("CD4 T cells")}),
        ),
    )
    return harmony, r.rda(kang_se=control), r.rda(example_sce=example), r.rda(Kang_subset=distinct)


def test_kang_9k_labels_cells_by_condition_and_barcode(make, kang):
    adata = make("kang_9k", *kang)
    assert adata.obs_names.tolist() == ["ctrl_AA-1", "ctrl_AC-1", "stim_AA-1"]
    assert adata.X.toarray().tolist() == [[0, 1, 3], [0, 2, 4], [0, 5, 6]]
    assert adata.obs["cell_type"].tolist() == ["NK cells", "unassigned", "CD4 T cells"]
    assert adata.obs["donor"].tolist() == ["101", "unknown", "1015"]
    assert adata.obs["label_source"].tolist() == ["published", "none", "published"]


def test_kang_1k_takes_each_cell_once(make, kang):
    adata = make("kang_1k", *kang)
    assert adata.var_names.tolist() == ["C", "B"]
    assert adata.obs_names.tolist() == ["ctrl_AA-1", "stim_AG-1", "stim_AA-1", "ctrl_AC-1"]
    assert adata.X.toarray().tolist() == [[3, 1], [8, 7], [6, 5], [4, 2]]
    assert adata.obs["donor"].tolist() == ["101", "107", "1015", "unknown"]


def test_papalexi_thp1_takes_the_guide_with_most_umis(make):
    guides = r.sparse([[9, 0], [1, 4]], strings("g1", "n1"), None)
    targets = r.frame({"grna_id": strings("n1", "g1"), "grna_target": strings("non-targeting", "STAT1")}, ROWS)
    saved = named_list(
        {
            "response_matrix": r.sparse(COUNTS.T, GENES, None),
            "grna_matrix": guides,
            "extra_covariates": r.frame({"bio_rep": strings("rep_1", "rep_2")}, ROWS),
            "grna_target_data_frame": targets,
        }
    )
    table = {"response_n_umis": ints(99, 98), "response_n_nonzero": ints(3, 3), "p_mito": reals(0.1, 0.2)}
    adata = make(
        "papalexi_thp1",
        r.rda(lowmoi_example_data=saved),
        r.rda(response_matrix_lowmoi=r.sparse([[1, 1], [5, 6]], strings("B", "MT-Z"), None)),
        r.rda(covariate_data_frame_lowmoi=r.frame(table, ROWS)),
    )
    assert adata.var_names.tolist() == ["MT-A", "B", "C", "MT-Z"]
    assert adata.X.toarray().tolist() == [[1, 0, 30, 5], [2, 40, 0, 6]]
    assert adata.obs["perturbation"].tolist() == ["STAT1", "control"]
    assert adata.obs["condition"].tolist() == ["perturbed", "control"]
    np.testing.assert_allclose(adata.obs["guide_fraction"], [0.9, 1.0])


@pytest.fixture
def perturbench():
    totals = np.array([977, 2011, 1500])
    obs = pd.DataFrame(
        {
            "dataset": ["norman19", "norman19", "mcfaline23"],
            "perturbation": ["control", "A+B", "C"],
            "perturbation_type": "CRISPRa",
            "dose": "1",
            "cell_type": "k562",
            "ncounts": totals + 6.0,
            "ngenes": 3,
        },
        index=["x", "y", "z"],
    )
    values = np.log1p(np.vstack([COUNTS, [0.3, 0, 0]]) * 1e4 / totals[:, None])
    return AnnData(X=sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=["a", "b", "c"]))


def test_norman_k562_finds_the_totals(make, perturbench):
    adata = make("norman_k562", perturbench)
    assert adata.X.toarray().tolist() == COUNTS.tolist()
    assert adata.obs["perturbation"].tolist() == ["control", "A+B"]
    assert set(adata.obs["cell_type"]) == {"K562"}


def test_a_missing_column_is_named(make, perturbench):
    del perturbench.obs["dose"]
    with pytest.raises(ScreproError, match="norman_k562") as error:
        make("norman_k562", perturbench)
    assert "dose" in error.value.got
