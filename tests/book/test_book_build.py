"""What has to be redone is decided by content; one build at a time; a killed build leaves nothing behind."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from screpro import book, paths
from screpro.errors import ScreproError

SOURCE = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A page

# %% tags=["parameters"]
tier: str = "ci"  # how much to run {ci, laptop, paper}

# %%
print(1)
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository with one notebook, and nothing else."""
    (tmp_path / "notebooks" / "scdiff").mkdir(parents=True)
    (tmp_path / "notebooks" / "scdiff" / "tiny.py").write_text(SOURCE)
    (tmp_path / "data").mkdir()
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "intro.md").write_text("# Hello\n")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nparts:\n"
        "  - chapters:\n      - file: book/other\n        sections:\n          - file: notebooks/scdiff/tiny\n"
    )
    (tmp_path / "_config.yml").write_text("title: tiny\n")
    (tmp_path / "constraints.txt").write_text("numpy==2.0\n")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    return tmp_path


def key_file(tree):
    return tree / "_build" / "keys" / "scdiff" / "tiny.json"


def pretend_executed(tree):
    """Put the notebook there as a build would, made by the run that the key file names."""
    key = json.loads(key_file(tree).read_text())["key"]
    run_id = f"scdiff/tiny/ci-{key[:12]}"
    manifest = paths.runs_dir() / run_id / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text("{}")
    book.executed_path("scdiff/tiny").write_text(json.dumps({"metadata": {"screpro": {"run_id": run_id}}}))
    return manifest


def test_notebooks_are_the_pages_of_the_toc(tree):
    assert book.notebooks() == ["scdiff/tiny"]


def test_a_page_is_stale_until_it_is_executed_and_then_no_more(tree):
    assert book.write_keys() == ["scdiff/tiny"]
    assert book.write_keys() == ["scdiff/tiny"]
    pretend_executed(tree)
    before = {p: p.stat().st_mtime_ns for p in (tree / "_build" / "keys").rglob("*.json")}
    assert book.write_keys() == []
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize(
    ("path", "old", "new", "same_run"),
    [
        ("notebooks/scdiff/tiny.py", "print(1)", "print(2)", False),
        ("notebooks/scdiff/tiny.py", "# # A page", "# # Another title", True),
        ("constraints.txt", "numpy==2.0", "numpy==2.1", False),
    ],
)
def test_a_change_of_content_makes_it_stale(tree, path, old, new, same_run):
    book.write_keys()
    pretend_executed(tree)
    before = json.loads(key_file(tree).read_text())
    changed = tree / path
    changed.write_text(changed.read_text().replace(old, new))
    assert book.write_keys() == ["scdiff/tiny"]
    # prose alone does not ask for another run, only for another page
    assert (json.loads(key_file(tree).read_text())["key"] == before["key"]) is same_run


def test_touching_a_file_is_no_change(tree):
    book.write_keys()
    pretend_executed(tree)
    os.utime(tree / "notebooks" / "scdiff" / "tiny.py")
    assert book.write_keys() == []


def test_another_tier_is_another_run(tree):
    book.write_keys(tier="ci")
    pretend_executed(tree)
    assert book.write_keys(tier="laptop") == ["scdiff/tiny"]


def test_a_page_from_another_run_is_taken_away(tree):
    book.write_keys()
    executed = book.executed_path("scdiff/tiny")
    executed.write_text(json.dumps({"metadata": {"screpro": {"run_id": "scdiff/tiny/ci-000000000000"}}}))
    assert book.write_keys() == ["scdiff/tiny"]
    assert not executed.exists()


def test_a_page_whose_run_was_deleted_is_taken_away(tree):
    book.write_keys()
    manifest = pretend_executed(tree)
    assert book.write_keys() == []
    manifest.unlink()
    assert book.write_keys() == ["scdiff/tiny"]
    assert not book.executed_path("scdiff/tiny").exists()


def test_pages_and_html_follow_what_they_show(tree):
    def keys():
        book.write_keys()
        return tuple((tree / "_build" / "keys" / f"{name}.json").read_text() for name in ("pages", "html"))

    pages, html = keys()
    (tree / "book" / "intro.md").write_text("# Bye\n")
    assert keys()[0] == pages
    assert keys()[1] != html
    (tree / "data" / "values.csv").write_text("1\n")
    assert keys()[0] != pages
    pages, html = keys()
    (tree / "book" / "generated").mkdir()
    (tree / "book" / "generated" / "x.md").write_text("made from the records\n")
    assert keys() == (pages, html)


def test_a_second_build_is_told_who_is_first(tree):
    with book._only_one(), pytest.raises(ScreproError, match=f"pid={os.getpid()}"), book._only_one():
        pytest.fail("two builds at once")
    with book._only_one():
        pass


def test_survivors_of_a_killed_build_are_ended_and_nobody_else(tree):
    def sleeper(mark):
        process = subprocess.Popen(
            [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
            env={**os.environ, book.MARK: mark},
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        return process

    ours, other = sleeper("killed-build"), sleeper("another-build")
    try:
        (tree / "_build").mkdir()
        (tree / "_build" / ".lock").write_text("mark=killed-build pid=0\n")
        with book._only_one() as token:
            assert token not in ("killed-build", "another-build")
            ours.wait(timeout=5)
            assert not psutil.pid_exists(ours.pid)
            assert psutil.pid_exists(other.pid)
            assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()
            process.stdout.close()


def test_without_the_sources_of_the_book_the_error_says_what_to_do(tree):
    with pytest.raises(ScreproError, match="git clone"):
        book.build()
