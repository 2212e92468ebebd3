"""A learning rate for networks that are compared by size: at one rate for all, the rate decides which size is ahead."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import scipy.sparse as sp

from screpro.data.splits import cell_split
from screpro.records import Run
from screpro.tasks import autoencoder
from screpro.tasks.autoencoder import AutoEncoderSettings
from screpro.tasks.tuning import best_setting, checkpoint_file

__all__ = ["best_rate"]


def best_rate(
    run: Run,
    counts: sp.csr_matrix,
    settings: AutoEncoderSettings,
    rates: Sequence[float],
    *,
    work: Mapping[str, Any],
    threads: int | None = None,
    known: MutableMapping[AutoEncoderSettings, float] | None = None,
) -> float:
    """The rate at which held-back training cells are reconstructed best.

    A tenth of the cells is held back, the rest trains once for each rate. Every tried rate leaves a row, and an
    interrupted run tries none twice.

    Parameters
    ----------
    run
        Where the rows go.
    counts
        (n, G) counts of the training cells.
    settings
        The network; its own rate is tried first.
    rates
        What else is tried.
    work
        ``dataset, split, method, seed`` of the rows; split and seed, both numbers, are those of the held-back cells and
        of the weights.
    known
        Errors by settings, for networks that are asked about under several names; filled on the way.
    """
    known = {} if known is None else known
    split, seed = int(work["split"]), int(work["seed"])
    parts = cell_split(counts.shape[0], seed=split, test=0.1)

    def error(options: Mapping[str, float]) -> float:
        own = replace(settings, **options)
        if own not in known:
            file = checkpoint_file(run, work["dataset"], split, "rate", seed, asdict(own))
            model = autoencoder.train(
                counts[parts.train], own, seed=seed, threads=threads, checkpoint=file,
                title=f"{work['method']}, rate {own.learning_rate:g}",
            ).model  # fmt: skip
            file.unlink(missing_ok=True)
            known[own] = float(autoencoder.nll(model, counts[parts.test]).mean())
        return known[own]

    return best_setting(
        run,
        [{"learning_rate": rate} for rate in dict.fromkeys([settings.learning_rate, *rates])],
        error,
        work=dict(work) | {"split": f"{split} validation"},
        direction="lower",
        metric="re_nb_nll",
        unit="nats per cell",
        n_real=len(parts.test),
        n_genes=counts.shape[1],
    )["learning_rate"]
