"""Every metric says what it is, in full, and its example on three cells comes out as written."""

import doctest
import inspect
from importlib import import_module

import numpy as np
import pytest

from screpro.book_atlas import sections
from screpro.metrics.catalogue import FAMILIES, MODULES, SECTIONS, catalogue, metric

METRICS = catalogue()
every = pytest.mark.parametrize("name", METRICS)


def test_every_module_and_family_has_metrics_and_no_title_occurs_twice():
    assert {m.function.__module__.split(".")[2] for m in METRICS.values()} == set(MODULES)
    assert {m.family for m in METRICS.values()} == set(FAMILIES)
    titles = [m.title for m in METRICS.values()]
    assert len(set(titles)) == len(titles)


@every
def test_every_metric_says_everything(name):
    function = METRICS[name].function
    assert function.__name__ == name and getattr(import_module(function.__module__), name) is function
    known = sections(function.__doc__)
    assert [section for section in known if section in SECTIONS] == list(SECTIONS)
    assert set(known) == {"", "Raises", *SECTIONS} and all(known.values())
    assert "$$" in known["Formula"]
    heads = [line.partition(" : ")[0] for line in known["Parameters"].splitlines() if line and line[0] != " "]
    documented = [word.strip() for head in heads for word in head.split(",")]
    assert documented == list(inspect.signature(function).parameters)


@every
def test_every_example_comes_out_as_written(name):
    function = METRICS[name].function
    names = {**vars(import_module(function.__module__)), "np": np}
    (test,) = (t for t in doctest.DocTestFinder(recurse=False).find(function, name, globs=names) if t.examples)
    said: list[str] = []
    with np.printoptions(precision=8, suppress=False, legacy=False):
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        failed, tried = runner.run(test, out=said.append)
    assert tried and not failed, "".join(said)


def test_a_metric_of_no_family_or_direction_is_refused():
    with pytest.raises(ValueError, match="distribution"):
        metric(title="", family="beauty", direction="higher")(lambda: 0)
    with pytest.raises(ValueError, match=r"closer to 0\.5"):
        metric(title="", family="change", direction="sideways")(lambda: 0)
