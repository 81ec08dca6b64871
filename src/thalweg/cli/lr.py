"""``thalweg lr``."""

import json as jsons
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli.data import DataOptions, TaskName, option_of, print_columns, takes_data
from thalweg.cli.training import (
    BatchSize,
    Device,
    compiling,
    keep_memory,
    leaving_at_once,
    names,
    refuse,
    refuse_unwritable,
    write_page,
)

if TYPE_CHECKING:
    from thalweg.tune import LRRange

__all__ = ["lr"]


@takes_data
def lr(
    task: TaskName,
    *,
    data: DataOptions,
    optimizers: Annotated[
        str,
        typer.Option(
            help="Names, separated by commas: sgd,adamw. `thalweg optimizers` lists them."
        ),
    ] = "adam",
    low: Annotated[
        float | None, typer.Option(help="Lowest rate. By default well below what is usual.")
    ] = None,
    high: Annotated[
        float | None, typer.Option(help="Highest rate. By default well above what is usual.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps from the lowest rate to the highest.")] = 200,
    scale: Annotated[
        str, typer.Option(help="How the rate rises: exponential or linear.")
    ] = "exponential",
    seeds: Annotated[int, typer.Option(help="Runs, which train together.")] = 8,
    batch_size: BatchSize = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="Train with the rates around the suggestion to check it."
        ),
    ] = True,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="The page. By default thalweg-lr-TASK.html.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Suggest a learning rate, from a short run in which it rises.

    Ends with 1 if there is no rate to suggest.
    """
    refuse_unwritable("--out", out or Path("thalweg-lr-TASK.html"))
    keep_memory()
    with leaving_at_once():
        import thalweg
        from thalweg.errors import ArgumentError
        from thalweg.tune import lr_range_test
        from thalweg.tune.ranges import widest
    chosen = names(optimizers) or []
    if not chosen:
        refuse("--optimizers", "none given; `thalweg optimizers` lists them")
    found = []
    try:
        with compiling():
            given = data.task(task)
            if isinstance(given, thalweg.TableTask):
                print_columns(given)
            for name in chosen:
                usual = widest(name)
                rates = (usual[0] if low is None else low, usual[1] if high is None else high)
                found.append(
                    lr_range_test(
                        given,
                        name,
                        lr=rates,
                        steps=steps,
                        scale=scale,  # type: ignore[arg-type] # checked there
                        seeds=seeds,
                        batch_size=batch_size,
                        check=check,
                        device=device,
                    )
                )
    except ArgumentError as error:
        options = {"lr": "--low, --high", "optimizer": "--optimizers"}
        refuse(options.get(error.argument, option_of(error.argument)), error.problem)
    out = Path(f"thalweg-lr-{given.name}.html") if out is None else out
    _write(out, found)
    if json:
        sys.stdout.write(jsons.dumps([_plain(one) for one in found]) + "\n")
    else:
        _print(found)
    typer.echo(f"Page: {out}", err=json)
    if any(one.suggestion is None for one in found):
        raise typer.Exit(1)


def _rows(found: "list[LRRange]") -> list[list[str]]:
    from thalweg.numbers import number

    def pair(ends: tuple[float, float] | None) -> str:
        return "–" if ends is None else f"{number(ends[0])} to {number(ends[1])}"

    def one(value: float | None) -> str:
        return "–" if value is None else number(value)

    return [
        [
            r.optimizer,
            one(r.suggestion),
            pair(r.interval),
            "–" if r.interval is None else f"×{r.interval[1] / r.interval[0]:.3g}",
            pair(r.bounds),
            pair(r.third),
            one(r.diverged_at),
        ]
        for r in found
    ]


HEADS = (
    "optimizer", "learning rate", "as good", "width", "bounds of a cycle", "by the third",
    "diverges at",
)  # fmt: skip


def _print(found: "list[LRRange]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for i, head in enumerate(HEADS):
        table.add_column(head, justify="right" if i else "left")
    for row in _rows(found):
        table.add_row(*map(Text, row))
    console = Console()
    console.print(table)
    for one in found:
        console.print(f"{one.optimizer}: {one.reason}", highlight=False, markup=False, style="dim")


def _write(out: Path, found: "list[LRRange]") -> None:
    import pandas as pd

    from thalweg.figures.html import page, table
    from thalweg.figures.tune import rates
    from thalweg.numbers import number

    lead = "; ".join(
        f"{one.optimizer}: begin at {number(one.suggestion)}"
        if one.suggestion
        else f"{one.optimizer}: no rate to suggest"
        for one in found
    )
    parts: list[tuple[str, str, Any]] = [("", "", table(HEADS, _rows(found)))]
    checked = [one.rates for one in found if not one.checked.empty and one.interval]
    if checked:
        parts.append(
            (
                "Too small, right, too large",
                "Training from the start at a few of the rates that were checked; mean and range "
                "over seeds.",
                rates(pd.concat(checked)),
            )
        )
    parts += [
        (
            one.optimizer,
            f"{one.reason} The loss of {len(one.losses)} runs while the rate rises. The bounds of "
            "a cycle are where things start to get better, and where they are best and then turn "
            "(Smith, 2017); by the third, a third of the upper bound is the lower.",
            one.figure(),
        )
        for one in found
    ]
    write_page(out, page(f"Learning rate for {found[0].task}", lead, parts))


def _plain(one: "LRRange") -> dict[str, Any]:
    """For machines; missing numbers as null."""

    def known(values: Any) -> list[float | None]:
        return [float(v) if math.isfinite(v) else None for v in values]

    def rows(table: Any) -> Any:
        return jsons.loads(table.to_json(orient="records", double_precision=15))

    return {
        "optimizer": one.optimizer,
        "task": one.task,
        "suggestion": one.suggestion,
        "interval": one.interval,
        "reason": one.reason,
        "bounds": one.bounds,
        "third": one.third,
        "diverged_at": one.diverged_at,
        "marks": asdict(one.marks),
        "lrs": known(one.lrs),
        "losses": [known(run) for run in one.losses],
        "smoothed": known(one.smoothed),
        "metric": one.metric,
        "metrics": rows(one.metrics),
        "checked": rows(one.checked),
    }
