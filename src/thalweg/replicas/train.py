"""The training loop of a chunk: all its replicas from first step to last."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from thalweg.replicas.program import ALONE, Backend, Model, Program, build, stack
from thalweg.replicas.update import Replica, Updates
from thalweg.tasks import Batch, Split, Task

if TYPE_CHECKING:
    from thalweg.replicas.taped import TrainingTape

__all__ = [
    "Budget",
    "Evaluation",
    "Programs",
    "RandomStream",
    "Training",
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

    def order(self, first: int, count: int) -> Tensor:
        """Samples that each replica sees in some steps: ``(replicas, samples)``, or one for all."""
        order = self._order[:, first * self.size : (first + count) * self.size]
        return order if self.shared else order.index_select(0, self._owner)

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


def probe(task: Task, batch_size: int, device: str, shared: bool = False) -> Program:
    """Passes of two replicas, to see whether the model's can train together and in threads.

    Args:
        task: what is trained.
        batch_size: samples a step.
        device: as torch names it.
        shared: whether both see the same batch, as replicas of one seed do: a model or a loss
            that reads values of its data may train together then alone.

    Raises:
        Exception: whatever the model, loss or metric raises on a batch when run alone.
    """
    data = task.train.to(device)
    model, parameters, constants = stack(task, [0, 0], device)
    index = torch.arange(2 * batch_size, device=device) % len(data)
    batch = data[index[:batch_size] if shared else index.reshape(2, batch_size)]
    program = build(task, model, parameters, constants, batch, shared, "eager")
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
        replicas: one or more.
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
    training = Training(task, replicas, budget, backend, device, draw_seed, programs)
    validation, test = task.validation.to(device), task.test.to(device)
    limit: Array | None = None
    step = epoch = 0
    while step < budget.steps and training.alive.any():
        epoch += 1
        count = min(budget.steps_per_epoch, budget.steps - step)
        seen = training.advance(count)
        present, alive = training.present, training.alive
        if limit is None:
            limit = BLOW_UP * np.maximum(np.abs(np.nan_to_num(seen[0])), 1.0)
        last = step + count == budget.steps
        nothing = np.full(len(present), np.nan)
        with training.answers():
            scores = training.evaluate(validation)
            tested = training.evaluate(test) if last else (nothing, nothing)
            weights = {
                replica: training.tensors_of(place)
                for place, replica in enumerate(present.tolist())
                if last and replica in keep and alive[place]
            }
        bad = ~np.isfinite(seen) | (np.abs(seen) > limit[present])
        first = np.where(bad.any(0), bad.argmax(0) + 1, 0)
        # Weights that broke at the last step of the epoch show in validation alone.
        first = np.where((first == 0) & ~np.isfinite(scores[0]), count, first)
        first = np.where(first > 0, step + first, 0)
        step += count
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
            training.seconds[alive],
            weights,
        )
        stopped = np.isin(present, list(stop(evaluation)))
        yield evaluation
        gone = alive & ((first > 0) | stopped)
        if gone.any() and not last:
            training.drop(gone)


class Training:
    """Replicas in training, all of them at the same step.

    A replica sits in a place of the stacks. One that is dropped leaves its place empty, until so
    many are that moving the others together pays.

    Args:
        task: what is trained.
        replicas: one or more.
        budget: whose batches; training may go on beyond its steps.
        backend: how passes run.
        device: as torch names it.
        draw_seed: of random numbers drawn while training (dropout).
        programs: passes already built, to be used and added to.

    Attributes:
        passes: how a step runs.
        present: which replica sits in each place.
        alive: of the places, whose replica still trains.
    """

    def __init__(
        self,
        task: Task,
        replicas: Sequence[Replica],
        budget: Budget,
        backend: Backend = "eager",
        device: str = "cpu",
        draw_seed: int = 0,
        programs: Programs | None = None,
    ) -> None:
        data = task.train.to(device)
        seeds = [r.seed for r in replicas]
        self._task, self._budget, self._device = task, budget, device
        self._backend, self._programs = backend, programs
        self._model, self._parameters, self._constants = stack(task, seeds, device)
        self._updates = Updates(replicas, self._parameters)
        self._batches = _Batches(data, seeds, budget)
        self._data = data
        self._samples = [t.contiguous() for t in data.tensors]
        self._parts: dict[tuple[int, ...], Program] = {}
        self.present = np.arange(len(replicas))
        self.alive = np.ones(len(replicas), dtype=bool)
        self._seconds = np.zeros(len(replicas))
        self._state = RandomStream(draw_seed)
        self._done = 0  # of the epoch
        self.passes = self._program()
        self._exact = self.passes.tape is not None and self.passes.tape.holds(self._samples)

    @property
    def seconds(self) -> Array:
        """Training time so far of the replica in each place (`Evaluation.seconds`)."""
        return self._seconds[self.present] + self._updates.seconds

    def advance(self, count: int) -> Array:
        """Train some steps, over the ends of epochs.

        Args:
            count: of steps, at least 1.

        Returns:
            The losses of their batches, ``(count, places)``; 0 where nobody trains.
        """
        losses = torch.zeros((count, len(self.present)), device=self._device)
        start, updating = perf_counter(), self._updates.seconds.sum()
        done = 0
        while done < count:
            if self._done == self._budget.steps_per_epoch:
                self._batches.shuffle()
                self._done = 0
            piece = min(count - done, self._budget.steps_per_epoch - self._done)
            self._advance(losses[done : done + piece])
            self._done += piece
            done += piece
        seen = losses.double().cpu().numpy()
        shared = perf_counter() - start - (self._updates.seconds.sum() - updating)
        self._seconds[self.present[self.alive]] += shared / self.alive.sum()
        return seen

    def _advance(self, losses: Tensor) -> None:
        """Train on the next batches of the epoch, as many as there are losses to be written."""
        line, updates, first = self._line, self._updates, self._done
        if line is not None:
            updates.train(line, self._samples, self._batches.order(first, len(losses)), losses)
            return
        with nullcontext() if self.passes.concurrent else self._state:
            for i in range(len(losses)):
                moved = updates.look_ahead()
                loss, gradients, self._constants = self.passes.step(
                    self._parameters, self._constants, *self._batches(first + i)
                )
                updates.return_from(moved)
                losses[i] = loss
                updates.step(gradients)

    @property
    def _line(self) -> "TrainingTape | None":
        """The tape that whole epochs run on, if one can."""
        return self.passes.tape if self._exact and self._updates.taped else None

    @contextmanager
    def on_one_core(self) -> Iterator[None]:
        """Keep torch to one thread where passes are on a tape, for what little goes on between.

        Operations on small tensors lose more by waiting for each other's threads than they win.
        """
        threads = torch.get_num_threads()
        if self.passes.tape is not None:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Have the weights to evaluate in place of those that are trained, where they differ."""
        moved = self._updates.to_answers()
        try:
            yield
        finally:
            self._updates.return_from(moved)

    def evaluate(self, split: Split) -> tuple[Array, Array]:
        """Mean loss and metric of every place over a data set on the device, ``(places,)`` each."""
        stacks = self._parameters, self._constants
        if self._task.metric.mean or piece(split, len(self.present), len(split)) == len(split):
            return _evaluate(self.passes, *stacks, split)
        return _undivided(self._task, self._model, *stacks, split)

    def gradients(self, index: Tensor) -> list[Tensor]:
        """Gradients of small batches at the present weights, which stay.

        Args:
            index: int64, samples of the training data, ``(places, batches, samples)``.

        Returns:
            One tensor a parameter, ``(places, batches, *shape)``.
        """
        places, batches, size = index.shape
        stacks = [p.repeat_interleave(batches, 0) for p in self._parameters]
        constants = [c.repeat_interleave(batches, 0) for c in self._constants]
        x, y = self._data[index.reshape(places * batches, size).to(self._device)]
        if index.shape not in self._parts:
            self._parts[index.shape] = build(
                self._task, self._model, stacks, constants, (x, y), False, "eager"
            )
        program = self._parts[index.shape]
        with nullcontext() if program.concurrent else self._state:
            _, gradients, _ = (program.single or program.step)(stacks, constants, x, y)
        return [g.reshape(places, batches, *g.shape[1:]) for g in gradients]

    def tensors_of(self, place: int) -> dict[str, Tensor]:
        """Copies of a replica's parameters and buffers, by name."""
        return self._model.tensors_of(place, self._parameters, self._constants)

    def drop(self, gone: NDArray[np.bool_]) -> None:
        """Leave replicas out of all further steps; the others never notice.

        Args:
            gone: of the places, ``(places,)``.
        """
        line = self._line
        self.alive &= ~gone
        self._updates.drop(np.flatnonzero(gone).tolist())
        for p in self._parameters:
            p[torch.as_tensor(gone, device=self._device)] = 0
        # Compiled passes have a fixed shape: there an empty place costs less than compiling. On a
        # tape it costs nothing.
        left, places = int(self.alive.sum()), len(self.alive)
        if self.passes.backend != "compiled" and line is None and 0 < left <= places // 2:
            keep = np.flatnonzero(self.alive).tolist()
            self._seconds[self.present] += self._updates.seconds
            self._parameters = [p[keep].contiguous() for p in self._parameters]
            self._constants = [c[keep].contiguous() for c in self._constants]
            self._updates.compact(keep, self._parameters)
            self._batches.use([self._batches.owners[i] for i in keep])
            self.present, self.alive = self.present[keep], self.alive[keep]
            self.passes = self._program()

    def _program(self) -> Program:
        known = self._programs or {}
        what = _fits(self._task, self._batches, self._backend, self._device)
        for (*rest, _), program in list(known.items()):  # another thread may add to it
            # A tape takes any number of replicas, where no step is taken without it.
            line = program.tape if tuple(rest) == what else None
            if line is not None and self._updates.taped and line.holds(self._samples):
                return program
        return _passes(
            self._task,
            self._model,
            self._parameters,
            self._constants,
            self._batches,
            self._backend,
            self._device,
            self._programs,
        )


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
    key = (*_fits(task, batches, backend, device), len(parameters[0]))
    if key not in programs:
        # Two threads may both build; the later one's stays, and they are the same.
        programs[key] = made()
    return programs[key]


def _fits(task: Task, batches: _Batches, backend: Backend, device: str) -> tuple[Any, ...]:
    """What passes are made for, besides a number of replicas."""
    return task.fingerprint, batches.size, batches.shared, backend, device


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


def _undivided(
    task: Task, model: Model, parameters: list[Tensor], constants: list[Tensor], split: Split
) -> tuple[Array, Array]:
    """The same where the metric is no mean over samples: of all outputs of a replica at once."""
    size = piece(split, 1, len(split))

    def scores(parameters: list[Tensor], constants: list[Tensor]) -> list[float]:
        def of(x: Batch) -> Any:
            return model.call(model.evaluate, parameters, constants, x)

        parts = [of(split[i : i + size][0]) for i in range(0, len(split), size)]
        leaves = tree_leaves(parts[0])
        if all(isinstance(t, Tensor) and t.ndim and len(t) == size for t in leaves):
            outputs = tree_map(lambda *t: torch.cat(t), *parts)
        else:
            outputs = of(split.x)
        return [float(judge(outputs, split.y)) for judge in (task.loss.of, task.metric.of)]

    with ALONE, torch.no_grad():
        found = [
            scores([p[i] for p in parameters], [c[i] for c in constants])
            for i in range(len(parameters[0]))
        ]
    losses, metrics = np.array(found).T
    return losses, metrics
