"""Put the executed notebooks on the local branch ``executed``, where launch and download links point.

Written with git's plumbing: neither the working tree nor the index nor the branch you are on is touched,
and nothing is pushed. The branch is the commit you are on plus the executed notebooks.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from screpro import book, paths
from screpro.errors import ScreproError

__all__ = ["BRANCH", "publish"]

BRANCH = "executed"


def publish() -> str:
    """Commit the executed notebooks of the book on top of the branch and return the commit.

    Raises
    ------
    ScreproError
        This is no clone with a commit, or a page has not been executed.
    """
    root = paths.root()
    head = _git(root, "rev-parse", "--verify", "HEAD", quiet=True)
    if not head:
        raise ScreproError(
            "Executed notebooks are published on a branch of this repository.",
            got=f"no git commit in {root}",
            fix="work in a clone, and commit first",
        )
    pages = {name: book.executed_path(name) for name in book.notebooks()}
    if missing := [name for name, path in pages.items() if not path.is_file()]:
        raise ScreproError("Every page has to be executed.", got=f"not yet: {missing[0]}", fix="make book")
    with tempfile.TemporaryDirectory() as aside:
        # an index of its own, so that what is staged stays staged
        index = {"GIT_INDEX_FILE": str(Path(aside) / "index")}
        _git(root, "read-tree", "HEAD", environment=index)
        for path in pages.values():
            blob = _git(root, "hash-object", "-w", str(path))
            entry = f"100644,{blob},{path.relative_to(root).as_posix()}"
            _git(root, "update-index", "--add", "--cacheinfo", entry, environment=index)
        tree = _git(root, "write-tree", environment=index)
    before = _git(root, "rev-parse", "--verify", f"refs/heads/{BRANCH}", quiet=True)
    if before and _git(root, "rev-parse", f"{before}^{{tree}}") == tree:
        return before
    parents = [word for parent in (before, head) if parent for word in ("-p", parent)]
    message = f"Executed notebooks of {head[:12]}"
    commit = _git(root, "commit-tree", tree, *parents, "-m", message)
    # the old value makes git refuse if somebody moved the branch meanwhile
    _git(root, "update-ref", f"refs/heads/{BRANCH}", commit, before or "0" * len(commit))
    return commit


def _git(root: Path, *words: str, environment: dict[str, str] | None = None, quiet: bool = False) -> str:
    """Output of a git command; empty where it fails and `quiet` is set."""
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode and not quiet:
        raise ScreproError(
            f"`git {words[0]}` has to work here.",
            got=done.stderr.strip() or f"exit code {done.returncode}",
            fix="put right what git says, then repeat",
        )
    return "" if done.returncode else done.stdout.strip()


if __name__ == "__main__":
    try:
        print(f"branch {BRANCH} is at {publish()[:12]}; publish it with: git push origin {BRANCH}")
    except ScreproError as error:
        raise SystemExit(f"error: {error}") from None
