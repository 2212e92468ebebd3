"""The noise as training target, which scDiff rejects (section 2.2, claim S14).

Two networks that predict epsilon where scDiff predicts x_0. Both take the place of an ``ScDiff`` in training: they
have its weights and its ``denoising_error``, in other units.

``NoiseScDiff``
    The last layer answers with epsilon. That answer has to pass a state as wide as the network, while epsilon is
    independent noise in every gene: of G directions at most `width` can be predicted. The cell that follows,
    ``(x_t - sqrt(1 - alpha_bar) epsilon) / sqrt(alpha_bar)``, keeps the rest, amplified.
``SkipNoiseScDiff``
    The same target with x_t led around the network: epsilon = (x_t - sqrt(alpha_bar) F) / sqrt(1 - alpha_bar), where F
    is the last layer's answer. The squared error in epsilon is then exactly alpha_bar / (1 - alpha_bar) times the
    squared error of F as a clean cell: predicting the noise is predicting the cell, weighted towards small t.
"""

from typing import Any

import torch
from torch import Tensor

from screpro.losses import denoising_error
from screpro.models.blocks import time_embedding
from screpro.models.scdiff import ScDiff, Tokens
from screpro.processes.gaussian import Schedule
from screpro.sparse import CellMatrix, SparseCells, matmul

__all__ = ["NoiseScDiff", "SkipNoiseScDiff", "clean_from_noise", "predict_clean"]


def clean_from_noise(x_t: Tensor, noise: Tensor, t: Tensor, *, schedule: Schedule) -> Tensor:
    """x_0 that gives `x_t` (B, G) with this `noise` (B, G) at steps `t` (B,): eq. 6 solved for x_0."""
    return (x_t - schedule.noise[t, None] * noise) / schedule.signal[t, None]


class NoiseScDiff(ScDiff):
    """scDiff whose ``forward`` answers with the noise in x_t instead of the clean cell."""

    def denoising_error(
        self,
        cells: SparseCells,
        t: Tensor,
        noise: Tensor,
        *,
        schedule: Schedule,
        context: CellMatrix,
        conditions: dict[str, Tensor],
        batch: Tensor | None,
    ) -> Tensor:
        """Squared error of the predicted noise per cell, mean over genes: (B,). Arguments as ``losses``'."""
        x_t = schedule.diffuse(cells.matrix().dense, t, noise)
        h = self.embedder(x_t) + time_embedding(t, self.config.width)
        seen = matmul(context, self.context.embedder.table)
        lists = [self.context.tokens(self.context.embedder.after_table(seen))]
        lists += [self.conditioners[name](conditions[name]) for name in self.conditioners]
        answer = self.decode(self.encode(h, [list(block) for block in zip(*lists, strict=True)]), batch)
        return (answer - noise).square().mean(-1)


class SkipNoiseScDiff(ScDiff):
    """scDiff trained on the error in the noise, with x_t led around it; ``forward`` answers with the clean cell."""

    def denoising_error(self, cells: SparseCells, t: Tensor, noise: Tensor, **others: Any) -> Tensor:
        """Squared error of the implied noise per cell, mean over genes: (B,). Arguments as ``losses``'."""
        schedule: Schedule = others["schedule"]
        return schedule.snr[t] * denoising_error(self, cells, t, noise, **others)


@torch.no_grad()
def predict_clean(
    model: ScDiff,
    x_t: Tensor,
    t: Tensor,
    *,
    tokens: list[list[Tokens]],
    batch: Tensor | None,
    schedule: Schedule,
) -> Tensor:
    """Predicted clean cell (B, G), whatever the target of `model`; `tokens` from ``condition_tokens``."""
    h = model.embedder(x_t) + time_embedding(t, model.config.width)
    answer = model.decode(model.encode(h, tokens), batch)
    return clean_from_noise(x_t, answer, t, schedule=schedule) if isinstance(model, NoiseScDiff) else answer
