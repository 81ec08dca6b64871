"""Ranks that fail: the others end too, and one of them says why.

Neither torchrun nor gloo says which rank ended, and with NCCL the others would wait for it. So
each rank watches the processes of all others on its machine, which the system tells of at once.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

__all__ = [
    "again",
    "claimed",
    "ended_by_interrupts",
    "is_first",
    "is_on_one_machine",
    "is_several",
    "meeting",
    "processes",
    "speaks",
    "watched",
]

PATIENCE = 3.0  # seconds that a rank with nothing to say leaves the one that says it
NOTICE = 1.0  # seconds in which the system tells of an end that a connection told of already

_FROM = "from the last checkpoint"
_BY_HAND = f"start it again with --resume to go on {_FROM}"

_stores: list[Any] = []  # where the ranks of this process meet
_claims: dict[int, bool] = {}  # by how often they had joined
_lock = threading.Lock()
_joins = 0


def is_several() -> bool:
    """Whether torchrun, or what sets the same variables, started this process beside others."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def is_on_one_machine() -> bool:
    """Whether all of them were started on this one."""
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE", "1")


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def meeting() -> Any:
    """A ``torch.distributed.Store`` that all ranks have, for the next time they join.

    Raises:
        RuntimeError: if the other ranks cannot be reached.
    """
    global _joins
    _joins += 1
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(_name(), _store())


def _name() -> str:
    """Of this meeting: of one that is over, what was said there remains."""
    # Of several machines each counts its own restarts; there torchrun makes another store for each.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "") if is_on_one_machine() else ""
    return f"thalweg {attempt} {_joins}"


def _store() -> Any:
    if not _stores:
        from torch.distributed.rendezvous import rendezvous

        store, _, _ = next(rendezvous("env://"))
        _stores.append(store)
    return _stores[0]


@contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Have Ctrl-C end this process at once, while it waits for others that may never come.

    Python does not get to see it there, and the others end of it before they join.
    """
    before = signal.getsignal(signal.SIGINT)
    mine = before is signal.default_int_handler
    mine = mine and threading.current_thread() is threading.main_thread()
    if mine:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGINT, before)


def claimed() -> bool:
    """Whether it is for this rank to say what went wrong: of all, the first that asks."""
    # Without torchrun the store is the first rank's own, and may never come.
    asks = bool(_stores) or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not is_several() or not asks:
        return True
    with _lock:
        if _joins not in _claims:
            try:
                _claims[_joins] = _store().add(f"{_name()} failed", 1) == 1
            except Exception:  # whoever kept the store is gone: better twice than never
                _claims[_joins] = True
        return _claims[_joins]


def speaks() -> bool:
    """The same for a rank that is about to end: where another speaks, it is given time to."""
    if claimed():
        return True
    time.sleep(PATIENCE)
    return False


def again() -> str:
    """What becomes of a training of which a rank ended."""
    left = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) - int(
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    )
    return f"torchrun starts all of them again, {_FROM}" if left > 0 else _BY_HAND


def processes(others: Mapping[int, int], size: int) -> dict[int, str]:
    """What to watch, and what to say of its end.

    Args:
        others: process ids on this machine, by rank.
        size: how many ranks there are.
    """
    said = "ended without a word, killed or out of memory, and the training with it"
    found = {
        process: f"rank {rank} of {size} (process {process}) {said}; {again()}"
        for rank, process in others.items()
    }
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Whose store, of which they ask whose turn it is to speak, has ended with it.
        last = f"torchrun (process {os.getppid()}) {said}; {_BY_HAND}"
        found[os.getppid()] = last if is_first() else ""
    return found


@contextmanager
def watched(others: Mapping[int, str]) -> Iterator[None]:
    """End this process, with one sentence from one rank, as soon as another ends.

    SIGTERM, which torchrun sends to the ranks that are left, raises `SystemExit` meanwhile.

    Args:
        others: what to say of the end of a process, by its id; nothing if empty.
    """
    files: dict[int, str] = {}
    for process, said in others.items():
        with suppress(AttributeError, OSError):  # not Linux; ended already, which connections tell
            files[os.pidfd_open(process)] = said
    stop, stopping = os.pipe()
    poll = select.poll()
    for file in (*files, stop):
        poll.register(file, select.POLLIN)

    def look() -> None:
        ready = [file for file, _ in poll.poll()]
        if stop not in ready:
            _end(files[ready[0]])

    thread = threading.Thread(target=look, daemon=True, name="thalweg ranks")
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    mine = before is signal.SIG_DFL and threading.current_thread() is threading.main_thread()
    if mine:
        signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except BaseException as error:
        if files and _lost(error):
            thread.join(NOTICE)  # in which it ends this process
        raise
    finally:
        if mine:
            signal.signal(signal.SIGTERM, before)
        os.write(stopping, b".")
        thread.join()
        for file in (*files, stop, stopping):
            os.close(file)


def _lost(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, may be of another rank's end."""
    if isinstance(error, SystemExit):
        return error.code == 128 + signal.SIGTERM
    words = ("gloo", "NCCL", "Connection", "connection")
    said = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return said or (error is not None and _lost(error.__cause__))


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _end(said: str) -> NoReturn:
    try:
        if said and claimed():
            shown = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar hides the cursor
            os.write(2, f"{shown}thalweg: {said}\n".encode())
    finally:
        os._exit(1)
