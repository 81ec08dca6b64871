"""``thalweg fit``."""

import json as jsons
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.alive import is_first, speaks
from thalweg.cli.data import DataOptions, TaskName, option_of, print_columns, takes_data
from thalweg.cli.training import (
    Device,
    LossName,
    Rate,
    ScheduleText,
    compiling,
    keep_memory,
    leaving_at_once,
    refuse,
)

if TYPE_CHECKING:
    from thalweg.tasks import Task
    from thalweg.train import FitResult, Progress

__all__ = ["fit"]


@takes_data
def fit(
    task: TaskName,
    *,
    data: DataOptions,
    from_study: Annotated[
        str | None,
        typer.Option(help="Train the best setting of that study in --db, as far as not given."),
    ] = None,
    db: Annotated[
        str, typer.Option(help="SQLite file, or database URL, that has the study.")
    ] = "thalweg.db",
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="Its name, with arguments if need be: adamw:weight_decay=0.1:betas=0.9/0.95; "
            "`thalweg optimizers` lists them. By default adam."
        ),
    ] = None,
    lr: Rate = None,
    schedule: ScheduleText = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Samples a batch, of all processes together. By default the task's."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training data. 30 by default.")
    ] = None,
    loss: LossName = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches a step, whose samples count alike.")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    clip_value: Annotated[
        float | None, typer.Option(help="Largest size of an element of the gradient.")
    ] = None,
    ema_decay: Annotated[
        float | None,
        typer.Option(help="Of an average of the weights, which is evaluated and kept: 0.999."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Of forward passes: float32, bfloat16, or float16 (GPU)."),
    ] = None,
    hybridize: Annotated[
        bool | None,
        typer.Option("--hybridize/--no-hybridize", help="Compile the model.", show_default=False),
    ] = None,
    prefetch: Annotated[
        int | None, typer.Option(help="Batches that are prepared in the background.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a better one.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of initial weights, order of batches and dropout.")
    ] = None,
    device: Device = "cpu",
    shard: Annotated[
        bool, typer.Option("--shard", help="Each process keeps its part of the weights (FSDP2).")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the checkpoints. By default thalweg-fit-TASK."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the training in --out, or begin it."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew where --out has a training.")
    ] = False,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between two checkpoints.")
    ] = 30.0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard events to --out too.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on standard output.")
    ] = False,
) -> None:
    """Train one model to the end, with checkpoints that it can go on from.

    With torchrun several processes train it together: torchrun --nproc-per-node 2 -m thalweg fit
    TASK.
    """
    keep_memory()
    with leaving_at_once():
        import thalweg
        from thalweg.errors import ArgumentError
        from thalweg.train import DivergenceError
        from thalweg.train import fit as trained
    given: dict[str, Any] = {
        "optimizer": optimizer,
        "lr": lr,
        "schedule": schedule,
        "batch_size": batch_size,
        "epochs": epochs,
        "loss": loss,
    }
    try:
        with compiling() if is_first() else nullcontext():
            found = data.task(task)
            if isinstance(found, thalweg.TableTask):
                print_columns(found)
            if from_study is not None:
                found, given = _from_study(found, from_study, db, given)
            folder = Path(f"thalweg-fit-{found.name}") if out is None else out
            with _Bar(enabled=is_first() and sys.stderr.isatty(), task=found) as show:
                result = trained(
                    found,
                    **given,
                    accumulate=accumulate,
                    clip_norm=clip_norm,
                    clip_value=clip_value,
                    ema_decay=ema_decay,
                    precision=precision,
                    hybridize=hybridize,
                    prefetch=prefetch,
                    patience=patience,
                    seed=seed,
                    device=device,
                    shard=shard,
                    out=folder,
                    resume=resume,
                    overwrite=overwrite,
                    checkpoint_every=checkpoint_every,
                    tensorboard=tensorboard,
                    progress=show,
                )
    except DivergenceError as error:
        if speaks():
            print(f"thalweg: {error.problem}", file=sys.stderr)
        raise typer.Exit(1) from None
    except ArgumentError as error:
        refuse(option_of(error.argument), error.problem)
    except OSError as error:
        refuse("--out", f"cannot write to {folder} ({error.strerror})")
    except KeyboardInterrupt as interruption:
        if speaks():
            print(f"thalweg: {str(interruption) or 'interrupted'}", file=sys.stderr)
        raise typer.Exit(130) from None
    if not is_first():
        return
    if json:
        sys.stdout.write(jsons.dumps(result.plain()) + "\n")
    else:
        _print(result)
    if isinstance(found, thalweg.TableTask):
        model = folder / f"{found.name}.model"
        found.predictor(result.weights).save(model)
        typer.echo(f"Model: {model}", err=json)


def _from_study(
    task: "Task", study: str, db: str, given: dict[str, Any]
) -> "tuple[Task, dict[str, Any]]":
    """The task and the setting of a study's winner, but for what a person gives."""
    from thalweg.studies import StudyError, best_setting

    try:
        best = best_setting(study, task, db=db)
    except StudyError as error:
        refuse("--db" if error.argument == "db" else "--from-study", error.problem)
    if not best.same_task:
        print(
            f"The study {study!r} was of {best.studied!r} with other data, another model, loss or "
            f"metric than {task.name!r} has here.",
            file=sys.stderr,
        )
    names = ("lr", "optimizer") if given["optimizer"] is None else ()  # a rate is its optimizer's
    kept = {name: getattr(best, name) for name in (*names, "schedule", "batch_size", "epochs")}
    return best.task, kept | {name: value for name, value in given.items() if value is not None}


def _print(result: "FitResult") -> None:
    from rich.console import Console

    metric = result.task.metric

    def shown(value: float) -> str:
        return f"{value:.1%}" if metric.percent else f"{value:.4g}"

    early = ", stopped early" if result.outcome == "stopped" else ""
    console = Console()
    console.print(
        f"{metric.name}: {shown(result.metric)} on validation data, {shown(result.test_metric)} on "
        f"test data, after epoch {result.epoch} of {result.epochs}{early}",
        highlight=False,
        markup=False,
    )
    console.print(
        f"loss: {result.train_loss:.4g} in training, {result.validation_loss:.4g} on validation "
        f"data, {result.test_loss:.4g} on test data; {result.steps:,} steps in "
        f"{result.seconds:.3g} s",
        style="dim",
        highlight=False,
        markup=False,
    )
    typer.echo(f"Checkpoint: {result.checkpoint}")


class _Bar(AbstractContextManager[Any]):
    """How far the training is, on standard error if that is a terminal."""

    def __init__(self, enabled: bool, task: "Task") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._enabled, self._metric = enabled, task.metric
        self._line = self._bar.add_task("", total=None, epoch="1", values="preparing")

    def __enter__(self) -> "_Bar":
        if self._enabled:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            self._bar.stop()

    def __call__(self, p: "Progress") -> None:
        if not self._enabled:
            return
        metric = ""
        if p.metric is not None:
            value = f"{p.metric:.1%}" if self._metric.percent else f"{p.metric:.4g}"
            metric = f" · {self._metric.name} {value}"
        self._bar.update(
            self._line,
            completed=p.step,
            total=p.steps,
            epoch=f"{p.epoch}/{p.epochs}",
            values=f"loss {p.loss:.4g}{metric} · lr {p.lr:.3g} · {p.samples_per_second:,.0f} "
            f"samples/s",
        )
