"""Where the time of a step goes."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter, time_ns
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import profiler

from thalweg.tasks.devices import wait
from thalweg.train.profile.running import Running

__all__ = ["COMPUTING", "PARTS", "Clock", "Stages", "outside", "stages_of", "stalls"]

PARTS = ("data", "copy", "forward", "backward", "optimizer", "synchronisation", "python")
MARKED = PARTS[:5]
COMPUTING = ("forward", "backward", "optimizer")  # where an interpreter may be in the way
WATCHED = 0.03  # seconds of training that the profiler sees at a time, or one step
WATCHES = 5  # times, of which the median counts
CALLS = 500  # of an operator that does nothing
# What happens on a GPU, and what asks for it, as the profiler calls them.
KERNELS = {"kernel", "gpu_memcpy", "gpu_memset"}
LAUNCHES = {"cuda_runtime", "cuda_driver"}
NODE = re.compile(r"autograd::engine::evaluate_function: .*Backward")

Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Stages:
    """Where the time of a step goes, in seconds.

    Attributes:
        step: of a whole step, measured without clocks in it.
        parts: of each of `PARTS`; they add up to ``step``.
        spans: of forward, backward and optimizer from beginning to end, Python and waiting
            included; with data and copy they add up to ``step`` too.
        python: of each of these spans, outside of operators.
        remainder: what the steps with clocks took less than ``step``, as a share of it, when the
            clocks' own cost is left out; spread over the parts in proportion.
    """

    step: float
    parts: Mapping[str, float]
    spans: Mapping[str, float]
    python: Mapping[str, float]
    remainder: float


def stages_of(present: Running) -> Stages:
    """Measure the parts of a setting's step.

    A whole step is timed without clocks, in turns with steps that look at a clock at the end of
    each part (CUDA: that record an event, so that parts are what the device spends). What a look
    costs is measured and taken off each part; the shares of the parts, in the median over turns,
    then divide up the whole step, so that whatever else the clocked steps lacked or had too much
    falls on the parts in proportion.

    Of the forward pass, the backward pass and the optimizer, Python is what lies outside of
    operators: on the CPU outside of the outermost ones that torch's profiler sees, Thalweg's
    kernel among them; what the profiler takes for each event is measured, and taken off where it
    was spent. On CUDA it is the time in which the device has nothing to do and the host
    has not asked for more; where it has nothing to do because the host waited for it, that is
    synchronisation. One process has none of that on the CPU.
    """
    clock = _Events(present.device) if present.device.type == "cuda" else Clock()
    wholes: list[float] = []
    clocked: list[dict[str, float]] = []
    for _ in range(present.rounds):
        wholes.append(present.turn())
        clock.begin()
        present.turn(clock)
        clocked.append(clock.read(present.turn_steps))
    step = median(wholes)
    sums = [sum(one.values()) for one in clocked]
    shares = {p: median(one[p] / t for one, t in zip(clocked, sums, strict=True)) for p in MARKED}
    spans = {part: step * share / sum(shares.values()) for part, share in shares.items()}
    python, waiting = _shares(present, spans)
    parts = {part: t - python.get(part, 0.0) - waiting.get(part, 0.0) for part, t in spans.items()}
    parts |= {"synchronisation": sum(waiting.values()), "python": sum(python.values())}
    return Stages(step, parts, spans, python, 1 - median(sums) / step)


class Clock:
    """Adds up what lies between its looks, which begin with "begin"."""

    def __init__(self) -> None:
        self.begin()
        start, looks = perf_counter(), 2000
        for _ in range(looks):
            self("data")
        self._cost = (perf_counter() - start) / looks

    def begin(self) -> None:
        """Forget what was added up."""
        self._found = dict.fromkeys(("begin", *MARKED), 0.0)
        self._looks = dict.fromkeys(self._found, 0)
        self._last = perf_counter()

    def __call__(self, part: str) -> None:
        """Look at the clock, at the end of a part."""
        now = perf_counter()
        self._found[part] += now - self._last
        self._looks[part] += 1
        self._last = now

    def read(self, steps: int) -> dict[str, float]:
        """Seconds of each part of a step."""
        cost, found, looks = self._cost, self._found, self._looks
        return {part: max(0.0, found[part] - cost * looks[part]) / steps for part in MARKED}


class _Events:
    """The same on a GPU's own time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self) -> None:
        self._marks: list[tuple[str, Any]] = []

    def __call__(self, part: str) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append((part, event))

    def read(self, steps: int) -> dict[str, float]:
        """Seconds of each part of a step."""
        wait(self._device)
        found = dict.fromkeys(MARKED, 0.0)
        for (_, before), (part, after) in pairwise(self._marks):
            found[part] += before.elapsed_time(after) / 1e3 / steps
        return found


def _shares(
    present: Running, spans: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of Python and of waiting for the device in each of `COMPUTING`."""
    cost = 0.0 if present.device.type == "cuda" else _event_cost()
    found = [_watched(present, spans, cost) for _ in range(WATCHES)]
    python, waiting = (
        {part: median(one[i][part] for one in found) for part in COMPUTING} for i in range(2)
    )
    return python, waiting


def _event_cost() -> float:
    """Nanoseconds that the profiler takes for an event."""
    nothing = torch.empty(0)

    def called() -> float:
        start = perf_counter()
        for _ in range(CALLS):
            nothing.is_same_size(nothing)
        return (perf_counter() - start) / CALLS * 1e9

    plain = min(called() for _ in range(WATCHES))
    with _profiled(nothing.device):
        return max(0.0, min(called() for _ in range(WATCHES)) - plain)


def _watched(
    present: Running, spans: Mapping[str, float], cost: float
) -> tuple[dict[str, float], dict[str, float]]:
    """The same, seen once."""
    ends: list[tuple[str, int]] = []

    def mark(part: str) -> None:
        ends.append((part, time_ns()))

    present.turn()
    steps = max(1, min(present.turn_steps, round(WATCHED / present.pace)))
    with _profiled(present.device) as profile:
        torch.empty(0)  # the first event, in this thread
        mark("begin")
        present.engine.advance(steps, mark)
        wait(present.device)
    events = profile.kineto_results.events()
    if present.device.type == "cuda":
        return _on_device(events, ends, steps, spans)
    share = outside(*_operators(events), ends, cost)
    return {part: share[part] * spans[part] for part in COMPUTING}, dict.fromkeys(COMPUTING, 0.0)


@contextmanager
def _profiled(device: torch.device) -> Iterator[Any]:
    """Torch's profiler, without the lines that it logs on standard error by default."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = before or "99"
    cuda = "cuda" if device.type == "cuda" else None
    try:
        with profiler.profile(use_kineto=True, use_device=cuda) as profile:
            yield profile
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]


def _operators(events: Any) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Beginning and end of each event of the thread that trains, and whether it is an operator.

    Operators have a namespace in their names. The nodes of the backward pass do too; those of a
    `torch.autograd.Function` in Python, unlike torch's own, have no number behind "Backward".
    """
    # Of two that begin together the longer is around the other.
    rows = sorted((e.start_ns(), -e.end_ns(), e.name(), e.start_thread_id()) for e in events)
    rows = [row for row in rows if row[3] == rows[0][3]][1:]
    start = np.array([row[0] for row in rows], dtype=np.int64)
    end = np.array([-row[1] for row in rows], dtype=np.int64)
    operator = ["::" in row[2] and not NODE.fullmatch(row[2]) for row in rows]
    return start, end, np.array(operator, dtype=bool)


def outside(
    start: Ints,
    end: Ints,
    operator: NDArray[np.bool_],
    ends: Sequence[tuple[str, int]],
    cost: float = 0.0,
) -> dict[str, float]:
    """Share of each part that lies outside of operators.

    Args:
        start: of the events of one thread, in nanoseconds, rising.
        end: of each.
        operator: which of them are operators.
        ends: the parts in their order, each with its end, after one that says when the first began.
        cost: nanoseconds that watching took for each event: within an operator for those inside of
            it, else outside.
    """
    names = [part for part, _ in ends[1:]]
    times = np.array([at for _, at in ends], dtype=np.int64)
    part = np.clip(np.searchsorted(times, start, "right") - 1, 0, len(names) - 1)
    reach = np.maximum.accumulate(np.where(operator, end, 0))
    nested = np.zeros(len(start), dtype=bool)
    nested[1:] = start[1:] < reach[:-1]
    # Of each marked part: all of its time, and that in operators.
    length = np.diff(times) - cost * np.bincount(part, minlength=len(names))
    busy = np.where(operator & ~nested, end - start, 0) - cost * nested
    within = np.bincount(part, busy, len(names))
    found = {}
    for name in dict.fromkeys(names):
        mine = np.array([n == name for n in names])
        share = within[mine].sum() / max(length[mine].sum(), 1.0)
        found[name] = float(np.clip(1 - share, 0, 1))
    return found


def _on_device(
    events: Any, ends: Sequence[tuple[str, int]], steps: int, spans: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of a step in which the device has nothing to do: for Python, and as it is waited for.

    What its kernels take does not change when it is watched, and what is between them does.
    """
    asked = {e.correlation_id(): e.start_ns() for e in events if e.activity_type() in LAUNCHES}
    names = np.array([part for part, _ in ends])
    times = [at for _, at in ends]
    kernels = sorted(
        (e.start_ns(), e.end_ns(), asked[e.correlation_id()])
        for e in events
        if e.activity_type() in KERNELS and e.correlation_id() in asked
    )
    places = np.searchsorted(times, [when for *_, when in kernels]).clip(max=len(names) - 1)
    blocked = [(e.start_ns(), e.end_ns()) for e in events if "Synchronize" in e.name()]
    found = stalls(kernels, list(names[places]), blocked)
    python, waiting = {}, {}
    for part in COMPUTING:
        busy, idle, waited = found.get(part, (0.0, 0.0, 0.0))
        free = max(0.0, spans[part] - busy / steps)
        waiting[part] = free * waited / idle if idle else 0.0
        python[part] = free - waiting[part]
    return python, waiting


def stalls(
    kernels: Sequence[tuple[int, int, int]],
    parts: Sequence[str],
    blocked: Sequence[tuple[int, int]],
) -> dict[str, tuple[float, float, float]]:
    """Seconds that a device works in each part, and that it waits before its kernels.

    Args:
        kernels: beginning and end of each, and when it was asked for, in nanoseconds, by their
            beginning.
        parts: that asked for each of them.
        blocked: when the host waited for the device.

    Returns:
        For each part the seconds in which some kernel runs; those before its kernels in which none
            does; and of these those that began while the host waited, and asked for more only then.
    """
    found = {part: [0, 0, 0] for part in parts}
    reach = kernels[0][0] if kernels else 0
    for (start, end, asked), part in zip(kernels, parts, strict=True):
        gap = max(0, start - reach)
        waited = any(a <= reach <= b <= asked for a, b in blocked)
        times = found[part]
        times[0] += max(0, end - max(start, reach))
        times[1] += gap
        times[2] += gap * waited
        reach = max(reach, end)
    return {
        part: (busy / 1e9, idle / 1e9, waited / 1e9) for part, (busy, idle, waited) in found.items()
    }
