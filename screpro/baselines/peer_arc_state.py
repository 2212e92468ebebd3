"""STATE's transition model in its own environment: trained on the cells given, asked for the cells wanted.

Run as a script by ``screpro.baselines.response_packages`` with the Python that ``SCREPRO_ARC_STATE_PYTHON`` names; it
needs ``arc-state`` there and imports nothing of screpro. ``python peer_arc_state.py SETTINGS GIVEN MADE THREADS``.

The package's command line does the work, ``state tx train`` and ``state tx infer``, on files in the folder of MADE. A
"cell type" there is a context and batch: the control set of a perturbed set is drawn from its own.
"""

import json
import sys
from pathlib import Path

CONTROL = "control"


def cells(given, settings, folder):
    """Generated cells (n, G) from what ``response_packages`` hands over."""
    import anndata as ad
    import numpy as np

    (folder / "train").mkdir()
    table = labels(*(given[f"train_{name}"] for name in ("perturbation", "context", "batch")))
    train = matrix(given, "train")
    ad.AnnData(train, obs=table, obsm={"X_hvg": train}).write_h5ad(folder / "train" / "cells.h5ad")
    data = f'[datasets]\ncells = "{(folder / "train").as_posix()}"\n\n[training]\ncells = "train"\n'
    (folder / "data.toml").write_text(data, encoding="utf-8")
    width, heads = settings["width"], settings["heads"]
    state(
        "tx", "train", "model=state", f"output_dir={folder.as_posix()}", "name=run", "use_wandb=false",
        f"data.kwargs.toml_config_path={(folder / 'data.toml').as_posix()}", "data.kwargs.embed_key=X_hvg",
        "data.kwargs.output_space=gene", "data.kwargs.pert_col=perturbation", "data.kwargs.cell_type_key=place",
        "data.kwargs.batch_col=batch", f"data.kwargs.control_pert={CONTROL}", "data.kwargs.num_workers=0",
        f"+data.kwargs.random_seed={settings['seed']}", f"training.train_seed={settings['seed']}",
        f"training.max_steps={settings['steps']}", f"training.val_freq={settings['steps']}",
        f"training.batch_size={settings['batch_size']}", f"training.lr={settings['learning_rate']}",
        f"model.kwargs.cell_set_len={settings['set_size']}", f"model.kwargs.hidden_dim={width}",
        f"model.kwargs.transformer_backbone_kwargs.intermediate_size={4 * width}",
        f"model.kwargs.transformer_backbone_kwargs.num_hidden_layers={settings['layers']}",
        f"model.kwargs.transformer_backbone_kwargs.num_attention_heads={heads}",
        f"model.kwargs.transformer_backbone_kwargs.num_key_value_heads={heads}",
        f"model.kwargs.transformer_backbone_kwargs.head_dim={width // heads}",
    )  # fmt: skip

    # the cells wanted, of which only labels count, and the control cells that answers start from. A control cell that
    # is wanted brings the values of one of these, as every cell with that label may be started from
    start = matrix(given, "start")
    wanted = np.where((given["asked_perturbation"] == 0)[:, None], start[given["asked_start"]], 0)
    stacked = np.concatenate([wanted, start]).astype(np.float32)
    none = np.zeros(len(start), int)
    codes = [given["asked_perturbation"], given["asked_context"], given["asked_batch"]]
    codes = [np.concatenate(pair) for pair in zip(codes, (none, given["start_context"], given["start_batch"]))]  # noqa: B905
    ad.AnnData(stacked, obs=labels(*codes), obsm={"X_hvg": stacked}).write_h5ad(folder / "asked.h5ad")
    state(
        "tx", "infer", "--model-dir", str(folder / "run"), "--adata", str(folder / "asked.h5ad"),
        "--embed-key", "X_hvg", "--pert-col", "perturbation", "--celltype-col", "place", "--batch-col", "batch",
        "--control-pert", CONTROL,
        "--seed", str(settings["seed"]), "--output", str(folder / "made.npy"), "--quiet",
    )  # fmt: skip
    return np.load(folder / "made.npy", allow_pickle=False)[: len(wanted)]


def state(*words):
    """The package's command line, in this process."""
    from state.__main__ import main

    before, sys.argv = sys.argv, ["state", *words]
    try:
        main()
    finally:
        sys.argv = before


def labels(perturbation, context, batch):
    """Columns of text for codes; a place is a context and batch."""
    import pandas as pd

    names = [CONTROL if code == 0 else f"perturbation{code}" for code in perturbation]
    places = [f"context{k}_batch{b}" for k, b in zip(context, batch)]  # noqa: B905
    columns = {"perturbation": names, "place": places, "batch": [f"batch{b}" for b in batch]}
    return pd.DataFrame(columns, index=[str(i) for i in range(len(names))]).astype("category")


def matrix(given, name):
    """Dense cells (n, G)."""
    import scipy.sparse as sp

    parts = tuple(given[f"{name}_{part}"] for part in ("data", "indices", "indptr"))
    return sp.csr_matrix(parts, shape=tuple(given[f"{name}_shape"])).toarray()


def main():
    settings, source, target, threads = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    with np.load(source, allow_pickle=False) as file:
        given = dict(file)
    np.savez(target, cells=cells(given, settings, Path(target).parent))


if __name__ == "__main__":
    main()
