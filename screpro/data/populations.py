"""Sets of cells as training items: cells grouped by perturbation, context and batch, with matched control cells.

PerturbDiff, section 4.2 and the authors' data module. Cells of one (perturbation, context, batch) are shuffled and cut
into sets of m; the last one is completed by cells of the same group drawn again, marked as padding and removed before
anything is scored. Every cell of a set gets a random control cell of its own context and batch; where there is none,
of its batch, then of its context. Which control stands beside which cell means nothing.

Control cells of every context are known everywhere, those of held-out contexts included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numba
import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from screpro.data.columns import controls_among
from screpro.data.preprocess import variable_panel
from screpro.data.validate import check_counts, check_labels
from screpro.errors import ScreproError

__all__ = ["Populations", "Sets", "control_first", "gather", "log_median", "populations", "values_of"]

ONE = "all"
"""Label of every cell where a set has no such column."""


class Sets(NamedTuple):
    """S sets of m cells each, by row number."""

    rows: np.ndarray  # (S, m) cells
    controls: np.ndarray  # (S, m) a control cell for each
    padding: np.ndarray  # (S, m) bool, cells drawn again to complete a set
    perturbation: np.ndarray  # (S,) codes, as of the cells
    context: np.ndarray
    batch: np.ndarray

    def take(self, chosen: np.ndarray | slice) -> "Sets":
        """Some of the sets."""
        return Sets(*(part[chosen] for part in self))

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """Attributes of the sets as the network takes them."""
        return {"perturbation": self.perturbation, "context": self.context, "batch": self.batch}


@dataclass(frozen=True)
class Populations:
    """Cells with a perturbation, a context (cell type, line or donor) and a batch each."""

    x: sp.csr_matrix  # (n, G) log1p-normalised, float32
    counts: sp.csr_matrix  # (n, G) the same cells and genes as counts, float32; `x` where only log values are published
    perturbation: np.ndarray  # (n,) int64 codes, 0 is the control
    context: np.ndarray  # (n,) int64 codes
    batch: np.ndarray  # (n,) int64 codes
    genes: tuple[str, ...]
    perturbations: tuple[str, ...]  # names of the codes
    contexts: tuple[str, ...]
    batches: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.perturbation)

    def take(self, rows: np.ndarray) -> "Populations":
        """The cells at `rows`, row numbers or a mask; genes and code spaces stay as they are."""
        names = ("x", "counts", "perturbation", "context", "batch")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def is_control(self) -> np.ndarray:
        """(n,) bool."""
        return self.perturbation == 0

    @property
    def labels(self) -> dict[str, int]:
        """Number of labels of every attribute."""
        return {
            "perturbation": len(self.perturbations),
            "context": len(self.contexts),
            "batch": len(self.batches),
        }

    def rows(self, perturbation: int, context: int | None = None) -> np.ndarray:
        """Row numbers of a perturbation, in one context or in all."""
        chosen = self.perturbation == perturbation
        return np.flatnonzero(chosen if context is None else chosen & (self.context == context))

    def group(self) -> np.ndarray:
        """(n,) code of (perturbation, context, batch)."""
        return (self.perturbation * len(self.contexts) + self.context) * len(self.batches) + self.batch

    def sets(self, size: int, *, rng: np.random.Generator, controls: "Populations | None" = None) -> Sets:
        """Cut all cells into sets of one group each.

        Parameters
        ----------
        size
            Cells in a set, m.
        rng
            Of the order of cells, of padding and of controls.
        controls
            Cells whose controls are matched; by default these. `Sets.controls` are its row numbers.

        Returns
        -------
        Sets, ordered by group.
        """
        if size < 1 or not len(self):
            raise ScreproError(
                "Sets have at least one cell, and there is a cell to put in one.",
                got=f"size {size}, {len(self)} cells",
                fix="raise the size, or pass cells",
            )
        order = rng.permutation(len(self))
        order = order[np.argsort(self.group()[order], kind="stable")]
        groups, start, count = np.unique(self.group()[order], return_index=True, return_counts=True)
        n_sets = -(-count // size)
        of_set = np.repeat(np.arange(len(groups)), n_sets)
        block = np.arange(len(of_set)) - np.repeat(np.cumsum(n_sets) - n_sets, n_sets)
        place = block[:, None] * size + np.arange(size)  # (S, m) rank inside the group
        padding = place >= count[of_set, None]
        again = (rng.random(place.shape) * count[of_set, None]).astype(np.int64)
        rows = order[start[of_set, None] + np.where(padding, again, place)]
        first = rows[:, 0]
        codes = self.perturbation[first], self.context[first], self.batch[first]
        matched = (controls or self).matched(codes[1], codes[2], size, rng=rng)
        return Sets(rows, matched, padding, *codes)

    def control_pools(self, context: np.ndarray, batch: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Control cells that belong to each pair of context and batch.

        Parameters
        ----------
        context, batch
            (n,) codes asked for.

        Returns
        -------
        pools
            Row numbers for every pair that occurs: of both, else of the batch, else of the context.
        which
            (n,) number of the pool.

        Raises
        ------
        ScreproError
            A pair has none of these.
        """
        pairs, which = np.unique(np.stack([context, batch]), axis=1, return_inverse=True)
        return [self._pool(k, b) for k, b in pairs.T.tolist()], which.reshape(-1)

    @cached_property
    def _pools(self) -> dict[tuple[int, int], np.ndarray]:
        """Pools found so far: training asks for the same few in every step."""
        return {}

    def _pool(self, context: int, batch: int) -> np.ndarray:
        """Row numbers of the control cells of one context and batch."""
        if (context, batch) not in self._pools:
            own, same = self.is_control & (self.context == context), self.is_control & (self.batch == batch)
            found = next((chosen for chosen in (own & same, same, own) if chosen.any()), None)
            if found is None:
                raise ScreproError(
                    "Every context that is asked for has control cells, or its batch has.",
                    got=f"none of context {self.contexts[context]!r} or batch {self.batches[batch]!r}",
                    fix="keep the control cells of every context, or drop the cells without any",
                )
            self._pools[context, batch] = np.flatnonzero(found)
        return self._pools[context, batch]

    def matched(self, context: np.ndarray, batch: np.ndarray, size: int, *, rng: np.random.Generator) -> np.ndarray:
        """(S, size) row numbers of random control cells for sets of given context (S,) and batch (S,).

        From `control_pools`, whose error it raises.
        """
        pools, which = self.control_pools(context, batch)
        count = np.array([len(pool) for pool in pools])
        start = np.cumsum(count) - count
        place = (rng.random((len(which), size)) * count[which, None]).astype(np.int64)
        return np.concatenate(pools)[start[which, None] + place]


def populations(
    adata: AnnData,
    *,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    batch_key: str | None = None,
    control: str | None = None,
    n_genes: int | None = 2000,
    panel_rows: np.ndarray | None = None,
) -> Populations:
    """Normalise counts and turn labels into codes.

    Parameters
    ----------
    adata
        Counts in ``X``, or log1p values, taken as they are, if ``uns["values"]`` says so: the sets that are published
        without their counts.
    perturbation_key, context_key, batch_key
        Columns; None: one label for all cells.
    control
        Label of the control cells; by default the one with a usual name for it (``columns.CONTROL``).
    n_genes
        Most variable genes kept (`variable_panel`); None keeps every gene that occurs. Counts are normalised on all
        genes before that.
    panel_rows
        Cells that genes are chosen on: those of training. By default all.

    Raises
    ------
    ScreproError
        A column is missing or has cells without a label, no or several labels are called like a control, values are
        neither counts nor said to be log1p, or a cell has no count.
    """
    x, counts = values_of(adata)
    names = {}
    for key in (perturbation_key, context_key, batch_key):
        if key is not None:
            check_labels(adata.obs, key, min_classes=1)
        names[key] = np.full(adata.n_obs, ONE) if key is None else adata.obs[key].astype(str).to_numpy()
    perturbations = control_first(names[perturbation_key], control, column=perturbation_key)
    panel = variable_panel(counts if panel_rows is None else counts[panel_rows], n_genes)
    contexts, batches = (tuple(sorted(set(names[key]))) for key in (context_key, batch_key))
    return Populations(
        x=x[:, panel].tocsr(),
        counts=counts[:, panel].tocsr(),
        perturbation=_codes(names[perturbation_key], perturbations),
        context=_codes(names[context_key], contexts),
        batch=_codes(names[batch_key], batches),
        genes=tuple(map(str, adata.var_names[panel])),
        perturbations=perturbations,
        contexts=contexts,
        batches=batches,
    )


def values_of(adata: AnnData) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Expression and counts of all genes, both (n, G) float32: log1p values that are published alone are both.

    Raises
    ------
    ScreproError
        Values are not counts, or a cell has none; values said to be log1p are negative, not finite or 20 and more.
    """
    if adata.uns.get("values", "counts") == "log1p":
        x = sp.csr_matrix(adata.X, dtype=np.float32)
        if not (np.isfinite(x.data).all() and x.data.min(initial=0) >= 0 and x.data.max(initial=0) < 20):
            raise ScreproError(
                "log1p values are finite, 0 or more and below 20.",
                got=f"values from {x.data.min():.4g} to {x.data.max():.4g}",
                fix='pass counts and remove uns["values"]',
            )
        return x, x
    check_counts(adata.X, what="X of the cells")
    counts = sp.csr_matrix(adata.X, dtype=np.float32)
    if empty := int((np.asarray(counts.sum(1)).ravel() == 0).sum()):
        raise ScreproError(
            "Every cell needs at least one count.", got=f"{empty} cells without any", fix="drop these cells"
        )
    return log_median(counts), counts


def control_first(labels: np.ndarray, control: str | None, *, column: str) -> tuple[str, ...]:
    """Names of the perturbations among `labels`, that of the control first, the others sorted.

    Raises
    ------
    ScreproError
        None or several are called like a control (``columns.CONTROL``, or the name given), or there is nothing else.
    """
    found = sorted(set(labels))
    usual = controls_among(found, control)
    if len(usual) != 1 or len(found) < 2:
        raise ScreproError(
            "Perturbed cells have one control condition and at least one other.",
            got=f"{', '.join(found[:6])} in {column}" + (f", control {control!r}" if control else ""),
            fix="name the control one",
        )
    return usual[0], *(name for name in found if name != usual[0])


def _codes(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    order = np.argsort(names)
    return order[np.searchsorted(np.asarray(names)[order], labels)].astype(np.int64)


def log_median(counts: sp.csr_matrix) -> sp.csr_matrix:
    """log1p of counts (n, G) scaled to the median total of the cells, float32: scanpy's default target.

    The paper names no target sum; scanpy's function, which it cites, takes the median where none is given. It is one
    number of all cells passed, those that are held out included.
    """
    totals = np.asarray(counts.sum(1, dtype=np.float64)).ravel()
    scaled = sp.csr_matrix(counts, dtype=np.float64)
    factor = np.median(totals[totals > 0]) / np.maximum(totals, 1)
    scaled.data = np.log1p(scaled.data * np.repeat(factor, np.diff(scaled.indptr)))
    return scaled.astype(np.float32)


def gather(x: sp.csr_matrix, rows: np.ndarray, divisor: np.ndarray | float = 1.0) -> np.ndarray:
    """Dense float32 cells of row numbers of any shape: (..., G), each value divided by `divisor`, a number or (G,)."""
    from screpro.kernels.threads import each

    rows = np.asarray(rows)
    flat = rows.reshape(-1)
    out = np.empty((len(flat), x.shape[1]), dtype=np.float32)
    factor = np.broadcast_to(1 / np.asarray(divisor, dtype=np.float32), x.shape[1:])
    part = 4096

    def worker():
        def some(index: int):
            piece = slice(index * part, (index + 1) * part)
            _scatter(x.indptr, x.indices, x.data, flat[piece], factor, out[piece])

        return some

    each(worker, -(-len(flat) // part))
    return out.reshape(*rows.shape, x.shape[1])


@numba.njit(cache=True, nogil=True)
def _scatter(indptr, indices, data, rows, factor, out):
    """Write sparse rows into dense ones."""
    for i in range(len(rows)):
        own = out[i]
        own[:] = 0
        for k in range(indptr[rows[i]], indptr[rows[i] + 1]):
            own[indices[k]] = data[k] * factor[indices[k]]
