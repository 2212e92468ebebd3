"""Recipes of the sets whose cells are labelled by type: blood, gut and cell lines.

Each function takes ``{key: local path}`` for its keys below and returns AnnData as `readers.assemble` makes it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from screpro.data.readers import as_counts, assemble, invert_log1p, read_csv
from screpro.data.robjects import read_r
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

PBMC_FACS = "stephenslab/fastTopics/data/pbmc_facs.RData"
PBMC3K = "zdebruine/RcppML/data/pbmc3k.rda"
MCA_GUT = "Papatheodorou-Group/scGOclust/data/mmu_subset.rda"
HABER = "JSB-UCLA/scDesign2/inst/extdata/mouse_sie_10x_demo.rds"
SYMPHONY = [f"immunogenomics/symphony/data/pbmcs_{part}_small.rda" for part in ("exprs", "meta")]
CELLBENCH = [
    f"LuyiTian/sc_mixology/data/csv/sc_celseq2_5cl_p{plate}.{part}.csv.gz"
    for plate in (1, 2, 3)
    for part in ("count", "metadata")
]


def pbmc_facs_zheng(files: dict[str, Path]) -> "AnnData":
    """3874 blood cells x 16791 genes, sorted by FACS into 10 types (Zheng et al. 2017).

    The package's 3774 cells come first, then the 100 it holds out (``obs["split"]``). Each type was a run of
    its own, so ``batch`` (the end of the cell's name) says the same as ``cell_type``.
    """
    import scipy.sparse as sp

    saved = read_r(files[PBMC_FACS])["pbmc_facs"]
    main, held_out = saved["counts"].matrix(), saved["counts_test"].matrix()
    samples, samples_test, genes = (saved[part].table() for part in ("samples", "samples_test", "genes"))
    cells = np.concatenate([main.rows, held_out.rows])
    both = {name: [*samples[name], *samples_test[name]] for name in ("celltype", "subpop")}
    return assemble(
        as_counts(sp.vstack([main.values, held_out.values]), what=f"{PBMC_FACS} > counts"),
        cells=cells,
        genes=genes["symbol"],
        labels={
            "cell_type": both["celltype"],
            "cell_type_broad": both["subpop"],
            "split": ["main"] * len(samples) + ["test"] * len(samples_test),
            "batch": [name.split("-", 2)[2] for name in cells],
        },
        var={"ensembl": genes["ensembl"].to_numpy(), "symbol": genes["symbol"].to_numpy()},
        source="stephenslab/fastTopics: UMI counts of FACS-sorted PBMC, 10x Genomics (Zheng et al. 2017)",
    )


def pbmc3k(files: dict[str, Path]) -> "AnnData":
    """2638 blood cells x 13714 genes: the 10x Genomics PBMC 3k set (v1 chemistry), counts only.

    Of the 2700 cells those with fewer than 2500 genes and less than 5 % mitochondrial counts are kept, the
    filter behind the usual annotation of this set. That annotation is not part of the file: there is no
    ``cell_type``. Names get the ``-1`` that Cell Ranger appends to a barcode.
    """
    saved = read_r(files[PBMC3K])["pbmc3k"].matrix()
    counts = as_counts(saved.values.T, what=PBMC3K)
    mitochondrial = np.char.startswith(saved.rows.astype(str), "MT-")
    total = np.asarray(counts.sum(axis=1)).ravel()
    share = np.asarray(counts[:, mitochondrial].sum(axis=1)).ravel() / total
    kept = (np.diff(counts.indptr) < 2500) & (share < 0.05)
    return assemble(
        counts[kept],
        cells=[f"{barcode}-1" for barcode in saved.columns[kept]],
        genes=saved.rows,
        source="zdebruine/RcppML: UMI counts of 10x Genomics PBMC 3k, without type labels",
    )


def mca_gut(files: dict[str, Path]) -> "AnnData":
    """1871 mouse stomach and intestine cells x 14688 genes, 22 types (Mouse Cell Atlas, Han et al. 2018).

    ``batch`` is the library, which the cell's name begins with; ``cell_type_tissue`` and ``cell_type_fine``
    are the file's finer labels.
    """
    saved = read_r(files[MCA_GUT])["mmu_subset"]
    found = saved["assays"]["RNA"]["counts"].matrix()
    labels = saved["meta.data"].table().loc[found.columns]
    library = [name.split(".")[0] for name in found.columns]
    return assemble(
        as_counts(found.values.T, what=f"{MCA_GUT} > counts"),
        cells=found.columns,
        genes=found.rows,
        labels={
            "cell_type": labels["cell_type_annotation_broad"],
            "cell_type_tissue": labels["cell_type_annotation"],
            "cell_type_fine": labels["Idents.pbmc."],
            "batch": library,
            "tissue": ["stomach" if "Stomach" in name else "small intestine" for name in library],
        },
        source="Papatheodorou-Group/scGOclust: Microwell-seq UMI counts of mouse stomach and small intestine, "
        "Mouse Cell Atlas (Han et al. 2018), at most 100 cells a type",
    )


def haber_sie_1k(files: dict[str, Path]) -> "AnnData":
    """2160 mouse small-intestine cells x 1000 genes, 15 types (Haber et al. 2017).

    The file names its columns by type only, so cells are called ``cell0``, ``cell1``, ... in file order.
    """
    saved = read_r(files[HABER]).matrix()
    return assemble(
        as_counts(saved.values.T, what=HABER),
        cells=[f"cell{number}" for number in range(len(saved.columns))],
        genes=saved.rows,
        labels={"cell_type": saved.columns},
        source="JSB-UCLA/scDesign2: 10x UMI counts of mouse small intestinal epithelium (Haber et al. 2017), "
        "1000 genes chosen by the package",
    )


def pbmc_10x_3tech(files: dict[str, Path]) -> "AnnData":
    """1500 blood cells x 1764 variable genes, 9 types, three 10x chemistries (``batch``).

    The file stores log1p of counts per 10 000; with the totals of its table the integers come back exactly.
    """
    exprs, meta = SYMPHONY
    saved = read_r(files[exprs])["pbmcs_exprs_small"].matrix()
    table = read_r(files[meta])["pbmcs_meta_small"].table().set_index("cell_id").loc[saved.columns]
    return assemble(
        invert_log1p(saved.values.T, table["nUMI"].to_numpy(), what=exprs),
        cells=saved.columns,
        genes=saved.rows,
        labels={
            "cell_type": table["cell_type"],
            "cell_type_broad": table["cell_type_broad"],
            "batch": table["donor"],
        },
        numbers={
            "total_umis_all_genes": table["nUMI"].to_numpy(np.float32),
            "genes_detected_all": table["nGene"].to_numpy(np.int32),
            "percent_mito": table["percent_mito"].to_numpy(np.float32),
        },
        source="immunogenomics/symphony: 10x Genomics PBMC by 3' v1, 3' v2 and 5' chemistry, variable genes",
    )


def cellbench_5cl(files: dict[str, Path]) -> "AnnData":
    """909 cells of five lung cancer lines x 12653 genes on three CEL-seq2 plates (CellBench, Tian et al. 2019).

    Genes are those seen on all three plates (spike-ins included), sorted by Ensembl id. The files hold ids
    only, so these are the names of the genes. ``cell_type`` is the line demuxlet assigned;
    ``demuxlet_cls`` marks its doublets (DBL), which are kept.
    """
    import pandas as pd

    plates, tables, cells = [], [], []
    for plate in (1, 2, 3):
        key, meta_key = CELLBENCH[2 * plate - 2 : 2 * plate]
        plates.append(read_csv(files[key]))
        tables.append(read_csv(files[meta_key]).reindex(plates[-1].columns))
        if tables[-1].isna().any(axis=None):
            raise ScreproError(
                f"{meta_key} has to describe every cell of {key}",
                got="a cell or a value is missing",
                fix="fetch both files again",
            )
        cells += [f"CEL-seq2_p{plate}_{well}" for well in plates[-1].columns]
    # inner join: a gene missing from a plate's file was not seen there, or not looked for
    joined = pd.concat(plates, axis=1, join="inner")
    joined = joined.sort_index()
    labels = pd.concat(tables)
    return assemble(
        as_counts(joined.to_numpy(dtype=np.float64).T, what="sc_celseq2_5cl_p*.count.csv.gz"),
        cells=cells,
        genes=joined.index,
        labels={
            "cell_type": labels["cell_line_demuxlet"],
            "batch": [name.rsplit("_", 2)[0] for name in cells],
            "demuxlet_cls": labels["demuxlet_cls"],
        },
        numbers={"total_umis_all_genes": labels["total_count_per_cell"].to_numpy(np.float32)},
        var={"ensembl": joined.index.to_numpy()},
        source="LuyiTian/sc_mixology: CEL-seq2 UMI counts of five lung cancer cell lines (Tian et al. 2019)",
    )
