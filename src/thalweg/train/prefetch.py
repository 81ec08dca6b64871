"""Batches made in background threads, a bounded number of them ahead of the one in use."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread, current_thread
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar, overload
from weakref import WeakSet, finalize

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from thalweg.train.arguments import FitError, whole

__all__ = ["Prefetched", "prefetch"]

S = TypeVar("S")
T = TypeVar("T")

PATIENCE = 5.0  # seconds that closing waits for the batches that are being made

# What the GPU has done when it gets there; None on the CPU, where what was called is done.
_Mark: TypeAlias = torch.cuda.Event | None


@overload
def prefetch(
    batches: Iterable[T],
    depth: int = 2,
    *,
    prepare: None = None,
    workers: int = 1,
    device: str | torch.device | None = None,
) -> "Prefetched[T]": ...
@overload
def prefetch(
    batches: Iterable[S],
    depth: int = 2,
    *,
    prepare: Callable[[S], T],
    workers: int = 1,
    device: str | torch.device | None = None,
) -> "Prefetched[T]": ...
def prefetch(
    batches: Iterable[Any],
    depth: int = 2,
    *,
    prepare: Callable[[Any], Any] | None = None,
    workers: int = 1,
    device: str | torch.device | None = None,
) -> "Prefetched[Any]":
    """Have the next batches made in the background while one is in use.

    ::

        with thalweg.prefetch(loader, depth=2, device="cuda") as batches:
            for x, y in batches:
                ...

    Batches come in the order of ``batches``, and each ``iter()`` begins anew. At most ``depth`` of
    them are in flight: being taken from ``batches``, prepared, copied, or waiting. The one in use,
    handed over last, comes on top: memory is that of ``depth + 1`` batches, and of what ``batches``
    and ``prepare`` themselves keep, as the worker processes of a `torch.utils.data.DataLoader` do.
    On a GPU a batch counts until the device is done with it, not just Python.

    One thread of its own iterates over ``batches``. What that or ``prepare`` raises is raised where
    its batch would have come, with its traceback. The threads end with the iteration, when it is
    left half-way, and with the process; ending waits for the batches that are being made, up to 5
    seconds, after which a thread that hangs in ``batches`` ends when that returns.

    Python's threads take turns in Python code, and run at once where NumPy, torch or the system
    works: reading, decoding, array operations. The global random states of torch, NumPy and Python
    are shared by all threads. What ``batches`` draws from them for its first batch, such as the
    order of a DataLoader, is drawn before that is handed over, so that a loop repeats under a seed.
    What is drawn later, or in ``prepare``, depends on timing: draw it from a generator of one's
    own, in ``prepare`` from one that is seeded by something in the batch.

    Args:
        batches: what to iterate over; a DataLoader may have workers of its own.
        depth: batches in flight besides the one in use, at least 1.
        prepare: makes a batch of what ``batches`` gives; called in threads, several at once if
            there are several workers.
        workers: threads for ``prepare``, at least 1; more than ``depth`` find nothing to do.
        device: where the tensors of each batch (tuples, lists, dictionaries of them) are copied;
            to a GPU from page-locked memory, on a stream beside the one that computes.

    Raises:
        FitError: for an argument that cannot be used.
    """
    if not isinstance(batches, Iterable):
        raise FitError("batches", f"must be something to iterate over, got {batches!r}")
    if prepare is not None and not callable(prepare):
        raise FitError("prepare", f"must be a function of a batch, got {prepare!r}")
    workers = whole("workers", workers)
    return Prefetched(
        batches, whole("depth", depth), prepare, workers, None if device is None else _found(device)
    )


def _found(device: str | torch.device) -> torch.device:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise FitError("device", f"{device!r} cannot be used here: {first}") from None
    return torch.device(device)


class Prefetched(Generic[T]):
    """Batches that are made ahead, as `prefetch` says.

    As a context manager it ends all its iterations with the block.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        depth: int,
        prepare: Callable[[Any], T] | None,
        workers: int,
        device: torch.device | None,
    ) -> None:
        self._batches = batches
        self._arguments = depth, prepare, workers, device
        self._running: WeakSet[_Iteration[T]] = WeakSet()

    def __iter__(self) -> Iterator[T]:
        # Here, as loaders with processes of their own start them in the thread that calls.
        iteration = _Iteration[T](iter(self._batches), *self._arguments)
        self._running.add(iteration)
        return iteration

    def __len__(self) -> int:
        """How many batches, where ``batches`` knows it."""
        if not isinstance(self._batches, Sized):
            raise TypeError(f"{type(self._batches).__name__} does not say how many batches it has")
        return len(self._batches)

    def close(self) -> None:
        """End all iterations: what was made and not handed over is dropped."""
        for iteration in list(self._running):
            iteration.close()

    def __enter__(self) -> "Prefetched[T]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Made(Generic[T]):
    """A batch, and what its copy to the GPU ends with."""

    batch: T
    copied: _Mark = None


# The place of a batch in their order, to which it comes when it is made, or why it was not.
_Place: TypeAlias = SimpleQueue[_Made[T] | BaseException]
_Jobs: TypeAlias = SimpleQueue[tuple[Any, _Place[T]] | None]


@dataclass(eq=False)
class _Line(Generic[T]):
    """What one iteration and its threads share.

    An iteration may be ended by the garbage collector, at any time and in any thread, one that is
    about to use these queues too; simple ones stand that.

    Attributes:
        slots: rights to have a batch in flight, each with what the GPU has to have done before.
        places: of the batches in flight, in order.
    """

    slots: SimpleQueue[_Mark] = field(default_factory=SimpleQueue)
    places: SimpleQueue[_Place[T]] = field(default_factory=SimpleQueue)
    threads: list[Thread] = field(default_factory=list)
    closed: bool = False

    def start(self, function: Callable[..., None], *args: Any) -> None:
        thread = Thread(target=function, args=(self, *args), name="thalweg prefetch", daemon=True)
        self.threads.append(thread)
        thread.start()

    def close(self) -> None:
        self.closed = True
        self.slots.put(None)  # for the thread that may wait for one
        until = monotonic() + PATIENCE
        for thread in self.threads:
            if thread is not current_thread():
                thread.join(max(0.0, until - monotonic()))
        while not self.places.empty():
            self.places.get()


class _Iteration(Iterator[T]):
    """One pass over the batches. Its threads do not know it, so that it ends when it is dropped."""

    def __init__(
        self,
        source: Iterator[Any],
        depth: int,
        prepare: Callable[[Any], T] | None,
        workers: int,
        device: torch.device | None,
    ) -> None:
        copier = _Copier(device) if device is not None and device.type == "cuda" else None
        self._copier = copier
        line = self._line = _Line[T]()
        self.close = finalize(self, line.close)
        for _ in range(depth):
            line.slots.put(None)

        def make(item: Any) -> _Made[T]:
            batch: T = item if prepare is None else prepare(item)
            return copier.copy(batch) if copier else _Made(_moved(batch, device))

        jobs: _Jobs[T] = SimpleQueue()
        line.start(_take, source, make, jobs if prepare else None)
        for _ in range(workers if prepare else 0):
            line.start(_work, make, jobs)

    def __next__(self) -> T:
        line = self._line
        if line.closed:
            raise StopIteration
        made = line.places.get().get()
        if isinstance(made, BaseException):
            self.close()
            try:
                raise made
            finally:
                del made  # its traceback has this frame
        line.slots.put(self._copier.receive(made) if self._copier else None)
        return made.batch


def _take(
    line: _Line[T],
    source: Iterator[Any],
    make: Callable[[Any], _Made[T]],
    jobs: _Jobs[T] | None,
) -> None:
    """Take a batch from the source for each slot, and make it or have it made: the first thread."""
    slot = line.slots.get()
    while not line.closed:
        place: _Place[T] = SimpleQueue()
        try:
            if slot is not None:
                slot.synchronize()
            item = next(source)
        except BaseException as error:  # StopIteration is how the last place ends
            place.put(error)
            line.places.put(place)
            break
        line.places.put(place)
        if jobs is None:
            _fill(place, make, item)
        else:
            jobs.put((item, place))
        del item  # while it waits
        slot = line.slots.get()
    if jobs is not None:
        jobs.put(None)
    if isinstance(source, Generator):
        source.close()


def _work(line: _Line[T], make: Callable[[Any], _Made[T]], jobs: _Jobs[T]) -> None:
    """Make what was taken: each further thread."""
    while (job := jobs.get()) is not None and not line.closed:
        item, place = job
        _fill(place, make, item)
        del job, item, place
    jobs.put(None)  # for the next thread


def _fill(place: _Place[T], make: Callable[[Any], _Made[T]], item: Any) -> None:
    try:
        place.put(make(item))
    except StopIteration as error:  # which would end the iteration, as if there were no more
        stopped = RuntimeError("prepare raised StopIteration")
        stopped.__cause__ = error
        place.put(stopped)
    except BaseException as error:
        place.put(error)


def _moved(batch: T, device: torch.device | None) -> T:
    if device is None:
        return batch
    moved: T = tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, batch)
    return moved


class _Copier:
    """Copies to a GPU, on a stream beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, batch: T) -> _Made[T]:
        """Begin a copy, in a background thread."""

        def copied(t: Any) -> Any:
            if not isinstance(t, Tensor) or t.device.type != "cpu":
                return t
            # The allocator of page-locked memory keeps it until the copy is done.
            return t.pin_memory().to(self._stream.device, non_blocking=True)

        # It makes the device the thread's own too: memory would be locked for the first otherwise.
        with torch.cuda.stream(self._stream):
            return _Made(tree_map(copied, batch), self._stream.record_event())

    def receive(self, made: _Made[T]) -> torch.cuda.Event:
        """Have what computes from here on wait for a copy; when what came before will be done."""
        assert made.copied is not None
        stream = torch.cuda.current_stream(self._stream.device)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(stream)
        stream.wait_event(made.copied)
        for t in tree_leaves(made.batch):
            if isinstance(t, Tensor) and t.device == self._stream.device:
                t.record_stream(stream)  # or its memory would be given to a copy on the other
        return done
