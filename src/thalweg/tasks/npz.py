"""Tasks from arrays alone: a small network on standardised inputs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.tasks.arrays import read_npz
from thalweg.tasks.data import parts
from thalweg.tasks.networks import mlp
from thalweg.tasks.split import Split, TaskError
from thalweg.tasks.task import Task

__all__ = ["npz_task"]

HIDDEN = 64

# What parts are called in files, after the name of the array.
ENDINGS = {
    "_train": "train",
    "_validation": "validation",
    "_val": "validation",
    "_valid": "validation",
    "_test": "test",
}


def npz_task(path: str | Path) -> Task:
    """A network of two hidden layers of 64 on the arrays of an ``.npz`` file.

    Arrays ``x`` (``(samples, *features)``) and ``y``; or ``x_train`` and ``y_train``, and if there
    are such parts ``x_validation`` (``x_val``, ``x_valid``), ``x_test`` and their ``y``. Inputs are
    flattened and standardised on the part for training. Targets that are integers, one a sample,
    are classes; others are standardised and predicted by mean squared error.

    Raises:
        TaskError: naming the file or the part, and what stands against it.
    """
    path = Path(path)
    try:
        found = parts(**_by_part(path, read_npz("task", path)))
    except TaskError as error:
        if error.argument == "task":
            raise
        raise TaskError("task", f"{path.name}, {error.argument}: {error.problem}") from error
    splits = found.train, found.validation, found.test
    notes = [note for note in found.notes if "uint8" not in note]  # which are standardised
    rows = [_rows(s.x) for s in splits]
    if len({x.shape[1] for x in rows}) > 1:
        raise TaskError("task", f"{path.name} has parts with different numbers of features")
    xs, first = _standardised(rows), splits[0].y
    classes = isinstance(first, Tensor) and not first.is_floating_point() and first.ndim == 1
    if classes:
        ys, outputs = _numbered(path, [_rows(s.y)[:, 0] for s in splits], notes)
    else:
        if bool((_rows(splits[0].y) == _rows(splits[0].y)[:1]).all()):
            raise TaskError(
                "task",
                f"{path.name} has the same targets in all samples for training; there is nothing "
                f"to predict: give others",
            )
        ys = _standardised([_rows(s.y) for s in splits])
        outputs = ys[0].shape[1]
        notes.append("targets are standardised, so that errors are in standard deviations")
    train, validation, test = (Split(x, y) for x, y in zip(xs, ys, strict=True))
    return Task(
        model=mlp(xs[0].shape[1], HIDDEN, HIDDEN, outputs),
        train=train,
        validation=validation,
        test=test,
        loss="cross_entropy" if classes else "mse",
        metric="accuracy" if classes else "mae",
        name=path.stem,
        notes=tuple(notes),
    )


def _by_part(path: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    """``(x, y)`` for training, validation and test, None for a part that the file lacks."""
    found: dict[str, Any] = dict.fromkeys(("train", "validation", "test"))
    if {"x", "y"} <= set(arrays):
        return found | {"train": (arrays["x"], arrays["y"])}
    for ending, part in ENDINGS.items():
        there = [name for name in (f"x{ending}", f"y{ending}") if name in arrays]
        if len(there) == 1:
            raise TaskError("task", f"{path.name} has {there[0]} alone; each part needs x and y")
        if there:
            found[part] = tuple(arrays[name] for name in there)
    if found["train"] is None:
        names = ", ".join(arrays) or "none"
        raise TaskError(
            "task", f"{path.name} needs arrays x and y, or x_train and y_train; it has {names}"
        )
    return found


def _rows(side: Any) -> Tensor:
    """``(samples, values)`` of one array."""
    rows: Tensor = side.reshape(len(side), -1)
    return rows


def _standardised(parts: list[Tensor]) -> list[Tensor]:
    """To zero mean and unit variance of the first part; constant columns stay."""
    first = parts[0].double()
    mean, spread = first.mean(0), first.std(0, correction=0)
    spread = torch.where(spread > 1e-12 * (1 + mean.abs()), spread, torch.ones_like(spread))
    return [((part.double() - mean) / spread).float() for part in parts]


def _numbered(path: Path, ys: list[Tensor], notes: list[str]) -> tuple[list[Tensor], int]:
    """Classes numbered from 0 in the order of their values."""
    values = sorted({value for y in ys for value in y.tolist()})
    absent = sorted(set(values) - set(ys[0].tolist()))
    if absent:
        notes.append(f"no sample for training is of class {', '.join(map(str, absent[:5]))}")
    if len(values) < 2:
        raise TaskError("task", f"{path.name} has targets of one class alone, {values[0]}")
    samples = sum(map(len, ys))
    if len(values) > max(20, samples // 5):
        raise TaskError(
            "task",
            f"{path.name} has whole numbers as targets, {len(values)} different ones in {samples} "
            f"samples, too many to be classes; for a regression save them as floating point, "
            f"y.astype('float32')",
        )
    notes.append(f"targets are whole numbers, taken for classes: {len(values)}")
    order = torch.tensor(values)
    return [torch.searchsorted(order, y.contiguous()) for y in ys], len(values)
