"""Runs to records: train what is not on record yet, chunk by chunk."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

from thalweg.optim.registry import OPTIMIZERS
from thalweg.replicas import Backend, Evaluation, Programs, Replica, train
from thalweg.studies.spec import Run, StudySpec
from thalweg.studies.store import Store
from thalweg.tasks import Task

__all__ = ["Progress", "chunks", "execute", "replica"]

# What a chunk may hold: all its parameters, gradients and states should stay in the cache, and more
# replicas than this no longer make a step cheaper (measured on digits).
CHUNK_BYTES = 24 << 20
CHUNK_REPLICAS = 128
_ARRAYS = 4  # parameter, gradient and two states


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        alive: runs training now.
        done: runs that have ended.
        runs: all of them.
        epoch: epochs done by the runs training now.
        epochs: epochs of every run.
        steps_per_second: optimizer steps of all runs together.
        seconds_left: estimate, from that speed.
    """

    alive: int
    done: int
    runs: int
    epoch: int
    epochs: int
    steps_per_second: float
    seconds_left: float


def chunks(runs: Sequence[Run], parameters: int, backend: Backend) -> list[list[Run]]:
    """Cut runs into chunks of nearly equal size that train together.

    Args:
        runs: in the order of the plan.
        parameters: of the model.
        backend: "one by one" gives chunks of one.
    """
    fits = max(1, min(CHUNK_REPLICAS, CHUNK_BYTES // (4 * _ARRAYS * max(parameters, 1))))
    count = len(runs) if backend == "one by one" else math.ceil(len(runs) / fits)
    bounds = np.linspace(0, len(runs), count + 1).round().astype(int)
    return [list(runs[a:b]) for a, b in pairwise(bounds)]


def execute(
    spec: StudySpec,
    task: Task,
    plan: Sequence[Sequence[Run]],
    store: Store,
    study: int,
    *,
    backend: Backend = "eager",
    device: str = "cpu",
    programs: Programs | None = None,
    time_limit: float | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train the runs of a plan that are not finished and put them on record.

    Args:
        spec: of the study.
        task: the task that ``spec`` names.
        plan: chunks of runs (`chunks`).
        store: where records go, one transaction a chunk.
        study: its number there.
        backend: how passes run.
        device: as torch names it.
        programs: passes already built.
        time_limit: seconds after which the rest is put on record as timed out, or None.
        progress: called after every epoch of a chunk.
    """
    began = perf_counter()
    finished = store.finished(study)
    programs = {} if programs is None else programs
    pending = [left for c in plan if (left := [r for r in c if r.id not in finished])]
    runs = sum(map(len, plan))
    waiting = sum(map(len, pending))
    trained = 0

    def late() -> bool:
        return time_limit is not None and perf_counter() - began > time_limit

    for chunk in pending:
        waiting -= len(chunk)
        journal = _Journal(spec, task, chunk)
        if not late():
            step = 0
            for evaluation in train(
                task,
                [replica(run) for run in chunk],
                spec.budget,
                backend=backend,
                device=device,
                draw_seed=int(chunk[0].id, 16),
                programs=programs,
                stop=journal.add,
            ):
                trained += len(evaluation.replicas) * (evaluation.step - step)
                step = evaluation.step
                speed = trained / (perf_counter() - began)
                work = journal.alive * (spec.steps - step) + waiting * spec.steps
                progress(
                    Progress(
                        journal.alive,
                        runs - waiting - journal.alive,
                        runs,
                        evaluation.epoch,
                        spec.epochs,
                        speed,
                        work / speed,
                    )
                )
                if late():
                    break
        store.record(study, *journal.records())


def replica(run: Run) -> Replica:
    """The replica that trains a run."""
    rule = OPTIMIZERS[run.optimizer].rule
    return Replica(rule, rule.complete({"lr": run.lr}), run.seed)


class _Journal:
    """What happens to the runs of one chunk, until it is put on record.

    Attributes:
        alive: how many are still training.
    """

    def __init__(self, spec: StudySpec, task: Task, chunk: Sequence[Run]) -> None:
        self._spec = spec
        self._sign = 1.0 if task.metric.higher_is_better else -1.0
        self._chunk = chunk
        self._curves: list[list[dict[str, Any]]] = [[] for _ in chunk]
        self._best = np.full(len(chunk), np.inf)
        self._best_epoch = np.zeros(len(chunk))
        self._outcomes = [self._outcome(run, "timed out", 0, 0) for run in chunk]
        self.alive = len(chunk)

    def add(self, evaluation: Evaluation) -> list[int]:
        """Note an evaluation; the replicas to be stopped."""
        stop = []
        last = evaluation.step == self._spec.steps
        for i, replica in enumerate(evaluation.replicas.tolist()):
            if evaluation.diverged_at[i]:
                self._end(replica, "diverged", int(evaluation.diverged_at[i]), evaluation.epoch - 1)
                self._outcomes[replica]["seconds"] = float(evaluation.seconds[i])
                continue
            point = {
                "epoch": evaluation.epoch,
                "step": evaluation.step,
                "train_loss": float(evaluation.train_loss[i]),
                "validation_loss": float(evaluation.validation_loss[i]),
                "validation_metric": float(evaluation.validation_metric[i]),
                "seconds": float(evaluation.seconds[i]),
            }
            self._curves[replica].append(point)
            if point["validation_loss"] < self._best[replica]:
                self._best[replica] = point["validation_loss"]
                self._best_epoch[replica] = evaluation.epoch
            waited = evaluation.epoch - self._best_epoch[replica]
            if last:
                self._end(replica, "completed", evaluation.step, evaluation.epoch)
                self._outcomes[replica] |= {
                    "test_loss": float(evaluation.test_loss[i]),
                    "test_metric": float(evaluation.test_metric[i]),
                }
            elif self._spec.patience is not None and waited >= self._spec.patience:
                self._end(replica, "stopped", evaluation.step, evaluation.epoch)
                stop.append(replica)
            else:
                self._outcomes[replica] |= {"step": evaluation.step, "epoch": evaluation.epoch}
        return stop

    def records(self) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
        """Outcomes and curves as `Store.record` takes them."""
        rows = []
        for outcome, curve in zip(self._outcomes, self._curves, strict=True):
            final = curve[-1] if curve else {}
            reached = self._reached(curve)
            rows.append(
                outcome
                | {k: final.get(k) for k in _FINAL}
                | {
                    "epochs_to_target": reached.get("epoch"),
                    "seconds_to_target": reached.get("seconds"),
                    "seconds": outcome["seconds"] or final.get("seconds", 0.0),
                }
            )
        return rows, self._curves

    def _reached(self, curve: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        target = self._spec.target
        if target is None:
            return {}
        good = (p for p in curve if self._sign * (p["validation_metric"] - target) >= 0)
        return next(good, {})

    def _end(self, replica: int, outcome: str, step: int, epoch: int) -> None:
        self._outcomes[replica] = self._outcome(self._chunk[replica], outcome, step, epoch)
        self.alive -= 1

    def _outcome(self, run: Run, outcome: str, step: int, epoch: int) -> dict[str, Any]:
        return {
            "run": run.id,
            "optimizer": run.optimizer,
            "lr": run.lr,
            "seed": run.seed,
            "batch_size": self._spec.batch_size,
            "outcome": outcome,
            "step": step,
            "epoch": epoch,
            "test_loss": None,
            "test_metric": None,
            "seconds": 0.0,
        }


_FINAL = ("train_loss", "validation_loss", "validation_metric")
