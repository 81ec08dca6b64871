"""A training from its first step, or from a checkpoint, to its end."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite, isnan
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
from torch import Tensor

from thalweg.errors import ArgumentError
from thalweg.numbers import number
from thalweg.tasks import Task, TaskError
from thalweg.tasks.blame import is_theirs, raised
from thalweg.train.background import Background
from thalweg.train.checkpoint import BEST, LAST, write
from thalweg.train.engine import Engine
from thalweg.train.evaluate import Evaluation
from thalweg.train.nonfinite import DivergenceError, all_finite, culprit, is_stuck, learned
from thalweg.train.result import FitResult, Progress
from thalweg.train.tensorboard import Log

__all__ = ["Best", "Course", "Plan", "interruptions"]

PERIOD = 0.1  # seconds between two looks at the device, for progress and Ctrl-C
FASTEST = 1000  # steps between two looks at most

Row = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """What a training is to do besides taking steps.

    Attributes:
        epochs: when it ends.
        patience: epochs without a better one, after which it stops; None for never.
        folder: where its checkpoints go; None for nowhere.
        every: seconds between two checkpoints.
        about: what they say of the training besides, plain values.
        log: whether TensorBoard's events are written beside them.
    """

    epochs: int
    patience: int | None
    folder: Path | None
    every: float
    about: Mapping[str, Any]
    log: bool


@dataclass(frozen=True, eq=False)
class Best:
    """The best epoch so far.

    Attributes:
        row: of the history.
        weights: a state dictionary, on the CPU.
    """

    row: Row
    weights: Mapping[str, Tensor] = field(repr=False)


class Course:
    """The course of a training.

    Args:
        task: what is trained.
        engine: that trains it.
        plan: what else is to be done.
        kept: content of a checkpoint to go on from, and the best weights beside it, if any.
        show: told how far it is.
        asked: whether somebody wants it to end.
    """

    def __init__(
        self,
        task: Task,
        engine: Engine,
        plan: Plan,
        *,
        kept: tuple[dict[str, Any], Best | None] | None = None,
        show: Callable[[Progress], None] | None = None,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._task, self._engine, self._ranks, self._plan = task, engine, engine.ranks, plan
        self._show, self._asked = show, asked
        self._rows: list[Row] = []
        self._best: Best | None = None
        self._written: Best | None = None
        self._sums = [0.0, 0]  # of the present epoch's losses, and its samples
        self._before = 0.0  # seconds, before this process
        if kept is not None:
            state, self._best = kept
            self._written = self._best
            engine.load(state["engine"])
            self._rows, self._sums = list(state["history"]), list(state["sums"])
            self._before = state["seconds"]
        self._started = self._looked = perf_counter()
        self._safe = self._state() if kept is None else kept[0]
        self._background = Background()
        self._log = None
        if plan.log and plan.folder is not None and self._ranks.first:
            self._log = Log(plan.folder / "tensorboard", engine.step)

    def run(self) -> FitResult:
        """Train to the end.

        Raises:
            DivergenceError: if loss or weights become NaN or infinite.
            TaskError: for what the person's own functions raise.
            KeyboardInterrupt: when asked to end, with all that was trained kept.
            OSError: if a checkpoint cannot be written.
        """
        engine, pace = self._engine, 1
        try:
            outcome = "completed"
            while engine.step < engine.steps:
                if self._patience_is_over():
                    outcome = "stopped"
                    break
                left = engine.steps_per_epoch - engine.step % engine.steps_per_epoch
                count = min(pace, left, FASTEST)
                pace = self._advance(count)
                if engine.ends_epoch:
                    self._end_epoch()
                self._look()
            if self._best is None:  # its file was deleted
                engine.to_answers()
                self._best = Best(self._rows[-1], engine.weights())
                engine.to_training()
            self._keep()
            self._background.wait()
            return self._result(outcome)
        finally:
            engine.close()
            if self._log is not None:
                self._log.close()
            self._background.wait()  # nothing is written once the next training may begin

    def _advance(self, count: int) -> int:
        """Take some steps; how many to take next."""
        engine, ranks = self._engine, self._ranks
        began = perf_counter()
        with self._in_training():
            taken = engine.advance(count)
        losses = (ranks.sum(taken.double())[0] / ranks.size).tolist()
        took = perf_counter() - began
        for i, loss in enumerate(losses):
            if not isfinite(loss):
                self._diverged(
                    engine.step - count + i + 1,
                    f"the loss is {'NaN' if isnan(loss) else 'infinite'}",
                )
        samples = sum(engine.samples)
        # One after another: a sum must not depend on how many steps were taken at once.
        for loss, n in zip(losses, engine.samples, strict=True):
            self._sums[0] += loss * n
        self._sums[1] += samples
        if self._log is not None:
            values = {"train/loss": sum(losses) / count, "train/lr": engine.lr}
            self._log.add(engine.step, values | {"train/samples_per_second": samples / took})
        if self._show is not None:
            self._show(
                Progress(
                    engine.epoch,
                    self._plan.epochs,
                    engine.step,
                    self._engine.steps,
                    self._sums[0] / self._sums[1],
                    self._rows[-1]["metric"] if self._rows else None,
                    engine.lr,
                    samples / took,
                )
            )
        pace = max(1, min(int(count * PERIOD / max(took, 1e-9)), 2 * count))
        return int(-ranks.most(-pace))

    @contextmanager
    def _in_training(self) -> Iterator[None]:
        """Errors of a person's own functions in one sentence; an error of ours stays one."""
        try:
            yield
        except ArgumentError:
            raise
        except Exception as error:
            if not is_theirs(error):
                raise
            kept = "" if self._plan.folder is None else "; resume goes on from the last checkpoint"
            raise TaskError(
                "task",
                f"{self._task.name!r} was in training, after step {self._engine.step:,}, when its "
                f"model, data, loss or metric raised {raised(error)}{kept}",
            ) from error

    def _end_epoch(self) -> None:
        """Evaluate the weights to keep, and take note of them if they are the best."""
        engine = self._engine
        self._check_weights()
        engine.to_answers()
        with self._in_training():
            found = engine.evaluate(self._task.validation)
        row = {
            "epoch": engine.epoch,
            "step": engine.step,
            "train_loss": self._sums[0] / self._sums[1],
            "validation_loss": found.loss,
            "metric": found.metric,
            "lr": engine.lr,
            "seconds": self._seconds(),
        }
        self._rows.append(row)
        self._sums = [0.0, 0]
        if self._best is None or self._rank(row) > self._rank(self._best.row):
            self._best = Best(row, engine.weights())
        engine.to_training()
        if self._log is not None:
            values = {"validation/loss": found.loss, "validation/metric": found.metric}
            self._log.add(engine.step, values)

    def _rank(self, row: Row) -> tuple[float, float]:
        """By which epochs are compared; more is better, and NaN is worst."""
        sign = 1 if self._task.metric.higher_is_better else -1
        metric, loss = sign * row["metric"], -row["validation_loss"]
        low = float("-inf")
        return metric if metric == metric else low, loss if loss == loss else low

    def _patience_is_over(self) -> bool:
        patience, best = self._plan.patience, self._best
        if patience is None or best is None or not self._rows:
            return False
        return self._rows[-1]["epoch"] - best.row["epoch"] >= patience

    def _look(self) -> None:
        """Write a checkpoint if it is time, and end if somebody wants that."""
        stop = self._ranks.most(self._asked())
        due = perf_counter() - self._looked > self._plan.every
        if self._ranks.most(due) or stop:
            self._keep()
        if stop:
            self._background.wait()
            folder = self._plan.folder
            kept = "" if folder is None else f"; resume goes on from there ({folder / LAST})"
            raise KeyboardInterrupt(
                f"interrupted in epoch {self._engine.epoch} after step {self._engine.step:,}{kept}"
            )

    def _state(self) -> dict[str, Any]:
        engine = self._engine
        engine.to_answers()
        state = engine.state()
        engine.to_training()
        return {
            "model": state["model"],
            "engine": state,
            "history": list(self._rows),
            "sums": list(self._sums),
            "best": None if self._best is None else self._best.row,
            "seconds": self._seconds(),
            **self._plan.about,
        }

    def _keep(self) -> None:
        """Take the state that a training goes on from, and have it written."""
        self._check_weights()
        state = self._state()
        self._safe, self._looked = state, perf_counter()
        self._submit(state)

    def _submit(self, state: dict[str, Any]) -> None:
        """Have a state written in the background, and the best weights before it."""
        folder, best = self._plan.folder, self._best
        if folder is None or not self._ranks.first:
            return
        if best is not None and best is not self._written:
            content = {"model": dict(best.weights), **best.row, **self._plan.about}
            self._background.submit(write, folder / BEST, content)
            self._written = best
        self._background.submit(write, folder / LAST, state)

    def _check_weights(self) -> None:
        """A loss may be finite where weights are not, of units that have no say."""
        engine = self._engine
        if self._ranks.most(not all_finite(learned(engine.model))):
            self._diverged(engine.step, "weights are NaN or infinite")
        if is_stuck(engine):
            self._diverged(
                engine.step, "gradients are NaN or infinite, however little the loss is scaled,"
            )

    def _diverged(self, step: int, what: str) -> None:
        """End a training with the step and the layer, and the checkpoint from before them."""
        engine, folder, safe = self._engine, self._plan.folder, self._safe["engine"]
        kept = ""
        if folder is not None:
            self._submit(self._safe)
            self._background.wait()
            kept = f"; resume goes on from step {safe['step']:,}, with a lower lr say"
        found = culprit(engine, safe, step)
        if found is None:
            raise DivergenceError(
                f"{what} at step {step:,}, which did not happen again from step "
                f"{safe['step']:,} on, so that no layer can be named{kept}",
                step,
                engine.epoch,
                None,
            )
        raise DivergenceError(
            f"{what} in epoch {found.epoch}: first at step {found.step:,}, at a learning rate of "
            f"{number(found.lr)}, {found.what} are not finite{kept}",
            found.step,
            found.epoch,
            found.layer,
        )

    def _seconds(self) -> float:
        return self._before + perf_counter() - self._started

    def _result(self, outcome: str) -> FitResult:
        plan, best = self._plan, self._best
        assert best is not None
        self._ranks.load_model(self._engine.module, dict(best.weights))
        test: Evaluation = self._engine.evaluate(self._task.test)
        row = best.row
        return FitResult(
            self._task,
            best.weights,
            int(row["epoch"]),
            row["train_loss"],
            row["validation_loss"],
            row["metric"],
            test.loss,
            test.metric,
            len(self._rows),
            self._engine.step,
            self._seconds(),
            outcome,
            pd.DataFrame(self._rows).astype({"epoch": int, "step": int}),
            None if plan.folder is None else plan.folder / BEST,
        )


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, which ends nothing at first; the second time it does."""
    asked = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)

    def note(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    watched = main and before is signal.default_int_handler
    if watched:
        signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        if watched:
            signal.signal(signal.SIGINT, before)
