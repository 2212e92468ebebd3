"""Reading weights from the checkpoints of others: tensors only, nothing in the file is executed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from screpro.errors import ScreproError

__all__ = ["below", "read_state"]


def read_state(path: str | Path, *, missing: str) -> dict[str, Tensor]:
    """The tensors of a Lightning checkpoint's ``state_dict``, by name.

    Parameters
    ----------
    path
        A ``.ckpt`` file: a mapping with the entry ``state_dict``.
    missing
        What to do where there is no such file: the fix of that error.

    Raises
    ------
    ScreproError
        The file is missing, truncated, or asks for anything but tensors and plain containers to be built.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except FileNotFoundError:
        raise ScreproError("The checkpoint must exist.", got=str(path), fix=missing) from None
    except Exception as error:  # torch raises half a dozen kinds, one of them bare RuntimeError
        raise ScreproError(
            "A checkpoint is a complete Lightning file whose state_dict holds tensors and nothing that runs code.",
            got=f"{path}: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
            fix="download it again; a file with pickled objects must be re-saved as weights by its owner, "
            'torch.save({"state_dict": content["state_dict"]}, file)',
        ) from None


def below(state: Mapping[str, Tensor], anchor: str) -> dict[str, Tensor]:
    """The entries below the prefix that `anchor` stands under, without that prefix; empty where there is no anchor.

    Where the anchor stands under several prefixes (a network and a copy of it), the shortest counts.
    """
    prefixes = sorted((name.removesuffix(anchor) for name in state if name.endswith(anchor)), key=len)
    return {name.removeprefix(p): t for p in prefixes[:1] for name, t in state.items() if name.startswith(p)}
