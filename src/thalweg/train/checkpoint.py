"""What a training leaves in its folder, and how it is read again."""

from pathlib import Path
from typing import Any

import torch

from thalweg.files import whole
from thalweg.train.arguments import FitError

__all__ = ["BEST", "LAST", "read", "write"]

BEST, LAST = "best.pt", "last.pt"
FORMAT = 1


def write(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    with whole(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:  # which torch makes of what the disk says
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; nothing but tensors and plain values is unpickled.

    Raises:
        FitError: for a file that is none of a training's.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FitError("resume", f"cannot read {path} ({error.strerror})") from None
    except Exception:  # of what is no checkpoint any may come
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FitError(
            "resume",
            f"{path} is no checkpoint that `thalweg fit` wrote; give the folder of another "
            f"training by --out, or begin anew without --resume",
        )
    return found
