"""Counts of parameters and of operations against the network itself."""

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from screpro.errors import ScreproError
from screpro.models.perturbdiff import PerturbDiff, PerturbDiffConfig
from screpro.tasks.set_scaling import (
    PRINTED,
    SIZES,
    nearest_width,
    paper_sizes,
    parameter_formula,
    parameters,
    step_flops,
)
from screpro.tasks.set_scaling_experiment import chosen_steps, chosen_values

LABELS = {"perturbation": 5, "context": 3}


def _config(**options):
    return PerturbDiffConfig(n_genes=17, width=16, layers=2, heads=4, labels=LABELS, label_width=6, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "tokens"},
        {"sources": 3},
        {"semantic": {"batch": (4, 9)}},
        {"mlp_ratio": 2.0},
        {"mlp": "sequential"},
    ],
)
def test_parameters_in_closed_form(options):
    config = _config(**options)
    assert parameter_formula(config) == parameters(config)


def test_without_covariates():
    config = PerturbDiffConfig(n_genes=17, width=16, layers=2, heads=4)
    assert parameter_formula(config) == parameters(config)


@pytest.mark.parametrize(
    ("attention", "controls", "known", "shown"),
    itertools.product(("features", "tokens"), (True, False), (True, False), (True, False)),
)
def test_operations_are_those_torch_counts(attention, controls, known, shown):
    config = _config(attention=attention)
    torch.manual_seed(0)
    model = PerturbDiff(config)
    # modulations start at zero, which cuts nothing off: autograd multiplies by zero all the same
    b, m = 3, 5
    x, control = torch.rand(2, b, m, 17)
    given = {
        "control": control if controls else None,
        "labels": {name: torch.zeros(b, dtype=torch.long) for name in LABELS} if known else None,
    }
    t = torch.zeros(b, dtype=torch.long)
    cost = step_flops(
        config, sets=b, set_size=m, controls=controls, drop=0.0 if known else 1.0, self_condition=float(shown)
    )
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            previous = model(x, t, **given) if shown else None
        assert counter.get_total_flops() == cost.shown
        with FlopCounterMode(display=False) as counter:
            answer = model(x, t, **given, previous=previous)
        assert counter.get_total_flops() == cost.forward
        with FlopCounterMode(display=False) as counter:
            answer.square().sum().backward()
        assert counter.get_total_flops() == cost.backward


def test_a_step_is_the_mean_over_its_coins():
    config = _config()
    corners = [
        step_flops(config, sets=2, set_size=4, drop=d, self_condition=s).total for d in (0.0, 1.0) for s in (0.0, 1.0)
    ]
    assert step_flops(config, sets=2, set_size=4).total == pytest.approx(sum(corners) / 4)


def test_no_set_is_refused():
    with pytest.raises(ScreproError, match="at least one set"):
        step_flops(_config(), sets=0, set_size=4)


def test_sizes_grow_and_the_papers_come_close():
    for widths in SIZES.values():
        assert widths["small"] < widths["medium"] < widths["large"]
    for row in paper_sizes():
        if row["printed"]:
            genes = int(row["size"].split(", ")[1].split()[0])
            assert row[f"at {genes} genes"] == pytest.approx(row["printed"], rel=0.02)
    widths = SIZES["paper"]
    assert widths["medium"] == pytest.approx(nearest_width(PRINTED["medium"], genes=2000), rel=0.05)
    assert widths["large"] == pytest.approx(nearest_width(PRINTED["large"], genes=2000), rel=0.05)


def test_a_step_is_chosen_on_validation_and_measured_on_test():
    validation = {
        10: {"pd_corr": 0.1, "mae_of_means": 0.3},
        20: {"pd_corr": 0.5, "mae_of_means": 0.1},
        40: {"pd_corr": 0.9},
    }
    test = {10: {"pd_corr": 0.7, "mae_of_means": 0.5}, 20: {"pd_corr": 0.2, "mae_of_means": 0.4}, 40: {"pd_corr": 0.3}}
    assert chosen_steps(validation, inner=False) == {"pd_corr": 40, "mae_of_means": 20}  # a lower error is better
    assert chosen_steps(validation, inner=True)["pd_corr"] == 20
    both = {"validation": validation, "test": test}
    assert chosen_values(both, inner=False) == {"pd_corr": 0.3, "mae_of_means": 0.4}
    assert chosen_values(both, inner=True)["pd_corr"] == 0.2
