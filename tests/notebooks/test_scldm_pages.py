"""What scLDM's pages say of equations and heads is what the paper and the code have."""

import re
from pathlib import Path

import pytest

from screpro.tasks.autoencoder import AutoEncoderSettings

PAGES = Path(__file__).resolve().parents[2] / "notebooks" / "scldm"
TABLES = ("ablations", "embeddings", "generation", "interpretability", "perturbation", "reconstruction")


def numbers(text):
    """Equation numbers of the first cell of a table: "2 to 7, auto-encoder", "8 and 39: guidance", "13, 14"."""
    found = re.match(r"(?:[a-z ,-]*eqs?\.? )?((?:\d+(?: to | and |, )?)+)", text)
    if not found:
        return []
    listed = []
    for part in re.split(" and |, ", found[1].strip(", ")):
        first, _, last = part.partition(" to ")
        listed += range(int(first), int(last or first) + 1)
    return listed


def table_rows(page):
    """(first cell, names of the code in the row) of every table row of a page that names code."""
    for line in (PAGES / f"{page}.py").read_text(encoding="utf-8").splitlines():
        names = re.findall(r"\{src\}`screpro\.([^`]+)`", line)
        if line.startswith("# |") and names:
            yield line.split("|")[1].strip(), names


@pytest.mark.parametrize("page", TABLES)
def test_equation_numbers_are_those_of_the_list_of_every_equation(page):
    listed = {}  # number -> modules
    for first, names in table_rows("exchangeability"):
        for number in numbers(first):
            listed.setdefault(number, set()).update(".".join(name.split(".")[:2]) for name in names)
    assert listed[8] == {"samplers.guidance"} and listed[13] == {"models.scldm_variants"}
    for first, names in table_rows(page):
        modules = {module for number in numbers(first) for module in listed[number]}
        assert not modules or any(name.startswith(tuple(modules)) for name in names), f"{first} is not about {names}"


@pytest.mark.parametrize(("where", "field"), [("blocks", "heads"), ("cross-attention", "cross_heads")])
def test_heads_of_small_networks_are_those_of_the_code(where, field):
    text = (PAGES / "settings.py").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith(f"# | heads, {where} |"))
    assert int(re.search(r"\d+", line.split("|")[4])[0]) == getattr(AutoEncoderSettings(), field)
