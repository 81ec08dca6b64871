"""``thalweg diagnose``."""

import json as jsons
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.cli.data import DataOptions, option_of, print_columns, takes_data
from thalweg.cli.training import (
    BatchSize,
    Doing,
    LossName,
    Rate,
    ScheduleText,
    compiling,
    keep_memory,
    leaving_at_once,
    refuse,
    refuse_unwritable,
    write_page,
)

if TYPE_CHECKING:
    from thalweg.diagnosis import Diagnosis

__all__ = ["diagnose"]


@takes_data
def diagnose(
    subject: Annotated[
        str,
        typer.Argument(
            help="A task as `thalweg study` takes it, or a checkpoint (weights.pt, a state "
            "dictionary) with --task.",
            metavar="TASK_OR_CHECKPOINT",
        ),
    ],
    *,
    data: DataOptions,
    task: Annotated[
        str | None, typer.Option(help="The task of a checkpoint, which is trained on from there.")
    ] = None,
    optimizer: Annotated[
        str, typer.Option(help="Its name; `thalweg optimizers` lists them.")
    ] = "adam",
    lr: Rate = None,
    schedule: ScheduleText = None,
    batch_size: BatchSize = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Of every training. By default 30, or fewer where that takes minutes."),
    ] = None,
    loss: LossName = None,
    seeds: Annotated[int, typer.Option(help="Runs of every setting, which train together.")] = 4,
    out: Annotated[
        Path | None, typer.Option(help="The page. By default thalweg-diagnose-TASK.html.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON on standard output.")
    ] = False,
) -> None:
    """Say what is wrong with a training, how sure that is, and what mends it.

    Every change that is advised was tried first.
    """
    refuse_unwritable("--out", out or Path("thalweg-diagnose-TASK.html"))
    keep_memory()
    with leaving_at_once():
        import thalweg
        from thalweg.diagnosis import diagnose as found_in
        from thalweg.diagnosis.checkpoint import is_checkpoint
        from thalweg.errors import ArgumentError
        from thalweg.tasks.data import nonfinite_taken
    checkpoint = is_checkpoint(subject)
    if checkpoint and task is None:
        refuse("--task", f"{subject} is a checkpoint; say which task it is of by --task TASK")
    if task is not None and not checkpoint:
        refuse(
            "--task",
            f"is for a checkpoint, and {subject!r} is none: its name ends in .pt, .pth, .ckpt "
            f"or .bin",
        )
    try:
        with compiling(), Doing(enabled=sys.stderr.isatty()) as show:
            with nonfinite_taken():
                given = data.task(subject if task is None else task)
            if isinstance(given, thalweg.TableTask):
                print_columns(given)
            found = found_in(
                given,
                optimizer,
                lr,
                schedule=schedule,
                batch_size=batch_size,
                epochs=epochs,
                loss=loss,
                seeds=seeds,
                weights=subject if checkpoint else None,
                progress=show,
            )
            show("writing the page")
            out = Path(f"thalweg-diagnose-{given.name}.html") if out is None else out
            write_page(out, found.to_html())
    except ArgumentError as error:
        arguments = {"task": "TASK_OR_CHECKPOINT", "schedules": "--schedule"}
        refuse(arguments.get(error.argument, option_of(error.argument)), error.problem)
    if json:
        sys.stdout.write(jsons.dumps([f.plain() for f in found.findings]) + "\n")
    else:
        _print(found)
    typer.echo(f"Page: {out}", err=json)


def _print(found: "Diagnosis") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for i, finding in enumerate(found.findings):
        if i:
            console.print()
        head = Text(finding.title, style="bold")
        head.append(f"   {finding.confidence:.0%} sure", style="dim")
        console.print(head)
        console.print(Text(finding.evidence))
        if finding.advice:
            console.print(Text(finding.advice, style="green"))
