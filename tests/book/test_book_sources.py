"""What the sources of the pages must not contain."""

import re

from screpro import paths

ON_DEMAND = (
    r"\\(boldsymbol|bm|cancel|bcancel|xcancel|color|textcolor|require|enclose|ce|braket|bra|ket|unicode|toggle)\b"
)
"""TeX that MathJax loads an extension for on meeting it; from a file it cannot, and no formula of the page renders."""


def test_formulas_need_no_extension():
    sources = [*paths.root().glob("notebooks/*/*.py"), *paths.root().glob("book/**/*.md")]
    sources += [p for p in paths.root().glob("screpro/metrics/**/*.py")]
    assert len(sources) > 30
    found = [f"{path.name}: {hit[0]}" for path in sources for hit in re.finditer(ON_DEMAND, path.read_text("utf-8"))]
    assert not found
