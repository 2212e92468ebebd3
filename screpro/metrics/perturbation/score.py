"""All perturbation metrics of two files in one table, beside what they have to be read against."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from screpro.metrics.perturbation.calls import (
    de_auprc,
    de_auprc_uncapped,
    de_auroc,
    de_auroc_uncapped,
    effect_size_spearman,
    effect_size_spearman_all,
)
from screpro.metrics.perturbation.cells import compare, read_pair
from screpro.metrics.perturbation.checks import TOTAL
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
from screpro.metrics.perturbation.references import control_cells, mean_effect, split_half
from screpro.metrics.perturbation.tables import Comparison

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["PRINTED", "TABLE_4", "score", "score_perturbations"]

TABLE_4: dict[str, Callable[[Comparison], np.ndarray | float]] = {
    "R2": r2_of_means,
    "DEOver": de_overlap,
    "DEPrec": de_precision,
    "ES": effect_size_spearman,
    "DirAgr": direction_agreement,
    "LFCSpear": lfc_spearman,
    "AUPRC": de_auprc,
    "AUROC": de_auroc,
    "PDCorr": pd_corr,
    "MSE": mse_of_means,
    "MAE": mae_of_means,
    "PDSL1": pds_l1,
    "PDSL2": pds_l2,
    "PDScos": pds_cosine,
}
"""The columns of PerturbDiff's Table 4 in their order."""

PRINTED: tuple[Callable[[Comparison], np.ndarray | float], ...] = (
    de_overlap_printed,
    de_precision_printed,
    effect_size_spearman_all,
    direction_agreement_both,
    lfc_spearman_printed,
    de_auprc_uncapped,
    de_auroc_uncapped,
    effect_error_squared_norm,
    effect_error_norm,
    pds_l1_printed,
    pds_l2_printed,
    pds_cosine_printed,
)
"""The definitions that the paper prints where they differ from what was computed."""


def score(pair: Comparison, *, method: str = "generated") -> "pd.DataFrame":
    """Every metric of one comparison.

    Parameters
    ----------
    pair
        Real and generated effects, see ``compare``.
    method
        Name for the column of that name.

    Returns
    -------
    DataFrame with columns `method`, `metric` (name of the function), `perturbation` (its name, or ``all`` for the mean
    over the perturbations where the metric is defined and for metrics of the whole data set), `value` and `n` (how many
    perturbations are behind the value). ``called_genes`` counts the genes called in the generated cells.
    """
    import pandas as pd

    functions = (*TABLE_4.values(), *PRINTED)
    values = {function.__name__: np.asarray(function(pair)) for function in functions}
    values["called_genes"] = pair.generated.significant.sum(axis=1)
    return pd.concat([_rows(method, name, value, pair) for name, value in values.items()], ignore_index=True)


def score_perturbations(
    real: "AnnData | tuple",
    generated: "AnnData | tuple",
    *,
    control: str,
    by: str = "perturbation",
    genes: list[str] | None = None,
    seed: int = 0,
) -> "pd.DataFrame":
    """Every metric of a generated file, of the two trivial predictions and of the halves of the real cells.

    Parameters
    ----------
    real, generated, control, by, genes
        As for ``read_pair``.
    seed
        Draws the cells of the mean effect and the halves.

    Returns
    -------
    DataFrame as from `score`, with the methods

    - ``generated``;
    - ``control cells``, ``mean effect``: predictions without a model;
    - ``split half``: the ceiling;
    - ``constant``: ``share_of_called_genes``, the share of truly called genes, the floor of ``de_precision`` and
      ``de_auprc``; ``pds_of_one_prediction``, (M + 1) / (2M), what PDS gives if all predictions are the same and no
      perturbation's target is among the genes (``control cells`` shows what it gives if some are);
      ``called_genes``, the numbers of truly called genes.

    Raises
    ------
    ScreproError
        As ``read_pair``.
    """
    import pandas as pd

    real_cells, generated_cells = read_pair(real, generated, control=control, by=by, genes=genes)
    pair = compare(real_cells, generated_cells)
    tables = [
        score(pair),
        score(control_cells(pair), method="control cells"),
        score(mean_effect(pair, real_cells, seed=seed), method="mean effect"),
        score(split_half(real_cells, seed=seed), method="split half"),
    ]
    m = pair.n_perturbations
    constants = {
        "share_of_called_genes": pair.real.significant.mean(axis=1),
        "pds_of_one_prediction": np.asarray((m + 1) / (2 * m)),
        "called_genes": pair.real.significant.sum(axis=1),
    }
    tables += [_rows("constant", name, value, pair) for name, value in constants.items()]
    return pd.concat(tables, ignore_index=True)


def _rows(method: str, name: str, value: np.ndarray, pair: Comparison) -> "pd.DataFrame":
    """A row for each perturbation and one for all; only the latter for a number of the whole data set."""
    import pandas as pd

    value = np.atleast_1d(value).astype(np.float64) if value.ndim else value.astype(np.float64)
    names, values, n = [TOTAL], value, [pair.n_perturbations]
    if value.ndim:
        defined = ~np.isnan(value)
        mean = value[defined].mean() if defined.any() else np.nan
        labels = pair.perturbations or tuple(str(number) for number in range(len(value)))
        names, values, n = [*labels, TOTAL], np.append(value, mean), [*defined.astype(int), int(defined.sum())]
    columns = {"method": method, "metric": name, "perturbation": names, "value": values, "n": n}
    return pd.DataFrame(columns)
