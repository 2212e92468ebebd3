"""Real cells, half of which answer to a stimulation that was put in: the change is known (semi-synthetic)."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from screpro.data.preprocess import log_normalise
from screpro.data.validate import check_labels
from screpro.errors import ScreproError

__all__ = ["TRUTH", "known_truth", "stimulate"]

TRUTH = "stimulated"
"""Layer of `stimulate`'s result: the counts of every cell had it been stimulated."""


def stimulate(
    adata: AnnData, *, n_response: int = 80, effect: float = 2.5, spread: float = 0.25, rng: np.random.Generator
) -> AnnData:
    """Real cells, half of which get a known effect that depends on their type (semi-synthetic).

    Half of the cells of each type, drawn at random, count as stimulated. With g one of `n_response` responding
    genes and k a type::

        fold_gk = 2 ** (sign_g * effect * size_g * exp(spread * z_gk - spread ** 2 / 2))
        size_g ~ Exponential(1),   z_gk ~ N(0, 1)

    where four of five signs are +, as in a response that switches a program on; exponents end at 4. Molecules are never
    invented: gene g is thinned to a share c_g = 1 / max(1, max_k fold_gk) in control cells and to c_g * fold_gk in
    stimulated cells of type k, so the ratio of the mean counts of the two states is fold_gk exactly. On the log
    scale the same factor moves a highly expressed gene further than a rare one, so the change differs between types
    even at ``spread=0``.

    Returns
    -------
    AnnData
        A copy with thinned counts and ``obs["condition"]`` of ``"control"`` and ``"stimulated"``. The truth is
        ``varm["log2_fold"]`` (G, types), and for each cell ``layers[TRUTH]``: the counts it would have, or has, under
        stimulation. Those of control cells are drawn from the same molecules as their control counts.

    Raises
    ------
    ScreproError
        Fewer than `n_response` genes are seen in a tenth of the cells.
    """
    check_labels(adata.obs, "cell_type")
    counts = sp.csr_matrix(adata.X, copy=True)
    counts.eliminate_zeros()
    n, m = counts.shape
    seen = np.flatnonzero(counts.getnnz(axis=0) >= 0.1 * n)
    if not 1 <= n_response <= len(seen):
        raise ScreproError(
            "Responding genes are drawn from those seen in a tenth of the cells.",
            got=f"{n_response} of {len(seen)} such genes",
            fix="ask for fewer responding genes",
        )
    types = adata.obs["cell_type"].astype(str).astype("category").cat
    code = types.codes.to_numpy()
    respond = rng.choice(seen, size=n_response, replace=False)
    sign = np.where(rng.random(n_response) < 0.8, 1.0, -1.0)
    wobble = np.exp(spread * rng.standard_normal((n_response, len(types.categories))) - spread**2 / 2)
    log2_fold = np.zeros((m, len(types.categories)))
    size = effect * rng.exponential(size=(n_response, 1))
    log2_fold[respond] = sign[:, None] * np.minimum(size * wobble, 4.0)
    control_kept = 2.0 ** -np.maximum(log2_fold.max(axis=1), 0)  # c_g, (m,)

    order = np.lexsort((rng.random(n), code))  # types one after the other, shuffled within
    rank = np.arange(n) - np.searchsorted(code[order], code[order])
    stimulated = np.zeros(n, dtype=bool)
    stimulated[order] = rank % 2 == 1
    rows = np.repeat(np.arange(n), np.diff(counts.indptr))
    kept = control_kept[counts.indices]
    fold = 2.0 ** log2_fold[counts.indices, code[rows]]
    answered = np.minimum(kept * fold, 1.0)  # 2 ** -e * 2 ** e may round above 1
    molecules = counts.data.astype(np.int64)
    counts.data = rng.binomial(molecules, np.where(stimulated[rows], answered, kept)).astype(np.float32)
    truth = counts.copy()
    of_control = ~stimulated[rows]
    truth.data[of_control] = rng.binomial(molecules[of_control], answered[of_control])
    for matrix in (counts, truth):
        matrix.eliminate_zeros()
    out = adata.copy()
    out.X = counts
    out.layers[TRUTH] = truth
    out.obs["condition"] = np.where(stimulated, "stimulated", "control")
    out.varm["log2_fold"] = log2_fold
    out.uns["source"] = f"semi-synthetic: a known effect put into {adata.uns.get('source', 'cells')}"
    return out


def known_truth(adata: AnnData, cell_type: str, genes: Sequence[str]) -> sp.csr_matrix:
    """What a perfect predictor would answer: the control cells of a type as they would be, log-normalised (n, genes).

    The only difference to real stimulated cells of that type is which cells they are.

    Parameters
    ----------
    adata
        From `stimulate`.
    cell_type, genes
        The type, and the names of the columns wanted.
    """
    own = (adata.obs["cell_type"].astype(str) == cell_type) & (adata.obs["condition"] == "control")
    answered = adata[own.to_numpy()].copy()
    answered.X = answered.layers.pop(TRUTH)
    answered = log_normalise(answered)
    place = answered.var_names.get_indexer(list(genes))
    x = sp.csc_matrix(answered.X)[:, np.maximum(place, 0)]  # a gene that no such cell would have is zero in all
    return (x @ sp.diags((place >= 0).astype(np.float32))).tocsr()
