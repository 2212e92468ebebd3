"""Splits written down by name: which perturbations are held out, in which contexts or batches (``data/splits``).

PerturbDiff, appendix A.2.3: the cells of some contexts (cell lines) or batches (donors) under some perturbations are
kept from training. The same perturbations are seen elsewhere, and the held-out contexts are seen under the others and
under the control. A split is a file that can be read, cited and compared, not a seed.

Unlike the authors, who write the held-out names into configurations of their loader, a file here also says where the
lists come from and in which columns the names stand.
"""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from screpro.errors import ScreproError

__all__ = ["ROLES", "SCHEMA", "HeldOut", "Roles", "cell_roles", "read_split", "splits_dir"]

SCHEMA = "screpro.split/1"

ROLES = ("train", "validation", "test", "excluded")
"""What a cell is for; an excluded one for nothing."""


@dataclass(frozen=True)
class HeldOut:
    """What a split holds out. Lists of names are tuples without repeats."""

    title: str  # what it is, in a line
    source: str  # who chose the names, and how
    dataset: str  # name in the registry
    control: str  # label of control cells
    validation: tuple[str, ...]  # perturbations that choose checkpoints and settings
    test: tuple[str, ...]  # perturbations that are scored
    held_out_contexts: tuple[str, ...] = ()
    held_out_batches: tuple[str, ...] = ()
    excluded_batches: tuple[str, ...] = ()  # cells whose batch is not known, for one
    perturbation_key: str = "perturbation"  # columns of obs after `screpro.data.load`
    context_key: str | None = "cell_type"
    batch_key: str | None = "batch"

    def __post_init__(self) -> None:
        lists = {f.name: getattr(self, f.name) for f in fields(self) if f.type == tuple[str, ...]}
        repeated = sorted({n for names in lists.values() for n in names if names.count(n) > 1})
        both = sorted({*self.validation} & {*self.test} | {*self.held_out_batches} & {*self.excluded_batches})
        if repeated or both or self.control in (*self.validation, *self.test):
            raise ScreproError(
                "A name stands once in a split, and the control is not held out.",
                got=", ".join([*repeated, *both][:6]) or self.control,
                fix="name every perturbation, context and batch once",
            )
        if not self.test or not (self.held_out_contexts or self.held_out_batches):
            raise ScreproError(
                "A split has test perturbations, and contexts or batches in which they are held out.",
                got=f"{len(self.test)} test perturbations, contexts {self.held_out_contexts}, "
                f"batches {self.held_out_batches}",
                fix="fill in test, and held_out_contexts or held_out_batches",
            )


class Roles(NamedTuple):
    """What every cell is for, and which names of the split the cells do not have."""

    role: np.ndarray  # (n,) one of ROLES
    absent: tuple[str, ...]

    def rows(self, role: str) -> np.ndarray:
        """Row numbers of the cells of one role."""
        return np.flatnonzero(self.role == role)


def splits_dir() -> Path:
    """Where the splits of the book are."""
    from screpro import paths

    return paths.root() / "data" / "splits"


def read_split(name_or_path: str | Path) -> HeldOut:
    """A split by its name in ``data/splits`` or from a TOML file of your own.

    Parameters
    ----------
    name_or_path
        ``papalexi_thp1``, or a path that ends in ``.toml``.

    Raises
    ------
    ScreproError
        There is no such split or file, it is no TOML, lacks or invents a field, or holds one name twice.
    """
    known = sorted(path.stem for path in splits_dir().glob("*.toml"))
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = splits_dir() / f"{name_or_path}.toml"
    if not path.is_file():
        close = difflib.get_close_matches(path.stem, known, n=1)
        raise ScreproError(
            "A split is one of data/splits or a TOML file.",
            got=str(name_or_path),
            fix=f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}, or a path",
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ScreproError("A split is a TOML file.", got=f"{path}: {error}", fix="correct the file") from None
    return _split(content, path)


def _split(content: dict[str, Any], path: Path) -> HeldOut:
    if content.pop("schema", None) != SCHEMA:
        raise ScreproError(f'A split begins with schema = "{SCHEMA}".', got=str(path), fix="correct the file")
    lists = {f.name: f.type == tuple[str, ...] for f in fields(HeldOut)}
    needed = [f.name for f in fields(HeldOut) if f.default is MISSING]
    wrong = [f"unknown field {key}" for key in content if key not in lists]
    wrong += [f"no field {key}" for key in needed if key not in content]
    wrong += [f"{key} is not {'a list of texts' if lists[key] else 'a text'}"
              for key, value in content.items() if key in lists and not _fits(value, lists[key])]  # fmt: skip
    if wrong:
        raise ScreproError(
            f"A split has the fields {', '.join(lists)}.", got=f"{path}: {'; '.join(wrong)}", fix="correct the file"
        )
    # TOML has no null: an empty text says that there is no such column
    values = {key: tuple(value) if lists[key] else value for key, value in content.items()}
    return HeldOut(**{key: None if key.endswith("_key") and value == "" else value for key, value in values.items()})


def _fits(value: Any, is_list: bool) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value) if is_list else isinstance(value, str)


def cell_roles(
    split: HeldOut,
    *,
    perturbation: np.ndarray,
    context: np.ndarray,
    batch: np.ndarray,
    control: str | None = None,
    ignore_absent: bool = False,
) -> Roles:
    """What every cell is for.

    A cell of a held-out context or batch under a test perturbation is for testing, under a validation perturbation for
    validation; all others are for training, among them every control cell: controls of held-out contexts are known.

    Parameters
    ----------
    split
        What is held out.
    perturbation, context, batch
        (n,) names of the cells'; one name for all where a set has no such label.
    control
        Label of control cells, if not that of the split.
    ignore_absent
        Go on where a name of the split has no cell to hold out, as in sub-samples; `Roles.absent` lists them.

    Raises
    ------
    ScreproError
        Arrays of different lengths; there is no control cell; a held-out context or batch does not occur, or a
        validation or test perturbation not in it; or nothing is left to test.
    """
    given, where, lot = (np.asarray(names).astype(str) for names in (perturbation, context, batch))
    if not given.shape == where.shape == lot.shape or given.ndim != 1:
        raise ScreproError(
            "Every cell has one perturbation, one context and one batch.",
            got=f"arrays of shape {given.shape}, {where.shape}, {lot.shape}",
            fix="pass three arrays of names, one entry per cell",
        )
    control = control or split.control
    if not (given == control).any():
        raise ScreproError(
            "There are control cells.",
            got=f"no cell called {control!r}; {', '.join(sorted(set(given))[:6])}",
            fix="name the control's label",
        )
    excluded = np.isin(lot, split.excluded_batches)
    held = (np.isin(where, split.held_out_contexts) | np.isin(lot, split.held_out_batches)) & ~excluded
    role = np.full(len(given), ROLES[0], dtype=f"<U{max(map(len, ROLES))}")
    for name in ("validation", "test"):
        role[held & np.isin(given, getattr(split, name))] = name
    role[given == control] = "train"
    role[excluded] = "excluded"
    absent = _missing(split.held_out_contexts, where) + _missing(split.held_out_batches, lot)
    absent += _missing((*split.validation, *split.test), given[held])
    if absent and not ignore_absent:
        raise ScreproError(
            "Every name of a split has cells: contexts and batches anywhere, perturbations in those held out.",
            got=f"none of {', '.join(absent[:6])}{f' and {len(absent) - 6} more' if len(absent) > 6 else ''}",
            fix="check the columns and the names, or pass ignore_absent=True for a sub-sample",
        )
    if not (role == "test").any():
        raise ScreproError(
            "Some cells are left to test.", got="none of the test perturbations", fix="use more cells, or another split"
        )
    return Roles(role, tuple(absent))


def _missing(names: Iterable[str], found: np.ndarray) -> list[str]:
    there = set(found)
    return [name for name in names if name not in there]
