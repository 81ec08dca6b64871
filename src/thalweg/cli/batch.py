"""``thalweg batch``."""

import json as jsons
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli.data import DataOptions, TaskName, option_of, print_columns, takes_data
from thalweg.cli.training import (
    Device,
    Line,
    compiling,
    keep_memory,
    leaving_at_once,
    names,
    refuse,
    refuse_unwritable,
    write_page,
)

if TYPE_CHECKING:
    from thalweg.tune import BatchSizes

__all__ = ["batch"]


@takes_data
def batch(
    task: TaskName,
    *,
    data: DataOptions,
    optimizer: Annotated[
        str, typer.Option(help="Its name; `thalweg optimizers` lists them.")
    ] = "adam",
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Batch sizes to compare: 8,32,128. By default powers of four up to what there "
            "is, or fits."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of every run.")] = 20,
    seeds: Annotated[int, typer.Option(help="Runs of every setting.")] = 3,
    target_metric: Annotated[
        float | None,
        typer.Option(help="Validation metric that counts as trained: 0.95. By default the task's."),
    ] = None,
    maximum: Annotated[
        int | None,
        typer.Option(
            "--max",
            help="Largest batch to try in memory. By default the training samples.",
        ),
    ] = None,
    device: Device = "cpu",
    db: Annotated[
        str, typer.Option(help="SQLite file, or database URL, that keeps the record.")
    ] = "thalweg.db",
    out: Annotated[
        Path | None, typer.Option(help="The page. By default thalweg-batch-TASK.html.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Say which batch size to use here, and why."""
    refuse_unwritable("--out", out or Path("thalweg-batch-TASK.html"))
    chosen = _sizes(sizes)
    keep_memory()
    with leaving_at_once():
        import thalweg
        from thalweg.errors import ArgumentError
        from thalweg.tune import batch_sizes
    try:
        with compiling():
            given = data.task(task)
            if isinstance(given, thalweg.TableTask):
                print_columns(given)
            with Line(enabled=sys.stderr.isatty()) as show:
                found = batch_sizes(
                    given,
                    optimizer=optimizer,
                    sizes=chosen,
                    epochs=epochs,
                    seeds=seeds,
                    target=target_metric,
                    maximum=maximum,
                    device=device,
                    db=db,
                    progress=show,
                )
    except ArgumentError as error:
        options = {"target": "--target-metric", "optimizers": "--optimizer", "maximum": "--max"}
        refuse(options.get(error.argument, option_of(error.argument)), error.problem)
    out = Path(f"thalweg-batch-{given.name}.html") if out is None else out
    _write(out, found)
    if json:
        sys.stdout.write(jsons.dumps(_plain(found)) + "\n")
    else:
        _print(found)
    typer.echo(f"Page: {out}", err=json)
    typer.echo(f"Record: {db}", err=json)


def _sizes(text: str | None) -> list[int] | None:
    words = names(text)
    if words is None:
        return None
    if not words or not all(w.isascii() and w.isdigit() and int(w) for w in words):
        refuse("--sizes", f"{text!r} is no list of whole numbers from 1; write 8,32,128")
    return [int(word) for word in words]


def _cells(found: "BatchSizes") -> tuple[list[str], list[list[str]]]:
    """The table in words: heads and rows."""
    import numpy as np

    from thalweg.numbers import number
    from thalweg.studies.intervals import points

    metric = found.metric
    scale = " %" if metric.percent else ""

    def known(value: float) -> str:
        return number(value) if math.isfinite(value) else "–"

    def at(value: float) -> str:
        return points(metric, value) + scale if math.isfinite(value) else "–"

    heads = [
        "batch size", "learning rate", f"test {metric.name}", "steps to target",
        "seconds to target", "samples a second", f"{metric.name}, linear rule",
        f"{metric.name}, square root",
    ]  # fmt: skip
    rows = [
        [
            f"{row['batch_size']:,}" + (" ←" if row["batch_size"] == found.recommended else ""),
            number(row["lr"]) + "*" * bool(row["edge"]),
            at(row["test_metric"]) + (" =" if row["tied"] else ""),
            known(np.ceil(row["steps_to_target"])),
            known(row["seconds_to_target"]),
            f"{row['samples_per_second']:,.0f}",
            at(row["linear_metric"]),
            at(row["sqrt_metric"]),
        ]
        for _, row in found.table.iterrows()
    ]
    return heads, rows


def _print(found: "BatchSizes") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heads, rows = _cells(found)
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    console.print(table)
    console.print(found.why, highlight=False, markup=False)
    for note in found.notes:
        console.print(note, style="dim", highlight=False, markup=False)


def _write(out: Path, found: "BatchSizes") -> None:
    from thalweg.figures.html import listed, page, table

    parts: list[tuple[str, str, Any]] = [
        ("", "", table(*_cells(found))),
        (
            "What a batch size costs and gives",
            "Every batch size with a learning rate of its own, tuned on validation data over the "
            "same rates, and with the rate that a rule gives it from that of the reference size, "
            f"{found.reference:,}. All train for the same epochs; an incomplete last batch of an "
            "epoch is left out.",
            found.figure(),
        ),
        (
            "Gradient noise scale",
            f"While training at batch size {found.noise.batch_size:,}.",
            found.noise.figure(),
        ),
        ("How it was done", "", listed(found.notes)),
    ]
    write_page(out, page(f"Batch size for {found.task}", found.why, parts))


def _plain(found: "BatchSizes") -> dict[str, Any]:
    """For machines; missing numbers as null."""

    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "task": found.task,
        "optimizer": found.optimizer,
        "recommended": found.recommended,
        "why": found.why,
        "target": found.target,
        "reference": found.reference,
        "table": jsons.loads(found.table.to_json(orient="records", double_precision=15)),
        "noise_scale": {
            "value": known(found.noise.value),
            "interval": list(map(known, found.noise.interval)),
            "batch_size": found.noise.batch_size,
        },
        "critical": {
            "value": known(found.critical.value),
            "interval": list(map(known, found.critical.interval)),
            "steps": known(found.critical.steps),
            "samples": known(found.critical.samples),
        },
        "largest": {
            k: v
            for k, v in asdict(found.fit).items()
            if k in ("size", "bytes", "limit", "available")
        },
        "notes": found.notes,
        "database": found.study.database,
    }
