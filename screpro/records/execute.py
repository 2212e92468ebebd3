"""How papermill is called: the same interpreter, set threads, a clean notebook when a cell fails."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from screpro import paths

__all__ = ["DETERMINISM", "RunFailed", "execute", "strip"]

DETERMINISM = {"PYTHONHASHSEED": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

_THREADS = ("OMP", "MKL", "OPENBLAS", "NUMBA", "NUMEXPR")


class RunFailed(Exception):
    """A cell of the notebook raised. ``path`` is the notebook as far as it got, ``fixable`` a `ScreproError`."""

    def __init__(self, message: str, path: Path | None = None, *, fixable: bool = False):
        super().__init__(message)
        self.path, self.fixable = path, fixable


def execute(source: Path, executed: Path, failed: Path, *, folder: Path, run_id: str, threads: int) -> None:
    """Execute `source` into `executed`, in the root of the repository.

    Parameters
    ----------
    source, executed, failed
        Notebooks: what to run, where papermill writes, where a notebook that stopped half-way is kept.
    folder, run_id
        The run folder, which gets the journal, and the run's name.
    threads
        For every library that counts its own.

    Raises
    ------
    RunFailed
        A cell raised, or the kernel died.
    """
    _kernelspec(source.parent / "jupyter")
    with _environment(_variables(source.parent / "jupyter", folder, run_id, threads)):
        _papermill(source, executed, failed)


def _variables(jupyter: Path, folder: Path, run_id: str, threads: int) -> dict[str, str]:
    return {
        **{f"{library}_NUM_THREADS": str(threads) for library in _THREADS},
        **DETERMINISM,
        "SCREPRO_THREADS": str(threads),
        "SCREPRO_RUN_DIR": str(folder.resolve()),
        "SCREPRO_RUN_ID": run_id,
        "JUPYTER_PATH": str(jupyter.resolve()),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        # a backend chosen for scripts would leave the page without figures
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _kernelspec(folder: Path) -> None:
    """A ``python3`` kernel that is this very interpreter, whatever the machine has registered."""
    spec = {
        # otherwise it writes notes on its transport and on its shutdown to the terminal
        "argv": [
            *(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
            "--IPKernelApp.log_level=CRITICAL",
        ],
        "display_name": "Python 3",
        "language": "python",
    }
    (folder / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


def _papermill(source: Path, executed: Path, failed: Path) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            str(source),
            str(executed),
            kernel_name="python3",
            cwd=str(paths.root()),
            progress_bar=sys.stderr.isatty(),
            start_timeout=180,
        )
    except PapermillExecutionError as error:
        _keep(executed, failed)
        fixable = error.ename == "ScreproError"
        if fixable:
            said = f"error: {error.evalue}"
        else:
            lines = [line for line in error.source.splitlines() if line.strip()]
            said = f"{error.ename}: {error.evalue}\n  in the cell that begins with: {lines[0] if lines else ''}"
        raise RunFailed(f"{said}\n  the notebook as far as it got: {failed}", failed, fixable=fixable) from None
    except DeadKernelError:
        _keep(executed, failed)
        raise RunFailed(
            f"the kernel died; most often the machine ran out of memory\n  the notebook as far as it got: {failed}",
            failed,
        ) from None


def _keep(executed: Path, failed: Path) -> None:
    """Keep a notebook that stopped half-way, without the banner papermill puts on it."""
    import nbformat

    if not executed.is_file():
        return
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [c for c in notebook.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    strip(notebook)
    with paths.atomic_path(failed) as aside:
        nbformat.write(notebook, aside)


def strip(notebook: Any) -> None:
    """Remove what papermill notes down: paths of this machine and times."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for field in ("papermill", "execution"):
            cell.metadata.pop(field, None)
