"""STATE and CellFlow as published: their own packages, trained from scratch on the same cells (two adapters).

``arc-state`` (Adduri et al. 2025) and ``cellflow-tools`` (Klein et al. 2025) ask for versions that differ from ours, so
they run in environments of their own. A variable names the Python of each; where it is not set, it is not run:

    SCREPRO_ARC_STATE_PYTHON    python -m venv arc       arc/bin/pip install arc-state==0.11.1
    SCREPRO_CELLFLOW_PYTHON     python -m venv cellflow  cellflow/bin/pip install cellflow-tools==0.0.9 requests

There the scripts ``peer_arc_state.py`` and ``peer_cellflow.py`` call the package as its manual says. Cells and codes of
their labels go there, generated cells come back (``screpro.second_python``). No weights are downloaded.

Control cells are handed over with the context and batch that they serve: where a context and batch has none of its own,
those that ``Populations.control_pools`` lends it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from screpro.baselines.response_cells import nonnegative
from screpro.baselines.responses import Asked, controls_for
from screpro.errors import ScreproError
from screpro.second_python import missing as missing_there
from screpro.second_python import run_script

if TYPE_CHECKING:
    from screpro.data.populations import Populations

__all__ = ["PACKAGES", "Package", "arc_state", "cellflow_tools", "missing"]


class Package(NamedTuple):
    """A published package that runs elsewhere."""

    requirement: str  # as pip takes it, with what the package imports without asking for it
    module: str  # that is imported there
    variable: str  # environment variable with its Python
    script: str  # beside this file


PACKAGES = {
    "arc_state": Package("arc-state==0.11.1", "state", "SCREPRO_ARC_STATE_PYTHON", "peer_arc_state.py"),
    "cellflow_tools": Package(
        "cellflow-tools==0.0.9 requests", "cellflow", "SCREPRO_CELLFLOW_PYTHON", "peer_cellflow.py"
    ),
}
"""Package of every method here."""


def missing(name: str) -> str | None:
    """Why method `name` cannot be run, or None; None as well for a method that needs no other Python."""
    return missing_there(PACKAGES[name].variable, PACKAGES[name].module) if name in PACKAGES else None


def arc_state(
    train: "Populations",
    *,
    asked: Asked,
    controls: "Populations",
    seed: int,
    threads: int = 1,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    set_size: int = 32,
    steps: int = 1200,
    batch_size: int = 4,
    learning_rate: float = 1e-3,
) -> np.ndarray:
    """Cells of STATE's transition model, ``state tx train`` and ``state tx infer``, (n, G).

    The network of the package at sizes of a laptop, by default those of `state_like`: a set of control cells of a
    context and batch is turned into a set of perturbed ones, the loss is their energy distance. Inputs and outputs are
    the genes of the panel, perturbations are one-hot. The control is a perturbation like any other. In this gene space
    the package adds the control cell inside the network and not to its answer, so that expression itself has to be
    learned: it needs more steps than `state_like`, which starts from "nothing changes".

    Parameters
    ----------
    train, asked, controls, seed, threads
        As of ``responses.run``. The control cells that answers start from are drawn by the package.
    width, layers, heads
        Of the transformer; the width is a multiple of the heads.
    set_size, batch_size, steps
        Cells in a set, sets in a step, and steps of training.
    learning_rate
        Of Adam.

    Raises
    ------
    ScreproError
        Sizes that do not fit, no Python is named, or the package fails.
    """
    if min(width, layers, heads, set_size, steps, batch_size) < 1 or width % (2 * heads):
        raise ScreproError(
            "Sizes are at least 1, and the width is a multiple of twice the heads.",
            got=f"{width=}, {layers=}, {heads=}, {set_size=}, {steps=}, {batch_size=}",
            fix="for example width=128, heads=4",
        )
    settings = {
        "width": width, "layers": layers, "heads": heads, "set_size": set_size, "steps": steps,
        "batch_size": batch_size, "learning_rate": learning_rate,
    }  # fmt: skip
    given = _files(train, asked, controls, seed)
    return _made("arc_state", settings, given, seed=seed, threads=threads)


def cellflow_tools(
    train: "Populations",
    *,
    asked: Asked,
    controls: "Populations",
    seed: int,
    threads: int = 1,
    components: int = 50,
    width: int = 256,
    layers: int = 3,
    condition_dropout: float = 0.0,
    told_context: bool = True,
    keep_rest: bool = True,
    steps: int = 16_000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
) -> np.ndarray:
    """Cells of CellFlow, ``cellflow.model.CellFlow`` with optimal-transport flow matching, (n, G).

    The flow lives in principal components and carries control cells of a context and batch to perturbed ones. The
    package knows no perturbation "control": here control cells are targets as well, under a label of their own, so that
    they can be asked for. Training cells are drawn by the package with a seed of its own: ours sets the weights
    and the control cells that answers start from.

    A step of the package draws cells of ONE condition, where `cellflow_like` draws eight sets of 32, each of a
    condition of its own. As many cells in batches of 256 leave the package an eighth of the draws (R² of means .71 on
    kang_1k, .96 with batches of 32). So a batch is a set here, and there are eight times as many steps.

    Parameters
    ----------
    train, asked, controls, seed, threads
        As of ``responses.run``. The cells of a condition start from different control cells.
    components
        Principal components of the training cells.
    width, layers
        Of each of the three parts of the velocity network.
    condition_dropout
        Of the encoded condition; the package's default of 0.9 is for networks of 2 048.
    told_context
        Whether the network is told context and batch, besides seeing the cell it starts from.
    keep_rest
        Whether what components leave out of a control cell stays with it, as in `cellflow_like`. Otherwise cells are
        reconstructed from components alone, as the package does.
    steps, batch_size
        Steps, and pairs of cells of the one condition of each.
    learning_rate
        Of Adam.

    Raises
    ------
    ScreproError
        Sizes that do not fit, no Python is named, or the package fails.
    """
    if min(components, width, layers, steps, batch_size) < 1 or not 0 <= condition_dropout < 1:
        raise ScreproError(
            "Sizes and steps are at least 1, and a dropout rate is below 1.",
            got=f"{components=}, {width=}, {layers=}, {steps=}, {batch_size=}, {condition_dropout=}",
            fix="for example components=50, width=256",
        )
    settings = {
        "components": min(components, len(train.genes) - 1, len(train) - 1), "width": width, "layers": layers,
        "condition_dropout": condition_dropout, "told_context": told_context, "keep_rest": keep_rest, "steps": steps,
        "batch_size": batch_size, "learning_rate": learning_rate,
    }  # fmt: skip
    given = _files(train, asked, controls, seed)
    made = _made("cellflow_tools", settings, given, seed=seed, threads=threads)
    return nonnegative(made, asked) if keep_rest else made


def _made(name: str, settings: dict[str, Any], given: dict[str, np.ndarray], *, seed: int, threads: int) -> np.ndarray:
    """What the package answers, (n, G)."""
    package = PACKAGES[name]
    rule = f"{name} runs {package.requirement.split()[0]} with the Python that {package.variable} names."
    fix = f"python -m venv FOLDER; FOLDER/bin/pip install {package.requirement}; {package.variable}=FOLDER/bin/python"
    _, results = run_script(
        Path(__file__).parent / package.script, json.dumps(settings | {"seed": seed}),
        given=given, variable=package.variable, threads=threads, rule=rule, fix=fix,
    )  # fmt: skip
    made, wanted = results.get("cells"), (len(given["asked_perturbation"]), int(given["train_shape"][1]))
    if made is None or made.shape != wanted or not np.isfinite(made).all():
        got = "no cells" if made is None else f"{made.shape}" if made.shape != wanted else "values that are not finite"
        raise ScreproError(f"{name} answers with finite cells of shape {wanted}.", got=got, fix="try fewer steps")
    return made.astype(np.float32)


def _files(train: "Populations", asked: Asked, controls: "Populations", seed: int) -> dict[str, np.ndarray]:
    """Arrays that a script is given.

    Names begin with ``train``, ``start`` (control cells) or ``asked``. A matrix is its ``_data``, ``_indices``,
    ``_indptr`` and ``_shape``; labels are codes, perturbation 0 is the control. ``asked_start`` is the row in ``start``
    of a control cell for each cell asked for.
    """
    pools, which = train.control_pools(train.context, train.batch)
    perturbed = np.flatnonzero(~train.is_control)
    served = [_first_of(which, codes, len(pools), pools) for codes in (train.context, train.batch)]
    rows = np.concatenate([perturbed, *pools])
    labels = {
        "train_perturbation": train.perturbation[rows],
        "train_context": np.concatenate([train.context[perturbed], served[0]]),
        "train_batch": np.concatenate([train.batch[perturbed], served[1]]),
    }
    own, of_asked = controls.control_pools(asked.context, asked.batch)
    labels |= {"asked_perturbation": asked.perturbation, "asked_context": asked.context, "asked_batch": asked.batch}
    labels |= {
        f"start_{name}": _first_of(of_asked, codes, len(own), own)
        for name, codes in (("context", asked.context), ("batch", asked.batch))
    }
    taken = controls_for(controls, asked, seed=seed)
    before = np.cumsum([0, *map(len, own)])
    starts = np.empty(len(taken), dtype=np.int64)
    for number, pool in enumerate(own):  # pools of a few pairs; their rows are ascending
        cells = of_asked == number
        starts[cells] = before[number] + np.searchsorted(pool, taken[cells])
    matrices = _matrix("train", train.x[rows]) | _matrix("start", controls.x[np.concatenate(own)])
    return matrices | labels | {"asked_start": starts}


def _first_of(which: np.ndarray, codes: np.ndarray, n_pools: int, pools: list[np.ndarray]) -> np.ndarray:
    """The code that every pool belongs to, once for each of its cells."""
    first = np.empty(n_pools, dtype=np.int64)
    first[which] = codes
    return np.repeat(first, list(map(len, pools)))


def _matrix(name: str, x: sp.csr_matrix) -> dict[str, np.ndarray]:
    return {
        f"{name}_data": x.data, f"{name}_indices": x.indices, f"{name}_indptr": x.indptr,
        f"{name}_shape": np.array(x.shape),
    }  # fmt: skip
