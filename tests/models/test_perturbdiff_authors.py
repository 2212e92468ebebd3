"""Checkpoints of PerturbDiff's authors: the denoiser below its prefix, and files that are refused."""

import pickle

import pytest
import torch

from screpro.errors import ScreproError
from screpro.models.perturbdiff import PerturbDiff, PerturbDiffConfig
from screpro.models.perturbdiff_authors import from_authors, read_checkpoint

THEIRS = {
    "enter.0.": "x_embedder.", "enter_control.0.": "x_control_embedder.", "time.": "t_embedder.mlp.",
    "condition.": "class_embedding.emb.", "no_condition": "class_embedding.null_emb.weight",
    "shared": "gene_embedding.null_emb.weight", "leave.": "final_layer.linear.",
    "leave_modulation.": "final_layer.adaLN_modulation.1.",
}  # fmt: skip
IN_BLOCK = {
    "attention.qkv.": "attn.qkv.", "attention.project.": "attn.proj.", "attention.q_norm": "attn.q_norm.weight",
    "attention.k_norm": "attn.k_norm.weight", "mlp.expand.": "mlp.fc1.", "mlp.contract.": "mlp.fc2.",
    "control_mlp.expand.": "control_mlp.fc1.", "control_mlp.contract.": "control_mlp.fc2.",
    "modulation.": "adaLN_modulation.1.", "control_modulation.": "control_adaLN_modulation.1.",
}  # fmt: skip


def network() -> PerturbDiff:
    torch.manual_seed(0)
    model = PerturbDiff(PerturbDiffConfig(n_genes=6, width=8, layers=2, heads=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def to_authors(model: PerturbDiff, prefix: str = "") -> dict:
    """Its weights under the authors' names, with the layers of theirs that have no effect."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            ours = next(k for k in IN_BLOCK if rest.startswith(k))
            name = f"blocks.{number}.block.{IN_BLOCK[ours]}{rest.removeprefix(ours)}"
        else:
            ours = next(k for k in THEIRS if name.startswith(k))
            name = THEIRS[ours] + name.removeprefix(ours)
        if name == "x_control_embedder.weight":  # the half that meets zeros
            tensor = torch.cat([tensor, torch.ones_like(tensor)], 1)
        state[prefix + name] = tensor
    return state | {f"{prefix}control_final_layer.linear.bias": torch.zeros(6)}


def same_answer(a: PerturbDiff, b: PerturbDiff) -> None:
    x, control = torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(*(m(x, torch.tensor([7]), control=control) for m in (a, b)))


def test_a_checkpoint_as_their_training_saves_it(tmp_path):
    """The denoiser stands under `model.` beside a covariate encoder, which is left out."""
    state = to_authors(network(), "model.") | {"cov_encoder.transform.weight": torch.zeros(6, 12)}
    torch.save({"state_dict": state, "epoch": 2}, tmp_path / "last.ckpt")
    found = from_authors(read_checkpoint(tmp_path / "last.ckpt"), heads=2)
    same_answer(found, network())
    assert not found.config.labels
    same_answer(from_authors(state, heads=2), network())  # the whole state dict will do as well
    same_answer(from_authors(to_authors(network()), heads=2), network())


class Harmful:
    """Pickles as a call that writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_is_not_weights_of_the_denoiser_is_refused(tmp_path):
    file, mark = tmp_path / "some.ckpt", tmp_path / "mark"
    with pytest.raises(ScreproError, match="must exist"):
        read_checkpoint(file)
    torch.save({"state_dict": to_authors(network(), "model."), "hyper_parameters": Harmful(mark)}, file)
    with pytest.raises(ScreproError, match="nothing that runs code"):
        read_checkpoint(file)
    file.write_bytes(pickle.dumps({"state_dict": Harmful(mark)}))
    with pytest.raises(ScreproError, match="nothing that runs code"):
        read_checkpoint(file)
    assert not mark.exists()
    torch.save({"state_dict": {"linear.weight": torch.zeros(2)}}, file)
    with pytest.raises(ScreproError, match="must hold PerturbDiff"):
        read_checkpoint(file)
    with pytest.raises(ScreproError, match="must belong"):  # an unknown layer below the prefix is not dropped
        from_authors(to_authors(network(), "model.") | {"model.extra.weight": torch.zeros(1)}, heads=2)
