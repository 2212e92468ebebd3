"""What the latent flow is for: cells from a learned prior beside cells from N(0, I), and their references (N1, N2).

Everything here is without labels, latents and library sizes alike: N(0, I) cannot be told a cell type.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from screpro.data.preprocess import log_cp10k
from screpro.kernels.pca import pca
from screpro.metrics.catalogue import catalogue
from screpro.models.scldm import AutoEncoder
from screpro.records import Run
from screpro.tasks import autoencoder
from screpro.tasks.autoencoder_scores import draw_gaussian, gaussian_law
from screpro.tasks.flow import decode_counts, sample_latents, train_flow
from screpro.tasks.library_size import LibrarySizes

if TYPE_CHECKING:
    from screpro.tasks.autoencoder_ablations import Ablation, Panel

__all__ = ["DISTANCES", "add_generation", "distances", "generated_cells", "shuffled_genes"]

DISTANCES = ("w2_exact", "mmd2_rbf_sum5", "frechet_distance")

COMPONENTS = 30


def add_generation(
    run: Run,
    model: AutoEncoder,
    panel: "Panel",
    protocol: "Ablation",
    *,
    method: str,
    seed: int,
    unit: dict[str, Any],
) -> None:
    """Train a flow on the network's latents, draw as many cells as there are test cells, and add their distances.

    The default ("scldm") leaves rows under "likelihood" and "prior", with N(0, I) and two references beside the
    latter: training cells, the best a generator can hope for, and training cells with every gene shuffled.
    """
    sets = generated_cells(model, panel, protocol, seed=seed)
    drawn = {"likelihood": {method: sets["flow"]}}
    if method == "scldm":
        rng = np.random.default_rng([seed, 1])
        pick = rng.permutation(panel.train.shape[0])[: panel.test.shape[0]]
        drawn["prior"] = {
            "scldm": sets["flow"],
            "normal_prior": sets["normal"],
            "train_cells": panel.train[pick],
            "shuffled_genes": shuffled_genes(panel.train[pick], rng=rng),
        }
    for variant, made in drawn.items():
        for name, cells in made.items():
            for metric, value in distances(panel.test, cells).items():
                run.add(
                    **unit,
                    item={"likelihood": "N1", "prior": "N2"}[variant],
                    method=name,
                    metric=metric,
                    metric_variant=variant,
                    n_real=panel.test.shape[0],
                    n_generated=cells.shape[0],
                    n_genes=panel.test.shape[1],
                    value=value,
                    direction="lower",
                )


def generated_cells(model: AutoEncoder, panel: "Panel", protocol: "Ablation", *, seed: int) -> dict[str, sp.csr_matrix]:
    """As many cells as test cells, decoded from a flow on the latents ("flow") and from N(0, I) ("normal").

    Both start from the same noise and get the same library sizes, draws of one log-normal law of the training cells:
    what differs is whether the flow has moved the noise.
    """
    latents = autoencoder.encode(model, panel.train)
    flow = train_flow(latents, {}, protocol.flow, classes={}, seed=seed)
    n, shape = panel.test.shape[0], tuple(latents.shape[1:])
    sampled = sample_latents(
        flow.network, {}, n=n, shape=shape, method=protocol.sampler, steps=protocol.steps, seed=seed
    )
    normal = torch.randn((n, *shape), generator=torch.Generator().manual_seed(seed))
    totals = np.asarray(panel.train.sum(1)).ravel()
    library = LibrarySizes.fit(totals, {}).draw_pooled(n, rng=np.random.default_rng([seed, 2]))
    return {name: _cells(model, z, library, seed=seed) for name, z in (("flow", sampled), ("normal", normal))}


def _cells(model: AutoEncoder, z: Tensor, library: np.ndarray, *, seed: int) -> sp.csr_matrix:
    """Counts drawn for latents; for a Gaussian network values per 10 000, which know no library size."""
    rng = np.random.default_rng([seed, 3])
    if model.config.likelihood == "gaussian":
        return sp.csr_matrix(draw_gaussian(*gaussian_law(model, z), rng=rng))
    device = model.head.weight.device
    return decode_counts(lambda own, size: model.decode(own.to(device), size.to(device)), z, library, rng=rng)


def distances(real: sp.csr_matrix, generated: sp.csr_matrix) -> dict[str, float]:
    """W2, MMD^2 and FD of log-normalised cells on 30 principal components of the real ones (protocol 4.2).

    Parameters
    ----------
    real, generated
        (n, G) and (n', G) counts, or any values proportional to expression.
    """
    x, y = log_cp10k(sp.csr_matrix(real)), log_cp10k(sp.csr_matrix(generated))
    fitted = pca(x, max(1, min(COMPONENTS, x.shape[0] - 1, x.shape[1] - 1)))
    points = [cells @ fitted.axes - fitted.mean @ fitted.axes for cells in (x, y)]
    return {name: float(catalogue()[name].function(*points)) for name in DISTANCES}


def shuffled_genes(counts: sp.csr_matrix, *, rng: np.random.Generator) -> sp.csr_matrix:
    """Every gene's counts dealt out to other cells at random: the law of each gene kept, relations gone."""
    dense = counts.toarray()
    return sp.csr_matrix(rng.permuted(dense, axis=0))
