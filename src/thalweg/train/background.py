"""Work beside the training: calls made one after another in a thread in the background."""

import atexit
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import Any

import torch

from thalweg.tasks.states import gpus
from thalweg.train.arguments import whole

__all__ = ["Background", "waitall"]

# Those with something to do, or with an error that nobody was told of.
_owing: "set[Background]" = set()


class Background:
    """Calls made in the background, one after another, in the order they were submitted.

    What is submitted is done, also when Python ends meanwhile. An error does not keep what follows
    from being done: it is raised by the next `submit`, `wait` or `waitall`, or shown when Python
    ends.

    Args:
        pending: calls that may wait or be made at a time; with as many, `submit` waits. It bounds
            what they hold in memory: snapshots of a model on their way to a slow disk.

    Raises:
        FitError: if ``pending`` is no whole number of at least 1.
    """

    def __init__(self, pending: int = 2) -> None:
        self._most = whole("pending", pending)
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._count = 0  # of calls that wait or are being made
        self._errors: list[BaseException] = []
        self._changed = Condition()

    def submit(self, function: Callable[..., object], *args: Any) -> None:
        """Have a function called with arguments, which nobody may change any more.

        Raises:
            BaseException: what an earlier call raised; then the function is not submitted.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._count < self._most or self._errors)
            _raise(self._told())
            if not self._count:
                # It ends when nothing is left to do, and Python waits for it when it ends itself.
                Thread(target=self._run, name="thalweg background").start()
            self._calls.append((function, args))
            self._count += 1
            _owing.add(self)

    def wait(self) -> None:
        """Return when everything submitted is done.

        Raises:
            BaseException: what a call raised.
        """
        _raise(self._settled())

    def _settled(self) -> list[BaseException]:
        """What calls raised, all of them done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._count)
            return self._told()

    def _told(self) -> list[BaseException]:
        errors, self._errors = self._errors, []
        if not self._count:
            _owing.discard(self)
        return errors

    def _run(self) -> None:
        left = True
        while left:
            with self._changed:
                function, args = self._calls.popleft()
            errors = []
            try:
                function(*args)
            except BaseException as error:
                errors.append(error)
            with self._changed:
                self._errors += errors
                self._count -= 1
                left = self._count > 0
                if not left and not self._errors:
                    _owing.discard(self)
                self._changed.notify_all()


def waitall() -> None:
    """Return when all that was begun is done: what goes on in the background, and on the GPUs.

    Raises:
        BaseException: what a call in the background raised, with a note of each further one.
    """
    errors = _all_settled()
    for gpu in gpus():
        if torch.cuda.memory_reserved(gpu):  # others are not in use, and would be by being asked
            torch.cuda.synchronize(gpu)
    _raise(errors)


def _all_settled() -> list[BaseException]:
    return [error for background in list(_owing) for error in background._settled()]


@atexit.register
def _show() -> None:
    _raise(_all_settled())


def _raise(errors: Sequence[BaseException]) -> None:
    if errors:
        first, *others = errors
        for other in others:
            first.add_note(f"Another call in the background raised {other!r}.")
        raise first
