"""scLDM's networks against numbers of the authors' own.

Two files are kept here, an auto-encoder and a velocity network; the others lie beside the repository, or are skipped.
"""

from pathlib import Path

import numpy as np
import pytest

from screpro import parity

KEPT = Path(__file__).parent / "vectors"
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "parity"
FILES = [
    "scldm_vae_log1p",
    "scldm_vae_projconcat",
    "scldm_vae_shared_theta",
    "scldm_dit_additive",
    "scldm_dit_joint",
    "scldm_dit_single",
]


def vector(name: str) -> Path:
    for folder in (KEPT, BESIDE):
        if (path := folder / f"{name}.npz").exists():
            return path
    pytest.skip(f"parity vector {name}.npz is not here")


@pytest.mark.parametrize("name", FILES)
def test_same_function_as_the_authors(name):
    rows = parity.check_file(vector(name))
    assert rows and {row.output: row.ratio for row in rows if not row.ratio < 1e-5} == {}


@pytest.mark.parametrize(("name", "weight"), [
    ("scldm_vae_projconcat", "encoder.ca_layer.inducing_points"),
    ("scldm_vae_projconcat", "input_layer.projection.mix.weight"),
    ("scldm_vae_shared_theta", "decoder_head.theta.weight"),
    ("scldm_dit_joint", "final_layer.adaln_modulation.1.weight"),
    ("scldm_dit_additive", "pos_embed"),
])  # fmt: skip
def test_a_changed_weight_is_seen(name, weight, tmp_path):
    with np.load(vector(name), allow_pickle=False) as archive:
        arrays = dict(archive)
    arrays[f"weight/{weight}"] = arrays[f"weight/{weight}"] * 1.02 + 0.02
    np.savez(tmp_path / "other.npz", **arrays)
    assert max(row.ratio for row in parity.check_file(tmp_path / "other.npz")) > parity.TOLERANCE
