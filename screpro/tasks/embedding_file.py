"""How a parameter names an embedding that was made elsewhere: what to call it, its file, and where in the file it is.

Without heavy imports, because a run checks it before anything starts.
"""

import re

from screpro.errors import ScreproError

__all__ = ["named_file"]

_NAMED = re.compile(r"(?P<name>\s*[^=\s][^=]*)=\s*(?P<file>.+\.npy|.+?\.h5ad)(?:(?<=\.h5ad)#(?P<key>.+))?")


def named_file(text: str) -> tuple[str, str, str | None]:
    """Name, path and key of ``name=file.npy``, ``name=file.h5ad`` or ``name=file.h5ad#key``, a key of its ``obsm``.

    Raises
    ------
    ScreproError
        The text is none of these.
    """
    found = _NAMED.fullmatch(text)
    if found is None:
        raise ScreproError(
            'An embedding made elsewhere is "name=file", or "name=file#key" for one entry of the obsm of an .h5ad.',
            got=text,
            fix='write, for instance, "scGPT=cells.npy", "scGPT=cells.h5ad" or "scGPT=cells.h5ad#X_scgpt"',
        )
    return found["name"].strip(), found["file"], found["key"]
