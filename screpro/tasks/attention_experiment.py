"""The experiment behind the interpretability page: claim L16, enrichment of markers in cross-attention (L.2, Fig. 12).

One split of the cells for all seeds: the first part trains the auto-encoder and gives the marker genes, the second
part, at most a thousand cells, gives the attention. Markers and attention never see the same cell. Methods:

``scldm``      auto-encoders trained from several seeds
``untrained``  the same networks with their first, random weights: what enrichment says without any learning

The decision rule of L16 is about variant "" of ``share_of_types_enriched``: the encoder's attention, averaged over the
cells that express a gene, against labels permuted among all genes. Other readings, the null of genes of like
expression and sets from general knowledge are variants of the same metric.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.data.preprocess import log_normalise
from screpro.data.splits import cell_split
from screpro.errors import ScreproError
from screpro.kernels.fdr import benjamini_hochberg
from screpro.metrics.report_input import variable_genes
from screpro.models.scldm import AutoEncoder
from screpro.records import Run
from screpro.tasks.attention import DECODER, ENCODER, OTHERS, Attention, measure
from screpro.tasks.autoencoder import AutoEncoderSettings, build, nll, train
from screpro.tasks.enrichment import like_expression, permutation_p, permutations_for, slope_scores
from screpro.tasks.marker_genes import blood_markers, markers
from screpro.tasks.token_match import matched
from screpro.tasks.tuning import progress

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["LIKE", "METHODS", "Enriched", "MarkedCells", "Protocol", "compare", "enriched", "prepare"]

METHODS = ["scldm", "untrained"]

LIKE = "genes of like expression"
"""Variants against the stricter null end in this."""

ENOUGH = 10
"""Markers a type needs to count (claim L16)."""

RATE = 0.05
"""False discovery rate."""


class Protocol(NamedTuple):
    """How the measurements are run."""

    dataset: str  # name in the result rows
    seeds: Sequence[int]  # of the weights
    base: AutoEncoderSettings
    split: int = 0
    panel: int | None = None  # variable genes, chosen on training cells; None: all
    cells: int = 1000  # whose attention is averaged, at most
    held_out: float = 0.35  # share of the cells they come from
    least: int = 10  # cells that express a gene whose attention is used
    threads: int = 1


class MarkedCells(NamedTuple):
    """Counts (n, G) of two disjoint groups of cells on one panel, and sets of genes."""

    train: sp.csr_matrix
    shown: sp.csr_matrix  # cells whose attention is averaged
    shown_types: np.ndarray  # (n,) codes
    genes: list[str]
    types: list[str]
    usable: np.ndarray  # genes of the panel that enough of the shown cells express: indices (U,)
    sets: dict[str, np.ndarray]  # markers by type, as places in `usable`; types with enough of them only
    known: dict[str, np.ndarray]  # sets from general knowledge, the same way

    @property
    def expressing(self) -> np.ndarray:
        """(U,) shown cells that express each usable gene."""
        return self.shown.getnnz(axis=0)[self.usable]


class Enriched(NamedTuple):
    """Enrichment of K sets in m tokens."""

    scores: np.ndarray  # (m, K) t of the slope
    q: np.ndarray  # (m, K) false discovery rate over all pairs, from permutations

    @property
    def found(self) -> np.ndarray:
        """(m, K) bool: enriched."""
        return self.q <= RATE


def prepare(adata: "AnnData", protocol: Protocol) -> MarkedCells:
    """Split the cells, choose the panel and the markers on the first part.

    Raises
    ------
    ScreproError
        No cell type is known, or no type has enough markers.
    """
    if "cell_type" not in adata.obs:
        raise ScreproError("Markers need cell types.", got="no labels", fix="give label_key=, the column of the types")
    logs = log_normalise(adata)
    counts, labels = sp.csr_matrix(logs.layers["counts"]), logs.obs["cell_type"].astype("category")
    types, codes = [str(name) for name in labels.cat.categories], labels.cat.codes.to_numpy()
    split = cell_split(counts.shape[0], seed=protocol.split, test=protocol.held_out)
    if protocol.panel is not None and protocol.panel < counts.shape[1]:
        panel = variable_genes(counts[split.train], protocol.panel)
    else:
        panel = np.flatnonzero(counts[split.train].getnnz(axis=0))
    counts = counts[:, panel].astype(np.float32)
    first, shown = (rows[counts[rows].getnnz(axis=1) > 0] for rows in (split.train, split.test))
    shown = shown[: protocol.cells]  # a random order: types in their proportions
    usable = np.flatnonzero(counts[shown].getnnz(axis=0) >= protocol.least)
    if len(usable) < 3:
        raise ScreproError(
            "Enrichment needs genes that several cells express.",
            got=f"{len(usable)} genes in at least {protocol.least} of {len(shown)} cells",
            fix="use more cells or more genes",
        )
    genes = [str(logs.var_names[g]) for g in panel]
    chosen = markers(sp.csr_matrix(logs.X)[first][:, panel[usable]], codes[first], n_types=len(types))
    sets = {name: own for name, own in zip(types, chosen, strict=True) if len(own) >= ENOUGH}
    if not sets:
        raise ScreproError(
            f"At least one cell type has {ENOUGH} or more markers.",
            got=f"at most {max(map(len, chosen), default=0)} among {len(types)} types",
            fix="use more cells, more genes or coarser types",
        )
    known = blood_markers([genes[g] for g in usable])
    return MarkedCells(counts[first], counts[shown], codes[shown], genes, types, usable, sets, known)


def enriched(
    profiles: Mapping[str, np.ndarray],
    sets: Mapping[str, np.ndarray],
    *,
    seed: int,
    strata: np.ndarray | None = None,
) -> dict[str, Enriched]:
    """Enrichment of every set in every token, for each of several readings (m, U) of the attention.

    Readings share their permutations; each is a family of its own for the false discovery rate.
    """
    m = len(next(iter(profiles.values())))
    own = list(sets.values())
    p = permutation_p(
        np.concatenate(list(profiles.values())),
        own,
        permutations=permutations_for(m * len(own), rate=RATE),
        rng=np.random.default_rng(seed),
        strata=strata,
    )
    return {
        name: Enriched(slope_scores(profiles[name], own), benjamini_hochberg(part))
        for name, part in zip(profiles, np.split(p, len(profiles)), strict=True)
    }


def compare(
    run: Run,
    cells: MarkedCells,
    protocol: Protocol,
    methods: Sequence[str] = METHODS,
    *,
    trained: Mapping[int, AutoEncoder] = MappingProxyType({}),
) -> dict[tuple[str, int], Attention]:
    """Attention of every method and seed; adds the rows of its enrichment and of the matching of tokens to `run`.

    A network whose attention an interrupted run has measured is not trained again. `trained` holds networks that are
    there already, by seed.

    Raises
    ------
    ScreproError
        Unknown method.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ScreproError(
            "A method of the page is named by its key.", got=", ".join(unknown), fix=f"choose {', '.join(METHODS)}"
        )
    found = {}
    for method, seed in progress([(m, s) for m in methods for s in protocol.seeds], protocol.dataset):
        found[method, seed], loss = _attention(run, cells, protocol, method, seed, trained)
        unit = {"dataset": protocol.dataset, "split": protocol.split, "method": method, "seed": seed}
        if not run.done(**unit, metric="share_of_types_enriched"):
            _rows(run, unit, cells, found[method, seed], loss)
    for method in methods:
        for seed in protocol.seeds if len(protocol.seeds) > 1 else ():
            unit = {"dataset": protocol.dataset, "split": protocol.split, "method": method, "seed": seed}
            if run.done(**unit, metric="token_match"):
                continue
            sizes = {"item": "Figure 12", "n_real": cells.shown.shape[0], "n_genes": len(cells.usable)}
            for reading in (OTHERS, DECODER):
                own = {s: found[method, s].readings(cells.usable)[reading] for s in protocol.seeds}
                rng = np.random.default_rng(seed)
                pairs = [matched(own[seed], own[other], rng=rng) for other in protocol.seeds if other != seed]
                for name in pairs[0]:
                    run.add(
                        **unit,
                        **sizes,
                        metric="token_match",
                        metric_variant=", ".join(filter(None, (reading.split(",")[0], name))),
                        value=float(np.mean([pair[name] for pair in pairs])),
                        unit="correlation",
                        direction="higher",
                    )
    return found


def _attention(
    run: Run, cells: MarkedCells, protocol: Protocol, method: str, seed: int, trained: Mapping[int, AutoEncoder]
) -> tuple[Attention, float]:
    """Attention and mean reconstruction loss on the shown cells: measured, or read from an interrupted run's file."""
    file = run.folder / f"attention-{protocol.dataset}-{protocol.split}-{method}-{seed}.npz"
    if file.exists() and not (method == "scldm" and seed in trained):
        with np.load(file) as stored:  # arrays only: pickles are refused by default
            own = Attention(stored["encoder"], stored["decoder"], stored["expressing"], int(stored["cells"]))
            return own, float(stored["loss"])
    if method == "untrained":
        model = build(cells.train, protocol.base, seed=seed)
    elif seed in trained:
        model = trained[seed]
    else:
        title = f"{protocol.dataset}, seed {seed}"
        model = train(cells.train, protocol.base, seed=seed, threads=protocol.threads, title=title).model
    measured, loss = measure(model.eval(), cells.shown), float(nll(model, cells.shown).mean())
    np.savez(file, **measured._asdict(), loss=loss)
    return measured, loss


def _rows(run: Run, unit: dict, cells: MarkedCells, attention: Attention, loss: float) -> None:
    """Shares of types that have an enriched token, by reading, null and source of the sets; and how well it learned."""
    readings = attention.readings(cells.usable)
    shared = {"item": "Figure 12", "n_real": cells.shown.shape[0], "n_genes": len(cells.genes)}
    run.add(**unit, **shared, metric="re_nb_nll", value=loss, unit="nats", direction="lower")
    shared |= {"unit": "fraction", "n_genes": len(cells.usable)}
    found = {}
    for null, strata in (("", None), (LIKE, like_expression(cells.expressing))):
        results = enriched(readings, cells.sets, seed=unit["seed"], strata=strata)
        results[""] = results.pop(ENCODER)
        if cells.known:
            first = {"known markers": readings[ENCODER]}
            results |= enriched(first, cells.known, seed=unit["seed"], strata=strata)
        found |= {", ".join(filter(None, (reading, null))): own for reading, own in results.items()}
    for variant, own in found.items():
        # few pairs and many types: tokens are selective; all pairs: every token likes every marker
        run.add(
            **unit,
            **shared,
            metric="share_of_pairs_enriched",
            metric_variant=variant,
            value=float(own.found.mean()),
            direction="lower",
        )
    for variant, own in found.items():
        value = float(own.found.any(0).mean())
        run.add(
            **unit, **shared, metric="share_of_types_enriched", metric_variant=variant, value=value, direction="higher"
        )
