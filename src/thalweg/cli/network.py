"""``thalweg surface TASK``: the loss around a trained network."""

import json as jsons
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from thalweg.cli.data import print_columns, sentence
from thalweg.cli.training import compiling, write_page

if TYPE_CHECKING:
    from thalweg.landscape.surface import Surface
    from thalweg.landscape.training_path import TrainingPath
    from thalweg.tasks import Task

__all__ = ["network_surface"]


@dataclass(frozen=True, eq=False)
class _Solution:
    """What one optimizer found, and the loss on three planes there."""

    path: "TrainingPath"
    along: "Surface"
    random: "Surface"
    curved: "Surface"


def network_surface(
    task: "Task",
    *,
    optimizers: Sequence[str] = ("sgd", "adam"),
    lr: float | None = None,
    batch_size: int | None = None,
    epochs: int = 20,
    seed: int = 0,
    points: int = 31,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Train a task by each optimizer, and show the loss around where it went.

    Args:
        task: what is trained.
        optimizers: names in the registry; the solutions of the first two are joined by a line.
        lr: learning rate of all; by default the middle of each one's usual ones.
        batch_size: samples a step; the task's by default.
        epochs: of every run.
        seed: of initial weights and order of batches.
        points: of each plane, a side.
        out: the page; by default thalweg-surface-TASK.html.
        json: whether to print the result as JSON on standard output.

    Raises:
        LandscapeError: for an argument that cannot be used.
        TaskError: for a task that cannot be trained.
    """
    from thalweg.landscape.surface import (
        between,
        curvature_plane,
        path_plane,
        random_plane,
        surface,
    )
    from thalweg.landscape.training_path import training_paths
    from thalweg.tasks.tables import TableTask

    if isinstance(task, TableTask):
        print_columns(task)
    found = []
    line = None
    with compiling():
        paths = training_paths(
            task, optimizers, lr=lr, batch_size=batch_size, epochs=epochs, seed=seed
        )
        for path in paths:
            end = path.at(-1)
            planes = path_plane(path), random_plane(end, seed), curvature_plane(task, end)
            found.append(_Solution(path, *(surface(task, plane, points) for plane in planes)))
        if len(paths) > 1:
            first, second = paths[:2]
            names = (f"{first.optimizer}'s solution", f"{second.optimizer}'s solution")
            laid = between(first.at(-1), second.at(-1), names=names)
            line = surface(task, laid, 4 * points)
    out = Path(f"thalweg-surface-{task.name}.html") if out is None else out
    _write(out, task, found, line)
    if json:
        typer.echo(jsons.dumps(_plain(task, found, line)))
    else:
        _print(found, line)
    typer.echo(f"Page: {out}", err=json)


def _rows(found: Sequence[_Solution]) -> tuple[list[str], list[list[str]]]:
    """The table in words: heads and rows."""
    from thalweg.numbers import number

    metric = found[0].along.metric
    heads = [
        "optimizer", "learning rate", "training loss", "validation loss",
        f"validation {metric.name}", "path in plane", "largest eigenvalues",
    ]  # fmt: skip
    rows = []
    for one in found:
        end = one.path.curve.iloc[-1]
        scored = end["validation_metric"]
        rows.append(
            [
                one.path.optimizer,
                number(one.path.lr),
                number(end["train_loss"]),
                number(end["validation_loss"]),
                f"{100 * scored:.1f} %" if metric.percent else number(scored),
                f"{100 * sum(one.along.plane.values):.1f} %",
                ", ".join(map(number, one.curved.plane.values)),
            ]
        )
    return heads, rows


def _between(found: Sequence[_Solution], line: "Surface | None") -> str:
    """What lies between the two solutions, in a sentence."""
    from thalweg.landscape.surface import barrier
    from thalweg.numbers import number

    if line is None:
        path = found[0].path
        reached = number(path.curve["train_loss"].iloc[-1])
        return f"{path.optimizer} ends at a training loss of {reached}."
    a, b = (one.path.optimizer for one in found[:2])
    train, validation = barrier(line), barrier(line, "validation_loss")

    def rise(height: float) -> str:
        return f"rises by up to {number(height)}" if height else "never rises"

    return (
        f"On the way from {a}'s solution to {b}'s the training loss {rise(train)} above the "
        f"straight line between its ends, the validation loss {rise(validation)}."
    )


def _print(found: Sequence[_Solution], line: "Surface | None") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heads, rows = _rows(found)
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    console.print(table)
    console.print(_between(found, line), highlight=False, markup=False)


def _write(out: Path, task: "Task", found: Sequence[_Solution], line: "Surface | None") -> None:
    from thalweg.figures.html import listed, page, table

    parts: list[tuple[str, str, Any]] = [("", "", table(*_rows(found)))]
    for one in found:
        name = one.path.optimizer
        parts += [
            (f"Path of {name}", one.along.plane.note, one.along.figure()),
            ("", "The same as a surface: turn it with the mouse.", one.along.figure("surface")),
            (f"Around the solution of {name}", one.random.plane.note, one.random.figure()),
            ("", "", one.random.figure("surface")),
            (
                f"Where the loss around the solution of {name} curves most",
                one.curved.plane.note,
                one.curved.figure(),
            ),
        ]
    if line is not None:
        parts.append(("Between two solutions", line.plane.note, line.figure()))
    first = found[0].path
    notes = [
        f"Trained from seed {first.seed}, all from the same initial weights and with the "
        f"same batches, for {first.curve['epoch'].iloc[-1]:.0f} epochs.",
        "Losses and metrics are of the whole training and validation sets in evaluation mode; "
        "batch normalisation uses the statistics that came with the trained weights, on the line "
        "between two solutions those between theirs.",
        "Colours are on a logarithmic scale, unless losses are negative, the same for both sets of "
        "a figure.",
        *([sentence(found[0].random.note)] if found[0].random.note else []),
    ]
    parts.append(("How it was done", "", listed(notes)))
    title = f"Loss surface of {task.title}"
    write_page(out, page(title, _between(found, line), parts))


def _plain(task: "Task", found: Sequence[_Solution], line: "Surface | None") -> dict[str, Any]:
    """For machines; missing numbers as null."""
    from thalweg.landscape.surface import barrier

    def rows(table: Any) -> Any:
        return jsons.loads(table.to_json(orient="records", double_precision=15))

    def plain(one: "Surface") -> dict[str, Any]:
        return {
            "axes": list(one.plane.labels),
            "values": list(one.plane.values),
            "grid": rows(one.grid),
            "marks": rows(one.marks),
        }

    return {
        "task": task.title,
        "loss": found[0].along.loss,
        "metric": found[0].along.metric.name,
        "solutions": [
            {
                "optimizer": one.path.optimizer,
                "lr": one.path.lr,
                "seed": one.path.seed,
                "curve": rows(one.path.curve),
                "path": plain(one.along),
                "random": plain(one.random),
                "curvature": plain(one.curved),
            }
            for one in found
        ],
        "between": None
        if line is None
        else {
            **plain(line),
            "barrier": barrier(line),
            "validation_barrier": barrier(line, "validation_loss"),
        },
    }
