"""The paper's hyper-parameters, sizes and statistics."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from screpro.data.registry import entries
from screpro.errors import ScreproError
from screpro.tasks.annotation import PRESETS
from screpro.tasks.presets import DATASETS, FEW_SHOT, TABLE_3, parameter_count, parameter_formula, preset
from screpro.tasks.set_statistics import few_shot_table, majority, reason_not_here, scaled_threshold, statistics_of


def test_rates_are_base_times_batch():
    assert preset("Annotation", "PBMC12K").learning_rate == pytest.approx(2.048e-5)
    assert preset("Annotation", "Immune (subset)").learning_rate == pytest.approx(2.048e-4)
    assert preset("Perturbation", "PBMC").learning_rate == pytest.approx(1.024e-5)


def test_annotation_preset_is_the_one_the_annotation_page_uses():
    ours, theirs = preset("Annotation", "PBMC12K").settings(), PRESETS["paper"]
    for name in ("width", "depth", "heads", "epochs", "batch_size", "schedule", "drop", "empty_context"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.learning_rate == pytest.approx(theirs.learning_rate)


def test_epochs_by_task():
    epochs = {}
    for row in TABLE_3:
        epochs.setdefault(row.task, set()).add(row.epochs)
    assert epochs == {"Denoising": {3000}, "Annotation": {2000}, "Perturbation": {1000}, "Gene Pert": {50, 100, 150}}
    assert {row.drop for row in TABLE_3 if row.task == "Gene Pert"} == {0.0}


def test_unknown_preset_names_the_known():
    with pytest.raises(ScreproError, match="Annotation / Brain"):
        preset("Annotation", "Brian")


def test_table_4_agrees_with_the_registry():
    for own in DATASETS:
        entry = entries()[own.registry]
        assert own.name in str(entry.used_in)
        assert (entry.cells, entry.genes) == (own.cells, own.genes)
    assert {row.dataset for row in TABLE_3} == {own.name for own in DATASETS}


@pytest.mark.parametrize(
    "genes, types, batches, width, depth", [(30, 0, 0, 16, 2), (11, 4, 3, 24, 1), (50, 3, 0, 8, 4)]
)
def test_formula_counts_the_module(genes, types, batches, width, depth):
    classes = {"cell_type": types} if types else {}
    counted = parameter_count(genes, width=width, depth=depth, heads=4, classes=classes, n_batches=batches)
    assert counted == parameter_formula(genes, width=width, depth=depth, class_rows=types, n_batches=batches)


def test_counts_at_the_papers_sizes():
    # counted on the authors' network, in millions; theirs has an unused LayerNorm in each of six blocks, 6 144 in all
    theirs = {"PBMC12K": 31.8, "Pancreas": 52.4, "HLCA (subset)": 70.1, "Immune (subset)": 58.7, "Brain": 67.5}
    theirs |= {"Liver": 61.4, "Jurkat": 46.2, "293T": 47.6, "PBMC1K": 46.5}
    for own in DATASETS:
        if own.name in theirs and own.task != "Perturbation":
            rows = own.types + 1 if own.types else 0
            batches = own.batches + 1 if own.batches else 0
            count = parameter_formula(own.genes, class_rows=rows, n_batches=batches) + 6144
            assert count / 1e6 == pytest.approx(theirs[own.name], abs=0.051)
    assert (parameter_formula(0) + 6144) / 1e6 == pytest.approx(26.81, abs=0.005)
    assert parameter_formula(1) - parameter_formula(0) == 1537


def toy():
    counts = np.array([[1, 0, 2], [0, 0, 0], [3, 0, 0], [1, 0, 1], [0, 0, 1]], dtype=np.float32)
    obs = pd.DataFrame(
        {"cell_type": ["a", "b", "a", "c", "unassigned"], "condition": ["x", "x", "y", "y", "y"]}, index=list("12345")
    )
    return AnnData(sp.csr_matrix(counts), obs=obs)


def test_statistics_count_what_is_left_after_preprocessing():
    own = statistics_of("toy", toy())
    assert (own.cells, own.genes) == (4, 2)  # a cell and a gene without counts are gone
    assert (own.batches, own.types, own.conditions) == (None, 2, 2)
    assert own.zeros == pytest.approx(1 / 4)
    assert own.median_counts == 2.5
    assert own.type_sizes.to_dict() == {"a": 2, "c": 1}  # the unassigned cell is in none


def test_majority_and_minority_share_the_cells():
    sizes = pd.Series({"a": 60, "b": 30, "c": 10})
    split = majority(sizes, 30)
    assert (split.majority_types, split.majority_cells, split.minority_types, split.minority_cells) == (2, 90, 1, 10)
    with pytest.raises(ScreproError):
        majority(sizes, 0)


def test_threshold_scales_with_the_cells():
    for few in FEW_SHOT:
        whole = next(own for own in DATASETS if own.name == few.dataset)
        assert scaled_threshold(few, whole.cells) == few.threshold
        assert scaled_threshold(few, 1) == 1
        assert few.majority_types < whole.types and few.majority_cells < whole.cells


def test_few_shot_table_has_a_row_per_threshold_and_labelled_set():
    table = few_shot_table([statistics_of("toy", toy())])
    assert len(table) == len(FEW_SHOT)
    assert (table["majority cells"] + table["minority cells"] == 3).all()
    one_type = toy()[:3].copy()
    assert not len(few_shot_table([statistics_of("one type", one_type)]))


def test_a_set_that_is_not_here_has_a_reason():
    assert reason_not_here("pbmc68k_reduced") is None
    assert reason_not_here("scdiff_liver")
