"""scGPT (Cui et al., Nature Methods 2024, 10.1038/s41592-024-02201-0), fine-tuned for perturbations: an adapter.

The package ``scgpt`` has to be installed, and the environment variable ``SCREPRO_SCGPT`` has to name a folder with the
files of the published human checkpoint: ``vocab.json`` (gene -> number), ``args.json`` (sizes) and ``best_model.pt``.
Neither comes with this project. Where one is missing, there is one error that says which, and no answer.

"Genetic" use, as in the package's own perturbation tutorial: a cell is a sequence of genes with their log expression
and a flag that marks the perturbed gene. From the sequence of a control cell the network predicts that of a perturbed
cell of the same type; every fine-tuning step pairs them anew. So a perturbation must bear the name of a gene in the
vocabulary; where that gene is not on the panel it joins the sequence with expression 0, as scLDM's authors do by
training on the union of both.

Where this differs: genes of the panel outside the vocabulary keep the control cell's value (the paper leaves them out
of the evaluation); the whole panel is predicted in one sequence, but training sees at most `max_genes` of it at a time;
rate constant; no "chemical" configuration, in which the perturbation is no gene.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from screpro.errors import ScreproError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from screpro.tasks.perturbed_cells import PairCells
    from screpro.training import TrainConfig

__all__ = ["FOLDER", "files", "scgpt"]

FOLDER = "SCREPRO_SCGPT"
"""Environment variable with the folder of the checkpoint."""

PERTURBED, PAD_FLAG = 1, 2
PRETRAINED = ("encoder", "value_encoder", "transformer_encoder")
"""Parts of the network that the checkpoint is loaded into; the decoder is learned anew, as in the tutorial."""


class Files(NamedTuple):
    """What the checkpoint consists of."""

    vocabulary: dict[str, int]
    sizes: dict[str, Any]
    weights: Path


def files() -> Files:
    """Read vocabulary and sizes of the checkpoint.

    Raises
    ------
    ScreproError
        The folder is not named, or a file is missing from it.
    """
    folder = os.environ.get(FOLDER)
    wanted = ("vocab.json", "args.json", "best_model.pt")
    missing = [name for name in wanted if not folder or not (Path(folder) / name).is_file()]
    if missing:
        raise ScreproError(
            f"scGPT needs its published human checkpoint, in the folder that {FOLDER} names.",
            got=f"no {', '.join(missing)} in {folder}" if folder else f"{FOLDER} is not set",
            fix="download the checkpoint from the scGPT repository's list and name its folder, or leave scgpt out",
        )
    vocabulary, sizes = (json.loads((Path(folder) / name).read_text(encoding="utf-8")) for name in wanted[:2])
    return Files(vocabulary, sizes, Path(folder) / wanted[2])


def scgpt(
    train: "PairCells",
    *,
    cell_type: np.ndarray,
    perturbation: np.ndarray,
    seed: int,
    threads: int = 1,
    epochs: int = 15,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    max_genes: int = 1536,
    dropout: float = 0.0,
) -> np.ndarray:
    """Log-normalised cells (n, G) with labels (n,), each predicted from a control cell of its type.

    Parameters
    ----------
    train, cell_type, perturbation, seed, threads
        As in ``screpro.baselines.perturbed_counts.run``.
    epochs, batch_size, learning_rate, dropout
        Of fine-tuning; the tutorial's.
    max_genes
        Genes of a training sequence, drawn anew each step; the tutorial's.

    Raises
    ------
    ScreproError
        Package or checkpoint is missing, or a perturbation is no gene of the vocabulary.
    """
    from screpro.baselines.common import contained_torch
    from screpro.baselines.perturbed_counts import controls_of
    from screpro.training import TrainConfig

    found = files()
    sequence = _sequence(train, found.vocabulary)
    how = TrainConfig(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, schedule="constant", seed=seed)
    start = controls_of(train, cell_type=cell_type, perturbation=perturbation, seed=seed)
    with contained_torch(seed=seed, threads=threads):
        model = _network(found, dropout)
        _fine_tune(model, train, sequence, how, max_genes=max_genes)
        return _predict(model, train, sequence, start, perturbation, batch=batch_size)


def _fine_tune(model: "nn.Module", train: "PairCells", sequence: tuple, how: "TrainConfig", *, max_genes: int) -> None:
    """Every training cell of a type with control cells is a target once an epoch, from a control cell drawn for it."""
    import torch

    from screpro.tasks.perturbed_cells import normalised
    from screpro.training import fit

    columns, tokens, flags = sequence
    x = torch.from_numpy(normalised(train.counts).toarray())
    own = {k: torch.from_numpy(train.rows(k, 0)) for k in np.unique(train.cell_type[train.perturbation == 0])}
    rows_of_types = torch.from_numpy(np.flatnonzero(np.isin(train.cell_type, list(own))))
    kind, given = torch.from_numpy(train.cell_type), torch.from_numpy(train.perturbation)

    def loss(network: "nn.Module", rows: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
        device = generator.device
        at = rows_of_types[rows.cpu()]
        pick = torch.rand(len(at), generator=generator, device=device).cpu()
        start = torch.stack(
            [own[k][int(u * len(own[k]))] for k, u in zip(kind[at].tolist(), pick.tolist(), strict=True)]
        )
        order = torch.randperm(len(columns), generator=generator, device=device)[:max_genes].cpu()
        before, after = (_values(x[which], columns[order]).to(device) for which in (start, at))
        out = _forward(network, before, tokens[order].to(device), flags[given[at]][:, order].to(device))
        return (out - after).square().mean()

    fit(model, loss, len(rows_of_types), how, title="scGPT")


def _predict(
    model: "nn.Module", train: "PairCells", sequence: tuple, start: np.ndarray, perturbation: np.ndarray, *, batch: int
) -> np.ndarray:
    """Cells (n, G) from the training cells `start` (n,) as if perturbed."""
    import torch

    from screpro.tasks.perturbed_cells import normalised

    columns, tokens, flags = sequence
    made, device = torch.from_numpy(normalised(train.counts[start]).toarray()), next(model.parameters()).device
    measured = columns >= 0
    with torch.no_grad():
        for first in range(0, len(start), batch):
            part = slice(first, first + batch)
            before = _values(made[part], columns).to(device)
            given = flags[torch.from_numpy(perturbation[part])].to(device)
            out = _forward(model, before, tokens.to(device), given).cpu()
            made[part, columns[measured]] = out[:, measured]
    return made.numpy()


def _sequence(train: "PairCells", vocabulary: dict[str, int]):
    """Columns (L,) of the genes of a sequence, -1 if not on the panel, their tokens, and flags (P, L)."""
    import torch

    perturbed = train.perturbations[1:]
    if unknown := [name for name in perturbed if name not in vocabulary]:
        raise ScreproError(
            "scGPT is told a perturbation as a gene of its vocabulary.",
            got=f"{', '.join(unknown[:5])} are not in it",
            fix="leave scgpt out where perturbations are no genes, or rename them to gene symbols",
        )
    panel = [gene for gene in train.genes if gene in vocabulary]
    if not panel:
        raise ScreproError(
            "scGPT reads genes of its vocabulary.",
            got=f"none of the {len(train.genes)} genes of the panel is in it",
            fix="use human gene symbols",
        )
    names = panel + [name for name in perturbed if name not in set(panel)]
    column = {gene: number for number, gene in enumerate(train.genes)}
    flags = torch.zeros(len(train.perturbations), len(names), dtype=torch.long)
    for code, name in enumerate(perturbed, start=1):
        flags[code, names.index(name)] = PERTURBED
    columns = torch.tensor([column.get(name, -1) for name in names])
    return columns, torch.tensor([vocabulary[name] for name in names]), flags


def _values(x: "torch.Tensor", columns: "torch.Tensor") -> "torch.Tensor":
    """Expression (B, L) of the genes of a sequence; 0 for those that are not on the panel."""
    return x[:, columns.clamp(min=0)] * (columns >= 0)


def _forward(model: "nn.Module", values, tokens, flags):
    import torch

    sequence = tokens.expand(len(values), -1)
    mask = torch.zeros_like(values, dtype=torch.bool)  # every gene takes part
    return model(sequence, values, flags, src_key_padding_mask=mask, do_sample=False)["mlm_output"]


def _network(found: Files, dropout: float) -> "nn.Module":
    """The package's network with the checkpoint's weights in the parts that `PRETRAINED` names."""
    import torch

    try:
        from scgpt.model import TransformerGenerator
    except ImportError as error:
        raise ScreproError(
            "scGPT runs in its own package.", got=f"no module named {error.name}", fix="pip install scgpt"
        ) from error
    c = found.sizes
    model = TransformerGenerator(
        len(found.vocabulary),
        c["embsize"],
        c["nheads"],
        c["d_hid"],
        c["nlayers"],
        nlayers_cls=c.get("n_layers_cls", 3),
        n_cls=1,
        vocab=found.vocabulary,
        dropout=dropout,
        pad_token="<pad>",
        pad_value=0,
        pert_pad_id=PAD_FLAG,
        use_fast_transformer=False,
    )
    stored = torch.load(found.weights, map_location="cpu", weights_only=True)  # tensors alone, nothing is executed
    # the checkpoint was made with a fused attention whose weights have other names
    stored = {name.replace("Wqkv.", "in_proj_"): value for name, value in stored.items()}
    known = model.state_dict()
    taken = {
        name: value
        for name, value in stored.items()
        if name.split(".")[0] in PRETRAINED and name in known and known[name].shape == value.shape
    }
    if missing := [name for name in known if name.split(".")[0] in PRETRAINED and name not in taken]:
        raise ScreproError(
            "The checkpoint has the weights of every pretrained part of the network.",
            got=f"{len(missing)} are missing or of another shape, {missing[0]} among them",
            fix="use the published human checkpoint with its own args.json",
        )
    model.load_state_dict(taken, strict=False)
    return model
