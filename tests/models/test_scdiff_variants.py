"""Every variant is the network it says it is, and the default where its change is taken away."""

import pytest
import torch

from screpro.errors import ScreproError
from screpro.models.scdiff import ScDiff, ScDiffConfig
from screpro.models.scdiff_variants import CONTEXT, VARIANTS, make
from screpro.processes.gaussian import scaled_linear
from screpro.sparse import SparseCells

SCHEDULE = scaled_linear()
NAMES = list(VARIANTS)
CONFIG = ScDiffConfig(n_genes=31, width=8, depth=4, heads=2, classes={"cell_type": 4}, n_batches=3)


def network(name):
    model = make(name, CONFIG, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing may be zero or one by initialisation
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def call(sparse_cells):
    generator = torch.Generator().manual_seed(2)
    x = torch.as_tensor(sparse_cells.toarray())
    n = len(x)
    return {
        "x_t": torch.randn(x.shape, generator=generator),
        "t": torch.randint(1000, (n,), generator=generator),
        "context": x,
        "hidden": torch.rand(x.shape, generator=generator) < 0.5,
        "conditions": {"cell_type": torch.arange(n) % 4},
        "batch": torch.arange(n) % 3,
    }


def copied(model, call):
    """The plain network with the weights that `model` shares with it."""
    plain = ScDiff(CONFIG)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()}, strict=True)
    return plain(**call)


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_dependence_on_every_input(name, call):
    model = network(name)
    out = model(**call)
    assert out.shape == (23, 31)
    for changed in (
        {"context": call["context"] + 1},
        {"conditions": {"cell_type": (call["conditions"]["cell_type"] + 1) % 4}},
        {"batch": (call["batch"] + 1) % 3},
    ):
        assert not torch.allclose(model(**(call | changed)), out)
    reads_x, reads_t = not torch.equal(model(**(call | {"x_t": call["x_t"] + 1})), out), False
    reads_t = not torch.equal(model(**(call | {"t": 999 - call["t"]})), out)
    assert (reads_x, reads_t) == {"no_diffusion": (False, False), "clean_input": (True, False)}.get(name, (True, True))


@pytest.mark.parametrize("name", NAMES)
def test_hidden_context_is_not_seen(name, call):
    model = network(name)
    other = torch.where(call["hidden"], call["context"] + 5, call["context"])
    assert torch.equal(model(**call), model(**(call | {"context": other})))


def test_default_is_scdiff(call):
    model = network("scdiff")
    torch.testing.assert_close(model(**call), copied(model, call))


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("embedder")])
def test_embedder_without_its_layers_is_the_default(name, call):
    model = network(name)
    assert len(model.embedder.layers) == len(model.context.embedder.layers) == int(name[-1]) - 1
    assert model.embedder.layers[0][0] is not model.context.embedder.layers[0][0]
    model.embedder.layers = model.context.embedder.layers = torch.nn.Identity()
    torch.testing.assert_close(model(**call), copied(model, call))


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("decoder")])
def test_decoder_without_its_layers_is_the_default(name, call):
    model = network(name)
    assert len(model.decoder) == int(name[-1]) - 1
    model.decoder = torch.nn.Identity()
    torch.testing.assert_close(model(**call), copied(model, call))


def test_unet_without_links_is_the_default(call):
    model = network("unet")
    assert model.links == {2: 1, 3: 0}
    assert not torch.allclose(model(**call), copied(model, call))
    model.links = {}
    torch.testing.assert_close(model(**call), copied(model, call))


def test_links_mirror_and_skip_the_middle():
    def links(depth):
        return make("unet", ScDiffConfig(n_genes=5, width=8, depth=depth, heads=2), seed=0).links

    assert (links(6), links(3), links(1)) == ({3: 2, 4: 1, 5: 0}, {2: 0}, {})


def test_without_cross_attention_tokens_are_summed(call):
    """With one linear module a block, the output is the module of the state plus all tokens."""
    model = network("no_cross_attention")
    h = torch.randn(23, 8)
    tokens = model.condition_tokens(call["context"], call["conditions"])
    expected = h
    for block, (context, label) in zip(model.blocks, tokens, strict=True):
        expected = block.module(expected + context.rows + label.rows[label.index])
    torch.testing.assert_close(model.encode(h, tokens), model.norm_out(expected))


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_error_of_a_call_and_reaches_every_parameter(name, call, sparse_cells):
    model, x = network(name), call["context"]
    cells = SparseCells.from_scipy(sparse_cells)
    noise = torch.randn(x.shape)
    visible = x.masked_fill(call["hidden"], 0)
    shared = {"conditions": call["conditions"], "batch": call["batch"]}
    shown = cells.matrix(visible[cells.cells, cells.genes])
    error = model.denoising_error(cells, call["t"], noise, schedule=SCHEDULE, context=shown, **shared)
    x_t = x if name == "clean_input" else SCHEDULE.diffuse(x, call["t"], noise)
    predicted = model(x_t, call["t"], context=visible, **shared)
    torch.testing.assert_close(error, ((predicted - x) ** 2).mean(1), rtol=1e-4, atol=1e-5)
    error.sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_same_seed_shares_the_weights_of_shared_layers():
    default = make("scdiff", CONFIG, seed=3).state_dict()
    for name in NAMES:
        own = make(name, CONFIG, seed=3).state_dict()
        shared = [key for key in default if key in own and own[key].shape == default[key].shape]
        assert {"embedder.table", "context.embedder.table", "head.weight"} <= set(shared)
        assert all(torch.equal(default[key], own[key]) for key in shared)


def test_reads():
    assert [n for n in NAMES if make(n, CONFIG, seed=0).reads == CONTEXT] == ["no_diffusion"]


def test_unknown_variant():
    with pytest.raises(ScreproError, match="choose one of scdiff"):
        make("decoder_9", CONFIG, seed=0)
