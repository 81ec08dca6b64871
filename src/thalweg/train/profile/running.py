"""A training that goes on, a turn at a time, to see how fast it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch.utils._pytree import tree_map

from thalweg.tasks import Task
from thalweg.tasks.devices import wait
from thalweg.train.engine import Engine
from thalweg.train.parallel import Ranks
from thalweg.train.recipe import Recipe
from thalweg.train.step import Mark, unmarked

__all__ = ["Gain", "Running", "gain_of", "running"]

STEPS = 1_000_000_000  # of the training, which never comes so far
TURN = 0.025  # seconds of a turn, or one step
ROUNDS, FEWER = 9, 5
SLOW = 0.2  # seconds of a step, from which there are fewer rounds


@dataclass(frozen=True)
class Gain:
    """How much faster one setting is than another.

    Attributes:
        gain: samples a second more, as a share: 0.5 is half as many more; the median over rounds.
        low, high: its interval, by the order of the rounds, whatever their distribution: the second
            and the eighth of nine (96 %), or the first and last of five (94 %).
    """

    gain: float
    low: float
    high: float


class Running:
    """One setting in training.

    Every turn begins with the initial weights, so that all measure the same and none diverges.

    Attributes:
        engine: that trains.
        threads: that torch has meanwhile.
        device: where.
        pace: seconds of a step, roughly.
        once: seconds until two steps were taken, building and compiling included, that for a
            smaller last batch of an epoch too, beyond what two steps take from then on.
        turn_steps: of a turn.
    """

    def __init__(self, task: Task, recipe: Recipe, device: torch.device, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device, self.threads = device, threads
        start = perf_counter()
        self.engine = Engine(task, recipe, STEPS, ranks=Ranks(0, 1, device))
        last = len(task.train) % (recipe.batch_size or task.batch_size)
        self._start = {k: v.clone() for k, v in self.engine.module.state_dict().items()}
        try:
            self._took(2)
            if recipe.hybridize and last:
                self._see(last)
        except BaseException:
            self.engine.close()
            raise
        first = perf_counter() - start
        self.pace = self._took(1)
        if self.pace < TURN:
            self.pace = self._took(max(1, int(TURN / 5 / self.pace)))
        self.once = max(0.0, first - 2 * self.pace)
        self.turn_steps = max(1, round(TURN / self.pace))

    @property
    def rounds(self) -> int:
        """How often to take a turn."""
        return FEWER if self.pace > SLOW else ROUNDS

    def turn(self, mark: Mark = unmarked) -> float:
        """Train for a turn; seconds of a step.

        Args:
            mark: as `Engine.advance` has it, and called with "begin" first.
        """
        torch.set_num_threads(self.threads)
        self.engine.module.load_state_dict(self._start)
        if self.pace < SLOW:
            self._took(1)  # what the setting before left in the caches is not this one's
        return self._took(self.turn_steps, mark)

    def speed(self) -> float:
        """Samples a second of a turn."""
        seconds = self.turn() * self.turn_steps
        return sum(self.engine.samples) / seconds

    def _see(self, rows: int) -> None:
        """Have the model compiled for batches of so many samples too."""
        x, y, _ = self.engine.window()[0]
        x, y = tree_map(lambda t: t[:rows], (x, y))
        self.engine.taken.loss(x, y).backward()  # type: ignore[no-untyped-call]
        self.engine.taken.forget()

    def _took(self, steps: int, mark: Mark = unmarked) -> float:
        wait(self.device)
        start = perf_counter()
        mark("begin")
        self.engine.advance(steps, mark)
        wait(self.device)
        return (perf_counter() - start) / steps


@contextmanager
def running(task: Task, recipe: Recipe, device: torch.device, threads: int) -> Iterator[Running]:
    """A setting in training, whose work in the background ends with the block."""
    found = Running(task, recipe, device, threads)
    try:
        yield found
    finally:
        found.engine.close()


def gain_of(present: Running, other: Running) -> Gain:
    """What another setting gains over the present one, both in turns."""
    rounds = min(present.rounds, other.rounds)
    ratios = []
    for i in range(rounds):
        if i % 2:
            before = present.speed()
            after = other.speed()
        else:
            after = other.speed()
            before = present.speed()
        ratios.append(after / before)
    ratios.sort()
    cut = 1 if rounds == ROUNDS else 0
    return Gain(median(ratios) - 1, ratios[cut] - 1, ratios[-1 - cut] - 1)
