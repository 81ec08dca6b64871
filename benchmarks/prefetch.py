"""Batches made ahead: a loader's time beside a step's, and the memory it takes."""

import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.measure import Row, alternate, report, seconds, shown
from thalweg.train.prefetch import prefetch as ahead

BATCHES = 50  # of a pass
SAMPLES, FEATURES, CLASSES = 512, 784, 10
MIB = 2**20


def _step() -> Callable[[torch.Tensor], None]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(FEATURES, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, CLASSES)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    y = torch.randint(CLASSES, (SAMPLES,))

    def step(x: torch.Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def _waits(each: float) -> Callable[[int], torch.Tensor]:
    """A loader that waits, as for a disk or a network."""
    x = torch.randn(SAMPLES, FEATURES)

    def make(_: int) -> torch.Tensor:
        time.sleep(each)
        return x

    return make


def _computes(each: float) -> Callable[[int], torch.Tensor]:
    """A loader that computes in NumPy, which lets go of Python meanwhile."""
    raw = np.random.default_rng(0).normal(size=(SAMPLES, FEATURES)).astype(np.float32)

    def once(x: np.ndarray) -> np.ndarray:
        return np.tanh((x - x.mean(0)) / x.std(0))

    times = max(1, round(each / min(seconds(lambda: once(raw)) for _ in range(9))))

    def make(_: int) -> torch.Tensor:
        x = raw
        for _ in range(times):
            x = once(x)
        return torch.from_numpy(x)

    return make


def _row(
    what: str,
    step: Callable[[torch.Tensor], None],
    make: Callable[[int], torch.Tensor],
    goal: str,
    workers: int = 1,
) -> Row:
    def together() -> None:
        for x in ahead(range(BATCHES), max(2, workers), prepare=make, workers=workers):
            step(x)

    def one_after_the_other() -> None:
        for x in map(make, range(BATCHES)):
            step(x)

    def steps() -> None:
        for _ in range(BATCHES):
            step(x)

    x = make(0)
    found = alternate({"ahead": together, "after": one_after_the_other, "steps": steps})
    both, after, alone = (found[name] / BATCHES for name in ("ahead", "after", "steps"))
    report(
        f"{what}: a step alone takes {shown(alone)}, a batch {shown(after - alone)}, of which "
        f"{shown(both - alone)} show"
    )
    return Row(what, shown(both), shown(after), after / both, goal)


def _memory(depth: int) -> Row:
    """Most memory at any time of a pass whose loader is much faster than its steps."""

    def batches() -> Iterator[np.ndarray]:
        return (np.ones(MIB // 8) for _ in range(4 * depth + 20))

    tracemalloc.start()
    for _ in ahead(batches(), depth):
        time.sleep(2e-3)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    bound = depth + 1
    what = f"most memory with depth {depth}, batches of 1 MiB, one in use"
    return Row(what, f"{most / MIB:.2f} MiB", f"{bound} MiB", bound * MIB / most, "at least 0.95")


def prefetch() -> list[Row]:
    """All rows; torch has one thread, so that a loader finds a core of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = _step()
        x = torch.randn(SAMPLES, FEATURES)
        each = sorted(seconds(lambda: step(x)) for _ in range(50))[25]
        return [
            _row("a batch and a step; the loader waits", step, _waits(each), "at least 1.8"),
            _row("a batch and a step; the loader computes", step, _computes(each), "at least 1.8"),
            _row(
                "a batch and a step; the loader waits 4 steps, 4 workers",
                step,
                _waits(4 * each),
                "at least 4.5",
                workers=4,
            ),
            *(_memory(depth) for depth in (1, 4, 16)),
        ]
    finally:
        torch.set_num_threads(threads)
