"""The metric atlas: a page for every metric of the catalogue, written from its docstring, and a table of all.

The docstring is MyST text in numpy-style sections. Names of other metrics in backticks become links; parameters become
a definition list; lines of an example become a code block. What a page says is therefore what the code says, and the
numbers of its example are those that a test has run.
"""

import inspect
import re
from pathlib import Path

from screpro import paths
from screpro.book_myst import escape, pipe_table
from screpro.metrics.catalogue import FAMILIES, SECTIONS, Metric, catalogue

__all__ = ["metric_page", "metrics_part", "pages", "sections", "write_pages"]

FOLDER = "metrics"
PART = "metrics.md"

HEADINGS = {"Examples": "Worked example", "Returns": "Result", "Raises": "Errors"}
"""Sections that read differently on a page; every other keeps its name."""

ORDER = (*SECTIONS[:-1], "Raises", "Examples")
"""Order of the sections on a page."""

_UNDERLINED = re.compile(r"^(\S[^\n]*)\n-{3,}\n", re.MULTILINE)
_NAME = re.compile(r"(?<!`)(`{1,2})(\w+)\1(?!`)")


def pages() -> list[str]:
    """Generated files of the atlas under ``book/generated``, as ``_toc.yml`` names them; quick, no metric is imported.

    A test compares them with the catalogue.
    """
    text = (paths.root() / "_toc.yml").read_text(encoding="utf-8")
    names = re.findall(rf"^\s*- file: book/generated/{FOLDER}/(\w+)$", text, re.MULTILINE)
    return [PART, *(f"{FOLDER}/{name}.md" for name in names)]


def sections(docstring: str) -> dict[str, str]:
    """Text of every section of a docstring, in order; what stands before the first one is ``""``."""
    parts = _UNDERLINED.split(inspect.cleandoc(docstring))
    return {"": parts[0].strip()} | {
        name.strip(): text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def metric_page(metric: Metric) -> str:
    """MyST page of one metric."""
    known = sections(metric.function.__doc__)
    module = metric.function.__module__
    call = f"{metric.name}{_signature(metric)}"
    out = [
        f"# {escape(metric.title)}\n",
        _linked(known.pop(""), metric.name),
        "",
        f"*{escape(FAMILIES[metric.family])}* {metric.direction.capitalize()} is better.\n",
        f"```python\nfrom {module} import {metric.name}\n\n{call}\n```\n",
    ]
    for name in sorted(known, key=ORDER.index):
        out.append(f"## {HEADINGS.get(name, name)}\n")
        if name in ("Parameters", "Returns", "Raises"):
            out.append(_definitions(known[name], metric.name, split=name == "Parameters"))
        elif name == "Examples":
            out.append(_example(known[name], metric.name))
        else:
            out.append(_linked(known[name], metric.name) + "\n")
    out.append(f"Source: {{src}}`{module}.{metric.name}`. [All metrics](../../metric_atlas.md).\n")
    return "\n".join(out)


def metrics_part() -> str:
    """Every metric by family: title, direction, unit and where it is used."""
    every, out = catalogue().values(), []
    for family, question in FAMILIES.items():
        rows = []
        for metric in every:
            if metric.family == family:
                known = sections(metric.function.__doc__)
                link = f"{{doc}}`{escape_title(metric.title)} </book/generated/{FOLDER}/{metric.name}>`"
                arrow = {"higher": "↑ higher", "lower": "↓ lower"}
                better = arrow.get(metric.direction, metric.direction.replace("closer to", "→"))
                rows.append([link, better, _first(known["Unit"], stops="."), _first(known["Used in"])])
        out.append(f"## {family.capitalize()}\n\n{question}\n")
        out.append(pipe_table(["Metric", "Better", "Unit", "Used in"], rows))
    return "\n".join(out)


def escape_title(title: str) -> str:
    """A title inside a role, where a backtick or an angle bracket would end it."""
    return re.sub(r"[`<>|\\]", "", title)


def write_pages() -> list[Path]:
    """Write the table and a page for every metric under ``book/generated`` and return the paths."""
    folder = paths.root() / "book" / "generated"
    texts = {PART: metrics_part()}
    texts |= {f"{FOLDER}/{name}.md": metric_page(metric) for name, metric in catalogue().items()}
    for name, text in texts.items():
        with paths.atomic_path(folder / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _signature(metric: Metric) -> str:
    """Names and defaults of the arguments, without types."""
    signature = inspect.signature(metric.function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def _linked(text: str, own: str) -> str:
    """Prose in which every other metric named in backticks is a link to its page."""
    others = catalogue().keys() - {own}

    def link(match: re.Match) -> str:
        return f"{{doc}}`{match[2]} <{match[2]}>`" if match[2] in others else match[0]

    return _NAME.sub(link, text)


def _definitions(text: str, own: str, *, split: bool) -> str:
    """Numpy-style entries as a MyST definition list; `split` where one entry may name several."""
    out = []
    for entry in re.split(r"\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        names, colon, kind = head.partition(" : ")
        if not body.strip():  # said in one line
            out.append(_linked(head, own) + "\n")
            continue
        term = ", ".join(f"`{name.strip()}`" for name in (names.split(",") if split else [names]))
        lines = inspect.cleandoc(body).splitlines()
        first = f"{kind}. {lines[0]}" if colon else lines[0]
        rest = [f"  {_linked(line, own)}".rstrip() for line in lines[1:]]
        out.append("\n".join([term, f": {_linked(first, own)}", *rest]) + "\n")
    return "\n".join(out)


def _example(text: str, own: str) -> str:
    """Prose and doctest blocks; a block runs from ``>>>`` to the next empty line."""
    out = []
    for block in re.split(r"\n\s*\n", text):
        prose, prompt, code = block.partition(">>>")
        if prose.strip():
            out.append(_linked(prose.strip(), own) + "\n")
        if prompt:
            out.append(f"```pycon\n>>>{code}\n```\n")
    return "\n".join(out)


def _first(text: str, *, stops: str = ".;:") -> str:
    """What a section says before the first of the `stops`, fit for a cell of a table."""
    sentence = re.split(rf"(?<=[{stops}])\s", " ".join(text.split()), maxsplit=1)[0].rstrip(stops)
    return sentence.replace("|", "\\|")
