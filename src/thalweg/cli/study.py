"""``thalweg study``."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from thalweg.cli.data import DataOptions, TaskName, option_of, print_columns, sentence, takes_data

if TYPE_CHECKING:
    from thalweg.studies import Progress, StudyResult

__all__ = ["study"]


@takes_data
def study(
    task: TaskName,
    *,
    data: DataOptions,
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
    batch_size: Annotated[
        str | None,
        typer.Option(
            help="Samples a step; several to compare them: 16,64,256. By default the task's, "
            "mostly 32."
        ),
    ] = None,
    schedules: Annotated[
        str | None,
        typer.Option(
            help="Schedules of the learning rate to compare: fixed,cosine,step:gamma=0.5; `thalweg "
            "schedules` shows them. By default a fixed rate."
        ),
    ] = None,
    losses: Annotated[
        str | None,
        typer.Option(
            help="Losses to compare: cross_entropy,mse,mae,huber,bce,label_smoothing,focal. By "
            "default the task's alone."
        ),
    ] = None,
    target_metric: Annotated[
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
    model: Annotated[
        Path | None,
        typer.Option(
            help="Of a table, the best network with its encoder, for `thalweg predict`. By default "
            "thalweg-NAME.model."
        ),
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
    for option, path in (("--out", out), ("--model", model)):
        if path is not None and path.is_dir():
            _refuse(option, f"{path} is a folder; give the path of a file")
    _keep_memory()
    with _leaving_at_once():
        import thalweg  # torch and what builds on it take seconds to import

        train = thalweg.study
    try:
        with _compiling():
            found = data.task(task)
            table = found if isinstance(found, thalweg.TableTask) else None
            goal, typed = target_metric, "--target-metric"
            if table is not None:
                print_columns(table)
            elif model is not None:
                _refuse("--model", f"is for a table, and {task!r} is none")
            elif data.target is not None and goal is None:
                goal, typed = _number(data.target, task), "--target"
            with _Line(enabled=sys.stderr.isatty()) as show:
                result = train(
                    found,
                    _names(optimizers),
                    lr,
                    seeds,
                    epochs,
                    steps=steps,
                    batch_size=batch_size,
                    losses=losses,
                    schedules=schedules,
                    target=goal,
                    patience=patience,
                    name=name,
                    db=db,
                    compile=compile,
                    device=device,
                    resume=resume,
                    time_limit=time_limit,
                    progress=_importing_report(show),
                )
    except thalweg.TaskError as error:
        _refuse(option_of(error.argument), error.problem)
    except thalweg.StudyError as error:
        _refuse(typed if error.argument == "target" else option_of(error.argument), error.problem)
    except KeyboardInterrupt:
        print(
            f"thalweg: interrupted; what had ended is in {db}, and the same command with --resume "
            f"goes on from there",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    out = Path(f"thalweg-{result.spec.name}.html") if out is None else out
    written: dict[str, Path | str] = {
        "Report": _write("--out", out, result.report, result.verdict, db)
    }
    if table is not None and result.summary["test_metric"].notna().any():
        model = Path(f"thalweg-{result.spec.name}.model") if model is None else model
        best = result.train_best()
        assert isinstance(best.task, thalweg.TableTask)
        predictor = best.task.predictor(best.weights)
        written["Model"] = _write("--model", model, predictor.save, result.verdict, db)
    told = () if table is not None else result.task.notes  # those of a table are shown before
    _print(result, told, written | {"Record": db}, json)


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


def _number(text: str, task: str) -> float:
    try:
        return float(text)
    except ValueError:
        _refuse("--target", f"{text!r} is no number, and {task!r} is no table with such a column")


def _refuse(option: str, problem: str) -> NoReturn:
    raise typer.BadParameter(problem, param_hint=option)


def _write(option: str, path: Path, write: "Callable[[Path], object]", shown: str, db: str) -> Path:
    """Write what comes after the record, which an error here does not lose."""
    try:
        write(path)
    except OSError as error:
        print(shown, file=sys.stderr)
        _refuse(option, f"cannot write {path} ({error.strerror}); the record is in {db}")
    return path


def _print(
    result: "StudyResult", told: "Sequence[str]", written: "dict[str, Path | str]", json: bool
) -> None:
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
        # A person's names and lines of code may look like markup.
        console.print(result.verdict, highlight=False, markup=False)
        for note in (*told, *result.notes):
            console.print(sentence(note), style="dim", highlight=False, markup=False)
    for what, path in written.items():
        print(f"{what}: {path}", file=sys.stderr if json else sys.stdout)


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
