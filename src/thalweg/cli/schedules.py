"""``thalweg schedules``."""

import json as jsons
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli.training import refuse_unwritable, write_page

if TYPE_CHECKING:
    import pandas as pd

    from thalweg.schedules import Schedule

__all__ = ["schedules"]

COMPOSED = "warmup+cosine"  # stands for all that can be put together


def schedules(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Those to draw in one panel: cosine, step:size=100:gamma=0.5, "
            "warmup:steps=10%+cosine. By default all, a panel each.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the training.")] = 300,
    steps_per_epoch: Annotated[
        int, typer.Option(help="For what is typed in epochs: step:size=2e, exp:gamma=0.9:by=epoch.")
    ] = 30,
    lr: Annotated[float, typer.Option(help="Base learning rate, which a schedule scales.")] = 1.0,
    out: Annotated[Path, typer.Option(help="The figure.")] = Path("thalweg-schedules.html"),
    json: Annotated[
        bool, typer.Option("--json", help="Print the rates as JSON on standard output.")
    ] = False,
) -> None:
    """Draw learning-rate schedules over a training, and print what they are."""
    from thalweg.schedules import SCHEDULES, ScheduleError, frame, parse

    if not (math.isfinite(lr) and lr > 0):
        raise typer.BadParameter(f"must be a number above 0, got {lr:g}", param_hint="--lr")
    refuse_unwritable("--out", out)
    everything = (*SCHEDULES, COMPOSED) if steps > 1 else SCHEDULES
    try:
        chosen = {name: parse(name, steps, steps_per_epoch) for name in names or everything}
        factors = frame(chosen, steps)
    except ScheduleError as error:
        hint = f"--{error.argument.replace('_', '-')}"
        if error.argument not in ("steps", "steps_per_epoch"):
            hint = "NAMES"
        raise typer.BadParameter(error.problem, param_hint=hint) from None
    _draw(factors, bool(names), steps, lr, out)
    if json:
        rows = [
            {
                "name": name,
                "schedule": schedule.text,
                "meaning": _meaning(name),
                "lr": (lr * schedule(range(steps))).tolist(),
            }
            for name, schedule in chosen.items()
        ]
        sys.stdout.write(jsons.dumps(rows) + "\n")
    else:
        _table(chosen, steps, lr)
    typer.echo(f"Figure: {out}", err=json)


def _draw(factors: "pd.DataFrame", together: bool, steps: int, lr: float, out: Path) -> None:
    from thalweg.figures.html import page
    from thalweg.figures.schedules import schedule_lines
    from thalweg.figures.schedules import schedules as side_by_side

    figure = schedule_lines(factors, lr) if together else side_by_side(factors, lr)
    caption = (
        f"The rate at each of the {steps:,} steps of a training, for a base learning rate of "
        f"{lr:g}."
    )
    write_page(out, page("Learning-rate schedules", caption, [("", "", figure)]))


def _meaning(name: str) -> str:
    from thalweg.schedules import SCHEDULES

    return SCHEDULES[name].meaning if name in SCHEDULES else ""


def _table(chosen: "dict[str, Schedule]", steps: int, lr: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from thalweg.numbers import number
    from thalweg.schedules import SCHEDULES

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", overflow="fold")
    table.add_column("what, with its parameters", overflow="fold")
    for column in ("first", "middle", "last"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, schedule in chosen.items():
        what = Text(_meaning(name) or schedule.text)
        if name in SCHEDULES and (filled := SCHEDULES[name].filled(steps)):
            given = ", ".join(f"{key}={_typed(value)}" for key, value in filled.items())
            what.append(f"\n{given}", style="dim")
        rates = lr * schedule([0, steps // 2, steps - 1])
        table.add_row(Text(name), what, *(number(float(rate)) for rate in rates))
    Console().print(table)


def _typed(value: Any) -> str:
    """As the command line takes it."""
    from thalweg.schedules.schedule import typed

    if isinstance(value, list):
        return "/".join(map(_typed, value))
    return value if isinstance(value, str) else typed(value).lower()
