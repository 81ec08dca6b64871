"""Where in a person's own code something went wrong."""

import inspect
import linecache
import sysconfig
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

__all__ = ["defined", "first_line", "place", "quoted"]


def place(error: BaseException) -> str:
    """``file.py:12``, the last line of a person's own that an error passed; empty if none."""
    if isinstance(error, SyntaxError) and error.filename and _is_own(error.filename):
        return f"{Path(error.filename).name}:{error.lineno}"
    frame = _last(error)
    return "" if frame is None else f"{Path(frame.filename).name}:{frame.lineno}"


def quoted(error: BaseException) -> str:
    """What stands on that line; empty if there is none."""
    frame = _last(error)
    if frame is None or frame.lineno is None:
        return ""
    return linecache.getline(frame.filename, frame.lineno).strip()


def defined(function: Callable[..., Any]) -> str:
    """``file.py:12``, where a function or class of a person's own begins; empty if elsewhere."""
    while isinstance(function, partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, partial) else function.__wrapped__
    try:
        found = inspect.getsourcefile(function)
        line = inspect.getsourcelines(function)[1]
    except (TypeError, OSError):
        return ""
    return f"{Path(found).name}:{line}" if found and _is_own(found) else ""


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    said = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
    return f"{type(error).__name__}: {said}"


def _last(error: BaseException) -> traceback.FrameSummary | None:
    frames = traceback.extract_tb(error.__traceback__)
    return next((f for f in reversed(frames) if _is_own(f.filename)), None)


@cache
def _is_own(filename: str) -> bool:
    """Whether a file is neither Python's, nor this package's, nor installed."""
    if filename.startswith("<"):
        return False
    path, homes = Path(filename).resolve(), sysconfig.get_paths()
    others = [homes[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    others.append(str(Path(__file__).parents[1]))
    return not any(path.is_relative_to(Path(other).resolve()) for other in others)
