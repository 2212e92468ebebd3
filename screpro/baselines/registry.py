"""What every registry of baselines does before and around a method: find it, check its options, contain it."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from screpro.errors import ScreproError

__all__ = ["Baseline", "contained", "entry_of", "method_of"]

Entry = TypeVar("Entry")


class Baseline(NamedTuple):
    """One published or trivial method."""

    name: str  # key in BASELINES and in result rows
    title: str  # as a table prints it
    source: str  # whom to cite
    where: str  # module:function of screpro.baselines
    grid: list[dict[str, Any]]  # options to try; first = default
    kind: str = "baseline"  # or "trivial", where no effect of a perturbation is learned
    random: bool = True  # whether the seed matters
    needs: str | None = None  # extra of the package it runs, or a package of another environment


def entry_of(registry: Mapping[str, Entry], name: str) -> Entry:
    """The entry `name`.

    Raises
    ------
    ScreproError
        There is none.
    """
    if name not in registry:
        raise ScreproError("A baseline is named by its key.", got=name, fix=f"choose one of {', '.join(registry)}")
    return registry[name]


def method_of(name: str, where: str, options: Mapping[str, Any], *, fixed: Collection[str]) -> Callable[..., Any]:
    """The function ``module:function`` of this package, imported now, so that listing the baselines costs nothing.

    Parameters
    ----------
    name
        Of the baseline, for errors.
    where
        Module below ``screpro.baselines`` and function.
    options
        What it is going to be called with besides its `fixed` arguments.

    Raises
    ------
    ScreproError
        It has no such option.
    """
    module, _, function = where.partition(":")
    method = getattr(import_module(f"screpro.baselines.{module}"), function)
    known = [option for option in inspect.signature(method).parameters if option not in fixed]
    for option in options:
        if option not in known:
            raise ScreproError(
                f"The options of {name} are {', '.join(known) or 'none'}.", got=option, fix="use one of these names"
            )
    return method


@contextmanager
def contained(name: str, *, threads: int, needs: str | None = None) -> Iterator[None]:
    """Limit the threads of numerical libraries; a package that is missing is named with the extra `needs`.

    Raises
    ------
    ScreproError
        A third-party package is not installed.
    """
    from threadpoolctl import threadpool_limits

    try:
        with threadpool_limits(threads):
            yield
    except ModuleNotFoundError as error:
        if needs is None or (error.name or "").startswith("screpro"):
            raise
        raise ScreproError(
            f"The baseline {name} runs a package that comes with the extra `{needs}`.",
            got=f"no module named {error.name}",
            fix=f"pip install 'screpro[{needs}]'",
        ) from error
