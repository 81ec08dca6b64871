"""What a schedule is, and how schedules are put together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from numbers import Real
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import ArgumentError

__all__ = ["Floats", "Schedule", "ScheduleError", "typed"]

Floats: TypeAlias = NDArray[np.float64]


class ScheduleError(ArgumentError):
    """A schedule that cannot be, or is asked for what it has not."""


@dataclass(frozen=True)
class Schedule:
    """A factor on the base learning rate, as a function of the number of steps done.

    ``schedule(t)`` is for the step that comes after ``t`` steps: ``schedule(0)`` for the first. It
    takes a number or any array of them, 0 to ``steps`` inclusive. Two schedules are put together by
    ``a + b`` (b begins, at its own 0, when a ends) and ``a * b`` (as long as the shorter), and
    ``0.5 * a`` scales one.

    Attributes:
        text: how it is written; schedules of the same text count as the same.
        steps: how long it lasts; None for ever.
        of: the function, pure and elementwise: float64 steps ``(n,)`` -> factors ``(n,)``.
    """

    text: str
    steps: int | None
    of: Callable[[Floats], Floats] = field(repr=False, compare=False)

    __array_ufunc__ = None  # so that NumPy leaves the product with one of its scalars to this class

    @overload
    def __call__(self, step: int) -> float: ...
    @overload
    def __call__(self, step: Sequence[int] | NDArray[Any]) -> Floats: ...
    def __call__(self, step: int | Sequence[int] | NDArray[Any]) -> float | Floats:
        """The factor after so many steps.

        Raises:
            ScheduleError: for what is no whole number of 0 to ``steps``.
        """
        t = np.asarray(step)
        if t.size and t.dtype.kind not in "iuf":
            raise ScheduleError("step", f"{self.text} takes whole numbers of steps, got {step!r}")
        # One is a vector too: the power of a number is rounded otherwise than that of an array.
        shape, t = t.shape, t.astype(np.float64).ravel()
        self._check(t)
        with np.errstate(over="ignore"):  # what is too large is an error below
            factor = np.asarray(self.of(t), np.float64)
        if factor.shape != t.shape:
            raise ScheduleError(
                "of", f"{self.text} made {factor.shape} of steps {t.shape}; it must be elementwise"
            )
        if not np.isfinite(factor).all():
            at = t[~np.isfinite(factor)][0]
            raise ScheduleError("step", f"{self.text} is no finite number at step {at:.0f}")
        return factor.reshape(shape) if shape else float(factor[0])

    def _check(self, t: Floats) -> None:
        wrong = ~np.isfinite(t) | (t < 0) | (t != np.floor(t))
        if wrong.any():
            raise ScheduleError(
                "step",
                f"{self.text} is asked for step {typed(t[wrong][0])}; "
                "steps are whole numbers, counted from 0",
            )
        if self.steps is not None and (t > self.steps).any():
            raise ScheduleError(
                "step",
                f"{self.text} lasts {self.steps} steps and is asked for step {t.max():.0f}; make "
                "it longer, keep its last value by .hold(), or add what follows by +",
            )

    def __add__(self, other: "Schedule") -> "Schedule":
        if not isinstance(other, Schedule):
            return NotImplemented
        if self.steps is None:
            raise ScheduleError(
                "schedule",
                f"{self.text} never ends, so that {other.text} would never begin; put it last",
            )
        total = None if other.steps is None else self.steps + other.steps
        return Schedule(f"{self.text} + {other.text}", total, partial(_sum, self, other))

    def __mul__(self, other: "Schedule | float") -> "Schedule":
        if isinstance(other, Schedule):
            ends = [s for s in (self.steps, other.steps) if s is not None]
            text = f"{_bracketed(self.text)} * {_bracketed(other.text)}"
            return Schedule(text, min(ends, default=None), partial(_product, self, other))
        if not isinstance(other, Real) or isinstance(other, bool):
            return NotImplemented
        if not (isfinite(other) and other >= 0):
            raise ScheduleError(
                "factor", f"{self.text} can be multiplied by a number in [0, inf), got {other!r}"
            )
        text = f"{typed(float(other))} * {_bracketed(self.text)}"
        return Schedule(text, self.steps, partial(_scaled, self, float(other)))

    __rmul__ = __mul__

    def hold(self) -> "Schedule":
        """The same, and its last value for ever after; itself if it never ends."""
        if self.steps is None:
            return self
        return Schedule(f"{_bracketed(self.text)}.hold()", None, partial(_held, self, self.steps))

    def by_epoch(self, steps_per_epoch: int) -> "Schedule":
        """The same counted in epochs: it changes after each, and lasts so many epochs.

        Args:
            steps_per_epoch: optimizer steps of an epoch, at least 1.

        Raises:
            ScheduleError: for another number.
        """
        if isinstance(steps_per_epoch, bool) or not isinstance(steps_per_epoch, int | np.integer):
            raise ScheduleError(
                "steps_per_epoch", f"must be a whole number, got {steps_per_epoch!r}"
            )
        if steps_per_epoch < 1:
            raise ScheduleError("steps_per_epoch", f"must be at least 1, got {steps_per_epoch}")
        n = int(steps_per_epoch)
        return Schedule(
            f"{_bracketed(self.text)}.by_epoch({n})",
            None if self.steps is None else self.steps * n,
            partial(_by_epoch, self, n),
        )


# Functions of the module, and no closures, so that schedules can be pickled.


def _sum(a: Schedule, b: Schedule, t: Floats) -> Floats:
    assert a.steps is not None
    factor = np.empty_like(t)
    first = t < a.steps
    factor[first] = a(t[first])
    factor[~first] = b(t[~first] - a.steps)
    return factor


def _product(a: Schedule, b: Schedule, t: Floats) -> Floats:
    return np.asarray(a(t)) * b(t)


def _scaled(a: Schedule, factor: float, t: Floats) -> Floats:
    return factor * np.asarray(a(t))


def _held(a: Schedule, steps: int, t: Floats) -> Floats:
    return np.asarray(a(np.minimum(t, steps)))


def _by_epoch(a: Schedule, steps_per_epoch: int, t: Floats) -> Floats:
    return np.asarray(a(t // steps_per_epoch))


def _bracketed(text: str) -> str:
    return f"({text})" if " + " in text or " * " in text else text


def typed(value: Any) -> str:
    """A value as a person types it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(typed, value))}]"
    if isinstance(value, float):
        return repr(float(value)).removesuffix(".0")
    return repr(value)
