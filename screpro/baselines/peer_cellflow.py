"""CellFlow in its own environment: trained on the cells given, asked for the cells wanted.

Run as a script by ``screpro.baselines.response_packages`` with the Python that ``SCREPRO_CELLFLOW_PYTHON`` names; it
needs ``cellflow-tools`` there and imports nothing of screpro: ``python peer_cellflow.py SETTINGS GIVEN MADE THREADS``.
"""

import json
import os
import sys


def cells(given, settings):
    """Generated cells (n, G) from what ``response_packages`` hands over."""
    import anndata as ad
    import cellflow as cf
    import numpy as np
    import optax

    x = matrix(given, "train")
    perturbation, context, batch = (given[f"train_{name}"] for name in ("perturbation", "context", "batch"))
    # control cells twice: as what flows start from, and as targets of the label of the control
    source = np.flatnonzero(perturbation == 0)
    rows = np.concatenate([source, np.arange(len(x))])
    is_source = np.arange(len(rows)) < len(source)
    components = ad.AnnData(x)
    cf.preprocessing.centered_pca(components, n_comps=settings["components"], keep_centered_data=False)
    train = ad.AnnData(x[rows], obs=labels(perturbation[rows], context[rows], batch[rows], is_source))
    train.obsm["X_pca"] = components.obsm["X_pca"][rows]
    known = {
        name: one_hot(name, np.concatenate([codes, given[f"asked_{name}"]]))
        for name, codes in (("perturbation", perturbation), ("context", context), ("batch", batch))
    }
    train.uns.update(known)
    told = ["context", "batch"] if settings["told_context"] else []

    model = cf.model.CellFlow(train, solver="otfm")
    model.prepare_data(
        sample_rep="X_pca",
        control_key="is_source",
        perturbation_covariates={"perturbation": ["perturbation"]},
        perturbation_covariate_reps={"perturbation": "perturbation"},
        sample_covariates=told,
        sample_covariate_reps={name: name for name in told},
        split_covariates=["place"],
    )
    sizes = [settings["width"]] * settings["layers"]
    model.prepare_model(
        condition_embedding_dim=settings["width"],
        cond_output_dropout=settings["condition_dropout"],
        time_encoder_dims=sizes,
        hidden_dims=sizes,
        decoder_dims=sizes,
        optimizer=optax.adam(settings["learning_rate"]),
        seed=settings["seed"],
    )
    model.train(num_iterations=settings["steps"], batch_size=settings["batch_size"])

    # every condition from all control cells of its context and batch, of which each answer takes its own
    start = matrix(given, "start")
    of_start = given["start_context"], given["start_batch"]
    control = ad.AnnData(start, obs=labels(np.zeros(len(start), int), *of_start, np.ones(len(start), bool)))
    cf.preprocessing.project_pca(control, ref_adata=components)
    control.uns.update(known)
    wanted = labels(*(given[f"asked_{name}"] for name in ("perturbation", "context", "batch")), None)
    wanted["condition"] = wanted["perturbation"].astype(str) + wanted["place"].astype(str)
    places, start_place = wanted["place"].to_numpy(), control.obs["place"].to_numpy()
    rank = np.zeros(len(start), int)  # of a control cell within its place
    for place in np.unique(start_place):
        rank[start_place == place] = np.arange((start_place == place).sum())
    conditions = wanted.drop_duplicates("condition").reset_index(drop=True)
    conditions["is_source"] = False
    found = model.predict(control, covariate_data=conditions, sample_rep="X_pca", condition_id_key="condition")
    after = np.empty((len(wanted), settings["components"]), dtype=np.float32)
    for name in conditions["condition"]:
        own = np.flatnonzero(wanted["condition"].to_numpy() == name)
        after[own] = np.asarray(found[name])[rank[given["asked_start"][own]]]
    assert (start_place[given["asked_start"]] == places).all()
    if settings["keep_rest"]:
        moved = after - control.obsm["X_pca"][given["asked_start"]]
        return start[given["asked_start"]] + moved @ components.varm["PCs"].T
    made = ad.AnnData(np.zeros((len(after), x.shape[1]), np.float32), obsm={"X_pca": after})
    cf.preprocessing.reconstruct_pca(made, ref_adata=components)
    return made.layers["X_recon"]


def labels(perturbation, context, batch, is_source):
    """Columns of text for codes; a place is a context and batch."""
    import pandas as pd

    columns = {"perturbation": text("perturbation", perturbation), "context": text("context", context)}
    columns["batch"] = text("batch", batch)
    columns["place"] = [f"{k} {b}" for k, b in zip(columns["context"], columns["batch"])]  # noqa: B905
    table = pd.DataFrame(columns, index=[str(i) for i in range(len(perturbation))]).astype("category")
    if is_source is not None:
        table["is_source"] = is_source
    return table


def text(name, codes):
    """Names of codes."""
    return [f"{name}{code}" for code in codes]


def one_hot(name, codes):
    """A vector for every code that occurs."""
    import numpy as np

    found = np.unique(codes)
    return dict(zip(text(name, found), np.eye(len(found), dtype=np.float32)))  # noqa: B905


def matrix(given, name):
    """Dense cells (n, G)."""
    import scipy.sparse as sp

    parts = tuple(given[f"{name}_{part}"] for part in ("data", "indices", "indptr"))
    return sp.csr_matrix(parts, shape=tuple(given[f"{name}_shape"])).toarray()


def main():
    settings, source, target, threads = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    if threads == 1:  # XLA reads this when it is imported; more threads come from NPROC
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    import numpy as np

    with np.load(source, allow_pickle=False) as file:
        given = dict(file)
    np.savez(target, cells=np.asarray(cells(given, settings), dtype=np.float32))


if __name__ == "__main__":
    main()
