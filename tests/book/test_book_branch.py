"""Publishing on the branch touches neither the working tree nor what is staged."""

import subprocess

import pytest

from screpro import book, book_branch, paths
from screpro.errors import ScreproError


@pytest.fixture
def git(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setattr(book, "notebooks", lambda: ["scdiff/tiny"])
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "tester")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "tester@example.org")

    def run(*words):
        command = ["git", "-C", str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    run("init", "--quiet", "--initial-branch=main")
    return run


def executed(root, text="{}"):
    path = root / "notebooks" / "scdiff" / "tiny.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_needs_a_commit_and_executed_pages(git, tmp_path):
    with pytest.raises(ScreproError, match="commit first"):
        book_branch.publish()
    git("commit", "--quiet", "--allow-empty", "-m", "first")
    with pytest.raises(ScreproError, match="not yet: scdiff/tiny"):
        book_branch.publish()


def test_branch_is_the_commit_plus_the_pages(git, tmp_path):
    (tmp_path / ".gitignore").write_text("*.ipynb\n")
    (tmp_path / "kept.txt").write_text("kept\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    head = git("rev-parse", "HEAD")
    executed(tmp_path)
    (tmp_path / "staged.txt").write_text("staged\n")
    git("add", "staged.txt")
    before = git("status", "--porcelain")

    first = book_branch.publish()
    listed = git("ls-tree", "-r", "--name-only", book_branch.BRANCH).splitlines()
    assert listed == [".gitignore", "kept.txt", "notebooks/scdiff/tiny.ipynb"]
    assert git("status", "--porcelain") == before
    assert git("rev-parse", "HEAD") == head
    assert git("symbolic-ref", "--short", "HEAD") == "main"
    assert book_branch.publish() == first

    executed(tmp_path, '{"cells": []}')
    second = book_branch.publish()
    assert git("show", f"{book_branch.BRANCH}:notebooks/scdiff/tiny.ipynb") == '{"cells": []}'
    assert git("rev-list", "--parents", "-n", "1", second).split()[1:] == [first, head]
