"""What commands share, those that train above all."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from thalweg.files import try_to_write, whole

if TYPE_CHECKING:
    from thalweg.studies import Progress

__all__ = [
    "BatchSize",
    "Device",
    "Doing",
    "Line",
    "LossName",
    "Rate",
    "ScheduleText",
    "compiling",
    "keep_memory",
    "leaving_at_once",
    "names",
    "refuse",
    "refuse_unwritable",
    "write_page",
]

BatchSize = Annotated[
    int | None, typer.Option(help="Samples a step. By default the task's, mostly 32.")
]
Device = Annotated[str, typer.Option(help="As torch names it: cpu, cuda.")]
LossName = Annotated[str | None, typer.Option(help="A loss by name, in place of the task's.")]
Rate = Annotated[
    float | None,
    typer.Option(help="Learning rate. By default the middle of the optimizer's usual ones."),
]
ScheduleText = Annotated[
    str | None,
    typer.Option(
        help="What the rate follows: cosine, warmup:steps=5%+cosine; `thalweg schedules` shows "
        "them all."
    ),
]


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """End at Ctrl-C: torch's imports turn an interruption into errors of their own."""

    def leave(*_: object) -> None:
        os.write(2, b"thalweg: interrupted\n")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


@contextmanager
def compiling() -> Iterator[None]:
    """Have the kernels compiled on another core while this process imports and traces.

    It takes two seconds of the first study on a machine; later ones find them on disk.
    """
    command = [sys.executable, "-P", "-m", "thalweg.kernels.warm"]  # not what lies in this folder
    nothing = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing) as process:
        try:
            yield
        finally:
            process.kill()


def keep_memory() -> None:
    """Tell glibc to keep freed memory, where there is a glibc.

    Otherwise every step gets its activations as fresh pages from the kernel and hands them back,
    which measured a tenth of the study's time.
    """
    import ctypes

    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 30)


def names(text: str | None) -> list[str] | None:
    """Words between commas; None for nothing."""
    return None if text is None else [n.strip() for n in text.split(",") if n.strip()]


def refuse(option: str, problem: str) -> NoReturn:
    """End with one line that names the option."""
    raise typer.BadParameter(problem, param_hint=option)


def refuse_unwritable(option: str, path: Path) -> None:
    """End unless a file can be made there, and its folder; nothing is left behind.

    For before work that would be in vain.
    """
    try:
        if path.is_dir():
            refuse(option, f"{path} is a folder; give the path of a file")
        if path.exists() and not path.is_file():  # a device, which a file would take the place of
            refuse(option, f"{path} is no ordinary file; give the path of one")
        try_to_write(path)
    except OSError as error:
        refuse(
            option,
            f"cannot write {path} ({error.strerror}); give the path of a file that can be made",
        )


def write_page(out: Path, text: str) -> None:
    """Write a page, whole or not at all."""
    try:
        with whole(out) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        refuse("--out", f"cannot write {out} ({error.strerror})")


class Line(AbstractContextManager[Any]):
    """One live line on standard error, if that is a terminal."""

    def __init__(self, enabled: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live("preparing", console=Console(stderr=True), transient=True)
        self._enabled = enabled

    def __enter__(self) -> "Callable[[Progress], None]":
        if self._enabled:
            self._live.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            self._live.stop()

    def _show(self, p: "Progress") -> None:
        if self._enabled:
            from rich.text import Text

            line = (
                f"{p.alive} runs alive, {p.done} of {p.runs} ended · epoch {p.epoch} of {p.epochs} "
                f"· {p.steps_per_second:,.0f} steps/s · {p.seconds_left:.0f} s left"
            )
            self._live.update(Text(line))


class Doing:
    """What is being done, in one live line on standard error, if that is a terminal."""

    def __init__(self, enabled: bool) -> None:
        from rich.console import Console

        self._status = Console(stderr=True).status("preparing")
        self._enabled = enabled

    def __enter__(self) -> "Doing":
        if self._enabled:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, doing: str) -> None:
        """Say what is being done now."""
        self._status.update(doing)
