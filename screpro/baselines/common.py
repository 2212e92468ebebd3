"""What the annotation baselines share: the form of an answer, and how a third-party fit is kept contained."""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

__all__ = ["Prediction", "contained_torch", "from_scores", "quiet", "scvi_seed"]


class Prediction(NamedTuple):
    """Predicted types of n cells, in the code space 0..K-1 that training and test cells share."""

    labels: np.ndarray  # (n,) int64
    scores: np.ndarray | None  # (n, K) float, larger is likelier; 0 for types absent from training


def from_scores(scores: np.ndarray, types: np.ndarray, *, n_types: int) -> Prediction:
    """Answer with the best-scoring type; equal scores go to the lower code.

    Parameters
    ----------
    scores
        (n, k) non-negative scores of the k types seen in training.
    types
        (k,) their codes, ascending.
    n_types
        K, the size of the shared code space.
    """
    full = np.zeros((len(scores), n_types), dtype=np.float64)
    full[:, types] = scores
    return Prediction(labels=np.asarray(types, dtype=np.int64)[scores.argmax(axis=1)], scores=full)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and all logging below ERROR; a notebook page is no place for another package's chatter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def contained_torch(*, seed: int, threads: int) -> Iterator[None]:
    """Run a package that draws from the global generators, and give them back as they were.

    Seeds `random`, numpy and torch inside the block. Restores their states, torch's thread count, its cuDNN
    switches and the environment variables that seeding through Lightning writes.
    """
    import torch

    watched = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "XLA_FLAGS")
    environment = {name: os.environ.get(name) for name in watched}
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    n_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(n_threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def scvi_seed(seed: int) -> Iterator[None]:
    """The package's own seed, which it shuffles cells by, for the length of the block."""
    import scvi

    before = scvi.settings.seed
    scvi.settings.seed = seed
    try:
        yield
    finally:
        scvi.settings.seed = before
