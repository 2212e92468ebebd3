"""Does our network compute the same function as the authors'? Files of their weights, inputs and outputs decide."""

import json
import re
import zipfile
import zlib
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
    known = [compute for anchor, compute in NETWORKS.items() if anchor in parts["weight"]]
    if not known:
        raise ScreproError(
            "The weights must be those of a network this version rebuilds (scDiff's denoiser, scLDM's auto-encoder or "
            "velocity network, PerturbDiff's denoiser).",
            got=f"{path}: weights such as {', '.join(sorted(parts['weight'])[:3])}",
            fix="pass a file of vectors of one of these",
        )
    ours = known[0](parts)
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
    if path.is_file() and not zipfile.is_zipfile(path):
        raise _not_vectors(path, "another kind of file")
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
    except OSError as error:
        raise _not_vectors(path, (error.strerror or str(error)).lower()) from None
    except KeyError:
        raise _not_vectors(path, "no `config`") from None
    except json.JSONDecodeError as error:
        raise _not_vectors(path, f"`config` is not JSON: {error}") from None
    except (ValueError, EOFError, zlib.error, zipfile.BadZipFile):
        # numpy's own words would advise to load it with pickles allowed
        raise _not_vectors(path, "an array that is damaged or is not of plain numbers and text") from None
    if not parts["weight"] or not parts["output"]:
        raise ScreproError(
            "A parity file needs weights to load and outputs to compare with.",
            got=f"{path}: {len(parts['weight'])} weights, {len(parts['output'])} outputs",
            fix="pass a complete file",
        )
    return parts


def _not_vectors(path: Path, got: str) -> ScreproError:
    return ScreproError(
        "A parity file is an .npz with `config` as a JSON string and arrays weight/, input/ and output/.",
        got=f"{path}: {got}",
        fix="pass the path of such a file",
    )


def _scdiff(parts: dict) -> dict[str, np.ndarray]:
    """Outputs of our scDiff denoiser: context visible, hidden (annotation) and partly hidden (imputation)."""
    import torch

    from screpro.models.blocks import time_embedding
    from screpro.models.scdiff_authors import from_authors

    config, weights, given = _tensors(parts)
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


def _scldm_autoencoder(parts: dict) -> dict[str, np.ndarray]:
    """Latents, mean counts, inverse dispersion and loss per gene, padding visible as in theirs."""
    import torch

    from screpro.models.scldm_authors import autoencoder_from_authors

    config, weights, given = _tensors(parts)
    model = autoencoder_from_authors(weights, heads=config["n_head"], cross_heads=config["n_head_cross"])
    with torch.no_grad():
        z = model.encode_padded(given["context_ids"].long(), given["context_counts"])
        logits, log_theta = model.split(model.logits(z))
        asked = given["gene_ids"].long() - 1  # every cell may ask for genes of its own, in an order of its own
        share = logits.gather(1, asked).softmax(-1)
        mean, theta = given["library_size"].reshape(-1, 1) * share, log_theta.expand_as(logits).gather(1, asked).exp()
        x = given["counts"].to(mean.dtype)
        gamma = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        nll = (theta + x) * torch.log1p(mean / theta) - torch.xlogy(x, mean / theta) - gamma
    return {"z": z.numpy(), "mu": mean.numpy(), "theta": theta.numpy(), "nll": nll.numpy()}


def _scldm_velocity(parts: dict) -> dict[str, np.ndarray]:
    """Conditional, null and guided velocities, and those of one attribute at a time."""
    import torch

    from screpro.models.scldm_authors import velocity_from_authors
    from screpro.samplers.guidance import additive, joint

    config, weights, given = _tensors(parts)
    model = velocity_from_authors(weights, heads=config["n_head"])
    labels = {name.removeprefix("condition/"): value.long() for name, value in given.items() if "/" in name}
    at = given["x"], given["t"]
    with torch.no_grad():
        outputs = {"velocity_null": model(*at), "velocity_conditional": model(*at, labels)}
        outputs |= {f"velocity_{name}_only": model(*at, {name: label}) for name, label in labels.items()}
        for name in parts["output"]:
            if found := re.fullmatch(r"velocity_(additive_)?guided_w([\d.]+)", name):
                weight = float(found[2])
                guided = additive(model, labels, weights=weight) if found[1] else joint(model, labels, weight=weight)
                outputs[name] = guided(*at)
    return {name: value.numpy() for name, value in outputs.items()}


def _perturbdiff(parts: dict) -> dict[str, np.ndarray]:
    """Clean sets with and without covariates, and both streams after the last block."""
    import torch

    from screpro.models.blocks import time_embedding
    from screpro.models.perturbdiff import TIME_WIDTH
    from screpro.models.perturbdiff_authors import from_authors

    config, weights, given = _tensors(parts)
    model = from_authors(weights, heads=config["num_heads"])
    x, t, control, previous = (given[name] for name in ("noised", "t", "control", "self_condition"))
    with torch.no_grad():
        time = model.time(time_embedding(t, TIME_WIDTH))
        condition = time + model.embed_covariates(given["covariate_embedding"].reshape(len(x), -1))
        hidden = model.hidden(x, control=control, condition=condition, previous=previous)
        outputs = {
            "x0_conditional": model.answer(hidden[0], condition),
            "x0_unconditional_no_self_condition": model(x, t, control=control),
            "hidden_perturbed": hidden[0],
            "hidden_control": hidden[1],
        }
    return {name: value.numpy() for name, value in outputs.items()}


def _tensors(parts: dict) -> tuple[dict, dict, dict]:
    """Config, weights and inputs, arrays as tensors."""
    import torch

    weights, given = ({k: torch.from_numpy(v) for k, v in parts[kind].items()} for kind in ("weight", "input"))
    return parts["config"], weights, given


NETWORKS = {
    "embedder.emb": _scdiff,
    "input_layer.gene_embedding.weight": _scldm_autoencoder,
    "input_proj.weight": _scldm_velocity,
    "x_control_embedder.weight": _perturbdiff,
}
"""A weight that only this network has -> what computes its outputs."""
