"""``thalweg check``."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.cli.data import DataOptions, TaskName, option_of, takes_data

if TYPE_CHECKING:
    from thalweg.studies import Check

__all__ = ["check"]

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@takes_data
def check(
    task: TaskName,
    *,
    data: DataOptions,
    json: Annotated[
        bool, typer.Option("--json", help="Print what was found as JSON on standard output.")
    ] = False,
) -> None:
    """Try a task on one batch: what its tensors are, whether it learns, what slows it down.

    Exit code 0 if it is ready to be studied, 1 if something failed, 2 if it is no task.
    """
    import thalweg

    try:
        found = thalweg.check(data.task(task))
    except thalweg.TaskError as error:
        raise typer.BadParameter(error.problem, param_hint=option_of(error.argument)) from None
    if json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        _print(found)
    raise typer.Exit(0 if found.ok else 1)


def _print(found: "Check") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found.findings:
        seen = Text(finding.evidence)
        if finding.advice:
            seen.append(f"\n{finding.advice}", style="italic")
        table.add_row(Text(finding.status, STYLES[finding.status]), Text(finding.what), seen)
    console = Console()
    console.print(table)
    console.print(Text(f"{found.task} is {'ready' if found.ok else 'not ready'} to be studied."))
