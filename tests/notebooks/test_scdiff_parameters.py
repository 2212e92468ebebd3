"""The lists of scDiff's pages name what exists, and refuse what does not before anything starts."""

from pathlib import Path

import pytest

from screpro.errors import ScreproError
from screpro.models.scdiff_variants import VARIANTS
from screpro.records import parameters
from screpro.tasks import (
    efficiency,
    few_shot_experiment,
    framework,
    gene_perturbation_experiment,
    imputation_experiment,
    openproblems,
    openproblems_denoising,
    perturbation_experiment,
)

PAGES = Path(__file__).resolve().parents[2] / "notebooks" / "scdiff"
NAMES = {
    ("ablations", "variants"): VARIANTS,
    ("efficiency", "methods"): efficiency.METHODS,
    ("framework", "methods"): framework.METHODS,
    ("gene_perturbation", "methods"): gene_perturbation_experiment.METHODS,
    ("imputation", "methods"): imputation_experiment.METHODS,
    ("one_shot", "methods"): few_shot_experiment.METHODS,
    ("openproblems", "methods"): dict.fromkeys([*openproblems.METHODS, *openproblems_denoising.METHODS]),
    ("perturbation", "methods"): perturbation_experiment.METHODS,
}


@pytest.mark.parametrize(("page", "name"), NAMES)
def test_a_list_of_methods_names_all_of_them_and_no_other(page, name):
    sheet = parameters.read(PAGES / f"{page}.py")
    assert sheet[name].choices == tuple(NAMES[page, name])
    for wrong in (["scdif"], []):
        with pytest.raises(ScreproError, match=name):
            parameters.resolve(sheet, {name: wrong})


@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.py")))
def test_lists_of_numbers_have_a_range(page):
    for parameter in parameters.read(PAGES / f"{page}.py").parameters:
        if parameter.type.kind == "list" and parameter.type.item.kind in ("int", "float"):
            assert parameter.low is not None, parameter.name
