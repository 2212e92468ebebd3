"""scDiff as an imputer (section 4.1.2, appendix D.2): trained on the matrix with holes, asked for the holes.

There are no labels: the only condition is the context, the visible part of the cell. Training sees the masked matrix
alone, hidden entries as zeros, and every cell; the same cells are then imputed.

Two ways to answer. **One step**: one network call at t = 0 on the masked cell plus the noise of level 1, which is what
the authors' first code comes down to, because it overwrote the whole cell after every step; Table 2a was printed then.
**Inpainting**: all T steps, the visible entries overwritten by noised copies of themselves after every step
(``samplers.inpainting``), which is what the text describes and the later code does.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from screpro.data.masks import ImputationMask
from screpro.losses import DenoisingLoss
from screpro.models.blocks import time_embedding
from screpro.models.scdiff import ScDiff
from screpro.processes.gaussian import scaled_linear
from screpro.tasks import denoiser
from screpro.tasks.denoiser import DenoiserSettings

__all__ = ["PRESETS", "Imputer", "imputer_grid", "one_step", "train_imputer"]

PRESETS: dict[str, DenoiserSettings] = {
    # the paper's own, appendix E.1 and Table 3: rate 1e-8 x 2048, constant
    "paper": DenoiserSettings(
        width=512, depth=6, heads=8, epochs=3000, batch_size=2048, learning_rate=2.048e-5, schedule="constant"
    ),
    # narrow and fast, which keeps a few hundred cells from being learned by heart
    "laptop": DenoiserSettings(width=64, epochs=120, learning_rate=3e-3),
    "ci": DenoiserSettings(epochs=30),
}
"""Starting points by tier. `drop` has no effect: there are no labels to drop."""


@dataclass
class Imputer:
    """A trained scDiff and what training took."""

    model: ScDiff
    settings: DenoiserSettings
    seconds: float
    losses: list[float]

    def one_step(self, mask: ImputationMask, *, seed: int) -> np.ndarray:
        """Predicted log-normalised values of the hidden entries, (hidden.nnz,)."""
        return one_step(self.model, mask.x, mask.hidden, seed=seed)

    def late(self, mask: ImputationMask, *, calls: int, seed: int) -> np.ndarray:
        """Mean of `calls` answers to pure noise at t = 999, where the context is all there is, (hidden.nnz,)."""
        last = scaled_linear().steps - 1
        seeds = [seed + 1_000_003 * call for call in range(calls)]
        answers = [one_step(self.model, mask.x, mask.hidden, seed=each, level=last, t=last) for each in seeds]
        return np.mean(answers, axis=0)

    def inpaint(self, mask: ImputationMask, *, seed: int) -> np.ndarray:
        """One sample of the hidden entries given the visible ones, (hidden.nnz,)."""
        from screpro.samplers.inpainting import inpaint

        return inpaint(self.model, mask.x, mask.hidden, conditions={}, seed=seed)


def train_imputer(
    x: sp.csr_matrix,
    settings: DenoiserSettings,
    *,
    seed: int,
    threads: int | None = None,
    checkpoint: Path | None = None,
    title: str = "scDiff",
) -> Imputer:
    """Train scDiff on the masked matrix `x` (n, G); the target at a hidden entry is the zero that stands there."""
    model = denoiser.build(x.shape[1], settings, seed=seed)
    loss = DenoisingLoss(x, schedule=scaled_linear(), conditions={}, empty_context=settings.empty_context)
    done = denoiser.train(model, loss, settings, seed=seed, threads=threads, checkpoint=checkpoint, title=title).fit
    return Imputer(model, settings, done.seconds, done.losses)


@torch.no_grad()
def one_step(
    model: ScDiff,
    visible: sp.csr_matrix,
    hidden: sp.csr_matrix,
    *,
    seed: int,
    level: int = 1,
    t: int = 0,
    chunk: int = 512,
) -> np.ndarray:
    """One network call at step `t` on the masked cells with the noise of `level`; all of the visible part as context.

    Parameters
    ----------
    visible, hidden
        (n, G) log-normalised values with hidden entries zero, and bool of the hidden entries.
    seed
        Of the noise, whose standard deviation at level 1 is 0.014.
    level, t
        The authors' last step: they leave a copy noised to level 1 to be denoised at step 0.
    chunk
        Cells that are dense at a time.

    Returns
    -------
    np.ndarray
        (hidden.nnz,) float32 predictions in the order of `hidden`.
    """
    device = model.head.weight.device
    schedule = scaled_linear().to(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    out = np.empty(hidden.nnz, dtype=np.float32)
    for first in range(0, visible.shape[0], chunk):
        rows = slice(first, first + chunk)
        x = torch.as_tensor(visible[rows].toarray(), dtype=torch.float32, device=device)
        noise = torch.randn(x.shape, generator=generator, device=device)
        noisy = schedule.signal[level] * x + schedule.noise[level] * noise
        step = torch.full((len(x),), t, device=device)
        h = model.embedder(noisy) + time_embedding(step, model.config.width)
        predicted = model.decode(model.encode(h, model.condition_tokens(x, {})), None).cpu().numpy()
        asked = hidden[rows]
        cells = np.repeat(np.arange(asked.shape[0]), np.diff(asked.indptr))
        out[hidden.indptr[first] : hidden.indptr[first] + asked.nnz] = predicted[cells, asked.indices]
    return out


def imputer_grid(base: DenoiserSettings) -> list[DenoiserSettings]:
    """Settings of scDiff to try on validation entries: as many as the baselines have at most.

    Width, rate and length of training matter most: too short and cells are not told apart, too long and the holes are
    learned by heart. A high rate puts that point off, so a longer training comes with a higher rate.
    """
    return [
        base,
        replace(base, epochs=max(1, base.epochs // 2)),
        replace(base, epochs=2 * base.epochs, learning_rate=2 * base.learning_rate),
        replace(base, width=2 * base.width),
    ]
