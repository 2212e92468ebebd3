"""What scDiff's appendix E states: hyper-parameters (Table 3), data sets (Table 4), few-shot thresholds (Table 6).

Numbers are the paper's. Where the authors' configuration says something else, a preset carries it as ``code_...`` or in
its `note`; which of the two a page follows is said there (protocol section 5). The learning rate is the base rate times
the batch size of 2 048; nothing else depends on the task.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from screpro.errors import ScreproError
from screpro.models.scdiff import ScDiff, ScDiffConfig
from screpro.tasks.denoiser import DenoiserSettings

__all__ = [
    "DATASETS",
    "FEW_SHOT",
    "TABLE_3",
    "DatasetFacts",
    "FewShotFacts",
    "TaskPreset",
    "parameter_count",
    "parameter_formula",
    "preset",
]

BATCH_SIZE = 2048
"""Of every run of the paper."""


@dataclass(frozen=True)
class TaskPreset:
    """One row of Table 3."""

    task: str
    dataset: str
    epochs: int
    base_rate: float
    conditions: tuple[str, ...]  # ticked in the table
    text_optional: bool = False  # marked with a dagger: the text conditioner can replace the cell type
    drop: float = 0.1  # probability of the null label while training (authors' code)
    code_epochs: int | None = None  # in the authors' configuration, where it differs
    note: str = ""  # what else differs there

    @property
    def learning_rate(self) -> float:
        """Base rate times batch size."""
        return self.base_rate * BATCH_SIZE

    def settings(self) -> DenoiserSettings:
        """The paper's network and training for this row: width 512, six blocks, eight heads, constant rate."""
        return DenoiserSettings(
            width=512,
            depth=6,
            heads=8,
            epochs=self.epochs,
            batch_size=BATCH_SIZE,
            learning_rate=self.learning_rate,
            schedule="constant",
            drop=self.drop,
        )


CONTEXT_AND_TYPE = ("context", "cell type")
WITH_STATE = (*CONTEXT_AND_TYPE, "perturbation state")
WITH_GENE = (*CONTEXT_AND_TYPE, "gene perturbation")
DISABLED = "cell type is switched off in the code; each set has one type anyway"


TABLE_3: tuple[TaskPreset, ...] = (
    TaskPreset("Denoising", "Jurkat", 3000, 1e-8, CONTEXT_AND_TYPE, note=DISABLED),
    TaskPreset("Denoising", "293T", 3000, 1e-8, CONTEXT_AND_TYPE, note=DISABLED),
    TaskPreset("Denoising", "PBMC1K", 3000, 1e-8, CONTEXT_AND_TYPE, note=DISABLED),
    TaskPreset("Annotation", "PBMC12K", 2000, 1e-8, CONTEXT_AND_TYPE),
    TaskPreset("Annotation", "Pancreas", 2000, 1e-8, CONTEXT_AND_TYPE),
    TaskPreset("Annotation", "HLCA (subset)", 2000, 1e-8, CONTEXT_AND_TYPE, True),
    TaskPreset("Annotation", "Immune (subset)", 2000, 1e-7, CONTEXT_AND_TYPE, True),
    TaskPreset("Annotation", "Brain", 2000, 1e-8, CONTEXT_AND_TYPE, True),
    TaskPreset("Annotation", "Liver", 2000, 1e-8, CONTEXT_AND_TYPE, True),
    TaskPreset("Perturbation", "Salmonella", 1000, 1e-8, WITH_STATE),
    TaskPreset("Perturbation", "HPoly", 1000, 1e-8, WITH_STATE),
    TaskPreset("Perturbation", "PBMC", 1000, 5e-9, WITH_STATE),
    TaskPreset("Gene Pert", "Adamson", 50, 1e-8, WITH_GENE, drop=0.0, code_epochs=300),
    TaskPreset("Gene Pert", "Norman", 100, 1e-8, WITH_GENE, drop=0.0, note="300 by default, 100 in the run script"),
    TaskPreset("Gene Pert", "Dixit", 150, 1e-8, WITH_GENE, drop=0.0, code_epochs=300),
)
"""Table 3, in its order; every run also has the batch, which the table does not list."""


def preset(task: str, dataset: str) -> TaskPreset:
    """The row of Table 3 with the paper's own labels, e.g. ``preset("Annotation", "Brain")``."""
    for row in TABLE_3:
        if (row.task, row.dataset) == (task, dataset):
            return row
    known = ", ".join(f"{row.task} / {row.dataset}" for row in TABLE_3)
    raise ScreproError("Table 3 has no such row.", got=f"{task} / {dataset}", fix=f"choose one of {known}")


@dataclass(frozen=True)
class DatasetFacts:
    """One row of Table 4; None where it prints a dash."""

    task: str
    name: str  # the paper's label
    cells: int
    genes: int
    batches: int | None
    types: int | None
    conditions: int | None
    registry: str  # our name of the same set


DATASETS: tuple[DatasetFacts, ...] = (
    DatasetFacts("Denoising", "Jurkat", 3258, 12635, None, None, None, "scdiff_jurkat"),
    DatasetFacts("Denoising", "293T", 2885, 13555, None, None, None, "scdiff_293t"),
    DatasetFacts("Denoising", "PBMC1K", 1087, 12811, None, None, None, "scdiff_pbmc1k"),
    DatasetFacts("Annotation", "PBMC12K", 11990, 3254, 2, 9, None, "scdiff_pbmc12k"),
    DatasetFacts("Annotation", "Pancreas", 16382, 16587, 9, 14, None, "scdiff_pancreas"),
    DatasetFacts("Annotation", "HLCA (subset)", 58484, 28024, 166, 47, None, "scdiff_hlca_subset"),
    DatasetFacts("Annotation", "Immune (subset)", 32964, 20661, 12, 33, None, "scdiff_immune_subset"),
    DatasetFacts("Annotation", "Brain", 45528, 26469, 20, 14, None, "scdiff_brain"),
    DatasetFacts("Annotation", "Liver", 8444, 22461, 5, 13, None, "scdiff_liver"),
    DatasetFacts("Perturbation", "Salmonella", 5010, 15215, 2, 8, 2, "scdiff_salmonella"),
    DatasetFacts("Perturbation", "HPoly", 5951, 15215, 2, 8, 2, "scdiff_hpoly"),
    DatasetFacts("Perturbation", "PBMC", 17082, 15109, 3, 8, 2, "scdiff_pbmc_kang"),
    DatasetFacts("Gene Perturbation", "Dixit", 44735, 5012, None, None, 20, "scdiff_dixit"),
    DatasetFacts("Gene Perturbation", "Adamson", 68603, 5060, None, None, 87, "scdiff_adamson"),
    DatasetFacts("Gene Perturbation", "Norman", 91205, 5045, None, None, 284, "scdiff_norman"),
)
"""Table 4, in its order."""


@dataclass(frozen=True)
class FewShotFacts:
    """One row of Table 6."""

    name: str
    threshold: int  # cells from which a type is a majority type
    majority_types: int
    majority_cells: int
    dataset: str  # label in Table 4


FEW_SHOT: tuple[FewShotFacts, ...] = (
    FewShotFacts("Brain", 3000, 6, 43750, "Brain"),
    FewShotFacts("Liver", 600, 5, 4613, "Liver"),
    FewShotFacts("HLCA", 1000, 14, 49279, "HLCA (subset)"),
    FewShotFacts("Immune", 1000, 14, 16969, "Immune (subset)"),
)
"""Table 6. Pre-training: 1 000 epochs at base rate 1e-8; fine-tuning: 50, at 5e-9 in the authors' code."""


def parameter_count(
    n_genes: int,
    *,
    width: int = 512,
    depth: int = 6,
    heads: int = 8,
    classes: Mapping[str, int] = MappingProxyType({}),
    n_batches: int = 0,
) -> int:
    """Parameters of our network of these sizes, counted without allocating them; row counts include the null row."""
    config = ScDiffConfig(n_genes, width, depth, heads, classes=dict(classes), n_batches=n_batches)
    with torch.random.fork_rng(), torch.device("meta"):
        return sum(parameter.numel() for parameter in ScDiff(config).parameters())


def parameter_formula(
    n_genes: int, *, width: int = 512, depth: int = 6, class_rows: int = 0, n_batches: int = 0
) -> int:
    """The same in closed form, for heads that fill the width.

    Per gene: two embedding tables, the head and its bias, 3 D + 1. Per block: attention 4 D² + 4 D, feed-forward
    12 D² + 9 D, a context layer D² + D, three LayerNorms 6 D, and D for every row of a class table. Once: two
    LayerNorms of embedders and the last, 6 D, and D for every row of the batch table.
    """
    block = 17 * width**2 + 20 * width + class_rows * width
    return (3 * width + 1) * n_genes + depth * block + 6 * width + n_batches * width
