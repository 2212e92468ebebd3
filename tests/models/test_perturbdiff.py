"""PerturbDiff's denoiser: symmetries, what a start does, and what dropping, absence and zeros mean."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from screpro.errors import ScreproError
from screpro.models.perturbdiff import PerturbDiff, PerturbDiffConfig, modulate

CONFIG = PerturbDiffConfig(
    n_genes=11, width=8, layers=2, heads=2, labels={"perturbation": 4, "batch": 2}, semantic={"context": (3, 5)},
    label_width=6, sources=2,
)  # fmt: skip


def network(*, random=True, **changes) -> PerturbDiff:
    torch.manual_seed(0)
    model = PerturbDiff(replace(CONFIG, **changes)).eval()
    if random:  # the modulations are zero at the start, and with them every block
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape))
    return model


def inputs(sets=3, cells=5, seed=1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    x, control, previous = (torch.randn(sets, cells, 11, generator=generator) for _ in range(3))
    labels = {name: torch.arange(sets) % n for name, n in (("perturbation", 4), ("batch", 2), ("context", 3))}
    t = torch.randint(1000, (sets,), generator=generator)
    return {"x_t": x, "t": t, "control": control, "previous": previous, "labels": labels}


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["features", "tokens"])
@pytest.mark.parametrize("mlp", ["parallel", "sequential"])
def test_permuting_pairs_permutes_the_answer(attention, mlp):
    model, given = network(attention=attention, mlp=mlp), inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = {name: given[name][:, order] for name in ("x_t", "control", "previous")}
    same(model(**{**given, **moved}), model(**given)[:, order])


@torch.no_grad()
def test_permuting_controls_alone():
    """Concatenated features tie a cell to the control beside it; attention between tokens does not."""
    given = inputs()
    moved = {**given, "control": given["control"][:, [3, 0, 4, 1, 2]]}
    tied, free = network(), network(attention="tokens")
    assert (tied(**moved) - tied(**given)).abs().max() > 1e-2
    same(free(**moved), free(**given))


@torch.no_grad()
def test_sets_do_not_see_each_other():
    model, given = network(), inputs()
    alone = {name: value[1:2] for name, value in given.items() if name != "labels"}
    alone["labels"] = {name: value[1:2] for name, value in given["labels"].items()}
    same(model(**alone), model(**given)[1:2])


@torch.no_grad()
def test_blocks_are_the_identity_at_the_start():
    model, given = network(random=False), inputs()
    model.covariates.frozen["context"].zero_()
    x = model.enter[0](torch.cat([given["x_t"], given["previous"]], -1)) + model.shared
    zero = torch.zeros(())
    same(model(**given), torch.relu(model.leave(modulate(x, zero, zero))))
    assert model.leave.weight.abs().sum() > 0  # the head is not zero-initialised


@torch.no_grad()
def test_absent_is_zero_and_dropped_is_absent():
    model, given = network(), inputs()
    zeros = torch.zeros_like(given["x_t"])
    same(model(**{**given, "previous": None}), model(**{**given, "previous": zeros}))
    same(model(**{**given, "control": None}), model(**{**given, "control": zeros}))
    every = torch.ones(3, dtype=torch.bool)
    none = model(**{**given, "labels": None})
    same(model(**given, dropped=every), none)
    mixed = model(**given, dropped=torch.tensor([True, False, True]))
    same(mixed[[0, 2]], none[[0, 2]])
    same(mixed[1], model(**given)[1])
    assert (mixed[1] - none[1]).abs().max() > 1e-3


@torch.no_grad()
def test_frozen_vectors_of_genes_are_another_linear_entrance():
    """What they add, the entrance could do itself; and a start is that of a network without them."""
    start = network(random=False, gene_vectors=3)
    assert not start.from_genes.weight.any() and start.from_genes.weight.requires_grad
    model, given = network(gene_vectors=3), {**inputs(), "previous": None}
    assert "genes" not in dict(model.named_parameters()) and not model.genes.any()
    model.genes.copy_(torch.randn(11, 3))
    answer = model(**given)
    same(model(**{**given, "control": None}), model(**{**given, "control": torch.zeros_like(given["x_t"])}))
    added = model.from_genes.weight @ model.genes.T
    for enter in (model.enter[0], model.enter_control[0]):
        enter.weight[:, :11] += added
    model.genes.zero_()
    same(model(**given), answer)
    assert (network(gene_vectors=3)(**given) - answer).abs().max() > 1e-3


@torch.no_grad()
def test_sources_have_entrances_of_their_own():
    model, given = network(), inputs()
    assert (model(**given, source=1) - model(**given, source=0)).abs().max() > 1e-3


def test_the_answer_is_not_negative_and_depends_on_every_label():
    model, given = network(), inputs()
    answer = model(**given)
    assert answer.min() >= 0 and (answer > 0).any()
    for name in given["labels"]:
        other = {**given["labels"], name: (given["labels"][name] + 1) % 2}
        assert (model(**{**given, "labels": other}) - answer).abs().max() > 1e-4
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["covariates.frozen.context"]


@pytest.mark.parametrize(
    "change", [{"attention": "cells"}, {"mlp": "none"}, {"heads": 3}, {"n_genes": 0}, {"layers": 0}]
)
def test_sizes_that_cannot_be(change):
    with pytest.raises(ScreproError):
        replace(CONFIG, **change)


def test_missing_labels_are_named():
    given = inputs()
    del given["labels"]["batch"]
    with pytest.raises(ScreproError, match="batch"):
        network()(**given)


def test_frozen_vectors_are_set_by_name_and_nothing_is_made_up():
    """Columns of the table follow the labels; only the control may lack a vector, and it gets the mean."""
    model, given = network(random=False), inputs()
    assert model(**given).isnan().any()  # not a silent row of zeros
    vectors = {"B": np.full(5, 1.0), "T": [3.0] * 5, "other": np.zeros(7)}
    model.set_semantic("context", vectors, names=["none", "B", "T"], control="none")
    assert model.covariates.frozen["context"].mean(1).tolist() == [2, 1, 3]
    assert model(**given).isfinite().all()
    for wrong in (
        {"attribute": "batch"},
        {"names": ["none", "B"]},
        {"names": ["none", "B", "NK"]},
        {"control": None},
        {"vectors": vectors | {"B": np.zeros(4)}},
        {"vectors": vectors | {"B": np.full(5, np.nan)}},
    ):
        call = {"attribute": "context", "vectors": vectors, "names": ["none", "B", "T"], "control": "none"} | wrong
        with pytest.raises(ScreproError, match="rozen vector"):
            model.set_semantic(**call)
