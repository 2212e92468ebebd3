"""scDiff's denoiser: the authors' numbers, a plain re-derivation, and what must not matter."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from screpro import parity
from screpro.errors import ScreproError
from screpro.models.blocks import time_embedding
from screpro.models.scdiff import ScDiff, ScDiffConfig, Tokens
from screpro.models.scdiff_authors import from_authors

VECTOR = "scdiff_celltype_batch.npz"


@pytest.fixture
def vectors(request):
    return request.path.parent.parent / "vectors"


def small(**changes) -> ScDiff:
    torch.manual_seed(0)
    config = {
        "n_genes": 11,
        "width": 8,
        "depth": 3,
        "heads": 2,
        "classes": {"cell_type": 4, "state": 2},
        "n_batches": 3,
    }
    return ScDiff(ScDiffConfig(**(config | changes))).eval()


def inputs(model, n=5):
    generator = torch.Generator().manual_seed(1)
    genes = model.config.n_genes
    given = {
        "context": torch.rand(n, genes, generator=generator),
        "hidden": torch.rand(n, genes, generator=generator) < 0.4,
        "conditions": {
            name: torch.randint(rows, (n,), generator=generator) for name, rows in model.config.classes.items()
        },
        "batch": torch.randint(model.config.n_batches, (n,), generator=generator) if model.config.n_batches else None,
    }
    x_t, t = torch.randn(n, genes, generator=generator), torch.tensor([0, 1, 500, 998, 999])[:n]
    return (x_t, t), given


def test_authors_numbers(vectors):
    rows = parity.check_file(vectors / VECTOR)
    assert {row.output for row in rows} == {
        "x0_context_visible",
        "x0_context_hidden",
        "x0_context_partly_masked",
        "time_embedding",
    }
    assert max(row.ratio for row in rows) < 1e-5


@pytest.mark.parametrize("name", ["blocks.1.0.weight", "embedder.emb", "encoder.blocks.0.attn1.to_v.bias"])
def test_parity_sees_a_changed_weight(vectors, tmp_path, name):
    arrays = dict(np.load(vectors / VECTOR, allow_pickle=False))
    changed = arrays[f"weight/{name}"] * 1.02 + 0.02
    np.savez(tmp_path / "other.npz", **(arrays | {f"weight/{name}": changed}))
    ratios = [row.ratio for row in parity.check_file(tmp_path / "other.npz") if row.output != "time_embedding"]
    assert max(ratios) > parity.TOLERANCE


def test_parity_of_other_sizes(tmp_path):
    """A network of other sizes, written under the authors' names, comes back as itself, with or without batches."""
    for changes in ({}, {"n_batches": 0, "depth": 1}, {"width": 7, "heads": 3, "head_width": 5, "classes": {}}):
        model = small(**changes)
        args, given = inputs(model)
        with torch.no_grad():
            expected = model(*args, **given)
        again = from_authors(to_authors(model), heads=model.config.heads).eval()
        with torch.no_grad():
            torch.testing.assert_close(again(*args, **given), expected, rtol=0, atol=0)


def to_authors(model: ScDiff) -> dict[str, torch.Tensor]:
    """Our weights under the authors' names, written out by hand."""
    state, depth = model.state_dict(), model.config.depth
    theirs = {
        "embedder.emb": state["context.embedder.table"],
        "decoder_embed.emb": state["embedder.table"],
        "decoder.layers.0.0.weight": state["head.weight"],
        "decoder.layers.0.0.bias": state["head.bias"],
    }
    if "batch_table" in state:
        theirs["decoder.cond_embed.emb_dict.batch.0.0.weight"] = state["batch_table"]
    for kind in ("weight", "bias"):
        theirs[f"embedder.post_layer.1.{kind}"] = state[f"context.embedder.norm.{kind}"]
        theirs[f"decoder_embed.post_layer.1.{kind}"] = state[f"embedder.norm.{kind}"]
        theirs[f"decoder_norm.{kind}"] = state[f"norm_out.{kind}"]
        for block in range(depth):
            own, names = f"blocks.{block}.", f"encoder.blocks.{block}."
            theirs[f"blocks.{block}.0.{kind}"] = state[f"context.layers.{block}.linear.{kind}"]
            theirs[f"blocks.{block}.2.{kind}"] = state[f"context.layers.{block}.norm.{kind}"]
            theirs[f"{names}norm1.{kind}"] = state[f"{own}norm_query.{kind}"]
            theirs[f"{names}norm2.{kind}"] = torch.zeros(model.config.width)
            theirs[f"{names}norm3.{kind}"] = state[f"{own}norm_feed_forward.{kind}"]
            halves = [state[f"{own}feed_forward.{part}.{kind}"] for part in ("value", "gate")]
            theirs[f"{names}ff.net.0.proj.{kind}"] = torch.cat(halves)
            theirs[f"{names}ff.net.2.{kind}"] = state[f"{own}feed_forward.contract.{kind}"]
            theirs[f"{names}attn1.to_out.0.{kind}"] = state[f"{own}attention.to_out.{kind}"]
            for part in "qkv":
                theirs[f"{names}attn1.to_{part}.{kind}"] = state[f"{own}attention.to_{part}.{kind}"]
    for name in model.config.classes:
        for block in range(depth):
            theirs[f"cond_embed.emb_dict.{name}.{block}.0.weight"] = state[f"conditioners.{name}.tables.{block}"]
    return theirs


def test_unknown_and_missing_weights_are_named():
    theirs = to_authors(small())
    with pytest.raises(ScreproError, match=r"gears\.0\.weight"):
        from_authors(theirs | {"gears.0.weight": torch.zeros(1)}, heads=2)
    del theirs["decoder_norm.bias"]
    with pytest.raises(ScreproError, match=r"norm_out\.bias"):
        from_authors(theirs, heads=2)


def test_a_file_that_is_not_a_parity_file(tmp_path):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ScreproError, match="parity file"):
        parity.check_file(broken)
    np.savez(tmp_path / "other.npz", config=json.dumps({}), **{"weight/a": np.ones(2), "output/b": np.ones(2)})
    with pytest.raises(ScreproError, match="network this version rebuilds"):
        parity.check_file(tmp_path / "other.npz")


def test_against_a_plain_derivation():
    """The whole network once more, cell by cell and head by head, in float64."""
    model = small().double()
    (x_t, t), given = inputs(model)
    x_t, context = x_t.double(), given["context"].double()
    with torch.no_grad():
        ours = model(x_t, t, **(given | {"context": context}))
    state = {name: value.numpy() for name, value in model.state_dict().items()}

    def norm(v, name):
        return (v - v.mean()) / np.sqrt(v.var() + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(v, name):
        return state[f"{name}.weight"] @ v + state[f"{name}.bias"]

    def gelu(v):
        return np.array([0.5 * a * (1 + math.erf(a / math.sqrt(2))) for a in v])

    depth, width, heads = model.config.depth, model.config.width, model.config.heads
    for cell in range(len(x_t)):
        seen = context[cell].numpy() * ~given["hidden"][cell].numpy()
        h = norm(gelu(state["context.embedder.table"].T @ seen), "context.embedder.norm")
        deeper = []
        for layer in range(depth):
            h = norm(gelu(linear(h, f"context.layers.{layer}.linear")), f"context.layers.{layer}.norm")
            deeper.append(h)
        h = norm(gelu(state["embedder.table"].T @ x_t[cell].numpy()), "embedder.norm")
        ladder = [float(t[cell]) / 10_000 ** (i / (width // 2)) for i in range(width // 2)]
        h = h + np.array([math.cos(a) for a in ladder] + [math.sin(a) for a in ladder])
        for block in range(depth):
            tokens = [deeper[depth - 1 - block]] + [
                state[f"conditioners.{name}.tables.{depth - 1 - block}"][int(given["conditions"][name][cell])]
                for name in model.config.classes
            ]
            name = f"blocks.{block}.attention"
            query = linear(norm(h, f"blocks.{block}.norm_query"), f"{name}.to_q").reshape(heads, -1)
            keys = [linear(token, f"{name}.to_k").reshape(heads, -1) for token in tokens]
            values = [linear(token, f"{name}.to_v").reshape(heads, -1) for token in tokens]
            mixed = []
            for head in range(heads):
                score = np.array([query[head] @ key[head] for key in keys]) / math.sqrt(query.shape[1])
                share = np.exp(score) / np.exp(score).sum()
                mixed.append(sum(s * value[head] for s, value in zip(share, values, strict=True)))
            h = h + linear(np.concatenate(mixed), f"{name}.to_out")
            normed, name = norm(h, f"blocks.{block}.norm_feed_forward"), f"blocks.{block}.feed_forward"
            h = h + linear(linear(normed, f"{name}.value") * gelu(linear(normed, f"{name}.gate")), f"{name}.contract")
        h = norm(h, "norm_out") + state["batch_table"][int(given["batch"][cell])]
        # the time embedding is computed in float32 for steps and frequencies
        np.testing.assert_allclose(ours[cell].numpy(), linear(h, "head"), rtol=0, atol=2e-4)


def test_order_of_conditions_and_cells_does_not_matter():
    model = small()
    (x_t, t), given = inputs(model)
    with torch.no_grad():
        plain = model(x_t, t, **given)
        swapped = model(x_t, t, **(given | {"conditions": dict(reversed(given["conditions"].items()))}))
        order = torch.tensor([3, 0, 4, 1, 2])
        moved = {
            "context": given["context"][order],
            "hidden": given["hidden"][order],
            "batch": given["batch"][order],
            "conditions": {name: value[order] for name, value in given["conditions"].items()},
        }
        permuted = model(x_t[order], t[order], **moved)
    torch.testing.assert_close(swapped, plain)
    torch.testing.assert_close(permuted, plain[order])


def test_hidden_context_is_a_zero_vector_not_an_absent_token():
    model = small()
    (x_t, t), given = inputs(model)
    everything = given | {"hidden": torch.ones_like(given["hidden"])}
    zero = given | {"hidden": None, "context": torch.zeros_like(given["context"])}
    with torch.no_grad():
        torch.testing.assert_close(model(x_t, t, **everything), model(x_t, t, **zero))


def test_a_conditioner_of_ones_own():
    """The interface text and graph conditioners use: any module that gives one token per block."""

    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.project = torch.nn.Linear(6, 8)

        def forward(self, given):
            rows, index = given
            return [Tokens(self.project(rows), index)] * 3

    torch.manual_seed(0)
    config = ScDiffConfig(n_genes=11, width=8, depth=3, heads=2)
    model = ScDiff(config, {"text": Text()})
    definitions, index = torch.randn(2, 6), torch.tensor([0, 1, 1, 0])
    x_t, t, context = torch.randn(4, 11), torch.tensor([1, 2, 3, 4]), torch.rand(4, 11)
    shared = model(x_t, t, context=context, conditions={"text": (definitions, index)})
    each = model(x_t, t, context=context, conditions={"text": (definitions[index], None)})
    torch.testing.assert_close(shared, each)
    assert not torch.allclose(
        shared[0], model(x_t, t, context=context, conditions={"text": (definitions, 1 - index)})[0]
    )


def test_folded_attention_is_attention():
    model = small()
    with torch.no_grad():
        attention, h = model.blocks[1].attention, torch.randn(4, 6, 8)
        empty, labels = torch.randn(1, 8), torch.randn(4, 8)
        folded = attention.folded([Tokens(empty), Tokens(labels)])
        plain = attention(h, [Tokens(empty[:, None]), Tokens(labels[:, None])])
        torch.testing.assert_close(attention.attend_folded(h, folded), plain, rtol=1e-4, atol=1e-5)


def test_initial_weights():
    """Xavier-uniform on the authors' shapes, zero biases, small gene tables, standard normal label tables."""
    torch.manual_seed(0)
    model = ScDiff(ScDiffConfig(n_genes=400, width=64, depth=1, heads=4, classes={"cell_type": 50}))
    block = model.blocks[0]
    for layer, fan in [
        (block.attention.to_k, 64 + 64),
        (block.feed_forward.value, 64 + 512),
        (block.feed_forward.gate, 64 + 512),
        (block.feed_forward.contract, 256 + 64),
        (model.head, 64 + 400),
    ]:
        bound = math.sqrt(6 / fan)
        assert 0.97 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.abs().max() == 0
    assert model.embedder.table.std().item() == pytest.approx(0.005, rel=0.05)
    assert model.conditioners["cell_type"].tables[0].std().item() == pytest.approx(1, rel=0.1)


def test_time_embedding():
    wave = time_embedding(torch.tensor([0, 3]), 6)
    assert wave[0].tolist() == [1, 1, 1, 0, 0, 0]
    expected = [3 / 10_000 ** (i / 3) for i in range(3)]
    torch.testing.assert_close(wave[1], torch.tensor([*map(math.cos, expected), *map(math.sin, expected)]))
    odd = time_embedding(torch.tensor([3]), 7)
    assert odd.shape == (1, 7) and odd[0, -1] == 0
    # unlike printed eq. 19, steps far apart are told apart and neighbours are close
    ladder = F.normalize(time_embedding(torch.arange(1000), 64))
    similarity = ladder @ ladder.T
    assert similarity.diagonal(1).min() > 0.9
    assert similarity[0, 999] < 0.7


def test_wrong_inputs_are_explained():
    model = small()
    (x_t, t), given = inputs(model)
    with pytest.raises(ScreproError, match="conditioners"):
        model(x_t, t, **(given | {"conditions": {"cell_type": given["conditions"]["cell_type"]}}))
    with pytest.raises(ScreproError, match="batch"):
        model(x_t, t, **(given | {"batch": None}))
