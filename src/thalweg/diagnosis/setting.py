"""A training as it is set, and what came of several of them trained side by side."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from thalweg.replicas import Budget, Factors, Programs, Replica, train
from thalweg.rules import Rule
from thalweg.schedules import Schedule
from thalweg.studies.factors import Variant
from thalweg.studies.spec import factors_of
from thalweg.tasks import Task

__all__ = ["FEWEST", "Outcome", "Setting", "flushed", "outcomes", "possible"]

Array: TypeAlias = NDArray[np.float64]

WINDOW = 3  # epochs that a best value is the mean of, so that one lucky epoch is not the best
FEWEST = 5  # epochs, by which trainings may be compared
LAST = 0.1  # of the epochs, that an end value is the mean of


@dataclass(frozen=True)
class Setting:
    """How a task is trained.

    Attributes:
        task: what is trained.
        rule: of the optimizer.
        hyper: complete hyperparameters of it, the learning rate among them.
        batch_size: samples a step.
        epochs: passes over the training data.
        schedule: what the learning rate follows, as typed or made; None for one that stays.
    """

    task: Task
    rule: Rule
    hyper: Mapping[str, Any]
    batch_size: int
    epochs: int
    schedule: str | Schedule | None = None

    @property
    def lr(self) -> float:
        """The learning rate."""
        return float(self.hyper["lr"])

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training data."""
        return max(1, len(self.task.train) // self.batch_size)

    def but(self, *, lr: float | None = None, **changes: Any) -> "Setting":
        """The same with something changed."""
        hyper = dict(changes.pop("hyper", {})) | ({} if lr is None else {"lr": lr})
        return replace(self, hyper={**self.hyper, **hyper}, **changes)

    @property
    def budget(self) -> Budget:
        """How long a run trains."""
        per_epoch = self.steps_per_epoch
        return Budget(self.epochs * per_epoch, self.batch_size, per_epoch)

    @property
    def factors(self) -> Factors | None:
        """What multiplies the learning rate at each step.

        Raises:
            StudyError: for a schedule that there is not, or that ends before the run does.
        """
        return factors_of(Variant(self.task, self.batch_size, self.schedule), self.budget)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a setting, trained once from each seed.

    Attributes:
        setting: what was trained.
        curves: a row a seed and epoch: ``seed, epoch, train_loss, validation_loss,
            validation_metric``; none after a run diverged.
        diverged_at: step at which each seed's run diverged, 0 for those that did not.
        epochs: done; fewer than the setting's if time ran out.
        weights: at the end of the first seed's run, by name; empty if it was not asked for.
    """

    setting: Setting
    curves: pd.DataFrame
    diverged_at: Mapping[int, int]
    epochs: int
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def diverged(self) -> float:
        """Share of the runs that did."""
        return float(np.mean([step > 0 for step in self.diverged_at.values()]))

    def upto(self, epochs: int) -> "Outcome":
        """As it was after so many epochs."""
        if epochs >= self.epochs:
            return self
        steps = epochs * self.setting.steps_per_epoch
        return replace(
            self,
            curves=self.curves[self.curves["epoch"] <= epochs],
            diverged_at={s: at if at <= steps else 0 for s, at in self.diverged_at.items()},
            epochs=epochs,
            weights={},
        )

    def grid(self, column: str) -> Array:
        """Values of a column, ``(seeds, epochs)``, NaN where there are none."""
        table = self.curves.pivot_table(index="seed", columns="epoch", values=column)
        epochs = range(1, self.epochs + 1)
        whole = table.reindex(index=list(self.diverged_at), columns=epochs)
        return np.asarray(whole, dtype=np.float64)

    def end(self, column: str, broken: float) -> Array:
        """Mean of the last epochs, ``(seeds,)``; ``broken`` for runs that diverged."""
        last = max(1, round(LAST * self.epochs))
        return self._or(self.grid(column)[:, -last:].mean(1), broken)

    def best(self, column: str, broken: float, higher: bool) -> Array:
        """Best mean of a few epochs, ``(seeds,)``; ``broken`` for runs that diverged."""
        grid = self.grid(column)
        width = min(WINDOW, grid.shape[1])
        means = np.lib.stride_tricks.sliding_window_view(grid, width, axis=1).mean(2)
        filled = np.where(np.isfinite(means), means, -np.inf if higher else np.inf)
        return self._or(filled.max(1) if higher else filled.min(1), broken)

    def _or(self, values: Array, broken: float) -> Array:
        gone = np.array([step > 0 for step in self.diverged_at.values()])
        return np.where(gone | ~np.isfinite(values), broken, values)


def outcomes(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    programs: Programs,
    *,
    keep: bool = False,
    seconds: float = math.inf,
) -> list[Outcome]:
    """Train every setting once from each seed; those of one task and batch size together.

    Args:
        settings: what to train.
        seeds: of initial weights and order of batches, the same for all.
        programs: passes already built, to be used and added to.
        keep: whether the first setting's weights are wanted.
        seconds: after which those that train together stop, at the end of an epoch.
    """
    found: dict[int, Outcome] = {}
    for members in _together(settings):
        found |= _trained(settings, members, seeds, programs, keep and 0 in members, seconds)
    return [found[i] for i in range(len(settings))]


def possible(
    settings: Sequence[Setting], seeds: Sequence[int], programs: Programs, *, seconds: float
) -> list[Outcome]:
    """As `outcomes`, of the settings whose models can be trained at all.

    A change that fits most models may not fit a person's own, whose layers are called in a way that
    nobody foresaw.
    """
    found: list[Outcome] = []
    for members in _together(settings):
        with suppress(Exception):
            found += _trained(settings, members, seeds, programs, False, seconds).values()
    return found


def _together(settings: Sequence[Setting]) -> list[list[int]]:
    """Which settings train together: those of one task, batch size and number of epochs."""
    found: dict[tuple[int, int, int], list[int]] = {}
    for i, one in enumerate(settings):
        found.setdefault((id(one.task), one.batch_size, one.epochs), []).append(i)
    return list(found.values())


@contextmanager
def flushed() -> Iterator[None]:
    """Have numbers too small for a full mantissa taken for 0, as gradients that vanish are.

    Processors take tenfold for them and more. The state before is found by a product, as torch has
    no function that tells it.
    """
    before = not bool(torch.tensor([1e-310], dtype=torch.float64) * 1.0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _trained(
    settings: Sequence[Setting],
    members: Sequence[int],
    seeds: Sequence[int],
    programs: Programs,
    keep: bool,
    seconds: float,
) -> dict[int, Outcome]:
    start, epochs = perf_counter(), 0
    first = settings[members[0]]
    runs = [(i, seed) for i in members for seed in seeds]
    factors = {i: settings[i].factors for i in members}
    replicas = [Replica(settings[i].rule, settings[i].hyper, seed, factors[i]) for i, seed in runs]
    rows: dict[int, list[dict[str, Any]]] = {i: [] for i in members}
    diverged: dict[int, dict[int, int]] = {i: dict.fromkeys(seeds, 0) for i in members}
    weights: Mapping[str, Tensor] = {}
    for seen in train(
        first.task, replicas, first.budget, programs=programs, keep=[0] if keep else []
    ):
        weights, epochs = seen.weights.get(0, weights), seen.epoch
        for place, replica in enumerate(seen.replicas.tolist()):
            i, seed = runs[replica]
            if seen.diverged_at[place]:
                diverged[i][seed] = int(seen.diverged_at[place])
                continue
            rows[i].append(
                {
                    "seed": seed,
                    "epoch": seen.epoch,
                    "train_loss": seen.train_loss[place],
                    "validation_loss": seen.validation_loss[place],
                    "validation_metric": seen.validation_metric[place],
                }
            )
        if perf_counter() - start > seconds and epochs >= FEWEST:
            break
    epochs = first.epochs if not any(rows.values()) else epochs
    columns = ["seed", "epoch", "train_loss", "validation_loss", "validation_metric"]
    return {
        i: Outcome(
            settings[i],
            pd.DataFrame(rows[i], columns=columns),
            diverged[i],
            epochs,
            weights if keep and i == members[0] else {},
        )
        for i in members
    }
