"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["held", "try_to_write", "whole"]

_handles: set[int] = set()  # of folders that are held


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A file to write to, which takes the place of ``path`` when the block ends well.

    The folder is made if missing. What stood at ``path`` is untouched until then, and for good if
    the block raises.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    os.close(handle)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Whether a folder is this process' own for the block: no other that asks has it then.

    The folder is made if missing. The system gives it back when the process ends, however it does.
    Where there is no ``fcntl``, as on Windows, everybody has it.

    Raises:
        OSError: if it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    _handles.add(handle)
    is_ours = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_ours = False
    except OSError:  # a file system that knows no locks
        pass
    try:
        yield is_ours
    finally:
        _handles.discard(handle)
        os.close(handle)


def _let_go() -> None:
    """In a process that was forked: it may live on after the one that holds the folder."""
    while _handles:
        os.close(_handles.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def try_to_write(path: str | Path) -> None:
    """Find out whether a file can be made at a path, and its folder; nothing is left behind.

    Raises:
        OSError: if not.
    """
    path = Path(path).absolute()
    there = next(folder for folder in path.parents if os.path.lexists(folder))
    # As `whole` will, because permissions alone do not tell.
    handle, name = tempfile.mkstemp(dir=there, prefix=f".{path.name}.")
    os.close(handle)
    os.unlink(name)
