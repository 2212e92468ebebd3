"""Does our network compute the same function as the authors'? Files of their weights, inputs and outputs decide."""

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from screpro.errors import ScreproError

__all__ = ["TOLERANCE", "Row", "check_file"]

TOLERANCE = 1e-4
"""Largest accepted ratio; float32 networks that compute the same function stay below 1e-5."""


class Row(NamedTuple):
    """Agreement of one output."""

    output: str
    difference: float  # largest absolute difference
    scale: float  # largest absolute reference value
    ratio: float  # difference / scale


def check_file(path: str | Path) -> list[Row]:
    """Run our network on the inputs of an ``.npz`` of parity vectors and compare with its outputs.

    The file holds ``config`` (JSON), ``weight/<authors' name>``, ``input/<name>`` and ``output/<name>``; which
    paper it belongs to is told by its weights, not by its name.
    """
    parts = _read(Path(path))
    if "embedder.emb" not in parts["weight"]:
        raise ScreproError(
            "The weights must be those of a network this version rebuilds (scDiff's denoiser).",
            got=f"{path}: weights such as {', '.join(sorted(parts['weight'])[:3])}",
            fix="pass a file of scDiff vectors",
        )
    ours = _scdiff(parts)
    rows = []
    for name, reference in parts["output"].items():
        if name not in ours:
            raise ScreproError(
                "Every output of the file must be one that is known here.",
                got=f"output/{name}",
                fix=f"known outputs: {', '.join(sorted(ours))}",
            )
        difference = float(np.abs(ours[name] - reference).max())
        scale = float(np.abs(reference).max())
        # NaN compares false with everything, so an undefined ratio must become a failure here
        ratio = difference / scale if scale > 0 and np.isfinite(difference) else float("inf")
        rows.append(Row(name, difference, scale, 0.0 if difference == 0 else ratio))
    return rows


def _read(path: Path) -> dict:
    """Config and arrays of the file by kind."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            parts: dict = {
                "config": json.loads(str(archive["config"])),
                "weight": {},
                "input": {},
                "output": {},
            }
            for key in archive.files:
                kind, _, name = key.partition("/")
                if name and kind in parts:
                    parts[kind][name] = archive[key]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ScreproError(
            "A parity file is an .npz with `config` as a JSON string and arrays weight/, input/ and output/.",
            got=f"{path}: {error}",
            fix="pass the path of such a file",
        ) from None
    if not parts["weight"] or not parts["output"]:
        raise ScreproError(
            "A parity file needs weights to load and outputs to compare with.",
            got=f"{path}: {len(parts['weight'])} weights, {len(parts['output'])} outputs",
            fix="pass a complete file",
        )
    return parts


def _scdiff(parts: dict) -> dict[str, np.ndarray]:
    """Outputs of our scDiff denoiser: context visible, hidden (annotation) and partly hidden (imputation)."""
    import torch

    from screpro.models.scdiff import time_embedding
    from screpro.models.scdiff_authors import from_authors

    config = parts["config"]
    weights = {name: torch.from_numpy(array) for name, array in parts["weight"].items()}
    given = {name: torch.from_numpy(array) for name, array in parts["input"].items()}
    model = from_authors(weights, heads=config["num_heads"]).eval()
    labels = {name.removeprefix("condition/"): value.long() for name, value in given.items() if "/" in name}
    batch = labels.pop("batch", None)
    conditions = {name: labels[name] for name in model.conditioners}
    context = given["context"]
    shared = {"context": context, "conditions": conditions, "batch": batch}
    outputs = {}
    with torch.no_grad():
        masks = {"visible": None, "hidden": torch.ones_like(context, dtype=torch.bool)}
        if "context_mask" in given:
            masks["partly_masked"] = given["context_mask"].bool()
        for name, hidden in masks.items():
            outputs[f"x0_context_{name}"] = model(given["x_t"], given["t"], hidden=hidden, **shared)
        outputs["time_embedding"] = time_embedding(given["t"], model.config.width)
    return {name: value.numpy() for name, value in outputs.items()}
