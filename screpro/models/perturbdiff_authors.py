"""Weights of PerturbDiff's authors under our names, so that their released checkpoints load.

Their state dict of the denoiser; the names of the covariate encoder are those of their checkpoints and are not needed
to run the denoiser on an encoded covariate.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from screpro.errors import ScreproError
from screpro.models.perturbdiff import PerturbDiff, PerturbDiffConfig

__all__ = ["from_authors"]

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


def from_authors(weights: Mapping[str, Tensor], *, heads: int) -> PerturbDiff:
    """A denoiser with the authors' weights, in evaluation mode.

    Parameters
    ----------
    weights
        Their state dict: names such as ``blocks.0.block.attn.qkv.weight``. Names that begin with a common prefix
        (``model.``) have to be stripped of it.
    heads
        Heads of attention; the weights do not tell.

    Raises
    ------
    ScreproError
        A weight is missing, unknown or of another shape.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if any(re.match(pattern, name) for pattern in _WITHOUT_EFFECT):
            continue
        for pattern, replacement in _RENAMED:
            if match := re.match(pattern, name):
                ours[match.expand(replacement) + name[match.end() :]] = tensor
                break
        else:
            raise ScreproError(
                "Every weight of the state dict must belong to PerturbDiff's denoiser.",
                got=f"{name} {tuple(tensor.shape)}",
                fix="pass the state dict of the denoiser alone, without a prefix such as `model.`",
            )
    needed = ["enter.0.weight", "enter_control.0.weight", "leave.weight", "blocks.0.mlp.expand.weight"]
    if missing := [name for name in needed if name not in ours]:
        raise ScreproError(
            "The state dict must hold the whole denoiser.",
            got=f"no weight for {', '.join(missing)} among {len(weights)} entries",
            fix="pass the network's own state dict, without a prefix such as `model.`",
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
