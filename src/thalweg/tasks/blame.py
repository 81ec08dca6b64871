"""Where in a person's own code something went wrong."""

import inspect
import linecache
import sysconfig
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["defined", "first_line", "is_own", "is_theirs", "place", "quoted", "raised"]


def place(error: BaseException, file: Path | None = None) -> str:
    """``file.py:12``, the last line of a person's own that an error passed; empty if none.

    Args:
        error: as it was caught.
        file: that a person named: lines in it come first, then those beside it.
    """
    if isinstance(error, SyntaxError) and error.filename and is_own(error.filename):
        return f"{Path(error.filename).name}:{error.lineno}"
    frame = _last(error, file)
    return "" if frame is None else f"{Path(frame.filename).name}:{frame.lineno}"


def quoted(error: BaseException, file: Path | None = None) -> str:
    """What stands on that line; empty if there is none."""
    frame = _last(error, file)
    if frame is None or frame.lineno is None:
        return ""
    return linecache.getline(frame.filename, frame.lineno).strip()


def raised(error: BaseException) -> str:
    """An error in one line, with the line of a person's own that it passed, if any."""
    where, line = place(error), quoted(error)
    return first_line(error) + (f" at {where}, `{line}`" if where else "")


def is_theirs(error: BaseException) -> bool:
    """Whether an error passed a person's own lines, torch's layers or a trace of them."""
    layers = Path(nn.__file__).parent
    return bool(place(error)) or any(
        f.filename.startswith("<eval_with_key>") or Path(f.filename).is_relative_to(layers)
        for f in traceback.extract_tb(error.__traceback__)
    )


def defined(function: Callable[..., Any]) -> str:
    """``file.py:12``, where a function or class of a person's own begins; empty if elsewhere."""
    while isinstance(function, partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, partial) else function.__wrapped__
    try:
        found = inspect.getsourcefile(function)
        line = inspect.getsourcelines(function)[1]
    except (TypeError, OSError):
        return ""
    return f"{Path(found).name}:{line}" if found and is_own(found) else ""


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    said = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
    return f"{type(error).__name__}: {said}"


def _last(error: BaseException, file: Path | None) -> traceback.FrameSummary | None:
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    inside = [f for f in frames if file is not None and Path(f.filename) == file]
    beside = [f for f in frames if file is not None and Path(f.filename).parent == file.parent]
    return next(iter([*inside, *beside, *(f for f in frames if is_own(f.filename))]), None)


@cache
def is_own(filename: str) -> bool:
    """Whether a file is neither Python's, nor this package's, nor installed."""
    if filename.startswith("<"):
        return False
    path, homes = Path(filename).resolve(), sysconfig.get_paths()
    others = [homes[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    others.append(str(Path(__file__).parents[1]))
    return not any(path.is_relative_to(Path(other).resolve()) for other in others)
