"""Packages that cannot be installed beside ours, run by another Python, which an environment variable names.

The script that runs there is a file of this package that imports none of it. It is called as
``SCRIPT WORD... GIVEN.npz MADE.npz THREADS``: arrays go there and come back in files, without pickle.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from screpro.errors import ScreproError

__all__ = ["environment", "missing", "run_script"]

LAST = 600
"""Characters of what a script that failed has printed last."""


def missing(variable: str, package: str) -> str | None:
    """Why `package` cannot be run by the Python that `variable` names, or None if it can. Imports nothing."""
    if not os.environ.get(variable):
        return f"{variable} is not set"
    look = "import sys, importlib.util as util; sys.exit(util.find_spec(sys.argv[1]) is None)"
    try:
        found = subprocess.run([os.environ[variable], "-c", look, package], capture_output=True, check=False)
    except OSError as error:
        return f"{variable}: {error}"
    return f"the Python that {variable} names has no package {package}" if found.returncode else None


def run_script(
    script: Path,
    *words: str,
    given: dict[str, np.ndarray],
    variable: str,
    threads: int,
    rule: str,
    fix: str,
) -> tuple[str, dict[str, np.ndarray]]:
    """Run a script with the Python that `variable` names.

    Parameters
    ----------
    script
        A file that imports nothing of screpro.
    words
        What it is told before the names of the files.
    given
        Arrays of numbers or text.
    variable
        Environment variable with the path of the Python.
    threads
        Threads that numerical libraries may use there.
    rule, fix
        Of the error.

    Returns
    -------
    printed
        Its standard output.
    made
        The arrays that it wrote.

    Raises
    ------
    ScreproError
        The variable is not set, there is no such Python, or the script fails; with the end of what it said.
    """
    if not os.environ.get(variable):
        raise ScreproError(rule, got=f"{variable} is not set", fix=fix)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "given.npz", Path(folder) / "made.npz"
        np.savez(source, **given)
        command = [os.environ[variable], str(script), *words, str(source), str(target), str(threads)]
        try:
            # without the script's folder on the path: modules of ours there are called like packages. And without the
            # backend for figures that a notebook names, which the other environment need not have
            env = environment(threads) | {"PYTHONSAFEPATH": "1", "MPLBACKEND": "agg"}
            out = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
            failed = out.stderr.strip()[-LAST:] or f"exit code {out.returncode}" if out.returncode else ""
        except OSError as error:
            failed = str(error)
        if not failed and not target.is_file():
            failed = "it wrote nothing"
        if failed:
            raise ScreproError(rule, got=failed, fix=fix)
        with np.load(target, allow_pickle=False) as results:
            return out.stdout, dict(results)


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a process whose numerical libraries use so many threads."""
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
    return os.environ | {name: str(threads) for name in names}
