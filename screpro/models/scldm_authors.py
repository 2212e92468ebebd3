"""The authors' scLDM weights in our networks: what their state-dict names are called here, and their checkpoints.

Keys and values, query-key-value and the gate and value of their SwiGLU (w1, w2) have the same layout there.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.models.checkpoints import below, read_state
from screpro.models.scldm import AutoEncoder, AutoEncoderConfig
from screpro.models.scldm_velocity import VelocityConfig, VelocityNetwork

__all__ = ["autoencoder_from_authors", "read_checkpoint", "velocity_from_authors"]

# theirs -> ours; inside one block
_ATTENTION_BLOCK = [
    (r"ln_1\.", "norm_attention."),
    (r"ln_2\.", "norm_mlp."),
    (r"attn\.c_attn\.", "attention.qkv."),
    (r"attn\.c_proj\.", "attention.project."),
]
_CROSS_BLOCK = [
    (r"ln_1\.", "norm_tokens."),
    (r"ln_1q\.", "norm_query."),
    (r"ln_2\.", "norm_mlp."),
    (r"attn\.c_attn_q\.", "to_q."),
    (r"attn\.c_attn\.", "to_kv."),
    (r"attn\.c_proj\.", "project."),
]
_MLP = [(r"mlp\.w1\.", "mlp.gate."), (r"mlp\.w2\.", "mlp.value."), (r"mlp\.c_proj\.", "mlp.contract.")]

_AUTOENCODER = [
    (r"^encoder\.encoder_layers\.(\d+)\.", r"encoder.\1.", _ATTENTION_BLOCK + _MLP),
    (r"^decoder\.decoder_layers\.(\d+)\.", r"decoder.\1.", _ATTENTION_BLOCK + _MLP),
    (r"^encoder\.ca_layer\.inducing_points$", "pool.pseudo_inputs", []),
    (r"^encoder\.ca_layer\.", "pool.block.", _CROSS_BLOCK + _MLP),
    (r"^decoder\.decoder_cross_attention\.", "unpool.", _CROSS_BLOCK + _MLP),
    (r"^encoder\.encoder_latent_input\.0\.", "to_latent.", []),
    (r"^decoder\.decoder_latent_input\.1\.", "from_latent.", []),
    (r"^decoder_head\.params\.", "head.", []),
    (r"^decoder_head\.theta\.weight$", "log_theta", []),
    (r"^input_layer\.gene_embedding\.weight$", "genes.table", []),
    (r"^input_layer\.projection\.mix\.", "genes.mix.", []),
]
_VELOCITY = [
    (r"^pos_embed$", "positions", []),
    (r"^class_embeddings\.(\w+)\.weight$", r"tables.\1", []),
    (r"^t_embedder\.mlp\.", "time.", []),
    (r"^blocks\.(\d+)\.adaln_modulation\.1\.", r"blocks.\1.modulation.", []),
    (r"^blocks\.(\d+)\.", r"blocks.\1.", _ATTENTION_BLOCK + _MLP),
    (r"^input_proj\.", "enter.", []),
    (r"^final_layer\.linear\.", "leave.", []),
    (r"^final_layer\.adaln_modulation\.1\.", "final_modulation.", []),
]


def autoencoder_from_authors(state: Mapping[str, Tensor], *, heads: int, cross_heads: int) -> AutoEncoder:
    """The auto-encoder from the authors' state dict; every size but the numbers of heads follows from the shapes.

    Raises
    ------
    ScreproError
        If a weight is unknown here or one is missing, or their position table is not the zeros their code keeps.
    """
    state = dict(state)
    position = state.pop("encoder.pos_embed", None)
    if position is not None and position.count_nonzero():
        raise ScreproError(
            "The encoder's position table must be zero, as the authors' code keeps it.",
            got=f"{int(position.count_nonzero())} non-zero entries",
            fix="networks with learned positions are not permutation-invariant and are not rebuilt here",
        )
    ours = _rename(state, _AUTOENCODER)
    _require(ours, ["genes.table", "pool.pseudo_inputs", "to_latent.weight", "head.weight"], len(state))
    if "log_theta" in ours:
        ours["log_theta"] = ours["log_theta"].squeeze(-1)
    rows, width = ours["genes.table"].shape
    config = AutoEncoderConfig(
        n_genes=rows - 1,
        width=width,
        tokens=len(ours["pool.pseudo_inputs"]),
        layers=_count(ours, r"encoder\.(\d+)\."),
        channels=len(ours["to_latent.weight"]),
        heads=heads,
        cross_heads=cross_heads,
        mixing="projconcat" if "genes.mix.weight" in ours else "log1p",
        dispersion="gene" if "log_theta" in ours else "cell_gene",
    )
    return _fill(AutoEncoder(config), ours)


def velocity_from_authors(state: Mapping[str, Tensor], *, heads: int) -> VelocityNetwork:
    """The velocity network from the authors' state dict; every size but `heads` follows from the shapes."""
    ours = _rename(state, _VELOCITY)
    _require(ours, ["positions", "enter.weight", "leave.weight"], len(state))
    width, channels = ours["enter.weight"].shape
    config = VelocityConfig(
        tokens=ours["positions"].shape[1],
        channels=channels,
        width=width,
        layers=_count(ours, r"blocks\.(\d+)\."),
        heads=heads,
        classes={m[1]: len(t) - 1 for name, t in ours.items() if (m := re.match(r"tables\.(\w+)$", name))},
    )
    return _fill(VelocityNetwork(config), ours)


def read_checkpoint(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Weights of a Lightning checkpoint (``.ckpt``) of theirs, by network: "autoencoder" and, if there, "velocity".

    Only tensors and plain containers are read; a file that asks for anything else to be built is refused.

    The weights alone do not run a published model. `screpro.data.weights` knows the files of their public bucket and
    brings a checkpoint with its configuration. Needed as well, because weights do not carry them: the numbers of heads,
    which are in that configuration (for `autoencoder_from_authors` and `velocity_from_authors`); the gene names in the
    order of the gene table (row 0 is padding) and the labels in the order of their tables; and the mean and standard
    deviation of the log library size by label, for which `screpro.tasks.library_size` takes training cells (theirs are
    pickles, which nothing here opens).

    Raises
    ------
    ScreproError
        The file is missing, truncated, holds more than weights, or holds no network known here.
    """
    names = read_state(
        path,
        missing="check the path, or bring the authors' files, for example screpro data get scldm_weights_census_20M; "
        "numbers of heads and the order of genes and labels are needed as well",
    )
    found: dict[str, dict[str, Tensor]] = {}
    for kind, rules, anchor in (
        ("autoencoder", _AUTOENCODER, "input_layer.gene_embedding.weight"),
        ("velocity", _VELOCITY, "t_embedder.mlp.0.weight"),
    ):
        if inside := below(names, anchor):
            known = [pattern for pattern, _, _ in rules] + [r"^encoder\.pos_embed$"]
            found[kind] = {name: t for name, t in inside.items() if any(re.search(p, name) for p in known)}
    if not found:
        raise ScreproError(
            "A checkpoint must hold scLDM's auto-encoder or velocity network.",
            got=f"{path}: {', '.join(sorted(names)[:3]) or 'no tensors'}",
            fix="pass a checkpoint of scLDM",
        )
    return found


def _rename(state: Mapping[str, Tensor], rules: list) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement, inner in rules:
            if not (match := re.match(pattern, name)):
                continue
            rest = name[match.end() :]
            for theirs, here in inner:
                if re.match(theirs, rest):
                    rest = re.sub(f"^{theirs}", here, rest)
                    break
            ours[match.expand(replacement) + rest] = tensor
            break
        else:
            raise ScreproError(
                "Every weight of the state dict must belong to scLDM.",
                got=f"{name} {tuple(tensor.shape)}",
                fix="pass the state dict of one network, without a prefix such as `model.`",
            )
    return ours


def _require(ours: Mapping[str, Tensor], needed: list[str], n: int) -> None:
    if missing := [name for name in needed if name not in ours]:
        raise ScreproError(
            "The state dict must hold the whole network.",
            got=f"no weight for {', '.join(missing)} among {n} entries",
            fix="pass the network's own state dict, without a prefix such as `model.`",
        )


def _count(ours: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for name in ours if (m := re.match(pattern, name))})


def _fill(model: nn.Module, ours: Mapping[str, Tensor]):
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ScreproError(
            "The state dict must hold every weight of the network, in matching shapes.",
            got=str(error).replace("\n", " "),
            fix="pass a complete state dict of one model",
        ) from None
    return model.eval()
