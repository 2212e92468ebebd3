"""Recipes: the original public files of a data set become AnnData of integer counts.

``RECIPES[name](files)`` does it, where `files` maps each key of ``FILES[name]`` to a local path. A key is
``<owner>/<repository>/<path>`` on GitHub. Nothing is filtered, renamed or relabelled beyond what the recipe's
docstring states. The recipes themselves stand in `recipes_atlases` (labelled cell types) and
`recipes_perturbations` (cells under a treatment or a knock-out).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from screpro.data import recipes_atlases as atlases
from screpro.data import recipes_perturbations as perturbations
from screpro.errors import ScreproError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["FILES", "RECIPES"]

Files = dict[str, Path]

FILES: dict[str, list[str]] = {
    "pbmc_facs_zheng": [atlases.PBMC_FACS],
    "pbmc3k": [atlases.PBMC3K],
    "kang_9k": perturbations.KANG,
    "kang_1k": perturbations.KANG,
    "papalexi_thp1": perturbations.PAPALEXI,
    "norman_k562": [perturbations.NORMAN],
    "mca_gut": [atlases.MCA_GUT],
    "haber_sie_1k": [atlases.HABER],
    "pbmc_10x_3tech": atlases.SYMPHONY,
    "cellbench_5cl": atlases.CELLBENCH,
}


def _checked(name: str, recipe: Callable[[Files], "AnnData"]) -> Callable[[Files], "AnnData"]:
    """The recipe behind a check that all its files were handed over."""

    def run(files: Files) -> "AnnData":
        missing = [key for key in FILES[name] if key not in files]
        if missing:
            raise ScreproError(
                f"{name} is made from {len(FILES[name])} file(s): {', '.join(FILES[name])}",
                got=f"no path for {', '.join(missing)}",
                fix="pass the local path of every file under its key",
            )
        try:
            return recipe({key: Path(path) for key, path in files.items()})
        except KeyError as error:
            raise ScreproError(
                f"the files of {name} have to hold the columns, cells and genes its recipe uses",
                got=f"no {error}",
                fix="use the versions of the files the recipe was written for",
            ) from error

    run.__name__, run.__doc__ = recipe.__name__, recipe.__doc__
    return run


RECIPES: dict[str, Callable[[Files], "AnnData"]] = {
    name: _checked(name, recipe)
    for name, recipe in {
        "pbmc_facs_zheng": atlases.pbmc_facs_zheng,
        "pbmc3k": atlases.pbmc3k,
        "kang_9k": perturbations.kang_9k,
        "kang_1k": perturbations.kang_1k,
        "papalexi_thp1": perturbations.papalexi_thp1,
        "norman_k562": perturbations.norman_k562,
        "mca_gut": atlases.mca_gut,
        "haber_sie_1k": atlases.haber_sie_1k,
        "pbmc_10x_3tech": atlases.pbmc_10x_3tech,
        "cellbench_5cl": atlases.cellbench_5cl,
    }.items()
}
