"""Generation baselines behind one call, with the settings that are tuned for each.

``run("cfgen_like", counts, labels, wanted=..., ...)`` trains on counts with class labels and answers with as many new
cells as labels are wanted: a sample without condition and, where the method has one, a sample with these labels. The
first setting of a grid is the default (``{}``): the published widths, trained for fewer passes. Which one is used
is decided on validation cells. With a few thousand cells a narrower latent is easier to fill.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines.common import contained_torch
from screpro.baselines.registry import contained, entry_of, method_of
from screpro.errors import ScreproError

__all__ = ["GENERATORS", "Generated", "Generator", "bootstrap", "independent_nb", "run", "scvi"]

ENOUGH = 30
"""Cells of a class from which its dispersions are estimated; smaller classes take those of all cells."""


class Generated(NamedTuple):
    """New cells over the panel."""

    unconditional: sp.csr_matrix  # (n, G)
    conditional: sp.csr_matrix | None  # (n, G) with the labels asked for; None: the method takes no label
    expression: bool = False  # log-normalised expression; otherwise counts


class Generator(NamedTuple):
    """One published or trivial method."""

    name: str  # key in GENERATORS and in result rows
    title: str  # as a table prints it
    source: str  # whom to cite
    where: str  # module:function below screpro.baselines; imported at the first call
    grid: list[dict[str, Any]]  # options to try on the validation cells; first = default
    trivial: bool = False  # True where no network is trained
    needs: str | None = None  # extra of this package that has to be installed


def run(
    name: str,
    counts: sp.csr_matrix,
    labels: np.ndarray,
    *,
    wanted: np.ndarray,
    n_types: int,
    seed: int,
    threads: int = 1,
    options: dict[str, Any] | None = None,
) -> Generated:
    """New cells by method `name`, which learns from labelled counts.

    Parameters
    ----------
    name
        Key of `GENERATORS`.
    counts, labels
        (n, G) CSR of raw counts and (n,) codes 0..K-1 of the training cells.
    wanted
        (m,) codes of the cells to generate; every one of them has training cells.
    n_types
        K.
    seed
        Everything random in the method derives from it.
    threads
        Threads the method may use.
    options
        Options of the method, as in its grid; None takes the default.

    Raises
    ------
    ScreproError
        Unknown method or option, package not installed, cells without counts, or labels that do not fit.
    """
    generator, options = entry_of(GENERATORS, name), options or {}
    fixed = ("counts", "labels", "wanted", "n_types", "seed", "threads")
    method = method_of(name, generator.where, options, fixed=fixed)
    counts, labels, wanted = sp.csr_matrix(counts, dtype=np.float32), np.asarray(labels), np.asarray(wanted)
    empty = int((np.asarray(counts.sum(1)).ravel() == 0).sum())
    if counts.shape[0] < 2 or empty or len(labels) != counts.shape[0] or not np.isin(labels, np.arange(n_types)).all():
        raise ScreproError(
            "A generator learns from at least two cells, each with a count and one label code below the number of "
            "types.",
            got=f"{counts.shape[0]} cells, {empty} of them empty, {len(labels)} labels, {n_types} types",
            fix="drop empty cells, and pass labels in the order of the cells",
        )
    if not len(wanted) or not np.isin(wanted, labels).all():
        raise ScreproError(
            "Cells can be generated only with labels that training cells have.",
            got=f"{len(wanted)} labels wanted, {len(np.setdiff1d(wanted, labels))} of them unknown",
            fix="leave out test cells of types without training cells",
        )
    given = {"wanted": wanted.astype(np.int64), "n_types": n_types, "seed": seed, "threads": threads}
    with contained(name, threads=threads, needs=generator.needs), contained_torch(seed=seed, threads=threads):
        return method(counts, labels.astype(np.int64), **given, **options)


def bootstrap(counts: sp.csr_matrix, labels: np.ndarray, *, wanted: np.ndarray, n_types: int, seed: int, threads: int):
    """Training cells drawn with replacement: any of them, and ones with the labels wanted."""
    from screpro.tasks.generation import same_labels

    rng = np.random.default_rng(seed)
    anyone = counts[rng.integers(counts.shape[0], size=len(wanted))]
    return Generated(anyone, counts[same_labels(labels, wanted, rng=rng, replace=True)])


def independent_nb(
    counts: sp.csr_matrix, labels: np.ndarray, *, wanted: np.ndarray, n_types: int, seed: int, threads: int
):
    """Every gene drawn by itself: a negative binomial around its share of a drawn library size.

    Shares and dispersions (by moments) are those of all cells for the unconditional sample, of each class for the
    conditional one. Whatever relation between genes is left comes from the library size and the class.
    """
    from screpro.tasks.library_size import LibrarySizes

    rng = np.random.default_rng(seed)
    sizes = LibrarySizes.fit(np.asarray(counts.sum(1)).ravel(), {"label": labels})
    pooled, theta = _draw_nb(counts, sizes.draw_pooled(len(wanted), rng=rng), rng=rng)
    library = sizes.draw({"label": wanted}, rng=rng)
    parts, order = [], []
    for label in np.unique(wanted):
        rows, own = np.flatnonzero(wanted == label), counts[labels == label]
        drawn, _ = _draw_nb(own, library[rows], rng=rng, theta=None if own.shape[0] >= ENOUGH else theta)
        parts.append(drawn)
        order.append(rows)
    return Generated(pooled, sp.vstack(parts, format="csr")[np.argsort(np.concatenate(order))])


def _draw_nb(
    counts: sp.csr_matrix, library: np.ndarray, *, rng: np.random.Generator, theta: np.ndarray | None = None
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Draws (n, G) at library sizes (n,) and the dispersions (G,) used."""
    from screpro.tasks.autoencoder import moments_theta
    from screpro.tasks.flow import nb_counts

    theta = moments_theta(counts) if theta is None else theta
    total = np.asarray(counts.sum(0), dtype=np.float64).ravel()
    share = (total / total.sum()).astype(np.float32)
    return sp.csr_matrix(nb_counts(library[:, None] * share, theta, rng=rng)), theta


def scvi(
    counts: sp.csr_matrix,
    labels: np.ndarray,
    *,
    wanted: np.ndarray,
    n_types: int,
    seed: int,
    threads: int = 1,
    epochs: int | None = None,
    warmup_epochs: int | None = None,
    n_latent: int = 10,
    n_layers: int = 1,
) -> Generated:
    """Draws from scVI's prior; for the conditional sample a second model is told the labels.

    Parameters
    ----------
    epochs
        Passes over the cells; None takes the package's rule.
    warmup_epochs
        Over which the KL term's weight rises to 1; None: over all of them, so that it does.
    n_latent, n_layers
        Width of the latent space, hidden layers of encoder and decoder.
    """
    from screpro.baselines import scvi_counts
    from screpro.tasks.library_size import LibrarySizes

    how = {"epochs": epochs, "warmup_epochs": warmup_epochs, "n_latent": n_latent, "n_layers": n_layers}
    sizes = LibrarySizes.fit(np.asarray(counts.sum(1)).ravel(), {"label": labels})
    rng = np.random.default_rng(seed)
    pooled, by_label = sizes.draw_pooled(len(wanted), rng=rng), sizes.draw({"label": wanted}, rng=rng)
    model = scvi_counts.fit(counts, seed=seed, threads=threads, **how)
    told = scvi_counts.fit(counts, labels=labels, n_labels=n_types, seed=seed, threads=threads, **how)
    return Generated(model.draw(pooled, seed=seed), told.draw(by_label, labels=wanted, seed=seed))


GENERATORS: dict[str, Generator] = {
    entry.name: entry
    for entry in (
        Generator(
            "cfgen_like",
            "CFGen-like",
            "Palma et al., ICLR 2025, arXiv:2407.11734",
            "latent_flow:generate",
            [{}, {"latent": 10}, {"latent": 10, "width": 128}, {"epochs": 200, "flow_epochs": 600}],
        ),
        Generator(
            "scdiffusion_like",
            "scDiffusion-like",
            "Luo et al., Bioinformatics 2024, 10.1093/bioinformatics/btae518",
            "latent_ddpm:generate",
            [{}, {"latent": 10}, {"latent": 10, "width": 128}, {"epochs": 200, "diffusion_epochs": 600}],
        ),
        Generator(
            "scvi",
            "scVI, prior",
            "Lopez et al., Nature Methods 2018, 10.1038/s41592-018-0229-2",
            "generation:scvi",
            [{}, {"epochs": 100}, {"n_latent": 20}, {"n_layers": 2}],
            needs="baselines",
        ),
        Generator("independent_nb", "Independent genes", "no method", "generation:independent_nb", [{}], True),
        Generator("bootstrap", "Resampled training cells", "no method", "generation:bootstrap", [{}], True),
    )
}
