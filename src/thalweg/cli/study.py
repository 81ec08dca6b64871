"""``thalweg study``."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from thalweg.studies import Progress, StudyResult

__all__ = ["study"]


def study(
    task: Annotated[str, typer.Argument(help="Name of a built-in task, digits for one.")],
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Names, separated by commas: sgd,adamw. `thalweg optimizers` lists"
            " them. By default sgd to adam."
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Learning rates of every optimizer: low:high:count, log-spaced, 1e-4:1:13 say, or "
            "a list, 0.001,0.01. By default 9 over the usual range of each."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of every setting.")] = 5,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every run. 30 by default.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of every run, instead of --epochs.")
    ] = None,
    losses: Annotated[
        str | None,
        typer.Option(
            help="Losses, separated by commas: cross_entropy,mse. Several are compared. By default"
            " the task's."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples a step. By default the task's.")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(help="Validation metric that counts as trained: 0.95. By default the task's."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop a run after so many epochs without a better validation loss."),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds after which running runs count as timed out.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the study. By default the task's.")
    ] = None,
    db: Annotated[
        str, typer.Option(help="SQLite file, or database URL, that keeps the record.")
    ] = "thalweg.db",
    out: Annotated[
        Path | None, typer.Option(help="The report. By default thalweg-NAME.html.")
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Whether passes go through torch.compile. By default where it pays.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="As torch names it: cpu, cuda.")] = "cpu",
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last study of that name in --db.")
    ] = False,
) -> None:
    """Train a task with several optimizers, learning rates and seeds; say which is best."""
    out = Path(f"thalweg-{name or task}.html") if out is None else out
    if out.is_dir():
        _refuse("--out", f"{out} is a folder; give the path of a file")
    _keep_memory()
    with _leaving_at_once():
        import thalweg

        train = thalweg.study  # torch and what builds on it take seconds to import
    try:
        with _compiling(), _Line(enabled=sys.stderr.isatty()) as show:
            result = train(
                task,
                _names(optimizers),
                lr,
                seeds,
                epochs,
                losses=losses,
                steps=steps,
                batch_size=batch_size,
                target=target,
                patience=patience,
                name=name,
                db=db,
                compile=compile,
                device=device,
                resume=resume,
                time_limit=time_limit,
                progress=_importing_report(show),
            )
    except thalweg.StudyError as error:
        _refuse(_option(error.argument), error.problem)
    except KeyboardInterrupt:
        print(
            f"thalweg: interrupted; what had ended is in {db}, and the same command with --resume "
            f"goes on from there",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    try:
        report = result.report(out)
    except OSError as error:
        print(f"{result.verdict}", file=sys.stderr)
        _refuse("--out", f"cannot write {out} ({error.strerror}); the record is in {db}")
    _print(result, report, db, json)


@contextmanager
def _leaving_at_once() -> Iterator[None]:
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
def _compiling() -> Iterator[None]:
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


def _importing_report(show: "Callable[[Progress], None]") -> "Callable[[Progress], None]":
    """Import what the report needs once training has begun, which leaves Python idle."""
    importing = Thread(target=import_module, args=("thalweg.report",))

    def progress(p: "Progress") -> None:
        if importing.ident is None:
            importing.start()
        show(p)

    return progress


def _keep_memory() -> None:
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


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [n.strip() for n in text.split(",") if n.strip()]


def _option(argument: str) -> str:
    return "TASK" if argument == "task" else f"--{argument.replace('_', '-')}"


def _refuse(option: str, problem: str) -> None:
    raise typer.BadParameter(problem, param_hint=option)


def _print(result: "StudyResult", report: Path, db: str, json: bool) -> None:
    from rich.console import Console

    from thalweg.report import effect_table, summary_table

    if json:
        sys.stdout.write(result.to_json() + "\n")
    else:
        console = Console()
        console.print(summary_table(result, console.width))
        for factor in result.spec.varied:
            console.print()
            console.print(effect_table(result, factor, console.width))
        console.print(result.verdict, highlight=False)
        for note in result.notes:
            console.print(note, style="dim", highlight=False)
    where = sys.stderr if json else sys.stdout
    print(f"Report: {report}\nRecord: {db}", file=where)


class _Line(AbstractContextManager[Any]):
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
