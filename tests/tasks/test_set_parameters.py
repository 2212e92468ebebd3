"""What the pages of PerturbDiff's sets of cells refuse before anything starts."""

import pytest

from screpro.errors import ScreproError
from screpro.records import parameters, sources


def sheet(page):
    return parameters.read(sources.names()[f"perturbdiff/{page}"])


def test_each_width_of_the_three_sizes_is_a_parameter_of_its_own():
    """A list of the wrong length could only be refused once the notebook runs."""
    names = ["width_small", "width_medium", "width_large"]
    assert parameters.resolve(sheet("scaling"), {names[0]: "8"})[names[0]] == 8
    assert all(str(sheet("scaling")[name].type) == "int | None" and sheet("scaling")[name].low == 8 for name in names)
    with pytest.raises(ScreproError, match="width_small"):
        parameters.resolve(sheet("scaling"), {"widths": "[8]"})
