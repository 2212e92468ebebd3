"""The 14 metrics of PerturbDiff's Table 4 as Cell-Eval 0.6.6 computes them: are the effects of perturbations right?

========  =============================  ===============================  ======================================
Table 4   here                           Cell-Eval                        printed otherwise
========  =============================  ===============================  ======================================
R2        `r2_of_means`                  (the authors' own code)
PDCorr    `pd_corr`                      pearson_delta
MSE       `mse_of_means`                 mse                              `effect_error_squared_norm`, eq. 53
MAE       `mae_of_means`                 mae                              `effect_error_norm`, eq. 52
PDSL1     `pds_l1`                       discrimination_score_l1          `pds_l1_printed`, eq. 50
PDSL2     `pds_l2`                       discrimination_score_l2          `pds_l2_printed`, eq. 50
PDScos    `pds_cosine`                   discrimination_score_cosine      `pds_cosine_printed`, eq. 50
DEOver    `de_overlap`                   overlap_at_N                     `de_overlap_printed`, eq. 54
DEPrec    `de_precision`                 precision_at_N                   `de_precision_printed`, eq. 55
DirAgr    `direction_agreement`          de_direction_match               `direction_agreement_both`, eq. 56
LFCSpear  `lfc_spearman`                 de_spearman_lfc_sig              `lfc_spearman_printed`, eq. 57
AUROC     `de_auroc`                     roc_auc                          `de_auroc_uncapped`
AUPRC     `de_auprc`                     pr_auc                           `de_auprc_uncapped`
ES        `effect_size_spearman`         de_spearman_sig                  `effect_size_spearman_all`, eq. 58
========  =============================  ===============================  ======================================

Every metric is a function of one `Comparison`. `compare` makes it from cells, once for all of them:

    real, generated = read_pair(real_adata, generated_adata, control="control", by="perturbation")
    pair = compare(real, generated)
    pds_l1(pair)

`score_perturbations` does all of it and adds the references that make a number readable. `null_calls`, the null test,
needs cells of its own, generated for the control condition: how many genes are called where nothing was changed?
"""

from screpro.metrics.perturbation.calls import (
    de_auprc,
    de_auprc_uncapped,
    de_auroc,
    de_auroc_uncapped,
    effect_size_spearman,
    effect_size_spearman_all,
)
from screpro.metrics.perturbation.cells import Cells, compare, read_pair
from screpro.metrics.perturbation.discrimination import pds_cosine, pds_l1, pds_l2
from screpro.metrics.perturbation.discrimination_printed import pds_cosine_printed, pds_l1_printed, pds_l2_printed
from screpro.metrics.perturbation.genes import de_overlap, de_precision, direction_agreement, lfc_spearman
from screpro.metrics.perturbation.genes_printed import (
    de_overlap_printed,
    de_precision_printed,
    direction_agreement_both,
    lfc_spearman_printed,
)
from screpro.metrics.perturbation.means import (
    effect_error_norm,
    effect_error_squared_norm,
    mae_of_means,
    mse_of_means,
    pd_corr,
    r2_of_means,
)
from screpro.metrics.perturbation.null import null_calls, null_side
from screpro.metrics.perturbation.references import control_cells, mean_effect, split_half
from screpro.metrics.perturbation.score import PRINTED, TABLE_4, score, score_perturbations
from screpro.metrics.perturbation.tables import Comparison, Side

__all__ = [
    "PRINTED",
    "TABLE_4",
    "Cells",
    "Comparison",
    "Side",
    "compare",
    "control_cells",
    "de_auprc",
    "de_auprc_uncapped",
    "de_auroc",
    "de_auroc_uncapped",
    "de_overlap",
    "de_overlap_printed",
    "de_precision",
    "de_precision_printed",
    "direction_agreement",
    "direction_agreement_both",
    "effect_error_norm",
    "effect_error_squared_norm",
    "effect_size_spearman",
    "effect_size_spearman_all",
    "lfc_spearman",
    "lfc_spearman_printed",
    "mae_of_means",
    "mean_effect",
    "mse_of_means",
    "null_calls",
    "null_side",
    "pd_corr",
    "pds_cosine",
    "pds_cosine_printed",
    "pds_l1",
    "pds_l1_printed",
    "pds_l2",
    "pds_l2_printed",
    "r2_of_means",
    "read_pair",
    "score",
    "score_perturbations",
    "split_half",
]
