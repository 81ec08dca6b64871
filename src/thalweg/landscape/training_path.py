"""A training whose weights are kept along the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.landscape.arguments import LandscapeError, entry_of, positive, seed_of, whole
from thalweg.optim.registry import Entry
from thalweg.replicas import Budget, Replica, Training
from thalweg.tasks import Task, load
from thalweg.tasks.trial import first_batch

__all__ = [
    "Array",
    "TrainingPath",
    "Weights",
    "parameters_of",
    "rate_of",
    "task_of",
    "training_paths",
]

# A model's tensors by name: what is trained, and buffers.
Weights: TypeAlias = Mapping[str, Tensor]
Array: TypeAlias = NDArray[np.float64]

BYTES = 1 << 30  # of weights kept, before a person is asked to keep fewer


@dataclass(frozen=True, eq=False)
class TrainingPath:
    """The weights that one run went through.

    Attributes:
        optimizer: as tables print it.
        lr: its learning rate.
        seed: of initial weights and order of batches.
        parameters: names of what was trained; the other weights are buffers, or frozen.
        weights: by name, ``(moments, *shape)``; the first are the initial ones.
        curve: a row a moment: ``step, epoch, train_loss, train_metric, validation_loss,
            validation_metric``, of the whole sets.
    """

    optimizer: str
    lr: float
    seed: int
    parameters: tuple[str, ...]
    weights: Weights = field(repr=False)
    curve: pd.DataFrame = field(repr=False)

    def at(self, moment: int) -> dict[str, Tensor]:
        """The weights of one moment; -1 is the end."""
        return {name: stack[moment] for name, stack in self.weights.items()}


def training_paths(
    task: str | Task,
    optimizers: Sequence[str] = ("sgd", "adam"),
    *,
    lr: float | None = None,
    batch_size: int | None = None,
    epochs: int = 20,
    seed: int = 0,
    moments: int = 81,
) -> list[TrainingPath]:
    """Train a task by several optimizers from the same weights, together, and keep their paths.

    Args:
        task: name of a built-in task, or a `thalweg.Task`.
        optimizers: names in the registry, each once.
        lr: learning rate of all of them; by default the middle of each one's usual ones.
        batch_size: samples a step; the task's by default.
        epochs: how long.
        seed: of initial weights and order of batches.
        moments: how often weights are kept, evenly spaced in steps, the start and the end among
            them; at most one a step.

    Returns:
        One path an optimizer.

    Raises:
        LandscapeError: for an argument that cannot be used, or a run that diverges.
        TaskError: for a task that cannot be trained.
    """
    found = task_of(task)
    listed = [optimizers] if isinstance(optimizers, str) else optimizers
    asked = [entry_of(name, "optimizers") for name in listed]
    entries = list({entry.label: entry for entry in asked}.values())
    if not entries:
        raise LandscapeError("optimizers", "none given; `thalweg optimizers` lists them")
    seed = seed_of(seed)
    size = found.batch_size if batch_size is None else whole("batch_size", batch_size)
    if size > len(found.train):
        raise LandscapeError(
            "batch_size", f"{size} is more than the {len(found.train)} training samples"
        )
    first_batch(found, size)
    per_epoch = len(found.train) // size
    steps = whole("epochs", epochs) * per_epoch
    kept = np.unique(np.linspace(0, steps, max(2, whole("moments", moments))).astype(int))
    needed = 4 * found.parameters * len(kept) * len(entries)
    if needed > BYTES:
        raise LandscapeError(
            "moments",
            f"{len(kept)} copies of {len(entries)} models take {needed / 1e9:.1f} GB, more than "
            f"{BYTES / 1e9:.1f}; keep fewer",
        )
    rates = [rate_of(entry, lr) for entry in entries]
    replicas = [
        Replica(e.rule, e.rule.complete({"lr": rate}), seed)
        for e, rate in zip(entries, rates, strict=True)
    ]
    training = Training(found, replicas, Budget(steps, size, per_epoch))
    trained = parameters_of(found)
    snapshots: list[list[dict[str, Tensor]]] = [[] for _ in entries]
    rows: list[list[dict[str, float]]] = [[] for _ in entries]
    done = 0
    with training.on_one_core():
        for step in kept.tolist():
            if step > done:
                training.advance(step - done)
                done = step
            with training.answers():
                train, validation = map(training.evaluate, (found.train, found.validation))
                for i, entry in enumerate(entries):
                    if not np.isfinite(train[0][i]):
                        raise LandscapeError(
                            "lr",
                            f"{entry.label} diverges within {step} steps at {rates[i]:.3g}; give "
                            f"a smaller one",
                        )
                    snapshots[i].append(training.tensors_of(i))
                    rows[i].append(
                        {
                            "step": step,
                            "epoch": step / per_epoch,
                            "train_loss": float(train[0][i]),
                            "train_metric": float(train[1][i]),
                            "validation_loss": float(validation[0][i]),
                            "validation_metric": float(validation[1][i]),
                        }
                    )
    return [
        TrainingPath(
            entry.label,
            rate,
            seed,
            trained,
            {name: torch.stack([s[name] for s in mine]) for name in mine[0]},
            pd.DataFrame(lines),
        )
        for entry, rate, mine, lines in zip(entries, rates, snapshots, rows, strict=True)
    ]


def task_of(task: str | Task) -> Task:
    """A task by its name, or as it is."""
    found = load(task) if isinstance(task, str) else task
    if not isinstance(found, Task):
        raise LandscapeError("task", f"must be a name or a thalweg.Task, got {task!r}")
    return found


def parameters_of(task: Task) -> tuple[str, ...]:
    """Names of what is trained, in the model's order."""
    with torch.random.fork_rng(devices=[]):
        return tuple(n for n, p in task.model().named_parameters() if p.requires_grad)


def rate_of(entry: Entry, lr: float | None) -> float:
    """The learning rate asked for, or the middle of an optimizer's usual ones."""
    return entry.rule.usual_lr if lr is None else positive("lr", lr)
