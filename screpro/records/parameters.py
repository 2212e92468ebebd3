"""The parameters of a notebook: read from its source, checked before anything starts.

The cell tagged ``parameters`` holds annotated literals, each with a trailing comment::

    learning_rate: float | None = None  # step size of AdamW; None takes the tier's value [1e-6..1]

The comment is the meaning, then optionally a range ``[low..high]`` (for each element of a list) or choices
``{a, b}``. Types are ``bool int float str``, ``list[...]``, ``dict[str, ...]``, each also ``| None``. The
cell is parsed, never run.
"""

import ast
import io
import json
import math
import re
import shlex
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from screpro.errors import ScreproError
from screpro.records import sources

__all__ = ["Parameter", "Sheet", "Type", "command", "full_command", "read", "resolve", "to_text"]

_LIMITS = re.compile(
    r"\s*(?:\[\s*(?P<low>[^\[\]\s]*?)\s*\.\.\s*(?P<high>[^\[\]\s]*?)\s*\]|\{(?P<choices>[^{}]+)\})\s*$"
)


@dataclass(frozen=True)
class Type:
    """``kind`` is one of bool, int, float, str, list, dict; ``item`` is what a list or dict holds."""

    kind: str
    item: "Type | None" = None
    optional: bool = False

    def __str__(self) -> str:
        base = {"list": f"list[{self.item}]", "dict": f"dict[str, {self.item}]"}.get(self.kind, self.kind)
        return base + (" | None" if self.optional else "")


@dataclass(frozen=True)
class Parameter:
    """One line of the sheet."""

    name: str
    type: Type
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """Range or choices as text; empty when anything of the type will do."""
        if self.choices:
            return ", ".join(self.choices)
        if self.low is None:
            return ""
        ends = ["" if math.isinf(end) else f"{end:.0f}" if end >= 1e4 else f"{end:g}" for end in (self.low, self.high)]
        return f"{ends[0]} to {ends[1]}" if all(ends) else f"at least {ends[0]}" if ends[0] else f"at most {ends[1]}"


@dataclass(frozen=True)
class Sheet:
    """The parameters of one notebook, in the order of its cell; `notebook` as the command line takes it."""

    notebook: str
    parameters: tuple[Parameter, ...]

    def __getitem__(self, name: str) -> Parameter:
        return next(p for p in self.parameters if p.name == name)

    @property
    def names(self) -> list[str]:
        return [p.name for p in self.parameters]

    @property
    def defaults(self) -> dict[str, Any]:
        return {p.name: p.default for p in self.parameters}


# --- reading --------------------------------------------------------------------------------------------


def read(path: str | Path) -> Sheet:
    """Read the parameter sheet of a notebook source.

    Raises
    ------
    ScreproError
        The cell is missing or doubled, holds something else than annotated literals with comments, or a
        default breaks its own type, range or choices.
    """
    source = sources.read(path)
    tagged = [cell for cell in source.cells if "parameters" in cell.tags]
    if len(tagged) != 1:
        raise ScreproError(
            "a notebook has one cell tagged parameters",
            got=f"{len(tagged)} in {source.name}",
            fix='begin the cell with `# %% tags=["parameters"]`',
        )
    return Sheet(source.spelling, tuple(_read_cell(tagged[0], source.name)))


def _read_cell(cell: sources.Cell, notebook: str) -> Iterable[Parameter]:
    seen: set[str] = set()
    try:
        body = ast.parse(cell.text).body
    except SyntaxError as error:
        raise ScreproError(
            "the parameters cell is Python",
            got=f"{error.msg} ({notebook}, line {cell.line + (error.lineno or 1) - 1})",
            fix="write `name: type = literal  # meaning`",
        ) from None
    comments = _comments(cell.text)
    for statement in body:
        where = f"{notebook}, line {cell.line + statement.lineno - 1}"
        if not (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value is not None
        ):
            raise ScreproError(
                "the parameters cell holds annotated literals only",
                got=f"{ast.unparse(statement)!r} ({where})",
                fix="write `name: type = literal  # meaning`",
            )
        name = statement.target.id
        if name in seen:
            raise ScreproError("a parameter is defined once", got=f"{name} ({where})", fix="remove one of them")
        seen.add(name)
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            raise ScreproError(
                "the default of a parameter is a literal",
                got=f"{ast.unparse(statement)} ({where})",
                fix="write the value itself, and compute from it in a later cell",
            ) from None
        comment = " ".join(comments[n] for n in range(statement.lineno, statement.end_lineno + 1) if n in comments)
        if not comment:
            raise ScreproError(
                "every parameter says what it means",
                got=f"{name} without a comment ({where})",
                fix="add `# ...`",
            )
        parameter = _parameter(name, _type(statement.annotation, where), default, comment, where)
        try:
            _check(parameter, default)
        except ScreproError as error:
            raise ScreproError(f"the default of {name} is valid ({where})", got=error.got, fix=error.fix) from None
        yield parameter


def _comments(text: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}


def _type(node: ast.expr, where: str) -> Type:
    text = ast.unparse(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and ast.unparse(node.right) == "None":
        inner = _type(node.left, where)
        return Type(inner.kind, inner.item, optional=True)
    if text in ("bool", "int", "float", "str"):
        return Type(text)
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value)
        if outer == "list":
            return Type("list", _type(node.slice, where))
        if outer == "dict" and isinstance(node.slice, ast.Tuple) and ast.unparse(node.slice.elts[0]) == "str":
            return Type("dict", _type(node.slice.elts[1], where))
    raise ScreproError(
        "a parameter is bool, int, float, str, list[...] or dict[str, ...], or one of these | None",
        got=f"{text} ({where})",
        fix="choose one of them",
    )


def _parameter(name: str, type_: Type, default: Any, comment: str, where: str) -> Parameter:
    limits = _LIMITS.search(comment)
    meaning = comment[: limits.start()].strip() if limits else comment
    if not limits:
        return Parameter(name, type_, default, meaning)
    if limits["choices"]:
        choices = tuple(c.strip() for c in limits["choices"].split(","))
        return Parameter(name, type_, default, meaning, choices=choices)
    try:
        low = float(limits["low"]) if limits["low"] else -math.inf
        high = float(limits["high"]) if limits["high"] else math.inf
    except ValueError:
        raise ScreproError(
            "a range is [low..high] with two numbers",
            got=f"{limits[0].strip()} ({where})",
            fix="write [0..1]",
        ) from None
    return Parameter(name, type_, default, meaning, low=low, high=high)


# --- checking -------------------------------------------------------------------------------------------


def resolve(sheet: Sheet, given: Iterable[tuple[str, str]] | Mapping[str, Any] = ()) -> dict[str, Any]:
    """Values of all parameters: the given ones, parsed by their annotation, over the defaults.

    Parameters
    ----------
    sheet
        From `read`.
    given
        Pairs of name and text from the command line, or a mapping whose values may also be Python values.
        ``1e-4`` is a float; bools are ``true`` and ``false``; lists and dicts are JSON or Python literals,
        ``[0, 1]`` (with the brackets); None is ``none`` or ``null``. The last of two equal names counts.

    Raises
    ------
    ScreproError
        Unknown name (names the nearest), wrong type, outside the range or choices (names them), or an empty list
        where the default is not one.
    """
    values = dict(sheet.defaults)
    for name, value in given.items() if isinstance(given, Mapping) else given:
        if name not in values:
            raise ScreproError(
                f"{sheet.notebook} has the parameters {', '.join(sheet.names)}",
                got=name + sources.nearest(name, sheet.names),
                fix=f"see `screpro params {sheet.notebook}`",
            )
        parameter = sheet[name]
        if isinstance(value, str):
            value = _parse(parameter, value)
        values[name] = _check(parameter, value)
    return values


def _parse(parameter: Parameter, text: str) -> Any:
    kind = parameter.type.kind
    bare = text.strip()
    if parameter.type.optional and bare.lower() in ("none", "null"):
        return None
    if kind == "str":
        return text
    if kind == "bool" and bare.lower() in ("true", "false"):
        return bare.lower() == "true"
    if kind == "int" and re.fullmatch(r"[+-]?[0-9]+", bare):
        return int(bare)
    if kind == "float" and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", bare):
        return float(bare)
    if kind in ("list", "dict"):
        for parser in (json.loads, ast.literal_eval):
            try:
                return parser(bare)
            except (ValueError, SyntaxError):
                continue
    raise _wrong_type(parameter, text)


_LISTS = {"int": "[0, 1]", "float": "[0.1, 1]", "str": '["a", "b"]'}


def _wrong_type(parameter: Parameter, value: Any) -> ScreproError:
    example = {
        "bool": "true or false",
        "int": "a whole number such as 3",
        "float": "a number such as 1e-4",
        "str": "a text",
        "list": f"a list such as '{_LISTS.get(str(parameter.type.item), '[0, 1]')}', with the brackets",
        "dict": "a mapping such as '{\"a\": 1}'",
    }[parameter.type.kind]
    if parameter.type.optional:
        example += ", or none"
    return ScreproError(
        f"{parameter.name} is {parameter.type}",
        got=value if isinstance(value, str) else repr(value),
        fix=f"give {example}",
    )


def _check(parameter: Parameter, value: Any) -> Any:
    value = _fit(parameter, parameter.type, value)
    if value == [] and parameter.default != []:  # pages read it as "the tier's", which is what none says
        raise ScreproError(
            f"{parameter.name} is not an empty list",
            got="[]",
            fix=f"give at least one{', or none' if parameter.type.optional else ''}",
        )
    for element in _leaves(value):
        if parameter.choices and to_text(element) not in parameter.choices:
            raise ScreproError(
                f"{parameter.name} is one of {parameter.range}",
                got=to_text(element) + sources.nearest(to_text(element), parameter.choices),
                fix="choose one of them",
            )
        numeric = isinstance(element, int | float) and not isinstance(element, bool)
        if parameter.low is not None and numeric and not parameter.low <= element <= parameter.high:
            raise ScreproError(
                f"{parameter.name} is in the range {parameter.range}",
                got=to_text(element),
                fix="choose a value inside the range",
            )
    return value


def _fit(parameter: Parameter, type_: Type, value: Any) -> Any:
    if value is None and type_.optional:
        return None
    if type_.kind == "list" and isinstance(value, list):
        return [_fit(parameter, type_.item, v) for v in value]
    if type_.kind == "dict" and isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: _fit(parameter, type_.item, v) for k, v in value.items()}
    if type_.kind == "bool" and isinstance(value, bool):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if type_.kind == "float" and number and math.isfinite(value):
        return float(value)
    if type_.kind == "int" and number and isinstance(value, int):
        return value
    if type_.kind == "str" and isinstance(value, str):
        return value
    raise _wrong_type(parameter, value)


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, list | dict):
        for element in value.values() if isinstance(value, dict) else value:
            yield from _leaves(element)
    elif value is not None:
        yield value


# --- writing --------------------------------------------------------------------------------------------


def to_text(value: Any) -> str:
    """The text that `resolve` reads back as `value`."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    return json.dumps(value)


def command(sheet: Sheet, values: Mapping[str, Any] | None = None) -> str:
    """``screpro run ...`` with every value that differs from its default."""
    changed = [(n, v) for n, v in (values or {}).items() if v != sheet[n].default]
    parts = ["screpro", "run", sheet.notebook]
    for name, value in changed:
        parts += ["--tier", value] if name == "tier" else ["-p", name, to_text(value)]
    return shlex.join(parts)


def full_command(sheet: Sheet) -> str:
    """``screpro run ...`` with every parameter at its default, one a line, to copy and edit."""
    lines = [f"screpro run {sheet.notebook}"]
    lines += [f"  -p {p.name} {shlex.quote(to_text(p.default))}" for p in sheet.parameters]
    return " \\\n".join(lines)
