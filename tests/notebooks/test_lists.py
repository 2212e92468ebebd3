"""The lists of the pages name what exists, and refuse what does not before anything starts."""

import pytest

from screpro.errors import ScreproError
from screpro.models.scdiff_variants import VARIANTS
from screpro.records import parameters, sources
from screpro.tasks import (
    annotation_experiment,
    attention_experiment,
    autoencoder_ablations,
    efficiency,
    embedding_experiment,
    few_shot_experiment,
    framework,
    gene_perturbation_experiment,
    generation_experiment,
    imputation_experiment,
    openproblems,
    openproblems_denoising,
    perturbation_experiment,
    perturbed_cells_experiment,
    reconstruction_experiment,
    responses_experiment,
    set_ablations,
)

NAMES = {
    ("perturbdiff/ablation", "samplings"): set_ablations.SAMPLINGS,
    ("perturbdiff/ablation", "trainings"): set_ablations.TRAININGS,
    ("perturbdiff/main_results", "methods"): [*responses_experiment.METHODS, *responses_experiment.OPTIONAL],
    ("scdiff/ablations", "variants"): VARIANTS,
    ("scdiff/annotation", "methods"): annotation_experiment.METHODS,
    ("scdiff/efficiency", "methods"): efficiency.METHODS,
    ("scdiff/framework", "methods"): framework.METHODS,
    ("scdiff/gene_perturbation", "methods"): gene_perturbation_experiment.METHODS,
    ("scdiff/imputation", "methods"): imputation_experiment.METHODS,
    ("scdiff/one_shot", "methods"): few_shot_experiment.METHODS,
    ("scdiff/openproblems", "methods"): dict.fromkeys([*openproblems.METHODS, *openproblems_denoising.METHODS]),
    ("scdiff/perturbation", "methods"): perturbation_experiment.METHODS,
    ("scldm/ablations", "methods"): autoencoder_ablations.METHODS,
    ("scldm/embeddings", "methods"): embedding_experiment.METHODS,
    ("scldm/generation", "methods"): generation_experiment.METHODS,
    ("scldm/interpretability", "methods"): attention_experiment.METHODS,
    ("scldm/perturbation", "methods"): [*perturbed_cells_experiment.METHODS, "scgpt"],
    ("scldm/reconstruction", "methods"): reconstruction_experiment.METHODS,
}


@pytest.mark.parametrize(("page", "name"), NAMES)
def test_a_list_of_names_has_all_of_them_and_no_other(page, name):
    sheet, known = parameters.read(sources.names()[page]), list(NAMES[page, name])
    assert list(sheet[name].choices) == known
    assert parameters.resolve(sheet, {name: known[:2]})[name] == known[:2]
    for wrong in ([known[0], "nothing"], []):
        with pytest.raises(ScreproError, match=name):
            parameters.resolve(sheet, {name: wrong})


@pytest.mark.parametrize("page", sorted(name for name in sources.names() if name.startswith("scdiff/")))
def test_lists_of_numbers_have_a_range(page):
    for parameter in parameters.read(sources.names()[page]).parameters:
        if parameter.type.kind == "list" and parameter.type.item.kind in ("int", "float"):
            assert parameter.low is not None, parameter.name
