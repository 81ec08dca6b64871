"""``thalweg study``."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.cli.data import DataOptions, TaskName, option_of, print_columns, sentence, takes_data
from thalweg.cli.training import (
    Device,
    Line,
    compiling,
    keep_memory,
    leaving_at_once,
    names,
    refuse,
    refuse_unwritable,
)

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
    device: Device = "cpu",
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last study of that name in --db.")
    ] = False,
) -> None:
    """Train a task with several optimizers, learning rates and seeds; say which is best."""
    refuse_unwritable("--out", out or Path("thalweg-NAME.html"))
    refuse_unwritable("--model", model or Path("thalweg-NAME.model"))
    keep_memory()
    with leaving_at_once():
        import thalweg  # torch and what builds on it take seconds to import

        train = thalweg.study
    try:
        with compiling():
            found = data.task(task)
            table = found if isinstance(found, thalweg.TableTask) else None
            goal, typed = target_metric, "--target-metric"
            if table is not None:
                print_columns(table)
            elif model is not None:
                refuse("--model", f"is for a table, and {task!r} is none")
            elif data.target is not None and goal is None:
                goal, typed = _number(data.target, task), "--target"
            with Line(enabled=sys.stderr.isatty()) as show:
                result = train(
                    found,
                    names(optimizers),
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
        refuse(option_of(error.argument), error.problem)
    except thalweg.StudyError as error:
        refuse(typed if error.argument == "target" else option_of(error.argument), error.problem)
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


def _importing_report(show: "Callable[[Progress], None]") -> "Callable[[Progress], None]":
    """Import what the report needs once training has begun, which leaves Python idle."""
    importing = Thread(target=import_module, args=("thalweg.report",))

    def progress(p: "Progress") -> None:
        if importing.ident is None:
            importing.start()
        show(p)

    return progress


def _number(text: str, task: str) -> float:
    try:
        return float(text)
    except ValueError:
        refuse("--target", f"{text!r} is no number, and {task!r} is no table with such a column")


def _write(option: str, path: Path, write: "Callable[[Path], object]", shown: str, db: str) -> Path:
    """Write what comes after the record, which an error here does not lose."""
    try:
        write(path)
    except OSError as error:
        print(shown, file=sys.stderr)
        refuse(option, f"cannot write {path} ({error.strerror}); the record is in {db}")
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
