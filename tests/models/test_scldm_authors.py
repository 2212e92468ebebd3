"""The authors' weights in our networks: names, sizes, checkpoints, and files that are refused."""

import pickle

import pytest
import torch

from screpro.errors import ScreproError
from screpro.models.scldm import AutoEncoder, AutoEncoderConfig
from screpro.models.scldm_authors import autoencoder_from_authors, read_checkpoint, velocity_from_authors
from screpro.models.scldm_velocity import VelocityConfig, VelocityNetwork


def autoencoder(**changes) -> AutoEncoder:
    torch.manual_seed(0)
    sizes = {"n_genes": 9, "width": 8, "tokens": 3, "layers": 2, "channels": 4, "heads": 2, "cross_heads": 4}
    return AutoEncoder(AutoEncoderConfig(**(sizes | changes))).eval()


def velocity() -> VelocityNetwork:
    torch.manual_seed(0)
    model = VelocityNetwork(VelocityConfig(3, 4, 8, 2, 2, {"cell_type": 5, "cytokine": 3})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def attention_block(theirs: str, ours: str, state: dict, bias: bool) -> dict:
    """One self-attention block with its MLP under the authors' names, written out by hand."""
    kinds = ("weight", "bias") if bias else ("weight",)
    found = {f"{theirs}.attn.c_attn.{kind}": state[f"{ours}.attention.qkv.{kind}"] for kind in kinds}
    found |= {f"{theirs}.attn.c_proj.{kind}": state[f"{ours}.attention.project.{kind}"] for kind in kinds}
    return found | mlp(theirs, ours, state)


def mlp(theirs: str, ours: str, state: dict) -> dict:
    pairs = {"w1": "gate", "w2": "value", "c_proj": "contract"}
    return {f"{theirs}.mlp.{a}.weight": state[f"{ours}.mlp.{b}.weight"] for a, b in pairs.items()}


def cross_block(theirs: str, ours: str, state: dict) -> dict:
    found = {
        f"{theirs}.attn.c_attn_q.weight": state[f"{ours}.to_q.weight"],
        f"{theirs}.attn.c_attn.weight": state[f"{ours}.to_kv.weight"],
        f"{theirs}.attn.c_proj.weight": state[f"{ours}.project.weight"],
    }
    for kind in ("weight", "bias"):
        for a, b in (("ln_1", "norm_tokens"), ("ln_1q", "norm_query"), ("ln_2", "norm_mlp")):
            found[f"{theirs}.{a}.{kind}"] = state[f"{ours}.{b}.{kind}"]
    return found | mlp(theirs, ours, state)


def autoencoder_to_authors(model: AutoEncoder) -> dict:
    state = model.state_dict()
    theirs = {
        "input_layer.gene_embedding.weight": state["genes.table"],
        "encoder.ca_layer.inducing_points": state["pool.pseudo_inputs"],
        "encoder.encoder_latent_input.0.weight": state["to_latent.weight"],
        "decoder.decoder_latent_input.1.weight": state["from_latent.weight"],
        "decoder_head.params.weight": state["head.weight"],
        "decoder_head.params.bias": state["head.bias"],
    }
    if "genes.mix.weight" in state:
        theirs |= {f"input_layer.projection.mix.{kind}": state[f"genes.mix.{kind}"] for kind in ("weight", "bias")}
    if "log_theta" in state:
        theirs["decoder_head.theta.weight"] = state["log_theta"][:, None]
    for layer in range(model.config.layers):
        for side in ("encoder", "decoder"):
            name = f"{side}.{side}_layers.{layer}"
            theirs |= attention_block(name, f"{side}.{layer}", state, bias=False)
            for kind in ("weight", "bias"):
                theirs[f"{name}.ln_1.{kind}"] = state[f"{side}.{layer}.norm_attention.{kind}"]
                theirs[f"{name}.ln_2.{kind}"] = state[f"{side}.{layer}.norm_mlp.{kind}"]
    theirs |= cross_block("encoder.ca_layer", "pool.block", state)
    return theirs | cross_block("decoder.decoder_cross_attention", "unpool", state)


def velocity_to_authors(model: VelocityNetwork) -> dict:
    state = model.state_dict()
    theirs = {"pos_embed": state["positions"]}
    theirs |= {f"class_embeddings.{name}.weight": table for name, table in model.tables.items()}
    for kind in ("weight", "bias"):
        theirs |= {f"t_embedder.mlp.{i}.{kind}": state[f"time.{i}.{kind}"] for i in (0, 2)}
        theirs[f"input_proj.{kind}"] = state[f"enter.{kind}"]
        theirs[f"final_layer.linear.{kind}"] = state[f"leave.{kind}"]
        theirs[f"final_layer.adaln_modulation.1.{kind}"] = state[f"final_modulation.{kind}"]
        for layer in range(model.config.layers):
            theirs[f"blocks.{layer}.adaln_modulation.1.{kind}"] = state[f"blocks.{layer}.modulation.{kind}"]
    for layer in range(model.config.layers):
        theirs |= attention_block(f"blocks.{layer}", f"blocks.{layer}", state, bias=True)
    return theirs


def same(a, b):
    assert a.config == b.config
    torch.testing.assert_close(dict(a.state_dict()), dict(b.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{}, {"mixing": "log1p", "layers": 1}, {"dispersion": "cell_gene", "width": 12}])
def test_autoencoder_comes_back_as_itself(changes):
    model = autoencoder(**changes)
    theirs = autoencoder_to_authors(model) | {"encoder.pos_embed": torch.zeros(1, 3, model.config.width)}
    same(autoencoder_from_authors(theirs, heads=2, cross_heads=4), model)


def test_velocity_comes_back_as_itself():
    same(velocity_from_authors(velocity_to_authors(velocity()), heads=2), velocity())


def test_unknown_missing_and_misshapen_weights_are_named():
    theirs = autoencoder_to_authors(autoencoder())
    load = {"heads": 2, "cross_heads": 4}
    with pytest.raises(ScreproError, match=r"gears\.0\.weight"):
        autoencoder_from_authors(theirs | {"gears.0.weight": torch.zeros(1)}, **load)
    with pytest.raises(ScreproError, match="position table must be zero"):
        autoencoder_from_authors(theirs | {"encoder.pos_embed": torch.ones(1, 3, 8)}, **load)
    without = {name: t for name, t in theirs.items() if name != "decoder.decoder_layers.1.mlp.w2.weight"}
    with pytest.raises(ScreproError, match=r"decoder\.1\.mlp\.value\.weight"):
        autoencoder_from_authors(without, **load)
    with pytest.raises(ScreproError, match="hold the whole network"):
        autoencoder_from_authors({}, **load)
    with pytest.raises(ScreproError, match="matching shapes"):
        autoencoder_from_authors(theirs | {"decoder_head.params.bias": torch.zeros(2)}, **load)
    with pytest.raises(ScreproError, match="divide"):
        autoencoder_from_authors(theirs, heads=3, cross_heads=4)
    with pytest.raises(ScreproError, match="hold the whole network"):
        velocity_from_authors({"pos_embed": torch.zeros(1, 3, 8)}, heads=2)


def checkpoint(path, state, **more):
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 1e-3}, **more}, path)
    return path


def test_a_checkpoint_of_both_networks(tmp_path):
    state = {f"vae_model.{name}": t for name, t in autoencoder_to_authors(autoencoder()).items()}
    state |= {f"diffusion_model.{name}": t for name, t in velocity_to_authors(velocity()).items()}
    state |= {"vae_model.metrics.total": torch.zeros(1)}  # what training keeps beside the network is left out
    found = read_checkpoint(checkpoint(tmp_path / "last.ckpt", state))
    assert set(found) == {"autoencoder", "velocity"}
    same(autoencoder_from_authors(found["autoencoder"], heads=2, cross_heads=4), autoencoder())
    same(velocity_from_authors(found["velocity"], heads=2), velocity())


def test_a_checkpoint_without_a_prefix(tmp_path):
    found = read_checkpoint(checkpoint(tmp_path / "vae.ckpt", autoencoder_to_authors(autoencoder())))
    assert set(found) == {"autoencoder"}
    same(autoencoder_from_authors(found["autoencoder"], heads=2, cross_heads=4), autoencoder())


class Harmful:
    """Pickles as a call that writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    mark = tmp_path / "mark"
    state = autoencoder_to_authors(autoencoder())
    path = checkpoint(tmp_path / "bad.ckpt", state, callbacks=Harmful(mark))
    with pytest.raises(ScreproError, match="nothing that runs code"):
        read_checkpoint(path)
    (tmp_path / "worse.ckpt").write_bytes(pickle.dumps({"state_dict": Harmful(mark)}))
    with pytest.raises(ScreproError, match="nothing that runs code"):
        read_checkpoint(tmp_path / "worse.ckpt")
    assert not mark.exists()


def test_broken_files_are_refused(tmp_path):
    with pytest.raises(ScreproError, match="must exist"):
        read_checkpoint(tmp_path / "none.ckpt")
    whole = checkpoint(tmp_path / "whole.ckpt", autoencoder_to_authors(autoencoder())).read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.ckpt").write_bytes(whole[:size])
        with pytest.raises(ScreproError, match="complete Lightning file"):
            read_checkpoint(tmp_path / "cut.ckpt")
    torch.save({"weights": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ScreproError, match="complete Lightning file"):
        read_checkpoint(tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ScreproError, match="complete Lightning file"):
        read_checkpoint(tmp_path / "list.ckpt")
    with pytest.raises(ScreproError, match="auto-encoder or velocity network"):
        read_checkpoint(checkpoint(tmp_path / "empty.ckpt", {"linear.weight": torch.zeros(2)}))
