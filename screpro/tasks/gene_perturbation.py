"""Unseen gene perturbations: the cells, how scDiff is trained on them, and how a prediction is scored (section 4.2.2).

A prediction is the mean expression after a perturbation nobody trained on. Methods get training cells and a gene
graph; scDiff generates cells from control cells and their mean is scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.data import released
from screpro.data.gene_graph import (
    GeneGraph,
    coexpression_graph,
    file_graph,
    gene2go_terms,
    normalised,
    ontology_graph,
    written_terms,
)
from screpro.data.perturbation_splits import genes_of
from screpro.errors import ScreproError
from screpro.metrics.change import change_size_ratio, delta_pearson, mse_top20_de
from screpro.tasks.denoiser import DenoiserSettings, Trained, build, generate, train

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "PRESETS",
    "GenePerturbationSettings",
    "PerturbedCells",
    "graph_of",
    "halves",
    "perturbed_cells",
    "predict_scdiff",
    "scdiff_grid",
    "score",
    "train_scdiff",
    "training_part",
]

CONTROL = "control"


class PerturbedCells(NamedTuple):
    """Cells with the number of their perturbation; 0 is the control."""

    x: sp.csr_matrix  # (n, G) float32, log1p of counts scaled to 10 000 per cell
    label: np.ndarray  # (n,) int64
    names: tuple[str, ...]  # (P,) of the perturbations, names[0] is "control"
    genes: tuple[str, ...]  # (G,)
    graph: GeneGraph  # over N genes, the perturbed ones among them

    @property
    def incidence(self) -> sp.csr_matrix:
        """(P, N) 1 where a perturbation involves a gene of the graph; the row of the control is empty."""
        node = {gene: i for i, gene in enumerate(self.graph.genes)}
        pairs = [(p, node[gene]) for p, name in enumerate(self.names) for gene in genes_of(name)]
        row, column = zip(*pairs, strict=True)
        return sp.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(len(self.names), len(node)))

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Numbers of perturbations by name."""
        number = {name: i for i, name in enumerate(self.names)}
        if unknown := [name for name in names if name not in number]:
            raise ScreproError(
                "A perturbation of these cells is asked for by its name.",
                got=", ".join(unknown[:5]),
                fix=f"choose among {', '.join(self.names[:5])}, ...",
            )
        return np.array([number[name] for name in names], dtype=np.int64)

    def take(self, rows: np.ndarray) -> "PerturbedCells":
        """The cells at `rows` (numbers or bool); names, genes and graph stay as they are."""
        return self._replace(x=self.x[rows], label=self.label[rows])

    def of(self, number: int) -> sp.csr_matrix:
        """Cells of one perturbation."""
        return self.x[self.label == number]

    def means(self) -> np.ndarray:
        """Mean profile of every perturbation (P, G), NaN where there is no cell."""
        member = sp.csr_matrix(
            (np.ones(len(self.label)), (self.label, np.arange(len(self.label)))),
            shape=(len(self.names), len(self.label)),
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return (member @ self.x).toarray() / np.asarray(member.sum(axis=1))


def graph_of(adata: "AnnData", *, kind: str | None = None, file: str | Path | None = None) -> GeneGraph:
    """What is known of the perturbed genes: terms of gene function, or with which genes they vary in control cells.

    Parameters
    ----------
    adata
        Log-normalised cells in ``X``, ``obs["perturbation"]`` with ``control``, ``A`` or ``A+B``.
    kind
        ``"terms"`` (written by hand for the screens of the book), ``"gene2go"`` (gene ontology terms of all human
        genes, downloaded) or ``"coexpression"``; None takes the terms written by hand where at least half of the
        perturbed genes have some. Co-expression is that of control cells, which no split holds out, between perturbed
        genes that are measured; edges are absolute correlations above .1, at most 20 a gene.
    file
        A table of one's own, in place of both.

    Raises
    ------
    ScreproError
        Nothing is known of any perturbed gene.
    """
    label = adata.obs["perturbation"].astype(str).to_numpy()
    perturbed = sorted({gene for name in set(label) - {CONTROL} for gene in genes_of(name)})
    every = [*perturbed, *map(str, adata.var_names)]  # perturbed genes may be linked through others
    if file is not None:
        return file_graph(file, every)
    if kind == "gene2go":
        files = released.bring("gene2go")
        terms = gene2go_terms(files["gene2go.gz"], files["Homo_sapiens.gene_info.gz"])
        return ontology_graph(terms, every, source="shared terms of the gene ontology (NCBI's gene2go)")
    terms = written_terms()
    known = [gene for gene in perturbed if terms.get(gene)]
    if kind == "terms" and not known:
        raise ScreproError(
            "The terms written by hand cover genes of the screens of the book.",
            got=f"none of {', '.join(perturbed[:4])}, ...",
            fix="-p graph coexpression, or a table of your own: -p graph_file TABLE with columns gene and term",
        )
    if kind == "terms" or (kind is None and known and 2 * len(known) >= len(perturbed)):
        return ontology_graph(terms, perturbed, source="terms of gene function written by hand")
    present = set(map(str, adata.var_names))
    measured = [gene for gene in perturbed if gene in present]
    if len(measured) < 2:
        raise ScreproError(
            "A graph of co-expression needs perturbed genes that are measured.",
            got=f"{len(measured)} of {len(perturbed)}: {', '.join(perturbed[:4])}, ...",
            fix="name a table of gene terms: -p graph_file TABLE with columns gene and term",
        )
    control = adata.X[np.flatnonzero(label == CONTROL)]
    graph = coexpression_graph(control, list(map(str, adata.var_names)), measured, at_least=0.1)
    return graph._replace(source="co-expression in control cells")


def perturbed_cells(
    adata: "AnnData",
    graph: GeneGraph,
    *,
    at_most: int | None = None,
    control_at_most: int | None = None,
    at_least: int = 20,
    seed: int = 0,
) -> PerturbedCells:
    """Cells of every perturbation whose genes the graph knows.

    Parameters
    ----------
    adata
        Log-normalised cells in ``X``, ``obs["perturbation"]`` with ``control``, ``A`` or ``A+B``.
    graph
        Perturbations of genes that it does not know are left out, as GEARS does.
    at_most, control_at_most
        Cells kept of a perturbation, and of the control, drawn at random; None keeps all.
    at_least
        Perturbations with fewer cells are left out.
    seed
        Of the draw.

    Raises
    ------
    ScreproError
        No column of perturbations, no control cells, or no perturbation that the graph knows.
    """
    if "perturbation" not in adata.obs:
        raise ScreproError(
            "Perturbed cells have a column `perturbation`.",
            got=", ".join(map(str, adata.obs.columns)) or "no column",
            fix="choose a data set of gene perturbations, or add the column",
        )
    label = adata.obs["perturbation"].astype(str).to_numpy()
    known = set(graph.genes)
    found, counts = np.unique(label, return_counts=True)
    if CONTROL not in found:
        raise ScreproError("Changes are measured against control cells.", got="none", fix="label them `control`")
    names = [
        name
        for name, n in zip(found, counts, strict=True)
        if name != CONTROL and n >= at_least and all(gene in known for gene in genes_of(name))
    ]
    if not names:
        raise ScreproError(
            "Some perturbed genes are in the gene graph.",
            got=f"none of {', '.join(found[:4])}, ... among {len(known)} genes of {graph.source}",
            fix="-p graph coexpression, or a table over these genes: -p graph_file TABLE with columns gene and term",
        )
    rng = np.random.default_rng(seed)
    rows, numbers = [], []
    for number, name in enumerate([CONTROL, *names]):
        own = rng.permutation(np.flatnonzero(label == name))
        own = own[: (at_most if number else control_at_most)]
        rows.append(np.sort(own))
        numbers.append(np.full(len(own), number))
    rows = np.concatenate(rows)
    return PerturbedCells(
        x=sp.csr_matrix(adata.X[rows], dtype=np.float32),
        label=np.concatenate(numbers).astype(np.int64),
        names=(CONTROL, *names),
        genes=tuple(map(str, adata.var_names)),
        graph=graph,
    )


def halves(cells: PerturbedCells, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the control cells in two parts, the second with `share` of them."""
    control = np.random.default_rng(seed).permutation(np.flatnonzero(cells.label == 0))
    cut = round(share * len(control))
    return np.sort(control[cut:]), np.sort(control[:cut])


@dataclass(frozen=True)
class GenePerturbationSettings(DenoiserSettings):
    """Size and training of scDiff on perturbed cells."""

    drop: float = 0.0  # the condition is never dropped in these runs
    context: str = "own"  # what the context shows in training: the cell itself, masked; or a random "control" cell
    sampler: str = "ddim"  # a short chain drifts where the network is small: `scdiff_grid` tries one call too
    sampler_steps: int = 50
    inputs: int = 400  # control cells that predictions start from, at most; their own mean is noisy


PRESETS: Mapping[str, GenePerturbationSettings] = {
    "ci": GenePerturbationSettings(width=64, depth=2, epochs=30, batch_size=64, inputs=50),
    "laptop": GenePerturbationSettings(width=64, epochs=40),
    "paper": GenePerturbationSettings(
        width=512,
        depth=6,
        heads=8,
        epochs=100,
        batch_size=2048,
        learning_rate=1e-8 * 2048,
        schedule="constant",
        sampler="ancestral",
        inputs=300,
    ),
}
"""Starting points by tier; ``paper`` is the authors' own."""


def scdiff_grid(base: GenePerturbationSettings) -> list[GenePerturbationSettings]:
    """Settings that are tried on validation perturbations; the first is `base`.

    The context in training and the sampler are open in the paper, and matter more than step size and epochs. Settings
    that differ in the sampler alone share a trained network where the caller keeps it (`training_part`).
    """
    from dataclasses import replace

    contexts = [base, replace(base, context=CONTROL)]
    settings = contexts + [replace(setting, sampler="one call") for setting in contexts]
    return list(dict.fromkeys(settings))


def training_part(settings: GenePerturbationSettings) -> GenePerturbationSettings:
    """The settings with everything that only matters when drawing set to its default: equal ones train equally."""
    from dataclasses import replace

    drawing = ("sampler", "sampler_steps", "inputs")
    return replace(settings, **{name: getattr(GenePerturbationSettings, name) for name in drawing})


def train_scdiff(
    cells: PerturbedCells,
    settings: GenePerturbationSettings,
    *,
    seed: int,
    threads: int | None = None,
    checkpoint: Path | None = None,
    title: str = "scDiff",
) -> Trained:
    """Train scDiff with a graph conditioner on `cells`, control cells and training perturbations together.

    With ``settings.context == "own"`` the context of a training cell is that cell, masked at random: this is what the
    authors' code does. With ``"control"`` it is a random control cell, masked likewise, drawn once per cell: the
    pairing of GEARS, and what a prediction starts from.
    """
    import torch

    from screpro.losses import DenoisingLoss
    from screpro.models.graph_conditioner import GraphConditioner
    from screpro.processes.gaussian import scaled_linear

    if settings.context not in ("own", CONTROL):
        raise ScreproError(
            "In training the context shows the cell itself or a control cell.",
            got=repr(settings.context),
            fix="choose own or control",
        )
    context = None
    if settings.context == CONTROL:
        control = np.flatnonzero(cells.label == 0)
        context = cells.x[np.random.default_rng(seed).choice(control, size=len(cells.label))]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conditioner = GraphConditioner(
            normalised(cells.graph), cells.incidence, width=settings.width, depth=settings.depth
        )
    model = build(len(cells.genes), settings, conditioners={"perturbation": conditioner}, seed=seed)
    loss = DenoisingLoss(
        cells.x,
        schedule=scaled_linear(),
        conditions={"perturbation": cells.label},
        context=context,
        drop={"perturbation": settings.drop},
        empty_context=settings.empty_context,
    )
    return train(model, loss, settings, seed=seed, threads=threads, checkpoint=checkpoint, title=title)


def predict_scdiff(
    trained: Trained,
    cells: PerturbedCells,
    perturbations: Sequence[int],
    settings: GenePerturbationSettings,
    *,
    seed: int,
) -> np.ndarray:
    """Mean generated profile of each of `perturbations` (k, G), from the control cells among `cells`.

    All predictions start from the same control cells, at most ``settings.inputs`` of them, and from the same noise:
    what two of them differ in is their condition. Perturbation 0 generates control cells.
    """
    control = cells.of(0)
    rng = np.random.default_rng(seed)
    chosen = control[np.sort(rng.permutation(control.shape[0])[: settings.inputs])]
    means = [
        generate(
            trained.model,
            chosen,
            conditions={"perturbation": np.full(chosen.shape[0], number)},
            sampler=settings.sampler,
            steps=settings.sampler_steps,
            nonnegative=True,
            seed=seed,
        ).mean(axis=0)
        for number in perturbations
    ]
    return np.array(means)


def score(predicted: np.ndarray, truth: sp.csr_matrix, control: sp.csr_matrix) -> dict[str, float]:
    """Scores of one perturbation: predicted mean profile (G,) against its cells, both against `control` cells.

    A prediction of no change has no correlation: NaN.
    """
    given = (predicted[None], truth, control)
    moves = np.abs(predicted - np.asarray(control.mean(axis=0)).ravel()).max() > 1e-5  # beyond rounding
    return {
        "delta_pearson": delta_pearson(*given) if moves else float("nan"),
        "mse_top20_de": mse_top20_de(*given),
        "change_size_ratio": change_size_ratio(*given),
    }
