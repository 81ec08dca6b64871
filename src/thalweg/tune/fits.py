"""The largest batch that fits into memory, found by training with it."""

import ctypes
import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Literal

import pandas as pd
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from thalweg.optim.registry import Entry
from thalweg.tasks import Task, TaskError, load
from thalweg.tasks.blame import first_line, place, quoted
from thalweg.tasks.devices import wait
from thalweg.tasks.memory import available_memory, shown
from thalweg.tasks.states import gpus, random_states
from thalweg.tasks.trial import called, first_batch
from thalweg.tune.arguments import device_of, entry_of, whole

__all__ = ["Fit", "largest_batch"]

# Of what is available this part is left alone: for page tables, for small allocations that do not
# report failure, and for what other processes take in the seconds of a trial.
MARGIN = 1 / 16

# How closely the answer is known, relative to it.
CLOSE = 1 / 16

SEED = 0
TIMED = 0.25  # seconds, for which short steps are repeated: one alone says little of its speed
SAMPLING = 0.002  # seconds, where the system keeps no peak
PROC = Path("/proc/self")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Fit:
    """How large a batch fits.

    Attributes:
        size: samples of the largest batch that was trained with.
        bytes: most memory that its steps took at any time, measured, beyond what was in use
            before: the batch, the model, its activations, gradients and the optimizer's state.
        limit: "data" if all that was asked for fits; "memory" if a batch larger by a sixteenth, or
            by one sample, ran out of memory, or needs more than there is by the straight line
            through what smaller ones took.
        available: bytes that were free when the search began, all code loaded.
        tried: a row for each batch size that was tried, in that order: ``batch_size``, ``fits``,
            ``bytes`` and ``samples_per_second``, which is NaN where it did not fit; ``bytes`` is
            then what it had taken when it failed.
    """

    size: int
    bytes: int
    limit: Literal["data", "memory"]
    available: int
    tried: pd.DataFrame = field(compare=False)


@dataclass(frozen=True)
class _Trial:
    """One batch size, tried."""

    batch_size: int
    fits: bool
    bytes: int
    samples_per_second: float
    asked: int  # bytes, for which there was no room


def largest_batch(
    task: str | Task,
    *,
    optimizer: str = "adam",
    device: str = "cpu",
    maximum: int | None = None,
) -> Fit:
    """Find the largest batch that a task can be trained with in the memory there is.

    Each size is tried by two or more whole steps of a fresh model: twice the last until one does
    not fit or all do, then halfway between those that fit and those that do not. A size that by
    what smaller ones took needs more than there is, is not tried.

    On a GPU, what runs out of memory raises. On the CPU, Linux would rather kill the process, so
    each trial runs under a lower limit of the process (``RLIMIT_DATA``, the memory of its own that
    it may map): beyond what it has, fifteen sixteenths of what machine, container and standing
    limits leave. An allocation beyond that raises, as it does in other threads of the process
    meanwhile. Other systems have no such limit, and are protected by the prediction alone.

    On Linux, memory on the CPU is measured as the peak of what is resident, which starts anew for
    each trial, in what the system tells of the process too; elsewhere by looking every 2 ms, which
    misses shorter peaks; on a GPU as what tensors take.

    The global random states of torch, NumPy and Python are left as they were, and all memory is
    given back.

    Args:
        task: what `thalweg.tasks.load` takes, or a `thalweg.Task`.
        optimizer: name in `thalweg.optim`, with its usual settings.
        device: as torch names it, ``cpu`` or ``cuda``.
        maximum: samples of the largest batch to try, all training samples by default; for more than
            these are there, they are repeated.

    Raises:
        TaskError: if not even the smallest batch fits, with the bytes it needs, or if anything else
            is in the way of training, with the line of the person's file.
        ArgumentError: for an optimizer, a device or a maximum that cannot be used.
    """
    if isinstance(task, str):
        task = load(task)
    if not isinstance(task, Task):
        raise TaskError("task", f"must be a name or a thalweg.Task, got {task!r}")
    entry = entry_of(optimizer)
    where = device_of(device)
    most = len(task.train) if maximum is None else whole("maximum", maximum)
    with random_states():
        try:
            return _search(task, entry, where, most)
        finally:
            _free()


def _search(task: Task, entry: Entry, device: torch.device, most: int) -> Fit:
    trials: list[_Trial] = []

    def fits(size: int) -> bool:
        if _least(task, trials, size) > _available(device):
            return False
        trials.append(_tried(task, entry, device, size))
        return trials[-1].fits

    with _limited(device):
        _refuse_what_does_not_train(task)
    good = _smallest(task, entry, device, most)
    _free()
    available = _available(device)  # now that all code is loaded, which is not the batch's
    if not fits(good):
        _refuse(task, trials, good, available)
    bad = None
    while good < most and bad is None:
        size = min(2 * good, most)
        good, bad = (size, None) if fits(size) else (good, size)
    while bad is not None and bad - good > max(1, CLOSE * good):
        size = (good + bad) // 2
        good, bad = (size, bad) if fits(size) else (good, size)
    rows = pd.DataFrame([asdict(t) for t in trials]).drop(columns="asked")
    taken = next(t.bytes for t in trials if t.batch_size == good)
    return Fit(good, taken, "data" if bad is None else "memory", available, rows)


def _refuse_what_does_not_train(task: Task) -> None:
    try:
        first_batch(task)
    except TaskError as error:
        # With no memory for it nothing is known, and smaller batches are tried next.
        if not _is_memory(error):
            raise


def _smallest(task: Task, entry: Entry, device: torch.device, most: int) -> int:
    """The batch to begin with; what only runs once, loading code say, has run afterwards."""
    try:
        _tried(task, entry, device, 1)
    except TaskError:
        # Batch normalisation takes no batch of one, nor does what squeezes its outputs.
        if most == 1:
            raise
        _tried(task, entry, device, 2)
        return 2
    return 1


def _least(task: Task, trials: list[_Trial], size: int) -> float:
    """Bytes that a batch takes at least, as far as is known."""
    samples = sum(t[:1].nbytes for t in task.train.tensors) * size
    known = sorted((t.batch_size, t.bytes) for t in trials if t.fits)[-2:]
    if len(known) < 2:
        return samples
    (small, less), (large, more) = known
    return max(samples, more + (size - large) * (more - less) / (large - small))


def _refuse(task: Task, trials: list[_Trial], size: int, available: int) -> None:
    """Refuse a task of which not even the smallest batch fits."""
    need = max([_least(task, [], size), *(t.bytes + t.asked for t in trials)])
    samples = f"{size} sample{'s' if size > 1 else ''}"
    raise TaskError(
        "task",
        f"a step of training on {samples} needs "
        f"{f'at least {shown(need)} of' if need > available else 'more'} memory, where "
        f"{shown(available)} are free; give a smaller model or smaller samples",
    )


def _tried(task: Task, entry: Entry, device: torch.device, size: int) -> _Trial:
    """Train with a batch size.

    Raises:
        TaskError: for whatever fails other than for want of memory.
    """
    _free()
    peak = _watched(device)
    speed, asked = float("nan"), 0
    try:
        with _limited(device):
            speed = size / _stepped(task, entry, device, size)
    except Exception as error:
        if not _is_memory(error):
            where, line = place(error), quoted(error)
            at = f" at {where}, `{line}`" if where and line else ""
            raise TaskError(
                "task",
                f"training with {entry.label} and a batch of {size} raises {first_line(error)}{at}",
            ) from error
        asked = _asked(error)
    finally:
        taken = peak()
    return _Trial(size, speed == speed, taken, speed, asked)


def _stepped(task: Task, entry: Entry, device: torch.device, size: int) -> float:
    """Take two steps, the second with all of the optimizer's state; the seconds of the faster."""
    torch.manual_seed(SEED)
    module = task.model().to(device).train()
    optimizer = entry.constructor([p for p in module.parameters() if p.requires_grad])
    index = torch.arange(size) % len(task.train)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss.of(called(module, x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < TIMED:
        start = perf_counter()
        x, y = tree_map(lambda t: t.to(device), task.train[index])
        optimizer.step(closure)
        wait(device)
        seconds.append(perf_counter() - start)
    return min(seconds)


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_memory()


@contextmanager
def _limited(device: torch.device) -> Iterator[None]:
    """Let this process take most of what is available now; more raises, and nothing is killed.

    ``RLIMIT_DATA`` counts memory of its own that is mapped, and not, as ``RLIMIT_AS`` does, files
    and what threads and CUDA reserve.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _status("VmData") - _freed() + int((1 - MARGIN) * available_memory())
    standing = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([limit, *standing]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _freed() -> int:
    """Bytes that are mapped for small tensors but given back: available, and outside of a limit."""
    lines: Iterator[str] = iter(())
    with suppress(OSError):  # some kernels do not tell
        lines = iter((PROC / "smaps").read_text().splitlines())
    if not any(line.endswith("[heap]") for line in lines):
        return 0
    size, resident = (
        next(int(line.split()[1]) for line in lines if line.startswith(name))
        for name in ("Size:", "Rss:")
    )
    return 1024 * (size - resident)


def _status(name: str) -> int:
    """What Linux knows of this process' memory, in bytes.

    Raises:
        OSError: on another system.
        KeyError: if it does not know that.
    """
    lines = (PROC / "status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return 1024 * int(found[name].split()[0])


def _watched(device: torch.device) -> Callable[[], int]:
    """Begin to watch memory; what is returned ends it, and gives the bytes of the peak since."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return lambda: torch.cuda.max_memory_allocated(device) - before
    try:
        (PROC / "clear_refs").write_text("5")  # the peak is what is resident now
        resident = _status("VmRSS")
        return lambda: max(0, _status("VmHWM") - resident)
    except (OSError, KeyError):
        return _sampled()


def _sampled() -> Callable[[], int]:
    import psutil

    process, done = psutil.Process(), Event()
    seen = [process.memory_info().rss]

    def sample() -> None:
        while not done.wait(SAMPLING):
            seen.append(process.memory_info().rss)

    thread = Thread(target=sample, daemon=True)
    thread.start()

    def end() -> int:
        done.set()
        thread.join()
        return int(max(seen) - seen[0])

    return end


def _is_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that there was no memory."""
    if error is None:
        return False
    words = (
        "DefaultCPUAllocator",  # torch, which has no kind of error for it
        "Cannot allocate memory",  # the system
        "could not create a primitive",  # oneDNN
        "could not create a memory object",
        "bad_alloc",  # C++
        "out of memory",  # CUDA, outside of torch's allocator
        "ALLOC_FAILED",  # cuBLAS and cuDNN
    )
    kinds = (MemoryError, torch.OutOfMemoryError)
    said = isinstance(error, RuntimeError | OSError | ImportError) and any(
        word in str(error) for word in words
    )
    return isinstance(error, kinds) or said or _is_memory(error.__cause__)


def _asked(error: BaseException) -> int:
    """The bytes that could not be had, where the error says how many."""
    found = re.search(r"allocate ([\d.]+) (bytes|KiB|MiB|GiB)", str(error))
    return int(float(found[1]) * UNITS[found[2]]) if found else 0


def _free() -> None:
    """Give back all that is no longer used, to the system too."""
    gc.collect()
    if gpus():
        torch.cuda.empty_cache()
    # The C library keeps what was freed, which would then look as if a trial had needed less.
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
