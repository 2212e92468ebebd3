"""scANVI (Xu et al., Molecular Systems Biology 2021, 10.15252/msb.20209620): the scvi-tools implementation.

scVI on the counts of the training cells, then ``SCANVI.from_scvi_model`` with every training label given, then
prediction of the test cells. Batches enter where there are several and a batch does not fix the type: with one
type per batch, the model would explain the types away. A test cell of an unseen batch is given the commonest
training batch.

Defaults are those of scvi-tools (architecture; 400 epochs below 20 000 cells and fewer above, then 10 for scANVI),
except that all training cells are trained on: the package would set 10 % aside only to log their loss.
``n_top_genes`` keeps highly variable genes (scanpy's "seurat" flavour on the training cells, per batch where
batches are used), as the scvi-tools tutorials advise.
"""

import tempfile

import numpy as np
from scipy import sparse

from screpro.baselines.common import Prediction, contained_torch, from_scores, quiet, scvi_seed
from screpro.tasks.cells import Cells

__all__ = ["fit_predict", "usable_batches"]

UNLABELLED = "unlabelled"


def usable_batches(batch: np.ndarray, cell_type: np.ndarray) -> bool:
    """Whether batches may be modelled: more than one, and at least one of them holds several types."""
    n_batches = len(np.unique(batch))
    n_pairs = len(np.unique(np.stack([batch, cell_type]), axis=1).T)
    return n_batches > 1 and n_pairs > n_batches


def fit_predict(
    train: Cells,
    test: Cells,
    *,
    n_types: int,
    seed: int,
    threads: int = 1,
    epochs: int | None = None,
    scanvi_epochs: int | None = None,
    batch_size: int = 128,
    n_top_genes: int | None = None,
    n_latent: int = 10,
    n_layers: int = 1,
    gene_likelihood: str = "zinb",
) -> Prediction:
    """Train scVI and scANVI on `train`, classify `test`. Scores are the classifier's probabilities.

    Parameters
    ----------
    epochs
        Epochs of scVI; None takes the package's rule.
    scanvi_epochs
        Epochs of scANVI after it; None takes the package's rule.
    batch_size
        Cells per step of both.
    n_top_genes
        Highly variable genes to keep; None or more than there are keeps all.
    n_latent, n_layers
        Width of the latent space, hidden layers of encoder and decoder.
    gene_likelihood
        "zinb" (the package's default), "nb" or "poisson".
    """
    with (
        quiet(),
        contained_torch(seed=seed, threads=threads),
        tempfile.TemporaryDirectory() as scratch,
        scvi_seed(seed),
    ):
        import scvi

        batched = usable_batches(train.batch, train.cell_type)
        genes = _variable_genes(train, n_top_genes, batched=batched)
        known, query = _anndata(train, genes), _anndata(test, genes)
        names = np.array([f"{code:06d}" for code in range(n_types)])
        known.obs["label"] = names[train.cell_type]
        query.obs["label"] = UNLABELLED
        batch_key = "batch" if batched else None
        if batched:
            values, counts = np.unique(train.batch, return_counts=True)
            stand_in = values[counts.argmax()]
            known.obs["batch"] = train.batch.astype(str)
            query.obs["batch"] = np.where(np.isin(test.batch, values), test.batch, stand_in).astype(str)
        # batch normalisation cannot take a last batch of one cell: leave it out, another one every epoch
        lonely = known.n_obs > batch_size and known.n_obs % batch_size == 1
        how = dict(
            batch_size=batch_size,
            datasplitter_kwargs={"drop_last": True} if lonely else None,
            train_size=1.0,
            enable_progress_bar=False,
            enable_checkpointing=False,
            logger=False,
            default_root_dir=scratch,
        )
        scvi.model.SCVI.setup_anndata(known, batch_key=batch_key, labels_key="label")
        base = scvi.model.SCVI(known, n_latent=n_latent, n_layers=n_layers, gene_likelihood=gene_likelihood)
        base.train(max_epochs=epochs, **how)
        model = scvi.model.SCANVI.from_scvi_model(base, unlabeled_category=UNLABELLED)
        model.train(max_epochs=scanvi_epochs, **how)
        probability = model.predict(query, soft=True)
    codes = probability.columns.astype(int).to_numpy()
    return from_scores(probability.to_numpy(), codes, n_types=n_types)


def _variable_genes(train: Cells, n_top_genes: int | None, *, batched: bool) -> np.ndarray:
    """Indices of the genes to model, ascending: seen in training, and highly variable if asked for."""
    import pandas as pd
    import scanpy as sc
    from anndata import AnnData

    seen = np.flatnonzero(train.counts.getnnz(axis=0) > 0)
    if n_top_genes is None or n_top_genes >= len(seen):
        return seen
    cells = AnnData(sparse.csr_matrix(train.x[:, seen]))
    cells.obs["batch"] = pd.Categorical(train.batch.astype(str))
    kept = sc.pp.highly_variable_genes(
        cells, n_top_genes=n_top_genes, flavor="seurat", batch_key="batch" if batched else None, inplace=False
    )
    return seen[kept["highly_variable"].to_numpy()]


def _anndata(cells: Cells, genes: np.ndarray):
    from anndata import AnnData

    counts = AnnData(sparse.csr_matrix(cells.counts[:, genes], dtype=np.float32))
    counts.obs_names = [str(i) for i in range(counts.n_obs)]
    counts.var_names = [str(cells.genes[g]) for g in genes]
    return counts
