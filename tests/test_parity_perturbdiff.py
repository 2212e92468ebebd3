"""PerturbDiff's denoiser against numbers of the authors' own; the file lies beside the repository, or is skipped."""

from pathlib import Path

import numpy as np
import pytest
import torch

from screpro import parity
from screpro.errors import ScreproError
from screpro.models.perturbdiff_authors import from_authors

FILE = Path(__file__).resolve().parents[2] / "shared" / "parity" / "perturbdiff_mmdit.npz"
needs_file = pytest.mark.skipif(not FILE.exists(), reason="parity vector perturbdiff_mmdit.npz is not here")


def arrays() -> dict:
    with np.load(FILE, allow_pickle=False) as archive:
        return dict(archive)


def weights() -> dict:
    return {k.removeprefix("weight/"): torch.from_numpy(v) for k, v in arrays().items() if k.startswith("weight/")}


@needs_file
def test_same_function_as_the_authors():
    rows = parity.check_file(FILE)
    assert len(rows) == 4 and {row.output: row.ratio for row in rows if not row.ratio < 1e-5} == {}


@needs_file
@pytest.mark.parametrize(
    ("weight", "seen"),
    [
        ("blocks.0.block.attn.q_norm.weight", True),
        ("blocks.1.block.control_adaLN_modulation.1.bias", True),
        ("class_embedding.null_emb.weight", True),
        ("final_layer.adaLN_modulation.1.weight", True),
        ("gene_embedding.gene_embedding.weight", False),
        ("control_final_layer.linear.weight", False),
    ],
)
def test_which_weights_matter(weight, seen, tmp_path):
    """Those of the answer, and not those that the header lists as without effect."""
    changed = arrays()
    changed[f"weight/{weight}"] = changed[f"weight/{weight}"] * 1.02 + 0.02
    np.savez(tmp_path / "other.npz", **changed)
    assert (max(row.ratio for row in parity.check_file(tmp_path / "other.npz")) > parity.TOLERANCE) == seen


@needs_file
def test_sequential_mlp_and_tokens_are_other_functions():
    """What equations 42 and 43 print, and what figure 2 draws, is not what the authors' network computes."""
    from dataclasses import replace

    from screpro.models.perturbdiff import PerturbDiff

    ours = from_authors(weights(), heads=4)
    other = PerturbDiff(replace(ours.config, mlp="sequential")).eval()
    other.load_state_dict(ours.state_dict())
    given = {k.removeprefix("input/"): torch.from_numpy(v) for k, v in arrays().items() if k.startswith("input/")}
    with torch.no_grad():
        a, b = (m(given["noised"], given["t"], control=given["control"]) for m in (ours, other))
    assert (a - b).abs().max() > 0.01 * a.abs().max()


@needs_file
@pytest.mark.parametrize("change", ["missing", "unknown", "heads", "shape", "no blocks"])
def test_other_state_dicts_are_refused(change):
    state, heads = weights(), 4
    if change == "missing":
        del state["x_embedder.weight"]
    elif change == "unknown":
        state["model.x_embedder.weight"] = state.pop("x_embedder.weight")
    elif change == "heads":
        heads = 5
    elif change == "shape":
        state["blocks.1.block.attn.proj.bias"] = torch.zeros(3)
    else:
        state = {name: t for name, t in state.items() if not name.startswith("blocks")}
    with pytest.raises(ScreproError):
        from_authors(state, heads=heads)
