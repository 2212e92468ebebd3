"""The experiment behind PerturbDiff's page on data sets: Tables 1 to 3, Figures 10 to 14 and claim P16.

What is counted needs no seed. What is drawn is drawn anew for every seed: which cells form the sets that are compared,
and in which order labels are permuted. Beside the cells' own labels ("cells") everything is measured with perturbation
labels shuffled within context and batch ("shuffled"), where there is nothing to find.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from screpro.data.heldout import HeldOut, Roles, cell_roles
from screpro.data.populations import ONE, Populations, populations
from screpro.data.vocabulary import Vocabulary, expand
from screpro.metrics.distances import median_distance
from screpro.records import Run
from screpro.tasks import perturbation_statistics as statistics
from screpro.tasks.perturbation_statistics import Tested, WithinBetween

__all__ = [
    "Drawn",
    "Protocol",
    "add_split",
    "add_vocabulary",
    "measure",
    "non_zero_shares",
    "prepare",
    "simulated_screen",
    "with_nulls",
]

LABELS = ("cells", "shuffled")
"""Methods in the rows: perturbation labels as they are, and shuffled within context and batch."""


class Protocol(NamedTuple):
    """How one data set is measured."""

    dataset: str  # name in the result rows
    seeds: Sequence[int]
    set_size: int = 40  # cells of every set that is compared
    context_size: int = 20  # the same for comparisons inside one context
    test_cells: int = 200  # of a perturbation in a permutation test, at most
    permutations: int = 999  # at least; 20 for every perturbation
    conditions: int = 60  # in comparisons within and between, at most; drawn at random where there are more
    repeats: str | None = None  # "context" or "batch": which labels are repeats of the whole experiment


class Drawn(NamedTuple):
    """What one seed found, for figures."""

    conditions: Mapping[str, tuple[str, ...]]  # names, by kind of comparison
    distances: Mapping[str, WithinBetween]  # "cells", "shuffled", "cells, energy", "cells, across repeats"
    contexts: Mapping[str, tuple[int, float]]  # context -> its cells, mean MMD² between conditions
    tested: Tested


# --- cells ----------------------------------------------------------------------------------------------------


def with_nulls(adata: AnnData, *, n: int, share: float, rng: np.random.Generator) -> AnnData:
    """Give `share` of the control cells to `n` perturbations that do nothing, "null 1" and so on."""
    given = adata.obs["perturbation"].astype(str).to_numpy(dtype=object)
    control = rng.permutation(np.flatnonzero(given == "control"))
    for code, rows in enumerate(np.array_split(control[: round(share * len(control))], n), start=1):
        given[rows] = f"null {code}"
    out = adata.copy()
    out.obs["perturbation"] = given
    return out


def simulated_screen(*, rng: np.random.Generator, cells: int = 20, n_genes: int = 300) -> AnnData:
    """A simulated atlas: 3 contexts, 3 donors, 8 perturbations that do something, 3 that do not, and a control.

    Of the first perturbation all combinations have `cells` cells; sizes fall geometrically, to a third for the last.
    """
    from screpro.data.simulate_atlas import atlas

    adata = atlas(
        n_contexts=3, n_perturbations=8, n_donors=3, cells=cells, control_cells=6 * cells, n_genes=n_genes, rng=rng
    )
    given = adata.obs["perturbation"].astype(str).to_numpy()
    names = sorted(set(given) - {"control"})
    share = dict(zip(names, np.geomspace(1, 1 / 3, len(names)), strict=True)) | {"control": 1.0}
    kept = rng.random(len(given)) < np.vectorize(share.get)(given)
    return with_nulls(adata[kept], n=3, share=0.5, rng=rng)


def prepare(
    adata: AnnData,
    *,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    batch_key: str | None = None,
    control: str | None = None,
    n_genes: int | None = 2000,
) -> Populations:
    """Cells with labels, on variable genes.

    Cells without a published type or donor (``obs["label_source"]``) are left out. Otherwise as
    `screpro.data.populations.populations`, which see for errors.
    """
    if "label_source" in adata.obs:
        adata = adata[(adata.obs["label_source"] == "published").to_numpy()]
    keys = {"perturbation_key": perturbation_key, "context_key": context_key, "batch_key": batch_key}
    return populations(adata, **keys, control=control, n_genes=n_genes)


# --- measuring ------------------------------------------------------------------------------------------------


def measure(run: Run, cells: Populations, protocol: Protocol) -> Drawn:
    """Add all rows of one data set to `run`; what an interrupted run has measured stays.

    Returns
    -------
    Drawn
        Of the first seed, drawn again if its rows are there already.
    """
    _add_counts(run, cells, protocol)
    width = _width(cells)
    first = None
    for seed in protocol.seeds:
        if first is not None and run.done(dataset=protocol.dataset, split="all", seed=seed, metric="tested"):
            continue
        drawn = _draw(cells, protocol, width, seed=seed)
        first = first or drawn
        _add_drawn(run, cells, protocol, drawn, seed=seed)
    return first


def _width(cells: Populations) -> float:
    """Median distance of cells of a data set: the kernel width of all of its comparisons."""
    rows = np.random.default_rng(0).permutation(len(cells))[:1000]
    return median_distance(cells.x[rows].toarray())


def _add_counts(run: Run, cells: Populations, protocol: Protocol) -> None:
    row = {"dataset": protocol.dataset, "split": "all", "method": "cells", "seed": None}
    row |= {"n_real": len(cells), "n_genes": len(cells.genes), "direction": "higher"}
    numbers = {
        "n_cells": len(cells),
        "n_control": int(cells.is_control.sum()),
        "n_perturbations": len(cells.perturbations) - 1,
        "n_contexts": len(cells.contexts),
        "n_batches": len(cells.batches),
    }
    for name, value in numbers.items():
        run.add(**row, item="Table 1", metric=name, value=value)
    expressed = statistics.non_zero_genes(cells.x)
    run.add(**row, item="Figure 10", metric="non_zero_genes", metric_variant="median", value=np.median(expressed))
    run.add(**row, item="Figure 10", metric="non_zero_share", value=expressed.mean() / len(cells.genes))
    for kind, item in (("perturbation", "Figure 11"), ("combination", "Figure 12")):
        unequal = statistics.imbalance(statistics.group_sizes(cells)[kind])
        for name, value in unequal._asdict().items():
            run.add(**row, item=item, metric=f"size_{name}", metric_variant=kind, value=value)


def shuffled(cells: Populations, *, rng: np.random.Generator) -> np.ndarray:
    """(n,) perturbation codes, permuted among the cells of each context and batch."""
    stratum = cells.context * len(cells.batches) + cells.batch
    order = np.argsort(stratum + rng.random(len(cells)), kind="stable")
    places = np.argsort(stratum, kind="stable")
    codes = np.empty_like(cells.perturbation)
    codes[places] = cells.perturbation[order]
    return codes


def _draw(cells: Populations, protocol: Protocol, width: float, *, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    conditions, distances = {}, {}
    for method, label in ((LABELS[0], cells.perturbation), (LABELS[1], shuffled(cells, rng=rng))):
        codes, first, second = statistics.draw_halves(label, protocol.set_size, rng=rng)
        some = np.sort(rng.permutation(len(codes))[: protocol.conditions])
        codes, first, second = codes[some], first[some], second[some]
        conditions[method] = tuple(cells.perturbations[code] for code in codes)
        distances[method] = _compare(cells, first, second, width=width)
        if method == LABELS[0]:
            distances[f"{method}, energy"] = _compare(cells, first, second, kernel="energy")
    if protocol.repeats and (sets := _across_repeats(cells, protocol, rng=rng)):
        codes, *halves = sets
        name = f"{LABELS[0]}, across repeats"
        conditions[name] = tuple(cells.perturbations[code] for code in codes)
        distances[name] = _compare(cells, *halves, width=width)
    options = {"most": protocol.test_cells, "width": width}
    options["permutations"] = max(protocol.permutations, 20 * len(cells.perturbations))
    tested = statistics.distinguishable(cells, **options, rng=rng)
    return Drawn(conditions, distances, _by_context(cells, protocol, width, rng=rng), tested)


def _compare(cells: Populations, first: np.ndarray, second: np.ndarray, **options) -> WithinBetween:
    """Within and between of sets given by row numbers; the kernel matrix is of these cells alone."""
    dense = cells.x[np.concatenate([first.ravel(), second.ravel()])].toarray()
    place = np.arange(len(dense)).reshape(2, *first.shape)
    return statistics.within_between(statistics.kernel_matrix(dense, **options), *place)


def _across_repeats(
    cells: Populations, protocol: Protocol, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """A set of every condition from each of the two largest repeats; None if fewer than two conditions are in both."""
    repeat = getattr(cells, protocol.repeats)
    largest = np.argsort(-np.bincount(repeat[~cells.is_control]), kind="stable")[:2]
    drawn = []
    for code in largest:
        label = np.where(repeat == code, cells.perturbation, -1)
        drawn.append(statistics.draw_sets(label, protocol.set_size, rng=rng))
    if len(drawn) < 2:
        return None
    both = np.intersect1d(drawn[0][0], drawn[1][0])
    both = np.sort(rng.permutation(both)[: protocol.conditions])
    if len(both) < 2:
        return None
    return both, *(rows[np.isin(codes, both)] for codes, rows in drawn)


def _by_context(
    cells: Populations, protocol: Protocol, width: float, *, rng: np.random.Generator
) -> dict[str, tuple[int, float]]:
    """Cells of every context, and the mean squared MMD between pairs of its conditions at equal set sizes."""
    found = {}
    for code, name in enumerate(cells.contexts):
        own = cells.context == code
        codes, rows = statistics.draw_sets(np.where(own, cells.perturbation, -1), protocol.context_size, rng=rng)
        if len(codes) < 2:
            continue
        place = np.arange(rows.size).reshape(rows.shape)
        gram = statistics.kernel_matrix(cells.x[rows.ravel()].toarray(), width=width)
        between = statistics.mmd2_between(gram, place, place)
        found[name] = int(own.sum()), float(between[np.triu_indices(len(codes), 1)].mean())
    return found


def _add_drawn(run: Run, cells: Populations, protocol: Protocol, drawn: Drawn, *, seed: int) -> None:
    base = {"dataset": protocol.dataset, "split": "all", "seed": seed, "n_genes": len(cells.genes)}
    for name, distances in drawn.distances.items():
        method, _, variant = name.partition(", ")
        row = base | {"method": method, "metric_variant": variant, "item": "Figure 13"}
        row |= {"n_real": 2 * protocol.set_size * len(distances.within)}
        run.add(**row, metric="mmd2_within", value=distances.within.mean(), direction="lower")
        run.add(**row, metric="mmd2_between", value=np.nanmean(distances.between), direction="higher")
        run.add(**row, metric="share_within_below_between", value=distances.share_below, direction="higher")
    row = base | {"method": LABELS[0], "direction": "higher"}
    for name, (size, value) in drawn.contexts.items():
        run.add(**row, item="Figure 14", metric="mmd2_between", metric_variant=f"in {name}", n_real=size, value=value)
    if len(drawn.contexts) >= 5:  # the rank correlation of fewer says nothing
        from scipy.stats import spearmanr

        value = spearmanr(*zip(*drawn.contexts.values(), strict=True)).statistic
        if np.isfinite(value):  # contexts of one size have no ranks
            run.add(**row, item="Figure 14", metric="size_mmd2_spearman", value=value)
    run.add(**row, item="A.4", metric="share_distinguishable", value=drawn.tested.share)
    # the last row of a seed
    run.add(**row, item="A.4", metric="tested", value=len(drawn.tested.p))


# --- splits and vocabularies ----------------------------------------------------------------------------------


def add_split(run: Run, adata: AnnData, split: HeldOut, *, dataset: str, ignore_absent: bool = False) -> Roles:
    """Rows of Table 2a: cells by role, controls apart."""
    labels = {
        kind: np.full(adata.n_obs, ONE) if key is None else adata.obs[key].astype(str).to_numpy()
        for kind in ("perturbation", "context", "batch")
        for key in [getattr(split, f"{kind}_key")]
    }
    roles = cell_roles(split, **labels, ignore_absent=ignore_absent)
    control = (labels["perturbation"] == split.control) & (roles.role != "excluded")
    numbers = {name: int(((roles.role == name) & ~control).sum()) for name in ("train", "validation", "test")}
    for name, value in (numbers | {"control": int(control.sum())}).items():
        run.add(
            item="Table 2", dataset=dataset, split="held out", method="cells", metric="n_cells", metric_variant=name,
            value=value, direction="higher",
        )  # fmt: skip
    return roles


def add_vocabulary(
    run: Run, vocabulary: Vocabulary, sources: Mapping[str, tuple[sp.csr_matrix, Sequence[str]]]
) -> None:
    """Rows of Table 3 and of Figure 10 (b): what every group of sources measures of the vocabulary, and how full it is.

    `sources` is what the vocabulary was made from: counts (n, G_source) and names of the genes.
    """
    for name in vocabulary.groups:
        row = {"dataset": Path(name).stem, "split": "all", "method": "vocabulary"}
        row |= {"n_genes": len(vocabulary.genes), "direction": "higher"}
        run.add(**row, item="Table 3", metric="shared_genes", value=vocabulary.shared(name))
        run.add(**row, item="Table 3", metric="shared_ratio", value=vocabulary.shared(name) / len(vocabulary.genes))
        for variant, share in non_zero_shares(vocabulary, name, sources).items():
            run.add(**row, item="Figure 10", metric="non_zero_share", metric_variant=variant, value=share)


def non_zero_shares(
    vocabulary: Vocabulary, group: str, sources: Mapping[str, tuple[sp.csr_matrix, Sequence[str]]]
) -> dict[str, float]:
    """Share of a group's entries that are not zero: on its own variable genes, the vocabulary, its measured part."""
    selected = np.isin(vocabulary.genes, vocabulary.selected[group])
    filled = np.zeros(3)
    entries = np.zeros(3)
    for source in vocabulary.groups[group]:
        counts, genes = sources[source]
        wide = expand(counts, genes, vocabulary)
        measured = int((vocabulary.columns[source] >= 0).sum())
        filled += wide[:, selected].count_nonzero(), wide.count_nonzero(), wide.count_nonzero()
        entries += counts.shape[0] * np.array([selected.sum(), len(vocabulary.genes), measured])
    return dict(zip(("own variable genes", "vocabulary", "measured"), (filled / entries).tolist(), strict=True))
