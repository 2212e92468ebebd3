"""What the pages need from Sphinx and do not find there.

* ``{verdict}`supported``` and ``{state}`done```: a badge that says its word, has a shape and a colour.
* ``{src}`screpro.models.scdiff.ScDiff```: a link to those very lines. A name that is not there is a
  warning, and the book is built with warnings as errors, so prose and code cannot drift apart.
* every table stands in a box of its own that scrolls sideways, by keyboard too;
* a notebook page says which source file it was made from;
* formulas are set by a copy of MathJax that travels with the book, so that it reads without a network.
"""

import ast
import importlib.util
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

log = logging.getLogger(__name__)

# word on the page -> (css class, shape); the shape carries the meaning where colour does not
BADGES = {
    "supported": ("good", "●"),
    "contradicted": ("bad", "▲"),
    "inconclusive": ("open", "◆"),
    "not tested yet": ("none", "○"),
    "not testable here": ("none", "□"),
    "done": ("good", "●"),
    "not yet": ("none", "○"),
    "drawing": ("none", "–"),
}

MATHJAX = "tex-mml-chtml.js"

_TABLE = re.compile(r"<table\b|</table>", re.IGNORECASE)
_BOX_ALREADY = re.compile(r'<div [^>]*class="(table-box|screpro-table|pst-scrollable-table-container)"[^>]*>\s*$')
_BOX = '<div class="table-box" tabindex="0" role="region" aria-label="table, scrolls sideways">'


class Badge(SphinxRole):
    """Role for a word of a fixed vocabulary."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the badge as an inline node."""
        word = self.text.strip().lower()
        if word not in BADGES:
            message = f"unknown badge {self.text!r}; use one of: {', '.join(BADGES)}"
            log.warning(message, location=self.get_location())
            return [nodes.inline(self.text, self.text)], []
        kind, shape = BADGES[word]
        return [nodes.inline(self.text, f"{shape} {word}", classes=["badge-word", f"badge-{kind}"])], []


class Source(SphinxRole):
    """Role for a dotted name inside this repository."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return a link to the lines that define the name."""
        root = Path(self.env.srcdir)
        found = locate(root, self.text.strip())
        literal = nodes.literal(self.text, self.text.strip().removeprefix("screpro."))
        if found is None:
            log.warning(f"no such name in the sources: {self.text}", location=self.get_location())
            return [literal], []
        path, first, last = found
        base = self.config.html_theme_options.get("repository_url", "").rstrip("/")
        lines = f"#L{first}-L{last}" if first else ""
        link = f"{base}/blob/main/{path.as_posix()}{lines}"
        return [nodes.reference("", "", literal, refuri=link, classes=["src"])], []


def locate(root: Path, dotted: str) -> tuple[Path, int, int] | None:
    """Find ``package.module.Name.attribute`` by reading, not importing.

    Returns
    -------
    tuple or None
        Path relative to `root`, first and last line (0, 0 for a whole module).
    """
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        base = Path(*parts[:cut])
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if (root / candidate).is_file():
                return _inside(root, candidate, parts[cut:])
    return None


def _inside(root: Path, path: Path, names: list[str]) -> tuple[Path, int, int] | None:
    node: ast.AST = ast.parse((root / path).read_text(encoding="utf-8"))
    first = last = 0
    for name in names:
        for child in ast.iter_child_nodes(node):
            targets = [child.target] if isinstance(child, ast.AnnAssign) else getattr(child, "targets", [])
            named = getattr(child, "name", None)
            if named == name or any(getattr(target, "id", None) == name for target in targets):
                node, first, last = child, child.lineno, child.end_lineno
                break
        else:
            return None
    return path, first, last


def box_tables(html: str) -> str:
    """Put every outermost table that has no scrolling box yet into one."""
    out, depth, done, boxed = [], 0, 0, False
    for match in _TABLE.finditer(html):
        opening = match.group().lower() == "<table"
        if opening:
            if depth == 0:
                out.append(html[done : match.start()])
                done = match.start()
                boxed = not _BOX_ALREADY.search(out[-1][-200:])
                if boxed:
                    out.append(_BOX)
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                out.append(html[done : match.end()])
                done = match.end()
                if boxed:
                    out.append("</div>")
    out.append(html[done:])
    return "".join(out)


def finish_page(app, pagename, templatename, context, doctree) -> None:
    """Box the tables; on notebook pages, name the source."""
    body = context.get("body")
    if not body:
        return
    body = box_tables(body)
    source = Path(app.srcdir) / f"{pagename}.py"
    if pagename.startswith("notebooks/") and source.is_file():
        base = app.config.html_theme_options.get("repository_url", "").rstrip("/")
        body += (
            f'<p class="page-source">Source of this page: '
            f'<a href="{base}/blob/main/{pagename}.py"><code>{pagename}.py</code></a></p>'
        )
    context["body"] = body


def mathjax_source() -> Path | None:
    """Folder of the MathJax that the package ``django-static-mathjax`` brings; None if it is not installed."""
    spec = importlib.util.find_spec("mathjax")
    folder = Path(spec.origin).parent / "static" / "mathjax" / "es5" if spec and spec.origin else None
    return folder if folder and (folder / MATHJAX).is_file() else None


def use_own_mathjax(app, config) -> None:
    """Point the pages at the copy instead of a server on the internet."""
    if mathjax_source() is not None:
        config.mathjax_path = f"mathjax/{MATHJAX}"


def copy_mathjax(app, exception) -> None:
    """Put MathJax and its fonts beside the pages."""
    source = mathjax_source()
    if exception is not None or app.builder.format != "html" or source is None:
        return
    target = Path(app.outdir) / "_static" / "mathjax"
    fonts = Path("output", "chtml", "fonts", "woff-v2")
    shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)
    shutil.copyfile(source / MATHJAX, target / MATHJAX)
    shutil.copyfile(source.parent / "LICENSE", target / "LICENSE")


def setup(app) -> dict:
    """Register roles and hooks with Sphinx."""
    app.connect("config-inited", use_own_mathjax)
    app.connect("build-finished", copy_mathjax)
    app.add_role("verdict", Badge())
    app.add_role("state", Badge())
    app.add_role("src", Source())
    app.connect("html-page-context", finish_page, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
