"""The list of all metrics: one name, one definition, one page of the metric atlas.

A metric is a function whose docstring says everything about it, in sections that a test asks for (``SECTIONS``), with a
worked example on three cells that a test runs. ``@metric`` puts it into the catalogue.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from screpro.records.results import DIRECTIONS

__all__ = ["DIRECTIONS", "FAMILIES", "SECTIONS", "Metric", "catalogue", "metric"]

FAMILIES = {
    "distribution": "Do generated cells follow the distribution of real ones?",
    "reconstruction": "Does an auto-encoder give back the counts it was given?",
    "classification": "Are labels right?",
    "change": "Is the change of expression right?",
    "perturbation": "Are the effects of many perturbations right? (Cell-Eval, PerturbDiff's Table 4)",
    "denoising": "Are missing or noisy values recovered?",
}
"""Every family and the question it answers."""

SECTIONS = ("Formula", "Estimator", "Bias", "Unit", "Used in", "Parameters", "Returns", "Examples")
"""What the docstring of a metric has to say, as numpy-style sections."""

MODULES = (
    "distances",
    "transport",
    "neighbours",
    "frechet",
    "genes",
    "reconstruction",
    "classification",
    "areas",
    "change",
    "imputation",
    "perturbation",
    "denoising",
)
"""Modules of ``screpro.metrics`` that hold metrics."""


@dataclass(frozen=True)
class Metric:
    """One entry of the catalogue."""

    name: str  # that of the function, used in result rows
    title: str
    family: str  # one of FAMILIES
    direction: str  # one of DIRECTIONS is better
    function: Callable


_METRICS: dict[str, Metric] = {}


def metric(*, title: str, family: str, direction: str) -> Callable[[Callable], Callable]:
    """Decorator: put a function into the catalogue under its own name."""

    def register(function: Callable) -> Callable:
        if family not in FAMILIES:
            raise ValueError(f"{family!r} is not one of {', '.join(FAMILIES)}")
        if direction not in DIRECTIONS:
            raise ValueError(f"{direction!r} is not one of {', '.join(DIRECTIONS)}")
        _METRICS[function.__name__] = Metric(function.__name__, title, family, direction, function)
        return function

    return register


def catalogue() -> dict[str, Metric]:
    """Every metric by name, in the order of the modules, whichever of them was imported first."""
    home = {}
    for position, module in enumerate(MODULES):
        import_module(f"screpro.metrics.{module}")
        home[module] = position
    found = sorted(_METRICS.values(), key=lambda each: home[each.function.__module__.split(".")[2]])
    return {each.name: each for each in found}
