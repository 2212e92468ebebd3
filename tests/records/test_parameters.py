"""The sheet says what the cell says, and nothing invalid gets past it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from screpro.errors import ScreproError
from screpro.records import parameters, sources

CELL = """\
tier: str = "ci"  # how much to run {ci, laptop, paper}
dataset: str = "pbmc68k_reduced"  # registry name or path # of an .h5ad
seeds: list[int] = [0]  # one run per seed [0..100000]
learning_rate: float | None = None  # step size; None takes the tier's value [1e-6..1]
shared_noise: bool = True  # the same noise for every candidate
widths: dict[str, int] = {
    "model": 128,
    "head": 64,
}  # of every part [1..]
shift: int = -1  # any whole number
methods: list[str] | None = None  # which to run; None runs all
"""


def write(folder, cell):
    path = folder / "paper" / "page.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'# ---\n# ---\n\n# %% [markdown]\n# # A title\n\n# %% tags=["parameters"]\n{cell}\n# %%\n1 + 1\n')
    return path


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    return parameters.read(write(tmp_path_factory.mktemp("nb"), CELL))


def test_sheet_has_name_type_default_range_and_meaning(sheet):
    assert [(p.name, str(p.type)) for p in sheet.parameters] == [
        ("tier", "str"),
        ("dataset", "str"),
        ("seeds", "list[int]"),
        ("learning_rate", "float | None"),
        ("shared_noise", "bool"),
        ("widths", "dict[str, int]"),
        ("shift", "int"),
        ("methods", "list[str] | None"),
    ]
    assert sheet.defaults["widths"] == {"model": 128, "head": 64} and sheet.defaults["shift"] == -1
    assert sheet["tier"].choices == ("ci", "laptop", "paper") and sheet["tier"].meaning == "how much to run"
    assert (sheet["learning_rate"].low, sheet["learning_rate"].high) == (1e-6, 1.0)
    assert sheet["learning_rate"].meaning == "step size; None takes the tier's value"
    assert sheet["widths"].range == "at least 1" and sheet["shift"].range == ""


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", "1", 1.0),
        ("learning_rate", "none", None),
        ("learning_rate", "null", None),
        ("shared_noise", "false", False),
        ("shared_noise", "True", True),
        ("seeds", "[0, 1]", [0, 1]),
        ("widths", '{"model": 8}', {"model": 8}),
        ("widths", "{'model': 8}", {"model": 8}),
        ("dataset", "1e-4", "1e-4"),
        ("dataset", "none", "none"),
        ("dataset", "true", "true"),
        ("shift", "-3", -3),
    ],
)
def test_text_is_read_by_the_annotation(sheet, name, text, value):
    got = parameters.resolve(sheet, [(name, text)])[name]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("lerning_rate", "1e-4", "did you mean learning_rate"),
        ("learning_rate", "fast", "1e-4, or none"),
        ("learning_rate", "nan", "a number"),
        ("learning_rate", "inf", "a number"),
        ("learning_rate", "2", "1e-06 to 1"),
        ("tier", "huge", "ci, laptop, paper"),
        ("tier", "laptp", "did you mean laptop"),
        ("seeds", "0, 1", r"'\[0, 1\]', with the brackets"),
        ("seeds", "[]", "at least one$"),
        ("methods", "[]", "at least one, or none"),
        ("methods", "scdiff", r"""'\["a", "b"\]', with the brackets"""),
        ("seeds", "[0.5]", "a list"),
        ("seeds", "[0, -1]", "0 to 100000"),
        ("seeds", "__import__('os')", "a list"),
        ("shared_noise", "1", "true or false"),
        ("shared_noise", "yes", "true or false"),
        ("shift", "1e3", "whole number"),
        ("shift", "1_000", "whole number"),
        ("shift", "none", "whole number"),
        ("widths", '{"model": 0}', "at least 1"),
    ],
)
def test_wrong_values_say_what_would_be_right(sheet, name, text, said):
    with pytest.raises(ScreproError, match=said):
        parameters.resolve(sheet, [(name, text)])


def test_python_values_are_checked_like_text(sheet):
    assert parameters.resolve(sheet, {"learning_rate": 1, "seeds": [2]})["learning_rate"] == 1.0
    with pytest.raises(ScreproError, match="int"):
        parameters.resolve(sheet, {"shift": True})


values = st.fixed_dictionaries(
    {
        "learning_rate": st.none() | st.floats(min_value=1e-6, max_value=1.0),
        "shared_noise": st.booleans(),
        "seeds": st.lists(st.integers(min_value=0, max_value=100000), min_size=1, max_size=4),
        "dataset": st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=12),
        "shift": st.integers(min_value=-1000, max_value=1000),
    }
)


@given(values)
def test_text_form_reads_back_and_merged_cell_holds_the_values(sheet, chosen):
    pairs = [(name, parameters.to_text(value)) for name, value in chosen.items()]
    resolved = parameters.resolve(sheet, pairs)
    assert {n: resolved[n] for n in chosen} == chosen
    merged, scope = sources.merge(CELL, resolved), {}
    exec(merged, scope)
    assert {n: scope[n] for n in resolved} == resolved
    assert merged.count("#") >= CELL.count("#") and "{ci, laptop, paper}" in merged


def test_commands_name_what_differs_and_everything(sheet):
    chosen = parameters.resolve(sheet, {"tier": "laptop", "seeds": [0, 1]})
    assert parameters.command(sheet, chosen).endswith("--tier laptop -p seeds '[0, 1]'")
    assert parameters.full_command(sheet).count(" -p ") == len(sheet.parameters)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("import os\n", "annotated literals only"),
        ("n = 3  # count\n", "annotated literals only"),
        ("n: int  # count\n", "annotated literals only"),
        ("n: int = 1 + 2 * len('a')  # count\n", "is a literal"),
        ("n: int = 3\n", "what it means"),
        ("n: int = 3.5  # count\n", "default of n"),
        ("n: int = 3  # count [4..5]\n", "default of n"),
        ("n: set[int] = {3}  # count\n", "is bool, int"),
        ("n: int = 3  # count\nn: int = 4  # count\n", "defined once"),
        ("n: int = (3  # count\n", "is Python"),
        ("n: int = 3  # count [a..b]\n", "two numbers"),
    ],
)
def test_a_cell_that_breaks_the_rules_is_refused(tmp_path, cell, said):
    with pytest.raises(ScreproError, match=said):
        parameters.read(write(tmp_path, cell))


def test_a_notebook_has_exactly_one_parameters_cell(tmp_path):
    path = write(tmp_path, CELL)
    path.write_text(path.read_text().replace('tags=["parameters"]', ""))
    with pytest.raises(ScreproError, match="one cell tagged parameters"):
        parameters.read(path)


def test_title_is_the_first_heading(tmp_path):
    assert sources.read(write(tmp_path, CELL)).title == "A title"


@pytest.mark.parametrize("name", list(sources.names()))
def test_every_notebook_of_the_book_has_a_valid_sheet(name):
    sheet = parameters.read(sources.names()[name])
    assert sheet.notebook == name and "tier" in sheet.names
