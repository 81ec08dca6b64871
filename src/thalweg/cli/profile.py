"""``thalweg profile``."""

import json as jsons
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.cli.data import DataOptions, TaskName, option_of, print_columns, takes_data
from thalweg.cli.training import (
    BatchSize,
    Device,
    Doing,
    Rate,
    keep_memory,
    leaving_at_once,
    refuse,
    refuse_unwritable,
    write_page,
)

if TYPE_CHECKING:
    from thalweg.train.profile import Profile

__all__ = ["profile"]


@takes_data
def profile(
    task: TaskName,
    *,
    data: DataOptions,
    optimizer: Annotated[
        str,
        typer.Option(
            help="Its name; `thalweg optimizers` lists them. Of torch.optim with torch. before it: "
            "torch.Adam."
        ),
    ] = "adam",
    lr: Rate = None,
    batch_size: BatchSize = None,
    precision: Annotated[
        str, typer.Option(help="Of forward passes: float32, bfloat16, float16.")
    ] = "float32",
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="The page. By default thalweg-profile-TASK.html.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Say where a training step's time and memory go, and what would make it faster.

    Every change that is listed was tried right there.
    """
    refuse_unwritable("--out", out or Path("thalweg-profile-TASK.html"))
    keep_memory()
    with leaving_at_once():
        import thalweg
        from thalweg.errors import ArgumentError
        from thalweg.train.profile import profile as found_in
    try:
        with Doing(enabled=sys.stderr.isatty()) as show:
            given = data.task(task)
            if isinstance(given, thalweg.TableTask):
                print_columns(given)
            found = found_in(
                given,
                optimizer,
                lr,
                batch_size=batch_size,
                precision=precision,
                device=device,
                progress=show,
            )
    except ArgumentError as error:
        refuse(option_of(error.argument), error.problem)
    out = Path(f"thalweg-profile-{found.name}.html") if out is None else out
    write_page(out, found.to_html())
    if json:
        sys.stdout.write(jsons.dumps(found.plain()) + "\n")
    else:
        _print(found)
    typer.echo(f"Page: {out}", err=json)


def _print(found: "Profile") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from thalweg.numbers import duration
    from thalweg.report.profile import SECTIONS, notes_of, rows_of, setting_of

    console = Console()
    console.print(Text(found.task, style="bold"))
    console.print(
        Text(
            f"{setting_of(found)}: a step takes {duration(found.stages.step)}, "
            f"{found.samples_per_second:,.0f} samples a second."
        )
    )
    for section, heads in SECTIONS.items():
        console.print()
        shown = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
        for i, head in enumerate(heads):
            shown.add_column(
                Text(head), justify="right" if i else "left", no_wrap=i > 0, overflow="fold"
            )
        for row in rows_of(found, section):
            shown.add_row(*map(Text, row))
        console.print(shown)
        for note in notes_of(found, section):
            console.print(Text(note, style="dim"))
    console.print()
    console.print(Text(found.advice, style="green"))
