"""Weights of PerturbDiff's authors under our names: the denoiser of their checkpoints, and not their covariate encoder.

What is rebuilt is tested against numbers of their own. Their covariate encoder (tables of perturbations, cell types and
batches, frozen vectors of other models, and the map to a vector as long as a cell) is not: the names and the order of
its labels are in a configuration that the weights do not carry. So a network from here has no labels. It runs without
covariates, or on vectors (B, G) that their encoder has made: ``PerturbDiff.embed_covariates`` takes these.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from screpro.errors import ScreproError
from screpro.models.checkpoints import below, read_state
from screpro.models.perturbdiff import PerturbDiff, PerturbDiffConfig

__all__ = ["from_authors", "read_checkpoint"]

_RENAMED = [
    (r"x_embedder\.", "enter.0."),
    (r"x_control_embedder\.", "enter_control.0."),
    (r"t_embedder\.mlp\.", "time."),
    (r"gene_embedding\.null_emb\.weight$", "shared"),
    (r"class_embedding\.emb\.", "condition."),
    (r"class_embedding\.null_emb\.weight$", "no_condition"),
    (r"blocks\.(\d+)\.block\.attn\.qkv\.", r"blocks.\1.attention.qkv."),
    (r"blocks\.(\d+)\.block\.attn\.(q_norm|k_norm)\.weight$", r"blocks.\1.attention.\2"),
    (r"blocks\.(\d+)\.block\.attn\.proj\.", r"blocks.\1.attention.project."),
    (r"blocks\.(\d+)\.block\.(control_)?mlp\.fc1\.", r"blocks.\1.\2mlp.expand."),
    (r"blocks\.(\d+)\.block\.(control_)?mlp\.fc2\.", r"blocks.\1.\2mlp.contract."),
    (r"blocks\.(\d+)\.block\.(control_)?adaLN_modulation\.1\.", r"blocks.\1.\2modulation."),
    (r"final_layer\.adaLN_modulation\.1\.", "leave_modulation."),
    (r"final_layer\.linear\.", "leave."),
]
_WITHOUT_EFFECT = (r"gene_embedding\.(gene_embedding|layer_norm)\.", r"control_final_layer\.")
"""Weights that no output depends on: the 5120 -> D gene layer and the head of the control stream, which has no loss."""

_ANCHOR = "t_embedder.mlp.0.weight"


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Weights of the denoiser in a Lightning checkpoint (``.ckpt``) of theirs, for `from_authors`.

    Only tensors and plain containers are read; a file that asks for anything else to be built is refused. Their code
    saves its configuration beside the weights and reads it back unpickling: such a file has to be re-saved as weights
    alone by someone who trusts it. Needed as well, because weights do not carry them: the number of heads (8 in the
    published configuration) and the genes in their order. Weights of the covariate encoder are left out.

    Raises
    ------
    ScreproError
        The file is missing, truncated, holds more than weights, or holds no denoiser of PerturbDiff.
    """
    state = read_state(path, missing="check the path; the authors' checkpoints are not part of this package")
    found = below(state, _ANCHOR)
    if not found:
        raise ScreproError(
            "A checkpoint must hold PerturbDiff's denoiser.",
            got=f"{path}: {', '.join(sorted(state)[:3]) or 'no tensors'}",
            fix="pass a checkpoint of PerturbDiff",
        )
    return found


def _translated(name: str) -> str | None:
    """Our name of one of their weights, "" for one without effect, None for one that is not the denoiser's."""
    if any(re.match(pattern, name) for pattern in _WITHOUT_EFFECT):
        return ""
    for pattern, replacement in _RENAMED:
        if match := re.match(pattern, name):
            return match.expand(replacement) + name[match.end() :]
    return None


def from_authors(weights: Mapping[str, Tensor], *, heads: int) -> PerturbDiff:
    """A denoiser with the authors' weights, in evaluation mode; without tables of labels (see the module).

    Parameters
    ----------
    weights
        Their state dict: names such as ``blocks.0.block.attn.qkv.weight``, or the same below a prefix (``model.``).
        What stands outside that prefix, their covariate encoder, is not read.
    heads
        Heads of attention; the weights do not tell.

    Raises
    ------
    ScreproError
        A weight is missing, unknown or of another shape.
    """
    ours: dict[str, Tensor] = {}
    # in a checkpoint the denoiser stands under `model.`, as a part of their training module
    for name, tensor in (below(weights, _ANCHOR) or weights).items():
        translated = _translated(name)
        if translated is None:
            raise ScreproError(
                "Every weight of the state dict must belong to PerturbDiff's denoiser.",
                got=f"{name} {tuple(tensor.shape)}",
                fix="pass the state dict of the denoiser alone, or what read_checkpoint returns",
            )
        if translated:
            ours[translated] = tensor
    needed = ["enter.0.weight", "enter_control.0.weight", "leave.weight", "blocks.0.mlp.expand.weight"]
    if missing := [name for name in needed if name not in ours]:
        raise ScreproError(
            "The state dict must hold the whole denoiser.",
            got=f"no weight for {', '.join(missing)} among {len(weights)} entries",
            fix="pass the whole state dict of the denoiser",
        )
    genes, width = ours["leave.weight"].shape
    # controls enter as [control ; zeros]: the second half of these weights meets nothing
    ours["enter_control.0.weight"] = ours["enter_control.0.weight"][:, :genes]
    layers = len({m[1] for name in ours if (m := re.match(r"blocks\.(\d+)\.", name))})
    if width % heads:
        raise ScreproError(
            "The number of heads must divide the width.", got=f"{heads} heads, width {width}", fix="check `heads`"
        )
    ratio = len(ours["blocks.0.mlp.expand.weight"]) / width
    model = PerturbDiff(PerturbDiffConfig(n_genes=genes, width=width, layers=layers, heads=heads, mlp_ratio=ratio))
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ScreproError(
            "The state dict must hold every weight of the denoiser, in matching shapes.",
            got=str(error).replace("\n", " "),
            fix="pass a complete state dict of one denoiser",
        ) from None
    return model.eval()
