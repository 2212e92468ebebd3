"""Choosing a setting: every trial leaves a row, nothing is tried twice, ties go to the first."""

import pytest

from screpro import records
from screpro.tasks.tuning import best_setting, checkpoint_file

WORK = {"dataset": "d", "split": "0, validation", "method": "m", "seed": 0}
GRID = [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.fixture
def run():
    return records.start("scdiff/annotation", tier="ci")


@pytest.mark.parametrize(("direction", "best"), [("higher", {"a": 2}), ("lower", {"a": 1})])
def test_the_best_setting_wins_in_either_direction(run, direction, best):
    value = {1: 0.1, 2: 0.7, 3: 0.7}
    assert best_setting(run, GRID, lambda o: value[o["a"]], work=WORK, metric="f1", direction=direction) == best
    rows = run.frame()
    assert list(rows["value"]) == [0.1, 0.7, 0.7] and set(rows["item"]) == {"tuning"}
    assert list(rows["metric_variant"]) == ['{"a": 1}', '{"a": 2}', '{"a": 3}']


def test_what_was_tried_is_not_tried_again_and_other_work_does_not_count(run):
    tried = []

    def score(options):
        tried.append(options["a"])
        return -options["a"]

    best_setting(run, GRID[:2], score, work=WORK, metric="f1")
    other = WORK | {"method": "other"}
    best_setting(run, [GRID[2]], lambda o: 9.0, work=other, metric="f1")
    assert best_setting(run, GRID, score, work=WORK, metric="f1") == {"a": 1}
    assert tried == [1, 2, 3]


def test_a_training_has_a_file_of_its_own(run):
    files = {checkpoint_file(run, *identity) for identity in (("d", 0), ("d", 1), ("d", 0, {"a": 1}))}
    assert len(files) == 3 and checkpoint_file(run, "d", 0) in files
