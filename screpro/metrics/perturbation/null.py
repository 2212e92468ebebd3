r"""The null test: which genes does a generator change where nothing was changed?

Cells generated for the control condition are tested against the real control cells, gene by gene, as generated
perturbed cells are. Every gene that is called tells generated from real cells, not perturbed from unperturbed ones;
and among the genes called for a perturbation there are as many of that kind. So the metrics of called genes
(``de_overlap``, ``de_precision``, ``effect_size_spearman``) can only be read beside it.
"""

import numpy as np
import scipy.sparse as sp

from screpro.errors import ScreproError
from screpro.metrics.catalogue import metric
from screpro.metrics.perturbation.cells import Cells, summary_side
from screpro.metrics.perturbation.tables import Side

__all__ = ["null_calls", "null_side"]


def null_side(controls: sp.csr_matrix | np.ndarray, generated: sp.csr_matrix | np.ndarray) -> Side:
    """Test cells that should be control cells against those that are.

    Parameters
    ----------
    controls
        (n, G) log1p-normalised expression of real control cells, at least two.
    generated
        (m, G) of cells generated for the control condition, at least two.

    Returns
    -------
    `Side` of one row: means, adjusted p-values and fold changes of the generated cells against the real ones.

    Raises
    ------
    ScreproError
        Other genes, or fewer than two cells on a side.
    """
    (n, g), (m, genes) = controls.shape, generated.shape
    if min(n, m) < 2 or g != genes:
        raise ScreproError(
            "The null test compares at least two generated with at least two real control cells, on the same genes.",
            got=f"{m} x {genes} generated and {n} x {g} real ones",
            fix="generate more cells for the control condition, with the genes of the real file",
        )
    either_sparse = sp.issparse(controls) or sp.issparse(generated)
    x = sp.vstack([generated, controls]).tocsr() if either_sparse else np.vstack([generated, controls])
    codes = np.repeat([0, 1], [m, n])
    return summary_side(Cells(x, codes, ("generated control cells",), tuple(map(str, range(g)))))


@metric(title="Null test: genes called where nothing changed", family="perturbation", direction="lower")
def null_calls(null: Side) -> np.ndarray:
    r"""Share of the genes that are called in cells generated for the control condition, against real control cells.

    Formula
    -------
    $$ \mathrm{Null}_c = \frac{1}{G} \big|\{g : \hat q_{c g} < .05\}\big| $$

    $\hat q_{c g}$: adjusted p-value of gene g, generated control cells of group c against the real control cells.

    Estimator
    ---------
    Two-sided rank-sum test with tie and continuity correction, as for perturbations; Benjamini-Hochberg over the G
    genes (of all groups, if there are several). No perturbation takes part in the adjustment: its true calls would
    lower the bar for false ones.

    Bias
    ----
    Real cells in the place of the generated ones are called in any gene at all in at most 5 % of the cases: the true
    value of a perfect generator is near 0. A test finds smaller differences with more cells, so the share grows with
    their number for every generator that is not perfect: compare at equal numbers, beside the other half of the real
    control cells.

    Unit
    ----
    None; share of genes from 0 to 1.

    Used in
    -------
    None of the three papers. It says what PerturbDiff's DEPrec, DEOver and ES (Table 4) are made of: their calls
    compare generated perturbed with real control cells, and so contain these.

    Parameters
    ----------
    null
        Adjusted p-values of the generated control cells against the real ones, see ``null_side``.

    Returns
    -------
    (M,) one share for each group of generated control cells.

    Raises
    ------
    ScreproError
        `null` lacks adjusted p-values.

    Examples
    --------
    Three groups of control cells, say of three donors, and three genes. First: genes 1 and 2 are called, 2/3. Second:
    gene 3, 1/3. Third: .05 is not below .05, so none.

    >>> from screpro.metrics.perturbation import Side, null_calls
    >>> null_calls(Side(fdr=[[.01, .04, .9], [.9, .3, .001], [.05, .9, 1]])).round(3).tolist()
    [0.667, 0.333, 0.0]
    """
    return null.significant.mean(axis=1)
