"""Schedules as a person types them: ``cosine``, ``step:size=10e:gamma=0.5``, ``warmup+cosine``."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from operator import add
from typing import Any

from thalweg.rules.rule import Flag, Number
from thalweg.schedules.presets import COUNTS, PARAMETERS
from thalweg.schedules.registry import SCHEDULES, Entry
from thalweg.schedules.schedule import Schedule, ScheduleError

__all__ = ["parse"]

_COUNT = re.compile(r"(\d+)|(\d*\.?\d+)(e|%)")


@dataclass(frozen=True)
class _Part:
    """What stands between two ``+``."""

    typed: str
    entry: Entry
    given: dict[str, Any]
    unit: int  # steps that one of its own is: 1, or those of an epoch

    def make(self, steps: int) -> Schedule:
        """With its other parameters for so many steps of its own."""
        steps = self.given.get("steps", steps)
        try:
            made = self.entry.factory(**{**self.entry.defaults(max(1, steps)), **self.given})
        except ScheduleError as error:
            raise _error(self.typed, error.problem) from None
        return made if self.unit == 1 else made.by_epoch(self.unit)


def parse(text: str, steps: int, steps_per_epoch: int) -> Schedule:
    """The schedule that a person typed.

    ``name:parameter=value:…``, several joined by ``+``, each beginning where that before it ends.
    What is not given is as `SCHEDULES` has it for this training. Numbers of steps may be epochs,
    ``10e``, or a share of the training, ``10%``; milestones are separated by ``/``. With
    ``by=epoch`` the schedule counts epochs.

    Args:
        text: what was typed.
        steps: of the training, at least 1.
        steps_per_epoch: at least 1.

    Raises:
        ScheduleError: if it means nothing, or ends before the training does.
    """
    for name, value in (("steps", steps), ("steps_per_epoch", steps_per_epoch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ScheduleError(name, f"must be a whole number of at least 1, got {value!r}")
    *before, last = (_read(part.strip(), steps, steps_per_epoch) for part in text.split("+"))
    made = [_before(part, last, steps) for part in before]
    rest = steps - sum(m.steps or 0 for m in made)
    if rest < 1:
        raise _error(
            text,
            f"nothing of the training's {steps} steps is left for {last.typed}; make what comes "
            "before it shorter",
        )
    made.append(last.make(-(-(steps if last.entry.opens else rest) // last.unit)))
    if last.entry.opens:
        made[-1] = made[-1].hold()
    whole = reduce(add, made)
    if whole.steps is not None and whole.steps < steps:
        raise _error(
            text,
            f"ends after {whole.steps} steps and the training after {steps}; make it longer, or "
            "add what follows by +",
        )
    return whole


def _before(part: _Part, last: _Part, steps: int) -> Schedule:
    if "steps" not in part.entry.parameters:
        raise _error(
            part.typed, f"{part.entry.name} never ends, so that nothing can follow; put it last"
        )
    if "steps" not in part.given and not part.entry.opens:
        raise _error(
            part.typed,
            f"say how long it lasts before {last.typed} begins: {part.typed}:steps=10%",
        )
    return part.make(-(-steps // part.unit))


def _read(typed: str, steps: int, steps_per_epoch: int) -> _Part:
    name, *assignments = (word.strip() for word in typed.split(":"))
    entry = SCHEDULES.get(name.lower().replace("-", "_"))
    if entry is None:
        near = get_close_matches(name.lower(), SCHEDULES, 1)
        meant = f"did you mean {near[0]}? The schedules are" if near else "choose from"
        raise ScheduleError(
            "schedule", f"there is no schedule {name!r}; {meant} {', '.join(SCHEDULES)}"
        )
    values: dict[str, str] = {}
    for assignment in assignments:
        parameter, equals, value = (word.strip() for word in assignment.partition("="))
        if parameter not in (*entry.parameters, "by"):
            raise _error(
                typed,
                f"{entry.name} has no parameter {parameter!r}; it has "
                f"{', '.join((*entry.parameters, 'by'))}",
            )
        if not (equals and value) or parameter in values:
            wrong = "is given twice" if parameter in values else "has no value"
            raise _error(typed, f"{parameter} {wrong}; write {parameter}=value once")
        values[parameter] = value
    by = values.pop("by", "step")
    if by not in ("step", "epoch"):
        raise _error(typed, f"by must be step or epoch, got {by!r}")
    unit = steps_per_epoch if by == "epoch" else 1
    sizes = {"": 1.0, "e": steps_per_epoch / unit, "%": steps / unit / 100}
    given = {key: _value(typed, key, value, sizes) for key, value in values.items()}
    return _Part(typed, entry, given, unit)


def _value(typed: str, name: str, value: str, sizes: dict[str, float]) -> Any:
    parameter = PARAMETERS[name]
    if name == "milestones":
        return [_count(typed, name, one, sizes) for one in value.split("/")]
    if name in COUNTS:
        return _count(typed, name, value, sizes)
    if isinstance(parameter, Flag):
        if value.lower() not in ("true", "false"):
            raise _error(typed, f"{name} must be true or false, got {value!r}")
        return value.lower() == "true"
    if isinstance(parameter, Number):
        try:
            return float(value)
        except ValueError:
            raise _error(typed, f"{name} must be a number, got {value!r}") from None
    return value


def _count(typed: str, name: str, value: str, sizes: dict[str, float]) -> int:
    """A number of steps, in the unit of the schedule."""
    found = _COUNT.fullmatch(value.strip())
    if found is None:
        raise _error(
            typed,
            f"{name} must be a whole number of steps, epochs as in 10e, or a share of the training "
            f"as in 10%, got {value!r}",
        )
    whole, number, suffix = found.groups()
    if whole:
        return int(whole)
    share = float(number)
    return max(1, round(share * sizes[suffix])) if share else 0


def _error(typed: str, problem: str) -> ScheduleError:
    return ScheduleError("schedule", f"{typed!r}: {problem}")
