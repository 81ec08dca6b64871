"""Runs to records: train what is not on record yet, chunk by chunk."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Lock
from time import perf_counter
from typing import Any

import numba
import numpy as np
import torch

from thalweg.optim.registry import OPTIMIZERS
from thalweg.replicas import (
    Backend,
    Budget,
    Evaluation,
    Factors,
    Programs,
    Replica,
    Training,
    train,
)
from thalweg.studies.factors import FACTORS
from thalweg.studies.sound import sound_still
from thalweg.studies.spec import Run, StudySpec
from thalweg.studies.store import Store
from thalweg.tasks import Task

__all__ = ["Chunk", "Progress", "chunks", "execute", "replica", "train_again"]

# What a chunk may hold: all its parameters, gradients and states should stay in the cache, and more
# replicas than this hardly make a step cheaper, but lose more when a study is killed.
CHUNK_BYTES = 24 << 20
CHUNK_REPLICAS = 160
CHUNK_AT_LEAST = 16  # fewer than this for each worker stay together
_ARRAYS = 4  # parameter, gradient and two states


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        alive: runs training now.
        done: runs that have ended.
        runs: all of them.
        epoch: epochs done by the runs training now.
        epochs: epochs of each of them.
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


@dataclass(frozen=True, eq=False)
class Chunk:
    """Runs of one variant of the task that train together.

    Attributes:
        runs: in the order of the plan.
        task: what they train.
        budget: of each.
        schedule: what multiplies their learning rates, or None.
        backend: how their passes run.
        concurrent: whether other chunks may train at the same time.
    """

    runs: Sequence[Run]
    task: Task
    budget: Budget
    schedule: Factors | None = None
    backend: Backend = "eager"
    concurrent: bool = False


def chunks(runs: Sequence[Run], parameters: int, backend: Backend, workers: int) -> list[list[Run]]:
    """Cut runs into chunks of nearly equal size that train together.

    Args:
        runs: of one variant of the task, in the order of the plan.
        parameters: of the model.
        backend: "one by one" gives chunks of one.
        workers: chunks that train at the same time.
    """
    if backend == "one by one":
        return [[run] for run in runs]
    fits = max(1, min(CHUNK_REPLICAS, CHUNK_BYTES // (4 * _ARRAYS * max(parameters, 1))))
    count = math.ceil(len(runs) / fits)
    if len(runs) >= workers * CHUNK_AT_LEAST:
        count = workers * math.ceil(count / workers)
    bounds = np.linspace(0, len(runs), count + 1).round().astype(int)
    return [list(runs[a:b]) for a, b in pairwise(bounds)]


def execute(
    spec: StudySpec,
    plan: Sequence[Chunk],
    store: Store,
    study: int,
    *,
    device: str = "cpu",
    workers: int = 1,
    programs: Programs | None = None,
    time_limit: float | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train the runs of a plan that are not finished and put them on record.

    Args:
        spec: of the study.
        plan: chunks of runs (`chunks`).
        store: where records go, one transaction a chunk, from this thread alone.
        study: its number there.
        device: as torch names it.
        workers: chunks that train at the same time, each in a thread and on one core, where they
            may; the others train after these.
        programs: passes already built.
        time_limit: seconds after which the rest is put on record as timed out, or None.
        progress: called after every epoch of a chunk.
    """
    finished = store.finished(study)
    programs = {} if programs is None else programs
    pending = [
        replace(chunk, runs=left)
        for chunk in plan
        if (left := [run for run in chunk.runs if run.id not in finished])
    ]
    if pending:
        _warm(pending, device, programs)
    watch = _Watch(plan, pending, time_limit, progress)

    def run(chunk: Chunk) -> _Journal:
        journal = _Journal(spec, chunk)
        if watch.over():
            return journal
        for evaluation in _evaluations(spec, chunk, device, programs, journal):
            watch.saw(journal, evaluation)
            if watch.over():
                break
        return journal

    together = [chunk for chunk in pending if chunk.concurrent]
    alone = [chunk for chunk in pending if not chunk.concurrent]
    for some, threads in ((together, min(workers, len(together))), (alone, 1)):
        for journal in _in_threads(run, some, threads, watch):
            store.record(study, *journal.records())


def _warm(pending: Sequence[Chunk], device: str, programs: Programs) -> None:
    """Have compiled and loaded what the first step would, which no run's time is to include."""
    warmed: set[str] = set()
    for chunk in pending:
        first = {run.optimizer: run for run in reversed(chunk.runs)}
        if first.keys() <= warmed:
            continue
        warmed |= first.keys()
        # Steps of one seed go another way than those of several.
        other = [run for run in chunk.runs if run.seed != chunk.runs[0].seed][:1]
        replicas = [replica(run, chunk.schedule) for run in (*first.values(), *other)]
        with sound_still(chunk.task):
            Training(
                chunk.task, replicas, chunk.budget, chunk.backend, device, programs=programs
            ).advance(1)


def train_again(spec: StudySpec, chunk: Chunk, place: int, device: str) -> Evaluation:
    """Train a chunk as `execute` does, without putting it on record.

    Args:
        spec: of the study.
        chunk: runs.
        place: of the run in it whose weights are wanted.
        device: as torch names it.

    Returns:
        The last evaluation, with the weights of that run.
    """

    def run() -> Evaluation:
        journal = _Journal(spec, chunk)
        for evaluation in _evaluations(spec, chunk, device, {}, journal, keep=[place]):
            last = evaluation
        return last

    if not chunk.concurrent:
        return run()
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1, initializer=_one_core) as pool:
            return pool.submit(run).result()
    finally:
        torch.set_num_threads(threads)


def _evaluations(
    spec: StudySpec,
    chunk: Chunk,
    device: str,
    programs: Programs,
    journal: "_Journal",
    keep: Sequence[int] = (),
) -> Iterator[Evaluation]:
    with sound_still(chunk.task):
        yield from train(
            chunk.task,
            [replica(run, chunk.schedule) for run in chunk.runs],
            chunk.budget,
            backend=chunk.backend,
            device=device,
            draw_seed=int(chunk.runs[0].id, 16),
            programs=programs,
            stop=journal.add,
            keep=keep,
        )


def _in_threads(
    run: "Callable[[Chunk], _Journal]",
    pending: Sequence[Chunk],
    workers: int,
    watch: "_Watch",
) -> "Iterator[_Journal]":
    """Journals of all chunks, as they end."""
    if workers < 2:
        yield from map(run, pending)
        return
    # Operations on small tensors lose more by waiting for each other's threads than they win:
    # one core a chunk is faster than all cores an operation (measured on digits).
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=_one_core)
    try:
        for future in as_completed([pool.submit(run, chunk) for chunk in pending]):
            yield future.result()
    except BaseException:  # an interruption too, or that nobody wants the rest
        watch.cancelled = True
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _one_core() -> None:
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    # Numbers below 1e-38, which well-trained runs are full of, are a hundred times slower than
    # zeros: without this a study of 300 epochs took a third longer.
    torch.set_flush_denormal(True)


class _Watch:
    """How far the chunks are, all together, and whether to go on.

    Attributes:
        cancelled: set to end all chunks at their next epoch.
    """

    def __init__(
        self,
        plan: Sequence[Chunk],
        pending: Sequence[Chunk],
        time_limit: float | None,
        progress: Callable[[Progress], None],
    ) -> None:
        self.cancelled = False
        self._runs = sum(len(chunk.runs) for chunk in plan)
        self._waiting = sum(len(chunk.runs) for chunk in pending)
        self._work = sum(len(chunk.runs) * chunk.budget.steps for chunk in pending)  # not begun
        self._time_limit, self._progress = time_limit, progress
        self._began = perf_counter()
        self._trained = 0
        self._steps: dict[_Journal, int] = {}
        self._lock = Lock()

    def over(self) -> bool:
        """Whether time is up."""
        elapsed = perf_counter() - self._began
        return self.cancelled or (self._time_limit is not None and elapsed > self._time_limit)

    def saw(self, journal: "_Journal", evaluation: Evaluation) -> None:
        """Count what a chunk has done since last seen, and tell."""
        with self._lock:
            if journal not in self._steps:
                self._waiting -= journal.runs
                self._work -= journal.runs * journal.budget.steps
            before = self._steps.get(journal, 0)
            self._steps[journal] = evaluation.step
            self._trained += len(evaluation.replicas) * (evaluation.step - before)
            alive = sum(j.alive for j in self._steps)
            work = self._work + sum(
                j.alive * (j.budget.steps - step) for j, step in self._steps.items()
            )
            speed = self._trained / (perf_counter() - self._began)
            self._progress(
                Progress(
                    alive,
                    self._runs - self._waiting - alive,
                    self._runs,
                    evaluation.epoch,
                    -(-journal.budget.steps // journal.budget.steps_per_epoch),
                    speed,
                    work / speed,
                )
            )


def replica(run: Run, schedule: Factors | None = None) -> Replica:
    """The replica that trains a run."""
    rule = OPTIMIZERS[run.optimizer].rule
    return Replica(rule, rule.complete({"lr": run.lr}), run.seed, schedule)


class _Journal:
    """What happens to the runs of one chunk, until it is put on record.

    Attributes:
        runs: how many there are.
        alive: how many are still training.
        budget: of each.
    """

    def __init__(self, spec: StudySpec, chunk: Chunk) -> None:
        self._spec = spec
        self._sign = 1.0 if chunk.task.metric.higher_is_better else -1.0
        self._chunk, self.budget = chunk.runs, chunk.budget
        self.runs = self.alive = len(chunk.runs)
        self._curves: list[list[dict[str, Any]]] = [[] for _ in chunk.runs]
        self._best = np.full(self.runs, np.inf)
        self._best_epoch = np.zeros(self.runs)
        self._outcomes = [self._outcome(run, "timed out", 0, 0) for run in chunk.runs]

    def add(self, evaluation: Evaluation) -> list[int]:
        """Note an evaluation; the replicas to be stopped."""
        stop = []
        last = evaluation.step == self.budget.steps
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
        good = (p for p in curve if self._sign * (p["validation_metric"] - target) >= -_ROUNDING)
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
            **{f.name: level for f, level in zip(FACTORS, run.levels, strict=True)},
            "outcome": outcome,
            "step": step,
            "epoch": epoch,
            "test_loss": None,
            "test_metric": None,
            "seconds": 0.0,
        }


_ROUNDING = 1e-6  # of a metric, a mean of float32: 342 of 360 are to reach 0.95
_FINAL = ("train_loss", "validation_loss", "validation_metric")
