"""Other samples of a trained scLDM: real latents decoded, sizes read off latents, a label drawn first."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from screpro.data.preprocess import log_cp10k
from screpro.models.scldm import AutoEncoder
from screpro.tasks import autoencoder as stage_one
from screpro.tasks.flow import decode_counts, sample_latents
from screpro.tasks.generation import GenerationCells, same_labels
from screpro.tasks.generation_training import ScLdm
from screpro.tasks.library_size import SizesOfLatents

__all__ = ["Variant", "real_decoded", "size_and_label"]


class Variant(NamedTuple):
    """Samples that are drawn in another way than the page's, from the same networks."""

    item: str  # of the result rows
    name: str
    real: bool  # latents of real cells, not drawn ones
    samples: list[sp.csr_matrix]  # log-normalised: without a condition and, where there is one, with the labels wanted


def real_decoded(cells: GenerationCells, own: ScLdm, model: AutoEncoder, *, seed: int) -> list[sp.csr_matrix]:
    """Real latents in place of drawn ones: those of any training cells, and of cells with the labels wanted.

    `model` encodes and decodes: that of `own`, or another trained on the same cells.
    """
    rng, labels, library = np.random.default_rng(seed), cells.test_labels, own.generator.library
    latents = own.latents if model is own.generator.autoencoder else stage_one.encode(model, cells.train)
    anyone, same = _real_rows(cells, rng)
    pooled = library.draw_pooled(len(labels), rng=rng)
    by_label = library.draw({"cell_type": labels}, rng=rng)
    return [_decode(model, latents[of], size, rng) for of, size in ((anyone, pooled), (same, by_label))]


def size_and_label(cells: GenerationCells, own: ScLdm, *, steps: int, seed: int) -> Iterator[Variant]:
    """X-24, library sizes read off the latents, drawn and real; X-25, a label drawn first where none is given."""
    generator, test, n = own.generator, cells.test_labels, len(cells.test_labels)
    law = SizesOfLatents.fit(own.latents, np.asarray(cells.train.sum(1)).ravel())
    rng = np.random.default_rng(seed)

    def draw(labels: np.ndarray, weight: float) -> Tensor:
        return sample_latents(
            generator.network, {"cell_type": labels}, n=n, shape=tuple(own.latents.shape[1:]), weight=weight,
            steps=steps, seed=seed,
        )  # fmt: skip

    def decode(z: Tensor, sizes: np.ndarray) -> sp.csr_matrix:
        return _decode(generator.autoencoder, z, sizes, rng)

    real = [own.latents[rows] for rows in _real_rows(cells, rng)]
    for is_real, latents in ((False, [draw(test, 0.0), draw(test, 1.0)]), (True, real)):
        samples = [decode(z, law.draw(z, rng=rng)) for z in latents]
        yield Variant("X-24", "sizes of latents", is_real, samples)
    first = cells.train_labels[rng.integers(cells.train.shape[0], size=n)]
    latents = draw(first, 1.0)
    sizes = {
        "": generator.library.draw({"cell_type": first}, rng=rng),
        ", sizes of latents": law.draw(latents, rng=rng),
    }
    for name, each in sizes.items():
        yield Variant("X-25", f"label drawn first{name}", False, [decode(latents, each)])


def _real_rows(cells: GenerationCells, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Training cells: any of them, and others with the labels wanted."""
    anyone = rng.integers(cells.train.shape[0], size=len(cells.test_labels))
    return anyone, same_labels(cells.train_labels, cells.test_labels, rng=rng, replace=False)


def _decode(model: AutoEncoder, z: Tensor, size: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Log-normalised counts drawn for latents and library sizes."""
    device = model.head.weight.device
    return log_cp10k(decode_counts(lambda z, s: model.decode(z.to(device), s.to(device)), z, size, rng=rng))
