"""Points of scLDM's Figure 12: how enriched the markers of every type are in the attention of every latent token."""

import numpy as np
import pandas as pd

from screpro.records import Run, keep_drawn
from screpro.tasks.attention import DECODER, ENCODER, Attention
from screpro.tasks.attention_experiment import MarkedCells, enriched

__all__ = ["SIDES", "as_tables", "keep_enrichment"]

SIDES = (ENCODER, DECODER)
"""The two readings of the attention that the paper draws."""


def keep_enrichment(
    run: Run, cells: MarkedCells, attention: Attention, *, dataset: str, method: str, seed: int
) -> None:
    """Keep the enrichment score of every pair of token and type, of both sides, and whether it passes the rate.

    Parameters
    ----------
    run
        The run at hand.
    cells
        Genes that are tested, and the markers of the types.
    attention
        Of the network of one seed.
    dataset, method
        As in the result rows.
    seed
        Of the network and of the permutations, so that what is marked agrees with its result rows.
    """
    readings = attention.readings(cells.usable)
    names, parts = np.array(list(cells.sets)), []
    for side, own in enriched({side: readings[side] for side in SIDES}, cells.sets, seed=seed).items():
        token, of_type = (each.ravel() for each in np.indices(own.scores.shape))
        points = {"side": side, "type": names[of_type], "token": token, "score": own.scores.ravel()}
        parts.append(pd.DataFrame(points | {"enriched": own.found.ravel().astype(int)}))
    keep_drawn(run, "enrichment", pd.concat(parts), dataset=dataset, method=method)


def as_tables(points: pd.DataFrame, side: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores, and which pairs are enriched, as tables of types by tokens, from the points of one network."""
    own = points[points["side"] == side]
    by = {"index": "type", "columns": "token", "sort": False}
    return own.pivot_table(values="score", **by), own.pivot_table(values="enriched", **by).astype(bool)
