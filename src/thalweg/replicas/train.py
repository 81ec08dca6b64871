"""The training loop of a chunk: all its replicas from first step to last."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from thalweg.replicas.program import Backend, Model, Program, build, stack
from thalweg.replicas.update import Replica, Updates
from thalweg.tasks import Batch, Split, Task

__all__ = [
    "Budget",
    "Evaluation",
    "Programs",
    "RandomStream",
    "piece",
    "probe",
    "step_seconds",
    "train",
]

Array: TypeAlias = NDArray[np.float64]
Programs: TypeAlias = dict[tuple[Any, ...], Program]

# A loss this many times that of the first step (or 1 if that is larger) counts as diverged.
BLOW_UP = 1e3

# Evaluation takes the data in equal pieces whose inputs, over all replicas, stay below this many
# values, so that what is computed from them stays in the cache.
PIECE = 1 << 20


@dataclass(frozen=True)
class Budget:
    """How long every run trains.

    Attributes:
        steps: optimizer steps in all.
        batch_size: samples a step; an incomplete last batch of an epoch is left out.
        steps_per_epoch: steps after which the order is drawn anew and validation happens.
    """

    steps: int
    batch_size: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Evaluation:
    """What is known of a chunk after an epoch; arrays are ``(replicas,)``.

    Attributes:
        step: steps done.
        epoch: epochs done, the last one maybe cut short by the budget.
        replicas: which replicas of the chunk these are, those that were still training.
        diverged_at: the step at which a replica diverged in this epoch, 0 for the others.
        train_loss: mean of the mini-batch losses of the epoch.
        validation_loss, validation_metric: of the whole validation set.
        test_loss, test_metric: of the whole test set, at the last step only, else NaN.
        seconds: training time so far, evaluation left out: an equal share of the passes, and the
            own update; on a tape, where they are one, an equal share of both among the replicas
            of the same rule.
        weights: after the last step, of each replica whose weights were asked for its trained
            parameters and its buffers, by name; those that answers are given with.
    """

    step: int
    epoch: int
    replicas: NDArray[np.int64]
    diverged_at: NDArray[np.int64]
    train_loss: Array
    validation_loss: Array
    validation_metric: Array
    test_loss: Array
    test_metric: Array
    seconds: Array
    weights: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)


class _Batches:
    """The order in which each seed sees the training data, the same whoever shares the chunk."""

    def __init__(self, split: Split, seeds: Sequence[int], budget: Budget) -> None:
        self._split = split
        self._device = split.tensors[0].device
        self._budget = budget
        self.size = budget.batch_size
        distinct = sorted(set(seeds))
        self.shared = len(distinct) == 1
        self._generators = [torch.Generator().manual_seed(seed) for seed in distinct]
        self.use([distinct.index(seed) for seed in seeds])
        self.shuffle()

    def use(self, owners: Sequence[int]) -> None:
        """Which of the seeds each replica follows."""
        self.owners = list(owners)
        self._owner = torch.as_tensor(self.owners, device=self._device)

    def shuffle(self) -> None:
        """Draw the order of the next epoch."""
        kept = self._budget.steps_per_epoch * self._budget.batch_size
        orders = [torch.randperm(len(self._split), generator=g)[:kept] for g in self._generators]
        self._order = torch.stack(orders).to(self._device)

    def order(self) -> Tensor:
        """Which samples each replica sees in the epoch: ``(replicas, samples)``, or one for all."""
        return self._order if self.shared else self._order.index_select(0, self._owner)

    def __call__(self, i: int) -> tuple[Batch, Batch]:
        """Batch ``i`` of the epoch: ``(batch, *)`` if shared, else ``(replicas, batch, *)``."""
        size = self.size
        index = self._order[:, i * size : (i + 1) * size]
        if self.shared:
            return self._split[index[0]]
        owned: tuple[Batch, Batch] = tree_map(
            lambda t: t.index_select(0, self._owner), self._split[index]
        )
        return owned


def probe(task: Task, batch_size: int, device: str) -> Program:
    """Passes of two replicas, to see whether the model's can train together and in threads.

    Raises:
        Exception: whatever the model, loss or metric raises on a batch when run alone.
    """
    data = task.train.to(device)
    model, parameters, constants = stack(task, [0, 0], device)
    batch = data[:batch_size]
    program = build(task, model, parameters, constants, batch, shared=True, backend="eager")
    program.evaluate(parameters, constants, *data[:1])
    return program


def train(
    task: Task,
    replicas: Sequence[Replica],
    budget: Budget,
    *,
    backend: Backend = "eager",
    device: str = "cpu",
    draw_seed: int = 0,
    programs: Programs | None = None,
    stop: Callable[[Evaluation], Sequence[int]] = lambda evaluation: (),
    keep: Sequence[int] = (),
) -> Iterator[Evaluation]:
    """Train replicas of one model together, each by its own rule and from its own seed.

    A replica that diverges or is stopped leaves the batch; the others never notice.

    Args:
        task: what is trained.
        replicas: one or more; with the backend "one by one" exactly one.
        budget: the same for all.
        backend: how passes run.
        device: as torch names it.
        draw_seed: of random numbers drawn while training (dropout).
        programs: passes already built, to be used and added to.
        stop: given an evaluation, which of its replicas to stop.
        keep: replicas whose weights the last evaluation is to carry.

    Yields:
        An `Evaluation` after every epoch and after the last step.
    """
    data = task.train.to(device)
    validation, test = task.validation.to(device), task.test.to(device)
    model, parameters, constants = stack(task, [r.seed for r in replicas], device)
    updates = Updates(replicas, parameters)
    batches = _Batches(data, [r.seed for r in replicas], budget)
    samples = [t.contiguous() for t in data.tensors]
    present = np.arange(len(replicas))  # who sits in which place of the stacks
    alive = np.ones(len(replicas), dtype=bool)  # of the places
    limit: Array | None = None
    seconds = np.zeros(len(replicas))
    state = RandomStream(draw_seed)

    def program() -> Program:
        return _passes(task, model, parameters, constants, batches, backend, device, programs)

    passes = program()
    exact = passes.tape is not None and passes.tape.holds(samples)
    step = epoch = 0
    while step < budget.steps and alive.any():
        if epoch:
            batches.shuffle()
        epoch += 1
        count = min(budget.steps_per_epoch, budget.steps - step)
        losses = torch.zeros((count, len(present)), device=device)
        start, updating = perf_counter(), updates.seconds.sum()
        line = passes.tape if exact and updates.taped else None
        if line is not None:
            updates.train(line, samples, batches.order(), losses)
        with nullcontext() if passes.concurrent else state:
            for i in range(count if line is None else 0):
                moved = updates.look_ahead()
                loss, gradients, constants = passes.step(parameters, constants, *batches(i))
                updates.return_from(moved)
                losses[i] = loss
                updates.step(gradients)
        seen = losses.double().cpu().numpy()
        shared = perf_counter() - start - (updates.seconds.sum() - updating)
        seconds[present[alive]] += shared / alive.sum()
        if limit is None:
            limit = BLOW_UP * np.maximum(np.abs(np.nan_to_num(seen[0])), 1.0)
        moved = updates.to_answers()
        scores = _evaluate(passes, parameters, constants, validation)
        bad = ~np.isfinite(seen) | (np.abs(seen) > limit)
        first = np.where(bad.any(0), bad.argmax(0) + 1, 0)
        # Weights that broke at the last step of the epoch show in validation alone.
        first = np.where((first == 0) & ~np.isfinite(scores[0]), count, first)
        first = np.where(first > 0, step + first, 0)
        step += count
        last = step == budget.steps
        nothing = np.full(len(present), np.nan)
        tested = _evaluate(passes, parameters, constants, test) if last else (nothing, nothing)
        weights = {
            replica: model.tensors_of(place, parameters, constants)
            for place, replica in enumerate(present.tolist())
            if last and replica in keep and alive[place]
        }
        updates.return_from(moved)
        evaluation = Evaluation(
            step,
            epoch,
            present[alive],
            first[alive],
            seen.mean(0)[alive],
            scores[0][alive],
            scores[1][alive],
            tested[0][alive],
            tested[1][alive],
            (seconds[present] + updates.seconds)[alive],
            weights,
        )
        stopped = np.isin(present, list(stop(evaluation)))
        yield evaluation
        gone = alive & ((first > 0) | stopped)
        if gone.any() and not last:
            alive &= ~gone
            updates.drop(np.flatnonzero(gone).tolist())
            for p in parameters:
                p[torch.as_tensor(gone, device=device)] = 0
            # Compiled passes have a fixed shape: there an empty place costs less than compiling.
            # On a tape it costs nothing.
            if passes.backend == "eager" and line is None and 0 < alive.sum() <= len(alive) // 2:
                keep = np.flatnonzero(alive).tolist()
                seconds[present] += updates.seconds
                parameters = [p[keep].contiguous() for p in parameters]
                constants = [c[keep].contiguous() for c in constants]
                updates.compact(keep, parameters)
                batches.use([batches.owners[i] for i in keep])
                present, limit, alive = present[keep], limit[keep], alive[keep]
                passes = program()


def step_seconds(
    task: Task,
    replicas: Sequence[Replica],
    budget: Budget,
    *,
    device: str = "cpu",
    programs: Programs | None = None,
) -> float:
    """Measured seconds of one eager step of these replicas together, their update left out."""
    data = task.train.to(device)
    model, parameters, constants = stack(task, [r.seed for r in replicas], device)
    batches = _Batches(data, [r.seed for r in replicas], budget)
    passes = _passes(task, model, parameters, constants, batches, "eager", device, programs)
    times = []
    with RandomStream(0):
        for _ in range(5):
            start = perf_counter()
            passes.step(parameters, constants, *batches(0))
            times.append(perf_counter() - start)
    return sorted(times)[2]


def _passes(
    task: Task,
    model: Model,
    parameters: list[Tensor],
    constants: list[Tensor],
    batches: _Batches,
    backend: Backend,
    device: str,
    programs: Programs | None,
) -> Program:
    """Passes for these stacks, taken from those already built where task and shapes agree."""

    def made() -> Program:
        return build(task, model, parameters, constants, batches(0), batches.shared, backend)

    if programs is None:
        return made()
    # Passes fit a model, a loss and the shape of a batch.
    what = task.fingerprint, batches.size
    key = (*what, len(parameters[0]), batches.shared, backend, device)
    if key not in programs:
        # Two threads may both build; the later one's stays, and they are the same.
        programs[key] = made()
    return programs[key]


class RandomStream:
    """A stream of random numbers for the steps of a chunk, apart from everybody else's."""

    def __init__(self, seed: int) -> None:
        self._state = torch.Generator().manual_seed(seed).get_state()

    def __enter__(self) -> None:
        self._outside = torch.get_rng_state()
        torch.set_rng_state(self._state)

    def __exit__(self, *_: object) -> None:
        self._state = torch.get_rng_state()
        torch.set_rng_state(self._outside)


def piece(split: Split, replicas: int, samples: int) -> int:
    """How many samples of a data set passes take at once: equal pieces of so many in all."""
    width: int = sum(t[0].numel() for t in tree_leaves(split.x))
    fits = max(1, PIECE // (replicas * max(1, width)))
    return -(-samples // -(-samples // fits))


def _evaluate(
    passes: Program, parameters: list[Tensor], constants: list[Tensor], split: Split
) -> tuple[Array, Array]:
    """Mean loss and metric of every replica over a data set, ``(replicas,)`` each, float64."""
    replicas = len(parameters[0])
    size = piece(split, replicas, len(split))
    losses, metrics = np.zeros(replicas), np.zeros(replicas)
    for i in range(0, len(split), size):
        part = slice(i, min(i + size, len(split)))
        loss, metric = passes.evaluate(parameters, constants, *split[part])
        losses += loss.double().cpu().numpy() * (part.stop - i)
        metrics += metric.double().cpu().numpy() * (part.stop - i)
    return losses / len(split), metrics / len(split)
