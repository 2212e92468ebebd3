"""What the pages of PerturbDiff's sets of cells refuse before anything starts."""

import pytest

from screpro.errors import ScreproError
from screpro.records import parameters, sources
from screpro.tasks import responses_experiment, set_ablations


def sheet(page):
    return parameters.read(sources.names()[f"perturbdiff/{page}"])


@pytest.mark.parametrize(
    ("page", "name", "known"),
    [
        ("ablation", "trainings", list(set_ablations.TRAININGS)),
        ("ablation", "samplings", list(set_ablations.SAMPLINGS)),
        ("main_results", "methods", [*responses_experiment.METHODS, *responses_experiment.OPTIONAL]),
    ],
)
def test_lists_of_names_know_their_names(page, name, known):
    """All that the library has, and nothing else: an unknown one is refused at once, with the nearest."""
    assert sheet(page)[name].choices == tuple(known)
    assert parameters.resolve(sheet(page), {name: known[:2]})[name] == known[:2]
    with pytest.raises(ScreproError, match=name):
        parameters.resolve(sheet(page), {name: [known[0], "nothing"]})


def test_each_width_of_the_three_sizes_is_a_parameter_of_its_own():
    """A list of the wrong length could only be refused once the notebook runs."""
    names = ["width_small", "width_medium", "width_large"]
    assert parameters.resolve(sheet("scaling"), {names[0]: "8"})[names[0]] == 8
    assert all(str(sheet("scaling")[name].type) == "int | None" and sheet("scaling")[name].low == 8 for name in names)
    with pytest.raises(ScreproError, match="width_small"):
        parameters.resolve(sheet("scaling"), {"widths": "[8]"})
