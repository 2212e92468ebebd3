"""scVI (Lopez et al., Nature Methods 2018, 10.1038/s41592-018-0229-2): the scvi-tools implementation.

A variational autoencoder of counts; the decoder gives every gene's share of a cell's molecules. Answer: that share
times the counted total of the cell, per 10 000 of `size`, averaged over draws from the posterior of the latent state
(the package's own default is a single draw; what is asked for is an expectation).

Defaults are those of scvi-tools (architecture; 400 epochs below 20 000 cells and fewer above), except that all cells
are trained on: the package would set 10 % aside only to log their loss. All genes are modelled, since all are to be
imputed; no batches.
"""

import tempfile

import numpy as np
from scipy import sparse

from screpro.baselines.common import contained_torch, quiet, scvi_seed

__all__ = ["impute"]

TARGET_SUM = 1e4


def impute(
    counts: sparse.csr_matrix,
    *,
    size: np.ndarray,
    seed: int,
    threads: int = 1,
    epochs: int | None = None,
    batch_size: int = 128,
    n_latent: int = 10,
    n_layers: int = 1,
    gene_likelihood: str = "zinb",
    n_samples: int = 10,
) -> np.ndarray:
    """log1p of the expected counts per 10 000.

    Parameters
    ----------
    epochs
        Passes over the cells; None takes the package's rule.
    batch_size
        Cells per step.
    n_latent, n_layers
        Width of the latent space, hidden layers of encoder and decoder.
    gene_likelihood
        "zinb" (the package's default), "nb" or "poisson".
    n_samples
        Draws from the posterior that are averaged.
    """
    with (
        quiet(),
        contained_torch(seed=seed, threads=threads),
        tempfile.TemporaryDirectory() as scratch,
        scvi_seed(seed),
    ):
        import scvi
        from anndata import AnnData

        cells = AnnData(sparse.csr_matrix(counts, dtype=np.float32))
        # batch normalisation cannot take a last batch of one cell: leave it out, another one every epoch
        lonely = cells.n_obs > batch_size and cells.n_obs % batch_size == 1
        scvi.model.SCVI.setup_anndata(cells)
        model = scvi.model.SCVI(cells, n_latent=n_latent, n_layers=n_layers, gene_likelihood=gene_likelihood)
        model.train(
            max_epochs=epochs,
            batch_size=batch_size,
            datasplitter_kwargs={"drop_last": True} if lonely else None,
            train_size=1.0,
            enable_progress_bar=False,
            enable_checkpointing=False,
            logger=False,
            default_root_dir=scratch,
        )
        share = np.zeros(cells.shape, dtype=np.float32)
        for _ in range(n_samples):  # one draw at a time: all at once would not fit for many genes
            share += model.get_normalized_expression(library_size=1, return_numpy=True)
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    return np.log1p(share * (TARGET_SUM / n_samples * total / size).astype(np.float32)[:, None])
