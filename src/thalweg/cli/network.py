"""``thalweg surface TASK``: the loss around a trained network."""

import json as jsons
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from thalweg.cli.training import write_page

if TYPE_CHECKING:
    from thalweg.landscape.surface import Surface
    from thalweg.landscape.training_path import TrainingPath
    from thalweg.tasks import Task

__all__ = ["network_surface"]


def network_surface(
    task: "Task",
    *,
    optimizers: Sequence[str] = ("sgd", "adam"),
    lr: float | None = None,
    batch_size: int | None = None,
    epochs: int = 20,
    seed: int = 0,
    points: int = 41,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Train a task by each optimizer, and show the loss around where it went.

    Args:
        task: what is trained.
        optimizers: names in the registry, one or more; the first two are compared.
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
    from thalweg.landscape import surface as surfaces
    from thalweg.landscape.training_path import training_paths

    paths = training_paths(
        task, optimizers, lr=lr, batch_size=batch_size, epochs=epochs, seed=seed
    )
    around: list[tuple[TrainingPath, Surface, Surface, Surface]] = []
    for path in paths:
        end = path.at(-1)
        planes = (
            surfaces.path_plane(path),
            surfaces.random_plane(end, seed),
            surfaces.curvature_plane(task, end),
        )
        way, random, curved = (surfaces.surface(task, plane, points) for plane in planes)
        around.append((path, way, random, curved))
    line = None
    if len(paths) > 1:
        first, second = paths[:2]
        names = (f"{first.optimizer}'s solution", f"{second.optimizer}'s solution")
        laid = surfaces.between(first.at(-1), second.at(-1), names=names)
        line = surfaces.surface(task, laid, 4 * points)
    out = Path(f"thalweg-surface-{task.name}.html") if out is None else out
    _write(out, task, around, line)
    if json:
        typer.echo(jsons.dumps(_plain(task, around, line)))
    else:
        _print(around, line)
    typer.echo(f"Page: {out}", err=json)
