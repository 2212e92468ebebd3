"""The authors' scDiff weights in our network: what their state-dict names are called here.

Their decoder ("decoder_embed", "encoder") is the network on x_t; their "embedder" and "blocks" are the branch of the
context. Value and gate of the feed-forward are the two halves of one matrix there.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from screpro.errors import ScreproError
from screpro.models.scdiff import ScDiff, ScDiffConfig

__all__ = ["from_authors"]

# theirs -> ours; `norm2` is stored by their blocks and never used
_RENAME = [
    (r"^embedder\.emb$", "context.embedder.table"),
    (r"^embedder\.post_layer\.1\.", "context.embedder.norm."),
    (r"^blocks\.(\d+)\.0\.", r"context.layers.\1.linear."),
    (r"^blocks\.(\d+)\.2\.", r"context.layers.\1.norm."),
    (r"^decoder_embed\.emb$", "embedder.table"),
    (r"^decoder_embed\.post_layer\.1\.", "embedder.norm."),
    (r"^cond_embed\.emb_dict\.(\w+)\.(\d+)\.0\.weight$", r"conditioners.\1.tables.\2"),
    (r"^encoder\.blocks\.(\d+)\.attn1\.to_out\.0\.", r"blocks.\1.attention.to_out."),
    (r"^encoder\.blocks\.(\d+)\.attn1\.", r"blocks.\1.attention."),
    (r"^encoder\.blocks\.(\d+)\.ff\.net\.2\.", r"blocks.\1.feed_forward.contract."),
    (r"^encoder\.blocks\.(\d+)\.norm1\.", r"blocks.\1.norm_query."),
    (r"^encoder\.blocks\.(\d+)\.norm3\.", r"blocks.\1.norm_feed_forward."),
    (r"^encoder\.blocks\.\d+\.norm2\.", None),
    (r"^decoder_norm\.", "norm_out."),
    (r"^decoder\.cond_embed\.emb_dict\.batch\.0\.0\.weight$", "batch_table"),
    (r"^decoder\.layers\.0\.0\.", "head."),
]


def from_authors(state: Mapping[str, Tensor], *, heads: int) -> ScDiff:
    """Build the network from the authors' state dict; every size but `heads` follows from the shapes.

    Raises
    ------
    ScreproError
        If a weight is unknown here or one is missing.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if both := re.match(r"encoder\.blocks\.(\d+)\.ff\.net\.0\.proj\.(weight|bias)$", name):
            value, gate = tensor.chunk(2)
            ours[f"blocks.{both[1]}.feed_forward.value.{both[2]}"] = value
            ours[f"blocks.{both[1]}.feed_forward.gate.{both[2]}"] = gate
            continue
        for pattern, replacement in _RENAME:
            if re.search(pattern, name):
                if replacement is not None:
                    ours[re.sub(pattern, replacement, name)] = tensor
                break
        else:
            raise ScreproError(
                "Every weight of the state dict must belong to scDiff's class-conditioned denoiser.",
                got=f"{name} {tuple(tensor.shape)}",
                fix="networks with a text or graph conditioner are loaded by giving ScDiff that conditioner",
            )
    needed = ["embedder.table", "blocks.0.attention.to_q.weight", "head.weight"]
    if missing := [name for name in needed if name not in ours]:
        raise ScreproError(
            "The state dict must hold the whole network.",
            got=f"no weight for {', '.join(missing)} among {len(state)} entries",
            fix="pass the model's own state dict, without a prefix such as `model.`",
        )
    tables = {m[1]: tensor for key, tensor in ours.items() if (m := re.match(r"conditioners\.(\w+)\.tables\.0$", key))}
    n_genes, width = ours["embedder.table"].shape
    config = ScDiffConfig(
        n_genes=n_genes,
        width=width,
        depth=sum(bool(re.match(r"blocks\.\d+\.norm_query\.weight$", key)) for key in ours),
        heads=heads,
        head_width=ours["blocks.0.attention.to_q.weight"].shape[0] // heads,
        classes={name: len(table) for name, table in tables.items()},
        n_batches=len(ours["batch_table"]) if "batch_table" in ours else 0,
    )
    model = ScDiff(config)
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ScreproError(
            "The state dict must hold every weight of the network, in matching shapes.",
            got=str(error).replace("\n", " "),
            fix="pass a complete state dict of one model",
        ) from None
    return model
